"""Captions to embeddings with T5 or UMT5, exactly as stored; nothing is loaded for an empty one."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semvc.backbones.parts import Part, loading
from semvc.errors import ModelError


@dataclass(frozen=True, slots=True)
class Text:
    """Embeddings [1, L, D], zeros where there is no token, and the mask int64 [1, L]."""

    values: Tensor
    mask: Tensor


class TextEncoder:
    """The tokenizer and text encoder of a folder; embeddings are kept for the whole stream."""

    def __init__(
        self, folder: Path, *, length: int, width: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._folder, self._length, self._width = folder, length, width
        self._device, self._dtype = device, dtype
        self._known: dict[str, Text] = {}
        self._tokenizer: Any = None
        self._part: Part | None = None

    def __call__(self, caption: str) -> Text:
        """Return a caption's embedding; ModelError if the encoder is missing."""
        if caption not in self._known:
            self._known[caption] = self._encode(caption) if caption else self._empty()
        return self._known[caption]

    @property
    def is_loaded(self) -> bool:
        """True once a caption was encoded."""
        return self._part is not None

    def _empty(self) -> Text:
        values = torch.zeros(1, self._length, self._width, dtype=self._dtype, device=self._device)
        mask = torch.zeros(1, self._length, dtype=torch.int64, device=self._device)
        mask[:, 0] = 1  # an attention over nothing has no meaning
        return Text(values, mask)

    @torch.no_grad()
    def _encode(self, caption: str) -> Text:
        if self._part is None:
            self._load()
        ids = self._tokenizer(
            [caption],
            padding="max_length",
            max_length=self._length,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = ids.attention_mask.to(self._device)
        with self._part.used() as network:  # type: ignore[union-attr]  # loaded above
            values = network(ids.input_ids.to(self._device), mask).last_hidden_state
        values = values.to(self._dtype) * mask[..., None].to(self._dtype)
        if values.shape[2] != self._width:
            raise ModelError(
                f"the text encoder of {self._folder} gives {values.shape[2]} values a token, the"
                f" transformer reads {self._width}: the folder mixes two models"
            )
        return Text(values, mask)

    def _load(self) -> None:
        """Load both from files alone; the class is the one that config.json names."""
        try:
            transformers = importlib.import_module("transformers")
        except ImportError as error:
            raise ModelError(
                "the stream has a caption, and reading it needs transformers: pip install"
                " 'semvc[full]', or drop it with 'semvc edit --drop caption'"
            ) from error
        with loading(self._folder):
            config = json.loads((self._folder / "text_encoder" / "config.json").read_text("utf-8"))
            name = (config.get("architectures") or ["T5EncoderModel"])[0]
            if name not in ("T5EncoderModel", "UMT5EncoderModel"):
                raise ModelError(f"{self._folder}: unknown text encoder {name!r}")
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                self._folder / "tokenizer", local_files_only=True
            )
            network = getattr(transformers, name).from_pretrained(
                self._folder / "text_encoder",
                dtype=self._dtype,
                use_safetensors=True,
                local_files_only=True,
            )
        self._part = Part(network, self._device, resident=False)
