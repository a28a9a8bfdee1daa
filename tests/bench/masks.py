"""`python -m tests.bench.masks`: bytes of masks, by context coding and by contour coding.

Procedural moving objects at 854 x 480, fitted to an overlap of 0.95. Beside what the program writes
stands what a chain code of the same maps would take: of each contour a start, a length and, for
each step, its turn, coded adaptively with the two turns before as context; every map on its own.
"""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt

from semvc.entropy.coder import Counter
from semvc.entropy.integers import code_bits, code_uint
from semvc.entropy.tables import AdaptiveTables, normalize
from semvc.signals.mask import MaskObject, code_masks
from semvc.signals.maskfit import fit_masks, overlap_of
from semvc.train.mask_tables import procedural

SIZE, MAPS = (480, 854), 16
_STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # right, down, left, up along cracks between pixels


def contours(bits: npt.NDArray[np.uint8]) -> list[tuple[tuple[int, int], list[int]]]:
    """Closed crack contours of a map, each a start and its steps, the object on the right."""
    field = np.pad(bits, 1)
    edges: dict[tuple[int, int], list[int]] = {}
    for y in range(1, field.shape[0]):
        for x in range(1, field.shape[1]):
            above, here, left = field[y - 1, x], field[y, x], field[y, x - 1]
            if here and not above:
                edges.setdefault((y, x), []).append(0)
            if above and not here:
                edges.setdefault((y, x + 1), []).append(2)
            if left and not here:
                edges.setdefault((y, x), []).append(1)
            if here and not left:
                edges.setdefault((y + 1, x), []).append(3)
    found = []
    while edges:
        start = min(edges)
        at, steps = start, []
        while at in edges:
            ways = edges[at]
            before = steps[-1] if steps else 0
            # the sharpest right turn first, so that corners that touch are kept apart
            way = min(ways, key=lambda w: (before + 1 - w) % 4)
            ways.remove(way)
            if not ways:
                del edges[at]
            steps.append(way)
            at = (at[0] + _STEPS[way][0], at[1] + _STEPS[way][1])
        found.append((start, steps))
    return found


def chain_bits(part: MaskObject) -> float:
    """Bits of all maps of an object as chain codes."""
    counter = Counter()
    turns = AdaptiveTables(normalize(np.tile([12, 4, 1, 4], (16, 1))), strength=16)
    height, width = part.bits.shape[1:]
    for bits in part.bits:
        chains = contours(bits)
        code_uint(counter, np.array([len(chains)]), 1, 1 << 16)
        for start, steps in chains:
            code_bits(counter, np.array([start[0]]), 1, height.bit_length())
            code_bits(counter, np.array([start[1]]), 1, width.bit_length())
            code_uint(counter, np.array([len(steps)]), 1, 1 << 20)
            one = two = 0
            for before, now in zip([0, *steps], steps, strict=False):
                turn = (now - before) % 4
                turns.code(counter, np.array([turn]), 1, np.array([4 * one + two]))
                one, two = turn, one
    return counter.bits


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    print("object  samples  scale  overlap  context  contour  (bytes a map)")
    rows = []
    for seed in range(count):
        truth = procedural(seed, MAPS, SIZE)
        track = fit_masks(truth, step=1)
        if track is None:
            continue
        (part,) = track.objects
        shown = int(part.present.sum())
        counter = Counter()
        code_masks(counter, track, MAPS, SIZE)
        row = (counter.bits / 8 / shown, chain_bits(part) / 8 / shown)
        rows.append(row)
        area = int(truth.sum(dtype=np.int64)) // shown
        kind = ("blob", "block", "figure")[seed % 3]
        print(
            f"{kind:7} {area:7}  {part.scale:5}  {overlap_of(part, truth):7.3f}"
            f"  {row[0]:7.1f}  {row[1]:7.1f}",
            flush=True,
        )
    means = np.mean(rows, axis=0)
    print(f"mean {'':28}  {means[0]:7.1f}  {means[1]:7.1f}")


if __name__ == "__main__":
    main()
