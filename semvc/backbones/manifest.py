"""Which pretrained backbones exist, where their folders lie, and whether they are complete.

Standard library only. Rows come from `manifest.toml`; what a download brought is recorded beside
it in `RECORD`, because most hashes are unknown until then. Nothing is downloaded here.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from semvc.errors import ModelError

RECORD = "semvc-pull.json"
_CLASSES = {"LTXVideoTransformer3DModel": "ltx", "WanVACETransformer3DModel": "vace"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One backbone: where it comes from, what it allows, and how it works best.

    `commit` empty, `bytes` 0 and `sha256` (file to hash) empty mean unknown until pulled. The rest
    is as in `protocol.Settings`; `strength_alone` is used when no LoRA is given.
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
    steps: int
    guidance: float
    frames: int
    overlap: int
    max_pixels: int
    strength: float
    strength_alone: float
    shift: float
    tile: int

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
    text = resources.files("semvc.backbones").joinpath("manifest.toml").read_text("utf-8")
    rows = tomllib.loads(text)["backbone"]
    return tuple(Entry(**{**row, "files": tuple(row["files"])}) for row in rows)


def named(name: str) -> Entry:
    """Return a backbone by id, or the first of a family; ModelError for neither."""
    for entry in entries():
        if name in (entry.id, entry.family):
            return entry
    known = ", ".join(entry.id for entry in entries())
    raise ModelError(f"unknown backbone {name!r}; known: {known}")


def find(name: str, roots: Sequence[Path]) -> tuple[Entry, Path]:
    """Return an installed backbone and its folder; ModelError with the command that helps.

    `name` is an id, a family, or empty for the first that is installed. In each root, folders are
    called by id, or by family for one that the manifest does not know.
    """
    wanted = [e for e in entries() if not name or name in (e.id, e.family)]
    if not wanted:
        named(name)
    for root in roots:
        for entry in wanted:
            for folder in (root / entry.id, root / entry.family):
                if is_folder(folder):
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


def is_folder(folder: Path) -> bool:
    """Whether a folder holds a transformer in diffusers' layout."""
    return (folder / "transformer" / "config.json").is_file()


def _same_family(entry: Entry, folder: Path) -> None:
    path = folder / "transformer" / "config.json"
    try:
        kind = json.loads(path.read_text("utf-8")).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if _CLASSES.get(str(kind)) != entry.family:
        raise ModelError(f"{folder} holds a {kind}, which is not of backbone family {entry.family}")


def record(folder: Path, entry: Entry, commit: str) -> dict[str, Any]:
    """Hash every file of a folder, write the record, and return it."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != RECORD and not name.startswith("."):
            files[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
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
        found = _sha256(path) if path.is_file() else "missing"
        if found != expected:
            raise ModelError(
                f"{path}: SHA-256 {found[:16]}, expected {expected[:16]};"
                f" 'semvc models pull {entry.id}' fetches it again"
            )
    if not known:
        return "present; nothing is recorded to compare with, as it was not pulled by semvc"
    commit = "" if row is None else f", commit {row['commit'] or 'unknown'}"
    return f"ok, {len(known)} files{commit}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
