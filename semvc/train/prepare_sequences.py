"""Makes the cache of `semvc.train.sequences` from videos and photographs.

`python -m semvc.train.prepare_sequences OUT --clips VIDEOS --photos PICTURES` cuts sequences of up
to 32 frames out of every video, as many as its length asks for, at full size or smaller, and scales
all photographs to one size. Both are kept as H.264 of high quality.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from semvc.errors import UsageError
from semvc.media import color
from semvc.train.sequences import CLIPS, PHOTOS

_log = logging.getLogger(__name__)

UInt8 = npt.NDArray[np.uint8]
_VIDEOS = {".mp4", ".mov", ".mkv", ".webm"}
_SCALES = ((1.0, 0.5), (1.5, 0.25), (2.0, 0.25))  # source samples for one, and how often


@dataclass(frozen=True, slots=True)
class Settings:
    """`length` frames of `side` luma samples; one sequence for every `seconds` of a video.

    Photographs are `photo` (height, width). `crf` and `preset` are x264's.
    """

    length: int = 32
    side: int = 256
    seconds: float = 2.5
    most: int = 4
    photo: tuple[int, int] = (384, 512)
    crf: int = 16
    preset: str = "slow"
    seed: int = 1


def clips(folder: Path, out: Path, settings: Settings) -> int:
    """Write sequences of every video in `folder` to `out`/clips; return how many there are."""
    target = out / CLIPS
    target.mkdir(parents=True, exist_ok=True)
    paths = sorted(p for p in folder.iterdir() if p.suffix in _VIDEOS)
    total = 0
    for number, path in enumerate(paths):
        random = _random(settings.seed, number)
        for part, frames in enumerate(_sequences(path, settings, random)):
            _write(target / f"{number:04d}-{part}.mp4", frames, settings, intra=False)
            total += 1
        _log.info("%s: %d sequences so far", path.name, total)
    return total


def photos(folder: Path, out: Path, settings: Settings) -> int:
    """Write every photograph in `folder` to `out`/photos.mp4; return how many there are."""
    out.mkdir(parents=True, exist_ok=True)
    paths = sorted(folder.glob("*.jpg"))
    if not paths:
        raise UsageError(f"no .jpg in {folder}")
    pictures = (
        _photo(p, settings, _random(settings.seed, 1 << 20 | n)) for n, p in enumerate(paths)
    )
    _write(out / PHOTOS, pictures, settings, intra=True)
    return len(paths)


def _sequences(path: Path, settings: Settings, random: np.random.Generator) -> Iterator[UInt8]:
    """Cut sequences out of a video at random places, sizes and times."""
    frames = _decode(path)
    count = len(frames)
    if count < settings.length or min(frames[0].shape[:2]) < settings.side:
        return
    rate = _rate(path)
    wanted = int(np.clip(count / rate / settings.seconds, 1, settings.most))
    bounds = np.linspace(0, count - settings.length, wanted + 1)
    for first, last in itertools.pairwise(bounds):
        start = int(random.integers(int(first), int(last) + 1))
        yield _crop(np.stack(frames[start : start + settings.length]), settings.side, random)


def _crop(frames: UInt8, side: int, random: np.random.Generator) -> UInt8:
    height, width = frames.shape[1:3]
    fits = [(s, odds) for s, odds in _SCALES if min(height, width) >= s * side]
    odds = np.array([o for _, o in fits])
    scale = fits[int(random.choice(len(fits), p=odds / odds.sum()))][0]
    taken = round(scale * side)
    y, x = int(random.integers(height - taken + 1)), int(random.integers(width - taken + 1))
    part = frames[:, y : y + taken, x : x + taken]
    return part if taken == side else color.resize(part, side, side)


def _photo(path: Path, settings: Settings, random: np.random.Generator) -> UInt8:
    picture = _decode(path)[0]
    height, width = settings.photo
    scale = max(height / picture.shape[0], width / picture.shape[1])
    rows = max(height, round(picture.shape[0] * scale))
    columns = max(width, round(picture.shape[1] * scale))
    small = color.resize(picture[None], rows, columns)[0]
    y, x = int(random.integers(rows - height + 1)), int(random.integers(columns - width + 1))
    return small[y : y + height, x : x + width]


def _decode(path: Path) -> list[UInt8]:
    with av.open(str(path)) as container:
        frames = container.decode(video=0)
        return [np.asarray(f.to_ndarray(format="rgb24"), np.uint8) for f in frames]


def _rate(path: Path) -> float:
    with av.open(str(path)) as container:
        return float(container.streams.video[0].average_rate or 25)


def _write(path: Path, frames: Iterator[UInt8] | UInt8, settings: Settings, *, intra: bool) -> None:
    """Encode frames [H, W, 3] as H.264; complete or not at all."""
    options = {"crf": str(settings.crf), "preset": settings.preset}
    part = path.with_name(f"{path.stem}.part.mp4")
    with av.open(str(part), "w") as container:
        stream = None
        for picture in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=25, options=options)
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
                if intra:
                    stream.codec_context.gop_size = 1
            given = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(given))
        if stream is not None:
            container.mux(stream.encode())
    part.replace(path)


def _random(seed: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64)))


def main(words: list[str]) -> None:
    """Make a cache from the command line's words."""
    parser = argparse.ArgumentParser(prog="python -m semvc.train.prepare_sequences")
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=Path, help="folder of videos")
    parser.add_argument("--photos", type=Path, help="folder of JPEG photographs")
    parser.add_argument("--most", type=int, default=4, help="sequences from one video at most")
    parser.add_argument("--crf", type=int, default=16, help="x264's; lower is larger and better")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    settings = Settings(most=given.most, crf=given.crf, seed=given.seed)
    if given.clips is not None:
        _log.info("%d sequences", clips(given.clips, given.out, settings))
    if given.photos is not None:
        _log.info("%d photographs", photos(given.photos, given.out, settings))


if __name__ == "__main__":
    main(sys.argv[1:])
