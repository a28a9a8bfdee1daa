"""Pixel representation: matrix, range, chroma sampling, resizing and padding.

The only place where pixels change representation; every frame array elsewhere is full-range RGB.
Numpy only and without randomness: the same input gives the same output on the same machine.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    UInt8 = npt.NDArray[np.uint8]
    UInt16 = npt.NDArray[np.uint16]
    Float32 = npt.NDArray[np.float32]
    Planes = tuple[UInt16, UInt16, UInt16]

BASE_BITS = 10
LANCZOS_LOBES = 3
_KR, _KB = 0.2126, 0.0722  # BT.709
_BLOCK = 32  # outputs of one banded matrix product
_WORK_SAMPLES = 1 << 24  # samples of float32 work space, 64 MiB

_Pixel = TypeVar("_Pixel", np.uint8, np.uint16, np.float32)


def resize(frames: npt.NDArray[_Pixel], height: int, width: int) -> npt.NDArray[_Pixel]:
    """Return uint8, uint16 or float32 [T, height, width, C], resized from [T, H, W, C].

    Separable Lanczos with three lobes and sample centres aligned; the kernel widens when a side
    shrinks (no aliasing). Integers are rounded to nearest and clipped to their type's range.
    ValueError for other shapes or sizes below one.
    """
    if frames.ndim != 4 or height < 1 or width < 1 or 0 in frames.shape[1:3]:
        raise ValueError(f"cannot resize {frames.shape} to {height}x{width}")
    count, h, w, channels = frames.shape
    if (h, w) == (height, width):
        return frames.copy()
    out: npt.NDArray[_Pixel] = np.empty((count, height, width, channels), frames.dtype)
    step = max(1, _WORK_SAMPLES // (max(h, height) * max(w, width) * max(channels, 1)))
    for start in range(0, count, step):
        part = frames[start : start + step].astype(np.float32)
        if height <= h:  # the cheaper order: rows first when they become fewer, else last
            part = _resize_columns(_resize_rows(part, height), width)
        else:
            part = _resize_rows(_resize_columns(part, width), height)
        out[start : start + step] = _to_dtype(part, frames.dtype)
    return out


def rgb_to_yuv420(frames: UInt8) -> Planes:
    """Return 10-bit limited-range BT.709 planes of full-range RGB uint8 [T, H, W, 3].

    y uint16 [T, H, W] in [64, 940]; u, v uint16 [T, ceil(H/2), ceil(W/2)] in [64, 960], sited in
    the middle of their four luma samples (odd sides repeat the last row or column).
    """
    count, h, w, _ = frames.shape
    half = ((h + 1) // 2, (w + 1) // 2)
    y = np.empty((count, h, w), np.uint16)
    u, v = (np.empty((count, *half), np.uint16) for _ in range(2))
    scale = (1 << (BASE_BITS - 8)) / 255
    for t in range(count):
        rgb = frames[t].astype(np.float32)
        luma = _weigh(rgb, (_KR, 1 - _KR - _KB, _KB))
        y[t] = (luma * np.float32(219 * scale) + np.float32(64.5)).astype(np.uint16)
        mean = _halve(pad_even(rgb))
        luma = _weigh(mean, (_KR, 1 - _KR - _KB, _KB))
        for plane, channel, k in ((u, 2, _KB), (v, 0, _KR)):
            gain = np.float32(112 * scale / (1 - k))
            plane[t] = ((mean[..., channel] - luma) * gain + np.float32(512.5)).astype(np.uint16)
    return y, u, v


def yuv420_to_rgb(planes: Planes) -> UInt8:
    """Return full-range RGB uint8 [T, H, W, 3]; the inverse of `rgb_to_yuv420`.

    Chroma is interpolated linearly; values outside the nominal range are clipped.
    """
    y, u, v = planes
    count, h, w = y.shape
    out = np.empty((count, h, w, 3), np.uint8)
    scale = 255 / (1 << (BASE_BITS - 8))
    kg = 1 - _KR - _KB
    for t in range(count):
        luma = (y[t].astype(np.float32) - np.float32(64)) * np.float32(scale / 219)
        cb, cr = (
            (_double(p[t].astype(np.float32))[:h, :w] - np.float32(512)) * np.float32(scale / 112)
            for p in (u, v)
        )
        red = luma + cr * np.float32(1 - _KR)
        blue = luma + cb * np.float32(1 - _KB)
        green = (luma - red * np.float32(_KR) - blue * np.float32(_KB)) * np.float32(1 / kg)
        for channel, plane in enumerate((red, green, blue)):
            out[t, ..., channel] = _to_dtype(plane, np.dtype(np.uint8))
    return out


def pad_even(image: npt.NDArray[_Pixel]) -> npt.NDArray[_Pixel]:
    """Return [H, W, ...] with the last row and column repeated until both sides are even."""
    return pad_to(image, image.shape[0] + image.shape[0] % 2, image.shape[1] + image.shape[1] % 2)


def pad_to(image: npt.NDArray[_Pixel], height: int, width: int) -> npt.NDArray[_Pixel]:
    """Return [height, width, ...] with the last row and column of [H, W, ...] repeated."""
    rows, columns = height - image.shape[0], width - image.shape[1]
    if rows == 0 and columns == 0:
        return image
    return np.pad(image, [(0, rows), (0, columns)] + [(0, 0)] * (image.ndim - 2), mode="edge")


def _weigh(rgb: Float32, weights: tuple[float, float, float]) -> Float32:
    red, green, blue = (rgb[..., i] * np.float32(k) for i, k in enumerate(weights))
    total: Float32 = red + green + blue
    return total


def _halve(rgb: Float32) -> Float32:
    rows = rgb[0::2] + rgb[1::2]
    mean: Float32 = (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)
    return mean


def _double(plane: Float32) -> Float32:
    """Twice the size by linear interpolation with centres aligned, edges held."""
    for axis in (0, 1):
        size = plane.shape[axis]
        before = np.take(plane, [0, *range(size - 1)], axis)
        after = np.take(plane, [*range(1, size), size - 1], axis)
        near = plane * np.float32(0.75)
        pair = np.stack(
            (near + before * np.float32(0.25), near + after * np.float32(0.25)), axis + 1
        )
        shape = list(plane.shape)
        shape[axis] *= 2
        plane = pair.reshape(shape)
    return plane


def _to_dtype(values: Float32, dtype: np.dtype[_Pixel]) -> npt.NDArray[_Pixel]:
    if dtype.kind == "f":
        return values.astype(dtype)
    top = np.float32(np.iinfo(dtype).max)
    return (np.clip(values, np.float32(0), top) + np.float32(0.5)).astype(dtype)


def _resize_rows(frames: Float32, height: int) -> Float32:
    """[T, H, W, C] to [T, height, W, C]: one product for each block of output rows."""
    count, h, w, channels = frames.shape
    if h == height:
        return frames
    flat = frames.reshape(count, h, w * channels)
    out = np.empty((count, height, w * channels), np.float32)
    for start, low, weights in _bands(h, height):
        rows = slice(start, start + len(weights))
        np.matmul(weights, flat[:, low : low + weights.shape[1]], out=out[:, rows])
    return out.reshape(count, height, w, channels)


def _resize_columns(frames: Float32, width: int) -> Float32:
    """[T, H, W, C] to [T, H, width, C], in planar order so that the product is a large one."""
    count, h, w, channels = frames.shape
    if w == width:
        return frames
    planar = np.ascontiguousarray(np.moveaxis(frames, 3, 0)).reshape(channels * count * h, w)
    out = np.empty((channels * count * h, width), np.float32)
    for start, low, weights in _bands(w, width):
        columns = slice(start, start + len(weights))
        out[:, columns] = planar[:, low : low + weights.shape[1]] @ weights.T
    return np.moveaxis(out.reshape(channels, count, h, width), 0, 3)


@lru_cache(maxsize=16)
def _bands(size: int, new: int) -> tuple[tuple[int, int, Float32], ...]:
    """Non-zero blocks of the resizing matrix: (first output, first input, float32 weights)."""
    scale = size / new
    stretch = max(scale, 1.0)
    reach = LANCZOS_LOBES * stretch
    blocks = []
    for start in range(0, new, _BLOCK):
        centres = (np.arange(start, min(start + _BLOCK, new)) + 0.5) * scale - 0.5
        low = max(0, int(np.ceil(centres[0] - reach)))
        high = min(size, int(np.floor(centres[-1] + reach)) + 1)
        distance = (np.arange(low, high)[None] - centres[:, None]) / stretch
        weights = np.sinc(distance) * np.sinc(distance / LANCZOS_LOBES)
        weights[np.abs(distance) >= LANCZOS_LOBES] = 0
        weights /= weights.sum(axis=1, keepdims=True)  # taps outside the picture are left out
        blocks.append((start, low, np.ascontiguousarray(weights, np.float32)))
    return tuple(blocks)
