"""Lossless integer entropy coding: frozen tables, a range coder, integer adaptation.

Importing this package costs nothing beyond the standard library, so that `info` can name the
tables a stream needs; the submodules need numpy, and `coder` alone needs constriction.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"


@functools.cache
def entropy_digest() -> bytes:
    """SHA-256 (32 bytes) over all asset files: name, length and content in order of their names."""
    digest = hashlib.sha256()
    for path in sorted(ASSETS.iterdir(), key=lambda path: path.name):
        if path.is_file():
            content = path.read_bytes()
            name = path.name.encode("ascii")
            digest.update(len(name).to_bytes(2, "little") + name)
            digest.update(len(content).to_bytes(4, "little") + content)
    return digest.digest()


def entropy_id() -> bytes:
    """First 8 bytes of `entropy_digest()`: what a stream's header must contain to be decodable."""
    return entropy_digest()[:8]


def __getattr__(name: str) -> bytes:
    if name == "ENTROPY_ID":
        return entropy_id()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
