"""Depth: a coarse grid of inverse depth for each keyframe, coded with its neighbours' help.

With it a decoder can show a keyframe from any pose. The first node lies at the picture's corner,
the last at the opposite one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from semvc.entropy.coder import Decoder, Encoder, SymbolCoder
from semvc.entropy.integers import code_bits, code_uint, unzigzag, zigzag
from semvc.entropy.tables import AdaptiveTables, Ints, TableSet, check_ints, normalize
from semvc.errors import BitstreamError

if TYPE_CHECKING:
    from semvc.types import UInt8

Float32 = npt.NDArray[np.float32]

ROWS, COLUMNS = 9, 16
MAX_GRIDS = 16
MAX_RANGE = 7  # of the exponent that says how near the nearest node may be
MAX_SHIFT = 4  # of the bits that nodes may lack
_DIRECT = 40  # residuals, zigzag, that have a symbol of their own; the next one is the escape
_LEVELS = (2, 6, 14)  # differences around a node from which a row of tables begins
_SYMBOLS = 2 + ROWS * COLUMNS * MAX_GRIDS * 20


@dataclass(frozen=True, slots=True, eq=False)
class Depth:
    """`grids` uint8 [K, 9, 16] of K <= 16 keyframes: inverse depth in 2**(`range` - 8).

    Depths are in the unit of the camera's path; a node of 0 is very far. `range` is 0..7. With
    `shift` 0..4 nodes are multiples of 2**shift. Raises TypeError or ValueError otherwise.
    """

    grids: UInt8
    range: int
    shift: int = 0

    def __post_init__(self) -> None:
        grids = check_ints(self.grids, "depth grids")
        if grids.dtype != np.uint8 or grids.shape[1:] != (ROWS, COLUMNS):
            raise ValueError(f"depth must be uint8 [K, 9, 16], not {grids.dtype} {grids.shape}")
        if not 1 <= len(grids) <= MAX_GRIDS:
            raise ValueError(f"{len(grids)} depth grids")
        if not 0 <= self.range <= MAX_RANGE or not 0 <= self.shift <= MAX_SHIFT:
            raise ValueError(f"depth range {self.range}, shift {self.shift}")
        if (grids & ((1 << self.shift) - 1)).any():
            raise ValueError(f"nodes are multiples of {1 << self.shift}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Depth) and self.canonical_bytes() == other.canonical_bytes()

    def __hash__(self) -> int:
        return hash(self.canonical_bytes())

    def canonical_bytes(self) -> bytes:
        """Range, shift and K as bytes, then all nodes."""
        return bytes((self.range, self.shift, len(self.grids))) + self.grids.tobytes()

    def depths(self) -> Float32:
        """Depths float32 [K, 9, 16], positive and finite: a node of 0 counts as a quarter."""
        inverse = np.maximum(self.grids.astype(np.float32), np.float32(0.25))
        return (np.float32(2.0 ** (8 - self.range)) / inverse).astype(np.float32)


def fit_depth(depths: npt.NDArray[np.floating], shift: int = 0) -> Depth:
    """Return depths float [K, 9, 16], positive, as integers of the smallest range that holds them.

    The nearest fiftieth of the nodes may be clipped.
    """
    inverse = 1 / np.asarray(depths, np.float64)
    near = float(np.quantile(inverse, 0.98))
    span = next((r for r in range(MAX_RANGE) if near <= 255 * 2.0 ** (r - 8)), MAX_RANGE)
    nodes = np.rint(inverse * 2.0 ** (8 - span - shift))
    most = 255 >> shift
    return Depth((np.clip(nodes, 0, most).astype(np.uint8) << shift).astype(np.uint8), span, shift)


def code_depth(coder: SymbolCoder, depth: Depth | None, count: int) -> Depth:
    """Code the grids of `count` keyframes; ValueError if they do not fit, BitstreamError."""
    if not 1 <= count <= MAX_GRIDS:
        raise ValueError(f"{count} depth grids")
    if depth is not None and len(depth.grids) != count:
        raise ValueError(f"{len(depth.grids)} depth grids for {count} keyframes")
    given = None if depth is None else np.array([depth.range])
    span = int(code_bits(coder, given, 1, 3)[0])
    given = None if depth is None else np.array([depth.shift])
    shift = int(code_bits(coder, given, 1, 3)[0])
    if shift > MAX_SHIFT:
        raise BitstreamError(f"depth nodes lack {shift} bits", section="DEPTH")
    tables = AdaptiveTables(_tables(), strength=16, memory=255)
    grids = np.zeros((count, ROWS, COLUMNS), np.int64)
    most = 255 >> shift
    for k in range(count):
        for row in range(ROWS):
            for column in range(COLUMNS):
                guess, context = _guess(grids, (k, row, column))
                wanted = None
                if depth is not None:
                    wanted = (int(depth.grids[k, row, column]) >> shift) - guess
                value = guess + _code_residual(coder, tables, wanted, context)
                if not 0 <= value <= most:
                    raise BitstreamError("a depth node is out of range", section="DEPTH")
                grids[k, row, column] = value
    return Depth((grids << shift).astype(np.uint8), span, shift)


def encode_depth(depth: Depth, check: int = 0) -> tuple[bytes, int]:
    """Payload of a DEPTH section and the chained check."""
    encoder = Encoder(check)
    code_depth(encoder, depth, len(depth.grids))
    return encoder.finish(), encoder.check


def decode_depth(payload: bytes, count: int, check: int = 0) -> tuple[Depth, int]:
    """Inverse of `encode_depth`, for a segment with `count` keyframes."""
    decoder = Decoder(payload, _SYMBOLS, check)
    depth = code_depth(decoder, None, count)
    decoder.finish()
    return depth, decoder.check


def _guess(grids: Ints, place: tuple[int, int, int]) -> tuple[int, int]:
    """Prediction and table row of a node from those before it, as LOCO-I predicts samples.

    In the first row the node to the left, in the first column the one above; the first node is
    that of the grid before, or 0.
    """
    k, row, column = place
    grid = grids[k]
    if row == 0 and column == 0:
        return (int(grids[k - 1, 0, 0]), len(_LEVELS)) if k else (0, len(_LEVELS) + 1)
    if row == 0:
        return int(grid[0, column - 1]), len(_LEVELS)
    above = int(grid[row - 1, column])
    if column == 0:
        return above, len(_LEVELS)
    left, corner = int(grid[row, column - 1]), int(grid[row - 1, column - 1])
    activity = abs(left - corner) + abs(above - corner)
    context = sum(activity >= level for level in _LEVELS)
    if corner >= max(left, above):
        return min(left, above), context
    if corner <= min(left, above):
        return max(left, above), context
    return left + above - corner, context


def _code_residual(
    coder: SymbolCoder, tables: AdaptiveTables, given: int | None, context: int
) -> int:
    number = None if given is None else zigzag(np.array([given], np.int64))
    symbol = None if number is None else np.minimum(number, _DIRECT)
    result = tables.code(coder, symbol, 1, np.array([context])).astype(np.int64)
    if result[0] == _DIRECT:
        rest = None if number is None else number - _DIRECT
        result += code_uint(coder, rest, 1, 512)
    return int(unzigzag(result)[0])


@functools.cache
def _tables() -> TableSet:
    """Rows by activity, then the edges' row and the first node's: geometric, flatter each."""
    rows = []
    for ratio in (9, 12, 14, 15, 16):  # sixteenths that each symbol has of the one before
        row = [1 << 20]
        while len(row) < _DIRECT + 1:
            row.append(max(1 << 10, row[-1] * ratio >> 4))
        rows.append(row)
    return normalize(np.array(rows))
