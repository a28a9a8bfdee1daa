"""Photographs as sequences, drawn on the fly: a camera that pans and shakes, a thing that passes.

The path is drawn as plain numbers from a random generator, the pictures are computed where their
tensors are, so that a GPU renders what a CPU has only described.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.floating[Any]]

_SPEEDS = ((0.3, 0.0, 0.3), (0.5, 0.3, 4.0), (0.2, 4.0, 12.0))  # share, from, to: samples a frame
_MOST_ZOOM = 1.8  # samples of a photograph for one of the frame
_OCCLUDED = 0.4  # share of sequences with a thing that passes


@dataclass(frozen=True, slots=True)
class Path:
    """What B sequences of T frames show of their photographs, in samples.

    camera, thing: float32 [B, T, 2, 3], matrices that take a frame's place (x, y, 1), counted from
    its middle, to a photograph's, counted from its own. mask: float32 [B, T, 5], the thing's
    ellipse in the frame: centre x, y, half axes, and 1 or 0 for whether there is one.
    """

    camera: Tensor
    thing: Tensor
    mask: Tensor


def draw(
    random: np.random.Generator, batch: int, frames: int, *, side: int, photo: tuple[int, int]
) -> Path:
    """Return random paths for frames of `side` samples on photographs of (height, width)."""
    if not batch:
        none = torch.zeros(0, frames, 2, 3)
        return Path(none, none, torch.zeros(0, frames, 5))
    cameras = np.stack([_camera(random, frames, side, photo) for _ in range(batch)])
    things = [_thing(random, frames, side, photo) for _ in range(batch)]
    return Path(
        torch.from_numpy(cameras),
        torch.from_numpy(np.stack([t[0] for t in things])),
        torch.from_numpy(np.stack([t[1] for t in things])),
    )


def render(photos: Tensor, others: Tensor, path: Path, side: int) -> Tensor:
    """Return frames float32 [B, T, 3, side, side] in [0, 255].

    photos, others: uint8 [B, H, W, 3], what the camera sees and what the passing thing is made of.
    """
    frames = _sampled(photos, path.camera, side)
    thing = _sampled(others, path.thing, side)
    place = torch.arange(side, device=photos.device) - (side - 1) / 2
    x = (place - path.mask[:, :, 0, None]) / path.mask[:, :, 2, None].clamp(min=1)
    y = (place - path.mask[:, :, 1, None]) / path.mask[:, :, 3, None].clamp(min=1)
    radius = (x.square()[:, :, None, :] + y.square()[:, :, :, None] + 1e-6).sqrt()
    edge = path.mask[:, :, 2:4].amin(2)[:, :, None, None]
    inside = torch.sigmoid((1 - radius) * edge) * path.mask[:, :, 4, None, None]
    return torch.lerp(frames, thing, inside[:, :, None]).clamp(0, 255)


def _sampled(photos: Tensor, matrices: Tensor, side: int) -> Tensor:
    """Look up every frame at twice its size and average, so that nothing flickers by aliasing."""
    batch, frames = matrices.shape[:2]
    height, width = photos.shape[1:3]
    x = photos.permute(0, 3, 1, 2).float().repeat_interleave(frames, 0)
    size = torch.tensor([width, height], device=x.device, dtype=torch.float32)
    theta = matrices.flatten(0, 1).clone()
    theta[..., :2] *= side / 2
    theta = theta / (size / 2)[:, None]
    grid = F.affine_grid(theta, [batch * frames, 3, 2 * side, 2 * side], align_corners=False)
    big = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return F.avg_pool2d(big, 2).unflatten(0, (batch, frames))


def _camera(random: np.random.Generator, frames: int, side: int, photo: tuple[int, int]) -> Floats:
    zoom = random.uniform(1.0, max(1.0, min(_MOST_ZOOM, min(photo) / side)))
    time = np.arange(frames)
    growth = np.exp(random.normal(0, 0.004) * time)
    angle = random.normal(0, 0.05) + random.normal(0, 0.004) * time
    room = np.maximum(0, (np.array(photo[::-1]) - zoom * side) / 2)
    start = random.uniform(-1, 1, 2) * room
    shake = np.cumsum(random.normal(0, random.uniform(0, 0.5), (frames, 2)), 0)
    centre = start + _velocity(random) * time[:, None] + shake
    return _matrices(zoom * growth, angle, centre)


def _thing(
    random: np.random.Generator, frames: int, side: int, photo: tuple[int, int]
) -> tuple[Floats, Floats]:
    time = np.arange(frames)[:, None]
    place = random.uniform(-0.5, 0.5, 2) * side + _velocity(random) * time
    axes = random.uniform(0.08, 0.35, 2) * side
    zoom = random.uniform(1.0, 2.0)
    room = np.maximum(0, np.array(photo[::-1]) / 2 - zoom * axes)
    centre = random.uniform(-1, 1, 2) * room - zoom * place  # its texture moves along with it
    there = np.full((frames, 1), float(random.random() < _OCCLUDED))
    mask = np.concatenate([place, np.broadcast_to(axes, (frames, 2)), there], 1)
    return _matrices(np.full(frames, zoom), np.zeros(frames), centre), mask.astype(np.float32)


def _velocity(random: np.random.Generator) -> Doubles:
    shares = [s for s, _, _ in _SPEEDS]
    _, low, high = _SPEEDS[int(random.choice(len(_SPEEDS), p=shares))]
    speed, direction = random.uniform(low, high), random.uniform(0, 2 * np.pi)
    return np.asarray(speed * np.array([np.cos(direction), np.sin(direction)]))


def _matrices(zoom: Doubles, angle: Doubles, centre: Doubles) -> Floats:
    c, s = zoom * np.cos(angle), zoom * np.sin(angle)
    rows = np.stack([np.stack([c, -s, centre[:, 0]], 1), np.stack([s, c, centre[:, 1]], 1)], 1)
    return rows.astype(np.float32)
