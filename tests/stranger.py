"""A second decoder of the entropy-coded sections, written from FORMAT.md in plain Python.

It shares no code with the program, is slow, and exists to show that the text suffices. Signals are
plain lists.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator

from stranger_coder import ASSETS, ONE, Adaptive, Run, clip, logistic, stretched

Grid = list[list[int]]

# Section 5


def timing(run: Run, frames: int) -> list[int]:
    negative, length = run.bits(1), run.bits(6)
    magnitude = length and 1 << length - 1 | (run.bits(length - 1) if length > 1 else 0)
    times = [-magnitude if negative else magnitude]
    ranks = Adaptive([[24, 8, 4, 2, 1, 1, 1, 1, 6]] * 27, 4, 255)
    recent: list[int] = []
    c = 0
    for _ in range(frames):
        rank = ranks.batch(run, [c])[0]
        step = recent[rank] if rank < 8 else run.uint(2**32 - 2) + 1
        recent = [step, *(other for other in recent if other != step)][:8]
        c = (3 * c + min(rank, 2)) % 27
        times.append(times[-1] + step)
    return times


# Section 6

WORD = set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'") | set(range(128, 256))
Q = [0, 1, 2, 3, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 7]


class Reader:
    """What was seen: the keys of the eleven contexts."""

    def __init__(self) -> None:
        self.seen, self.word, self.previous, self.before = bytes(8), b"", b"", b""

    def contexts(self) -> list[tuple[int, bytes]]:
        word = self.word.lower()
        found = [self.seen[-n:] for n in (1, 2, 3, 4, 5, 6, 8)]
        found += [word, self.previous + b" " + word]
        found += [self.before + b" " + self.previous + b" " + word, b""]
        return list(enumerate(found))

    def see(self, byte: int) -> None:
        self.seen = (self.seen + bytes([byte]))[-8:]
        if byte in WORD:
            self.word = (self.word + bytes([byte]))[-24:]
        elif self.word:
            self.before, self.previous, self.word = self.previous, self.word.lower(), b""
        if byte == 0:
            self.before = self.previous = b""


def caption(run: Run) -> str:
    numbers = struct.unpack("<792h", (ASSETS / "caption.i16").read_bytes())
    logits = [numbers[64 * k : 64 * k + 64] for k in range(11)]
    weights = [numbers[704 + 11 * s : 715 + 11 * s] for s in range(8)]
    counts, ones = shipped_counts(), logistic()
    reader, text = Reader(), bytearray()
    while True:
        keys = reader.contexts()
        followers = [counts[key] for key in keys]
        byte = 0
        for bit in range(7, -1, -1):
            cells = []
            for context in followers:
                n = [0, 0]
                for follower, count in context.items():
                    if follower >> bit + 1 == byte:
                        n[follower >> bit & 1] += count
                cells.append(8 * Q[min(20, n[0])] + Q[min(20, n[1])])
            weight = weights[sum(cell > 0 for cell in cells[:7])]
            total = sum(weight[k] * logits[k][cells[k]] for k in range(11))
            one = ones[clip(total >> 12, -3071, 3071) + 3072]
            byte = byte << 1 | run.symbol([ONE - one, one])
        if byte == 0:
            return text.decode("utf-8")
        for key in keys:
            counts[key][byte] += 2
        reader.see(byte)
        text.append(byte)


def shipped_counts() -> dict[tuple[int, bytes], dict[int, int]]:
    counts: dict[tuple[int, bytes], dict[int, int]] = defaultdict(lambda: defaultdict(int))
    lines, words = (ASSETS / "caption.txt").read_bytes().split(b"\n\n", 1)
    for line in lines.split(b"\n"):
        reader = Reader()
        for byte in line + b"\0":
            for key in reader.contexts():
                counts[key][byte] += 1
            reader.see(byte)
    for word in words.split():
        reader = Reader()
        reader.see(32)
        for byte in word + b" ":
            for kind, key in reader.contexts():
                if kind in (1, 2, 3, 4, 7) and not key.startswith(b"\0"):
                    counts[kind, key][byte] += 1
            reader.see(byte)
    return counts


# Section 7

ORDER = [5, 6, 11, 12, 0, 1, 2, 3, 4, 7, 8, 9, 10, 13, 14, 15, 16]
PARENT = [5, 0, 0, 1, 2, 6, 5, 5, 6, 7, 8, 5, 11, 11, 12, 13, 14]


class Skeletons:
    def __init__(self, run: Run) -> None:
        self.run = run
        self.step, self.people = run.bits(6) + 1, run.bits(4)
        self.presence = Adaptive([[1, 1], [1, 31]], 8)
        self.visibility = Adaptive([[30, 1, 1], [1, 20, 4], [1, 2, 40], [2, 2, 12]], 8)
        rows = []
        for q in (8, 10, 11, 13, 14, 15):
            row = [1 << 20]
            while len(row) < 25:
                row.append(max(1024, row[-1] * q >> 4))
            rows += [row] * 4
        self.residuals = Adaptive(rows, 24)
        start = [max(1, 4096 >> min(12, abs(2 * k - 127) // 6)) for k in range(128)]
        self.offsets = Adaptive([start] * 35, 8)
        self.here = [0] * self.people
        self.seen = [[3] * 17 for _ in self.here]
        self.at: dict[tuple[int, int], list[int]] = {}  # by person and joint, if known
        self.moved: dict[tuple[int, int], list[int]] = {}
        self.activity: dict[tuple[int, int], int] = {}

    def next_map(self) -> tuple[list[int], Grid, list[Grid]]:
        """Presence [P], visibility [P][17] and positions [P][17][2]."""
        self.here = self.presence.batch(self.run, self.here)
        who = [p for p, here in enumerate(self.here) if here]
        coded = iter(self.visibility.batch(self.run, [v for p in who for v in self.seen[p]]))
        seen = [[next(coded) for _ in range(17)] if here else [0] * 17 for here in self.here]
        self.seen = [row if here else [3] * 17 for row, here in zip(seen, self.here, strict=True)]
        known = [(p, j) for p in range(self.people) for j in range(17) if seen[p][j]]
        before, self.at, moved = self.at, {}, {}
        followed = [point for point in known if point in before]
        self._follow(followed, before)
        for point in followed:
            moved[point] = [self.at[point][i] - before[point][i] for i in (0, 1)]
        for joint in ORDER:
            self._place([(p, j) for p, j in known if j == joint and (p, j) not in before], joint)
        self.activity = {point: self.activity[point] if point in moved else 4 for point in known}
        self.moved = {point: moved.get(point, [0, 0]) for point in known}
        points = [[self.at.get((p, j), [0, 0]) for j in range(17)] for p in range(self.people)]
        return self.here, seen, points

    def _follow(
        self, points: list[tuple[int, int]], before: dict[tuple[int, int], list[int]]
    ) -> None:
        levels = [sum(a <= self.activity[point] for a in (2, 5, 9, 16, 30)) for point in points]
        changes = [[0, 0] for _ in points]
        for axis in (0, 1):
            parts = [axis and 1 + min(2, abs(change[0])) for change in changes]
            rows = [4 * level + part for level, part in zip(levels, parts, strict=True)]
            z = self.residuals.batch(self.run, rows)
            far = [i for i, value in enumerate(z) if value == 24]
            for i, rest in zip(far, self.run.uint_of(len(far), 768), strict=True):
                z[i] += rest
            for change, value in zip(changes, z, strict=True):
                change[axis] = -(value + 1) // 2 if value % 2 else value // 2
        for point, change in zip(points, changes, strict=True):
            guess = [clip(before[point][i] + (self.moved[point][i] >> 1), -64, 320) for i in (0, 1)]
            self.at[point] = [guess[0] + change[0], guess[1] + change[1]]
            size = abs(change[0]) + abs(change[1])
            self.activity[point] = (3 * self.activity[point] + 4 * size + 2) >> 2

    def _place(self, points: list[tuple[int, int]], joint: int) -> None:
        guesses, lone = [], []
        for person, _ in points:
            done = sorted(j for p, j in self.at if p == person)
            parent = PARENT[joint] if PARENT[joint] in done else done[0] if done else None
            lone.append(parent is None)
            guesses.append([128, 128] if parent is None else self.at[person, parent])
        found: list[list[int]] = [[] for _ in points]
        for axis in (0, 1):
            high = self.offsets.batch(self.run, [34 if n else 2 * joint + axis for n in lone])
            low = self.run.bits_of(len(points), 3)
            for i in range(len(points)):
                found[i].append(guesses[i][axis] + 8 * high[i] + low[i] - 512)
        self.at.update(zip(points, found, strict=True))


# Section 8


class Mixer:
    def __init__(self) -> None:
        counts = struct.unpack("<50562H", (ASSETS / "sketch.counts").read_bytes())[2:]
        sizes, pairs = (4096, 8192, 8192, 4800), iter(counts)
        self.counts = [[[next(pairs), next(pairs)] for _ in range(size)] for size in sizes]
        weights = struct.unpack("<82h", (ASSETS / "sketch.weights").read_bytes())[2:]
        self.weights = [[256 * w for w in weights[4 * s : 4 * s + 4]] for s in range(20)]
        self.ones = logistic()
        self.stretch = stretched(self.ones)

    def batch(self, run: Run, cases: list[tuple[list[int], int]]) -> list[int]:
        """Bits with (a context of each family, a weight row)."""
        bits, slopes, used = [], defaultdict(lambda: [0] * 4), defaultdict(int)
        for contexts, s in cases:
            pairs = [self.counts[k][context] for k, context in enumerate(contexts)]
            logits = [self.stretch[((4 * n1 + 1) << 15) // (2 * (n0 + n1) + 1)] for n0, n1 in pairs]
            total = sum((self.weights[s][k] >> 8) * logits[k] for k in range(4))
            one = self.ones[clip(total >> 12, -3072, 3071) + 3072]
            bits.append(run.symbol([ONE - one, one]))
            used[s] += 1
            for k in range(4):
                slopes[s][k] += (65536 * bits[-1] - (one >> 8)) * logits[k]
        for s, count in used.items():
            for k in range(4):
                moved = self.weights[s][k] + (slopes[s][k] * 32 // max(32, count) >> 11)
                self.weights[s][k] = clip(moved, -(1 << 23), 1 << 23)
        touched = [
            (self.counts[k][contexts[k]], bit)
            for (contexts, _), bit in zip(cases, bits, strict=True)
            for k in range(4)
        ]
        for pair, bit in touched:
            pair[bit] += 1
        for pair, _ in touched:
            while sum(pair) > 1023:
                pair[:] = [(n + 1) >> 1 for n in pair]
        return bits


NEAR = [(0, -1), (-1, -1), (-1, 0), (-1, 1), (0, -2), (-1, -2), (-1, 2), (-2, -1), (-2, 0), (-2, 1)]
AROUND = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]


def sketch(
    run: Run, frames: int, size: tuple[int, int], base: list[Grid], base_step: int
) -> tuple[int, int, list[Grid]]:
    """Step, scale and maps; `size` is (height, width), `base` 8-bit luma."""
    step, scale = run.bits(6) + 1, run.bits(4) + 1
    count, (height, width) = -(-frames // step), (-(-side // scale) for side in size)
    lumas = [
        blurred(resampled(base[min(i * step // base_step, len(base) - 1)], height, width))
        for i in range(count)
    ]
    guides = [features(luma) for luma in lumas]
    moves = [[[(0, 0)] * width] * height]
    moves += [motion(lumas[i], lumas[i - 1]) for i in range(1, count)]
    maps: list[Grid] = [[[0] * width for _ in range(height)] for _ in range(count)]
    mixer = Mixer()

    def at(t: int, y: int, x: int) -> int:
        return maps[t][y][x] if t >= 0 and 0 <= y < height and 0 <= x < width else 0

    def ridge(t: int, y: int, x: int) -> int:
        return guides[t][1][y][x] if 0 <= y < height and 0 <= x < width else 0

    def case(t: int, y: int, x: int) -> tuple[list[int], int]:
        n = number(at(t, y + dy, x + dx) for dy, dx in NEAR)
        my, mx = moves[t][y][x]
        b = number(at(t - 1, y + my + dy, x + mx + dx) for dy, dx in AROUND)
        around = [ridge(t, y + dy, x + dx) for dy, dx in AROUND]
        g = number(int(r >= 2) for r in around)
        strength, r = guides[t][0][y][x], around[4]
        e = max(around[:4] + around[5:])
        n4, m = n >> 6, b >> 4 & 1
        contexts = [4 * n + 2 * m + (r >= 2), 512 * n4 + b, 512 * n4 + g]
        contexts.append(32 * ((6 * r + strength) * 5 + e) + 2 * n4 + m)
        return contexts, 4 * r + 2 * (n4 > 0) + (b > 0)

    waves: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for t in range(count):
        for y in range(height):
            for x in range(width):
                waves[x + 3 * y + 29 * t].append((t, y, x))
    for wave in sorted(waves):
        bits = mixer.batch(run, [case(*pixel) for pixel in waves[wave]])
        for (t, y, x), bit in zip(waves[wave], bits, strict=True):
            maps[t][y][x] = bit
    return step, scale, maps


def number(bits: Iterator[int]) -> int:
    found = 0
    for bit in bits:
        found = found << 1 | bit
    return found


def resampled(image: Grid, height: int, width: int) -> Grid:
    columns = [line(list(column), height) for column in zip(*image, strict=True)]
    return [line(list(row), width) for row in zip(*columns, strict=True)]


def line(a: list[int], m: int) -> list[int]:
    n, found = len(a), []
    for k in range(m):
        if m <= n:
            part = a[k * n // m : -(-(k + 1) * n // m)]
            found.append((sum(part) + len(part) // 2) // len(part))
        else:
            c = clip((2 * k + 1) * n * 128 // m - 128, 0, 256 * (n - 1))
            i, p = c >> 8, c & 255
            found.append((a[i] * (256 - p) + a[min(i + 1, n - 1)] * p + 128) >> 8)
    return found


def near(image: Grid, y: int, x: int) -> int:
    return image[clip(y, 0, len(image) - 1)][clip(x, 0, len(image[0]) - 1)]


def blurred(image: Grid) -> Grid:
    weights = [(dy, dx, (2 - abs(dy)) * (2 - abs(dx))) for dy, dx in AROUND]
    return [
        [sum(w * near(image, y + dy, x + dx) for dy, dx, w in weights) for x in range(len(row))]
        for y, row in enumerate(image)
    ]


def features(luma: Grid) -> tuple[Grid, Grid]:
    """Strength and ridge of each pixel."""
    height, width = len(luma), len(luma[0])
    size = [[0] * (width + 2) for _ in range(height + 2)]  # zeros around
    ahead = [[(0, 0)] * width for _ in range(height)]
    for y in range(height):
        for x in range(width):
            a = [near(luma, y + dy, x + dx) for dy, dx in AROUND]
            d, o = a[8] - a[0], a[6] - a[2]
            right, down = 2 * (a[5] - a[3]) + d - o, 2 * (a[7] - a[1]) + d + o
            big, small = max(abs(right), abs(down)), min(abs(right), abs(down))
            size[y + 1][x + 1] = big + (3 * small >> 3)
            if 5 * abs(right) > 12 * abs(down):
                ahead[y][x] = (0, 1)
            elif 5 * abs(down) > 12 * abs(right):
                ahead[y][x] = (1, 0)
            else:
                ahead[y][x] = (1, 1) if (right > 0) == (down > 0) else (1, -1)
    ridge = [[0] * width for _ in range(height)]
    for y in range(height):
        for x in range(width):
            here, (dy, dx) = size[y + 1][x + 1], ahead[y][x]
            if here >= size[y + 1 + dy][x + 1 + dx] and here > size[y + 1 - dy][x + 1 - dx]:
                ridge[y][x] = here
    inner = [row[1:-1] for row in size[1:-1]]
    ranked = ranks(ridge, (16, 8, 4))
    return ranks(inner, (40, 25, 16, 8, 4)), [
        [rank + (value > 0) for rank, value in zip(*rows, strict=True)]
        for rows in zip(ranked, ridge, strict=True)
    ]


def ranks(values: Grid, shares: tuple[int, ...]) -> Grid:
    ordered = sorted((value for row in values for value in row), reverse=True)
    n = len(ordered)
    bounds = [ordered[min(n - 1, n * share // 100)] for share in shares]
    return [[sum(value > bound for bound in bounds) for value in row] for row in values]


def motion(luma: Grid, before: Grid) -> list[list[tuple[int, int]]]:
    height, width = len(luma), len(luma[0])
    steps = sorted(
        ((dy, dx) for dy in range(-6, 7) for dx in range(-6, 7)),
        key=lambda step: (step[0] ** 2 + step[1] ** 2, step),
    )
    found = [[(0, 0)] * width for _ in range(height)]
    for top in range(0, height, 8):
        for left in range(0, width, 8):
            ys, xs = range(top, min(top + 8, height)), range(left, min(left + 8, width))
            best: tuple[int, tuple[int, int]] | None = None
            for dy, dx in steps:
                cost = sum(abs(luma[y][x] - near(before, y + dy, x + dx)) for y in ys for x in xs)
                if best is None or cost + (cost >> 4) < best[0]:
                    best = (cost, (dy, dx))
            for y in ys:
                for x in xs:
                    found[y][x] = best[1] if best else (0, 0)
    return found
