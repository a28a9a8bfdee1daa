"""Motion of the source in training samples: optical flow, and pictures moved along it.

Flow is OpenCV's DIS (Kroeger et al. 2016), computed where batches are made.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from semvc.errors import UsageError


def backward(frames: npt.NDArray[np.generic]) -> npt.NDArray[np.float16]:
    """Return float16 [T - 1, H, W, 2]: where each frame's samples were in the frame before.

    frames: uint8 [T, H, W, 3] RGB, sides of 16 at least. The values are (x, y) in luma samples,
    to be added to a sample's own place. UsageError without OpenCV.
    """
    try:
        import cv2
    except ImportError as error:
        raise UsageError(
            "the temporal loss needs OpenCV: pip install opencv-python-headless"
        ) from error
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    found = [search.calc(now, before, None) for before, now in itertools.pairwise(grey)]
    if not found:
        return np.zeros((0, *frames.shape[1:3], 2), np.float16)
    return np.stack(found).astype(np.float16)


def moved(images: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Return `images` [B, C, H, W] seen along `flow` [B, 2, H, W], and where that is known.

    The second is [B, 1, H, W]: 1 where flow ends inside the picture, else 0. Images are read
    bilinearly, and gradients flow to them.
    """
    height, width = images.shape[2:]
    rows = torch.arange(height, device=flow.device)[:, None]
    columns = torch.arange(width, device=flow.device)
    x, y = columns + flow[:, 0].float(), rows + flow[:, 1].float()
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    seen = F.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return seen, inside[:, None].float()
