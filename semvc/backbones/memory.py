"""How much memory a backbone will need, and how to make do with what there is. Estimates.

Standard library only: parameters are counted in the headers of safetensors files, working memory
is taken as proportional to tokens and to the decoder's tile. Nothing here was measured.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from semvc.errors import ModelError, ResourceError, UsageError

MODES = ("full", "offload", "group")
_WORKING = 32  # values that a transformer block keeps for each token and channel
_DECODING = 128  # values that a decoder keeps for each luma sample of a tile and frame
_SPARE = 0.9  # share of free memory that may be planned with
_MAX_HEADER = 1 << 27  # bytes of a safetensors header


@dataclass(frozen=True, slots=True)
class Load:
    """What one run holds: parameters by part, the transformer's blocks, and its working memory.

    item: bytes of a value computed with; stored: of a transformer's weight.
    """

    parameters: dict[str, int]
    blocks: int
    tokens: int
    width: int
    tile_samples: int
    item: int
    stored: int
    caption: bool

    def bytes(self, mode: str) -> int:
        """Return how many bytes of the device's memory a mode needs at its peak."""
        transformer = self.parameters.get("transformer", 0) * self.stored
        vae = self.parameters.get("vae", 0) * 4
        text = self.parameters.get("text_encoder", 0) * self.item if self.caption else 0
        making = self.tokens * self.width * self.item * _WORKING
        decoding = self.tile_samples * self.item * _DECODING
        if mode == "full":
            return transformer + vae + max(text, making, decoding)
        if mode == "group":
            transformer = 3 * transformer // max(self.blocks, 1)  # one used, one coming, the ends
        return max(transformer + making, vae + decoding, text)


def choose(load: Load, mode: str, free: int | None, *, device: str) -> tuple[str, str]:
    """Return the mode to use, and a sentence with the estimate.

    `auto` takes the first of full, offload and group that fits. `free` is in bytes, None if not
    known. UsageError for a mode that the device has no use for; ResourceError if nothing fits.
    """
    if device != "cuda":
        if mode not in ("auto", "full"):
            raise UsageError(f"--memory {mode} moves weights between a GPU and the host: no GPU")
        order: tuple[str, ...] = ("full",)
    else:
        order = MODES if mode == "auto" else (mode,)
    for candidate in order:
        need = load.bytes(candidate)
        if free is None or need <= free * _SPARE:
            known = "" if free is None else f", {free / 1e9:.1f} GB free"
            return candidate, (
                f"about {need / 1e9:.1f} GB of memory needed with --memory {candidate}"
                f" (estimated from parameters and tokens{known})"
            )
    least = min(load.bytes(candidate) for candidate in order)
    raise ResourceError(
        f"about {least / 1e9:.1f} GB of memory would be needed with --memory {order[-1]}, and"
        f" {(free or 0) / 1e9:.1f} GB are free: use --quant int8, --memory group, a smaller"
        " --backbone, or --tier small"
    )


def read_load(
    folder: Path, *, size: tuple[int, int], frames: int, tile: int, quant: str, item: int,
    caption: bool, references: int,
) -> Load:  # fmt: skip
    """Return the load of a folder's networks for windows of `frames` at `size` (width, height).

    `references` is the number of reference streams that a transformer with tokens of 32 x 32 x 8
    samples sees besides the target.
    """
    parts = ("transformer", "vae", "text_encoder")
    parameters = {part: count_parameters(folder / part) for part in parts}
    path = folder / "transformer" / "config.json"
    try:
        row = json.loads(path.read_text("utf-8"))
        width = int(row["num_attention_heads"]) * int(row["attention_head_dim"])
        blocks = int(row["num_layers"])
        vace = "vace_layers" in row
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    cell = (4, 16, 16) if vace else (8, 32, 32)
    tokens = math.prod(-(-n // c) for n, c in zip((frames, *reversed(size)), cell, strict=True)) * (
        1 if vace else 1 + references
    )
    samples = min(size[0], tile) * min(size[1], tile) * frames
    stored = item if quant == "none" else 1
    return Load(parameters, blocks, tokens, width, samples, item, stored, caption)


def host_free(source: Path = Path("/proc/meminfo")) -> int | None:
    """Return the bytes of host memory that can be had, caches included; None if nobody says."""
    if source.is_file():
        for line in source.read_text("ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def count_parameters(folder: Path) -> int:
    """Return the parameters in the safetensors files of a folder, from their headers alone.

    ModelError for a file that is not safetensors.
    """
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                if size > _MAX_HEADER:
                    raise ValueError("its header is too long")
                rows = json.loads(file.read(size))
            total += sum(math.prod(r["shape"]) for n, r in rows.items() if n != "__metadata__")
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path} is not a safetensors file: {error}") from error
    return total
