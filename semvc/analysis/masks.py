"""Masks of what moves on its own: dense flow against the camera's motion, cleaned up by GrabCut.

Every place is given the best depth that static points nearby allow; what no such depth explains, in
the frames before and in those after, moves. Regions become objects that keep their number.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from semvc.analysis.tracks import work_size
from semvc.analysis.types import (
    MAX_OBJECTS,
    Bool,
    CameraPath,
    Float32,
    Float64,
    Masks,
    Structure,
    UInt8,
)

SIDE = 320  # samples of the longer side of the pictures that are looked at
_GAPS = (2, 5)  # frames between the pictures of a flow
_LEAST = 0.7  # samples of unexplained motion that count
_NOISE = 4.0  # times the picture's median unexplained motion that counts
_GAIN = 2.5  # code values by which flow must look more alike than the background's motion
_AREA = 0.004  # share of the picture below which a region is dropped
_LIFE = 3  # frames that an object lives at least, or half of the clip
_NEAREST = 6  # static points that bound the depth of a place
_SLACK = 1.5  # how far beyond these a depth may lie, as a factor


class Motion:
    """Small pictures of a clip and the flow between them, each computed once when asked for."""

    def __init__(self, frames: UInt8) -> None:
        count, height, width = frames.shape[:3]
        size = work_size(width, height, SIDE)
        small = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]
        self.colour: UInt8 = np.stack(small)
        self.luma: UInt8 = np.stack([cv2.cvtColor(p, cv2.COLOR_RGB2GRAY) for p in small])
        self.full = (count, height, width)
        self._flows: dict[tuple[int, int], Float32] = {}
        self._solver = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def flow(self, t: int, s: int) -> Float32:
        """Return the way of frame t's samples to frame s, (x, y), float32 [h, w, 2]."""
        if (t, s) not in self._flows:
            found = self._solver.calc(self.luma[t], self.luma[s], None)
            self._flows[t, s] = np.asarray(found, np.float32)
        return self._flows[t, s]

    def trusted(self, t: int, s: int, places: tuple[Float32, Float32]) -> Bool:
        """Where the flow from t to s ends in the picture and leads back, bool [h, w]."""
        height, width = self.luma.shape[1:]
        x, y = places
        inside = (x > 1) & (x < width - 1) & (y > 1) & (y < height - 1)
        there, back = self.flow(t, s), self.flow(s, t)
        back = cv2.remap(
            back,
            x - np.float32(0.5),
            y - np.float32(0.5),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        miss = np.hypot(there[..., 0] + back[..., 0], there[..., 1] + back[..., 1])
        return np.asarray(inside & (miss < 1 + 0.1 * np.hypot(there[..., 0], there[..., 1])))


def find_masks(motion: Motion, camera: CameraPath, structure: Structure) -> Masks:
    """Return the moving objects of a clip, at its frames' size.

    `confidence` is low where the camera's is, and where most of the picture seems to move.
    """
    count, height, width = motion.full
    if count < 2:
        return Masks(np.zeros((count, height, width), np.uint8), camera.confidence)
    regions = np.stack([_region(motion, t, camera, structure) for t in range(count)])
    ids = _numbered(_steady(regions))
    share = float((ids > 0).mean())
    confidence = camera.confidence * float(np.clip((0.7 - share) / 0.2, 0, 1))
    full = [cv2.resize(layer, (width, height), interpolation=cv2.INTER_NEAREST) for layer in ids]
    return Masks(np.stack(full), confidence)


def carried(motion: Motion, masks: Masks) -> Bool:
    """Return where something moves or came from what moved before or after, bool [T, h, w].

    At the size of small pictures. What was seen to move once is followed by flow through the clip:
    a camera path that takes it for static must not get it as evidence. If that would leave less
    than half of the picture, it is not followed.
    """
    count, height, width = motion.luma.shape
    small = [
        cv2.resize(layer, (width, height), interpolation=cv2.INTER_NEAREST) for layer in masks.ids
    ]
    start = np.stack(small) > 0
    regions = start.copy()
    step = _GAPS[0]
    x, y = np.meshgrid(*(np.arange(n, dtype=np.float32) + np.float32(0.5) for n in (width, height)))
    for order, back in ((range(step, count), -step), (range(count - step - 1, -1, -1), step)):
        for t in order:
            flow = motion.flow(t, t + back)
            at = (x + flow[..., 0], y + flow[..., 1])
            place = [axis - np.float32(0.5) for axis in at]
            before = regions[t + back].astype(np.uint8)
            came = cv2.remap(before, *place, cv2.INTER_NEAREST) > 0
            regions[t] |= came & motion.trusted(t, t + back, at)
    return regions if regions.mean((1, 2)).max() < 0.5 else start


def _region(motion: Motion, t: int, camera: CameraPath, structure: Structure) -> Bool:
    """Return where frame t shows something that moves, bool [h, w]."""
    residual, gain = _unexplained(motion, t, camera, structure)
    limit = max(_LEAST, _NOISE * float(np.median(residual)))
    seed = ((residual > limit) & (gain > _GAIN)).astype(np.uint8)
    seed = cv2.morphologyEx(seed, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    seed = cv2.morphologyEx(seed, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
    seed = _large(seed)
    if not seed.any() or seed.mean() > 0.7:
        return seed > 0
    return _cut(motion.colour[t], seed, residual > 3 * limit)


def _unexplained(
    motion: Motion, t: int, camera: CameraPath, structure: Structure
) -> tuple[Float32, Float32]:
    """Motion in samples that no allowed depth explains, before or after, float32 [h, w].

    Second, by how many code values the flow finds more similar surroundings than such a depth:
    where a picture is flat, flow errs and nothing can be said.
    """
    count, height, width = motion.luma.shape
    bounds = _bounds(camera, structure, t, (width, height))
    sides: list[tuple[Float32, Float32]] = []
    for sign in (-1, 1):
        others = [t + sign * gap for gap in _GAPS if 0 <= t + sign * gap < count]
        if others:
            sides.append(_residual(motion, t, others, camera, bounds))
    if not sides:
        sides.append(_residual(motion, t, [t - 1 if t else 1], camera, bounds))
    residuals, gains = zip(*sides, strict=True)
    return np.minimum.reduce(residuals), np.minimum.reduce(gains)


def _residual(
    motion: Motion,
    t: int,
    others: list[int],
    camera: CameraPath,
    bounds: tuple[Float32, Float32],
) -> tuple[Float32, Float32]:
    """What the best inverse depth in `bounds` leaves of the flows from t: see `_unexplained`."""
    height, width = motion.luma.shape[1:]
    x, y = np.meshgrid(*(np.arange(n, dtype=np.float32) + np.float32(0.5) for n in (width, height)))
    matrix = camera.intrinsics(width, height)
    low, high = bounds
    inverse = 0.5 * (low + high)
    flows = [motion.flow(t, s) for s in others]
    targets = [(x + flow[..., 0], y + flow[..., 1]) for flow in flows]
    trust = [motion.trusted(t, s, at) for s, at in zip(others, targets, strict=True)]
    motions = [_motion(camera, matrix, t, s) for s in others]
    for round_ in range(3):
        top, bottom = np.zeros_like(x), np.full_like(x, 1e-9)
        total, used = np.zeros_like(x), np.full_like(x, 1e-6)
        predicted: list[tuple[Float32, Float32]] = []
        for (turn, move), (tx, ty), good in zip(motions, targets, trust, strict=True):
            u = [turn[i, 0] * x + turn[i, 1] * y + turn[i, 2] + move[i] * inverse for i in range(3)]
            w = np.maximum(u[2], 1e-3)
            px, py = u[0] / w, u[1] / w
            ex, ey = (tx - px) * good, (ty - py) * good
            jx, jy = (move[0] - px * move[2]) / w, (move[1] - py * move[2]) / w
            top += jx * ex + jy * ey
            bottom += good * (jx * jx + jy * jy)
            total += ex * ex + ey * ey
            used += good
            predicted.append((px, py))
        if round_ < 2:
            inverse = np.clip(inverse + top / bottom, low, high)
    gain = np.zeros_like(x)
    for s, at, guess in zip(others, targets, predicted, strict=True):
        gain = np.maximum(gain, _unlike(motion, t, s, guess) - _unlike(motion, t, s, at))
    return np.sqrt(total / used), gain


def _unlike(motion: Motion, t: int, s: int, places: tuple[Float32, Float32]) -> Float32:
    """Mean difference of surroundings in frame t and at `places` in frame s, in code values."""
    x, y = places[0] - np.float32(0.5), places[1] - np.float32(0.5)
    seen = cv2.remap(motion.luma[s], x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    difference = cv2.absdiff(seen, motion.luma[t]).astype(np.float32)
    return np.asarray(cv2.boxFilter(difference, -1, (7, 7)), np.float32)


def _motion(camera: CameraPath, matrix: Float64, t: int, s: int) -> tuple[Float32, Float32]:
    """From places in frame t to places in frame s: p ~ turn (x, y, 1) + move / depth."""
    rotation = camera.rotations[s] @ camera.rotations[t].T
    translation = camera.translations[s] - rotation @ camera.translations[t]
    turn = matrix @ rotation @ np.linalg.inv(matrix)
    return turn.astype(np.float32), (matrix @ translation).astype(np.float32)


def _bounds(
    camera: CameraPath, structure: Structure, t: int, size: tuple[int, int]
) -> tuple[Float32, Float32]:
    """Least and greatest inverse depth that static points nearby allow, float32 [h, w] each."""
    width, height = size
    local = structure.points @ camera.rotations[t].T + camera.translations[t]
    usable = (local[:, 2] > 1e-3) & structure.seen[:, max(0, t - 8) : t + 9].any(1)
    local = local[usable]
    matrix = camera.intrinsics(width, height)
    places = local @ matrix.T
    places = places[:, :2] / places[:, 2:]
    inside = ((places > -0.1 * width) & (places < 1.1 * width)).all(1)
    places, inverse = places[inside], 1 / local[inside, 2]
    if len(inverse) < _NEAREST:
        return np.zeros((height, width), np.float32), np.full((height, width), 4.0, np.float32)
    x, y = np.meshgrid((np.arange(32) + 0.5) * width / 32, (np.arange(18) + 0.5) * height / 18)
    distance = (places[:, 0] - x[..., None]) ** 2 + (places[:, 1] - y[..., None]) ** 2
    nearest = np.argpartition(distance, _NEAREST - 1, axis=-1)[..., :_NEAREST]
    around = inverse[nearest]
    low = (around.min(-1) / _SLACK).astype(np.float32)
    high = (around.max(-1) * _SLACK).astype(np.float32)
    return cv2.resize(low, size), cv2.resize(high, size)


def _large(region: UInt8) -> UInt8:
    """Drop parts of uint8 [h, w] in {0, 1} that are too small."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(region, connectivity=8)
    keep = np.zeros(count, np.uint8)
    keep[1:] = stats[1:, cv2.CC_STAT_AREA] >= _AREA * region.size
    return np.asarray(keep[labels], np.uint8)


def _cut(colour: UInt8, seed: UInt8, sure: Bool) -> Bool:
    """Refine a region by colour: GrabCut within a band around its border."""
    reach = max(3, round(0.02 * max(seed.shape)))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    inner, outer = cv2.erode(seed, kernel), cv2.dilate(seed, kernel)
    labels = np.where(outer > 0, np.uint8(cv2.GC_PR_BGD), np.uint8(cv2.GC_BGD))
    labels[seed > 0] = cv2.GC_PR_FGD
    labels[(inner > 0) & sure] = cv2.GC_FGD
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(colour, labels, None, *models, 2, cv2.GC_INIT_WITH_MASK)
    region = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    region = cv2.morphologyEx(region, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    region = cv2.morphologyEx(region, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    return _large(np.asarray(region, np.uint8)) > 0


def _steady(regions: Bool) -> Bool:
    """Majority of three frames: what flickers is not there."""
    if len(regions) < 3:
        return regions
    votes = regions.astype(np.uint8)
    out = regions.copy()
    out[1:-1] = votes[:-2] + votes[1:-1] + votes[2:] >= 2
    return out


def _numbered(regions: Bool) -> UInt8:
    """Give regions bool [T, h, w] numbers 1..8 that stay with an object, by overlap over time."""
    ids = np.zeros(regions.shape, np.int32)
    born = 0
    for t, region in enumerate(regions):
        count, labels = cv2.connectedComponents(region.astype(np.uint8), connectivity=8)
        overlap: list[tuple[int, int, int]] = []
        for part in range(1, count):
            inside = labels == part
            if t:
                known, areas = np.unique(ids[t - 1][inside], return_counts=True)
                overlap += [(int(a), part, int(k)) for k, a in zip(known, areas, strict=True) if k]
        given: dict[int, int] = {}
        for _, part, known_id in sorted(overlap, reverse=True):
            if part not in given:
                given[part] = known_id
        for part in range(1, count):
            if part not in given:
                born += 1
                given[part] = born
            ids[t][labels == part] = given[part]
    return _renumbered(ids, born)


def _renumbered(ids: npt.NDArray[np.int32], born: int) -> UInt8:
    """The eight largest objects that live long enough, by total area."""
    areas = np.bincount(ids.ravel(), minlength=born + 1)
    life = np.zeros(born + 1, int)
    for layer in ids:
        life[np.unique(layer)] += 1
    areas[(life < min(_LIFE, (len(ids) + 1) // 2))] = 0
    areas[0] = 0
    order = [k for k in np.argsort(-areas, kind="stable")[:MAX_OBJECTS] if areas[k] > 0]
    table = np.zeros(born + 1, np.uint8)
    table[order] = np.arange(1, len(order) + 1)
    return np.asarray(table[ids], np.uint8)
