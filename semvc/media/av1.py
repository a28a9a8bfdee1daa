"""The AV1 base layer: SVT-AV1 in, dav1d out, bare OBUs in between.

A segment's OBUs hold coded frames only: no temporal delimiters, no sequence header (it is the same
for all segments of a stream that share size and settings, and kept once), no metadata, no padding.
Samples are 8 bit 4:2:0: at these rates more bits gain nothing, and flat areas stay flat. Everything
read is checked before the native decoder sees it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np

from semvc.errors import BitstreamError, LimitError, MediaError
from semvc.media import av1_child, color, obu

if TYPE_CHECKING:
    from collections.abc import Iterator

    from semvc.media.color import Planes, UInt8, UInt16

MIN_SIDE = 16  # smaller pictures are coded padded to this
# less weight on bits than SVT-AV1 gives them (128 for each of its seven kinds of frames)
_PARAMS = "lp=1:scm=0:keyint=-1:tune=0:ac-bias=4:lambda-scale-factors=" + ",".join(["96"] * 7)
_SHIFT = color.BASE_BITS - 8
_HALF = np.uint16(1 << (_SHIFT - 1))
MAX_SEGMENT_SAMPLES = 1 << 30  # luma samples of a segment's base layer
_CHILD_BYTES = 256 << 20  # address space of a child; measured: 200 MB before the first picture
_CHILD_BYTES_PER_SAMPLE = 48  # and 32 for each luma sample of a picture
_DEADLINE = 15.0  # seconds of real time beyond twice the processor time
_SAMPLES_PER_SECOND = 4_000_000  # fifty times slower than measured


def encode_segment(
    frames: UInt8, *, crf: float, preset: int = 2, fps: Fraction | int = 24
) -> tuple[bytes, bytes]:
    """Return (sequence header OBU, frame OBUs) of full-range RGB uint8 [T, h, w, 3].

    One key frame, all others predicted within the segment. `crf` is 1 (best) to 70 in quarter
    steps, `preset` 0 (slowest) to 13, `fps` in frames per second. The same input gives the same
    bytes on one machine. ValueError for arguments out of range, MediaError if the encoder fails.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or len(frames) < 1 or not 1 <= crf <= 70:
        raise ValueError(f"cannot code {frames.shape} at crf {crf}")
    y, u, v = color.rgb_to_yuv420(frames)
    height, width = coded_size(y.shape[1], y.shape[2])
    try:
        with quiet_svt():
            context = _open_encoder(width, height, crf=crf, preset=preset, fps=Fraction(fps))
        data = b"".join(
            bytes(packet)
            for picture in (*_pictures((y, u, v), height, width), None)
            for packet in context.encode(picture)
        )
    except av.FFmpegError as error:
        raise MediaError(f"SVT-AV1 cannot code {width}x{height}: {error.strerror}") from error
    obus = list(obu.split_obus(data))
    headers = {whole for kind, whole in obus if kind == obu.SEQUENCE_HEADER}
    if len(headers) != 1:
        raise MediaError(f"SVT-AV1 wrote {len(headers)} different sequence headers")
    kept = (whole for kind, whole in obus if kind in obu.CODED)
    return headers.pop(), b"".join(kept)


def decode_segment(
    sequence_header: bytes, obus: bytes, size: tuple[int, int], frames: int, *, isolate: bool = True
) -> Planes:
    """Return what `SegmentDecoder.decode` returns, for a single segment."""
    with SegmentDecoder(isolate=isolate) as decoder:
        return decoder.decode(sequence_header, obus, size, frames)


class SegmentDecoder:
    """Decodes any number of segments, in one child process unless `isolate` is False.

    The child starts with the first segment and is started again if it dies. Use as a context
    manager, or call `close`.
    """

    def __init__(self, *, isolate: bool = True) -> None:
        self._isolate = isolate
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SegmentDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def decode(
        self, sequence_header: bytes, obus: bytes, size: tuple[int, int], frames: int
    ) -> Planes:
        """Return planes: y uint16 [T, h, w], u and v uint16 [T, ceil(h/2), ceil(w/2)].

        Samples are on `color`'s scale of 10 bits, the lower two of them zero.
        `size` is (width, height) and `frames` is T, both already within the caller's limits.
        BitstreamError when the OBUs are malformed or not what was declared, LimitError when
        decoding them costs more than such a segment may.
        """
        (width, height), (rows, columns) = size, coded_size(size[1], size[0])
        if rows * columns * frames > MAX_SEGMENT_SAMPLES:
            raise LimitError(f"base layer of {frames} frames {width}x{height}: too much at once")
        obu.check_sequence_header(sequence_header, columns, rows)
        packets = obu.frame_packets(sequence_header, obus, frames)
        half = ((rows + 1) // 2, (columns + 1) // 2)
        planes = [np.empty((frames, *shape), np.uint16) for shape in ((rows, columns), half, half)]
        if self._isolate:
            self._decode_in_child(packets, planes)
        else:
            try:
                _fill(av1_child.decode_packets(packets, columns, rows, frames), planes)
            except av1_child.DecodeFault as fault:
                raise _fault(fault.kind, fault.reason) from fault
        y, (u, v) = planes[0][:, :height, :width], planes[1:]
        half = ((height + 1) // 2, (width + 1) // 2)
        return y, u[:, : half[0], : half[1]], v[:, : half[0], : half[1]]

    def close(self) -> None:
        """End the child process, if there is one."""
        child, self._child = self._child, None
        if child is None:
            return
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _decode_in_child(self, packets: list[bytes], planes: list[UInt16]) -> None:
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._child = subprocess.Popen(
                [sys.executable, "-P", av1_child.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        frames, rows, columns = planes[0].shape
        seconds = 5 + rows * columns * len(packets) // _SAMPLES_PER_SECOND
        memory = _CHILD_BYTES + _CHILD_BYTES_PER_SAMPLE * rows * columns
        request = av1_child.REQUEST.pack(columns, rows, frames, len(packets), memory, seconds)
        in_step = False
        watchdog = threading.Timer(_DEADLINE + 2 * seconds, self._child.kill)
        watchdog.daemon = True  # a signal may come while it starts; nobody shall wait for it then
        try:
            watchdog.start()
            _exchange(self._child, request, packets, planes)
            in_step = True
        except av1_child.DecodeFault as fault:
            in_step = fault.kind != b""
            raise _fault(fault.kind, fault.reason) from None
        finally:
            watchdog.cancel()
            if not in_step:  # dead, or interrupted in the middle of an answer
                self._child.kill()
                self.close()


def coded_size(height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) that AV1 codes for a base layer of `height` x `width`."""
    return max(height, MIN_SIDE), max(width, MIN_SIDE)


def _exchange(
    child: subprocess.Popen[bytes], request: bytes, packets: list[bytes], planes: list[UInt16]
) -> None:
    """Send one request and fill `planes`; DecodeFault of kind b"" when the child is gone."""
    gone = av1_child.DecodeFault(b"", "decoder stopped at its memory or time limit")
    if child.stdin is None or child.stdout is None:
        raise gone
    try:
        sizes = (len(packet).to_bytes(4, "little") for packet in packets)
        child.stdin.write(request + b"".join(itertools.chain(*zip(sizes, packets, strict=True))))
        child.stdin.flush()
    except OSError:
        raise gone from None
    for t in range(len(planes[0]) + 1):
        tag = child.stdout.read(1)
        if tag in (av1_child.DAMAGED, av1_child.TOO_MUCH):
            size = int.from_bytes(child.stdout.read(2), "little")
            raise av1_child.DecodeFault(tag, child.stdout.read(size).decode(errors="replace"))
        if tag != (av1_child.FRAME if t < len(planes[0]) else av1_child.DONE):
            raise gone
        for plane in planes if tag == av1_child.FRAME else ():
            data = child.stdout.read(plane[t].size)
            if len(data) != plane[t].size:
                raise gone
            _put(plane, t, data)


def _fill(pictures: Iterator[list[bytes]], planes: list[UInt16]) -> None:
    for t, picture in enumerate(pictures):
        for plane, data in zip(planes, picture, strict=True):
            _put(plane, t, data)


def _put(plane: UInt16, t: int, data: bytes) -> None:
    samples = np.frombuffer(data, np.uint8).reshape(plane.shape[1:])
    np.left_shift(samples, _SHIFT, out=plane[t], dtype=np.uint16)


def _fault(kind: bytes, reason: str) -> BitstreamError | LimitError:
    if kind == av1_child.DAMAGED:
        return BitstreamError(reason, section=obu.SECTION)
    return LimitError(f"base layer: {reason}")


def _open_encoder(
    width: int, height: int, *, crf: float, preset: int, fps: Fraction
) -> av.VideoCodecContext:
    context = av.CodecContext.create("libsvtav1", "w")
    context.width, context.height = width, height
    context.pix_fmt = av1_child.PIXEL_FORMAT
    context.time_base, context.framerate = 1 / fps, fps
    # FFmpeg's own option takes whole settings up to 63; the library's takes quarters up to 70
    context.options = {
        "preset": str(preset),
        "svtav1-params": f"{_PARAMS}:crf={round(crf * 4) / 4:g}",
    }
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
            rows = np.zeros((target[0], plane.line_size), np.uint8)
            rows[:, : target[1]] = color.pad_to(source[t], *target) + _HALF >> _SHIFT
            plane.update(rows.tobytes())
        yield picture


@contextlib.contextmanager
def quiet_svt() -> Iterator[None]:
    """Keep SVT-AV1 from writing a banner and, while it opens, from claiming the machine.

    It takes its log level from the environment only. For root it gives the calling thread and its
    own the highest real-time priority and leaves them there, which starves all other programs.
    """
    before = os.environ.get("SVT_LOG")
    if before is None:
        os.environ["SVT_LOG"] = "-1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["SVT_LOG"]
        _leave_real_time()


def _leave_real_time() -> None:
    """Put every thread of this process that became a real-time one back to ordinary scheduling."""
    if sys.platform != "linux":
        return
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # threads end, and some places forbid the call
            if os.sched_getscheduler(int(task.name)) == os.SCHED_FIFO:
                os.sched_setscheduler(int(task.name), os.SCHED_OTHER, os.sched_param(0))
