"""Binary symbols predicted by several contexts at once, in integers.

Each context keeps counts of the zeros and ones that followed it; their logits are added up with
trained weights and name a row of `logistic_tables`. All steps take arrays: a batch is predicted
with what was known before it, then learned from as a whole.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from semvc.entropy.coder import SymbolCoder
from semvc.entropy.tables import (
    LOGIT_ROWS,
    Int32,
    Int64,
    Ints,
    check_ints,
    logistic_tables,
    stretch_table,
)

WEIGHT_BITS = 12
_FINE_BITS = 8  # weights are kept in 1/2**20 and used in 1/2**12
_RATE_BITS = 11
_BATCH = 32
_LARGEST = 8 << (WEIGHT_BITS + _FINE_BITS)
_HALF = LOGIT_ROWS // 2


class Guess(NamedTuple):
    """A predicted batch of n symbols: `rows` [n] of `logistic_tables`, and how they came about."""

    places: Int64
    logits: Int32
    rows: Int64
    select: Int64


class BitMixer:
    """Adaptive counts of K families of contexts, and the weights that mix them.

    `starts` holds K count arrays [N_k, 2], each count 0..65535: what training saw, already scaled
    to the strength it shall have. `weights` is integer [S, K] in 1/4096: row s mixes symbols whose
    selector is s. Both learn from each batch: a context that holds more than `memory` observations
    (2..65535) is halved, and weights follow the slope of the code length.
    """

    def __init__(self, starts: Sequence[Ints], weights: Ints, *, memory: int = 1023) -> None:
        if not 2 <= memory <= 65535:
            raise ValueError(f"memory must be in 2..65535, not {memory}")
        counts = [check_ints(start, "start counts").astype(np.int32) for start in starts]
        self._weights: Int64 = check_ints(weights, "weights").astype(np.int64) << _FINE_BITS
        if self._weights.ndim != 2 or self._weights.shape[1] != len(counts):
            raise ValueError(f"weights must be [S, {len(counts)}]")
        # All families in one array, zeros and ones side by side, so that a wave is one lookup.
        self._counts: Int32 = np.concatenate(counts).reshape(-1)
        ends = np.cumsum([len(count) for count in counts])
        self._first: Int64 = (ends - [len(count) for count in counts])[:, None]
        self._memory = memory

    def code(self, coder: SymbolCoder, bits: Ints | None, contexts: Int64, select: Int64) -> Int32:
        """Code a batch of n symbols and learn from it; returns int32 [n].

        `contexts` int64 [K, n] holds a context of each family, `select` [n] picks the weights.
        """
        guess = self.predict(contexts, select)
        result = coder.code(bits, len(select), logistic_tables(), guess.rows)
        self.learn(guess, result)
        return result

    def predict(self, contexts: Int64, select: Int64) -> Guess:
        """What `code` would code a batch with; see there."""
        places = (contexts + self._first) * 2
        logits = self.logits(places)
        mixed = ((self._weights >> _FINE_BITS)[select].T * logits).sum(axis=0)
        rows = np.clip(mixed >> WEIGHT_BITS, -_HALF, _HALF - 1) + _HALF
        return Guess(places, logits, rows, select)

    def learn(self, guess: Guess, bits: Ints) -> None:
        """Learn from the `bits` [n] of a predicted batch, however they were coded."""
        self._learn_weights(guess.logits, bits, guess.rows, guess.select)
        self.learn_counts(guess.places, bits)

    def state(self) -> tuple[Int32, Int64]:
        """All families' counts [N, 2] and the weights [S, K] in 1/4096, as they are now."""
        return self._counts.reshape(-1, 2).copy(), self._weights >> _FINE_BITS

    def logits(self, places: Int64) -> Int32:
        """Predictions int32 [K, n] in 1/256 nat, for contexts at `places` of the counts."""
        zeros, ones = self._counts[places], self._counts[places + 1]
        # (n1 + 1/4) / (n0 + n1 + 1/2) in 16 bits; counts are below 2**16, so int64 is ample.
        share = ((ones.astype(np.int64) * 4 + 1) << 15) // (2 * (zeros + ones) + 1)
        return stretch_table()[share]

    def learn_counts(self, places: Int64, bits: Ints) -> None:
        """Count a batch of `bits` [n]; the order in a batch does not matter."""
        np.add.at(self._counts, (places + bits).reshape(-1), np.int32(1))
        places = places.reshape(-1)
        full = places[self._counts[places] + self._counts[places + 1] > self._memory]
        while len(full):
            for side in (full, full + 1):  # a place that is named twice is halved once
                self._counts[side] = (self._counts[side] + 1) >> 1
            full = full[self._counts[full] + self._counts[full + 1] > self._memory]

    def _learn_weights(self, logits: Int32, bits: Ints, rows: Int64, select: Int64) -> None:
        """Move each row of weights against the mean error of its symbols.

        Rows with fewer than `_BATCH` symbols move in proportion to their number. The error is
        below 2**16, a logit below 2**12, a batch below 2**28: the sums fit int64.
        """
        error = (bits.astype(np.int64) << 16) - shares()[rows]
        slope = np.zeros_like(self._weights)
        cells = select * slope.shape[1] + np.arange(slope.shape[1])[:, None]
        np.add.at(slope.reshape(-1), cells.reshape(-1), (error * logits).reshape(-1))
        sizes = np.maximum(np.bincount(select, minlength=len(slope)), _BATCH)[:, None]
        self._weights += slope * _BATCH // sizes >> _RATE_BITS
        np.clip(self._weights, -_LARGEST, _LARGEST, out=self._weights)


@functools.cache
def shares() -> Int64:
    """Probability of symbol 1 in each row of `logistic_tables`, in 1/2**16, rounded down."""
    return logistic_tables().freqs[:, 1].astype(np.int64) >> 8
