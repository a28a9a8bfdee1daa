"""What a single frame does not show, at equal bytes: does the picture boil, drift or look wrong?

semvc's temporal figures are set against those of SVT-AV1 at the same rate. SVT-AV1 stands at each
rate with the size that a viewer would choose: the points of its front in the first metric of
`CHOSEN_BY` that was measured. Between its points figures are interpolated, beyond them there are
none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from semvc.bench.curves import at_rate, front
from semvc.bench.rows import METRICS, Report, Row
from semvc.bench.tables import Cell, Column, Table, curve_title, heading

ANCHOR = "svtav1"
CHOSEN_BY = ("lpips", "dists", "ms_ssim", "psnr_y")
RATIOS = ("tlpips", "ewarp")  # compared as ratios, the others as differences
DIFFERENCES = ("flicker_static_db", "cvvdp")
_TOLERANCE = 1.1  # times the anchor's
_LIMITS = {
    "tlpips": _TOLERANCE,
    "ewarp": _TOLERANCE,
    "flicker_static_db": 10 * math.log10(_TOLERANCE),
    "cvvdp": -0.2,
}


@dataclass(frozen=True, slots=True)
class Gate:
    """A figure of `curve` on a clip beside the anchor's at equal bytes, mean over `points`.

    `value` is the ratio to the anchor's for `RATIOS`, else the difference from it. `good` says
    whether it is within what the project asks of itself.
    """

    clip: str
    curve: str
    metric: str
    value: float
    points: int

    @property
    def good(self) -> bool:
        """True within the limit of its metric."""
        limit = _LIMITS[self.metric]
        return (
            self.value >= limit
            if METRICS[self.metric].better == "higher"
            else (self.value <= limit)
        )


def gates(report: Report, curve: str) -> tuple[Gate, ...]:
    """Return the gates of a curve for every clip and figure that both sides have."""
    found = []
    for clip in report.clips:
        rows = [row for row in report.rows if row.clip == clip]
        anchor = _chosen([row for row in rows if row.codec == ANCHOR])
        mine = [row for row in rows if row.curve == curve]
        for metric in (*RATIOS, *DIFFERENCES):
            values = _compare(mine, anchor, metric)
            if values:
                found.append(Gate(clip, curve, metric, mean(values), len(values)))
    return tuple(found)


def gate_table(report: Report, curve: str) -> Table:
    """Return the gates of a curve as a table, one row a clip, the mean last."""
    found = {(gate.clip, gate.metric): gate for gate in gates(report, curve)}
    metrics = [m for m in (*RATIOS, *DIFFERENCES) if any(metric == m for _, metric in found)]
    rows = [
        (Cell(clip), *(_cell(found.get((clip, metric))) for metric in metrics))
        for clip in report.clips
        if any((clip, metric) in found for metric in metrics)
    ]
    foot: list[Cell] = []
    if rows:
        values = [[g.value for g in found.values() if g.metric == metric] for metric in metrics]
        means = [Gate("", curve, m, mean(v), len(v)) for m, v in zip(metrics, values, strict=True)]
        foot = [Cell("mean"), *map(_cell, means)]
    columns = [Column("clip", numeric=False), *(Column(_title(metric)) for metric in metrics)]
    return Table(
        f"{curve_title(curve)} beside SVT-AV1 at equal bytes",
        tuple(columns),
        tuple(rows),
        "× is the ratio to SVT-AV1's figure, aim at most 1.1; dB and JOD are differences from it, "
        "aims at most +0.41 dB (a tenth more energy where nothing should move) and at least "
        "−0.2 JOD.",
        tuple(foot),
    )


def _chosen(rows: Sequence[Row]) -> list[Row]:
    """The anchor's rows on its front in the first metric that it has."""
    for metric in CHOSEN_BY:
        having = {(row.bpp, row.metrics[metric]): row for row in rows if metric in row.metrics}
        if having:
            lower = METRICS[metric].better == "lower"
            return [having[point] for point in front(list(having), lower=lower)]
    return []


def _compare(mine: Sequence[Row], anchor: Sequence[Row], metric: str) -> list[float]:
    points = [(row.bpp, row.metrics[metric]) for row in anchor if metric in row.metrics]
    values = []
    for row in mine:
        theirs = at_rate(points, row.bpp)
        if metric not in row.metrics or theirs is None:
            continue
        if metric not in RATIOS:
            values.append(row.metrics[metric] - theirs)
        elif theirs > 0:
            values.append(row.metrics[metric] / theirs)
    return values


def _title(metric: str) -> str:
    return f"{heading(metric)} {'×' if metric in RATIOS else 'difference'}"


def _cell(gate: Gate | None) -> Cell:
    if gate is None:
        return Cell("–")
    text = f"{gate.value:.2f}" if gate.metric in RATIOS else f"{gate.value:+.2f}"
    return Cell(text.replace("-", "−"), gate.value, "" if gate.good else "bad")
