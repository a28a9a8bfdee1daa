"""The codec half of profile s2vc: transforms and conditional coding of frames in feature space.

After S2VC (Xue et al., CVPR 2026). A segment's first frame is coded alone (intra), every other one
(inter) given a reference made from the decoder's buffered feature; no motion is sent. The entropy
coder is not here: it gets the integers of `Latents`, and nothing else from this file.

What a generator consumes is `CodecFeatures`: for frame t of a segment the pair {f(t), f(t-1)},

    now, before    [B, features, H/8, W/8], the codec's dtype, channels-last; unbounded, O(1)

where H and W are padded to multiples of 64 and `features` is a constructor argument (96 small, 384
full). For the first frame of a segment `before` is `now`. `S2vcCodec.decode` yields it frame by
frame from integers, `S2vcCodec.step` in training, with gradients through the buffer. The encoder
runs both halves of this file and never the generator: every `reset` frames, and for the first inter
frame, the reference is the codec's own preview picture embedded anew, so that drift of the feature
does not outlive `reset` frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 8  # luma samples of a feature's side
STRIDE = 64  # frames are padded to a multiple of this; also the hyper-latent's
HYPER_RANGE = 7  # rounded hyper-latents lie in -7..7
LATENT_RANGE = 127
MAX_QUALITY = 63.0

SMALL: dict[str, Any] = {
    "features": 96,
    "hidden": 128,
    "latents": 64,
    "groups": 4,
    "hyper": 16,
    "hyper_levels": 0,
    "depths": (2, 3, 2, 3),
    "reset": 32,
}
FULL: dict[str, Any] = {
    "features": 384,
    "hidden": 384,
    "latents": 128,
    "groups": 8,
    "hyper": 64,
    "hyper_levels": 0,
    "depths": (6, 6, 4, 6),
    "reset": 32,
}

Quantise = Literal["round", "straight", "noise"]


@dataclass(frozen=True, slots=True)
class CodecFeatures:
    """The feature buffer of one frame: `now` f(t) and `before` f(t-1), [B, features, H/8, W/8]."""

    now: Tensor
    before: Tensor


@dataclass(frozen=True, slots=True)
class Latents:
    """What is sent of one frame, integers in float32 tensors.

    hyper: [B, hyper, H/64, W/64] in -7..7, or with L levels in -(L // 2) .. (L - 1) // 2.
    latent: [B, latents, H/16, W/16] in -127..127.
    """

    hyper: Tensor
    latent: Tensor


@dataclass(frozen=True, slots=True)
class State:
    """What coding the next frame of a segment depends on; `count` frames are done."""

    features: CodecFeatures
    count: int

    def detach(self) -> State:
        """Return the same values without their history of gradients."""
        now, before = self.features.now.detach(), self.features.before.detach()
        return State(CodecFeatures(now, before), self.count)


class S2vcCodec(nn.Module):
    """Codes the frames of a segment one after another.

    ```
    picture x --embed 1/8--> analysis(x | context) -> y 1/16 --hyper analysis--> z 1/64
                                   ^                  |                          |
    f(t-1) or preview(t-1) -> context -> prior <------|---- hyper synthesis <----+
                                   |       | mean     v
                                   |       +-> r = round(y * gain - mean), in two passes
                                   v                  v
             f(t) <----- synthesis(y | context) <- y = (r + mean) / gain
               +-> head -> preview picture
    ```
    """

    def __init__(
        self,
        *,
        features: int,
        hidden: int,
        latents: int,
        groups: int,
        hyper: int,
        hyper_levels: int,
        depths: tuple[int, int, int, int],
        reset: int,
        dead_zone: float = 0.0,
    ) -> None:
        """Take plain numbers, as in config.toml.

        features, hidden: channels at 1/8 and 1/16. latents, groups: channels that are sent, a
        multiple of groups. hyper, hyper_levels: channels of the hyper-latent and its levels, 0 for
        rounding. depths: blocks of the context, of analysis and synthesis at 1/8, of both at 1/16,
        and of the preview's head. reset: frames between new references. dead_zone in [0, 0.5) is
        what an encoder takes off a latent's magnitude before it rounds.
        """
        super().__init__()
        if latents % groups or hyper_levels == 1 or not 0 <= dead_zone < 0.5 or reset < 1:
            raise ValueError(f"{latents} latents, {groups} groups, {hyper_levels} levels, {reset}")
        self.features, self.latents, self.groups = features, latents, groups
        self.hyper, self.hyper_levels = hyper, hyper_levels
        self.reset, self.dead_zone = reset, dead_zone
        sizes = _Sizes(features, hidden, latents, hyper, tuple(depths))
        self.intra = _FrameCodec(sizes, conditional=False)
        self.inter = _FrameCodec(sizes, conditional=True)
        self.adapt = DepthBlock(features)
        self.anchor = nn.Sequential(_embed(features), DepthBlock(features))
        self.context = _stack(features, depths[0])
        head = nn.Conv2d(features, 3 * PATCH * PATCH, 1)
        self.head = nn.Sequential(_stack(features, depths[3]), head, nn.PixelShuffle(PATCH))

    # --- frame by frame

    @torch.no_grad()
    def encode(
        self, frames: Iterable[Tensor], quality: Tensor
    ) -> Iterator[tuple[Latents, CodecFeatures]]:
        """Yield what is sent of each frame of a segment, and the decoder's buffer after it.

        frames: [B, 3, H, W] each, in [-1, 1], H and W multiples of 64. quality: [B] in [0, 63].
        """
        state: State | None = None
        for x in frames:
            sent, state = self.step(x, state, quality, "round")
            yield sent, state.features

    @torch.no_grad()
    def decode(self, sent: Iterable[Latents], quality: Tensor) -> Iterator[CodecFeatures]:
        """Yield the feature buffer of each frame of a segment, from integers alone."""
        state: State | None = None
        for latents in sent:
            state = self._advance(latents, self._context(state), state, quality)
            yield state.features

    def step(
        self, x: Tensor, state: State | None, quality: Tensor, quantise: Quantise
    ) -> tuple[Latents, State]:
        """Code one frame; `state` None begins a segment.

        `quantise` is "round" (an encoder), "straight" (training: rounded, with the gradient of the
        identity) or "noise" (training: uniform noise of width 1 instead of rounding).
        """
        context = self._context(state)
        part = self.intra if context is None else self.inter
        y = part.analysis(x, context, quality)
        sent = self._quantised(part, y, context, quality, quantise)
        return sent, self._advance(sent, context, state, quality)

    def preview(self, features: Tensor) -> Tensor:
        """The codec's own picture [B, 3, H, W] of a feature, nominally in [-1, 1]."""
        return cast(Tensor, self.head(features))

    def _context(self, state: State | None) -> Tensor | None:
        if state is None:
            return None
        now = state.features.now
        if (state.count - 1) % self.reset == 0:
            reference = self.anchor(self.preview(now).clamp(-1, 1))
        else:
            reference = self.adapt(now)
        return cast(Tensor, self.context(reference))

    def _advance(
        self, sent: Latents, context: Tensor | None, state: State | None, quality: Tensor
    ) -> State:
        part = self.intra if context is None else self.inter
        prior = part.prior(self._dequantised(part, sent.hyper, context), context, quality)
        y = None
        for half in (0, 1):
            mask = self._mask(half, sent.latent)
            mean = part.mean(prior, y, half).float()
            found = (sent.latent + mean) * mask
            y = found if y is None else y + found
        now = part.synthesis(cast(Tensor, y), context, quality)
        before = now if state is None else state.features.now
        return State(CodecFeatures(now, before), 1 if state is None else state.count + 1)

    # --- integers

    def _quantised(
        self, part: _FrameCodec, y: Tensor, context: Tensor | None, quality: Tensor, how: Quantise
    ) -> Latents:
        hyper = self._hyper(part, part.hyper_analysis(y.to(part.dtype)).float(), context, how)
        prior = part.prior(self._dequantised(part, hyper, context), context, quality)
        latent, done = torch.zeros_like(y), None
        for half in (0, 1):
            mask = self._mask(half, y)
            mean = part.mean(prior, done, half).float()
            r = _quantise(y - mean, how, self.dead_zone).clamp(-LATENT_RANGE, LATENT_RANGE) * mask
            latent = latent + r
            done = (r + mean) * mask
        return Latents(hyper, latent)

    def _hyper(self, part: _FrameCodec, z: Tensor, context: Tensor | None, how: Quantise) -> Tensor:
        if self.hyper_levels:
            low, half = self.hyper_levels // 2, (self.hyper_levels - 1) / 2
            spread = torch.tanh(z) * half - _shift(self.hyper_levels)
            # noise would leave the alphabet, so levels are always rounded
            found = _quantise(spread, "straight" if how == "noise" else how, 0.0)
            return found.clamp(-low, self.hyper_levels - 1 - low)
        if context is not None:
            z = z - part.hyper_mean(context).float()
        return _quantise(z, how, 0.0).clamp(-HYPER_RANGE, HYPER_RANGE)

    def _dequantised(self, part: _FrameCodec, hyper: Tensor, context: Tensor | None) -> Tensor:
        if self.hyper_levels:
            z = (hyper + _shift(self.hyper_levels)) / ((self.hyper_levels - 1) / 2)
        elif context is not None:
            z = hyper + part.hyper_mean(context).float()
        else:
            z = hyper
        return z.to(part.dtype)

    def _mask(self, half: int, like: Tensor) -> Tensor:
        """Which elements pass `half` codes: a checkerboard, its parity by the channel's group."""
        rows = torch.arange(like.shape[2], device=like.device)[:, None]
        columns = torch.arange(like.shape[3], device=like.device)
        group = torch.arange(self.latents, device=like.device) // (self.latents // self.groups)
        return ((rows + columns + group[:, None, None] + half) % 2 == 0).to(like.dtype)[None]


@dataclass(frozen=True, slots=True)
class _Sizes:
    features: int
    hidden: int
    latents: int
    hyper: int
    depths: tuple[int, ...]


class _FrameCodec(nn.Module):
    """Transforms of intra or (`conditional`) inter frames; see the diagram of `S2vcCodec`."""

    def __init__(self, sizes: _Sizes, *, conditional: bool) -> None:
        super().__init__()
        n, m, c, z = sizes.features, sizes.hidden, sizes.latents, sizes.hyper
        _, fine, coarse, _ = sizes.depths
        given = 2 if conditional else 1
        self.embed = _embed(n)
        self.enter = nn.Conv2d(given * n, n, 1)
        self.fine_analysis = _stack(n, fine)
        self.down = nn.Conv2d(n, m, 2, stride=2)
        self.coarse_analysis = _stack(m, coarse)
        self.to_latent = nn.Conv2d(m, c, 1)
        self.to_hyper = nn.Sequential(
            nn.Conv2d(c, m, 1), DepthBlock(m), nn.Conv2d(m, m, 2, stride=2), DepthBlock(m),
            nn.Conv2d(m, z, 2, stride=2),
        )  # fmt: skip
        self.from_hyper = nn.Sequential(
            nn.Conv2d(z, 4 * m, 1), nn.PixelShuffle(2), DepthBlock(m),
            nn.Conv2d(m, 4 * m, 1), nn.PixelShuffle(2),
        )  # fmt: skip
        if conditional:
            self.temporal = nn.Conv2d(n, m, 2, stride=2)
            self.hyper_means = nn.Conv2d(n, z, 1)
        self.fuse = nn.Sequential(nn.Conv2d(given * m, m, 1), DepthBlock(m))
        self.means = nn.ModuleList((nn.Conv2d(m, c, 1), nn.Conv2d(m, c, 1)))
        self.second = nn.Sequential(nn.Conv2d(m + c, m, 1), DepthBlock(m))
        self.from_latent = nn.Conv2d(c, m, 1)
        self.coarse_synthesis = _stack(m, coarse)
        self.up = nn.Conv2d(m, 4 * n, 1)
        self.join = nn.Conv2d(given * n, n, 1)
        self.fine_synthesis = _stack(n, fine)
        self.gains = Gains(c)
        self.quality_in, self.quality_out = _Modulation(m), _Modulation(n)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer not in _inner(self):
                nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
        for layer in self.means:
            nn.init.zeros_(cast(Tensor, layer.weight))

    @property
    def dtype(self) -> torch.dtype:
        """What the convolutions compute in."""
        return self.enter.weight.dtype

    def analysis(self, x: Tensor, context: Tensor | None, quality: Tensor) -> Tensor:
        """Latents y of a picture, scaled by the quality's gains; float32."""
        h = self.fine_analysis(self.enter(_with(self.embed(x.to(self.dtype)), context)))
        h = self.quality_in(self.coarse_analysis(self.down(h)), quality)
        return self.to_latent(h).float() * self.gains(quality)

    def hyper_analysis(self, y: Tensor) -> Tensor:
        """The hyper-latent before it is quantised."""
        return cast(Tensor, self.to_hyper(y))

    def hyper_mean(self, context: Tensor) -> Tensor:
        """What an inter frame's hyper-latent is expected to be."""
        return cast(Tensor, self.hyper_means(F.avg_pool2d(context, STRIDE // PATCH)))

    def prior(self, z: Tensor, context: Tensor | None, quality: Tensor) -> Tensor:
        """What is known before the latents: [B, hidden, H/16, W/16]."""
        h = self.from_hyper(z)
        if context is not None:
            h = torch.cat([h, self.temporal(context)], 1)
        return cast(Tensor, self.quality_in(self.fuse(h), quality))

    def mean(self, prior: Tensor, y: Tensor | None, half: int) -> Tensor:
        """Means of the latents of a pass; `y` holds the first pass's."""
        if y is not None:
            prior = self.second(torch.cat([prior, y.to(self.dtype)], 1))
        return cast(Tensor, self.means[half](prior))

    def synthesis(self, y: Tensor, context: Tensor | None, quality: Tensor) -> Tensor:
        """The feature f(t) of latents y."""
        h = self.from_latent((y / self.gains(quality)).to(self.dtype))
        h = F.pixel_shuffle(self.up(self.coarse_synthesis(h)), 2)
        h = self.quality_out(self.join(_with(h, context)), quality)
        return cast(Tensor, self.fine_synthesis(h))


class Gains(nn.Module):
    """One over the quantisation step of every channel, rising with quality.

    The logarithm is linear between `KNOTS` qualities; what it rises from one knot to the next is a
    softplus, so that every channel's step falls smoothly and never turns.
    """

    KNOTS = 8

    def __init__(self, channels: int, *, low: float = 0.25, high: float = 8.0) -> None:
        super().__init__()
        rise = math.log(high / low) / (self.KNOTS - 1)
        self.start = nn.Parameter(torch.full((channels,), math.log(low)))
        raw = math.log(math.expm1(rise))
        self.rises = nn.Parameter(torch.full((self.KNOTS - 1, channels), raw))

    def forward(self, quality: Tensor) -> Tensor:
        """Gains float32 [B, channels, 1, 1] for qualities [B] in [0, 63]."""
        place = quality.float() * ((self.KNOTS - 1) / MAX_QUALITY)
        steps = torch.arange(self.KNOTS - 1, device=place.device)
        share = (place[:, None] - steps).clamp(0, 1)
        logs = self.start.float() + share @ F.softplus(self.rises.float())
        return logs.exp()[:, :, None, None]


class DepthBlock(nn.Module):
    """Residual block: 5x5 depthwise, then two 1x1 convolutions with twice the channels between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.first = nn.Conv2d(channels, 2 * channels, 1)
        self.second = nn.Conv2d(2 * channels, channels, 1)
        nn.init.normal_(self.second.weight, std=0.2 / math.sqrt(2 * channels))
        nn.init.zeros_(cast(Tensor, self.second.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the same shape."""
        return x + self.second(F.leaky_relu(self.first(self.depth(x)), 0.1))


class _Modulation(nn.Module):
    """Scales and shifts channels by the quality; begins as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, quality: Tensor) -> Tensor:
        q = quality.to(x.dtype) / MAX_QUALITY
        scale, shift = self.linear(torch.stack([q, q * q], 1))[:, :, None, None].chunk(2, 1)
        return torch.addcmul(x + shift, x, scale)


def _inner(network: nn.Module) -> set[nn.Module]:
    """Layers of residual blocks, which have an initialisation of their own."""
    blocks = (module for module in network.modules() if isinstance(module, DepthBlock))
    return {layer for block in blocks for layer in block.children()}


def _embed(features: int) -> nn.Module:
    return nn.Sequential(nn.PixelUnshuffle(PATCH), nn.Conv2d(3 * PATCH * PATCH, features, 1))


def _stack(channels: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*(DepthBlock(channels) for _ in range(depth)))


def _with(h: Tensor, context: Tensor | None) -> Tensor:
    return h if context is None else torch.cat([h, context], 1)


def _shift(levels: int) -> float:
    """Levels of an even number lie between the integers."""
    return 0.0 if levels % 2 else 0.5


def _quantise(x: Tensor, how: Quantise, dead_zone: float) -> Tensor:
    if how == "noise":
        return x + torch.rand_like(x) - 0.5
    rounded = x.sign() * (x.abs() - dead_zone + 0.5).floor().clamp(min=0)
    return rounded if how == "round" else x + (rounded - x).detach()
