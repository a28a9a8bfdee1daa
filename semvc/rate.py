"""Meeting a target rate: how many bytes each segment may take, and which quality gives them.

Bytes go where the content needs them: as `Shares` tells, all segments get about one quality.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from semvc.errors import UsageError
from semvc.types import VideoInfo

MAX_QUALITY = 63.0
TOLERANCE = 0.05  # of the whole file
_CLOSE = 0.01  # of one segment: no further trial
_MOST_SLACK = 0.15  # of one segment, if there are many more
_NEAR = 0.25  # logarithm of the size: near enough to see how bytes spread
_TRIALS = 7
_USUAL_SLOPE = 0.08  # of the logarithm of the size over quality, before trials tell
_LEAST_SLOPE = 0.01  # taken when two trials show less

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    """What the user asked for: `kind` is bpp (sound left out), or kbps or size (with sound)."""

    kind: str
    value: float

    def total(self, info: VideoInfo, frames: int, seconds: Fraction) -> float:
        """Return the bytes that an input of this many frames may take."""
        if self.kind == "bpp":
            return self.value * info.width * info.height * frames / 8
        if self.kind == "kbps":
            return self.value * 1000 * float(seconds) / 8
        return self.value

    def bytes_for(self, info: VideoInfo, frames: int, seconds: Fraction) -> float:
        """Return what the first `frames` may take; `size` needs the input's frame count."""
        if self.kind != "size":
            return self.total(info, frames, seconds)
        if not info.frame_count:
            raise UsageError(
                "--size needs to know the input's length, which a pipe does not tell: use --kbps"
            )
        return self.value * min(1.0, frames / info.frame_count)

    @property
    def counts_audio(self) -> bool:
        """True if sound is part of the target."""
        return self.kind != "bpp"


@dataclass(frozen=True, slots=True)
class Shares:
    """How an input's bytes spread over its segments, as a quick first coding shows.

    At `quality`, segment i took `sizes[i]` bytes for the picture and `sounds[i]` for sound; all
    segments together have `frames`. Bytes shared out like this give all segments one quality.
    """

    quality: float
    sizes: tuple[int, ...]
    sounds: tuple[int, ...]
    frames: int

    def budget(self, index: int, left: float) -> float:
        """Return what segment `index` may take of `left` bytes for its and all later pictures."""
        return left / self._weight(index)

    def slack(self, index: int) -> float:
        """Return by what share segment `index` may miss its budget: later ones make up for it."""
        return min(_MOST_SLACK, _CLOSE * self._weight(index))

    def next_quality(self, left: float) -> float:
        """Return the quality at which all pictures may take about `left` bytes."""
        error = _error(sum(self.sizes), left)
        return self.quality if abs(error) < _NEAR else _grid(self.quality - error / _USUAL_SLOPE)

    def _weight(self, index: int) -> float:
        """The rest of the pictures, in units of this segment's."""
        rest = self.sizes[index:]  # empty if the input grew meanwhile
        return sum(rest) / max(1, rest[0]) if rest else 1.0


class Memo:
    """Quick first codings by quality, noted in a file for a run that is resumed.

    `key` stands for all that decides them: what was noted under another is not read. Without a
    `path`, or where nothing can be written, they are only remembered.
    """

    def __init__(self, path: Path | None, key: str, *, read: bool) -> None:
        self._path, self._key = path, key
        self._known: dict[float, Shares] = {}
        if path is not None and read:
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
                noted = json.loads(path.read_text("utf-8"))
                if noted["key"] == key:
                    self._known = {s.quality: s for s in map(_shares, noted["shares"])}

    def find(self, quality: float) -> Shares | None:
        """Return the coding at a quality, None if there was none."""
        return self._known.get(quality)

    def add(self, shares: Shares) -> None:
        """Note a coding."""
        self._known[shares.quality] = shares
        if self._path is not None:
            rows = [dataclasses.asdict(item) for item in self._known.values()]
            with contextlib.suppress(OSError):
                self._path.write_text(json.dumps({"key": self._key, "shares": rows}), "utf-8")


@dataclass(frozen=True, slots=True)
class Trial:
    """One coding of a segment: its `quality`, its `size` in bytes."""

    quality: float
    size: int


def search(
    budget: float, first: float, code: Callable[[float], tuple[int, T]], *, slack: float = 0.0
) -> tuple[Trial, T]:
    """Return the coding whose size is nearest to `budget` bytes, in at most a few trials.

    `code(quality)` returns (bytes, coding) and `first` is where to begin; a coding within `slack`
    (a share of the budget) ends the search. Sizes fall roughly exponentially with quality, so that
    a secant on their logarithm finds the place.
    """
    done: dict[float, tuple[int, T]] = {}
    quality, slope = _grid(first), _USUAL_SLOPE
    before: tuple[float, float] | None = None
    for _ in range(_TRIALS):
        done[quality] = code(quality)
        error = _error(done[quality][0], budget)
        if abs(error) < max(_CLOSE, slack):
            break
        if before is not None:
            slope = max((error - before[1]) / (quality - before[0]), _LEAST_SLOPE)
        before = (quality, error)
        low = max((q for q, (size, _) in done.items() if size <= budget), default=None)
        high = min((q for q, (size, _) in done.items() if size > budget), default=None)
        quality = _grid(quality - error / slope)
        if low is not None and high is not None and high > low and not low < quality < high:
            quality = _grid((low + high) / 2)
        if quality in done:
            break
    best = min(done, key=lambda q: abs(_error(done[q][0], budget)))
    return Trial(best, done[best][0]), done[best][1]


def _shares(row: dict[str, Any]) -> Shares:
    """What `Memo.add` wrote."""
    sizes, sounds = (tuple(int(v) for v in row[name]) for name in ("sizes", "sounds"))
    if not sizes or len(sizes) != len(sounds):
        raise ValueError("segments without sizes")
    return Shares(float(row["quality"]), sizes, sounds, int(row["frames"]))


def _error(size: int, budget: float) -> float:
    return math.log(max(size, 1) / max(budget, 1.0))


def _grid(quality: float) -> float:
    return min(MAX_QUALITY, max(0.0, round(quality * 4) / 4))
