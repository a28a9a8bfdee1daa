"""The noise schedule and the sampler, in the conventions of diffusers' DDIMScheduler.

Scaled-linear betas rescaled to zero terminal signal-to-noise ratio, trailing spacing of the
timesteps, sample (x0) prediction, no added noise (eta 0). Written out here because the decoder
needs thirty lines of it and the import alone would cost seconds; a test holds both equal.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

TRAIN_STEPS = 1000
_BETA_START, _BETA_END = 0.00085, 0.012


def alphas_cumprod() -> Tensor:
    """Return the signal power at each of the 1000 training timesteps, float32 [1000], last one 0.

    Rescaling after Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed",
    algorithm 1.
    """
    betas = np.linspace(_BETA_START**0.5, _BETA_END**0.5, TRAIN_STEPS, dtype=np.float64) ** 2
    root = np.sqrt(np.cumprod(1 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return torch.from_numpy((root**2).astype(np.float32))


def timesteps(steps: int) -> list[int]:
    """Return the timesteps of a run of `steps` (1 to 1000), from pure noise (999) downwards."""
    if not 1 <= steps <= TRAIN_STEPS:
        raise ValueError(f"steps must be in [1, {TRAIN_STEPS}], not {steps}")
    spaced = np.round(np.arange(TRAIN_STEPS, 0, -TRAIN_STEPS / steps)).astype(int) - 1
    return [int(t) for t in spaced]


def add_noise(clean: Tensor, noise: Tensor, timestep: Tensor, alphas: Tensor) -> Tensor:
    """Return the noisy sample at int64 `timestep` [B] of `clean` [B, C, H, W]."""
    power = alphas[timestep].to(clean.dtype)[:, None, None, None]
    return power.sqrt() * clean + (1 - power).sqrt() * noise


def step(clean: Tensor, sample: Tensor, now: int, after: int, alphas: Tensor) -> Tensor:
    """Move `sample` at timestep `now` to the lower timestep `after`, given the predicted `clean`.

    The noise is the one that `sample` and `clean` imply (DDIM, Song et al. 2021, eq. 12, eta 0).
    """
    a, b = alphas[now].to(sample.dtype), alphas[after].to(sample.dtype)
    noise = (sample - a.sqrt() * clean) / (1 - a).sqrt()
    return b.sqrt() * clean + (1 - b).sqrt() * noise
