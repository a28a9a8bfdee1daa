"""Sketch: thin binary edge maps at a reduced size and rate, coded with several contexts.

A pixel is predicted from its neighbours above and to the left, from the motion-compensated map
before, and from a guide computed from the decoded base layer. Pixels that do not depend on each
other, in one map and across maps, form a wave and are coded together.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from semvc.entropy.coder import Decoder, Encoder, SymbolCoder
from semvc.entropy.integers import code_bits
from semvc.entropy.mixing import BitMixer
from semvc.entropy.tables import Int32, Int64, Ints, check_ints, load_counts
from semvc.errors import BitstreamError
from semvc.signals.guide import LEVELS, REACH, RIDGES, Guide, build_guide

if TYPE_CHECKING:
    from semvc.types import UInt8

Int16 = npt.NDArray[np.int16]

MAX_SCALE = 16
MAX_STEP = 64
MAX_PIXELS = 1 << 22  # map pixels of one segment: seconds of work, whatever the payload's size
MEMORY = 1023
FAMILY_SIZES = (4096, 8192, 8192, RIDGES * LEVELS * RIDGES * 32)
SELECTORS = 4 * RIDGES
_PAD = REACH + 3
_LAG = 4 * (REACH + 1) + 1  # waves between a map and the next: all it may look at is then known
_HEADER_SYMBOLS = 2
_NEAR = ((0, -1), (-1, -1), (-1, 0), (-1, 1))
_FAR = ((0, -2), (-1, -2), (-1, 2), (-2, -1), (-2, 0), (-2, 1))
_AROUND = tuple((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1))


@dataclass(frozen=True, slots=True)
class Sketch:
    """`maps` uint8 {0, 1} [T, h, w], one every `step` frames, each 1/`scale` of the frame's side.

    1 <= step <= 64, 1 <= scale <= 16. Raises TypeError or ValueError otherwise.
    """

    maps: UInt8
    step: int
    scale: int

    def __post_init__(self) -> None:
        maps = check_ints(self.maps, "edge maps")
        if maps.dtype != np.uint8 or maps.ndim != 3 or not maps.size or maps.max() > 1:
            raise ValueError(f"maps must be uint8 0 or 1 [T, h, w], not {maps.dtype} {maps.shape}")
        if not 1 <= self.step <= MAX_STEP or not 1 <= self.scale <= MAX_SCALE:
            raise ValueError(f"step {self.step} or scale {self.scale} is out of range")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sketch) and self.canonical_bytes() == other.canonical_bytes()

    def __hash__(self) -> int:
        return hash(self.canonical_bytes())

    def canonical_bytes(self) -> bytes:
        """Step, scale and shape as little-endian u16, then a byte for each pixel."""
        head = np.array([self.step, self.scale, *self.maps.shape], "<u2").tobytes()
        return head + self.maps.tobytes()


@dataclass(frozen=True, slots=True)
class SketchFrame:
    """What both ends know of a segment: its frames, their size, and the decoded base layer.

    `base` is luma uint8 [Tb, hb, wb], one picture every `base_step` frames, or None.
    """

    frames: int
    height: int
    width: int
    base: UInt8 | None = None
    base_step: int = 1

    def shape(self, step: int, scale: int) -> tuple[int, int, int]:
        """(T, h, w) of the maps: all divisions round up."""
        return -(-self.frames // step), -(-self.height // scale), -(-self.width // scale)


def code_sketch(coder: SymbolCoder, sketch: Sketch | None, frame: SketchFrame) -> Sketch:
    """Code a sketch; raises ValueError when it does not fit `frame`, BitstreamError for damage."""
    given = None if sketch is None else np.array([sketch.step - 1])
    step = int(code_bits(coder, given, 1, 6)[0]) + 1
    given = None if sketch is None else np.array([sketch.scale - 1])
    scale = int(code_bits(coder, given, 1, 4)[0]) + 1
    shape = frame.shape(step, scale)
    if sketch is not None and sketch.maps.shape != shape:
        raise ValueError(f"maps must be {shape} for this segment, not {sketch.maps.shape}")
    if shape[0] * shape[1] * shape[2] > MAX_PIXELS:
        if sketch is not None:
            raise ValueError(f"a sketch of {shape} has more than {MAX_PIXELS} pixels")
        raise BitstreamError(f"a sketch has more than {MAX_PIXELS} pixels", section="SKETCH")
    guide = build_guide(frame.base, frame.base_step, shape, step)
    mixer = BitMixer(*start_state(), memory=MEMORY)
    maps = code_maps(coder, None if sketch is None else sketch.maps, guide, mixer)
    return Sketch(maps, step, scale)


def encode_sketch(sketch: Sketch, frame: SketchFrame, check: int = 0) -> tuple[bytes, int]:
    """Payload of a SKETCH section and the chained check."""
    encoder = Encoder(check)
    code_sketch(encoder, sketch, frame)
    return encoder.finish(), encoder.check


def decode_sketch(payload: bytes, frame: SketchFrame, check: int = 0) -> tuple[Sketch, int]:
    """Inverse of `encode_sketch`, with the same `frame`."""
    decoder = Decoder(payload, MAX_PIXELS + _HEADER_SYMBOLS, check)
    sketch = code_sketch(decoder, None, frame)
    decoder.finish()
    return sketch, decoder.check


@functools.cache
def start_state() -> tuple[list[Ints], Ints]:
    """Trained counts of each family, and weights int16 [SELECTORS, families]."""
    counts = load_counts("sketch.counts")
    ends = np.cumsum(FAMILY_SIZES)[:-1]
    stored = load_counts("sketch.weights").view(np.int16)
    return np.split(counts, ends), stored


def code_maps(coder: SymbolCoder, maps: UInt8 | None, guide: Guide, mixer: BitMixer) -> UInt8:
    """Code all pixels, wave by wave; returns uint8 [T, h, w]."""
    count, height, width = guide.ridge.shape
    field = np.zeros((count + 1, height + 2 * _PAD, width + 2 * _PAD), np.uint8)
    inner = field[1:, _PAD:-_PAD, _PAD:-_PAD]
    flat = field.reshape(-1)
    static = _static_contexts(guide)
    row = width + 2 * _PAD
    here = _offsets(_NEAR + _FAR, row)
    around = _offsets(_AROUND, row)
    source = None if maps is None else maps.reshape(-1)
    for pixels, places in _waves(count, height, width):
        near = _gather(flat, places, here)
        back = places - field[0].size + static.motion[pixels]
        contexts, select = _contexts(near, _gather(flat, back, around), static, pixels)
        bits = None if source is None else source[pixels]
        flat[places] = mixer.code(coder, bits, contexts, select)
    return np.ascontiguousarray(inner)


@dataclass(frozen=True, slots=True)
class _Static:
    """Parts of the contexts that the guide alone decides, for each pixel of all maps."""

    motion: Int32  # step in the padded field
    ridge: UInt8
    pattern: Int16  # 9 bits: strong ridges around
    centre: Int16  # ridge and strength here, strongest ridge beside


def _static_contexts(guide: Guide) -> _Static:
    count, height, width = guide.ridge.shape
    row = width + 2 * _PAD
    motion = guide.motion[..., 0].astype(np.int32) * row + guide.motion[..., 1]
    padded = np.pad(guide.ridge, ((0, 0), (1, 1), (1, 1)))
    pattern = np.zeros((count, height, width), np.int16)
    beside = np.zeros((count, height, width), np.uint8)
    for dy, dx in _AROUND:
        part = padded[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        pattern = pattern << 1 | (part >= 2)
        if (dy, dx) != (0, 0):
            beside = np.maximum(beside, part)
    centre = (guide.ridge.astype(np.int16) * LEVELS + guide.strength) * RIDGES + beside
    return _Static(motion.ravel(), guide.ridge.ravel(), pattern.ravel(), centre.ravel())


def _contexts(near: Int64, before: Int64, static: _Static, pixels: Int64) -> tuple[Int64, Int64]:
    """Contexts int64 [4, n] and selectors [n] of the n pixels of a wave.

    `near` holds 4 near and 6 far neighbours, most significant first; `before` the 3 x 3 of the
    map before.
    """
    four = near >> 6
    middle = before >> 4 & 1
    ridge = static.ridge[pixels].astype(np.int64)
    centre = static.centre[pixels].astype(np.int64)
    contexts = np.stack(
        [
            near << 2 | middle << 1 | (ridge >= 2),
            four << 9 | before,
            four << 9 | static.pattern[pixels],
            centre * 32 + (four << 1 | middle),
        ]
    )
    selector = ridge * 4 + ((four > 0) * 2 + (before > 0))
    return contexts, selector


def _gather(flat: UInt8, places: Int64, offsets: Int64) -> Int64:
    """One number for each place: the bits at `offsets` from it, first one most significant."""
    result = np.zeros(len(places), np.int64)
    for offset in offsets.tolist():
        result = result << 1 | flat[places + offset]
    return result


def _offsets(steps: tuple[tuple[int, int], ...], row: int) -> Int64:
    return np.array([dy * row + dx for dy, dx in steps], np.int64)


def _waves(count: int, height: int, width: int) -> Iterator[tuple[Int64, Int64]]:
    """Yield (pixel numbers, places in the padded field) of each wave, in order.

    Wave x + 3 y + _LAG t of column x, row y, map t. In a wave, pixels are in raster order.
    """
    rows, columns = height + 2 * _PAD, width + 2 * _PAD
    number = np.arange(height * width, dtype=np.int64)
    y, x = number // width, number % width
    time = x + 3 * y
    order = np.argsort(time, kind="stable")
    bounds = np.searchsorted(time[order], np.arange(width + 3 * height + 1))
    place = (y + _PAD) * columns + x + _PAD
    last = width - 1 + 3 * (height - 1)
    for wave in range(last + 1 + _LAG * (count - 1)):
        pixels, places = [], []
        for t in range(max(0, -(-(wave - last) // _LAG)), min(count - 1, wave // _LAG) + 1):
            at = wave - _LAG * t
            chosen = order[bounds[at] : bounds[at + 1]]
            pixels.append(chosen + t * height * width)
            places.append(place[chosen] + (t + 1) * rows * columns)
        if pixels:  # none between maps that are smaller than the lag
            yield np.concatenate(pixels), np.concatenate(places)
