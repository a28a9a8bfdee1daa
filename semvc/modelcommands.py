"""`semvc models`: what decodes streams, what is here of it, and how to get the rest.

Nothing but `pull` reaches a network. Commands parse, call `weights` or `backbones`, and print.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from semvc import arguments, weights
from semvc.backbones import manifest
from semvc.errors import ModelError, UsageError


@click.group()
def models() -> None:
    """List, check and fetch the models that decode streams."""


@models.command("list")
@arguments.models_dir_option
@arguments.json_option
@arguments.debug_option
def models_list(models_dir: Path | None, as_json: bool) -> None:
    """List known models and whether their files are here."""
    from semvc import describe

    rows = [describe.model(ref, models_dir) for ref in weights.index(models_dir)]
    pretrained = [_row(e, models_dir) for e in manifest.entries() + manifest.extractors()]
    if as_json:
        click.echo(json.dumps([*rows, *pretrained]))
        return
    for row in rows:
        state = "installed" if row["available"] else "missing"
        click.echo(
            f"{row['id']}  {row['decoder_id']}  {state}  {row['profile']}/{row['tier']}"
            f"  {row['bytes']} bytes  {row['licence']}"
        )
    for row in pretrained:
        state = "installed" if row["available"] else "not pulled"
        size = "unknown" if row["bytes"] is None else row["bytes"]
        click.echo(f"{row['id']}  {state}  {row['use']}  {size} bytes  {row['licence']}")


@models.command("info")
@click.argument("name", required=False)
@arguments.models_dir_option
@arguments.json_option
@arguments.debug_option
def models_info(name: str | None, models_dir: Path | None, as_json: bool) -> None:
    """Show pretrained models: origin, licence, memory, settings. All, or the one NAMEd."""
    every = manifest.entries() + manifest.extractors()
    chosen = every if name is None else (manifest.named(name),)
    rows = []
    for entry in chosen:
        folder = _folder(entry, models_dir)
        row: dict[str, Any] = {**entry.to_json(), "folder": None if folder is None else str(folder)}
        recorded = None if folder is None else manifest.read_record(folder)
        if recorded is not None:
            row["commit"] = recorded["commit"]
            row["bytes"] = sum(file["bytes"] for file in recorded["files"].values())
            row["sha256"] = {n: file["sha256"] for n, file in recorded["files"].items()}
        rows.append(row)
    if as_json:
        click.echo(json.dumps(rows))
        return
    click.echo("\n\n".join(_text(row) for row in rows))


@models.command("path")
@click.argument("name")
@arguments.models_dir_option
@arguments.debug_option
def models_path(name: str, models_dir: Path | None) -> None:
    """Print the folder of the installed model or backbone NAME; exit 6 if it is not here."""
    for ref in weights.index(models_dir):
        if ref.id == name:
            click.echo(str(weights.resolve(ref, models_dir)))
            return
    entry = manifest.named(name)
    roots = _roots(models_dir)
    if entry.is_extractor:
        click.echo(str(manifest.find_extractor(entry.family, entry.id, roots)))
    else:
        click.echo(str(manifest.find(name, roots)[1]))


@models.command("pull")
@click.argument("name")
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for models, for --models-dir; by default one in your cache.",
)
@click.option("--yes", is_flag=True, help="Agree to the licence without being asked.")
@arguments.debug_option
def models_pull(name: str, target: Path | None, yes: bool) -> None:
    """Download the model NAME, after showing its licence, and record what came."""
    from semvc.backbones import hub

    entry = manifest.named(name)
    folder = (target or arguments.models_home()) / entry.id
    size = f"{entry.bytes / 1e9:.1f} GB" if entry.bytes else "size unknown until pulled"
    click.echo(f"{entry.id} from {entry.repository}, {size}, to {folder}")
    click.echo(f"memory      {entry.vram} (its authors' figures)")
    click.echo(f"licence     {entry.licence}")
    if entry.conditions:
        click.echo(f"conditions  {entry.conditions}")
        if not yes:
            _agree()
    if not entry.commit or not entry.sha256:
        click.echo(
            "note        this program does not know the right files' hashes: what comes now is"
            " compared with what the server announces, recorded, and trusted from then on"
        )
    row = hub.pull(entry, folder)
    total = sum(file["bytes"] for file in row["files"].values())
    click.echo(f"{entry.id}: {len(row['files'])} files, {total} bytes, commit {row['commit']}")


@models.command("verify")
@arguments.models_dir_option
@arguments.debug_option
def models_verify(models_dir: Path | None) -> None:
    """Check the full SHA-256 of every model; exit 6 if one is missing or different.

    Pretrained models are checked where they are installed, against what their download recorded.
    """
    for ref in weights.index(models_dir):
        click.echo(f"{ref.id}: ok, {weights.resolve(ref, models_dir)}")
    for entry in manifest.entries() + manifest.extractors():
        folder = _folder(entry, models_dir)
        if folder is not None:
            click.echo(f"{entry.id}: {manifest.verify(entry, folder)}, {folder}")


def _agree() -> None:
    try:
        agreed = click.confirm("Do you agree?")
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise UsageError(
            "the licence has conditions and nobody is there to agree: give --yes"
        ) from None
    if not agreed:
        raise UsageError("the licence was not agreed to: nothing was downloaded")


def _roots(models_dir: Path | None) -> list[Path]:
    home = arguments.models_home()
    return [home] if models_dir is None else [models_dir, home]


def _folder(entry: manifest.Entry, models_dir: Path | None) -> Path | None:
    try:
        if entry.is_extractor:
            return manifest.find_extractor(entry.family, entry.id, _roots(models_dir))
        return manifest.find(entry.id, _roots(models_dir))[1]
    except ModelError:
        return None


def _row(entry: manifest.Entry, models_dir: Path | None) -> dict[str, Any]:
    return {
        "id": entry.id,
        "decoder_id": None,
        "role": "extractor" if entry.is_extractor else "backbone",
        "use": f"encode/{entry.family}" if entry.is_extractor else "disco/full",
        "available": _folder(entry, models_dir) is not None,
        "bytes": entry.bytes or None,
        "licence": entry.licence,
        "source": entry.repository,
    }


def _text(row: dict[str, Any]) -> str:
    hashes = row["sha256"]
    return "\n".join(
        (
            f"{row['id']} (family {row['family']})",
            f"  installed   {row['folder'] or 'no: semvc models pull ' + row['id']}",
            f"  repository  {row['repository']}",
            f"  commit      {row['commit']}",
            f"  bytes       {row['bytes']}",
            f"  sha256      {hashes if isinstance(hashes, str) else f'{len(hashes)} files'}",
            f"  licence     {row['licence']}",
            f"  conditions  {row['conditions'] or 'none beyond the licence'}",
            f"  memory      {row['vram']} (its authors' figures, not measured here)",
            *(
                [
                    f"  steps       {row['steps']}, windows of {row['frames']} frames,"
                    f" up to {row['max_pixels']} pixels"
                ]
                if row["steps"]
                else []
            ),
        )
    )
