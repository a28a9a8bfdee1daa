"""Choosing the fewest bytes for a camera path: how many poses, and how fine.

The error is what the eye would see: how far scene points move in a picture of 480 rows when the
coded path takes the place of the true one. Encoder only; nothing here is normative.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from semvc.entropy.coder import Counter
from semvc.entropy.tables import Int32, Int64
from semvc.signals.camera import (
    COARSEST,
    FINEST,
    INERTIA,
    MAX_FOCAL,
    MAX_OFFSET,
    MAX_VALUE,
    UNITS,
    Camera,
    code_camera,
    poses,
    resampled,
    rotation,
    rotation_vector,
)

Float64 = npt.NDArray[np.float64]

TOLERANCE = 0.5  # samples of a picture whose shorter side has SIDE of them
SIDE = 480
_SPACINGS = (1 << 20, 256, 128, 96, 64, 48, 36, 24, 18, 12, 9, 6, 4, 3, 2, 1)  # frames
_PATIENCE = 3  # denser poses tried after the first ones that are good enough
_FIRST_BITS = 11  # where the search for the coarsest steps begins
_OUTLIER = 3.0  # how much more than the error any point may shift
_FAR = 1e-3  # inverse depth of what is very far


@dataclass(frozen=True, slots=True)
class Path:
    """A true path to be coded: world-to-camera `rotations` [T, 3, 3] and `positions` [T, 3].

    `focal` is in picture widths and `centre` the principal point as fractions of width and height;
    `size` is (width, height). `nearest` is the greatest inverse depth that counts, in 1 / median
    depth of the first frame.
    """

    rotations: Float64
    positions: Float64
    focal: float
    size: tuple[int, int]
    centre: tuple[float, float] = (0.5, 0.5)
    nearest: float = 2.0


def choose_camera(path: Path, tolerance: float = TOLERANCE) -> Camera:
    """Return the cheapest camera found whose reprojection error stays below `tolerance`.

    If none does, the most exact one: a pose for every frame, in the finest steps.
    """
    frames = len(path.rotations)
    still = _still(path)
    if reprojection_error(path, still) < tolerance:
        return still
    turning = replace(path, positions=np.zeros_like(path.positions))
    if reprojection_error(path, _fitted(turning, still, frames - 1, (FINEST, FINEST))) < tolerance:
        path = turning
    best: tuple[float, Camera] | None = None
    found = 0
    for count in dict.fromkeys(max(1, -(-(frames - 1) // spacing)) for spacing in _SPACINGS):
        fine = _fitted(path, still, count, (FINEST - 1, FINEST - 1))
        if reprojection_error(path, fine) >= tolerance:
            continue
        camera = _coarsest(path, still, count, tolerance)
        cost, camera = _best_inertia(camera, frames)
        if best is None or cost < best[0]:
            best = (cost, camera)
        found += 1
        if found > _PATIENCE:
            break
    return _fitted(path, still, frames - 1, (FINEST - 1, FINEST - 1)) if best is None else best[1]


def reprojection_error(path: Path, camera: Camera) -> float:
    """How far scene points shift in the picture, in samples of a picture with 480 rows.

    The root mean square over points on a grid over the picture, at inverse depths from zero to
    `path.nearest`, in all frames; or a third of the largest shift of any, if that is more.
    """
    width, height = path.size
    coded_rotations, coded_positions = poses(camera, len(path.rotations))
    x, y = np.meshgrid(np.linspace(0.02, 0.98, 7), np.linspace(0.02, 0.98, 5))
    rays = np.stack(
        (
            (x - path.centre[0]) / path.focal,
            (y - path.centre[1]) * height / width / path.focal,
            np.ones_like(x),
        ),
        -1,
    ).reshape(-1, 3)
    coded_focal = camera.focal / UNITS
    offset = np.array(camera.centre) / UNITS
    true_offset = np.array([path.centre[0] - 0.5, (path.centre[1] - 0.5) * height / width])
    squares, worst = [], 0.0
    for inverse in (_FAR, min(1.0, path.nearest), path.nearest):
        local = rays / inverse
        world = local @ path.rotations + path.positions[:, None]
        again = (world - coded_positions[:, None]) @ np.swapaxes(coded_rotations, 1, 2)
        place = coded_focal * again[..., :2] / np.maximum(again[..., 2:], 1e-6) + offset
        shift = place - (path.focal * rays[:, :2] + true_offset)
        # A wrong focal length or centre is common to all frames: what they do alike is no motion.
        shift -= shift[:1]
        square = (shift**2).sum(-1)
        squares.append(float(square.mean()))
        worst = max(worst, float(square.max()))
    error = max(float(np.mean(squares)), worst / _OUTLIER**2) ** 0.5
    return float(error) * width * SIDE / min(width, height)


def _still(path: Path) -> Camera:
    width, height = path.size
    focal = min(MAX_FOCAL, max(1, round(path.focal * UNITS)))
    x = round((path.centre[0] - 0.5) * UNITS)
    y = round((path.centre[1] - 0.5) * UNITS * height / width)
    centre = (_inside(x), _inside(y))
    none = np.zeros((0, 3), np.int32)
    return Camera(focal, none, none, centre=centre)


def _inside(offset: int) -> int:
    return min(MAX_OFFSET - 1, max(-MAX_OFFSET, offset))


def _coarsest(path: Path, still: Camera, count: int, tolerance: float) -> Camera:
    """The camera of `count` steps with the fewest bits in its steps that is still good enough."""
    bits = [FINEST - 1, FINEST - 1]
    best = _fitted(path, still, count, (bits[0], bits[1]))
    for part in (1, 0):  # turns matter everywhere, moves only where the scene is near
        low = min(bits[part], _FIRST_BITS)
        while True:
            tried = bits.copy()
            tried[part] = low
            camera = _fitted(path, still, count, (tried[0], tried[1]))
            good = reprojection_error(path, camera) < tolerance
            if good:
                best, bits = camera, tried
                low -= 1
                if low < COARSEST:
                    break
            elif bits[part] == FINEST - 1 and low < FINEST - 1:
                low += 1  # the first guess was too coarse
            else:
                break
    return best


def _best_inertia(camera: Camera, frames: int) -> tuple[float, Camera]:
    costs = []
    for inertia in range(len(INERTIA) if len(camera.turns) else 1):
        tried = replace(camera, inertia=inertia)
        counter = Counter()
        code_camera(counter, tried, frames)
        costs.append((counter.bits, inertia))
    bits, inertia = min(costs)
    return bits, replace(camera, inertia=inertia)


def _fitted(path: Path, still: Camera, count: int, bits: tuple[int, int]) -> Camera:
    """Steps of the given fineness from pose to pose, each from where the coded one before is."""
    if count < 1:
        return still
    rotations, positions = _knots(path, count)
    turn_unit, move_unit = 2.0 ** -bits[0], 2.0 ** -bits[1]
    turns, moves = np.zeros((count, 3), np.int64), np.zeros((count, 3), np.int64)
    here, stands = np.eye(3), np.zeros(3)
    base, origin = rotations[0], positions[0]
    for k in range(count):
        wanted = rotations[k + 1] @ base.T
        turns[k] = np.rint(rotation_vector(wanted @ here.T) / turn_unit)
        place = base @ (positions[k + 1] - origin)
        moves[k] = np.rint(here @ (place - stands) / move_unit)
        stands = stands + (moves[k] * move_unit) @ here
        here = rotation(turns[k] * turn_unit) @ here
    if not moves.any():
        if not turns.any():
            return still
        bits = (bits[0], 0)
    return replace(
        still, turns=_bounded(turns), moves=_bounded(moves), turn_bits=bits[0], move_bits=bits[1]
    )


def _bounded(steps: Int64) -> Int32:
    return np.clip(steps, -MAX_VALUE, MAX_VALUE).astype(np.int32)


def _knots(path: Path, count: int) -> tuple[Float64, Float64]:
    """count + 1 poses at even times whose spline is nearest to all true poses, the first exact.

    Places are a linear least-squares problem. Turns are one too after those of the true path at
    the same times are taken off, since what is left is small.
    """
    frames = len(path.rotations)
    before, after = path.rotations[:-1], path.rotations[1:]
    turns = rotation_vector(after @ np.swapaxes(before, 1, 2))
    rotations, _ = resampled(path.rotations, path.positions, turns, count + 1)
    basis, inverse = _spline(count, frames)
    steps = rotation_vector(rotations[1:] @ np.swapaxes(rotations[:-1], 1, 2))
    made, _ = resampled(rotations, np.zeros((count + 1, 3)), steps, frames)
    left = rotation_vector(path.rotations @ np.swapaxes(made, 1, 2))
    rotations[1:] = rotation(inverse @ left) @ rotations[1:]
    positions = np.empty((count + 1, 3))
    positions[0] = path.positions[0]
    positions[1:] = inverse @ (path.positions - basis[:, :1] * positions[0])
    return rotations, positions


@functools.lru_cache(maxsize=64)
def _spline(count: int, frames: int) -> tuple[Float64, Float64]:
    """How `frames` places depend on count + 1 poses' [frames, count + 1]; what the last ones are.

    The second, [count, frames], gives all poses but the first from what that one leaves.
    """
    still, none = np.tile(np.eye(3), (count + 1, 1, 1)), np.zeros((count, 3))
    _, basis = resampled(still, np.eye(count + 1), none, frames)
    return basis, np.asarray(np.linalg.pinv(basis[:, 1:]), np.float64)
