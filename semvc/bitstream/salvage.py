"""Finding the next undamaged chunk after damage, within a bounded amount of work.

A chunk is accepted only where CRC-8 and CRC-32 hold for a plausible place: at most `NEAR` segments
lost and a start frame that so many segments can reach. A chunk further on needs its undamaged
successor as a witness. So a survivor is never put at a wrong place, and a hostile file costs at
most `WORK_FACTOR` times its size.
"""

from __future__ import annotations

from dataclasses import dataclass

from semvc.bitstream.framing import (
    CRC8,
    CRC_BYTES,
    END_BYTES,
    MAX_HEAD,
    SEGMENT_TYPES,
    ChunkType,
    Framing,
    Head,
    index_of,
    start_of,
    undo,
)
from semvc.bitstream.headers import MAX_HEADER, StreamHeader, header_size, parse_header
from semvc.bitstream.segments import unpack
from semvc.bitstream.source import BLOCK, Window
from semvc.bitstream.wire import Cursor
from semvc.errors import BitstreamError, LimitError, UnsupportedError
from semvc.types import Limits

WORK_FACTOR = 64
NEAR = 16  # losses up to this many segments are told apart by the bits that a head stores
FAR = 4096  # largest jump that is looked for
_TARGETS = bytes(kind >> 4 in (*SEGMENT_TYPES, ChunkType.END) for kind in range(256))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk lies (`offset`) and stands: `index` segments and `start` frames before it."""

    offset: int
    index: int
    start: int


class Finder:
    """Looks for survivors in one stream, and keeps count of the work done for it."""

    def __init__(self, window: Window, header: StreamHeader, limits: Limits) -> None:
        self._window, self._header, self._limits = window, header, limits
        self._framing = Framing(header.salt)
        self._work = 0
        self.exhausted = False

    def find(self, damaged: Place) -> Place | None:
        """Return the next survivor after the damaged chunk at `damaged`, or None."""
        window = self._window
        head = self._framing.head(window.take(damaged.offset, damaged.offset + MAX_HEAD))
        if head is not None and head.length <= self._limits.max_chunk_bytes:
            # The chunk may be whole and only come too early. If not, its length is under its own
            # checksum: usually only this one is lost.
            for offset in (damaged.offset, damaged.offset + head.total):
                found = self._accept(damaged, offset)
                if found not in (None, damaged):
                    return found
        at = damaged.offset + 1
        while window.need(at + BLOCK + MAX_HEAD) > at:
            found = self._scan(damaged, at, min(at + BLOCK, window.high))
            if found is not None or self.exhausted:
                return found
            at = min(at + BLOCK, window.high)
            window.drop(at)
        return None

    def _spend(self, work: int) -> None:
        self._work += work
        if self._work > WORK_FACTOR * (self._window.high + BLOCK):
            self.exhausted = True

    def _scan(self, damaged: Place, low: int, high: int) -> Place | None:
        self._spend(high - low)
        data = self._window.take(low, high + MAX_HEAD)
        data += bytes(MAX_HEAD)  # so that lookahead at the end needs no test
        row = [CRC8[self._framing.crc8_start ^ kind] for kind in range(256)]
        for at in range(high - low):
            kind = data[at]
            if not _TARGETS[kind]:
                continue
            byte = data[at + 1]
            if byte < 0x80 and CRC8[row[kind] ^ byte] ^ data[at + 2] != 0xFF:
                continue
            found = self._accept(damaged, low + at)
            if found is not None or self.exhausted:
                return found
        return None

    def _accept(self, damaged: Place, offset: int) -> Place | None:
        chunk = self._chunk(offset)
        if chunk is None:
            return None
        head, data = chunk
        if head.kind not in (*SEGMENT_TYPES, ChunkType.END):
            return None
        prefix = self._framing.prefix(data)
        undone = undo(int.from_bytes(data[-CRC_BYTES:], "little"))
        if head.kind == ChunkType.END:
            return self._accept_end(damaged, offset, head, data, prefix)
        near = damaged.index + (head.nibble - damaged.index & 15)
        for index in range(near, damaged.index + FAR, 16):
            lost, start = index - damaged.index, start_of(prefix, undone, index)
            low = damaged.start + lost
            if not low <= start <= damaged.start + lost * self._header.segment_frames:
                continue
            frames = self._frames(head, data, offset)
            if frames is None:
                return None
            place = Place(offset, index, start)
            if lost < NEAR or self._witness(place, offset + head.total, frames):
                return place
        self._spend(FAR // 16)
        return None

    def _accept_end(
        self, damaged: Place, offset: int, head: Head, data: bytes, prefix: int
    ) -> Place | None:
        cursor = Cursor(data[head.size : -CRC_BYTES], self._limits)
        try:
            total = cursor.uv()
        except BitstreamError:
            return None
        index = index_of(prefix, undo(int.from_bytes(data[-CRC_BYTES:], "little")), total)
        lost = index - damaged.index
        if index & 15 != head.nibble or not 0 <= lost <= total - damaged.start:
            return None
        if total - damaged.start > lost * self._header.segment_frames:
            return None
        return Place(offset, index, total)

    def _chunk(self, offset: int) -> tuple[Head, bytes] | None:
        if self._window.need(offset) < offset:
            return None
        head = self._framing.head(self._window.take(offset, offset + MAX_HEAD))
        if head is None or head.length > self._limits.max_chunk_bytes:
            return None
        if head.kind == ChunkType.END and head.length > END_BYTES:
            return None
        if self._window.need(offset + head.total) < offset + head.total:
            return None
        self._spend(head.total)
        return head, self._window.take(offset, offset + head.total)

    def _frames(self, head: Head, data: bytes, offset: int) -> int | None:
        payload = data[head.size : -CRC_BYTES]
        try:
            return unpack(self._header, head.kind, payload, limits=self._limits, base=offset)[0]
        except (BitstreamError, LimitError):
            return None

    def _witness(self, place: Place, offset: int, frames: int) -> bool:
        chunk = self._chunk(offset)
        return chunk is not None and self._framing.holds(
            chunk[1], place.index + 1, place.start + frames
        )


def find_header(window: Window, limits: Limits) -> StreamHeader | None:
    """Return the header from its copy near the end of a seekable stream, or None.

    A copy counts only inside a chunk whose own checksums hold with the copy's salt.
    """
    tail = max(0, window.size() - (1 << 22))
    window.seek(tail)
    high = window.need(window.size())
    data = window.take(tail, high)
    at = data.rfind(b"\x8aSVC")
    while at >= 0:
        try:
            size = header_size(data[at : at + MAX_HEADER])
            header = parse_header(data[at : at + size], limits)
        except (BitstreamError, LimitError, UnsupportedError):
            header = None
        if header is not None and _is_copy(header, data, at):
            return header
        at = data.rfind(b"\x8aSVC", 0, at + 3)
    return None


def _is_copy(header: StreamHeader, data: bytes, at: int) -> bool:
    framing = Framing(header.salt)
    for size in (3, 4):
        head = framing.head(data[max(0, at - size) : at])
        if head is None or head.kind != ChunkType.HEADER_COPY or head.size != size:
            continue
        chunk = data[at - size : at - size + head.total]
        if len(chunk) < head.total:
            continue
        prefix, undone = framing.prefix(chunk), undo(int.from_bytes(chunk[-CRC_BYTES:], "little"))
        for index in range(head.nibble, 1 << 16, 16):
            start = start_of(prefix, undone, index)
            if index <= start <= index * header.segment_frames:
                return True
    return False
