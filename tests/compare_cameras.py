"""Camera methods side by side, and what their evidence is worth; nothing is asserted.

`python -m tests.compare_cameras [--methods opencv,flowmap,pycolmap] [--frames 40] [CLIP ...]`:
without clips on the procedural scene against its truth, with clips against method `opencv`. Times
are processor time.

`python -m tests.compare_cameras --calibrate 200` draws that many clips of points with noise, movers
and strays, solves each, fits the logistic regression behind `semvc.analysis.camera.confidence`, and
prints its weights and how often paths were right at each level of confidence.

`semvc/analysis/NOTES.md` has what came out.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import numpy.typing as npt
from test_analysis import PATHS, errors, overlap, render, scene

from semvc.analysis import camera
from semvc.analysis.bundle import rotation_of, vector_of
from semvc.analysis.pipeline import METHODS, Wanted, analyse
from semvc.analysis.tracks import Tracks
from semvc.analysis.types import CameraPath
from semvc.media.reader import VideoReader

WIDTH, HEIGHT, FRAMES = 640, 384, 24  # of clips of points


def main() -> None:
    """Print one line for each method and clip, or the calibration."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("clips", nargs="*", type=Path)
    parser.add_argument("--methods", default="opencv,flowmap", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--frames", type=int, default=40, help="of each clip")
    parser.add_argument("--calibrate", type=int, default=0, metavar="N")
    given = parser.parse_args()
    methods = given.methods.split(",")
    if given.calibrate:
        _calibrate(given.calibrate)
        return
    for clip in given.clips:
        _real(clip, given.frames, methods)
    for path in () if given.clips else PATHS:
        _procedural(path, methods)


def _procedural(path: str, methods: list[str]) -> None:
    frames, balls = render(path)
    for method in methods:
        start = time.process_time()
        found = analyse(frames, wanted=Wanted(method=method))
        spent = (time.process_time() - start) / len(frames)
        rotation, trajectory = errors(found.camera, scene(path))
        focal = found.camera.focal / 0.9 - 1
        print(
            f"{path:7} {method:9} {found.camera.kind:8} rotation {rotation:.3f} degrees,"
            f" trajectory {100 * trajectory:.2f} %, focal {100 * focal:+.2f} %,"
            f" IoU {overlap(found.masks.ids > 0, balls):.3f},"
            f" confidence {found.camera.confidence:.2f}, {spent:.2f} s/frame",
            flush=True,
        )


def _real(clip: Path, count: int, methods: list[str]) -> None:
    frames = _read(clip, count)
    known: CameraPath | None = None
    for method in ["opencv", *(m for m in methods if m != "opencv")]:
        start = time.process_time()
        found = analyse(frames, wanted=Wanted(method=method)).camera
        spent = (time.process_time() - start) / len(frames)
        known = known or found
        turn = vector_of(found.rotations @ np.swapaxes(known.rotations, 1, 2))
        mine, theirs = found.positions(), known.positions()
        scale = (mine * theirs).sum() / max((mine * mine).sum(), 1e-12)
        length = np.linalg.norm(np.diff(theirs, axis=0), axis=1).sum()
        apart = np.sqrt(((scale * mine - theirs) ** 2).sum(1).mean()) / max(length, 1e-9)
        print(
            f"{clip.stem:24} {found.method:9} {found.kind:8} focal {found.focal:.3f},"
            f" confidence {found.confidence:.2f}, from opencv"
            f" {np.degrees(np.linalg.norm(turn, axis=1)).mean():.2f} degrees and"
            f" {100 * apart:.1f} % of a path of {length:.2f}, {spent:.2f} s/frame",
            flush=True,
        )


def _read(clip: Path, count: int) -> npt.NDArray[np.uint8]:
    with VideoReader(clip) as reader:
        return np.stack([frame for frame, _ in itertools.islice(reader, count)])


# --- calibration


def draw(seed: int) -> tuple[Tracks, Any, Any]:
    """Tracks, true rotations (world to camera) and true places of the camera."""
    rng = np.random.default_rng(seed)
    count = int(np.exp(rng.uniform(np.log(20), np.log(300))))
    noise = np.exp(rng.uniform(np.log(0.05), np.log(1.5)))
    movers = rng.uniform(0, 0.6) if seed % 2 else 0.0
    strays = rng.uniform(0, 0.5) if seed % 3 == 0 else 0.0
    focal, time = rng.uniform(0.7, 1.2) * WIDTH, np.arange(FRAMES) / FRAMES
    turn = np.cumsum(rng.normal(0, 0.004, (FRAMES, 3)), 0) + np.outer(time, rng.normal(0, 0.12, 3))
    place = np.cumsum(rng.normal(0, 0.004, (FRAMES, 3)), 0) + np.outer(time, rng.normal(0, 0.35, 3))
    place = (place - place[0]) * (seed % 5 > 0)
    rotations = rotation_of(turn - turn[0])
    depth = rng.uniform(1.2, 5, count)
    ray = rng.uniform(-0.7, 0.7, (count, 2)) * (WIDTH / focal, HEIGHT / focal)
    points = np.concatenate((ray, np.ones((count, 1))), 1) * depth[:, None]
    points = np.repeat(points[:, None], FRAMES, 1)
    middle = ray[rng.integers(count)]
    together = np.argsort(np.hypot(*(ray - middle).T))[: int(movers * count)]
    points[together] += np.outer(time, rng.normal(0, 0.5, 3))
    local = np.einsum("tij,ntj->nti", rotations, points - place)
    with np.errstate(divide="ignore"):
        seen = focal * local[..., :2] / local[..., 2:] + (WIDTH / 2, HEIGHT / 2)
    seen += rng.normal(0, noise, seen.shape)
    astray = rng.random(count) < strays
    seen[astray] += np.cumsum(rng.normal(0, 2, (int(astray.sum()), FRAMES, 2)), 1)
    bad = (seen < 0).any(-1) | (seen > (WIDTH, HEIGHT)).any(-1) | (local[..., 2] < 0.1)
    for track, lost in enumerate(bad):
        first = int((~lost).argmax())
        end = first + int(rng.integers(6, FRAMES + 1))
        gone = np.logical_or.accumulate(lost[first:]) | (np.arange(first, FRAMES) >= end)
        seen[track, :first] = seen[track, first:][gone] = np.nan
    return Tracks(seen[np.isfinite(seen[..., 0]).sum(1) >= 4], (WIDTH, HEIGHT)), rotations, place


def is_right(found: camera.Solution, rotations: Any, place: Any) -> bool:
    """Whether rotations err by < 0.5 degrees (mean) and places by < 5 % of the path's length."""
    turn = vector_of(found.camera.rotations @ np.swapaxes(rotations, 1, 2))
    length = np.linalg.norm(np.diff(place, axis=0), axis=1).sum()
    mine = found.camera.positions()
    if length == 0:
        missed = 0.0 if found.camera.kind != "moving" else 1.0
    else:
        scale = (place * mine).sum() / max((mine * mine).sum(), 1e-12)
        missed = np.sqrt(((place - scale * mine) ** 2).sum(1).mean()) / length
    return bool(np.degrees(np.linalg.norm(turn, axis=1)).mean() < 0.5 and missed < 0.05)


def _calibrate(count: int) -> None:
    """Solve, fit and print."""
    right, rows, said = [], [], []
    for seed in range(count):
        tracks, rotations, place = draw(seed)
        found = camera.solve(tracks)
        e = found.evidence
        right.append(is_right(found, rotations, place))
        rows.append((1.0, e.inliers, min(e.error, 3.0), e.cover))
        said.append(found.camera.confidence)
    x, y, confidence = np.array(rows), np.array(right, float), np.array(said)
    weights = np.zeros(4)
    for _ in range(100):
        p = 1 / (1 + np.exp(-x @ weights))
        normal = x.T @ (x * (p * (1 - p) + 1e-6)[:, None]) + 0.05 * np.eye(4)
        weights += np.linalg.solve(normal, x.T @ (y - p) - 0.05 * weights)
    print("weights of 1, inliers, error, cover:", weights.round(2))
    for low in np.arange(5) / 5:
        here = (confidence >= low) & (confidence < low + 0.2)
        share = y[here].mean() if here.any() else float("nan")
        print(f"confidence {low:.1f} to {low + 0.2:.1f}: {here.sum():3} clips, {share:.2f} right")


if __name__ == "__main__":
    main()
