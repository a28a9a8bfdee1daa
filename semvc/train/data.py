"""The training cache: short moving crops with the base layer as a decoder would see it.

A cache folder holds shards `NNN/` of plain arrays that are memory-mapped, for N samples of L
frames: `source` uint8 [N, L, S, S, 3], the frames; `arrivals` uint8 [N, K, S, S, 3], received
base-layer frames around them, upsampled; `sketch` and `skeleton` uint8 [N, L, S/4, S/4],
conditions as rendered (255 = set); `held` uint8 [N, L, 3], which arrivals are the previous, held
and next one; `phase` float32 [N, L]; `settings` float32 [N, 3]: crf, log2 of the spatial and
temporal factor; `figure` uint8 [N], 1 where the skeleton is meaningful. Shards may differ in N, L,
K and S.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from semvc.errors import UsageError
from semvc.nets.generator import PATCH, Conditioning
from semvc.train import flow

FIELDS = ("source", "arrivals", "sketch", "skeleton", "held", "phase", "settings", "figure")
_ALIGN = 8  # crops keep the phase of the largest base-layer grid

Row = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Batch:
    """`true` [B, 3, H, W] in [-1, 1] and the conditioning of each of the unrolled frames.

    `motion` [B, 2, H, W] is the source's between each two of them (see `flow`), if asked for.
    """

    true: list[Tensor]
    conditioning: list[Conditioning]
    motion: list[Tensor]


@dataclass(frozen=True, slots=True)
class RawBatch:
    """A batch as it is stored, small to move; `expand` makes a `Batch` of it.

    The tensors are those of the cache for L unrolled frames, cropped; `held` is int64. `motion`
    float16 [B, L - 1, H, W, 2] is not in the cache, but computed of `source` where it is wanted.
    """

    source: Tensor
    arrivals: Tensor
    sketch: Tensor
    skeleton: Tensor
    held: Tensor
    phase: Tensor
    settings: Tensor
    figure: Tensor
    motion: Tensor | None = None


class Cache:
    """All shards of some cache folders as one sequence of samples."""

    def __init__(self, folders: list[Path]) -> None:
        self.shards: list[Row] = []
        for folder in folders:
            if not folder.is_dir():
                raise UsageError(f"no folder {folder}: make it with `semvc train prepare`")
            for shard in sorted(p for p in folder.iterdir() if (p / "figure.npy").exists()):
                self.shards.append({n: np.load(shard / f"{n}.npy", mmap_mode="r") for n in FIELDS})
        self.starts = np.cumsum([0] + [len(s["figure"]) for s in self.shards])
        if not len(self):
            raise UsageError(f"no training data in {', '.join(map(str, folders))}")
        self._eligible: dict[tuple[int, int], npt.NDArray[np.intp]] = {}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def sample(self, index: int) -> Row:
        """Return one sample's arrays, without their leading axis."""
        at = int(np.searchsorted(self.starts, index, side="right")) - 1
        return {n: a[index - self.starts[at]] for n, a in self.shards[at].items()}

    def batch(self, size: int, *, unroll: int, crop: int, key: tuple[int, int]) -> Batch:
        """Return a batch that depends on `key` (seed, step) alone: a resumed run sees the same."""
        return expand(self.raw_batch(size, unroll=unroll, crop=crop, key=key))

    def raw_batch(
        self, size: int, *, unroll: int, crop: int, key: tuple[int, int], motion: bool = False
    ) -> RawBatch:
        """Return the same batch as it is stored; samples too short or small are never chosen.

        With `motion`, the source's between frames is found as well.
        """
        random = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))
        fitting = self._fitting(unroll, crop)
        rows = [self._row(random, fitting, unroll, crop) for _ in range(size)]
        names: tuple[str, ...] = FIELDS
        if motion:
            names = (*FIELDS, "motion")
            rows = [row | {"motion": flow.backward(row["source"])} for row in rows]
        return RawBatch(**{n: torch.from_numpy(np.stack([r[n] for r in rows])) for n in names})

    def _fitting(self, unroll: int, crop: int) -> npt.NDArray[np.intp]:
        """Indices of the samples that have that many frames of that size."""
        if (unroll, crop) not in self._eligible:
            fits = [
                s["source"].shape[1] >= unroll and s["source"].shape[2] >= crop for s in self.shards
            ]
            found = np.flatnonzero(np.repeat(fits, np.diff(self.starts)))
            if not len(found):
                raise UsageError(
                    f"no sample of the cache has {unroll} frames of {crop} luma samples:"
                    " prepare longer or larger ones, or change the recipe"
                )
            self._eligible[unroll, crop] = found
        return self._eligible[unroll, crop]

    def _row(
        self, random: np.random.Generator, fitting: npt.NDArray[np.intp], unroll: int, crop: int
    ) -> Row:
        row = self.sample(int(fitting[random.integers(len(fitting))]))
        length, size = row["source"].shape[:2]
        first = int(random.integers(length - unroll + 1))
        y, x = (int(v) * _ALIGN for v in random.integers((size - crop) // _ALIGN + 1, size=2))
        flip = -1 if random.random() < 0.5 else 1
        times = slice(first, first + unroll)
        where = (..., slice(y, y + crop), slice(x, x + crop), slice(None))
        held = row["held"][times].astype(np.int64)
        low, high = int(held.min()), int(held.max()) + 1
        arrivals = np.zeros((unroll + 2, crop, crop, 3), np.uint8)
        arrivals[: high - low] = row["arrivals"][low:high][where][:, :, ::flip]
        small = tuple(slice(v // PATCH, (v + crop) // PATCH) for v in (y, x))
        return {
            "source": row["source"][times][where][:, :, ::flip],
            "arrivals": arrivals,
            "sketch": row["sketch"][times][:, small[0], small[1]][..., ::flip],
            "skeleton": row["skeleton"][times][:, small[0], small[1]][..., ::flip],
            "held": held - low,
            "phase": row["phase"][times],
            "settings": row["settings"],
            "figure": row["figure"],
        }


def expand(raw: RawBatch) -> Batch:
    """Return images in [-1, 1] and maps in [0, 1] as float32, on the device of `raw`."""
    true, conditioning = [], []
    rows = torch.arange(len(raw.figure), device=raw.figure.device)[:, None]
    figure = raw.figure.float()[:, None, None, None]
    for t in range(raw.source.shape[1]):
        base = raw.arrivals[rows, raw.held[:, t]].permute(0, 2, 3, 1, 4).flatten(3)
        true.append(_images(raw.source[:, t]))
        conditioning.append(
            Conditioning(
                base=_images(base),
                sketch=_maps(raw.sketch[:, t]),
                skeleton=_maps(raw.skeleton[:, t]) * figure,
                crf=raw.settings[:, 0],
                spatial_log2=raw.settings[:, 1],
                temporal_log2=raw.settings[:, 2],
                phase=raw.phase[:, t],
            )
        )
    motion = [] if raw.motion is None else list(raw.motion.permute(1, 0, 4, 2, 3).float())
    return Batch(true, conditioning, motion)


def _images(frames: Tensor) -> Tensor:
    x = frames.permute(0, 3, 1, 2)
    return x.to(torch.float32, memory_format=torch.channels_last) / 127.5 - 1


def _maps(maps: Tensor) -> Tensor:
    return maps.float()[:, None] / 255
