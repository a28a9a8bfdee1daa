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
from semvc.backbones.ltxvae import LtxPictures
from semvc.backbones.pixels import half
from semvc.backbones.protocol import SAMPLE_NOISE, Conditions, Noise, Settings, UInt8, up_to
from semvc.backbones.text import Text, TextEncoder
from semvc.backbones.tokens import SPACE, TIME, Packing, Reference, Sequence

TEXT_TOKENS = 256


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
        self._pictures = LtxPictures(
            folder, device, dtype, tile=settings.tile, resident=settings.memory == "full"
        )
        self._channels = self._pictures.channels
        width = transformer.config.caption_channels
        self._transformer = parts.place(transformer, device, settings.memory)
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
        pictures = self._pictures
        with pictures.used() as vae:
            found = references(pictures, vae, given, self._settings.reference_scale)
            tail = pictures.latents(vae, given.tail) if len(given.tail) else None
            start = pictures.latents(vae, given.base) if self._settings.strength < 1 else None
        streams = [Reference(x, self._settings.reference_scale) for x in found.values()]
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
            x[:, : known.shape[1]] = known
        levels = self._schedule.levels(
            steps, tokens=x.shape[1], strength=self._settings.strength
        ).tolist()
        with self._transformer.used() as network:
            for now, after in itertools.pairwise(levels):
                at = torch.where(pinned, 0.0, now)[None]
                moved = flow.step(x, self._guided(network, x, at, encoded), now, after)
                x = torch.where(pinned[None, :, None], x, moved)
        with self._pictures.used() as vae:
            return self._pictures.pixels(vae, tokens.unflatten(x, encoded.shape), noise)

    def _guided(self, network: Any, x: Tensor, at: Tensor, encoded: Encoded) -> Tensor:
        found = velocity(network, x.to(self._dtype), at, encoded.sequence, encoded.text)
        if self._settings.guidance == 1 or encoded.text is encoded.empty:
            return found
        free = velocity(network, x.to(self._dtype), at, encoded.sequence, encoded.empty)
        return free + self._settings.guidance * (found - free)


def references(pictures: LtxPictures, vae: Any, given: Conditions, scale: int) -> dict[str, Tensor]:
    """Return the latents of the streams a window has, of base, sketch and skeleton in this order.

    `scale` 2 encodes them at half size. Training and decoding share it.
    """
    clips: dict[str, UInt8] = {"base": given.base}
    for name, lines in (("sketch", given.sketch), ("skeleton", given.skeleton)):
        if lines is not None:
            clips[name] = np.repeat(lines[..., None], 3, 3)
    return {n: pictures.latents(vae, half(c) if scale == 2 else c) for n, c in clips.items()}


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
