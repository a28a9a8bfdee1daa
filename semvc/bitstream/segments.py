"""A segment's payload: its sections, their lengths, and the state check.

`pack` and `unpack` are inverse to each other, and a payload has one spelling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from semvc.bitstream.framing import ChunkType
from semvc.bitstream.headers import SectionType, StreamHeader
from semvc.bitstream.wire import Cursor, uv_bytes
from semvc.errors import LimitError, UsageError
from semvc.types import Limits

STATE_BYTES = 2


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of frames that decodes from the header and this alone.

    `start` is its first frame in the stream; `sections` holds the payloads that are not empty, in
    header order; `offset` and `chunk_bytes` are where its chunk lies in the stream.
    """

    index: int
    start: int
    frames: int
    sections: Mapping[SectionType, bytes]
    state_check: int
    offset: int
    chunk_bytes: int


def pack(
    header: StreamHeader, frames: int, sections: Mapping[SectionType, bytes], state_check: int
) -> tuple[ChunkType, bytes]:
    """Return the chunk type and payload of a segment; raise UsageError if it does not fit."""
    if not 1 <= frames <= header.segment_frames:
        raise UsageError(f"segment of {frames} frames: the header allows {header.segment_frames}")
    if not 0 <= state_check <= 0xFFFF:
        raise UsageError(f"state check {state_check} is not a 16-bit number")
    strange = [kind.name for kind in sections if kind not in header.sections]
    if strange:
        raise UsageError(f"the header announces no section {', '.join(strange)}")
    payloads = [bytes(sections.get(kind, b"")) for kind in header.sections]
    lengths = b"".join(uv_bytes(len(payload)) for payload in payloads[:-1])
    body = lengths + b"".join(payloads) + state_check.to_bytes(STATE_BYTES, "little")
    if frames == header.segment_frames:
        return ChunkType.SEGMENT, body
    return ChunkType.SEGMENT_SHORT, uv_bytes(header.segment_frames - frames) + body


def missing_frames(cursor: Cursor, header: StreamHeader) -> int:
    """Return how many frames the SEGMENT_SHORT whose payload `cursor` begins lacks."""
    cursor.field = "missing frames"
    return cursor.bound(cursor.uv(), 1, header.segment_frames - 1)


def unpack(
    header: StreamHeader, kind: int, payload: bytes, *, limits: Limits, base: int
) -> tuple[int, dict[SectionType, bytes], int]:
    """Return frames, sections and state check of a segment chunk's payload.

    `base` is the payload's stream offset. Raises BitstreamError for a payload that breaks a rule.
    """
    cursor = Cursor(payload, limits, base=base)
    frames = header.segment_frames
    if kind == ChunkType.SEGMENT_SHORT:
        frames -= missing_frames(cursor, header)
    lengths = []
    for section in header.sections[:-1]:
        cursor.field = f"length of section {section.name}"
        lengths.append(cursor.uv())
    cursor.field = f"length of section {header.sections[-1].name}"
    last = cursor.rest() - sum(lengths) - STATE_BYTES
    if last < 0:
        cursor.refuse(f"is {last}: the payload is shorter than its sections")
    found: dict[SectionType, bytes] = {}
    for section, length in zip(header.sections, [*lengths, last], strict=True):
        content = cursor.take(length)
        if section == SectionType.CAPTION and length > limits.max_text_bytes:
            raise LimitError(f"caption of {length} bytes; the limit is {limits.max_text_bytes}")
        if length:
            found[section] = content
    return frames, found, cursor.uint(STATE_BYTES)
