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

from semvc.analysis.types import MAX_OBJECTS, MOVING, CameraPath
from semvc.errors import UsageError
from semvc.media.files import read_png
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
        self._camera = camera
        self._masks = None if masks is None else MaskFolder(masks)
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
        path = self._given(clip, start)
        if path is not None and path.kind != MOVING:
            return packed(path, ids)  # depth and scale do not matter
        return self._analysed(clip, ids, start)

    def _analysed(self, clip: Clip, ids: UInt8 | None, start: int) -> Findings | None:
        """What the pictures tell; the user's path is put to scale, the user's masks are kept."""
        from semvc.analysis import pipeline

        places = candidates(len(clip.frames))
        method = "auto" if self._camera is None else str(self._camera)
        found = pipeline.analyse(clip.frames, places, pipeline.Wanted(method=method), start)
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

    def _given(self, clip: Clip, start: int) -> CameraPath | None:
        """The user's path for a clip, the first frame of which is the world; its unit is kept."""
        if self._camera is None:
            return None
        from semvc.analysis import external

        size = (clip.info.width, clip.info.height)
        return external.read_path(self._camera, start, len(clip.frames), size)


class MaskFolder:
    """PNG files of a folder, one for each frame in the order of their names.

    Black is background, every other color an object; the first in order of color is number 1. All
    files may be grey, as `dump` writes them, or colored, as annotation tools do.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder of mask PNG files")
        self._folder = folder
        self._paths = sorted(folder.glob("*.png"))
        if not self._paths:
            raise UsageError(f"{folder} has no PNG files")
        colors: set[int] = set()
        for path in self._paths:
            colors.update(np.unique(_colors(path)).tolist())
        self._colors = sorted(colors - {0})
        if len(self._colors) > MAX_OBJECTS:
            raise UsageError(
                f"the masks in {folder} have {len(self._colors)} colors besides black, at most"
                f" {MAX_OBJECTS} objects are possible"
            )

    def read(self, start: int, count: int, size: tuple[int, ...]) -> UInt8:
        """Numbers of objects in some frames, uint8 [count, height, width]."""
        if len(self._paths) < start + count:
            raise UsageError(
                f"{self._folder} has {len(self._paths)} masks, and the video at least"
                f" {start + count} frames: it needs one for each"
            )
        ids = np.zeros((count, *size), np.uint8)
        for t, path in enumerate(self._paths[start : start + count]):
            found = _colors(path)
            if found.shape != tuple(size):
                raise UsageError(
                    f"{path} is {found.shape[1]}x{found.shape[0]}, the video {size[1]}x{size[0]}"
                )
            for number, color in enumerate(self._colors, 1):
                ids[t][found == color] = number
        return ids


def _colors(path: Path) -> npt.NDArray[np.int64]:
    """A PNG's colors as numbers [H, W]."""
    channels = read_png(path).astype(np.int64)
    found: npt.NDArray[np.int64] = channels @ np.array([1 << 16, 1 << 8, 1])
    return found
