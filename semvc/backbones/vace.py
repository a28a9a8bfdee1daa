"""Wan2.1-VACE without training: pictures to keep, lines or the base layer elsewhere.

The control clip holds pictures to keep where the mask is 0 and something to go by where it is 1:
the sketch, or else the base layer. These networks never saw blur as a control, so colours come
from where the sample starts: the base layer's latents with noise up to a chosen strength. The loop
is our own, because the ready-made one starts from noise alone.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from semvc.backbones import flow, parts
from semvc.backbones.pixels import from_pixels, set_tiles, to_pixels
from semvc.backbones.protocol import SAMPLE_NOISE, Conditions, Noise, Settings, UInt8, up_to
from semvc.backbones.text import Text, TextEncoder
from semvc.errors import ModelError

TIME, SPACE = 4, 8  # frames and luma samples that one latent cell covers
TEXT_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Encoded:
    """One window: control [1, 2C + 64, f, h, w], start [1, C, f, h, w], and the caption."""

    control: Tensor
    start: Tensor
    text: Text
    empty: Text


class Vace:
    """One Wan2.1-VACE folder, loaded; see `protocol.Backbone`."""

    def __init__(
        self, folder: Path, settings: Settings, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._settings, self._device, self._dtype = settings, device, dtype
        transformer = parts.read(folder, "transformer", "WanVACETransformer3DModel", dtype)
        parts.add_loras(transformer, "vace", settings.loras)
        parts.quantise(transformer, settings.quant, dtype)
        vae = parts.read(folder, "vae", "AutoencoderKLWan", torch.float32)
        needed = 2 * vae.config.z_dim + SPACE * SPACE
        if transformer.config.vace_in_channels != needed:
            raise ModelError(f"{folder}: transformer and autoencoder are not of one model")
        set_tiles(vae, settings.tile)
        self._mean, self._std = (
            torch.tensor(v, device=device).view(1, -1, 1, 1, 1)
            for v in (vae.config.latents_mean, vae.config.latents_std)
        )
        self._side = SPACE * transformer.config.patch_size[1]
        width = transformer.config.text_dim
        self._transformer = parts.place(transformer, device, settings.memory)
        self._vae = parts.Part(vae, device, resident=settings.memory == "full")
        self._schedule = flow.read_schedule(folder, settings.shift)
        self._texts = TextEncoder(
            folder, length=TEXT_TOKENS, width=width, device=device, dtype=dtype
        )

    def fit_size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) raised to multiples of 16."""
        return up_to(width, self._side), up_to(height, self._side)

    def fit_frames(self, frames: int) -> int:
        """Return the next 4k + 1."""
        return up_to(frames, TIME, plus=1)

    @torch.no_grad()
    def encode(self, given: Conditions) -> Encoded:
        """Encode control clip, mask, start and caption; frames 4k + 1, sides as `fit_size`."""
        shown, free = control_clip(given)
        start = given.base.copy()
        start[: len(given.tail)] = given.tail
        mask = torch.from_numpy(free).to(self._device).float()[None, None, :, None, None]
        with self._vae.used() as vae:
            pixels = to_pixels(shown, self._device, torch.float32)
            control = [
                self._latents(vae, pixels * (1 - mask)),
                self._latents(vae, pixels * mask),
                mask_channels(mask.expand(-1, -1, -1, *shown.shape[1:3])),
            ]
            first = self._latents(vae, to_pixels(start, self._device, torch.float32))
        text, empty = self._texts(given.caption), self._texts("")
        return Encoded(torch.cat(control, 1).to(self._dtype), first, text, empty)

    @torch.inference_mode()
    def generate(self, encoded: Encoded, noise: Noise, steps: int) -> UInt8:
        """Start at the strength's noise level, run `steps` Euler steps; uint8 [T, H, W, 3]."""
        clean = encoded.start
        levels = self._schedule.levels(steps, strength=self._settings.strength).tolist()
        fresh = torch.from_numpy(noise(clean.numel(), SAMPLE_NOISE)).to(self._device)
        x = flow.step(clean, fresh.view_as(clean) - clean, 0.0, levels[0])
        with self._transformer.used() as network:
            for now, after in itertools.pairwise(levels):
                x = flow.step(x, self._guided(network, x, now, encoded), now, after)
        with self._vae.used() as vae:
            return from_pixels(vae.decode(x * self._std + self._mean, return_dict=False)[0])

    def _guided(self, network: Any, x: Tensor, level: float, encoded: Encoded) -> Tensor:
        found = self._velocity(network, x, level, encoded.control, encoded.text)
        if self._settings.guidance == 1 or encoded.text is encoded.empty:
            return found
        free = self._velocity(network, x, level, encoded.control, encoded.empty)
        return free + self._settings.guidance * (found - free)

    def _velocity(
        self, network: Any, x: Tensor, level: float, control: Tensor, text: Text
    ) -> Tensor:
        found: Tensor = network(
            hidden_states=x.to(self._dtype),
            timestep=torch.full((1,), level * flow.TRAIN_STEPS, device=self._device),
            encoder_hidden_states=text.values,
            control_hidden_states=control,
            return_dict=False,
        )[0]
        return found.float()

    def _latents(self, vae: Any, pixels: Tensor) -> Tensor:
        found: Tensor = vae.encode(pixels).latent_dist.mode()
        return (found - self._mean) / self._std


def control_clip(given: Conditions) -> tuple[UInt8, np.ndarray]:
    """Return what VACE is shown, uint8 [T, H, W, 3], and bool [T], True where it may be changed.

    Kept pictures and the tail are shown and stay; elsewhere the sketch is shown (black lines on
    white, as these networks were trained on), else the skeleton, else the base layer.
    """
    lines = None if given.sketch is None else 255 - given.sketch
    if lines is None:
        lines = given.skeleton
    shown = given.base.copy() if lines is None else np.repeat(lines[..., None], 3, 3)
    shown[given.kept] = given.base[given.kept]
    shown[: len(given.tail)] = given.tail
    free = ~given.kept
    free[: len(given.tail)] = False
    return shown, free


def mask_channels(mask: Tensor) -> Tensor:
    """Return [1, 64, f, h, w] of a mask [1, 1, T, H, W]: the samples of a cell become channels.

    In time the nearest frame is taken, as the networks were trained.
    """
    frames, height, width = mask.shape[2:]
    cells = mask.reshape(frames, height // SPACE, SPACE, width // SPACE, SPACE)
    cells = cells.permute(2, 4, 0, 1, 3).flatten(0, 1)[None]
    shape = ((frames - 1) // TIME + 1, height // SPACE, width // SPACE)
    return functional.interpolate(cells, shape, mode="nearest-exact")
