"""Camera rays as Plücker coordinates: how a generator is told where each place looks, numpy only.

A ray through o with the unit direction d is the six numbers (o x d, d), which do not depend on
which of its points o is (Sitzmann et al., Light Field Networks, 2021, section 3.1). As CameraCtrl
(He et al., 2024, section 3.2) has it, rays go through the centres of samples. Poses are relative to
the first frame, and lengths are in scene depths, so that the numbers mean the same in every scene.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

CHANNELS = 6


def rays(
    rotation: Float64,
    position: Float64,
    intrinsics: Float64,
    *,
    size: tuple[int, int],
    cell: int = 1,
) -> Float32:
    """Return (o x d, d) float32 [6, ceil(height / cell), ceil(width / cell)] of one camera.

    rotation: float64 [3, 3], world to camera; position: float64 [3] in the world. intrinsics:
    float64 [3, 3] in samples of a picture of `size` (height, width). With `cell` above 1 there is
    one ray for each block of `cell` x `cell` samples, through its centre.
    """
    height, width = (-(-side // cell) for side in size)
    x, y = np.meshgrid((np.arange(width) + 0.5) * cell, (np.arange(height) + 0.5) * cell)
    local = np.stack(
        (
            (x - intrinsics[0, 2]) / intrinsics[0, 0],
            (y - intrinsics[1, 2]) / intrinsics[1, 1],
            np.ones_like(x),
        ),
        -1,
    )
    direction = local @ rotation
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    moment = np.cross(position, direction)
    return np.moveaxis(np.concatenate((moment, direction), -1), -1, 0).astype(np.float32)
