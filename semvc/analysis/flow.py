"""A camera path refined on dense flow: what `nets.flowmap` needs, from what analysis has."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import cv2
import numpy as np

from semvc.analysis.depth import depth_grid
from semvc.nets import flowmap, warp

if TYPE_CHECKING:
    from semvc.analysis.camera import Solution
    from semvc.analysis.masks import Motion
    from semvc.analysis.types import Bool, CameraPath, Float32, Float64, Masks

_STRIDE = 8  # samples between grid points
_STRAY = 4.0  # samples by which flow may differ from the path and depth to begin with
_FAR = (2, 5)  # frames that longer flows span, besides neighbours


def refined(motion: Motion, solution: Solution, found: Masks) -> CameraPath:
    """Return the solution's path after gradient descent on flow outside of masks."""
    count, height, width = motion.luma.shape
    path = solution.camera
    pairs = [(t, t + gap) for gap in (1, *_FAR) for t in range(count - gap)]
    xs = np.arange(_STRIDE // 2, width, _STRIDE)
    ys = np.arange(_STRIDE // 2, height, _STRIDE)
    column, row = np.meshgrid(xs, ys)
    offset = np.array([path.centre[0] * width, path.centre[1] * height])
    points = np.stack((column.ravel(), row.ravel()), -1) + 0.5
    ends = np.empty((len(pairs), len(points), 2))
    weight = np.empty((len(pairs), len(points)))
    everywhere = np.meshgrid(
        np.arange(width, dtype=np.float32) + 0.5, np.arange(height, dtype=np.float32) + 0.5
    )
    still = [
        cv2.resize(layer, (width, height), interpolation=cv2.INTER_NEAREST) == 0
        for layer in found.ids
    ]
    grids = [depth_grid(t, path, solution.structure, (width, height)) for t in range(count)]
    inverse = np.stack([1 / grid.depths.astype(np.float64) for grid in grids])
    for i, (t, s) in enumerate(pairs):
        step = motion.flow(t, s)
        at = (everywhere[0] + step[..., 0], everywhere[1] + step[..., 1])
        good = motion.trusted(t, s, (at[0].astype(np.float32), at[1].astype(np.float32)))
        ends[i] = points + step[row, column].reshape(-1, 2)
        weight[i] = (good & still[t])[row, column].ravel()
        weight[i] *= _near(path, t, s, warp.depth_map(grids[t].depths, height, width), at)[
            row, column
        ].ravel()
    first, last = np.array(pairs).T
    flows = flowmap.Flows(
        (points - offset) / width,
        first,
        last,
        (ends - offset) / width,
        weight,
        (len(ys), len(xs)),
        height / width,
    )
    result = flowmap.refine(flows, inverse, path.focal)
    return replace(
        path,
        rotations=result.rotations,
        translations=result.translations,
        focal=result.focal,
        method="flowmap",
    )


def _near(path: CameraPath, t: int, s: int, depth: Float32, at: tuple[Float64, Float64]) -> Bool:
    """Where flow from t to s ends about where the path already takes it, bool [h, w]."""
    height, width = depth.shape
    matrix = path.intrinsics(width, height)
    rotation = path.rotations[s] @ path.rotations[t].T
    move = matrix @ (path.translations[s] - rotation @ path.translations[t])
    turn = matrix @ rotation @ np.linalg.inv(matrix)
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    u = [turn[i, 0] * x + turn[i, 1] * y + turn[i, 2] + move[i] / depth for i in range(3)]
    w = np.maximum(u[2], 1e-3)
    return np.asarray(np.hypot(u[0] / w - at[0], u[1] / w - at[1]) < _STRAY)
