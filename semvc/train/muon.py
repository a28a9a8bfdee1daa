"""Muon for convolutions: momentum whose update is made orthogonal (Jordan et al. 2024).

Weights of two or more axes are flattened to [out, rest]; vectors go to Adam instead. The update's
root mean square is scaled to 0.2, as in Moonlight (Liu et al. 2025), so that Adam's learning rates
fit.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic Newton-Schulz step of the paper


class Muon(torch.optim.Optimizer):
    """`params` all have two or more axes; `momentum` is Nesterov's."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step; a closure is not supported."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"]
                buffer.mul_(group["momentum"]).add_(p.grad)
                update = p.grad.add(buffer, alpha=group["momentum"]).flatten(1)
                scale = 0.2 * max(update.shape) ** 0.5
                p.add_(_orthogonal(update).view_as(p), alpha=-group["lr"] * scale)


def _orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrix, roughly, by Newton-Schulz iteration in bfloat16."""
    a, b, c = _COEFFICIENTS
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)
