"""Warping a keyframe by a depth grid and a pose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scene import FLOOR, WALL, Scene

from semvc.nets import warp

STILL = np.eye(3, 4)


def intrinsics(scene: Scene) -> Any:
    fx, fy, cx, cy = scene.intrinsics()
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def to_camera(pose: Any) -> Any:
    inverse = np.linalg.inv(pose)
    return inverse[:3]


def true_grid(scene: Scene, rows: int, columns: int) -> Any:
    """Depth of the room from the first pose at grid nodes."""
    _, fy, _, cy = scene.intrinsics()
    y = np.linspace(0, scene.height, rows)
    floor = np.where(y > cy, FLOOR * fy / np.maximum(y - cy, 1e-9), np.inf)
    return np.tile(np.minimum(floor, WALL)[:, None], (1, columns))


def test_the_same_pose_gives_the_same_picture() -> None:
    scene = Scene(70, 50, 1)
    image = scene.render()[0][0]
    warped = warp.warp(image, np.full((9, 16), 3.0), STILL, STILL, intrinsics(scene))
    assert np.abs(warped.image - image).max() < 1e-2
    assert warped.valid.min() == 1


@pytest.mark.parametrize("motion", [{"pan": 0.2}, {"pan": 0.0, "dolly": 1.5}, {"shake": 0.1}])
def test_a_view_of_the_room_equals_its_rendering(motion: dict[str, float]) -> None:
    scene = Scene(**{"width": 160, "height": 96, "frames": 24, "balls": 0, "dolly": 0.3} | motion)
    frames = scene.render()[0]
    poses = scene.poses()
    grid = true_grid(scene, 97, 3)
    for t in (12, 23):
        warped = warp.warp(
            frames[0], grid, to_camera(poses[0]), to_camera(poses[t]), intrinsics(scene)
        )
        seen = warped.valid > 0.99
        assert seen.mean() > 0.7
        error = np.abs(warped.image - frames[t])[seen]
        held = np.abs(frames[0].astype(float) - frames[t])[seen]
        assert error.mean() < 3
        assert error.mean() < held.mean() / 4


def test_places_outside_the_keyframe_are_not_valid() -> None:
    scene = Scene(96, 64, 1)
    turn = np.array([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]])
    target = np.concatenate((turn, np.zeros((3, 1))), 1)
    _, valid = warp.source_places(np.full((9, 16), 2.0), STILL, target, intrinsics(scene), (96, 64))
    assert 0.02 < valid.mean() < 0.6
    back = -turn
    back[1] *= -1
    behind = np.concatenate((back, np.zeros((3, 1))), 1)
    _, valid = warp.source_places(np.full((9, 16), 2.0), STILL, behind, intrinsics(scene), (96, 64))
    assert valid.max() == 0


def test_depth_between_nodes_keeps_a_plane_flat() -> None:
    x = np.linspace(0, 64, 16)
    grid = np.tile(1 / (0.2 + 0.01 * x), (9, 1))
    depth = warp.depth_map(grid, 48, 64)
    assert np.allclose(1 / depth, 0.2 + 0.01 * (np.arange(64) + 0.5), rtol=1e-5)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_impossible_depths_are_refused(bad: float) -> None:
    grid = np.full((9, 16), 2.0)
    grid[3, 4] = bad
    with pytest.raises(ValueError, match="depth grid"):
        warp.warp(np.zeros((8, 8, 3), np.uint8), grid, STILL, STILL, np.eye(3))


def test_odd_and_tiny_sizes_work() -> None:
    for width, height in ((1, 1), (3, 7), (853, 5)):
        scene = replace(Scene(), width=width, height=height)
        image = np.full((height, width, 3), 9, np.uint8)
        warped = warp.warp(image, np.full((2, 2), 2.0), STILL, STILL, intrinsics(scene))
        assert warped.image.shape == (height, width, 3)
        assert np.all(warped.image == 9)
