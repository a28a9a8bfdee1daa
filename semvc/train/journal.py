"""What a run tells: rows of a JSONL file, TensorBoard curves, sample pictures as PNG."""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from semvc.errors import UsageError

Row = dict[str, Any]


class Journal:
    """Sums losses on the device and writes their means; nothing waits for it in between."""

    def __init__(
        self, folder: Path, *, tensorboard: bool = False, on_row: Callable[[Row], None] | None
    ) -> None:
        self._folder, self._on_row = folder, on_row
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._begun = time.monotonic()
        self._board = _board(folder) if tensorboard else None

    def add(self, values: dict[str, Tensor]) -> None:
        """Take the losses of one step."""
        if self._sums.keys() != values.keys():
            self._sums, self._count = {n: torch.zeros_like(v) for n, v in values.items()}, 0
        torch._foreach_add_(list(self._sums.values()), list(values.values()))
        self._count += 1

    def row(self, step: int, **given: Any) -> None:
        """Write the means since the last row."""
        if not self._count:
            return
        means = (torch.stack(list(self._sums.values())) / self._count).tolist()
        named = {n: round(v, 5) for n, v in zip(self._sums, means, strict=True)}
        row = {"step": step, "seconds": round(time.monotonic() - self._begun, 1)} | given | named
        with (self._folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in (named | given).items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, step)
        if self._on_row is not None:
            self._on_row(row)
        self._sums, self._count = {}, 0

    def picture(self, step: int, image: Tensor) -> None:
        """Write uint8 [H, W, 3] as samples/STEP.png."""
        folder = self._folder / "samples"
        folder.mkdir(exist_ok=True)
        write_png(folder / f"{step:07d}.png", image.cpu().numpy())
        if self._board is not None:
            self._board.add_image("samples", image.cpu(), step, dataformats="HWC")

    def close(self) -> None:
        """Write out what TensorBoard still holds."""
        if self._board is not None:
            self._board.close()


def write_png(path: Path, image: npt.NDArray[np.uint8]) -> None:
    """Write uint8 [H, W, 3] as a PNG by the standard library alone (ISO 15948)."""
    height, width, _ = image.shape
    lines = np.zeros((height, 1 + 3 * width), np.uint8)  # each begins with its filter: 0, none
    lines[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b""))
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, body in chunks:
        parts.append(struct.pack(">I", len(body)) + kind + body)
        parts.append(struct.pack(">I", zlib.crc32(kind + body)))
    path.write_bytes(b"".join(parts))


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("TensorBoard is not installed: pip install semvc[train]") from error
    return SummaryWriter(str(folder / "board"))
