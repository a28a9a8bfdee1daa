"""The commands of `semvc train`: parse, call one function, print its report.

Nothing heavy is imported before a command runs, and `run` needs torch, numpy and safetensors only,
and OpenCV for the temporal loss, so that training works on machines without codecs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

_PATH = click.Path(path_type=Path)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_json = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
_quiet = click.option("--quiet", is_flag=True, help="No progress on stderr.")


@click.group("train")
def main() -> None:
    """Train the generators that decode streams, from your own videos and photographs.

    \b
    From footage to a model:
      semvc train prepare cache --clips videos --photos pictures
      semvc train run recipe.toml run1 --cache cache/clips --cache cache/photos \\
          --metric-weights metrics
      semvc train export recipe.toml run1 models/my-model-v1

    A run goes on from its last checkpoint when it is started again, so it can be stopped at any
    time (Ctrl-C and SIGTERM write one) and cut into slices with --minutes.
    """


@main.command()
@click.argument("out", type=_FOLDER)
@click.option("--clips", type=_FOLDER, help="Folder of videos.")
@click.option("--photos", type=_FOLDER, help="Folder of JPEG photographs, set in motion.")
@click.option("--rounds", default=3, show_default=True, help="Passes over the videos.")
@click.option("--samples", default=8, show_default=True, help="Crops from each coded shot.")
@click.option("--length", default=6, show_default=True, help="Frames of a sample (2 to 40).")
@click.option("--preset", default=6, show_default=True, help="SVT-AV1's.")
@click.option("--seed", default=1, show_default=True, help="Another seed gives other data.")
@_json
@_quiet
def prepare(
    out: Path,
    clips: Path | None,
    photos: Path | None,
    as_json: bool,
    quiet: bool,
    **given: int,
) -> None:
    """Make the cache OUT: moving crops with their real base layers and sketches.

    Every shot is coded with SVT-AV1 at a random quality, size and frame rate, and decoded, so
    that a network learns from what a decoder really gets. Continues where it stopped.
    """
    from semvc.errors import UsageError
    from semvc.train import prepare as work

    if clips is None and photos is None:
        raise UsageError("nothing to prepare: give --clips or --photos")
    made: dict[str, int] = {}
    with _bar("prepare", "shot", quiet) as advance:
        for name, folder in (("clips", clips), ("photos", photos)):
            if folder is not None:
                settings = work.Settings(**{k: v for k, v in given.items() if k != "rounds"})
                made[name] = work.fill(
                    folder, out / name, name, settings, rounds=given["rounds"], on_shots=advance
                )
    _report(made, as_json, ", ".join(f"{n} new samples of {k}" for k, n in made.items()))


@main.command()
@click.argument("caches", metavar="CACHE...", type=_FOLDER, nargs=-1, required=True)
@click.argument("out", type=_FOLDER)
@click.option("--piece-mb", default=30.0, show_default=True, help="Size of a piece at most, in MB.")
@click.option("--crf", default=8, show_default=True, help="x264's quality; 0 codes without loss.")
@_json
@_quiet
def pack(
    caches: tuple[Path, ...], out: Path, piece_mb: float, crf: int, as_json: bool, quiet: bool
) -> None:
    """Pack cache folders into pieces in the folder OUT, to keep or to send elsewhere."""
    from semvc.train import packing

    settings = packing.Packing(megabytes=piece_mb, crf=crf)
    with _bar("pack", "shard", quiet) as advance:
        made = packing.pack(list(caches), out, settings, on_shards=advance)
    total = sum(path.stat().st_size for path in made)
    row = {"pieces": [str(path) for path in made], "bytes": total}
    _report(row, as_json, f"{len(made)} pieces in {out}, {total / 1e6:.1f} MB")


@main.command()
@click.argument("pieces", metavar="PIECE...", type=_FILE, nargs=-1, required=True)
@click.argument("out", type=_FOLDER)
@_json
@_quiet
def unpack(pieces: tuple[Path, ...], out: Path, as_json: bool, quiet: bool) -> None:
    """Unpack pieces into the cache folder OUT; shards that are there already stay."""
    from semvc.train import packing

    with _bar("unpack", "shard", quiet) as advance:
        new = packing.unpack(list(pieces), out, on_shards=advance)
    _report({"shards": new}, as_json, f"{new} new shards in {out}")


@main.command()
@click.argument("out", type=_FOLDER)
@click.argument("backbone", type=_FOLDER)
@click.option("--clips", type=_FOLDER, required=True, help="Folder of videos.")
@click.option("--frames", default=57, show_default=True, help="Frames of a window, 8k + 1.")
@click.option("--side", default=512, show_default=True, help="Luma samples of a window's sides.")
@click.option("--most", default=4, show_default=True, help="Windows of one video at most.")
@click.option("--preset", default=8, show_default=True, help="SVT-AV1's.")
@click.option(
    "--reference-scale", default=1, show_default=True, help="2 takes references at half size."
)
@click.option("--seed", default=1, show_default=True, help="Another seed gives other qualities.")
@click.option("--captioner", type=_FOLDER, help="Model that describes videos without a caption.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@_json
@_quiet
def windows(
    out: Path, backbone: Path, clips: Path, device: str, as_json: bool, quiet: bool, **given: Any
) -> None:
    """Make the cache OUT of an in-context LoRA for BACKBONE, a folder with LTX-Video.

    Windows of every video are coded as streams are and kept as the backbone's latents. Beside
    VIDEO.mp4, VIDEO.txt is its caption and VIDEO.json its skeleton. Continues where it stopped.
    """
    from semvc.train import parallel, prepare_windows

    settings = prepare_windows.Settings(**given)
    place = parallel.alone(device).device
    with _bar("windows", "video", quiet) as advance:
        made = prepare_windows.fill(clips, out, backbone, settings, device=place, on_videos=advance)
    _report({"windows": made}, as_json, f"{made} new windows in {out}")


@main.command()
@click.argument("recipe_path", metavar="RECIPE", type=_FILE)
@click.argument("folder", type=_FOLDER)
@click.option(
    "--cache",
    "caches",
    type=_FOLDER,
    multiple=True,
    required=True,
    help="Folder of training data; may be given several times.",
)
@click.option(
    "--metric-weights", type=_FOLDER, help="Folder with VGG16's features and the losses' heads."
)
@click.option("--start", type=_PATH, help="Weights to start from: model folder, run or file.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--threads", default=0, help="CPU threads; 0 leaves the choice to torch.")
@click.option("--workers", type=int, help="Threads that make batches [default: by device].")
@click.option(
    "--minutes", default=0.0, help="Stop with a checkpoint after this long; 0 trains to the end."
)
@click.option("--scale", default=1.0, help="Make all stages so many times as long.")
@click.option("--accelerate", is_flag=True, help="One of several processes, as said above.")
@click.option("--tensorboard", is_flag=True, help="Also write curves to FOLDER/board.")
@_json
@_quiet
def run(recipe_path: Path, folder: Path, as_json: bool, quiet: bool, **given: Any) -> int:
    """Train by RECIPE in FOLDER, going on from its checkpoint if there is one.

    FOLDER gets checkpoint.safetensors, log.jsonl and samples/ (source, base layer, made). On
    several GPUs: accelerate launch -m semvc.train run RECIPE FOLDER --accelerate ...
    """
    import torch

    from semvc.train import loop, recipe

    if given["threads"]:
        torch.set_num_threads(given["threads"])
    torch.backends.cudnn.benchmark = True  # crops have one size for a whole stage
    job = loop.Run(
        folder=folder,
        caches=list(given["caches"]),
        recipe_folder=recipe_path.parent,
        **{n: v for n, v in given.items() if n not in ("caches", "threads", "scale")},
    )
    trainer = loop.Trainer(recipe.load(recipe_path).scaled(given["scale"]), job)
    resumed = trainer.resume()
    if not quiet and (resumed or trainer.started_from):
        what = f"step {trainer.step}" if resumed else f"weights {trainer.started_from[:16]}"
        click.echo(f"going on from {what}", err=True)
    with _bar("train", "step", quiet) as advance:
        done = trainer.train(on_row=None if quiet else _show, on_step=advance)
    row: dict[str, Any] = {"step": done.step, "steps": trainer.recipe.steps}
    row |= {"complete": done.complete, "start": trainer.started_from}
    row |= {"checkpoint": str(folder / "checkpoint.safetensors")}
    state = "complete" if done.complete else "to be continued: run the same command again"
    _report(row, as_json, f"step {done.step} of {trainer.recipe.steps}: {state}")
    return 0 if done.stopped_by is None else 128 + done.stopped_by


@main.command()
@click.argument("recipe_path", metavar="RECIPE", type=_FILE)
@click.argument("folder", type=_FOLDER)
@click.argument("model", type=_FOLDER)
@_json
def export(recipe_path: Path, folder: Path, model: Path, as_json: bool) -> None:
    """Write the running average in FOLDER as the model folder MODEL; print its index row.

    The row goes into the index.toml beside the model folders. The recipe is copied beside the
    weights.
    """
    from semvc import weights
    from semvc.train import checkpoint, families, recipe

    given = recipe.load(recipe_path)
    stored = families.stored(given.family)
    checkpoint.export(folder, model / weights.WEIGHTS, families.notes(given), stored)
    (model / weights.CONFIG).write_text(families.config(given), "utf-8")
    text = recipe_path.read_text("utf-8")
    (model / "recipe.toml").write_text(text, "utf-8")
    row = families.index_row(given.family) | {
        "id": given.model,
        "bytes": (model / weights.WEIGHTS).stat().st_size,
        "weights_sha256": weights.sha256(model / weights.WEIGHTS),
        "config_sha256": weights.sha256(model / weights.CONFIG),
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in row.items()]
    click.echo(json.dumps(row) if as_json else "\n".join(["[[model]]", *lines]))


def _show(row: dict[str, Any]) -> None:
    """Print a row of the log above the bar."""
    from tqdm import tqdm

    tqdm.write(json.dumps(row), file=sys.stderr)


def _report(row: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        click.echo(json.dumps(row))
    else:
        click.echo(text, err=True)


@contextlib.contextmanager
def _bar(verb: str, unit: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left on stderr if that is a terminal; else warnings and above."""
    from tqdm import tqdm

    disable = True if quiet else None
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    with tqdm(desc=verb, unit=unit, file=sys.stderr, disable=disable, dynamic_ncols=True) as bar:
        started: list[int] = []

        def advance(done: int, total: int) -> None:
            if not started:
                started.append(done)
                bar.reset(total=total)
                bar.initial = bar.n = max(0, done - 1)
            bar.total = total
            bar.update(done - bar.n)

        yield advance
