"""Reports of benchmarks that nobody ran: curves by formula, and small videos that rows name."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
from scene import Scene

from semvc.bench import curves
from semvc.bench.rows import SIZES, Report, Row, Skipped
from semvc.media.writer import OutputOptions, VideoWriter
from semvc.types import VideoInfo

CLIPS = ("tennis", "tall talk", "sea <&> 'x'|y")
WIDTH, HEIGHT, FRAMES = 96, 64, 8
GAINS = {"tennis": 0.5, "tall talk": 0.7, "sea <&> 'x'|y": 1.4}  # rate of semvc over SVT-AV1's
OWN = "semvc disco small"


def made(clips: tuple[str, ...] = CLIPS, *, gain: float = 1.0) -> Report:
    """A report whose LPIPS falls with the logarithm of the rate, semvc's by known factors."""
    rows = []
    for clip in clips:
        for crf in (30, 40, 50):
            bpp = 0.04 * math.exp(-(crf - 30) / 8)
            for size in ("full", "half"):
                rows.append(_row(clip, "svtav1", crf, bpp / SIZES[size], 1.0, size=size))
            rows.append(_row(clip, "x265", crf, bpp, 1.3))
        for quality in (10, 25, 40):
            bpp = gain * GAINS[clip] * 0.003 * math.exp((quality - 10) / 12)
            for tier, share in (("small", gain * GAINS[clip]), ("preview", gain * GAINS[clip] * 2)):
                rows.append(_row(clip, "semvc", quality, bpp, share, profile="disco", tier=tier))
    found = curves.bd_rates(rows)
    return Report(
        "0.1.0",
        {
            "name": "tiny",
            "every": 4,
            "gop_seconds": 4.5,
            "anchors": [{"codec": "svtav1", "preset": "4", "sizes": ["full"], "crf": [30, 50]}],
        },
        {"system": "Linux", "processor": "A <fast> one", "cores": 2, "memory_bytes": 1 << 33},
        tuple(rows),
        models={"small": "disco-small-v1"},
        skipped=(Skipped(clips[0], "vvenc", 40.0, "no ffmpeg"),),
        envelopes=curves.envelopes(rows),
        bd_rates=found,
        mean_bd_rates=curves.means(found),
        notes=("a note of the run",),
    )


def filmed(report: Report, folder: Path) -> Report:
    """The report with a small video behind each clip and each row of it."""
    rows = []
    for number, clip in enumerate(report.clips):
        tall = clip.startswith("tall")
        width, height = (HEIGHT, WIDTH) if tall else (WIDTH, HEIGHT)
        frames = Scene(width, height, FRAMES, seed=number).render()[0]
        video(folder / f"{number}.mp4", frames)
        video(folder / f"{number}-rebuilt.mp4", frames // 2)
        rows += [
            dataclasses.replace(
                row,
                width=width,
                height=height,
                original=f"{number}.mp4",
                rebuilt=f"{number}-rebuilt.mp4",
            )
            for row in report.rows
            if row.clip == clip
        ]
    return dataclasses.replace(report, rows=tuple(rows))


def video(path: Path, frames: np.ndarray) -> None:
    """Write frames as they are."""
    info = VideoInfo(frames.shape[2], frames.shape[1], Fraction(24), Fraction(1, 24))
    with VideoWriter(path, info, options=OutputOptions(codec="ffv1", force=True)) as writer:
        for index, frame in enumerate(frames):
            writer.write(frame, index)


def _row(
    clip: str,
    codec: str,
    setting: float,
    bpp: float,
    factor: float,
    *,
    size: str = "full",
    profile: str = "",
    tier: str = "",
) -> Row:
    """A row whose quality is that of SVT-AV1 at 1 / `factor` of the rate."""
    coded = round(bpp * 854 * 480 * FRAMES / 8)
    exact = 8 * coded / (854 * 480 * FRAMES)
    quality = 0.1 * math.log(exact / factor / 0.0005)
    return Row(
        clip,
        codec,
        float(setting),
        profile=profile,
        tier=tier,
        size=size,
        width=WIDTH,
        height=HEIGHT,
        frames=FRAMES,
        frame_rate=24.0,
        seconds=FRAMES / 24,
        bytes=coded,
        bpp=exact,
        kbps=8 * coded * 24 / FRAMES / 1000,
        metrics={
            "lpips": 0.7 - quality,
            "dists": 0.4 - quality / 2,
            "ms_ssim": 0.6 + quality / 2,
            "tlpips": 0.01 * factor,
            "flicker_static_db": 1.0 + factor,
        },
        missing={"cvvdp": "not installed"},
        encode_fps=10.5,
        decode_fps=20.25,
    )
