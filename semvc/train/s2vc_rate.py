"""What latents cost, differentiably, as the coder of profile s2vc will count them.

The coder predicts from integers alone (`semvc.signals.latent`), and so does this: an element's
chance of not being zero comes from a small network over the coder's own planes (the history, the
first pass, the hyper-latents, the quality), one for each kind of frame and pass; the magnitude
behind it from two numbers for each channel; hyper-latents from the coder's own contexts. What the
coder adds, adaptive counts that mix in other contexts, is left out, so that this is a little too
high. `s2vc_prior` turns a trained `RateModel` into the coder's integer networks and tables.

Code lengths are those of the discrete symbols. Between integers they are interpolated linearly, and
their slope at an integer is the central difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semvc.nets.s2vc_codec import Latents

PLANE = 16.0  # of the coder's bytes for each unit of a network's input
STEPS = 4  # of an index for each doubling of the chance
BITS = 16  # index 0 says 2**-16
INDICES = 64
GAIN = 8.0  # parameters are kept smaller by this: tables must move far at a network's learning rate
_MOST = 15  # magnitudes are cut here in the planes
_HYPER_LOW, _HYPER_COUNT = -7, 15
_QUALITY = 252 / 63  # quarter steps, as the coder has them


@dataclass(frozen=True, slots=True)
class Past:
    """What the coder knows of earlier frames: history [B, C, h, w], hyper-latents [B, Z, ...]."""

    history: Tensor
    hyper: Tensor


class RateModel(nn.Module):
    """Bits of a frame's latents; `hidden` is the width of the networks that become integer ones."""

    def __init__(self, *, latents: int, groups: int, hyper: int, hidden: int = 32) -> None:
        super().__init__()
        self.latents, self.groups, self.hyper = latents, groups, hyper
        self.nets = nn.ModuleDict(
            {
                f"{inter}{half}": _network(latents * (1 + half) + hyper + 1, hidden, latents)
                for inter in (0, 1)
                for half in (0, 1)
            }
        )
        self.tails = nn.Parameter(torch.zeros(2, 2, 2, latents))  # inter, half, (offset, slope)
        places = torch.arange(_HYPER_COUNT) + _HYPER_LOW
        start = -1.4 * places.abs().float()
        self.hyper_logits = nn.Parameter(start.repeat(2 * hyper * 9, 1) / GAIN)  # the coder's rows

    def forward(self, sent: Latents, past: Past | None, quality: Tensor) -> tuple[Tensor, Past]:
        """Return the bits [B] of one frame and the past of the next one; None begins a segment.

        quality: [B] in [0, 63]. Computed in float32.
        """
        inter = 0 if past is None else 1
        latent, hyper = sent.latent.float(), sent.hyper.float()
        if past is None:
            past = Past(torch.zeros_like(latent), torch.zeros_like(hyper))
        bits = self._hyper_bits(hyper, past.hyper, inter)
        whole = latent.detach().round()
        for half in (0, 1):
            index = self.index(whole, hyper, past, quality, (inter, half))
            per_element = self.element_bits(latent, index, (inter, half))
            bits = bits + (per_element * self.mask(half, latent)).sum((1, 2, 3))
        sizes = whole.abs().clamp(max=_MOST) * PLANE
        history = torch.maximum(sizes, (past.history * 0.75).floor())
        return bits, Past(history, hyper.detach().round())

    def index(
        self, whole: Tensor, hyper: Tensor, past: Past, quality: Tensor, key: tuple[int, int]
    ) -> Tensor:
        """What the network of (inter, half) `key` says, [B, C, h, w], before it is made an integer.

        A step of 1/4 doubles the chance that the element is not zero; 0 stands for 2**-16.
        """
        planes = self.planes(whole, hyper, past, quality, key[1])
        found: Tensor = self.nets[f"{key[0]}{key[1]}"](planes / PLANE)
        return GAIN * found

    def planes(
        self, whole: Tensor, hyper: Tensor, past: Past, quality: Tensor, half: int
    ) -> Tensor:
        """The coder's inputs, bytes in float32: [B, C (1 + half) + Z + 1, h, w]."""
        planes = [past.history]
        if half:
            first = whole.abs().clamp(max=_MOST) * self.mask(0, whole)
            planes.append(first * PLANE)
        spread = (hyper.clamp(-8, 7) + 8) * PLANE
        planes.append(spread.repeat_interleave(4, 2).repeat_interleave(4, 3))
        level = (quality.float() * _QUALITY).round()[:, None, None, None]
        planes.append(level.expand(-1, 1, *whole.shape[2:]))
        return torch.cat(planes, 1)

    def element_bits(self, latent: Tensor, index: Tensor, key: tuple[int, int]) -> Tensor:
        """Bits of every element [B, C, h, w] under the network's `index`."""
        log2 = _held(index, 0.0, INDICES - 1.0) / STEPS - BITS
        zero = -torch.log1p(-torch.exp2(log2).clamp(max=1 - 1e-6)) / _LN2
        offset, slope = GAIN * self.tails[key[0], key[1], :, :, None, None]
        stay = offset + slope * (index.detach() / INDICES)  # logit of yet another unit
        one = 1 - log2 + F.softplus(stay) / _LN2  # a sign, not zero, no further unit
        more = F.softplus(-stay) / _LN2

        def length(size: Tensor) -> Tensor:
            low = size.floor()
            at = torch.where(low == 0, zero, one + more * (low - 1))
            step = torch.where(low == 0, one - zero, more)
            return at + (size - low) * step

        return _sloped(latent.abs(), length, even=True)

    def mask(self, half: int, like: Tensor) -> Tensor:
        """Which elements a pass codes, [1, C, h, w]: a checkerboard, its parity by the group."""
        rows = torch.arange(like.shape[2], device=like.device)[:, None]
        columns = torch.arange(like.shape[3], device=like.device)
        group = torch.arange(self.latents, device=like.device) // (self.latents // self.groups)
        return ((rows + columns + group[:, None, None] + half) % 2 == 0).to(like.dtype)[None]

    def _hyper_bits(self, hyper: Tensor, before: Tensor, inter: int) -> Tensor:
        whole = hyper.detach().round()
        rows = torch.arange(hyper.shape[2], device=hyper.device)[:, None]
        first = ((rows + torch.arange(hyper.shape[3], device=hyper.device)) % 2 == 0).to(hyper)
        near = _near(whole.abs() * first) * (1 - first)
        channel = torch.arange(self.hyper, device=hyper.device)[:, None, None] + self.hyper * inter
        rows = channel * 9 + before.abs().clamp(max=2).long() * 3 + near.clamp(max=2).long()
        lengths = -F.log_softmax(GAIN * self.hyper_logits[rows], -1) / _LN2  # [B, Z, h, w, 15]

        def length(value: Tensor) -> Tensor:
            place = (value - _HYPER_LOW).clamp(0, _HYPER_COUNT - 1)
            low = place.floor().clamp(max=_HYPER_COUNT - 2)
            pair = torch.stack([low, low + 1], -1).long()
            at, after = lengths.gather(-1, pair).unbind(-1)
            return at + (place - low) * (after - at)

        return _sloped(hyper, length, even=False).sum((1, 2, 3))


_LN2 = 0.6931471805599453


def _network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """As the coder's integer networks are: ReLU between, the result cut by who reads it."""
    layers = nn.Sequential(
        nn.Conv2d(inputs, hidden, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(hidden, hidden, 1),
        nn.ReLU(),
        nn.Conv2d(hidden, outputs, 1),
    )
    nn.init.normal_(layers[0].weight, std=0.3 / (9 * inputs) ** 0.5)  # type: ignore[arg-type]
    nn.init.constant_(layers[4].bias, 40.0 / GAIN)  # type: ignore[arg-type]  # a chance of 2**-6
    return layers


def _near(x: Tensor) -> Tensor:
    """Sum of the four neighbours of each place."""
    padded = F.pad(x, (1, 1, 1, 1))
    return (
        padded[..., :-2, 1:-1]
        + padded[..., 2:, 1:-1]
        + padded[..., 1:-1, :-2]
        + padded[..., 1:-1, 2:]
    )


def _held(x: Tensor, low: float, high: float) -> Tensor:
    """`x` cut to a range; where it is cut, the gradient passes as if it were not."""
    return x + (x.clamp(low, high) - x).detach()


def _sloped(value: Tensor, length: Callable[[Tensor], Tensor], *, even: bool) -> Tensor:
    """`length(value)` whose gradient by `value` is a central difference over one step.

    `even`: `length` holds for magnitudes, so that its slope at zero is zero.
    """
    fixed = value.detach()
    with torch.no_grad():
        below = (fixed - 0.5).abs() if even else fixed - 0.5
        slope = length(fixed + 0.5) - length(below)
    return length(fixed) + (value - fixed) * slope
