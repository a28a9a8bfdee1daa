"""Soft edges by a holistically nested network, an option beside the weight-free sketch extractor.

The layout is that of the HED network that line-conditioned generators are trained with (five blocks
of a VGG with a side output each, averaged): safetensors with `norm`, `blockN.convs.I` and
`blockN.projection`. After Xie and Tu, "Holistically-Nested Edge Detection" (ICCV 2015).
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from semvc.errors import ModelError

UInt8 = npt.NDArray[np.uint8]

_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions


class _Block(nn.Module):
    def __init__(self, given: int, channels: int, layers: int) -> None:
        super().__init__()
        sizes = (given, *[channels] * layers)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(sizes)
        )
        self.projection = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor, shrink: bool) -> tuple[Tensor, Tensor]:
        x = functional.max_pool2d(x, 2) if shrink else x
        for conv in self.convs:
            x = functional.relu(conv(x))
        return x, self.projection(x)


class EdgeNetwork(nn.Module):
    """Logits of edges at five scales, [1, 1, h, w] each, of pictures [1, 3, H, W] in [0, 255].

    `width` divides the usual numbers of channels, for tests.
    """

    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        given = 3
        for number, (channels, layers) in enumerate(_BLOCKS, 1):
            setattr(self, f"block{number}", _Block(given, channels // width, layers))
            given = channels // width

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the side outputs, finest first."""
        x = x - self.norm
        found = []
        for number in range(1, len(_BLOCKS) + 1):
            x, side = getattr(self, f"block{number}")(x, number > 1)
            found.append(side)
        return found


class SoftEdges:
    """A loaded network."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        """Read a safetensors file; ModelError if it is missing or of another layout."""
        try:
            state = {name: value.float() for name, value in load_file(path).items()}
            channels = len(state["block1.convs.0.weight"])
            network = EdgeNetwork(_BLOCKS[0][0] // channels)
            network.load_state_dict(state)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} is not a safetensors file: {error}") from error
        except (KeyError, RuntimeError, ZeroDivisionError) as error:
            raise ModelError(f"{path} does not hold a network for soft edges: {error}") from error
        self._network = network.to(device).eval().requires_grad_(False)
        self._device = device

    @torch.inference_mode()
    def find(self, frame: UInt8) -> UInt8:
        """Return how sure an edge is at each sample, uint8 [H, W], 255 for certain."""
        picture = torch.tensor(np.ascontiguousarray(frame)).to(self._device)
        sides = self._network(picture.permute(2, 0, 1)[None].float())
        size = frame.shape[:2]
        whole = [
            functional.interpolate(side, size, mode="bilinear", align_corners=False)
            for side in sides
        ]
        sure = torch.stack(whole).mean(0)[0, 0].sigmoid()
        found: UInt8 = (sure * 255).round().to(torch.uint8).cpu().numpy()
        return found
