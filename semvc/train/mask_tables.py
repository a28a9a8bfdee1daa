"""`python -m semvc.train.mask_tables`: the start logits of the mask coder, from procedural masks.

Prints `LOGITS` for `semvc/signals/mask.py`. The masks are walking figures and soft and hard
shapes that move, turn, grow and bend; nothing is read from files.
"""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt

from semvc.entropy.tables import LOGIT_UNIT
from semvc.signals.mask import BEFORE, FAMILIES, NEAR, MaskObject
from semvc.signals.maskfit import fit_masks
from semvc.train import figures

UInt8 = npt.NDArray[np.uint8]
Float64 = npt.NDArray[np.float64]

_PAD = 20
_RIDGE = 1e-3  # keeps weights of rare patterns small
_SAMPLES_PER_MAP = 6  # figures walk this many frames from map to map


def procedural(seed: int, maps: int, size: tuple[int, int]) -> UInt8:
    """Masks uint8 {0, 1} [maps, height, width] of one moving object; its kind is seed mod 3."""
    random = np.random.default_rng(seed)
    return (_blob, _block, _figure)[seed % 3](random, maps, size)


def _blob(random: np.random.Generator, maps: int, size: tuple[int, int]) -> UInt8:
    height, width = size
    y, x = np.mgrid[0:height, 0:width] + 0.5
    radius = random.uniform(0.06, 0.3) * height
    cx, cy = random.uniform(0.2, 0.8, 2) * (width, height)
    vx, vy = random.normal(0, 0.017 * height, 2)
    lobes = int(random.integers(1, 6))
    high, phase = random.uniform(0, 0.25, lobes), random.uniform(0, 6.3, lobes)
    speed, count = random.normal(0, 0.3, lobes), random.integers(2, 9, lobes)
    zoom, aspect = random.normal(0, 0.02), random.uniform(0.7, 1.4)
    out = np.zeros((maps, height, width), np.uint8)
    for t in range(maps):
        dx, dy = (x - cx - vx * t) / aspect, (y - cy - vy * t) * aspect
        angle = np.arctan2(dy, dx)
        waves = high[:, None, None] * np.sin(
            count[:, None, None] * angle + (phase + speed * t)[:, None, None]
        )
        out[t] = np.hypot(dx, dy) < radius * (1 + zoom * t) * (1 + waves.sum(0))
    return out


def _block(random: np.random.Generator, maps: int, size: tuple[int, int]) -> UInt8:
    height, width = size
    y, x = np.mgrid[0:height, 0:width] + 0.5
    cx, cy = random.uniform(0.2, 0.8, 2) * (width, height)
    vx, vy = random.normal(0, 0.017 * height, 2)
    half = random.uniform(0.05, 0.25, 2) * height
    start, turn = random.uniform(0, 3.2), random.normal(0, 0.1)
    out = np.zeros((maps, height, width), np.uint8)
    for t in range(maps):
        cos, sin = np.cos(start + turn * t), np.sin(start + turn * t)
        dx, dy = x - cx - vx * t, y - cy - vy * t
        out[t] = (abs(dx * cos + dy * sin) < half[0]) & (abs(dy * cos - dx * sin) < half[1])
    return out


def _figure(random: np.random.Generator, maps: int, size: tuple[int, int]) -> UInt8:
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    points = figures.walk(random, maps * _SAMPLES_PER_MAP)[::_SAMPLES_PER_MAP]
    out = np.zeros((maps, height, width), np.uint8)
    for t, person in enumerate(points * np.array([width, height], np.float32)):
        tall = float(person[15, 1] - person[0, 1]) / 0.88
        for a, b, thick, _ in figures._PARTS:
            (ax, ay), (bx, by) = person[a], person[b]
            dx, dy = bx - ax, by - ay
            along = ((x - ax) * dx + (y - ay) * dy) / max(dx * dx + dy * dy, 1e-6)
            along = np.clip(along, 0, 1)
            out[t] |= np.hypot(x - ax - along * dx, y - ay - along * dy) < thick * tall
    return out


def samples(part: MaskObject) -> tuple[UInt8, UInt8, UInt8, npt.NDArray[np.bool_]]:
    """Of each pixel of maps that are there: its bit, what is near, what was before, if there was.

    uint8 [n], [n, 10], [n, 11] and bool [n].
    """
    height, width = part.bits.shape[1:]
    field = np.pad(part.bits, ((0, 0), (_PAD, _PAD), (_PAD, _PAD)))
    rows: list[list[UInt8]] = [[], [], []]
    follows: list[npt.NDArray[np.bool_]] = []

    def at(t: int, dy: int, dx: int) -> UInt8:
        return field[t, _PAD + dy : _PAD + dy + height, _PAD + dx : _PAD + dx + width].ravel()

    for t in np.flatnonzero(part.present).tolist():
        after = bool(t > 0 and part.present[t - 1])
        my, mx = (int(v) for v in part.motion[t])
        rows[0].append(at(t, 0, 0))
        rows[1].append(np.stack([at(t, dy, dx) for dy, dx in NEAR], 1))
        old = [at(t - 1, my + dy, mx + dx) * np.uint8(after) for dy, dx in BEFORE]
        rows[2].append(np.stack(old, 1))
        follows.append(np.full(height * width, after))
    bits, near, before = (np.concatenate(row) for row in rows)
    return bits, near, before, np.concatenate(follows)


def logistic(features: UInt8, bits: UInt8) -> Float64:
    """Constant and weights of a logistic regression (Newton's method), in nats.

    Equal rows are counted together, so that many samples cost little.
    """
    packed = np.packbits(features, axis=1)
    _, first, inverse, counts = np.unique(
        packed, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    ones = np.bincount(inverse.ravel(), bits, len(first))
    rows = np.concatenate((np.ones((len(first), 1)), features[first]), 1).astype(np.float64)
    weights = np.zeros(rows.shape[1])
    for _ in range(60):
        guess = 1 / (1 + np.exp(-np.clip(rows @ weights, -30, 30)))
        slope = rows.T @ (ones - counts * guess) - _RIDGE * len(bits) * 1e-3 * weights
        curve = (rows * (counts * guess * (1 - guess))[:, None]).T @ rows
        curve += np.eye(len(weights)) * _RIDGE * len(bits) * 1e-3
        step = np.linalg.solve(curve, slope)
        weights += np.clip(step, -2, 2)
        if abs(step).max() < 1e-6:
            break
    return weights


def main() -> None:
    """Print the trained logits; the number of sequences may be given (default 60)."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    found = []
    for seed in range(1000, 1000 + count):
        track = fit_masks(procedural(seed, 12, (240, 426)), step=1)
        if track is not None:
            found.append(samples(track.objects[0]))
    bits, near, before, follows = (np.concatenate(part) for part in zip(*found, strict=True))
    rows = []
    for a, b in FAMILIES:
        features = np.concatenate((near[follows, :a], before[follows, :b]), 1)
        rows.append(logistic(features, bits[follows]))
    rows.append(logistic(near[~follows], bits[~follows]))
    for row in rows:
        numbers = ", ".join(str(round(float(value) * LOGIT_UNIT)) for value in row)
        sys.stdout.write(f"    ({numbers}),\n")


if __name__ == "__main__":
    main()
