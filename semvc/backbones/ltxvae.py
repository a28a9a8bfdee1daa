"""The autoencoder of an LTX-Video folder: clips to normalised latents and back.

It knows no transformer, so that training data can be made on a machine that holds none.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semvc.backbones import parts
from semvc.backbones.pixels import from_pixels, set_tiles, to_pixels
from semvc.backbones.protocol import DECODE_NOISE, Noise, UInt8
from semvc.backbones.tokens import SPACE, TIME
from semvc.errors import ModelError

_DECODE_TIMESTEP, _DECODE_LEVEL = 0.05, 0.025  # of autoencoders that denoise while decoding


class LtxPictures:
    """The autoencoder, loaded; `channels` is the number of latent channels.

    It lies on the device always (`resident`), or only within `used`. ModelError if the folder holds
    none or one with other strides.
    """

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, *, tile: int, resident: bool
    ) -> None:
        vae = parts.read(folder, "vae", "AutoencoderKLLTXVideo", dtype)
        if (vae.spatial_compression_ratio, vae.temporal_compression_ratio) != (SPACE, TIME):
            raise ModelError(f"{folder}: an autoencoder with other strides than LTX-Video's")
        set_tiles(vae, tile)
        self.channels: int = vae.config.latent_channels
        self._timed = bool(vae.config.timestep_conditioning)
        self._mean, self._std = (
            v.float().view(1, -1, 1, 1, 1).to(device) for v in (vae.latents_mean, vae.latents_std)
        )
        self._device, self._dtype = device, dtype
        self._part = parts.Part(vae, device, resident=resident)

    def used(self) -> AbstractContextManager[Any]:
        """Give the network on its device, for the two methods below."""
        return self._part.used()

    @torch.no_grad()
    def latents(self, vae: Any, clip: UInt8) -> Tensor:
        """Return normalised float32 latents [1, C, f, h, w] of a clip uint8 [T, H, W, 3].

        T is 8k + 1, H and W are multiples of 32; the mean of the posterior is taken.
        """
        found = vae.encode(to_pixels(clip, self._device, self._dtype)).latent_dist.mode().float()
        return (found - self._mean) / self._std

    @torch.no_grad()
    def pixels(self, vae: Any, latents: Tensor, noise: Noise) -> UInt8:
        """Return the clip uint8 [T, H, W, 3] of normalised latents [1, C, f, h, w]."""
        raw = latents * self._std + self._mean
        at = None
        if self._timed:
            fresh = torch.from_numpy(noise(raw.numel(), DECODE_NOISE)).to(self._device)
            raw = (1 - _DECODE_LEVEL) * raw + _DECODE_LEVEL * fresh.view_as(raw)
            at = torch.tensor([_DECODE_TIMESTEP], device=self._device, dtype=self._dtype)
        return from_pixels(vae.decode(raw.to(self._dtype), at, return_dict=False)[0])
