"""Decoding of whole streams: segments to pictures and sound, ranges, salvage.

Memory holds about one segment, whatever the length. The library never prints; reports are returned.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from semvc import profiles, weights
from semvc.bitstream.container import Gap, Segment, StreamReader
from semvc.bitstream.headers import AUDIO_SECTIONS, SectionType, StreamHeader
from semvc.entropy import entropy_id
from semvc.errors import BitstreamError, ModelError, UsageError
from semvc.media.audio import sample_at
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

    `tier` is preview, small or full; empty for small, or preview if no such model is known.
    `start` and `duration` are in seconds, None to the end. `resume` keeps finished segments beside
    the output and goes on with those of an interrupted run. `quality` is the output codec's
    constant rate factor, None for its default.
    """

    tier: str = ""
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
    on_note: Callable[[str], None] | None = None,
) -> Report:
    """Decode a stream into a video file or pipe; `on_frames(done, total)` counts frames shown.

    `on_note` is told, before any frame, what `Report.notes` begins with.

    The total is 0 where it is not known: a pipe's stream, or a range where frame times vary.
    The report's bytes are those of the whole stream, or of the segments that a range touches.
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
        if not job.tier:
            job = dataclasses.replace(job, tier=_usual_tier(header, runtime or Runtime(), report))
        profile.load(header, job.tier, job.steps, runtime or Runtime())
        report.notes += getattr(profile, "notes", ())
        for note in report.notes if on_note else ():
            on_note(note)  # type: ignore[misc]  # not None: see the line above
        writer = _open_output(target, header, job, runtime or Runtime())
        stack.push(lambda kind, *_: writer.abort() if kind else writer.close())
        player = _Player(header, profile, writer, _Range.of(header, job), report)
        player.play_all(reader, on_frames or (lambda *_: None), salvage=job.salvage)
        if not report.segments:  # held frames alone are no video
            if report.gaps:
                raise BitstreamError("no segment that is wanted is intact")
            end = float(player.stop * _tick(header))
            raise UsageError(f"nothing to decode: the stream ends at {end:g} s, before --start")
    if job.start == 0 and job.duration is None:
        report.bytes = reader.stream_bytes()
    report.notes += reader.warnings
    report.video_seconds = float(player.ticks * _tick(header))
    report.seconds = time.monotonic() - begun
    return report


def _usual_tier(header: StreamHeader, runtime: Runtime, report: Report) -> str:
    """The tier for users who name none; a note in the report if that is not the usual one."""
    name = header.profile.name.lower()
    wanted = ("generator", name, "small")
    for ref in weights.index(runtime.models_dir):
        if (ref.role, ref.profile, ref.tier) == wanted:
            return "small"
    report.notes.append(f"no model for profile {name} is installed: decoded at tier preview")
    return "preview"


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
    if job.tier == "full":
        identity += f" {runtime.full}"
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


def _tick(header: StreamHeader) -> Fraction:
    """The unit of a stream's times in seconds: a frame, or the time base if frames vary."""
    return header.time_base or 1 / header.frame_rate


@dataclass(frozen=True, slots=True)
class _Range:
    """What to show: frames that last beyond tick `first`; `count` ticks (None: all) from there.

    The count begins with the first frame shown.
    """

    first: int
    count: int | None

    @staticmethod
    def of(header: StreamHeader, job: DecodeJob) -> _Range:
        first = int(_exact(job.start) / _tick(header))
        if job.duration is None:
            return _Range(first, None)
        return _Range(first, max(1, round(_exact(job.duration) / _tick(header))))


def _exact(seconds: float) -> Fraction:
    return Fraction(seconds).limit_denominator(10**6)  # 0.7 is not a little less than 0.7


class _Player:
    """Writes segments one after another; times begin at 0 with the first frame shown.

    `ticks` is how long the output is by now, `stop` where the last segment read ends.
    """

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
        self._zero = None if header.time_base else wanted.first  # tick where the output begins
        self._next = wanted.first  # frame of the stream that comes next, if frames do not vary
        self._picture: UInt8 = np.zeros((header.height, header.width, 3), np.uint8)
        self.ticks = self.stop = 0

    def play_all(self, reader: StreamReader, on_frames: OnFrames, *, salvage: bool) -> None:
        """Write every segment that the range touches; with `salvage`, hold frames over gaps."""
        for segment in reader:
            try:
                times = _times(segment, self._header)
                self.stop = times[-1]
                if self._is_past(times[0]):
                    break
                if times[-1] > self._wanted.first:
                    self._play(segment, times, on_frames)
            except BitstreamError as error:
                if not salvage:
                    raise
                self._report.gaps += 1
                self._report.notes.append(str(error))
        self._report.gaps += sum(self._touches(gap) for gap in reader.gaps)
        if self._report.gaps and self._header.time_base is None:
            stop = self._header.total_frames
            if self._wanted.count is not None:
                stop = min(stop, self._wanted.first + self._wanted.count)
            self._hold_until(stop)

    def _is_past(self, tick: int) -> bool:
        begin = self._wanted.first if self._zero is None else self._zero
        return self._wanted.count is not None and tick >= begin + self._wanted.count

    def _touches(self, gap: Gap) -> bool:
        if self._header.time_base is not None:
            return True  # the times went with the frames
        stops = gap.frames is not None and gap.start + gap.frames <= self._wanted.first
        return not stops and not self._is_past(gap.start)

    def _play(self, segment: Segment, times: Sequence[int], on_frames: OnFrames) -> None:
        _, signals = unpack(self._profile, segment, self._header)
        first = next(i for i, end in enumerate(times[1:]) if end > self._wanted.first)
        if self._zero is None:
            self._zero = times[first]
        shown = [i for i in range(first, segment.frames) if not self._is_past(times[i])]
        if self._header.time_base is None:
            self._hold_until(segment.start)
        if isinstance(self._writer, PieceStore):
            if self._writer.begin(segment, times[first] - self._zero):
                self._synthesize(segment, signals, times, on_frames)
            else:
                self._report.resumed_segments += 1
                self._report.frames += len(shown)
                self.ticks = times[shown[-1] + 1] - self._zero
            self._sound(segment, times[0])
            self._writer.end()
        else:
            self._sound(segment, times[0])
            self._synthesize(segment, signals, times, on_frames)
        self._next = segment.start + segment.frames
        self._report.segments += 1
        self._report.bytes += segment.chunk_bytes
        for kind, payload in segment.sections.items():
            self._report.sections[kind.name.lower()] += len(payload)

    def _synthesize(
        self, segment: Segment, signals: Any, times: Sequence[int], on_frames: OnFrames
    ) -> None:
        zero = self._zero or 0
        for index, frame in enumerate(self._profile.synthesize(signals, segment, self._header)):
            if self._is_past(times[index]):
                break
            if times[index + 1] > self._wanted.first:
                self._show(frame, times[index] - zero, times[index + 1] - times[index])
            on_frames(self._report.frames, self._expected())

    def _expected(self) -> int:
        """How many frames will be shown; 0 if that is not known."""
        total, first, count = self._header.total_frames, self._wanted.first, self._wanted.count
        if first == 0 and count is None:
            return total
        if not total or self._header.time_base is not None:
            return 0  # a range of times says nothing about frames
        left = max(0, total - first)
        return left if count is None else min(count, left)

    def _hold_until(self, frame: int) -> None:
        zero = self._zero or 0
        for number in range(self._next, frame):
            self._show(self._picture, number - zero, 1)
        self._next = max(self._next, frame)

    def _show(self, frame: UInt8, pts: int, length: int) -> None:
        self._writer.write(frame, pts, length)
        self._picture = frame
        self._report.frames += 1
        self.ticks = pts + length

    def _sound(self, segment: Segment, start: int) -> None:
        kind = next((k for k in segment.sections if k in AUDIO_SECTIONS), None)
        if kind is None or self._audio is None or self._zero is None:
            return
        audio, _ = decode_audio(segment.sections[kind])
        tick, length = _tick(self._header), self._audio.packet_samples
        begin = sample_at((start - self._zero) * tick, self._audio.rate) + audio.offset
        packets = audio.packets
        if self._wanted.count is not None:  # after the range: packets that begin there
            left = sample_at(self._wanted.count * tick, self._audio.rate) - begin
            packets = packets[: max(0, -(-left // length))]
        if begin < 0 and start < self._zero:  # before the range: whole packets are left out
            skip = min(len(packets), -(begin // length))
            packets, begin = packets[skip:], begin + skip * length
        if packets:
            self._writer.write_audio(begin, packets)


def _times(segment: Segment, header: StreamHeader) -> Sequence[int]:
    """When the segment's frames are shown, in ticks, and when the last one ends."""
    if SectionType.TIMING not in header.sections:
        return range(segment.start, segment.start + segment.frames + 1)
    payload = segment.sections.get(SectionType.TIMING, b"")
    return decode_timing(payload, segment.frames + 1)[0].pts
