"""Camera signal: coding, what the spline does, what a path costs and how far it is off."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hostile import Wild
from hypothesis import given, settings
from hypothesis import strategies as st
from scene import Scene

from semvc.entropy.coder import Counter
from semvc.errors import BitstreamError
from semvc.signals.camera import (
    Camera,
    code_camera,
    decode_camera,
    encode_camera,
    poses,
    rotation,
    rotation_vector,
    to_tum,
)
from semvc.signals.camerafit import Path, choose_camera, reprojection_error

NONE = np.zeros((0, 3), np.int32)


def steps(draw: st.DrawFn, count: int, most: int) -> Any:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.integers(-most, most + 1, (count, 3)).astype(np.int32)


@st.composite
def cameras(draw: st.DrawFn) -> tuple[Camera, int]:
    frames = draw(st.integers(1, 60))
    count = draw(st.integers(0, min(12, frames - 1)))
    focal, centre = draw(st.integers(1, 1 << 14)), (0, 0)
    if draw(st.booleans()):
        centre = (draw(st.integers(-512, 511)), draw(st.integers(-512, 511)))
    turns = steps(draw, count, draw(st.sampled_from((0, 1, 40, 1 << 20))))
    moves = steps(draw, count, draw(st.sampled_from((0, 1, 40, 1 << 20))))
    if not (turns.any() or moves.any()):
        return Camera(focal, NONE, NONE, centre=centre), frames
    bits = (draw(st.integers(6, 21)), draw(st.integers(6, 21)) if moves.any() else 0)
    inertia = draw(st.integers(0, 3))
    return Camera(focal, turns, moves, *bits, inertia, centre), frames


@settings(max_examples=40)
@given(cameras(), st.integers(0, 2**32 - 1))
def test_a_camera_decodes_to_itself(case: tuple[Camera, int], check: int) -> None:
    camera, frames = case
    payload, after = encode_camera(camera, frames, check)
    assert decode_camera(payload, frames, check) == (camera, after)
    counter = Counter(check)
    code_camera(counter, camera, frames)
    assert 8 * len(payload) < counter.bits + 40 and counter.check == after


def test_a_camera_that_does_not_fit_is_refused() -> None:
    ones = np.ones((3, 3), np.int32)
    good = Camera(900, ones, ones, 10, 10, 3)
    wrong: list[dict[str, Any]] = [
        {"focal": 0},
        {"focal": (1 << 14) + 1},
        {"turns": ones.astype(np.int64)},
        {"turns": ones[:2]},
        {"turns": ones << 21},
        {"turn_bits": 5},
        {"move_bits": 22},
        {"move_bits": 0},
        {"inertia": 4},
        {"centre": (0, 512)},
        {"turns": ones * 0, "moves": ones * 0},
        {"moves": ones * 0},  # bits of what is not there
        {"turns": NONE, "moves": NONE},
    ]
    for change in wrong:
        with pytest.raises(ValueError):
            replace(good, **change)
    with pytest.raises(TypeError):
        replace(good, turns=ones.astype(np.float32))
    with pytest.raises(ValueError):
        encode_camera(good, 3)


@pytest.mark.parametrize("seed", range(60))
def test_any_symbols_give_a_camera_or_an_error(seed: int) -> None:
    rng = random.Random(seed)
    coder, frames = Wild(rng, rng.choice((3, 10, 200))), rng.choice((1, 2, 30))
    try:
        made = code_camera(coder, None, frames)
    except BitstreamError:
        return
    assert decode_camera(coder.finish(), frames)[0] == made


def test_rotation_vectors_and_matrices_are_inverse() -> None:
    vectors = np.random.default_rng(1).normal(size=(50, 3)) * 0.5
    vectors[0] = 0
    matrices = rotation(vectors)
    assert np.allclose(matrices @ np.swapaxes(matrices, 1, 2), np.eye(3))
    assert np.allclose(rotation_vector(matrices), vectors)
    assert np.allclose(rotation(np.array([0, np.pi / 2, 0])) @ (0, 0, 1), (1, 0, 0))


def test_the_spline_goes_through_the_poses_and_is_exact_for_even_motion() -> None:
    turns = np.array([[40, -10, 3], [60, 5, -2], [10, 5, 9]], np.int32)
    camera = Camera(900, turns, turns[::-1].copy(), 10, 9, 0)
    rotations, positions = poses(camera, 31)
    here, stands = np.eye(3), np.zeros(3)
    for k in range(4):
        assert np.allclose(rotations[10 * k], here) and np.allclose(positions[10 * k], stands)
        if k < 3:
            stands = stands + camera.moves[k] * 2.0**-9 @ here
            here = rotation(turns[k] * 2.0**-10) @ here
    even = np.array([[0, 64, 0]] * 3, np.int32)
    rotations, _ = poses(Camera(900, even, np.roll(even, 1, 1), 10, 10), 31)
    angles = rotation_vector(rotations)[:, 1]
    assert np.allclose(angles, np.linspace(0, 3 * 64 / 1024, 31))


def path_of(scene: Scene, depth: float = 4.0) -> Path:
    made = scene.poses()
    rotations = np.swapaxes(made[:, :3, :3], 1, 2)
    positions = (made[:, :3, 3] - made[0, :3, 3]) / depth
    return Path(rotations, positions, 0.9, (scene.width, scene.height))


def shaken(frames: int) -> Path:
    rng, seconds = np.random.default_rng(3), np.arange(frames) / 24
    wave = np.sin(2 * np.pi * rng.uniform(0.3, 2, 6) * seconds[:, None]) * 0.004
    wave[:, 5] += 0.1 * seconds
    return Path(rotation(wave[:, :3]), wave[:, 3:], 0.9, (854, 480))


PATHS = {
    "still": path_of(Scene(854, 480, 108, pan=0.0, dolly=0.0)),
    "pan": path_of(Scene(854, 480, 108, pan=0.1, dolly=0.0)),
    "dolly": path_of(Scene(854, 480, 108, pan=0.0, dolly=0.3)),
    "both": path_of(Scene(854, 480, 108, pan=0.05, dolly=0.4)),
    "portrait": path_of(Scene(480, 854, 108, pan=0.1, dolly=0.3)),
    "one frame": path_of(Scene(64, 48, 1)),
    "two frames": path_of(Scene(64, 48, 2)),
}


@pytest.mark.parametrize("name", PATHS)
def test_steady_motion_takes_twelve_bytes_a_second_for_half_a_sample(name: str) -> None:
    path = PATHS[name]
    camera = choose_camera(path)
    assert reprojection_error(path, camera) < 0.5
    payload, _ = encode_camera(camera, len(path.rotations))
    assert len(payload) <= 12 * max(1, len(path.rotations) / 24)
    assert (len(camera.turns) == 0) == (name in ("still", "one frame"))
    assert (camera.move_bits > 0) == (name in ("dolly", "both", "portrait", "two frames"))


def test_a_shaken_camera_is_followed() -> None:
    path = shaken(60)
    camera = choose_camera(path)
    assert reprojection_error(path, camera) < 0.5
    assert len(camera.turns) > 5
    rotations, _ = poses(camera, 60)
    off = rotation_vector(rotations @ np.swapaxes(path.rotations, 1, 2))
    assert np.linalg.norm(off, axis=1).max() < 0.001


def test_the_reprojection_error_sees_what_is_wrong() -> None:
    path = PATHS["both"]
    camera = choose_camera(path)
    turns = camera.turns.copy()
    turns[0, 1] += 4
    shift = 4 * 2.0**-camera.turn_bits * 0.9 * 854  # in the middle; more at the sides
    assert 1 < shift - 0.5 < reprojection_error(path, replace(camera, turns=turns)) < 2 * shift


def test_a_principal_point_off_the_middle_is_kept() -> None:
    path = replace(PATHS["pan"], centre=(0.45, 0.6))
    camera = choose_camera(path)
    assert camera.centre == (-51, 58)
    assert reprojection_error(path, camera) < 0.5


def test_tum_text_has_a_pose_for_each_frame() -> None:
    path = PATHS["both"]
    camera = choose_camera(path)
    lines = to_tum(camera, 108, np.arange(108) / 24).splitlines()
    assert lines[0].startswith("# focal 0.9") and len(lines) == 110
    numbers = np.array([line.split() for line in lines[2:]], float)
    rotations, positions = poses(camera, 108)
    assert np.allclose(numbers[:, 0], np.arange(108) / 24, atol=1e-6)
    assert np.allclose(numbers[:, 1:4], positions, atol=1e-6)
    vectors = rotation_vector(np.swapaxes(rotations, 1, 2))  # small turns: q is half of them
    assert np.allclose(2 * np.arcsin(numbers[:, 5]), vectors[:, 1], atol=1e-6)
    assert np.allclose((numbers[:, 4:] ** 2).sum(1), 1)
