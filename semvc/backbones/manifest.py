"""Which pretrained models exist, where their folders lie, and whether they are complete.

Backbones draw pictures at tier full; extractors find captions and poses when encoding.

Standard library only. Rows come from `manifest.toml`; what a download brought is recorded beside
it in `RECORD`, because most hashes are unknown until then. Nothing is downloaded here.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from semvc.backbones.memory import count_parameters
from semvc.errors import ModelError
from semvc.weights import sha256

RECORD = "semvc-pull.json"
EXTRACTORS = ("caption", "detector", "pose")  # families of extractors
_CLASSES = {"LTXVideoTransformer3DModel": "ltx", "WanVACETransformer3DModel": "vace"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One model: where it comes from, what it allows, and how it works best.

    `commit` empty, `bytes` 0 and `sha256` (file to hash) empty mean unknown until pulled. What
    follows `vram` is as in `protocol.Settings`, and zero for extractors; `strength_alone` is used
    when no LoRA is given.
    """

    id: str
    family: str
    repository: str
    commit: str
    files: tuple[str, ...]
    bytes: int
    sha256: dict[str, str]
    licence: str
    conditions: str
    parameters: int
    vram: str
    steps: int = 0
    guidance: float = 0.0
    frames: int = 0
    overlap: int = 0
    max_pixels: int = 0
    strength: float = 0.0
    strength_alone: float = 0.0
    shift: float = 0.0
    tile: int = 0

    @property
    def is_extractor(self) -> bool:
        """True for models that are used when encoding."""
        return self.family in EXTRACTORS

    def to_json(self) -> dict[str, Any]:
        """Return the row for `models info`; what nobody knows yet says so."""
        unknown = "unknown until pulled"
        row = {name: getattr(self, name) for name in self.__dataclass_fields__}
        row["commit"] = self.commit or unknown
        row["bytes"] = self.bytes or unknown
        row["sha256"] = self.sha256 or unknown
        row["files"] = list(self.files)
        return row


def entries() -> tuple[Entry, ...]:
    """Return all backbones that the manifest knows."""
    return _rows("backbone")


def extractors() -> tuple[Entry, ...]:
    """Return all models for encoding that the manifest knows."""
    return _rows("extractor")


def _rows(table: str) -> tuple[Entry, ...]:
    text = resources.files("semvc.backbones").joinpath("manifest.toml").read_text("utf-8")
    rows = tomllib.loads(text)[table]
    return tuple(Entry(**{**row, "files": tuple(row["files"])}) for row in rows)


def named(name: str) -> Entry:
    """Return a model by id, or the first of a family; ModelError for neither."""
    every = entries() + extractors()
    for entry in every:
        if name in (entry.id, entry.family):
            return entry
    known = ", ".join(entry.id for entry in every)
    raise ModelError(f"unknown backbone {name!r}; known: {known}")


def find(name: str, roots: Sequence[Path]) -> tuple[Entry, Path]:
    """Return an installed backbone and its folder; ModelError with the command that helps.

    `name` is an id, a family, a folder, or empty for the first that is installed. In each root,
    folders are called by id, or by family for one that the manifest does not know.
    """
    if name and (Path(name) / "transformer" / "config.json").is_file():
        return _nearest(Path(name)), Path(name)
    wanted = [e for e in entries() if not name or name in (e.id, e.family)]
    if not wanted and named(name).is_extractor:
        raise ModelError(f"{name} finds things when encoding and draws no pictures")
    for root in roots:
        for entry in wanted:
            for folder in (root / entry.id, root / entry.family):
                if (folder / "transformer" / "config.json").is_file():
                    _same_family(entry, folder)
                    return entry, folder
    first = wanted[0]
    what = f"backbone {first.id}" if name else "no backbone"
    state = "is not installed" if name else "is installed"
    where = ", ".join(str(root) for root in roots) or "nowhere"
    raise ModelError(
        f"{what} {state} for tier full (looked in: {where}); 'semvc models pull {first.id}' fetches"
        " it, --models-dir names a folder that holds it, --tier small needs none"
    )


def find_extractor(family: str, name: str, roots: Sequence[Path]) -> Path:
    """Return the folder of an installed extractor; ModelError with the command that helps.

    `name` is an id, a folder that holds a model, or empty for the first of the family that is
    installed.
    """
    if name and (Path(name) / "config.json").is_file():
        return Path(name)
    wanted = [e for e in extractors() if e.family == family and name in ("", e.id)]
    if not wanted:
        known = ", ".join(e.id for e in extractors() if e.family == family)
        raise ModelError(
            f"{name} is no folder with a config.json and no model for {family}; known: {known}"
        )
    for root in roots:
        for entry in wanted:
            if is_folder(root / entry.id):
                return root / entry.id
    what = f"{wanted[0].id} is not installed" if name else f"no model for {family} is installed"
    where = ", ".join(str(root) for root in roots) or "nowhere"
    raise ModelError(f"{what} (looked in: {where}); 'semvc models pull {wanted[0].id}' fetches one")


def is_folder(folder: Path) -> bool:
    """Whether a folder holds a backbone as diffusers saves it, or a model as transformers does."""
    return any((folder / part / "config.json").is_file() for part in ("transformer", "."))


def _nearest(folder: Path) -> Entry:
    """The row of the folder's family whose transformer is about as large as the folder's."""
    family = _CLASSES.get(_class_name(folder))
    rows = [entry for entry in entries() if entry.family == family]
    if not rows:
        raise ModelError(f"{folder} holds a {_class_name(folder)}, which is no backbone here")
    size = max(1, count_parameters(folder / "transformer"))
    return min(rows, key=lambda entry: abs(math.log(entry.parameters / size)))


def _same_family(entry: Entry, folder: Path) -> None:
    kind = _class_name(folder)
    if _CLASSES.get(kind) != entry.family:
        raise ModelError(f"{folder} holds a {kind}, which is not of backbone family {entry.family}")


def _class_name(folder: Path) -> str:
    path = folder / "transformer" / "config.json"
    try:
        return str(json.loads(path.read_text("utf-8")).get("_class_name"))
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def record(folder: Path, entry: Entry, commit: str) -> dict[str, Any]:
    """Hash every file of a folder, write the record, and return it."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != RECORD and not name.startswith("."):
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    row = {"repository": entry.repository, "commit": commit, "files": files}
    (folder / RECORD).write_text(json.dumps(row, indent=1) + "\n", "utf-8")
    return row


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return what a download recorded, None where there was none; ModelError if unreadable."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        row: dict[str, Any] = json.loads(path.read_text("utf-8"))
        for found in row["files"].values():
            int(found["bytes"]), str(found["sha256"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read: pull the model again") from error
    return row


def check_sizes(entry: Entry, folder: Path) -> None:
    """Raise ModelError if a recorded file is missing or has another size (quick, no hashes)."""
    row = read_record(folder)
    for name, found in {} if row is None else row["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != found["bytes"]:
            raise ModelError(
                f"{path} is missing or incomplete: 'semvc models pull {entry.id}' fetches it again"
            )


def verify(entry: Entry, folder: Path) -> str:
    """Return what was checked, in words; ModelError for a file that is missing or different.

    Every file is hashed and compared with the record of its download and with the manifest.
    """
    row = read_record(folder)
    known = {} if row is None else {n: f["sha256"] for n, f in row["files"].items()}
    known.update(entry.sha256)
    for name, expected in known.items():
        path = folder / name
        found = sha256(path) if path.is_file() else "missing"
        if found != expected:
            raise ModelError(
                f"{path}: SHA-256 {found[:16]}, expected {expected[:16]};"
                f" 'semvc models pull {entry.id}' fetches it again"
            )
    if not known:
        return "present; nothing is recorded to compare with, as it was not pulled by semvc"
    commit = "" if row is None else f", commit {row['commit'] or 'unknown'}"
    return f"ok, {len(known)} files{commit}"
