"""What `info` and `models list` say: a stream's account beside the models at hand.

Standard library only, so that `info` starts quickly. The JSON and the text come from the same rows.
"""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path
from typing import Any

from semvc import weights
from semvc.backbones import manifest
from semvc.bitstream.headers import ProfileId, SectionType
from semvc.bitstream.probe import StreamInfo
from semvc.errors import ModelError

_NOTE = "the picture is a semantic reconstruction: fine detail is plausible, not recorded"


def stream(
    found: StreamInfo, models_dir: Path | None, *, segments: bool, home: Path | None = None
) -> dict[str, Any]:
    """Return everything `info --json` prints: the stream's account, its models, possible tiers.

    `home` is searched for backbones after `models_dir`.
    """
    rows: dict[str, Any] = dict(found.to_json(segments=segments))
    named = weights.by_decoder(found.header.decoder_id, models_dir)
    made_for: dict[str, Any] = {
        "role": "generator",
        "id": found.header.decoder_id.hex() if named is None else named.id,
        "available": named is not None and weights.folder(named, models_dir) is not None,
    }
    if named is not None:
        made_for["signals_read"] = list(named.signals)
    rows["models"] = [made_for]
    codec = ""
    if found.header.codec_id:
        coded_by = weights.by_codec(found.header.codec_id, models_dir)
        present = coded_by is not None and weights.folder(coded_by, models_dir) is not None
        codec = found.header.codec_id.hex() if coded_by is None else coded_by.id
        rows["models"].append({"role": "codec", "id": codec, "available": present})
    else:
        present = True
    rows["tiers"] = _tiers(rows["profile"], codec, models_dir) if present else []
    if rows["profile"] == "disco" and "full" not in rows["tiers"]:
        with contextlib.suppress(ModelError):
            manifest.find("", [root for root in (models_dir, home) if root is not None])
            rows["tiers"].append("full")
    if found.header.profile == ProfileId.CPSGD:
        bases = (item.count for item in found.sections if item.type == SectionType.BASE_AV1)
        rows["fallback_segments"] = sum(bases)
    rows["disclosure"] = _NOTE
    return rows


def _tiers(profile: str, codec: str, models_dir: Path | None) -> list[str]:
    found = [
        ref.tier
        for ref in weights.index(models_dir)
        if (ref.role, ref.profile, ref.codec) == ("generator", profile, codec)
        and weights.folder(ref, models_dir) is not None
    ]
    return list(dict.fromkeys(["preview", *found]))  # a model of one's own may share a tier


def model(ref: weights.ModelRef, models_dir: Path | None) -> dict[str, Any]:
    """Return a row of `models list`."""
    return {
        "id": ref.id,
        "decoder_id": ref.decoder_id().hex(),
        "role": ref.role,
        "profile": ref.profile,
        "tier": ref.tier,
        "available": weights.folder(ref, models_dir) is not None,
        "bytes": ref.bytes,
        "licence": ref.licence,
        "source": ref.source,
        "signals": list(ref.signals),
        "codec": ref.codec,
    }


def table(rows: dict[str, Any]) -> str:
    """Return the account as text for a terminal; text from the stream is escaped."""
    size = rows["bytes"]
    shown = f"{float(Fraction(rows['frame_rate'])):.5g} fps, {rows['duration_s']:.2f} s"
    if "time_base" in rows["header"]:
        shown = f"at varying times: about {shown}"
    lines = [
        f"profile    {rows['profile']}, format {rows['header']['version']}",
        f"picture    {rows['width']}x{rows['height']}, {rows['frames']} frames, {shown}",
        f"rate       {size} bytes, {rows['bpp']:.5f} bpp, {rows['kbps']:.2f} kbit/s"
        f" (picture alone {rows['video_bpp']:.5f} bpp, {rows['video_kbps']:.2f} kbit/s)",
        f"segments   {rows['segments']}",
        "",
        f"{'bytes':>10}  {'share':>6}  {'count':>5}  section",
    ]
    for item in rows["sections"]:
        share = item["bytes"] / max(size, 1)
        lines.append(f"{item['bytes']:>10}  {share:6.1%}  {item['count']:>5}  {item['type']}")
        if item["type"] == "latent":
            names = {"intra": "first frames", "hyper": "hyper-latents", "latent": "latents"}
            for part, weight in rows["latent_parts"].items():
                lines.append(
                    f"{weight:>10}  {weight / max(size, 1):6.1%}           of it"
                    f" {names.get(part, 'their lengths')}"
                )
    share = rows["overhead_bytes"] / max(size, 1)
    lines.append(f"{rows['overhead_bytes']:>10}  {share:6.1%}         container")
    lines.append("")
    for item in rows["models"]:
        state = "installed" if item["available"] else "not installed"
        reads = ", reads " + ", ".join(item["signals_read"]) if "signals_read" in item else ""
        what = "coded by" if item["role"] == "codec" else "made for"
        lines.append(f"{what}   {item['id']} ({state}{reads})")
    if "fallback_segments" in rows:
        count, total = rows["fallback_segments"], rows["segments"]
        lines.append(f"fallback   {count} of {total} segments are coded as profile disco does")
    lines.append(f"tiers      {', '.join(rows['tiers']) or 'none: the codec is not installed'}")
    if title := rows["header"].get("title"):
        lines.append(f"title      {printable(str(title))}")
    if not rows["complete"]:
        lines.append("state      incomplete or damaged; 'semvc verify' says where")
    lines += [f"warning    {printable(w)}" for w in rows["warnings"]]
    lines.append(f"note       {rows['disclosure']}")
    for row in rows.get("table", []):
        parts = ", ".join(f"{k} {v}" for k, v in row["sections"].items())
        lines.append(
            f"segment {row['index']:>5}  frames {row['start']}+{row['frames']}"
            f"  {row['bytes']} bytes: {parts}"
        )
    return "\n".join(lines)


def printable(text: str) -> str:
    """Return `text` with control and direction-changing characters escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
