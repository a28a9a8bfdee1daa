"""A training recipe: dataclasses read from TOML; an unknown key is an error."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semvc.errors import UsageError


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of training.

    `unroll` frames are made in a row, gradients flowing through the recurrence; `crop` is in luma
    samples. `one_step` is the share of samples trained at pure noise, the rest draw their noise
    level uniformly. `drop_sketch` and `drop_skeleton` are the shares trained without them.
    The weights of the losses are zero when absent.
    """

    name: str
    steps: int
    batch: int
    unroll: int
    crop: int
    rate: float
    final_rate: float
    one_step: float = 0.7
    drop_sketch: float = 0.5
    drop_skeleton: float = 0.5
    charbonnier: float = 1.0
    lpips: float = 0.0
    dists: float = 0.0
    temporal: float = 0.0
    adversarial: float = 0.0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.unroll) < 1 or self.crop % 16:
            raise UsageError(
                f"stage {self.name}: steps, batch, unroll >= 1 and crop a multiple of 16"
            )


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides a training run but its data."""

    model: str
    seed: int
    network: dict[str, Any]
    stages: tuple[Stage, ...]
    ema: float = 0.999
    clip_norm: float = 1.0
    weight_decay: float = 0.0
    critic_width: int = 48
    critic_rate: float = 2e-4
    bfloat16: bool = True
    checkpoint_minutes: float = 3.0


def load(path: Path) -> Recipe:
    """Read a recipe; `UsageError` names an unknown or missing key."""
    raw = tomllib.loads(path.read_text("utf-8"))
    stages = tuple(_build(Stage, row, path) for row in raw.pop("stage", []))
    if not stages:
        raise UsageError(f"{path}: a recipe needs at least one [[stage]]")
    recipe: Recipe = _build(Recipe, raw | {"stages": stages}, path)
    return recipe


def _build(kind: type, values: dict[str, Any], path: Path) -> Any:
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - known):
        raise UsageError(
            f"{path}: unknown key {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    try:
        return kind(**values)
    except TypeError as error:
        raise UsageError(f"{path}: {error}") from error
