"""Conventional encoders, for comparison: pictures in, an elementary stream out, and back.

A stream holds nothing that its pictures do not need: no container, no supplemental information, no
access unit delimiters. `payload_bytes` counts what is left when AV1's temporal delimiters and VP9's
framing, which only serve to tell packets apart in a file, are not counted either.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av
import numpy as np

from semvc.errors import MediaError
from semvc.media import obu
from semvc.media.av1 import quiet_svt
from semvc.media.source import reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from semvc.media.color import Planes, UInt16


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of stream: its file suffix, FFmpeg's name of it, and its NAL units to leave out."""

    suffix: str
    demuxer: str
    needless: frozenset[int] = frozenset()


# NAL units of supplemental information and access unit delimiters: H.264 7.4.1, H.265 7.4.2.2,
# H.266 7.4.2.2
KINDS = {
    "av1": Kind(".obu", "obu"),
    "vp9": Kind(".ivf", "ivf"),
    "h264": Kind(".264", "h264", frozenset({6, 9})),
    "hevc": Kind(".265", "hevc", frozenset({35, 39, 40})),
    "vvc": Kind(".266", "vvc", frozenset({20, 23, 24})),
}
_TEMPORAL_DELIMITER = 2  # of AV1
_START = re.compile(rb"\x00*\x00\x00\x01")
_IVF_HEADER, _IVF_FRAME = struct.Struct("<4sHH4sHHIIII"), struct.Struct("<IQ")


@dataclass(frozen=True, slots=True)
class Encoder:
    """How to encode: FFmpeg's name of the encoder, its options, pictures of 8 or 10 bits."""

    kind: str  # of `KINDS`
    name: str
    options: tuple[tuple[str, str], ...]
    bits: int
    fps: Fraction


def encode(pictures: Iterable[Planes], encoder: Encoder, target: Path) -> None:
    """Write an elementary stream of 10-bit 4:2:0 planes, uint16 [h, w] each, of even size.

    8-bit encoders get them rounded, halves to even. MediaError if the encoder is not there or
    refuses.
    """
    packets: list[bytes] = []
    try:
        context: av.VideoCodecContext | None = None
        for t, planes in enumerate(pictures):
            if context is None:
                context = _open(encoder, planes)
            picture = _picture(planes, encoder.bits)
            picture.pts = t
            packets += (bytes(packet) for packet in context.encode(picture))
        if context is None:
            raise MediaError("nothing to encode")
        packets += (bytes(packet) for packet in context.encode(None))
        size = context.width, context.height
    except (av.FFmpegError, ValueError) as error:
        raise MediaError(f"{encoder.name} cannot encode{reason(error)}") from error
    if encoder.kind == "vp9":
        target.write_bytes(_ivf(packets, size))
    else:
        target.write_bytes(bare(encoder.kind, b"".join(packets)))


def decode(path: Path, kind: str) -> Iterator[Planes]:
    """Yield the planes of each picture, uint16 [h, w] with 10 bits; those of 8 bits are shifted.

    MediaError for a stream that cannot be decoded.
    """
    try:
        with av.open(str(path), format=KINDS[kind].demuxer) as container:
            empty = True
            for picture in container.decode(container.streams.video[0]):
                empty = False
                yield _planes(picture)
        if empty:
            raise MediaError(f"{path.name} cannot be decoded: it holds no picture")
    except (av.FFmpegError, IndexError) as error:
        raise MediaError(f"{path.name} cannot be decoded{reason(error)}") from error


def bare(kind: str, data: bytes) -> bytes:
    """Return H.264, H.265 or H.266 in Annex B form without needless NAL units; others as given."""
    needless = KINDS[kind].needless
    if not needless:
        return data
    starts = list(_START.finditer(data))
    ends = [start.start() for start in starts[1:]] + [len(data)]
    return b"".join(
        data[start.start() : end]
        for start, end in zip(starts, ends, strict=True)
        if _nal_type(kind, data[start.end() : start.end() + 2]) not in needless
    )


def payload_bytes(kind: str, data: bytes) -> int:
    """Return the bytes of a stream that its decoder needs."""
    if kind == "av1":
        return sum(
            len(unit) for type_, unit in obu.split_obus(data) if type_ != _TEMPORAL_DELIMITER
        )
    if kind == "vp9":
        at, total = _IVF_HEADER.size, 0
        while at < len(data):
            size, _ = _IVF_FRAME.unpack_from(data, at)
            at, total = at + _IVF_FRAME.size + size, total + size
        return total
    return len(data)


def _nal_type(kind: str, head: bytes) -> int:
    if len(head) < 2:
        return -1
    return {"h264": head[0] & 31, "hevc": head[0] >> 1 & 63, "vvc": head[1] >> 3}[kind]


def _open(encoder: Encoder, planes: Planes) -> av.VideoCodecContext:
    context = cast("av.VideoCodecContext", av.CodecContext.create(encoder.name, "w"))
    context.height, context.width = planes[0].shape
    context.pix_fmt = "yuv420p" if encoder.bits == 8 else "yuv420p10le"
    context.time_base, context.framerate = 1 / encoder.fps, encoder.fps
    context.options = dict(encoder.options)
    with quiet_svt():
        context.open()
    return context


def _picture(planes: Planes, bits: int) -> av.VideoFrame:
    height, width = planes[0].shape
    picture = av.VideoFrame(width, height, "yuv420p" if bits == 8 else "yuv420p10le")
    for plane, samples in zip(picture.planes, planes, strict=True):
        kind = np.uint8 if bits == 8 else np.dtype("<u2")
        values = np.rint(samples / 4) if bits == 8 else samples
        rows = np.zeros((plane.height, plane.line_size // np.dtype(kind).itemsize), kind)
        rows[:, : plane.width] = values
        plane.update(rows.tobytes())
    return picture


def _planes(picture: av.VideoFrame) -> Planes:
    deep = {"yuv420p": False, "yuv420p10le": True}.get(picture.format.name)
    if deep is None:
        raise MediaError(f"pictures of format {picture.format.name} were not expected")
    found: list[UInt16] = []
    for plane in picture.planes:
        kind = np.dtype("<u2") if deep else np.dtype(np.uint8)
        rows = np.frombuffer(bytes(plane), kind).reshape(plane.height, -1)
        samples = rows[:, : plane.width].astype(np.uint16)
        found.append(samples if deep else np.left_shift(samples, 2, dtype=np.uint16))
    return found[0], found[1], found[2]


def _ivf(packets: list[bytes], size: tuple[int, int]) -> bytes:
    header = _IVF_HEADER.pack(b"DKIF", 0, 32, b"VP90", *size, 25, 1, len(packets), 0)
    return header + b"".join(
        _IVF_FRAME.pack(len(packet), t) + packet for t, packet in enumerate(packets)
    )
