"""Grain: how strong the fine texture is that the base layer has lost, by how busy a place is.

A coarse base layer is smooth where its source had sensor noise, film grain or the fine texture of
skin and grass. Its places fall into seven classes by their activity, which both ends measure in the
decoded base layer (`nets.grain`), so that five bits a class say what to put back and where.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semvc.entropy.coder import Decoder, Encoder, SymbolCoder
from semvc.entropy.integers import code_bits

CLASSES = 7
MAX_LEVEL = 31
UNIT = 16  # levels in one 8-bit code of luma
_BITS = 5
_SYMBOLS = CLASSES


@dataclass(frozen=True, slots=True)
class Grain:
    """Standard deviation of luma to add in each class, in 1/16 of an 8-bit code: 7 times 0..31.

    Class 0 is the smoothest. Raises ValueError for other numbers.
    """

    levels: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.levels) != CLASSES or not all(0 <= v <= MAX_LEVEL for v in self.levels):
            raise ValueError(f"grain is {CLASSES} levels in 0..{MAX_LEVEL}, not {self.levels}")

    def canonical_bytes(self) -> bytes:
        """The levels as bytes."""
        return bytes(self.levels)


def code_grain(coder: SymbolCoder, grain: Grain | None) -> Grain:
    """Code the levels; every value that fits is allowed."""
    given = None if grain is None else np.array(grain.levels)
    levels = code_bits(coder, given, CLASSES, _BITS)
    return Grain(tuple(int(v) for v in levels))


def encode_grain(grain: Grain, check: int = 0) -> tuple[bytes, int]:
    """Payload of a GRAIN section, at most five bytes, and the chained check."""
    encoder = Encoder(check)
    code_grain(encoder, grain)
    return encoder.finish(), encoder.check


def decode_grain(payload: bytes, check: int = 0) -> tuple[Grain, int]:
    """Inverse of `encode_grain`; BitstreamError if the payload is damaged."""
    decoder = Decoder(payload, _SYMBOLS, check)
    grain = code_grain(decoder, None)
    decoder.finish()
    return grain, decoder.check


def to_text(grain: Grain) -> str:
    """Return one line: the deviation of each class in codes of 8-bit luma."""
    return " ".join(f"{level / UNIT:g}" for level in grain.levels) + "\n"
