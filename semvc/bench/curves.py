"""Rate and quality as curves: fronts, the conventional envelope, Bjøntegaard rate differences.

A curve is the Pareto front of its points, so that a codec measured at several sizes counts with
the best of them. Between points it is interpolated by monotone cubics (PCHIP) in the logarithm of
the rate; nothing is ever extrapolated. `self_test` checks the arithmetic against shifts that are
known exactly.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from semvc.bench.rows import ENVELOPE, METRICS, BdRate, Envelope, EnvelopePoint, MeanBdRate, Row

if TYPE_CHECKING:
    import numpy.typing as npt

    Float64 = npt.NDArray[np.float64]

Points = Sequence[tuple[float, float]]  # (rate, value of a metric)

ENVELOPE_CODECS = ("svtav1", "svtav1-vq", "x265", "vvenc")
# errors of motion fall when less moves or a picture is blurred: no rate belongs to a value of them
_WITHOUT_RATE = ("ewarp", "tof")
COMPARED = tuple(
    name
    for name, metric in METRICS.items()
    if metric.better in ("lower", "higher") and name not in _WITHOUT_RATE
)


def front(points: Points, *, lower: bool) -> tuple[tuple[float, float], ...]:
    """Return the points that no cheaper one equals in quality, by rising rate.

    `lower` says that smaller values are better. ValueError for rates that are not positive or
    values that are not finite.
    """
    for rate, value in points:
        if not (rate > 0 and math.isfinite(rate) and math.isfinite(value)):
            raise ValueError(f"not a point of a curve: rate {rate}, value {value}")
    sign = -1 if lower else 1
    kept: list[tuple[float, float]] = []
    for rate, value in sorted(points, key=lambda p: (p[0], -sign * p[1])):
        if not kept or sign * value > sign * kept[-1][1]:
            kept.append((rate, value))
    return tuple(kept)


def bd_rate(anchor: Points, test: Points, *, lower: bool) -> BdRate:
    """Return the mean change of rate of `test` against `anchor` at equal quality.

    The mean is of the logarithm of the rate over the range of qualities that both cover
    (Bjøntegaard 2001, with PCHIP in place of one cubic). Names in the result are left empty.
    """
    fronts = [front(points, lower=lower) for points in (anchor, test)]
    short = next((n for n, f in zip(("anchor", "curve"), fronts, strict=True) if len(f) < 2), None)
    if short is not None:
        return _without(f"the {short} has fewer than two points", fronts, lower)
    # quality rises with the rate, whatever the metric's own direction
    sign = -1 if lower else 1
    rates = [np.array([rate for rate, _ in points]) for points in fronts]
    qualities = [np.array([value for _, value in points]) for points in fronts]
    spans = [(float(sign * q[0]), float(sign * q[-1])) for q in qualities]
    low, high = max(s[0] for s in spans), min(s[1] for s in spans)
    if not low < high:
        return _without("the curves share no range of quality", fronts, lower)
    areas = [
        _Pchip(sign * q, np.log(r)).integral(low, high)
        for q, r in zip(qualities, rates, strict=True)
    ]
    gap = (areas[1] - areas[0]) / (high - low)
    shares = [(high - low) / (b - a) for a, b in spans]
    return BdRate(
        *("", "", "", ""),
        percent=100 * math.expm1(gap),
        low=min(sign * low, sign * high),
        high=max(sign * low, sign * high),
        overlap=shares[1],
        anchor_overlap=shares[0],
    )


def at_rate(points: Points, rate: float) -> float | None:
    """Return the metric of a curve at `rate`, None outside the rates it has points for.

    Interpolates through all the points by rising rate; give a `front` for a curve of several sizes.
    """
    found = dict(sorted(points))
    rates = np.array(list(found))
    if not len(rates) or not rates[0] <= rate <= rates[-1]:
        return None
    if len(rates) == 1:
        return float(found[rate])
    return _Pchip(np.log(rates), np.array(list(found.values()), np.float64)).value(math.log(rate))


def points_of(rows: Iterable[Row], metric: str) -> list[tuple[float, float]]:
    """Return (bpp, value) of the rows that have the metric."""
    return [(row.bpp, row.metrics[metric]) for row in rows if metric in row.metrics]


def envelope(rows: Iterable[Row], clip: str, metric: str) -> Envelope:
    """Return the best that `ENVELOPE_CODECS` reach on a clip, over all sizes and frame rates."""
    wanted = {
        (row.bpp, row.metrics[metric]): row
        for row in rows
        if row.clip == clip and row.codec in ENVELOPE_CODECS and metric in row.metrics
    }
    kept = front(list(wanted), lower=METRICS[metric].better == "lower")
    return Envelope(
        clip,
        metric,
        tuple(
            EnvelopePoint(bpp, value, row.codec, row.size, row.divisor, row.setting)
            for bpp, value in kept
            for row in (wanted[bpp, value],)
        ),
    )


def envelopes(rows: Sequence[Row]) -> tuple[Envelope, ...]:
    """Return the envelope of every clip and metric that has conventional rows."""
    found = (
        envelope(rows, clip, metric)
        for clip in dict.fromkeys(row.clip for row in rows)
        for metric in COMPARED
    )
    return tuple(item for item in found if item.points)


def bd_rates(rows: Sequence[Row]) -> tuple[BdRate, ...]:
    """Return all curves of semvc against the envelope and every conventional curve, by clip."""
    found: list[BdRate] = []
    for clip in dict.fromkeys(row.clip for row in rows):
        mine = [row for row in rows if row.clip == clip]
        for metric in COMPARED:
            anchors: dict[str, Points] = {
                ENVELOPE: [(p.bpp, p.value) for p in envelope(mine, clip, metric).points]
            }
            anchors |= _curves((r for r in mine if r.codec != "semvc"), metric)
            for curve, points in _curves((r for r in mine if r.codec == "semvc"), metric).items():
                for anchor, others in anchors.items():
                    if others:
                        item = bd_rate(others, points, lower=METRICS[metric].better == "lower")
                        found.append(_named(item, clip, metric, curve, anchor))
    return tuple(found)


def means(found: Iterable[BdRate]) -> tuple[MeanBdRate, ...]:
    """Return the mean over clips for every metric, curve and anchor."""
    groups: dict[tuple[str, str, str], list[BdRate]] = {}
    for item in found:
        groups.setdefault((item.metric, item.curve, item.anchor), []).append(item)
    return tuple(_mean(*names, items) for names, items in groups.items())


def self_test() -> None:
    """Check BD-rates and interpolation against known shifts; ArithmeticError if one is off."""
    rates = (0.002, 0.005, 0.012, 0.03, 0.07)
    curve = [(r, 30 + 4 * math.log(r / 0.002)) for r in rates]
    falling = [(r, 1 - q / 100) for r, q in curve]
    bent = [(r, 0.6 * math.exp(-40 * r)) for r in rates]

    def scaled(points: Points, factor: float) -> Points:
        return [(factor * r, q) for r, q in points]

    beyond = [(r, q + 99) for r, q in curve]
    checks: tuple[tuple[str, float | None, float | None], ...] = (
        ("itself", bd_rate(curve, curve, lower=False).percent, 0.0),
        ("half the rate", bd_rate(curve, scaled(curve, 0.5), lower=False).percent, -50.0),
        ("twice the rate", bd_rate(curve, scaled(curve, 2), lower=False).percent, 100.0),
        ("lower is better", bd_rate(falling, scaled(falling, 0.5), lower=True).percent, -50.0),
        ("a bent curve", bd_rate(bent, scaled(bent, 0.8), lower=True).percent, -20.0),
        # the same straight line in log-rate, through other points
        ("other points", bd_rate(curve[::2], scaled(curve[1::2], 0.5), lower=False).percent, -50.0),
        ("a dominated point", bd_rate(curve, [*curve, (0.05, 20.0)], lower=False).percent, 0.0),
        ("no overlap", bd_rate(curve, beyond, lower=False).percent, None),
        ("a point", at_rate(curve, 0.012), curve[2][1]),
        ("between points", at_rate(curve, 0.02), 30 + 4 * math.log(10)),
        ("beyond the points", at_rate(curve, 0.0019), None),
    )
    for name, found, expected in checks:
        same = found is expected if found is None or expected is None else None
        if same is None and found is not None and expected is not None:
            same = abs(found - expected) < 1e-9
        if not same:
            raise ArithmeticError(f"BD-rate self-test, {name}: {found}, not {expected}")


class _Pchip:
    """Monotone piecewise cubic through points of rising x (Fritsch and Carlson 1980).

    Inner slopes are the weighted harmonic means of their neighbours' (Fritsch and Butland 1984),
    slopes at the ends are one-sided with three points, limited to keep the shape.
    """

    def __init__(self, x: Float64, y: Float64) -> None:
        h, d = np.diff(x), np.diff(y) / np.diff(x)
        slopes = np.zeros(len(x))
        if len(x) == 2:
            slopes[:] = d
        else:
            w1, w2 = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
            same = d[1:] * d[:-1] > 0
            safe = np.where(same, d[1:], 1.0), np.where(same, d[:-1], 1.0)
            slopes[1:-1] = np.where(same, (w1 + w2) / (w1 / safe[1] + w2 / safe[0]), 0.0)
            slopes[0] = _end_slope(h[0], h[1], d[0], d[1])
            slopes[-1] = _end_slope(h[-1], h[-2], d[-1], d[-2])
        self._x = x
        # y = a + b t + c t^2 + e t^3 with t from the left end of a piece
        self._pieces = np.stack(
            (
                y[:-1],
                slopes[:-1],
                (3 * d - 2 * slopes[:-1] - slopes[1:]) / h,
                (slopes[:-1] + slopes[1:] - 2 * d) / h**2,
            )
        )

    def value(self, x: float) -> float:
        """Return y at x, which lies within the points."""
        k = int(np.clip(np.searchsorted(self._x, x, "right") - 1, 0, len(self._x) - 2))
        t = x - self._x[k]
        return float(self._pieces[:, k] @ t ** np.arange(4))

    def integral(self, low: float, high: float) -> float:
        """Return the integral of y from low to high, both within the points."""
        ends = np.clip((low, high), self._x[:-1, None], self._x[1:, None]) - self._x[:-1, None]
        powers = np.arange(1, 5)
        parts = ends[..., None] ** powers / powers  # [pieces, low or high, 4]
        return float(((parts[:, 1] - parts[:, 0]) * self._pieces.T).sum())


def _end_slope(h0: float, h1: float, d0: float, d1: float) -> float:
    slope = ((2 * h0 + h1) * d0 - h0 * d1) / (h0 + h1)
    if slope * d0 <= 0:
        return 0.0
    if d0 * d1 < 0 and abs(slope) > 3 * abs(d0):
        return float(3 * d0)
    return float(slope)


def _without(reason: str, fronts: Sequence[Points], lower: bool) -> BdRate:
    """A result without a figure: says which curve is better wherever their rates meet."""
    better = ""
    anchor, test = fronts
    if anchor and test and max(anchor[0][0], test[0][0]) <= min(anchor[-1][0], test[-1][0]):
        sign = -1 if lower else 1
        values = [[sign * value for _, value in points] for points in (anchor, test)]
        if min(values[1]) > max(values[0]):
            better = "curve"
        elif max(values[1]) < min(values[0]):
            better = "anchor"
    return BdRate(*("", "", "", ""), percent=None, better=better, reason=reason)


def _curves(rows: Iterable[Row], metric: str) -> dict[str, Points]:
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if metric in row.metrics:
            found.setdefault(row.curve, []).append((row.bpp, row.metrics[metric]))
    return dict(found)


def _named(item: BdRate, clip: str, metric: str, curve: str, anchor: str) -> BdRate:
    return dataclasses.replace(item, clip=clip, metric=metric, curve=curve, anchor=anchor)


def _mean(metric: str, curve: str, anchor: str, items: Sequence[BdRate]) -> MeanBdRate:
    counted = {item.clip: item.percent for item in items if item.percent is not None}
    worst = max(counted, key=lambda clip: counted[clip], default="")
    overlaps = [item.overlap for item in items if item.percent is not None]
    return MeanBdRate(
        metric,
        curve,
        anchor,
        percent=float(np.mean(list(counted.values()))) if counted else None,
        overlap=float(np.mean(overlaps)) if overlaps else 0.0,
        clips=tuple(counted),
        without=tuple(item.clip for item in items if item.percent is None),
        worst_clip=worst,
        worst=counted.get(worst),
    )
