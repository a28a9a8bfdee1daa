"""Chunks: the unit that is appended, checked and skipped.

A chunk is a head (type, low bits of its place, payload length, CRC-8), a payload and a CRC-32.
Both checksums start from the stream's salt. The CRC-32 also covers the chunk's absolute place,
which is not stored: the number of segments and the number of frames before it. A reader that knows
the place checks it for free; one that lost it can solve for it (`Framing.start_of`), because four
unknown bytes before a known CRC-32 have exactly one solution.
"""

from __future__ import annotations

import functools
import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

from semvc.bitstream.wire import uv_bytes

MAX_HEAD = 6  # type byte, uv of up to 4 bytes, CRC-8
CRC_BYTES = 4
END_BYTES = 8  # longest END payload


class ChunkType(IntEnum):
    """Types of chunks; 0 is never valid, 8 and above may be skipped if unknown."""

    SEGMENT = 1  # 1.0: exactly `segment_frames` frames
    END = 2  # 1.0
    PARAM = 3  # 1.0, reserved
    SEGMENT_SHORT = 4  # 1.0: fewer frames, as at a scene cut or at the end
    META = 8  # 1.0, reserved
    INDEX = 9  # 1.0
    SIGN = 10  # 1.0, reserved
    PAD = 11  # 1.0
    HEADER_COPY = 12  # 1.0


SEGMENT_TYPES = frozenset({ChunkType.SEGMENT, ChunkType.SEGMENT_SHORT})


def _crc8_table() -> bytes:
    table = bytearray()
    for value in range(256):
        for _ in range(8):
            value = (value << 1 ^ 0x2F) & 0xFF if value & 0x80 else value << 1
        table.append(value)
    return bytes(table)


@functools.cache
def _crc32_undo_table() -> list[tuple[int, int]]:
    # By the top byte of a state after one zero byte: the state's lost low byte, and its table row.
    rows = [(0, 0)] * 256
    for low in range(256):
        row = low
        for _ in range(8):
            row = row >> 1 ^ 0xEDB88320 if row & 1 else row >> 1
        rows[row >> 24] = (low, row)
    return rows


CRC8 = _crc8_table()  # polynomial 0x2F; start and final inversion 0xFF (CRC-8/AUTOSAR)
_ONES = 0xFFFFFFFF


def crc8(data: bytes) -> int:
    """Return the CRC-8/AUTOSAR of `data`; of b"123456789" it is 0xDF."""
    value = 0xFF
    for byte in data:
        value = CRC8[value ^ byte]
    return value ^ 0xFF


class Head(NamedTuple):
    """A chunk's head: `kind` in 0..15, `nibble` (low bits of the place), and lengths in bytes."""

    kind: int
    nibble: int
    length: int
    size: int

    @property
    def total(self) -> int:
        """Return the length of the whole chunk in bytes."""
        return self.size + self.length + CRC_BYTES


class Framing:
    """Writes and checks the chunks of the stream that has this salt."""

    def __init__(self, salt: int) -> None:
        raw = salt.to_bytes(4, "little")
        self.crc8_start = crc8(raw) ^ 0xFF
        self._crc32_start = zlib.crc32(raw)

    def chunk(self, kind: int, payload: bytes, index: int, start: int) -> bytes:
        """Return a whole chunk that has `index` segments and `start` frames before it."""
        head = bytes((kind << 4 | index & 15,)) + uv_bytes(len(payload))
        state = self.crc8_start
        for byte in head:
            state = CRC8[state ^ byte]
        body = head + bytes((state ^ 0xFF,)) + payload
        crc = zlib.crc32(struct.pack("<II", index, start), zlib.crc32(body, self._crc32_start))
        return body + crc.to_bytes(4, "little")

    def head(self, data: bytes) -> Head | None:
        """Return the head that `data` begins, or None if it is cut, damaged or not canonical."""
        if not data or not data[0] >> 4:
            return None
        state, length = CRC8[self.crc8_start ^ data[0]], 0
        for group in range(4):
            if group + 2 >= len(data):
                return None
            byte = data[group + 1]
            state = CRC8[state ^ byte]
            length |= (byte & 0x7F) << 7 * group
            if byte < 0x80:
                if state ^ data[group + 2] != 0xFF or (group and not byte):
                    return None
                return Head(data[0] >> 4, data[0] & 15, length, group + 3)
        return None

    def prefix(self, chunk: bytes | memoryview) -> int:
        """Return the CRC-32 over salt, head and payload of a whole chunk."""
        return zlib.crc32(chunk[:-CRC_BYTES], self._crc32_start)

    def holds(self, chunk: bytes | memoryview, index: int, start: int) -> bool:
        """Return whether a whole chunk is undamaged and stands at this place."""
        crc = zlib.crc32(struct.pack("<II", index, start), self.prefix(chunk))
        return crc == int.from_bytes(chunk[-CRC_BYTES:], "little")


def start_of(prefix: int, undone: int, index: int) -> int:
    """Return the only frame count that fits a CRC-32, if `index` segments come before.

    `prefix` covers the chunk without its place; `undone` is `undo` of the stored CRC-32.
    """
    return zlib.crc32(index.to_bytes(4, "little"), prefix) ^ undone


def index_of(prefix: int, undone: int, start: int) -> int:
    """Return the only segment count that fits a CRC-32, if `start` frames come before."""
    return prefix ^ undo(undone ^ start)


def undo(crc: int) -> int:
    """Return x such that `x ^ word` is the CRC-32 before the little-endian `word` gave `crc`."""
    state, rows = crc ^ _ONES, _crc32_undo_table()
    for _ in range(4):
        low, row = rows[state >> 24]
        state = ((state ^ row) << 8 | low) & _ONES
    return state ^ _ONES
