"""What a family of models brings to the training loop, and where each family is.

A family is a module with four names. `Options` is a dataclass: the keys of its stages beyond those
that every stage has. `build(recipe, inputs)` returns a `Task`. `config(recipe)` returns the text of
the model folder's config.toml. `INDEX` is what the model's row of `index.toml` says beside id,
bytes and hashes. A fifth, `notes(recipe)`, is what the weights' file says of itself, if anything.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from semvc.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from semvc.train.recipe import Recipe, Stage

DEFAULT = "disco-small"
_MODULES = {
    DEFAULT: "semvc.train.disco",
    "cpsgd-small": "semvc.train.cpsgd",
    "s2vc": "semvc.train.s2vc",
    "ltx-lora": "semvc.train.ltx",
}


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run is given beside its recipe: data, weights of perceptual losses, where to compute.

    `dtype` is that of mixed precision, float32 where there is none.
    """

    caches: list[Path]
    metric_weights: Path | None
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Losses:
    """`total` is what is minimised, a scalar; `values` are its parts as they are logged."""

    total: Tensor
    values: dict[str, Tensor]


class Task(Protocol):
    """One family's network, data and losses. All tensors but those of `batch` are on the device.

    `network` is trained and averaged; `critic` is trained against it in stages where `adversarial`
    says so, and is None where the family has none. The loop clips, steps, averages, logs and saves.
    """

    network: nn.Module
    critic: nn.Module | None

    def batch(self, stage: Stage, key: tuple[int, int]) -> Any:
        """Return a batch of CPU tensors (in tuples, lists, dicts or dataclasses).

        It depends on `key` (seed, step) alone, random numbers of the losses included, and is called
        from several threads.
        """

    def forward(self, stage: Stage, batch: Any) -> Any:
        """Return what the network makes of a batch, with gradients."""

    def adversarial(self, stage: Stage) -> bool:
        """Whether the critic is trained in this stage."""

    def critic_loss(self, stage: Stage, batch: Any, made: Any, step: int) -> Tensor:
        """Return the critic's loss; nothing of it reaches the network."""

    def losses(self, stage: Stage, batch: Any, made: Any) -> Losses:
        """Return the network's losses."""

    def picture(self, stage: Stage, batch: Any, made: Any) -> Tensor:
        """Return a grid uint8 [H, W, 3] of what was given, made and wanted, for people."""

    def is_inner(self, name: str, parameter: Tensor) -> bool:
        """Whether a parameter is a matrix inside the network, for Muon; AdamW takes the others."""


def options(family: str) -> type:
    """Return the dataclass of a family's own keys of a stage; UsageError for an unknown family."""
    found: type = _module(family).Options
    return found


def build(recipe: Recipe, inputs: Inputs) -> Task:
    """Return the task of a recipe, its networks on the device and freshly initialised."""
    make: Callable[[Recipe, Inputs], Task] = _module(recipe.family).build
    return make(recipe, inputs)


def config(recipe: Recipe) -> str:
    """Return the text of the model folder's config.toml."""
    text: str = _module(recipe.family).config(recipe)
    return text


def index_row(family: str) -> dict[str, Any]:
    """Return what a row of `index.toml` says beside the model's id, bytes and hashes."""
    return dict(_module(family).INDEX)


def notes(recipe: Recipe) -> dict[str, str]:
    """Return the metadata of the exported file of weights; empty for most families."""
    make = getattr(_module(recipe.family), "notes", None)
    return {} if make is None else dict(make(recipe))


def stored(family: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]] | None:
    """Return what makes a file's tensors of a family's weights, None where that is fp16."""
    found: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None
    found = getattr(_module(family), "stored", None)
    return found


def _module(family: str) -> Any:
    if family not in _MODULES:
        raise UsageError(f"unknown family {family!r}: use {', '.join(sorted(_MODULES))}")
    return importlib.import_module(_MODULES[family])
