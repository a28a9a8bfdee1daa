"""Writing videos: exact times, true colour tags, sound in step, complete files or none.

Files appear under their final name only when they are complete, with the index in front; to a pipe
goes fragmented MP4. Every output says in its metadata that its pictures are a reconstruction.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import av
from av.video.reformatter import VideoReformatter

from semvc.bitstream.partfile import PartFile
from semvc.errors import MediaError, ResourceError, UsageError
from semvc.media import color
from semvc.media.audio import AudioMuxer
from semvc.media.av1 import quiet_svt
from semvc.media.source import reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from semvc.media.audio import Packets
    from semvc.media.audioformat import AudioConfig
    from semvc.media.color import UInt8
    from semvc.types import VideoInfo

NOTE = "semantic reconstruction by semvc, not camera pixels"
_FORMATS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mp4",  # FFmpeg's MOV cannot hold Opus; players tell the two apart by content
    ".mkv": "matroska",
    ".webm": "webm",
}
_MOVFLAGS = {"file": "+faststart", "pipe": "frag_keyframe+delay_moov+default_base_moof"}


@dataclass(frozen=True, slots=True)
class _Codec:
    encoder: str
    even: str  # pixel format for even sides
    odd: str  # one that keeps odd sides: 4:2:0 of H.264 and HEVC cannot
    crf: float | None
    options: tuple[tuple[str, str], ...]
    tag: str = ""
    min_side: int = 16


_CODECS = {
    # without mbtree=0, x264 gives other bytes in every run
    "h264": _Codec("libx264", "yuv420p", "yuv444p", 16, (("x264-params", "mbtree=0"),)),
    "hevc": _Codec(
        "libx265",
        "yuv420p",
        "yuv444p",
        18,
        (("x265-params", "log-level=none:info=0"),),
        tag="hvc1",
        min_side=64,  # x265 writes outside its memory in narrow pictures (34x36, 40x100)
    ),
    "av1": _Codec("libsvtav1", "yuv420p10le", "yuv420p10le", 22, (("preset", "8"),)),
    "ffv1": _Codec("ffv1", "bgr0", "bgr0", None, (("level", "3"),)),
}
CODECS = tuple(_CODECS)


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """How to write pictures: `codec` is one of `CODECS`, ffv1 without loss.

    `crf` is the encoder's own constant quality (lower is better), None for a fine default;
    `preset` the encoder's own speed setting. `force` replaces an existing file.
    """

    codec: str = "h264"
    crf: float | None = None
    preset: str | None = None
    force: bool = False


class VideoWriter:
    """Write frames in order, then `close`; as a context manager, an exception leaves no file.

    `target` is a path, whose suffix chooses the container, or a binary pipe. Frames of odd size
    are written as 4:4:4 in H.264 and HEVC, so that every player shows the exact size.

    UsageError for a codec or suffix that does not exist or does not fit, or an existing file;
    MediaError if the encoder fails; ResourceError for a full disk or a closed pipe.
    """

    def __init__(
        self,
        target: Path | BinaryIO,
        info: VideoInfo,
        *,
        options: OutputOptions | None = None,
        audio: AudioConfig | None = None,
    ) -> None:
        options = options or OutputOptions()
        if options.codec not in _CODECS:
            raise UsageError(f"output codec {options.codec}: choose one of {', '.join(CODECS)}")
        self._info, self._codec = info, _CODECS[options.codec]
        if min(info.width, info.height) < self._codec.min_side:
            raise UsageError(
                f"{options.codec} output needs sides of {self._codec.min_side} at least, not"
                f" {info.width}x{info.height}: choose another output codec"
            )
        self._scaler = VideoReformatter()
        self._held: tuple[av.VideoFrame, int, int | None] | None = None
        self._durations: dict[int, int] = {}
        self._frames = 0
        self._begin: tuple[int, int] | None = None  # first pts and dts
        self._last: av.Packet[av.VideoStream] | None = None
        self._stack = contextlib.ExitStack()
        self._part: PartFile | None = None
        with contextlib.ExitStack() as undo:  # also when a signal comes meanwhile
            undo.callback(self._undo)
            self._container = self._open(target, options)
            with self._errors():
                self._stream = self._add_video(options)
                self._audio = AudioMuxer(self._container, audio) if audio else None
                self._container.metadata["comment"] = NOTE
                with quiet_svt():
                    self._container.start_encoding()
            undo.pop_all()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write(self, frame: UInt8, pts: int, duration: int | None = None) -> None:
        """Add full-range RGB uint8 [H, W, 3], shown from `pts` (in the time base of `info`).

        It lasts until the next frame; the last one lasts `duration`, by default as long as the
        one before it. ValueError for another size or a `pts` that does not increase.
        """
        if frame.shape != (self._info.height, self._info.width, 3):
            raise ValueError(f"a frame of shape {frame.shape}")
        pixel_format = str(self._stream.codec_context.pix_fmt)
        picture = color.rgb_to_picture(frame, self._info.color, pixel_format, scaler=self._scaler)
        picture.pts, picture.time_base = pts, self._info.time_base
        if self._held is not None:
            if pts <= self._held[1]:
                raise ValueError(f"pts {pts} after {self._held[1]}")
            self._encode(*self._held[:2], pts - self._held[1])
        self._held = (picture, pts, duration)

    def write_audio(self, start: int, packets: Packets) -> None:
        """Add packets; the first begins `start` samples after pts 0. Calls follow in time."""
        if self._audio is None:
            raise ValueError("this output was opened without sound")
        with self._errors():
            self._audio.write(start, packets)

    def close(self) -> None:
        """Finish the file and put it in its place."""
        try:
            self._finish()
        except BaseException:  # also a signal
            self.abort()
            raise
        self._stack.close()

    def abort(self) -> None:
        """Give up; nothing is left of a file."""
        with contextlib.suppress(av.FFmpegError, OSError):
            self._container.close()
        self._undo()

    def _undo(self) -> None:
        if self._part is not None and not self._part.sink.closed:
            self._part.sink.truncate(0)  # an unfinished MP4 is of no use, so it is not kept
        self._stack.__exit__(MediaError, MediaError("given up"), None)

    def _open(
        self, target: Path | BinaryIO, options: OutputOptions
    ) -> av.container.OutputContainer:
        if not isinstance(target, Path):
            with self._errors():
                flags = {"movflags": _MOVFLAGS["pipe"]}
                return av.open(_Pipe(target), "w", format="mp4", container_options=flags)
        kind = _FORMATS.get(target.suffix.lower())
        if kind is None or (kind == "webm" and options.codec != "av1"):
            known = [suffix for suffix in _FORMATS if suffix != ".webm" or options.codec == "av1"]
            raise UsageError(f"{target}: {options.codec} goes into {', '.join(known)}")
        if options.codec == "ffv1" and target.suffix.lower() == ".mov":
            raise UsageError(f"{target}: ffv1 goes into .mkv or .mp4")
        self._part = self._stack.enter_context(PartFile(target, force=options.force))
        flags = {"movflags": _MOVFLAGS["file"]} if kind == "mp4" else {}
        path = f"file:{self._part.part_path.absolute()}"
        with self._errors():
            return av.open(path, "w", format=kind, container_options=flags)

    def _add_video(self, options: OutputOptions) -> av.VideoStream:
        info, codec = self._info, self._codec
        settings = dict(codec.options)
        crf = codec.crf if options.crf is None else options.crf
        if codec.crf is not None:
            settings["crf"] = f"{crf:g}"
        if options.preset is not None:
            settings["preset"] = options.preset
        if options.codec == "av1" and min(info.width, info.height) < 64:
            settings["svtav1-params"] = "lp=1"  # several threads crash in tiny pictures
        rate = info.frame_rate or Fraction(30)  # only guides the encoder when times vary
        stream = cast(
            "av.VideoStream", self._container.add_stream(codec.encoder, rate, options=settings)
        )
        context = stream.codec_context
        context.width, context.height = info.width, info.height
        context.pix_fmt = codec.odd if info.width % 2 or info.height % 2 else codec.even
        context.time_base = stream.time_base = info.time_base
        if context.pix_fmt != "bgr0":
            context.color_primaries, context.color_trc = info.color.primaries, info.color.transfer
            context.colorspace = info.color.matrix
            context.color_range = 2 if info.color.full_range else 1
        if codec.tag and self._container.format.name == "mp4":
            context.codec_tag = codec.tag
        return stream

    def _encode(self, picture: av.VideoFrame | None, pts: int, duration: int) -> None:
        self._durations[pts] = duration
        self._frames += picture is not None
        with self._errors():
            for packet in self._stream.encode(picture):
                if self._frames <= 2:
                    packet.dts = packet.pts  # x265 gives none that is valid for one or two frames
                if packet.pts is None or packet.dts is None:
                    raise MediaError("the encoder lost a time")
                packet.duration = self._durations.pop(packet.pts, packet.duration or 0)
                self._begin = self._begin or (packet.pts, packet.dts)
                if self._last is not None:
                    self._container.mux(self._last)
                self._last = packet

    def _finish(self) -> None:
        if self._held is not None:
            picture, pts, duration = self._held
            before = max(self._durations.items(), default=None)
            usual = 1 / (self._info.frame_rate or 30) / self._info.time_base
            fallback = before[1] if before and not self._info.frame_rate else max(1, round(usual))
            self._encode(picture, pts, duration or fallback)
            self._encode(None, -1, 0)
            self._held = None
            self._mux_last(pts + (duration or fallback))
        with self._errors():
            self._container.close()

    def _mux_last(self, end: int) -> None:
        """Mux the packet held back. MP4 adds durations up in coding order: a last packet that is
        not the last picture is given what makes the sum right.
        """
        packet, begin = self._last, self._begin
        if packet is None or begin is None or packet.pts is None or packet.dts is None:
            return
        if self._container.format.name == "mp4" and (packet.pts + (packet.duration or 0) < end):
            packet.duration = max(1, end - begin[0] - (packet.dts - begin[1]))
        with self._errors():
            self._container.mux(packet)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # av's own errors of the system are OSErrors too
            raise ResourceError(f"cannot write the output{reason(error)}") from error
        except (av.FFmpegError, ValueError) as error:
            what = f"{self._info.width}x{self._info.height} {self._codec.encoder}"
            raise MediaError(f"cannot encode {what}{reason(error)}") from error


class _Pipe:
    """A file object that FFmpeg cannot try to seek in."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while len(view):
            view = view[self._sink.write(view) :]
        return len(data)

    def flush(self) -> None:
        self._sink.flush()
