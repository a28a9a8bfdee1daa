"""Runs the generator over a segment: forward-filled conditions in, frames out, one at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from semvc.errors import ResourceError
from semvc.nets import conditioning, noise, schedule
from semvc.nets.conditioning import SegmentConditions, Upsampler
from semvc.nets.folded import (
    FoldedGenerator,
    FrameInputs,
    PatchMemory,
    Settings,
    from_patches,
    to_patches,
)
from semvc.nets.generator import PATCH, STRIDE, Generator

UInt8 = npt.NDArray[np.uint8]
_FRAME_NOISE = 0  # noise purpose: the sample that every frame of a segment starts from


@dataclass(frozen=True, slots=True)
class _Received:
    """A received frame as patches [h, w, 48]: `codes` are uint8, `values` in [-1, 1]."""

    codes: Tensor
    values: Tensor


class Restorer:
    """A generator with its device, dtype, number of steps and seed."""

    def __init__(
        self, network: Generator, *, device: torch.device, dtype: torch.dtype, steps: int, seed: int
    ) -> None:
        self._network = FoldedGenerator(network)
        self._device, self._dtype, self._seed = device, dtype, seed
        self._timesteps = schedule.timesteps(steps)
        self._alphas = schedule.alphas_cumprod()

    @torch.inference_mode()
    def frames(
        self, given: SegmentConditions, segment: int, received: Upsampler | None = None
    ) -> Iterator[UInt8]:
        """Yield the segment's frames, uint8 [H, W, 3] RGB; ResourceError if memory runs out.

        `received` gives the frames of the base layer, to those who ask for them beside this.
        """
        enlarged = received or Upsampler(given)
        start = self._noise(given, segment)
        filled = conditioning.forward_fill(given.frames, given.step)
        loaded: dict[int, _Received] = {}
        memory: PatchMemory | None = None
        sketch: Tensor | None = None
        try:
            for t in range(given.frames):
                needed = [int(k) for k in filled[t]]
                kept = {k: loaded[k] for k in needed if k in loaded}
                loaded = {k: kept[k] if k in kept else self._loaded(enlarged(k)) for k in needed}
                before, held, after = (loaded[k] for k in needed)
                if given.sketch is not None and t % given.sketch_step == 0:
                    sketch = self._sketch(given, t)
                inputs = FrameInputs(
                    noise=start,
                    base=(before.values, held.values, after.values),
                    sketch=sketch,
                    skeleton=self._skeleton(given, t),
                )
                residual, memory = self._sample(inputs, self._settings(given, t), memory)
                codes = residual.float().mul_(127.5).add_(held.codes).round_().clamp_(0, 255)
                picture = from_patches(codes.to(torch.uint8))[: given.height, : given.width]
                yield picture.contiguous().cpu().numpy()
        except torch.OutOfMemoryError as error:
            raise ResourceError(
                f"out of memory on {self._device} at {given.width}x{given.height}:"
                " use --device cpu or --tier preview"
            ) from error

    def _sample(
        self, inputs: FrameInputs, settings: list[Settings], memory: PatchMemory | None
    ) -> tuple[Tensor, PatchMemory]:
        residual, kept = self._network(inputs, settings[0], memory)
        for now, after in itertools.pairwise(settings):
            sample = schedule.step(
                kept.frame, inputs.noise, now.timestep, after.timestep, self._alphas
            )
            inputs = FrameInputs(sample, inputs.base, inputs.sketch, inputs.skeleton)
            residual, kept = self._network(inputs, after, memory)
        return residual, kept

    def _settings(self, given: SegmentConditions, t: int) -> list[Settings]:
        """One for each diffusion step."""
        spatial, temporal = (float(np.log2(v)) for v in (given.factor, given.step))
        phase = t % given.step / given.step
        return [Settings(now, given.crf, spatial, temporal, phase) for now in self._timesteps]

    def _noise(self, given: SegmentConditions, segment: int) -> Tensor:
        height, width = (-(-v // STRIDE) * STRIDE for v in (given.height, given.width))
        values = noise.gaussian(
            3 * height * width, seed=self._seed, segment=segment, purpose=_FRAME_NOISE
        )
        planes = torch.from_numpy(values.reshape(3, height, width))
        return to_patches(planes.permute(1, 2, 0)).to(self._device, self._dtype)

    def _loaded(self, frame: UInt8) -> _Received:
        rows, columns = (-side % STRIDE for side in frame.shape[:2])
        big = np.pad(frame, ((0, rows), (0, columns), (0, 0)), "edge")
        codes = to_patches(torch.from_numpy(big).to(self._device))
        return _Received(codes, (codes.float() / 127.5 - 1).to(self._dtype))

    def _sketch(self, given: SegmentConditions, t: int) -> Tensor | None:
        if given.sketch is None:
            return None
        bits = given.sketch[min(t // given.sketch_step, len(given.sketch) - 1)]
        return self._map(conditioning.render_map(bits, *_cells(given)), given)

    def _skeleton(self, given: SegmentConditions, t: int) -> Tensor | None:
        if given.points is None or given.visible is None:
            return None
        drawn = conditioning.render_skeleton(given.points[t], given.visible[t], _cells(given))
        return self._map(drawn, given)

    def _map(self, values: UInt8, given: SegmentConditions) -> Tensor:
        grid = tuple(-(-v // STRIDE) * STRIDE // PATCH for v in (given.height, given.width))
        padded = np.zeros(grid, np.float32)
        padded[: values.shape[0], : values.shape[1]] = values
        return torch.from_numpy(padded / np.float32(255)).to(self._device, self._dtype)


def _cells(given: SegmentConditions) -> tuple[int, int]:
    return -(-given.height // PATCH), -(-given.width // PATCH)
