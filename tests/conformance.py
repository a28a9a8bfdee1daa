"""What a stream decodes to, as JSON, and whether that is what was expected.

`python tests/conformance.py FILE...` prints it, one line a file. Integers are exact: their hashes
must be equal on every machine. Pictures come from float arithmetic and are compared within bounds.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from semvc import decoder, profiles
from semvc.bitstream.container import Segment, StreamReader, StreamWriter, probe
from semvc.bitstream.headers import AUDIO_SECTIONS, StreamHeader
from semvc.signals.audio import decode_audio
from semvc.signals.latent import Latents
from semvc.types import Runtime

VECTORS = Path(__file__).parent / "vectors"
MODELS = VECTORS / "models"  # a tiny codec, without which vectors of profile s2vc mean nothing
FACTS = ("frames", "segments", "sections", "audio_bytes", "overhead_bytes", "complete", "warnings")
SIGNALS = (
    *("caption", "skeleton", "sketch", "grain", "base"),
    *("camera", "depth", "masks", "keyframes"),
)
GRID = 4  # blocks each way whose mean colors stand for a picture
TOLERANCE = 1.0  # largest difference of a block's mean, of 255

Json = dict[str, Any]


def describe(raw: bytes) -> Json:
    """Everything normative about a stream, and some colors of its preview."""
    reader = StreamReader(io.BytesIO(raw))
    header = reader.header
    decoder.check_entropy(header)
    with contextlib.closing(profiles.create(header.profile, MODELS)) as profile:
        profile.load(header, "preview", 1, Runtime(models_dir=MODELS))
        segments = [_segment(profile, segment, header) for segment in reader]
    facts = probe(io.BytesIO(raw)).to_json()
    return {
        "bytes": len(raw),
        "sha256": _hash(raw),
        "header": header.to_json(),
        "container": {name: facts[name] for name in FACTS},
        "segments": segments,
    }


def rewrite(raw: bytes) -> bytes:
    """Parse a stream and write what was understood."""
    reader = StreamReader(io.BytesIO(raw))
    sink = io.BytesIO()
    writer = StreamWriter(sink, reader.header)
    for segment in reader:
        writer.write(segment.frames, segment.sections, segment.state_check)
    writer.finish()
    return sink.getvalue()


def differences(found: Any, wanted: Any, where: str = "") -> list[str]:
    """Say, one line each, where `found` is not as `wanted`; preview colors within TOLERANCE."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        lines = [f"{where}/{name}: only one has it" for name in found.keys() ^ wanted.keys()]
        for name in found.keys() & wanted.keys():
            lines += differences(found[name], wanted[name], f"{where}/{name}")
        return sorted(lines)
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        pairs = enumerate(zip(found, wanted, strict=True))
        return [line for i, pair in pairs for line in differences(*pair, f"{where}/{i}")]
    near = "/preview/" in where and isinstance(wanted, float) and isinstance(found, float)
    if found == wanted or (near and abs(found - wanted) <= TOLERANCE):
        return []
    return [f"{where}: {found!r} instead of {wanted!r}"]


def _segment(profile: profiles.Profile, segment: Segment, header: StreamHeader) -> Json:
    timing, signals = decoder.unpack(profile, segment, header)
    hashes = {}
    if timing is not None:
        hashes["timing"] = _hash(timing.canonical_bytes())
    said = getattr(signals, "fallback", None) or signals
    for name in SIGNALS:
        if (signal := getattr(said, name, None)) is not None:
            hashes[name] = _hash(signal.canonical_bytes())
    for kind in AUDIO_SECTIONS & segment.sections.keys():
        hashes["audio"] = _hash(decode_audio(segment.sections[kind])[0].canonical_bytes())
    frames = list(profile.synthesize(signals, segment, header))
    found = {
        "start": segment.start,
        "frames": segment.frames,
        "state_check": segment.state_check,
        "sections": {kind.name: len(data) for kind, data in segment.sections.items()},
        "signals": hashes,
        "preview": {
            "frames": len(frames),
            "shape": list(frames[0].shape),
            "first": _colors(frames[0]),
            "last": _colors(frames[-1]),
        },
    }
    if isinstance(signals, Latents):
        hashes["latents"] = _hash(signals.canonical_bytes())
        return found
    planes = b"".join(np.ascontiguousarray(plane, "<u2").tobytes() for plane in signals.planes)
    base = {"shape": list(signals.planes[0].shape), "sha256": _hash(planes)}
    return found | {"base_planes": base}


def _colors(frame: npt.NDArray[np.uint8]) -> list[float]:
    """Mean of each channel in GRID x GRID blocks, row by row."""
    rows = np.array_split(frame.astype(np.float64), GRID)
    blocks = [block for row in rows for block in np.array_split(row, GRID, axis=1)]
    return [round(float(value), 2) for block in blocks for value in block.mean((0, 1))]


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(json.dumps(describe(Path(name).read_bytes()), sort_keys=True))
