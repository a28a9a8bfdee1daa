"""The pictures behind a row: what was coded and what came back, frame by frame.

All frames are uint8 [H, W, 3] full-range RGB of the clip's own size. Files are found below the
folder of report.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from semvc.bench.rows import SIZES, Row
from semvc.bench.suite import Clip
from semvc.errors import MediaError, UsageError
from semvc.media import color, elementary
from semvc.media.reader import VideoReader
from semvc.media.writer import OutputOptions, VideoWriter
from semvc.types import VideoInfo

if TYPE_CHECKING:
    from semvc.media.color import Planes, UInt8, UInt16

KIND = {
    "svtav1": "av1",
    "svtav1-vq": "av1",
    "x265": "hevc",
    "x264": "h264",
    "vp9": "vp9",
    "vvenc": "vvc",
}


def original(folder: Path, row: Row) -> Iterator[UInt8]:
    """Yield the frames of the row's clip; MediaError if they cannot be read."""
    if not row.original:
        raise UsageError(f"the pictures of {row.clip} were not kept")
    yield from frames(folder / row.original)


def rebuilt(folder: Path, row: Row) -> Iterator[UInt8]:
    """Yield the row's reconstruction: `row.frames` frames; MediaError if there are others.

    What a conventional encoder coded smaller is enlarged by Lanczos, and frames that it left out
    are held.
    """
    if not row.rebuilt:
        raise UsageError(f"the pictures of {row.clip}, {row.label}, were not kept")
    path = folder / row.rebuilt
    found = frames(path) if row.codec == "semvc" else _enlarged(path, row)
    count = 0
    for frame in found:
        if frame.shape != (row.height, row.width, 3):
            raise MediaError(f"{path.name}: a frame of {frame.shape[1]}x{frame.shape[0]}")
        count += 1
        yield frame
    if count != row.frames:
        raise MediaError(f"{path.name}: {count} frames instead of {row.frames}")


def frames(path: Path) -> Iterator[UInt8]:
    """Yield the frames of a video file as it is shown."""
    with VideoReader(path) as reader:
        for frame, _ in reader:
            yield frame


def describe(path: Path) -> tuple[VideoInfo, int, float]:
    """Return what a video file is, its number of frames and its seconds; reads all of it."""
    with VideoReader(path) as reader:
        count = sum(1 for _ in reader)
        rate = reader.info.frame_rate
        seconds = count / rate if rate else reader.end_pts * reader.info.time_base
        return reader.info, count, float(seconds)


def cut(source: Path, clip: Clip, target: Path) -> None:
    """Write the clip's range of frames to `target`, without loss or sound; UsageError if empty."""
    with VideoReader(source) as reader:
        ends = clip.start + clip.frames if clip.frames else None
        first: int | None = None
        writer: VideoWriter | None = None
        try:
            for t, (frame, pts) in enumerate(reader):
                if ends is not None and t >= ends:
                    break
                if t < clip.start:
                    continue
                if writer is None:
                    options = OutputOptions(codec="ffv1", force=True)
                    writer, first = VideoWriter(target, reader.info, options=options), pts
                writer.write(frame, pts - (first or 0))
            if writer is None:
                raise UsageError(f"{source} has no frame {clip.start}: its clip would be empty")
            writer.close()
        except BaseException:  # also a signal
            if writer is not None:
                writer.abort()
            raise


def write_planes(source: Path, size: str, divisor: int, target: Path) -> tuple[int, int, int]:
    """Write every `divisor`-th frame of a video at a `size` as raw 10-bit 4:2:0 for encoders.

    Returns width, height and count. Sides are even: smaller ones are rounded to it, full ones
    padded.
    """
    width = height = count = 0
    part = target.with_name(target.name + ".part")
    with part.open("wb") as file:
        for t, frame in enumerate(frames(source)):
            if t % divisor:
                continue
            height, width = coded_size(frame.shape[0], frame.shape[1], size)
            if size == "full":
                image = color.pad_to(frame, height, width)
            else:
                image = color.resize(frame[None], height, width)[0]
            for plane in color.rgb_to_yuv420(image[None]):
                file.write(plane.astype("<u2").tobytes())
            count += 1
    part.replace(target)
    return width, height, count


def read_planes(path: Path, width: int, height: int) -> Iterator[Planes]:
    """Yield the planes, uint16 [h, w] each, of what `write_planes` wrote."""
    sizes = (height, width), (height // 2, width // 2), (height // 2, width // 2)
    with path.open("rb") as file:
        while True:
            planes: list[UInt16] = []
            for rows, columns in sizes:
                data = file.read(2 * rows * columns)
                if len(data) < 2 * rows * columns:
                    return
                planes.append(np.frombuffer(data, "<u2").reshape(rows, columns))
            yield planes[0], planes[1], planes[2]


def coded_size(height: int, width: int, size: str) -> tuple[int, int]:
    """Return the (height, width) that an encoder sees of a clip at a size; both are even."""
    factor = SIZES[size]
    if factor == 1:
        return height + height % 2, width + width % 2
    return max(2, 2 * round(height / factor / 2)), max(2, 2 * round(width / factor / 2))


def frame_rate(info: VideoInfo, count: int, seconds: float) -> Fraction:
    """Return frames per second, the mean if they vary."""
    if info.frame_rate:
        return info.frame_rate
    return Fraction(count / seconds).limit_denominator(1001) if seconds else Fraction(25)


def _enlarged(path: Path, row: Row) -> Iterator[UInt8]:
    left = row.frames
    for planes in elementary.decode(path, KIND[row.codec]):
        y, u, v = planes if row.size == "full" else _resized(planes, row.height, row.width)
        frame = color.yuv420_to_rgb((y[None], u[None], v[None]))[0, : row.height, : row.width]
        times = min(row.divisor, left)
        for _ in range(times):
            yield frame
        left -= times


def _resized(planes: Planes, height: int, width: int) -> Planes:
    """Each plane by itself, as players do it: better in LPIPS than to resize RGB."""
    sizes = (height, width), *2 * (((height + 1) // 2, (width + 1) // 2),)
    y, u, v = (
        color.resize(plane[None, ..., None], *size)[0, ..., 0]
        for plane, size in zip(planes, sizes, strict=True)
    )
    return y, u, v


def paired(first: Iterable[UInt8], second: Iterable[UInt8]) -> Iterator[tuple[UInt8, UInt8]]:
    """Yield frames of both in step; MediaError when one ends before the other."""
    try:
        yield from zip(first, second, strict=True)
    except ValueError as error:
        raise MediaError("the reconstruction has another number of frames") from error
