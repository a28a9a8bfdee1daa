"""Grain: what is measured, sent and put back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import stranger_grain
from hypothesis import given
from hypothesis import strategies as st
from program import FAST, Call
from stranger_coder import Run

from semvc.errors import BitstreamError
from semvc.nets import grain as synthesis
from semvc.nets.grain import GrainSynthesizer, classes, luma_of, measure_grain
from semvc.signals.grain import CLASSES, MAX_LEVEL, UNIT, Grain, decode_grain, encode_grain

UInt8 = npt.NDArray[np.uint8]
LEVELS = st.tuples(*[st.integers(0, MAX_LEVEL)] * CLASSES)


def flat(value: int = 120, side: int = 96) -> UInt8:
    return np.full((side, side, 3), value, np.uint8)


def noisy(deviation: float, seed: int = 1) -> UInt8:
    noise = np.random.default_rng(seed).normal(0, deviation, (96, 96))[..., None]
    return np.clip(flat() + noise, 0, 255).round().astype(np.uint8)


@given(LEVELS)
def test_levels_come_back(levels: tuple[int, ...]) -> None:
    payload, check = encode_grain(Grain(levels), 7)
    assert len(payload) <= 5
    assert decode_grain(payload, 7) == (Grain(levels), check)
    assert stranger_grain.grain(Run(payload)) == list(levels)


@pytest.mark.parametrize("payload", [b"", b"\0\0", b"\xff" * 6, b"\1\0"])
def test_other_spellings_are_damaged(payload: bytes) -> None:
    with pytest.raises(BitstreamError):
        decode_grain(payload)


@pytest.mark.parametrize("levels", [(0,) * 6, (0,) * 8, (32,) + (0,) * 6, (-1,) + (0,) * 6])
def test_wrong_levels_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        Grain(levels)


def test_signal_and_synthesis_agree_on_their_numbers() -> None:
    assert (synthesis.CLASSES, synthesis.MAX_LEVEL) == (CLASSES, MAX_LEVEL)
    assert synthesis.UNIT == UNIT
    assert len(synthesis._LIMITS) + 1 == CLASSES


def test_classes_are_those_of_the_format() -> None:
    rng = np.random.default_rng(3)
    luma = rng.integers(0, 256, (14, 17)).astype(np.uint8)
    luma[:, :9] = 100 + rng.integers(0, 3, (14, 9))
    assert classes(luma).tolist() == stranger_grain.activity_classes(luma.tolist())
    assert len(set(classes(luma).ravel().tolist())) > 2


def test_luma_keeps_grey_and_weighs_colors() -> None:
    colors = np.array([[[9, 9, 9], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert luma_of(colors).tolist() == [[9, 54, 182, 18]]


def test_nothing_lost_is_nothing_to_add() -> None:
    assert not any(measure_grain([noisy(3)], [noisy(3)]))
    assert not any(measure_grain([flat()], [noisy(3)]))  # a base layer busier than its source


def test_more_lost_texture_means_a_higher_level() -> None:
    low, high = (measure_grain([noisy(d)], [flat()])[0] for d in (0.8, 2.0))
    assert 0 < low < high <= synthesis._MOST[0] * synthesis.UNIT + 1


def test_grain_has_the_stated_strength_and_leaves_the_mean() -> None:
    for level in (8, 16, 31):
        added = GrainSynthesizer((level,) * 7, (96, 96), seed=5).apply(flat(), flat())
        change = added.astype(float) - 120
        assert (change[..., 0] == change[..., 2]).all()  # luma alone
        assert change.std() == pytest.approx(np.hypot(level / 16, 12**-0.5), rel=0.1)
        assert abs(change.mean()) < 0.1


def test_level_zero_changes_nothing() -> None:
    texture = GrainSynthesizer((0,) * 7, (96, 96), seed=5)
    assert np.array_equal(texture.apply(noisy(9), flat()), noisy(9))


def test_grain_stands_still_with_the_picture_and_moves_with_it() -> None:
    texture = GrainSynthesizer((16,) * 7, (96, 96), seed=5)
    first = texture.apply(flat(), flat())
    assert np.array_equal(texture.apply(flat(), flat()), first)
    half = flat()
    half[:, 48:] += 10
    then = texture.apply(flat(), half)
    assert np.array_equal(then[:, :40], first[:, :40])
    assert not np.array_equal(then[:, 56:], first[:, 56:])


def test_grain_depends_on_the_seed_alone() -> None:
    def made(seed: int) -> UInt8:
        return GrainSynthesizer((16,) * 7, (96, 96), seed=seed).apply(flat(), flat())

    assert np.array_equal(made(5), made(5))
    assert not np.array_equal(made(5), made(6))


def test_grain_can_be_left_out_of_a_stream(run: Call, clip: Path, tmp_path: Path) -> None:
    for flag, expected in (("--grain", True), ("--no-grain", False)):
        target = tmp_path / f"{flag}.svc"
        assert run("encode", clip, target, *FAST, flag).code == 0
        row = json.loads(run("info", target, "--json").out)
        assert ("grain" in {item["type"] for item in row["sections"]}) == expected
