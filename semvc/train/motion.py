"""Sets a photograph in motion: pan, zoom and turn, parallax between layers, hard cuts.

A photograph has no depth, so a smooth random field stands for it: what is nearer by it moves
faster. Now and then layers are cut out along such a field and uncover what is behind them; rarely,
because a cut goes through faces as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

UInt8 = npt.NDArray[np.uint8]
_LAYERS = ((0, 0.75), (1, 0.2), (2, 0.05))  # nearer layers, and how often there are that many
_FIELD = (4, 6)  # cells of the fields that stand for depth
_EDGE = 30.0  # how fast a layer's edge fades: of the field's spread
_MARGIN = 2  # frames before and after a cut, at least


@dataclass(frozen=True, slots=True)
class _Camera:
    """Where a layer is seen from: sizes and places as fractions of the picture's half sides.

    The view is at `centre`, `zoom` picture pixels to one of the crop, turned by `turn` radians;
    `speed`, `growth` and `spin` are their changes a frame.
    """

    centre: npt.NDArray[np.float64]
    speed: npt.NDArray[np.float64]
    zoom: float
    growth: float
    turn: float
    spin: float


def move(
    picture: UInt8, random: np.random.Generator, *, frames: int, height: int = 320, width: int = 448
) -> UInt8:
    """Return uint8 [frames, height, width, 3]: a moving crop of a photograph uint8 [H, W, 3]."""
    h, w = picture.shape[:2]
    far = _Camera(
        zoom=random.uniform(0.55, 1.0) * min(h / height, w / width),
        centre=random.uniform(-0.2, 0.2, 2),
        speed=random.normal(0, 0.006, 2),
        turn=random.normal(0, 0.05),
        spin=random.normal(0, 0.004),
        growth=random.normal(0, 0.006),
    )
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    layers = [(image, far)]
    for number in range(_pick_layers(random)):
        mask = _mask(random, (h, w), share=random.uniform(0.15, 0.5) / (1 + number))
        near = (1 + number) * random.uniform(0.3, 1.2)
        drift = far.speed * (1 + near) + random.normal(0, 0.003, 2) * near
        camera = replace(far, speed=drift, growth=far.growth * (1 + near))
        layers.append((torch.cat([image, mask], 1), camera))
    depth = _field(random, (2 * height, 2 * width)) * random.uniform(0, 0.8)
    return np.stack([_frame(layers, t, depth) for t in range(frames)])


def cut(first: UInt8, second: UInt8, random: np.random.Generator) -> UInt8:
    """Return [T, H, W, 3]: frames of `first`, then of `second`, both of that shape."""
    at = int(random.integers(_MARGIN, len(first) - _MARGIN + 1))
    return np.concatenate([first[:at], second[at:]])


def _pick_layers(random: np.random.Generator) -> int:
    counts, odds = zip(*_LAYERS, strict=True)
    return int(random.choice(counts, p=odds))


def _mask(random: np.random.Generator, shape: tuple[int, int], share: float) -> Tensor:
    """[1, 1, H, W] in [0, 1]: about `share` of the picture, more of it below than above."""
    field = _field(random, shape)
    level = float(np.quantile(field[..., ::4, ::4].numpy(), 1 - share))
    return ((field - level) * _EDGE + 0.5).clamp(0, 1)


def _field(random: np.random.Generator, shape: tuple[int, int]) -> Tensor:
    """[1, 1, H, W] of mean 0 and deviation 1: smooth, and rather nearer below than above."""
    values = random.normal(0, 1, _FIELD) + np.linspace(-1, 1, _FIELD[0])[:, None]
    coarse = torch.from_numpy(values.astype(np.float32))[None, None]
    smooth = F.interpolate(coarse, shape, mode="bicubic", align_corners=False)
    return (smooth - smooth.mean()) / smooth.std()


def _frame(layers: list[tuple[Tensor, _Camera]], t: int, depth: Tensor) -> UInt8:
    """Frame `t`, seen by all cameras; `depth` [1, 1, 2H, 2W] bends each view."""
    height, width = (v // 2 for v in depth.shape[2:])
    out = torch.zeros(1, 3, 2 * height, 2 * width)
    for image, camera in layers:
        grid = _grid(camera, t, (height, width), (image.shape[2], image.shape[3]))
        grid += depth[0, 0, :, :, None] * torch.from_numpy(camera.speed * t).float()
        seen = F.grid_sample(
            image, grid, mode="bicubic", padding_mode="reflection", align_corners=False
        )
        covered = seen[:, 3:].clamp(0, 1) if image.shape[1] > 3 else torch.ones(1)
        out = torch.lerp(out, seen[:, :3], covered)
    small = F.avg_pool2d(out, 2).clamp(0, 255).round().to(torch.uint8)
    return np.asarray(small[0].permute(1, 2, 0).numpy(), np.uint8)


def _grid(camera: _Camera, t: int, shape: tuple[int, int], picture: tuple[int, int]) -> Tensor:
    """Where each sample of a crop at twice its size comes from, as grid_sample wants it."""
    (height, width), (h, w) = shape, picture
    size = camera.zoom * (1 + camera.growth * t)
    angle = camera.turn + camera.spin * t
    cx, cy = camera.centre + camera.speed * t
    sx, sy = size * width / w, size * height / h
    c, s = np.cos(angle), np.sin(angle)
    matrix = torch.tensor(
        [[[c * sx, -s * sx * height / width, cx], [s * sy * width / height, c * sy, cy]]]
    )
    return F.affine_grid(matrix.float(), [1, 3, 2 * height, 2 * width], align_corners=False)
