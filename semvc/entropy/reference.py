"""The range coder in plain integers: slow, obvious, and the definition of the format.

Nothing here depends on constriction, so it can accuse it: `ReferenceDecoder` reads what
`coder.Encoder` writes, and `verify` follows an encoder's own words before they are accepted.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from itertools import accumulate

import numpy as np

from semvc.entropy.tables import PRECISION, Int32, Int64, Ints, TableSet, check_ints
from semvc.errors import BitstreamError

MAX_SYMBOLS = 1 << 28
_MASK = (1 << 64) - 1
_WORD = 1 << 32


class CallChecker:
    """The checks that every coder makes before a symbol is touched, and the running CRC."""

    def __init__(self, max_symbols: int, check: int) -> None:
        if not 0 <= max_symbols <= MAX_SYMBOLS:
            raise ValueError(f"max_symbols must be in 0..{MAX_SYMBOLS}, not {max_symbols}")
        self.check = check
        self.left = max_symbols

    def rows(self, count: int, tables: TableSet, index: Ints | None) -> Int64:
        """Table rows int64 [count], checked; also spends `count` of the symbol budget."""
        if not isinstance(tables, TableSet):
            raise TypeError(f"tables must be a TableSet, not {type(tables).__name__}")
        if isinstance(count, bool) or not isinstance(count, int | np.integer):
            raise TypeError(f"count must be an integer, not {type(count).__name__}")
        if count < 0:
            raise ValueError(f"count must not be negative, not {count}")
        if count > self.left:
            raise BitstreamError(f"more symbols than the {self.left} that are left to code")
        self.left -= int(count)
        if index is None:
            return np.zeros(count, np.int64)
        rows = check_ints(index, "a table index")
        if rows.shape != (count,):
            raise ValueError(f"index must be [{count}], not {rows.shape}")
        if count and not 0 <= rows.min() <= rows.max() < tables.rows:
            raise ValueError(f"a table index is outside 0..{tables.rows - 1}")
        return rows.astype(np.int64)

    def given(
        self, values: Ints | None, count: int, tables: TableSet, index: Ints | None
    ) -> tuple[Int64, Int32]:
        """Table rows and symbols int32 [count] of who writes or counts, checked."""
        rows = self.rows(count, tables, index)
        if values is None:
            raise ValueError("an encoder needs values")
        checked = check_ints(values, "values")
        if checked.shape != (count,):
            raise ValueError(f"values must be [{count}], not {checked.shape}")
        if count and not 0 <= checked.min() <= checked.max() < tables.alphabet:
            raise ValueError(f"a value is outside 0..{tables.alphabet - 1}")
        return rows, np.ascontiguousarray(checked, np.int32)

    def note(self, symbols: Int32) -> Int32:
        """Add `symbols` to the CRC and return them."""
        self.check = zlib.crc32(symbols.astype("<i2").tobytes(), self.check)
        return symbols


class Checked:
    """What all coders share: every call is checked, and all symbols are summed up."""

    def __init__(self, max_symbols: int, check: int) -> None:
        self._checker = CallChecker(max_symbols, check)

    @property
    def check(self) -> int:
        """CRC-32 of all symbols so far; see `SymbolCoder.check`."""
        return self._checker.check


class RangeReader:
    """State of the decoder: 64-bit interval, 32-bit big-endian words, zeros after the end.

    Any number of zero words may follow the end (a long run of first symbols is all zeros, and is
    stripped); the caller's symbol budget bounds the work.
    """

    def __init__(self, data: bytes) -> None:
        padded = data + bytes(-len(data) % 4)
        self._words: list[int] = np.frombuffer(padded, ">u4").tolist()
        self._next, self._low, self._range = 0, 0, _MASK
        self._point = (self._word() << 32) | self._word()

    def _word(self) -> int:
        position = self._next
        self._next += 1
        return self._words[position] if position < len(self._words) else 0

    def target(self) -> int:
        """The 24-bit number that lies in the interval of the next symbol."""
        scale = self._range >> PRECISION
        quantile = ((self._point - self._low) & _MASK) // scale
        if quantile >> PRECISION:
            raise BitstreamError("the range coder reads an impossible number")
        return quantile

    def take(self, start: int, size: int) -> None:
        """Consume the symbol whose interval is start .. start + size of 2**24."""
        scale = self._range >> PRECISION
        self._low = (self._low + scale * start) & _MASK
        self._range = scale * size
        if self._range < _WORD:
            self._low = (self._low << 32) & _MASK
            self._range = (self._range << 32) & _MASK
            self._point = ((self._point << 32) | self._word()) & _MASK


def verify(data: bytes, starts: Int64, sizes: Int64) -> bool:
    """Whether `data` decodes to exactly the symbols with these intervals (int64 [n] each)."""
    reader = RangeReader(data)
    try:
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            if not start <= reader.target() < start + size:
                return False
            reader.take(start, size)
    except BitstreamError:
        return False
    return True


class ReferenceDecoder(Checked):
    """A `SymbolCoder` that reads; about a microsecond a symbol, integers only."""

    def __init__(self, data: bytes, max_symbols: int, check: int = 0) -> None:
        super().__init__(max_symbols, check)
        self._reader = RangeReader(data)

    def code(
        self, values: Ints | None, count: int, tables: TableSet, index: Ints | None = None
    ) -> Int32:
        """Read `count` symbols; see `SymbolCoder.code`."""
        rows = self._checker.rows(count, tables, index).tolist()
        result = []
        for row in rows:
            cdf = list(accumulate(tables.freqs[row].tolist(), initial=0))
            symbol = bisect_right(cdf, self._reader.target()) - 1
            self._reader.take(cdf[symbol], cdf[symbol + 1] - cdf[symbol])
            result.append(symbol)
        return self._checker.note(np.array(result, np.int32))
