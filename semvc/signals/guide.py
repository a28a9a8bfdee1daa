"""What the decoded base layer says about the edges of a sketch: integers only.

Both ends compute a guide from the same decoded luma before the sketch is coded: how strong and
how edge-like the base layer is at each map pixel, and from where each block has moved since the
previous map. A wrong guess costs bits, never correctness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from semvc.entropy.tables import Int32, check_ints

if TYPE_CHECKING:
    from semvc.types import UInt8

Int8 = npt.NDArray[np.int8]
Int16 = npt.NDArray[np.int16]

REACH = 6  # largest motion in map pixels, each way
BLOCK = 8  # map pixels
LEVELS = 6  # of gradient strength, by rank within the map
RIDGES = 5  # 0: no local maximum; 1..4: local maximum, by rank
_SHARES = (40, 25, 16, 8, 4)  # percent of the map at or above each level
_RIDGE_SHARES = (16, 8, 4)  # percent of the map among local maxima


@dataclass(frozen=True, slots=True)
class Guide:
    """For T maps of h x w: `strength` uint8 in 0..5, `ridge` uint8 in 0..4, both [T, h, w].

    `motion` int8 [T, h, w, 2] is the (row, column) step to the matching pixel of the map before,
    within +-REACH.
    """

    strength: UInt8
    ridge: UInt8
    motion: Int8


def build_guide(base: UInt8 | None, factor: int, maps: tuple[int, int, int], step: int) -> Guide:
    """Guide for `maps` = (T, h, w), one map every `step` frames.

    `base` is uint8 [Tb, hb, wb], one picture every `factor` frames; None gives an empty guide.
    Raises TypeError or ValueError for another kind of array.
    """
    count, height, width = maps
    strength, ridge = np.zeros(maps, np.uint8), np.zeros(maps, np.uint8)
    motion = np.zeros((*maps, 2), np.int8)
    if base is None:
        return Guide(strength, ridge, motion)
    if check_ints(base, "base luma").dtype != np.uint8 or base.ndim != 3 or not base.size:
        raise ValueError(f"base luma must be uint8 [T, h, w], not {base.dtype} {base.shape}")
    before = None
    for number in range(count):
        picture = base[min(number * step // factor, len(base) - 1)]
        luma = _blur(_resample(_resample(picture, 0, height), 1, width))
        strength[number], ridge[number] = _features(luma)
        if before is not None:
            motion[number] = _motion(luma, before)
        before = luma
    return Guide(strength, ridge, motion)


def _resample(image: UInt8 | Int32, axis: int, count: int) -> Int32:
    """Averages (when shrinking) or linear interpolation along one axis, to `count` samples.

    Values are in 0..255 (and stay there): sums fit int32 with room to spare.
    """
    source = np.moveaxis(image, axis, 0).astype(np.int64)
    length = len(source)
    if count <= length:
        starts = np.arange(count) * length // count
        ends = -(-(np.arange(count) + 1) * length // count)
        sums = np.concatenate([np.zeros_like(source[:1]), np.cumsum(source, axis=0)])
        sizes = (ends - starts)[:, None]
        result = (sums[ends] - sums[starts] + sizes // 2) // sizes
    else:
        # Centre of target k in 1/256 of a source sample, from the centre of the first one.
        centres = ((2 * np.arange(count) + 1) * length * 128) // count - 128
        centres = np.clip(centres, 0, (length - 1) * 256)
        left = centres >> 8
        part = (centres & 255)[:, None]
        right = np.minimum(left + 1, length - 1)
        result = (source[left] * (256 - part) + source[right] * part + 128) >> 8
    moved: Int32 = np.moveaxis(result, 0, axis).astype(np.int32)
    return moved


def _blur(luma: Int32) -> Int32:
    """Binomial 3 x 3 smoothing; the result is 16 times the luma, 0..4080."""
    padded = np.pad(luma, 1, mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    result: Int32 = rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]
    return result


def _features(luma: Int32) -> tuple[UInt8, UInt8]:
    """Strength and ridge classes of one picture."""
    around = np.pad(luma, 1, mode="edge")
    diagonal = around[2:, 2:] - around[:-2, :-2]
    other = around[2:, :-2] - around[:-2, 2:]
    right = 2 * (around[1:-1, 2:] - around[1:-1, :-2]) + diagonal - other
    down = 2 * (around[2:, 1:-1] - around[:-2, 1:-1]) + diagonal + other
    across, along = abs(right), abs(down)
    # Close to the Euclidean length: max + 3/8 min.
    size = np.maximum(across, along) + (3 * np.minimum(across, along) >> 3)
    padded = np.pad(size, 1)
    height, width = size.shape
    ridge = np.zeros_like(size)
    steep, flat = 5 * along > 12 * across, 5 * across > 12 * along
    falling = (right > 0) == (down > 0)
    for chosen, dy, dx in (
        (flat, 0, 1),
        (steep, 1, 0),
        (~flat & ~steep & falling, 1, 1),
        (~flat & ~steep & ~falling, 1, -1),
    ):
        ahead = padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        behind = padded[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        top = chosen & (size >= ahead) & (size > behind)
        ridge[top] = size[top]
    levels = _ranks(size, _SHARES)
    return levels, (ridge > 0) * np.uint8(1) + _ranks(ridge, _RIDGE_SHARES)


def _ranks(values: Int32, shares: tuple[int, ...]) -> UInt8:
    """How many of the `shares` (percent of all pixels) each value is strictly inside of."""
    ordered = np.sort(values, axis=None)[::-1]
    result = np.zeros(values.shape, np.uint8)
    for share in shares:
        result += values > ordered[min(len(ordered) - 1, len(ordered) * share // 100)]
    return result


def _motion(luma: Int32, before: Int32) -> Int32:
    """Best of all steps within REACH for each block, by the sum of absolute differences.

    Steps are tried from the shortest on (then by row, then by column), and a later one must be
    better by more than 1/16: still blocks stay still.
    """
    height, width = luma.shape
    grid = (-(-height // BLOCK), -(-width // BLOCK))
    here = luma.astype(np.int16)  # at most 4080, so differences fit too
    padded = np.pad(before.astype(np.int16), REACH, mode="edge")
    steps = [(y, x) for y in range(-REACH, REACH + 1) for x in range(-REACH, REACH + 1)]
    steps.sort(key=lambda step: (step[0] ** 2 + step[1] ** 2, step))
    best = np.zeros((*grid, 2), np.int32)
    least: Int32 | None = None
    apart = np.zeros((grid[0] * BLOCK, grid[1] * BLOCK), np.int16)  # zero beyond the picture
    for dy, dx in steps:
        moved = padded[REACH + dy : REACH + dy + height, REACH + dx : REACH + dx + width]
        inside = np.subtract(here, moved, out=apart[:height, :width])
        np.abs(inside, out=inside)
        cost = _block_sums(apart, grid)
        if least is None:
            least = cost
            continue
        better = cost + (cost >> 4) < least
        least = np.where(better, cost, least)
        best[better] = (dy, dx)
    spread = best.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)
    return spread[:height, :width]


def _block_sums(values: Int16, grid: tuple[int, int]) -> Int32:
    """Sums over blocks of 8 x 8 values of at most 4080: they fit int32."""
    rows = values.reshape(grid[0], BLOCK, -1).sum(axis=1, dtype=np.int32)
    sums: Int32 = rows.reshape(*grid, BLOCK).sum(axis=2, dtype=np.int32)
    return sums
