"""The wire: one declaration is read, written, bounded, documented and fuzzed from.

A header is a dataclass whose fields are made by `field` and `record` below, each with one of the
types of `fields.py`. From that one declaration come `read`, `write`, range errors that name the
field and its byte, `table` (the rows of FORMAT.md), `to_json`, and the test suite's strategies.
Guarantees: integers are little-endian; every value has exactly one spelling; a value outside its
declared range is refused before anything is allocated from it.
"""

from __future__ import annotations

import dataclasses
from enum import IntEnum
from fractions import Fraction
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

from semvc.errors import BitstreamError, LimitError, UnsupportedError, UsageError
from semvc.types import ColorInfo, Limits

T = TypeVar("T")

UV_MAX = (1 << 28) - 1  # largest value of a `uv`: four groups of seven bits


class Context:
    """What reading and writing share: the name of the field at hand, and the limits."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.field = ""

    def where(self) -> str:
        """Text that names the field, and its byte where there is one."""
        return self.field

    def refuse(self, rule: str) -> NoReturn:
        """Raise the error for a broken rule."""
        raise UsageError(f"{self.where()}: {rule}")

    def bound(self, value: int, low: int, high: int, *, limit: bool = False) -> int:
        """Return `value` if it lies in [low, high]; else LimitError (above a limit) or refuse."""
        if value > high and limit:
            raise LimitError(f"{self.where()} is {value}; the limit is {high}")
        if not low <= value <= high:
            self.refuse(f"is {value}, outside {low}..{high}")
        return value


class Cursor(Context):
    """Reads fields from `data`; `base` is the stream offset of its first byte."""

    def __init__(self, data: bytes, limits: Limits, *, base: int = 0) -> None:
        super().__init__(limits)
        self.data, self.base, self.at = data, base, 0
        self._half: int | None = None

    def where(self) -> str:
        """Text that names the field and its byte in the stream."""
        return f"{self.field} at byte {self.base + self.at}"

    def refuse(self, rule: str) -> NoReturn:
        """Raise BitstreamError for a broken rule at the current byte."""
        raise BitstreamError(f"{self.field} {rule}", offset=self.base + self.at)

    def rest(self) -> int:
        """Return how many bytes are left."""
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        if count > self.rest():
            self.refuse(f"needs {count} bytes, {self.rest()} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def uint(self, size: int) -> int:
        """Return a fixed-width little-endian integer of `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    def uv(self) -> int:
        """Return an unsigned LEB128 integer: at most 4 bytes, canonical."""
        value = 0
        for group in range(4):
            byte = self.uint(1)
            value |= (byte & 0x7F) << (7 * group)
            if byte < 0x80:
                if byte == 0 and group:
                    self.refuse("has an over-long uv")
                return value
        self.refuse("has a uv of more than 4 bytes")

    def nibble(self) -> int:
        """Return the next 4 bits, the upper half of a byte first."""
        if self._half is None:
            byte = self.uint(1)
            self._half = byte & 15
            return byte >> 4
        low, self._half = self._half, None
        return low

    def align(self) -> None:
        """Skip the unused half of a byte, which must be zero."""
        if self._half:
            self.refuse("has a non-zero padding")
        self._half = None


class Builder(Context):
    """Collects the bytes of fields; the mirror image of `Cursor`."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.data = bytearray()
        self._half: int | None = None

    def uint(self, value: int, size: int) -> None:
        """Append a fixed-width little-endian integer of `size` bytes."""
        self.data += value.to_bytes(size, "little")

    def uv(self, value: int) -> None:
        """Append an unsigned LEB128 integer in [0, UV_MAX]."""
        self.data += uv_bytes(self.bound(value, 0, UV_MAX))

    def nibble(self, value: int) -> None:
        """Append 4 bits, the upper half of a byte first."""
        if self._half is None:
            self._half = value
        else:
            self.data.append(self._half << 4 | value)
            self._half = None

    def align(self) -> None:
        """Fill an open byte with a zero half."""
        if self._half is not None:
            self.nibble(0)


def uv_bytes(value: int) -> bytes:
    """Return the canonical unsigned LEB128 spelling of `value`, in [0, UV_MAX]."""
    if not 0 <= value <= UV_MAX:
        raise UsageError(f"{value} does not fit a uv (0..{UV_MAX})")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class Kind(Protocol):
    """How values of one field are spelt on the wire."""

    @property
    def label(self) -> str:
        """Return the type's name in FORMAT.md."""

    def allowed(self) -> str:
        """Return the allowed values as text for FORMAT.md."""

    def read(self, cursor: Cursor) -> Any:
        """Return the value at the cursor; raise BitstreamError, LimitError or UnsupportedError."""

    def write(self, out: Builder, value: Any) -> None:
        """Append `value`; raise UsageError or LimitError if it is not allowed."""


class Declared(NamedTuple):
    """One field of a header as declared: `tag` is 0 for a plain field, else its record's tag."""

    name: str
    kind: Kind
    doc: str
    tag: int


def field(kind: Kind, doc: str, **default: Any) -> Any:
    """Declare a dataclass field that is spelt as `kind`; `doc` is its rule in FORMAT.md."""
    return dataclasses.field(**default, metadata={"wire": (kind, doc, 0)})


def record(tag: int, kind: Kind, doc: str, absent: Any) -> Any:
    """Declare an optional field kept in a `tag u8, length u8, value` record; `absent` if none."""
    return dataclasses.field(default=absent, metadata={"wire": (kind, doc, tag)})


def declared(cls: type) -> list[Declared]:
    """Return the wire fields of a header class in wire order."""
    found = []
    for item in dataclasses.fields(cls):
        if "wire" in item.metadata:
            kind, doc, tag = item.metadata["wire"]
            found.append(Declared(item.name, kind, doc, tag))
    return found


def read(cls: type[T], cursor: Cursor) -> T:
    """Return a `cls` read from the cursor to its end; raise on any rule broken.

    A class with records must have a field `extra`, which keeps unknown ancillary ones.
    """
    values: dict[str, Any] = {}
    fields = declared(cls)
    for item in (f for f in fields if not f.tag):
        cursor.field = item.name
        values[item.name] = item.kind.read(cursor)
    known = {f.tag: f for f in fields if f.tag}
    if known:
        values.update(_read_records(cursor, known))
    cursor.field = cls.__name__
    if cursor.rest():
        cursor.refuse(f"has {cursor.rest()} bytes left over")
    return cls(**values)


def _read_records(cursor: Cursor, known: dict[int, Declared]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    extra: list[tuple[int, bytes]] = []
    last = 0
    while cursor.rest():
        cursor.field = "record"
        tag, length = cursor.uint(1), cursor.uint(1)
        if tag <= last:
            cursor.refuse(f"{tag:#04x} is out of order")
        last, start = tag, cursor.base + cursor.at
        inner = Cursor(cursor.take(length), cursor.limits, base=start)
        if tag in known:
            item = known[tag]
            inner.field = item.name
            values[item.name] = item.kind.read(inner)
            if inner.rest():
                inner.refuse(f"has {inner.rest()} bytes left over")
        elif tag < 0x80:
            raise UnsupportedError(
                f"header record {tag:#04x} at byte {start} is not known here and must be;"
                " a newer semvc can read this stream"
            )
        else:
            extra.append((tag, inner.data))
    return {**values, "extra": tuple(extra)}


def write(value: Any, out: Builder) -> None:
    """Append a declared header; raise UsageError or LimitError for a value out of range."""
    fields = declared(type(value))
    for item in (f for f in fields if not f.tag):
        out.field = item.name
        item.kind.write(out, getattr(value, item.name))
    records = dict(getattr(value, "extra", ()))
    for item in (f for f in fields if f.tag):
        found = getattr(value, item.name)
        if found not in (None, b"", ""):
            inner = Builder(out.limits)
            inner.field = item.name
            item.kind.write(inner, found)
            records[item.tag] = bytes(inner.data)
    for tag in sorted(records):
        out.field = f"record {tag:#04x}"
        out.uint(tag, 1)
        out.uint(out.bound(len(records[tag]), 0, 255), 1)
        out.data += records[tag]


def record_bytes(value: Any) -> dict[str, int]:
    """Return what each record of a header costs in bytes, tag and length included."""
    found = {}
    for item in declared(type(value)):
        content = getattr(value, item.name)
        if item.tag and content not in (None, b"", ""):
            inner = Builder(Limits())
            item.kind.write(inner, content)
            found[item.name] = 2 + len(inner.data)
    return found


def table(cls: type) -> str:
    """Return the Markdown table of a header class, as FORMAT.md must show it."""
    plain: list[str] = []
    records: list[str] = []
    for item in declared(cls):
        row = f"{item.name} | {item.kind.label} | {item.kind.allowed()} | {item.doc} |"
        (records if item.tag else plain).append(
            f"| `{item.tag:#04x}` {row}" if item.tag else f"| {row}"
        )
    text = ["| field | type | allowed | meaning |", "|---|---|---|---|", *plain]
    if records:
        text += ["", "| tag and field | type | allowed | meaning |", "|---|---|---|---|", *records]
    return "\n".join(text) + "\n"


def to_json(value: Any) -> dict[str, object]:
    """Return a header's fields as JSON-ready values; absent records are left out."""
    found = {}
    for item in declared(type(value)):
        content = getattr(value, item.name)
        if not item.tag or content not in (None, b"", ""):
            found[item.name] = _plain(content)
    return found


def _plain(value: Any) -> object:
    if isinstance(value, IntEnum):
        return value.name.lower()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, ColorInfo):
        return dataclasses.asdict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
