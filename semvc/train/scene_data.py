"""The training cache of profile cpsgd: short crops with what its decoder would see of them.

A cache folder holds shards `NNN/` of plain arrays that are memory-mapped, N samples of L frames:
`source` and `base` uint8 [N, L, S, S, 3], the frames and what they are without a model; `before`
and `after` uint8 [N, L, S, S, 4], the keyframes beside them, warped, validity last; `control` uint8
[N, L, S, S, 5], the look of objects, whether it is known, whether one is there (0 or 255); `rays`
float16 [N, L, 6, S/4, S/4]; `phase` float32 [N, L]; `settings` float32 [N, 3]: crf, log2 of the
factor, 1 if there are masks. Only numpy and torch are needed to read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from semvc.errors import UsageError
from semvc.nets.cpsgd_generator import PATCH, STRIDE, SceneInputs

FIELDS = ("source", "base", "before", "after", "control", "rays", "phase", "settings")
Row = dict[str, npt.NDArray[Any]]
_MIRRORED = np.array([1, -1, -1, -1, 1, 1], np.float16).reshape(6, 1, 1)  # rays of a mirrored scene


@dataclass(frozen=True, slots=True)
class SceneBatch:
    """Raw samples of B crops of T frames, as in the cache with B for N and the crop for S."""

    source: Tensor
    base: Tensor
    before: Tensor
    after: Tensor
    control: Tensor
    rays: Tensor
    phase: Tensor
    settings: Tensor

    def true(self, t: int) -> Tensor:
        """Frame `t` as it was, [B, 3, H, W] in [-1, 1]."""
        return _colors(self.source[:, t])

    def inputs(self, t: int, *, control: bool) -> SceneInputs:
        """What frame `t` is made from; without masks if `control` is False."""
        masked = self.settings[:, 2].reshape(-1, 1, 1, 1)
        given = self.control[:, t]
        look, flags = _colors(given[..., :3]), _share(given[..., 3:])
        return SceneInputs(
            base=_colors(self.base[:, t]),
            before=_view(self.before[:, t]),
            after=_view(self.after[:, t]),
            rays=self.rays[:, t].float(),
            control=torch.cat([look * flags[:, :1], flags], 1) * masked if control else None,
            crf=self.settings[:, 0],
            factor_log2=self.settings[:, 1],
            phase=self.phase[:, t],
        )


class SceneCache:
    """All shards of some cache folders as one sequence of samples."""

    def __init__(self, folders: list[Path]) -> None:
        self._shards: list[Row] = []
        for folder in folders:
            for shard in sorted(p for p in folder.iterdir() if (p / "settings.npy").exists()):
                self._shards.append({n: np.load(shard / f"{n}.npy", mmap_mode="r") for n in FIELDS})
        self._starts = np.cumsum([0] + [len(s["settings"]) for s in self._shards])
        if not self._starts[-1]:
            raise UsageError(f"no scenes in {', '.join(map(str, folders))}: prepare some first")

    def batch(self, size: int, *, unroll: int, crop: int, key: tuple[int, int]) -> SceneBatch:
        """Return a batch that depends on `key` (seed, step) alone: a resumed run sees the same.

        Half of the crops are mirrored, and rays with them. UsageError for too small samples.
        """
        random = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))
        rows = [self._row(random, unroll, crop) for _ in range(size)]
        return SceneBatch(
            **{n: torch.from_numpy(np.stack([row[n] for row in rows])) for n in FIELDS}
        )

    def _row(self, random: np.random.Generator, unroll: int, crop: int) -> Row:
        index = int(random.integers(self._starts[-1]))
        at = int(np.searchsorted(self._starts, index, side="right")) - 1
        row = {n: a[index - self._starts[at]] for n, a in self._shards[at].items()}
        length, side = row["source"].shape[:2]
        if length < unroll or side < crop:
            raise UsageError(
                f"a sample of {length} frames of {side} samples holds no {unroll} of {crop}:"
                " prepare longer or larger ones, or change the recipe"
            )
        first = int(random.integers(length - unroll + 1))
        y, x = (int(v) * STRIDE for v in random.integers((side - crop) // STRIDE + 1, size=2))
        times = slice(first, first + unroll)
        here = (times, slice(y, y + crop), slice(x, x + crop))
        cells = tuple(slice(v // PATCH, (v + crop) // PATCH) for v in (y, x))
        found: Row = {n: row[n][here] for n in FIELDS[:5]}
        found["rays"] = row["rays"][times, :, cells[0], cells[1]]
        if random.random() < 0.5:  # left and right change places
            found = {n: v[:, :, ::-1] for n, v in found.items() if n != "rays"} | {
                "rays": found["rays"][..., ::-1] * _MIRRORED
            }
        found = {n: np.ascontiguousarray(v) for n, v in found.items()}
        found["phase"], found["settings"] = row["phase"][times].copy(), row["settings"].copy()
        return found


def _colors(pixels: Tensor) -> Tensor:
    x = pixels.permute(0, 3, 1, 2)
    return x.to(torch.float32, memory_format=torch.channels_last) / 127.5 - 1


def _share(pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2).float() / 255


def _view(pixels: Tensor) -> Tensor:
    return torch.cat([_colors(pixels[..., :3]), _share(pixels[..., 3:])], 1)
