"""Runs the generator of profile cpsgd over a segment: a warped scene in, frames out, one by one."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from semvc.errors import ModelError, ResourceError
from semvc.nets import noise, schedule
from semvc.nets.cpsgd_generator import PATCH, STRIDE, CpsgdGenerator, SceneInputs
from semvc.nets.generator import Memory
from semvc.nets.load import place
from semvc.nets.plucker import rays
from semvc.nets.reprojection import FrameConditions, SceneConditions, Stage, View
from semvc.weights import CONFIG, WEIGHTS

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
SCALE = ".scale"  # what a scale's name has after that of the tensor it belongs to
_FRAME_NOISE = 0  # noise purpose: the sample that every frame of a segment starts from


def build(folder: Path, device: torch.device, dtype: torch.dtype) -> CpsgdGenerator:
    """Return the network of a model folder, ready to run; keys and shapes must match exactly."""
    config = tomllib.loads((folder / CONFIG).read_text("utf-8"))
    try:
        network = CpsgdGenerator(**config["network"])
        network.load_state_dict(unpacked(load_file(folder / WEIGHTS)))
    except (SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ModelError(f"model folder {folder} does not fit this program: {error}") from error
    network.eval().requires_grad_(False)
    return place(network, device, dtype)


def unpacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as a network wants them, of a file's tensors.

    A tensor with another one beside it, its name followed by `.scale`, is the product of both:
    whole numbers in int8 and a float32 scale for each output.
    """
    whole = {}
    for name, tensor in tensors.items():
        scale = tensors.get(name + SCALE)
        if scale is not None:
            whole[name] = tensor.float() * scale.float()
        elif not name.endswith(SCALE):
            whole[name] = tensor
    return whole


class SceneRestorer:
    """A generator with its device, dtype, number of steps and seed."""

    def __init__(
        self,
        network: CpsgdGenerator,
        *,
        device: torch.device,
        dtype: torch.dtype,
        steps: int,
        seed: int,
    ) -> None:
        self._network, self._device, self._dtype, self._seed = network, device, dtype, seed
        self._timesteps = schedule.timesteps(steps)
        self._alphas = schedule.alphas_cumprod()

    @torch.inference_mode()
    def frames(self, given: SceneConditions, segment: int) -> Iterator[UInt8]:
        """Yield the segment's frames, uint8 [H, W, 3] RGB; ResourceError if memory runs out."""
        height, width = (-(-side // STRIDE) * STRIDE for side in (given.height, given.width))
        count = 3 * height * width
        start = noise.gaussian(count, seed=self._seed, segment=segment, purpose=_FRAME_NOISE)
        sample = self._move(torch.from_numpy(start.reshape(1, 3, height, width)))
        stage = Stage(given)
        memory: Memory | None = None
        try:
            for t in range(given.frames):
                frame, memory = self._frame(sample, self._inputs(given, stage, t), memory)
                picture = frame[0, :, : given.height, : given.width].float()
                picture = ((picture + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
                yield picture.permute(1, 2, 0).contiguous().cpu().numpy()
        except torch.OutOfMemoryError as error:
            raise ResourceError(
                f"out of memory on {self._device} at {given.width}x{given.height}:"
                " use --device cpu or --tier preview"
            ) from error

    def _frame(
        self, sample: Tensor, inputs: SceneInputs, memory: Memory | None
    ) -> tuple[Tensor, Memory]:
        clean, kept = sample, memory
        for i, now in enumerate(self._timesteps):
            level = torch.tensor([now], device=self._device)
            clean, kept = self._network(sample, level, inputs, memory)
            if i + 1 < len(self._timesteps):
                sample = schedule.step(clean, sample, now, self._timesteps[i + 1], self._alphas)
        if kept is None:
            raise ValueError("no sampling step was taken")
        return clean, kept

    def _inputs(self, given: SceneConditions, stage: Stage, t: int) -> SceneInputs:
        found = stage.frame(t)
        looked = rays(
            given.rotations[t],
            given.positions[t],
            given.intrinsics,
            size=(-(-given.height // STRIDE) * STRIDE, -(-given.width // STRIDE) * STRIDE),
            cell=PATCH,
        )

        def scalar(value: float) -> Tensor:
            return torch.tensor([value], dtype=torch.float32, device=self._device)

        return SceneInputs(
            base=self._padded(colors(found.preview())),
            before=self._padded(view_channels(found.before)),
            after=self._padded(view_channels(found.after)),
            rays=self._move(torch.from_numpy(looked)[None]),
            control=None if given.ids is None else self._padded(control_channels(found)),
            crf=scalar(given.crf),
            factor_log2=scalar(float(np.log2(given.factor))),
            phase=scalar(found.phase),
        )

    def _padded(self, channels: Float32) -> Tensor:
        """Channels [H, W, C] as [1, C, H, W], sides extended to multiples of the stride."""
        x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(channels, -1, 0)))[None]
        rows, columns = -x.shape[2] % STRIDE, -x.shape[3] % STRIDE
        return self._move(F.pad(x, (0, columns, 0, rows), mode="replicate"))

    def _move(self, x: Tensor) -> Tensor:
        return x.to(self._device, self._dtype, memory_format=torch.channels_last)


def colors(image: UInt8 | Float32) -> Float32:
    """An image in 0..255 as float32 in [-1, 1]."""
    return image.astype(np.float32) / np.float32(127.5) - 1


def view_channels(view: View) -> Float32:
    """A view as float32 [H, W, 4]: colors in [-1, 1], validity in [0, 1]."""
    return np.concatenate((colors(view.image), view.valid[..., None]), -1)


def control_channels(found: FrameConditions) -> Float32:
    """Objects as float32 [H, W, 5]: their look in [-1, 1], if it is known, if there is one."""
    known = found.known[..., None]
    there = (found.ids > 0).astype(np.float32)[..., None]
    return np.concatenate((colors(found.objects) * known, known, there), -1)
