"""ColorVideoVDP (Mantiuk et al. 2024) over streaming frames, where the package is installed.

`pip install cvvdp` brings it. Its parameters come with it; it needs no network.
"""

from __future__ import annotations

import importlib
import itertools
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from semvc.errors import MediaError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    UInt8 = npt.NDArray[np.uint8]

DISPLAY = "standard_fhd"
_KEPT = 256  # frames behind the newest that may be asked for again


def missing() -> str:
    """Return why the metric cannot be computed, or nothing."""
    try:
        _package()
    except ImportError as error:
        return f"needs ColorVideoVDP: pip install cvvdp ({error})"
    return ""


def jod(
    pairs: Callable[[], Iterable[tuple[UInt8, UInt8]]],
    shape: tuple[int, int, int],
    fps: float,
    device: torch.device,
) -> float:
    """Return just-objectionable-differences, 10 for no difference, on a display of `DISPLAY`.

    `pairs` gives frames of (source, rebuilt), uint8 [H, W, 3], in order; `shape` is their height,
    width and number. MediaError if there are fewer.
    """
    package = _package()
    metric = package.cvvdp(display_name=DISPLAY, quiet=True, device=device)
    source = _stream_class(package)(pairs(), shape, fps)
    with torch.inference_mode():
        value, _ = metric.predict_video_source(source)
    return float(value)


def _stream_class(package: Any) -> Any:
    """A video source of the package that holds a few frames of what streams by."""
    base: Any = importlib.import_module(f"{package.__name__}.video_source").video_source_dm

    class Stream(base):  # type: ignore[misc]
        def __init__(
            self, pairs: Iterable[tuple[UInt8, UInt8]], shape: tuple[int, int, int], fps: float
        ) -> None:
            super().__init__(display_photometry=DISPLAY)
            self.is_video, self.is_color = shape[2] > 1, True
            self._pairs: Iterator[tuple[UInt8, UInt8]] = iter(pairs)
            self._shape, self._fps = shape, fps
            self._held: dict[int, tuple[UInt8, UInt8]] = {}
            self._next = itertools.count()

        def get_video_size(self) -> tuple[int, int, int]:
            return self._shape

        def get_frames_per_second(self) -> float:
            return self._fps if self.is_video else 0.0

        def get_reference_frame(self, frame: int, device: Any, colorspace: str) -> Any:
            return self._frame(int(frame), 0, device, colorspace)

        def get_test_frame(self, frame: int, device: Any, colorspace: str) -> Any:
            return self._frame(int(frame), 1, device, colorspace)

        def _frame(self, number: int, which: int, device: Any, colorspace: str) -> Any:
            while number not in self._held:
                pair = next(self._pairs, None)
                if pair is None:
                    raise MediaError(f"the videos end before frame {number}")
                newest = next(self._next)
                self._held[newest] = pair
                self._held.pop(newest - _KEPT, None)
            image = torch.from_numpy(self._held[number][which]).to(device)
            image = image.permute(2, 0, 1)[None, :, None].float() / 255  # batch, color, frame
            return self.apply_dm_and_color_transform(image, colorspace)

    return Stream


def _package() -> Any:
    """Import pycvvdp, with stand-ins for the two things that it imports and does not need here.

    One is a blur of torchvision, the other its learned variants with their own dependencies. The
    stand-ins are used only if the real ones cannot be imported, and are taken away again.
    """
    if "pycvvdp" in sys.modules:
        return sys.modules["pycvvdp"]
    held: dict[str, Any] = {}
    try:
        importlib.import_module("torchvision.transforms")
        importlib.import_module("einops")
    except (ImportError, RuntimeError):  # torchvision built for another torch raises the latter
        broken = [name for name in sys.modules if name.split(".")[0] == "torchvision"]
        for name in broken:
            sys.modules.pop(name)
        held = {module.__name__: module for module in _stand_ins()}
        sys.modules.update(held)
    try:
        return importlib.import_module("pycvvdp")
    finally:
        for name in held:
            sys.modules.pop(name, None)


def _stand_ins() -> Iterator[types.ModuleType]:
    vision, transforms, learned = (
        types.ModuleType(name)
        for name in ("torchvision", "torchvision.transforms", "pycvvdp.cvvdp_ml_metric")
    )
    vars(transforms)["GaussianBlur"] = _GaussianBlur
    vars(vision)["transforms"] = transforms
    vars(learned).update(cvvdp_ml_saliency=None, cvvdp_ml_transformer=None)
    yield from (vision, transforms, learned)


class _GaussianBlur:
    """A Gaussian of `size` taps a side, borders mirrored."""

    def __init__(self, size: int, sigma: float) -> None:
        at = torch.arange(size) - (size - 1) / 2
        taps = torch.exp(-at.square() / (2 * sigma**2))
        self._taps, self._size = taps / taps.sum(), size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return [B, C, H, W] blurred."""
        channels, border, taps = images.shape[1], self._size // 2, self._taps.to(images)
        padded = F.pad(images, (border,) * 4, mode="reflect")
        for shape in ((1, 1, 1, self._size), (1, 1, self._size, 1)):
            kernel = taps.reshape(shape).expand(channels, -1, -1, -1)
            padded = F.conv2d(padded, kernel, groups=channels)
        return padded

    __call__ = forward
