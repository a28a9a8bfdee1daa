"""Masks of what moves on its own: dense flow against the camera's motion, cleaned up by GrabCut.

Every place is given the best depth that static points nearby allow; what no such depth explains, in
the frames before and in those after, moves. Regions become objects that keep their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
from semvc.errors import UsageError

SIDE = 320  # samples of the longer side of the pictures that are looked at
_GAPS = (2, 5)  # frames between the pictures of a flow
_LEAST = 0.7  # samples of unexplained motion that count
_NOISE = 4.0  # times the picture's median unexplained motion that counts
_AREA = 0.004  # share of the picture below which a region is dropped
_LIFE = 3  # frames that an object lives at least, or half of the clip
_NEAREST = 6  # static points that bound the depth of a place
_SLACK = 1.5  # how far beyond these a depth may lie, as a factor


@dataclass(frozen=True, slots=True)
class _Views:
    """Pictures at the working size: colour uint8 [T, h, w, 3] and luma uint8 [T, h, w]."""

    colour: UInt8
    luma: UInt8


def find_masks(frames: UInt8, camera: CameraPath, structure: Structure) -> Masks:
    """Return the moving objects of uint8 [T, H, W, 3], at the frames' size.

    `confidence` is low where the camera's is, and where most of the picture seems to move.
    """
    count, height, width = frames.shape[:3]
    if count < 2:
        return Masks(np.zeros((count, height, width), np.uint8), camera.confidence)
    size = work_size(width, height, SIDE)
    views = _views(frames, size)
    regions = np.stack([_region(views, t, camera, structure) for t in range(count)])
    ids = _numbered(_steady(regions))
    share = float((ids > 0).mean())
    confidence = camera.confidence * float(np.clip((0.7 - share) / 0.2, 0, 1))
    full = [cv2.resize(layer, (width, height), interpolation=cv2.INTER_NEAREST) for layer in ids]
    return Masks(np.stack(full), confidence)


def read_masks(folder: Path, shape: tuple[int, int, int], start: int = 0) -> Masks:
    """Read one PNG a frame, in order of name; values are object ids, 0 to 8, or 255 for object 1.

    `shape` is (T, H, W) of the frames from number `start` on. Raises UsageError if pictures are
    missing, unreadable or of another size.
    """
    files = sorted(folder.glob("*.png"))
    if len(files) < shape[0]:
        raise UsageError(
            f"{folder} holds {len(files)} PNG masks, but the clip has {shape[0]} frames"
        )
    layers: list[UInt8] = []
    for file in files[start : start + shape[0]]:
        layer = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        if layer is None:
            raise UsageError(f"cannot read mask {file}: write 8-bit PNG files")
        layer = np.asarray(layer)
        layer = layer if layer.ndim == 2 else layer[..., :3].max(2)
        if layer.shape != shape[1:]:
            raise UsageError(f"mask {file} is {layer.shape}, the frames are {shape[1:]}")
        layer = np.where(layer == 255, 1, layer)
        if layer.max() > MAX_OBJECTS:
            raise UsageError(f"mask {file} has id {layer.max()}; ids are 0 to {MAX_OBJECTS}")
        layers.append(layer.astype(np.uint8))
    return Masks(np.stack(layers), method="file")


def _views(frames: UInt8, size: tuple[int, int]) -> _Views:
    small = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]
    luma = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in small]
    return _Views(np.stack(small), np.stack(luma))


def _region(views: _Views, t: int, camera: CameraPath, structure: Structure) -> Bool:
    """Return where frame t shows something that moves, bool [h, w]."""
    residual = _unexplained(views, t, camera, structure)
    limit = max(_LEAST, _NOISE * float(np.median(residual)))
    seed = (residual > limit).astype(np.uint8)
    seed = cv2.morphologyEx(seed, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    seed = cv2.morphologyEx(seed, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
    seed = _large(seed)
    if not seed.any() or seed.mean() > 0.7:
        return seed > 0
    return _cut(views.colour[t], seed, residual > 3 * limit)


def _unexplained(views: _Views, t: int, camera: CameraPath, structure: Structure) -> Float32:
    """Motion in samples that no allowed depth explains, before or after, float32 [h, w]."""
    count, height, width = views.luma.shape
    low, high = _bounds(camera, structure, t, (width, height))
    sides: list[Float32] = []
    for sign in (-1, 1):
        others = [t + sign * gap for gap in _GAPS if 0 <= t + sign * gap < count]
        if others:
            flows = [_flow(views.luma[t], views.luma[s]) for s in others]
            sides.append(_residual(flows, t, others, camera, (low, high)))
    if not sides:
        flow = _flow(views.luma[t], views.luma[t - 1 if t else 1])
        sides.append(_residual([flow], t, [t - 1 if t else 1], camera, (low, high)))
    return np.asarray(np.minimum.reduce(sides), np.float32)


def _flow(before: UInt8, after: UInt8) -> Float32:
    solver = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.asarray(solver.calc(before, after, None), np.float32)


def _residual(
    flows: list[Float32],
    t: int,
    others: list[int],
    camera: CameraPath,
    bounds: tuple[Float32, Float32],
) -> Float32:
    """Root mean square over `flows` from t of what the best inverse depth in `bounds` leaves."""
    height, width = flows[0].shape[:2]
    x, y = np.meshgrid(np.arange(width) + np.float32(0.5), np.arange(height) + np.float32(0.5))
    matrix = camera.intrinsics(width, height)
    low, high = bounds
    inverse = 0.5 * (low + high)
    targets = [(x + flow[..., 0], y + flow[..., 1]) for flow in flows]
    motions = [_motion(camera, matrix, t, s) for s in others]
    total = np.zeros_like(x)
    for round_ in range(3):
        top, bottom = np.zeros_like(x), np.full_like(x, 1e-9)
        total = np.zeros_like(x)
        for (turn, move), (tx, ty) in zip(motions, targets, strict=True):
            u = [turn[i, 0] * x + turn[i, 1] * y + turn[i, 2] + move[i] * inverse for i in range(3)]
            w = np.maximum(u[2], 1e-3)
            ex, ey = tx - u[0] / w, ty - u[1] / w
            jx, jy = (move[0] - u[0] / w * move[2]) / w, (move[1] - u[1] / w * move[2]) / w
            top += jx * ex + jy * ey
            bottom += jx * jx + jy * jy
            total += ex * ex + ey * ey
        if round_ < 2:
            inverse = np.clip(inverse + top / bottom, low, high)
    return np.asarray(np.sqrt(total / len(flows)), np.float32)


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
