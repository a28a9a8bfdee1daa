"""The small generator of profile cpsgd: repairs a scene that was warped together from keyframes.

Like `generator.Generator` it is a recurrent one-step diffusion model in sample prediction, made of
the same blocks. What it starts from is the frame that needs no model (see `reprojection`); it sees
where that came from, how sure it is, which way every place looks, and where objects are. Masks and
objects come in through a branch of their own whose every output begins as zero, after ControlNet
(Zhang et al., 2023, section 3.1), so that a stream without masks costs it nothing.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semvc.nets.generator import PATCH, STRIDE, Memory, Stage, zero
from semvc.nets.plucker import CHANNELS

__all__ = ["CONTROL", "PATCH", "STRIDE", "VIEW", "CpsgdGenerator", "SceneInputs"]

VIEW = 4  # channels of a view: colors and validity
CONTROL = 5  # channels of control: an object's look, whether it is known, whether there is one
SCALARS = 5  # crf, factor, phase, has_control, has_memory


@dataclass(frozen=True, slots=True)
class SceneInputs:
    """What one frame is generated from; B frames of one size, H and W multiples of 16.

    base: [B, 3, H, W] in [-1, 1], the frame as the preview shows it.
    before, after: [B, 4, H, W], the keyframes beside it, warped: colors in [-1, 1], and validity in
        [0, 1] as the last channel.
    rays: [B, 6, H/4, W/4], Plücker coordinates (see `plucker`).
    control: [B, 5, H, W], or None without masks: the objects' look in [-1, 1] and 0 where there is
        none; where that is known, and where an object is, in [0, 1].
    crf: [B] in [0, 70], the keyframes' quantiser setting. factor_log2: [B] in [0, 3], log2 of how
        much smaller they are. phase: [B] in [0, 1), how far the frame lies between them.
    """

    base: Tensor
    before: Tensor
    after: Tensor
    rays: Tensor
    control: Tensor | None
    crf: Tensor
    factor_log2: Tensor
    phase: Tensor


class CpsgdGenerator(nn.Module):
    """Predicts the clean frame x0 from a noisy sample, conditioned on a warped scene.

    ```
    noisy, base, views -> stem -> enc 1/4 -> enc 1/8 -> mid 1/16 -> dec 1/8 -> dec 1/4 -> + base
    rays -> pose encoder ------------------->+ (with memory)  +
    masks, objects -> control ---->+ ------->+ -------------->+     all zero-initialised
    ```
    """

    def __init__(
        self,
        *,
        widths: tuple[int, int, int],
        depths: tuple[int, int, int],
        embedding: int,
        memory: int,
        pose: int,
        control: tuple[int, int, int],
    ) -> None:
        super().__init__()
        top, middle, bottom = widths
        cell = PATCH * PATCH
        self.embedding = embedding
        self.memory_channels = memory
        self.embed = nn.Sequential(
            nn.Linear(embedding + SCALARS, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.stem = nn.Conv2d((6 + 2 * VIEW) * cell, top, 1)
        self.stem_previous = zero(nn.Conv2d(3 * cell, top, 1))
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
        self.head = zero(nn.Conv2d(top, 3 * cell, 3, padding=1))
        self.pose = _PoseEncoder(pose, (middle, bottom), embedding)
        self.control = _Control(control, widths, embedding)
        with torch.no_grad():
            self.stem.weight[:, : 3 * cell] = 0  # noise begins without influence

    def forward(
        self, sample: Tensor, timestep: Tensor, inputs: SceneInputs, memory: Memory | None
    ) -> tuple[Tensor, Memory]:
        """Return the predicted clean frame [B, 3, H, W] (nominally in [-1, 1]) and the new memory.

        sample: [B, 3, H, W], the noisy frame. timestep: int64 [B] in [0, 999], diffusers'
        convention. memory: of the previous frame, or None at the start of a segment.
        """
        c = inputs
        e = self._embedded(timestep, c, has_memory=memory is not None).to(sample.dtype)
        stacked = torch.cat([sample, c.base, c.before, c.after], 1)
        x = self.stem(F.pixel_unshuffle(stacked, PATCH))
        if memory is not None:
            x = x + self.stem_previous(F.pixel_unshuffle(memory.frame, PATCH))
        pose = self.pose(c.rays, e)
        top = self.enc_top(x, e)
        x = self.down_middle(top) + pose[0]
        if memory is not None:
            x = x + self.fuse_memory(memory.features)
        middle = self.enc_middle(x, e)
        x = self.down_bottom(middle) + pose[1]
        if c.control is not None:
            added = self.control(c.control, e)
            top, middle, x = top + added[0], middle + added[1], x + added[2]
        x = self.mid(x, e)
        x = self.dec_middle(F.pixel_shuffle(self.up_middle(x), 2) + middle, e)
        features = self.to_memory(x)
        x = self.dec_top(F.pixel_shuffle(self.up_top(x), 2) + top, e)
        frame = c.base + F.pixel_shuffle(self.head(x), PATCH)
        return frame, Memory(frame, features)

    def _embedded(self, timestep: Tensor, c: SceneInputs, *, has_memory: bool) -> Tensor:
        half = self.embedding // 2
        steps = torch.arange(half, device=timestep.device, dtype=torch.float32)
        angle = timestep[:, None].float() * torch.exp(steps * (-math.log(1e4) / half))
        one = torch.ones_like(c.crf, dtype=torch.float32)
        scalars = [
            c.crf.float() / 70,
            c.factor_log2.float() / 3,
            c.phase.float(),
            one * (c.control is not None),
            one * has_memory,
        ]
        features = torch.cat([angle.sin(), angle.cos(), torch.stack(scalars, 1)], 1)
        return self.embed(features.to(self.stem.weight.dtype))


class _PoseEncoder(nn.Module):
    """Rays [B, 6, H/4, W/4] to what is added at 1/8 and 1/16; both begin as zero."""

    def __init__(self, width: int, targets: tuple[int, int], embedding: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(CHANNELS, width, 2, stride=2)
        self.eighth = Stage(width, 1, embedding)
        self.down = nn.Conv2d(width, width, 2, stride=2)
        self.sixteenth = Stage(width, 1, embedding)
        self.outs = nn.ModuleList(zero(nn.Conv2d(width, target, 1)) for target in targets)

    def forward(self, rays: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        eighth = self.eighth(self.first(rays), e)
        sixteenth = self.sixteenth(self.down(eighth), e)
        return self.outs[0](eighth), self.outs[1](sixteenth)


class _Control(nn.Module):
    """Masks and objects [B, 5, H, W] to what is added at 1/4, 1/8 and 1/16; all begin as zero."""

    def __init__(
        self, widths: tuple[int, int, int], targets: tuple[int, int, int], embedding: int
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(CONTROL * PATCH * PATCH, widths[0], 1)
        self.stages = nn.ModuleList(Stage(width, 1, embedding) for width in widths)
        self.downs = nn.ModuleList(
            nn.Conv2d(a, b, 2, stride=2) for a, b in itertools.pairwise(widths)
        )
        self.outs = nn.ModuleList(
            zero(nn.Conv2d(width, target, 1)) for width, target in zip(widths, targets, strict=True)
        )

    def forward(self, control: Tensor, e: Tensor) -> list[Tensor]:
        x = self.first(F.pixel_unshuffle(control, PATCH))
        added = []
        for level, stage in enumerate(self.stages):
            x = stage(self.downs[level - 1](x) if level else x, e)
            added.append(self.outs[level](x))
        return added
