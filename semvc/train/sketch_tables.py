"""Trains the start tables of the sketch coder on maps and the base layers they go with.

Each video gives its first seconds, in one of a few settings in turn: size and quality of the base
layer, rate and density of the maps.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from semvc.entropy.coder import Counter, SymbolCoder
from semvc.entropy.mixing import WEIGHT_BITS, BitMixer
from semvc.entropy.tables import LOGIT_UNIT, Int32, Int64, Ints
from semvc.media import av1, color
from semvc.media.reader import VideoReader
from semvc.signals import sketch
from semvc.signals.edges import extract_edges
from semvc.signals.guide import Guide, build_guide

UInt8 = npt.NDArray[np.uint8]

Sample = tuple[UInt8, Guide]  # maps [T, h, w] and their guide
Floats = npt.NDArray[np.float64]

_STRENGTH = 16  # observations that a well-trained context starts with
_KEEP = 400_000  # symbols kept for fitting the weights


# Base layer's factor and crf; frames between maps, frame side over map side, density of the maps.
_SETTINGS = ((2, 50, 3, 4, 0.04), (2, 42, 6, 4, 0.05), (4, 50, 5, 5, 0.03), (2, 55, 8, 6, 0.04))
_FRAMES = 72
_MAPS = 14


def sample(video: Path, number: int) -> Sample:
    """Maps and guide of the start of `video`, in setting `number` (modulo their count)."""
    factor, crf, step, scale, density = _SETTINGS[number % len(_SETTINGS)]
    with VideoReader(video) as reader:
        frames = np.stack([frame for frame, _ in itertools.islice(reader, _FRAMES)])
    count, height, width = frames.shape[:3]
    small = color.resize(frames, -(-height // factor), -(-width // factor))
    header, obus = av1.encode_segment(small, crf=crf, preset=6)
    luma = av1.decode_segment(header, obus, small.shape[2:0:-1], count)[0] >> 2
    size = (-(-height // scale), -(-width // scale))
    full = (color.rgb_to_yuv420(frames[::step])[0] >> 2).astype(np.uint8)
    maps = extract_edges(full, size, density=density)[:_MAPS]
    return maps, build_guide(luma.astype(np.uint8), 1, maps.shape, step)


def train(samples: Sequence[Sample]) -> tuple[Ints, Ints]:
    """Start counts uint16 [sum of family sizes, 2] and weights int16 [selectors, families]."""
    counts = [np.zeros((size, 2), np.int64) for size in sketch.FAMILY_SIZES]
    flat = np.full((sketch.SELECTORS, len(counts)), (1 << WEIGHT_BITS) // 3)
    for maps, guide in samples:
        observer = _Observer(counts, flat)
        sketch.code_maps(Counter(), maps, guide, observer)
    starts = [_scale(count) for count in counts]
    logits, bits, selects = [], [], []
    for maps, guide in samples:
        observer = _Observer([start.copy() for start in starts], flat, keep=True)
        sketch.code_maps(Counter(), maps, guide, observer)
        logits.append(np.concatenate(observer.logits_seen))
        bits.append(np.concatenate(observer.bits_seen))
        selects.append(np.concatenate(observer.selects_seen))
    weights = _fit(np.concatenate(logits), np.concatenate(bits), np.concatenate(selects))
    return np.concatenate(starts), weights


class _Observer(BitMixer):
    """Counts without limit when `keep` is False; keeps logits for the fit when it is True."""

    def __init__(self, counts: Sequence[Ints], weights: Ints, *, keep: bool = False) -> None:
        super().__init__(counts, weights, memory=sketch.MEMORY)
        self._raw, self._keep = counts, keep
        self.logits_seen: list[Int32] = []
        self.bits_seen: list[Int32] = []
        self.selects_seen: list[Int32] = []

    def code(self, coder: SymbolCoder, bits: Ints | None, contexts: Int64, select: Int64) -> Int32:
        """Take `bits` as they are, and note what the fit needs."""
        if bits is None:
            raise ValueError("training needs the bits")
        result = bits.astype(np.int32)
        if self._keep:
            places = (contexts + self._first) * 2
            self.logits_seen.append(self.logits(places).T)
            self.bits_seen.append(result)
            self.selects_seen.append(select.astype(np.int32))
            self.learn_counts(places, result)
        else:
            for counts, context in zip(self._raw, contexts, strict=True):
                np.add.at(counts, (context, result), 1)
        return result


def _scale(counts: Ints) -> Ints:
    """Counts whose rows sum to at most `_STRENGTH`, rounded."""
    total = np.maximum(counts.sum(axis=1, keepdims=True), _STRENGTH)
    return (counts * _STRENGTH + total // 2) // total


def _fit(logits: Int32, bits: Int32, selects: Int32) -> Ints:
    """Weights of each selector by damped Newton steps on the code length, as int16."""
    families = logits.shape[1]
    result = np.zeros((sketch.SELECTORS, families), np.int64)
    for row in range(sketch.SELECTORS):
        chosen = np.flatnonzero(selects == row)
        chosen = chosen[:: max(1, len(chosen) // _KEEP)]
        inputs = logits[chosen].astype(np.float64) / LOGIT_UNIT
        weights = _newton(inputs, bits[chosen].astype(np.float64), families)
        result[row] = np.clip(np.rint(weights * (1 << WEIGHT_BITS)), -32768, 32767)
    return result


def _newton(inputs: Floats, bits: Floats, families: int) -> Floats:
    start = np.full(families, 1 / 3)
    weights = start.copy()
    damping = 1.0 * np.eye(families)
    for _ in range(25):
        share = 1 / (1 + np.exp(-np.clip(inputs @ weights, -12, 12)))
        slope = inputs.T @ (share - bits) + damping @ (weights - start)
        curve = (inputs * (share * (1 - share))[:, None]).T @ inputs + damping
        weights = weights - np.clip(np.linalg.solve(curve, slope), -0.5, 0.5)
    return weights
