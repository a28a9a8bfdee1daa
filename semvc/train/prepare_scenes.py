"""`python -m semvc.train.prepare_scenes OUT`: the training cache of profile cpsgd.

Photographs become scenes: a camera moves before them, over depth that the decoder's coarse grid
only approximates, and things pass. Without photographs their place is taken by procedural textures.
Clips go through the encoder's own analysis. Keyframes are coded with AV1 and decoded again, masks
are fitted and rendered, so that the generator trains on what it will be given.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from semvc.errors import SemvcError
from semvc.media import av1, color
from semvc.media.reader import VideoReader
from semvc.nets import conditioning
from semvc.nets.cpsgd_generator import PATCH, STRIDE
from semvc.nets.plucker import rays
from semvc.nets.reprojection import FrameConditions, SceneConditions, Stage, View
from semvc.nets.warp import depth_map, warp
from semvc.profiles.findings import Finder
from semvc.signals.camera import resampled, rotation, rotation_vector
from semvc.signals.depth import COLUMNS, ROWS, fit_depth
from semvc.signals.maskfit import fit_masks, rendered
from semvc.train.mask_tables import procedural
from semvc.train.scene_data import FIELDS, Row
from semvc.types import Clip, VideoInfo

_log = logging.getLogger(__name__)

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

SIDE = 192  # samples of a crop
LENGTH = 8  # frames of a sample
SHARD = 16  # samples
_FRAME = 288  # samples of a photograph's frames, from which crops are taken
_FINE = 4  # how much finer true depth is than the decoder's grid
_SPANS = (8, 40)  # frames of a photograph's scene
_CLIP_SIDE = 360  # rows of clips
_CLIP_FRAMES = 100
_CRF = {1: (24.0, 60.0), 2: (40.0, 62.0), 4: (42.0, 70.0)}  # of keyframes, by how much smaller
_FACTORS = (1, 1, 2, 2, 4)
_SUPER = 2  # how much larger scenes are rendered than they are stored, so that they stay sharp


@dataclass(frozen=True, slots=True)
class Shot:
    """A segment with its geometry: frames uint8 [T, H, W, 3], poses of all of them, masks.

    `focal` is in picture widths; `depths` gives the decoder's grids float32 [n, 9, 16] at frames.
    """

    frames: UInt8
    rotations: Float64
    positions: Float64
    focal: float
    depths: dict[int, Float32]
    ids: UInt8 | None


def photo_shots(pictures: Iterator[UInt8], random: np.random.Generator) -> Iterator[Shot]:
    """Set each picture [H, W, 3] in motion; the next one lends its texture to what passes."""
    before: UInt8 | None = None
    for picture in pictures:
        photo = _framed(picture, random)
        yield _moved(photo, photo if before is None else before, random)
        before = photo


def clip_shots(folder: Path) -> Iterator[Shot]:
    """Shots of the videos in a folder whose camera the encoder's analysis finds."""
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".mp4", ".mkv", ".webm")):
        try:
            with VideoReader(path) as reader:
                frames = np.stack([frame for frame, _ in itertools.islice(reader, _CLIP_FRAMES)])
        except SemvcError as error:
            _log.warning("%s", error)
            continue
        yield from _analysed(frames)


def textures(random: np.random.Generator) -> Iterator[UInt8]:
    """Endless procedural pictures: waves, patches and noise of many sizes."""
    while True:
        total = np.zeros((_FRAME, _FRAME, 3), np.float32)
        for scale in (4, 9, 18, 36, 72, 144):
            coarse = random.normal(0, 1, (1, scale, scale, 3)).astype(np.float32)
            if random.random() < 0.5:
                coarse = np.sign(coarse)
            total += color.resize(coarse, _FRAME, _FRAME)[0] * 60 / scale**0.4
        yield np.clip(128 + total, 0, 255).astype(np.uint8)


def pictures_in(folder: Path, random: np.random.Generator) -> Iterator[UInt8]:
    """The photographs of a folder, endlessly, in random order."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    while paths:
        for index in random.permutation(len(paths)):
            with av.open(str(paths[index])) as container:
                yield next(container.decode(video=0)).to_ndarray(format="rgb24").astype(np.uint8)


def samples(shot: Shot, random: np.random.Generator, count: int) -> Iterator[Row]:
    """Cut samples out of a shot, each with keyframes of its own places and coarseness."""
    frames = len(shot.frames)
    for _ in range(count):
        places = _places(shot, random)
        given = _conditions(shot, places, random)
        first = int(random.integers(max(1, frames - LENGTH + 1)))
        height, width = shot.frames.shape[1:3]
        y, x = (int(random.integers((n - SIDE) // STRIDE + 1)) * STRIDE for n in (height, width))
        stage = Stage(given)
        rows = [_row(given, stage, t, (y, x)) for t in range(first, first + LENGTH)]
        sample = {n: np.stack([row[n] for row in rows]) for n in FIELDS[1:7]}
        here = (slice(first, first + LENGTH), slice(y, y + SIDE), slice(x, x + SIDE))
        sample["source"] = shot.frames[here]
        settings = (given.crf, np.log2(given.factor), given.ids is not None)
        sample["settings"] = np.array(settings, np.float32)
        yield sample


def prepare(shots: Iterator[Shot], out: Path, *, shards: int, per_shot: int, seed: int) -> int:
    """Write `shards` shards of samples to `out`, going on where it stopped; return how many."""
    random = np.random.default_rng(seed)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    number = sum(1 for p in out.iterdir() if (p / "settings.npy").exists())
    for shot in shots:
        rows += samples(shot, random, per_shot)
        while len(rows) >= SHARD and number < shards:
            _write(rows[:SHARD], out / f"{number:05d}")
            rows, number = rows[SHARD:], number + 1
        if number >= shards:
            break
    return number


def _write(rows: list[Row], folder: Path) -> None:
    part = folder.with_name(folder.name + ".part")
    part.mkdir(exist_ok=True)
    for name in FIELDS:
        np.save(part / f"{name}.npy", np.stack([row[name] for row in rows]))
    part.rename(folder)
    _log.info("wrote %s", folder)


def _places(shot: Shot, random: np.random.Generator) -> tuple[int, ...]:
    last = max(shot.depths)
    inner = [place for place in shot.depths if 0 < place < last]
    chosen = {0}
    if random.random() < 0.6:
        chosen.add(last)
    chosen |= {place for place in inner if random.random() < 0.25}
    return tuple(sorted(chosen))


def _conditions(
    shot: Shot, places: tuple[int, ...], random: np.random.Generator
) -> SceneConditions:
    """What a decoder would have, keyframes coded and masks fitted."""
    count, height, width = shot.frames.shape[:3]
    factor = int(random.choice(_FACTORS))
    crf = float(random.uniform(*_CRF[factor]))
    small = color.resize(shot.frames[list(places)], *conditioning.base_size(height, width, factor))
    header, obus = av1.encode_segment(small, crf=crf, preset=10, fps=Fraction(1))
    size = (small.shape[2], small.shape[1])
    planes = av1.decode_segment(header, obus, size, len(places), isolate=False)
    again = color.yuv420_to_rgb(planes)
    big = color.resize(again, again.shape[1] * factor, again.shape[2] * factor)
    track = None
    if shot.ids is not None and random.random() < 0.9:
        track = fit_masks(shot.ids, step=int(random.integers(2, 9)))
    focal = shot.focal * width

    def ids(frame: int) -> UInt8:
        found = np.zeros((height, width), np.uint8)
        for number, mask in enumerate(
            () if track is None else rendered(track, frame, found.shape), 1
        ):
            found[mask > 0] = number
        return found

    return SceneConditions(
        width=width,
        height=height,
        frames=count,
        keyframes=big[:, :height, :width],
        places=places,
        depths=fit_depth(np.stack([shot.depths[place] for place in places])).depths(),
        rotations=shot.rotations,
        positions=shot.positions,
        intrinsics=np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]),
        crf=crf,
        factor=factor,
        ids=None if track is None else ids,
    )


def _row(given: SceneConditions, stage: Stage, t: int, corner: tuple[int, int]) -> Row:
    """One frame of a sample, cut at `corner` (y, x)."""
    found: FrameConditions = stage.frame(t)
    y, x = corner
    here = (slice(y, y + SIDE), slice(x, x + SIDE))
    cells = tuple(slice(v // PATCH, (v + SIDE) // PATCH) for v in corner)
    size = (given.height, given.width)
    looked = rays(given.rotations[t], given.positions[t], given.intrinsics, size=size, cell=PATCH)
    look = np.clip(found.objects + np.float32(0.5), 0, 255)
    flags = np.stack((found.known, (found.ids > 0).astype(np.float32)), -1) * np.float32(255)
    control = np.concatenate((look, flags), -1).astype(np.uint8)
    return {
        "base": found.preview()[here],
        "before": _view(found.before)[here],
        "after": _view(found.after)[here],
        "control": control[here],
        "rays": looked[:, cells[0], cells[1]].astype(np.float16),
        "phase": np.array(found.phase, np.float32),
    }


def _view(view: View) -> UInt8:
    parts = (view.image, view.valid[..., None] * np.float32(255))
    return np.clip(np.concatenate(parts, -1) + 0.5, 0, 255).astype(np.uint8)


# --- photographs


def _framed(picture: UInt8, random: np.random.Generator) -> UInt8:
    """A square part of a picture at the size of rendering."""
    side = min(picture.shape[:2])
    side = int(side * random.uniform(0.6, 1.0))
    y, x = (int(random.integers(n - side + 1)) for n in picture.shape[:2])
    large = _FRAME * _SUPER
    return color.resize(picture[None, y : y + side, x : x + side], large, large)[0]


def _moved(photo: UInt8, other: UInt8, random: np.random.Generator) -> Shot:
    """A camera moves before a photograph; perhaps something made of another one passes."""
    count = int(random.integers(*_SPANS))
    rotations, positions = _path(count, random)
    focal = float(random.uniform(0.6, 1.4))
    matrix = np.array([[focal * _FRAME, 0, _FRAME / 2], [0, focal * _FRAME, _FRAME / 2], [0, 0, 1]])
    grid = _depth(random)
    middle = count // 2
    poses = [
        np.concatenate((r, -(r @ p)[:, None]), 1) for r, p in zip(rotations, positions, strict=True)
    ]
    frames = np.empty((count, _FRAME, _FRAME, 3), np.uint8)
    fine = matrix * np.array([[_SUPER], [_SUPER], [1]])
    for t in range(count):  # seen from the middle, so that both ends show what it lacks alike
        seen = warp(photo, grid, poses[middle], poses[t], fine).image
        frames[t] = _shown(seen)
    wanted = sorted({0, count // 3, 2 * count // 3, count - 1})
    coarse = {t: _seen_depth(grid, poses[middle], poses[t], matrix) for t in wanted}
    ids = None
    if random.random() < 0.6:
        ids = _passing(frames, _shown(other.astype(np.float32)), random)
    return Shot(frames, rotations, positions, focal, coarse, ids)


def _shown(seen: Float32) -> UInt8:
    """What was rendered, float32 [H, W, 3], as it is stored: means of blocks, uint8."""
    height, width = (side // _SUPER for side in seen.shape[:2])
    blocks = seen.reshape(height, _SUPER, width, _SUPER, 3).mean((1, 3))
    return np.clip(blocks + np.float32(0.5), 0, 255).astype(np.uint8)


def _path(count: int, random: np.random.Generator) -> tuple[Float64, Float64]:
    """A smooth path through a few random poses, the first of which is the world."""
    knots = int(random.integers(2, 6))
    turns = random.normal(0, random.choice((0.0, 0.01, 0.04)), (knots, 3)) * (1, 1, 0.3)
    moves = random.normal(0, random.choice((0.0, 0.03, 0.08)), (knots, 3))
    turns[0] = moves[0] = 0
    poses, places = rotation(np.cumsum(turns, 0)), np.cumsum(moves, 0)
    steps = rotation_vector(poses[1:] @ np.swapaxes(poses[:-1], 1, 2))
    return resampled(poses, places, steps, count)


def _depth(random: np.random.Generator) -> Float32:
    """A fine grid of depth: a tilted plane, a floor, bumps."""
    rows, columns = (n * _FINE for n in (ROWS, COLUMNS))
    y, x = np.mgrid[0:rows, 0:columns] / np.array([rows, columns]).reshape(2, 1, 1) - 0.5
    inverse = 1 + random.uniform(-0.6, 0.6) * x + random.uniform(-0.6, 0.6) * y
    inverse = inverse + random.choice((0, 1.5)) * np.maximum(0, y - random.uniform(0, 0.3))
    for _ in range(int(random.integers(0, 4))):
        cy, cx, size = (
            random.uniform(-0.4, 0.4),
            random.uniform(-0.4, 0.4),
            random.uniform(0.1, 0.3),
        )
        bump = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / size**2)
        inverse = inverse + random.uniform(-0.3, 0.6) * bump
    return (1 / np.maximum(inverse, 0.15)).astype(np.float32)


def _seen_depth(grid: Float32, source: Float64, target: Float64, matrix: Float64) -> Float32:
    """The decoder's nodes of depth as `target` sees them, float32 [9, 16]."""
    deep = depth_map(grid, _FRAME, _FRAME).astype(np.float64)
    y, x = np.mgrid[0:_FRAME, 0:_FRAME] + 0.5
    local = np.stack((x, y, np.ones_like(x)), -1) @ np.linalg.inv(matrix).T * deep[..., None]
    world = (local - source[:, 3]) @ source[:, :3]
    there = world @ target[:, :3].T + target[:, 3]
    shown = warp(there[..., 2:].astype(np.float32), grid, source, target, matrix).image[..., 0]
    rows = np.rint(np.linspace(0, _FRAME - 1, ROWS)).astype(np.int64)
    columns = np.rint(np.linspace(0, _FRAME - 1, COLUMNS)).astype(np.int64)
    return np.maximum(shown[rows[:, None], columns], 0.05).astype(np.float32)


def _passing(frames: UInt8, other: UInt8, random: np.random.Generator) -> UInt8:
    """Lay a moving shape over the frames, in place; return its masks uint8 [T, H, W]."""
    count = len(frames)
    ids = procedural(int(random.integers(1 << 30)), count, frames.shape[1:3])
    where = [np.argwhere(mask).mean(0) if mask.any() else np.zeros(2) for mask in ids]
    for t, mask in enumerate(ids > 0):
        shift = np.rint(where[t] - where[0]).astype(np.int64)
        moved = np.roll(other, tuple(shift.tolist()), (0, 1))
        frames[t][mask] = moved[mask]
    return ids


# --- clips


def _analysed(frames: UInt8) -> Iterator[Shot]:
    height, width = frames.shape[1:3]
    scale = _CLIP_SIDE / min(height, width)
    small = color.resize(frames, round(height * scale), round(width * scale))
    info = VideoInfo(small.shape[2], small.shape[1], Fraction(24), Fraction(1, 24))
    clip = Clip(small, np.arange(len(small)), info)
    found = Finder(None, None).find(clip, 0)
    if found is None:
        return
    places = tuple(sorted({0, len(small) // 2, len(small) - 1}))
    depths = dict(zip(places, found.depths(places), strict=True))
    path = found.path
    yield Shot(small, path.rotations, path.positions(), path.focal, depths, found.ids())


def main() -> None:
    """Make the cache OUT."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", type=Path, help="folder of photographs")
    parser.add_argument("--clips", type=Path, help="folder of videos")
    parser.add_argument("--shards", type=int, default=100, help=f"of {SHARD} samples each")
    parser.add_argument("--per-shot", type=int, default=4, help="samples of one shot")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    random = np.random.default_rng(given.seed)
    if given.clips is not None:
        shots = clip_shots(given.clips)
        prepare(shots, given.out / "clips", shards=given.shards, per_shot=given.per_shot, seed=2)
    pictures = textures(random) if given.photos is None else pictures_in(given.photos, random)
    name = "textures" if given.photos is None else "photos"
    shots = photo_shots(pictures, random)
    prepare(shots, given.out / name, shards=given.shards, per_shot=given.per_shot, seed=given.seed)


if __name__ == "__main__":
    main()
