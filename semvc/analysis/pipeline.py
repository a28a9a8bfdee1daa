"""Everything about a clip in one call: poses, masks, poses again without what moves, depth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from semvc.analysis import camera, depth, external, masks, tracks
from semvc.analysis.types import Analysis, Masks, UInt8

if TYPE_CHECKING:
    from collections.abc import Sequence

METHODS = ("auto", "opencv")
_CLEAR = 0.94  # share of fitting observations above which nothing seems to move
_MARGIN = 3  # samples by which masks are widened before points are followed beside them


@dataclass(frozen=True, slots=True)
class Wanted:
    """How to analyse a clip.

    method: one of `METHODS` (`auto` is `opencv`) or a file that `external.read_path` reads. masks:
    a folder that `masks.read_masks` reads. focal: in picture widths, if known.
    """

    method: str = "auto"
    masks: Path | None = None
    focal: float | None = None


def analyse(
    frames: UInt8, keyframes: Sequence[int] = (0,), wanted: Wanted | None = None, start: int = 0
) -> Analysis:
    """Return camera, masks, points and a depth grid for each of `keyframes`.

    frames: uint8 [T, H, W, 3], one shot. start: this clip's first frame within the files that
    `wanted` names. A camera of low confidence (`Analysis.camera.confidence`) is not to be used.
    Raises UsageError for an unknown method or an unusable file.
    """
    wanted = wanted or Wanted()
    count, height, width = frames.shape[:3]
    size = tracks.work_size(width, height)
    lumas = tracks.grey(frames, size)
    given = None
    if wanted.masks is not None:
        given = masks.read_masks(wanted.masks, (count, height, width), start)
    if wanted.method in METHODS:
        solution, found = _passes(frames, lumas, given, wanted.focal)
    else:
        path = external.read_path(Path(wanted.method), start, count, (width, height))
        solution = camera.explain(_follow(lumas, given), path)
        found = given or masks.find_masks(frames, path, solution.structure)
        if given is None:
            solution = camera.explain(_follow(lumas, found), path)
    grids = tuple(
        depth.depth_grid(k, solution.camera, solution.structure, (width, height)) for k in keyframes
    )
    return Analysis(solution.camera, found, solution.structure, grids)


def _passes(
    frames: UInt8, lumas: list[UInt8], given: Masks | None, focal: float | None
) -> tuple[camera.Solution, Masks]:
    """Poses and masks in turn; the focal length is left free once movers are out."""
    if given is not None:
        return camera.solve(_follow(lumas, given), focal), given
    height, width = lumas[0].shape
    points = _follow(lumas, None)
    usual = camera.PRIOR[0] * max(width, height) / width
    solution = camera.solve(points, focal or usual)
    if solution.evidence.inliers > _CLEAR and focal is None:
        solution = camera.solve(points, focal)
    found = masks.find_masks(frames, solution.camera, solution.structure)
    for last in (False, True):
        if found.count == 0:
            break
        solution = camera.solve(_follow(lumas, found), focal if last else focal or usual)
        found = masks.find_masks(frames, solution.camera, solution.structure)
    if found.count == 0 and solution.evidence.inliers <= _CLEAR and focal is None:
        solution = camera.solve(points, focal)
        found = masks.find_masks(frames, solution.camera, solution.structure)
    return solution, found


def _follow(lumas: list[UInt8], found: Masks | None) -> tracks.Tracks:
    """Follow points outside of masks, which are widened a little."""
    if found is None or found.count == 0:
        return tracks.follow(lumas)
    height, width = lumas[0].shape
    wide = np.ones((2 * _MARGIN + 1, 2 * _MARGIN + 1), np.uint8)
    movers = [
        cv2.dilate(cv2.resize(layer, (width, height), interpolation=cv2.INTER_NEAREST), wide) > 0
        for layer in found.ids
    ]
    return tracks.follow(lumas, np.stack(movers))
