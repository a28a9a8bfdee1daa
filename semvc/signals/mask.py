"""Mask: where up to eight moving objects are, as small binary maps of their own.

Each object has a track of maps inside one box, at a reduced size of its own. A pixel is predicted
from its neighbours above and to the left and from the map before, moved by one whole-pixel vector
for each object and map. Pixels that do not depend on each other, in one map, across maps and
across objects, form a wave and are coded together.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from semvc.entropy.coder import Decoder, Encoder, SymbolCoder
from semvc.entropy.integers import code_bits, unzigzag, zigzag
from semvc.entropy.mixing import BitMixer
from semvc.entropy.tables import (
    LOGIT_ROWS,
    PRECISION,
    AdaptiveTables,
    Int64,
    Ints,
    TableSet,
    check_ints,
    logistic_tables,
    normalize,
)
from semvc.errors import BitstreamError

if TYPE_CHECKING:
    from semvc.types import UInt8

Int16 = npt.NDArray[np.int16]

MAX_OBJECTS = 8
MAX_MAPS = 1024
MAX_STEP = 64
MAX_SCALE = 16
MAX_PIXELS = 1 << 21  # of all maps of a segment: seconds of work, whatever the payload's size
REACH = 15  # of a motion vector in map pixels, each way
MEMORY = 1023
_PAD = REACH + 3
_LAG = 4 * (REACH + 2) + 1  # waves between a map and the next: all it may look at is then known
_LEVELS = (1, 3, 8)  # sizes of the last residual from which a row of motion tables begins
_SYMBOLS_PER_MAP = 3  # of an object, pixels apart
_HEADER_SYMBOLS = 2 + MAX_OBJECTS * 9
STRENGTH = 4  # observations that a context's start counts stand for
# (row, column) steps of what a pixel looks at: first what is coded by now, then the map before
NEAR = (
    (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, -2), (-2, 0), (-1, -2), (-1, 2), (-2, -1), (-2, 1)
)  # fmt: skip
BEFORE = (
    (0, 0), (0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (0, -1), (-1, 0), (-1, -1), (-1, 1)
)  # fmt: skip
# families of contexts: how many of NEAR and of BEFORE their bits are, the first most significant
FAMILIES = ((10, 1), (4, 9), (6, 7))
# trained logits in 1/256 nat of families 0, 1, 2, then of family 0 where there is no map before:
# a constant, then a weight for each bit that is set
LOGITS = (
    (-1542, 1383, 197, 1141, 759, -24, -333, -335, 325, -318, -244, 520),
    (-1650, 960, 28, 984, 753, 478, 180, 275, 176, 252, 8, 44, -184, -637),
    (-1592, 1256, -62, 1174, 767, -241, -447, 145, 2, 276, 245, 36, 13, 81),
    (-1463, 1595, 231, 1137, 709, -39, -271, -390, 540, -346, -293),
)
# trained weights in 1/4096 of the three families, without and with a map before
WEIGHTS = ((4096, 0, 0), (1400, 1400, 1400))


@dataclass(frozen=True, slots=True, eq=False)
class MaskObject:
    """One object's track: `bits` uint8 {0, 1} [T, h, w] inside a box of its map.

    A map has 1/`scale` of the picture's sides, rounded up (1..16); the box's first pixel is at row
    `top`, column `left`, and all maps together touch each of its four sides. A map without a set
    pixel means that the object is not there. `motion` int16 [T, 2] is the (row, column) step, in
    ±15, to the matching pixel of the map before; zero where the object is missing in one of them.
    Raises TypeError or ValueError otherwise.
    """

    bits: UInt8
    motion: Int16
    top: int
    left: int
    scale: int

    def __post_init__(self) -> None:
        bits, motion = check_ints(self.bits, "mask maps"), check_ints(self.motion, "mask motion")
        if bits.dtype != np.uint8 or bits.ndim != 3 or not bits.size or bits.max() > 1:
            raise ValueError(f"maps must be uint8 0 or 1 [T, h, w], not {bits.dtype} {bits.shape}")
        if motion.dtype != np.int16 or motion.shape != (len(bits), 2):
            raise ValueError(f"motion must be int16 [T, 2], not {motion.dtype} {motion.shape}")
        if not 1 <= self.scale <= MAX_SCALE or min(self.top, self.left) < 0:
            raise ValueError(f"scale {self.scale}, box from {self.top}, {self.left}")
        union = bits.max(axis=0)
        sides = (union[0], union[-1], union[:, 0], union[:, -1])
        if not all(bool(side.any()) for side in sides):
            raise ValueError("a mask's box must fit it on all four sides")
        lone = np.ones(len(bits), bool)
        lone[1:] = ~(self.present[1:] & self.present[:-1])
        if abs(motion).max() > REACH or motion[lone].any():
            raise ValueError(f"mask motion is in ±{REACH}, and 0 where there is nothing to follow")

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Whether the object is there, bool [T]."""
        return np.asarray(self.bits.max(axis=(1, 2)) > 0)


@dataclass(frozen=True, slots=True, eq=False)
class MaskTrack:
    """One to eight objects, each with a map every `step` frames (1..64)."""

    objects: tuple[MaskObject, ...]
    step: int

    def __post_init__(self) -> None:
        counts = {len(part.bits) for part in self.objects}
        if not 1 <= len(self.objects) <= MAX_OBJECTS or len(counts) != 1 or max(counts) > MAX_MAPS:
            raise ValueError(f"{len(self.objects)} objects of {counts} maps")
        if not 1 <= self.step <= MAX_STEP:
            raise ValueError(f"step {self.step} is out of range")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MaskTrack) and self.canonical_bytes() == other.canonical_bytes()

    def __hash__(self) -> int:
        return hash(self.canonical_bytes())

    def canonical_bytes(self) -> bytes:
        """Step and P as little-endian u16; of each object box, T, h, w, motion and bits."""
        data = np.array([self.step, len(self.objects)], "<u2").tobytes()
        for part in self.objects:
            head = np.array([part.scale, part.top, part.left, *part.bits.shape], "<u2")
            data += head.tobytes() + part.motion.astype("<i2").tobytes() + part.bits.tobytes()
        return data


@dataclass(frozen=True, slots=True)
class _Box:
    """Where an object's maps lie: scale, and place and size in map pixels."""

    scale: int
    top: int
    left: int
    rows: int
    columns: int


def code_masks(
    coder: SymbolCoder, track: MaskTrack | None, frames: int, size: tuple[int, int]
) -> MaskTrack:
    """Code the masks of a segment of `frames` frames of `size` = (height, width).

    Raises ValueError when they do not fit, BitstreamError for damage.
    """
    step = _number(coder, None if track is None else track.step - 1, 6) + 1
    people = _number(coder, None if track is None else len(track.objects) - 1, 3) + 1
    count = -(-frames // step)
    if track is not None and any(len(part.bits) != count for part in track.objects):
        raise ValueError(f"{frames} frames need {count} maps every {step} frames")
    given = [None] * people if track is None else list(track.objects)
    boxes = [_code_box(coder, part, size) for part in given]
    if count > MAX_MAPS or count * sum(box.rows * box.columns for box in boxes) > MAX_PIXELS:
        if track is not None:
            raise ValueError(f"masks have more than {MAX_PIXELS} pixels or {MAX_MAPS} maps")
        raise BitstreamError("masks have too many pixels", section="MASK")
    shown = None if track is None else np.stack([p.present for p in track.objects], 1)
    present = _code_presence(coder, shown, (count, people))
    moved = None if track is None else np.stack([p.motion for p in track.objects], 1)
    motion = _code_motion(coder, moved, present)
    bits = _code_pixels(
        coder, None if track is None else [p.bits for p in track.objects], boxes, present, motion
    )
    try:
        parts = (
            MaskObject(field, motion[:, k].astype(np.int16), box.top, box.left, box.scale)
            for k, (field, box) in enumerate(zip(bits, boxes, strict=True))
        )
        found = MaskTrack(tuple(parts), step)
    except ValueError as error:
        raise BitstreamError(str(error), section="MASK") from error
    if any((part.present != present[:, k]).any() for k, part in enumerate(found.objects)):
        raise BitstreamError("an object that is there has no pixel", section="MASK")
    return found


def encode_masks(
    track: MaskTrack, frames: int, size: tuple[int, int], check: int = 0
) -> tuple[bytes, int]:
    """Payload of a MASK section and the chained check."""
    encoder = Encoder(check)
    code_masks(encoder, track, frames, size)
    return encoder.finish(), encoder.check


def decode_masks(
    payload: bytes, frames: int, size: tuple[int, int], check: int = 0
) -> tuple[MaskTrack, int]:
    """Inverse of `encode_masks`."""
    most = _HEADER_SYMBOLS + frames * MAX_OBJECTS * _SYMBOLS_PER_MAP + MAX_PIXELS
    decoder = Decoder(payload, most, check)
    track = code_masks(decoder, None, frames, size)
    decoder.finish()
    return track, decoder.check


def _number(coder: SymbolCoder, value: int | None, bits: int) -> int:
    return int(code_bits(coder, None if value is None else np.array([value]), 1, bits)[0])


def _code_box(coder: SymbolCoder, part: MaskObject | None, size: tuple[int, int]) -> _Box:
    """Scale, then first row and number of rows, then columns."""
    scale = _number(coder, None if part is None else part.scale - 1, 4) + 1
    found = []
    for axis, side in enumerate(size):
        length = -(-side // scale)
        start = None if part is None else (part.top, part.left)[axis]
        extent = None if part is None else part.bits.shape[1 + axis]
        if start is not None and extent is not None and start + extent > length:
            raise ValueError(f"a mask's box ends at {start + extent} of {length}")
        start = _number(coder, start, (length - 1).bit_length())
        if start >= length:
            raise BitstreamError("a mask's box begins outside", section="MASK")
        rest = length - 1 - start
        more = _number(coder, None if extent is None else extent - 1, rest.bit_length())
        if more > rest:
            raise BitstreamError("a mask's box ends outside", section="MASK")
        found += [start, more + 1]
    return _Box(scale, found[0], found[2], found[1], found[3])


def _code_presence(
    coder: SymbolCoder, given: npt.NDArray[np.bool_] | None, shape: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Whether each object is there, bool [T, P]; each map is a batch."""
    tables = AdaptiveTables(normalize(np.array([[30, 2], [1, 60], [1, 3]])), strength=16)
    present = np.zeros(shape, bool)
    row = np.full(shape[1], 2)  # the first map
    for t in range(shape[0]):
        flags = None if given is None else given[t].astype(np.int64)
        present[t] = tables.code(coder, flags, shape[1], row) > 0
        row = present[t].astype(np.int64)
    return present


def _code_motion(coder: SymbolCoder, given: Ints | None, present: npt.NDArray[np.bool_]) -> Int64:
    """Motion int64 [T, P, 2] of objects that are there in a map and in the one before."""
    tables = AdaptiveTables(_motion_tables(), strength=16)
    motion = np.zeros((*present.shape, 2), np.int64)
    last = np.full(present.shape[1], 2)
    for t in range(1, len(present)):
        who = np.flatnonzero(present[t] & present[t - 1])
        if not len(who):
            continue
        row = np.searchsorted(np.array(_LEVELS), last[who], side="right")
        size = np.zeros(len(who), np.int64)
        for axis in (0, 1):
            guess = motion[t - 1, who, axis]
            rest = None if given is None else zigzag(given[t, who, axis].astype(np.int64) - guess)
            found = unzigzag(tables.code(coder, rest, len(who), row).astype(np.int64))
            motion[t, who, axis] = guess + found
            size += abs(found)
        last[who] = size
        if abs(motion[t]).max() > REACH:
            raise BitstreamError("a mask's motion is out of range", section="MASK")
    return motion


@functools.cache
def _motion_tables() -> TableSet:
    """Rows by the size of the last residual: geometric over zigzag residuals of -30..30."""
    rows = []
    for ratio in (4, 8, 11, 14):  # sixteenths that each symbol has of the one before
        row = [1 << 20]
        while len(row) < 4 * REACH + 1:
            row.append(max(1 << 8, row[-1] * ratio >> 4))
        rows.append(row)
    return normalize(np.array(rows))


# --- pixels


@functools.cache
def start_counts() -> tuple[Ints, ...]:
    """Start counts [contexts, 2] of each family, from the trained logits.

    Family 0 has twice its contexts plus as many again as its near bits give: those without a map
    before, last.
    """
    result = []
    for family, (near, before) in enumerate(FAMILIES):
        counts = _counts_of(LOGITS[family], near + before)
        if family == 0:
            counts = np.concatenate((counts, _counts_of(LOGITS[3], near)))
        result.append(counts)
    return tuple(result)


def _counts_of(logits: tuple[int, ...], bits: int) -> Ints:
    numbers = np.arange(1 << bits)[:, None]
    flags = numbers >> np.arange(bits - 1, -1, -1) & 1
    total = logits[0] + flags @ np.array(logits[1:])
    half = LOGIT_ROWS // 2
    ones = logistic_tables().freqs[np.clip(total, -half, half - 1) + half, 1].astype(np.int64)
    one = (ones * STRENGTH + (1 << (PRECISION - 1))) >> PRECISION
    return np.stack((STRENGTH - one, one), 1)


def _code_pixels(
    coder: SymbolCoder,
    given: list[UInt8] | None,
    boxes: list[_Box],
    present: npt.NDArray[np.bool_],
    motion: Int64,
) -> list[UInt8]:
    """Code the maps of all objects, wave by wave; uint8 [T, h, w] each."""
    layout = _Layout(boxes, present, motion)
    mixer = BitMixer(start_counts(), np.array(WEIGHTS), memory=MEMORY)
    source = None if given is None else np.concatenate([part.ravel() for part in given])
    flat = layout.field
    for pixels, places, back in layout.waves():
        fresh = back < 0
        near = [flat[places + step] for step in layout.offsets(NEAR, pixels)]
        old = np.where(fresh, 0, back)
        before = [flat[old + step] * ~fresh for step in layout.offsets(BEFORE, pixels)]
        contexts = np.stack([_packed(near[:a] + before[:b]) for a, b in FAMILIES])
        lone = (2 << FAMILIES[0][0]) + _packed(near)
        contexts[0] = np.where(fresh, lone, contexts[0])
        bits = None if source is None else source[pixels]
        flat[places] = mixer.code(coder, bits, contexts, (~fresh).astype(np.int64))
    return layout.maps()


def _packed(bits: list[UInt8]) -> Int64:
    number = np.zeros(len(bits[0]), np.int64)
    for bit in bits:
        number = number << 1 | bit
    return number


class _Layout:
    """All maps of all objects in one array, each padded with zeros on every side."""

    def __init__(self, boxes: list[_Box], present: npt.NDArray[np.bool_], motion: Int64) -> None:
        self._boxes, self._present, self._motion = boxes, present, motion
        self._count = len(present)
        self._rows = [box.rows + 2 * _PAD for box in boxes]
        self._columns = [box.columns + 2 * _PAD for box in boxes]
        areas = [self._count * r * c for r, c in zip(self._rows, self._columns, strict=True)]
        self._starts = np.cumsum([0, *areas])
        self._first = np.cumsum([0, *(self._count * box.rows * box.columns for box in boxes)])
        self.field: UInt8 = np.zeros(int(self._starts[-1]), np.uint8)
        self._width = np.array(self._columns)

    def maps(self) -> list[UInt8]:
        found = []
        for k in range(len(self._boxes)):
            part = self.field[self._starts[k] : self._starts[k + 1]]
            padded = part.reshape(self._count, self._rows[k], self._columns[k])
            found.append(np.ascontiguousarray(padded[:, _PAD:-_PAD, _PAD:-_PAD]))
        return found

    def offsets(self, steps: tuple[tuple[int, int], ...], pixels: Int64) -> Iterator[Int64]:
        """Steps in the padded field, for each pixel's own object."""
        width = self._width[np.searchsorted(self._first, pixels, side="right") - 1]
        for dy, dx in steps:
            yield dy * width + dx

    def waves(self) -> Iterator[tuple[Int64, Int64, Int64]]:
        """Yield (pixel numbers, places in the field, places in the map before) of each wave.

        Wave x + 3 y + _LAG t of column x, row y, map t. Inside it pixels are in order of object,
        map, row, column. Without a map before, the last place is -1.
        """
        times, pixels, places, back = [], [], [], []
        for k, box in enumerate(self._boxes):
            y, x = np.divmod(np.arange(box.rows * box.columns), box.columns)
            area = self._rows[k] * self._columns[k]
            place = (y + _PAD) * self._columns[k] + x + _PAD
            for t in np.flatnonzero(self._present[:, k]):
                here = place + self._starts[k] + t * area
                follows = t > 0 and self._present[t - 1, k]
                step = self._motion[t, k, 0] * self._columns[k] + self._motion[t, k, 1]
                times.append(x + 3 * y + _LAG * t)
                pixels.append(self._first[k] + t * len(y) + np.arange(len(y)))
                places.append(here)
                back.append(here - area + step if follows else np.full(len(y), -1))
        if not times:
            return
        time = np.concatenate(times)
        order = np.argsort(time, kind="stable")
        ends = np.flatnonzero(np.diff(time[order])) + 1
        columns = [np.concatenate(part)[order] for part in (pixels, places, back)]
        yield from zip(*(np.split(part, ends) for part in columns), strict=True)
