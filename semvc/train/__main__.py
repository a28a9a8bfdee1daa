"""`python -m semvc.train`: prepare data, train by a recipe, export a model folder."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import click
import torch

from semvc import weights
from semvc.train import loop, prepare, recipe

_PATH = click.Path(path_type=Path)


@click.group()
def main() -> None:
    """Train the bundled generator. Data and perceptual-loss weights are given by path."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")


@main.command("prepare")
@click.argument("out", type=_PATH)
@click.option("--clips", type=_PATH, help="Folder of videos.")
@click.option("--photos", type=_PATH, help="Folder of JPEG photographs, set in motion.")
@click.option("--rounds", default=3, show_default=True, help="Passes over the clips.")
@click.option("--samples", default=8, show_default=True, help="Crops from each coded shot.")
@click.option("--preset", default=6, show_default=True, help="SVT-AV1's.")
@click.option("--seed", default=1, show_default=True)
def prepare_command(
    out: Path,
    clips: Path | None,
    photos: Path | None,
    rounds: int,
    samples: int,
    preset: int,
    seed: int,
) -> None:
    """Make the cache OUT: crops with their real base layers. Continues where it stopped."""
    if clips is not None:
        footage = prepare.clips(clips, seed=seed, rounds=rounds)
        prepare.prepare(footage, out / "clips", seed=seed, samples=samples, preset=preset)
    if photos is not None:
        footage = prepare.photos(photos, seed=seed)
        prepare.prepare(
            footage, out / "photos", seed=seed, samples=max(1, samples // 3), preset=preset
        )


@main.command()
@click.argument("recipe_path", metavar="RECIPE", type=_PATH)
@click.argument("folder", type=_PATH)
@click.option(
    "--cache",
    "caches",
    type=_PATH,
    multiple=True,
    required=True,
    help="May be given several times.",
)
@click.option(
    "--metric-weights", type=_PATH, required=True, help="Folder with VGG16 features and heads."
)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 leaves the choice to torch.")
@click.option(
    "--minutes", default=0.0, help="Stop with a checkpoint after this long; 0 trains to the end."
)
def run(
    recipe_path: Path,
    folder: Path,
    caches: tuple[Path, ...],
    metric_weights: Path,
    device: str,
    threads: int,
    minutes: float,
) -> None:
    """Train by RECIPE in FOLDER, going on from its checkpoint if there is one."""
    if threads:
        torch.set_num_threads(threads)
    job = loop.Run(folder, list(caches), metric_weights, device, minutes)
    trainer = loop.Trainer(recipe.load(recipe_path), job)
    trainer.resume()
    done = trainer.train()
    click.echo(f"step {trainer.step}: {'complete' if done else 'to be continued'}", err=True)


@main.command()
@click.argument("recipe_path", metavar="RECIPE", type=_PATH)
@click.argument("folder", type=_PATH)
@click.argument("model", type=_PATH)
def export(recipe_path: Path, folder: Path, model: Path) -> None:
    """Write the running average in FOLDER as the model folder MODEL; print its index row."""
    given = recipe.load(recipe_path)
    model.mkdir(parents=True, exist_ok=True)
    loop.export(folder / "checkpoint.safetensors", model / weights.WEIGHTS)
    lines = [f"{name} = {json.dumps(value)}" for name, value in given.network.items()]
    (model / weights.CONFIG).write_text("[network]\n" + "\n".join(lines) + "\n", "utf-8")
    row = {
        "id": given.model,
        "bytes": (model / weights.WEIGHTS).stat().st_size,
        "weights_sha256": weights.sha256(model / weights.WEIGHTS),
        "config_sha256": weights.sha256(model / weights.CONFIG),
    }
    click.echo("\n".join(f"{name} = {json.dumps(value)}" for name, value in row.items()))


if __name__ == "__main__":
    main()
