"""The second decoder, continued: CAMERA, DEPTH, MASK and KEYFRAME, from sections 13 to 16."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from stranger_coder import ONE, Adaptive, Run, clip, logistic, stretched

Grid = list[list[int]]


def signed(z: int) -> int:
    return -(z + 1) // 2 if z % 2 else z // 2


def falling(ratios: tuple[int, ...], symbols: int, least: int = 1024) -> Grid:
    rows = []
    for q in ratios:
        row = [1 << 20]
        while len(row) < symbols:
            row.append(max(least, row[-1] * q >> 4))
        rows.append(row)
    return rows


# Section 13


@dataclass
class Camera:
    focal: int
    centre: tuple[int, int]
    turn_bits: int
    move_bits: int
    inertia: int
    turns: Grid
    moves: Grid


def camera(run: Run, frames: int) -> Camera:
    focal = run.bits(14) + 1
    centre = (run.bits(10) - 512, run.bits(10) - 512) if run.bits(1) else (0, 0)
    count = run.uint(frames - 1) if frames > 1 else 0
    found = Camera(focal, centre, 0, 0, 0, [], [])
    if not count:
        return found
    found.turn_bits = run.bits(4) + 6
    found.inertia = run.bits(2)
    moving = run.bits(1)
    if moving:
        found.move_bits = run.bits(4) + 6
    parts = (found.turns, found.moves)
    tables = Adaptive(falling((5, 8, 10, 12, 14, 15, 16), 17) * 2, 16, 255)
    activity = [[4] * 3, [4] * 3]
    weight = (0, 2, 3, 4)[found.inertia]
    for k in range(count):
        for part in range(1 + moving):
            if k == 0:
                parts[part].append([signed(z) for z in run.uint_of(3, 2097152)])
                continue
            levels = [sum(a <= now for a in (1, 3, 6, 12, 24, 48)) for now in activity[part]]
            zs = tables.batch(run, [level + 7 * part for level in levels])
            far = [axis for axis in range(3) if zs[axis] == 16]
            for axis, rest in zip(far, run.uint_of(len(far), 4194304), strict=True):
                zs[axis] += rest
            residuals = [signed(z) for z in zs]
            before = parts[part][-1]
            parts[part].append([(before[i] * weight >> 2) + residuals[i] for i in range(3)])
            activity[part] = [
                (3 * a + 4 * abs(r) + 2) >> 2
                for a, r in zip(activity[part], residuals, strict=True)
            ]
    if not moving:
        found.moves.extend([0, 0, 0] for _ in range(count))
    return found


# Section 14


def depth(run: Run, count: int) -> tuple[int, int, list[Grid]]:
    """Range, shift and nodes."""
    span, shift = run.bits(3), run.bits(3)
    tables = Adaptive(falling((9, 12, 14, 15, 16), 41), 16, 255)
    grids: list[Grid] = []
    for _ in range(count):
        grid: Grid = []
        for y in range(9):
            grid.append([])
            for x in range(16):
                if y and x:
                    a, left, c = grid[y - 1][x], grid[y][x - 1], grid[y - 1][x - 1]
                    row = sum(n <= abs(left - c) + abs(a - c) for n in (2, 6, 14))
                    guess = left + a - c
                    if c >= max(left, a):
                        guess = min(left, a)
                    elif c <= min(left, a):
                        guess = max(left, a)
                elif y or x:
                    guess, row = (grid[y - 1][x] if y else grid[y][x - 1]), 3
                else:
                    guess, row = (grids[-1][0][0], 3) if grids else (0, 4)
                z = tables.batch(run, [row])[0]
                if z == 40:
                    z += run.uint(512)
                grid[y].append(guess + signed(z))
        grids.append(grid)
    return span, shift, [[[v << shift for v in row] for row in grid] for grid in grids]


# Section 15

NEAR = [(0, -1), (-1, -1), (-1, 0), (-1, 1), (0, -2), (-2, 0), (-1, -2), (-1, 2), (-2, -1), (-2, 1)]
BEFORE = [
    (0, 0), (0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (0, -1), (-1, 0), (-1, -1), (-1, 1)
]  # fmt: skip
FAMILIES = [(10, 1), (4, 9), (6, 7)]
NUMBERS = [
    [-1542, 1383, 197, 1141, 759, -24, -333, -335, 325, -318, -244, 520],
    [-1650, 960, 28, 984, 753, 478, 180, 275, 176, 252, 8, 44, -184, -637],
    [-1592, 1256, -62, 1174, 767, -241, -447, 145, 2, 276, 245, 36, 13, 81],
    [-1463, 1595, 231, 1137, 709, -39, -271, -390, 540, -346, -293],
]


class Mixer:
    """Section 3.4 with the start of section 15; contexts are made when they are met."""

    def __init__(self) -> None:
        self.ones = logistic()
        self.stretch = stretched(self.ones)
        self.weights = [[4096 * 256, 0, 0], [1400 * 256] * 3]
        self.counts: dict[tuple[int, int], list[int]] = {}

    def pair(self, family: int, context: int) -> list[int]:
        if (family, context) not in self.counts:
            numbers, bits = NUMBERS[family], context
            if family == 0 and context >= 2048:
                numbers, bits = NUMBERS[3], context - 2048
            size = len(numbers) - 1
            s = numbers[0] + sum(numbers[1 + i] for i in range(size) if bits >> size - 1 - i & 1)
            one = (4 * self.ones[3072 + clip(s, -3072, 3071)] + (1 << 23)) >> 24
            self.counts[family, context] = [4 - one, one]
        return self.counts[family, context]

    def batch(self, run: Run, cases: list[tuple[list[int], int]]) -> list[int]:
        bits, touched = [], []
        slopes = [[0] * 3, [0] * 3]
        used = [0, 0]
        for contexts, s in cases:
            pairs = [self.pair(k, context) for k, context in enumerate(contexts)]
            logits = [self.stretch[((4 * n1 + 1) << 15) // (2 * (n0 + n1) + 1)] for n0, n1 in pairs]
            total = sum((self.weights[s][k] >> 8) * logits[k] for k in range(3))
            one = self.ones[clip(total >> 12, -3072, 3071) + 3072]
            bit = run.symbol([ONE - one, one])
            bits.append(bit)
            used[s] += 1
            for k in range(3):
                slopes[s][k] += (65536 * bit - (one >> 8)) * logits[k]
            touched += [(pair, bit) for pair in pairs]
        for s in (0, 1):
            for k in range(3):
                moved = self.weights[s][k] + (slopes[s][k] * 32 // max(32, used[s]) >> 11)
                self.weights[s][k] = clip(moved, -(1 << 23), 1 << 23)
        for pair, bit in touched:
            pair[bit] += 1
        for pair, _ in touched:
            while sum(pair) > 1023:
                pair[:] = [(n + 1) >> 1 for n in pair]
        return bits


@dataclass
class Object:
    scale: int
    top: int
    left: int
    rows: int
    columns: int
    maps: list[Grid]
    motion: Grid
    here: list[int]

    def at(self, t: int, y: int, x: int) -> int:
        return self.maps[t][y][x] if 0 <= y < self.rows and 0 <= x < self.columns else 0


def masks(run: Run, frames: int, size: tuple[int, int]) -> tuple[int, list[Object]]:
    step, people = run.bits(6) + 1, run.bits(3) + 1
    count = -(-frames // step)
    objects = []
    for _ in range(people):
        scale = run.bits(4) + 1
        box = []
        for side in size:
            n = -(-side // scale) - 1
            start = run.bits(n.bit_length())
            box += [start, run.bits((n - start).bit_length()) + 1]
        top, rows, left, columns = box
        maps = [[[0] * columns for _ in range(rows)] for _ in range(count)]
        objects.append(Object(scale, top, left, rows, columns, maps, [], []))
    presence(run, objects, count)
    motions(run, objects, count)
    pixels(run, objects, count)
    return step, objects


def presence(run: Run, objects: list[Object], count: int) -> None:
    tables = Adaptive([[30, 2], [1, 60], [1, 3]], 16)
    for _ in range(count):
        rows = [part.here[-1] if part.here else 2 for part in objects]
        for part, here in zip(objects, tables.batch(run, rows), strict=True):
            part.here.append(here)


def motions(run: Run, objects: list[Object], count: int) -> None:
    tables = Adaptive(falling((4, 8, 11, 14), 61, 256), 16)
    last = [2] * len(objects)
    for part in objects:
        part.motion.extend([0, 0] for _ in range(count))
    for t in range(1, count):
        who = [k for k, part in enumerate(objects) if part.here[t] and part.here[t - 1]]
        rows = [sum(n <= last[k] for n in (1, 3, 8)) for k in who]
        sizes = [0] * len(who)
        for axis in (0, 1):
            for i, z in enumerate(tables.batch(run, rows)):
                part = objects[who[i]]
                part.motion[t][axis] = part.motion[t - 1][axis] + signed(z)
                sizes[i] += abs(signed(z))
        for k, size in zip(who, sizes, strict=True):
            last[k] = size


def pixels(run: Run, objects: list[Object], count: int) -> None:
    waves: dict[int, list[tuple[Object, int, int, int]]] = defaultdict(list)
    for part in objects:
        for t in range(count):
            for y in range(part.rows if part.here[t] else 0):
                for x in range(part.columns):
                    waves[x + 3 * y + 69 * t].append((part, t, y, x))
    mixer = Mixer()
    for wave in sorted(waves):
        bits = mixer.batch(run, [case(*pixel) for pixel in waves[wave]])
        for (part, t, y, x), bit in zip(waves[wave], bits, strict=True):
            part.maps[t][y][x] = bit


def case(part: Object, t: int, y: int, x: int) -> tuple[list[int], int]:
    near = [part.at(t, y + dy, x + dx) for dy, dx in NEAR]
    follows = t > 0 and part.here[t - 1]
    before = [0] * len(BEFORE)
    if follows:
        my, mx = part.motion[t]
        before = [part.at(t - 1, y + my + dy, x + mx + dx) for dy, dx in BEFORE]
    contexts = [number(near[:a] + before[:b]) for a, b in FAMILIES]
    if not follows:
        contexts[0] = 2048 + number(near)
    return contexts, int(follows)


def number(bits: list[int]) -> int:
    found = 0
    for bit in bits:
        found = found << 1 | bit
    return found


# Section 16


def keyframes(payload: bytes) -> tuple[int, int, list[int], bytes]:
    """Factor, coarseness, places, and the rest."""
    places, at = [0], 2
    for _ in range(payload[1]):
        gap = shift = 0
        while True:
            gap |= (payload[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if payload[at - 1] < 128:
                break
        places.append(places[-1] + 1 + gap)
    return 1 << (payload[0] >> 6), (payload[0] & 63) + 7, places, payload[at:]
