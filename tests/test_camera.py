"""Camera paths from followed points whose truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from semvc.analysis import bundle, camera, tracks
from semvc.analysis.types import CameraPath

WIDTH, HEIGHT, FRAMES, FOCAL = 640, 360, 16, 0.85
TIME = np.linspace(0, 1, FRAMES)[:, None]


def path(kind: str) -> tuple[Any, Any]:
    """Rotations, world to camera, and places of the camera."""
    turn, place = np.zeros((FRAMES, 3)), np.zeros((FRAMES, 3))
    if kind in ("pan", "both"):
        turn = TIME * (0.03, 0.3, 0.02)
    if kind == "dolly":  # sideways it would trade with the focal length, which nothing shows here
        place = TIME * (0.02, 0.0, 0.7)
    if kind == "both":
        place = TIME * (0.2, 0.0, 0.7)
    if kind == "hand":
        rng = np.random.default_rng(5)
        turn = np.cumsum(rng.normal(0, 0.02, (FRAMES, 3)), 0)
        place = np.cumsum(rng.normal(0, 0.05, (FRAMES, 3)), 0)
    return bundle.rotation_of(turn - turn[0]), place - place[0]


def follow(kind: str, *, noise: float = 0.1, movers: float = 0.0, count: int = 300) -> Any:
    """What an ideal tracker sees of a cloud of points, some of which move together."""
    rng = np.random.default_rng(1)
    rotations, places = path(kind)
    depth = rng.uniform(1.5, 6, count)
    ray = rng.uniform(-0.6, 0.6, (count, 2)) * (1, HEIGHT / WIDTH) / FOCAL
    points = np.repeat(np.concatenate((ray, np.ones((count, 1))), 1)[:, None] * 1.0, FRAMES, 1)
    points *= depth[:, None, None]
    near = np.argsort(np.hypot(*(ray - (0.2, 0.1)).T))[: int(movers * count)]
    points[near] += TIME * (0.6, -0.3, 0.2)
    local = np.einsum("tij,ntj->nti", rotations, points - places)
    seen = FOCAL * WIDTH * local[..., :2] / local[..., 2:] + (WIDTH / 2, HEIGHT / 2)
    seen += rng.normal(0, noise, seen.shape)
    outside = (seen < 0).any(-1) | (seen > (WIDTH, HEIGHT)).any(-1)
    seen[np.logical_or.accumulate(outside, 1)] = np.nan
    return tracks.Tracks(seen[np.isfinite(seen[..., 0]).sum(1) >= 4], (WIDTH, HEIGHT))


def errors(found: CameraPath, kind: str) -> tuple[float, float]:
    """Mean rotation error in degrees, and trajectory error as a share of the path's length."""
    rotations, places = path(kind)
    turn = bundle.vector_of(found.rotations @ np.swapaxes(rotations, 1, 2))
    mine = found.positions()
    scale = (places * mine).sum() / max((mine * mine).sum(), 1e-12)
    length = np.linalg.norm(np.diff(places, axis=0), axis=1).sum()
    missed = np.sqrt(((places - scale * mine) ** 2).sum(1).mean())
    return float(np.degrees(np.linalg.norm(turn, axis=1)).mean()), float(missed / max(length, 1e-9))


@pytest.mark.parametrize(
    ("kind", "motion", "movers"),
    [
        ("dolly", "moving", 0.0),
        ("both", "moving", 0.15),
        ("hand", "moving", 0.15),
        ("pan", "turning", 0.2),
        ("still", "static", 0.2),
    ],
)
@pytest.mark.slow
def test_paths_are_found_beside_movers(kind: str, motion: str, movers: float) -> None:
    found = camera.solve(follow(kind, movers=movers)).camera
    rotation, trajectory = errors(found, kind)
    assert found.kind == motion
    assert rotation < 0.1
    assert trajectory < 0.01 or motion != "moving"
    assert np.array_equal(found.rotations[0], np.eye(3))
    assert np.array_equal(found.translations[0], np.zeros(3))
    assert found.confidence > 0.5
    if kind in ("both", "hand", "pan"):  # the others say nothing about focal length
        assert found.focal == pytest.approx(FOCAL, rel=0.03)


def test_depth_is_one_in_the_middle_of_the_first_frame() -> None:
    solution = camera.solve(follow("both"))
    depth = solution.structure.points[solution.structure.seen[:, 0], 2]
    assert np.median(depth) == pytest.approx(1)
    assert (depth > 0).all()


def test_a_known_focal_length_is_kept() -> None:
    assert camera.solve(follow("both"), 0.7).camera.focal == pytest.approx(0.7)


@pytest.mark.slow
def test_points_without_order_are_not_believed() -> None:
    rng = np.random.default_rng(0)
    wander = np.cumsum(rng.normal(0, 6, (120, FRAMES, 2)), 1)
    points = wander + rng.uniform(0, 1, (120, 1, 2)) * (WIDTH, HEIGHT)
    assert camera.solve(tracks.Tracks(points, (WIDTH, HEIGHT))).camera.confidence < 0.2


@pytest.mark.parametrize("count", [0, 5])
def test_too_few_points_are_not_believed(count: int) -> None:
    found = camera.solve(tracks.Tracks(np.ones((count, FRAMES, 2)), (WIDTH, HEIGHT))).camera
    assert found.confidence == 0
    assert found.kind == "static"


def test_one_frame_has_a_camera_that_stands_still() -> None:
    found = camera.solve(tracks.Tracks(np.ones((20, 1, 2)), (WIDTH, HEIGHT))).camera
    assert (found.kind, found.confidence) == ("static", 1.0)


def test_a_given_path_explains_points() -> None:
    rotations, places = path("both")
    given = CameraPath(rotations, -np.einsum("tij,tj->ti", rotations, places), FOCAL)
    solution = camera.explain(follow("both", movers=0.1), given)
    assert solution.camera is given
    assert 0.85 < solution.evidence.inliers < 0.97
    assert len(solution.structure.points) > 120


def test_rotation_vectors_come_back() -> None:
    vectors = np.random.default_rng(0).normal(0, 0.7, (50, 3))
    vectors[0] = 0
    assert np.allclose(bundle.vector_of(bundle.rotation_of(vectors)), vectors)


def test_points_are_followed_and_movers_left_out() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (12, 20))
    picture = np.kron(coarse, np.ones((8, 8))).astype(np.uint8)
    lumas = [np.ascontiguousarray(picture[:80, t : t + 120]) for t in range(6)]
    found = tracks.follow(lumas)
    long = found.points[found.seen.all(1)]
    assert len(long) > 20
    assert np.abs(np.diff(long, axis=1) - (-1, 0)).max() < 0.2
    movers = np.zeros((6, 80, 120), bool)
    movers[:, :, 60:] = True
    assert np.nanmax(tracks.follow(lumas, movers).points[..., 0]) < 61
