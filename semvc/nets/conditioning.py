"""From decoded signals to the maps that a generator is conditioned on: numpy, no torch.

Temporal forward filling, the size rules of the base layer, and the rendering of sketches and
skeletons. Training and decoding share these functions, so that a model sees what it was trained on.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]

# COCO keypoints: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles (left first)
LIMBS = (
    (0, 1), (0, 2), (1, 3), (2, 4), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10),
    (5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16), (0, 5), (0, 6),
)  # fmt: skip


def base_size(width: int, height: int, factor: int) -> tuple[int, int]:
    """Return the base layer's (width, height): even, and covering the frame at `factor` (1, 2, 4, 8).

    The frame is first padded to `factor` times this, so that the two sample grids stay aligned.
    """
    return 2 * -(-width // (2 * factor)), 2 * -(-height // (2 * factor))


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


def render_skeleton(points: npt.NDArray[np.float32], visible: UInt8, shape: tuple[int, int]) -> UInt8:
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
