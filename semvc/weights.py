"""Where models lie, what they are called, and whether they are what they claim.

Standard library only. A model is a folder with `config.toml` and `weights.safetensors`, and a row
of `index.toml`. Folders are looked for in the one the user names, then among the bundled models.
Nothing is ever downloaded here.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

from semvc.errors import ModelError

CONFIG, WEIGHTS, INDEX = "config.toml", "weights.safetensors", "index.toml"
_PACKAGE = Path(__file__).parent
BUNDLED = (_PACKAGE / "_models", _PACKAGE.parent / "models")  # installed wheel, source tree
_SYNTHESIS_VERSION = 1  # raised when conditioning, noise or sampling changes what a model gives


@dataclass(frozen=True, slots=True)
class ModelRef:
    """One row of `index.toml`: what a model is, and the SHA-256 of its two files.

    `role` is generator or codec; `signals` are the section names that the model reads; `bytes` is
    the size of its weights; `codec` is the id of the codec that a generator was trained for, empty
    where there is none. It may be the generator's own id: then the folder holds both.
    """

    id: str
    role: str
    profile: str
    tier: str
    bytes: int
    weights_sha256: str
    config_sha256: str
    licence: str
    source: str
    signals: tuple[str, ...]
    codec: str = ""

    @property
    def is_codec(self) -> bool:
        """True if streams can be coded with this model."""
        return self.role == "codec" or self.codec == self.id

    def decoder_id(self) -> builtins.bytes:
        """Return the 4 bytes that a stream's header holds: a hash of all that decides the picture.

        It is taken of the canonical JSON of the model's hashes and of the synthesis's version.
        """
        return self._digest()[:4]

    def codec_id(self) -> builtins.bytes:
        """Return the 8 bytes by which a stream names its codec: more of the same hash."""
        return self._digest()[:8]

    def _digest(self) -> builtins.bytes:
        manifest = {
            "config": self.config_sha256,
            "model": self.id,
            "synthesis": _SYNTHESIS_VERSION,
            "weights": self.weights_sha256,
        }
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).digest()


def index(models_dir: Path | None = None) -> tuple[ModelRef, ...]:
    """Return all known models, those of `models_dir` first; ModelError for an unreadable index."""
    found: dict[str, ModelRef] = {}
    for folder in _folders(models_dir):
        path = folder / INDEX
        if not path.is_file():
            continue
        try:
            rows = tomllib.loads(path.read_text("utf-8")).get("model", [])
            refs = [ModelRef(**{**row, "signals": tuple(row["signals"])}) for row in rows]
        except (tomllib.TOMLDecodeError, TypeError, KeyError, UnicodeDecodeError) as error:
            raise ModelError(f"{path} cannot be read: {error}") from error
        for ref in refs:
            found.setdefault(ref.id, ref)
    return tuple(found.values())


def for_profile(
    profile: str, tier: str, models_dir: Path | None = None, *, codec: str = ""
) -> ModelRef:
    """Return the generator that decodes `profile` at `tier`; ModelError if none is known.

    `codec` is the id of the codec that it must have been trained for.
    """
    for ref in index(models_dir):
        if (ref.role, ref.profile, ref.tier) == ("generator", profile, tier) and ref.codec == codec:
            return ref
    raise ModelError(
        f"no model for profile {profile} at tier {tier} is installed; see 'semvc models list',"
        " or decode with --tier preview, which needs none"
    )


def codec_for(profile: str, models_dir: Path | None = None) -> ModelRef:
    """Return the codec that writes `profile`, the first one known; ModelError if there is none."""
    for ref in index(models_dir):
        if ref.is_codec and ref.profile == profile:
            return ref
    raise ModelError(
        f"profile {profile} needs a codec model, and none is installed: give the folder that holds"
        " one and its index.toml with --models-dir, or encode with --profile disco"
    )


def by_codec(codec_id: bytes, models_dir: Path | None = None) -> ModelRef | None:
    """Return the codec that a stream names, or None if it is not installed."""
    codecs = (ref for ref in index(models_dir) if ref.is_codec)
    return next((ref for ref in codecs if ref.codec_id() == codec_id), None)


def by_decoder(decoder_id: bytes, models_dir: Path | None = None) -> ModelRef | None:
    """Return the generator whose `decoder_id` a stream names, or None if it is not installed."""
    generators = (ref for ref in index(models_dir) if ref.role == "generator")
    return next((ref for ref in generators if ref.decoder_id() == decoder_id), None)


def folder(ref: ModelRef, models_dir: Path | None = None) -> Path | None:
    """Return the folder that holds the model's files, unverified; None if there is none."""
    for root in _folders(models_dir):
        path = root / ref.id
        if (path / CONFIG).is_file() and (path / WEIGHTS).is_file():
            return path
    return None


def resolve(ref: ModelRef, models_dir: Path | None = None) -> Path:
    """Return the model's folder after its files' full SHA-256 matched; ModelError otherwise."""
    path = folder(ref, models_dir)
    if path is None:
        raise ModelError(
            f"model {ref.id} is not installed (it needs {ref.bytes} bytes of weights);"
            " give its folder's parent with --models-dir"
        )
    for name, expected in ((CONFIG, ref.config_sha256), (WEIGHTS, ref.weights_sha256)):
        found = sha256(path / name)
        if found != expected:
            raise ModelError(
                f"{path / name} is not the file that model {ref.id} consists of:"
                f" SHA-256 {found[:16]}, expected {expected[:16]}; restore it from the release"
            )
    return path


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folders(models_dir: Path | None) -> tuple[Path, ...]:
    return (() if models_dir is None else (models_dir,)) + BUNDLED
