"""Dropping or replacing sections of a stream; everything else stays byte for byte."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import BinaryIO

from semvc.bitstream.framing import ChunkType
from semvc.bitstream.headers import AUDIO_SECTIONS, DEFAULT_LIMITS, SectionType, StreamHeader
from semvc.bitstream.reader import StreamReader
from semvc.bitstream.segments import Segment
from semvc.bitstream.writer import StreamWriter
from semvc.errors import UsageError
from semvc.types import Limits

StateCheck = Callable[[Segment, Mapping[SectionType, bytes]], int]
_REWRITTEN = frozenset({ChunkType.INDEX, ChunkType.HEADER_COPY, ChunkType.SIGN})
_BASE_SECTIONS = frozenset({SectionType.BASE_AV1, SectionType.BASE_HEVC})


def edit(
    source: BinaryIO,
    sink: BinaryIO,
    *,
    drop: Collection[SectionType] = (),
    replace: Mapping[SectionType, bytes] | None = None,
    state_check: StateCheck,
    sync: Callable[[], None] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> None:
    """Copy the stream from `source` to `sink` with some section types dropped or replaced.

    A replacement takes the place of every payload of its type that is there; an empty one removes
    the payload and keeps the type announced. `state_check(segment, sections)` gives the new state
    check of a segment whose sections changed; others keep theirs. Checksums, INDEX and the header's
    copy are made anew, and a signature is left out, as it would no longer hold.

    Raises UsageError if the stream has no such section type or none would be left; reading and
    writing raise as StreamReader and StreamWriter do.
    """
    replace = replace or {}
    reader = StreamReader(source, limits)
    writer = StreamWriter(sink, _edited(reader.header, drop, replace), sync=sync)
    for chunk, segment in reader.chunks():
        if segment is None:
            if chunk.head.kind >= 8 and chunk.head.kind not in _REWRITTEN:
                writer.append(chunk.head.kind, chunk.payload)
            continue
        kept = {kind: data for kind, data in segment.sections.items() if kind not in drop}
        for kind in replace.keys() & kept.keys():
            kept[kind] = replace[kind]
        changed = kept != segment.sections
        check = state_check(segment, kept) if changed else segment.state_check
        writer.write(segment.frames, kept, check)
    writer.finish()


def _edited(
    header: StreamHeader,
    drop: Collection[SectionType],
    replace: Mapping[SectionType, bytes],
) -> StreamHeader:
    missing = [kind.name.lower() for kind in (*drop, *replace) if kind not in header.sections]
    if missing:
        raise UsageError(f"the stream has no section {', '.join(missing)}")
    left = tuple(kind for kind in header.sections if kind not in drop)
    if not left:
        raise UsageError("no section would be left")
    lost = set(drop)
    header = dataclasses.replace(header, sections=left)
    if lost & AUDIO_SECTIONS and not AUDIO_SECTIONS & set(left):
        header = dataclasses.replace(header, audio=b"")
    if lost & _BASE_SECTIONS and not _BASE_SECTIONS & set(left):
        header = dataclasses.replace(header, sequence_header=b"", base_size=None)
    if SectionType.TIMING in lost:
        header = dataclasses.replace(header, time_base=None)
    return header
