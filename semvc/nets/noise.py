"""Synthesis noise that is the same on every machine: counter-based integers, then a table.

Philox-4x64-10 keyed by seed, segment and purpose gives 64-bit words; each yields four 16-bit
values, least significant first, that index a table of Gaussian quantiles in Q12. numpy guarantees
the words of its bit generators across versions; the values are 16-bit integers times 2**-12, so
exact.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

import numpy as np
import numpy.typing as npt

_ENTRIES = 1 << 16


def gaussian(count: int, *, seed: int, segment: int, purpose: int) -> npt.NDArray[np.float32]:
    """Return float32 [count] standard Gaussian noise; `purpose` in [0, 255] separates its uses."""
    if not 0 <= purpose < 256:
        raise ValueError(f"purpose must be in [0, 255], not {purpose}")
    key = np.array([seed, (segment << 8) | purpose], np.uint64)
    words = np.random.Philox(key=key).random_raw((count + 3) // 4)
    index = words.astype("<u8").view("<u2")[:count]
    return _table()[index].astype(np.float32) * np.float32(2.0**-12)


@cache
def _table() -> npt.NDArray[np.int16]:
    """The int16 [65536] quantiles in ascending order; the file holds the upper half."""
    raw = resources.files("semvc.nets").joinpath("gaussian_q12.bin").read_bytes()
    upper = np.frombuffer(raw, "<i2")
    if upper.size != _ENTRIES // 2:
        raise ValueError(f"gaussian_q12.bin holds {upper.size} quantiles, not {_ENTRIES // 2}")
    return np.concatenate([-upper[::-1], upper])
