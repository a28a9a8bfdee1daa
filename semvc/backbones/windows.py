"""Long segments in windows that a backbone can make, and colours that do not creep.

numpy only. Windows overlap: the end of one is what the next begins with, and the two are blended.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from semvc.backbones.protocol import UInt8

Float = npt.NDArray[np.float64]
_CELL = 16  # luma samples of a side of the cells whose means are compared
_REACH = 4  # frames before and after that a mean over time takes in
_GAIN = (0.5, 2.0)  # corrections of contrast beyond these are not believed


def plan(frames: int, longest: int, overlap: int) -> list[tuple[int, int]]:
    """Return (start, stop) of windows of at most `longest` that cover [0, frames).

    Each begins `overlap` frames before the one before it ends.
    """
    if not 0 <= overlap < longest or frames < 1:
        raise ValueError(f"no windows of {longest} with overlap {overlap} over {frames} frames")
    found = [(0, min(longest, frames))]
    while found[-1][1] < frames:
        start = found[-1][1] - overlap
        found.append((start, min(start + longest, frames)))
    return found


def blend(before: UInt8, after: UInt8) -> UInt8:
    """Return [C, H, W, 3] that goes evenly from what one window shows of C frames to the next's."""
    share = ((np.arange(len(after)) + 1) / (len(after) + 1)).astype(np.float32)
    mixed = np.empty_like(after)
    for t, weight in enumerate(share):
        mixed[t] = np.float32(0.5) + (1 - weight) * before[t] + weight * after[t]
    return mixed


def match_colours(made: UInt8, base: UInt8) -> UInt8:
    """Return `made` uint8 [T, H, W, 3] with the base layer's colour statistics, channel by channel.

    The picture's means follow the base layer's with time, up to what changes within a few frames,
    and contrast becomes the base layer's. Statistics are taken of means over cells of 16 x 16,
    so that detail, which the base layer has not got, counts for nothing.
    """
    ours, theirs = _cells(made), _cells(base)
    level, target = (_smooth(cells.mean((1, 2))) for cells in (ours, theirs))
    spread, wanted = (
        (cells - cells.mean((1, 2), keepdims=True)).std((0, 1, 2)) for cells in (ours, theirs)
    )
    gain = np.clip(wanted / np.maximum(spread, 1e-3), *_GAIN)
    gain[(spread < 1) | (wanted < 1)] = 1  # flat: nothing to measure contrast by
    out = np.empty_like(made)
    for t, frame in enumerate(made):
        shift = (target[t] - level[t] * gain).astype(np.float32)
        out[t] = np.clip(frame * gain.astype(np.float32) + shift + np.float32(0.5), 0, 255)
    return out


def _cells(clip: UInt8) -> Float:
    """Means over cells, float64 [T, rows, columns, 3]; the last ones may be smaller."""
    rows, columns = (np.arange(0, side, _CELL) for side in clip.shape[1:3])
    found = []
    for frame in clip:
        sums = np.add.reduceat(np.add.reduceat(frame.astype(np.float64), rows, 0), columns, 1)
        found.append(sums)
    heights, widths = (
        np.diff(np.append(edges, side))
        for edges, side in zip((rows, columns), clip.shape[1:3], strict=True)
    )
    means: Float = np.stack(found) / (heights[:, None] * widths)[..., None]
    return means


def _smooth(values: Float) -> Float:
    """Means of [T, 3] over as many frames before as after, at most `_REACH`: lines stay lines."""
    sums = np.concatenate([np.zeros((1, values.shape[1])), values.cumsum(0)])
    here = np.arange(len(values))
    reach = np.minimum(np.minimum(here, len(values) - 1 - here), _REACH)
    first, after = here - reach, here + reach + 1
    found: Float = (sums[after] - sums[first]) / (after - first)[:, None]
    return found
