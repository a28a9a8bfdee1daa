"""Where shots change, and where segments begin; both while frames stream by.

A small picture (16 x 16 means of luma and chroma) and a colour histogram of each frame are kept for
about a second. Hard cuts, dissolves up to about a second and fades through black or white are
found; flashes, pans, zooms and exposure changes are not cuts. No learned model.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from semvc.types import Span

if TYPE_CHECKING:
    import numpy.typing as npt

    UInt8 = npt.NDArray[np.uint8]
    Float32 = npt.NDArray[np.float32]

_GRID = 16
_SAMPLES = 96  # of the shorter side that are looked at
_NOISE = 6.0  # code values: differences below say nothing
_CUT = 1.0  # measured: cuts 1.66 and more, anything else 0.62 and less
_FLAT = 4.0  # contrast (standard deviation of luma means) of a black or white picture
_CLEAR = 10.0  # contrast of a picture with something in it
_DISSOLVE = 1.2  # measured: dissolves 1.24 and more, changes of exposure 1.17 and less
_SAME = 0.6  # correlation of two pictures of one shot


@dataclass(frozen=True, slots=True)
class _Look:
    """What is kept of a frame."""

    grid: Float32  # [256, 3] luma and halved colour differences
    histogram: Float32  # [64] shares
    spread: float  # squared deviation of `grid` from its mean, summed over channels
    contrast: float
    level: float


class CutDetector:
    """Push frames, get the numbers of frames that begin a new shot, about half a second later."""

    def __init__(self, fps: float) -> None:
        fps = min(max(fps, 4.0), 240.0)
        self._halves = sorted({max(4, round(0.25 * fps)), max(6, round(0.45 * fps))})
        self._ahead = self._halves[-1]
        self._looks: deque[_Look] = deque(maxlen=2 * self._ahead + 1)
        self._count = 0  # frames pushed
        self._rest = max(2, round(0.4 * fps))  # frames between two cuts
        self._last_cut = 0
        self._before_flat: _Look | None = None
        self._flat = False

    @property
    def known(self) -> int:
        """Number of frames for which the decision is final."""
        return max(0, self._count - self._ahead)

    def push(self, frame: UInt8) -> list[int]:
        """Add uint8 [H, W, 3]; return the cuts that became certain (none or one)."""
        self._looks.append(_look(frame))
        self._count += 1
        return self._decide(self._count - 1 - self._ahead)

    def finish(self) -> list[int]:
        """Return the cuts among the last frames."""
        first = max(0, self._count - self._ahead)
        cuts = [cut for t in range(first, self._count) for cut in self._decide(t)]
        self._ahead = 0
        return cuts

    def _at(self, t: int) -> _Look | None:
        index = t - (self._count - len(self._looks))
        return self._looks[index] if 0 <= index < len(self._looks) else None

    def _decide(self, t: int) -> list[int]:
        now = self._at(t) if t >= 0 else None
        if now is None or t == 0:
            return []
        before = self._at(t - 1)
        cut = self._leaves_flat(now)
        if before is not None and t - self._last_cut >= self._rest:
            cut = cut or self._is_hard(t, before, now)
            cut = cut or any(self._is_dissolve(t, half) for half in self._halves)
        if not cut or t - self._last_cut < self._rest:
            return []
        self._last_cut = t
        return [t]

    def _leaves_flat(self, now: _Look) -> bool:
        """Whether `now` is the first picture of another shot after black or white."""
        if now.contrast < _FLAT and not 24 <= now.level <= 231:
            self._flat = True
            return False
        if not self._flat:
            if now.contrast >= _CLEAR:
                self._before_flat = now
            return False
        self._flat = False
        return self._before_flat is None or _alike(self._before_flat, now) < _SAME

    def _is_hard(self, t: int, before: _Look, now: _Look) -> bool:
        if min(before.contrast, now.contrast) < _NOISE or _cut_score(before, now) < _CUT:
            return False
        step = _distance(before, now)
        for k in (*range(-4, 0), *range(1, 5)):
            a, b = self._at(t + k - 1), self._at(t + k)
            if a is not None and b is not None and step < 1.3 * _distance(a, b):
                return False
        for back, ahead in ((2, 1), (2, 3), (1, 2)):  # a flash returns to what was
            a, b = self._at(t - back), self._at(t + ahead)
            if a is not None and b is not None and _cut_score(a, b) < 0.7 * _CUT:
                return False
        return True

    def _is_dissolve(self, t: int, half: int) -> bool:
        """Whether pictures go straight and evenly from one shot at t - half to another."""
        a, b = self._at(t - half), self._at(t + half)
        if a is None or b is None or min(a.contrast, b.contrast) < _CLEAR:
            return False
        if _pattern_distance(a, b) < 0.6 or _alike(a, b) > 0.5:
            return False  # motion or another exposure
        if _pattern_distance(a, b) + _histogram_part(a, b) < _DISSOLVE:
            return False
        way = (b.grid - a.grid).ravel()
        length = float(way @ way)
        shares = []
        for k in range(-half + 1, half):
            look = self._at(t + k)
            if look is None:
                return False
            offset = (look.grid - a.grid).ravel()
            share = float(offset @ way) / length
            if np.square(offset - np.float32(share) * way).sum() > 0.4**2 * length:
                return False
            shares.append(share)
        steps = np.diff([0.0, *shares, 1.0])
        even = steps.min() > -0.05 and steps.max() < 0.25
        return bool(even and abs(shares[half - 1] - 0.5) < 0.15)


def is_cut(before: UInt8, after: UInt8, fps: float) -> bool:
    """Whether a shot changes about where the frames `before`, uint8 [T, H, W, 3], end.

    `after` follows them; about half a second of each is enough.
    """
    detector = CutDetector(fps)
    cuts = [cut for frame in (*before, *after) for cut in detector.push(frame)]
    cuts += detector.finish()
    return any(abs(cut - len(before)) <= max(1, len(before) // 2) for cut in cuts)


class SegmentPlanner:
    """Push frames, get the spans of segments: cut at shot changes, of bounded and even length.

    A segment has at most `max_frames` frames. A shot that is longer is divided into near-equal
    segments as far as its end is known: up to `reach` frames are looked at before a decision, and
    where the shot goes on beyond that, `total` (frames of the input, 0 if not known) is taken for
    its end. No shot change is closer than `min_frames` to the boundary before it. Parts of a
    divided shot have at least half of `max_frames`, but for rounding, where the input ends as
    announced. At most `reach` plus about half a second of frames wait for a decision.
    """

    def __init__(self, fps: float, *, max_frames: int, min_frames: int, total: int = 0) -> None:
        if not 1 <= min_frames <= max_frames // 2:
            raise ValueError(f"segments of {min_frames} to {max_frames} frames")
        self._detector = CutDetector(fps)
        self._max, self._min, self._total = max_frames, min_frames, total
        self.reach = max_frames + max_frames // 2
        self._start = self._count = 0
        self._cuts: deque[int] = deque()

    def push(self, frame: UInt8) -> list[Span]:
        """Add uint8 [H, W, 3]; return the segments that became certain, in order."""
        self._cuts.extend(self._detector.push(frame))
        self._count += 1
        return self._split(self._detector.known)

    def finish(self) -> list[Span]:
        """Return the segments of all frames that are left."""
        self._cuts.extend(self._detector.finish())
        spans = self._split(0)
        while (left := self._count - self._start) > 0:
            spans.append(self._take(self._part(left)))
        return spans

    def _split(self, known: int) -> list[Span]:
        """The segments that follow from the cuts found, and from what is `known` to have none."""
        spans: list[Span] = []
        while True:
            while self._cuts and self._cuts[0] - self._start < self._min:
                self._cuts.popleft()
            if self._cuts:
                spans.append(self._take(self._part(self._cuts[0] - self._start)))
            elif known - self._start > self.reach:
                left = self._total - self._start
                certain = left >= known - self._start  # a wrong announcement is no guide
                spans.append(self._take(self._part(left) if certain else _usual(self._max)))
            else:
                return spans

    def _part(self, length: int) -> int:
        """The first of the fewest near-equal parts of a shot of this length."""
        return -(-length // -(-length // self._max))

    def _take(self, count: int) -> Span:
        span = Span(self._start, count)
        self._start += count
        return span


def _usual(longest: int) -> int:
    """Length of a segment of a shot whose end is not in sight: the rest shall not be too short."""
    return max(1, longest * 9 // 10)


def _look(frame: UInt8) -> _Look:
    step = max(1, min(frame.shape[:2]) // _SAMPLES)
    rgb = frame[step // 2 :: step, step // 2 :: step].astype(np.float32)
    if min(rgb.shape[:2]) < _GRID:
        rgb = rgb.repeat(_GRID, 0).repeat(_GRID, 1)
    luma = rgb @ np.array((0.2126, 0.7152, 0.0722), np.float32)
    blue, red = (rgb[..., 2] - luma) * np.float32(0.5), (rgb[..., 0] - luma) * np.float32(0.5)
    counts = [
        np.bincount(np.clip(values, 0, bins - 1).astype(np.intp).ravel(), minlength=bins)
        for values, bins in ((luma / 8, 32), (blue / 8 + 8, 16), (red / 8 + 8, 16))
    ]
    rows, columns = (side // _GRID for side in luma.shape)
    planes = np.stack((luma, blue, red), -1)[: rows * _GRID, : columns * _GRID]
    grid = planes.reshape(_GRID, rows, _GRID, columns, 3).mean((1, 3)).reshape(-1, 3)
    variance = grid.var(0)
    histogram = np.concatenate(counts).astype(np.float32) / np.float32(luma.size)
    level, contrast = float(grid[:, 0].mean()), float(np.sqrt(variance[0]))
    return _Look(grid, histogram, float(variance.sum()), contrast, level)


def _distance(a: _Look, b: _Look) -> float:
    """Difference in units of contrast: about 1 for unrelated pictures."""
    difference = float(np.square(a.grid - b.grid).mean(0).sum())
    return float(np.sqrt(difference) / (np.sqrt(a.spread + b.spread) + _NOISE))


def _cut_score(a: _Look, b: _Look) -> float:
    return _distance(a, b) + _histogram_part(a, b)


def _histogram_part(a: _Look, b: _Look) -> float:
    return 0.25 * float(np.abs(a.histogram - b.histogram).sum())


def _pattern_distance(a: _Look, b: _Look) -> float:
    """`_distance` without what a change of brightness or tint explains."""
    difference = float((a.grid - b.grid).var(0).sum())
    return float(np.sqrt(difference) / (np.sqrt(a.spread + b.spread) + _NOISE))


def _alike(a: _Look, b: _Look) -> float:
    """Correlation of the two luma patterns."""
    x, y = a.grid[:, 0] - a.level, b.grid[:, 0] - b.level
    return float(x @ y) / (a.contrast * b.contrast * len(x) + 1e-6)
