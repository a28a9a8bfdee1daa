"""The choice of coded camera paths: few bytes, small errors, noise left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from semvc.signals.camera import encode_camera, poses, rotation
from semvc.signals.camerafit import Path, choose_camera, reprojection_error

FRAMES, RATE = 72, 24
SIZE = (854, 480)


def path(turns: Any, places: Any, **more: Any) -> Path:
    """A path of rotation vectors and places [T, 3], which begin at zero."""
    return Path(rotation(turns - turns[0]), places - places[0], 0.9, SIZE, **more)


def steady(kind: str) -> Path:
    seconds = np.arange(FRAMES) / RATE
    turns, places = np.zeros((FRAMES, 3)), np.zeros((FRAMES, 3))
    if kind in ("dolly", "drive", "turning walk"):
        places[:, 2] = {"dolly": 0.1, "drive": 0.5, "turning walk": 0.1}[kind] * seconds
    if kind in ("pan", "turning walk"):
        turns[:, 1] = 0.1 * seconds
    return path(turns, places)


def shaken(noise: float, seed: int = 1) -> Path:
    """A hand-held camera walks; its poses were estimated with some noise, in radians."""
    draw, seconds = np.random.default_rng(seed), np.arange(FRAMES) / RATE
    walk = np.zeros((2, FRAMES, 3))
    for frequency in (0.4, 0.9, 1.7):
        phases = draw.uniform(0, 2 * np.pi, (2, 1, 3))
        wave = np.sin(2 * np.pi * frequency * seconds[:, None] + phases)
        walk += 0.004 / frequency * wave
    walk[1, :, 2] += 0.1 * seconds
    walk += draw.normal(0, noise, walk.shape)
    return path(walk[0], walk[1])


def bytes_per_second(found: Any) -> float:
    return len(encode_camera(found, FRAMES)[0]) * RATE / FRAMES


def test_a_still_camera_costs_next_to_nothing() -> None:
    found = choose_camera(steady("static"))
    assert len(found.turns) == 0 and bytes_per_second(found) < 1


@pytest.mark.parametrize("kind", ["dolly", "drive", "pan", "turning walk"])
def test_steady_motion_takes_at_most_12_bytes_a_second(kind: str) -> None:
    given = steady(kind)
    found = choose_camera(given)
    assert bytes_per_second(found) <= 12
    assert reprojection_error(given, found) < 0.5


def test_a_camera_that_turns_has_no_moves() -> None:
    assert not choose_camera(steady("pan")).moves.any()


def test_poses_that_were_estimated_with_noise_are_smoothed() -> None:
    clean, noisy = (choose_camera(shaken(noise)) for noise in (0.0, 1e-4))
    assert reprojection_error(shaken(1e-4), noisy) < 0.5
    assert bytes_per_second(noisy) < 1.3 * bytes_per_second(clean)


def test_the_error_counts_what_moves_in_the_picture() -> None:
    given, turned = steady("static"), np.zeros((FRAMES, 3))
    turned[1:, 1] = 0.002  # 1.5 samples at this focal length, in all frames but the first
    still = choose_camera(given)
    assert reprojection_error(given, still) < 1e-6
    assert 1.2 < reprojection_error(path(turned, np.zeros((FRAMES, 3))), still) < 2
    turned[2:, 1] = 0  # in one frame: no point may shift by more than three times the tolerance
    assert 0.4 < reprojection_error(path(turned, np.zeros((FRAMES, 3))), still) < 0.7


def test_poses_between_coded_ones_are_near_the_true_ones() -> None:
    given = shaken(0.0)
    rotations, places = poses(choose_camera(given), FRAMES)
    assert np.abs(rotations - given.rotations).max() < 3e-3
    assert np.abs(places - given.positions).max() < 3e-3
