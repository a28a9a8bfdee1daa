"""A keyframe seen from another camera pose, by a coarse depth grid: numpy, no torch, no OpenCV.

Training, decoding and the preview tier share these functions. For every sample of the wanted
picture the place in the keyframe that projects there is found by Newton's method on a grid of
control points; the keyframe is then read once, bilinearly. Nothing depends on threads or on order.

Poses are float64 [3, 4] (world to camera, axes right, down, forward), intrinsics float64 [3, 3] in
samples; sample (0, 0) covers [0, 1) x [0, 1). A depth grid has its first node at the picture's
corner (0, 0) and its last at (width, height); the inverse of depth is bilinear between nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]

_STRIDE = 4  # samples between control points
_ROUNDS = 8  # of Newton's method
_FOUND = 0.5  # samples: a control point that projects no closer than this has no source
_NEAR = 1e-3  # least depth that is in front of a camera, relative to the grid's median


@dataclass(frozen=True, slots=True)
class Warped:
    """`image` float32 [H, W, C] in the keyframe's units and `valid` float32 [H, W] in [0, 1].

    valid is 1 where the keyframe shows the place, 0 where it lies outside the keyframe, behind the
    camera or hidden, and between on the border.
    """

    image: Float32
    valid: Float32


def depth_map(grid: npt.NDArray[np.floating], height: int, width: int) -> Float32:
    """Return depth at sample centres, float32 [height, width], of a grid float [rows, columns]."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    inverse, _ = _inverse_depth(grid, x, y, (width, height))
    return (1 / inverse).astype(np.float32)


def warp(
    image: npt.NDArray[np.uint8] | Float32,
    grid: npt.NDArray[np.floating],
    source: Float64,
    target: Float64,
    intrinsics: Float64,
) -> Warped:
    """Return `image` [H, W, C] of pose `source` as it looks from pose `target`.

    `grid` float [rows, columns] is the depth of `image`, positive. Raises ValueError for a grid
    that is not finite and positive or has fewer than 2 x 2 nodes.
    """
    height, width = image.shape[:2]
    places, valid = source_places(grid, source, target, intrinsics, (width, height))
    return Warped(sample(image, places), valid)


def source_places(
    grid: npt.NDArray[np.floating],
    source: Float64,
    target: Float64,
    intrinsics: Float64,
    size: tuple[int, int],
) -> tuple[Float32, Float32]:
    """Where each sample of the target view comes from: (x, y) float32 [H, W, 2], and validity.

    `size` is (width, height). Coordinates are continuous and may lie outside the picture where
    validity, float32 [H, W] in [0, 1], is 0. Errors as `warp`.
    """
    depths: Float64 = np.asarray(grid, np.float64)
    usable = depths.ndim == 2 and min(depths.shape) > 1 and bool(np.isfinite(depths).all())
    if not (usable and depths.min() > 0):
        raise ValueError("a depth grid needs at least 2 x 2 positive finite depths")
    width, height = size
    columns, rows = -(-width // _STRIDE) + 1, -(-height // _STRIDE) + 1
    x, y = np.meshgrid(np.arange(columns) * float(_STRIDE), np.arange(rows) * float(_STRIDE))
    motion = _Motion.between(source, target, intrinsics, depths, size)
    qx, qy = motion.plane(x, y)
    reach = 2.0 * max(size)
    for _ in range(_ROUNDS):
        px, py, jacobian, _ = motion.project(qx, qy)
        a, b, c, d = jacobian
        determinant = a * d - b * c
        safe = np.where(np.abs(determinant) < 1e-3, np.inf, determinant)
        ex, ey = x - px, y - py
        step_x, step_y = (d * ex - b * ey) / safe, (a * ey - c * ex) / safe
        limit = 0.25 * width / np.maximum(np.hypot(step_x, step_y), 1e-9)
        shrink = np.minimum(1, limit)
        qx = np.clip(qx + shrink * step_x, -reach, reach + width)
        qy = np.clip(qy + shrink * step_y, -reach, reach + height)
    px, py, (a, b, c, d), front = motion.project(qx, qy)
    found = front & (np.hypot(px - x, py - y) < _FOUND) & (a * d - b * c > 0)
    places = _dense(np.stack((qx, qy), -1), size)
    inside = _inside(places, size)
    valid = _dense(found.astype(np.float64)[..., None], size)[..., 0] * inside
    return places.astype(np.float32), valid.astype(np.float32)


def sample(image: npt.NDArray[np.uint8] | Float32, places: Float32) -> Float32:
    """Return `image` [H, W, C] read bilinearly at (x, y) `places` [h, w, 2], float32 [h, w, C].

    Coordinates are clamped to the picture.
    """
    height, width = image.shape[:2]
    x = np.clip(places[..., 0] - np.float32(0.5), 0, width - 1)
    y = np.clip(places[..., 1] - np.float32(0.5), 0, height - 1)
    left, top = x.astype(np.int64), y.astype(np.int64)
    fx, fy = (x - left)[..., None], (y - top)[..., None]
    right, below = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    flat = np.ascontiguousarray(image, np.float32).reshape(height * width, -1)
    top, below = top * width, below * width
    upper = flat[top + left] * (1 - fx) + flat[top + right] * fx
    lower = flat[below + left] * (1 - fx) + flat[below + right] * fx
    out: Float32 = (upper * (1 - fy) + lower * fy).astype(np.float32)
    return out


@dataclass(frozen=True, slots=True)
class _Motion:
    """From keyframe coordinates to target coordinates: p ~ matrix (x, y, 1) + shift / depth."""

    matrix: Float64
    shift: Float64
    grid: Float64
    size: tuple[int, int]

    @classmethod
    def between(
        cls,
        source: Float64,
        target: Float64,
        intrinsics: Float64,
        grid: Float64,
        size: tuple[int, int],
    ) -> _Motion:
        turn = target[:, :3] @ source[:, :3].T
        move = target[:, 3] - turn @ source[:, 3]
        matrix = intrinsics @ turn @ np.linalg.inv(intrinsics)
        return cls(matrix, intrinsics @ move, grid, size)

    def plane(self, x: Float64, y: Float64) -> tuple[Float64, Float64]:
        """Return where target coordinates come from if all depths were the median."""
        whole = self.matrix.copy()
        whole[:, 2] += self.shift / np.median(self.grid)
        if np.linalg.cond(whole) > 1e9:  # the camera passed through that plane
            return x.copy(), y.copy()
        back = np.linalg.inv(whole)
        w = back[2, 0] * x + back[2, 1] * y + back[2, 2]
        w = np.where(np.abs(w) < 1e-6, 1e-6, w)
        qx = (back[0, 0] * x + back[0, 1] * y + back[0, 2]) / w
        qy = (back[1, 0] * x + back[1, 1] * y + back[1, 2]) / w
        reach = 2.0 * max(self.size)
        return np.clip(qx, -reach, reach), np.clip(qy, -reach, reach)

    def project(
        self, x: Float64, y: Float64
    ) -> tuple[Float64, Float64, tuple[Float64, Float64, Float64, Float64], npt.NDArray[np.bool_]]:
        """Target coordinates of keyframe places, their Jacobian, and whether they are in front."""
        inverse, (slope_x, slope_y) = _inverse_depth(self.grid, x, y, self.size)
        m, s = self.matrix, self.shift
        u = [m[i, 0] * x + m[i, 1] * y + m[i, 2] + s[i] * inverse for i in range(3)]
        dx = [m[i, 0] + s[i] * slope_x for i in range(3)]
        dy = [m[i, 1] + s[i] * slope_y for i in range(3)]
        front = u[2] > _NEAR
        w = np.where(front, u[2], _NEAR)
        px, py = u[0] / w, u[1] / w
        jacobian = (
            (dx[0] - px * dx[2]) / w,
            (dy[0] - px * dy[2]) / w,
            (dx[1] - py * dx[2]) / w,
            (dy[1] - py * dy[2]) / w,
        )
        return px, py, jacobian, front


def _inverse_depth(
    grid: npt.NDArray[np.floating], x: Float64, y: Float64, size: tuple[int, int]
) -> tuple[Float64, tuple[Float64, Float64]]:
    """Inverse depth at continuous coordinates and its slopes along x and y, clamped outside."""
    rows, columns = grid.shape
    inverse = 1 / np.asarray(grid, np.float64)
    scale_x, scale_y = (columns - 1) / size[0], (rows - 1) / size[1]
    gx, gy = np.clip(x * scale_x, 0, columns - 1), np.clip(y * scale_y, 0, rows - 1)
    left = np.minimum(gx.astype(np.int64), columns - 2)
    top = np.minimum(gy.astype(np.int64), rows - 2)
    fx, fy = gx - left, gy - top
    n00, n01 = inverse[top, left], inverse[top, left + 1]
    n10, n11 = inverse[top + 1, left], inverse[top + 1, left + 1]
    value = (n00 * (1 - fx) + n01 * fx) * (1 - fy) + (n10 * (1 - fx) + n11 * fx) * fy
    inner_x, inner_y = (gx == x * scale_x) * scale_x, (gy == y * scale_y) * scale_y
    slope_x = ((n01 - n00) * (1 - fy) + (n11 - n10) * fy) * inner_x
    slope_y = ((n10 - n00) * (1 - fx) + (n11 - n01) * fx) * inner_y
    return value, (slope_x, slope_y)


def _dense(control: Float64, size: tuple[int, int]) -> Float64:
    """Values at sample centres, [H, W, C], of control points every `_STRIDE` samples from 0."""
    for axis, count in ((0, size[1]), (1, size[0])):
        at = (np.arange(count) + 0.5) / _STRIDE
        low = at.astype(np.int64)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(3)])
        control = control.take(low, axis) * (1 - share) + control.take(low + 1, axis) * share
    return control


def _inside(places: Float64, size: tuple[int, int]) -> Float64:
    """1 where places lie in the picture, falling to 0 over the outermost half sample."""
    inside = np.ones(places.shape[:2])
    for axis in (0, 1):
        inside *= np.clip(places[..., axis] + 0.5, 0, 1)
        inside *= np.clip(size[axis] + 0.5 - places[..., axis], 0, 1)
    return inside
