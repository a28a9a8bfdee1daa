"""The small generator as a decoder runs it: one frame at a time, conditions folded into weights.

It gives what `Generator` gives, up to rounding, in about half the time. A frame is handled as
patches: [h, w, 48], where h = H/4, w = W/4 and the last axis is (row, column, RGB) in a 4x4 cell.
The settings of a frame (noise level, crf, factors, phase, which conditions are there) are few in a
segment, so each block's modulation is multiplied into its first convolution once for each. The
first layer is one matrix product over a buffer that keeps what does not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semvc.nets.generator import PATCH, Block, Conditioning, Generator

PIXELS = 3 * PATCH * PATCH  # values in a patch
_SLOTS = 5  # patches that the first layer sees: noise, previous, held, next, previous output
_MAPS = 2  # sketch and skeleton
_KEPT = 64  # folded settings kept at a time


@dataclass(frozen=True, slots=True)
class Settings:
    """What is the same all over a frame; see `generator.Conditioning` for the ranges."""

    timestep: int
    crf: float
    spatial_log2: float
    temporal_log2: float
    phase: float


@dataclass(frozen=True, slots=True)
class FrameInputs:
    """What differs from place to place: patches [h, w, 48] in [-1, 1], maps [h, w] in [0, 1].

    `base` are the previous, held and next received frame; `sketch` and `skeleton` may be absent.
    """

    noise: Tensor
    base: tuple[Tensor, Tensor, Tensor]
    sketch: Tensor | None
    skeleton: Tensor | None


@dataclass(frozen=True, slots=True)
class PatchMemory:
    """What is kept of the previous frame: `frame` [h, w, 48], `features` [1, M, h/2, w/2]."""

    frame: Tensor
    features: Tensor


@dataclass(frozen=True, slots=True)
class _Block:
    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor


@dataclass(frozen=True, slots=True)
class _Folded:
    """Blocks of the five stages in order of use, and the first layer's bias."""

    stages: tuple[tuple[_Block, ...], ...]
    stem_bias: Tensor


def to_patches(picture: Tensor) -> Tensor:
    """Return [h, w, 48] of a picture [H, W, 3]; H and W are multiples of 4."""
    height, width, _ = picture.shape
    rows = picture.reshape(height // PATCH, PATCH, width // PATCH, 3 * PATCH)
    return rows.transpose(1, 2).reshape(height // PATCH, width // PATCH, PIXELS)


def from_patches(patches: Tensor) -> Tensor:
    """Return the picture [H, W, 3] of patches [h, w, 48]."""
    h, w, _ = patches.shape
    rows = patches.reshape(h, w, PATCH, 3 * PATCH).transpose(1, 2)
    return rows.reshape(h * PATCH, w * PATCH, 3)


class FoldedGenerator:
    """Runs a `Generator` whose weights do not change any more; not safe for several threads."""

    @torch.no_grad()
    def __init__(self, network: Generator) -> None:
        self._network = network
        self._stem = _stem_weight(network)
        self._head = _cells_first(network.head.weight), _cells_first(_bias(network.head))
        self._ups = [_up_weight(layer) for layer in (network.up_middle, network.up_top)]
        self._folded: dict[tuple[Settings, bool, bool, bool], _Folded] = {}
        self._buffer = self._stem.new_empty(0)
        self._held_by_slot: list[Tensor | None] = []

    @torch.inference_mode()
    def __call__(
        self, given: FrameInputs, settings: Settings, memory: PatchMemory | None
    ) -> tuple[Tensor, PatchMemory]:
        """Return what is to be added to the held frame, [h, w, 48], and the new memory.

        A tensor that is given again is taken to be unchanged.
        """
        net = self._network
        key = (settings, given.sketch is not None, given.skeleton is not None, memory is not None)
        if key not in self._folded:
            if len(self._folded) >= _KEPT:
                self._folded.clear()
            self._folded[key] = self._fold(*key)
        folded = self._folded[key]
        enc_top, enc_middle, mid, dec_middle, dec_top = folded.stages
        held = given.base[1]
        x = _run(self._first_layer(given, memory, folded.stem_bias), enc_top)
        top = x
        x = net.down_middle(x)
        if memory is not None:
            x.add_(net.fuse_memory(memory.features))
        middle = _run(x, enc_middle)
        x = _run(net.down_bottom(middle), mid)
        x = _run(_add_upsampled(middle, x, *self._ups[0]), dec_middle)
        features = net.to_memory(x)
        x = _run(_add_upsampled(top, x, *self._ups[1]), dec_top)
        residual = F.conv2d(x, *self._head, padding=1)[0].permute(1, 2, 0)
        return residual, PatchMemory(held + residual, features)

    def _first_layer(self, given: FrameInputs, memory: PatchMemory | None, bias: Tensor) -> Tensor:
        """Fill the buffer [h, w, slots and maps] where it changed; return [1, C, h, w]."""
        h, w, _ = given.noise.shape
        if self._buffer.shape[:2] != (h, w):
            self._buffer = self._stem.new_zeros((h, w, self._stem.shape[1]))
            self._held_by_slot = [None] * (_SLOTS + _MAPS)
        filling = [given.noise, *given.base, None if memory is None else memory.frame]
        for i, values in enumerate([*filling, given.sketch, given.skeleton]):
            if values is self._held_by_slot[i]:
                continue
            at = slice(i * PIXELS, (i + 1) * PIXELS)
            if i >= _SLOTS:
                at = slice(_SLOTS * PIXELS + i - _SLOTS, _SLOTS * PIXELS + i - _SLOTS + 1)
            part = self._buffer[..., at]
            if values is None:
                part.zero_()
            else:
                part.copy_(values.reshape(h, w, -1))
            self._held_by_slot[i] = values
        return F.linear(self._buffer, self._stem, bias).permute(2, 0, 1)[None]

    def _fold(self, settings: Settings, sketch: bool, skeleton: bool, memory: bool) -> _Folded:
        net = self._network

        def scalar(value: float) -> Tensor:
            return torch.tensor([value], dtype=torch.float32, device=self._stem.device)

        empty = self._stem.new_empty(0)
        conditioning = Conditioning(
            base=empty,
            sketch=empty if sketch else None,
            skeleton=empty if skeleton else None,
            crf=scalar(settings.crf),
            spatial_log2=scalar(settings.spatial_log2),
            temporal_log2=scalar(settings.temporal_log2),
            phase=scalar(settings.phase),
        )
        level = torch.tensor([settings.timestep], device=self._stem.device)
        e = F.silu(net.embedded(level, conditioning, has_memory=memory))
        stages = (net.enc_top, net.enc_middle, net.mid, net.dec_middle, net.dec_top)
        bias = _bias(net.stem)
        return _Folded(
            tuple(tuple(_fold_block(cast(Block, b), e) for b in stage.blocks) for stage in stages),
            bias + _bias(net.stem_previous) if memory else bias,
        )


def _fold_block(block: Block, e: Tensor) -> _Block:
    """Multiply (1 + scale) and shift into the first convolution, in float32, rounded once."""
    scale, shift = block.modulation(e)[0].float().chunk(2)
    first, second = block.first, block.second
    weight = first.weight.float() * (1 + scale)[:, None, None, None]
    bias = _bias(first).float() * (1 + scale) + shift
    dtype = first.weight.dtype
    return _Block(
        weight.to(dtype, memory_format=torch.channels_last),
        bias.to(dtype),
        second.weight,
        _bias(second),
    )


def _run(x: Tensor, blocks: tuple[_Block, ...]) -> Tensor:
    """Apply residual blocks to `x`, in place."""
    for b in blocks:
        h = F.conv2d(F.silu(x), b.first, b.first_bias, padding=1)
        x.add_(F.conv2d(F.silu(h, inplace=True), b.second, b.second_bias, padding=1))
    return x


def _add_upsampled(skip: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Add the doubled `x` to `skip` [1, C, 2h, 2w], in place."""
    _, channels, height, width = skip.shape
    y = F.linear(x[0].permute(1, 2, 0), weight, bias)
    y = y.view(height // 2, width // 2, 2, 2, channels).transpose(1, 2)
    skip[0].permute(1, 2, 0).view(height // 2, 2, width // 2, 2, channels).add_(y)
    return skip


def _stem_weight(network: Generator) -> Tensor:
    """[C, 5 * 48 + 2] over noise, base frames, previous output, sketch and skeleton."""
    weight = network.stem.weight[:, :, 0, 0]
    frames = [weight[:, i * PIXELS : (i + 1) * PIXELS] for i in range(_SLOTS - 1)]
    frames.append(network.stem_previous.weight[:, :, 0, 0])
    ordered = [_cells_first(f.T).T for f in frames]
    return torch.cat([*ordered, weight[:, -_MAPS:]], 1).contiguous()


def _up_weight(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weights of a 1x1 convolution before a pixel shuffle by 2, as [(row, column, C), C_in]."""
    weight = layer.weight[:, :, 0, 0].unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1)
    bias = _bias(layer).unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1)
    return weight.contiguous(), bias.contiguous()


def _cells_first(x: Tensor) -> Tensor:
    """Reorder the first axis from pixel_unshuffle's (RGB, row, column) to (row, column, RGB)."""
    ordered = x.unflatten(0, (3, PATCH * PATCH)).transpose(0, 1).flatten(0, 1)
    form = torch.channels_last if x.ndim == 4 else torch.contiguous_format
    return ordered.contiguous(memory_format=form)


def _bias(layer: nn.Conv2d | nn.Linear) -> Tensor:
    if layer.bias is None:
        raise ValueError("a layer of the generator has no bias")
    return layer.bias
