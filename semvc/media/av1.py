"""The AV1 base layer: SVT-AV1 in, dav1d out, bare OBUs in between.

A segment's OBUs hold coded frames only: no temporal delimiters, no sequence header (it is the same
for all segments of a stream that share size and settings, and kept once), no metadata, no padding.
Samples are 10 bit 4:2:0. Everything read is checked before the native decoder sees it.
"""

from __future__ import annotations

import contextlib
import os
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np

from semvc.errors import BitstreamError, LimitError, MediaError
from semvc.media import av1_child, color

if TYPE_CHECKING:
    from collections.abc import Iterator

    from semvc.media.color import Planes, UInt8

MIN_SIDE = 16  # smaller pictures are coded padded to this
SEQUENCE_HEADER, TEMPORAL_DELIMITER, FRAME_HEADER, TILE_GROUP, FRAME = 1, 2, 3, 4, 6
_PARAMS = "lp=1:scm=0:keyint=-1:tune=1"
_SECTION = "BASE_AV1"


def encode_segment(
    frames: UInt8, *, crf: int, preset: int = 5, fps: Fraction | int = 24
) -> tuple[bytes, bytes]:
    """Return (sequence header OBU, frame OBUs) of full-range RGB uint8 [T, h, w, 3].

    One key frame, all others predicted within the segment. `crf` is 1 (best) to 63, `preset` 0
    (slowest) to 13, `fps` in frames per second. The same input gives the same bytes on one
    machine. ValueError for arguments out of range, MediaError if the encoder fails.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or len(frames) < 1 or not 1 <= crf <= 63:
        raise ValueError(f"cannot code {frames.shape} at crf {crf}")
    y, u, v = color.rgb_to_yuv420(frames)
    height, width = coded_size(y.shape[1], y.shape[2])
    try:
        with _quiet():
            context = _open_encoder(width, height, crf=crf, preset=preset, fps=Fraction(fps))
            data = b"".join(
                bytes(packet)
                for picture in (*_pictures((y, u, v), height, width), None)
                for packet in context.encode(picture)
            )
    except av.FFmpegError as error:
        raise MediaError(f"SVT-AV1 cannot code {width}x{height}: {error.strerror}") from error
    obus = list(split_obus(data))
    headers = {obu for kind, obu in obus if kind == SEQUENCE_HEADER}
    if len(headers) != 1:
        raise MediaError(f"SVT-AV1 wrote {len(headers)} different sequence headers")
    kept = (obu for kind, obu in obus if kind in (FRAME_HEADER, TILE_GROUP, FRAME))
    return headers.pop(), b"".join(kept)


def decode_segment(
    sequence_header: bytes, obus: bytes, size: tuple[int, int], frames: int, *, isolate: bool = True
) -> Planes:
    """Return the 10-bit planes of a segment: y uint16 [T, h, w], u and v [T, ceil(h/2), ceil(w/2)].

    `size` is (width, height) and `frames` T, both already within the caller's limits. With
    `isolate` decoding happens in a child process. BitstreamError when the OBUs are malformed or
    not what was declared, LimitError when they cost more than such a segment may.
    """
    width, height = size
    coded_height, coded_width = coded_size(height, width)
    packets = _packets(sequence_header, obus, frames)
    shapes = [(coded_height, coded_width)] + [((coded_height + 1) // 2, (coded_width + 1) // 2)] * 2
    planes = [np.empty((frames, *shape), np.uint16) for shape in shapes]
    try:
        decoded = av1_child.decode_packets(packets, coded_width, coded_height, frames)
        for t, picture in enumerate(decoded):
            for plane, data in zip(planes, picture, strict=True):
                plane[t] = np.frombuffer(data, "<u2").reshape(plane.shape[1:])
    except av1_child.DecodeFault as fault:
        raise _fault(fault.kind, fault.reason) from fault
    half = ((height + 1) // 2, (width + 1) // 2)
    y, u, v = planes
    return (
        y[:, :height, :width],
        u[:, : half[0], : half[1]],
        v[:, : half[0], : half[1]],
    )


def coded_size(height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) that AV1 codes for a base layer of `height` x `width`."""
    return max(height, MIN_SIDE), max(width, MIN_SIDE)


def split_obus(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (type, whole OBU) of a sequence of OBUs that all carry their size.

    BitstreamError for reserved bits, a missing or over-long size, or a size beyond the end.
    """
    at = 0
    while at < len(data):
        head = data[at]
        if head & 0x81 or not head & 2:
            raise BitstreamError("OBU header", offset=at, section=_SECTION)
        kind, start = head >> 3 & 15, at + 1 + (head >> 2 & 1)
        size = 0
        for shift in range(0, 28, 7):
            if start >= len(data):
                raise BitstreamError("OBU cut off", offset=at, section=_SECTION)
            size |= (data[start] & 0x7F) << shift
            start += 1
            if not data[start - 1] & 0x80:
                break
        else:
            raise BitstreamError("OBU size", offset=at, section=_SECTION)
        if start + size > len(data):
            raise BitstreamError("OBU cut off", offset=at, section=_SECTION)
        yield kind, data[at : start + size]
        at = start + size


def _packets(sequence_header: bytes, obus: bytes, frames: int) -> list[bytes]:
    """One packet for each coded or repeated frame, so that each gives one picture at most."""
    packets: list[bytes] = []
    for kind, obu in split_obus(obus):
        if kind == TILE_GROUP and packets:
            packets[-1] += obu
        elif kind in (FRAME_HEADER, FRAME):
            packets.append(obu)
        else:
            raise BitstreamError(f"OBU type {kind} in a segment", section=_SECTION)
    if not packets:
        raise BitstreamError("no frames", section=_SECTION)
    packets[0] = sequence_header + packets[0]
    return packets


def _fault(kind: bytes, reason: str) -> BitstreamError | LimitError:
    if kind == av1_child.DAMAGED:
        return BitstreamError(reason, section=_SECTION)
    return LimitError(f"base layer: {reason}")


def _open_encoder(
    width: int, height: int, *, crf: int, preset: int, fps: Fraction
) -> av.VideoCodecContext:
    context = av.CodecContext.create("libsvtav1", "w")
    context.width, context.height = width, height
    context.pix_fmt = av1_child.PIXEL_FORMAT
    context.time_base, context.framerate = 1 / fps, fps
    context.options = {"preset": str(preset), "crf": str(crf), "svtav1-params": _PARAMS}
    context.open()
    return context


def _pictures(planes: Planes, height: int, width: int) -> Iterator[av.VideoFrame]:
    half = ((height + 1) // 2, (width + 1) // 2)
    for t in range(len(planes[0])):
        picture = av.VideoFrame(width, height, av1_child.PIXEL_FORMAT)
        picture.pts = t
        for plane, target, source in zip(
            picture.planes, ((height, width), half, half), planes, strict=True
        ):
            rows = np.zeros((target[0], plane.line_size // 2), "<u2")
            rows[:, : target[1]] = color.pad_to(source[t], *target)
            plane.update(rows)
        yield picture


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep SVT-AV1 from writing a banner: it takes its log level from the environment only."""
    before = os.environ.get("SVT_LOG")
    if before is None:
        os.environ["SVT_LOG"] = "-1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["SVT_LOG"]
