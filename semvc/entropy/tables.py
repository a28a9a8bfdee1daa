"""Integer frequency tables: validated, loaded from assets, adapted by an integer rule.

Every row of every table holds 24-bit integers that are at least 1 and sum to 2**24. No float can
enter: arrays of another kind raise TypeError.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from semvc.entropy import ASSETS

if TYPE_CHECKING:
    from semvc.entropy.coder import SymbolCoder

Ints = npt.NDArray[np.integer[Any]]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

PRECISION = 24
TOTAL = 1 << PRECISION
MAX_ALPHABET = 4096
LOGIT_UNIT = 256  # steps of one nat in `logistic_tables`
LOGIT_ROWS = 6144  # rows -3072 .. 3071 steps, that is -12 .. +12 nats


def check_ints(array: object, what: str) -> Ints:
    """Return `array` if it is a numpy array of integers; raise TypeError otherwise."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{what} must be a numpy array of integers, not {kind}")
    return array


@dataclass(frozen=True, slots=True, eq=False)
class TableSet:
    """Frequency tables over one alphabet: `freqs` int32 [N, A], each >= 1, rows sum to 2**24.

    Raises TypeError when `freqs` is not an integer array and ValueError when it breaks a rule;
    N >= 1 and 2 <= A <= 4096. The array is copied and made read-only.
    """

    freqs: Int32

    def __post_init__(self) -> None:
        freqs = check_ints(self.freqs, "a frequency table")
        if freqs.ndim != 2 or freqs.shape[0] < 1 or not 2 <= freqs.shape[1] <= MAX_ALPHABET:
            raise ValueError(f"tables must be [N >= 1, 2..{MAX_ALPHABET}], not {freqs.shape}")
        if freqs.min() < 1 or freqs.max() >= TOTAL:
            raise ValueError("each frequency must be in 1..2**24-1")
        if not (freqs.sum(axis=1, dtype=np.int64) == TOTAL).all():
            raise ValueError("the frequencies of each row must sum to 2**24")
        frozen = freqs.astype(np.int32)
        frozen.flags.writeable = False
        object.__setattr__(self, "freqs", frozen)

    @property
    def rows(self) -> int:
        """Number of tables."""
        return int(self.freqs.shape[0])

    @property
    def alphabet(self) -> int:
        """Number of symbols, 0 .. alphabet - 1."""
        return int(self.freqs.shape[1])


def normalize(counts: Ints) -> TableSet:
    """Turn positive counts [N, A] (row totals < 2**38) into tables, in integers only.

    Each frequency is 1 + floor(count * (2**24 - A) / total); what is left of the row goes to its
    largest count (the first of equals). Raises TypeError or ValueError.
    """
    counts = check_ints(counts, "counts").astype(np.int64)
    if counts.ndim != 2 or counts.min(initial=1) < 0:
        raise ValueError("counts must be non-negative and [N, A]")
    total = counts.sum(axis=1, keepdims=True)
    if total.min(initial=1) < 1 or total.max(initial=1) >= 1 << 38:
        raise ValueError("the counts of each row must sum to 1..2**38-1")
    freqs = 1 + counts * (TOTAL - counts.shape[1]) // total
    rows = np.arange(len(freqs))
    freqs[rows, counts.argmax(axis=1)] += TOTAL - freqs.sum(axis=1)
    return TableSet(freqs)


class AdaptiveTables:
    """Tables that start from trained ones and follow what was coded, in integers only.

    A row starts as counts that sum to about 2**16 and stand for `strength` observations
    (1..1024); each symbol adds 2**16 // strength; a row that stands for more than `memory`
    observations beyond the start is halved, rounding up. Updates are per batch and do not depend
    on the order inside a batch.
    """

    def __init__(self, start: TableSet, *, strength: int = 32, memory: int = 1024) -> None:
        if not 1 <= strength <= 1024 or not 1 <= memory <= 1 << 16:
            raise ValueError("strength must be in 1..1024 and memory in 1..65536")
        self._counts: Int64 = np.maximum(1, start.freqs.astype(np.int64) >> 8)
        self._step = (1 << 16) // strength
        self._limit = (1 << 16) + self._step * memory
        self._tables: TableSet | None = start

    @property
    def tables(self) -> TableSet:
        """The tables for the next batch."""
        if self._tables is None:
            self._tables = normalize(self._counts)
        return self._tables

    def state(self) -> Int64:
        """All counts [N, A] as they are now."""
        return self._counts.copy()

    def update(self, index: Ints, values: Ints) -> None:
        """Count `values` [n] under the table rows `index` [n]; both integer arrays in range."""
        if len(values) == 0:
            return
        np.add.at(self._counts, (index, values), self._step)
        touched = np.unique(index)
        while True:
            touched = touched[self._counts[touched].sum(axis=1) > self._limit]
            if len(touched) == 0:
                break
            self._counts[touched] = (self._counts[touched] + 1) >> 1
        self._tables = None

    def code(
        self, coder: SymbolCoder, values: Ints | None, count: int, index: Ints | None = None
    ) -> Int32:
        """Code one batch with the present tables, then learn from it; returns int32 [count]."""
        result = coder.code(values, count, self.tables, index)
        self.update(np.zeros(count, np.int32) if index is None else index, result)
        return result


@functools.cache
def load_counts(name: str) -> Ints:
    """Read asset `name`: counts uint16 [N, A], stored as u16 N, u16 A and N*A u16 values."""
    content = (ASSETS / name).read_bytes()
    rows, columns = np.frombuffer(content, "<u2", 2).tolist()
    counts = np.frombuffer(content, "<u2", rows * columns, 4).reshape(rows, columns)
    if len(content) != 4 + counts.nbytes:
        raise ValueError(f"asset {name} has {len(content)} bytes, not {4 + counts.nbytes}")
    return counts


def store_counts(counts: Ints) -> bytes:
    """Serialise counts [N, A], each in 0..65535, N and A <= 65535, as `load_counts` reads them."""
    counts = check_ints(counts, "counts")
    if counts.min(initial=0) < 0 or counts.max(initial=0) > 65535:
        raise ValueError("stored counts must be in 0..65535")
    return np.array(counts.shape, "<u2").tobytes() + counts.astype("<u2").tobytes()


@functools.cache
def logistic_tables() -> TableSet:
    """Binary tables int32 [6144, 2]: row r gives symbol 1 the probability 1 / (1 + exp(-x)).

    x = (r - 3072 + 1/2) / 256; the integers are an asset, never computed from a float here. Row
    r and row 6143 - r mirror each other.
    """
    content = (ASSETS / "logistic.u32").read_bytes()
    upper = np.frombuffer(content, "<u4", LOGIT_ROWS // 2).astype(np.int64)
    ones = np.concatenate([TOTAL - upper[::-1], upper])
    return TableSet(np.stack([TOTAL - ones, ones], axis=1))


@functools.cache
def stretch_table() -> Int32:
    """Logit of a 16-bit probability: int32 [65536] in -3072..3071 steps of 1/256 nat.

    Entry p is the number of rows of `logistic_tables` whose probability is below
    (p + 1/2) / 2**16, minus 3072: the integer inverse of the logistic table.
    """
    ones = logistic_tables().freqs[:, 1].astype(np.int64)
    points = (np.arange(1 << 16, dtype=np.int64) << 8) + 128
    found = np.searchsorted(ones, points, side="left")
    return np.minimum(found - LOGIT_ROWS // 2, LOGIT_ROWS // 2 - 1).astype(np.int32)
