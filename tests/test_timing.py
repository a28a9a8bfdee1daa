"""Timing: presentation times come back exactly, cheaply when they are nearly regular."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semvc.entropy.coder import Counter
from semvc.entropy.reference import ReferenceDecoder
from semvc.errors import BitstreamError
from semvc.signals.timing import (
    MAX_STEP,
    MAX_TIME,
    MAX_TIMES,
    Timing,
    code_timing,
    decode_timing,
    encode_timing,
)


def round_trip(pts):
    timing = Timing(tuple(int(time) for time in pts))
    payload, check = encode_timing(timing, 3)
    assert decode_timing(payload, len(pts), 3) == (timing, check)
    counter = Counter(3)
    assert code_timing(counter, timing, len(pts)) == timing
    assert counter.check == check
    assert abs(counter.bits - 8 * len(payload)) <= 16
    reference = ReferenceDecoder(payload, 100_000, 3)
    assert code_timing(reference, None, len(pts)) == timing
    return len(payload)


def test_constant_steps_cost_almost_nothing():
    assert round_trip(range(0, 150 * 512, 512)) <= 8


def test_milliseconds_of_an_ntsc_rate_cost_at_most_a_bit_per_frame():
    size = round_trip([round(k * 1001 / 30) for k in range(300)])
    assert 8 * size <= 300 + 8 * 8


def test_frames_dropped_at_random_cost_at_most_a_bit_and_a_half():
    kept = np.flatnonzero(np.random.default_rng(0).random(400) > 0.2)[:250]
    assert 8 * round_trip(kept * 1000 + 7) <= 250 * 1.5 + 64


@pytest.mark.slow
@pytest.mark.parametrize(
    "pts",
    [
        [0],
        [-1],
        [1],
        [MAX_TIME - 1],
        [1 - MAX_TIME],
        [1 - MAX_TIME, 1 - MAX_TIME + MAX_STEP],
        [-5, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1025, 1027, 1029],
        list(np.cumsum(np.random.default_rng(1).integers(1, 10**6, MAX_TIMES))),
        list(range(MAX_TIMES)),
        list(range(997)),
    ],
)
def test_extreme_times_round_trip(pts):
    round_trip(pts)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1 - MAX_TIME, MAX_TIME // 2),
    st.lists(st.one_of(st.sampled_from([33, 34, 67]), st.integers(1, MAX_STEP)), max_size=40),
)
def test_any_times_round_trip(start, steps):
    round_trip(np.cumsum([start, *steps]).tolist())


@pytest.mark.parametrize(
    "pts",
    [(), (3, 3), (3, 2), (MAX_TIME,), (0, MAX_STEP + 1), tuple(range(MAX_TIMES + 1))],
)
def test_times_that_are_not_allowed_are_refused(pts):
    with pytest.raises(ValueError):
        Timing(pts)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=30), st.integers(1, 12))
def test_garbage_is_reported_or_is_the_only_spelling_of_its_times(payload, frames):
    try:
        timing, _ = decode_timing(payload, frames)
    except BitstreamError:
        return
    assert encode_timing(timing)[0] == payload


def test_a_wrong_number_of_frames_is_a_value_error():
    with pytest.raises(ValueError):
        code_timing(Counter(), Timing((0, 1)), 3)
    with pytest.raises(ValueError):
        decode_timing(b"\1", 0)
