"""The single-step latent diffusion decoder of profile s2vc: codec features in, frames out.

After S2VC (arXiv 2512.07480): a latent U-Net at one fixed timestep predicts noise, from which the
clean latent follows in closed form; an autoencoder turns it into pixels. Nothing is sampled, so
that a frame depends on the features alone. Two dials share this code path: a small U-Net of our own
(`unet.kind = "small"`) and Stable Diffusion's (`unet.kind = "diffusers"`), see `SmallUNet` and
`s2vc_pretrained`.

Features f(t) are the codec's: [B, C, H/8, W/8] for frames padded to multiples of 64 luma samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semvc.errors import ModelError
from semvc.nets.autoencoder import FACTOR, SmallAutoencoder
from semvc.nets.s2vc_unet import LocalAttention, PositionNorm, SeparableBlock, SmallUNet, conv, zero

STRIDE = 64  # frames are padded to a multiple of this, in luma samples: one token's cell
SMALL: dict[str, Any] = {
    "channels": 96,
    "timestep": 400,
    "tokens": 96,
    "semantic": 64,
    "adapter_blocks": 1,
    "fused": 3,
    "unet": {
        "kind": "small",
        "latent": 16,
        "widths": [112, 144, 160],
        "layers": 1,
        "heads": 4,
    },
    "autoencoder": {
        "kind": "small",
        "latent": 16,
        "widths": [96, 64, 32],
        "depths": [1, 2, 3],
    },
}
SD15: dict[str, Any] = {  # Stable Diffusion 1.5's U-Net, Stable Diffusion 2.1's autoencoder
    "channels": 384,
    "timestep": 999,
    "tokens": 768,
    "semantic": 576,
    "adapter_blocks": 3,
    "fused": 3,
    "unet": {
        "kind": "diffusers",
        "block_out_channels": [320, 640, 1280, 1280],
        "attention_head_dim": 8,
        "lora": {"rank": 64, "alpha": 8},
    },
    "autoencoder": {
        "kind": "diffusers",
        "latent": 4,
        "scaling_factor": 0.18215,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "sample_size": 768,
    },
}
_TRAIN_STEPS, _BETA_START, _BETA_END = 1000, 0.00085, 0.012  # Stable Diffusion's schedule


class LatentUNet(Protocol):
    """What `predict_noise` needs of a U-Net: the parts of diffusers' `UNet2DConditionModel`."""

    down_blocks: nn.ModuleList
    up_blocks: nn.ModuleList
    mid_block: nn.Module
    conv_in: nn.Module
    conv_norm_out: nn.Module
    conv_act: nn.Module
    conv_out: nn.Module
    time_proj: Any
    time_embedding: Any


@dataclass(frozen=True, slots=True)
class Buffers:
    """What is kept of a frame for the next one; None in its place starts a segment.

    tokens: [B, cells, D]; levels: the U-Net's features after each down block, before fusion.
    """

    tokens: Tensor
    levels: tuple[Tensor, ...]

    def detach(self) -> Buffers:
        """Return the same values without their history of gradients."""
        return Buffers(self.tokens.detach(), tuple(x.detach() for x in self.levels))


class LatentDecoder(nn.Module):
    """Codec features to frames, with the previous frame's buffers as guidance.

    ```
    f(t) -> content adapter -+-> U-Net (timestep fixed) -> noise -> x0 -> autoencoder -> frame
                             +-> head -> x_t ----------------------^
    f(t), f(t-1) -> semantic adapter -> tokens -> cross-attention (CSG)
    previous frame's down-block features -> zero-initialised fusion after each down block (TCG)
    ```

    channels: of the codec's features. timestep: in [0, 999]. tokens: width D of the semantic
    tokens. fused: after how many down blocks the previous frame's features are fused. unet,
    autoencoder: tables with a `kind`, "small" or "diffusers", and the constructor's arguments.
    csg, tcg: whether each guidance is used (off for ablations).
    """

    def __init__(
        self,
        *,
        channels: int,
        timestep: int,
        tokens: int,
        semantic: int,
        adapter_blocks: int,
        fused: int,
        unet: dict[str, Any],
        autoencoder: dict[str, Any],
        csg: bool = True,
        tcg: bool = True,
    ) -> None:
        super().__init__()
        self.csg, self.tcg = csg, tcg
        self.timestep = timestep
        self.power = signal_power(timestep)
        self.unet = _unet(unet, tokens)
        self.autoencoder: Any = _autoencoder(autoencoder)
        self.local = bool(getattr(self.unet, "local_attention", False))
        widths = tuple(getattr(self.unet, "widths", ())) or tuple(unet["block_out_channels"])
        inside = [SeparableBlock(widths[0], widths[0]) for _ in range(adapter_blocks - 1)]
        self.content = nn.Sequential(SeparableBlock(channels, widths[0]), *inside)
        self.head = conv(widths[0], autoencoder["latent"], 1)
        self.semantic = SemanticAdapter(channels, semantic, tokens, local=self.local)
        self.temporal = nn.ModuleList(TemporalFusion(width) for width in widths[:fused])

    def forward(self, features: Tensor, before: Buffers | None) -> tuple[Tensor, Buffers]:
        """Return the frame [B, 3, H, W], nominally in [-1, 1], and the buffers for the next one."""
        latent, buffers = self.latents(features, before)
        return self.autoencoder.decode(latent), buffers

    def latents(self, features: Tensor, before: Buffers | None) -> tuple[Tensor, Buffers]:
        """Return the clean latent x0 [B, L, H/8, W/8] and the buffers for the next frame."""
        grid = (features.shape[2] * FACTOR // STRIDE, features.shape[3] * FACTOR // STRIDE)
        own = self.semantic(features)
        tokens = self.semantic.pair(own, None if before is None else before.tokens)
        if not self.csg:
            tokens = torch.zeros_like(tokens)
        levels: list[Tensor] = []

        def fuse(level: int, x: Tensor) -> Tensor:
            if level >= len(self.temporal):
                return x
            levels.append(x)
            if before is None or not self.tcg:
                return x
            return self.temporal[level](x, before.levels[level])

        x = self.content(features)
        noise = predict_noise(
            self.unet, x, self.timestep, tokens, grid=grid if self.local else None, fuse=fuse
        )
        return clean_latent(self.head(x), noise, self.power), Buffers(own, tuple(levels))


def signal_power(timestep: int) -> float:
    """Return alpha-bar at `timestep` of Stable Diffusion's scaled-linear schedule, in float64.

    Not the rescaled schedule of `schedule.py`: the closed form needs a signal at timestep 999.
    """
    if not 0 <= timestep < _TRAIN_STEPS:
        raise ValueError(f"timestep must be in [0, {_TRAIN_STEPS - 1}], not {timestep}")
    betas = np.linspace(_BETA_START**0.5, _BETA_END**0.5, _TRAIN_STEPS, dtype=np.float64) ** 2
    return float(np.cumprod(1 - betas)[timestep])


def clean_latent(sample: Tensor, noise: Tensor, power: float) -> Tensor:
    """Return x0 = (x_t - sqrt(1 - a) noise) / sqrt(a), a being the signal power at the timestep.

    The inverse of the forward process (Ho et al. 2020, eq. 15), taken in one step as in S2VC's
    generator (section 3.3); computed in float32, since at timestep 999 it multiplies by 14.6.
    """
    clean = (sample.float() - (1 - power) ** 0.5 * noise.float()) / power**0.5
    return clean.to(sample.dtype)


def predict_noise(
    unet: Any,
    x: Tensor,
    timestep: int,
    tokens: Tensor | None,
    *,
    grid: tuple[int, int] | None = None,
    fuse: Callable[[int, Tensor], Tensor] = lambda _, x: x,
) -> Tensor:
    """Return the noise that `unet` (a `LatentUNet`) predicts from `x`.

    Equal to diffusers' `UNet2DConditionModel.forward` but for `fuse(level, features)`, which may
    change what goes down from each down block; the skip connections are left as they are.
    `grid` is handed to attention that needs the tokens' arrangement.
    """
    embedding = None
    if unet.time_embedding is not None:
        steps = torch.full((x.shape[0],), timestep, device=x.device)
        embedding = unet.time_embedding(unet.time_proj(steps).to(x.dtype))
    attended: dict[str, Any] = {"temb": embedding, "encoder_hidden_states": tokens}
    if grid is not None:
        attended["cross_attention_kwargs"] = {"grid": grid}
    plain = {"temb": embedding}
    x = unet.conv_in(x)
    skips: tuple[Tensor, ...] = (x,)
    for level, block in enumerate(unet.down_blocks):
        x, kept = block(hidden_states=x, **(attended if _attends(block) else plain))
        skips += kept
        x = fuse(level, x)
    x = unet.mid_block(x, **(attended if _attends(unet.mid_block) else plain))
    for block in unet.up_blocks:
        count = len(block.resnets)
        taken, skips = skips[-count:], skips[:-count]
        given = attended if _attends(block) else plain
        size = tuple(skips[-1].shape[2:]) if skips else None
        x = block(hidden_states=x, res_hidden_states_tuple=taken, upsample_size=size, **given)
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))


class SemanticAdapter(nn.Module):
    """Contextual Semantic Guidance: features of a frame to tokens, one for each cell of 64x64.

    Two halvings, a residual block, a third halving, then twice attention among the tokens and a
    gated convolution (S2VC, section 3.2). The tokens of f(t) and f(t-1), told apart by a learned
    vector, are attended to together. `local` limits the attention to neighbouring cells.
    """

    def __init__(self, channels: int, inner: int, tokens: int, *, local: bool) -> None:
        super().__init__()
        self.local = local
        self.halve = nn.Sequential(
            conv(channels, inner, 2, 2),
            conv(inner, inner, 2, 2),
            SeparableBlock(inner, inner),
            conv(inner, tokens, 2, 2),
        )
        heads = max(1, tokens // 64)
        self.attentions = nn.ModuleList(
            LocalAttention(tokens, tokens, heads) if local else _GlobalAttention(tokens, heads)
            for _ in range(2)
        )
        self.mixers = nn.ModuleList(SeparableBlock(tokens, tokens) for _ in range(2))
        self.norm = PositionNorm(tokens)
        self.origin = nn.Parameter(torch.zeros(2, tokens))  # added to tokens of f(t), f(t-1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the tokens [B, cells, D] of one frame, row by row."""
        x = self.halve(features)
        grid = (x.shape[2], x.shape[3])
        for attention, mix in zip(self.attentions, self.mixers, strict=True):
            given = (x.flatten(2).transpose(1, 2), grid) if self.local else ()
            x = mix(attention(x, *given))
        return self.norm(x).flatten(2).transpose(1, 2)

    def pair(self, now: Tensor, before: Tensor | None) -> Tensor:
        """Return the tokens of both frames in one row [B, cells or 2 cells, D]."""
        now = now + self.origin[0].to(now.dtype)
        if before is None:
            return now
        return torch.cat([now, before + self.origin[1].to(now.dtype)], 1)


class _GlobalAttention(nn.Module):
    """Self-attention over all positions, as a residual."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = PositionNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.to_out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.to_qkv(self.norm(x)).flatten(2)
        q, k, v = (t.unflatten(1, (self.heads, -1)).transpose(2, 3) for t in qkv.chunk(3, 1))
        found = F.scaled_dot_product_attention(q, k, v)
        return x + self.to_out(found.transpose(2, 3).reshape(x.shape))


class TemporalFusion(nn.Module):
    """Temporal Consistency Guidance at one level: adds what the previous frame's features say.

    They are halved in width, pass two depthwise blocks, join the present ones, and come in through
    a 1x1 convolution that starts at zero (S2VC, section 3.4): at first the block changes nothing.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.reduce = conv(channels, half, 1)
        self.blocks = nn.Sequential(SeparableBlock(half, half), SeparableBlock(half, half))
        self.fuse = conv(channels + half, half, 1)
        self.out = zero(nn.Conv2d(half, channels, 1))

    def forward(self, now: Tensor, before: Tensor) -> Tensor:
        """Return [B, C, h, w] of `now` [B, C, h, w] and the previous frame's of the same shape."""
        joined = torch.cat([now, self.blocks(self.reduce(before))], 1)
        return now + self.out(F.silu(self.fuse(joined)))


def _attends(block: Any) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


def _unet(given: dict[str, Any], tokens: int) -> nn.Module:
    kind, values = _kind(given)
    if kind == "small":
        return SmallUNet(tokens=tokens, **values)
    from semvc.nets import s2vc_pretrained

    return s2vc_pretrained.unet(tokens=tokens, **values)


def _autoencoder(given: dict[str, Any]) -> nn.Module:
    kind, values = _kind(given)
    if kind == "small":
        return SmallAutoencoder(**values)
    from semvc.nets import s2vc_pretrained

    return s2vc_pretrained.KLDecoder(**values)


def _kind(given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    values = dict(given)
    kind = values.pop("kind", None)
    if kind not in ("small", "diffusers"):
        raise ModelError(f'kind must be "small" or "diffusers", not {kind!r}; restore config.toml')
    return kind, values
