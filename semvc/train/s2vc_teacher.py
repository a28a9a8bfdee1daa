"""What semantic tokens are distilled from: features of a network that saw many pictures.

A teacher takes frames [B, 3, H, W] in [-1, 1], H and W multiples of 64, and returns
[B, channels, H/32, W/32], normalised over the channels of each place. DINOv3 is read from a local
folder in transformers' layout; where there is none, VGG16 of the perceptual losses serves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semvc.errors import ModelError
from semvc.train.losses import Perceptual

GRID = 32  # luma samples on a side of a teacher's place
_PATCH = 16  # DINOv3's
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class Teacher(Protocol):
    """See the module."""

    channels: int

    def __call__(self, frames: Tensor) -> Tensor:
        """Return the features of frames, without gradients."""


class VggTeacher:
    """relu4_3 and relu5_3 of VGG16 on frames of half the size."""

    def __init__(self, perceptual: Perceptual) -> None:
        self._network = perceptual
        self.channels = sum(p.shape[0] for p in list(perceptual.heads)[3:])

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """Return both levels in one, [B, channels, H/32, W/32]."""
        fourth, fifth = self._network.features(F.avg_pool2d(frames, 2))[3:]
        return _normalised(torch.cat([F.avg_pool2d(fourth, 2), fifth], 1))


class DinoTeacher:
    """The last layer of DINOv3 (or any vision transformer with patches of 16) at full size."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        try:
            from transformers import AutoModel
        except ImportError as error:
            raise ModelError(
                "a teacher from a folder needs transformers: pip install 'semvc[full]'"
            ) from error
        try:
            network: Any = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"no teacher in {folder}: {error}") from error
        if network.config.patch_size != _PATCH:
            raise ModelError(
                f"the teacher in {folder} has patches of {network.config.patch_size}, not {_PATCH}:"
                " take a model with patches of 16"
            )
        self._network = network.to(device).eval().requires_grad_(False)
        self._mean = torch.tensor(_MEAN, device=device)[:, None, None]
        self._std = torch.tensor(_STD, device=device)[:, None, None]
        self.channels = int(network.config.hidden_size)

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """Return the patches' features; class and register tokens come before them."""
        x = ((frames + 1) / 2 - self._mean) / self._std
        tokens = self._network(x).last_hidden_state
        rows, columns = frames.shape[2] // _PATCH, frames.shape[3] // _PATCH
        patches = tokens[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))
        return _normalised(F.avg_pool2d(patches, GRID // _PATCH))


class Predictor(nn.Module):
    """Guesses a teacher's features from semantic tokens; of use in training alone."""

    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.layer = nn.Linear(tokens, 4 * channels)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return [B, channels, 2 rows, 2 columns] of tokens [B, rows * columns, D]."""
        x = self.layer(tokens).transpose(1, 2).unflatten(2, grid)
        return F.pixel_shuffle(x, 2)


def _normalised(x: Tensor) -> Tensor:
    return F.layer_norm(x.float().permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2)
