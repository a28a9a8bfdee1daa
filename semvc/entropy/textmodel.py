"""A byte model for short texts: contexts counted in a shipped text, mixed in integers.

Eleven contexts look at the bytes, and at the words, before a position. Each says how often a bit
was 0 and 1 after it, in the shipped text and in the message so far; a trained table turns the two
counts into a logit, and a trained weight, chosen by how many contexts know anything, adds it up.
"""

from __future__ import annotations

import functools
from collections.abc import Generator
from typing import NamedTuple

import numpy as np

from semvc.entropy import ASSETS
from semvc.entropy.tables import LOGIT_ROWS

END = 0  # the byte that closes a text
CONTEXTS = 11
LEVELS = 8  # of a quantised count
SETS = 8  # of mixing weights
WEIGHT_BITS = 12
GAIN = 2  # a byte of the message counts as so many bytes of the shipped text
_ORDERS = (1, 2, 3, 4, 5, 6, 8)
_CAP = 20  # the last entry of _QUANT
_QUANT = (0, 1, 2, 3, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 7)
_LIMIT = LOGIT_ROWS // 2 - 1
_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'") | frozenset(
    range(128, 256)
)

Key = tuple[int, bytes]
Followers = dict[int, int]


class Mixture(NamedTuple):
    """Trained integers: `logits` [CONTEXTS][64] in 1/256 nat, `weights` [SETS][CONTEXTS]."""

    logits: list[list[int]]
    weights: list[list[int]]


class History:
    """The last bytes and words before a position, as keys of the contexts."""

    def __init__(self) -> None:
        self._bytes = bytes(8)
        self._word, self._previous, self._before = b"", b"", b""

    def contexts(self) -> list[Key]:
        """One key for each context, all different."""
        keys = [(kind, self._bytes[-order:]) for kind, order in enumerate(_ORDERS)]
        word = self._word.lower()
        keys.append((7, word))
        keys.append((8, self._previous + b" " + word))
        keys.append((9, self._before + b" " + self._previous + b" " + word))
        keys.append((10, b""))
        return keys

    def push(self, byte: int) -> None:
        """Go on behind `byte`."""
        self._bytes = self._bytes[1:] + bytes([byte])
        if byte in _LETTERS:
            self._word = (self._word + bytes([byte]))[-24:]
            return
        if self._word:
            self._before, self._previous = self._previous, self._word.lower()
            self._word = b""
        if byte == END:
            self._before = self._previous = b""


class TextModel:
    """Predicts the bits of one text; every text starts from a new model."""

    def __init__(self, shipped: dict[Key, Followers], mixture: Mixture) -> None:
        self._shipped = shipped
        self._own: dict[Key, Followers] = {}
        self._history = History()
        self._mixture = mixture

    def cells(self, keys: list[Key]) -> Generator[list[int], int, None]:
        """For each bit, most significant first, a cell 0..63 of each context; send the bit back."""
        active = [self._followers(key) for key in keys]
        for position in range(7, -1, -1):
            cells, zeros, ones = [], [], []
            for followers in active:
                zero = [pair for pair in followers if not pair[0] >> position & 1]
                one = [pair for pair in followers if pair[0] >> position & 1]
                n0 = min(_CAP, sum(count for _, count in zero))
                n1 = min(_CAP, sum(count for _, count in one))
                cells.append(_QUANT[n0] * LEVELS + _QUANT[n1])
                zeros.append(zero)
                ones.append(one)
            active = ones if (yield cells) else zeros

    def row(self, cells: list[int]) -> int:
        """The row of `logistic_tables` for a bit with these cells."""
        weights = self._mixture.weights[choose(cells)]
        total = sum(
            weight * table[cell]
            for weight, table, cell in zip(weights, self._mixture.logits, cells, strict=True)
        )
        return max(-_LIMIT, min(_LIMIT, total >> WEIGHT_BITS)) + LOGIT_ROWS // 2

    def keys(self) -> list[Key]:
        """Context keys of the next byte."""
        return self._history.contexts()

    def learn(self, keys: list[Key], byte: int) -> None:
        """Count `byte` behind `keys` and go on."""
        for key in keys:
            own = self._own.setdefault(key, {})
            own[byte] = own.get(byte, 0) + GAIN
        self._history.push(byte)

    def _followers(self, key: Key) -> list[tuple[int, int]]:
        shipped = self._shipped.get(key)
        own = self._own.get(key)
        if own is None:
            return list(shipped.items()) if shipped else []
        merged = dict(shipped) if shipped else {}
        for byte, count in own.items():
            merged[byte] = merged.get(byte, 0) + count
        return list(merged.items())


def choose(cells: list[int]) -> int:
    """Which set of mixing weights: how many of the seven byte orders have seen this place."""
    return sum(cell > 0 for cell in cells[:7])


def count_text(lines: list[bytes], words: list[bytes]) -> dict[Key, Followers]:
    """Followers of every context in `lines` (each closed by END) and in a list of `words`.

    Words count once in the contexts that need no other word: the byte orders up to 5 and the
    present word.
    """
    counts: dict[Key, Followers] = {}
    for line in lines:
        history = History()
        for byte in line + bytes([END]):
            for key in history.contexts():
                followers = counts.setdefault(key, {})
                followers[byte] = followers.get(byte, 0) + 1
            history.push(byte)
    for word in words:
        history = History()
        history.push(32)
        for byte in word + b" ":
            for key in history.contexts():
                if key[0] in (1, 2, 3, 4, 7) and key[1][:1] != b"\0":
                    followers = counts.setdefault(key, {})
                    followers[byte] = followers.get(byte, 0) + 1
            history.push(byte)
    return counts


@functools.cache
def load_model() -> tuple[dict[Key, Followers], Mixture]:
    """Counts of the shipped text, and the trained mixture; about 0.1 s, once per process."""
    lines, words = parse_text((ASSETS / "caption.txt").read_bytes())
    stored = np.frombuffer((ASSETS / "caption.i16").read_bytes(), "<i2").tolist()
    cells = LEVELS * LEVELS
    if len(stored) != CONTEXTS * (cells + SETS):
        raise ValueError("asset caption.i16 has the wrong size")
    logits = [stored[kind * cells : (kind + 1) * cells] for kind in range(CONTEXTS)]
    rest = stored[CONTEXTS * cells :]
    weights = [rest[row * CONTEXTS : (row + 1) * CONTEXTS] for row in range(SETS)]
    return count_text(lines, words), Mixture(logits, weights)


def parse_text(content: bytes) -> tuple[list[bytes], list[bytes]]:
    """Split the shipped text: lines up to an empty one, then words parted by white space."""
    captions, _, words = content.partition(b"\n\n")
    return captions.split(b"\n"), words.split()
