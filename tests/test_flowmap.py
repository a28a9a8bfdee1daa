"""Refinement of poses on optical flow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from semvc.analysis.bundle import rotation_of, vector_of
from semvc.nets.flowmap import Flows, refine

FRAMES, ROWS, COLUMNS, FOCAL, ASPECT = 6, 12, 20, 0.85, 0.6
TIME = np.linspace(0, 1, FRAMES)[:, None]
ROTATIONS = rotation_of(TIME * (0.02, 0.12, 0.01))
PLACES = TIME * (0.1, 0.02, 0.25)
TILT = (0.5, 0.25)  # slopes of the inverse depth of a slanted wall, across and down


def problem(wrong: bool) -> tuple[Flows, Any]:
    """Flow over a slanted wall, and its inverse depth on every frame's grid, exact or distorted."""
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    points = np.stack(((x + 0.5) / COLUMNS - 0.5, ((y + 0.5) / ROWS - 0.5) * ASPECT), -1)
    points = points.reshape(-1, 2)
    normal = np.array([TILT[0] * FOCAL, TILT[1] * FOCAL, 0.7])  # normal . X = 1 on the wall
    nodes = np.stack(
        np.meshgrid(np.linspace(-0.5, 0.5, 16), np.linspace(-0.5, 0.5, 9) * ASPECT), -1
    )

    def inverse(t: int, places: Any) -> Any:
        ray = np.concatenate((places / FOCAL, np.ones((*places.shape[:-1], 1))), -1)
        there = ROTATIONS[t] @ normal  # the wall's normal as camera t sees it
        return ray @ there / (1 - normal @ PLACES[t])

    pairs = [(t, t + gap) for gap in (1, 2) for t in range(FRAMES - gap)]
    ends = []
    for t, s in pairs:
        local = np.concatenate((points / FOCAL, np.ones((len(points), 1))), 1)
        local = local / inverse(t, points)[:, None]
        world = local @ ROTATIONS[t] + PLACES[t]
        seen = (world - PLACES[s]) @ ROTATIONS[s].T
        ends.append(FOCAL * seen[:, :2] / seen[:, 2:])
    first, last = np.array(pairs).T
    grids = np.stack([inverse(t, nodes) for t in range(FRAMES)])
    if wrong:
        grids = grids * np.exp(0.15 * np.sin(3 * nodes[..., 0] + np.arange(FRAMES)[:, None, None]))
    inside = np.abs(np.stack(ends)) < (0.5, 0.5 * ASPECT)
    weight = inside.all(-1).astype(float)
    return Flows(points, first, last, np.stack(ends), weight, (ROWS, COLUMNS), ASPECT), grids


def errors(result: Any) -> tuple[float, float]:
    turn = vector_of(result.rotations @ np.swapaxes(ROTATIONS, 1, 2))
    mine = -np.einsum("tji,tj->ti", result.rotations, result.translations)
    scale = (mine * PLACES).sum() / (mine * mine).sum()
    rotation = np.degrees(np.linalg.norm(turn, axis=1)).max()
    return float(rotation), float(np.abs(scale * mine - PLACES).max() / PLACES[-1, 2])


def test_true_depth_gives_true_poses_at_once() -> None:
    result = refine(*problem(wrong=False), FOCAL, steps=0)
    rotation, place = errors(result)
    assert rotation < 0.01
    assert place < 0.001


def test_descent_mends_distorted_depth() -> None:
    flows, grids = problem(wrong=True)
    before, after = refine(flows, grids, FOCAL, steps=0), refine(flows, grids, FOCAL, steps=120)
    assert after.losses[1] < 0.2 * after.losses[0]
    assert errors(after)[0] < 0.5 * errors(before)[0]
    assert errors(after)[1] < 0.5 * errors(before)[1]


def test_points_without_weight_do_not_count() -> None:
    flows, grids = problem(wrong=False)
    flows.ends[:, :40] += 0.3
    flows.weight[:, :40] = 0
    assert errors(refine(flows, grids, FOCAL, steps=0))[0] < 0.3
    flows.weight[:, :40] = 0.5
    assert errors(refine(flows, grids, FOCAL, steps=0))[0] > 1


def test_the_same_problem_has_the_same_answer() -> None:
    flows, grids = problem(wrong=True)
    one, two = (refine(flows, grids, FOCAL, steps=5) for _ in range(2))
    assert np.array_equal(one.rotations, two.rotations)
    assert one.focal == pytest.approx(two.focal, abs=0)
