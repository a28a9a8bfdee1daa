"""Integers of any size through a `SymbolCoder`: plain bits and bounded Exp-Golomb codes."""

from __future__ import annotations

import functools

import numpy as np

from semvc.entropy.coder import SymbolCoder
from semvc.entropy.tables import TOTAL, Int64, Ints, TableSet, check_ints
from semvc.errors import BitstreamError

MAX_BITS = 62
_CHUNK = 8


def code_bits(coder: SymbolCoder, values: Ints | None, count: int, bits: int) -> Int64:
    """Code `count` integers of exactly `bits` bits (0..62), most significant byte first.

    Returns int64 [count]. Raises ValueError when a value does not fit.
    """
    if not 0 <= bits <= MAX_BITS:
        raise ValueError(f"bits must be in 0..{MAX_BITS}, not {bits}")
    given = _given(values, count, (1 << bits) - 1)
    result = np.zeros(count, np.int64)
    left = bits
    while left:
        step = left % _CHUNK or _CHUNK
        left -= step
        part = None if given is None else (given >> left) & ((1 << step) - 1)
        result = (result << step) | coder.code(part, count, _uniform(step))
    return result


def code_uint(coder: SymbolCoder, values: Ints | None, count: int, maximum: int) -> Int64:
    """Code `count` integers in 0..maximum (< 2**62) with an Exp-Golomb code; int64 [count].

    v takes about 2 * log2(v + 1) + 1 bits. Raises ValueError for a value out of range and
    BitstreamError when a stream holds one.
    """
    if not 0 <= maximum < 1 << MAX_BITS:
        raise ValueError(f"maximum must be in 0..2**{MAX_BITS}-1, not {maximum}")
    if maximum == 0:
        _given(values, count, 0)
        return np.zeros(count, np.int64)
    given = _given(values, count, maximum)
    classes = (maximum + 1).bit_length()
    numbers = None if given is None else given + 1
    lengths = coder.code(
        None if numbers is None else _bit_lengths(numbers) - 1, count, _geometric(classes)
    ).astype(np.int64)
    result = np.ones(count, np.int64)
    for level in range(int(lengths.max(initial=0)), 0, -1):
        active = np.flatnonzero(lengths >= level)
        bits = None if numbers is None else (numbers[active] >> (level - 1)) & 1
        # Elements join in at their own length, so each reads its bits from the top down.
        result[active] = (result[active] << 1) | coder.code(bits, len(active), _uniform(1))
    result -= 1
    if count and result.max() > maximum:
        raise BitstreamError(f"an integer is above its maximum {maximum}")
    return result


def zigzag(values: Int64) -> Int64:
    """Map 0, -1, 1, -2, ... to 0, 1, 2, 3, ...; |values| < 2**61."""
    return np.where(values < 0, -2 * values - 1, 2 * values)


def unzigzag(values: Int64) -> Int64:
    """Inverse of `zigzag`."""
    return np.where(values & 1, -(values >> 1) - 1, values >> 1)


def _given(values: Ints | None, count: int, maximum: int) -> Int64 | None:
    if values is None:
        return None
    checked = check_ints(values, "values")
    if checked.shape != (count,):
        raise ValueError(f"values must be [{count}], not {checked.shape}")
    if count and not (checked.min() >= 0 and int(checked.max()) <= maximum):
        raise ValueError(f"a value is outside 0..{maximum}")
    return checked.astype(np.int64)


def _bit_lengths(numbers: Int64) -> Int64:
    lengths = np.zeros(len(numbers), np.int64)
    rest = numbers.copy()
    while rest.any():
        lengths += rest > 0
        rest >>= 1
    return lengths


@functools.cache
def _uniform(bits: int) -> TableSet:
    return TableSet(np.full((1, 1 << bits), TOTAL >> bits, np.int32))


@functools.cache
def _geometric(classes: int) -> TableSet:
    """Class k has probability 2**-(k+1), the last takes the rest; 2**-16 at least."""
    freqs = np.array([max(TOTAL >> (k + 1), 256) for k in range(classes)], np.int32)
    freqs[0] += TOTAL - freqs.sum()
    return TableSet(freqs[None])
