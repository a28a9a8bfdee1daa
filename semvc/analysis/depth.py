"""A coarse depth grid of a keyframe from the static points that are seen in it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from semvc.analysis.types import GRID, MOVING, CameraPath, DepthGrid, Float64, Structure

_NEAR_FRAMES = 12  # a point helps if it was followed at most this many frames away
_SMOOTH = 0.05  # weight of the grid's second differences against one point's error
_ROUNDS = 6  # of reweighting
_BEYOND = 1.5  # how far beyond most points' inverse depths a node may lie, as a factor
_LEAST_SHARE = 0.02  # smallest inverse depth, as a share of the median


def depth_grid(
    frame: int, camera: CameraPath, structure: Structure, size: tuple[int, int]
) -> DepthGrid:
    """Return the depth of frame `frame` that fits its points best and is smooth elsewhere.

    `size` is the (width, height) of the frames. Inverse depth at the nodes is fitted by least
    squares with robust weights; second differences are kept small, so that parts without points
    continue their surroundings. A camera that does not move says nothing about depth: all 1,
    support 0.
    """
    rows, columns = GRID
    flat = DepthGrid(frame, np.ones(GRID, np.float32), 0.0)
    if camera.kind != MOVING:
        return flat
    place, inverse = _evidence(frame, camera, structure, size)
    if len(inverse) < 6:
        return flat
    weights, cells = _interpolation(place)
    smooth = _differences()
    strength = _SMOOTH * max(1.0, len(inverse) / (rows * columns))
    trust = np.ones(len(inverse))
    nodes: Float64 = np.full(rows * columns, np.median(inverse))
    for _ in range(_ROUNDS):
        weighted = weights * trust[:, None]
        normal = weighted.T @ weights + strength * smooth.T @ smooth + 1e-6 * np.eye(len(nodes))
        right = weighted.T @ inverse + 1e-6 * np.median(inverse)
        nodes = np.asarray(np.linalg.solve(normal, right), np.float64)
        error = np.abs(weights @ nodes - inverse)
        scale = max(1.5 * float(np.median(error)), 0.02 * float(np.median(inverse)))
        trust = 1 / (1 + (error / scale) ** 2)
    far, near = np.percentile(inverse, (2, 98))
    np.clip(nodes, max(far / _BEYOND, _LEAST_SHARE * np.median(inverse)), near * _BEYOND, out=nodes)
    close = np.zeros(rows * columns, bool)
    close[np.unique(cells)] = True
    depths = (1 / nodes).reshape(GRID).astype(np.float32)
    return DepthGrid(frame, depths, float(close.mean()))


def _evidence(
    frame: int, camera: CameraPath, structure: Structure, size: tuple[int, int]
) -> tuple[Float64, Float64]:
    """Places of points in the frame, as fractions of width and height, and inverse depths."""
    width, height = size
    first, last = max(0, frame - _NEAR_FRAMES), frame + _NEAR_FRAMES + 1
    usable = structure.seen[:, first:last].any(1)
    local = structure.points[usable] @ camera.rotations[frame].T + camera.translations[frame]
    local = local[local[:, 2] > 1e-3]
    place = local @ camera.intrinsics(width, height).T
    place = place[:, :2] / place[:, 2:] / size
    inside = ((place >= 0) & (place <= 1)).all(1)
    return place[inside], 1 / local[inside, 2]


def _interpolation(place: Float64) -> tuple[Float64, npt.NDArray[np.intp]]:
    """Bilinear weights of all nodes for each place, [n, rows x columns], and the four nodes."""
    rows, columns = GRID
    grid = place * (columns - 1, rows - 1)
    low = np.minimum(grid.astype(int), (columns - 2, rows - 2))
    fx, fy = (grid - low).T
    corner = low[:, 1] * columns + low[:, 0]
    nodes = corner[:, None] + np.array([0, 1, columns, columns + 1])
    shares = np.stack(((1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy), 1)
    weights = np.zeros((len(place), rows * columns))
    np.put_along_axis(weights, nodes, shares, 1)
    return weights, nodes


def _differences() -> Float64:
    """Second differences along rows and columns of the grid, one a row, [m, rows x columns]."""
    number = np.arange(GRID[0] * GRID[1]).reshape(GRID)
    triples = np.concatenate(
        (
            np.stack((number[:-2], number[1:-1], number[2:]), -1).reshape(-1, 3),
            np.stack((number[:, :-2], number[:, 1:-1], number[:, 2:]), -1).reshape(-1, 3),
        )
    )
    out = np.zeros((len(triples), number.size))
    np.put_along_axis(out, triples, np.array([[1.0, -2.0, 1.0]]), 1)
    return out
