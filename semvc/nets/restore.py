"""Runs the generator over a segment: forward-filled conditions in, frames out, one at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from semvc.errors import ResourceError
from semvc.nets import conditioning, noise, schedule
from semvc.nets.conditioning import SegmentConditions
from semvc.nets.generator import PATCH, STRIDE, Conditioning, Generator, Memory

UInt8 = npt.NDArray[np.uint8]
_FRAME_NOISE = 0  # noise purpose: the sample that every frame of a segment starts from


class Restorer:
    """A generator with its device, dtype, number of steps and seed."""

    def __init__(
        self, network: Generator, *, device: torch.device, dtype: torch.dtype, steps: int, seed: int
    ) -> None:
        self._network, self._device, self._dtype, self._seed = network, device, dtype, seed
        self._timesteps = schedule.timesteps(steps)
        self._alphas = schedule.alphas_cumprod()

    @torch.inference_mode()
    def frames(self, given: SegmentConditions, segment: int) -> Iterator[UInt8]:
        """Yield the segment's frames, uint8 [H, W, 3] RGB; ResourceError if memory runs out."""
        height, width = (-(-v // STRIDE) * STRIDE for v in (given.height, given.width))
        count = 3 * height * width
        start = noise.gaussian(count, seed=self._seed, segment=segment, purpose=_FRAME_NOISE)
        sample = self._tensor(start.reshape(1, 3, height, width))
        filled = conditioning.forward_fill(given.frames, given.step)
        received: dict[int, Tensor] = {}
        memory: Memory | None = None
        try:
            for t in range(given.frames):
                needed = [int(k) for k in filled[t]]
                kept = {k: received[k] for k in needed if k in received}
                received = {k: kept[k] if k in kept else self._received(given, k) for k in needed}
                base = torch.cat([received[k] for k in needed], 1)
                frame, memory = self._frame(sample, self._conditioning(given, t, base), memory)
                picture = frame[0, :, : given.height, : given.width].float()
                picture = ((picture + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
                yield picture.permute(1, 2, 0).contiguous().cpu().numpy()
        except torch.OutOfMemoryError as error:
            raise ResourceError(
                f"out of memory on {self._device} at {given.width}x{given.height}:"
                " use --device cpu or --tier preview"
            ) from error

    def _frame(
        self, sample: Tensor, c: Conditioning, memory: Memory | None
    ) -> tuple[Tensor, Memory]:
        clean, kept = sample, memory
        for i, now in enumerate(self._timesteps):
            level = torch.tensor([now], device=self._device)
            clean, kept = self._network(sample, level, c, memory)
            if i + 1 < len(self._timesteps):
                sample = schedule.step(clean, sample, now, self._timesteps[i + 1], self._alphas)
        if kept is None:
            raise ValueError("no sampling step was taken")
        return clean, kept

    def _received(self, given: SegmentConditions, k: int) -> Tensor:
        big = conditioning.upsampled(given, k)
        x = torch.from_numpy(big).permute(2, 0, 1)[None].float() / 127.5 - 1
        rows, columns = -given.height % STRIDE, -given.width % STRIDE
        return self._move(F.pad(x, (0, columns, 0, rows), mode="replicate"))

    def _conditioning(self, given: SegmentConditions, t: int, base: Tensor) -> Conditioning:
        grid = (base.shape[2] // PATCH, base.shape[3] // PATCH)
        sketch = skeleton = None
        inner = (-(-given.height // PATCH), -(-given.width // PATCH))
        if given.sketch is not None:
            bits = given.sketch[min(t // given.sketch_step, len(given.sketch) - 1)]
            sketch = self._map(conditioning.render_map(bits, *inner), grid)
        if given.points is not None and given.visible is not None:
            drawn = conditioning.render_skeleton(given.points[t], given.visible[t], inner)
            skeleton = self._map(drawn, grid)

        def scalar(value: float) -> Tensor:
            return torch.tensor([value], dtype=torch.float32, device=self._device)

        return Conditioning(
            base=base,
            sketch=sketch,
            skeleton=skeleton,
            crf=scalar(given.crf),
            spatial_log2=scalar(np.log2(given.factor)),
            temporal_log2=scalar(np.log2(given.step)),
            phase=scalar(t % given.step / given.step),
        )

    def _map(self, values: UInt8, grid: tuple[int, int]) -> Tensor:
        padded = np.zeros(grid, np.float32)
        padded[: values.shape[0], : values.shape[1]] = values
        return self._tensor(padded[None, None] / np.float32(255))

    def _tensor(self, values: npt.NDArray[np.float32]) -> Tensor:
        return self._move(torch.from_numpy(values))

    def _move(self, x: Tensor) -> Tensor:
        return x.to(self._device, self._dtype, memory_format=torch.channels_last)
