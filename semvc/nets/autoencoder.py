"""A small picture autoencoder: latents at an eighth of the resolution, decoded on a CPU.

Plain convolutions without norms, so that the result at one place does not depend on the picture's
size. The encoder serves training alone; models ship the decoder.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semvc.nets.s2vc_unet import conv

FACTOR = 8  # luma samples on a side for one latent position


class SmallAutoencoder(nn.Module):
    """Encodes [B, 3, H, W] frames into [B, latent, H/8, W/8] and back.

    widths: channels at 1/8, 1/4 and 1/2 of the resolution. depths: residual blocks there.
    """

    def __init__(
        self, *, latent: int, widths: tuple[int, int, int], depths: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.latent = latent
        self.decoder = _Decoder(latent, widths, depths)
        self.encoder = _Encoder(latent, widths, depths)

    def encode(self, frames: Tensor) -> Tensor:
        """Return the latents of frames in [-1, 1], H and W multiples of 8; each about in [-1, 1].

        A soft limit, x / sqrt(1 + x^2), takes the place of a variational term: it bounds what the
        generator has to predict.
        """
        x = self.encoder(frames)
        return x * torch.rsqrt(1 + x.float().square()).to(x.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Return frames [B, 3, 8h, 8w], nominally in [-1, 1]."""
        return self.decoder(latents)


class _Block(nn.Module):
    """Residual block of two 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.normal_(self.second.weight, std=0.2 / (9 * channels) ** 0.5)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]  # a bias was asked for

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class _Decoder(nn.Sequential):
    def __init__(
        self, latent: int, widths: tuple[int, int, int], depths: tuple[int, int, int]
    ) -> None:
        layers: list[nn.Module] = [conv(latent, widths[0], 3)]
        for width, depth, after in zip(widths, depths, (*widths[1:], 3), strict=True):
            layers += [_Block(width) for _ in range(depth)]
            size = 3 if after == 3 else 1  # the last one draws the pixels
            layers += [conv(width, 4 * after, size), nn.PixelShuffle(2)]
        super().__init__(*layers)


class _Encoder(nn.Sequential):
    def __init__(
        self, latent: int, widths: tuple[int, int, int], depths: tuple[int, int, int]
    ) -> None:
        layers: list[nn.Module] = [nn.PixelUnshuffle(2), conv(12, widths[2], 3)]
        layers += [_Block(widths[2]) for _ in range(depths[2])]
        for before, width, depth in zip(widths[:0:-1], widths[1::-1], depths[1::-1], strict=True):
            layers += [
                nn.Conv2d(before, width, 2, stride=2),
                *(_Block(width) for _ in range(depth)),
            ]
        super().__init__(*layers, nn.Conv2d(widths[0], latent, 3, padding=1))
