"""Field types that headers are declared with; `Kind` in `wire.py` says what each one can do.

Each type reads itself from a `Cursor`, writes itself to a `Builder`, bounds its values on both
ways, and describes itself for FORMAT.md. A value has exactly one spelling: reading refuses others.
They are named tuples because `semvc info` pays for making each class, and dataclasses cost more.
"""

from __future__ import annotations

from enum import IntEnum
from fractions import Fraction
from typing import NamedTuple

from semvc.bitstream.wire import UV_MAX, Builder, Context, Cursor
from semvc.errors import LimitError, UnsupportedError
from semvc.types import ColorInfo, Limits


class UInt(NamedTuple):
    """Fixed-width integer of `size` bytes in [0, 256**size)."""

    size: int

    @property
    def label(self) -> str:
        """Return u8, u16 or u32."""
        return f"u{8 * self.size}"

    def allowed(self) -> str:
        """Return the range as text."""
        return "any"

    def read(self, cursor: Cursor) -> int:
        """Return the integer at the cursor."""
        return cursor.uint(self.size)

    def write(self, out: Builder, value: int) -> None:
        """Append the integer."""
        out.uint(out.bound(value, 0, 256**self.size - 1), self.size)


class UVar(NamedTuple):
    """Canonical LEB128 integer in [low, Limits.<limit>], or [low, high] without a limit."""

    low: int
    high: int = UV_MAX
    limit: str = ""

    @property
    def label(self) -> str:
        """Return the type's name."""
        return "uv"

    def allowed(self) -> str:
        """Return the range as text."""
        return f"{self.low}..{self.top(Limits())}" + (" (limit)" if self.limit else "")

    def top(self, limits: Limits) -> int:
        """Return the largest value that `limits` allow."""
        return int(getattr(limits, self.limit)) if self.limit else self.high

    def read(self, cursor: Cursor) -> int:
        """Return the integer at the cursor."""
        start, value = cursor.at, cursor.uv()
        end, cursor.at = cursor.at, start
        cursor.bound(value, self.low, self.top(cursor.limits), limit=bool(self.limit))
        cursor.at = end
        return value

    def write(self, out: Builder, value: int) -> None:
        """Append the integer."""
        out.uv(out.bound(value, self.low, self.top(out.limits), limit=bool(self.limit)))


class Raw(NamedTuple):
    """Bytes as they are: exactly `size` of them, or (`size` 0) all that the record holds."""

    size: int = 0

    @property
    def label(self) -> str:
        """Return the length as text."""
        return f"{self.size} bytes" if self.size else "bytes"

    def allowed(self) -> str:
        """Return the range as text."""
        return "any" if self.size else "not empty"

    def read(self, cursor: Cursor) -> bytes:
        """Return the bytes at the cursor."""
        value = cursor.take(self.size or cursor.rest())
        if not value:
            cursor.refuse("is empty")
        return value

    def write(self, out: Builder, value: bytes) -> None:
        """Append the bytes."""
        if not value or (self.size and len(value) != self.size):
            out.refuse(f"has {len(value)} bytes, not {self.size or 'one or more'}")
        out.data += value


class Text:
    """UTF-8 text that fills its record."""

    @property
    def label(self) -> str:
        """Return the type's name."""
        return "UTF-8"

    def allowed(self) -> str:
        """Return the range as text."""
        return "not empty"

    def read(self, cursor: Cursor) -> str:
        """Return the text at the cursor."""
        value = Raw().read(cursor)
        try:
            return value.decode()
        except UnicodeDecodeError:
            cursor.refuse("is not valid UTF-8")

    def write(self, out: Builder, value: str) -> None:
        """Append the text."""
        try:
            Raw().write(out, value.encode())
        except UnicodeEncodeError:
            out.refuse("cannot be written as UTF-8")


class Nibble(NamedTuple):
    """Four bits; with `names`, a member of that enumeration (others are unsupported)."""

    names: type[IntEnum] | None = None

    @property
    def label(self) -> str:
        """Return the type's name."""
        return "4 bits"

    def allowed(self) -> str:
        """Return the range as text."""
        return f"see {self.names.__name__}" if self.names else "0..15"

    def read(self, cursor: Cursor) -> int:
        """Return the value at the cursor."""
        value = cursor.nibble()
        if self.names is None:
            return value
        try:
            return self.names(value)
        except ValueError:
            raise UnsupportedError(f"{cursor.where()}: {value} is not known here") from None

    def write(self, out: Builder, value: int) -> None:
        """Append the value."""
        out.nibble(out.bound(int(value), 0, 15))


class NibbleList(NamedTuple):
    """1 to 15 different members: their count, then each, 4 bits apiece; 15 escapes to 8 bits.

    Padded with a zero nibble to a whole byte. A member below 15 must not use the escape.
    """

    names: type[IntEnum]

    @property
    def label(self) -> str:
        """Return the type's name."""
        return "4-bit list"

    def allowed(self) -> str:
        """Return the range as text."""
        return f"1..15 of {self.names.__name__}, each once"

    def read(self, cursor: Cursor) -> tuple[IntEnum, ...]:
        """Return the members at the cursor."""
        found: list[IntEnum] = []
        for _ in range(cursor.bound(cursor.nibble(), 1, 15)):
            value = cursor.nibble()
            if value == 15:
                value = cursor.nibble() << 4 | cursor.nibble()
                if value < 15:
                    cursor.refuse("has an over-long member")
            if value in found:
                cursor.refuse(f"names {value} twice")
            try:
                found.append(self.names(value))
            except ValueError:
                raise UnsupportedError(f"{cursor.where()}: {value} is not known here") from None
        cursor.align()
        return tuple(found)

    def write(self, out: Builder, value: tuple[IntEnum, ...]) -> None:
        """Append the members."""
        if len(set(value)) != len(value):
            out.refuse("names a member twice")
        out.nibble(out.bound(len(value), 1, 15))
        for member in value:
            if member >= 15:
                out.nibble(15)
                out.nibble(member >> 4)
            out.nibble(member & 15)
        out.align()


class Ratio(NamedTuple):
    """Positive fraction in lowest terms as uv numerator, uv denominator.

    With a `table`, a u8 code comes first: 0 is followed by the explicit fraction, k stands for
    `table[k - 1]`, and a fraction that is in the table must use its code.
    """

    low: Fraction = Fraction(1, UV_MAX)
    high: Fraction = Fraction(UV_MAX)
    table: tuple[Fraction, ...] = ()

    @property
    def label(self) -> str:
        """Return the layout as text."""
        return "u8 code, or 0, uv, uv" if self.table else "uv, uv"

    def allowed(self) -> str:
        """Return the range as text."""
        if self.high == UV_MAX:
            return "lowest terms"
        return f"{self.low}..{self.high} (limit), lowest terms"

    def read(self, cursor: Cursor) -> Fraction:
        """Return the fraction at the cursor."""
        code = cursor.uint(1) if self.table else 0
        if code > len(self.table):
            raise UnsupportedError(f"{cursor.where()}: code {code} is not known here")
        if code:
            return self.table[code - 1]
        top, bottom = cursor.uv(), cursor.uv()
        if not top or not bottom:
            cursor.refuse("has a zero in a fraction")
        value = Fraction(top, bottom)
        self._bound(cursor, value)
        if value.denominator != bottom:
            cursor.refuse("is not in lowest terms")
        if value in self.table:
            cursor.refuse("spells out a fraction that has a code")
        return value

    def write(self, out: Builder, value: Fraction) -> None:
        """Append the fraction."""
        if value in self.table:
            out.uint(self.table.index(value) + 1, 1)
            return
        self._bound(out, value)
        if self.table:
            out.uint(0, 1)
        out.uv(value.numerator)
        out.uv(value.denominator)

    def _bound(self, context: Context, value: Fraction) -> None:
        if not self.low <= value <= self.high:
            raise LimitError(f"{context.where()} is {value}; allowed is {self.low}..{self.high}")


class Color(NamedTuple):
    """A u8 code for a common `ColorInfo`; 0 is followed by its four numbers as u8 each."""

    table: tuple[ColorInfo, ...]

    @property
    def label(self) -> str:
        """Return the type's name."""
        return "u8 code, or 0, 4 × u8"

    def allowed(self) -> str:
        """Return the range as text."""
        return "primaries, transfer, matrix (H.273), full range 0..1"

    def read(self, cursor: Cursor) -> ColorInfo:
        """Return the color description at the cursor."""
        code = cursor.uint(1)
        if code > len(self.table):
            raise UnsupportedError(f"{cursor.where()}: code {code} is not known here")
        if code:
            return self.table[code - 1]
        numbers = cursor.take(4)
        if numbers[3] > 1:
            cursor.refuse("has a range flag above 1")
        value = ColorInfo(numbers[0], numbers[1], numbers[2], bool(numbers[3]))
        if value in self.table:
            cursor.refuse("spells out a color that has a code")
        return value

    def write(self, out: Builder, value: ColorInfo) -> None:
        """Append the color description."""
        if value in self.table:
            out.uint(self.table.index(value) + 1, 1)
            return
        out.uint(0, 1)
        for number in (value.primaries, value.transfer, value.matrix, int(value.full_range)):
            out.uint(out.bound(number, 0, 255), 1)


class Pair(NamedTuple):
    """Two integers of the same kind, as a tuple."""

    item: UVar

    @property
    def label(self) -> str:
        """Return the layout as text."""
        return f"{self.item.label}, {self.item.label}"

    def allowed(self) -> str:
        """Return the range as text."""
        return self.item.allowed()

    def read(self, cursor: Cursor) -> tuple[int, int]:
        """Return the two integers at the cursor."""
        return self.item.read(cursor), self.item.read(cursor)

    def write(self, out: Builder, value: tuple[int, int]) -> None:
        """Append the two integers."""
        for item in value:
            self.item.write(out, item)
