"""Masks followed through a clip by SAM 2.1 video (extra `masks`), prompted by masks already found.

The model comes from a local folder as transformers saves it (config.json, model.safetensors);
nothing is fetched. Each object is shown to it once, in the frame where its mask is largest.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from semvc.errors import ModelError

UInt8 = npt.NDArray[np.uint8]

# What SAM 2.1 was trained on (ImageNet's mean and deviation, values in [0, 1])
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Segmenter:
    """A loaded SAM 2.1 video model."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Load the model; raises ModelError if transformers or a file of the model is missing."""
        try:
            self._library: Any = importlib.import_module("transformers")
        except ImportError as error:
            raise ModelError(
                "masks by SAM 2.1 need transformers: pip install semvc[masks]"
            ) from error
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise ModelError(
                    f"{folder} has no {name}: give a folder with a SAM 2.1 video model"
                )
        try:
            self._model: Any = self._library.Sam2VideoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f"cannot load a SAM 2.1 video model from {folder}: {error}") from error
        self._model.to(device).eval().requires_grad_(False)
        size = self._model.config.image_size
        self._side = int(size if isinstance(size, int) else size[0])
        self._device = device

    @torch.inference_mode()
    def follow(self, frames: UInt8, prompts: UInt8) -> UInt8:
        """Return object ids uint8 [T, H, W] for frames uint8 [T, H, W, 3].

        `prompts` uint8 [T, H, W] holds the ids that were found, 0 = background; ids stay as they
        are. Where objects overlap, the surer one wins.
        """
        ids = [int(k) for k in np.unique(prompts) if k]
        out = np.zeros(prompts.shape, np.uint8)
        if not ids:
            return out
        session = self._session(frames)
        shown = {k: int((prompts == k).sum((1, 2)).argmax()) for k in ids}
        for k, t in shown.items():
            self._show(session, k, t, prompts[t] == k)
        session.obj_with_new_inputs = list(ids)
        for t in sorted(set(shown.values())):
            self._model(session, frame_idx=t)
        start = min(shown.values())
        for backward in (False, True):
            steps = self._model.propagate_in_video_iterator(
                session, start_frame_idx=start, reverse=backward
            )
            for step in steps:
                out[step.frame_idx] = _labels(step, prompts.shape[1:])
        return out

    def _session(self, frames: UInt8) -> Any:
        """A session that holds the frames as the model wants them."""
        name = "transformers.models.sam2_video.modeling_sam2_video"
        module: Any = importlib.import_module(name)
        mean = torch.tensor(_MEAN)[:, None, None]
        deviation = torch.tensor(_DEVIATION)[:, None, None]
        video = torch.empty(len(frames), 3, self._side, self._side)
        for t, frame in enumerate(frames):
            picture = torch.from_numpy(frame).permute(2, 0, 1).float()[None] / 255
            picture = functional.interpolate(
                picture, (self._side, self._side), mode="bilinear", antialias=True
            )[0]
            video[t] = (picture - mean) / deviation
        height, width = frames.shape[1:3]
        return module.Sam2VideoInferenceSession(
            video=video,
            video_height=height,
            video_width=width,
            inference_device=self._device,
            dtype=torch.float32,
        )

    def _show(self, session: Any, number: int, t: int, mask: npt.NDArray[np.bool_]) -> None:
        """Add one object's mask in frame t as a prompt."""
        given = torch.from_numpy(mask.astype(np.float32))[None, None]
        given = functional.interpolate(
            given, (self._side, self._side), mode="bilinear", antialias=True
        )
        session.add_mask_inputs(session.obj_id_to_idx(number), t, (given >= 0.5).float())


def _labels(step: Any, size: tuple[int, ...]) -> UInt8:
    """The surest object at every sample of a step, uint8 [H, W], 0 where none is likely."""
    logits = step.pred_masks.float().reshape(-1, 1, *step.pred_masks.shape[-2:])
    full = functional.interpolate(logits, size, mode="bilinear", align_corners=False)[:, 0]
    best, which = full.max(0)
    numbers = torch.tensor([int(k) for k in step.object_ids], dtype=torch.uint8)
    chosen = numbers[which.cpu()] * (best > 0).cpu()
    return chosen.to(torch.uint8).numpy()
