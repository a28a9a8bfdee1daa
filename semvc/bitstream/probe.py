"""What a stream holds and whether it is intact, from its bytes alone: no model, no numpy.

`probe` answers `info`, `verify` answers `verify`. Both read damaged streams as far as they go; both
raise only if there is no readable header, or a limit or an unsupported feature stands in the way.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import BinaryIO

from semvc.bitstream import latents, wire
from semvc.bitstream.headers import AUDIO_SECTIONS, DEFAULT_LIMITS, SectionType, StreamHeader
from semvc.bitstream.reader import StreamReader
from semvc.bitstream.segments import Segment
from semvc.bitstream.wire import uv_bytes
from semvc.errors import BitstreamError
from semvc.types import Limits

_RECORD_OWNERS = {
    "sequence_header": (SectionType.BASE_AV1,),
    "base_size": (SectionType.BASE_AV1, SectionType.BASE_HEVC),
    "audio": (SectionType.AUDIO_OPUS, SectionType.AUDIO_COPY),
    "time_base": (SectionType.TIMING,),
    "codec_id": (SectionType.LATENT,),
}


@dataclass(frozen=True, slots=True)
class SectionInfo:
    """Bytes that all sections of one type take, and in how many segments there is one."""

    type: SectionType
    bytes: int
    count: int


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """One row of `info --segments`; sizes in bytes."""

    index: int
    offset: int
    bytes: int
    start: int
    frames: int
    sections: tuple[tuple[SectionType, int], ...]
    state_check: int

    def to_json(self) -> dict[str, object]:
        """Return the row as JSON-ready values."""
        return {
            "index": self.index,
            "offset": self.offset,
            "bytes": self.bytes,
            "start": self.start,
            "frames": self.frames,
            "sections": {kind.name.lower(): size for kind, size in self.sections},
            "state_check": self.state_check,
        }


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What `info` shows.

    `bytes` is the whole stream. It is the sum of `overhead_bytes` and of all `sections`, where a
    section type's bytes include the header records that belong to it, and audio's include the
    lengths of audio sections. `frames` are those present; `complete` is false if some are missing.
    `latent_parts` are the bytes of the parts of all LATENT sections, by name.
    """

    header: StreamHeader
    bytes: int
    frames: int
    sections: tuple[SectionInfo, ...]
    overhead_bytes: int
    table: tuple[SegmentInfo, ...]
    complete: bool
    warnings: tuple[str, ...]
    latent_parts: tuple[tuple[str, int], ...] = ()

    @property
    def segments(self) -> int:
        """Return the number of segments present."""
        return len(self.table)

    @property
    def audio_bytes(self) -> int:
        """Return the bytes of sound."""
        return sum(item.bytes for item in self.sections if item.type in AUDIO_SECTIONS)

    @property
    def duration_s(self) -> float:
        """Return the duration in seconds at the nominal frame rate."""
        return float(self.frames / self.header.frame_rate)

    def bpp(self, size: int) -> float:
        """Return `size` bytes as bits per source pixel; 0 without frames."""
        pixels = self.header.width * self.header.height * self.frames
        return 8 * size / pixels if pixels else 0.0

    def kbps(self, size: int) -> float:
        """Return `size` bytes as kilobits per source second; 0 without frames."""
        return 8 * size / self.duration_s / 1000 if self.frames else 0.0

    def to_json(self, *, segments: bool = False) -> dict[str, object]:
        """Return the report as JSON-ready values, with the table of segments if asked.

        bpp and kbps count the whole stream; those that begin with `video_` leave audio out.
        """
        video = self.bytes - self.audio_bytes
        found: dict[str, object] = {
            "profile": self.header.profile.name.lower(),
            "width": self.header.width,
            "height": self.header.height,
            "frame_rate": str(self.header.frame_rate),
            "frames": self.frames,
            "duration_s": self.duration_s,
            "bytes": self.bytes,
            "bpp": self.bpp(self.bytes),
            "kbps": self.kbps(self.bytes),
            "video_bpp": self.bpp(video),
            "video_kbps": self.kbps(video),
            "audio_bytes": self.audio_bytes,
            "overhead_bytes": self.overhead_bytes,
            "segments": self.segments,
            "sections": [
                {"type": item.type.name.lower(), "bytes": item.bytes, "count": item.count}
                for item in self.sections
            ],
            "complete": self.complete,
            "warnings": list(self.warnings),
            "header": self.header.to_json(),
        }
        if self.latent_parts:
            found["latent_parts"] = dict(self.latent_parts)
        if segments:
            found["table"] = [row.to_json() for row in self.table]
        return found


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Result of `verify`: `damage` is empty if and only if the stream is intact.

    `warnings` name what is odd but harmless.
    """

    bytes: int
    segments: int
    frames: int
    damage: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True if every checksum and every rule holds and END is there."""
        return not self.damage


def probe(source: BinaryIO, limits: Limits = DEFAULT_LIMITS) -> StreamInfo:
    """Return what the stream holds; damage shows in `complete` and `warnings`.

    Raises BitstreamError without a readable header, LimitError, UnsupportedError, ResourceError.
    """
    reader = StreamReader(source, limits, salvage=True)
    header = reader.header
    sizes: Counter[SectionType] = Counter()
    counts: Counter[SectionType] = Counter()
    parts: Counter[str] = Counter()
    rows, frames = [], 0
    for segment in reader:
        if SectionType.LATENT in segment.sections:
            parts.update(_latent_parts(segment.sections[SectionType.LATENT]))
        frames += segment.frames
        for kind, payload in segment.sections.items():
            sizes[kind] += len(payload)
            counts[kind] += 1
        for kind in header.sections[:-1]:
            if kind in AUDIO_SECTIONS:
                sizes[kind] += len(uv_bytes(len(segment.sections.get(kind, b""))))
        rows.append(_row(segment))
    for name, cost in wire.record_bytes(header).items():
        for owner in _RECORD_OWNERS.get(name, ()):
            if owner in header.sections:
                sizes[owner] += cost
                break
    size = reader.stream_bytes()
    return StreamInfo(
        header=header,
        bytes=size,
        frames=frames,
        sections=tuple(SectionInfo(kind, sizes[kind], counts[kind]) for kind in header.sections),
        overhead_bytes=size - sizes.total(),
        table=tuple(rows),
        complete=reader.end is not None and not reader.gaps,
        warnings=tuple(reader.warnings),
        latent_parts=tuple(parts.items()),
    )


def verify(
    source: BinaryIO, limits: Limits = DEFAULT_LIMITS, *, strict: bool = False
) -> VerifyReport:
    """Check every checksum, limit and count of a stream; `strict` forbids bytes after END.

    Raises as `probe` does; other damage is in the report.
    """
    reader = StreamReader(source, limits, salvage=True)
    segments = frames = 0
    for segment in reader:
        segments, frames = segments + 1, frames + segment.frames
    damage = [*reader.damage]
    if strict and reader.end is not None and reader.trailing:
        damage.append(f"bytes follow END at byte {reader.end_offset}")
    return VerifyReport(
        bytes=reader.stream_bytes(),
        segments=segments,
        frames=frames,
        damage=tuple(damage),
        warnings=tuple(text for text in reader.warnings if text not in damage),
    )


def _latent_parts(payload: bytes) -> dict[str, int]:
    try:
        return latents.split(payload).sizes
    except BitstreamError:
        return {"head": len(payload)}  # what is wrong, `verify --deep` says


def _row(segment: Segment) -> SegmentInfo:
    return SegmentInfo(
        index=segment.index,
        offset=segment.offset,
        bytes=segment.chunk_bytes,
        start=segment.start,
        frames=segment.frames,
        sections=tuple((kind, len(payload)) for kind, payload in segment.sections.items()),
        state_check=segment.state_check,
    )
