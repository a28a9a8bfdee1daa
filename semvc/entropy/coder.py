"""One interface that writes, reads or counts symbols; the only file that imports constriction.

Coding functions are written once against `SymbolCoder`. Symbols are coded in the order given.
Payloads are canonical: a `Decoder` codes again what it read and accepts nothing but those bytes.
"""

from __future__ import annotations

from typing import Protocol

import constriction
import numpy as np
import numpy.typing as npt

from semvc.entropy.reference import MAX_SYMBOLS, Checked, verify
from semvc.entropy.tables import TOTAL, Int32, Int64, Ints, TableSet
from semvc.errors import BitstreamError

_MASK = (1 << 64) - 1
_BATCH_CELLS = 1 << 21  # table cells gathered at once: 16 MiB of weights
_FAMILY = constriction.stream.model.Categorical(perfect=False)


class SymbolCoder(Protocol):
    """What a signal's coding function talks to."""

    @property
    def check(self) -> int:
        """CRC-32 over all symbols so far as little-endian int16, chained from the start value."""

    def code(
        self, values: Ints | None, count: int, tables: TableSet, index: Ints | None = None
    ) -> Int32:
        """Code `count` symbols and return them as int32 [count].

        `values` integer [count] in 0..alphabet-1 is what an encoder or counter takes; a decoder
        ignores it. `index` integer [count] selects a row of `tables` for each symbol; None means
        row 0. Raises TypeError for anything that is not an integer array, ValueError for numbers
        out of range, BitstreamError for damaged data.
        """


class Encoder(Checked):
    """Writes symbols; `finish` gives the payload."""

    def __init__(self, check: int = 0) -> None:
        super().__init__(MAX_SYMBOLS, check)
        self._writer = _Writer()
        self._starts: list[Int64] = []
        self._sizes: list[Int64] = []

    def code(
        self, values: Ints | None, count: int, tables: TableSet, index: Ints | None = None
    ) -> Int32:
        """Write `values`; see `SymbolCoder.code`."""
        rows, symbols = self._checker.given(values, count, tables, index)
        for part in _parts(count, tables):
            freqs = tables.freqs[rows[part]]
            self._writer.write(symbols[part], freqs)
            starts, sizes = _intervals(symbols[part], freqs)
            self._starts.append(starts)
            self._sizes.append(sizes)
        return self._checker.note(symbols)

    def finish(self) -> bytes:
        """The payload: at least one byte, no other trailing zeros, proved to decode.

        The reference decoder follows the payload before it is returned; RuntimeError means that
        the coder is broken and nothing must be written.
        """
        payload = self._writer.payload()
        none = np.zeros(0, np.int64)
        starts = np.concatenate([none, *self._starts])
        if not verify(payload, starts, np.concatenate([none, *self._sizes])):
            raise RuntimeError("the range coder wrote data that its reference cannot read")
        return payload


class Decoder(Checked):
    """Reads at most `max_symbols` symbols from `data`."""

    def __init__(self, data: bytes, max_symbols: int, check: int = 0) -> None:
        super().__init__(max_symbols, check)
        self._data = bytes(data)
        if not data or (data[-1] == 0 and len(data) > 1):
            raise BitstreamError("an entropy-coded payload is empty or ends in a zero byte")
        padded = self._data + bytes(-len(data) % 4 + 8)
        self._reader = constriction.stream.queue.RangeDecoder(
            np.frombuffer(padded, ">u4").astype(np.uint32)
        )
        self._again = _Writer()

    def code(
        self, values: Ints | None, count: int, tables: TableSet, index: Ints | None = None
    ) -> Int32:
        """Read `count` symbols; see `SymbolCoder.code`."""
        rows = self._checker.rows(count, tables, index)
        symbols = np.zeros(count, np.int32)
        for part in _parts(count, tables):
            freqs = tables.freqs[rows[part]]
            symbols[part] = self._read(freqs)
            self._again.write(symbols[part], freqs)
        return self._checker.note(symbols)

    def finish(self) -> None:
        """Raise BitstreamError unless the symbols read are all, and their only spelling."""
        if self._again.payload() != self._data:
            raise BitstreamError("an entropy-coded payload is not the coding of its symbols")

    def _read(self, freqs: Int32) -> Int32:
        try:
            symbols = self._reader.decode(_FAMILY, _weights(freqs))
        except BaseException as error:
            raise _translate(error) from error
        result = np.asarray(symbols, np.int32)
        if len(result) and not 0 <= result.min() <= result.max() < freqs.shape[1]:
            raise BitstreamError("the range coder reads an impossible symbol")
        return result


class Counter(Checked):
    """Adds up the ideal length of the symbols in `bits`; writes nothing."""

    def __init__(self, check: int = 0) -> None:
        super().__init__(MAX_SYMBOLS, check)
        self.bits = 0.0

    def code(
        self, values: Ints | None, count: int, tables: TableSet, index: Ints | None = None
    ) -> Int32:
        """Count `values`; see `SymbolCoder.code`."""
        rows, symbols = self._checker.given(values, count, tables, index)
        self.bits += float(np.log2(TOTAL / tables.freqs[rows, symbols]).sum())
        return self._checker.note(symbols)


class _Writer:
    """Range encoder whose payload is the shortest number inside its final interval."""

    def __init__(self) -> None:
        self._encoder = constriction.stream.queue.RangeEncoder()

    def write(self, symbols: Int32, freqs: Int32) -> None:
        try:
            self._encoder.encode(symbols, _FAMILY, _weights(freqs))
        except BaseException as error:
            raise _translate(error) from error

    def payload(self) -> bytes:
        """Bytes of a big-endian fraction, at least one, else without trailing zero bytes.

        constriction closes with whole words; the interval that it has reached allows, on
        average, two bytes less.
        """
        position, (lower, size) = self._encoder.pos()
        words: bytes = self._encoder.get_compressed().astype(">u4").tobytes()
        total = 4 * (position + 2)
        point: int = int.from_bytes(words.ljust(total, b"\0"), "big")
        low: int = point - ((point - int(lower)) & _MASK)
        if low == 0:
            return b"\0"
        best, zeros = low, 8
        while (rounded := -(-low >> zeros) << zeros) < low + int(size):
            best, zeros = rounded, zeros + 8
        return best.to_bytes(total, "big").rstrip(b"\0")


def _weights(freqs: Int32) -> npt.NDArray[np.float64]:
    """Weights that constriction turns back into exactly `freqs`.

    It gives each symbol 1 and shares out the other 2**24 - A in proportion; weights freq - 1
    have just that sum, so its factor is exactly 1. float64, and `perfect=False`: other choices
    give other bytes.
    """
    return freqs.astype(np.float64) - 1.0


def _intervals(symbols: Int32, freqs: Int32) -> tuple[Int64, Int64]:
    """Start and size of each symbol's interval in its row of `freqs` [n, A]."""
    rows = np.arange(len(symbols))
    sizes = freqs[rows, symbols].astype(np.int64)
    ends = np.cumsum(freqs, axis=1, dtype=np.int64)[rows, symbols]
    return ends - sizes, sizes


def _parts(count: int, tables: TableSet) -> list[slice]:
    """Slices of at most `_BATCH_CELLS` table cells, so that memory stays bounded."""
    step = max(1, _BATCH_CELLS // tables.alphabet)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _translate(error: BaseException) -> BaseException:
    """Our error for constriction's: its panics derive from BaseException, not Exception."""
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
        return error
    return BitstreamError(f"the range coder fails: {type(error).__name__}")
