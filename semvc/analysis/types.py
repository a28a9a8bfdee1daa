"""What analysis finds out about a clip: camera path, masks, points and depth.

Conventions, the same everywhere in the package:

- Camera axes are right, down, forward. A world point x is at `rotation @ x + translation` in the
  camera's coordinates (world to camera); the camera stands at `-rotation.T @ translation`.
- The first frame is the world: its rotation is the identity and its translation zero.
- Lengths are in units of the first frame's median scene depth; a path of a camera that only turns
  has zero translations, and its depths are all 1.
- Picture coordinates are continuous: sample (row 0, column 0) covers [0, 1) x [0, 1), its centre
  is (0.5, 0.5). Pixels are square. The focal length is in picture widths, so that it holds at any
  size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

MAX_OBJECTS = 8
GRID = (9, 16)  # rows and columns of a depth grid's nodes
STATIC, TURNING, MOVING = "static", "turning", "moving"  # kinds of camera motion


@dataclass(frozen=True, slots=True)
class CameraPath:
    """One pose a frame and what they share.

    rotations: float64 [T, 3, 3], world to camera, orthonormal with determinant 1.
    translations: float64 [T, 3]. focal: in picture widths. centre: the principal point as fractions
    of width and height. kind: STATIC (all poses equal), TURNING (no translation) or MOVING.
    confidence: in [0, 1], roughly the chance that the path is right (`camera.confidence`).
    method: what found it: `opencv`, `pycolmap`, `flowmap` or `file`.
    """

    rotations: Float64
    translations: Float64
    focal: float
    centre: tuple[float, float] = (0.5, 0.5)
    kind: str = MOVING
    confidence: float = 1.0
    method: str = "opencv"

    def __post_init__(self) -> None:
        count = len(self.rotations)
        if self.rotations.shape != (count, 3, 3) or self.translations.shape != (count, 3):
            raise ValueError("a camera path needs rotations [T, 3, 3] and translations [T, 3]")
        if not (np.isfinite(self.rotations).all() and np.isfinite(self.translations).all()):
            raise ValueError("a camera path must be finite")
        if not 0 < self.focal < np.inf:
            raise ValueError(f"a focal length must be positive, not {self.focal}")

    def intrinsics(self, width: int, height: int) -> Float64:
        """Return the matrix float64 [3, 3] for pictures of `width` x `height`."""
        focal = self.focal * width
        cx, cy = self.centre[0] * width, self.centre[1] * height
        return np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1]], np.float64)

    def positions(self) -> Float64:
        """Return where the camera stands in the world, float64 [T, 3]."""
        places: Float64 = -np.einsum("tji,tj->ti", self.rotations, self.translations)
        return places

    def pose(self, frame: int) -> Float64:
        """Return [rotation | translation] of a frame, float64 [3, 4], as `nets.warp` takes it."""
        return np.concatenate((self.rotations[frame], self.translations[frame][:, None]), 1)


@dataclass(frozen=True, slots=True)
class Masks:
    """Moving objects: `ids` uint8 [T, H, W], 0 = background, 1..8 = object, stable over time.

    Numbers are used from 1 up without gaps, in order of total area. confidence: in [0, 1].
    """

    ids: UInt8
    confidence: float = 1.0
    method: str = "motion"

    def __post_init__(self) -> None:
        if self.ids.dtype != np.uint8 or self.ids.ndim != 3:
            raise ValueError(f"masks must be uint8 [T, H, W], not {self.ids.dtype}")
        if self.ids.size and self.ids.max() > MAX_OBJECTS:
            raise ValueError(f"object ids end at {MAX_OBJECTS}, not {self.ids.max()}")

    @property
    def count(self) -> int:
        """Number of objects."""
        return int(self.ids.max()) if self.ids.size else 0


@dataclass(frozen=True, slots=True)
class Structure:
    """Points of the static scene: `points` float64 [N, 3] in the world.

    `seen` bool [N, T] says in which frames each was tracked.
    """

    points: Float64
    seen: Bool


@dataclass(frozen=True, slots=True)
class DepthGrid:
    """Coarse depth of frame `frame`: `depths` float32 [9, 16] (rows, columns), positive.

    Depth is along the viewing axis (z in camera coordinates). The first node is at the picture's
    corner (0, 0), the last at (width, height). Between nodes the *inverse* of depth is bilinear, so
    that a plane is exact. support: in [0, 1], the share of nodes with evidence close by.
    """

    frame: int
    depths: Float32
    support: float = 1.0


@dataclass(frozen=True, slots=True)
class Analysis:
    """Everything found in a clip; `depths` holds one grid for each keyframe asked for."""

    camera: CameraPath
    masks: Masks
    structure: Structure
    depths: tuple[DepthGrid, ...]
