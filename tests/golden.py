"""Golden numbers of a bundled model: what it must give for a fixed input, within a tolerance.

`python -m tests.golden` writes them beside the weights. The input needs no video: base frames and
maps are made by integer arithmetic.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from semvc import weights
from semvc.nets import load
from semvc.nets.conditioning import SegmentConditions
from semvc.nets.restore import Restorer

FRAMES, WIDTH, HEIGHT, CELL = 3, 96, 64, 16


def conditions() -> SegmentConditions:
    """A moving pattern at half size, with a sketch and one person."""
    y, x, t = np.meshgrid(np.arange(32), np.arange(48), np.arange(FRAMES), indexing="ij")
    red = (x * 5 + t * 3) % 256
    green = (y * 7 + x * 2 + t) % 256
    blue = ((x // 8 + y // 8 + t) % 2) * 160 + 40
    base = np.stack([red, green, blue], -1).transpose(2, 0, 1, 3).astype(np.uint8)
    sketch = ((x + 2 * y + t) % 11 == 0).transpose(2, 0, 1).astype(np.uint8)
    points = np.linspace(0.2, 0.8, 17, dtype=np.float32)
    people = np.stack([points, points[::-1]], -1)[None, None].repeat(FRAMES, 0)
    seen = np.ones((FRAMES, 1, 17), np.uint8)
    return SegmentConditions(
        width=WIDTH,
        height=HEIGHT,
        frames=FRAMES,
        base=base,
        factor=2,
        step=1,
        crf=60,
        sketch=sketch,
        sketch_step=1,
        points=people,
        visible=seen,
    )


def measure(folder: Path) -> list[list[float]]:
    """Mean of every 16x16 cell and channel of each frame, as the model gives it in float32."""
    device = torch.device("cpu")
    network = load.build(folder, device, torch.float32)
    restorer = Restorer(network, device=device, dtype=torch.float32, steps=1, seed=7)
    rows = []
    for frame in restorer.frames(conditions(), 2):
        cells = frame.reshape(HEIGHT // CELL, CELL, WIDTH // CELL, CELL, 3).mean((1, 3))
        rows.append([round(float(v), 3) for v in cells.ravel()])
    return rows


def main() -> None:
    """Write golden.json beside every model at hand."""
    for ref in weights.index():
        folder = weights.resolve(ref)
        (folder / "golden.json").write_text(json.dumps({"cells": measure(folder)}) + "\n", "utf-8")


if __name__ == "__main__":
    main()
