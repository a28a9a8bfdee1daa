"""Tiny generators with known weights, for tests of what runs them."""

from __future__ import annotations

from typing import Any

import torch

from semvc.nets.generator import Generator

TINY: dict[str, Any] = {"widths": (8, 12, 16), "depths": (1, 1, 1), "embedding": 8, "memory": 4}


def fresh() -> Generator:
    """A network as training begins with, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Generator(**TINY).eval().requires_grad_(False)


def filled(seed: int = 1) -> Generator:
    """A network without zero layers: every weight is drawn, so that every path counts."""
    network, draw = fresh(), torch.Generator().manual_seed(seed)
    for p in network.parameters():
        std = 1 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.05
        p.copy_(torch.randn(p.shape, generator=draw) * std)
    return network
