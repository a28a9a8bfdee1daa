"""Curves: known shifts come out, nothing is extrapolated, the envelope is the best of all."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semvc.bench import curves
from semvc.bench.rows import ENVELOPE, BdRate, Report, Row, Skipped
from semvc.errors import UsageError

RATES = (0.002, 0.005, 0.012, 0.03)
LINE = [(rate, 0.5 - 0.1 * math.log(rate / 0.002)) for rate in RATES]  # as LPIPS: lower is better


def row(codec: str, bpp: float, value: float, **more: Any) -> Row:
    return Row("clip", codec, 30.0, bpp=bpp, metrics={"lpips": value}, **more)


def test_the_self_test_passes_and_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    curves.self_test()
    whole = curves._Pchip.integral
    monkeypatch.setattr(curves._Pchip, "integral", lambda *given: 1.01 * whole(*given))
    with pytest.raises(ArithmeticError, match="self-test"):
        curves.self_test()


@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(0, 1000)), min_size=3, max_size=8),
    st.floats(0.1, 10),
)
def test_scaling_the_rate_is_what_comes_out(given_points: list[tuple[int, int]], by: float) -> None:
    points = [(rate / 1000, value / 1000) for rate, value in given_points]
    scaled = [(by * rate, value) for rate, value in points]
    found = curves.bd_rate(points, scaled, lower=True)
    if found.percent is None:
        assert "two points" in found.reason or "share" in found.reason
    else:
        assert found.percent == pytest.approx(100 * (by - 1), abs=1e-5)
        assert found.overlap == pytest.approx(1) and found.anchor_overlap == pytest.approx(1)


def test_interpolation_keeps_the_shape_and_the_integral_is_that_of_the_curve() -> None:
    x, y = np.array([0.0, 1, 2, 3, 7]), np.array([0.0, 0, 1, 1, 5])
    curve = curves._Pchip(x, y)
    fine = np.linspace(0, 7, 7001)
    values = np.array([curve.value(float(at)) for at in fine])
    assert np.diff(values).min() > -1e-12  # monotone where the points are
    assert [curve.value(float(at)) for at in x] == pytest.approx(list(y))
    inner = (fine >= 0.3) & (fine <= 6.2)
    expected = np.trapezoid(values[inner], fine[inner])
    assert curve.integral(0.3, 6.2) == pytest.approx(expected, abs=1e-3)


def test_a_partial_overlap_is_stated_and_only_it_counts() -> None:
    # the test curve reaches half the anchor's range of qualities, at 70 % of the rate
    better = [(0.7 * rate, value) for rate, value in LINE]
    found = curves.bd_rate(LINE, better[:2], lower=True)
    assert found.percent == pytest.approx(-30)
    assert (found.low, found.high) == (pytest.approx(LINE[1][1]), pytest.approx(LINE[0][1]))
    assert found.overlap == pytest.approx(1)
    share = (LINE[0][1] - LINE[1][1]) / (LINE[0][1] - LINE[3][1])
    assert found.anchor_overlap == pytest.approx(share)


@pytest.mark.parametrize(
    ("shift", "rate", "better"),
    [(-1.0, 1.0, "curve"), (1.0, 1.0, "anchor"), (-1.0, 1000.0, "")],
)
def test_without_overlap_there_is_no_figure_but_a_verdict(
    shift: float, rate: float, better: str
) -> None:
    moved = [(rate * r, value + shift) for r, value in LINE]
    found = curves.bd_rate(LINE, moved, lower=True)
    assert found.percent is None and "share no range" in found.reason
    assert found.better == better


@pytest.mark.parametrize("point", [(0.0, 1.0), (-1.0, 1.0), (0.01, math.nan), (math.inf, 1.0)])
def test_what_is_no_point_is_refused(point: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="not a point"):
        curves.front([point], lower=True)


def test_the_front_drops_what_a_cheaper_point_equals() -> None:
    points = [(1.0, 5.0), (2.0, 5.0), (2.0, 6.0), (3.0, 4.0), (4.0, 7.0)]
    assert curves.front(points, lower=False) == ((1.0, 5.0), (2.0, 6.0), (4.0, 7.0))
    assert curves.front(points, lower=True) == ((1.0, 5.0), (3.0, 4.0))


def test_no_value_is_read_outside_a_curve() -> None:
    assert curves.at_rate(LINE, 0.002) == pytest.approx(0.5)
    assert curves.at_rate(LINE, 0.0019) is None and curves.at_rate(LINE, 0.031) is None
    assert curves.at_rate([], 0.01) is None
    assert curves.at_rate([(0.01, 3.0)], 0.01) == 3.0


def test_the_envelope_takes_the_best_of_all_sizes_and_names_it() -> None:
    rows = [
        row("svtav1", 0.01, 0.3),
        row("svtav1", 0.004, 0.35, size="half"),
        row("x265", 0.011, 0.2, divisor=2),
        row("x264", 0.005, 0.01),  # not of the envelope
        row("semvc", 0.003, 0.1),
        row("vvenc", 0.02, 0.25),  # worse than a cheaper one
    ]
    found = curves.envelope(rows, "clip", "lpips")
    assert [(p.bpp, p.codec, p.size, p.divisor) for p in found.points] == [
        (0.004, "svtav1", "half", 1),
        (0.01, "svtav1", "full", 1),
        (0.011, "x265", "full", 2),
    ]


def test_each_curve_of_ours_meets_the_envelope_and_every_encoder() -> None:
    rows = [row("x265", rate, value) for rate, value in LINE]
    rows += [row("svtav1", 2 * rate, value) for rate, value in LINE]
    for tier, by in (("small", 0.5), ("preview", 1.5)):
        for rate, value in LINE:
            rows.append(row("semvc", by * rate, value, profile="disco", tier=tier))
    found = {(b.curve, b.anchor): b.percent for b in curves.bd_rates(rows) if b.metric == "lpips"}
    assert found == {
        ("semvc disco small", ENVELOPE): pytest.approx(-50),
        ("semvc disco small", "x265"): pytest.approx(-50),
        ("semvc disco small", "svtav1"): pytest.approx(-75),
        ("semvc disco preview", ENVELOPE): pytest.approx(50),
        ("semvc disco preview", "x265"): pytest.approx(50),
        ("semvc disco preview", "svtav1"): pytest.approx(-25),
    }


def test_the_mean_says_which_clips_it_leaves_out_and_which_is_worst() -> None:
    items = [
        BdRate(clip, "lpips", "semvc", "x265", percent, overlap=0.5)
        for clip, percent in (("a", -40.0), ("b", 10.0), ("c", None))
    ]
    (mean,) = curves.means(items)
    assert mean.percent == pytest.approx(-15) and mean.overlap == pytest.approx(0.5)
    assert (mean.clips, mean.without) == (("a", "b"), ("c",))
    assert (mean.worst_clip, mean.worst) == ("b", 10.0)


def test_a_report_comes_back_from_json_as_it_was() -> None:
    rows = tuple(row("x265", rate, value) for rate, value in LINE)
    rows += tuple(row("semvc", 0.5 * rate, value, tier="small") for rate, value in LINE)
    found = curves.bd_rates(rows)
    report = Report(
        "1.0",
        {"name": "toy"},
        {"cores": 2},
        rows,
        skipped=(Skipped("clip", "vp9", 40.0, "too small"),),
        envelopes=curves.envelopes(rows),
        bd_rates=found,
        mean_bd_rates=curves.means(found),
        notes=("a note",),
    )
    assert report.envelopes and report.bd_rates and report.mean_bd_rates
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report


@pytest.mark.parametrize(
    "change", [{"format": 99}, {"rows": [{"clip": "a", "colour": 1}]}, {"rows": [{"clip": "a"}]}]
)
def test_reports_of_other_versions_are_refused(change: dict[str, Any]) -> None:
    values = Report("1.0", {}, {}, ()).to_json()
    with pytest.raises(UsageError):
        Report.from_json({**values, **change})


def test_labels_name_curve_size_rate_and_setting() -> None:
    assert row("x265", 1, 1, size="half", divisor=2).label == "x265 half 1/2 crf 30"
    assert row("semvc", 1, 1, profile="disco", tier="small").label == "semvc disco small q 30"
