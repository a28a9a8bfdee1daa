"""Chooses how small a base layer is: a few frames are coded at both sizes, and gradients compared.

At equal bytes, smooth pictures look better coded at half size from a rate on at which busy ones
still do not. What tells the two apart is how well gradients of the finest scale survive.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from semvc.media import av1, color
from semvc.nets import conditioning
from semvc.nets.grain import luma_of

if TYPE_CHECKING:
    from semvc.types import UInt8

Float32 = npt.NDArray[np.float32]

_FRAMES = 32  # that are coded, from a clip's middle
_COMPARED = 4  # of them
_QUICK_PRESET = 6
_STEADY = 170.0  # squared gradients that count as noise (Xue et al., 2014)
_AROUND = 2.0  # crf steps between the place where bytes should be equal and the two trials
_RATIO = 0.95  # of distances; wherever it was below, half size was measured to be better


def shrunk(frames: UInt8, factor: int) -> UInt8:
    """Return uint8 [T, h, w, 3]: frames [T, H, W, 3] as base layers of a spatial factor have them.

    The size is `conditioning.base_size`'s; `factor` is one of `conditioning.FACTORS`.
    """
    width, height = conditioning.base_size(frames.shape[2], frames.shape[1], factor)
    if frames.shape[1:3] == (height, width):
        return frames
    small = np.empty((len(frames), height, width, 3), np.uint8)
    for index, frame in enumerate(frames):
        padded = color.pad_to(frame, height * factor, width * factor)
        small[index] = color.resize(padded[None], height, width)[0]
    return small


def is_half_better(
    frames: UInt8, factor: int, crf: float, *, saved: float, fps: Fraction | int, preset: int = 0
) -> bool:
    """Whether base layers of twice a spatial factor show frames better, at equal bytes.

    `frames` is RGB uint8 [T, H, W, 3]; some of them are coded at `factor` and `crf`, and around
    `saved` steps of crf lower at twice that factor, where bytes should be about the same. The
    encoder's preset is `preset` or a quicker one. The same input gives the same answer on one
    machine.
    """
    preset = max(preset, _QUICK_PRESET)
    start = max(0, (len(frames) - _FRAMES) // 2)
    frames = frames[start : start + _FRAMES]
    size, distance = _trial(frames, factor, crf, fps, preset)
    (few, far), (many, near) = sorted(
        _trial(frames, 2 * factor, crf - saved + offset, fps, preset)
        for offset in (_AROUND, -_AROUND)
    )
    if not distance or not far or not near or few == many:
        return False
    # on a straight line between both, as logarithms; not far beyond them
    place = float(np.clip(np.log(size / few) / np.log(many / few), -0.5, 1.5))
    return bool(far * (near / far) ** place < _RATIO * distance)


def gradient_distance(source: Float32, shown: Float32) -> float:
    """Return 1 less the mean gradient magnitude similarity of luma [H, W]: 0 (same) to 1.

    After Xue, Zhang, Mou and Bovik, "Gradient Magnitude Similarity Deviation" (IEEE TIP 2014),
    section II, with the mean for pooling and without halving the picture first.
    """
    one, other = _gradients(source), _gradients(shown)
    product = np.sqrt(one * other)
    return 1 - float(np.mean((2 * product + _STEADY) / (one + other + _STEADY)))


def _gradients(luma: Float32) -> Float32:
    """Squared gradients by Prewitt's operator."""
    across = np.array([[1, 0, -1]] * 3, np.float32) / np.float32(3)
    x, y = cv2.filter2D(luma, -1, across), cv2.filter2D(luma, -1, across.T)
    squared: Float32 = (x * x + y * y).astype(np.float32)
    return squared


def _trial(
    frames: UInt8, factor: int, crf: float, fps: Fraction | int, preset: int
) -> tuple[int, float]:
    """Bytes of a base layer, and the mean gradient distance of a few of its frames."""
    small = shrunk(frames, factor)
    count, height, width = small.shape[:3]
    header, obus = av1.encode_segment(small, crf=crf, preset=preset, fps=fps)
    planes = av1.decode_segment(header, obus, (width, height), count, isolate=False)
    places = sorted({count * (2 * k + 1) // (2 * _COMPARED) for k in range(_COMPARED)})
    decoded = color.yuv420_to_rgb(tuple(p[places] for p in planes))  # type: ignore[arg-type]
    rows, columns = height * factor, width * factor
    distances = []
    for index, picture in zip(places, decoded, strict=True):
        shown = color.resize(picture[None], rows, columns)[0]
        shown = shown[: frames.shape[1], : frames.shape[2]]
        pair = (luma_of(f).astype(np.float32) for f in (frames[index], shown))
        distances.append(gradient_distance(*pair))
    return len(obus), float(np.mean(distances))
