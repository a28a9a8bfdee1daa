"""Frozen value types that all layers share.

Standard library only: arrays appear as annotations. Times are integers `pts` in units of a
`Fraction` time base in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    UInt8 = npt.NDArray[np.uint8]
    Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ColorInfo:
    """Coding-independent code points (ITU-T H.273) of a video, and its range."""

    primaries: int = 1
    transfer: int = 1
    matrix: int = 1
    full_range: bool = False


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What an output video must restore.

    `width` and `height` are luma samples after rotation was applied. `frame_rate` is in frames
    per second and None when it varies; `time_base` is the unit of pts in seconds.
    `frame_count` is 0 when not known before the end. `notes` says, one sentence each, what
    reading had to change (rotation, tone mapping, deinterlacing).
    """

    width: int
    height: int
    frame_rate: Fraction | None
    time_base: Fraction
    frame_count: int = 0
    color: ColorInfo = field(default_factory=ColorInfo)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Clip:
    """A segment's worth of frames: `frames` uint8 [T, H, W, 3] full-range RGB, `pts` int64 [T]."""

    frames: UInt8
    pts: Int64
    info: VideoInfo

    def __post_init__(self) -> None:
        shape = (len(self.pts), self.info.height, self.info.width, 3)
        if self.frames.shape != shape or str(self.frames.dtype) != "uint8":
            raise ValueError(
                f"frames must be uint8 {shape}, not {self.frames.dtype} {self.frames.shape}"
            )


@dataclass(frozen=True, slots=True)
class Span:
    """Frames of a segment in presentation order: `start` is absolute in the stream."""

    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Resource bounds that a reader accepts; the defaults are the format's own."""

    max_width: int = 4096
    max_height: int = 4096
    max_pixels: int = 4096 * 2304
    max_frames: int = 1 << 22
    max_samples: int = 1 << 40  # width * height * frames
    max_segment_frames: int = 1024
    max_chunk_bytes: int = 1 << 21
    max_text_bytes: int = 4096


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """Everything that may change the bits of a stream.

    `quality` is in [0, 63], quarter steps allowed, higher is better. `factor` and `step` are the
    base layer's spatial and temporal factors (1, 2, 4 or 8), None to choose by content. `preset` is
    SVT-AV1's, 0 slowest to 13. `skeleton` is the text of a COCO keypoint file. `captioner` is the
    folder of a model that writes a caption for each segment where `caption` is empty, or for each
    scene if `caption_scope` says so instead of segment; `posers` are those of a person detector and
    of a pose model, in place of `skeleton`; `edges` is the file of a network for soft edges, in
    place of the extractor without weights. For profile
    cpsgd, `camera` is a file of poses and `masks` a folder of PNG files, one for each frame.
    `audio` is opus, copy or none; `audio_kbps` applies to opus. `title` is shown by `info`. The
    stream is made for the model found in `models_dir`, if any, before the bundled ones.
    """

    profile: str = "disco"
    quality: float = 32.0
    segment_seconds: float = 5.0
    preset: int = 4
    seed: int = 0
    factor: int | None = None
    step: int | None = None
    caption: str = ""
    sketch: bool = False
    grain: bool = True
    skeleton: str = ""
    captioner: Path | None = None
    caption_scope: str = "segment"
    posers: tuple[Path, Path] | None = None
    edges: Path | None = None
    camera: Path | None = None
    masks: Path | None = None
    audio: str = "opus"
    audio_kbps: int = 12
    title: str = ""
    models_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class FullTier:
    """How tier full of profile disco works; nothing here may change a signal.

    `backbone` is an id or family of the manifest or a folder, empty for the first that is
    installed; `home` is searched after `Runtime.models_dir`. `loras` are safetensors files.
    `memory` is auto, full, offload or group; `quant` none, fp8 or int8; `packing` shared, offset or
    alternate, empty for the LoRA's own. `steps` 0 and `strength` and `guidance` None mean the
    backbone's own.
    """

    backbone: str = ""
    home: Path | None = None
    loras: tuple[Path, ...] = ()
    memory: str = "auto"
    quant: str = "none"
    packing: str = ""
    steps: int = 0
    strength: float | None = None
    guidance: float | None = None


@dataclass(frozen=True, slots=True)
class Runtime:
    """How to compute; nothing here may change a signal.

    `device` is auto, cpu, cuda, cuda:N or mps; `dtype` auto, float32 or bfloat16; `models_dir` is
    searched before the bundled models; `any_decoder` lets a model decode streams made for another.
    `full` is read at tier full alone.
    """

    device: str = "auto"
    dtype: str = "auto"
    models_dir: Path | None = None
    any_decoder: bool = False
    full: FullTier = field(default_factory=FullTier)
