"""Latents of a conditional video codec: hyper-latents, then latents, mostly zeros.

A frame's latents are coded in blocks (a place of the 1/16 grid in a group of channels), in two
passes over a checkerboard whose parity changes from group to group. One bit says whether a block is
zero; the elements of other blocks follow. What a symbol is expected to be depends on integers that
were decoded earlier in this segment, and on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from semvc.bitstream.latents import MAX_QUALITY, SECTION, LatentSection, split
from semvc.entropy.coder import Decoder, Encoder, SymbolCoder
from semvc.entropy.integers import code_uint
from semvc.entropy.mixing import BitMixer, Guess, shares
from semvc.entropy.reference import MAX_SYMBOLS
from semvc.entropy.tables import Int64, Ints, check_ints, logistic_tables, normalize
from semvc.errors import BitstreamError, LimitError
from semvc.signals.latentcontext import NEAR, Elements, Frame, Past, Step, parity, summed
from semvc.signals.latentprior import (
    HISTORY_STEP,
    LADDER,
    LATENT_RANGE,
    LEVELS,
    Prior,
)

Int8 = npt.NDArray[np.int8]

MAX_POSITIONS = 1 << 21  # of all frames of a segment: bounds memory and time, whatever the payload
HYPER_STRIDE = 4  # places of the latents' grid for one of the hyper-latents', each way
MEMORY = 1023
_SYMBOLS_PER_ELEMENT = 24


@dataclass(frozen=True, slots=True, eq=False)
class Latents:
    """A segment's integers.

    `quality` in quarter steps, 0..252. `hyper` int8 [F, Z, h / 4, w / 4]; `latent` int8
    [F, C, h, w] in -127..127, h and w multiples of 4. TypeError or ValueError otherwise.
    """

    quality: int
    hyper: Int8
    latent: Int8

    def __post_init__(self) -> None:
        if not 0 <= self.quality <= MAX_QUALITY:
            raise ValueError(f"quality must be in 0..{MAX_QUALITY}, not {self.quality}")
        for what, array in (("hyper-latents", self.hyper), ("latents", self.latent)):
            if check_ints(array, what).dtype != np.int8 or array.ndim != 4 or not array.size:
                raise ValueError(f"{what} must be int8 [F, C, h, w], not {array.shape}")
        if self.latent.min() < -LATENT_RANGE:
            raise ValueError(f"latents must be in -{LATENT_RANGE}..{LATENT_RANGE}")
        frames, _, height, width = self.latent.shape
        grid = (frames, height // HYPER_STRIDE, width // HYPER_STRIDE)
        if height % HYPER_STRIDE or width % HYPER_STRIDE:
            raise ValueError(f"latents of {height}x{width} are not multiples of {HYPER_STRIDE}")
        if (self.hyper.shape[0], *self.hyper.shape[2:]) != grid:
            raise ValueError(f"hyper-latents {self.hyper.shape} for latents {self.latent.shape}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Latents) and self.canonical_bytes() == other.canonical_bytes()

    def __hash__(self) -> int:
        return hash(self.canonical_bytes())

    def canonical_bytes(self) -> bytes:
        """Quality and both shapes as little-endian u16, then a byte for each element."""
        head = np.array([self.quality, *self.hyper.shape, *self.latent.shape], "<u2").tobytes()
        return head + self.hyper.tobytes() + self.latent.tobytes()


def encode_latents(latents: Latents, prior: Prior, check: int = 0) -> tuple[bytes, int]:
    """Payload of a LATENT section and the chained check; ValueError if the shapes do not fit."""
    runs = [b"", b"", b""]
    frames, _, height, width = latents.latent.shape
    model = LatentModel(prior, (frames, height, width), latents.quality)
    for number, run in enumerate((model.code_intra, model.code_hypers, model.code_inters)):
        if number == 0 or frames > 1:
            encoder = Encoder(check)
            run(encoder, latents)
            runs[number], check = encoder.finish(), encoder.check
    return LatentSection(latents.quality, *runs).to_bytes(), check


def decode_latents(
    payload: bytes, size: tuple[int, int, int], prior: Prior, check: int = 0
) -> tuple[Latents, int]:
    """Inverse of `encode_latents`; `size` is (F, h, w) of the latents.

    Raises BitstreamError for damage and LimitError for more than 2**21 places.
    """
    frames, height, width = size
    if frames * height * width > MAX_POSITIONS:
        raise LimitError(
            f"latents of {frames} frames of {width}x{height} places: the limit is {MAX_POSITIONS}"
        )
    parts = split(payload)
    if bool(parts.latent) != (frames > 1):
        raise BitstreamError(f"runs that a segment of {frames} frames has not", section=SECTION)
    model = LatentModel(prior, size, parts.quality)
    budget = min(MAX_SYMBOLS, model.latent.size * _SYMBOLS_PER_ELEMENT + model.hyper.size)
    runs = (
        (parts.intra, model.code_intra),
        (parts.hyper, model.code_hypers),
        (parts.latent, model.code_inters),
    )
    for data, run in runs:
        if data:
            decoder = Decoder(data, budget, check)
            run(decoder, None)
            decoder.finish()
            check = decoder.check
    return Latents(parts.quality, model.hyper, model.latent), check


class LatentModel:
    """The adaptive state of one segment, and its integers as far as they are coded."""

    def __init__(self, prior: Prior, size: tuple[int, int, int], quality: int) -> None:
        frames, height, width = size
        self._prior, self._shape, self._quality = prior, prior.shape, quality
        self._blocks = _mixer(prior, "block", prior.shape.block_families)
        self._elements = _mixer(prior, "element", prior.shape.element_families)
        self._hyper_tables = prior.adaptive("hyper")
        self._magnitudes = _mixer(prior, "magnitude", prior.shape.magnitude_families)
        self._signs = prior.adaptive("sign")
        grid = (height // HYPER_STRIDE, width // HYPER_STRIDE)
        self.hyper: Int8 = np.zeros((frames, prior.shape.hyper, *grid), np.int8)
        self.latent: Int8 = np.zeros((frames, prior.shape.latents, height, width), np.int8)
        self._lengths = prior.tables["lengths"].astype(np.int64)
        self._levels = prior.tables["levels"].astype(np.int64)
        self._past = Past.empty(prior.shape, height, width)
        board = parity(height, width)
        self._boards = [np.nonzero(board == odd) for odd in (0, 1)]

    def code_intra(self, coder: SymbolCoder, given: Latents | None) -> None:
        """Code the first frame."""
        self._code_hyper(coder, given, 0)
        self._code_latent(coder, given, 0)

    def code_hypers(self, coder: SymbolCoder, given: Latents | None) -> None:
        """Code the hyper-latents of the other frames."""
        for t in range(1, len(self.hyper)):
            self._code_hyper(coder, given, t)

    def code_inters(self, coder: SymbolCoder, given: Latents | None) -> None:
        """Code the latents of the other frames."""
        for t in range(1, len(self.latent)):
            self._code_latent(coder, given, t)

    def state(self) -> dict[str, Ints]:
        """All tables as they are now, under the names of `LatentShape.arrays`."""
        found: dict[str, Ints] = {
            "hyper": self._hyper_tables.state(),
            "sign": self._signs.state(),
        }
        mixers = {"block": self._blocks, "element": self._elements, "magnitude": self._magnitudes}
        for name, mixer in mixers.items():
            found[f"{name}.counts"], found[f"{name}.weights"] = mixer.state()
        return found

    # --- hyper-latents

    def _code_hyper(self, coder: SymbolCoder, given: Latents | None, t: int) -> None:
        shape, now = self._shape, self.hyper[t]
        before = np.abs(self.hyper[t - 1].astype(np.int64)) if t else np.zeros(now.shape, np.int64)
        rows = np.arange(shape.hyper)[:, None, None] + shape.hyper * min(t, 1)
        rows = (rows * 3 + np.minimum(2, before)) * 3
        for half in (0, 1):
            near = summed(np.abs(now.astype(np.int64)), NEAR) if half else 0
            ys, xs = np.nonzero(parity(*now.shape[1:]) == half)
            index = (rows + np.minimum(2, near))[:, ys, xs].reshape(-1)
            values = None
            if given is not None:
                values = given.hyper[t][:, ys, xs].reshape(-1).astype(np.int64) - shape.hyper_low
            coded = self._hyper_tables.code(coder, values, len(index), index)
            now[:, ys, xs] = (coded + shape.hyper_low).reshape(shape.hyper, -1)

    # --- latents

    def _code_latent(self, coder: SymbolCoder, given: Latents | None, t: int) -> None:
        frame = Frame(self._past, self.latent[t])
        wanted = None if given is None else given.latent[t]
        blocks = None
        if wanted is not None:
            shape = (self._shape.groups, -1, *wanted.shape[1:])
            blocks = (wanted != 0).reshape(shape).any(axis=1)
        inter = min(t, 1)
        for half in (0, 1):
            index = self._indices(t, half, frame)
            for group in range(self._shape.groups):
                lead = (2 * inter + half) * self._shape.groups + group
                step = Step(lead, inter, half, group, *self._boards[(group + half) % 2])
                level = self._level(step, index)
                flags = None if blocks is None else blocks[group][step.ys, step.xs].astype(np.int64)
                coded = self._blocks.code(coder, flags, *frame.block_contexts(step, level))
                found = np.flatnonzero(coded)
                frame.note(step, found, self._code_blocks(coder, wanted, step, frame, found, index))
        self._past = self._past.after(frame)

    def _indices(self, t: int, half: int, frame: Frame) -> Int64 | None:
        """What the network of this pass says of every element, int64 [C, h, w] in 0..63."""
        net = self._prior.nets.get((min(t, 1), half))
        if net is None:
            return None
        planes: list[Ints] = [self._past.history]
        if half:
            planes.append(np.minimum(np.abs(frame.now.astype(np.int16)), 15) * HISTORY_STEP)
        hyper = (np.clip(self.hyper[t].astype(np.int16), -8, 7) + 8) * 16
        planes.append(hyper.repeat(HYPER_STRIDE, 1).repeat(HYPER_STRIDE, 2))
        planes.append(np.full((1, *frame.now.shape[1:]), self._quality))
        found = net.run(np.concatenate([plane.astype(np.uint8) for plane in planes]))
        return found.astype(np.int64)

    def _level(self, step: Step, index: Int64 | None) -> Int64:
        """How much the indices of a step's blocks weigh together, int64 [n] in 0..63."""
        size = self._shape.group
        if index is None:
            total = np.full(len(step.ys), size * self._lengths[0])
        else:
            channels = slice(step.group * size, (step.group + 1) * size)
            total = self._lengths[index[channels][:, step.ys, step.xs]].sum(axis=0)
        return np.minimum(LEVELS - 1, np.searchsorted(self._levels, total, side="right"))

    def _code_blocks(
        self,
        coder: SymbolCoder,
        wanted: Int8 | None,
        step: Step,
        frame: Frame,
        found: Int64,
        index: Int64 | None,
    ) -> Int64:
        """Code the blocks `found` [m] of a step, which are not zero; their elements [m, S]."""
        size = self._shape.group
        if not len(found):
            return np.zeros((0, size), np.int64)
        around = Elements.of(frame, step, self._shape, found, index)
        values = None
        if wanted is not None:
            channels = slice(step.group * size, (step.group + 1) * size)
            values = wanted[channels][:, step.ys[found], step.xs[found]].T.astype(np.int64)
        return self._code_values(coder, values, step, around)

    def _code_values(
        self, coder: SymbolCoder, values: Int64 | None, step: Step, around: Elements
    ) -> Int64:
        """Code blocks that are not zero; returns their elements int64 [n, S]."""
        guess = self._elements.predict(around.contexts, around.select)
        bits = _code_pattern(
            coder, None if values is None else values != 0, guess, self._shape.group
        )
        self._elements.learn(guess, bits.reshape(-1))
        chosen = np.flatnonzero(bits)
        given = None if values is None else values.reshape(-1)[chosen]
        rows = (step.inter * 3 + 1 + np.sign(around.before)) * 3 + 1 + np.sign(around.near)
        signs = None if given is None else (given < 0).astype(np.int64)
        negative = self._signs.code(coder, signs, len(chosen), rows.reshape(-1)[chosen])
        wanted = None if given is None else np.abs(given)
        sizes = self._code_sizes(coder, wanted, step.inter, around, chosen)
        result = np.zeros(bits.size, np.int64)
        result[chosen] = np.where(negative == 1, -sizes, sizes)
        shaped: Int64 = result.reshape(bits.shape)
        return shaped

    def _code_sizes(
        self,
        coder: SymbolCoder,
        given: Int64 | None,
        inter: int,
        around: Elements,
        chosen: Int64,
    ) -> Int64:
        """Code magnitudes, 1..127, of the elements `chosen`: a bit for each rung of a ladder."""
        ladder = around.ladder[:, chosen]
        sizes, left = np.ones(len(chosen), np.int64), np.arange(len(chosen))
        for rung in range(LADDER):
            bits = None if given is None else (given[left] > rung + 1).astype(np.int64)
            contexts = ladder[:, left] + around.rungs[:, None] * rung
            select = np.full(len(left), inter * LADDER + rung, np.int64)
            more = self._magnitudes.code(coder, bits, contexts, select)
            left = left[more == 1]
            sizes[left] += 1
            if not len(left):
                return sizes
        rest = None if given is None else given[left] - LADDER - 1
        sizes[left] += code_uint(coder, rest, len(left), LATENT_RANGE - LADDER - 1)
        return sizes


def _mixer(prior: Prior, name: str, families: tuple[int, ...]) -> BitMixer:
    starts = np.split(prior.tables[f"{name}.counts"], np.cumsum(families)[:-1])
    return BitMixer(starts, prior.tables[f"{name}.weights"], memory=MEMORY)


def _code_pattern(
    coder: SymbolCoder, nonzero: npt.NDArray[np.bool_] | None, guess: Guess, size: int
) -> Int64:
    """Code which elements of n blocks, each with one at least, are not zero; int64 [n, S].

    First the place of the first one, whose table follows from the elements' predictions; then a bit
    for each element behind it.
    """
    ones = shares()[guess.rows].reshape(-1, size)
    counts, left = np.zeros_like(ones), np.full(len(ones), 1 << 16, np.int64)
    for channel in range(size):
        counts[:, channel] = left * ones[:, channel] + 1
        left = left * ((1 << 16) - ones[:, channel]) >> 16
    given = None if nonzero is None else nonzero.argmax(axis=1)
    first = coder.code(given, len(ones), normalize(counts), np.arange(len(ones)))
    places = np.arange(size)
    bits: Int64 = (places == first[:, None]).astype(np.int64)
    behind = places > first[:, None]
    rest = None if nonzero is None else nonzero[behind].astype(np.int64)
    rows = guess.rows.reshape(-1, size)[behind]
    bits[behind] = coder.code(rest, len(rows), logistic_tables(), rows)
    return bits
