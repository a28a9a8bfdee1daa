"""Decoding of whole streams: segments to pictures and sound, ranges, salvage.

Memory holds about one segment, whatever the length. The library never prints; reports are returned.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from semvc import profiles
from semvc.bitstream.container import Segment, StreamReader
from semvc.bitstream.headers import AUDIO_SECTIONS, SectionType, StreamHeader
from semvc.entropy import entropy_id
from semvc.errors import BitstreamError, ModelError, UsageError
from semvc.media.audioformat import AudioConfig
from semvc.media.writer import OutputOptions, VideoWriter
from semvc.pieces import PieceStore
from semvc.report import Report
from semvc.signals.audio import decode_audio
from semvc.signals.timing import Timing, decode_timing
from semvc.types import Runtime, VideoInfo

if TYPE_CHECKING:
    from semvc.types import UInt8

OnFrames = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """How to decode.

    `start` and `duration` are in seconds, None to the end. `resume` keeps finished segments beside
    the output and goes on with those of an interrupted run. `quality` is the output codec's
    constant rate factor, None for its default.
    """

    tier: str = "small"
    steps: int = 1
    start: float = 0.0
    duration: float | None = None
    salvage: bool = False
    resume: bool = False
    force: bool = False
    codec: str = "h264"
    quality: int | None = None


def decode(
    source: BinaryIO,
    target: Path | BinaryIO,
    job: DecodeJob | None = None,
    *,
    runtime: Runtime | None = None,
    on_frames: OnFrames | None = None,
) -> Report:
    """Decode a stream into a video file or pipe.

    Raises BitstreamError for damage (unless `salvage`, then `Report.gaps` counts), ModelError when
    the model is missing or another one, LimitError, UnsupportedError, ResourceError.
    """
    job = job or DecodeJob()
    begun = time.monotonic()
    reader = StreamReader(source, salvage=job.salvage)
    header = reader.header
    check_entropy(header)
    report = Report("decode", header.width, header.height)
    with contextlib.ExitStack() as stack:
        profile = stack.enter_context(contextlib.closing(profiles.create(header.profile)))
        profile.load(header, job.tier, job.steps, runtime or Runtime())
        writer = _open_output(target, header, job, runtime or Runtime())
        stack.push(lambda kind, *_: writer.abort() if kind else writer.close())
        player = _Player(header, profile, writer, _Range.of(header, job), report)
        player.play_all(reader, on_frames or (lambda *_: None))
        if job.salvage and reader.gaps:
            player.fill_to_end()
        if not report.frames:
            raise UsageError("nothing to decode: the stream has no intact segment in that range")
    if job.start == 0 and job.duration is None:
        report.bytes = reader.stream_bytes()
    report.gaps = len(reader.gaps)
    report.notes += [*reader.warnings, *reader.damage]
    report.video_seconds = float(report.frames / header.frame_rate)
    report.seconds = time.monotonic() - begun
    return report


def _open_output(
    target: Path | BinaryIO, header: StreamHeader, job: DecodeJob, runtime: Runtime
) -> VideoWriter | PieceStore:
    audio = AudioConfig.from_bytes(header.audio) if header.audio else None
    options = OutputOptions(codec=job.codec, crf=job.quality, force=job.force)
    info = video_info(header)
    if not job.resume:
        return VideoWriter(target, info, options=options, audio=audio)
    if not isinstance(target, Path):
        raise UsageError("a pipe cannot be resumed")
    if job.salvage:
        raise UsageError("--resume and --salvage do not go together")
    identity = f"{header.to_bytes().hex()} {job.tier} {job.steps} {job.start} {job.duration}"
    identity += f" {runtime.device} {runtime.dtype} {runtime.any_decoder} {runtime.models_dir}"
    return PieceStore(target, info, options=options, audio=audio, identity=identity)


def video_info(header: StreamHeader) -> VideoInfo:
    """Return what the output must restore."""
    return VideoInfo(
        width=header.width,
        height=header.height,
        frame_rate=None if header.time_base else header.frame_rate,
        time_base=header.time_base or 1 / header.frame_rate,
        frame_count=header.total_frames,
        color=header.color,
    )


def check_entropy(header: StreamHeader) -> None:
    """Raise ModelError if the stream was coded with other entropy tables than this program has."""
    if header.entropy_id != entropy_id():
        raise ModelError(
            f"the stream needs entropy tables {header.entropy_id.hex()}, this semvc has"
            f" {entropy_id().hex()}: use the version that wrote it; the stream itself may be intact"
        )


def unpack(
    profile: profiles.Profile, segment: Segment, header: StreamHeader
) -> tuple[Timing | None, Any]:
    """Return a segment's timing and signals; BitstreamError if the integers are not those coded."""
    timing, signals, check = _decode_signals(profile, segment, header)
    if check & 0xFFFF != segment.state_check:
        raise BitstreamError(
            f"segment {segment.index}: the decoded integers are not those that were coded",
            offset=segment.offset,
        )
    return timing, signals


def signals_check(profile: profiles.Profile, segment: Segment, header: StreamHeader) -> int:
    """Return the CRC-32 of a segment's integers, whatever its state check says."""
    return _decode_signals(profile, segment, header)[2]


def _decode_signals(
    profile: profiles.Profile, segment: Segment, header: StreamHeader
) -> tuple[Timing | None, Any, int]:
    check = 0
    timing = None
    if SectionType.TIMING in header.sections:
        payload = segment.sections.get(SectionType.TIMING, b"")
        timing, check = decode_timing(payload, segment.frames + 1, check)
    signals, check = profile.unpack(segment, header, check)
    return timing, signals, check


@dataclass(frozen=True, slots=True)
class _Range:
    """Frames to show, [first, stop), by the nominal frame rate; `stop` None to the end."""

    first: int
    stop: int | None

    @staticmethod
    def of(header: StreamHeader, job: DecodeJob) -> _Range:
        first = int(Fraction(job.start) * header.frame_rate)
        if job.duration is None:
            return _Range(first, None)
        return _Range(first, first + max(1, round(Fraction(job.duration) * header.frame_rate)))

    def holds(self, frame: int) -> bool:
        return self.first <= frame and (self.stop is None or frame < self.stop)

    def count(self, segment: Segment) -> int:
        return sum(self.holds(segment.start + index) for index in range(segment.frames))


class _Player:
    """Writes segments one after another; times begin at 0 with the first frame shown."""

    def __init__(
        self,
        header: StreamHeader,
        profile: profiles.Profile,
        writer: VideoWriter | PieceStore,
        wanted: _Range,
        report: Report,
    ) -> None:
        self._header, self._profile, self._writer = header, profile, writer
        self._audio = AudioConfig.from_bytes(header.audio) if header.audio else None
        self._wanted, self._report = wanted, report
        self._zero: int | None = None
        self._next = wanted.first  # frame of the stream that comes next in the output
        self._picture: UInt8 = np.zeros((header.height, header.width, 3), np.uint8)

    def play_all(self, reader: StreamReader, on_frames: OnFrames) -> None:
        """Write every segment that the range touches."""
        for segment in reader:
            if self._wanted.stop is not None and segment.start >= self._wanted.stop:
                break
            if segment.start + segment.frames > self._wanted.first:
                self.play(segment, on_frames)

    def play(self, segment: Segment, on_frames: OnFrames) -> None:
        """Write one segment, after what is missing before it."""
        timing, signals = unpack(self._profile, segment, self._header)
        times = timing.pts if timing else range(segment.start, segment.start + segment.frames + 1)
        first = max(0, self._wanted.first - segment.start)
        if self._zero is None:
            gap = 0 if timing else max(0, segment.start - self._next)
            self._zero = times[first] - gap
        if timing is None:
            self._hold_until(segment.start)
        if isinstance(self._writer, PieceStore):
            if self._writer.begin(segment, times[first] - self._zero):
                self._synthesize(segment, signals, times, on_frames)
            else:
                self._report.resumed_segments += 1
                self._report.frames += self._wanted.count(segment)
                self._next = segment.start + segment.frames
            self._sound(segment, times[0])
            self._writer.end()
        else:
            self._sound(segment, times[0])
            self._synthesize(segment, signals, times, on_frames)
        self._report.segments += 1
        self._report.bytes += segment.chunk_bytes
        for kind, payload in segment.sections.items():
            self._report.sections[kind.name.lower()] += len(payload)

    def _synthesize(
        self, segment: Segment, signals: Any, times: Sequence[int], on_frames: OnFrames
    ) -> None:
        zero = self._zero or 0
        for index, frame in enumerate(self._profile.synthesize(signals, segment, self._header)):
            number = segment.start + index
            if self._wanted.stop is not None and number >= self._wanted.stop:
                break
            if self._wanted.holds(number):
                self._show(frame, times[index] - zero, times[index + 1] - times[index])
            self._next = max(self._next, number + 1)
            on_frames(self._report.frames, self._header.total_frames)

    def fill_to_end(self) -> None:
        """Hold the last picture for frames that are announced but missing at the end."""
        if self._header.time_base is None:
            stop = self._header.total_frames
            self._hold_until(stop if self._wanted.stop is None else min(stop, self._wanted.stop))

    def _hold_until(self, frame: int) -> None:
        if self._zero is None:
            self._zero = self._next
        for number in range(self._next, frame):
            self._show(self._picture, number - self._zero, 1)
        self._next = max(self._next, frame)

    def _show(self, frame: UInt8, pts: int, length: int) -> None:
        self._writer.write(frame, pts, length)
        self._picture = frame
        self._report.frames += 1

    def _sound(self, segment: Segment, start: int) -> None:
        kind = next((k for k in segment.sections if k in AUDIO_SECTIONS), None)
        if kind is None or self._audio is None or self._zero is None:
            return
        audio, _ = decode_audio(segment.sections[kind])
        base = self._header.time_base or 1 / self._header.frame_rate
        begin = int((start - self._zero) * base * self._audio.rate + Fraction(1, 2)) + audio.offset
        packets = audio.packets
        if begin < 0 and start < self._zero:  # before the range: whole packets are left out
            skip = min(len(packets), -(begin // self._audio.packet_samples))
            packets, begin = packets[skip:], begin + skip * self._audio.packet_samples
        if packets:
            self._writer.write_audio(begin, packets)
