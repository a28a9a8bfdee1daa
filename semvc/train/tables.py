"""Builds the shipped entropy assets from their sources, without any network.

`python -m semvc.train.tables caption` writes the text model, `logistic` the logistic tables, and
`sketch VIDEO...` the start of the sketch coder. The assets in the repository are normative; a
rebuild on another machine may differ in a last digit of a trained weight, which makes another
`entropy_id`.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from semvc.entropy import ASSETS, textmodel
from semvc.entropy.tables import LOGIT_ROWS, LOGIT_UNIT, TOTAL, store_counts
from semvc.train import sketch_tables

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_HERE = Path(__file__).parent
_CELLS = textmodel.LEVELS**2


def build_logistic() -> bytes:
    """Asset logistic.u32: frequencies of symbol 1 in the upper half of `logistic_tables`."""
    half = range(LOGIT_ROWS // 2)
    ones = [round(TOTAL / (1 + math.exp(-(row + 0.5) / LOGIT_UNIT))) for row in half]
    return np.array(ones, "<u4").tobytes()


def build_caption_text(captions: bytes, words: bytes) -> bytes:
    """Asset caption.txt: the captions line by line, an empty line, the words in order, once."""
    lines = [line.strip() for line in captions.split(b"\n") if line.strip()]
    return b"\n".join(lines) + b"\n\n" + b" ".join(sorted(set(words.split()))) + b"\n"


def build_caption_mixture(text: bytes, *, folds: int = 10, steps: int = 45) -> bytes:
    """Asset caption.i16: logits and weights, fitted on captions held out of the counts in turn."""
    lines, words = textmodel.parse_text(text)
    parts = []
    for fold in range(folds):
        others = [line for number, line in enumerate(lines) if number % folds != fold]
        counts = textmodel.count_text(others, words)
        parts.append(_observe(counts, lines[fold::folds]))
    cells = np.concatenate([part[0] for part in parts])
    bits = np.concatenate([part[1] for part in parts])
    logits, weights = _fit(cells, bits, steps)
    scaled = [np.rint(logits * LOGIT_UNIT), np.rint(weights * (1 << textmodel.WEIGHT_BITS))]
    return (
        np.concatenate([np.clip(part, -32768, 32767).ravel() for part in scaled])
        .astype("<i2")
        .tobytes()
    )


def _observe(
    counts: dict[textmodel.Key, textmodel.Followers], lines: list[bytes]
) -> tuple[Ints, Ints]:
    """Cells int64 [n, CONTEXTS] and bits int64 [n] met in coding `lines`."""
    nothing = textmodel.Mixture([], [])
    cells, bits = [], []
    for line in lines:
        model = textmodel.TextModel(counts, nothing)
        for byte in line + bytes([textmodel.END]):
            keys = model.keys()
            generator = model.cells(keys)
            found = next(generator)
            for position in range(7, -1, -1):
                bit = byte >> position & 1
                cells.append(found)
                bits.append(bit)
                if position:
                    found = generator.send(bit)
            model.learn(keys, byte)
    return np.array(cells, np.int64), np.array(bits, np.int64)


def _fit(cells: Ints, bits: Ints, steps: int) -> tuple[Floats, Floats]:
    """Logits [CONTEXTS, cells] in nats and weights [SETS, CONTEXTS] by Adam on the code length."""
    slots = cells + np.arange(textmodel.CONTEXTS) * _CELLS
    size = textmodel.CONTEXTS * _CELLS
    choice = (cells[:, :7] > 0).sum(axis=1)
    seen = np.bincount(slots.ravel(), minlength=size)
    ones = np.bincount(slots.ravel(), np.repeat(bits, textmodel.CONTEXTS), size)
    logits = np.log((ones + 0.4) / (seen - ones + 0.4))
    weights = np.full((textmodel.SETS, textmodel.CONTEXTS), 0.3)
    adam_logits, adam_weights = _Adam(logits), _Adam(weights)
    for _ in range(steps):
        inputs, mixing = logits[slots], weights[choice]
        total = np.clip((inputs * mixing).sum(axis=1), -12, 12)
        error = ((1 / (1 + np.exp(-total)) - bits) / len(bits))[:, None]
        slope: Floats = np.bincount(slots.ravel(), (error * mixing).ravel(), size).astype(
            np.float64
        )
        steep = np.stack(
            [(error * inputs)[choice == row].sum(axis=0) for row in range(textmodel.SETS)]
        )
        adam_logits.step(slope)
        adam_weights.step(steep)
    return logits.reshape(textmodel.CONTEXTS, _CELLS), weights


class _Adam:
    """Adam with a fixed rate; changes its parameter in place."""

    def __init__(self, parameter: Floats, rate: float = 0.02) -> None:
        self._parameter, self._rate, self._count = parameter, rate, 0
        self._mean, self._square = np.zeros_like(parameter), np.zeros_like(parameter)

    def step(self, gradient: Floats) -> None:
        self._count += 1
        self._mean = 0.9 * self._mean + 0.1 * gradient
        self._square = 0.99 * self._square + 0.01 * gradient**2
        mean = self._mean / (1 - 0.9**self._count)
        square = self._square / (1 - 0.99**self._count)
        self._parameter -= self._rate * mean / (np.sqrt(square) + 1e-7)


def main(names: list[str]) -> None:
    """Write the named assets."""
    if "logistic" in names:
        (ASSETS / "logistic.u32").write_bytes(build_logistic())
    if names[:1] == ["sketch"]:
        samples = [sketch_tables.sample(Path(name), k) for k, name in enumerate(names[1:])]
        counts, weights = sketch_tables.train(samples)
        (ASSETS / "sketch.counts").write_bytes(store_counts(counts))
        (ASSETS / "sketch.weights").write_bytes(store_counts(weights & 0xFFFF))
    if "caption" in names:
        sources = [(_HERE / name).read_bytes() for name in ("captions.txt", "words.txt")]
        text = build_caption_text(*sources)
        (ASSETS / "caption.txt").write_bytes(text)
        (ASSETS / "caption.i16").write_bytes(build_caption_mixture(text))


if __name__ == "__main__":
    main(sys.argv[1:])
