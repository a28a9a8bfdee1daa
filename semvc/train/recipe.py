"""A training recipe: dataclasses read from TOML; an unknown key is an error.

The keys of `Recipe` and `Stage` are those of the loop; what else a stage says belongs to the family
of the model, whose `Options` dataclass reads it.
"""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from semvc.errors import UsageError
from semvc.train import families


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of training: `steps` optimiser steps of `batch` samples each (on every device).

    The learning rate warms up over `warmup` steps and falls from `rate` to `final_rate` along a
    cosine. `options` are the family's own.
    """

    name: str
    steps: int
    batch: int
    rate: float
    final_rate: float
    options: Any
    warmup: int = 100

    def __post_init__(self) -> None:
        if not all(isinstance(v, int) and v >= 1 for v in (self.steps, self.batch, self.warmup)):
            raise UsageError(f"stage {self.name}: steps, batch and warmup are integers from 1 on")


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides a training run but its data.

    `start` is a model folder or a file of weights that training starts from, relative to the
    recipe's folder. `critic` are the arguments of the critic of adversarial stages. `bfloat16`
    computes in mixed precision; `compile` runs the network through torch.compile. `log_steps`,
    `checkpoint_minutes` and `sample_minutes` say how often the run reports, saves and draws.
    """

    model: str
    seed: int
    network: dict[str, Any]
    stages: tuple[Stage, ...]
    family: str = families.DEFAULT
    start: str = ""
    ema: float = 0.999
    clip_norm: float = 1.0
    weight_decay: float = 0.0
    critic: dict[str, Any] = field(default_factory=dict)
    critic_rate: float = 2e-4
    bfloat16: bool = True
    compile: bool = False
    log_steps: int = 50
    checkpoint_minutes: float = 3.0
    sample_minutes: float = 10.0

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def scaled(self, factor: float) -> Recipe:
        """Return the recipe with every stage `factor` times as long, but one step at least."""
        if not 0 < factor <= 1000:
            raise UsageError(f"a recipe is scaled by more than 0 and at most 1000, not {factor}")
        stages = (replace(s, steps=max(1, round(s.steps * factor))) for s in self.stages)
        return replace(self, stages=tuple(stages))

    def stage_at(self, step: int) -> tuple[Stage, int] | None:
        """Return the stage of a step and the step within it, or None after the last."""
        for stage in self.stages:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        return None


def load(path: Path) -> Recipe:
    """Read a recipe; `UsageError` says where the TOML is broken or names a key."""
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    rows = raw.pop("stage", [])
    if not rows or not isinstance(rows, list):
        raise UsageError(f"{path}: a recipe needs at least one [[stage]]")
    options = families.options(str(raw.get("family", families.DEFAULT)))
    stages = tuple(_stage(row, options, path) for row in rows)
    recipe: Recipe = _build(Recipe, raw | {"stages": stages}, path)
    return recipe


def _stage(row: dict[str, Any], options: type, path: Path) -> Stage:
    common = _names(Stage) - {"options"}
    own = {name: value for name, value in row.items() if name not in common}
    _refuse_unknown(own, common | _names(options), path)
    given = {name: value for name, value in row.items() if name in common}
    stage: Stage = _build(Stage, given | {"options": _build(options, own, path)}, path)
    return stage


def _build(kind: type, values: dict[str, Any], path: Path) -> Any:
    _refuse_unknown(values, _names(kind), path)
    try:
        return kind(**values)
    except TypeError as error:
        raise UsageError(f"{path}: {error}") from error


def _refuse_unknown(values: dict[str, Any], known: set[str], path: Path) -> None:
    if unknown := sorted(set(values) - known):
        raise UsageError(
            f"{path}: unknown key {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )


def _names(kind: type) -> set[str]:
    return {f.name for f in dataclasses.fields(kind)}
