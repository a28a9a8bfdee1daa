"""Encoding of whole files: segments, sound, timing, rate control, resuming.

Memory holds about one segment, whatever the length. The library never prints; reports are returned.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from semvc import __version__, profiles
from semvc.bitstream.container import PartFile, Segment, StreamWriter, part_header, resume_writer
from semvc.bitstream.headers import AUDIO_SECTIONS, SectionType, StreamHeader
from semvc.entropy import entropy_id
from semvc.errors import UsageError
from semvc.media import audio
from semvc.media.audio import AudioTrack
from semvc.media.reader import VideoReader
from semvc.media.scenes import SegmentPlanner
from semvc.rate import TOLERANCE, Memo, Shares, Target, search
from semvc.report import Report
from semvc.signals.audio import Audio, encode_audio
from semvc.signals.timing import Timing, encode_timing
from semvc.types import Clip, EncodeOptions, Span, VideoInfo

if TYPE_CHECKING:
    from semvc.types import UInt8

OnFrames = Callable[[int, int], None]

_MAX_CLIP_BYTES = 1 << 30  # RGB frames of one segment in memory
_MAX_FRAMES = 1000  # of a segment
_MIN_SECONDS = 0.75  # of a segment between scene cuts
_SEARCH_FROM = 32.0  # quality where the search for a target begins
_QUICK_PRESET = 12  # of SVT-AV1, to see where an input needs its bytes
_PASSES = 3  # at most, for that
_HEADER_BYTES, _END_BYTES = 60, 14
_FRAMING_BYTES = 10  # of a segment, apart from section lengths


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """How to run an encode, apart from what changes the bits; `target` overrides the quality.

    `deterministic` takes the salt from input and options, so that two runs give equal files.
    """

    target: Target | None = None
    deterministic: bool = False
    force: bool = False
    resume: bool = False
    keep_partial: bool = False


def encode(
    source: Path | BinaryIO,
    target: Path | BinaryIO,
    options: EncodeOptions,
    *,
    job: EncodeJob | None = None,
    on_frames: OnFrames | None = None,
    on_measured: OnFrames | None = None,
) -> Report:
    """Encode a video into a stream; `on_frames(done, total)` is called as frames are written.

    With a target rate, quick codings of the whole input come first, as many as are needed:
    `on_measured(done, total)` is called as their frames are done, from 0 again in each.
    Raises MediaError for an unreadable input, UsageError for options that contradict or a target
    that cannot be met, ResourceError when writing fails. A file appears complete or not at all.
    """
    job = job or EncodeJob()
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        part = None
        if isinstance(target, Path):
            opened = PartFile(
                target, force=job.force, resume=job.resume, keep_partial=job.keep_partial
            )
            part = stack.enter_context(opened)
        reader = stack.enter_context(VideoReader(source))
        track = _open_track(reader, options)
        if track is not None:
            stack.enter_context(track)
        encoder = _Encoder(reader, options, job, track)
        stack.callback(encoder.close)
        encoder.measure(part, on_measured or (lambda *_: None))
        sink: PartFile | BinaryIO = target if part is None else part  # type: ignore[assignment]
        encoder.run(sink, on_frames or (lambda *_: None))
    encoder.report.seconds = time.monotonic() - begun
    return encoder.report


@dataclass(frozen=True, slots=True)
class _Piece:
    """One segment's input: its clip, the first frame's number, when it ends, and its sound."""

    clip: Clip
    start: int
    end_pts: int | None  # pts of the next frame, None at the end
    sound: bytes
    index: int

    @property
    def stop(self) -> int:
        return self.start + len(self.clip.frames)


class _Encoder:
    """The state of one encode."""

    def __init__(
        self, reader: VideoReader, options: EncodeOptions, job: EncodeJob, track: AudioTrack | None
    ) -> None:
        self._reader, self._options, self._job, self._track = reader, options, job, track
        self._info = reader.info
        self._rate = reader.info.frame_rate or _mean_rate(reader)
        self._segment_frames = _segment_frames(reader.info, float(self._rate), options)
        self._profile = profiles.create(profiles.by_name(options.profile))
        self._first_quality = options.quality
        self._audio_bytes = 0
        self._shares: Shares | None = None
        self.report = Report("encode", reader.info.width, reader.info.height)
        self.report.notes.extend(reader.info.notes)
        if track is not None and reader.audio is not None and reader.audio.tracks > 1:
            self.report.notes.append(f"the first of {reader.audio.tracks} sound tracks is kept")

    def run(self, sink: PartFile | BinaryIO, on_frames: OnFrames) -> None:
        """Write the whole stream."""
        writer: StreamWriter | None = None
        resumed = 0
        for index, piece in enumerate(self._pieces(self._reader, self._track)):
            if writer is None:
                writer = self._open(sink, piece)
                resumed = writer.next_index
                if resumed:
                    self.report.notes.append(f"continued after {resumed} finished segments")
            if index >= resumed:
                self._write(writer, piece)
            elif writer.resumed is not None and index == writer.resumed.index:
                self._check_resumed(writer, writer.resumed, piece)
            self._audio_bytes += len(piece.sound)
            self.report.segments += 1
            self.report.frames = piece.stop
            on_frames(piece.stop, self._info.frame_count)
        if writer is None:
            raise UsageError("the input has no frames")
        if self.report.segments < resumed:
            raise self._another_input()
        writer.finish()
        self.report.bytes = writer.bytes_written
        for kind, size in writer.section_bytes.items():
            self.report.sections[kind.name.lower()] = size
        self.report.video_seconds = float(self._seconds(self.report.frames))
        if self._track is not None and self._track.has_more:
            self.report.notes.append(
                f"sound more than {audio.MAX_LAST_SECONDS} seconds after the video, or more than a"
                " mebibyte of it, is left out"
            )
        self.report.notes += getattr(self._profile, "notes", ())
        self._judge_target()

    def close(self) -> None:
        """End the profile's child processes."""
        self._profile.close()

    def measure(self, part: PartFile | None, on_measured: OnFrames) -> None:
        """Code all of the input quickly to see where it needs its bytes, if a target is set.

        Not possible with an input that can be read only once. What is found out is noted beside
        `part`, and taken from there when it is resumed.
        """
        target, quality = self._job.target, _SEARCH_FROM
        if target is None or self._reader.source.streamed:
            return
        path = None if part is None else part.memo_path
        memo = Memo(path, self._measuring_key(), read=self._job.resume)
        for _ in range(_PASSES):
            shares = memo.find(quality)
            if shares is None:
                shares = self._measured(quality, on_measured)
                memo.add(shares)
            self._shares = shares
            quality = shares.next_quality(self._left(target, shares, 0))
            if quality == shares.quality or len(shares.sizes) == 1:
                return

    def _measuring_key(self) -> str:
        """A hash of what decides the quick codings: program, input and options."""
        digest = hashlib.sha256(f"{__version__} {self._options} {self._info}".encode())
        digest.update(entropy_id() + self._reader.source.digest())
        return digest.hexdigest()

    def _measured(self, quality: float, on_measured: OnFrames) -> Shares:
        sizes: list[int] = []
        sounds: list[int] = []
        frames = 0
        options = dataclasses.replace(
            self._options, quality=quality, preset=max(_QUICK_PRESET, self._options.preset)
        )
        on_measured(0, self._info.frame_count)
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(VideoReader(self._reader.source))
            track = _open_track(reader, self._options)
            if track is not None:
                stack.enter_context(track)
            profile = self._profile  # what it finds out about a clip holds for all passes
            for piece in self._pieces(reader, track):
                if not sizes:
                    profile.begin(piece.clip, options)
                sizes.append(_framed(profile.encode(piece.clip, piece.start, quality, 0).sections))
                sounds.append(len(piece.sound))
                frames = piece.stop
                on_measured(frames, self._info.frame_count)
        return Shares(quality, tuple(sizes), tuple(sounds), frames)

    def _pieces(self, reader: VideoReader, track: AudioTrack | None) -> Iterator[_Piece]:
        most = self._segment_frames
        least = max(1, min(most // 2, round(_MIN_SECONDS * float(self._rate))))
        planner = SegmentPlanner(
            float(self._rate), max_frames=most, min_frames=least, total=self._info.frame_count
        )
        frames: deque[UInt8] = deque()
        pts: deque[int] = deque()
        numbers = itertools.count()

        def take(span: Span) -> _Piece:
            pictures = np.empty((span.count, *frames[0].shape), np.uint8)
            for picture in pictures:  # one at a time: not all twice in memory
                picture[:] = frames.popleft()
            times = np.array([pts.popleft() for _ in range(span.count)], np.int64)
            clip, after = Clip(pictures, times, self._info), pts[0] if pts else None
            return _Piece(clip, span.start, after, self._sound(track, clip, after), next(numbers))

        for frame, time_of_frame in reader:
            frames.append(frame)
            pts.append(time_of_frame)
            for span in planner.push(frame):
                yield take(span)
        for span in planner.finish():
            yield take(span)

    def _sound(self, track: AudioTrack | None, clip: Clip, after: int | None) -> bytes:
        if track is None:
            return b""
        base = self._info.time_base
        offset, packets = track.take(
            int(clip.pts[0]) * base,
            None if after is None else after * base,
            video_end=self._reader.end_pts * base,
        )
        return encode_audio(Audio(offset, tuple(packets)))[0]

    # --- header

    def _open(self, sink: PartFile | BinaryIO, piece: _Piece) -> StreamWriter:
        fields = self._begin(piece)
        part = sink if isinstance(sink, PartFile) else None
        header = self._header(
            fields, piece.clip, total=0 if part is None else self._info.frame_count
        )
        if not isinstance(sink, PartFile):
            return StreamWriter(sink, header)
        if self._job.resume:
            begun = part_header(sink)
            if begun is not None:
                header = dataclasses.replace(header, salt=begun.salt)
            return resume_writer(sink, header)
        return StreamWriter(sink.sink, header, sync=sink.sync)

    def _begin(self, piece: _Piece) -> dict[str, Any]:
        """Let the profile decide its header fields, at the quality that the target asks for."""
        clip = piece.clip
        if self._job.target is None:
            return self._profile.begin(clip, self._options)
        budget = self._budget(piece, 0)

        def code(quality: float) -> tuple[int, float]:
            self._profile.begin(clip, dataclasses.replace(self._options, quality=quality))
            return _framed(self._profile.encode(clip, 0, quality, 0).sections), quality

        shares = self._shares
        first = _SEARCH_FROM if shares is None else shares.quality
        trial, self._first_quality = search(budget, first, code)
        floor_seen = shares is None or shares.quality == 0 or len(shares.sizes) == 1
        if trial.quality == 0 and trial.size > budget * (1 + TOLERANCE) and floor_seen:
            if shares is None:
                share = max(self._info.frame_count, piece.stop) / piece.stop
            else:
                share = sum(shares.sizes) / shares.sizes[0]
            floor = round(trial.size * share) + _HEADER_BYTES + _END_BYTES
            raise UsageError(
                f"{self._job.target.kind} {self._job.target.value:g} cannot be reached: the"
                f" smallest stream for this input has about {floor} bytes, sound left out; a larger"
                " --factor or --step may help"
            )
        return self._profile.begin(
            clip, dataclasses.replace(self._options, quality=self._first_quality)
        )

    def _header(self, fields: dict[str, Any], clip: Clip, *, total: int) -> StreamHeader:
        info, options = self._info, self._options
        sections = list(fields.pop("sections"))
        if self._track is not None:
            kind = SectionType.AUDIO_COPY if options.audio == "copy" else SectionType.AUDIO_OPUS
            sections.insert(-1, kind)
        if info.frame_rate is None:
            sections.insert(0, SectionType.TIMING)
        header = StreamHeader(
            salt=0,
            entropy_id=entropy_id(),
            seed=options.seed,
            width=info.width,
            height=info.height,
            frame_rate=self._rate,
            color=info.color,
            segment_frames=self._segment_frames,
            total_frames=total,
            profile=self._profile.id,
            sections=tuple(sections),
            audio=b"" if self._track is None else self._track.config.to_bytes(),
            time_base=info.time_base if info.frame_rate is None else None,
            title=options.title,
            **fields,
        )
        salt = os.urandom(4)
        if self._job.deterministic:
            digest = hashlib.sha256(header.to_bytes())
            digest.update(clip.frames[0].tobytes() + clip.frames[-1].tobytes())
            salt = digest.digest()[:4]
        return dataclasses.replace(header, salt=int.from_bytes(salt, "little"))

    # --- segments

    def _write(self, writer: StreamWriter, piece: _Piece) -> None:
        sections, check, quality = self._sections(writer.header, piece, writer.bytes_written)
        writer.write(len(piece.clip.frames), sections, check & 0xFFFF)
        self.report.qualities.append(quality)

    def _check_resumed(self, writer: StreamWriter, there: Segment, piece: _Piece) -> None:
        """Code the last finished segment again: headers alone do not tell inputs apart."""
        sections, _, _ = self._sections(writer.header, piece, there.offset)
        coded = {kind: sections.get(kind, b"") for kind in there.sections}
        if there.frames != len(piece.clip.frames) or coded != dict(there.sections):
            raise self._another_input()

    def _another_input(self) -> UsageError:
        return UsageError(
            "the interrupted stream was begun from another input or with other options: remove its"
            " .part file, or use the same ones"
        )

    def _sections(
        self, header: StreamHeader, piece: _Piece, written: int
    ) -> tuple[dict[SectionType, bytes], int, float]:
        """Code one segment of a stream that has `written` bytes; its sections, check, quality."""
        sections: dict[SectionType, bytes] = {}
        check = 0
        if self._info.frame_rate is None:
            last = int(piece.clip.pts[-1]) + 1
            end = max(self._reader.end_pts, last) if piece.end_pts is None else piece.end_pts
            times = Timing((*(int(p) for p in piece.clip.pts), end))
            sections[SectionType.TIMING], check = encode_timing(times, check)
        coded, quality = self._code(written, piece, check)
        sections |= coded.sections
        if piece.sound:
            kind = next(kind for kind in header.sections if kind in AUDIO_SECTIONS)
            sections[kind] = piece.sound
        return sections, coded.check, quality

    def _code(self, written: int, piece: _Piece, check: int) -> tuple[profiles.Coded, float]:
        def code(quality: float) -> tuple[int, profiles.Coded]:
            made = self._profile.encode(piece.clip, piece.start, quality, check)
            return _framed(made.sections), made

        if self._job.target is None:
            return code(self._options.quality)[1], self._options.quality
        # nothing here depends on how earlier segments were found, so that resuming changes no byte
        slack = 0.0 if self._shares is None else self._shares.slack(piece.index)
        budget = self._budget(piece, written)
        trial, coded = search(budget, self._first_quality, code, slack=slack)
        return coded, trial.quality

    def _budget(self, piece: _Piece, written: int) -> float:
        """Bytes that the piece's picture may take, given what is `written` (0: no header yet)."""
        target = self._job.target
        if target is None:
            raise ValueError("no target")
        if self._shares is not None:
            left = self._left(target, self._shares, written)
            return self._shares.budget(piece.index, left)
        allowed = target.bytes_for(self._info, piece.stop, self._seconds(piece.stop))
        spent = written or _HEADER_BYTES
        if target.counts_audio:
            spent += len(piece.sound)
        else:
            spent -= self._audio_bytes
        return allowed - spent - _END_BYTES

    def _left(self, target: Target, shares: Shares, written: int) -> float:
        """Bytes that all pictures may take that are still to be written."""
        allowed = target.total(self._info, shares.frames, self._seconds(shares.frames))
        if target.counts_audio:
            allowed -= sum(shares.sounds)
        spent = (written or _HEADER_BYTES) - self._audio_bytes
        return allowed - spent - _END_BYTES

    def _seconds(self, frames: int) -> Fraction:
        """How long the first `frames` are shown, all of them if their times vary."""
        if self._info.frame_rate is None:
            return self._reader.end_pts * self._info.time_base
        return frames / self._info.frame_rate

    def _judge_target(self) -> None:
        target = self._job.target
        if target is None:
            return
        frames = self.report.frames
        allowed = target.total(self._info, frames, self._seconds(frames))
        found = self.report.bytes - (0 if target.counts_audio else self._audio_bytes)
        if abs(found / allowed - 1) > TOLERANCE:
            why = "no quality needs more" if found < allowed else "its content needs more"
            self.report.notes.append(
                f"{target.kind} {target.value:g} was missed by {found / allowed - 1:+.1%}: {why}"
            )


def _open_track(reader: VideoReader, options: EncodeOptions) -> AudioTrack | None:
    if options.audio == "none" or reader.audio is None:
        return None
    kbps = None if options.audio == "copy" else options.audio_kbps
    return AudioTrack(reader.source, reader.start, kbps=kbps)


def _framed(sections: dict[SectionType, bytes]) -> int:
    return sum(len(payload) + 2 for payload in sections.values()) + _FRAMING_BYTES


def _segment_frames(info: VideoInfo, rate: float, options: EncodeOptions) -> int:
    frames = min(_MAX_FRAMES, round(options.segment_seconds * rate))
    return max(2, min(frames, _MAX_CLIP_BYTES // (3 * info.width * info.height)))


def _mean_rate(reader: VideoReader) -> Fraction:
    """Frames per second on average, of a video whose frames come at varying times."""
    seconds = reader.end_pts * reader.info.time_base
    count = reader.info.frame_count
    rate = count / seconds if seconds and count else Fraction(25)
    return min(Fraction(240), max(Fraction(1, 60), rate)).limit_denominator(1000)
