"""A report in sentences: what came out, how it was measured, and what limits it.

Only what the `Report` says is said here; the same sentences stand in Markdown and in the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from semvc.bench import tables
from semvc.bench.curves import ENVELOPE_CODECS
from semvc.bench.rows import ENVELOPE, METRICS, MeanBdRate, Report
from semvc.bench.tables import curve_title, heading, joined, percent


def title(report: Report) -> str:
    """Return the report's title."""
    return f"semvc benchmark {report.suite.get('name', '')}".strip()


def headlines(report: Report) -> tuple[MeanBdRate, ...]:
    """Return the mean BD-rates that lead the summary: main metrics, semvc's first curve."""
    own = tables.own_curves(report)
    if not own:
        return ()
    found = {(m.metric, m.curve): m for m in report.mean_bd_rates if m.anchor == ENVELOPE}
    return tuple(found[m, own[0]] for m in tables.MAIN if (m, own[0]) in found)


def results(report: Report) -> list[str]:
    """Return what came out, one sentence for each main metric and each of semvc's curves."""
    said = []
    means = {(m.metric, m.curve): m for m in report.mean_bd_rates if m.anchor == ENVELOPE}
    for curve in tables.own_curves(report):
        for metric in tables.MAIN:
            if (metric, curve) in means:
                said.append(_result(report, means[metric, curve]))
    if not said:
        said.append(
            "There is no BD-rate: that needs points of semvc and of conventional encoders on the "
            "same clip, with at least one metric measured on both."
        )
    return said


def method(report: Report) -> list[str]:
    """Return how it was measured."""
    suite = report.suite
    clips = {row.clip: row for row in report.rows}
    frames = [row.frames for row in clips.values()] or [0]
    said = [
        f"{len(clips)} clips of {_span(min(frames), max(frames))} frames; every codec coded "
        "complete files, decoded them again, and was measured by the same code.",
        "Bytes are those of the whole file, headers included, without sound; bits per pixel "
        "are those bits over the pixels of the source.",
    ]
    if used := [c for c in ENVELOPE_CODECS if any(row.codec == c for row in report.rows)]:
        said.append(
            f"The conventional envelope is, for each clip and metric, the best of "
            f"{joined(map(tables.codec, used))} over all sizes and frame rates tried."
        )
        said += [_anchor(anchor) for anchor in suite.get("anchors", ())]
        if "gop_seconds" in suite:
            said.append(f"Conventional key frames come every {suite['gop_seconds']:g} s at most.")
    if suite.get("every", 1) > 1:
        said.append(f"Figures of single frames look at about one frame in {suite['every']}.")
    said.append(
        "BD-rate is the mean difference in rate at equal quality over the range that both curves "
        "cover, by monotone cubics through the logarithm of the rate."
    )
    return said


def caveats(report: Report) -> list[str]:
    """Return what a reader has to know before quoting a figure."""
    said = []
    own = [c for c in tables.own_curves(report) if not c.endswith("preview")]
    if own:
        models = joined(f"{model} ({tier})" for tier, model in report.models.items())
        said.append(
            "Bytes are those of the streams: a decoder must also have its model"
            f"{', ' + models if models else ''}, which is not counted."
        )
        said.append(
            f"Fine detail from {joined(map(curve_title, own))} is plausible, not recorded. Metrics "
            "reward plausible detail even where it is wrong: look at the pictures as well."
        )
    said += [_uncovered(report, mean) for mean in headlines(report) if mean.without]
    if any(metric in tables.MOTION for metric in tables.measured(report)):
        said.append(
            "Figures of motion have no BD-rate here, because a blurred or held picture does best "
            "in them; they are set against SVT-AV1's at equal bytes instead."
        )
    said.append("The clips are short, so that key frames weigh more in them than in a long video.")
    wanted = {anchor.get("codec", "") for anchor in report.suite.get("anchors", ())}
    if absent := [c for c in ENVELOPE_CODECS if c in wanted - {row.codec for row in report.rows}]:
        names = joined(map(tables.codec, absent))
        said.append(f"No point of {names} could be made, so the envelope is without it.")
    said += [f"Not measured: {name}. {why}." for name, why in tables.missing(report).items()]
    if report.skipped:
        count = len(report.skipped)
        points = "One point" if count == 1 else f"{count} points"
        said.append(f"{points} could not be made: see the table of them below.")
    said.append("Speeds come from single runs; `semvc bench speed` measures them with repeats.")
    known = set(said)
    return said + [note for note in report.notes if note not in known]


def machine(report: Report) -> str:
    """Return one line on what it ran on."""
    found = dict(report.machine)
    words = [str(found.pop(name)) for name in ("system", "processor") if found.get(name)]
    if cores := found.pop("cores", None):
        words.append(f"{cores} cores" if cores != 1 else "1 core")
    if memory := found.pop("memory_bytes", None):
        words.append(f"{memory / 2**30:.0f} GiB")
    if gpu := found.pop("gpu", None):
        words.append(str(gpu))
    for name in ("system", "processor", "gpu"):
        found.pop(name, None)
    words += [f"{name} {value}" for name, value in found.items() if value]
    return ", ".join([f"semvc {report.program}", *words])


def _result(report: Report, mean: MeanBdRate) -> str:
    name = f"{curve_title(mean.curve)} in {heading(mean.metric)}"
    if mean.percent is None:
        return f"{name}: no clip has a BD-rate against the conventional envelope."
    more = "more" if mean.percent > 0 else "fewer"
    worst = "; ".join(
        f"{b.clip} {percent(b.percent) if b.percent is not None else 'worse throughout'}"
        for b in tables.worst(report, mean.metric, mean.curve)
    )
    return (
        f"{name}: {abs(mean.percent):.1f} % {more} bytes than the conventional envelope for the "
        f"same value (BD-rate {percent(mean.percent)}, mean of {len(mean.clips)} of "
        f"{len(mean.clips) + len(mean.without)} clips, overlap {tables.share(mean.overlap)}). "
        f"Worst clips: {worst}."
    )


def _uncovered(report: Report, mean: MeanBdRate) -> str:
    """Say what happens on the clips that the mean leaves out."""
    found = {
        b.clip: b.better
        for b in report.bd_rates
        if (b.metric, b.curve, b.anchor) == (mean.metric, mean.curve, ENVELOPE)
    }
    kinds = {"curve": "better throughout on", "anchor": "worse throughout on", "": "undecided on"}
    parts = []
    for better, words in kinds.items():
        clips = [clip for clip in mean.without if found.get(clip, "") == better]
        if clips:
            parts.append(f"{words} {joined(clips)}")
    return (
        f"The mean in {heading(mean.metric)} leaves out {len(mean.without)} of "
        f"{len(mean.without) + len(mean.clips)} clips, where the curves share no range of values: "
        f"semvc is {'; '.join(parts)}."
    )


def _anchor(anchor: Mapping[str, Any]) -> str:
    preset = anchor.get("preset")
    sizes = joined(anchor.get("sizes", ("full",)))
    divisors = [d for d in anchor.get("divisors", (1,)) if d != 1]
    crf = anchor.get("crf", ())
    words = f"{tables.codec(anchor.get('codec', ''))}: "
    words += f"preset {preset}, " if preset else "a slow preset, "
    words += f"{sizes} size"
    if divisors:
        words += f", also at 1/{joined(map(str, divisors))} of the frame rate"
    if crf:
        words += f", {len(crf)} rates (crf {min(crf):g} to {max(crf):g})"
    if sizes != "full":
        words += "; smaller pictures are enlarged by Lanczos before they are measured"
    return words + "."


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def unit(metric: str) -> str:
    """Return a metric's full title with its unit."""
    known = METRICS[metric]
    return f"{known.title}, {known.unit}" if known.unit else known.title
