"""A small latent U-Net for CPUs, laid out like diffusers' `UNet2DConditionModel`.

The submodules have diffusers' names and take its keyword arguments, so that one driver
(`s2vc_decoder.predict_noise`) runs either. It differs where a codec must: nothing looks over the
whole picture. Norms act on each position alone, and attention reads the tokens of the own and the
eight neighbouring cells, so that the result at one place does not depend on the picture's size.
The timestep is fixed, so that its embedding would be a constant: the biases hold it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WINDOW = 3  # cells on a side that attention reads


class PositionNorm(nn.LayerNorm):
    """Normalises the channels of each position of [B, C, h, w] alone."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` normalised over its channels, scaled and shifted; same shape and dtype."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SeparableBlock(nn.Module):
    """Residual block: 5x5 depthwise convolution, norm, gated 1x1 expansion.

    ```
    x -> (1x1 if the width changes) -+-> depthwise -> norm -> 1x1 -> a, b -> a silu(b) -> 1x1 -> +
                                     +-----------------------------------------------------------+
    ```
    """

    def __init__(self, channels: int, out: int, expansion: float = 1.5) -> None:
        super().__init__()
        inner = int(expansion * out)
        self.shortcut = nn.Identity() if channels == out else conv(channels, out, 1)
        self.depthwise = nn.Conv2d(out, out, 5, padding=2, groups=out)
        self.norm = PositionNorm(out)
        self.expand = nn.Conv2d(out, 2 * inner, 1)
        self.reduce = nn.Conv2d(inner, out, 1)
        nn.init.normal_(self.reduce.weight, std=0.3 / inner**0.5)
        nn.init.zeros_(self.reduce.bias)  # type: ignore[arg-type]  # a bias was asked for

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """Return [B, out, h, w]; `temb` is there for diffusers' signature and unused."""
        x = self.shortcut(x)
        a, b = self.expand(self.norm(self.depthwise(x))).chunk(2, 1)
        return x + self.reduce(a * F.silu(b))


class LocalAttention(nn.Module):
    """Attention of every position to the tokens of its own cell and the eight around it.

    A cell is the patch of positions that one token stands for. Nearer tokens count more, by a
    learned sharpness for each head, so that the window's edge leaves no visible step. The output
    layer starts at zero: at first the block changes nothing.
    """

    def __init__(self, channels: int, tokens: int, heads: int, depth: int = 24) -> None:
        super().__init__()
        self.heads, self.depth = heads, depth
        inner = heads * depth
        self.norm = PositionNorm(channels)
        self.to_q = nn.Conv2d(channels, inner, 1, bias=False)
        self.to_k = nn.Linear(tokens, inner, bias=False)
        self.to_v = nn.Linear(tokens, inner, bias=False)
        self.to_out = zero(nn.Conv2d(inner, channels, 1))
        self.sharpness = nn.Parameter(torch.zeros(heads))

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """Return [B, C, h, w] of the same.

        encoder_hidden_states: [B, frames * rows * columns, tokens]; grid: (rows, columns), divisors
        of h and w with one quotient.
        """
        batch, _, height, width = hidden_states.shape
        rows, columns = grid
        side, depth = height // rows, self.depth
        q = self.to_q(self.norm(hidden_states))
        q = q.view(batch, self.heads, depth, rows, side, columns, side)
        q = q.permute(0, 3, 5, 1, 4, 6, 2).reshape(-1, self.heads, side * side, depth)
        k, v = (
            self._windows(project(encoder_hidden_states), grid)
            for project in (self.to_k, self.to_v)
        )
        bias = self._nearness(side, k.shape[2], q)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x.view(batch, rows, columns, self.heads, side, side, depth)
        x = x.permute(0, 3, 6, 1, 4, 2, 5).reshape(batch, -1, height, width)
        return hidden_states + self.to_out(x)

    def _windows(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """The tokens around each cell, [B * rows * columns, heads, frames * 9, depth]."""
        batch, count, channels = x.shape
        rows, columns = grid
        frames = count // (rows * columns)
        maps = x.view(batch * frames, rows, columns, channels).permute(0, 3, 1, 2)
        maps = F.pad(maps, (1, 1, 1, 1), mode="replicate")
        near = maps.unfold(2, _WINDOW, 1).unfold(3, _WINDOW, 1)  # [B*f, C, rows, columns, 3, 3]
        near = near.reshape(batch, frames, self.heads, -1, rows, columns, _WINDOW**2)
        near = near.permute(0, 4, 5, 2, 1, 6, 3)
        return near.reshape(batch * rows * columns, self.heads, frames * _WINDOW**2, -1)

    def _nearness(self, side: int, keys: int, like: Tensor) -> Tensor:
        """Added to the logits [heads, side * side, keys]: minus sharpness times squared distance.

        Distances are between a position and a token's cell centre, in cells.
        """
        place = (torch.arange(side, device=like.device) + 0.5) / side - 0.5
        square = (place[:, None] - torch.arange(-1, 2, device=like.device)) ** 2
        both = square[:, None, :, None] + square[None, :, None, :]
        far = both.reshape(side * side, _WINDOW**2).repeat(1, keys // _WINDOW**2)
        return (-(1 + F.softplus(self.sharpness.float()))[:, None, None] * far).to(like.dtype)


class SmallUNet(nn.Module):
    """The U-Net of the small dial: `widths` from fine to coarse, a level halves the resolution.

    layers: residual blocks of a level on the way down (one more on the way up). tokens: width of
    the tokens; the levels below the first attend to them. heads: of each attention.
    """

    local_attention = True  # blocks need the tokens' grid in cross_attention_kwargs

    def __init__(
        self, *, latent: int, widths: tuple[int, ...], layers: int, tokens: int, heads: int
    ) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.time_proj = self.time_embedding = None
        self.conv_in = conv(widths[0], widths[0], 3)
        self.down_blocks = nn.ModuleList()
        skips, before, last = [widths[0]], widths[0], len(widths) - 1
        for level, width in enumerate(widths):
            attend = {"tokens": tokens, "heads": heads if level else 0}
            block = DownBlock([before] + [width] * (layers - 1), width, level < last, **attend)
            self.down_blocks.append(block)
            skips += [width] * (layers + (level < last))
            before = width
        self.mid_block = MidBlock(before, tokens, heads)
        self.up_blocks = nn.ModuleList()
        for level in range(last, -1, -1):
            width = widths[level]
            taken = [skips.pop() for _ in range(layers + 1)]
            inputs = [c + s for c, s in zip([before] + [width] * layers, taken, strict=True)]
            attend = {"tokens": tokens, "heads": heads if level else 0}
            self.up_blocks.append(UpBlock(inputs, width, level > 0, **attend))
            before = width
        self.conv_norm_out = PositionNorm(before)
        self.conv_act = nn.SiLU()
        self.conv_out = zero(nn.Conv2d(before, latent, 3, padding=1))


class DownBlock(nn.Module):
    """Residual blocks, attention after the last (if `heads`), then a halving if `halve`."""

    def __init__(
        self, inputs: list[int], width: int, halve: bool, *, tokens: int, heads: int
    ) -> None:
        super().__init__()
        self.has_cross_attention = heads > 0
        self.resnets = nn.ModuleList(SeparableBlock(c, width) for c in inputs)
        self.attentions = _attention(width, tokens, heads)
        self.downsamplers = nn.ModuleList([conv(width, width, 2, 2)]) if halve else None

    def forward(
        self,
        hidden_states: Tensor,
        temb: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the result and the skip connections, the result last among them."""
        skips: tuple[Tensor, ...] = ()
        for i, block in enumerate(self.resnets, 1):
            hidden_states = block(hidden_states, temb)
            if i == len(self.resnets) and self.attentions and encoder_hidden_states is not None:
                given = cross_attention_kwargs or {}
                hidden_states = self.attentions[0](hidden_states, encoder_hidden_states, **given)
            skips += (hidden_states,)
        if self.downsamplers is not None:
            hidden_states = self.downsamplers[0](hidden_states)
            skips += (hidden_states,)
        return hidden_states, skips


class MidBlock(nn.Module):
    """Residual block, attention, residual block."""

    has_cross_attention = True

    def __init__(self, width: int, tokens: int, heads: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(SeparableBlock(width, width) for _ in range(2))
        self.attentions = _attention(width, tokens, heads)

    def forward(
        self,
        hidden_states: Tensor,
        temb: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        """Return [B, C, h, w] of the same."""
        x = self.resnets[0](hidden_states, temb)
        if encoder_hidden_states is not None:
            x = self.attentions[0](x, encoder_hidden_states, **(cross_attention_kwargs or {}))
        return self.resnets[1](x, temb)


class UpBlock(nn.Module):
    """Residual blocks that each take a skip, attention after the last, a doubling if `double`."""

    def __init__(
        self, inputs: list[int], width: int, double: bool, *, tokens: int, heads: int
    ) -> None:
        super().__init__()
        self.has_cross_attention = heads > 0
        self.resnets = nn.ModuleList(SeparableBlock(c, width) for c in inputs)
        self.attentions = _attention(width, tokens, heads)
        self.upsamplers = nn.ModuleList([conv(width, 4 * width, 1)]) if double else None

    def forward(
        self,
        hidden_states: Tensor,
        res_hidden_states_tuple: tuple[Tensor, ...],
        temb: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        upsample_size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Return the result; `res_hidden_states_tuple` is read from its end."""
        skips = list(res_hidden_states_tuple)
        for block in self.resnets:
            hidden_states = block(torch.cat([hidden_states, skips.pop()], 1), temb)
        if self.attentions and encoder_hidden_states is not None:
            given = cross_attention_kwargs or {}
            hidden_states = self.attentions[0](hidden_states, encoder_hidden_states, **given)
        if self.upsamplers is not None:
            hidden_states = F.pixel_shuffle(self.upsamplers[0](hidden_states), 2)
        return hidden_states


def conv(channels: int, out: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps the scale of what it is given (fan-in, gain 1).

    torch's own start divides it by the square root of three, each time.
    """
    layer = nn.Conv2d(channels, out, size, stride=stride, padding=(size - 1) // 2)
    nn.init.normal_(layer.weight, std=(channels * size * size) ** -0.5)
    return layer


def zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Return `layer` itself with weights and bias set to zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _attention(width: int, tokens: int, heads: int) -> nn.ModuleList:
    return nn.ModuleList([LocalAttention(width, tokens, heads)] if heads else [])
