"""Large pretrained generators behind one small Protocol: fit, encode conditions, generate.

This file is light: numpy and the standard library. A backbone is named by text and imported on
use; diffusers, transformers and peft are imported inside the functions that need them. Backbones
read local folders only, and only safetensors files. Pixels are uint8 RGB on every side.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from semvc.errors import ModelError

if TYPE_CHECKING:
    import torch

UInt8 = npt.NDArray[np.uint8]
Noise = Callable[[int, int], npt.NDArray[np.float32]]  # (count, use 0 to 7) -> standard Gaussian

FAMILIES = {"ltx": "semvc.backbones.ltx:Ltx", "vace": "semvc.backbones.vace:Vace"}
SAMPLE_NOISE, DECODE_NOISE = 0, 1  # uses of noise


@dataclass(frozen=True, slots=True)
class Conditions:
    """What one window of T frames is made from; every clip has the size of the generated picture.

    base: uint8 [T, H, W, 3], the base layer held until the next frame arrives. sketch and
    skeleton: uint8 [T, H, W], lines of 255 on 0, or None. kept: bool [T], frames of `base` that
    are pictures in their own right and should stay as they are. tail: uint8 [C, H, W, 3], what the
    window before has for the first C frames of this one (C may be 0). caption: as stored.
    frame_rate: frames per second.
    """

    base: UInt8
    kept: npt.NDArray[np.bool_]
    tail: UInt8
    frame_rate: float
    caption: str = ""
    sketch: UInt8 | None = None
    skeleton: UInt8 | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """How a backbone works. `steps` to `tile` come from the manifest, the rest from the user.

    frames: longest window, 8k+1 or 4k+1. overlap: frames that a window shares with the one before,
    of the same form. max_pixels: largest picture made; larger ones are made smaller and enlarged.
    strength: share of noise that the sample starts from, in (0, 1]. shift: of the noise schedule,
    0 to take the folder's. tile: luma samples of a side of the tiles that pictures are decoded in.
    packing: shared, offset or alternate. reference_scale: 2 encodes references at half size.
    memory: full, offload or group. quant: none, fp8 or int8. loras: safetensors files.
    """

    steps: int
    guidance: float
    frames: int
    overlap: int
    max_pixels: int
    strength: float = 1.0
    shift: float = 0.0
    tile: int = 512
    packing: str = "shared"
    reference_scale: int = 1
    memory: str = "full"
    quant: str = "none"
    loras: tuple[Path, ...] = ()


class Backbone(Protocol):
    """A pretrained generator, loaded; one object serves one stream."""

    def fit_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the smallest (width, height) it can make that covers a picture's, luma samples."""

    def fit_frames(self, frames: int) -> int:
        """Return the smallest number of frames, at least `frames`, that it can make at once."""

    def encode(self, given: Conditions) -> Any:
        """Return the conditions as its own tensors; sizes and frames must fit."""

    def generate(self, encoded: Any, noise: Noise, steps: int) -> UInt8:
        """Return the frames of `encoded`, uint8 [T, H, W, 3] RGB, after `steps` diffusion steps."""


def load(
    family: str, folder: Path, settings: Settings, device: torch.device, dtype: torch.dtype
) -> Backbone:
    """Return the backbone of a folder in diffusers' layout; ModelError if it does not fit."""
    if family not in FAMILIES:
        raise ModelError(f"unknown backbone {family!r}; known: {', '.join(FAMILIES)}")
    module, name = FAMILIES[family].split(":")
    made: Backbone = getattr(importlib.import_module(module), name)(folder, settings, device, dtype)
    return made


def up_to(value: int, multiple: int, *, plus: int = 0) -> int:
    """Return the smallest k * multiple + plus, k >= 0, that is at least `value`."""
    return -(-max(value - plus, 0) // multiple) * multiple + plus
