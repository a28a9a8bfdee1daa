"""What is known of a clip before it is coded as a scene: from the user's files, or from analysis.

Found once for each clip, however often its coding is tried; masks are kept packed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from semvc.analysis.types import MOVING, CameraPath
from semvc.profiles.keyframing import candidates
from semvc.signals.depth import COLUMNS, ROWS
from semvc.types import Clip

if TYPE_CHECKING:
    from semvc.types import UInt8

Float32 = npt.NDArray[np.float32]

LEAST_CONFIDENCE = 0.5  # of a camera path that a scene is built on
LEAST_MASK_CONFIDENCE = 0.3
_NEAREST = 2.0  # inverse depth, where nothing is known of it
_MOST_NEAREST = 8.0
_LEAST_NEAREST = 1.0


@dataclass(frozen=True, slots=True)
class Findings:
    """A clip's camera path, masks and depth.

    `depth` gives grids float32 [n, 9, 16] of frames that may be keyframes; it is None where nothing
    is known of depth. `nearest` is the greatest inverse depth that counts. `packed` masks are uint8
    of `shape` (T, H, W), deflated.
    """

    path: CameraPath
    depth: Callable[[tuple[int, ...]], Float32] | None = None
    nearest: float = _NEAREST
    shape: tuple[int, int, int] = (0, 0, 0)
    packed: bytes = b""

    @property
    def deep(self) -> bool:
        """Whether anything is known of depth."""
        return self.depth is not None

    def depths(self, places: tuple[int, ...]) -> Float32:
        """Depth of frames, float32 [n, 9, 16]; 1 everywhere where nothing is known."""
        if self.depth is None:
            return np.ones((len(places), ROWS, COLUMNS), np.float32)
        return self.depth(places)

    def ids(self) -> UInt8 | None:
        """Masks uint8 [T, H, W]: 0 background, else the object's number; None if there are none."""
        if not self.packed:
            return None
        return np.frombuffer(zlib.decompress(self.packed), np.uint8).reshape(self.shape)


def packed(path: CameraPath, ids: UInt8 | None) -> Findings:
    """Findings of a path and masks."""
    if ids is None or not ids.any():
        return Findings(path)
    shape = (ids.shape[0], ids.shape[1], ids.shape[2])
    return Findings(path, shape=shape, packed=zlib.compress(ids.tobytes(), 1))


class Finder:
    """Finds out about the clips of one input; `camera` and `masks` are the user's files, or None.

    Raises UsageError for files that do not fit.
    """

    def __init__(self, camera: Path | None, masks: Path | None) -> None:
        from semvc.analysis import external

        self._camera = camera
        self._masks = None if masks is None else external.MaskFolder(masks)
        self._found: dict[tuple[int, int], Findings | None] = {}

    def find(self, clip: Clip, start: int) -> Findings | None:
        """What is known of a clip that begins at frame `start`; None without a camera path."""
        key = (start, len(clip.frames))
        if key not in self._found:
            self._found[key] = self._look(clip, start)
        return self._found[key]

    def _look(self, clip: Clip, start: int) -> Findings | None:
        count = len(clip.frames)
        ids = None
        if self._masks is not None:
            ids = self._masks.read(start, count, clip.frames.shape[1:3])
        if self._lacking(start, count):
            return None
        path = self._given(clip, start)
        if path is not None and path.kind != MOVING:
            return packed(path, ids)  # depth and scale do not matter
        return self._analysed(clip, ids, start)

    def _analysed(self, clip: Clip, ids: UInt8 | None, start: int) -> Findings | None:
        """What the pictures tell; the user's path is put to scale, the user's masks are kept."""
        from semvc.analysis import pipeline

        places = candidates(len(clip.frames))
        method = "auto" if self._camera is None else str(self._camera)
        wanted = pipeline.Wanted(method=method)
        found = pipeline.analyse(clip.frames, places, wanted, start, ids)
        if found.camera.confidence < LEAST_CONFIDENCE:
            return None
        if ids is None and found.masks.confidence >= LEAST_MASK_CONFIDENCE:
            ids = found.masks.ids
        seen = packed(found.camera, ids)
        if found.camera.kind != MOVING or not any(grid.support for grid in found.depths):
            return seen
        grids = {grid.frame: grid.depths for grid in found.depths}
        near = float(np.quantile(1 / np.stack(list(grids.values())), 0.95))
        return replace(
            seen,
            depth=lambda chosen: np.stack([grids[place] for place in chosen]),
            nearest=min(_MOST_NEAREST, max(_LEAST_NEAREST, near)),
        )

    def _lacking(self, start: int, count: int) -> bool:
        """Whether the user gave a dump whose segment there has no camera."""
        from semvc.analysis import external

        folder = self._camera
        if folder is None or not folder.is_dir() or (folder / "images.txt").exists():
            return False
        return external.segment_file(folder, start, count) is None

    def _given(self, clip: Clip, start: int) -> CameraPath | None:
        """The user's path for a clip, the first frame of which is the world; its unit is kept."""
        if self._camera is None:
            return None
        from semvc.analysis import external

        size = (clip.info.width, clip.info.height)
        return external.read_path(self._camera, start, len(clip.frames), size)
