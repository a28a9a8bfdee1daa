"""Where each segment of a seekable stream lies: from its INDEX, or by skipping from head to head.

A directory is a cache, never the truth: whoever lands on a segment checks it there.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right

from semvc.bitstream.framing import (
    CRC_BYTES,
    END_BYTES,
    MAX_HEAD,
    SEGMENT_TYPES,
    ChunkType,
    Framing,
)
from semvc.bitstream.headers import StreamHeader, check_samples
from semvc.bitstream.salvage import Place
from semvc.bitstream.segments import missing_frames
from semvc.bitstream.source import BLOCK, Window
from semvc.bitstream.wire import Cursor, uv_bytes
from semvc.errors import BitstreamError, LimitError, UnsupportedError
from semvc.types import Limits

MIN_SEGMENTS = 257  # streams with fewer segments carry no INDEX
_SCAN_BLOCK = 512


class Directory:
    """Offsets, numbers and first frames of segments, in order."""

    def __init__(self) -> None:
        self._offsets, self._indices, self._starts = array("Q"), array("L"), array("L")

    def add(self, offset: int, index: int, start: int) -> None:
        """Append a segment that comes after all others."""
        self._offsets.append(offset)
        self._indices.append(index)
        self._starts.append(start)

    def find(self, index: int) -> Place | None:
        """Return the place of segment `index`, or None."""
        at = bisect_left(self._indices, index)
        if at == len(self._indices) or self._indices[at] != index:
            return None
        return self._place(at)

    def holding(self, frame: int) -> Place | None:
        """Return the place of the last segment that begins at `frame` or before, or None."""
        at = bisect_right(self._starts, frame) - 1
        return None if at < 0 else self._place(at)

    def _place(self, at: int) -> Place:
        return Place(self._offsets[at], self._indices[at], self._starts[at])


def index_payload(lengths: array[int], missing: array[int]) -> bytes:
    """Return the payload of an INDEX chunk.

    `lengths` are the segments' payload lengths, `missing` the frames that they lack.
    The last four bytes are the payload's own length, so that it is found from END backwards.
    """
    pairs = zip(lengths, missing, strict=True)
    body = b"".join(uv_bytes(length) + uv_bytes(frames) for length, frames in pairs)
    return body + (len(body) + 4).to_bytes(4, "little")


def from_index(window: Window, header: StreamHeader, body: int, limits: Limits) -> Directory | None:
    """Return what the INDEX says, or None if the stream has none that is intact."""
    framing = Framing(header.salt)
    size = window.size()
    low = max(body, size - END_BYTES - MAX_HEAD - CRC_BYTES)
    tail = window.take(low, size)
    for at in range(len(tail)):
        head = framing.head(tail[at:])
        if head is None or head.kind != ChunkType.END or at + head.total != len(tail):
            continue
        length = int.from_bytes(window.take(low + at - 8, low + at - 4), "little")
        if not 4 <= length <= limits.max_chunk_bytes:
            return None
        for size_of_head in range(3, MAX_HEAD + 1):
            start = low + at - CRC_BYTES - length - size_of_head
            data = window.take(start, low + at) if start >= body else b""
            found = framing.head(data[:MAX_HEAD])
            if found and found.kind == ChunkType.INDEX and found.total == len(data):
                return _parse_index(data[found.size : -8], header, body, limits)
    return None


def _parse_index(
    payload: bytes, header: StreamHeader, body: int, limits: Limits
) -> Directory | None:
    # The checksum needs the number of segments, which is known only after parsing; what is wrong
    # here is noticed on landing.
    cursor, found = Cursor(payload, limits), Directory()
    cursor.field = "INDEX"
    offset, index, start = body, 0, 0
    try:
        while cursor.rest():
            found.add(offset, index, start)
            length, missing = cursor.uv(), cursor.uv()
            if missing >= header.segment_frames:
                return None
            offset += 2 + len(uv_bytes(length)) + length + CRC_BYTES
            index, start = index + 1, start + header.segment_frames - missing
            check_samples(header, start, limits)
    except (BitstreamError, LimitError):
        return None
    return found


def by_skipping(window: Window, header: StreamHeader, body: int, limits: Limits) -> Directory:
    """Return the directory made by going from head to head; payloads are not read.

    Raises BitstreamError at the first head that does not hold, or if END is missing.
    """
    framing, found = Framing(header.salt), Directory()
    offset, index, start = body, 0, 0
    window.block = _SCAN_BLOCK
    try:
        while True:
            data = window.take(offset, offset + MAX_HEAD + 4)
            head = framing.head(data[:MAX_HEAD])
            if head is None or head.nibble != index & 15:
                raise BitstreamError("a chunk's head does not hold", offset=offset)
            if head.kind == ChunkType.END:
                return found
            if head.kind in SEGMENT_TYPES:
                found.add(offset, index, start)
                frames = header.segment_frames
                if head.kind == ChunkType.SEGMENT_SHORT:
                    cursor = Cursor(data[head.size :], limits, base=offset + head.size)
                    frames -= missing_frames(cursor, header)
                index, start = index + 1, start + frames
                check_samples(header, start, limits)
            elif head.kind < 8:
                raise UnsupportedError(f"chunk of type {head.kind} is not known here and must be")
            offset += head.total
    finally:
        window.block = BLOCK
