"""The second decoder's reading of LATENT, written from LATENT.md in plain Python."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

import stranger_net
from stranger_coder import ONE, Adaptive, Run, clip, logistic, normalized, stretched

Arrays = dict[str, Any]  # the tensors `prior.*` as nested lists
Planes = list[list[list[int]]]
NEAR4 = [(-1, 0), (0, -1), (0, 1), (1, 0)]
NEAR8 = [*NEAR4, (-1, -1), (-1, 1), (1, -1), (1, 1)]
ONES = logistic()
STRETCH = stretched(ONES)


class Mixture:
    """Section 3.4 of FORMAT.md with any number of families."""

    def __init__(self, counts: list[list[int]], weights: list[list[int]], sizes: list[int]) -> None:
        pairs = iter(counts)
        self.counts = [[list(next(pairs)) for _ in range(size)] for size in sizes]
        self.weights = [[256 * w for w in row] for row in weights]

    def guess(self, contexts: list[int], s: int) -> tuple[list[int], int]:
        """Logits, and the frequency of 1."""
        logits = []
        for k, context in enumerate(contexts):
            n0, n1 = self.counts[k][context]
            logits.append(STRETCH[((4 * n1 + 1) << 15) // (2 * (n0 + n1) + 1)])
        total = sum((w >> 8) * logit for w, logit in zip(self.weights[s], logits, strict=True))
        return logits, ONES[clip(total >> 12, -3072, 3071) + 3072]

    def learn(self, cases: list[tuple[list[int], int]], bits: list[int]) -> None:
        families = len(self.counts)
        slopes: Any = defaultdict(lambda: [0] * families)
        used: dict[int, int] = defaultdict(int)
        for (contexts, s), bit in zip(cases, bits, strict=True):
            logits, one = self.guess(contexts, s)
            used[s] += 1
            for k in range(families):
                slopes[s][k] += (65536 * bit - (one >> 8)) * logits[k]
        for s, count in used.items():
            for k in range(families):
                moved = self.weights[s][k] + (slopes[s][k] * 32 // max(32, count) >> 11)
                self.weights[s][k] = clip(moved, -(1 << 23), 1 << 23)
        touched = []
        for (contexts, _), bit in zip(cases, bits, strict=True):
            for k, context in enumerate(contexts):
                touched.append(self.counts[k][context])
                touched[-1][bit] += 1
        for pair in touched:
            while sum(pair) > 1023:
                pair[:] = [(n + 1) >> 1 for n in pair]


def uv(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def bits_in(n: int, m: int) -> int:
    return min(7, (255 * n // max(1, m)).bit_length())


def sign(v: int) -> int:
    return (v > 0) - (v < 0)


def length(v: int) -> int:
    return min(6, v.bit_length())


def q5(v: int) -> int:
    return (0, 1, 2, 3, 3, 4)[min(5, v)]


def zeros(channels: int, height: int, width: int) -> Planes:
    return [[[0] * width for _ in range(height)] for _ in range(channels)]


def near(plane: list[list[int]], y: int, x: int, steps: list[tuple[int, int]]) -> list[int]:
    height, width = len(plane), len(plane[0])
    return [
        plane[y + dy][x + dx] for dy, dx in steps if 0 <= y + dy < height and 0 <= x + dx < width
    ]


class Segment:
    """A whole payload: `hyper` and `latent` are lists of frames of planes, `runs` what was read."""

    def __init__(
        self, payload: bytes, frames: int, grid: tuple[int, int], numbers: Arrays, arrays: Arrays
    ) -> None:
        self.c, self.g, self.z = numbers["latents"], numbers["groups"], numbers["hyper"]
        self.s, self.a = self.c // self.g, numbers["hyper_levels"] or 15
        self.h, self.w = grid
        self.quality = payload[0]
        self.arrays = arrays
        c, g = self.c, self.g
        blocks = [320 * g, 160 * g, 256 * g, 256 * g, 256 * g, 160 * g]
        elements = [12 * c, 144, 256, 128, 14 * c, 14 * c]
        sizes = [28 * c, 1568, 3584, 1372]
        self.blocks = Mixture(arrays["block.counts"], arrays["block.weights"], blocks)
        self.elements = Mixture(arrays["element.counts"], arrays["element.weights"], elements)
        self.hypers = Adaptive(arrays["hyper"], 32)
        self.sizes = Mixture(arrays["magnitude.counts"], arrays["magnitude.weights"], sizes)
        self.signs = Adaptive(arrays["sign"], 64)
        self.hyper: list[Planes] = []
        self.latent: list[Planes] = [zeros(c, *grid), zeros(c, *grid)]  # two before the first
        self.active: list[Planes] = [zeros(g, *grid), zeros(g, *grid)]
        self.history = zeros(c, *grid)
        first, at = uv(payload, 1)
        second, at = uv(payload, at)
        ends = [at, at + first, at + first + second, len(payload)]
        self.parts = [payload[a:b] for a, b in pairwise(ends) if a < b]
        self.runs = [Run(part) for part in self.parts]
        self.read_hyper(self.runs[0], 0)
        self.read_latent(self.runs[0], 0)
        for t in range(1, frames):
            self.read_hyper(self.runs[1], t)
        for t in range(1, frames):
            self.read_latent(self.runs[2], t)
        self.latent = self.latent[2:]

    # Section 4

    def read_hyper(self, run: Run, t: int) -> None:
        height, width = self.h // 4, self.w // 4
        now = zeros(self.z, height, width)
        before = self.hyper[t - 1] if t else now
        for parity in (0, 1):
            places = [
                (c, y, x)
                for c in range(self.z)
                for y in range(height)
                for x in range(width)
                if (y + x) % 2 == parity
            ]
            rows = []
            for c, y, x in places:
                last = min(2, abs(before[c][y][x])) if t else 0
                around = sum(map(abs, near(now[c], y, x, NEAR4))) if parity else 0
                rows.append(((min(t, 1) * self.z + c) * 3 + last) * 3 + min(2, around))
            for (c, y, x), symbol in zip(places, self.hypers.batch(run, rows), strict=True):
                now[c][y][x] = symbol - self.a // 2
        self.hyper.append(now)

    # Section 3

    def indices(self, t: int, half: int, now: Planes) -> Planes | None:
        layers: list[stranger_net.Layer] = []
        while f"net.{min(t, 1)}{half}.{len(layers)}.weight" in self.arrays:
            name = f"net.{min(t, 1)}{half}.{len(layers)}"
            parts = [self.arrays[f"{name}.{part}"] for part in ("weight", "bias", "shift")]
            layers.append(stranger_net.Layer(*parts, 255))
        if not layers:
            return None
        layers[-1].top = 63
        planes = [[list(row) for row in plane] for plane in self.history]
        if half:
            planes += [[[16 * min(15, abs(v)) for v in row] for row in plane] for plane in now]
        for plane in self.hyper[t]:
            big = [[16 * (clip(v, -8, 7) + 8) for v in row for _ in range(4)] for row in plane]
            planes.append([list(row) for row in big for _ in range(4)])
        planes.append([[self.quality] * self.w for _ in range(self.h)])
        return stranger_net.run(layers, planes)

    # Section 5

    def read_latent(self, run: Run, t: int) -> None:
        k, now, active = min(t, 1), zeros(self.c, self.h, self.w), zeros(self.g, self.h, self.w)
        seen = [0, 0]  # blocks, and those that are not zero
        for half in (0, 1):
            index = self.indices(t, half, now)
            for group in range(self.g):
                places = [
                    (y, x)
                    for y in range(self.h)
                    for x in range(self.w)
                    if (y + x + group + half) % 2 == 0
                ]
                cases = [self.block(k, half, group, p, active, seen, index) for p in places]
                bits = []
                for contexts, s in cases:
                    one = self.blocks.guess(contexts, s)[1]
                    bits.append(run.symbol([ONE - one, one]))
                self.blocks.learn(cases, bits)
                found = [p for p, bit in zip(places, bits, strict=True) if bit]
                if found:
                    self.values(run, (k, half, group), found, now, active, index)
                seen = [seen[0] + len(places), seen[1] + len(found)]
        for c in range(self.c):
            for y in range(self.h):
                for x in range(self.w):
                    size = 16 * min(15, abs(now[c][y][x]))
                    self.history[c][y][x] = max(size, self.history[c][y][x] * 3 >> 2)
        self.latent.append(now)
        self.active.append(active)

    def block(
        self,
        k: int,
        half: int,
        group: int,
        place: tuple[int, int],
        active: Planes,
        seen: list[int],
        index: Planes | None,
    ) -> tuple[list[int], int]:
        y, x = place
        one, two = self.active[-1], self.active[-2]
        lead = (2 * k + half) * self.g + group
        b, b2 = one[group][y][x], two[group][y][x]
        a = q5(sum(near(one[group], y, x, NEAR8)))
        o = min(3, sum(plane[y][x] for i, plane in enumerate(one) if i != group))
        e = min(3, sum(near(active[group], y, x, NEAR4)))
        c = min(3, sum(plane[y][x] for plane in active))
        n = q5(sum(sum(near(plane, y, x, NEAR4)) for plane in active))
        channels = range(group * self.s, (group + 1) * self.s)
        total = sum(self.arrays["lengths"][index[i][y][x] if index else 0] for i in channels)
        v = sum(level <= total for level in self.arrays["levels"])
        d = bits_in(sum(m > 0 for row in one[group] for m in row), self.h * self.w)
        m = max(self.history[i][y][x] for i in channels) >> 5
        contexts = [
            ((lead * 4 + b) * 5 + a) * 4 + e,
            ((lead * 4 + c) * 5 + n) * 2 + (b > 0),
            ((lead * 4 + b) * 4 + b2) * 4 + o,
            lead * 64 + v,
            (lead * 8 + d) * 8 + bits_in(seen[1], seen[0]),
            (lead * 8 + m) * 5 + n,
        ]
        return contexts, 3 * lead + min(2, n)

    def values(
        self,
        run: Run,
        step: tuple[int, int, int],
        found: list[tuple[int, int]],
        now: Planes,
        active: Planes,
        index: Planes | None,
    ) -> None:
        k, half, group = step
        j = 2 * k + half
        one, two = self.latent[-1], self.latent[-2]
        cases, around = [], []
        for y, x in found:
            for c in range(group * self.s, (group + 1) * self.s):
                r, close = one[c][y][x], near(now[c], y, x, NEAR4)
                u, q = min(2, abs(r)), sum(map(abs, close))
                was = min(3, sum(map(abs, near(one[c], y, x, NEAR4))))
                here = length(sum(abs(plane[y][x]) for plane in now))
                beside = length(sum(sum(map(abs, near(plane, y, x, NEAR4))) for plane in now))
                said = index[c][y][x] if index else 0
                contexts = [
                    (j * self.c + c) * 3 + u,
                    ((j * 4 + min(3, q)) * 3 + u) * 3 + min(2, abs(two[c][y][x])),
                    j * 64 + said,
                    (j * 8 + (self.history[c][y][x] >> 5)) * 4 + was,
                    (k * self.c + c) * 7 + here,
                    (k * self.c + c) * 7 + beside,
                ]
                cases.append((contexts, 3 * j + u))
                around.append((r, sum(close), k * self.c + c, length(q), said, here, beside))
        ones = [self.elements.guess(*case)[1] for case in cases]
        bits = self.pattern(run, ones, len(found))
        self.elements.learn(cases, bits)
        chosen = [i for i, bit in enumerate(bits) if bit]
        rows = [(k * 3 + 1 + sign(around[i][0])) * 3 + 1 + sign(around[i][1]) for i in chosen]
        negative = self.signs.batch(run, rows)
        sizes = [1] * len(chosen)
        for rung in range(14):
            alive = [i for i, size in enumerate(sizes) if size == rung + 1]
            if not alive:
                break
            cases = []
            for i in alive:
                r, _, own, q, said, here, beside = around[chosen[i]]
                contexts = [
                    own * 14 + rung,
                    ((j * 14 + rung) * 7 + q) * 4 + min(3, length(abs(r))),
                    (j * 14 + rung) * 64 + said,
                    ((k * 14 + rung) * 7 + here) * 7 + beside,
                ]
                cases.append((contexts, 14 * k + rung))
            more = []
            for case in cases:
                one_more = self.sizes.guess(*case)[1]
                more.append(run.symbol([ONE - one_more, one_more]))
            self.sizes.learn(cases, more)
            for i, bit in zip(alive, more, strict=True):
                sizes[i] += bit
        large = [i for i, size in enumerate(sizes) if size == 15]
        for i, more in zip(large, run.uint_of(len(large), 112) if large else [], strict=True):
            sizes[i] += more
        for i, minus, size in zip(chosen, negative, sizes, strict=True):
            (y, x), c = found[i // self.s], group * self.s + i % self.s
            now[c][y][x] = -size if minus else size
        for y, x in found:
            mine = [now[group * self.s + i][y][x] for i in range(self.s)]
            active[group][y][x] = min(3, sum(min(2, abs(v)) for v in mine))

    def pattern(self, run: Run, ones: list[int], blocks: int) -> list[int]:
        firsts = []
        for b in range(blocks):
            rest, counts = 65536, []
            for one in ones[b * self.s : (b + 1) * self.s]:
                counts.append(rest * (one >> 8) + 1)
                rest = rest * (65536 - (one >> 8)) >> 16
            firsts.append(run.symbol(normalized(counts)))
        bits = []
        for b, first in enumerate(firsts):
            for i in range(self.s):
                one = ones[b * self.s + i]
                bits.append(run.symbol([ONE - one, one]) if i > first else int(i == first))
        return bits
