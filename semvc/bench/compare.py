"""Two reports beside each other, clip by clip: what did a change of the program or a model bring?

Everything is paired by clip, so that clips being easy or hard does not enter; means over clips come
with their standard error. Rates are compared by BD-rate of the second report's curve against the
first one's, pictures by the difference of the metric at the same setting.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from semvc.bench import tables
from semvc.bench.curves import bd_rate, points_of
from semvc.bench.rows import METRICS, Report, Row
from semvc.bench.tables import Cell, Column, Table, curve_title, heading
from semvc.errors import UsageError

_Setting = tuple[str, str, int, float]


@dataclass(frozen=True, slots=True)
class Paired:
    """A difference, second report less first, over the clips that both have.

    `kind` is "rate" (BD-rate in percent) or "value" (of the metric, at the same settings).
    `by_clip` holds each clip's, `mean` their mean and `error` its standard error (None for one
    clip); `better` and `worse` count clips. `worst_clip` has changed most for the worse.
    """

    kind: str
    curve: str
    metric: str
    by_clip: dict[str, float]
    mean: float
    error: float | None
    better: int
    worse: int
    worst_clip: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """All paired differences; `bytes_ratio` is by curve, geometric mean at the same settings.

    `only_first` and `only_second` are clips that one report has and the other has not.
    """

    differences: tuple[Paired, ...]
    bytes_ratio: dict[str, float]
    only_first: tuple[str, ...] = ()
    only_second: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return dataclasses.asdict(self)

    def table(self, kind: str) -> Table:
        """Return the differences of a kind as a table."""
        rows = [_cells(item) for item in self.differences if item.kind == kind]
        titles = ("metric", "decoder", "mean", "± error", "better", "worse", "worst clip", "its")
        columns = tuple(
            Column(title, numeric=title not in ("metric", "decoder", "worst clip"))
            for title in titles
        )
        what = {
            "rate": "BD-rate of the second report against the first",
            "value": "Difference at the same settings, second less first",
        }
        return Table(what[kind], columns, tuple(rows), "Mean and standard error over clips.")


def compare(first: Report, second: Report) -> Comparison:
    """Return the paired differences of semvc's curves that both reports have.

    UsageError if they share no clip that both have measured with one curve.
    """
    curves = [curve for curve in tables.own_curves(first) if curve in second.curves]
    clips = [clip for clip in first.clips if clip in second.clips]
    found: list[Paired] = []
    ratios = {}
    for curve in curves:
        pairs = {clip: (_rows(first, clip, curve), _rows(second, clip, curve)) for clip in clips}
        pairs = {clip: pair for clip, pair in pairs.items() if all(pair)}
        for metric in METRICS:
            if METRICS[metric].better:
                found += _metric(curve, metric, pairs)
        logs = [
            math.log(b.bytes / a.bytes)
            for old, new in pairs.values()
            for a, b in _same(old, new)
            if a.bytes and b.bytes
        ]
        if logs:
            ratios[curve] = math.exp(mean(logs))
    if not found:
        raise UsageError(
            "the reports have nothing in common: no clip that both measured with one decoder"
        )
    return Comparison(
        tuple(found),
        ratios,
        tuple(clip for clip in first.clips if clip not in second.clips),
        tuple(clip for clip in second.clips if clip not in first.clips),
    )


def _metric(curve: str, metric: str, pairs: dict[str, tuple[list[Row], list[Row]]]) -> list[Paired]:
    rates: dict[str, float] = {}
    values: dict[str, float] = {}
    better = METRICS[metric].better
    for clip, (old, new) in pairs.items():
        if tables.ranked(metric):
            points = [points_of(rows, metric) for rows in (old, new)]
            percent = bd_rate(points[0], points[1], lower=better == "lower").percent
            if percent is not None:
                rates[clip] = percent
        both = [(a.metrics.get(metric), b.metrics.get(metric)) for a, b in _same(old, new)]
        gaps = [b - a for a, b in both if a is not None and b is not None]
        if better == "zero":
            gaps = [abs(b) - abs(a) for a, b in both if a is not None and b is not None]
        if gaps:
            values[clip] = mean(gaps)
    made = [_paired("rate", curve, metric, rates, sign=1)] if rates else []
    if values:
        made.append(_paired("value", curve, metric, values, sign=-1 if better == "higher" else 1))
    return made


def _paired(kind: str, curve: str, metric: str, found: dict[str, float], *, sign: int) -> Paired:
    """Sum differences up; with `sign` 1 a lower value is better, with -1 a higher one."""
    values = list(found.values())
    return Paired(
        kind,
        curve,
        metric,
        found,
        mean(values),
        stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None,
        sum(sign * value < 0 for value in values),
        sum(sign * value > 0 for value in values),
        max(found, key=lambda clip: sign * found[clip]),
    )


def _rows(report: Report, clip: str, curve: str) -> list[Row]:
    return [row for row in report.rows if (row.clip, row.curve) == (clip, curve)]


def _same(old: Sequence[Row], new: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Pairs of rows with one setting."""
    known = {_setting(row): row for row in old}
    return [(known[_setting(row)], row) for row in new if _setting(row) in known]


def _setting(row: Row) -> _Setting:
    return row.curve, row.size, row.divisor, row.setting


def _cells(item: Paired) -> tuple[Cell, ...]:
    if item.kind == "rate":
        texts = [tables.percent(v) for v in (item.mean, item.by_clip[item.worst_clip])]
        error = "–" if item.error is None else f"{item.error:.1f}"
    else:
        texts = [
            ("+" if v > 0 else "") + tables.number(item.metric, v).replace("-", "−")
            for v in (item.mean, item.by_clip[item.worst_clip])
        ]
        error = tables.number(item.metric, item.error)
    return (
        Cell(heading(item.metric) + (" (from 0)" if METRICS[item.metric].better == "zero" else "")),
        Cell(curve_title(item.curve)),
        Cell(texts[0], item.mean),
        Cell(error, item.error),
        Cell(str(item.better), item.better),
        Cell(str(item.worse), item.worse),
        Cell(item.worst_clip),
        Cell(texts[1]),
    )
