"""Golden numbers of a bundled model: what it must give for a fixed input, within a tolerance.

`python -m tests.golden` writes them beside the weights. The input needs no video: base frames, maps
and latents are made by integer arithmetic.
"""

from __future__ import annotations

import itertools
import json

import numpy as np
import torch

from semvc import weights
from semvc.nets import load, s2vc_runner, s2vc_synthesis, scene_restore
from semvc.nets.conditioning import SegmentConditions
from semvc.nets.reprojection import SceneConditions
from semvc.nets.restore import Restorer
from semvc.signals.camera import rotation
from semvc.signals.latent import Latents
from semvc.signals.latentprior import LatentShape, read_prior

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


def scene() -> SceneConditions:
    """The same pattern as two keyframes; the camera turns and moves, a square passes."""
    pictures = conditions().base[[0, 2]].repeat(2, 1).repeat(2, 2)

    def ids(frame: int) -> np.ndarray:
        found = np.zeros((HEIGHT, WIDTH), np.uint8)
        found[16:40, 20 + 8 * frame : 44 + 8 * frame] = 1
        return found

    turns = np.array([[0, 0.02 * t, 0] for t in range(FRAMES)])
    depths = 1 + 0.5 * np.linspace(0, 1, 9 * 16, dtype=np.float32).reshape(1, 9, 16)
    return SceneConditions(
        width=WIDTH,
        height=HEIGHT,
        frames=FRAMES,
        keyframes=pictures,
        places=(0, 2),
        depths=depths.repeat(2, 0),
        rotations=rotation(turns),
        positions=turns[:, [1, 0, 2]],
        intrinsics=np.array([[90.0, 0, 48], [0, 90, 32], [0, 0, 1]]),
        crf=50,
        factor=2,
        ids=ids,
    )


def latents(shape: LatentShape) -> Latents:
    """Sparse integers, fewer from frame to frame."""
    counts = (FRAMES, shape.latents, HEIGHT // 16, -(-WIDTH // 64) * 4)
    t, c, y, x = np.indices(counts)
    value = (c * 7 + y * 5 + x * 3 + t * 11) % (23 + 20 * t)
    found = np.where(value < 4, value - 2, 0).astype(np.int8)
    t, c, y, x = np.indices((FRAMES, shape.hyper, HEIGHT // 64, counts[3] // 4))
    return Latents(160, ((c * 5 + y + x * 3 + t) % 3 - 1).astype(np.int8), found)


def measure(ref: weights.ModelRef) -> list[list[float]]:
    """Mean of every 16x16 cell and channel of each frame, as the model gives it in float32.

    A codec has the rows of its own pictures before those of the generator.
    """
    device, folder = torch.device("cpu"), weights.resolve(ref)
    exact = torch.float32
    if ref.profile == "cpsgd":
        scenes = scene_restore.build(folder, device, exact)
        shown = scene_restore.SceneRestorer(scenes, device=device, dtype=exact, steps=1, seed=7)
        frames = shown.frames(scene(), 2)
    elif ref.profile == "s2vc":
        codec = s2vc_runner.build(folder, device, exact)
        runner = s2vc_runner.CodecRunner(codec, device=device, dtype=exact)
        decoder = s2vc_synthesis.build(folder, device, exact)
        generator = s2vc_synthesis.Synthesizer(decoder, device=device, dtype=exact)
        sent = latents(read_prior(folder).shape)
        given = (sent.hyper, sent.latent, sent.quality / 4)
        frames = itertools.chain(
            runner.previews(*given, (HEIGHT, WIDTH)),
            generator.frames(runner.features(*given), HEIGHT, WIDTH),
        )
    else:
        network = load.build(folder, device, exact)
        restorer = Restorer(network, device=device, dtype=exact, steps=1, seed=7)
        frames = restorer.frames(conditions(), 2)
    rows = []
    for frame in frames:
        cells = frame.reshape(HEIGHT // CELL, CELL, WIDTH // CELL, CELL, 3).mean((1, 3))
        rows.append([round(float(v), 3) for v in cells.ravel()])
    return rows


def main() -> None:
    """Write golden.json beside every model at hand."""
    for ref in weights.index():
        path = weights.resolve(ref) / "golden.json"
        path.write_text(json.dumps({"cells": measure(ref)}) + "\n", "utf-8")


if __name__ == "__main__":
    main()
