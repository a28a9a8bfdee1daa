"""Checkpoints and what is made of them: one safetensors file, written by part-and-rename."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from semvc.errors import UsageError
from semvc.weights import WEIGHTS

NAME = "checkpoint.safetensors"
_AVERAGE = "average."


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`parts` holds tensors by the name of their owner, `notes` texts as the step."""

    parts: dict[str, dict[str, Tensor]]
    notes: dict[str, str]


def save(folder: Path, kept: Checkpoint) -> None:
    """Write a checkpoint under its final name, complete or not at all."""
    tensors = {
        f"{owner}.{name}": tensor.detach().contiguous().cpu()
        for owner, named in kept.parts.items()
        for name, tensor in named.items()
    }
    part = folder / "checkpoint.part"
    save_file(tensors, part, kept.notes)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(folder / NAME)


def load(folder: Path) -> Checkpoint | None:
    """Read a folder's checkpoint, or return None when there is none."""
    path = folder / NAME
    if not path.exists():
        return None
    parts: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, "pt") as file:
            notes = dict(file.metadata() or {})
        for full, tensor in load_file(path).items():
            owner, _, name = full.partition(".")
            parts.setdefault(owner, {})[name] = tensor
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a checkpoint: {error}") from error
    return Checkpoint(parts, notes)


Stored = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def export(
    folder: Path, path: Path, notes: dict[str, str] | None = None, stored: Stored | None = None
) -> None:
    """Write a run's running average as fp16 weights, or as `stored` has them: as models ship.

    The folder of `path` is made if there is none; UsageError without a checkpoint. `notes` become
    the file's metadata.
    """
    found = load(folder)
    if found is None or not found.parts.get("average"):
        raise UsageError(f"no checkpoint in {folder}: train first")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    average = found.parts["average"]
    plain = {n: t.half().contiguous() for n, t in average.items()}
    tensors = plain if stored is None else stored(average)
    save_file(tensors, part, notes or None)
    part.chmod(0o644)  # safetensors writes for the owner alone
    part.replace(path)


def weights_to_start_from(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return float32 weights and their file's SHA-256: of a model folder, file or run folder.

    Of a checkpoint the running average is taken.
    """
    tried = [path, path / WEIGHTS, path / NAME]
    file = next((p for p in tried if p.is_file()), None)
    if file is None:
        raise UsageError(f"nothing to start from: neither {', '.join(map(str, tried))}")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file} holds no weights: {error}") from error
    average = {n.removeprefix(_AVERAGE): t for n, t in tensors.items() if n.startswith(_AVERAGE)}
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return {n: t.to(torch.float32) for n, t in (average or tensors).items()}, digest
