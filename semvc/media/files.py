"""Single signals as files of their own, for people to open: pictures and sound."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from semvc.errors import MediaError
from semvc.media.audio import AudioMuxer, Packets
from semvc.media.audioformat import AudioCodec, AudioConfig


def write_png(path: Path, image: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> None:
    """Write uint8 or uint16 [H, W] (grey) or uint8 [H, W, 3] (RGB) as a PNG."""
    kind = "rgb24" if image.ndim == 3 else "gray" if image.dtype == np.uint8 else "gray16be"
    samples: Any = np.ascontiguousarray(image)
    picture = av.VideoFrame.from_ndarray(samples, format=kind)
    context = av.CodecContext.create("png", "w")
    if not isinstance(context, av.VideoCodecContext):
        raise TypeError("png is a video codec")
    context.width, context.height, context.pix_fmt = picture.width, picture.height, kind
    context.time_base = Fraction(1)
    path.write_bytes(b"".join(bytes(p) for p in (*context.encode(picture), *context.encode(None))))


def read_png(path: Path) -> npt.NDArray[np.uint8]:
    """Return a PNG as uint8 [H, W, 3] RGB; MediaError if it is none."""
    context = av.CodecContext.create("png", "r")
    if not isinstance(context, av.VideoCodecContext):
        raise TypeError("png is a video codec")
    try:
        pictures = [*context.decode(av.Packet(path.read_bytes())), *context.decode(None)]
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"cannot read {path}: {error.strerror}") from error
    if not pictures:
        raise MediaError(f"{path} is no PNG")
    return pictures[0].to_ndarray(format="rgb24").astype(np.uint8, copy=False)


def write_packets(stem: Path, config: AudioConfig, runs: Iterable[tuple[int, Packets]]) -> Path:
    """Write sound as STEM.opus (Opus) or STEM.mka (others); each run begins at a sample."""
    suffix, kind = (".opus", "ogg") if config.codec == AudioCodec.OPUS else (".mka", "matroska")
    path = stem.with_name(stem.name + suffix)
    with av.open(str(path), "w", format=kind) as container:
        muxer = AudioMuxer(container, config)
        for start, packets in runs:
            muxer.write(start, packets)
    return path
