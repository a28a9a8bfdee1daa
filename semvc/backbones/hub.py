"""Downloads, and only when asked for: the one file that may reach a network.

huggingface_hub is imported on use. A download goes to a folder of its own, is compared with what
the server says about it, and is recorded for `semvc models verify`.
"""

from __future__ import annotations

import importlib
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from semvc.backbones import manifest
from semvc.backbones.manifest import Entry
from semvc.errors import ModelError, ResourceError


def pull(entry: Entry, folder: Path) -> dict[str, Any]:
    """Download a backbone into `folder` and return its record.

    ModelError if the server cannot be reached or sent something else; ResourceError for no space.
    Files that are already there and right are not fetched again.
    """
    hub = _library()
    try:
        found = hub.HfApi().model_info(
            entry.repository, revision=entry.commit or None, files_metadata=True
        )
        wanted = {
            file.rfilename: file
            for file in found.siblings
            if any(fnmatch(file.rfilename, pattern) for pattern in entry.files)
        }
        _check_space(folder, sum(file.size or 0 for file in wanted.values()))
        hub.snapshot_download(
            entry.repository,
            revision=found.sha,
            allow_patterns=list(entry.files),
            local_dir=str(folder),
        )
    except Exception as error:  # the library raises errors of four others
        if isinstance(error, ResourceError):
            raise
        raise ModelError(_offline(entry, error)) from error
    row = manifest.record(folder, entry, str(found.sha))
    _compare(entry, folder, row, wanted)
    return row


def _library() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ModelError("downloads need huggingface_hub: pip install 'semvc[full]'") from error


def _check_space(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    have = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    if needed - have > free:
        raise ResourceError(
            f"{folder} has {free / 1e9:.1f} GB free and the download needs"
            f" {(needed - have) / 1e9:.1f} GB: choose another folder with --to"
        )


def _compare(entry: Entry, folder: Path, row: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, file in wanted.items():
        expected = entry.sha256.get(name) or _server_hash(file)
        have = row["files"].get(name)
        if have is None or (expected and have["sha256"] != expected):
            (folder / manifest.RECORD).unlink()
            raise ModelError(
                f"{folder / name} is not what {entry.repository} holds:"
                f" delete it and run 'semvc models pull {entry.id}' again"
            )


def _server_hash(file: Any) -> str:
    """The SHA-256 of a large file as the server knows it; empty for small ones."""
    return str(getattr(file.lfs, "sha256", "") or "") if file.lfs else ""


def _offline(entry: Entry, error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"{entry.id} could not be fetched from {entry.repository}: {first}. On a machine with a"
        f" network, 'semvc models pull {entry.id} --to DIR'; copy DIR here, then use"
        " --models-dir DIR"
    )
