"""A tiny model of profile s2vc in training: its recipe, its stages, its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from cache import write_metric_weights
from s2vc_models import TINY

from semvc.train import families, s2vc
from semvc.train.loop import Run, Trainer
from semvc.train.recipe import Recipe, Stage
from semvc.train.s2vc import Options

CODEC: dict[str, Any] = {
    "features": TINY["channels"],
    "hidden": 8,
    "latents": 8,
    "groups": 2,
    "hyper": 2,
    "hyper_levels": 0,
    "depths": [1, 1, 1, 1],
    "reset": 32,
}
SIZES = {"latents": 8, "groups": 2, "hyper": 2}
NETWORK: dict[str, Any] = {"codec": CODEC, "decoder": TINY, "rate": {"hidden": 4}}
JUDGED = {"l1": 1.0, "lpips": 1.0, "semantic": 0.001, "motion": 0.25}
AUTOENCODER = Options(train=("autoencoder",), frames=1, crop=64, l1=1.0, lpips=0.5)
CODING = Options(train=("codec",), frames=2, crop=64, preview=1.0, preview_lpips=0.5)
DECODING = Options(train=("decoder",), frames=2, crop=64, latent=0.5, **JUDGED)
JOINT = Options(train=("codec", "autoencoder", "decoder"), frames=3, crop=64, preview=0.3, **JUDGED)


def stage(options: Options, steps: int = 2, **given: Any) -> Stage:
    kept = {"rate": 2e-3, "final_rate": 1e-3, "batch": 2, "warmup": 1} | given
    return Stage(name="-".join(options.train), steps=steps, options=options, **kept)


RECIPE = Recipe(
    model="tiny-v1",
    family="s2vc",
    seed=3,
    network=NETWORK,
    stages=tuple(stage(o) for o in (AUTOENCODER, CODING, DECODING, JOINT)),
    bfloat16=False,
    sample_minutes=0.0,
)


def write_training(root: Path) -> Path:
    """Write `cache` (two sequences of 6 frames, three photographs) and `metrics`; return `root`."""
    write_sequences(root / "cache")
    write_metric_weights(root / "metrics")
    return root


def write_sequences(folder: Path) -> None:
    """Write the unpacked form: coarse random squares that move to the right."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(2)
    coarse = rng.integers(0, 256, (2, 1, 10, 16, 3), np.uint8).repeat(8, 2).repeat(8, 3)
    clips = np.concatenate([coarse[:, :, :80, t : t + 80] for t in range(6)], 1)
    np.save(folder / "clips.npy", clips)
    photos = rng.integers(0, 256, (3, 20, 24, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    np.save(folder / "photos.npy", photos)


def trainer(shared: Path, folder: Path, recipe: Recipe = RECIPE, **given: Any) -> Trainer:
    return Trainer(recipe, Run(folder, [shared / "cache"], shared / "metrics", **given))


def task(shared: Path, recipe: Recipe = RECIPE) -> s2vc.S2vc:
    inputs = families.Inputs(
        [shared / "cache"], shared / "metrics", torch.device("cpu"), torch.float32
    )
    return s2vc.build(recipe, inputs)
