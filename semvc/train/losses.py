"""Training losses as modules; each returns a scalar and names its source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from semvc.errors import UsageError
from semvc.train import flow

_TAPS = (2, 2, 3, 3, 3)  # convolutions of VGG16's five blocks
_FEATURES, _HEADS = "vgg16-features-fp16.safetensors", "heads.safetensors"
_KR, _KB = 0.2126, 0.0722  # BT.709


def charbonnier(a: Tensor, b: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Smooth L1 distance (Charbonnier et al. 1994), mean over all elements."""
    return ((a - b).square() + epsilon**2).sqrt().mean()


def temporal(
    now: Tensor,
    before: Tensor,
    true_now: Tensor,
    true_before: Tensor,
    motion: Tensor | None = None,
) -> Tensor:
    """Error of the change from frame to frame along the source's motion [B, 2, H, W].

    Frames are [B, 3, H, W] in [-1, 1]; `motion` is what `flow.backward` finds in the source. What
    is invented may move with the source, and may not boil: with both pictures before moved along
    the flow, the made one has to change as the true one does. Weighted to where the flow explains
    the source, by exp(-50 d^2) of its own difference in [0, 1] (Lai et al. 2018, equation 5), so
    that what is uncovered does not count; we compare changes, so that true ones cost nothing.

    Without `motion` nothing is moved, and where the source does not stand still little counts.
    """
    if motion is None:
        change = true_now - true_before
        weight = torch.exp(-change.abs().mean(1, keepdim=True) * 20)
        return (weight * ((now - before) - change).abs()).mean()
    both, inside = flow.moved(torch.cat([before, true_before], 1), motion)
    made, true = both.chunk(2, 1)
    change = true_now - true
    weight = torch.exp(-50 * (change / 2).square().sum(1, keepdim=True)) * inside
    return (weight * ((now - made) - change).abs()).mean()


def displayed(frames: Tensor) -> Tensor:
    """Return frames [B, 3, H, W] in [-1, 1] as 8-bit 4:2:0 video shows them (even H and W).

    Rounding passes gradients on unchanged (straight-through, Bengio et al. 2013), so that a network
    learns to leave flat areas flat.
    """
    luma, colour = video_codes(frames)
    return picture_of_codes(_rounded(luma), _rounded(colour))


def video_codes(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Return luma [B, H, W] and colour (blue, red) [B, 2, H/2, W/2] of frames in [-1, 1].

    8-bit codes before rounding, BT.709 in limited range: nominally luma is in [16, 235] and colour
    in [16, 240], sited in the middle of four luma samples.
    """
    red, green, blue = frames.unbind(1)
    luma = _KR * red + (1 - _KR - _KB) * green + _KB * blue
    differences = [(blue - luma) / (2 - 2 * _KB), (red - luma) / (2 - 2 * _KR)]
    return luma * 109.5 + 125.5, F.avg_pool2d(torch.stack(differences, 1), 2) * 112 + 128


def picture_of_codes(luma: Tensor, colour: Tensor) -> Tensor:
    """Return frames [B, 3, H, W]; the inverse of `video_codes`, colour interpolated linearly."""
    luma = (luma - 125.5) / 109.5
    colour = (colour - 128) / 112
    colour = F.interpolate(colour, scale_factor=2, mode="bilinear", align_corners=False)
    blue = luma + colour[:, 0] * (2 - 2 * _KB)
    red = luma + colour[:, 1] * (2 - 2 * _KR)
    green = (luma - _KR * red - _KB * blue) / (1 - _KR - _KB)
    return torch.stack([red, green, blue], 1)


def _rounded(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


class Perceptual(nn.Module):
    """LPIPS (Zhang et al. 2018) and DISTS (Ding et al. 2020) on one pass of VGG16.

    `folder` holds `vgg16-features-fp16.safetensors` (torchvision's tensor names) and
    `heads.safetensors` (`vgg.lin0..4`, `dists.alpha`, `dists.beta`); UsageError if not. The
    features come from max pooling for both, so the DISTS term differs from the published one (L2
    pooling) in its values. The weights are never part of a trained model.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, folder: Path) -> None:
        super().__init__()
        for name in (_FEATURES, _HEADS):
            if not (folder / name).is_file():
                raise UsageError(f"no {name} in {folder}: give its folder with --metric-weights")
        state, heads = load_file(folder / _FEATURES), load_file(folder / _HEADS)
        ids = sorted({int(name.split(".")[1]) for name in state})
        self.convolutions = nn.ModuleList()
        for i in ids:
            weight = state[f"features.{i}.weight"]
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            layer.load_state_dict({"weight": weight, "bias": state[f"features.{i}.bias"]})
            self.convolutions.append(layer)
        self.heads = nn.ParameterList(heads[f"vgg.lin{i}"].float() for i in range(5))
        self.alpha = nn.Parameter(heads["dists.alpha"].float())
        self.beta = nn.Parameter(heads["dists.beta"].float())
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.requires_grad_(False)

    @property
    def channels(self) -> list[int]:
        """Number of features of each block."""
        return [len(head) for head in self.heads]

    def features(self, x: Tensor) -> list[Tensor]:
        """Return VGG16's relu1_2 to relu5_3 of `x` [B, 3, H, W] in [-1, 1]."""
        x = ((x - self.shift) / self.scale).to(
            next(self.convolutions.parameters()).dtype, memory_format=torch.channels_last
        )
        found, layers = [], iter(self.convolutions)
        for block, count in enumerate(_TAPS):
            if block:
                x = F.max_pool2d(x, 2)
            for _ in range(count):
                x = F.relu(next(layers)(x))
            found.append(x)
        return found

    def forward(self, made: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
        """Return the LPIPS-VGG and the DISTS distance of [B, 3, H, W] frames in [-1, 1]."""
        with torch.no_grad():
            goal = self.features(true)
        return self.compare(made, true, self.features(made), goal)

    def compare(
        self, made: Tensor, true: Tensor, found: list[Tensor], goal: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, given what `features` makes of both."""
        ones = [torch.ones_like(self.alpha[:3]), *self.heads]
        lpips, total, at = made.new_zeros(()), made.new_zeros(()), 0
        for level, (a, b, head) in enumerate(zip([made, *found], [true, *goal], ones, strict=True)):
            end = at + a.shape[1]
            sums, maps = _Moments.apply(a, b, head)
            total = total + self._similarity(sums, slice(at, end), a.shape[2] * a.shape[3])
            lpips = lpips + (_unit_distance(maps) if level else 0)
            at = end
        return lpips, 1 - total / (self.alpha.sum() + self.beta.sum())

    def _similarity(self, sums: Tensor, channels: slice, count: int) -> Tensor:
        """DISTS's texture and structure terms of one level, from the sums over space [5, B, C]."""
        ma, mb, saa, sbb, sab = (sums / count).unbind(0)
        va, vb = saa - ma.square(), sbb - mb.square()
        texture = (2 * ma * mb + 1e-6) / (ma.square() + mb.square() + 1e-6)
        structure = (2 * (sab - ma * mb) + 1e-6) / (va.clamp_min(0) + vb.clamp_min(0) + 1e-6)
        return (self.alpha[channels] * texture + self.beta[channels] * structure).mean(0).sum()


def _unit_distance(maps: Tensor) -> Tensor:
    """LPIPS's distance of one level from the sums over channels [5, B, H*W]."""
    aa, bb, waa, wbb, wab = maps.unbind(0)
    aa, bb = aa + 1e-10, bb + 1e-10
    return (waa / aa + wbb / bb - 2 * wab / (aa * bb).sqrt()).mean()


class _Moments(torch.autograd.Function):
    """All sums that LPIPS and DISTS need of two feature maps [B, C, H, W], in few passes.

    Returns the sums over space of a, b, a^2, b^2, ab [5, B, C], and those over channels of
    a^2, b^2, w a^2, w b^2, w ab [5, B, H*W]. The gradient goes to `a` alone.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the sums in float32."""
        x, y = (t.detach().permute(0, 2, 3, 1).flatten(1, 2).float() for t in (a, b))
        xx, yy, xy = x * x, y * y, x * y
        sums = torch.stack([t.sum(1) for t in (x, y, xx, yy, xy)])
        heads = torch.stack([torch.ones_like(weight), weight], 1)
        px, py = xx @ heads, yy @ heads
        maps = torch.stack([px[..., 0], py[..., 0], px[..., 1], py[..., 1], xy @ weight])
        ctx.save_for_backward(a, b, weight)
        return sums, maps

    @staticmethod
    def backward(ctx: Any, by_sums: Tensor, by_maps: Tensor) -> tuple[Tensor, None, None]:
        """Combine both gradients, linear in a and b at every element."""
        a, b, w = ctx.saved_tensors
        x, y = (t.permute(0, 2, 3, 1).flatten(1, 2).float() for t in (a, b))
        own = torch.addcmul(2 * by_sums[2][:, None], 2 * by_maps[2][..., None], w)
        own = own.add_(2 * by_maps[0][..., None]).mul_(x)
        other = torch.addcmul(by_sums[4][:, None], by_maps[4][..., None], w)
        grad = own.addcmul_(other, y).add_(by_sums[0][:, None])
        height, width = a.shape[2:]
        return grad.unflatten(1, (height, width)).permute(0, 3, 1, 2).to(a.dtype), None, None


class Discriminator(nn.Module):
    """Patch critic of frames beside their base layer, at two scales (pix2pixHD, Wang 2018).

    It sees `frames` consecutive frames at once: with two or more it judges motion as well, so that
    texture that boils is found out. `spectral` bounds every layer's gain (Miyato et al. 2018).
    """

    def __init__(self, width: int, frames: int = 1, spectral: bool = True) -> None:
        super().__init__()
        self.frames = frames
        self.scales = nn.ModuleList(_Critic(width, frames, spectral) for _ in range(2))

    def forward(self, frame: Tensor, base: Tensor) -> list[Tensor]:
        """Return the scores of both scales [B, 1, h, w] for frames and held base frames.

        frame, base: [B, 3 * frames, H, W] in [-1, 1].
        """
        return [levels[-1] for levels in self.judge(frame, base)]

    def judge(self, frame: Tensor, base: Tensor) -> list[list[Tensor]]:
        """Return of each scale what its layers find, the scores last."""
        x = torch.cat([frame, base], 1)
        return [self.scales[0](x), self.scales[1](F.avg_pool2d(x, 2))]


class _Critic(nn.Module):
    def __init__(self, width: int, frames: int, spectral: bool) -> None:
        super().__init__()
        bound = nn.utils.parametrizations.spectral_norm if spectral else nn.Identity()
        self.layers = nn.ModuleList(
            bound(layer)
            for layer in (
                nn.Conv2d(24 * frames, width, 3, padding=1),
                nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
                nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1),
                nn.Conv2d(4 * width, 1, 3, padding=1),
            )
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        found: list[Tensor] = []
        for layer in self.layers:
            x = layer(F.leaky_relu(x, 0.2) if found else x)
            found.append(x)
        return found


class FeatureCritic(nn.Module):
    """Critic on what a fixed network sees (Sauer et al., Projected GANs, 2021): VGG16's features.

    It judges frames alone, at three scales; only its small heads are trained, so that it finds what
    a picture lacks within a few hundred steps. The network's features are scaled to unit length
    over channels, as LPIPS does, so that no contrast counts more than another. `channels` are those
    of all five blocks.
    """

    TAPS = (1, 2, 3)  # of `Perceptual.features`: relu2_2, relu3_3, relu4_3
    frames = 1  # it sees at once

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self._channels = [channels[tap] for tap in self.TAPS]
        bound = nn.utils.parametrizations.spectral_norm
        self.heads = nn.ModuleList(
            nn.Sequential(
                bound(nn.Conv2d(count, width, 1)),
                nn.LeakyReLU(0.2),
                bound(nn.Conv2d(width, width, 3, padding=1)),
                nn.LeakyReLU(0.2),
                bound(nn.Conv2d(width, 1, 3, padding=1)),
            )
            for count in self._channels
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return scores [B, 1, h, w] at 1/2, 1/4 and 1/8 of the size of the frames."""
        return [
            head(F.normalize(features[tap].float(), dim=1) * count**0.5)
            for head, tap, count in zip(self.heads, self.TAPS, self._channels, strict=True)
        ]


def lattice(change: Tensor) -> Tensor:
    """Size of the pattern with a period of 16 samples in a change of frames [B, 3, H, W].

    A network whose coarsest level has that stride can weave such a pattern into smooth places. Each
    of the 256 phases is averaged over all periods and frames; what differs from their mean is the
    pattern. H and W are multiples of 16.
    """
    phases = F.pixel_unshuffle(change, 16).unflatten(1, (3, 256)).mean((0, 3, 4))
    return (phases - phases.mean(1, keepdim=True)).abs().mean()


@dataclass(frozen=True, slots=True)
class View:
    """How frames are shown to a loss: shifted by (`y`, `x`), turned by `turns` times 90 degrees.

    A perceptual loss that always sees the same grid of poolings teaches patterns that please that
    grid alone; another view in each step takes that away (E-LPIPS, Kettunen et al. 2019, part 3).
    """

    y: int
    x: int
    turns: int
    mirrored: bool

    MARGIN: ClassVar[int] = 16  # samples, or a quarter of the frame if that is less

    @classmethod
    def drawn(cls, draw: torch.Generator) -> View:
        """Return a random view."""
        y, x = torch.randint(0, cls.MARGIN, (2,), generator=draw).tolist()
        turns, mirrored = torch.randint(0, 4, (2,), generator=draw).tolist()
        return cls(y, x, turns, mirrored >= 2)

    def of(self, frames: Tensor) -> Tensor:
        """Return [B, C, H - margin, W - margin] of frames [B, C, H, W], H and W equal."""
        side = frames.shape[-1]
        margin = min(self.MARGIN, side // 4)
        y, x = self.y % margin, self.x % margin
        seen = frames[..., y : y + side - margin, x : x + side - margin]
        return torch.rot90(seen.flip(-1) if self.mirrored else seen, self.turns, (-2, -1))


def hinge_critic(real: list[Tensor], made: list[Tensor]) -> Tensor:
    """Hinge loss of the critic (Lim and Ye 2017), summed over scales."""
    pairs = zip(real, made, strict=True)
    return _sum(F.relu(1 - r.float()).mean() + F.relu(1 + m.float()).mean() for r, m in pairs)


def hinge_generator(made: list[Tensor]) -> Tensor:
    """Hinge loss of the generator."""
    return _sum(-m.float().mean() for m in made)


def relativistic_critic(real: list[Tensor], made: list[Tensor]) -> Tensor:
    """Loss of a critic that compares each made patch with the real one of the same place.

    Relativistic pairing GAN (Jolicoeur-Martineau 2018; Huang et al., R3GAN, 2024, equation 2).
    """
    pairs = zip(real, made, strict=True)
    return _sum(F.softplus(m.float() - r.float()).mean() for r, m in pairs)


def relativistic_generator(real: list[Tensor], made: list[Tensor]) -> Tensor:
    """Loss of the generator against that critic; `real` may come without gradients."""
    return relativistic_critic(made, real)


def feature_matching(real: list[list[Tensor]], made: list[list[Tensor]]) -> Tensor:
    """L1 distance of what the critic's layers find, without the scores (pix2pixHD, equation 4).

    Each layer counts by its distance over the mean size of what it finds in the real picture.
    """
    return _sum(
        (m.float() - r.detach().float()).abs().mean() / (r.detach().float().abs().mean() + 1e-6)
        for real_levels, made_levels in zip(real, made, strict=True)
        for r, m in zip(real_levels[:-1], made_levels[:-1], strict=True)
    )


def gradient_penalty(scores: list[Tensor], inputs: Tensor) -> Tensor:
    """Squared gradient of the scores by the critic's `inputs` (R1 of Mescheder et al. 2018).

    Each scale counts as its mean patch would alone, so that the size of the crop does not matter.
    """
    total = _sum(s.float().sum() / s[0].numel() ** 0.5 for s in scores)
    (slope,) = torch.autograd.grad(total, inputs, create_graph=True)
    return slope.float().square().sum((1, 2, 3)).mean()


def _sum(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()
