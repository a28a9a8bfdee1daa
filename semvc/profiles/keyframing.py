"""How many keyframes a segment gets, and where: warp what there is, send more where that fails.

A keyframe more costs about as many bytes as each one before. Those bytes could also make the others
better; so a place is worth a keyframe only if it takes more error out of the warped frames than
the same bytes would take out of the keyframes' coding. All errors are mean squares at a small size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from semvc.media import color
from semvc.nets.reprojection import SceneConditions, Stage, View, blend

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

MAX_CHOSEN = 8
_SIDE = 256  # samples of the longer side at which frames are compared
_TIMES = 13  # frames of a segment that are compared; every other one may be a keyframe
_WORTH = 1.0  # how much more error a keyframe must take out than better coding would


@dataclass(frozen=True, slots=True)
class Footage:
    """A segment as it was filmed, and what is known of its geometry.

    frames: uint8 [T, H, W, 3]. rotations, positions: of all frames, as they will be decoded. focal
    in picture widths and centre as fractions. depths: float32 [n, rows, columns] for `candidates`.
    ids: uint8 [T, H, W], or None.
    """

    frames: UInt8
    rotations: Float64
    positions: Float64
    focal: float
    centre: tuple[float, float]
    ids: UInt8 | None = None


def candidates(frames: int) -> tuple[int, ...]:
    """Frames that may become keyframes: the first, the last, and some evenly between."""
    return tuple(_times(frames)[::2].tolist())


def small(frames: UInt8) -> UInt8:
    """Frames [T, H, W, 3] at the size at which they are compared."""
    height, width = frames.shape[1:3]
    scale = min(1.0, _SIDE / max(height, width))
    return color.resize(frames, max(1, round(height * scale)), max(1, round(width * scale)))


class Trial:
    """What warped keyframes of a segment look like, for any choice of places."""

    def __init__(self, footage: Footage, depths: Float32) -> None:
        count = len(footage.frames)
        self.candidates = candidates(count)
        self._times = _times(count).tolist()
        self._true = dict(
            zip(self._times, small(footage.frames[self._times]).astype(np.float32), strict=True)
        )
        height, width = self._true[0].shape[:2]
        self._ids: dict[int, UInt8] = {}
        if footage.ids is not None:
            rows = np.arange(height) * footage.ids.shape[1] // height
            columns = np.arange(width) * footage.ids.shape[2] // width
            self._ids = {t: footage.ids[t][rows[:, None], columns] for t in self._times}
        none = np.zeros((height, width), np.uint8)
        pictures = np.stack([self._true[place] for place in self.candidates]).astype(np.uint8)
        focal = footage.focal * width
        middle = (footage.centre[0] * width, footage.centre[1] * height)
        self._stage = Stage(
            SceneConditions(
                width=width,
                height=height,
                frames=count,
                keyframes=pictures,
                places=self.candidates,
                depths=depths,
                rotations=footage.rotations,
                positions=footage.positions,
                intrinsics=np.array([[focal, 0, middle[0]], [0, focal, middle[1]], [0, 0, 1]]),
                crf=20,
                factor=1,
                ids=None if footage.ids is None else lambda t: self._ids.get(t, none),
            )
        )
        self._views: dict[tuple[int, int], View] = {}

    def error(self, places: tuple[int, ...]) -> float:
        """Mean squared error of the background, of frames made from keyframes at `places`."""
        total = 0.0
        for t in self._times:
            first = max(place for place in places if place <= t)
            second = min((place for place in places if place > t), default=first)
            phase = (t - first) / (second - first) if second > first else 0.0
            made = blend(self._view(first, t), self._view(second, t), phase)
            apart = ((made - self._true[t]) ** 2).mean(axis=2)
            if t in self._ids:
                apart = apart[self._ids[t] == 0]
            total += float(apart.mean()) if apart.size else 0.0
        return total / len(self._times)

    def choose(self, coding_error: float) -> tuple[int, ...]:
        """The places that pay, greedily; `coding_error` is a keyframe's own at the small size."""
        places: tuple[int, ...] = (0,)
        error = self.error(places)
        while len(places) < MAX_CHOSEN:
            left = [place for place in self.candidates if place not in places]
            found = [(self.error(tuple(sorted((*places, place)))), place) for place in left]
            if not found:
                break
            least, place = min(found)
            # coding errors fall about as one over the bytes
            elsewhere = coding_error / (len(places) + 1)
            if error - least <= _WORTH * elsewhere:
                break
            places, error = tuple(sorted((*places, place))), least
        return places

    def _view(self, place: int, t: int) -> View:
        if (place, t) not in self._views:
            self._views[place, t] = self._stage.view(self.candidates.index(place), t)
        return self._views[place, t]


def _times(frames: int) -> npt.NDArray[np.int64]:
    return np.unique(np.rint(np.linspace(0, frames - 1, _TIMES)).astype(np.int64))
