"""Pixels to tensors and back, and the tiles in which autoencoders decode large pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from semvc.backbones.protocol import UInt8


def to_pixels(clip: UInt8, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return [1, 3, T, H, W] in [-1, 1] of a clip uint8 [T, H, W, 3]."""
    raw = torch.from_numpy(np.ascontiguousarray(clip)).to(device)
    return (raw.permute(3, 0, 1, 2)[None].float() / 127.5 - 1).to(dtype)


def from_pixels(values: Tensor) -> UInt8:
    """Return uint8 [T, H, W, 3] of [1, 3, T, H, W] in [-1, 1]; what is outside is clipped."""
    codes = (values[0].float() + 1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    found: UInt8 = codes.permute(1, 2, 3, 0).contiguous().cpu().numpy()
    return found


def half(clip: UInt8) -> UInt8:
    """Return uint8 [T, H / 2, W / 2, 3]: means of 2 x 2 samples, rounded; sides must be even."""
    count, height, width, channels = clip.shape
    if height % 2 or width % 2:
        raise ValueError(f"{width}x{height} has no half")
    cells = clip.reshape(count, height // 2, 2, width // 2, 2, channels).astype(np.uint16)
    return ((cells.sum((2, 4)) + 2) // 4).astype(np.uint8)


def set_tiles(vae: Any, tile: int) -> None:
    """Decode in tiles of `tile` luma samples that overlap by a quarter; smaller pictures whole."""
    stride = tile * 3 // 4
    vae.enable_tiling(
        tile_sample_min_height=tile,
        tile_sample_min_width=tile,
        tile_sample_stride_height=stride,
        tile_sample_stride_width=stride,
    )
