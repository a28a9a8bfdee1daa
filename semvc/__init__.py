"""semvc: a semantic video codec.

`encode`, `decode` and `probe` are the library; they are loaded when first used, so that importing
the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semvc.bitstream.container import probe
    from semvc.decoder import decode
    from semvc.encoder import encode

__version__ = "0.1.0"
__all__ = ["__version__", "decode", "encode", "probe"]

_HOMES = {
    "encode": "semvc.encoder",
    "decode": "semvc.decoder",
    "probe": "semvc.bitstream.container",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
