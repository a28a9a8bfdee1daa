"""The range coder and tables of the second decoder in `stranger.py`, from sections 2 and 3.

`Run.symbols` are all symbols in order of decoding.
"""

from __future__ import annotations

import struct
from pathlib import Path

ASSETS = Path(__file__).parent.parent / "semvc" / "entropy" / "assets"
ONE = 1 << 24


class Run:
    """One run of the range coder (section 2)."""

    def __init__(self, payload: bytes) -> None:
        self._words = iter(struct.unpack(f">{-(-len(payload) // 4)}I", _pad(payload)))
        self._low, self._range = 0, (1 << 64) - 1
        self._point = next(self._words, 0) << 32 | next(self._words, 0)
        self._total_low, self._shifts = 0, 0
        self.symbols: list[int] = []

    def symbol(self, frequencies: list[int]) -> int:
        scale = self._range >> 24
        target = ((self._point - self._low) % 2**64) // scale
        assert target < ONE, "damaged"
        symbol = start = 0
        while start + frequencies[symbol] <= target:
            start += frequencies[symbol]
            symbol += 1
        self._total_low += scale * start
        self._range = scale * frequencies[symbol]
        if self._range < 1 << 32:
            self._total_low <<= 32
            self._range <<= 32
            self._point = (self._point << 32 | next(self._words, 0)) % 2**64
            self._shifts += 1
        self._low = self._total_low % 2**64
        self.symbols.append(symbol)
        return symbol

    def payload(self) -> bytes:
        """The one payload of these symbols (section 2.2)."""
        size = 8 + 4 * self._shifts
        low, high = self._total_low, self._total_low + self._range
        for count in range(size + 1):
            unit = 1 << 8 * (size - count)
            number = -(-low // unit)
            if number * unit < high:
                return number.to_bytes(count, "big") or b"\0"
        raise AssertionError("unreachable")

    def bits(self, n: int) -> int:
        return self.bits_of(1, n)[0]

    def bits_of(self, count: int, n: int) -> list[int]:
        found = [0] * count
        while n:
            part = n % 8 or 8
            n -= part
            for i in range(count):
                found[i] = found[i] << part | self.symbol([ONE >> part] * (1 << part))
        return found

    def uint(self, m: int) -> int:
        return self.uint_of(1, m)[0]

    def uint_of(self, count: int, m: int) -> list[int]:
        frequencies = [max(ONE >> k + 1, 256) for k in range((m + 1).bit_length())]
        frequencies[0] += ONE - sum(frequencies)
        classes = [self.symbol(frequencies) for _ in range(count)]
        found = [1] * count
        for k in range(max(classes, default=0), 0, -1):
            for i in range(count):
                if classes[i] >= k:
                    found[i] = found[i] << 1 | self.symbol([ONE >> 1] * 2)
        assert all(v - 1 <= m for v in found), "damaged"
        return [v - 1 for v in found]


def _pad(payload: bytes) -> bytes:
    return payload + bytes(-len(payload) % 4)


# Section 3


def normalized(counts: list[int]) -> list[int]:
    total = sum(counts)
    found = [1 + c * (ONE - len(counts)) // total for c in counts]
    found[counts.index(max(counts))] += ONE - sum(found)
    return found


class Adaptive:
    def __init__(self, counts: list[list[int]], strength: int, memory: int = 1024) -> None:
        self._tables = [normalized(row) for row in counts]
        self._counts = [[max(1, f >> 8) for f in row] for row in self._tables]
        self._step, self._memory = 65536 // strength, memory

    def batch(self, run: Run, rows: list[int]) -> list[int]:
        found = [run.symbol(self._tables[row]) for row in rows]
        for row, symbol in zip(rows, found, strict=True):
            self._counts[row][symbol] += self._step
        for row in set(rows):
            while sum(self._counts[row]) > 65536 + self._memory * self._step:
                self._counts[row] = [(c + 1) >> 1 for c in self._counts[row]]
        if rows:
            self._tables = [normalized(row) for row in self._counts]
        return found


def logistic() -> list[int]:
    """Frequency of symbol 1 in each row."""
    upper = list(struct.unpack("<3072I", (ASSETS / "logistic.u32").read_bytes()))
    return [ONE - f for f in reversed(upper)] + upper


def stretched(ones: list[int]) -> list[int]:
    found, rows = [], 0
    for p in range(65536):
        while rows < 6144 and ones[rows] < 256 * p + 128:
            rows += 1
        found.append(min(3071, rows - 3072))
    return found


def clip(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))
