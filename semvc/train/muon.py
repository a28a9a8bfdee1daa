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
            alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"]
                buffer.mul_(group["momentum"]).add_(p.grad)
                update = p.grad.add(buffer, alpha=group["momentum"]).flatten(1)
                alike.setdefault(tuple(update.shape), []).append((p, update))
            for shape, pairs in alike.items():
                scale = 0.2 * max(shape) ** 0.5
                for (p, _), update in zip(pairs, _orthogonal_all(pairs), strict=True):
                    p.add_(update.view_as(p), alpha=-group["lr"] * scale)


def _orthogonal_all(pairs: list[tuple[Tensor, Tensor]]) -> Iterable[Tensor]:
    """The updates made orthogonal: all at once on a GPU, where many small products are slow."""
    updates = [update for _, update in pairs]
    if updates[0].is_cuda:
        return _orthogonal(torch.stack(updates)).unbind(0)
    return map(_orthogonal, updates)


def _orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal [..., out, rest], roughly, by Newton-Schulz iteration in bfloat16."""
    a, b, c = _COEFFICIENTS
    x = matrix.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)
