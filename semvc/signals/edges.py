"""Edges of a video without a learned model: thin binary maps, steady over a segment.

Used by the encoder only, so floats are fine: what is coded is the map, not how it was found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from semvc.types import UInt8


Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

_LOW = 0.4  # of the high threshold: weaker edges survive only next to stronger ones
_FLOOR = 12.0  # gradient below this is noise, whatever the density asked for
_SAMPLE = 6  # maps that the threshold is measured on
_ROUNDS = 4
_SHORTEST = 4  # pixels in a window of 5 x 5; less is dropped


def extract_edges(
    luma: UInt8, size: tuple[int, int], *, density: float = 0.04, sigma: float = 1.0
) -> UInt8:
    """Thin edge maps uint8 {0, 1} [T, h, w] of `luma` uint8 [T, H, W], with size = (h, w).

    Canny's method on luma averaged down to `size` and smoothed with a Gaussian of `sigma` map
    pixels: local maxima of the gradient along its direction, kept by hysteresis. The thresholds
    are common to all T maps and leave about the share `density` (0 .. 0.5) of pixels set; flat
    pictures give fewer. Raises ValueError for sizes or densities out of range.
    """
    if luma.ndim != 3 or luma.dtype != np.uint8:
        raise ValueError(f"luma must be uint8 [T, H, W], not {luma.dtype} {luma.shape}")
    if not (1 <= size[0] <= luma.shape[1] and 1 <= size[1] <= luma.shape[2]):
        raise ValueError(f"maps of {size} do not fit a video of {luma.shape[1:]}")
    if not 0 < density <= 0.5:
        raise ValueError(f"density must be in 0..0.5, not {density}")
    ridges = [_ridges(_smooth(_shrink(frame, size), sigma)) for frame in luma]
    if not ridges:
        return np.zeros((0, *size), np.uint8)
    high = _threshold(ridges, density)
    return np.stack([_trace(ridge, high) for ridge in ridges]).astype(np.uint8)


def trace_strengths(strengths: UInt8, size: tuple[int, int], density: float = 0.04) -> UInt8:
    """Thin edge maps uint8 {0, 1} [T, h, w] of `strengths` uint8 [T, H, W] that a network found.

    Averaged down to `size` = (h, w), kept where they are highest across the line, and then by the
    same hysteresis and density as in `extract_edges`; the same errors are raised.
    """
    if strengths.ndim != 3 or strengths.dtype != np.uint8:
        raise ValueError(f"strengths must be uint8 [T, H, W], not {strengths.dtype}")
    if not (1 <= size[0] <= strengths.shape[1] and 1 <= size[1] <= strengths.shape[2]):
        raise ValueError(f"maps of {size} do not fit strengths of {strengths.shape[1:]}")
    if not 0 < density <= 0.5:
        raise ValueError(f"density must be in 0..0.5, not {density}")
    ridges = [_crests(_shrink(frame, size)) for frame in strengths]
    if not ridges:
        return np.zeros((0, *size), np.uint8)
    high = _threshold(ridges, density)
    return np.stack([_trace(ridge, high) for ridge in ridges]).astype(np.uint8)


def _threshold(ridges: list[Float32], density: float) -> float:
    """The high threshold that sets about the share `density`, measured on a few maps."""
    some = ridges[:: -(-len(ridges) // _SAMPLE)]
    strengths = np.sort(np.concatenate([ridge[ridge > _FLOOR] for ridge in some]))[::-1]
    wanted = density * sum(ridge.size for ridge in some)
    high, share = _FLOOR, 0.5
    for _ in range(_ROUNDS):
        rank = int(share * wanted)
        if rank >= len(strengths):
            return _FLOOR
        high = float(strengths[rank])
        found = sum(int(_trace(ridge, high).sum()) for ridge in some)
        share *= wanted / max(found, 1)
    return high


def _trace(ridge: Float32, high: float) -> Bool:
    return _drop_short(_hysteresis(ridge, high))


def _shrink(image: UInt8, size: tuple[int, int]) -> Float32:
    """Average `image` over the cells of a grid of `size`."""
    result = image.astype(np.float32)
    for axis, count in enumerate(size):
        length = result.shape[axis]
        starts = np.arange(count) * length // count
        ends = -(-(np.arange(count) + 1) * length // count)
        sums = np.concatenate(
            [np.zeros_like(result.take([0], axis)), np.cumsum(result, axis, dtype=np.float64)], axis
        )
        shape = [1, 1]
        shape[axis] = count
        cells = (sums.take(ends, axis) - sums.take(starts, axis)) / (ends - starts).reshape(shape)
        result = cells.astype(np.float32)
    return result


def _smooth(image: Float32, sigma: float) -> Float32:
    radius = max(1, round(3 * sigma))
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = np.pad(image, radius, mode="edge")
    height, width = image.shape
    rows = sum(weight * padded[k : k + height] for k, weight in enumerate(kernel))
    result: Float32 = np.asarray(
        sum(weight * rows[:, k : k + width] for k, weight in enumerate(kernel)), np.float32
    )
    return result


def _ridges(image: Float32) -> Float32:
    """Gradient magnitude (Sobel) where it is a local maximum across the edge, else 0."""
    around = np.pad(image, 1, mode="edge")
    diagonal = around[2:, 2:] - around[:-2, :-2]
    other = around[2:, :-2] - around[:-2, 2:]
    right = 2 * (around[1:-1, 2:] - around[1:-1, :-2]) + diagonal - other
    down = 2 * (around[2:, 1:-1] - around[:-2, 1:-1]) + diagonal + other
    strength: Float32 = np.hypot(right, down)
    height, width = image.shape
    padded = np.pad(strength, 1)

    def shifted(dy: int, dx: int) -> Float32:
        part: Float32 = padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        return part

    steep, flat = abs(down) > 2.414 * abs(right), abs(right) > 2.414 * abs(down)
    falling = (right * down) > 0
    result = np.zeros_like(strength)
    for chosen, dy, dx in (
        (flat, 0, 1),
        (steep, 1, 0),
        (~flat & ~steep & falling, 1, 1),
        (~flat & ~steep & ~falling, 1, -1),
    ):
        top = (strength >= shifted(dy, dx)) & (strength > shifted(-dy, -dx)) & chosen
        result[top] = strength[top]
    return result


def _crests(image: Float32) -> Float32:
    """`image` where it is a local maximum in the direction in which it falls off most, else 0."""
    height, width = image.shape
    around = np.pad(image, 1, mode="edge")
    best = np.zeros_like(image)
    result = np.zeros_like(image)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        after = around[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        before = around[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        fall = (2 * image - before - after) / (dy * dy + dx * dx)
        steeper = fall > best
        top = (image >= after) & (image > before)
        result = np.where(steeper, np.where(top, image, 0), result)
        best = np.maximum(best, fall)
    return np.asarray(result, np.float32)


def _hysteresis(ridge: Float32, high: float) -> Bool:
    """Ridges above `high`, and weaker ones that are connected to them."""
    weak = ridge > _LOW * high
    found = ridge >= high
    while True:
        grown = _grow(found) & weak
        if np.array_equal(grown, found):
            return found
        found = grown


def _grow(mask: Bool) -> Bool:
    """`mask` and its eight neighbours."""
    padded = np.pad(mask, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    grown: Bool = rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
    return grown


def _drop_short(mask: Bool) -> Bool:
    """Remove strokes of fewer than `_SHORTEST` pixels that stand alone."""
    padded = np.pad(mask.astype(np.int16), 2)
    height, width = mask.shape
    rows = np.stack([padded[k : k + height] for k in range(5)]).sum(axis=0)
    count = np.stack([rows[:, k : k + width] for k in range(5)]).sum(axis=0)
    return _grow(mask & (count >= _SHORTEST)) & mask
