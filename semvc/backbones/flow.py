"""Noise levels of flow-matching models and one Euler step, without diffusers' schedulers.

A sample at level s in [0, 1] is (1 - s) * clean + s * noise; a model predicts noise - clean.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from semvc.errors import ModelError

TRAIN_STEPS = 1000  # timesteps are levels times this


@dataclass(frozen=True, slots=True)
class Schedule:
    """How levels are spaced: by one shift, or by one that grows with the number of tokens.

    low and high are (tokens, log of the shift). terminal is the last level before 0, 0 for the one
    that falls out. Esser et al., "Scaling Rectified Flow Transformers", section 5.3.2.
    """

    shift: float = 1.0
    low: tuple[int, float] | None = None
    high: tuple[int, float] | None = None
    terminal: float = 0.0

    def levels(
        self, steps: int, *, tokens: int = 0, strength: float = 1.0
    ) -> npt.NDArray[np.float64]:
        """Return float64 [steps + 1], falling from `strength` (in (0, 1]) to 0."""
        if steps < 1 or not 0 < strength <= 1:
            raise ValueError(f"no schedule of {steps} steps from {strength}")
        shift = self._shift(tokens)
        even = strength / (shift - (shift - 1) * strength)  # where the shifted line is `strength`
        line = even * np.linspace(1, 0, steps + 1)
        found = shift * line / (1 + (shift - 1) * line)
        if self.terminal and steps > 1:
            found[:-1] = found[0] - (found[0] - found[:-1]) * (
                (found[0] - min(self.terminal, found[0])) / (found[0] - found[-2])
            )
        return found

    def _shift(self, tokens: int) -> float:
        if self.low is None or self.high is None:
            return self.shift
        (a, below), (b, above) = self.low, self.high
        return math.exp(below + (above - below) * (tokens - a) / (b - a))


def read_schedule(folder: Path, shift: float) -> Schedule:
    """Return the schedule of a diffusers folder; `shift` replaces its own unless it is 0."""
    path = folder / "scheduler" / "scheduler_config.json"
    if shift or not path.is_file():
        return Schedule(shift or 1.0)
    try:
        row = json.loads(path.read_text("utf-8"))
        terminal = float(row.get("shift_terminal") or 0)
        if row.get("use_dynamic_shifting"):
            low = (int(row["base_image_seq_len"]), float(row["base_shift"]))
            high = (int(row["max_image_seq_len"]), float(row["max_shift"]))
            return Schedule(low=low, high=high, terminal=terminal)
        return Schedule(float(row.get("flow_shift") or row.get("shift") or 1), terminal=terminal)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def step(sample: Tensor, velocity: Tensor, now: float, after: float) -> Tensor:
    """Move `sample` from level `now` to the lower level `after` along `velocity`."""
    return sample + (after - now) * velocity
