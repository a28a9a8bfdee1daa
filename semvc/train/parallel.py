"""The processes that train one model together: one as a rule, several through accelerate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from semvc.errors import UsageError


@dataclass(frozen=True, slots=True)
class Team:
    """One process of `size`, `rank` in [0, size); `mean` averages a tensor over all, in place."""

    rank: int
    size: int
    device: torch.device
    mean: Callable[[Tensor], Tensor]

    def average_gradients(self, parameters: list[Tensor]) -> None:
        """Replace gradients by their mean over all processes; every process has the same ones."""
        if self.size == 1:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        if not grads:
            return
        mean = self.mean(torch.cat([g.flatten() for g in grads]))
        for grad, part in zip(grads, mean.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))


def alone(device: str) -> Team:
    """Return the team of this process; UsageError for a device that does not exist."""
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"cannot train on device {device!r}: use cpu, cuda or cuda:N") from error
    return Team(0, 1, found, lambda values: values)


def accelerated() -> Team:
    """Return this process's place among those that `accelerate launch` started."""
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise UsageError("several GPUs need accelerate: pip install semvc[train]") from error
    accelerator = Accelerator()

    def mean(values: Tensor) -> Tensor:
        reduced: Tensor = accelerator.reduce(values, "mean")
        return reduced

    return Team(accelerator.process_index, accelerator.num_processes, accelerator.device, mean)
