"""Points followed through a clip: corners, pyramidal Lucas-Kanade, checked forward and backward."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from semvc.analysis.types import Bool, Float64, UInt8

WORK_SIDE = 640  # samples of the longer side of the pictures that are looked at
_POINTS = 420  # followed at once
_REFILL = 0.8  # share of `_POINTS` below which new corners are looked for
_ANCHOR = 12  # frames that share a reference picture
_CHECK = 0.25  # samples that a point may miss its start by when followed back
_WINDOW = (13, 13)
_LEVELS = 4  # of the pyramid
_SHORTEST = 4  # frames of a track that is kept


@dataclass(frozen=True, slots=True)
class Tracks:
    """`points` float64 [N, T, 2]: (x, y) in samples of a picture of `size`, NaN where not seen."""

    points: Float64
    size: tuple[int, int]

    @property
    def seen(self) -> Bool:
        """Which track was seen in which frame, bool [N, T]."""
        return np.isfinite(self.points[..., 0])


def work_size(width: int, height: int, side: int = WORK_SIDE) -> tuple[int, int]:
    """Return the (width, height) that pictures are looked at: the longer side at most `side`."""
    scale = min(1.0, side / max(width, height))
    return max(round(width * scale), 8), max(round(height * scale), 8)


def grey(frames: UInt8, size: tuple[int, int]) -> list[UInt8]:
    """Return luma uint8 [h, w] of each frame of uint8 [T, H, W, 3] at `size` (width, height)."""
    out: list[UInt8] = []
    for frame in frames:
        luma = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        if (luma.shape[1], luma.shape[0]) != size:
            luma = cv2.resize(luma, size, interpolation=cv2.INTER_AREA)
        out.append(np.asarray(luma, np.uint8))
    return out


def follow(lumas: list[UInt8], movers: Bool | None = None) -> Tracks:
    """Follow points through pictures uint8 [h, w]; at most about `_POINTS` at a time.

    A point ends where it cannot be followed back, leaves the picture or enters `movers`, bool
    [T, h, w] at the same size.
    """
    height, width = lumas[0].shape
    frames = len(lumas)
    spacing = max(4.0, 0.7 * (width * height / _POINTS) ** 0.5)
    done: list[Float64] = []
    now = np.zeros((0, frames, 2))
    for t in range(frames):
        if t:
            anchor = (t - 1) // _ANCHOR * _ANCHOR
            now, ended = _advance(now, t, lumas, anchor, movers)
            done.append(ended)
        if len(now) < _REFILL * _POINTS and t < frames - 1:
            fresh = _corners(lumas[t], now[:, t], spacing, None if movers is None else movers[t])
            start = np.full((len(fresh), frames, 2), np.nan)
            start[:, t] = fresh
            now = np.concatenate((now, start))
    points = np.concatenate([*done, now])
    least = min(_SHORTEST, frames)
    return Tracks(points[np.isfinite(points[..., 0]).sum(1) >= least], (width, height))


def _advance(
    now: Float64, t: int, lumas: list[UInt8], anchor: int, movers: Bool | None
) -> tuple[Float64, Float64]:
    """Follow `now` from frame t - 1 to t; return the tracks that go on and those that ended.

    A point is compared with how it looked in frame `anchor`, or where it was first seen if that
    is later: errors add up from anchor to anchor instead of from frame to frame.
    """
    if not len(now):
        return now, now
    first = np.isfinite(now[..., 0]).argmax(1)
    reference = np.maximum(first, anchor)
    places = np.full((len(now), 2), np.nan)
    for start in np.unique(reference):
        group = np.flatnonzero(reference == start)
        guess = now[group, t - 1]
        if t > 1:  # as it moved before
            guess = guess + np.nan_to_num(guess - now[group, t - 2])
        places[group] = _match(lumas[start], lumas[t], now[group, start], guess)
    height, width = lumas[0].shape
    margin = 3
    with np.errstate(invalid="ignore"):
        good = (places > margin).all(1) & (places[:, 0] < width - margin)
        good &= places[:, 1] < height - margin
    if movers is not None:
        x = np.clip(np.nan_to_num(places[:, 0]).astype(int), 0, width - 1)
        y = np.clip(np.nan_to_num(places[:, 1]).astype(int), 0, height - 1)
        good &= ~movers[t][y, x]
    now[good, t] = places[good]
    return now[good], now[~good]


def _match(before: UInt8, after: UInt8, places: Float64, guess: Float64) -> Float64:
    """Return where `places` [n, 2] went, NaN where following back misses them."""
    start = np.ascontiguousarray(places - 0.5, np.float32).reshape(-1, 1, 2)
    end = np.ascontiguousarray(guess - 0.5, np.float32).reshape(-1, 1, 2)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.01)
    options = (_WINDOW, _LEVELS, stop, cv2.OPTFLOW_USE_INITIAL_FLOW, 1e-4)
    end, ok, _ = cv2.calcOpticalFlowPyrLK(before, after, start, end, None, None, *options)
    back, ok_back, _ = cv2.calcOpticalFlowPyrLK(
        after, before, end, start.copy(), None, None, *options
    )
    good = (ok[:, 0] & ok_back[:, 0]) > 0
    good &= np.hypot(*(back - start)[:, 0].T) < _CHECK
    found = np.full((len(places), 2), np.nan)
    found[good] = end[good, 0].astype(np.float64) + 0.5
    return found


def _corners(luma: UInt8, taken: Float64, spacing: float, mover: Bool | None) -> Float64:
    """Return new corners [n, 2], apart from those `taken` and from movers, refined."""
    free = np.full(luma.shape, 255, np.uint8)
    if mover is not None:
        free[mover] = 0
    for x, y in taken:
        cv2.circle(free, (int(x), int(y)), round(spacing), 0, -1)
    wanted = _POINTS - len(taken)
    found = cv2.goodFeaturesToTrack(luma, wanted, 0.008, spacing, mask=free, blockSize=5)
    if found is None:
        return np.zeros((0, 2))
    return np.asarray(found[:, 0], np.float64) + 0.5
