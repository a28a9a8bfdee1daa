"""Timing: the exact presentation times of the frames of a segment with a variable rate.

Times are integers in units of the header's time base. A segment stands alone, so it carries its
first time in full; after that each step is one of the eight last different steps, or new.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semvc.entropy.coder import Decoder, Encoder, SymbolCoder
from semvc.entropy.integers import code_bits, code_uint
from semvc.entropy.tables import AdaptiveTables, normalize
from semvc.errors import BitstreamError

MAX_TIMES = 1025  # 1024 frames and the end of the last
MAX_TIME = 1 << 47
MAX_STEP = (1 << 32) - 1
_RECENT = 8
_CONTEXTS = 27  # ranks 0, 1 and more of the last three steps
_SYMBOLS_PER_FRAME = 80  # a rank, and a new step bit by bit


@dataclass(frozen=True, slots=True)
class Timing:
    """Presentation times `pts`, 1..1025 of them (1024 frames and the end of the last).

    They rise strictly, by less than 2**32 at a time, and are inside -2**47..2**47.

    Raises ValueError when they are not.
    """

    pts: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.pts) <= MAX_TIMES:
            raise ValueError(f"timing holds 1..{MAX_TIMES} times, not {len(self.pts)}")
        if any(abs(time) >= MAX_TIME for time in self.pts):
            raise ValueError("a presentation time is outside -2**47..2**47")
        steps = (after - before for before, after in zip(self.pts, self.pts[1:], strict=False))
        if not all(1 <= step <= MAX_STEP for step in steps):
            raise ValueError(f"presentation times must rise by 1..{MAX_STEP}")

    def canonical_bytes(self) -> bytes:
        """The times as little-endian int64."""
        return np.array(self.pts, "<i8").tobytes()


def code_timing(coder: SymbolCoder, timing: Timing | None, frames: int) -> Timing:
    """Code `frames` times; raises BitstreamError for times that are not allowed."""
    if not 1 <= frames <= MAX_TIMES:
        raise ValueError(f"frames must be in 1..{MAX_TIMES}, not {frames}")
    if timing is not None and len(timing.pts) != frames:
        raise ValueError(f"timing holds {len(timing.pts)} times, not {frames}")
    tables = AdaptiveTables(normalize(_start_counts()), strength=4, memory=255)
    given = None if timing is None else timing.pts
    pts = [_code_start(coder, None if given is None else given[0])]
    recent: list[int] = []
    context = 0
    while len(pts) < frames:
        step = None if given is None else given[len(pts)] - pts[-1]
        rank, step = _code_step(coder, step, recent, tables, context)
        recent = [step, *(other for other in recent if other != step)][:_RECENT]
        context = (context * 3 + min(rank, 2)) % _CONTEXTS
        pts.append(pts[-1] + step)
    if abs(pts[-1]) >= MAX_TIME:
        raise BitstreamError("a presentation time is out of range", section="TIMING")
    return Timing(tuple(pts))


def encode_timing(timing: Timing, check: int = 0) -> tuple[bytes, int]:
    """Payload of a TIMING section and the chained check."""
    encoder = Encoder(check)
    code_timing(encoder, timing, len(timing.pts))
    return encoder.finish(), encoder.check


def decode_timing(payload: bytes, frames: int, check: int = 0) -> tuple[Timing, int]:
    """Inverse of `encode_timing` for a segment of `frames` times (1..1025)."""
    decoder = Decoder(payload, _SYMBOLS_PER_FRAME * (frames + 1), check)
    timing = code_timing(decoder, None, frames)
    decoder.finish()
    return timing, decoder.check


def _start_counts() -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Counts [contexts, ranks]: the last symbol stands for a new step."""
    return np.tile(np.array([[24, 8, 4, 2, 1, 1, 1, 1, 6]]), (_CONTEXTS, 1))


def _code_start(coder: SymbolCoder, time: int | None) -> int:
    """The first time: its sign, its length in bits, and its bits."""
    sign = None if time is None else np.array([int(time < 0)])
    negative = bool(code_bits(coder, sign, 1, 1)[0])
    size = None if time is None else abs(time).bit_length()
    length = int(code_bits(coder, None if size is None else np.array([size]), 1, 6)[0])
    if length > MAX_TIME.bit_length() - 1 or (negative and length == 0):
        raise BitstreamError("the first presentation time has no such form", section="TIMING")
    if length <= 1:
        return -length if negative else length
    rest = None if time is None else np.array([abs(time) - (1 << (length - 1))])
    value = (1 << (length - 1)) + int(code_bits(coder, rest, 1, length - 1)[0])
    return -value if negative else value


def _code_step(
    coder: SymbolCoder,
    step: int | None,
    recent: list[int],
    tables: AdaptiveTables,
    context: int,
) -> tuple[int, int]:
    """Rank of the step among the recent ones (8 when new), and the step."""
    rank = None
    if step is not None:
        rank = np.array([recent.index(step) if step in recent else _RECENT])
    found = int(tables.code(coder, rank, 1, np.array([context]))[0])
    if found < len(recent):
        return found, recent[found]
    if found != _RECENT:
        raise BitstreamError("a step refers to one that was not coded", section="TIMING")
    new = None if step is None else np.array([step - 1])
    value = int(code_uint(coder, new, 1, MAX_STEP - 1)[0]) + 1
    if value in recent:
        raise BitstreamError("a step is coded as new though it is not", section="TIMING")
    return found, value
