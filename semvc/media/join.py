"""Joining finished videos, each a closed group of pictures, into one file without coding again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import numpy.typing as npt

from semvc.errors import MediaError, ResourceError, UsageError
from semvc.media.audio import AudioMuxer, Packets
from semvc.media.source import reason
from semvc.media.writer import NOTE

if TYPE_CHECKING:
    from semvc.bitstream.partfile import PartFile
    from semvc.media.audioformat import AudioConfig

_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mp4", ".mkv": "matroska"}


@dataclass(frozen=True, slots=True)
class Piece:
    """A finished MP4 that begins `start` seconds into the whole, with its sound apart.

    `sound` lists (start in samples of the whole, packets).
    """

    path: Path
    start: Fraction
    sound: tuple[tuple[int, Packets], ...]


def check_target(target: Path, codec: str) -> None:
    """Raise UsageError if pieces cannot be joined into a file of that name."""
    suffix = target.suffix.lower()
    if suffix not in _FORMATS:
        raise UsageError(f"{target}: segments can be joined into {', '.join(_FORMATS)}")
    if (codec, suffix) == ("ffv1", ".mov"):
        raise UsageError(f"{target}: ffv1 goes into .mkv or .mp4")


def join(
    pieces: Sequence[Piece], part: PartFile, *, rate: Fraction | None, audio: AudioConfig | None
) -> None:
    """Write the pieces one after another into an open `part`.

    `rate` is in frames per second, None when it varies. MediaError if the pieces do not fit
    together, ResourceError if writing fails.
    """
    kind = _FORMATS[part.path.suffix.lower()]
    flags = {"movflags": "faststart"} if kind == "mp4" else {"fflags": "+bitexact"}
    name = _url(part.part_path)
    try:
        plan = _Plan.of(pieces)
        with (
            av.open(_url(pieces[0].path)) as first,
            av.open(name, "w", format=kind, container_options=flags) as container,
        ):
            stream = _add_stream(container, first.streams.video[0], rate or Fraction(30))
            muxer = AudioMuxer(container, audio) if audio is not None else None
            container.metadata["comment"] = NOTE
            container.start_encoding()
            times = plan.times(whole=kind == "mp4")
            for piece in pieces:
                for start, packets in piece.sound:
                    if muxer is not None:
                        muxer.write(start, packets)
                for packet in _packets(piece):
                    packet.pts, packet.dts, packet.duration = next(times)
                    packet.time_base, packet.stream = plan.base, stream
                    container.mux(packet)
    except OSError as error:  # av's own errors of the system are OSErrors too
        raise ResourceError(f"cannot join the segments of {part.path}{reason(error)}") from error
    except (av.FFmpegError, ValueError) as error:
        raise MediaError(f"cannot join the segments of {part.path}{reason(error)}") from error


@dataclass(frozen=True, slots=True)
class _Plan:
    """When the pictures of all pieces are shown, and thus when they are to be decoded.

    Each piece's own decoding times begin before its first picture, where the piece before still
    has pictures, so they are made anew: picture i in coding order takes the time of picture i - d
    in order of display, with the smallest d for which no picture comes too late.
    """

    base: Fraction
    shown: npt.NDArray[np.int64]  # pts in coding order
    end: int

    @staticmethod
    def of(pieces: Sequence[Piece]) -> _Plan:
        base, header, end = None, b"", Fraction(0)
        found: list[int] = []
        for piece in pieces:
            with av.open(_url(piece.path)) as source:
                video = source.streams.video[0]
                own = video.time_base or Fraction(1)
                if base is None:
                    base, header = own, video.codec_context.extradata or b""
                if (video.codec_context.extradata or b"") != header:
                    raise MediaError(f"{piece.path} was coded in another way: remove its folder")
                shown = [(p.pts, p.duration or 0) for p in source.demux(video) if p.pts is not None]
                found += [round((pts * own + piece.start) / base) for pts, _ in shown]
                last = max(shown, default=(0, 0))
                # the file's length adds up coding times; a picture coded last knows its own end
                length = sum(last) if last in shown[-1:] else video.duration or 0
                end = piece.start + length * own
        times = np.array(found, np.int64)
        if base is None or not len(np.unique(times)) == len(times) > 0:
            raise MediaError("segments overlap in time and cannot be joined")
        return _Plan(base, times, max(round(end / base), int(times.max()) + 1))

    def times(self, *, whole: bool) -> Iterator[tuple[int, int, int]]:
        """Pts, dts and duration of every packet in coding order.

        MP4 adds durations up in coding order: with `whole`, a last packet that is not the last
        picture is given what makes the sum right.
        """
        ordered = np.sort(self.shown)
        lengths = np.diff(ordered, append=self.end)
        rank = np.searchsorted(ordered, self.shown)
        delay = int((np.arange(len(rank)) - rank).max())
        before = ordered[0] - lengths[0] * np.arange(delay, 0, -1)
        decoded = np.concatenate((before, ordered))[: len(ordered)]
        for index, place in enumerate(rank):
            length = lengths[place]
            if whole and index == len(rank) - 1 and place != index:
                length = max(1, self.end - self.shown[0] - (decoded[index] - decoded[0]))
            yield int(self.shown[index]), int(decoded[index]), int(length)


def _add_stream(
    container: av.container.OutputContainer, given: av.VideoStream, rate: Fraction
) -> av.VideoStream:
    # without opaque an encoder of the decoder's name is looked for, and libdav1d is none
    stream = container.add_stream_from_template(given, opaque=True)
    stream.codec_context.framerate = rate
    if stream.codec_context.codec.canonical_name == "hevc" and container.format.name != "matroska":
        stream.codec_context.codec_tag = "hvc1"
    return stream


def _packets(piece: Piece) -> Iterator[av.Packet[av.VideoStream]]:
    with av.open(_url(piece.path)) as source:
        for packet in source.demux(source.streams.video[0]):
            if packet.pts is not None:
                yield packet


def _url(path: Path) -> str:
    return f"file:{path.absolute()}"
