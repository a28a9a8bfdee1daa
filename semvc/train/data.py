"""The training cache: short moving crops with the base layer as a decoder would see it.

A cache folder holds shards `NNN/` of plain arrays that are memory-mapped:
`source` uint8 [N, L, S, S, 3], the frames; `arrivals` uint8 [N, K, S, S, 3], received base-layer
frames around them, upsampled; `sketch` and `skeleton` uint8 [N, L, S/4, S/4], conditions as
rendered (255 = set); `held` uint8 [N, L, 3], which arrivals are the previous, held and next one;
`phase` float32 [N, L]; `settings` float32 [N, 3]: crf, log2 of the spatial and temporal factor;
`figure` uint8 [N], 1 where the skeleton is meaningful.
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

FIELDS = ("source", "arrivals", "sketch", "skeleton", "held", "phase", "settings", "figure")
_ALIGN = 8  # crops keep the phase of the largest base-layer grid


@dataclass(frozen=True, slots=True)
class Batch:
    """`true` [B, 3, H, W] in [-1, 1] and the conditioning of each of the unrolled frames."""

    true: list[Tensor]
    conditioning: list[Conditioning]


class Cache:
    """All shards of some cache folders as one sequence of samples."""

    def __init__(self, folders: list[Path]) -> None:
        self.shards = []
        for folder in folders:
            for shard in sorted(p for p in folder.iterdir() if (p / "figure.npy").exists()):
                self.shards.append({n: np.load(shard / f"{n}.npy", mmap_mode="r") for n in FIELDS})
        self.starts = np.cumsum([0] + [len(s["figure"]) for s in self.shards])
        if not len(self):
            raise UsageError(f"no training data in {', '.join(map(str, folders))}")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def sample(self, index: int) -> dict[str, npt.NDArray[np.generic]]:
        """Return one sample's arrays, without their leading axis."""
        at = int(np.searchsorted(self.starts, index, side="right")) - 1
        return {n: a[index - self.starts[at]] for n, a in self.shards[at].items()}

    def batch(self, size: int, *, unroll: int, crop: int, key: tuple[int, int]) -> Batch:
        """Return a batch that depends on `key` (seed, step) alone: a resumed run sees the same."""
        random = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))
        rows = [self._row(random, unroll, crop) for _ in range(size)]
        true, conditioning = [], []
        for t in range(unroll):
            true.append(_images(np.stack([r["source"][t] for r in rows])))
            base = torch.cat(
                [_images(np.stack([r["base"][t, k] for r in rows])) for k in range(3)], 1
            )
            settings = torch.from_numpy(np.stack([r["settings"] for r in rows]))
            figure = torch.tensor([float(r["figure"]) for r in rows])[:, None, None, None]
            maps = {n: _maps(np.stack([r[n][t] for r in rows])) for n in ("sketch", "skeleton")}
            conditioning.append(
                Conditioning(
                    base=base,
                    sketch=maps["sketch"],
                    skeleton=maps["skeleton"] * figure,
                    crf=settings[:, 0],
                    spatial_log2=settings[:, 1],
                    temporal_log2=settings[:, 2],
                    phase=torch.tensor([float(r["phase"][t]) for r in rows]),
                )
            )
        return Batch(true, conditioning)

    def _row(
        self, random: np.random.Generator, unroll: int, crop: int
    ) -> dict[str, npt.NDArray[np.generic]]:
        row = self.sample(int(random.integers(len(self))))
        length, size = row["source"].shape[:2]
        first = int(random.integers(length - unroll + 1))
        y, x = (int(v) * _ALIGN for v in random.integers((size - crop) // _ALIGN + 1, size=2))
        flip = -1 if random.random() < 0.5 else 1
        times = slice(first, first + unroll)
        where = (..., slice(y, y + crop), slice(x, x + crop), slice(None))
        arrivals = row["arrivals"][where][:, :, ::flip]
        small = tuple(slice(v // PATCH, (v + crop) // PATCH) for v in (y, x))
        return {
            "source": row["source"][times][where][:, :, ::flip],
            "base": arrivals[row["held"][times]],
            "sketch": row["sketch"][times][:, small[0], small[1]][..., ::flip],
            "skeleton": row["skeleton"][times][:, small[0], small[1]][..., ::flip],
            "phase": row["phase"][times],
            "settings": row["settings"],
            "figure": row["figure"],
        }


def _images(frames: npt.NDArray[np.generic]) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    return x.to(torch.float32, memory_format=torch.channels_last) / 127.5 - 1


def _maps(maps: npt.NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(maps)).float()[:, None] / 255
