"""Procedural walking people, drawn so that a model can learn what a skeleton means."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

# a standing figure, 17 COCO keypoints as (x, y): x in body heights from the middle, y from the top
_STANDING = np.array(
    [
        (0.0, 0.08), (0.02, 0.06), (-0.02, 0.06), (0.05, 0.08), (-0.05, 0.08),
        (0.11, 0.20), (-0.11, 0.20), (0.14, 0.36), (-0.14, 0.36), (0.15, 0.50), (-0.15, 0.50),
        (0.07, 0.52), (-0.07, 0.52), (0.07, 0.74), (-0.07, 0.74), (0.07, 0.96), (-0.07, 0.96),
    ],
    np.float32,
)  # fmt: skip
# limbs to draw: the two keypoints, thickness in body heights, colour (skin, shirt, trousers)
_PARTS = (
    (12, 14, 0.05, 2), (14, 16, 0.04, 2), (11, 13, 0.05, 2), (13, 15, 0.04, 2), (11, 12, 0.06, 2),
    (6, 8, 0.035, 1), (8, 10, 0.03, 0), (5, 6, 0.05, 1), (5, 11, 0.07, 1), (6, 12, 0.07, 1),
    (5, 12, 0.07, 1), (6, 11, 0.07, 1), (5, 7, 0.035, 1), (7, 9, 0.03, 0), (0, 0, 0.075, 0),
)  # fmt: skip


def walk(random: np.random.Generator, frames: int) -> Float32:
    """Return float32 [frames, 17, 2]: a person who walks and waves, as fractions of the frame."""
    height, aspect = random.uniform(0.5, 1.1), random.uniform(0.5, 0.8)
    x, speed = random.uniform(0.2, 0.8), random.normal(0, 0.006)
    top = random.uniform(-0.1, max(0.0, 1 - height))
    pace, phase, lift = random.uniform(0.1, 0.5), random.uniform(0, 6.3), random.uniform(0, 0.3)
    out = []
    for t in range(frames):
        points = _STANDING.copy()
        swing = np.sin(phase + pace * t)
        for joint, share, sign in ((13, 0.06, 1), (15, 0.12, 1), (14, 0.06, -1), (16, 0.12, -1)):
            points[joint, 0] += share * swing * sign
        for joint, share, sign in ((7, 0.04, -1), (9, 0.10, -1), (8, 0.04, 1), (10, 0.10, 1)):
            points[joint, 0] += share * swing * sign
        points[(7, 9), 1] -= (
            np.array([0.4, 1.0], np.float32) * lift * (1 + np.sin(2 * pace * t)) / 2
        )
        size = np.array([height * aspect, height], np.float32)
        out.append(points * size + np.array([x + speed * t, top], np.float32))
    return np.stack(out).astype(np.float32)


def draw(frames: UInt8, random: np.random.Generator) -> tuple[UInt8, Float32]:
    """Draw one or two people on a copy of uint8 [T, H, W, 3]; return it and their points.

    The points are float32 [T, P, 17, 2], as fractions of the frame.
    """
    out = frames.copy()
    count, height, width = frames.shape[:3]
    people = np.stack([walk(random, count) for _ in range(int(random.integers(1, 3)))], 1)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    for p in range(people.shape[1]):
        colours = random.uniform(20, 235, (3, 3)).astype(np.float32)
        stripe = random.uniform(0.05, 0.5)
        for t in range(count):
            points = people[t, p] * np.array([width, height], np.float32)
            scale = float(points[15, 1] - points[0, 1]) / 0.88
            for a, b, thick, kind in _PARTS:
                reach = max(thick * scale, 1.0)
                (ax, ay), (bx, by) = points[a], points[b]
                low = np.maximum(np.floor(np.minimum(points[a], points[b]) - reach - 2), 0).astype(
                    int
                )
                high = np.ceil(np.maximum(points[a], points[b]) + reach + 2).astype(int)
                where = (slice(low[1], max(high[1], 0)), slice(low[0], max(high[0], 0)))
                px, py = x[where] - ax, y[where] - ay
                dx, dy = bx - ax, by - ay
                along = np.clip((px * dx + py * dy) / max(dx * dx + dy * dy, 1e-6), 0, 1)
                distance = np.hypot(px - along * dx, py - along * dy)
                cover = np.clip(reach - distance + 0.5, 0, 1)[..., None]
                shade = (
                    1 - 0.35 * (distance / reach)[..., None] + 0.08 * np.sin(stripe * py)[..., None]
                )
                colour = np.clip(colours[kind] * shade, 0, 255)
                out[t][where] = (out[t][where] * (1 - cover) + colour * cover).astype(np.uint8)
    return out, people
