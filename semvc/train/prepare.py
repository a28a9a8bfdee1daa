"""Makes the training cache: real base layers of clips and of photographs set in motion."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from semvc.media import av1, color
from semvc.nets import conditioning
from semvc.signals.edges import extract_edges
from semvc.train import figures
from semvc.train.data import FIELDS

_log = logging.getLogger(__name__)

UInt8 = npt.NDArray[np.uint8]
LENGTH, ARRIVALS, SIDE = 6, 8, 160  # frames, received frames and luma samples of one sample
_SEGMENT = 40  # frames coded together
_FACTORS = ((1, 0.60), (2, 0.28), (4, 0.10), (8, 0.02))
_STEPS = ((1, 0.85), (2, 0.09), (4, 0.04), (8, 0.02))
_CRF = (46, 70)  # the settings of the rates that semvc is made for


@dataclass(frozen=True, slots=True)
class Footage:
    """Frames uint8 [T, H, W, 3] of one shot; `points` float32 [T, P, 17, 2] if people are drawn."""

    name: str
    frames: UInt8
    points: npt.NDArray[np.float32] | None


def prepare(footage: Iterator[Footage], out: Path, *, seed: int, samples: int, preset: int) -> int:
    """Code every piece of footage once at random settings and cut samples out of it.

    Each piece becomes one shard of `samples` samples. Returns how many samples were written.
    """
    total = 0
    for number, piece in enumerate(footage):
        folder = out / f"{number:05d}"
        random = np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64)))
        if (folder / "figure.npy").exists():
            continue
        shard = _shard(piece, random, samples, preset)
        if shard is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        for name in FIELDS:  # `figure` is the last and marks the shard complete
            np.save(folder / f"{name}.npy", shard[name])
        total += samples
        _log.info("%s: %s %s", folder.name, piece.name, shard["settings"][0])
    return total


def clips(folder: Path, *, seed: int, rounds: int) -> Iterator[Footage]:
    """Yield shots of `_SEGMENT` frames from every video in a folder, `rounds` times."""
    random = np.random.Generator(np.random.Philox(key=np.array([seed, 1 << 32], np.uint64)))
    paths = sorted(p for p in folder.iterdir() if p.suffix in {".mp4", ".mov", ".mkv", ".webm"})
    for _ in range(rounds):
        for path in paths:
            with av.open(str(path)) as container:
                total = container.streams.video[0].frames or _SEGMENT
                start = int(random.integers(max(1, total - _SEGMENT + 1)))
                frames = []
                for i, frame in enumerate(container.decode(video=0)):
                    if i >= start + _SEGMENT:
                        break
                    if i >= start:
                        frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) >= LENGTH:
                yield Footage(path.stem, np.stack(frames), None)


def photos(folder: Path, *, seed: int) -> Iterator[Footage]:
    """Yield every photograph as a moving crop: pan, zoom and turn; people are drawn on some."""
    for number, path in enumerate(sorted(folder.glob("*.jpg"))):
        random = np.random.Generator(
            np.random.Philox(key=np.array([seed, (2 << 32) + number], np.uint64))
        )
        with av.open(str(path)) as container:
            decoded = next(container.decode(video=0)).to_ndarray(format="rgb24")
        picture = np.asarray(decoded, np.uint8)
        frames = _moving_crop(picture, random, frames=20, height=320, width=448)
        points = None
        if random.random() < 0.35:
            frames, points = figures.draw(frames, random)
        yield Footage(path.stem, frames, points)


def _moving_crop(
    picture: UInt8, random: np.random.Generator, *, frames: int, height: int, width: int
) -> UInt8:
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    h, w = picture.shape[:2]
    zoom = random.uniform(0.55, 1.0) * min(h / height, w / width)
    centre, speed = random.uniform(-0.2, 0.2, 2), random.normal(0, 0.006, 2)
    turn, spin, growth = random.normal(0, 0.05), random.normal(0, 0.004), random.normal(0, 0.006)
    out = []
    for t in range(frames):
        size = zoom * (1 + growth * t)
        angle = turn + spin * t
        cx, cy = centre + speed * t
        sx, sy = size * width / w, size * height / h
        c, s = np.cos(angle), np.sin(angle)
        matrix = torch.tensor(
            [[[c * sx, -s * sx * height / width, cx], [s * sy * width / height, c * sy, cy]]]
        )
        grid = F.affine_grid(matrix.float(), [1, 3, 2 * height, 2 * width], align_corners=False)
        big = F.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
        out.append(
            F.avg_pool2d(big, 2).clamp(0, 255).round().to(torch.uint8)[0].permute(1, 2, 0).numpy()
        )
    return np.stack(out)


def _shard(
    piece: Footage, random: np.random.Generator, samples: int, preset: int
) -> dict[str, npt.NDArray[np.generic]] | None:
    factor, step = _pick(random, _FACTORS), _pick(random, _STEPS)
    crf = int(random.integers(_CRF[0], _CRF[1] + 1))
    frames = piece.frames
    count, height, width = frames.shape[:3]
    if min(height, width) < SIDE or count < LENGTH:
        return None
    bw, bh = conditioning.base_size(width, height, factor)
    padded = np.pad(
        frames, ((0, 0), (0, bh * factor - height), (0, bw * factor - width), (0, 0)), "edge"
    )
    small = color.resize(padded[::step], bh, bw)
    header, obus = av1.encode_segment(small, crf=crf, preset=preset)
    planes = av1.decode_segment(header, obus, (bw, bh), len(small))
    base = color.yuv420_to_rgb(planes)
    filled = conditioning.forward_fill(count, step)
    rows: dict[str, list[npt.NDArray[np.generic]]] = {n: [] for n in FIELDS}
    for _ in range(samples):
        start = int(random.integers(count - LENGTH + 1))
        y, x = (int(random.integers((v - SIDE) // 8 + 1)) * 8 for v in (height, width))
        held = filled[start : start + LENGTH]
        low, high = int(held.min()), int(held.max()) + 1
        crop = _upsampled_crop(base[low:high], factor, y, x)
        crop = np.concatenate([crop, np.zeros((ARRIVALS - len(crop), SIDE, SIDE, 3), np.uint8)])
        source = frames[start : start + LENGTH, y : y + SIDE, x : x + SIDE]
        rows["source"].append(source)
        rows["arrivals"].append(crop)
        rows["sketch"].append(_sketch(source, random))
        rows["skeleton"].append(_skeleton(piece, start, y, x))
        rows["held"].append((held - low).astype(np.uint8))
        rows["phase"].append((np.arange(start, start + LENGTH) % step / step).astype(np.float32))
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
        [conditioning.render_map(maps[t // held * held], grid, grid) for t in range(LENGTH)]
    )


def _skeleton(piece: Footage, start: int, y: int, x: int) -> UInt8:
    grid = SIDE // 4
    if piece.points is None:
        return np.zeros((LENGTH, grid, grid), np.uint8)
    height, width = piece.frames.shape[1:3]
    out = []
    for points in piece.points[start : start + LENGTH]:
        local = (points * np.array([width, height]) - np.array([x, y])) / SIDE
        seen = np.ones(points.shape[:2], np.uint8)
        out.append(conditioning.render_skeleton(local.astype(np.float32), seen, (grid, grid)))
    return np.stack(out)


def _pick(random: np.random.Generator, odds: tuple[tuple[int, float], ...]) -> int:
    values, weights = zip(*odds, strict=True)
    return int(random.choice(values, p=weights))
