"""Makes the cache of `semvc.train.windows` from videos and the backbone that is to be trained.

Every window is coded as a stream is, at a random quality, and decoded again up to where a backbone
is given its conditions, by the decoder's own functions: a LoRA is trained on what it will see.
Beside VIDEO, VIDEO.txt is its caption and VIDEO.json its skeleton (COCO keypoints).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from semvc.backbones.captioner import Captioner
from semvc.backbones.ltx import TEXT_TOKENS, references
from semvc.backbones.ltxvae import LtxPictures
from semvc.backbones.protocol import Conditions
from semvc.backbones.text import TextEncoder
from semvc.bitstream.headers import ProfileId, StreamHeader
from semvc.bitstream.segments import Segment
from semvc.entropy import entropy_id
from semvc.errors import MediaError, ModelError, UsageError
from semvc.media import color
from semvc.media.reader import VideoReader
from semvc.media.scenes import SegmentPlanner
from semvc.profiles import disco, fulltier
from semvc.signals.coco import Poses, read_coco
from semvc.train import windows
from semvc.train.ltx import usable_frames
from semvc.types import Clip, EncodeOptions, Span, VideoInfo

_log = logging.getLogger(__name__)

UInt8 = npt.NDArray[np.uint8]
_SHOT = 4  # windows that a part of a shot holds at most
_VIDEOS = {".mp4", ".mov", ".mkv", ".webm"}


@dataclass(frozen=True, slots=True)
class Settings:
    """Windows of at most `frames` (8k + 1) of `side` luma samples, `most` of them from a video.

    `qualities` are the bounds of the stream's. `reference_scale` 2 encodes references at half
    size. Everything random derives from `seed` and the numbers of the video and the window.
    `captioner` is the folder of a model that describes windows of videos without a caption.
    """

    frames: int = 57
    side: int = 512
    most: int = 4
    qualities: tuple[int, int] = (4, 40)
    preset: int = 8
    reference_scale: int = 1
    seed: int = 1
    captioner: Path | None = None

    def __post_init__(self) -> None:
        if self.frames != usable_frames(self.frames):
            raise UsageError(f"windows have 8k + 1 frames, at least 9, not {self.frames}")
        if self.side < 1 or self.side % (32 * self.reference_scale) or self.most < 1:
            raise UsageError("the side is a multiple of 32, of 64 with references at half size")


@dataclass(frozen=True, slots=True)
class Footage:
    """One window: `frames` uint8 [T, S, S, 3], its caption, and its skeleton's JSON, or none."""

    frames: UInt8
    frame_rate: Fraction
    caption: str
    skeleton: str


class Maker:
    """The backbone's autoencoder and text encoder, loaded."""

    def __init__(self, folder: Path, settings: Settings, device: torch.device) -> None:
        """ModelError if the folder holds no LTX-Video."""
        self._settings = settings
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self._pictures = LtxPictures(folder, device, dtype, tile=settings.side, resident=True)
        path = folder / "transformer" / "config.json"
        try:
            width = int(json.loads(path.read_text("utf-8"))["caption_channels"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path} cannot be read: {error}") from error
        self._texts = TextEncoder(
            folder, length=TEXT_TOKENS, width=width, device=device, dtype=dtype
        )
        named = settings.captioner
        self._captioner = None if named is None else Captioner(named, str(device))

    def make(self, footage: Footage, quality: int) -> windows.Window:
        """Return a window's latents after coding it at `quality`."""
        if not footage.caption and self._captioner is not None:
            text = self._captioner.describe(footage.frames).text
            footage = dataclasses.replace(footage, caption=text)
        given = conditions(footage, quality, self._settings.preset)
        with self._pictures.used() as vae:
            found = references(self._pictures, vae, given, self._settings.reference_scale)
            target = self._pictures.latents(vae, footage.frames)
        words = self._texts(footage.caption)
        count = int(words.mask.sum()) if footage.caption else 0
        return windows.Window(target, found, words.values[0, :count].float(), given.frame_rate)


def fill(
    source: Path,
    out: Path,
    folder: Path,
    settings: Settings,
    *,
    device: torch.device,
    on_videos: Callable[[int, int], None] | None = None,
) -> int:
    """Write windows of every video in `source` to `out`; return how many are new.

    What is there already stays, so that an interrupted run goes on.
    """
    if not source.is_dir():
        raise UsageError(f"no folder {source}")
    paths = sorted(p for p in source.iterdir() if p.suffix.lower() in _VIDEOS)
    if not paths:
        raise UsageError(f"{source} holds no videos")
    out.mkdir(parents=True, exist_ok=True)
    maker = Maker(folder, settings, device)
    total = 0
    for number, path in enumerate(paths):
        done = out / f"{number:06d}.done"
        if not done.exists():
            total += _video(path, out, number, maker, settings)
            done.touch()
        if on_videos is not None:
            on_videos(number + 1, len(paths))
    return total


def _video(path: Path, out: Path, number: int, maker: Maker, settings: Settings) -> int:
    count = 0
    try:
        for count, footage in enumerate(cut(path, settings), 1):
            key = np.array([settings.seed, number << 16 | count], np.uint64)
            random = np.random.Generator(np.random.Philox(key=key))
            quality = int(random.integers(settings.qualities[0], settings.qualities[1] + 1))
            made = maker.make(footage, quality)
            windows.write(
                out / f"{number:06d}{count:03d}.safetensors", made, settings.reference_scale
            )
            _log.info("%s: window %d at quality %d", path.name, count, quality)
    except MediaError as error:
        _log.warning("%s is left out: %s", path, error)
    return count


def cut(path: Path, settings: Settings) -> Iterator[Footage]:
    """Yield windows of one video without cuts in them, the largest square in the middle scaled."""
    caption = _beside(path, ".txt").strip()
    poses = read_coco(text) if (text := _beside(path, ".json")) else {}
    with VideoReader(path) as reader:
        rate = reader.info.frame_rate or Fraction(25)
        size = (reader.info.width, reader.info.height)
        found = _windows(_shots(reader, float(rate), settings), settings.frames)
        for start, frames in itertools.islice(found, settings.most):
            skeleton = _skeleton(poses, start, len(frames), size, settings.side) if poses else ""
            yield Footage(frames, rate, caption, skeleton)


def _shots(
    reader: VideoReader, rate: float, settings: Settings
) -> Iterator[tuple[int, list[UInt8]]]:
    """Parts of shots: the first frame's number, and the frames."""
    planner = SegmentPlanner(
        rate, max_frames=_SHOT * settings.frames, min_frames=settings.frames // 2
    )
    kept: deque[UInt8] = deque()

    def take(span: Span) -> tuple[int, list[UInt8]]:
        return span.start, [kept.popleft() for _ in range(span.count)]

    for frame, _ in reader:
        kept.append(_square(frame, settings.side))
        yield from map(take, planner.push(frame))
    yield from map(take, planner.finish())


def _windows(shots: Iterator[tuple[int, list[UInt8]]], most: int) -> Iterator[tuple[int, UInt8]]:
    for start, frames in shots:
        at = 0
        while count := usable_frames(min(most, len(frames) - at)):
            yield start + at, np.stack(frames[at : at + count])
            at += count


def _square(frame: UInt8, side: int) -> UInt8:
    short, (top, left) = _corner(frame.shape[1], frame.shape[0])
    part = frame[top : top + short, left : left + short]
    found: UInt8 = color.resize(part[None], side, side)[0]
    return found


def _corner(width: int, height: int) -> tuple[int, tuple[int, int]]:
    short = min(width, height)
    return short, ((height - short) // 2, (width - short) // 2)


def _skeleton(poses: Poses, start: int, count: int, size: tuple[int, int], side: int) -> str:
    """COCO JSON of the window, positions in the square's samples; empty where nobody is."""
    short, (top, left) = _corner(*size)
    rows: list[dict[str, Any]] = []
    for number in range(start, start + count):
        for pose in poses.get(number, []):
            points = pose.keypoints.copy()
            points[:, :2] = (points[:, :2] - (left, top)) * side / short
            track = pose.track if pose.track >= 0 else 1_000_000 - pose.track
            rows.append(
                {
                    "image_id": number - start,
                    "track_id": track,
                    "keypoints": points.ravel().tolist(),
                }
            )
    return json.dumps(rows) if rows else ""


def _beside(path: Path, suffix: str) -> str:
    other = path.with_suffix(suffix)
    try:
        return other.read_text("utf-8") if other.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {other}: {error}") from error


def conditions(footage: Footage, quality: int, preset: int) -> Conditions:
    """Return what a backbone is given of a window that was coded and decoded again."""
    count, side = footage.frames.shape[:2]
    info = VideoInfo(side, side, footage.frame_rate, 1 / footage.frame_rate, count)
    clip = Clip(footage.frames, np.arange(count, dtype=np.int64), info)
    options = EncodeOptions(quality=quality, preset=preset, sketch=True, skeleton=footage.skeleton)
    profile = disco.Disco()
    try:
        fields = profile.begin(clip, options)
        coded = profile.encode(clip, 0, quality, 0)
        header = StreamHeader(
            salt=0,
            entropy_id=entropy_id(),
            width=side,
            height=side,
            frame_rate=footage.frame_rate,
            segment_frames=count,
            profile=ProfileId.DISCO,
            **fields,
        )
        segment = Segment(0, 0, count, coded.sections, coded.check & 0xFFFF, 0, 0)
        given = disco.conditions(profile.unpack(segment, header, 0)[0], segment, header)
    finally:
        profile.close()
    fit = fulltier.Fit((side, side), (side, side), (side, side))
    tail = np.zeros((0, side, side, 3), np.uint8)
    found = fulltier.window(
        given, (0, count), count, fit, tail, footage.caption, float(footage.frame_rate)
    )
    return dataclasses.replace(found, caption=footage.caption)
