"""Metrics of motion: warping error and difference of flow, flicker, and what is a cut.

Optical flow is OpenCV's DIS, of the luma of the source; everything else needs numpy and torch only.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    import numpy.typing as npt

    Float32 = npt.NDArray[np.float32]
    Float64 = npt.NDArray[np.float64]

FLOW = ("ewarp", "ewarp_source", "tof")
FLICKER = ("flicker_db", "flicker_static_db")
_STILL = 4.0  # mean squared difference of a 9 x 9 neighbourhood that counts as still
_FLOOR = 0.25  # added to energies, so that their ratio exists in a picture without any


def missing() -> str:
    """Return why flow cannot be computed, or nothing."""
    try:
        _opencv()
    except ImportError as error:
        return f"needs OpenCV: pip install opencv-python-headless ({error})"
    return ""


def decibel(part: float, whole: float) -> float:
    """Return the ratio of two energies per luma sample in decibels, both raised a little."""
    return float(10 * np.log10((part + _FLOOR) / (whole + _FLOOR)))


@dataclass(slots=True)
class Flicker:
    """Sums of the energy of frame differences over steps; `of` gives the figures so far."""

    moved: Float64
    still: Float64

    @staticmethod
    def empty() -> Flicker:
        """Return sums over no steps."""
        return Flicker(np.zeros(2), np.zeros(2))

    def add(self, source: tuple[Float32, Float32], rebuilt: tuple[Float32, Float32]) -> None:
        """Add one step: luma float32 [H, W] of two frames in a row, of both videos."""
        steps = [np.square(after - before) for before, after in (source, rebuilt)]
        calm = _box_mean(steps[0]) < _STILL
        self.moved += [step.mean() for step in steps]
        self.still += [step[calm].sum() / step.size for step in steps]

    def of(self, steps: int) -> dict[str, float]:
        """Return decibels of the rebuilt video over the source: 0 is alike, above is boiling.

        `steps` is how many were added; each weighs the same.
        """
        return {
            name: decibel(float(energy[1]) / steps, float(energy[0]) / steps)
            for name, energy in zip(FLICKER, (self.moved, self.still), strict=True)
        }


class Flow:
    """Optical flow of the source between two frames, and what it says about a reconstruction."""

    def __init__(self) -> None:
        self._cv = _opencv()
        self._dis = self._cv.DISOpticalFlow_create(self._cv.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def step(
        self, source: tuple[Float32, Float32], rebuilt: tuple[Float32, Float32]
    ) -> dict[str, float] | None:
        """Return `FLOW` for luma float32 [H, W] of two frames in a row; None across a cut.

        The flow of the source warps the second frame onto the first. Warping error is the mean
        squared difference, in thousandths of the square of 255, over what both show: where forward
        and backward flow cancel (Lai et al. 2018, section 3.2). `tof` is the mean difference of
        the two videos' flows in luma samples (Chu et al. 2020, section 4).
        """
        a, b = ((_bytes(before), _bytes(after)) for before, after in (source, rebuilt))
        forward, backward = self._dis.calc(*a, None), self._dis.calc(*a[::-1], None)
        loop = np.linalg.norm(forward + self._warp(backward, forward), axis=-1)
        seen = loop < 0.5 + 0.05 * np.linalg.norm(forward, axis=-1)
        if seen.mean() < 0.2:
            return None
        errors = [
            float(np.square(before - self._warp(after, forward))[seen].mean()) / 65.025
            for before, after in (rebuilt, source)
        ]
        difference = np.abs(forward - self._dis.calc(*b, None)).mean()
        return dict(zip(FLOW, (*errors, float(difference)), strict=True))

    def _warp(self, image: Float32, flow: Float32) -> Float32:
        height, width = flow.shape[:2]
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
        warped: Float32 = self._cv.remap(
            image,
            grid + flow,
            None,
            self._cv.INTER_LINEAR,
            borderMode=self._cv.BORDER_REPLICATE,
        )
        return warped


def laplacian_energy(luma: Float32) -> float:
    """Return the mean squared Laplacian of luma [H, W], its edges left out."""
    inner = luma[1:-1, 1:-1]
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float(np.square(around - 4 * inner).mean())


def _opencv() -> Any:
    return importlib.import_module("cv2")


def _bytes(luma: Float32) -> npt.NDArray[np.uint8]:
    return np.rint(luma).astype(np.uint8)


def _box_mean(values: Float32) -> Float32:
    mean = F.avg_pool2d(
        torch.from_numpy(values)[None, None], 9, stride=1, padding=4, count_include_pad=False
    )
    found: Float32 = mean[0, 0].numpy()
    return found
