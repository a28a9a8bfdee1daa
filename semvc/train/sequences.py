"""Sequences of source frames for training: clips as they are, photographs to be set in motion.

A cache folder holds `clips/*.mp4`, each one sequence of square frames, and `photos.mp4`, whose
frames are photographs of one size. That is small to keep and to send. On first use they are
unpacked to `clips.npy` uint8 [N, L, S, S, 3] and `photos.npy` uint8 [M, H, W, 3] beside them, which
are memory-mapped. Sequences of other lengths are left out, the longest length counts.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from semvc.errors import UsageError
from semvc.train import stills

_log = logging.getLogger(__name__)

UInt8 = npt.NDArray[np.uint8]
CLIPS, PHOTOS = "clips", "photos.mp4"


@dataclass(frozen=True, slots=True)
class SequenceBatch:
    """Sequences as they are stored; `frames` makes pictures of them on their device.

    clips: uint8 [A, T, S, S, 3]. photos, others: uint8 [B, H, W, 3], with the `path` of B sequences
    over them. quality: float32 [A + B] in [0, 63]. crop: S.
    """

    clips: Tensor
    photos: Tensor
    others: Tensor
    path: stills.Path
    quality: Tensor
    crop: int

    def frames(self) -> Tensor:
        """Return all sequences, float32 [A + B, T, 3, S, S] in [-1, 1], clips first."""
        clips = self.clips.permute(0, 1, 4, 2, 3).float()
        if not len(self.photos):
            return clips / 127.5 - 1
        moving = stills.render(self.photos, self.others, self.path, self.crop).round()
        return torch.cat([clips, moving]) / 127.5 - 1


class Sequences:
    """All sequences and photographs of some cache folders."""

    def __init__(self, folders: list[Path]) -> None:
        pairs = [(_unpacked(f, "clips.npy"), _unpacked(f, "photos.npy")) for f in folders]
        self._clips = [c for c, _ in pairs if c is not None]
        self._photos = [p for _, p in pairs if p is not None]
        if not self._clips and not self._photos:
            raise UsageError(
                f"no sequences in {', '.join(map(str, folders))}:"
                " make them with `python -m semvc.train.prepare_sequences`"
            )

    @property
    def counts(self) -> tuple[int, int]:
        """Number of sequences and of photographs."""
        return sum(map(len, self._clips)), sum(map(len, self._photos))

    @property
    def size(self) -> tuple[int, int]:
        """Frames and luma samples that sequences can have at most."""
        if not self._clips:
            return 32, min(self._photos[0].shape[1:3])
        lengths, sides = zip(*(c.shape[1:3] for c in self._clips), strict=True)
        sides += tuple(min(p.shape[1:3]) for p in self._photos)
        return min(lengths), min(sides)

    def batch(
        self, size: int, *, frames: int, crop: int, photos: float, key: tuple[int, int]
    ) -> SequenceBatch:
        """Return a batch that depends on `key` (seed, step) alone.

        `photos` is the chance that a sequence is a photograph in motion. UsageError if there are no
        sequences of that length or size.
        """
        random = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))
        moving = [self._is_photo(random, photos) for _ in range(size)]
        rows = [self._row(random, frames, crop) for m in moving if not m]
        count = sum(moving)
        pairs = [(self._photo(random, crop), self._photo(random, crop)) for _ in range(count)]
        shape = self._photos[0].shape[1:3] if self._photos else (crop, crop)
        path = stills.draw(random, count, frames, side=crop, photo=shape)
        quality = random.uniform(0, 63, size).astype(np.float32)
        empty = np.zeros((0, *shape, 3), np.uint8)
        return SequenceBatch(
            torch.from_numpy(np.stack(rows) if rows else _no_clips(frames, crop)),
            torch.from_numpy(np.stack([a for a, _ in pairs]) if count else empty),
            torch.from_numpy(np.stack([b for _, b in pairs]) if count else empty),
            path,
            torch.from_numpy(quality),
            crop,
        )

    def _is_photo(self, random: np.random.Generator, share: float) -> bool:
        drawn = random.random() < share
        return bool(self._photos) and (drawn or not self._clips)

    def _row(self, random: np.random.Generator, frames: int, crop: int) -> UInt8:
        lengths = [len(c) for c in self._clips]
        index = int(random.integers(sum(lengths)))
        for shard in self._clips:
            if index < len(shard):
                break
            index -= len(shard)
        length, side = shard.shape[1:3]
        if frames > length or crop > side:
            raise UsageError(
                f"the sequences have {length} frames of {side} luma samples, a stage asks for"
                f" {frames} of {crop}: prepare longer or larger ones, or change the recipe"
            )
        step = 2 if 2 * frames <= length and random.random() < 0.3 else 1
        first = int(random.integers(length - step * (frames - 1)))
        y, x = (int(v) for v in random.integers(side - crop + 1, size=2))
        flip = -1 if random.random() < 0.5 else 1
        times = slice(first, first + step * (frames - 1) + 1, step)
        found = shard[index, times, y : y + crop, x : x + crop]
        return np.ascontiguousarray(found[:, :, ::flip])

    def _photo(self, random: np.random.Generator, crop: int) -> UInt8:
        index = int(random.integers(sum(map(len, self._photos))))
        for shard in self._photos:
            if index < len(shard):
                break
            index -= len(shard)
        if crop > min(shard.shape[1:3]):
            raise UsageError(f"photographs of {shard.shape[2]}x{shard.shape[1]} are below {crop}")
        flip = -1 if random.random() < 0.5 else 1
        return np.ascontiguousarray(shard[index, :, ::flip])


def _no_clips(frames: int, crop: int) -> UInt8:
    return np.zeros((0, frames, crop, crop, 3), np.uint8)


def _unpacked(folder: Path, name: str) -> UInt8 | None:
    """The memory map of one kind of a cache folder, made on first use; None if there is none."""
    path = folder / name
    if not path.exists():
        packed = sorted((folder / CLIPS).glob("*.mp4")) if name == "clips.npy" else []
        if name == "photos.npy" and (folder / PHOTOS).exists():
            packed = [folder / PHOTOS]
        if not packed:
            return None
        _unpack(packed, path, stacked=name == "clips.npy")
    found: UInt8 = np.load(path, mmap_mode="r")
    return found


def _unpack(packed: list[Path], path: Path, *, stacked: bool) -> None:
    """Write all videos as one array: [N, L, ...] if `stacked`, their frames in a row if not."""
    pieces = [read_video(p) for p in packed]
    if stacked:
        longest = max(len(p) for p in pieces)
        pieces = [p[None] for p in pieces if len(p) == longest]
    shape = (sum(len(p) for p in pieces), *pieces[0].shape[1:])
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    out = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
    at = 0
    for piece in pieces:
        out[at : at + len(piece)] = piece
        at += len(piece)
    out.flush()
    part.replace(path)
    _log.info("%s: %s", path, shape)


def read_video(path: Path) -> UInt8:
    """Return a video's frames uint8 [T, H, W, 3] RGB, by PyAV or, where there is none, OpenCV."""
    try:
        import av
    except ImportError:
        return _read_by_opencv(path)
    with av.open(str(path)) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    if not frames:
        raise UsageError(f"{path} holds no frames: prepare the cache again")
    return np.stack(frames)


def _read_by_opencv(path: Path) -> UInt8:
    try:
        import cv2
    except ImportError as error:
        raise UsageError("reading training sequences needs PyAV: pip install av") from error
    video, frames = cv2.VideoCapture(str(path)), []
    while (found := video.read())[0]:
        frames.append(found[1][:, :, ::-1])
    video.release()
    if not frames:
        raise UsageError(f"{path} holds no frames that OpenCV can read: prepare the cache again")
    return np.stack(frames).astype(np.uint8)
