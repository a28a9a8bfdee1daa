"""Encoding and decoding of whole files: the segment loop, rate control, sound, reports.

Memory holds about one segment, whatever the length. The library never prints; reports are returned.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from semvc import profiles
from semvc.bitstream.container import (
    PartFile,
    Segment,
    StreamReader,
    StreamWriter,
    part_header,
    resume_writer,
)
from semvc.bitstream.headers import AUDIO_SECTIONS, SectionType, StreamHeader
from semvc.entropy import entropy_id
from semvc.errors import BitstreamError, ModelError, UsageError
from semvc.media.audio import AudioTrack
from semvc.media.audioformat import AudioConfig
from semvc.media.reader import VideoReader
from semvc.media.scenes import SegmentPlanner
from semvc.media.writer import OutputOptions, VideoWriter
from semvc.rate import TOLERANCE, Target, search
from semvc.signals.audio import Audio, decode_audio, encode_audio
from semvc.signals.timing import Timing, decode_timing, encode_timing
from semvc.types import Clip, EncodeOptions, Runtime, VideoInfo

if TYPE_CHECKING:
    from semvc.types import UInt8

_MAX_CLIP_BYTES = 1 << 30  # RGB frames of one segment in memory
_MIN_SECONDS = 0.75  # of a segment between scene cuts
OnFrames = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """How to run an encode, apart from what changes the bits; `target` overrides the quality."""

    target: Target | None = None
    deterministic: bool = False
    force: bool = False
    resume: bool = False
    keep_partial: bool = False


@dataclass(frozen=True, slots=True)
class DecodeJob:
    """How to decode: `start` and `duration` in seconds, None to the end; `quality` is the output's crf."""

    tier: str = "small"
    steps: int = 1
    start: float = 0.0
    duration: float | None = None
    salvage: bool = False
    resume: bool = False
    force: bool = False
    codec: str = "h264"
    quality: int | None = None


@dataclass(slots=True)
class Report:
    """What was done: sizes in bytes, times in seconds, memory in bytes; filled while running."""

    verb: str
    width: int
    height: int
    frames: int = 0
    segments: int = 0
    bytes: int = 0
    video_seconds: float = 0.0
    seconds: float = 0.0
    sections: Counter[str] = field(default_factory=Counter)
    qualities: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    gaps: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready values; bpp and kbps count the whole stream."""
        pixels = self.width * self.height * self.frames
        audio = sum(self.sections[kind.name.lower()] for kind in AUDIO_SECTIONS)
        row = {
            **dataclasses.asdict(self),
            "sections": dict(self.sections),
            "audio_bytes": audio,
            "bpp": 8 * self.bytes / pixels if pixels else 0.0,
            "video_bpp": 8 * (self.bytes - audio) / pixels if pixels else 0.0,
            "kbps": 8 * self.bytes / self.video_seconds / 1000 if self.video_seconds else 0.0,
            "fps": self.frames / self.seconds if self.seconds else 0.0,
            "peak_memory_bytes": _peak_memory(),
        }
        return row

    def summary(self) -> str:
        """Return one line for a person."""
        row = self.to_json()
        rate = f"{self.bytes} bytes, {row['bpp']:.5f} bpp, {row['kbps']:.2f} kbit/s"
        return (
            f"{self.frames} frames in {self.segments} segments, {rate}, {row['fps']:.1f} frames/s"
        )


def encode(
    source: Path | BinaryIO,
    target: Path | BinaryIO,
    options: EncodeOptions,
    *,
    job: EncodeJob | None = None,
    on_frames: OnFrames | None = None,
) -> Report:
    """Encode a video into a stream; `on_frames(done, total)` is called as frames are written.

    Raises MediaError for an unreadable input, UsageError for options that contradict or a target
    that cannot be met, ResourceError when writing fails. A file appears complete or not at all.
    """
    job = job or EncodeJob()
    begun = time.monotonic()
    with VideoReader(source) as reader, contextlib.ExitStack() as stack:
        report = Report("encode", reader.info.width, reader.info.height)
        report.notes.extend(reader.info.notes)
        part = None
        if isinstance(target, Path):
            part = stack.enter_context(
                PartFile(target, force=job.force, resume=job.resume, keep_partial=job.keep_partial)
            )
        track = _open_track(reader, options, stack, report)
        encoder = _Encoder(reader.info, options, job, track, report)
        encoder.end_pts = reader.end_pts
        encoder.run(_clips(reader, options), part, target, on_frames or (lambda *_: None))
    report.seconds = time.monotonic() - begun
    return report


def _open_track(
    reader: VideoReader, options: EncodeOptions, stack: contextlib.ExitStack, report: Report
) -> AudioTrack | None:
    if options.audio == "none":
        return None
    if reader.audio is None:
        return None
    kbps = None if options.audio == "copy" else options.audio_kbps
    return stack.enter_context(AudioTrack(reader.source, reader.start, kbps=kbps))


def _clips(reader: VideoReader, options: EncodeOptions) -> Iterator[tuple[Clip, int | None]]:
    """Yield each segment's clip and the pts of the frame after it, None at the end."""
    info = reader.info
    rate = float(info.frame_rate or _mean_rate(reader))
    most = max(2, min(1000, round(options.segment_seconds * rate)))
    most = max(2, min(most, _MAX_CLIP_BYTES // (3 * info.width * info.height)))
    planner = SegmentPlanner(
        rate, max_frames=most, min_frames=max(1, min(most // 2, round(_MIN_SECONDS * rate)))
    )
    frames: list[UInt8] = []
    pts: list[int] = []

    def take(count: int) -> tuple[Clip, int | None]:
        clip = Clip(np.stack(frames[:count]), np.array(pts[:count], np.int64), info)
        after = pts[count] if len(pts) > count else None
        del frames[:count], pts[:count]
        return clip, after

    for frame, time_of_frame in reader:
        frames.append(frame)
        pts.append(time_of_frame)
        for span in planner.push(frame):
            yield take(span.count)
    for span in planner.finish():
        yield take(span.count)


def _mean_rate(reader: VideoReader) -> Fraction:
    """Frames per second on average, for a video whose frames come at varying times."""
    seconds = reader.end_pts * reader.info.time_base
    rate = (
        reader.info.frame_count / seconds if seconds and reader.info.frame_count else Fraction(25)
    )
    return min(Fraction(240), max(Fraction(1, 60), rate)).limit_denominator(1000)


class _Encoder:
    """The state of one encode: header once known, writer, budget."""

    def __init__(
        self,
        info: VideoInfo,
        options: EncodeOptions,
        job: EncodeJob,
        track: AudioTrack | None,
        report: Report,
    ) -> None:
        self._info, self._options, self._job = info, options, job
        self._track, self._report = track, report
        self._profile = profiles.create(profiles.by_name(options.profile))
        self._variable = info.frame_rate is None
        self._audio_bytes = 0
        self._last_quality = options.quality if job.target is None else 32.0
        self.end_pts = 0

    def run(
        self,
        clips: Iterator[tuple[Clip, int | None]],
        part: PartFile | None,
        target: Path | BinaryIO,
        on_frames: OnFrames,
    ) -> None:
        """Write the whole stream."""
        writer: StreamWriter | None = None
        start = 0
        for clip, after in clips:
            sound = self._sound(clip, after)
            if writer is None:
                fields = self._begin(clip, sound)
                header = self._header(fields, clip, part)
                if part is None:
                    if isinstance(target, Path):
                        raise ValueError("a path needs a part file")
                    writer = StreamWriter(target, header)
                else:
                    writer = (
                        resume_writer(part, header)
                        if self._job.resume
                        else StreamWriter(part.sink, header, sync=part.sync)
                    )
                resumed = writer.next_index
                if resumed:
                    self._report.notes.append(f"continued after {resumed} finished segments")
            if self._report.segments >= resumed:
                self._write(writer, clip, start, after, sound)
            self._account(clip, sound, writer)
            start += len(clip.frames)
            on_frames(start, self._info.frame_count)
        if writer is None:
            raise UsageError("the input has no frames")
        writer.finish()
        self._report.bytes = writer.bytes_written
        self._check_target(start)

    def _begin(self, clip: Clip, sound: bytes) -> dict[str, Any]:
        if self._job.target is None:
            return self._profile.begin(clip, self._options)
        budget = self._budget(len(clip.frames), len(sound), 0)

        def code(quality: float) -> tuple[int, float]:
            self._profile.begin(clip, dataclasses.replace(self._options, quality=quality))
            coded = self._profile.encode(clip, 0, quality, 0)
            return _framed(coded.sections), quality

        trial, quality = search(budget, self._last_quality, code)
        if trial.quality == 0 and trial.size > budget * (1 + TOLERANCE):
            floor = trial.size * (self._info.frame_count or len(clip.frames)) / len(clip.frames)
            raise UsageError(
                f"{self._job.target.kind} {self._job.target.value:g} cannot be reached: the smallest"
                f" picture stream for this input has about {round(floor)} bytes"
                f" (the first segment needs {trial.size}, its share is {round(budget)});"
                " a larger --factor or --step, or no sketch, may help"
            )
        self._last_quality = quality
        return self._profile.begin(clip, dataclasses.replace(self._options, quality=quality))

    def _header(self, fields: dict[str, Any], clip: Clip, part: PartFile | None) -> StreamHeader:
        info, options = self._info, self._options
        sections = list(fields.pop("sections"))
        if self._track is not None:
            kind = SectionType.AUDIO_COPY if options.audio == "copy" else SectionType.AUDIO_OPUS
            sections.insert(-1, kind)
        if self._variable:
            sections.insert(0, SectionType.TIMING)
        rate = info.frame_rate or _rate_of(clip, self._info, self.end_pts)
        frames = round(options.segment_seconds * float(rate))
        most = _MAX_CLIP_BYTES // (3 * info.width * info.height)
        header = StreamHeader(
            salt=0,
            entropy_id=entropy_id(),
            seed=options.seed,
            width=info.width,
            height=info.height,
            frame_rate=rate,
            color=info.color,
            segment_frames=max(2, min(1000, frames, most)),
            total_frames=0 if part is None else info.frame_count,
            profile=self._profile.id,
            sections=tuple(sections),
            audio=b"" if self._track is None else self._track.config.to_bytes(),
            time_base=info.time_base if self._variable else None,
            title=options.title,
            **fields,
        )
        begun = part_header(part) if part is not None and self._job.resume else None
        if begun is not None:
            salt = begun.salt
        elif self._job.deterministic:
            digest = hashlib.sha256(header.to_bytes())
            digest.update(clip.frames[0].tobytes())
            digest.update(clip.frames[-1].tobytes())
            salt = int.from_bytes(digest.digest()[:4], "little")
        else:
            salt = int.from_bytes(os.urandom(4), "little")
        return dataclasses.replace(header, salt=salt)

    def _write(
        self, writer: StreamWriter, clip: Clip, start: int, after: int | None, sound: bytes
    ) -> None:
        sections: dict[SectionType, bytes] = {}
        check = 0
        if self._variable:
            end = after if after is not None else max(self.end_pts, int(clip.pts[-1]) + 1)
            times = Timing((*(int(p) for p in clip.pts), end))
            sections[SectionType.TIMING], check = encode_timing(times, check)
        quality = self._options.quality
        if self._job.target is None:
            coded = self._profile.encode(clip, start, quality, check)
        else:
            spent = writer.bytes_written - (
                0 if self._job.target.counts_audio else self._audio_bytes
            )
            budget = self._budget(start + len(clip.frames), len(sound), spent)

            def code(value: float) -> tuple[int, profiles.Coded]:
                made = self._profile.encode(clip, start, value, check)
                return _framed(made.sections), made

            trial, coded = search(budget, self._last_quality, code)
            quality = self._last_quality = trial.quality
        sections |= coded.sections
        if sound:
            sections[self._audio_kind(writer)] = sound
        writer.write(len(clip.frames), sections, coded.check & 0xFFFF)
        self._report.qualities.append(quality)
        for kind, payload in sections.items():
            self._report.sections[kind.name.lower()] += len(payload)

    def _audio_kind(self, writer: StreamWriter) -> SectionType:
        return next(kind for kind in writer.header.sections if kind in AUDIO_SECTIONS)

    def _account(self, clip: Clip, sound: bytes, writer: StreamWriter) -> None:
        self._audio_bytes += len(sound)
        self._report.segments += 1
        self._report.frames += len(clip.frames)
        self._report.video_seconds = float(self._report.frames / writer.header.frame_rate)

    def _budget(self, frames: int, sound: int, spent: int) -> float:
        """Bytes that the picture of the next segment may take, after which `frames` are coded."""
        target = self._job.target
        if target is None:
            raise ValueError("no target")
        seconds = frames / (self._info.frame_rate or self._mean_rate())
        allowed = target.bytes_for(self._info, frames, Fraction(seconds))
        if target.counts_audio:
            allowed -= sound
        return allowed - (spent or 60) - (14 if frames == self._info.frame_count else 0)

    def _mean_rate(self) -> Fraction:
        span = self.end_pts * self._info.time_base
        return self._info.frame_count / span if span and self._info.frame_count else Fraction(25)

    def _sound(self, clip: Clip, after: int | None) -> bytes:
        if self._track is None:
            return b""
        base = self._info.time_base
        begin = int(clip.pts[0]) * base
        end = None if after is None else after * base
        offset, packets = self._track.take(begin, end)
        return encode_audio(Audio(offset, tuple(packets)))[0]

    def _check_target(self, frames: int) -> None:
        target = self._job.target
        if target is None:
            return
        seconds = Fraction(frames) / (self._info.frame_rate or self._mean_rate())
        allowed = target.bytes_for(self._info, frames, seconds)
        found = self._report.bytes - (0 if target.counts_audio else self._audio_bytes)
        if abs(found / allowed - 1) <= TOLERANCE:
            return
        why = "the highest quality needs no more" if found < allowed else "its content needs more"
        self._report.notes.append(
            f"{target.kind} {target.value:g} was missed by {found / allowed - 1:+.1%}: {why}"
        )


def _framed(sections: dict[SectionType, bytes]) -> int:
    """Bytes of a segment with these sections, its framing included (to within two)."""
    return sum(len(payload) + 2 for payload in sections.values()) + 9


def _rate_of(clip: Clip, info: VideoInfo, end_pts: int) -> Fraction:
    count = info.frame_count or len(clip.pts)
    span = (end_pts or int(clip.pts[-1])) * info.time_base
    rate = count / span if span else Fraction(25)
    return min(Fraction(240), max(Fraction(1, 60), rate)).limit_denominator(1000)


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# --- decoding


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
    job, runtime = job or DecodeJob(), runtime or Runtime()
    begun = time.monotonic()
    reader = StreamReader(source, salvage=job.salvage)
    header = reader.header
    check_entropy(header)
    profile = profiles.create(header.profile)
    profile.load(header, job.tier, job.steps, runtime)
    info = VideoInfo(
        width=header.width,
        height=header.height,
        frame_rate=None if header.time_base else header.frame_rate,
        time_base=header.time_base or 1 / header.frame_rate,
        frame_count=header.total_frames,
        color=header.color,
    )
    report = Report("decode", header.width, header.height)
    audio = AudioConfig.from_bytes(header.audio) if header.audio else None
    options = OutputOptions(codec=job.codec, crf=job.quality, force=job.force)
    with VideoWriter(target, info, options=options, audio=audio) as writer:
        player = _Player(header, profile, writer, audio, report)
        for segment in _wanted(reader, job):
            player.play(segment, on_frames or (lambda *_: None))
        if not report.frames:
            raise UsageError("nothing to decode: the stream has no segment in that range")
    report.bytes = reader.stream_bytes()
    report.gaps += len(reader.gaps)
    report.notes += reader.warnings
    report.video_seconds = float(report.frames / header.frame_rate)
    report.seconds = time.monotonic() - begun
    return report


def check_entropy(header: StreamHeader) -> None:
    """Raise ModelError if the stream was coded with other entropy tables than this program has."""
    if header.entropy_id != entropy_id():
        raise ModelError(
            f"the stream needs entropy tables {header.entropy_id.hex()}, this semvc has"
            f" {entropy_id().hex()}: use the version that wrote it"
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


def _wanted(reader: StreamReader, job: DecodeJob) -> Iterator[Segment]:
    """Yield the segments that a range of seconds touches; others are not decoded."""
    rate = reader.header.frame_rate
    first = int(job.start * rate)
    last = None if job.duration is None else first + max(1, round(job.duration * float(rate)))
    for segment in reader:
        if last is not None and segment.start >= last:
            return
        if segment.start + segment.frames > first:
            yield segment


class _Player:
    """Writes segments one after another; times begin at 0 with the first one."""

    def __init__(
        self,
        header: StreamHeader,
        profile: profiles.Profile,
        writer: VideoWriter,
        audio: AudioConfig | None,
        report: Report,
    ) -> None:
        self._header, self._profile, self._writer = header, profile, writer
        self._audio, self._report = audio, report
        self._zero: int | None = None

    def play(self, segment: Segment, on_frames: OnFrames) -> None:
        timing, signals = unpack(self._profile, segment, self._header)
        times = timing.pts if timing else range(segment.start, segment.start + segment.frames + 1)
        if self._zero is None:
            self._zero = times[0]
        self._sound(segment, times[0])
        for index, frame in enumerate(self._profile.synthesize(signals, segment, self._header)):
            length = times[index + 1] - times[index]
            self._writer.write(frame, times[index] - self._zero, length)
            self._report.frames += 1
            on_frames(self._report.frames, self._header.total_frames)
        self._report.segments += 1
        for kind, payload in segment.sections.items():
            self._report.sections[kind.name.lower()] += len(payload)

    def _sound(self, segment: Segment, start: int) -> None:
        kind = next((k for k in segment.sections if k in AUDIO_SECTIONS), None)
        if kind is None or self._audio is None or self._zero is None:
            return
        audio, _ = decode_audio(segment.sections[kind])
        base = self._header.time_base or 1 / self._header.frame_rate
        begin = int((start - self._zero) * base * self._audio.rate + Fraction(1, 2))
        self._writer.write_audio(begin + audio.offset, audio.packets)
