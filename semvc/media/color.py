"""Pixel representation: matrix, range, chroma sampling, resizing and padding.

The only place where pixels change representation; every frame array elsewhere is full-range RGB.
No randomness: the same input gives the same output on the same machine. FFmpeg's swscale converts
pictures of files, always with its accurate integer paths; everything else is numpy.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from semvc.errors import MediaError
from semvc.types import ColorInfo

if TYPE_CHECKING:
    import numpy.typing as npt

    UInt8 = npt.NDArray[np.uint8]
    UInt16 = npt.NDArray[np.uint16]
    Float32 = npt.NDArray[np.float32]
    Planes = tuple[UInt16, UInt16, UInt16]

BASE_BITS = 10
PQ, HLG = 16, 18  # transfer characteristics of ITU-T H.273
_LIMITED, _FULL = 1, 2  # colour ranges of FFmpeg
_SWSCALE_MATRIX = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
_ACCURATE = (
    Interpolation.BICUBIC
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
)
_REFERENCE_WHITE = 203.0  # cd/m2 of diffuse white in HDR video (ITU-R BT.2408)
_KNEE = 0.5  # of reference white: linear light above is rolled off
_BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
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

    Samples are first rounded to 8 bits: flat areas then get the even steps of 8-bit video, where
    10 bits would leave a faint dither. Chroma is interpolated linearly; values outside the nominal
    range are clipped.
    """
    y, u, v = planes
    count, h, w = y.shape
    out = np.empty((count, h, w, 3), np.uint8)
    kg = 1 - _KR - _KB
    for t in range(count):
        luma = (_to_8_bits(y[t]) - np.float32(16)) * np.float32(255 / 219)
        cb, cr = (
            (_double(_to_8_bits(p[t]))[:h, :w] - np.float32(128)) * np.float32(255 / 112)
            for p in (u, v)
        )
        red = luma + cr * np.float32(1 - _KR)
        blue = luma + cb * np.float32(1 - _KB)
        green = (luma - red * np.float32(_KR) - blue * np.float32(_KB)) * np.float32(1 / kg)
        for channel, plane in enumerate((red, green, blue)):
            out[t, ..., channel] = _to_dtype(plane, np.dtype(np.uint8))
    return out


def _to_8_bits(plane: UInt16) -> Float32:
    """Round 10-bit samples to the 8-bit scale, halves to even."""
    samples: Float32 = np.rint(plane.astype(np.float32) / np.float32(1 << (BASE_BITS - 8)))
    return samples


def picture_color(picture: av.VideoFrame) -> ColorInfo:
    """Return how the samples of a decoded picture are meant, with everything unsaid filled in.

    An unspecified matrix follows the size as in players: BT.709 from 1280 columns or 577 rows on,
    else BT.601. RGB counts as BT.709. MediaError for a matrix that cannot be converted.
    """
    name = picture.format.name
    if picture.format.is_rgb or name.startswith("pal"):
        return ColorInfo()
    full = picture.color_range == _FULL or name.startswith("yuvj")
    if name.startswith("gray") and picture.color_range != _LIMITED:
        full = True
    matrix = picture.colorspace
    if matrix in (0, 2, 3):
        matrix = 1 if picture.width >= 1280 or picture.height > 576 else 6
    if matrix not in _SWSCALE_MATRIX:
        raise MediaError(
            f"colour matrix {matrix} of ITU-T H.273 is not known here: convert the video to BT.709"
        )
    primaries, transfer = picture.color_primaries, picture.color_trc
    if primaries in (0, 2, 3):
        primaries = 9 if matrix in (9, 10) else 1 if matrix == 1 else 6
    if transfer in (0, 2, 3):
        transfer = 1 if matrix in (1, 9, 10) else 6
    return ColorInfo(primaries, transfer, matrix, full)


def is_hdr(color: ColorInfo) -> bool:
    """Return whether `color` needs `picture_to_rgb` to map tones."""
    return color.transfer in (PQ, HLG)


def picture_to_rgb(
    picture: av.VideoFrame, color: ColorInfo, *, height: int, width: int, scaler: VideoReformatter
) -> UInt8:
    """Return full-range RGB uint8 [height, width, 3] of a decoded picture of any pixel format.

    HDR (PQ, HLG) is mapped to SDR with BT.709 primaries; otherwise primaries and transfer stay.
    """
    picture.color_range = _FULL if color.full_range or picture.format.is_rgb else _LIMITED
    converted = scaler.reformat(
        picture,
        width,
        height,
        "rgb48le" if is_hdr(color) else "rgb24",
        src_colorspace=_SWSCALE_MATRIX[color.matrix],
        interpolation=_ACCURATE,
        src_color_range=picture.color_range,
        dst_color_range=_FULL,
    )
    rgb = converted.to_ndarray()
    if is_hdr(color):
        return tone_map(rgb.astype(np.uint16, copy=False), color.transfer)
    return rgb.astype(np.uint8, copy=False)


def rgb_to_picture(
    frame: UInt8, color: ColorInfo, pixel_format: str, *, scaler: VideoReformatter
) -> av.VideoFrame:
    """Return full-range RGB uint8 [H, W, 3] as a picture of `pixel_format`, tagged as `color`."""
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    picture.color_range = _FULL
    converted = scaler.reformat(
        picture,
        format=pixel_format,
        dst_colorspace=_SWSCALE_MATRIX[color.matrix],
        interpolation=_ACCURATE,
        src_color_range=_FULL,
        dst_color_range=_FULL if color.full_range or "bgr" in pixel_format else _LIMITED,
    )
    converted.color_primaries, converted.color_trc = color.primaries, color.transfer
    if "bgr" not in pixel_format:
        converted.colorspace = color.matrix
    return converted


def tone_map(rgb: UInt16, transfer: int) -> UInt8:
    """Return SDR BT.709 uint8 [H, W, 3] of PQ or HLG BT.2020 uint16 [H, W, 3], both full range.

    Linear light below half of reference white is kept; above, the largest of the three channels is
    rolled off exponentially and the others follow, so hues stay.
    """
    light = _hdr_light(transfer)[rgb >> 4] @ _BT2020_TO_BT709.T
    np.maximum(light, 0, out=light)
    peak = light.max(axis=2, keepdims=True)
    room = np.float32(1 - _KNEE)
    rolled = np.float32(_KNEE) + room * (1 - np.exp(-(peak - np.float32(_KNEE)) / room))
    gain = np.where(peak > _KNEE, rolled / np.maximum(peak, np.float32(_KNEE)), np.float32(1))
    signal = np.power(light * gain, np.float32(1 / 2.4)) * np.float32(255)
    return _to_dtype(signal, np.dtype(np.uint8))


@lru_cache(maxsize=2)
def _hdr_light(transfer: int) -> Float32:
    """Linear light in units of reference white for each of 4096 code values (ITU-R BT.2100)."""
    code = np.arange(4096) / 4095
    if transfer == PQ:
        root = code ** (1 / 78.84375)
        light = np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
        return (10000 / _REFERENCE_WHITE * light ** (1 / 0.1593017578125)).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    return (1000 / _REFERENCE_WHITE * scene**1.2).astype(np.float32)


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
    top = np.float32((1 << 8 * dtype.itemsize) - 1)
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
