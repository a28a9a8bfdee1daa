"""Turns a training run of profile s2vc into a model folder, its coder's tables included.

`python -m semvc.train.s2vc_export RECIPE RUN MODEL --cache CACHE` takes the running average (of a
run, or of what `semvc train export` made of it on a machine that has no entropy coder), rounds it
to fp16, fits the coder to what the rounded codec gives on the cache's sequences, and writes
`config.toml`, `weights.safetensors` and `recipe.toml`. Of the weights, `codec.*` and `decoder.*`
are fp16 and `prior.*` integers. The model's row of `index.toml` goes to stdout, what the fit
reports to stderr.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from semvc.errors import UsageError
from semvc.nets import s2vc_synthesis
from semvc.nets.s2vc_codec import S2vcCodec
from semvc.signals.latentprior import LatentShape
from semvc.train import checkpoint, recipe, s2vc, s2vc_prior
from semvc.train.recipe import Recipe
from semvc.train.s2vc_rate import RateModel
from semvc.train.sequences import Sequences
from semvc.weights import CONFIG, WEIGHTS, sha256

_log = logging.getLogger(__name__)

_SHIPPED = ("codec.", "decoder.")
_NOT_SHIPPED = "decoder.autoencoder.encoder."


@dataclass(frozen=True, slots=True)
class Settings:
    """The coder is fitted to `count` segments of `frames` frames."""

    count: int = 64
    frames: int = 32
    seed: int = 1


def export(
    given: Recipe, run: Path, model: Path, caches: list[Path], settings: Settings
) -> s2vc_prior.Report:
    """Write the model folder, return how well the coder fits; UsageError without weights."""
    found, _ = checkpoint.weights_to_start_from(run)
    weights = {name: tensor.half() for name, tensor in found.items()}
    codec, rate = networks(given.network, weights)
    sizes = {n: given.network["codec"][n] for n in ("latents", "groups", "hyper", "hyper_levels")}
    samples = s2vc_prior.samples(codec, rate, Sequences(caches), **dataclasses.asdict(settings))
    prior, report = s2vc_prior.fit(LatentShape(**sizes), rate, list(samples))
    tensors = {n: t for n, t in weights.items() if n.startswith(_SHIPPED)}
    tensors = {n: t.contiguous() for n, t in tensors.items() if not n.startswith(_NOT_SHIPPED)}
    tensors |= {n: torch.from_numpy(t.copy()) for n, t in prior.arrays().items()}
    model.mkdir(parents=True, exist_ok=True)
    part = model / f"{WEIGHTS}.part"
    save_file(tensors, part)
    part.chmod(0o644)  # safetensors writes for the owner alone
    part.replace(model / WEIGHTS)
    (model / CONFIG).write_text(s2vc.config(given), "utf-8")
    return report


def index_row(given: Recipe, model: Path) -> dict[str, Any]:
    """Return the model's row of `index.toml`: a generator that is its own codec."""
    large = s2vc_synthesis.pretrained(given.network["decoder"])
    row = s2vc.INDEX | {"tier": "full" if large else "small", "id": model.name}
    return row | {
        "codec": model.name,
        "bytes": (model / WEIGHTS).stat().st_size,
        "weights_sha256": sha256(model / WEIGHTS),
        "config_sha256": sha256(model / CONFIG),
    }


def networks(
    given: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[S2vcCodec, RateModel]:
    """Return the codec and the rate model of a run, with its weights as they ship."""
    sizes = {n: given["codec"][n] for n in ("latents", "groups", "hyper")}
    parts = {
        "codec": S2vcCodec(**given["codec"]),
        "rate": RateModel(**sizes, **given.get("rate", {})),
    }
    for name, network in parts.items():
        own = {
            n.removeprefix(f"{name}."): t.float()
            for n, t in weights.items()
            if n.startswith(f"{name}.")
        }
        try:
            network.load_state_dict(own)
        except RuntimeError as error:
            raise UsageError(f"the run's {name} is not that of the recipe: {error}") from error
        network.eval().requires_grad_(False)
    return parts["codec"], parts["rate"]  # type: ignore[return-value]  # as they were made


def main(words: list[str]) -> None:
    """Export by the command line's words."""
    parser = argparse.ArgumentParser(prog="python -m semvc.train.s2vc_export")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--cache", type=Path, action="append", required=True)
    parser.add_argument(
        "--count", type=int, default=64, help="segments that the coder is fitted to"
    )
    parser.add_argument("--frames", type=int, default=32, help="frames of each")
    words_given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    given = recipe.load(words_given.recipe)
    settings = Settings(count=words_given.count, frames=words_given.frames)
    report = export(given, words_given.run, words_given.model, words_given.cache, settings)
    shutil.copyfile(words_given.recipe, words_given.model / "recipe.toml")
    _log.info("%s", json.dumps(dataclasses.asdict(report)))
    row = index_row(given, words_given.model)
    lines = [f"{name} = {json.dumps(value)}" for name, value in row.items()]
    sys.stdout.write("\n".join(["[[model]]", *lines]) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
