"""Everything about a clip in one call: poses, masks, poses again without what moves, depth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from semvc.analysis import camera, colmap, depth, external, masks, tracks
from semvc.analysis.types import MOVING, Analysis, Bool, CameraPath, Masks, UInt8

if TYPE_CHECKING:
    from collections.abc import Sequence

METHODS = ("auto", "opencv", "pycolmap", "flowmap")
_CLEAR = 0.94  # share of fitting observations above which nothing seems to move
_MARGIN = 3  # samples by which masks are widened before points are followed beside them


@dataclass(frozen=True, slots=True)
class Wanted:
    """How to analyse a clip.

    method: one of `METHODS` (`auto` is `opencv`; `pycolmap` and `flowmap` start from its result) or
    a file that `external.read_path` reads. masks: a folder for `external.MaskFolder`.
    segmenter: a folder with a SAM 2.1 video model that follows the masks found. focal: in picture
    widths, if known.
    """

    method: str = "auto"
    masks: Path | None = None
    segmenter: Path | None = None
    focal: float | None = None


def analyse(
    frames: UInt8,
    keyframes: Sequence[int] = (0,),
    wanted: Wanted | None = None,
    start: int = 0,
    ids: UInt8 | None = None,
) -> Analysis:
    """Return camera, masks, points and a depth grid for each of `keyframes`.

    frames: uint8 [T, H, W, 3], one shot. start: this clip's first frame within the files that
    `wanted` names. ids: masks uint8 [T, H, W] that are known already, instead of files. A camera of
    low confidence (`Analysis.camera.confidence`) is not to be used.
    Raises UsageError for an unknown method or an unusable file,
    ModelError for an unusable segmenter.
    """
    wanted = wanted or Wanted()
    count, height, width = frames.shape[:3]
    size = tracks.work_size(width, height)
    lumas = tracks.grey(frames, size)
    given = None if ids is None else Masks(ids, method="file")
    if given is None and wanted.masks is not None:
        read = external.MaskFolder(wanted.masks).read(start, count, (height, width))
        given = Masks(read, method="file")
    motion = masks.Motion(frames)
    if wanted.method in METHODS:
        solution, found = _passes(motion, lumas, given, wanted.focal)
        if wanted.method in ("pycolmap", "flowmap") and solution.camera.kind == MOVING:
            solution = _other(wanted.method, motion, lumas, solution, found)
    else:
        path = external.read_path(Path(wanted.method), start, count, (width, height))
        still = None if given is None else given.ids > 0
        solution = _scaled(tracks.follow(lumas) if still is None else _follow(lumas, still), path)
        found = given or masks.find_masks(motion, solution.camera, solution.structure)
        if given is None and found.count:
            solution = _scaled(_follow(lumas, found.ids > 0), path)
    if wanted.segmenter is not None and given is None:
        solution, found = _followed(wanted.segmenter, wanted, frames, lumas, (solution, found))
    grids = tuple(
        depth.depth_grid(k, solution.camera, solution.structure, (width, height)) for k in keyframes
    )
    return Analysis(solution.camera, found, solution.structure, grids)


def _passes(
    motion: masks.Motion, lumas: list[UInt8], given: Masks | None, focal: float | None
) -> tuple[camera.Solution, Masks]:
    """Poses and masks in turn; the focal length is left free once movers are out."""
    if given is not None:
        return camera.solve(_follow(lumas, given.ids > 0), focal), given
    height, width = lumas[0].shape
    points = _follow(lumas, None)
    usual = focal or camera.PRIOR[0] * max(width, height) / width
    solution = camera.solve(points, usual)
    clear = solution.evidence.inliers > _CLEAR
    if clear:
        solution = camera.solve(points, focal)
    found = masks.find_masks(motion, solution.camera, solution.structure)
    if found.count:
        solution = camera.solve(_follow(lumas, masks.carried(motion, found)), usual)
        found = masks.find_masks(motion, solution.camera, solution.structure)
    if found.count:
        solution = camera.solve(_follow(lumas, masks.carried(motion, found)), focal)
        found = masks.find_masks(motion, solution.camera, solution.structure)
    elif not clear:
        solution = camera.solve(points, focal)
        found = masks.find_masks(motion, solution.camera, solution.structure)
    return solution, found


def _scaled(points: tracks.Tracks, path: CameraPath) -> camera.Solution:
    """A user's path in units of the first frame's depth, believed as it is."""
    solution = camera.rescaled(points, path)
    return replace(solution, camera=replace(solution.camera, confidence=path.confidence))


def _followed(
    folder: Path,
    wanted: Wanted,
    frames: UInt8,
    lumas: list[UInt8],
    known: tuple[camera.Solution, Masks],
) -> tuple[camera.Solution, Masks]:
    """Masks by SAM 2.1 from those found, and poses beside them."""
    from semvc.backbones.segmenter import Segmenter

    solution, found = known
    ids = Segmenter(folder).follow(frames, found.ids)
    better = Masks(ids, found.confidence, "sam2")
    if wanted.method in METHODS and better.count:
        solution = camera.solve(_follow(lumas, ids > 0), wanted.focal)
    return solution, better


def _other(
    method: str,
    motion: masks.Motion,
    lumas: list[UInt8],
    solution: camera.Solution,
    found: Masks,
) -> camera.Solution:
    """Another method's path beside the movers found; the first solution if it has none."""
    movers = _widened(lumas, found.ids > 0)
    if method == "pycolmap":
        path = colmap.find_path(lumas, movers)
    else:
        from semvc.analysis import flow  # torch, which nothing else here needs

        path = flow.refined(motion, solution, found)
    return solution if path is None else camera.rescaled(tracks.follow(lumas, movers), path)


def _follow(lumas: list[UInt8], movers: Bool | None) -> tracks.Tracks:
    """Follow points outside of `movers`, bool [T, h, w] at any size, widened a little."""
    if movers is None or not movers.any():
        return tracks.follow(lumas)
    return tracks.follow(lumas, _widened(lumas, movers))


def _widened(lumas: list[UInt8], movers: Bool) -> Bool:
    height, width = lumas[0].shape
    wide = np.ones((2 * _MARGIN + 1, 2 * _MARGIN + 1), np.uint8)
    avoid = []
    for layer in movers.astype(np.uint8):
        layer = cv2.resize(layer, (width, height), interpolation=cv2.INTER_NEAREST)
        avoid.append(cv2.dilate(layer, wide) > 0)
    return np.stack(avoid)
