"""Captions from sampled frames by BLIP, SmolVLM2 or Qwen3-VL (extra `caption`).

A model is a local folder as transformers saves it; nothing is fetched and no code of the folder is
run. Inputs are built here from its configuration, because the library's own processors want
torchvision, and num2words besides. Decoding is greedy: one machine gives one text.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from semvc.errors import ModelError

UInt8 = npt.NDArray[np.uint8]

SAMPLES = 4  # frames that a model is shown, where it takes several
MAX_BYTES = 240  # of a caption: what is longer ends at the last whole word
_MAX_TOKENS = 64
_QWEN_SIDE = 448  # luma samples of a frame's longer side as Qwen3-VL sees it
_ASK = (
    "Describe this video in one short sentence: who or what is seen, what happens, where, in which"
    " light and colours, and how the camera moves."
)
_HALF = ([0.5] * 3, [0.5] * 3)
_CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_CLASSES = {
    "blip": "BlipForConditionalGeneration",
    "smolvlm": "SmolVLMForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}


@dataclass(frozen=True, slots=True)
class Described:
    """A caption, one line without control characters, and its confidence in [0, 1].

    The confidence is the geometric mean of the probabilities of its tokens.
    """

    text: str
    confidence: float


class Captioner:
    """A loaded model; `kind` is blip, smolvlm or qwen3_vl."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """ModelError if transformers or a file is missing, or the model is of no known kind."""
        try:
            self._library: Any = importlib.import_module("transformers")
        except ImportError as error:
            raise ModelError(
                "captions by a model need transformers: pip install 'semvc[caption]', or write"
                " them with --caption TEXT"
            ) from error
        self.kind = str(_read(folder / "config.json").get("model_type"))
        if self.kind not in _CLASSES:
            raise ModelError(
                f"{folder} holds a model of kind {self.kind!r}; captions come from one of"
                f" {', '.join(_CLASSES)}"
            )
        self._mean, self._deviation = _normalisation(folder, self.kind)
        self._device = torch.device(device)
        dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        try:
            self._tokenizer: Any = self._library.AutoTokenizer.from_pretrained(
                folder, local_files_only=True
            )
            kind: Any = getattr(self._library, _CLASSES[self.kind])
            self._model: Any = kind.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=dtype
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"cannot load a captioner from {folder}: {first}") from error
        self._model.to(self._device).eval().requires_grad_(False)
        self._config: Any = self._model.config
        self._dtype = dtype

    @torch.inference_mode()
    def describe(self, frames: UInt8) -> Described:
        """Return the caption of a clip uint8 [T, H, W, 3]; at most `SAMPLES` frames are looked at.

        BLIP sees the one in the middle.
        """
        count = 1 if self.kind == "blip" else min(SAMPLES, len(frames))
        chosen = frames[((np.arange(count) + 0.5) * len(frames) / count).astype(np.intp)]
        make: dict[str, Callable[[UInt8], dict[str, Tensor]]] = {
            "blip": self._blip,
            "smolvlm": self._smolvlm,
            "qwen3_vl": self._qwen,
        }
        given = {n: t.to(self._device) for n, t in make[self.kind](chosen).items()}
        given["pixel_values"] = given["pixel_values"].to(self._dtype)
        found = self._model.generate(
            **given,
            max_new_tokens=_MAX_TOKENS,
            do_sample=False,
            num_beams=1,
            output_scores=True,
            return_dict_in_generate=True,
        )
        ids = found.sequences[:, -len(found.scores) :]
        chances = torch.stack([s.float().log_softmax(-1) for s in found.scores], 1)
        chosen_chances = chances.gather(2, ids[..., None])[0, :, 0]
        text = self._tokenizer.decode(ids[0], skip_special_tokens=True)
        return Described(shortened(text), float(chosen_chances.mean().exp()))

    def _blip(self, frames: UInt8) -> dict[str, Tensor]:
        side = int(self._config.vision_config.image_size)
        return {"pixel_values": self._normalised(_resized(frames, (side, side)))}

    def _smolvlm(self, frames: UInt8) -> dict[str, Tensor]:
        """Each frame whole, padded to a square, as one picture of the prompt."""
        vision = self._config.vision_config
        side, scale = int(vision.image_size), int(self._config.scale_factor)
        height, width = frames.shape[1:3]
        size = _fitted(height, width, side)
        pixels = torch.zeros(1, len(frames), 3, side, side)
        pixels[0, :, :, : size[0], : size[1]] = self._normalised(_resized(frames, size))
        mask = torch.zeros(1, len(frames), side, side, dtype=torch.int64)
        mask[..., : size[0], : size[1]] = 1
        count = (side // int(vision.patch_size)) ** 2 // scale**2
        fence = "<fake_token_around_image>"
        picture = f"{fence}<global-img>{'<image>' * count}{fence}"
        prompt = f"<|im_start|>User:{picture * len(frames)}{_ASK}<end_of_utterance>\nAssistant:"
        return self._tokens(prompt) | {"pixel_values": pixels, "pixel_attention_mask": mask}

    def _qwen(self, frames: UInt8) -> dict[str, Tensor]:
        """Each frame as one picture of the prompt, at a size that its patches divide."""
        vision = self._config.vision_config
        patch, merge = int(vision.patch_size), int(vision.spatial_merge_size)
        unit = patch * merge
        height, width = _fitted(frames.shape[1], frames.shape[2], _QWEN_SIDE)
        size = (max(1, round(height / unit)) * unit, max(1, round(width / unit)) * unit)
        pictures = self._normalised(_resized(frames, size))
        rows = [patches(p, patch, merge, int(vision.temporal_patch_size)) for p in pictures]
        grid = torch.tensor([[1, size[0] // patch, size[1] // patch]] * len(frames))
        count = size[0] * size[1] // unit**2
        picture = f"<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>"
        prompt = (
            f"<|im_start|>user\n{picture * len(frames)}{_ASK}<|im_end|>\n<|im_start|>assistant\n"
        )
        made = self._tokens(prompt)
        kinds = (made["input_ids"] == int(self._config.image_token_id)).to(torch.int64)
        return made | {
            "pixel_values": torch.cat(rows),
            "image_grid_thw": grid,
            "mm_token_type_ids": kinds,
        }

    def _tokens(self, prompt: str) -> dict[str, Tensor]:
        made = self._tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        return {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}

    def _normalised(self, pixels: Tensor) -> Tensor:
        return (pixels / 255 - self._mean) / self._deviation


def patches(picture: Tensor, patch: int, merge: int, temporal: int) -> Tensor:
    """Return a picture [3, H, W] as rows [H / p * W / p, 3 * t * p * p], neighbours together.

    A still picture fills all `temporal` slots; rows of one merge x merge block follow each other.
    """
    channels, height, width = picture.shape
    down, across = height // (patch * merge), width // (patch * merge)
    cells = picture.reshape(channels, down, merge, patch, across, merge, patch)
    cells = cells.permute(1, 4, 2, 5, 0, 3, 6).reshape(-1, channels, 1, patch, patch)
    return cells.expand(-1, -1, temporal, -1, -1).flatten(1)


def shortened(text: str) -> str:
    """Return one line of at most `MAX_BYTES` of UTF-8, cut at a word, all of it printable."""
    words = "".join(c if c.isprintable() else " " for c in text).split()
    line = ""
    for word in words:
        longer = f"{line} {word}" if line else word
        if len(longer.encode("utf-8")) > MAX_BYTES:
            break
        line = longer
    return line


def _fitted(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) scaled so that the longer side is `side`."""
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resized(frames: UInt8, size: tuple[int, int]) -> Tensor:
    """float32 [K, 3, h, w] in [0, 255] of uint8 [K, H, W, 3]."""
    raw = torch.tensor(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    found = functional.interpolate(raw, size, mode="bicubic", antialias=True, align_corners=False)
    return found.round().clamp(0, 255)


def _normalisation(folder: Path, kind: str) -> tuple[Tensor, Tensor]:
    """Mean and deviation [3, 1, 1] of pixel values in [0, 1]: the folder's, or the kind's usual."""
    mean, deviation = _CLIP if kind == "blip" else _HALF
    path = folder / "preprocessor_config.json"
    if path.is_file():
        row = _read(path)
        mean, deviation = row.get("image_mean", mean), row.get("image_std", deviation)
    try:
        found = [torch.tensor([float(v) for v in x])[:, None, None] for x in (mean, deviation)]
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    return found[0], found[1]


def _read(path: Path) -> dict[str, Any]:
    try:
        row: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ModelError(f"{path.parent} has no {path.name}: give the folder of a model") from error
    except ValueError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    return row
