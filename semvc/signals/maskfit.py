"""From masks of every sample to small maps, and back: sizes, motion, smooth enlarging.

`fit_masks` chooses for each object the coarsest maps from which its mask is still rebuilt well
enough. `rendered` is what a decoder shows. Neither is normative.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from semvc.signals.mask import (
    MAX_OBJECTS,
    MAX_PIXELS,
    REACH,
    Int16,
    MaskObject,
    MaskTrack,
)

if TYPE_CHECKING:
    from semvc.types import UInt8

Float32 = npt.NDArray[np.float32]

OVERLAP = 0.95  # intersection over union with the true mask, over all maps of an object
_SCALES = (16, 14, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1)
_LEAST = 16  # samples of a mask below which it is left out of a map
_ROUNDS = 2  # of correcting map pixels by what their enlarged mask misses


def fit_masks(ids: UInt8, *, step: int, overlap: float = OVERLAP) -> MaskTrack | None:
    """Return the masks `ids` uint8 [T, H, W] (0 background, 1..8 objects), one map every `step`.

    Each object has the largest scale whose maps, enlarged, overlap with the truth by `overlap`.
    None if there is no object.
    """
    kept = ids[::step]
    objects = []
    for number in range(1, MAX_OBJECTS + 1):
        truth = (kept == number).astype(np.uint8)
        sizes = truth.sum(axis=(1, 2), dtype=np.int64)
        truth[sizes < _LEAST] = 0
        if truth.any():
            objects.append(_fitted(truth, overlap))
    while objects and sum(part.bits.size for part in objects) > MAX_PIXELS:
        largest = max(range(len(objects)), key=lambda k: objects[k].bits.size)
        part = objects[largest]
        truth = _truth(kept, part)
        objects[largest] = _tracked(_small(truth, part.scale + 1), part.scale + 1)
    return MaskTrack(tuple(objects), step) if objects else None


def rendered(track: MaskTrack, frame: int, size: tuple[int, int]) -> UInt8:
    """Masks of all objects in one frame, uint8 {0, 1} [P, height, width] of `size` (height, width).

    Between two maps an object moves evenly along its motion, and its shape changes from one to the
    other. An object that is missing in the next map stays as it is.
    """
    masks = np.zeros((len(track.objects), *size), np.uint8)
    for k, part in enumerate(track.objects):
        t = min(frame // track.step, len(part.bits) - 1)
        u = frame / track.step - t
        if not part.bits[t].any():
            continue
        field = _enlarged(part, t, (0.0, 0.0), size)
        if 0 < u < 1 and t + 1 < len(part.bits) and part.bits[t + 1].any():
            dy, dx = (float(v) for v in part.motion[t + 1])  # back from the next map to this one
            here = _enlarged(part, t, (u * dy, u * dx), size)
            after = _enlarged(part, t + 1, ((u - 1) * dy, (u - 1) * dx), size)
            field = here * np.float32(1 - u) + after * np.float32(u)
        masks[k] = field >= 0.5
    return masks


def overlap_of(part: MaskObject, truth: UInt8) -> float:
    """Intersection over union of an object's enlarged maps with `truth` uint8 {0, 1} [T, H, W]."""
    same = either = 0
    for t, mask in enumerate(truth):
        found = _enlarged(part, t, (0.0, 0.0), mask.shape) >= 0.5
        same += int((found & (mask > 0)).sum())
        either += int((found | (mask > 0)).sum())
    return same / max(either, 1)


def _fitted(truth: UInt8, overlap: float) -> MaskObject:
    part = None
    for scale in _SCALES:
        small = _small(truth, scale)
        if not small.any():
            continue
        part = _tracked(_corrected(small, truth, scale), scale)
        if overlap_of(part, truth) >= overlap:
            break
    if part is None:
        raise ValueError("there is nothing to fit")  # scale 1 keeps every sample
    return part


def _truth(kept: UInt8, part: MaskObject) -> UInt8:
    """The object of `kept` [T, H, W] that `part` stands for: the one it covers most."""
    rows = slice(part.top * part.scale, (part.top + part.bits.shape[1]) * part.scale)
    columns = slice(part.left * part.scale, (part.left + part.bits.shape[2]) * part.scale)
    inside = kept[:, rows, columns]
    big = part.bits.repeat(part.scale, 1).repeat(part.scale, 2)[:, : inside.shape[1]]
    votes = np.bincount(inside[big[:, :, : inside.shape[2]] > 0], minlength=MAX_OBJECTS + 1)
    found: UInt8 = (kept == 1 + int(votes[1:].argmax())).astype(np.uint8)
    return found


def _small(truth: UInt8, scale: int) -> UInt8:
    """Maps uint8 [T, h, w]: set where at least half of a cell is."""
    return (_cells(truth.astype(np.float32), scale) >= 0.5).astype(np.uint8)


def _cells(values: Float32, scale: int) -> Float32:
    """Means of cells of `scale` x `scale` samples; at the edges, of what there is of a cell."""
    height, width = values.shape[1:]
    rows = np.add.reduceat(values, np.arange(0, height, scale), axis=1)
    sums = np.add.reduceat(rows, np.arange(0, width, scale), axis=2)
    high = np.minimum(scale, height - np.arange(0, height, scale))
    wide = np.minimum(scale, width - np.arange(0, width, scale))
    result: Float32 = (sums / (high[:, None] * wide)).astype(np.float32)
    return result


def _corrected(small: UInt8, truth: UInt8, scale: int) -> UInt8:
    """Maps [T, h, w] with pixels changed where their enlarged mask misses most of a cell."""
    best = small
    for _ in range(_ROUNDS):
        again = np.stack(
            [_spread(bits, scale, mask.shape) for bits, mask in zip(best, truth, strict=True)]
        )
        missing = _cells(truth.astype(np.float32) - (again >= 0.5), scale)
        changed = best.copy()
        changed[missing > 0.5] = 1
        changed[missing < -0.5] = 0
        if (changed == best).all() or not changed.any():
            break
        best = changed
    return best


def _tracked(maps: UInt8, scale: int) -> MaskObject:
    """An object of maps [T, h, w] over the whole picture, cut to its box, its motion found."""
    union = maps.max(axis=0)
    rows, columns = np.flatnonzero(union.any(axis=1)), np.flatnonzero(union.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    bits = np.ascontiguousarray(maps[:, top : rows[-1] + 1, left : columns[-1] + 1])
    motion = np.zeros((len(bits), 2), np.int16)
    for t in range(1, len(bits)):
        if bits[t].any() and bits[t - 1].any():
            motion[t] = _motion(bits[t], bits[t - 1], motion[t - 1])
    return MaskObject(bits, motion, top, left, scale)


def _motion(now: UInt8, before: UInt8, guess: Int16) -> tuple[int, int]:
    """The step to the map before that leaves the fewest pixels different.

    Looked for around the shift of the centres, the step before, and none; short ones win.
    """
    shift = [
        round(float(b.mean() - a.mean()))
        for a, b in zip(now.nonzero(), before.nonzero(), strict=True)
    ]
    starts = {(0, 0), (int(guess[0]), int(guess[1])), (shift[0], shift[1])}
    tried = {
        (y + dy, x + dx)
        for y, x in starts
        for dy in (-2, -1, 0, 1, 2)
        for dx in (-2, -1, 0, 1, 2)
        if max(abs(y + dy), abs(x + dx)) <= REACH
    }
    tried.add((0, 0))
    padded = np.pad(before, REACH)
    height, width = now.shape

    def cost(step: tuple[int, int]) -> tuple[int, int]:
        y, x = step[0] + REACH, step[1] + REACH
        apart = int((now != padded[y : y + height, x : x + width]).sum())
        return apart, (step[0] - int(guess[0])) ** 2 + (step[1] - int(guess[1])) ** 2

    return min(sorted(tried), key=cost)


def _enlarged(
    part: MaskObject, t: int, shift: tuple[float, float], size: tuple[int, ...]
) -> Float32:
    """Map t of an object over the picture, float32 [height, width] in [0, 1].

    What lies at a place is what the map has `shift` map pixels (down, right) from there.
    """
    height, width = size
    whole = np.zeros((-(-height // part.scale), -(-width // part.scale)), np.uint8)
    rows, columns = part.bits.shape[1:]
    whole[part.top : part.top + rows, part.left : part.left + columns] = part.bits[t]
    return _spread(whole, part.scale, size, shift)


def _spread(
    bits: UInt8, scale: int, size: tuple[int, ...], shift: tuple[float, float] = (0.0, 0.0)
) -> Float32:
    """A binary map, blurred by 1 2 1 and enlarged linearly; edges are repeated."""
    if scale == 1 and shift == (0.0, 0.0):
        return bits.astype(np.float32)
    field = bits.astype(np.float32)
    for axis in (0, 1):
        around = np.pad(field, [(1, 1) if axis == k else (0, 0) for k in (0, 1)], mode="edge")
        n = field.shape[axis]
        low, mid, high = (np.take(around, np.arange(n) + k, axis) for k in (0, 1, 2))
        field = (low + 2 * mid + high) * np.float32(0.25)
    for axis in (0, 1):
        n = field.shape[axis]
        place = np.clip((np.arange(size[axis]) + 0.5) / scale - 0.5 + shift[axis], 0, n - 1)
        first = np.minimum(place.astype(np.int64), max(0, n - 2))
        after = np.minimum(first + 1, n - 1)
        share = (place - first).astype(np.float32)
        share = share[:, None] if axis == 0 else share[None]
        field = np.take(field, first, axis) * (1 - share) + np.take(field, after, axis) * share
    return field
