"""Targets in bytes, and the search for the quality that meets them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semvc import rate
from semvc.errors import UsageError
from semvc.rate import Shares, Target
from semvc.types import VideoInfo

Sizes = Callable[[float], float]
TRIALS = 7


def exponential(slope: float) -> Sizes:
    return lambda quality: 400 * math.exp(slope * quality)


CURVES: dict[str, Sizes] = {
    "flat": exponential(0.02),
    "usual": exponential(0.08),
    "steep": exponential(0.15),
    "offset": lambda q: 300 + 30 * math.exp(0.12 * q),
    "convex": lambda q: 500 * math.exp(0.02 * q + 0.0012 * q * q),
    "concave": lambda q: 200 * math.exp(0.12 * q - 0.0007 * q * q),
    "linear": lambda q: 500 + 100 * q,
    "stairs": lambda q: 400 * math.exp(0.08 * math.floor(q)),
}


class Coder:
    """Counts the trials; the coding is the quality in words."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.tried: list[float] = []

    def __call__(self, quality: float) -> tuple[int, str]:
        self.tried.append(quality)
        return round(self.sizes(quality)), f"coded at {quality}"


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("place", [2.0, 17.3, 32.0, 45.6, 61.0])
@pytest.mark.parametrize("first", [0.0, 32.0, 63.0])
def test_a_budget_is_met_within_few_trials(name: str, place: float, first: float) -> None:
    coder = Coder(CURVES[name])
    budget = CURVES[name](place)
    found, _ = rate.search(budget, first, coder)
    assert abs(found.size / budget - 1) < rate.TOLERANCE
    assert len(coder.tried) <= TRIALS


@pytest.mark.parametrize("name", CURVES)
def test_a_good_guess_needs_one_trial(name: str) -> None:
    coder = Coder(CURVES[name])
    rate.search(CURVES[name](30.0), 30.0, coder)
    assert coder.tried == [30.0]


@pytest.mark.parametrize("budget", [0.0, 1.0, 399.0])
def test_a_budget_below_the_smallest_coding_gives_the_smallest(budget: float) -> None:
    assert rate.search(budget, 32.0, Coder(exponential(0.08)))[0].quality == 0


@pytest.mark.parametrize("budget", [70_000.0, 1e9])
def test_a_budget_above_the_largest_coding_gives_the_largest(budget: float) -> None:
    assert rate.search(budget, 32.0, Coder(exponential(0.08)))[0].quality == rate.MAX_QUALITY


def test_a_budget_out_of_reach_takes_few_trials() -> None:
    for budget in (1.0, 1e9):
        coder = Coder(exponential(0.08))
        rate.search(budget, 32.0, coder)
        assert len(coder.tried) <= 3


def test_a_coder_whose_size_never_changes_ends_the_search() -> None:
    coder = Coder(lambda _: 1000.0)
    assert rate.search(500.0, 32.0, coder)[0].size == 1000
    assert len(coder.tried) <= TRIALS


def test_a_coding_of_no_bytes_is_no_error() -> None:
    assert rate.search(100.0, 32.0, Coder(lambda _: 0.0))[0].size == 0


@given(
    st.floats(0, 1e7),
    st.floats(-5, 80),
    st.lists(st.integers(0, 10**6), min_size=253, max_size=253),
)
def test_whatever_the_sizes_the_nearest_coding_of_few_trials_is_given(
    budget: float, first: float, sizes: list[int]
) -> None:
    coder = Coder(lambda quality: sizes[int(quality * 4)])
    found, coding = rate.search(budget, first, coder)

    def distance(size: float) -> float:
        return abs(math.log(max(size, 1) / max(budget, 1)))

    assert len(coder.tried) == len(set(coder.tried)) <= TRIALS
    assert all(0 <= q <= rate.MAX_QUALITY and (4 * q).is_integer() for q in coder.tried)
    assert coding == f"coded at {found.quality}"
    assert found.size == round(coder.sizes(found.quality))
    assert distance(found.size) == min(distance(coder.sizes(q)) for q in coder.tried)


def info(frame_count: int = 0) -> VideoInfo:
    return VideoInfo(640, 480, Fraction(25), Fraction(1, 25), frame_count)


def test_bits_per_pixel_count_the_pixels_of_the_frames() -> None:
    assert Target("bpp", 0.01).bytes_for(info(), 100, Fraction(4)) == pytest.approx(38_400)


def test_kilobits_per_second_count_the_seconds() -> None:
    assert Target("kbps", 16.0).bytes_for(info(), 100, Fraction(9, 2)) == pytest.approx(9000)


@pytest.mark.parametrize(("frames", "expected"), [(50, 25_000), (200, 100_000), (240, 100_000)])
def test_a_size_is_shared_out_by_frames(frames: int, expected: float) -> None:
    target = Target("size", 100_000)
    assert target.bytes_for(info(200), frames, Fraction(2)) == pytest.approx(expected)


def test_a_size_needs_a_known_length() -> None:
    with pytest.raises(UsageError, match="use --kbps"):
        Target("size", 100_000).bytes_for(info(), 50, Fraction(2))


@pytest.mark.parametrize(("kind", "counts"), [("bpp", False), ("kbps", True), ("size", True)])
def test_sound_counts_for_all_targets_but_bits_per_pixel(kind: str, counts: bool) -> None:
    assert Target(kind, 1.0).counts_audio is counts


def test_a_size_is_the_total_of_any_length() -> None:
    assert Target("size", 100_000).total(info(), 50, Fraction(2)) == 100_000
    assert Target("bpp", 0.01).total(info(), 100, Fraction(4)) == pytest.approx(38_400)


def shares(*sizes: int, quality: float = 32.0) -> Shares:
    return Shares(quality, sizes, tuple(0 for _ in sizes), 100)


def test_bytes_go_where_the_content_needs_them() -> None:
    found = shares(100, 300, 600)
    assert found.budget(0, 2000.0) == pytest.approx(200)
    assert found.budget(1, 1800.0) == pytest.approx(600)
    assert found.budget(2, 1200.0) == pytest.approx(1200)
    assert found.budget(3, 77.0) == 77.0  # an input that grew


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=40), st.randoms())
def test_a_stream_whose_segments_miss_their_budgets_within_the_slack_meets_its_target(
    sizes: list[int], rng: random.Random
) -> None:
    found, left = shares(*sizes), 1e6
    for index in range(len(sizes)):
        slack = found.slack(index)
        assert 0 < slack <= 0.15
        left -= found.budget(index, left) * (1 + rng.uniform(-slack, slack))
    assert abs(left) <= 0.011e6


def test_the_quality_for_all_is_guessed_from_what_they_take() -> None:
    found = shares(400, 600)
    assert found.next_quality(1000.0) == found.next_quality(850.0) == 32.0
    assert 32 < found.next_quality(4000.0) < 63 and 0 < found.next_quality(250.0) < 32
    assert found.next_quality(1e9) == 63 and found.next_quality(-5.0) == 0


def test_a_coding_within_the_slack_ends_the_search() -> None:
    coder = Coder(exponential(0.08))
    rate.search(CURVES["usual"](31.0), 32.0, coder, slack=0.1)
    assert coder.tried == [32.0]
