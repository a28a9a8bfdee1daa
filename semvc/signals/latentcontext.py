"""What latents are predicted from: their neighbours in space, in other groups and in time.

All arrays are integers. The activity of a block is 0..3: the sum over its channels of the
magnitudes, each counted as 2 at most, and cut to 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from semvc.entropy.tables import Int64, Ints
from semvc.signals.latentprior import (
    CLASSES,
    HISTORY_STEP,
    INDICES,
    LADDER,
    LEVELS,
    LatentShape,
)

if TYPE_CHECKING:
    from semvc.types import UInt8

Int8 = npt.NDArray[np.int8]
Offsets = Sequence[tuple[int, int]]

NEAR: Offsets = ((-1, 0), (0, -1), (0, 1), (1, 0))
AROUND: Offsets = (*NEAR, (-1, -1), (-1, 1), (1, -1), (1, 1))
MOST_ACTIVE = 3
_CLASSES = np.array([0, 1, 2, 3, 3, 4], np.int64)  # of a sum of activities; more is 4, too
_DENSITIES = 8
_POWERS = 1 << np.arange(CLASSES - 1)


@dataclass(frozen=True, slots=True)
class Step:
    """One batch of blocks: those of `group` on the places of a board, in a pass.

    `lead` numbers (inter, half, group); `ys` and `xs` int64 [n] are the places, row by row.
    """

    lead: int
    inter: int
    half: int
    group: int
    ys: Int64
    xs: Int64


@dataclass(frozen=True, slots=True)
class Past:
    """The two frames before: latents int8 [C, h, w], activities int64 [G, h, w], the history.

    The history, uint8 [C, h, w], is the greater of 16 times the last magnitude (cut to 15) and
    three quarters of what it was before.
    """

    one: Int8
    two: Int8
    active_one: Int64
    active_two: Int64
    history: UInt8

    @classmethod
    def empty(cls, shape: LatentShape, height: int, width: int) -> Past:
        """Before the first frame: zeros."""
        latent = np.zeros((shape.latents, height, width), np.int8)
        active = np.zeros((shape.groups, height, width), np.int64)
        return cls(latent, latent, active, active, latent.astype(np.uint8))

    def after(self, frame: Frame) -> Past:
        """The past of the next frame."""
        sizes = np.minimum(np.abs(frame.now.astype(np.int16)), 15) * HISTORY_STEP
        faded = self.history.astype(np.int16) * 3 >> 2
        history = np.maximum(sizes, faded).astype(np.uint8)
        return Past(frame.now, self.one, frame.active, self.active_one, history)


class Frame:
    """The frame being coded: `now` int8 [C, h, w] as far as it is known, zeros elsewhere."""

    def __init__(self, past: Past, now: Int8) -> None:
        self.past, self.now = past, now
        groups, height, width = past.active_one.shape
        self.active: Int64 = np.zeros((groups, height, width), np.int64)
        self._total: Int64 = np.zeros((height, width), np.int64)  # activity of all groups
        self.energy: Int64 = np.zeros((height, width), np.int64)  # magnitudes of all channels
        self._coded = self._found = 0  # blocks so far, and how many are not zero
        self._around_one = _classes(summed(past.active_one, AROUND))
        self._others_one = np.minimum(3, past.active_one.sum(axis=0) - past.active_one)
        by_group = past.history.reshape(groups, -1, height, width)
        self._history = (by_group.max(axis=1) >> 5).astype(np.int64)
        counts = np.count_nonzero(past.active_one, axis=(1, 2)).tolist()
        self._density_one = [_density(count, height * width) for count in counts]

    def block_contexts(self, step: Step, level: Int64) -> tuple[Int64, Int64]:
        """Contexts int64 [6, n] of a step's blocks, and the rows of weights [n].

        `level` [n] is what the network says of the blocks, 0..63.
        """
        g, at = step.group, (step.ys, step.xs)
        one, two = self.past.active_one[g][at], self.past.active_two[g][at]
        own = np.minimum(3, summed(self.active[g], NEAR)[at])
        here = np.minimum(3, self._total[at])
        near = _classes(summed(self._total, NEAR)[at])
        lead = np.full(len(one), step.lead, np.int64)
        contexts = (
            ((lead * 4 + one) * 5 + self._around_one[g][at]) * 4 + own,
            ((lead * 4 + here) * 5 + near) * 2 + (one > 0),
            ((lead * 4 + one) * 4 + two) * 4 + self._others_one[g][at],
            lead * LEVELS + level,
            (lead * 8 + self._density_one[g]) * 8 + _density(self._found, self._coded),
            (lead * 8 + self._history[g][at]) * 5 + near,
        )
        return np.stack(contexts), lead * 3 + np.minimum(2, near)

    def note(self, step: Step, found: Int64, values: Int64) -> None:
        """Take in a step's result: `values` int64 [m, S] of the blocks `found` [m], never zero."""
        self._coded += len(step.ys)
        self._found += len(found)
        if not len(found):
            return
        size = values.shape[1]
        ys, xs = step.ys[found], step.xs[found]
        self.now[step.group * size : (step.group + 1) * size, ys, xs] = values.T
        active = np.minimum(MOST_ACTIVE, np.minimum(2, np.abs(values)).sum(axis=1))
        self.active[step.group, ys, xs] = active
        self._total[ys, xs] += active
        self.energy[ys, xs] += np.abs(values).sum(axis=1)


@dataclass(frozen=True, slots=True)
class Elements:
    """What surrounds the elements of n blocks that are not zero; int64 [n, S] each.

    `before` is the same element one frame earlier; `near` and `near_size` add up the four
    neighbours of this frame, with their signs and without. `contexts` is int64 [6, n * S], `select`
    [n * S] the rows of weights. `ladder` are the places [4, n * S] where the contexts of a
    magnitude's first bit are; those of bit l lie l times `rungs` [4] behind.
    """

    before: Int64
    near: Int64
    near_size: Int64
    contexts: Int64
    select: Int64
    ladder: Int64
    rungs: Int64

    @classmethod
    def of(
        cls, frame: Frame, step: Step, shape: LatentShape, found: Int64, index: Int64 | None
    ) -> Elements:
        """Look around the blocks `found` of a step; `index` [C, h, w] is the network's word.

        Without a network it is 0 everywhere.
        """
        size = shape.group
        channels = slice(step.group * size, (step.group + 1) * size)
        ys, xs = step.ys[found], step.xs[found]

        def at(array: Ints) -> Int64:
            return array[channels][:, ys, xs].T.astype(np.int64)

        before, older = at(frame.past.one), at(frame.past.two)
        around = _neighbours(frame.now[channels], ys, xs)
        near, near_size = around.sum(axis=0), np.abs(around).sum(axis=0)
        was = np.abs(_neighbours(frame.past.one[channels], ys, xs)).sum(axis=0)
        last, few = np.minimum(2, np.abs(before)), np.minimum(3, near_size)
        said = np.zeros_like(before) if index is None else at(index)
        here = _lengths(frame.energy[ys, xs])[:, None]
        beside = _lengths(summed(frame.energy, NEAR)[ys, xs])[:, None]
        channel = np.arange(channels.start, channels.stop)
        inter, pair = step.inter, step.inter * 2 + step.half
        own = inter * shape.latents + channel
        contexts = _table(
            before.shape,
            (pair * shape.latents + channel) * 3 + last,
            ((pair * 4 + few) * 3 + last) * 3 + np.minimum(2, np.abs(older)),
            pair * INDICES + said,
            (pair * 8 + (at(frame.past.history) >> 5)) * 4 + np.minimum(3, was),
            own * CLASSES + here,
            own * CLASSES + beside,
        )
        sizes = (1, CLASSES * 4, INDICES, CLASSES * CLASSES)
        ladder = _table(
            before.shape,
            own * LADDER,
            pair * LADDER * sizes[1]
            + _lengths(near_size) * 4
            + np.minimum(3, _lengths(np.abs(before))),
            pair * LADDER * sizes[2] + said,
            inter * LADDER * sizes[3] + here * CLASSES + beside,
        )
        select = (pair * 3 + last).reshape(-1)
        return cls(before, near, near_size, contexts, select, ladder, np.array(sizes))


def parity(height: int, width: int) -> Int64:
    """0 and 1 on a checkerboard int64 [h, w], 0 in the corner."""
    board: Int64 = (np.arange(height)[:, None] + np.arange(width)) % 2
    return board


def summed(values: Int64, offsets: Offsets) -> Int64:
    """Sum of the neighbours at `offsets` of each place of [..., h, w]; 0 outside."""
    height, width = values.shape[-2:]
    padded = np.zeros((*values.shape[:-2], height + 2, width + 2), np.int64)
    padded[..., 1:-1, 1:-1] = values
    found: Int64 = np.zeros(values.shape, np.int64)
    for y, x in offsets:
        found += padded[..., 1 + y : 1 + y + height, 1 + x : 1 + x + width]
    return found


def _neighbours(values: Int8, ys: Int64, xs: Int64) -> Int64:
    """The four neighbours of places [n] in [S, h, w], int64 [4, n, S]; 0 outside."""
    height, width = values.shape[1:]
    found = []
    for dy, dx in NEAR:
        y, x = ys + dy, xs + dx
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        found.append(values[:, y % height, x % width].T.astype(np.int64) * inside[:, None])
    return np.stack(found)


def _table(shape: tuple[int, ...], *rows: Int64) -> Int64:
    """Rows that broadcast to `shape`, each flattened: int64 [len(rows), n]."""
    table = np.empty((len(rows), *shape), np.int64)
    for line, row in zip(table, rows, strict=True):
        line[:] = row
    return table.reshape(len(rows), -1)


def _lengths(sums: Int64) -> Int64:
    """Lengths in bits of numbers that are not negative, at most 6."""
    return np.searchsorted(_POWERS, sums, side="right")


def _classes(sums: Int64) -> Int64:
    return _CLASSES[np.minimum(5, sums)]


def _density(count: int, places: int) -> int:
    """Share of blocks that are not zero, by powers of two, 0..7."""
    return min(_DENSITIES - 1, (255 * count // max(1, places)).bit_length())
