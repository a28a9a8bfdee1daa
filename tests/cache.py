"""A training cache and the weights of metrics, both tiny and random, for tests of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from semvc.train.data import FIELDS

LENGTH, ARRIVALS, SIDE = 4, 5, 48
_LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # torchvision's numbers of convolutions
_TAPS = (2, 2, 3, 3, 3)
WIDTHS = (4, 6, 6, 8, 8)


def write_cache(folder: Path, *, shards: int = 2, samples: int = 3) -> Path:
    """Write shards in the format of `semvc.train.data`; return `folder`.

    Frames are random squares; received ones are half as bright plus 60; sketches are set where
    red is bright, skeletons where green is, and every other sample's skeleton is meaningful.
    """
    rng = np.random.default_rng(11)
    for number in range(shards):
        shard = folder / f"{number:05d}"
        shard.mkdir(parents=True)
        coarse = rng.integers(0, 256, (samples, LENGTH, SIDE // 8, SIDE // 8, 3), np.uint8)
        source = coarse.repeat(8, 2).repeat(8, 3)
        first = np.arange(LENGTH)
        held = np.stack([np.maximum(first - 1, 0), first, first + 1], 1)
        arrays = {
            "source": source,
            "arrivals": np.concatenate([source, source[:, -1:]], 1) // 2 + 60,
            "sketch": (source[:, :, ::4, ::4, 0] > 127) * np.uint8(255),
            "skeleton": (source[:, :, ::4, ::4, 1] > 127) * np.uint8(255),
            "held": np.tile(held.astype(np.uint8), (samples, 1, 1)),
            "phase": np.zeros((samples, LENGTH), np.float32),
            "settings": np.tile(np.array([50, 1, 0], np.float32), (samples, 1)),
            "figure": (np.arange(samples) % 2).astype(np.uint8),
        }
        for name in FIELDS:
            np.save(shard / f"{name}.npy", arrays[name])
    return folder


def write_metric_weights(folder: Path) -> Path:
    """Write a VGG16 of a few channels and random heads under the usual names; return `folder`."""
    draw = torch.Generator().manual_seed(12)
    widths = [w for w, count in zip(WIDTHS, _TAPS, strict=True) for _ in range(count)]
    features, before = {}, 3
    for layer, width in zip(_LAYERS, widths, strict=True):
        scale = (2 / (9 * before)) ** 0.5
        weight = torch.randn((width, before, 3, 3), generator=draw) * scale
        features[f"features.{layer}.weight"] = weight.half()
        features[f"features.{layer}.bias"] = torch.randn(width, generator=draw).half() * 0.1
        before = width
    heads = {f"vgg.lin{i}": torch.rand(w, generator=draw) for i, w in enumerate(WIDTHS)}
    for name in ("alpha", "beta"):
        heads[f"dists.{name}"] = torch.rand(3 + sum(WIDTHS), generator=draw)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(features, folder / "vgg16-features-fp16.safetensors")
    save_file(heads, folder / "heads.safetensors")
    return folder
