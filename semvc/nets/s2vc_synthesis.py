"""Runs the s2vc decoder over a segment, and reads and names its weights.

A model folder's `config.toml` has the table `[decoder]`, the arguments of `LatentDecoder`; its
weights are the tensors `decoder.*`. A pretrained backbone is not among them: it lies beside them
in `unet/` and `vae/`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from semvc.errors import ModelError, ResourceError
from semvc.nets.load import place
from semvc.nets.s2vc_decoder import Buffers, LatentDecoder
from semvc.weights import CONFIG, WEIGHTS

UInt8 = npt.NDArray[np.uint8]
PREFIX = "decoder."


class Synthesizer:
    """A decoder with its device and dtype; makes the frames of one segment after another."""

    def __init__(self, network: LatentDecoder, *, device: torch.device, dtype: torch.dtype) -> None:
        self._network, self._device, self._dtype = network, device, dtype

    @torch.inference_mode()
    def frames(self, features: Iterable[Tensor], height: int, width: int) -> Iterator[UInt8]:
        """Yield a segment's frames, uint8 [height, width, 3] RGB; ResourceError if memory runs out.

        features: f(t) [1, C, h, w] of each frame in turn, 8h >= height and 8w >= width. Each call
        starts with empty buffers: segments do not depend on each other.
        """
        before: Buffers | None = None
        for feature in features:
            given = feature.to(self._device, self._dtype, memory_format=torch.channels_last)
            try:
                frame, before = self._network(given, before)
            except torch.OutOfMemoryError as error:
                raise ResourceError(
                    f"out of memory on {self._device} at {width}x{height}:"
                    " use --device cpu or --tier preview"
                ) from error
            picture = frame[0, :, :height, :width].float()
            picture = ((picture + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
            yield picture.permute(1, 2, 0).contiguous().cpu().numpy()


def build(folder: Path, device: torch.device, dtype: torch.dtype) -> LatentDecoder:
    """Return the decoder of a model folder, ready to run; keys and shapes must match exactly."""
    config = tomllib.loads((folder / CONFIG).read_text("utf-8"))
    try:
        network = construct(config["decoder"], folder)
        with safe_open(folder / WEIGHTS, "pt") as file:
            names = [n for n in file.keys() if n.startswith(PREFIX)]  # noqa: SIM118  # no mapping
            fill(network, {n.removeprefix(PREFIX): file.get_tensor(n) for n in names})
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(f"model folder {folder} does not fit this program: {error}") from error
    network.eval().requires_grad_(False)
    if pretrained(config["decoder"]):
        place(network, device, dtype)
        network.autoencoder.float()
        return network
    del network.autoencoder.encoder  # training's alone
    return place(network, device, dtype)


def construct(config: Mapping[str, Any], backbone: Path) -> LatentDecoder:
    """Return a decoder with fresh weights, its pretrained parts (if any) read from `backbone`."""
    network = LatentDecoder(**config)
    if pretrained(config):
        from semvc.nets import s2vc_pretrained

        s2vc_pretrained.load_backbone(network, backbone)
        s2vc_pretrained.add_lora(network.unet, **config["unet"]["lora"])
    return network


def pretrained(config: Mapping[str, Any]) -> bool:
    """Whether a `[decoder]` table asks for a pretrained backbone."""
    return bool(config["unet"]["kind"] == "diffusers")


def shipped(network: LatentDecoder) -> dict[str, Tensor]:
    """Return the tensors that a model consists of: no backbone, no encoder of the autoencoder."""
    return {n: t for n, t in network.state_dict().items() if _is_shipped(n, network.local)}


def fill(network: LatentDecoder, tensors: Mapping[str, Tensor]) -> None:
    """Load exactly the `shipped` tensors; RuntimeError for a missing, extra or misshapen one."""
    own = shipped(network)
    if odd := sorted(own.keys() ^ tensors.keys()):
        raise RuntimeError(f"{len(odd)} tensors are missing or unknown, the first is {odd[0]}")
    network.load_state_dict(network.state_dict() | dict(tensors))


def _is_shipped(name: str, small: bool) -> bool:
    if small:
        return not name.startswith("autoencoder.encoder.")
    trained = name.startswith("unet.conv_in.") or ".lora_" in name
    return trained or not name.startswith(("unet.", "autoencoder."))
