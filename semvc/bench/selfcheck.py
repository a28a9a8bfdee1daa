"""Whether the measuring code measures right, against figures that are known.

The learned metrics are compared with what their authors published for their own example images:
LPIPS 0.1 in the PerceptualSimilarity repository (issue 120), DISTS in `DISTS_pt.py` of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from semvc.bench import curves, metrics, networks
from semvc.media.files import read_png

IMAGES = "check"  # folder of the example images beside the weights
_PUBLISHED = (
    ("lpips, first pair", "lpips", "ex_ref.png", "ex_p0.png", 0.722),
    ("lpips, second pair", "lpips", "ex_ref.png", "ex_p1.png", 0.138),
    ("dists", "dists", "dists_r0.png", "dists_r1.png", 0.3347),
)


@dataclass(frozen=True, slots=True)
class Check:
    """A figure beside what it has to be; `reason` says why it could not be had."""

    name: str
    value: float | None
    expected: float
    tolerance: float
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether the figure is right; False if it could not be had."""
        return self.value is not None and abs(self.value - self.expected) <= self.tolerance


def self_check(weights: Path | None) -> tuple[Check, ...]:
    """Return all checks; those of learned metrics need their folder of weights and images."""
    return (*_arithmetic(), *_learned(weights))


def _arithmetic() -> Iterator[Check]:
    reason = ""
    try:
        curves.self_test()
    except ArithmeticError as error:
        reason = str(error)
    yield Check("BD-rate of known shifts", None if reason else 0.0, 0.0, 0.0, reason)
    noise = np.random.default_rng(1).uniform(16, 235, (192, 192)).astype(np.float32)
    yield Check("psnr, one code value off", metrics.psnr(noise, noise + 1), 48.1308, 1e-4)
    yield Check("ms_ssim, equal frames", metrics.ms_ssim(noise, noise), 1.0, 1e-6)
    # of flat frames only lightness differs, and MS-SSIM has it at its last scale
    flat, c1 = np.full((192, 192), 100, np.float32), (0.01 * 255) ** 2
    lightness = (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1)
    found = metrics.ms_ssim(flat, flat + 20)
    yield Check("ms_ssim, flat frames", found, lightness**0.1333, 1e-5)
    features = torch.from_numpy(np.random.default_rng(2).random((40, 16)))
    yield Check("pkid, equal sets", networks.patch_kid(features, features), 0.0, 1e-9)


def _learned(weights: Path | None) -> Iterator[Check]:
    loaded: networks.Networks | None = None
    for name, metric, first, second, expected in _PUBLISHED:
        reason = networks.missing(metric, weights)
        if not reason and weights is not None:
            paths = [weights / IMAGES / image for image in (first, second)]
            absent = [str(path) for path in paths if not path.is_file()]
            if not absent:
                loaded = loaded or networks.Networks(weights, dtype=torch.float32)
                value = _distance(loaded, metric, paths)
                yield Check(name, value, expected, 1e-3)
                continue
            reason = f"no example image {', '.join(absent)}"
        yield Check(name, None, expected, 1e-3, reason)


def _distance(loaded: networks.Networks, metric: str, paths: list[Path]) -> float:
    with torch.inference_mode():
        a, b = (loaded.frames(read_png(path)) for path in paths)
        if metric == "lpips":
            return float(loaded.lpips(loaded.lpips_maps(a), loaded.lpips_maps(b)))
        return float(loaded.dists(loaded.dists_maps(a), loaded.dists_maps(b)))
