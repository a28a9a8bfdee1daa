"""Reading a stream: strictly (any damage ends it) or salvaging (damage becomes gaps).

Works on pipes that give a few bytes at a time. Nothing is allocated from a length before its
checksum held and its limit was checked. `StreamReader.read` and `at_frame` need a seekable source.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from semvc.bitstream import fields, wire
from semvc.bitstream.directory import Directory, by_skipping, from_index
from semvc.bitstream.framing import (
    CRC_BYTES,
    END_BYTES,
    MAX_HEAD,
    SEGMENT_TYPES,
    ChunkType,
    Framing,
    Head,
)
from semvc.bitstream.headers import (
    DEFAULT_LIMITS,
    StreamHeader,
    check_samples,
    header_size,
    parse_header,
)
from semvc.bitstream.salvage import Finder, Place, find_header
from semvc.bitstream.segments import Segment, unpack
from semvc.bitstream.source import Window
from semvc.errors import BitstreamError, LimitError, UnsupportedError, UsageError
from semvc.types import Limits


@dataclass(frozen=True, slots=True)
class End:
    """Payload of the END chunk: the stream was closed cleanly."""

    total_frames: int = wire.field(fields.UVar(0, limit="max_frames"), "frames of the whole stream")
    segments_crc: int = wire.field(
        fields.UInt(4), "CRC-32 over the CRC-32s of all segment chunks in order"
    )


@dataclass(frozen=True, slots=True)
class Gap:
    """What salvage lost: bytes [offset, end) and the segments and frames that were there.

    `segments` and `frames` are None where the end of the stream is missing as well.
    """

    offset: int
    end: int
    index: int
    segments: int | None
    start: int
    frames: int | None


class Chunk(NamedTuple):
    """A whole chunk whose checksums hold at its place."""

    head: Head
    offset: int
    payload: bytes
    crc: bytes


class StreamReader:
    """Reads the segments of one stream.

    `header` is there at once; `end`, `end_offset` (the stream's length in bytes, as far as it was
    read), `gaps`, `damage` (one sentence each), `trailing` (bytes follow END) and `warnings` (which
    repeat the damage) are complete after iteration. With `strict`, bytes after END are an error;
    with `salvage`, damage becomes `gaps` instead of an error. Raises BitstreamError, LimitError,
    UnsupportedError, and ResourceError if the source fails.
    """

    def __init__(
        self,
        source: BinaryIO,
        limits: Limits = DEFAULT_LIMITS,
        *,
        salvage: bool = False,
        strict: bool = False,
    ) -> None:
        self._window, self._limits = Window(source), limits
        self._salvage, self._strict, self._begun = salvage, strict, False
        self.end: End | None = None
        self.end_offset = 0
        self.gaps: list[Gap] = []
        self.warnings: list[str] = []
        self.damage: list[str] = []
        self.trailing = False
        self._first_warnings: list[str] = []
        self._scanned: Directory | None = None
        self._hint: Directory | None = None
        self._hinted = False
        try:
            self.header = self._read_header()
        except (BitstreamError, UnsupportedError):
            copy = find_header(self._window, limits) if salvage and self._window.seekable else None
            if copy is None:
                raise
            self.header, self._body, self._raw = copy, 0, b""
            self._first_warnings.append("the header is damaged; its copy near the end is used")
        self._framing = Framing(self.header.salt)
        for section in self.header.sections:
            if section >= 128:
                self._first_warnings.append(f"section {section.name} is not known here: skipped")
        self.warnings = list(self._first_warnings)

    def __iter__(self) -> Iterator[Segment]:
        """Yield the segments in order; a pipe can be iterated once."""
        if self._begun and not self._window.seekable:
            raise UsageError("a pipe can be read only once")
        self._begun = True
        self.end, self.trailing = None, False
        self.gaps, self.damage, self.warnings = [], [], list(self._first_warnings)
        if not self._raw:
            self.damage.append(self.warnings[0])
        return self._salvaged() if self._salvage else self._strictly()

    def read(self, index: int) -> Segment:
        """Return segment `index`; raise UsageError if there is none, BitstreamError if damaged."""
        return self._pick(f"segment {index}", lambda d: d.find(index), lambda s: s.index == index)

    def at_frame(self, frame: int) -> Segment:
        """Return the segment that holds `frame`; raises as `read` does."""
        return self._pick(
            f"frame {frame}",
            lambda d: d.holding(frame),
            lambda s: s.start <= frame < s.start + s.frames,
        )

    def stream_bytes(self) -> int:
        """Return the length of the source in bytes, of a pipe that of the stream read so far."""
        return self._window.size() if self._window.seekable else self.end_offset

    def chunks(self) -> Iterator[tuple[Chunk, Segment | None]]:
        """Yield every chunk in order, END included, with its segment if it is one.

        Raises as strict iteration does.
        """
        place, chain = Place(self._body, 0, 0), 0
        while True:
            chunk = self._chunk(place)
            if chunk.head.kind == ChunkType.END:
                self._close(chunk, place, chain)
                yield chunk, None
                return
            segment = None
            if chunk.head.kind in SEGMENT_TYPES:
                segment = self._segment(chunk, place)
                chain = zlib.crc32(chunk.crc, chain)
            yield chunk, segment
            place = _after(place, chunk, segment)
            self._window.drop(place.offset)

    def _read_header(self) -> StreamHeader:
        first = self._window.take(0, 6)
        size = header_size(first)
        self._raw, self._body = self._window.take(0, size), size
        return parse_header(self._raw, self._limits)

    def _strictly(self) -> Iterator[Segment]:
        for _, segment in self.chunks():
            if segment is not None:
                yield segment

    def _salvaged(self) -> Iterator[Segment]:
        finder = Finder(self._window, self.header, self._limits)
        place, chain = Place(self._body, 0, 0), 0
        while True:
            try:
                chunk = self._chunk(place)
                if chunk.head.kind == ChunkType.END:
                    self._close(chunk, place, None if self.gaps else chain)
                    return
                segment = None
                if chunk.head.kind in SEGMENT_TYPES:
                    segment = self._segment(chunk, place)
                    chain = zlib.crc32(chunk.crc, chain)
            except BitstreamError as error:
                found = finder.find(place)
                self._gap(place, found, str(error))
                if found is None:
                    if finder.exhausted:
                        self.warnings.append("salvage gave up: too many false starts")
                    return
                place = found
                continue
            if segment is not None:
                yield segment
            place = _after(place, chunk, segment)
            self._window.drop(place.offset)

    def _pick(
        self,
        what: str,
        choose: Callable[[Directory], Place | None],
        fits: Callable[[Segment], bool],
    ) -> Segment:
        if not self._window.seekable:
            raise UsageError("random access needs a file, not a pipe")
        for trusted in (False, True):  # an INDEX is only a hint: what it leads to must hold
            directory = self._lookup(trusted)
            place = None if directory is None else choose(directory)
            if place is None:
                continue
            try:
                chunk = self._chunk(place)
                if chunk.head.kind in SEGMENT_TYPES:
                    segment = self._segment(chunk, place)
                    if fits(segment):
                        return segment
            except (BitstreamError, LimitError, UnsupportedError):
                if trusted:
                    raise
        raise UsageError(f"the stream has no {what}" + (" (lost)" if self._salvage else ""))

    def _lookup(self, trusted: bool) -> Directory | None:
        if self._scanned is not None:
            return self._scanned
        if self._salvage:
            self._scanned = Directory()
            for segment in self:
                self._scanned.add(segment.offset, segment.index, segment.start)
        elif trusted:
            self._scanned = by_skipping(self._window, self.header, self._body, self._limits)
        else:
            if not self._hinted:
                self._hint = from_index(self._window, self.header, self._body, self._limits)
                self._hinted = True
            return self._hint
        return self._scanned

    def _gap(self, place: Place, found: Place | None, reason: str) -> None:
        if found is not None:
            frames: int | None = found.start - place.start
            gap = Gap(place.offset, found.offset, place.index, found.index - place.index,
                      place.start, frames)  # fmt: skip
        else:
            frames = self.header.total_frames - place.start
            size = self._window.size() if self._window.seekable else self._window.high
            gap = Gap(place.offset, max(size, place.offset), place.index, None, place.start,
                      frames if frames > 0 else None)  # fmt: skip
        self.end_offset = gap.end
        self.gaps.append(gap)
        self.damage.append(reason)
        self.warnings.append(reason)

    def _chunk(self, place: Place) -> Chunk:
        at, window = place.offset, self._window
        data = window.take(at, at + MAX_HEAD)
        if not data:
            raise BitstreamError(
                f"the stream ends without END; {place.index} segments are whole", offset=at
            )
        head = self._framing.head(data)
        if head is None:
            what = "a chunk's head does not hold" if data[0] else "zeros instead of a chunk"
            raise BitstreamError(what, offset=at)
        limit = END_BYTES if head.kind == ChunkType.END else self._limits.max_chunk_bytes
        if head.length > limit:
            if self._salvage:
                raise BitstreamError(f"chunk of {head.length} bytes", offset=at)
            raise LimitError(f"chunk of {head.length} bytes at byte {at}; the limit is {limit}")
        data = window.take(at, at + head.total)
        if len(data) < head.total:
            raise BitstreamError(
                f"the stream ends inside a chunk; {place.index} segments are whole", offset=at
            )
        if not self._framing.holds(data, place.index, place.start):
            raise BitstreamError(
                f"chunk {head.kind} after {place.index} segments: the checksum does not hold,"
                " or the chunk belongs elsewhere",
                offset=at,
            )
        return self._checked(Chunk(head, at, data[head.size : -CRC_BYTES], data[-CRC_BYTES:]))

    def _checked(self, chunk: Chunk) -> Chunk:
        kind = chunk.head.kind
        if kind < 8 and kind not in (*SEGMENT_TYPES, ChunkType.END):
            raise UnsupportedError(
                f"chunk of type {kind} at byte {chunk.offset} is not known here and must be;"
                " a newer semvc can read this stream"
            )
        if kind == ChunkType.HEADER_COPY and self._raw not in (b"", chunk.payload):
            raise BitstreamError("the copy of the header differs from it", offset=chunk.offset)
        return chunk

    def _segment(self, chunk: Chunk, place: Place) -> Segment:
        frames, sections, check = unpack(
            self.header,
            chunk.head.kind,
            chunk.payload,
            limits=self._limits,
            base=chunk.offset + chunk.head.size,
        )
        check_samples(self.header, place.start + frames, self._limits)
        return Segment(
            place.index, place.start, frames, sections, check, chunk.offset, chunk.head.total
        )

    def _close(self, chunk: Chunk, place: Place, chain: int | None) -> None:
        base = chunk.offset + chunk.head.size
        end = wire.read(End, wire.Cursor(chunk.payload, self._limits, base=base))
        if end.total_frames != place.start:
            raise BitstreamError(
                f"END counts {end.total_frames} frames, the segments have {place.start}",
                offset=base,
            )
        if chain is not None and end.segments_crc != chain:
            raise BitstreamError("END's checksum over the segments does not hold", offset=base)
        announced = self.header.total_frames
        if announced not in (0, place.start):
            self.warnings.append(
                f"the header announces {announced} frames, the stream has {place.start}"
            )
        self.end, self.end_offset = end, chunk.offset + chunk.head.total
        if self._window.need(self.end_offset + 1) > self.end_offset:
            self.trailing = True
            if self._strict:
                raise BitstreamError("bytes follow END", offset=self.end_offset)
            self.warnings.append(f"bytes follow END at byte {self.end_offset}: ignored")


def _after(place: Place, chunk: Chunk, segment: Segment | None) -> Place:
    offset = place.offset + chunk.head.total
    if segment is None:
        return Place(offset, place.index, place.start)
    return Place(offset, place.index + 1, place.start + segment.frames)
