"""Joining finished videos, each a closed group of pictures, into one file without coding again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from semvc.bitstream.partfile import PartFile
from semvc.errors import MediaError, UsageError
from semvc.media.audio import AudioMuxer, Packets
from semvc.media.audioformat import AudioConfig
from semvc.media.source import reason
from semvc.media.writer import NOTE

_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}


@dataclass(frozen=True, slots=True)
class Piece:
    """A finished part of the video that begins `start` seconds into the whole, with its sound.

    `sound` lists (start in samples of the whole, packets).
    """

    path: Path
    start: Fraction
    sound: tuple[tuple[int, Packets], ...]


def join(pieces: Iterable[Piece], target: Path, *, audio: AudioConfig | None, force: bool) -> None:
    """Write the pieces one after another as `target`, complete or not at all.

    All pieces have one video track with the same codec settings. MediaError if they do not fit.
    """
    kind = _FORMATS.get(target.suffix.lower())
    if kind is None:
        raise UsageError(f"{target}: segments can be joined into {', '.join(_FORMATS)}")
    flags = {"movflags": "faststart"} if kind in ("mp4", "mov") else {}
    with PartFile(target, force=force) as part:
        name = f"file:{part.part_path.absolute()}"
        try:
            with av.open(name, "w", format=kind, container_options=flags) as container:
                _join(container, list(pieces), audio)
        except av.FFmpegError as error:
            raise MediaError(f"cannot join the segments of {target}{reason(error)}") from error


def _join(
    container: av.container.OutputContainer, pieces: list[Piece], audio: AudioConfig | None
) -> None:
    with av.open(str(pieces[0].path)) as first:
        given = first.streams.video[0]
        stream = container.add_stream_from_template(given)
        base = given.time_base or Fraction(1, 90000)
        stream.time_base = base
    muxer = AudioMuxer(container, audio) if audio is not None else None
    container.metadata["comment"] = NOTE
    container.start_encoding()
    last: int | None = None
    for piece in pieces:
        for start, packets in piece.sound:
            if muxer is not None:
                muxer.write(start, packets)
        with av.open(str(piece.path)) as source:
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is None or packet.pts is None:
                    continue
                own = packet.time_base or base
                pts, dts = (
                    round((value * own + piece.start) / base) for value in (packet.pts, packet.dts)
                )
                length = round((packet.duration or 0) * own / base)
                if last is not None and dts <= last:
                    dts = last + 1
                if dts > pts:
                    raise MediaError(f"{piece.path}: its pictures come too late to be joined")
                last = dts
                packet.time_base, packet.pts, packet.dts, packet.duration = base, pts, dts, length
                packet.stream = stream
                container.mux(packet)
