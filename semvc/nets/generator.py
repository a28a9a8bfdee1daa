"""The small conditional generator: a recurrent convolutional network that predicts clean frames.

It is a diffusion model in sample (x0) prediction: from a noisy frame, its noise level and the
conditioning it returns the clean frame. The finest level works at a quarter of the frame's
resolution (pixel unshuffle by 4), so that one step of a 480p frame fits a CPU. Every condition may
be absent. There is no normalisation over space: the result at one place does not depend on the
size of the frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 4  # pixel unshuffle of the finest level
STRIDE = 16  # frames are padded to a multiple of this, in luma samples
SCALARS = 7  # crf, spatial and temporal factor, phase, has_sketch, has_skeleton, has_memory

_Layer = TypeVar("_Layer", nn.Conv2d, nn.Linear)


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What one frame is generated from, made from decoded signals; B frames of one size.

    base: [B, 9, H, W] in [-1, 1], the previous, held and next received base-layer frames (RGB),
        upsampled to the output size.
    sketch: [B, 1, H/4, W/4] in [0, 1], or None when the stream has no sketch.
    skeleton: [B, 1, H/4, W/4] in [0, 1], or None when the stream has no skeleton.
    crf: [B] in [0, 63], the base layer's quantiser setting.
    spatial_log2, temporal_log2: [B] in [0, 3], log2 of the base layer's factors.
    phase: [B] in [0, 1), how far the frame lies between the held and the next received frame.
    """

    base: Tensor
    sketch: Tensor | None
    skeleton: Tensor | None
    crf: Tensor
    spatial_log2: Tensor
    temporal_log2: Tensor
    phase: Tensor


@dataclass(frozen=True, slots=True)
class Memory:
    """What is kept of the previous frame: `frame` [B, 3, H, W], `features` [B, M, H/8, W/8]."""

    frame: Tensor
    features: Tensor


class Generator(nn.Module):
    """Predicts the clean frame x0 from a noisy sample, conditioned on a base layer.

    ```
    noisy, base --unshuffle 4-> stem -+-> enc 1/4 -> enc 1/8 -> mid 1/16 -> dec 1/8 -> dec 1/4 -> +
    sketch, skeleton -----------------+                 ^                      |               base
    previous frame --unshuffle-- zero-init              +-- zero-init <-- memory (previous frame)
    ```
    """

    def __init__(
        self,
        *,
        widths: tuple[int, int, int],
        depths: tuple[int, int, int],
        embedding: int,
        memory: int,
    ) -> None:
        super().__init__()
        top, middle, bottom = widths
        pixels = 3 * PATCH * PATCH
        self.memory_channels = memory
        self.embed = nn.Sequential(
            nn.Linear(embedding + SCALARS, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.embedding = embedding
        self.stem = nn.Conv2d(4 * pixels + 2, top, 1)
        self.stem_previous = zero(nn.Conv2d(pixels, top, 1))
        self.enc_top = Stage(top, depths[0], embedding)
        self.down_middle = nn.Conv2d(top, middle, 2, stride=2)
        self.fuse_memory = zero(nn.Conv2d(memory, middle, 3, padding=1))
        self.enc_middle = Stage(middle, depths[1], embedding)
        self.down_bottom = nn.Conv2d(middle, bottom, 2, stride=2)
        self.mid = Stage(bottom, depths[2], embedding)
        self.up_middle = nn.Conv2d(bottom, 4 * middle, 1)
        self.dec_middle = Stage(middle, depths[1], embedding)
        self.to_memory = nn.Conv2d(middle, memory, 1)
        self.up_top = nn.Conv2d(middle, 4 * top, 1)
        self.dec_top = Stage(top, depths[0], embedding)
        self.head = zero(nn.Conv2d(top, pixels, 3, padding=1))
        with torch.no_grad():
            self.stem.weight[:, :pixels] = 0  # noise begins without influence

    def forward(
        self, sample: Tensor, timestep: Tensor, conditioning: Conditioning, memory: Memory | None
    ) -> tuple[Tensor, Memory]:
        """Return the predicted clean frame [B, 3, H, W] (nominally in [-1, 1]) and the new memory.

        sample: [B, 3, H, W], the noisy frame; H and W are multiples of 16.
        timestep: int64 [B] in [0, 999], diffusers' convention (999 is pure noise).
        memory: of the previous frame, or None at the start of a segment.
        """
        c = conditioning
        batch, _, height, width = sample.shape
        grid = (batch, 1, height // PATCH, width // PATCH)
        sketch = sample.new_zeros(grid) if c.sketch is None else c.sketch
        skeleton = sample.new_zeros(grid) if c.skeleton is None else c.skeleton
        stacked = F.pixel_unshuffle(torch.cat([sample, c.base], 1), PATCH)
        x = self.stem(torch.cat([stacked, sketch, skeleton], 1))
        if memory is not None:
            x = x + self.stem_previous(F.pixel_unshuffle(memory.frame, PATCH))
        e = self.embedded(timestep, c, has_memory=memory is not None).to(x.dtype)
        top = self.enc_top(x, e)
        x = self.down_middle(top)
        if memory is not None:
            x = x + self.fuse_memory(memory.features)
        middle = self.enc_middle(x, e)
        x = self.mid(self.down_bottom(middle), e)
        x = self.dec_middle(F.pixel_shuffle(self.up_middle(x), 2) + middle, e)
        features = self.to_memory(x)
        x = self.dec_top(F.pixel_shuffle(self.up_top(x), 2) + top, e)
        frame = c.base[:, 3:6] + F.pixel_shuffle(self.head(x), PATCH)
        return frame, Memory(frame, features)

    def embedded(self, timestep: Tensor, c: Conditioning, *, has_memory: bool) -> Tensor:
        """Return the embedding [B, E] of the noise level and of all that is not a picture."""
        half = self.embedding // 2
        rate = torch.exp(
            torch.arange(half, device=timestep.device, dtype=torch.float32)
            * (-math.log(1e4) / half)
        )
        angle = timestep[:, None].float() * rate
        one = torch.ones_like(c.crf, dtype=torch.float32)
        scalars = torch.stack(
            [
                c.crf.float() / 63,
                c.spatial_log2.float() / 3,
                c.temporal_log2.float() / 3,
                c.phase.float(),
                one * (c.sketch is not None),
                one * (c.skeleton is not None),
                one * has_memory,
            ],
            1,
        )
        features = torch.cat([angle.sin(), angle.cos(), scalars], 1)
        return self.embed(features.to(self.stem.weight.dtype))


class Block(nn.Module):
    """Residual block of two 3x3 convolutions, modulated by the embedding between them."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = zero(nn.Linear(embedding, 2 * channels))
        nn.init.normal_(self.second.weight, std=0.2 / math.sqrt(9 * channels))
        nn.init.zeros_(cast(Tensor, self.second.bias))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Return [B, C, h, w] of the same; `e` is the embedding [B, E]."""
        scale, shift = self.modulation(F.silu(e))[:, :, None, None].chunk(2, 1)
        h = self.first(F.silu(x))
        h = torch.addcmul(h + shift, h, scale)
        return x + self.second(F.silu(h))


class Stage(nn.Module):
    """`depth` blocks one after the other."""

    def __init__(self, channels: int, depth: int, embedding: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(channels, embedding) for _ in range(depth))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Return [B, C, h, w] of the same; `e` is the embedding [B, E]."""
        for block in self.blocks:
            x = block(x, e)
        return x


def zero(layer: _Layer) -> _Layer:
    """Return `layer` itself with weights and bias set to zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
