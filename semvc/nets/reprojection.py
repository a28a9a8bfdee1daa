"""From keyframes, camera, depth and masks to what each frame shows without any model: numpy only.

The background of a frame is the keyframes beside it, warped by depth and pose and cross-faded; what
no keyframe shows is filled from its surroundings. Moving objects are cut out of the keyframe by
their masks there and laid where their masks are now. The preview tier shows this; the generator is
conditioned on it; training makes it by the same functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from semvc.nets.warp import sample, source_places

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_FAINT = np.float32(1e-3)  # weight of what is barely valid, so that something always shows
_GROWTH = (0.5, 2.0)  # bounds of how much an object's size may change from its keyframe
_LEVELS = 12  # of the pyramid that fills holes: enough for any picture
_MARGIN = 2  # samples around an object's mask in a keyframe that its background must not show


@dataclass(frozen=True, slots=True)
class SceneConditions:
    """What a segment of `frames` frames of `width` x `height` is made from.

    keyframes: uint8 [K, height, width, 3] RGB, enlarged to the picture's size; places: the frames
    they belong to, rising from 0. depths: float32 [K, rows, columns], positive, see `warp`.
    rotations: float64 [T, 3, 3] world to camera; positions: float64 [T, 3]. intrinsics: float64
    [3, 3] in samples. ids: gives the masks of a frame, uint8 [height, width], 0 = background, else
    the object's number; None without masks. crf, factor: how coarse and small keyframes were coded.
    """

    width: int
    height: int
    frames: int
    keyframes: UInt8
    places: tuple[int, ...]
    depths: Float32
    rotations: Float64
    positions: Float64
    intrinsics: Float64
    crf: float
    factor: int
    ids: Callable[[int], UInt8] | None = None

    def pose(self, frame: int) -> Float64:
        """World to camera, float64 [3, 4]."""
        turn = self.rotations[frame]
        return np.concatenate((turn, -(turn @ self.positions[frame])[:, None]), 1)


@dataclass(frozen=True, slots=True)
class View:
    """One keyframe as a frame sees it: `image` float32 [H, W, 3] in 0..255, holes filled.

    valid: float32 [H, W] in [0, 1], where the keyframe shows the background of this place.
    """

    image: Float32
    valid: Float32


@dataclass(frozen=True, slots=True)
class FrameConditions:
    """What one frame is made from: images float32 [H, W, 3] in 0..255, maps float32 [H, W].

    before, after: the keyframes beside it (the same twice at the end). phase: how far the frame
    lies between them, in [0, 1). objects: what objects looked like in a keyframe, moved to where
    they are now, 0 elsewhere; known: where such a look was found. ids: uint8 [H, W].
    """

    before: View
    after: View
    phase: float
    objects: Float32
    known: Float32
    ids: UInt8

    def preview(self) -> UInt8:
        """The frame without a model, uint8 [H, W, 3]: the background cross-faded, objects on it."""
        background = blend(self.before, self.after, self.phase)
        cover = (self.ids > 0)[..., None] * self.known[..., None]
        made = background * (1 - cover) + self.objects * cover
        out: UInt8 = np.clip(made + np.float32(0.5), 0, 255).astype(np.uint8)
        return out


class Stage:
    """Makes the conditions of a segment's frames, in order; remembers the keyframes' objects."""

    def __init__(self, given: SceneConditions) -> None:
        self._given = given
        none = np.zeros((given.height, given.width), np.uint8)
        self._none = none
        self._stacks: dict[int, Float32] = {}  # of the keyframes beside the last frame
        self._ids = [none if given.ids is None else given.ids(place) for place in given.places]

    def frame(self, t: int) -> FrameConditions:
        """Return the conditions of frame `t`."""
        given = self._given
        first = int(np.searchsorted(given.places, t, side="right")) - 1
        second = min(first + 1, len(given.places) - 1)
        span = given.places[second] - given.places[first]
        phase = (t - given.places[first]) / span if span else 0.0
        before = self.view(first, t)
        after = before if second == first else self.view(second, t)
        ids = self._none if given.ids is None else given.ids(t)
        objects, known = self._objects(ids, (first, second), phase)
        return FrameConditions(before, after, phase, objects, known, ids)

    def view(self, k: int, t: int) -> View:
        """Return keyframe `k` as frame `t` sees it."""
        given, stack = self._given, self._stacked(k)
        if given.places[k] == t:
            valid = 1 - stack[..., 3]
            return View(filled(stack[..., :3], valid), valid)
        places, valid = source_places(
            given.depths[k],
            given.pose(given.places[k]),
            given.pose(t),
            given.intrinsics,
            (given.width, given.height),
        )
        seen = sample(stack, places)
        valid = valid * (1 - seen[..., 3])
        return View(filled(seen[..., :3], valid), valid)

    def _stacked(self, k: int) -> Float32:
        """Colors of a keyframe and where objects hide its background, float32 [H, W, 4]."""
        if k not in self._stacks:
            hidden = grown(self._ids[k] > 0, _MARGIN)[..., None]
            self._stacks = {n: s for n, s in self._stacks.items() if abs(n - k) < 2}
            self._stacks[k] = np.concatenate(
                (self._given.keyframes[k], hidden), -1, dtype=np.float32
            )
        return self._stacks[k]

    def _objects(self, ids: UInt8, near: tuple[int, int], phase: float) -> tuple[Float32, Float32]:
        """Looks of all objects of a frame, from the keyframe that is nearer if both have them."""
        objects = np.zeros((*ids.shape, 3), np.float32)
        known = np.zeros(ids.shape, np.float32)
        order = near if phase <= 0.5 else near[::-1]
        for number in np.unique(ids[ids > 0]).tolist():
            here = ids == number
            source = next((k for k in order if (self._ids[k] == number).any()), None)
            if source is None:  # seen in no keyframe beside: any that has it
                have = [k for k, other in enumerate(self._ids) if (other == number).any()]
                source = min(have, key=lambda k: abs(k - near[0]), default=None)
            if source is None:
                continue
            mask = self._ids[source] == number
            objects[here] = gathered(self._given.keyframes[source], mask, here)
            known[here] = 1
        return objects, known


def blend(before: View, after: View, phase: float) -> Float32:
    """Cross-fade two views by phase and validity; where neither is valid, by phase alone."""
    faint = _FAINT
    ahead = np.float32(1 - phase) * (before.valid + faint)
    behind = np.float32(phase) * (after.valid + faint)
    share = (behind / np.maximum(ahead + behind, 1e-6))[..., None]
    return (before.image * (1 - share) + after.image * share).astype(np.float32)


def gathered(
    keyframe: UInt8, source: npt.NDArray[np.bool_], target: npt.NDArray[np.bool_]
) -> Float32:
    """Colors of an object at the set places of `target` [H, W], float32 [n, 3] in 0..255.

    `source` is its mask in the keyframe. Masks correspond by their centres and by their spread
    along each axis; what lies outside `source` then takes the color of its surroundings.
    """
    y, x = target.nonzero()
    from_y, from_x = source.nonzero()
    places = np.empty((1, len(x), 2), np.float32)
    for axis, (now, then) in enumerate(((x, from_x), (y, from_y))):
        growth = (then.std() + 0.5) / (now.std() + 0.5)
        growth = min(_GROWTH[1], max(_GROWTH[0], float(growth)))
        places[0, :, axis] = (now - now.mean()) * growth + then.mean() + 0.5
    rows = slice(max(0, from_y.min() - 8), from_y.max() + 9)
    columns = slice(max(0, from_x.min() - 8), from_x.max() + 9)
    patch = filled(
        keyframe[rows, columns].astype(np.float32), source[rows, columns].astype(np.float32)
    )
    places -= np.array([columns.start, rows.start], np.float32)
    return sample(patch, places)[0]


def grown(mask: npt.NDArray[np.bool_], margin: int) -> npt.NDArray[np.bool_]:
    """`mask` [H, W] with `margin` samples more on every side."""
    out = mask.copy()
    for axis in (0, 1):
        now = out.copy()
        for step in range(1, margin + 1):
            ahead = [slice(None)] * 2
            behind = [slice(None)] * 2
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            out[tuple(ahead)] |= now[tuple(behind)]
            out[tuple(behind)] |= now[tuple(ahead)]
    return out


def filled(image: Float32, valid: Float32) -> Float32:
    """`image` [H, W, C] where `valid` [H, W] is 1, elsewhere what surrounds it.

    Means of ever larger blocks, weighted by validity, are laid under what is valid (push and pull,
    Gortler et al. 1996, section 3.4). Without any valid sample the image is returned as it is.
    """
    if not valid.any() or bool((valid == 1).all()):
        return image
    stack = [(image * valid[..., None], valid)]
    while stack[-1][1].shape != (1, 1) and len(stack) < _LEVELS:
        color, weight = (_halved(part) for part in stack[-1])
        full = np.minimum(np.float32(1), 4 * weight)
        scale = full / np.maximum(weight, np.float32(1e-6))
        stack.append((color * scale[..., None], full))
    color, weight = stack.pop()
    below = (color / np.maximum(weight, np.float32(1e-6))[..., None]).astype(np.float32)
    while stack:
        color, weight = stack.pop()
        below = color + _doubled(below, weight.shape) * (1 - weight[..., None])
    return below


def _halved(part: Float32) -> Float32:
    """Means of 2 x 2 blocks; odd sides end with zeros."""
    padded = np.pad(part, [(0, n % 2) for n in part.shape[:2]] + [(0, 0)] * (part.ndim - 2))
    rows = padded[0::2] + padded[1::2]
    out: Float32 = (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)
    return out


def _doubled(part: Float32, shape: tuple[int, ...]) -> Float32:
    """Twice as large, linearly between block centres, cut to `shape`."""
    for axis in (0, 1):
        n = part.shape[axis]
        after = np.take(part, np.minimum(np.arange(n) + 1, n - 1), axis)
        prior = np.take(part, np.maximum(np.arange(n) - 1, 0), axis)
        pair = np.stack((0.75 * part + 0.25 * prior, 0.75 * part + 0.25 * after), axis + 1)
        part = pair.reshape(*part.shape[:axis], 2 * n, *part.shape[axis + 1 :]).astype(np.float32)
    return part[: shape[0], : shape[1]]
