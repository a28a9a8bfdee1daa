"""Reading videos: upright full-range RGB frames with exact times, in flat memory.

Rotation is applied, pixels are made square, interlaced pictures are deinterlaced and HDR is mapped
to SDR; `VideoReader.info.notes` says which of these happened.
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO, cast

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter

from semvc.errors import LimitError, MediaError
from semvc.media import color, timeline
from semvc.media.audio import AudioStreamInfo, describe_audio
from semvc.media.source import Source, reason
from semvc.types import ColorInfo, Limits, VideoInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from semvc.media.color import UInt8

MIN_SIDE = 16
_MOST_ASPECT = Fraction(8)  # of a pixel: what is beyond is a mistake of the file's
_ATTACHED = 0x400  # AV_DISPOSITION_ATTACHED_PIC: cover art


class VideoReader:
    """Iterate once over (frame uint8 [H, W, 3] full-range RGB, pts); a context manager.

    `info` describes the frames; pts are in its time base and start at 0. `end_pts` is when the
    last frame ends, 0 if not known yet (Y4M from a pipe). `audio` is None without sound;
    `source` can be read again for it, and by another reader unless it is `streamed`; who opened it
    closes it. `start` is the first frame's time in the file, in seconds.

    MediaError when there is nothing to read or it is damaged, LimitError beyond `limits`.
    """

    def __init__(self, source: Path | BinaryIO | Source, *, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._shared = isinstance(source, Source)
        self.source = source if isinstance(source, Source) else Source(source)
        self._container: av.container.InputContainer | None = None
        try:
            self._open()
        except (MediaError, LimitError):
            self.close()
            raise

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[UInt8, int]]:
        return self._frames

    def close(self) -> None:
        """Close the file."""
        if self._container is not None:
            self._container.close()
            self._container = None
        if not self._shared:
            self.source.close()

    def _open(self) -> None:
        self._container = container = self.source.open()
        stream = _video_stream(container, self.source.name)
        _check_size(stream.width, stream.height, self._limits, self.source.name)
        self.audio: AudioStreamInfo | None = None
        if self.source.streamed:
            self._timeline = timeline.constant(stream, self.source.name)
        pictures = _pictures(container, stream, self._limits, self.source.name)
        first = next(pictures, None)
        if first is None:
            raise MediaError(f"{self.source.name}: no frame of its video can be decoded")
        if not self.source.streamed:
            with self.source.open() as other:
                video = _video_stream(other, self.source.name)
                self._timeline = timeline.scan(
                    other, video, self._limits, self.source.name, first=first.pts
                )
            self.audio = describe_audio(container, self._timeline.start)
        self.start, self.end_pts = self._timeline.start, self._timeline.end
        self._converter = _Converter(first, stream.sample_aspect_ratio, self.source.name)
        _check_size(self._converter.width, self._converter.height, self._limits, self.source.name)
        self.info = VideoInfo(
            width=self._converter.width,
            height=self._converter.height,
            frame_rate=self._timeline.rate,
            time_base=self._timeline.time_base,
            frame_count=0 if "mpegts" in container.format.name else self._timeline.count,
            color=self._converter.shown_color,
            notes=(*self._converter.notes, *self._timeline_notes()),
        )
        self._frames = self._convert(itertools.chain((first,), pictures))

    def _timeline_notes(self) -> tuple[str, ...]:
        lost = self._timeline.lost
        return (f"the file is cut off: its last {float(lost):.1f} s are missing",) if lost else ()

    def _convert(self, pictures: Iterator[av.VideoFrame]) -> Iterator[tuple[UInt8, int]]:
        """Frames and their times, which rise; at a constant rate, a lost one repeats the last."""
        line = self._timeline
        begin: int | None = None
        frame: UInt8 | None = None
        due = 0  # the earliest time of the next picture
        for index, picture in enumerate(_progressive(pictures)):
            begin = picture.pts if index == 0 else begin
            pts = due
            if line.timed and picture.pts is not None and begin is not None:
                tick = (picture.time_base or line.time_base) / line.time_base
                jitter = 0 if line.rate is None else timeline.JITTER
                pts = max(due, round((picture.pts - begin - jitter) * tick))
            elif line.rate is None:
                pts = max(due, int(line.pts[min(index, line.count - 1)]))
            if line.rate is not None and frame is not None:
                while due < min(pts, line.count - 1):
                    yield frame, due
                    due += 1
                pts = due
            frame, due = self._converter.rgb(picture), pts + 1
            yield frame, pts


class _Converter:
    """Turns decoded pictures of one stream into upright RGB of one size."""

    def __init__(self, first: av.VideoFrame, aspect: Fraction | None, name: str) -> None:
        self._name, self._scaler = name, VideoReformatter()
        self.color = color.picture_color(first)
        self._turn, (self._flip_rows, self._flip_columns) = _orientation(first)
        columns, rows = first.width, first.height
        notes = []
        if aspect and aspect != 1:
            if 1 / _MOST_ASPECT <= aspect <= _MOST_ASPECT:
                unit = 1 if columns % 2 else 2  # an even side stays even: players want it
                columns = max(unit, unit * round(columns * aspect / unit))
                notes.append(f"pixels of shape {aspect} were made square")
            else:
                notes.append(
                    f"the file says that pixels have shape {aspect}, which is not believed"
                )
        if self._turn or self._flip_rows or self._flip_columns:
            notes.append("the rotation stored in the file was applied")
        if first.interlaced_frame:
            notes.append("interlaced pictures were deinterlaced (bwdif), one frame per picture")
        if color.is_hdr(self.color):
            kind = "PQ" if self.color.transfer == color.PQ else "HLG"
            notes.append(f"HDR ({kind}) was mapped to SDR BT.709")
        self._rows, self._columns = rows, columns
        self.width, self.height = (rows, columns) if self._turn else (columns, rows)
        self.notes = tuple(notes)
        self.shown_color = ColorInfo() if color.is_hdr(self.color) else self.color

    def rgb(self, picture: av.VideoFrame) -> UInt8:
        """Return uint8 [height, width, 3]; pictures of another size are scaled."""
        rgb = color.picture_to_rgb(
            picture, self.color, height=self._rows, width=self._columns, scaler=self._scaler
        )
        if self._turn:
            rgb = rgb.transpose(1, 0, 2)
        if self._flip_rows:
            rgb = rgb[::-1]
        if self._flip_columns:
            rgb = rgb[:, ::-1]
        return np.ascontiguousarray(rgb)


def _video_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    for stream in container.streams.video:
        if not int(stream.disposition) & _ATTACHED and stream.codec_context is not None:
            return stream
    kind = "only audio" if container.streams.audio else "no video stream"
    raise MediaError(f"{name} has {kind}")


def _check_size(width: int, height: int, limits: Limits, name: str) -> None:
    if min(width, height) < MIN_SIDE:
        raise MediaError(f"{name}: {width}x{height} is too small, at least {MIN_SIDE}x{MIN_SIDE}")
    allowed = max(limits.max_width, limits.max_height)
    if max(width, height) > allowed or width * height > limits.max_pixels:
        raise LimitError(
            f"{name}: {width}x{height} is too large, at most {allowed} a side and"
            f" {limits.max_pixels} samples"
        )


def _pictures(
    container: av.container.InputContainer, stream: av.VideoStream, limits: Limits, name: str
) -> Iterator[av.VideoFrame]:
    """Decode; what cannot be decoded before the first picture (a recording's start) is skipped."""
    count = 0
    try:
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                if count == 0 and packet.size:
                    continue
                raise
            for picture in decoded:
                count += 1
                _check_size(picture.width, picture.height, limits, name)
                if count > limits.max_frames:
                    raise LimitError(f"{name} has more than {limits.max_frames} frames")
                yield picture
    except av.FFmpegError as error:
        raise MediaError(f"{name} is damaged after {count} frames{reason(error)}") from error


def _progressive(pictures: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Pass pictures on; from the first interlaced one, through a deinterlacer (same times).

    One deinterlacer takes one kind of pictures: where they change, another follows.
    """
    graph: av.filter.Graph | None = None
    base, kind = Fraction(1), None
    for picture in pictures:
        if graph is None and not picture.interlaced_frame:
            yield picture
            continue
        before, kind = kind, (picture.width, picture.height, picture.format.name)
        if graph is None or kind != before:
            if graph is not None:
                yield from _pull(graph, base, end=True)
            base = picture.time_base or base
            graph = _deinterlacer(picture)
        graph.vpush(picture)
        yield from _pull(graph, base)
    if graph is not None:
        yield from _pull(graph, base, end=True)


def _deinterlacer(picture: av.VideoFrame) -> av.filter.Graph:
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(
            width=picture.width,
            height=picture.height,
            format=picture.format,
            time_base=picture.time_base,
        ),
        graph.add("bwdif", "mode=send_frame:deint=interlaced"),
        graph.add("buffersink"),
    ).configure()
    return graph


def _pull(graph: av.filter.Graph, base: Fraction, *, end: bool = False) -> Iterator[av.VideoFrame]:
    """What a graph gives by now, or all that is left in it."""
    if end:
        graph.vpush(None)
    while True:
        try:
            picture = graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return
        except av.FFmpegError as error:
            raise MediaError(f"pictures cannot be deinterlaced{reason(error)}") from error
        if picture.pts is not None:  # the filter halves the time base
            picture.pts = round(picture.pts * (picture.time_base or base) / base)
        picture.time_base = base
        yield picture


def _orientation(picture: av.VideoFrame) -> tuple[bool, tuple[bool, bool]]:
    """Return (swap rows and columns, (then flip rows, flip columns)) of the display matrix."""
    matrix = cast("Mapping[Type, bytes]", picture.side_data).get(Type.DISPLAYMATRIX)
    if matrix is None:
        return False, (False, False)
    a, b, _, c, d = np.frombuffer(bytes(matrix), "<i4")[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, (b < 0, c < 0)
    return False, (d < 0, a < 0)
