"""Runs the s2vc codec over a segment: frames to integers, integers to features and previews.

A model folder's `config.toml` has the table `[codec]`, the arguments of `S2vcCodec`; its weights
are the tensors `codec.*`, and beside them the integers `prior.*` of the entropy coder.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from semvc.errors import ModelError, ResourceError
from semvc.nets.load import place
from semvc.nets.s2vc_codec import STRIDE, Latents, S2vcCodec
from semvc.weights import CONFIG, WEIGHTS

UInt8 = npt.NDArray[np.uint8]
Int8 = npt.NDArray[np.int8]
PREFIX = "codec."


class CodecRunner:
    """A codec with its device and dtype; both ends of a stream run it alike."""

    def __init__(self, network: S2vcCodec, *, device: torch.device, dtype: torch.dtype) -> None:
        self._network, self._device, self._dtype = network, device, dtype

    @torch.inference_mode()
    def encode(self, frames: UInt8, quality: float) -> tuple[Int8, Int8]:
        """Return the hyper-latents int8 [F, Z, h / 4, w / 4] and latents int8 [F, C, h, w].

        frames: uint8 [F, H, W, 3] RGB of a segment; h and w are H and W in units of 16, rounded up
        to multiples of 4. quality: in [0, 63]. ResourceError if memory runs out.
        """
        hypers, latents = [], []
        pictures = (self._picture(frame) for frame in frames)
        try:
            for sent, _ in self._network.encode(pictures, self._quality(quality)):
                hypers.append(_integers(sent.hyper))
                latents.append(_integers(sent.latent))
        except torch.OutOfMemoryError as error:
            raise self._too_large(frames.shape[1:3]) from error
        return np.stack(hypers), np.stack(latents)

    @torch.inference_mode()
    def features(self, hyper: Int8, latent: Int8, quality: float) -> Iterator[Tensor]:
        """Yield f(t) [1, features, H / 8, W / 8] of each frame of a segment."""
        pairs = zip(hyper, latent, strict=True)
        sent = (Latents(self._floats(z), self._floats(y)) for z, y in pairs)
        try:
            for features in self._network.decode(sent, self._quality(quality)):
                yield features.now
        except torch.OutOfMemoryError as error:
            raise self._too_large(latent.shape[2:], unit=16) from error

    @torch.inference_mode()
    def previews(
        self, hyper: Int8, latent: Int8, quality: float, size: tuple[int, int]
    ) -> Iterator[UInt8]:
        """Yield the codec's own pictures of a segment, uint8 [H, W, 3] RGB; `size` is (H, W)."""
        for feature in self.features(hyper, latent, quality):
            picture = self._network.preview(feature)[0, :, : size[0], : size[1]].float()
            picture = ((picture + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
            yield picture.permute(1, 2, 0).contiguous().cpu().numpy()

    def _picture(self, frame: UInt8) -> Tensor:
        x = torch.from_numpy(frame.astype(np.float32)).permute(2, 0, 1)[None]
        rows, columns = -frame.shape[0] % STRIDE, -frame.shape[1] % STRIDE
        return self._move(F.pad(x / 127.5 - 1, (0, columns, 0, rows), mode="replicate"))

    def _floats(self, values: Int8) -> Tensor:
        return torch.from_numpy(values.astype(np.float32))[None].to(self._device)

    def _quality(self, quality: float) -> Tensor:
        return torch.tensor([quality], dtype=torch.float32, device=self._device)

    def _move(self, x: Tensor) -> Tensor:
        return x.to(self._device, self._dtype, memory_format=torch.channels_last)

    def _too_large(self, size: Sequence[int], unit: int = 1) -> ResourceError:
        height, width = (unit * side for side in size)
        return ResourceError(f"out of memory on {self._device} at {width}x{height}")


def build(folder: Path, device: torch.device, dtype: torch.dtype) -> S2vcCodec:
    """Return the codec of a model folder, ready to run; keys and shapes must match exactly."""
    config = tomllib.loads((folder / CONFIG).read_text("utf-8"))
    try:
        network = S2vcCodec(**config["codec"])
        with safe_open(folder / WEIGHTS, "pt") as file:
            names = [n for n in file.keys() if n.startswith(PREFIX)]  # noqa: SIM118  # no mapping
            network.load_state_dict({n.removeprefix(PREFIX): file.get_tensor(n) for n in names})
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"model folder {folder} does not fit this program: {error}") from error
    network.eval().requires_grad_(False)
    return place(network, device, dtype)


def _integers(values: Tensor) -> Int8:
    found: Int8 = values[0].to(torch.int8).cpu().numpy()
    return found
