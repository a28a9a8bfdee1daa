"""Writing a stream: append-only, to a file or a pipe, and going on with an interrupted one.

Every byte is written once and nothing is rewritten; `resume_writer` continues a `PartFile` so that
the finished file is the same, byte for byte, as one that was never interrupted.
"""

from __future__ import annotations

import io
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from typing import BinaryIO

from semvc.bitstream import wire
from semvc.bitstream.directory import MIN_SEGMENTS, index_payload
from semvc.bitstream.framing import ChunkType, Framing
from semvc.bitstream.headers import (
    DEFAULT_LIMITS,
    MAX_HEADER,
    SectionType,
    StreamHeader,
    check_samples,
    parse_header,
)
from semvc.bitstream.partfile import PartFile
from semvc.bitstream.reader import End, StreamReader
from semvc.bitstream.segments import Segment, pack
from semvc.errors import BitstreamError, LimitError, ResourceError, UnsupportedError, UsageError

_ZEROS = 1 << 16
COPY_ABOVE = 100_000  # bytes of a stream from which on it carries a copy of its header


class StreamWriter:
    """Writes one stream to `sink`; `sync`, if given, is called after each chunk.

    `next_index` and `next_frame` say how many segments and frames are written and synced, and
    `section_bytes` what their sections take. `resumed` is the last segment that was already there,
    None in a new stream. A failing sink raises ResourceError, which says how many segments are
    safe; nothing can be written after.
    """

    def __init__(
        self, sink: BinaryIO, header: StreamHeader, *, sync: Callable[[], None] | None = None
    ) -> None:
        self._start(sink, header, sync)
        self._put(header.to_bytes())

    def _start(self, sink: BinaryIO, header: StreamHeader, sync: Callable[[], None] | None) -> None:
        self.header, self._sink, self._sync = header, sink, sync
        self._framing = Framing(header.salt)
        self.next_index = self.next_frame = self.bytes_written = 0
        self.section_bytes: Counter[SectionType] = Counter()
        self.resumed: Segment | None = None
        self._chain = 0
        self._lengths, self._missing = array("L"), array("L")
        self._closed = False

    def write(self, frames: int, sections: Mapping[SectionType, bytes], state_check: int) -> int:
        """Append a segment and return its length in bytes.

        Raises UsageError for a segment that does not fit the header, LimitError for one that is
        too large, ResourceError if the sink fails.
        """
        kind, payload = pack(self.header, frames, sections, state_check)
        limits = DEFAULT_LIMITS
        if len(payload) > limits.max_chunk_bytes:
            raise LimitError(
                f"segment {self.next_index} has {len(payload)} bytes; the limit is"
                f" {limits.max_chunk_bytes}: use a lower quality or shorter segments"
            )
        if len(sections.get(SectionType.CAPTION, b"")) > limits.max_text_bytes:
            raise LimitError(f"the caption is longer than {limits.max_text_bytes} bytes")
        check_samples(self.header, self.next_frame + frames, limits)
        chunk = self._framing.chunk(kind, payload, self.next_index, self.next_frame)
        self._put(chunk)
        self._count(len(payload), frames, chunk[-4:])
        self.section_bytes.update({kind: len(data) for kind, data in sections.items()})
        return len(chunk)

    def append(self, kind: int, payload: bytes) -> int:
        """Append an ancillary chunk (`kind` 8 to 15) and return its length in bytes."""
        if not 8 <= kind <= 15:
            raise UsageError(f"chunk type {kind} is not ancillary")
        if len(payload) > DEFAULT_LIMITS.max_chunk_bytes:
            raise LimitError(f"chunk of {len(payload)} bytes")
        return self._put(self._framing.chunk(kind, payload, self.next_index, self.next_frame))

    def finish(self) -> None:
        """Close the stream: a copy of the header and an INDEX where they pay, then END."""
        if self.bytes_written > COPY_ABOVE:
            self.append(ChunkType.HEADER_COPY, self.header.to_bytes())
        if self.next_index >= MIN_SEGMENTS:
            payload = index_payload(self._lengths, self._missing)
            if len(payload) <= DEFAULT_LIMITS.max_chunk_bytes:
                self.append(ChunkType.INDEX, payload)
        out = wire.Builder(DEFAULT_LIMITS)
        wire.write(End(total_frames=self.next_frame, segments_crc=self._chain), out)
        self._put(
            self._framing.chunk(ChunkType.END, bytes(out.data), self.next_index, self.next_frame)
        )
        self._closed = True

    def _count(self, length: int, frames: int, crc: bytes) -> None:
        self._lengths.append(length)
        self._missing.append(self.header.segment_frames - frames)
        self._chain = zlib.crc32(crc, self._chain)
        self.next_index += 1
        self.next_frame += frames

    def _put(self, data: bytes) -> int:
        if self._closed:
            raise UsageError("the stream is closed")
        self._closed = True  # stays so if writing fails: a torn chunk must be the last
        rest = memoryview(data)
        try:
            while rest:
                count = self._sink.write(rest)
                if not count:
                    raise BlockingIOError("the sink takes no bytes")
                rest = rest[count:]
            if self._sync is None:
                self._sink.flush()
            else:
                self._sync()
        except OSError as error:
            raise ResourceError(
                f"cannot write the stream: {error.strerror or error}; {self.next_index} segments"
                f" ({self.next_frame} frames) are safe"
            ) from error
        self._closed = False
        self.bytes_written += len(data)
        return len(data)


def part_header(part: PartFile) -> StreamHeader | None:
    """Return the header that a resumed `part` begins with; None if it has no whole one.

    An encoder takes salt and seed from it, so that the resumed stream can be the same.
    """
    part.sink.seek(0)
    first = part.sink.read(MAX_HEADER)
    try:
        return parse_header(first)
    except (BitstreamError, LimitError, UnsupportedError):
        return None


def resume_writer(part: PartFile, header: StreamHeader) -> StreamWriter:
    """Return a writer that goes on behind the last whole segment of `part`.

    Verifies every chunk and cuts a torn tail. A part that begins another stream raises UsageError
    and is left as it is.
    """
    raw = header.to_bytes()
    part.sink.seek(0)
    found = part.sink.read(_ZEROS)
    if found[: len(raw)] != raw:
        zeros = len(found) < _ZEROS and not any(found)  # a crash can leave these, and only these
        if not zeros and not raw.startswith(found):
            raise UsageError(
                f"{part.part_path} was begun from another input or with other options:"
                " remove it, or use the same ones"
            )
        part.sink.truncate(0)
        part.sink.seek(0)
        return StreamWriter(part.sink, header, sync=part.sync)
    writer = StreamWriter.__new__(StreamWriter)
    writer._start(part.sink, header, part.sync)
    part.sink.seek(0)
    end = _replay(writer, part.sink, len(raw))
    part.sink.truncate(end)
    part.sink.seek(end)
    writer.bytes_written = end
    return writer


def _replay(writer: StreamWriter, source: io.FileIO, body: int) -> int:
    end = body
    try:
        for chunk, segment in StreamReader(source).chunks():
            if segment is not None:
                writer._count(chunk.head.length, segment.frames, chunk.crc)
                writer.section_bytes.update({k: len(d) for k, d in segment.sections.items()})
                writer.resumed = segment
                end = chunk.offset + chunk.head.total
    except (BitstreamError, LimitError, UnsupportedError):
        return end  # what follows is a torn tail
    return end
