"""Refinement of depth, focal length and poses on optical flow, by gradient descent.

After FlowMap (Smith et al., 2024): depth of every frame and the focal length are free; the pose
between neighbours is no parameter but the weighted Procrustes alignment of the two frames' points
that flow joins, so that gradients reach depth through it. We differ in that depth is a coarse grid
that starts from a given solution instead of a network, and in that longer flows over chained poses
take the place of tracks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

_DEPTH_RATE, _FOCAL_RATE = 0.01, 0.002  # step of Adam, of logarithms
_SMOOTH = 0.02  # weight of the change of depth from its start
_SOFT = 0.002  # picture widths at which the loss turns from square to linear


@dataclass(frozen=True, slots=True)
class Flows:
    """Flow between frames at grid points.

    points: float64 [n, 2], places as fractions of width (both axes), from the principal point.
    first, last: int [p], the frames that each flow joins, first < last; all neighbours are there.
    ends: float64 [p, n, 2], where the points went. weight: float64 [p, n] in [0, 1], 0 for movers
    and where flow cannot be trusted. shape: (rows, columns) of the points' grid; aspect: height by
    width of the picture.
    """

    points: npt.NDArray[np.float64]
    first: npt.NDArray[np.intp]
    last: npt.NDArray[np.intp]
    ends: npt.NDArray[np.float64]
    weight: npt.NDArray[np.float64]
    shape: tuple[int, int]
    aspect: float


@dataclass(frozen=True, slots=True)
class Refined:
    """rotations float64 [T, 3, 3], translations [T, 3], world to camera, focal in widths, loss."""

    rotations: npt.NDArray[np.float64]
    translations: npt.NDArray[np.float64]
    focal: float
    losses: tuple[float, float]


def refine(
    flows: Flows, inverse_depth: npt.NDArray[np.float64], focal: float, *, steps: int = 150
) -> Refined:
    """Return poses that explain `flows` best, from `inverse_depth` [T, rows, columns] (a coarse
    grid whose outermost nodes lie on the picture's border) and `focal` in picture widths.

    losses: mean robust error, in picture widths, before and after.
    """
    start = torch.from_numpy(np.log(inverse_depth))[:, None]
    change = torch.zeros_like(start, requires_grad=True)
    log_focal = torch.tensor(float(np.log(focal)), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam(
        [{"params": [change], "lr": _DEPTH_RATE}, {"params": [log_focal], "lr": _FOCAL_RATE}]
    )
    problem = _Problem.build(flows)
    losses: list[float] = []
    best, kept = np.inf, (change.detach().clone(), log_focal.detach().clone())
    for _ in range(steps + 1):
        loss = problem.loss(start + change, log_focal)
        losses.append(loss.item())
        if losses[-1] < best:
            best, kept = losses[-1], (change.detach().clone(), log_focal.detach().clone())
        optimiser.zero_grad()
        (loss + _SMOOTH * _SOFT * change.square().mean()).backward()
        optimiser.step()
    with torch.no_grad():
        rotations, translations = problem.poses(start + kept[0], kept[1])
    return Refined(rotations.numpy(), translations.numpy(), float(kept[1].exp()), (losses[0], best))


@dataclass(frozen=True, slots=True)
class _Problem:
    """The flows as tensors."""

    points: Tensor
    ends: Tensor
    weight: Tensor
    first: Tensor
    last: Tensor
    aspect: float
    neighbours: Tensor  # int [T - 1], the flow from each frame to the next

    @classmethod
    def build(cls, flows: Flows) -> _Problem:
        next_ = {
            int(a): i
            for i, (a, b) in enumerate(zip(flows.first, flows.last, strict=True))
            if b == a + 1
        }
        order = [next_[t] for t in range(int(flows.last.max()))]
        return cls(
            torch.from_numpy(flows.points),
            torch.from_numpy(flows.ends),
            torch.from_numpy(flows.weight),
            torch.from_numpy(flows.first),
            torch.from_numpy(flows.last),
            flows.aspect,
            torch.tensor(order),
        )

    def lift(self, logs: Tensor, places: Tensor, log_focal: Tensor) -> Tensor:
        """Points in camera coordinates [k, n, 3] of `places` [k, n, 2] by grids [k, 1, r, c]."""
        scale = places.new_tensor([2.0, 2.0 / self.aspect])
        at = (places * scale)[:, None]
        inverse = functional.grid_sample(
            logs.exp(), at, mode="bilinear", padding_mode="border", align_corners=True
        )[:, 0, 0]
        ray = torch.cat((places / log_focal.exp(), torch.ones_like(places[..., :1])), -1)
        return ray / inverse[..., None]

    def poses(self, logs: Tensor, log_focal: Tensor) -> tuple[Tensor, Tensor]:
        """World-to-camera poses of all frames, chained from neighbour to neighbour."""
        pair = self.neighbours
        points = self.points.expand(len(pair), -1, -1)
        before = self.lift(logs[self.first[pair]], points, log_focal)
        after = self.lift(logs[self.last[pair]], self.ends[pair], log_focal)
        turns, moves = _procrustes(before, after, self.weight[pair])
        rotations = [torch.eye(3, dtype=logs.dtype)]
        translations = [torch.zeros(3, dtype=logs.dtype)]
        for turn, move in zip(turns, moves, strict=True):
            rotations.append(turn @ rotations[-1])
            translations.append(turn @ translations[-1] + move)
        return torch.stack(rotations), torch.stack(translations)

    def loss(self, logs: Tensor, log_focal: Tensor) -> Tensor:
        """Mean robust distance of where the poses take points from where flow does."""
        rotations, translations = self.poses(logs, log_focal)
        a, b = self.first, self.last
        turn = rotations[b] @ rotations[a].transpose(1, 2)
        move = translations[b] - (turn @ translations[a][..., None])[..., 0]
        points = self.points.expand(len(a), -1, -1)
        there = self.lift(logs[a], points, log_focal) @ turn.transpose(1, 2) + move[:, None]
        seen = there[..., :2] / there[..., 2:].clamp(min=1e-3) * log_focal.exp()
        miss = (seen - self.ends).square().sum(-1)
        robust = _SOFT * (torch.sqrt(1 + miss / _SOFT**2) - 1)
        return (robust * self.weight).sum() / self.weight.sum().clamp(min=1)


def _procrustes(before: Tensor, after: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rotations [k, 3, 3] and translations [k, 3] that take points [k, n, 3] to points best.

    Near points weigh more: errors of flow grow with depth.
    """
    depth = before[..., 2].detach()
    weight = weight / depth.clamp(min=0.5 * depth.median()).square()
    weight = (weight / weight.sum(1, keepdim=True).clamp(min=1e-9))[..., None]
    one, two = (weight * before).sum(1, keepdim=True), (weight * after).sum(1, keepdim=True)
    u, _, v = torch.linalg.svd(((after - two) * weight).transpose(1, 2) @ (before - one))
    sign = torch.ones(len(u), 3, dtype=u.dtype)
    sign[:, 2] = torch.sign(torch.det(u @ v)).detach()
    turn = (u * sign[:, None]) @ v
    return turn, (two - one @ turn.transpose(1, 2))[:, 0]
