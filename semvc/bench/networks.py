"""The learned metrics: LPIPS (AlexNet and VGG16), DISTS, and features for patch KID.

Weights are never shipped and never fetched: they are read from a folder, which `collect` can make
of the authors' own packages. It holds

    alexnet-features.safetensors       torchvision's AlexNet, `features.N.weight` and `.bias`
    vgg16-features-fp16.safetensors    torchvision's VGG16, likewise, in any float type
    heads.safetensors                  `alex.lin0` to `4` and `vgg.lin0` to `4` of LPIPS v0.1,
                                       `dists.alpha` and `dists.beta` of DISTS
    check/*.png                        example images of both authors, for `self_check`

The networks run in bfloat16 by default, what follows them in float32: on 480p frames that moves
LPIPS by less than 1e-4, and makes them several times faster where the processor knows the type.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from semvc.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    UInt8 = npt.NDArray[np.uint8]

ALEX, VGG, HEADS = (
    "alexnet-features.safetensors",
    "vgg16-features-fp16.safetensors",
    "heads.safetensors",
)
FILES = {
    "lpips": (ALEX, HEADS),
    "tlpips": (ALEX, HEADS),
    "lpips_vgg": (VGG, HEADS),
    "dists": (VGG, HEADS),
    "pkid": (VGG, HEADS),
}
PATCH, PATCH_STEP = 128, 64  # luma samples of patch KID
_STRIDE = 16  # of VGG16's last features
_VGG_BLOCKS = (2, 2, 3, 3, 3)  # convolutions
_LPIPS_SHIFT, _LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet

Maps = list[Tensor]


def missing(metric: str, folder: Path | None) -> str:
    """Return why a learned metric cannot be computed, or nothing."""
    if folder is None:
        return "no weights: give --metric-weights DIR (python -m semvc.bench.collect makes it)"
    absent = [name for name in FILES[metric] if not (folder / name).is_file()]
    return f"{folder} has no {', '.join(absent)}" if absent else ""


class Networks:
    """Both networks, loaded when first used. Frames are uint8 [B, H, W, 3]; B is kept throughout.

    ModelError when a file in the folder is missing or is something else.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self._folder, self._device, self._dtype = folder, torch.device(device), dtype
        self._layers: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._heads: dict[str, Tensor] = {}

    def frames(self, *images: UInt8) -> Tensor:
        """Return images uint8 [H, W, 3] as float32 [B, 3, H, W] in [0, 1] on the device."""
        stack = torch.stack([torch.from_numpy(image) for image in images]).to(self._device)
        return stack.permute(0, 3, 1, 2).float() / 255

    def lpips_maps(self, frames: Tensor, net: str = "alex") -> Maps:
        """Return unit-length features of each level, float32 [B, C, h, w], for `lpips`.

        `net` is alex or vgg (Zhang et al. 2018, section 3.1; version 0.1).
        """
        x = _normalize(2 * frames - 1, _LPIPS_SHIFT, _LPIPS_SCALE)
        maps = self._alex(x) if net == "alex" else self._vgg(x, lambda y: F.max_pool2d(y, 2))
        return [m / (m.square().sum(1, keepdim=True).sqrt() + 1e-10) for m in maps]

    def lpips(self, a: Maps, b: Maps, net: str = "alex") -> Tensor:
        """Return the distances [B] of two lists of `lpips_maps`."""
        heads = self._head_weights()
        levels = [
            ((x - y).square() * heads[f"{net}.lin{i}"].reshape(1, -1, 1, 1)).sum(1).mean((1, 2))
            for i, (x, y) in enumerate(zip(a, b, strict=True))
        ]
        return torch.stack(levels).sum(0)

    def dists_maps(self, frames: Tensor) -> Maps:
        """Return the frames and VGG16's features with L2 pooling (Ding et al. 2020, section 3.1).

        At the frames' own size; nothing is resized.
        """
        return [frames, *self._vgg(_normalize(frames, _MEAN, _STD), _l2_pool)]

    def dists(self, a: Maps, b: Maps) -> Tensor:
        """Return the distances [B] of two lists of `dists_maps` (section 3.2)."""
        heads = self._head_weights()
        alpha, beta = heads["dists.alpha"].flatten(), heads["dists.beta"].flatten()
        edges = [0, *torch.tensor([m.shape[1] for m in a]).cumsum(0).tolist()]
        total = torch.zeros(len(a[0]), device=self._device)
        for x, y, (start, end) in zip(a, b, pairwise(edges), strict=True):
            mx, my = x.mean((2, 3), keepdim=True), y.mean((2, 3), keepdim=True)
            vx, vy = (x - mx).square().mean((2, 3)), (y - my).square().mean((2, 3))
            covariance = ((x - mx) * (y - my)).mean((2, 3))
            mx, my = mx[:, :, 0, 0], my[:, :, 0, 0]
            texture = (2 * mx * my + 1e-6) / (mx.square() + my.square() + 1e-6)
            structure = (2 * covariance + 1e-6) / (vx + vy + 1e-6)
            total += (alpha[start:end] * texture + beta[start:end] * structure).sum(1)
        return 1 - total / (alpha.sum() + beta.sum())

    def patches(self, maps: Maps) -> Tensor:
        """Return the mean last features of overlapping patches, float32 [B, patches, C].

        `maps` is a list of `dists_maps`; a small frame is one patch.
        """
        last = maps[-1]
        size = min(PATCH // _STRIDE, *last.shape[2:])
        step = max(1, min(PATCH_STEP // _STRIDE, size // 2))
        return F.avg_pool2d(last, size, step).flatten(2).transpose(1, 2)

    def _alex(self, x: Tensor) -> Maps:
        found, x = [], x.to(self._dtype, memory_format=torch.channels_last)
        for i, (weight, bias) in enumerate(self._convolutions(ALEX, 5)):
            if i in (1, 2):
                x = F.max_pool2d(x, 3, 2)
            padding = 2 if i < 2 else 1
            x = F.conv2d(x, weight, bias, stride=4 if i == 0 else 1, padding=padding).relu_()
            found.append(x.float())
        return found

    def _vgg(self, x: Tensor, pool: Callable[[Tensor], Tensor]) -> Maps:
        found, x = [], x.to(self._dtype, memory_format=torch.channels_last)
        layers = iter(self._convolutions(VGG, sum(_VGG_BLOCKS)))
        for block, count in enumerate(_VGG_BLOCKS):
            x = pool(x) if block else x
            for _ in range(count):
                weight, bias = next(layers)
                x = F.conv2d(x, weight, bias, padding=1).relu_()
            found.append(x.float())
        return found

    def _convolutions(self, name: str, count: int) -> list[tuple[Tensor, Tensor]]:
        if name not in self._layers:
            state = self._load(name)
            numbers = sorted({int(key.split(".")[1]) for key in state if key.count(".") == 2})
            if len(numbers) != count:
                raise ModelError(f"{name}: {len(numbers)} convolutions instead of {count}")
            self._layers[name] = [
                (
                    state[f"features.{n}.weight"].to(
                        self._dtype, memory_format=torch.channels_last
                    ),
                    state[f"features.{n}.bias"].to(self._dtype),
                )
                for n in numbers
            ]
        return self._layers[name]

    def _head_weights(self) -> dict[str, Tensor]:
        if not self._heads:
            self._heads = self._load(HEADS)
        return self._heads

    def _load(self, name: str) -> dict[str, Tensor]:
        path = self._folder / name
        try:
            state = load_file(path)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"cannot read {path}: {error}") from error
        return {key: value.float().to(self._device) for key, value in state.items()}


def patch_kid(a: Tensor, b: Tensor) -> float:
    """Return the squared MMD between two equally large sets of features [N, C], times 1000.

    Kernel of KID (Bińkowski et al. 2018): (x.y / C + 1)^3, with both sets scaled so that the first
    has mean square 1. The estimate leaves out pairs of the same number (Gretton et al. 2012,
    section 2.2), so that equal sets give 0: it says whether textures of a kind occur, not where.
    ValueError for fewer than two features or sets of different sizes.
    """
    count = len(a)
    if count < 2 or a.shape != b.shape:
        raise ValueError("patch KID needs two equal sets of two patches at least")
    scale = a.double().square().mean().sqrt()
    a, b = a.double() / scale, b.double() / scale

    def similarity(x: Tensor, y: Tensor) -> Tensor:
        kernel = (x @ y.T / x.shape[1] + 1) ** 3
        return (kernel.sum() - kernel.trace()) / (count * (count - 1))

    return 1000 * float(similarity(a, a) + similarity(b, b) - 2 * similarity(a, b))


def _normalize(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    centre, scale = (x.new_tensor(values).reshape(1, 3, 1, 1) for values in (mean, std))
    return (x - centre) / scale


def _l2_pool(x: Tensor) -> Tensor:
    """Root of the locally weighted mean square, half the size (Hénaff and Simoncelli 2016)."""
    taps = x.new_tensor((0.25, 0.5, 0.25))
    window = (taps[:, None] * taps).expand(x.shape[1], 1, 3, 3)
    squares = F.conv2d(x * x, window, stride=2, padding=1, groups=x.shape[1])
    return (squares + 1e-12).sqrt()
