"""AV1 decoding with dav1d, also as a child process that is told what it may spend.

This file imports the standard library and PyAV only and is run by its path, so that a child starts
fast and does not depend on how its parent found the package. A packet holds the OBUs of one frame;
the first also holds the sequence header.

Request on standard input: `REQUEST` (width, height, frames, packets, memory limit in bytes,
processor seconds), then a u32 length and the bytes of each packet. Answer on standard output: for
each frame `FRAME` and its three planes (bytes), then `DONE`; or at any time
`DAMAGED` or `TOO_MUCH`, a u16 length and a reason. An empty standard input ends the child.
"""

from __future__ import annotations

import contextlib
import struct
import sys
from typing import TYPE_CHECKING, BinaryIO, cast

import av

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FRAME, DONE, DAMAGED, TOO_MUCH = b"F", b"D", b"B", b"L"
REQUEST = struct.Struct("<IIIIQI")
PIXEL_FORMAT = "yuv420p"


class DecodeFault(Exception):
    """The packets cannot be decoded as asked; `kind` is DAMAGED or TOO_MUCH."""

    def __init__(self, kind: bytes, reason: str) -> None:
        self.kind, self.reason = kind, reason
        super().__init__(reason)


def decode_packets(
    packets: Sequence[bytes], width: int, height: int, frames: int
) -> Iterator[list[bytes]]:
    """Yield the planes y, u, v of each of `frames` pictures as tightly packed bytes.

    DecodeFault when a picture has another size or format, when there are more or fewer of them,
    or when dav1d refuses.
    """
    context = cast("av.VideoCodecContext", av.CodecContext.create("libdav1d", "r"))
    context.thread_count = 1
    context.options = {"max_pixels": str(width * height), "filmgrain": "0"}
    count = 0
    try:
        for packet in (*packets, None):
            for picture in context.decode(None if packet is None else av.Packet(packet)):
                count += 1
                if count > frames:
                    raise DecodeFault(DAMAGED, f"more than the declared {frames} frames")
                yield _planes(picture, width, height)
    except av.FFmpegError as error:
        raise DecodeFault(DAMAGED, f"AV1 decoder: {error.strerror}") from None
    if count != frames:
        raise DecodeFault(DAMAGED, f"{count} frames instead of the declared {frames}")


def _planes(picture: av.VideoFrame, width: int, height: int) -> list[bytes]:
    if (picture.width, picture.height) != (width, height):
        found = f"{picture.width}x{picture.height}"
        raise DecodeFault(DAMAGED, f"a frame of {found} instead of {width}x{height}")
    if picture.format.name != PIXEL_FORMAT:
        raise DecodeFault(DAMAGED, f"samples {picture.format.name} instead of {PIXEL_FORMAT}")
    planes = []
    for plane in picture.planes:
        row = plane.width
        if plane.line_size == row:
            planes.append(bytes(plane)[: row * plane.height])
        else:
            data = memoryview(plane)
            starts = range(0, plane.height * plane.line_size, plane.line_size)
            planes.append(b"".join(data[start : start + row] for start in starts))
    return planes


def _limit(memory: int, seconds: int) -> None:
    """Bound what one request may spend, where the system can."""
    try:
        import resource
    except ImportError:  # Windows: the parent's deadline is the only bound
        return
    spent = resource.getrusage(resource.RUSAGE_SELF)
    now = int(spent.ru_utime + spent.ru_stime) + 1
    for what, soft in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, now + seconds)):
        hard = resource.getrlimit(what)[1]
        with contextlib.suppress(ValueError, OSError):  # macOS refuses some address-space limits
            resource.setrlimit(what, (soft if hard < 0 else min(soft, hard), hard))


def _read(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) != size:
        raise EOFError
    return data


def _serve(source: BinaryIO, sink: BinaryIO) -> None:
    request = _read(source, REQUEST.size)
    width, height, frames, count, memory, seconds = REQUEST.unpack(request)
    packets = [_read(source, *struct.unpack("<I", _read(source, 4))) for _ in range(count)]
    _limit(memory, seconds)
    try:
        for planes in decode_packets(packets, width, height, frames):
            sink.write(FRAME)
            for plane in planes:
                sink.write(plane)
        sink.write(DONE)
    except (DecodeFault, MemoryError) as error:
        kind = error.kind if isinstance(error, DecodeFault) else TOO_MUCH
        reason = str(error or "out of memory").encode()[:1000]
        sink.write(kind + struct.pack("<H", len(reason)) + reason)
    sink.flush()


def main() -> None:
    """Serve requests until standard input ends."""
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            _serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
