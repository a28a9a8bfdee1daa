"""From decoded signals to the maps that a generator is conditioned on: numpy, no torch.

Temporal forward filling, the size rules of the base layer, and the rendering of sketches and
skeletons. Training and decoding share these functions, so that a model sees what it was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from semvc.media import color
from semvc.nets.propagation import Propagator, anchors_of

UInt8 = npt.NDArray[np.uint8]

FACTORS = (1, 2, 4, 8)  # spatial and temporal factors of a base layer

# COCO keypoints: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles (left first)
LIMBS = (
    (0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10),
    (5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16), (0, 5), (0, 6),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SegmentConditions:
    """What a segment is made from.

    base: uint8 [K, h, w, 3] RGB, received frames, covering the picture at spatial factor `factor`;
        one arrives every `step` frames. crf: the base layer's quantiser setting, 1 to 70.
    sketch: uint8 [S, h, w] in {0, 1} with one map every `sketch_step` frames, or None.
    points: float32 [T, P, 17, 2] as fractions of the frame and visible uint8 [T, P, 17], or None.
    """

    width: int
    height: int
    frames: int
    base: UInt8
    factor: int
    step: int
    crf: float
    sketch: UInt8 | None = None
    sketch_step: int = 1
    points: npt.NDArray[np.float32] | None = None
    visible: UInt8 | None = None


def base_size(width: int, height: int, factor: int) -> tuple[int, int]:
    """Return the base layer's (width, height): even, and covering the frame at `factor`.

    `factor` is 1, 2, 4 or 8. The frame is first padded to `factor` times this, so that the two
    sample grids stay aligned.
    """
    return 2 * -(-width // (2 * factor)), 2 * -(-height // (2 * factor))


def factor_of(size: tuple[int, int], base: tuple[int, int]) -> int | None:
    """Return the factor whose `base_size` of a (width, height) picture is `base`, or None.

    The four sizes differ if a side has more than 8 samples, and streams hold none below 16; of
    several factors that give one size, the smallest is meant.
    """
    return next((f for f in FACTORS if base_size(*size, f) == base), None)


def enlarged(frame: UInt8, given: SegmentConditions) -> UInt8:
    """Return a base-layer frame [h, w, 3] at the picture's size, uint8 [height, width, 3]."""
    h, w = frame.shape[:2]
    big = color.resize(frame[None], h * given.factor, w * given.factor)
    return big[0, : given.height, : given.width]


class Upsampler:
    """Received frames of one segment at the picture's size, their detail propagated before.

    The last three are kept, for all who ask for them.
    """

    def __init__(self, given: SegmentConditions) -> None:
        self._given = given
        self._propagator = Propagator(given.base.shape[2], given.base.shape[1])
        self._kept: dict[int, UInt8] = {}

    def __call__(self, index: int) -> UInt8:
        """Return received frame `index`, uint8 [height, width, 3], not to be written to."""
        frame = self._kept.pop(index, None)
        frame = self._made(index) if frame is None else frame
        self._kept[index] = frame
        for old in list(self._kept)[:-3]:
            del self._kept[old]
        return frame

    def _made(self, index: int) -> UInt8:
        base = self._given.base
        anchors = [base[k] for k in anchors_of(index, len(base))]
        return enlarged(self._propagator(base[index], anchors), self._given)


def arrivals(frames: int, step: int) -> int:
    """Return how many base-layer frames a segment of `frames` has when every `step`-th is sent."""
    return -(-frames // step)


def forward_fill(frames: int, step: int) -> npt.NDArray[np.intp]:
    """Return int [frames, 3]: indices of the previous, held and next received frame.

    Temporal forward filling (DiSCo): a frame holds the last received one until the next arrives.
    """
    held = np.arange(frames) // step
    last = arrivals(frames, step) - 1
    return np.stack([np.maximum(held - 1, 0), held, np.minimum(held + 1, last)], 1)


def render_map(bits: UInt8, height: int, width: int) -> UInt8:
    """Return uint8 [height, width] in {0, 255}: a binary map [h, w] resized to the grid.

    A cell is set when the nearest element is; when the grid is coarser, when any element in it is.
    """
    h, w = bits.shape
    if height < h or width < w:
        rows = np.maximum.reduceat(bits, np.arange(height) * h // height, axis=0)
        bits = np.maximum.reduceat(rows, np.arange(width) * w // width, axis=1)
        h, w = bits.shape
    out: UInt8 = bits[np.arange(height)[:, None] * h // height, np.arange(width) * w // width]
    return out * np.uint8(255)


def render_skeleton(
    points: npt.NDArray[np.float32], visible: UInt8, shape: tuple[int, int]
) -> UInt8:
    """Return uint8 [h, w]: limbs of people as lines two cells wide, softened at the edge.

    points: float32 [P, 17, 2], (x, y) as fractions of the frame; visible: uint8 [P, 17], 1 = seen.
    """
    height, width = shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + np.float32(0.5)
    out = np.zeros(shape, np.float32)
    for person, seen in zip(points * np.array([width, height], np.float32), visible, strict=True):
        for a, b in LIMBS:
            if not (seen[a] and seen[b]):
                continue
            (ax, ay), (bx, by) = person[a], person[b]
            dx, dy = bx - ax, by - ay
            along = ((x - ax) * dx + (y - ay) * dy) / max(dx * dx + dy * dy, np.float32(1e-6))
            along = np.clip(along, 0, 1)
            distance = np.hypot(x - ax - along * dx, y - ay - along * dy)
            np.maximum(out, np.clip(np.float32(1.5) - distance, 0, 1), out=out)
    return (out * 255 + 0.5).astype(np.uint8)
