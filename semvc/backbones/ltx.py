"""LTX-Video transformers with in-context references (DiSCo's generator), on bare diffusers modules.

The forward-filled base layer, the sketch and the skeleton are encoded by the same autoencoder as
the target. Their tokens stay clean, at timestep 0, among the noisy target tokens, and are dropped
from every prediction. A LoRA trained that way makes a transformer read them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semvc.backbones import flow, parts, tokens
from semvc.backbones.pixels import from_pixels, half, set_tiles, to_pixels
from semvc.backbones.protocol import (
    DECODE_NOISE,
    SAMPLE_NOISE,
    Conditions,
    Noise,
    Settings,
    UInt8,
    up_to,
)
from semvc.backbones.text import Text, TextEncoder
from semvc.backbones.tokens import SPACE, TIME, Packing, Reference, Sequence
from semvc.errors import ModelError

TEXT_TOKENS = 256
_DECODE_TIMESTEP, _DECODE_LEVEL = 0.05, 0.025  # of autoencoders that denoise while decoding


@dataclass(frozen=True, slots=True)
class Encoded:
    """One window, ready to generate: `shape` is the latent clip's (f, h, w).

    `start` holds the base layer's latents if the sample starts from them, else None.
    """

    sequence: Sequence
    shape: tuple[int, int, int]
    start: Tensor | None
    tail: Tensor | None
    text: Text
    empty: Text


class Ltx:
    """One LTX-Video folder, loaded; see `protocol.Backbone`."""

    def __init__(
        self, folder: Path, settings: Settings, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._settings, self._device, self._dtype = settings, device, dtype
        transformer = parts.read(folder, "transformer", "LTXVideoTransformer3DModel", dtype)
        parts.add_loras(transformer, "ltx", settings.loras)
        parts.quantise(transformer, settings.quant, dtype)
        vae = parts.read(folder, "vae", "AutoencoderKLLTXVideo", dtype)
        if (vae.spatial_compression_ratio, vae.temporal_compression_ratio) != (SPACE, TIME):
            raise ModelError(f"{folder}: an autoencoder with other strides than LTX-Video's")
        set_tiles(vae, settings.tile)
        self._channels, self._timed = (
            vae.config.latent_channels,
            bool(vae.config.timestep_conditioning),
        )
        self._mean, self._std = (
            v.float().view(1, -1, 1, 1, 1).to(device) for v in (vae.latents_mean, vae.latents_std)
        )
        width = transformer.config.caption_channels
        self._transformer = parts.place(transformer, device, settings.memory)
        self._vae = parts.Part(vae, device, resident=settings.memory == "full")
        self._schedule = flow.read_schedule(folder, settings.shift)
        self._texts = TextEncoder(
            folder, length=TEXT_TOKENS, width=width, device=device, dtype=dtype
        )

    def fit_size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) raised to multiples of 32, of 64 with half-size references."""
        side = SPACE * self._settings.reference_scale
        return up_to(width, side), up_to(height, side)

    def fit_frames(self, frames: int) -> int:
        """Return the next 8k + 1."""
        return up_to(frames, TIME, plus=1)

    @torch.no_grad()  # not inference mode: training goes on from here
    def encode(self, given: Conditions) -> Encoded:
        """Encode references, tail and caption; frames 8k + 1, sides as `fit_size` gives."""
        frames, height, width = given.base.shape[:3]
        shape = ((frames - 1) // TIME + 1, height // SPACE, width // SPACE)
        with self._vae.used() as vae:
            streams = [self._reference(vae, given.base)]
            for lines in (given.sketch, given.skeleton):
                if lines is not None:
                    streams.append(self._reference(vae, np.repeat(lines[..., None], 3, 3)))
            tail = self._latents(vae, given.tail) if len(given.tail) else None
            start = self._latents(vae, given.base) if self._settings.strength < 1 else None
        packed = tokens.pack(streams, Packing(self._settings.packing), given.frame_rate)
        sequence = Sequence(packed, shape, given.frame_rate).to(self._device)
        return Encoded(sequence, shape, start, tail, self._texts(given.caption), self._texts(""))

    @torch.inference_mode()
    def generate(self, encoded: Encoded, noise: Noise, steps: int) -> UInt8:
        """Run `steps` Euler steps over the target tokens; return uint8 [T, H, W, 3]."""
        count = self._channels * int(np.prod(encoded.shape))
        sample = torch.from_numpy(noise(count, SAMPLE_NOISE)).to(self._device)
        x = tokens.flatten(sample.view(1, self._channels, *encoded.shape))
        if encoded.start is not None:
            base = tokens.flatten(encoded.start)
            x = flow.step(base, x - base, 0.0, self._settings.strength)
        pinned = torch.zeros(x.shape[1], dtype=torch.bool, device=self._device)
        if encoded.tail is not None:
            known = tokens.flatten(encoded.tail)
            pinned[: known.shape[1]] = True
            x[:, pinned] = known
        levels = self._schedule.levels(
            steps, tokens=x.shape[1], strength=self._settings.strength
        ).tolist()
        with self._transformer.used() as network:
            for now, after in itertools.pairwise(levels):
                at = torch.where(pinned, 0.0, now)[None]
                moved = flow.step(x, self._guided(network, x, at, encoded), now, after)
                x = torch.where(pinned[None, :, None], x, moved)
        return self._decode(tokens.unflatten(x, encoded.shape), noise)

    def _guided(self, network: Any, x: Tensor, at: Tensor, encoded: Encoded) -> Tensor:
        found = velocity(network, x.to(self._dtype), at, encoded.sequence, encoded.text)
        if self._settings.guidance == 1 or encoded.text is encoded.empty:
            return found
        free = velocity(network, x.to(self._dtype), at, encoded.sequence, encoded.empty)
        return free + self._settings.guidance * (found - free)

    def _reference(self, vae: Any, clip: UInt8) -> Reference:
        scale = self._settings.reference_scale
        return Reference(self._latents(vae, half(clip) if scale == 2 else clip), scale)

    def _latents(self, vae: Any, clip: UInt8) -> Tensor:
        """Normalised float32 latents [1, C, f, h, w] of a clip uint8 [T, H, W, 3]."""
        found = vae.encode(to_pixels(clip, self._device, self._dtype)).latent_dist.mode().float()
        return (found - self._mean) / self._std

    def _decode(self, latents: Tensor, noise: Noise) -> UInt8:
        raw = latents * self._std + self._mean
        at = None
        if self._timed:
            fresh = torch.from_numpy(noise(raw.numel(), DECODE_NOISE)).to(self._device)
            raw = (1 - _DECODE_LEVEL) * raw + _DECODE_LEVEL * fresh.view_as(raw)
            at = torch.tensor([_DECODE_TIMESTEP], device=self._device, dtype=self._dtype)
        with self._vae.used() as vae:
            return from_pixels(vae.decode(raw.to(self._dtype), at, return_dict=False)[0])


def velocity(network: Any, x: Tensor, at: Tensor, sequence: Sequence, text: Text) -> Tensor:
    """Return the float32 velocity [B, n, C] of target tokens `x` [B, n, C] at levels `at` [B, n].

    Gradients flow, so that training and decoding share it.
    """
    batch = len(x)
    found = network(
        hidden_states=sequence.fill(x),
        encoder_hidden_states=text.values.to(x.dtype).expand(batch, -1, -1),
        timestep=sequence.levels(at) * flow.TRAIN_STEPS,  # float32: bfloat16 has 8 bits
        encoder_attention_mask=text.mask.expand(batch, -1),
        video_coords=sequence.coordinates[None].expand(batch, -1, -1),
        return_dict=False,
    )[0]
    return sequence.take(found).float()
