"""Camera trajectory and focal length of a clip from followed points.

A camera that only turns is looked for first: its pictures hold no parallax once rotation is taken
out, and a method that wants translation would invent one. Otherwise a short window is solved with
all points at one depth to begin with, and grown frame by frame. Several focal lengths are tried;
the reprojection error decides. What moves on its own is kept down by robust weights, and out by
masks in a second pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from semvc.analysis.bundle import (
    SOFT,
    Bundle,
    Freedom,
    Observations,
    adjust,
    rotation_of,
    triangulate,
    vector_of,
)
from semvc.analysis.tracks import Tracks
from semvc.analysis.types import MOVING, STATIC, TURNING, Bool, CameraPath, Float64, Structure

FOCALS = (0.9, 0.6, 1.4)  # in lengths of the longer side; the first is the most common
# Focal length and the deviation of its logarithm, where pictures say nothing: 0.5, made tighter as
# the errors of a track's observations are not independent of each other.
PRIOR = (0.9, 0.1)
_KEYS = 16  # frames that the search looks at
_SOFTER = (30.0, 10.0, 4.0, 1.5)  # samples: from any residual to those of noise
_LONG = 900  # tracks of the final solution
_STILL = 0.3  # samples that the picture's corner moves by at most, if the camera stands still
_PARALLAX = 0.45  # samples of residual that a turning camera leaves,
_SHARE = 65  # percent of observations; the others may move on their own
_BETTER = 0.6  # share of the cost that a moving camera must fall below
_GOOD = 1.5  # samples of error up to which a point belongs to the structure


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks for a path, for `confidence`.

    inliers: share of observations within a sample and a half. error: median reprojection error in
    samples of a picture 640 wide. tracks: mean number of good tracks in a frame. cover: mean share
    of an 8 x 5 grid's cells with a good track. weakest: number of good tracks in the poorest frame.
    parallax: 65th percentile of the residual of a camera that only turns, in samples.
    """

    inliers: float
    error: float
    tracks: float
    cover: float
    weakest: float
    parallax: float


@dataclass(frozen=True, slots=True)
class Solution:
    """A path, the static points behind it and the evidence for it."""

    camera: CameraPath
    structure: Structure
    evidence: Evidence


def solve(tracks: Tracks, focal: float | None = None) -> Solution:
    """Return the camera that `tracks` were seen by.

    `focal`, in picture widths, is kept if given and looked for if not.
    """
    width, height = tracks.size
    centre = (width / 2, height / 2)
    side = max(width, height)
    frames = tracks.points.shape[1]
    if frames < 2 or len(tracks.points) < 8:
        return _unknown(tracks, focal)
    prior = (PRIOR[0] * side, PRIOR[1])
    keys = np.unique(np.linspace(0, frames - 1, min(frames, _KEYS)).round().astype(int))
    search = _observed(_longest(tracks.points[:, keys], _LONG // 3), centre)
    if search.tracks < 8:
        return _unknown(tracks, focal)
    free = Freedom(moving=False, focal=focal is None, prior=prior)
    starts = [f * side for f in FOCALS] if focal is None else [focal * width]
    turning = _turning(search, starts[0], free)
    residual = np.hypot(*turning.residuals(search).T)
    parallax = float(np.percentile(residual, _SHARE))
    chosen = turning
    if parallax > _PARALLAX:
        moving = replace(free, moving=True)
        found: list[Bundle] = []
        for start in starts:
            found.append(_moving(search, start, turning, moving))
            if _agree(found):
                break
        best = _best(found)
        hopeless = float(np.median(residual)) > _GOOD
        if best.cost < (1 if hopeless else _BETTER) * turning.cost:
            chosen, free = best, moving
    seen = _observed(_longest(tracks.points, _LONG), centre)
    bundle = _all_frames(chosen, keys, seen, free)
    return _solution(bundle, seen, tracks.size, free.moving, parallax)


def explain(tracks: Tracks, path: CameraPath) -> Solution:
    """Return the static points that `tracks` show if the camera went along `path`, as it is."""
    width, height = tracks.size
    centre = (path.centre[0] * width, path.centre[1] * height)
    seen = Observations.of(_longest(tracks.points, _LONG), centre)
    if path.kind != MOVING or seen.tracks < 8:
        return replace(_unknown(tracks, path.focal), camera=path)
    nothing = np.zeros((seen.tracks, 4))
    start = Bundle(path.rotations, path.translations, path.focal * width, nothing)
    free = Freedom(poses=False, focal=False)
    bundle = adjust(triangulate(start, seen), seen, free, 10)
    error = np.hypot(*bundle.residuals(seen).T)
    points, table = _structure(bundle, seen, error < _GOOD)
    evidence = _evidence(bundle, seen, tracks.size, error, 0.0)
    return Solution(path, Structure(points, table), evidence)


def rescaled(tracks: Tracks, path: CameraPath) -> Solution:
    """Return `explain` of a path in any unit, with lengths and confidence as `solve` gives them."""
    solution = explain(tracks, path)
    points, seen = solution.structure.points, solution.structure.seen
    near = points[:, 2][seen[:, 0] & (points[:, 2] > 0)] if len(points) else np.zeros(0)
    depth = float(np.median(near)) if len(near) else 1.0
    path = replace(
        path, translations=path.translations / depth, confidence=confidence(solution.evidence)
    )
    return Solution(path, Structure(points / depth, seen), solution.evidence)


def confidence(evidence: Evidence) -> float:
    """Return roughly the chance, in [0, 1], that a path is right.

    Logistic regression on synthetic clips of points, some with noise, movers and strays; a path
    counted as right if rotations err by less than half a degree in the mean and places by less than
    5 % of the path's length. NOTES.md has the figures.
    """
    score = -5.5 + 4.1 * evidence.inliers - 0.4 * min(evidence.error, 3.0) + 6.0 * evidence.cover
    return float(1 / (1 + np.exp(-score)))


def _observed(points: Float64, centre: tuple[float, float]) -> Observations:
    return Observations.of(points, centre)


def _longest(points: Float64, count: int) -> Float64:
    """The tracks seen most often, at least twice, of [N, F, 2]."""
    length = np.isfinite(points[..., 0]).sum(1)
    order = np.argsort(-length, kind="stable")[:count]
    chosen: Float64 = points[np.sort(order[length[order] >= 2])]
    return chosen


def _best(found: list[Bundle]) -> Bundle:
    return min(found, key=lambda bundle: bundle.cost)


def _agree(found: list[Bundle]) -> bool:
    """Whether the last two of several solutions are the same."""
    if len(found) < 2:
        return False
    a, b = found[-1], found[-2]
    return abs(a.focal / b.focal - 1) < 0.02 and abs(a.cost - b.cost) < 0.02 * min(a.cost, b.cost)


def _rays(seen: Observations, focal: float) -> Float64:
    """Unit directions of observations in their cameras, [M, 3]."""
    ray = np.concatenate((seen.place / focal, np.ones((len(seen.place), 1))), 1)
    return np.asarray(ray / np.linalg.norm(ray, axis=1, keepdims=True))


def _turning(seen: Observations, focal: float, free: Freedom) -> Bundle:
    """Solve for a camera that only turns: rotations frame by frame, then all together."""
    rays = _rays(seen, focal)
    table = np.full((seen.tracks, seen.frames, 3), np.nan)
    table[seen.track, seen.frame] = rays
    rotations = np.tile(np.eye(3), (seen.frames, 1, 1))
    for i in range(1, seen.frames):
        both = np.isfinite(table[:, i - 1, 0]) & np.isfinite(table[:, i, 0])
        step = _kabsch(table[both, i - 1], table[both, i], 2.0 / focal)
        rotations[i] = step @ rotations[i - 1]
    first = np.searchsorted(seen.track, np.arange(seen.tracks))
    points = np.zeros((seen.tracks, 4))
    points[:, :3] = np.einsum("nji,nj->ni", rotations[seen.frame[first]], rays[first])
    start = Bundle(rotations, np.zeros((seen.frames, 3)), focal, points)
    return _annealed(start, seen, free)


def _annealed(start: Bundle, seen: Observations, free: Freedom) -> Bundle:
    """Adjust while the bound on what an observation may cost is drawn in."""
    for soft in _SOFTER:
        start = adjust(start, seen, replace(free, soft=soft), 8)
    return adjust(start, seen, free, 25)


def _kabsch(before: Float64, after: Float64, soft: float) -> Float64:
    """Return the rotation that takes directions [n, 3] to directions, robustly."""
    rotation, weight = np.eye(3), np.ones(len(before))
    if len(before) < 3:
        return rotation
    for _ in range(8):
        u, _, v = np.linalg.svd((after * weight[:, None]).T @ before)
        rotation = np.asarray(u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v)
        error = np.linalg.norm(after - before @ rotation.T, axis=1)
        weight = 1 / (1 + (error / max(soft, float(np.median(error)))) ** 2)
    return rotation


def _moving(seen: Observations, focal: float, turning: Bundle, free: Freedom) -> Bundle:
    """Solve a window from the first frame on, then add frame after frame."""
    count = _window(seen)
    part = _until(seen, count)
    rays = turning.points[:, :3]
    flat = np.concatenate((rays, np.ones((len(rays), 1))), 1) / np.sqrt(2)
    still = np.zeros((count, 3))
    fixed = replace(free, focal=False)
    one = _annealed(Bundle(turning.rotations[:count], still, focal, flat), part, fixed)
    other = _annealed(_exchanged(one, turning.rotations[:count]), part, fixed)
    pair = _from_pair(part, turning, focal, fixed)
    known = adjust(_best([one, other, *pair]), part, free, 10)
    while count < seen.frames:
        known = _extended(known, turning)
        familiar = np.bincount(part.track, minlength=seen.tracks) >= 2
        count += 1
        part = _until(seen, count)
        anchors = _picked(part, familiar[part.track])
        for soft in (8 * SOFT, SOFT):
            known = adjust(known, anchors, replace(fixed, points=False, soft=soft), 6)
        fresh = triangulate(known, part).points
        known = replace(known, points=np.where(familiar[:, None], known.points, fresh))
        known = adjust(known, part, replace(fixed, poses=False), 3)
        if count % 3 == 0:
            known = adjust(known, part, free, 4)
    return adjust(known, seen, free, 40)


def _from_pair(part: Observations, turning: Bundle, focal: float, free: Freedom) -> list[Bundle]:
    """A start from the essential matrix of the window's first and last frame, if there is one.

    Its random sampling (Nister's five points, RANSAC) leaves out what moves on its own.
    """
    last = part.frames - 1
    table = np.full((part.tracks, 2, 2), np.nan)
    for side, frame in enumerate((0, last)):
        here = part.frame == frame
        table[part.track[here], side] = part.place[here]
    both = np.flatnonzero(np.isfinite(table).all((1, 2)))
    if len(both) < 12:
        return []
    first, second = (np.ascontiguousarray(table[both, side]) for side in (0, 1))
    found, inlier = cv2.findEssentialMat(
        first, second, focal, (0.0, 0.0), method=cv2.RANSAC, prob=0.999, threshold=1.0
    )
    if found is None or found.shape != (3, 3):
        return []
    _, rotation, translation, _ = cv2.recoverPose(
        found, first, second, focal=focal, pp=(0.0, 0.0), mask=inlier.copy()
    )
    share = np.linspace(0, 1, part.frames)[:, None]
    rest = vector_of(rotation @ turning.rotations[last].T)
    rotations = rotation_of(share * rest) @ turning.rotations[: part.frames]
    place = -(rotation.T @ translation[:, 0])
    translations = -np.einsum("tij,tj->ti", rotations, share * place)
    trusted = np.zeros(part.tracks, bool)
    trusted[both[inlier[:, 0] > 0]] = True
    nothing = np.zeros((part.tracks, 4))
    start = Bundle(rotations, translations, focal, nothing)
    ends = _picked(part, trusted[part.track] & ((part.frame == 0) | (part.frame == last)))
    start = triangulate(start, ends)
    anchors = _picked(part, trusted[part.track])
    for soft in _SOFTER:
        start = adjust(start, anchors, replace(free, points=False, soft=soft), 6)
    start = adjust(start, anchors, replace(free, soft=_SOFTER[-1]), 8)
    fresh = triangulate(start, part).points
    start = replace(start, points=np.where(trusted[:, None], start.points, fresh))
    return [adjust(start, part, free, 20)]


def _exchanged(bundle: Bundle, rotations: Float64) -> Bundle:
    """What looks alike in a short window: the camera goes the other way, near is far."""
    points = bundle.points / np.maximum(np.linalg.norm(bundle.points[:, :3], axis=1), 1e-6)[:, None]
    points[:, 3] = 2 * np.median(points[:, 3]) - points[:, 3]
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return replace(
        bundle, points=points, translations=-bundle.translations, rotations=rotations, cost=np.inf
    )


def _window(seen: Observations) -> int:
    """Number of frames to begin with: until half of the first frame's tracks have ended."""
    table = np.zeros((seen.tracks, seen.frames), bool)
    table[seen.track, seen.frame] = True
    alive = table[table[:, 0]].mean(0) if table[:, 0].any() else np.zeros(seen.frames)
    lost = np.flatnonzero(alive < 0.5)
    return int(np.clip(lost[0] if len(lost) else seen.frames, min(4, seen.frames), seen.frames))


def _picked(seen: Observations, keep: Bool) -> Observations:
    return replace(seen, track=seen.track[keep], frame=seen.frame[keep], place=seen.place[keep])


def _until(seen: Observations, frames: int) -> Observations:
    """Observations of the first frames; tracks keep their numbers."""
    return replace(_picked(seen, seen.frame < frames), frames=frames)


def _extended(known: Bundle, turning: Bundle) -> Bundle:
    """Add a guess of the next pose: it turns as a turning camera would and moves on as before."""
    count = len(known.rotations)
    step = turning.rotations[count] @ turning.rotations[count - 1].T
    rotation = step @ known.rotations[-1]
    places = -np.einsum("tji,tj->ti", known.rotations[-2:], known.translations[-2:])
    place = 2 * places[-1] - places[0]
    return replace(
        known,
        rotations=np.concatenate((known.rotations, rotation[None])),
        translations=np.concatenate((known.translations, -(rotation @ place)[None])),
    )


def _all_frames(
    chosen: Bundle, keys: npt.NDArray[np.intp], seen: Observations, free: Freedom
) -> Bundle:
    """Spread a solution of the frames `keys` over all frames and adjust everything."""
    at = np.arange(seen.frames)
    low = np.clip(np.searchsorted(keys, at, side="right") - 1, 0, len(keys) - 2)
    share = (at - keys[low]) / (keys[low + 1] - keys[low])
    before, after = chosen.rotations[low], chosen.rotations[low + 1]
    turn = vector_of(after @ np.swapaxes(before, 1, 2))
    rotations = rotation_of(turn * share[:, None]) @ before
    places = -np.einsum("tji,tj->ti", chosen.rotations, chosen.translations)
    place = places[low] + share[:, None] * (places[low + 1] - places[low])
    translations = -np.einsum("tij,tj->ti", rotations, place)
    start = Bundle(rotations, translations, chosen.focal, np.zeros((seen.tracks, 4)))
    if free.moving:
        start = triangulate(start, seen)
    else:
        first = np.searchsorted(seen.track, np.arange(seen.tracks))
        rays = _rays(seen, chosen.focal)[first]
        start.points[:, :3] = np.einsum("nji,nj->ni", rotations[seen.frame[first]], rays)
    start = adjust(start, seen, replace(free, focal=False, points=False), 6)
    start = adjust(start, seen, replace(free, focal=False, poses=False), 6)
    return adjust(start, seen, free, 12)


def _solution(
    bundle: Bundle, seen: Observations, size: tuple[int, int], moving: bool, parallax: float
) -> Solution:
    """Scale, classify and weigh a finished bundle."""
    width, height = size
    if np.median(bundle.points[seen.track, 3]) < 0:  # (t, w) and (-t, -w) are the same picture
        points = bundle.points * (1, 1, 1, -1)
        bundle = replace(bundle, points=points, translations=-bundle.translations)
    error = np.hypot(*bundle.residuals(seen).T)
    inlier = error < _GOOD
    evidence = _evidence(bundle, seen, size, error, parallax)
    reach = np.hypot(width, height) / 2
    angles = np.linalg.norm(vector_of(bundle.rotations), axis=1)
    kind = MOVING if moving else TURNING
    if not moving and float(angles.max()) * max(bundle.focal, reach) < _STILL:
        kind = STATIC
    rotations, translations = bundle.rotations, bundle.translations
    if kind == STATIC:
        rotations = np.tile(np.eye(3), (len(rotations), 1, 1))
    points, table = _structure(bundle, seen, inlier)
    if kind == MOVING and len(points):
        front = points[:, 2][table[:, 0] & (points[:, 2] > 0)]
        depth = float(np.median(front if len(front) >= 8 else np.abs(points[:, 2])))
        points, translations = points / depth, translations / depth
    path = CameraPath(rotations, translations, bundle.focal / width, kind=kind)
    path = replace(path, confidence=confidence(evidence))
    return Solution(path, Structure(points, table), evidence)


def _structure(bundle: Bundle, seen: Observations, inlier: Bool) -> tuple[Float64, Bool]:
    """Points float64 [N, 3] that fit well, in front of every camera that saw them; and where."""
    total = np.maximum(np.bincount(seen.track, minlength=seen.tracks), 1)
    share = np.bincount(seen.track[inlier], minlength=seen.tracks) / total
    depth = bundle.camera(seen)[:, 2]
    behind = np.bincount(seen.track[depth <= 0], minlength=seen.tracks) > 0
    table = np.zeros((seen.tracks, seen.frames), bool)
    table[seen.track, seen.frame] = True
    w = bundle.points[:, 3]
    finite = w > 1e-4 if w.any() else np.ones(seen.tracks, bool)
    good = (share > 0.8) & ~behind & finite & (table.sum(1) >= 3)
    scale = w[good, None] if w.any() else 1.0
    return bundle.points[good, :3] / scale, table[good]


def _evidence(
    bundle: Bundle, seen: Observations, size: tuple[int, int], error: Float64, parallax: float
) -> Evidence:
    inlier = error < _GOOD
    frames = seen.frames
    counts = np.bincount(seen.frame[inlier], minlength=frames)
    cells = np.zeros((frames, 8, 5), bool)
    place = (seen.place / np.asarray(size) + 0.5)[inlier]
    x, y = (np.clip((place * (8, 5)).astype(int), 0, (7, 4))).T
    cells[seen.frame[inlier], x, y] = True
    return Evidence(
        inliers=float(inlier.mean()),
        error=float(np.median(error)) * 640 / max(size),
        tracks=float(counts.mean()),
        cover=float(cells.mean()),
        weakest=float(counts.min()),
        parallax=parallax,
    )


def _unknown(tracks: Tracks, focal: float | None) -> Solution:
    """No path: the camera stands still, and nobody should believe it."""
    width, height = tracks.size
    frames = tracks.points.shape[1]
    path = CameraPath(
        np.tile(np.eye(3), (frames, 1, 1)),
        np.zeros((frames, 3)),
        focal or PRIOR[0] * max(width, height) / width,
        kind=STATIC,
        confidence=1.0 if frames == 1 else 0.0,
    )
    nothing = Structure(np.zeros((0, 3)), np.zeros((0, frames), bool))
    return Solution(path, nothing, Evidence(0.0, 0.0, 0.0, 0.0, 0.0, 0.0))
