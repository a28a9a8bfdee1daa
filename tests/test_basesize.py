"""How small a base layer is: the content decides where the quality alone does not."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semvc.nets import conditioning
from semvc.profiles import basesize
from semvc.profiles.disco import Disco
from semvc.types import Clip, EncodeOptions, VideoInfo

UInt8 = npt.NDArray[np.uint8]

SIDE = 256
SMOOTH, BUSY = 8.0, 1.0  # samples, of the Gaussian that noise is smoothed with
OPTIONS = EncodeOptions(quality=28, preset=12, step=1)


def moving(smoothness: float, side: int = SIDE, frames: int = 8) -> UInt8:
    """Smoothed noise that passes by: a picture without fine detail, or with nothing else."""
    noise = np.random.default_rng(1).normal(size=(side + 32, side + 32)).astype(np.float32)
    wide = cv2.GaussianBlur(noise, (0, 0), smoothness)
    grey = np.clip(128 + 60 * wide / wide.std(), 0, 255).astype(np.uint8)
    shots = [grey[t : t + side, 2 * t : 2 * t + side] for t in range(frames)]
    return np.stack(shots)[..., None].repeat(3, 3)


def factor_for(smoothness: float, options: EncodeOptions, side: int = SIDE) -> int | None:
    """The spatial factor that profile disco chooses for a clip."""
    frames = moving(smoothness, side)
    info = VideoInfo(side, side, Fraction(24), Fraction(1, 24))
    profile = Disco()
    try:
        found = profile.begin(Clip(frames, np.arange(len(frames)), info), options)
    finally:
        profile.close()
    return conditioning.factor_of((side, side), found["base_size"])


def test_smooth_pictures_are_sent_smaller_than_busy_ones() -> None:
    assert factor_for(SMOOTH, OPTIONS) == 2
    assert factor_for(BUSY, OPTIONS) == 1


def test_a_factor_that_is_asked_for_is_kept() -> None:
    assert factor_for(SMOOTH, replace(OPTIONS, factor=1)) == 1


@pytest.mark.parametrize(("quality", "side"), [(40, SIDE), (28, 128)])
def test_high_qualities_and_small_pictures_are_not_looked_at(
    quality: int, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> bool:
        raise AssertionError

    monkeypatch.setattr("semvc.profiles.disco.is_half_better", never)
    assert factor_for(SMOOTH, replace(OPTIONS, quality=quality), side) == 1


def test_low_qualities_of_smooth_pictures_shrink_further() -> None:
    side = 2 * SIDE
    assert factor_for(2 * SMOOTH, replace(OPTIONS, quality=18), side) == 4
    assert factor_for(BUSY, replace(OPTIONS, quality=18), side) == 2


def test_a_clip_of_one_frame_gets_an_answer() -> None:
    for smoothness in (SMOOTH, BUSY):
        frames = moving(smoothness, frames=1)
        half = basesize.is_half_better(frames, 1, 66, saved=7, fps=24, preset=12)
        assert half == (smoothness == SMOOTH)


def test_a_flat_picture_stays_as_it_is() -> None:
    flat = np.full((4, 64, 64, 3), 90, np.uint8)
    assert not basesize.is_half_better(flat, 1, 66, saved=7, fps=24, preset=12)


def test_the_gradient_distance_grows_with_blur() -> None:
    sharp = moving(BUSY, 96, 1)[0, ..., 0].astype(np.float32)
    blurred = [cv2.GaussianBlur(sharp, (0, 0), sigma) for sigma in (0.5, 1, 2, 4)]
    distances = [basesize.gradient_distance(sharp, picture) for picture in (sharp, *blurred)]
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert distances == sorted(distances)
    assert 0.3 < distances[-1] < 1


@given(st.integers(16, 50), st.integers(16, 50), st.sampled_from(conditioning.FACTORS))
def test_shrunk_frames_have_the_base_layers_size(width: int, height: int, factor: int) -> None:
    frames = np.full((2, height, width, 3), 77, np.uint8)
    small = basesize.shrunk(frames, factor)
    assert (small.shape[2], small.shape[1]) == conditioning.base_size(width, height, factor)
    assert (small == 77).all()
