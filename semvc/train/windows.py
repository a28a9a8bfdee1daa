"""The cache that in-context LoRAs are trained from: windows of clips as latents, one file each.

A file NNNNN.safetensors holds float16 tensors: `target` [1, C, f, h, w], the latents of the
original; `base`, and where there are any `sketch` and `skeleton`, [1, C, f, h', w'], the latents of
what a decoder is given; `text` [n, D], the embedding of the caption without padding, n may be 0.
Its notes are the frame rate and `reference_scale`. `semvc train windows` writes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from semvc.errors import UsageError

STREAMS = ("base", "sketch", "skeleton")  # in the order in which they are packed


@dataclass(frozen=True, slots=True)
class Window:
    """One window, float32 on the CPU; `references` by the names of `STREAMS`, in their order."""

    target: Tensor
    references: dict[str, Tensor]
    text: Tensor
    frame_rate: float


@dataclass(slots=True)
class Windows:
    """The windows of all folders of a cache; UsageError if there are none or of another scale."""

    folders: list[Path]
    reference_scale: int
    files: list[Path] = field(init=False)

    def __post_init__(self) -> None:
        self.files = sorted(
            path for folder in self.folders for path in folder.glob("[0-9]*.safetensors")
        )
        if not self.files:
            where = ", ".join(map(str, self.folders))
            raise UsageError(f"no windows in {where}: make some with 'semvc train windows'")
        self.read(0)

    def read(self, index: int) -> Window:
        """Return a window; `index` may be any integer."""
        path = self.files[index % len(self.files)]
        try:
            with safe_open(path, "pt") as file:
                notes = dict(file.metadata() or {})
                found = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            scale, rate = int(notes["reference_scale"]), float(notes["frame_rate"])
            target, text = found["target"], found["text"]
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise UsageError(f"{path} is not a window: {error}") from error
        if scale != self.reference_scale:
            raise UsageError(
                f"{path} has references at 1/{scale} size, the recipe wants 1/"
                f"{self.reference_scale}: make the windows again, or change the recipe"
            )
        return Window(target, {n: found[n] for n in STREAMS if n in found}, text, rate)


def write(path: Path, window: Window, reference_scale: int) -> None:
    """Write a window under its final name, complete or not at all."""
    tensors = {"target": window.target, "text": window.text, **window.references}
    notes = {"frame_rate": repr(window.frame_rate), "reference_scale": str(reference_scale)}
    part = path.with_name(path.name + ".part")
    save_file({n: t.to(torch.float16).cpu().contiguous() for n, t in tensors.items()}, part, notes)
    part.replace(path)
