"""Makes the training cache: real base layers of clips and of photographs set in motion."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from semvc.errors import UsageError
from semvc.media import av1, color
from semvc.nets import conditioning
from semvc.nets.propagation import propagated
from semvc.signals.edges import extract_edges
from semvc.train import figures, motion
from semvc.train.data import FIELDS

_log = logging.getLogger(__name__)

UInt8 = npt.NDArray[np.uint8]
LENGTH, SIDE = 6, 160  # frames and luma samples of one sample, unless asked for others
_SEGMENT = 40  # frames coded together
_FACTORS = ((1, 0.60), (2, 0.28), (4, 0.10), (8, 0.02))
_STEPS = ((1, 0.85), (2, 0.09), (4, 0.04), (8, 0.02))
_CUTS = 0.15  # share of shots with a hard cut inside, so that memory is learnt to be dropped
_CRF = (46, 70)  # the settings of the rates that semvc is made for


@dataclass(frozen=True, slots=True)
class Settings:
    """How samples are cut: `samples` from each shot, of `length` frames.

    `preset` is SVT-AV1's; everything random derives from `seed` and the number of the shot.
    """

    samples: int = 8
    length: int = LENGTH
    preset: int = 6
    seed: int = 1

    def __post_init__(self) -> None:
        if self.samples < 1 or not 2 <= self.length <= _SEGMENT:
            raise UsageError(f"samples are at least 1, and length is from 2 to {_SEGMENT}")


@dataclass(frozen=True, slots=True)
class Footage:
    """Frames uint8 [T, H, W, 3] of one shot; `points` float32 [T, P, 17, 2] if people are drawn."""

    name: str
    frames: UInt8
    points: npt.NDArray[np.float32] | None


def fill(
    source: Path,
    out: Path,
    kind: str,
    settings: Settings,
    *,
    rounds: int = 1,
    on_shots: Callable[[int, int], None] | None = None,
) -> int:
    """Make the cache folder `out` of a folder of "clips" or "photos"; return how many samples.

    Clips are gone through `rounds` times. `on_shots` gets the shots done and those in all.
    """
    if not source.is_dir():
        raise UsageError(f"no folder {source}")
    if kind == "photos":
        total = len(_photos_in(source))
        footage = photos(source, seed=settings.seed, length=settings.length)
        settings = replace(settings, samples=max(1, settings.samples // 3))
    else:
        total = rounds * len(_videos_in(source))
        footage = clips(source, seed=settings.seed, rounds=rounds, length=settings.length)
    if not total:
        raise UsageError(f"{source} holds no {kind}")
    made = prepare(_counted(footage, total, on_shots), out, settings)
    if not made and not any(out.glob("*/figure.npy")):
        raise UsageError(f"{source} holds no {kind} that are large and long enough for a sample")
    return made


def _counted(
    footage: Iterator[Footage], total: int, on_shots: Callable[[int, int], None] | None
) -> Iterator[Footage]:
    for number, piece in enumerate(footage):
        yield piece
        if on_shots is not None:
            on_shots(number + 1, total)


def prepare(footage: Iterator[Footage], out: Path, settings: Settings) -> int:
    """Code every piece of footage once at random settings and cut samples out of it.

    Each piece becomes one shard of samples. Returns how many samples were written.
    """
    total = 0
    for number, piece in enumerate(footage):
        folder = out / f"{number:05d}"
        key = np.array([settings.seed, number], np.uint64)
        random = np.random.Generator(np.random.Philox(key=key))
        if (folder / "figure.npy").exists():
            continue
        shard = _shard(piece, random, settings)
        if shard is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        for name in FIELDS:  # `figure` is the last and marks the shard complete
            np.save(folder / f"{name}.npy", shard[name])
        total += settings.samples
        _log.info("%s: %s %s", folder.name, piece.name, shard["settings"][0])
    return total


def clips(folder: Path, *, seed: int, rounds: int, length: int = LENGTH) -> Iterator[Footage]:
    """Yield shots of `_SEGMENT` frames from every video in a folder, `rounds` times.

    Some begin as the shot before and change to their own in a hard cut.
    """
    random = np.random.Generator(np.random.Philox(key=np.array([seed, 1 << 32], np.uint64)))
    before: UInt8 = np.zeros((0, 0, 0, 3), np.uint8)
    for _ in range(rounds):
        for path in _videos_in(folder):
            with av.open(str(path)) as container:
                total = container.streams.video[0].frames or _SEGMENT
                start = int(random.integers(max(1, total - _SEGMENT + 1)))
                frames = []
                for i, frame in enumerate(container.decode(video=0)):
                    if i >= start + _SEGMENT:
                        break
                    if i >= start:
                        frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) < length:
                continue
            shot: UInt8 = np.stack(frames).astype(np.uint8, copy=False)
            joined = before.shape == shot.shape and len(shot) >= 20 and random.random() < _CUTS
            yield Footage(path.stem, motion.cut(before, shot, random) if joined else shot, None)
            before = shot


def photos(folder: Path, *, seed: int, length: int = LENGTH) -> Iterator[Footage]:
    """Yield every photograph set in motion (see `motion`); people are drawn on some."""
    paths = _photos_in(folder)
    for number, path in enumerate(paths):
        random = np.random.Generator(
            np.random.Philox(key=np.array([seed, (2 << 32) + number], np.uint64))
        )
        frames = motion.move(_photograph(path), random, frames=max(20, length + 4))
        if len(paths) > 1 and random.random() < _CUTS:
            other = (number + 1 + int(random.integers(len(paths) - 1))) % len(paths)
            moved = motion.move(_photograph(paths[other]), random, frames=len(frames))
            frames = motion.cut(frames, moved, random)
        points = None
        if random.random() < 0.35:
            frames, points = figures.draw(frames, random)
        yield Footage(path.stem, frames, points)


def _photograph(path: Path) -> UInt8:
    with av.open(str(path)) as container:
        return np.asarray(next(container.decode(video=0)).to_ndarray(format="rgb24"), np.uint8)


def _videos_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in {".mp4", ".mov", ".mkv", ".webm"})


def _photos_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in {".jpg", ".jpeg"})


def _shard(
    piece: Footage, random: np.random.Generator, settings: Settings
) -> dict[str, npt.NDArray[np.generic]] | None:
    factor, step = _pick(random, _FACTORS), _pick(random, _STEPS)
    crf = int(random.integers(_CRF[0], _CRF[1] + 1))
    frames, length = piece.frames, settings.length
    count, height, width = frames.shape[:3]
    if min(height, width) < SIDE or count < length:
        return None
    bw, bh = conditioning.base_size(width, height, factor)
    padded = np.pad(
        frames, ((0, 0), (0, bh * factor - height), (0, bw * factor - width), (0, 0)), "edge"
    )
    small = color.resize(padded[::step], bh, bw)
    header, obus = av1.encode_segment(small, crf=crf, preset=settings.preset)
    planes = av1.decode_segment(header, obus, (bw, bh), len(small))
    base = propagated(color.yuv420_to_rgb(planes))
    filled = conditioning.forward_fill(count, step)
    rows: dict[str, list[npt.NDArray[np.generic]]] = {n: [] for n in FIELDS}
    for _ in range(settings.samples):
        start = int(random.integers(count - length + 1))
        y, x = (int(random.integers((v - SIDE) // 8 + 1)) * 8 for v in (height, width))
        held = filled[start : start + length]
        low, high = int(held.min()), int(held.max()) + 1
        crop = _upsampled_crop(base[low:high], factor, y, x)
        missing = length + 2 - len(crop)
        crop = np.concatenate([crop, np.zeros((missing, SIDE, SIDE, 3), np.uint8)])
        source = frames[start : start + length, y : y + SIDE, x : x + SIDE]
        rows["source"].append(source)
        rows["arrivals"].append(crop)
        rows["sketch"].append(_sketch(source, random))
        rows["skeleton"].append(_skeleton(piece, start, length, (y, x)))
        rows["held"].append((held - low).astype(np.uint8))
        rows["phase"].append((np.arange(start, start + length) % step / step).astype(np.float32))
        rows["settings"].append(np.array([crf, np.log2(factor), np.log2(step)], np.float32))
        rows["figure"].append(np.array(piece.points is not None, np.uint8))
    return {n: np.stack(v) for n, v in rows.items()}


def _upsampled_crop(base: UInt8, factor: int, y: int, x: int) -> UInt8:
    """Crop [K, S, S, 3] at (y, x) of the upsampled base layer, computed from a margin around it."""
    if factor == 1:
        return base[:, y : y + SIDE, x : x + SIDE]
    margin = 4
    top, left = max(0, y // factor - margin), max(0, x // factor - margin)
    bottom, right = ((v + SIDE) // factor + margin for v in (y, x))
    part = base[:, top:bottom, left:right]
    big = color.resize(part, part.shape[1] * factor, part.shape[2] * factor)
    oy, ox = y - top * factor, x - left * factor
    return big[:, oy : oy + SIDE, ox : ox + SIDE]


def _sketch(source: UInt8, random: np.random.Generator) -> UInt8:
    """Sketch maps as a decoder renders them: of some size, density and rate."""
    grid = SIDE // 4
    side = int(random.choice([grid, grid * 2 // 3, grid // 2]))
    held = int(random.choice([1, 2, 4]))
    luma = source.mean(3).astype(np.uint8)
    maps = extract_edges(luma, (side, side), density=float(random.uniform(0.02, 0.06)))
    return np.stack(
        [conditioning.render_map(maps[t // held * held], grid, grid) for t in range(len(source))]
    )


def _skeleton(piece: Footage, start: int, length: int, corner: tuple[int, int]) -> UInt8:
    grid, (y, x) = SIDE // 4, corner
    if piece.points is None:
        return np.zeros((length, grid, grid), np.uint8)
    height, width = piece.frames.shape[1:3]
    out = []
    for points in piece.points[start : start + length]:
        local = (points * np.array([width, height]) - np.array([x, y])) / SIDE
        seen = np.ones(points.shape[:2], np.uint8)
        out.append(conditioning.render_skeleton(local.astype(np.float32), seen, (grid, grid)))
    return np.stack(out)


def _pick(random: np.random.Generator, odds: tuple[tuple[int, float], ...]) -> int:
    values, weights = zip(*odds, strict=True)
    return int(random.choice(values, p=weights))
