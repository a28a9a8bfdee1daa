"""Skeleton: up to eight people of 17 COCO keypoints each, followed over time.

Positions are in 1/256 of the frame and may lie up to a quarter of it outside. A point that was
there in the map before is predicted from its position and half its last step; a new one from the
joint of the body it hangs on.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from semvc.entropy.coder import Decoder, Encoder, SymbolCoder
from semvc.entropy.integers import code_bits, code_uint, unzigzag, zigzag
from semvc.entropy.tables import AdaptiveTables, Int64, TableSet, check_ints, normalize
from semvc.errors import BitstreamError

if TYPE_CHECKING:
    from semvc.types import UInt8

Int16 = npt.NDArray[np.int16]

JOINTS = 17
MAX_PEOPLE = 8
MAX_FRAMES = 1024
MAX_STEP = 64
UNITS = 256  # of the frame's width or height
LOW, HIGH = -64, 320  # positions are clamped to this, a quarter of the frame outside
# COCO: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles; left before right.
_ORDER = (5, 6, 11, 12, 0, 1, 2, 3, 4, 7, 8, 9, 10, 13, 14, 15, 16)
_PARENT = (5, 0, 0, 1, 2, 6, 5, 5, 6, 7, 8, 5, 11, 11, 12, 13, 14)
_DIRECT = 24  # residuals, zigzag, that have a symbol of their own; the next one is the escape
_ACTIVITY = 6
_SYMBOLS_PER_PERSON = 1 + JOINTS * (1 + 2 * 24)


@dataclass(frozen=True, slots=True, eq=False)
class Skeleton:
    """Poses of P <= 8 people in T maps, one every `step` frames (1..64).

    `points` int16 [T, P, 17, 2]: x in 1/256 of the frame's width, y of its height, in -64..320.
    `visible` uint8 [T, P, 17]: COCO's 0 unknown, 1 hidden, 2 visible. `present` uint8 {0, 1}
    [T, P]. What is absent or unknown is all zeros. Raises TypeError or ValueError otherwise.
    """

    points: Int16
    visible: UInt8
    present: UInt8
    step: int = 1

    def __post_init__(self) -> None:
        points = check_ints(self.points, "points")
        visible = check_ints(self.visible, "visible")
        present = check_ints(self.present, "present")
        kinds = tuple(str(part.dtype) for part in (points, visible, present))
        if kinds != ("int16", "uint8", "uint8"):
            raise ValueError(f"points, visible, present must be int16, uint8, uint8, not {kinds}")
        count, people = present.shape if present.ndim == 2 else (0, 0)
        if not 1 <= count <= MAX_FRAMES or people > MAX_PEOPLE or not 1 <= self.step <= MAX_STEP:
            raise ValueError(f"a skeleton of {present.shape} every {self.step} frames")
        if visible.shape != (count, people, JOINTS) or points.shape != (count, people, JOINTS, 2):
            raise ValueError(f"shapes {points.shape}, {visible.shape}, {present.shape} do not fit")
        if not people:
            return
        if present.max() > 1 or visible.max() > 2 or (visible[present == 0] != 0).any():
            raise ValueError("visibility is 0..2, and 0 for those who are not present")
        if (points[visible == 0] != 0).any() or points.min() < LOW or points.max() > HIGH:
            raise ValueError(f"points are in {LOW}..{HIGH}, and 0 where unknown")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Skeleton) and self.canonical_bytes() == other.canonical_bytes()

    def __hash__(self) -> int:
        return hash(self.canonical_bytes())

    def canonical_bytes(self) -> bytes:
        """Step, T and P as little-endian u16, then present, visible, and points as int16."""
        head = np.array([self.step, *self.present.shape], "<u2").tobytes()
        flags = self.present.tobytes() + self.visible.tobytes()
        return head + flags + self.points.astype("<i2").tobytes()


def code_skeleton(coder: SymbolCoder, skeleton: Skeleton | None, frames: int) -> Skeleton:
    """Code the poses of a segment of `frames` frames (1..1024): one map for each `step` of them.

    Raises ValueError when the skeleton does not fit, BitstreamError for damage.
    """
    if not 1 <= frames <= MAX_FRAMES:
        raise ValueError(f"frames must be in 1..{MAX_FRAMES}, not {frames}")
    given = None if skeleton is None else np.array([skeleton.step - 1])
    step = int(code_bits(coder, given, 1, 6)[0]) + 1
    given = None if skeleton is None else np.array([skeleton.present.shape[1]])
    people = int(code_bits(coder, given, 1, 4)[0])
    count = -(-frames // step)
    if people > MAX_PEOPLE:
        raise BitstreamError(f"a skeleton has {people} people", section="SKELETON")
    if skeleton is not None and len(skeleton.present) != count:
        raise ValueError(f"{frames} frames need {count} maps, not {len(skeleton.present)}")
    points = np.zeros((count, people, JOINTS, 2), np.int16)
    visible = np.zeros((count, people, JOINTS), np.uint8)
    present = np.zeros((count, people), np.uint8)
    state = _State(people)
    for t in range(count if people else 0):
        given_flags = None if skeleton is None else (skeleton.present[t], skeleton.visible[t])
        present[t], visible[t] = state.code_flags(coder, given_flags)
        given_points = None if skeleton is None else skeleton.points[t].astype(np.int64)
        points[t] = state.code_points(coder, given_points, visible[t] > 0)
    return Skeleton(points, visible, present, step)


def encode_skeleton(skeleton: Skeleton, frames: int, check: int = 0) -> tuple[bytes, int]:
    """Payload of a SKELETON section and the chained check."""
    encoder = Encoder(check)
    code_skeleton(encoder, skeleton, frames)
    return encoder.finish(), encoder.check


def decode_skeleton(payload: bytes, frames: int, check: int = 0) -> tuple[Skeleton, int]:
    """Inverse of `encode_skeleton`."""
    decoder = Decoder(payload, 2 + frames * MAX_PEOPLE * _SYMBOLS_PER_PERSON, check)
    skeleton = code_skeleton(decoder, None, frames)
    decoder.finish()
    return skeleton, decoder.check


class _State:
    """What the map before leaves behind, and the adaptive tables."""

    def __init__(self, people: int) -> None:
        self._present = np.zeros(people, np.int64)
        self._visible = np.full((people, JOINTS), 3, np.int64)  # 3: was not present
        self._known = np.zeros((people, JOINTS), bool)
        self._points = np.zeros((people, JOINTS, 2), np.int64)
        self._step = np.zeros((people, JOINTS, 2), np.int64)
        self._activity = np.zeros((people, JOINTS), np.int64)
        starts = _start_tables()
        self._present_tables = AdaptiveTables(starts[0], strength=8)
        self._visible_tables = AdaptiveTables(starts[1], strength=8)
        self._residuals = AdaptiveTables(starts[2], strength=24)
        self._offsets = AdaptiveTables(starts[3], strength=8)

    def code_flags(
        self, coder: SymbolCoder, given: tuple[UInt8, UInt8] | None
    ) -> tuple[UInt8, UInt8]:
        """Presence [P] and visibility [P, 17] of one map."""
        people = len(self._present)
        flags = None if given is None else given[0]
        present = self._present_tables.code(coder, flags, people, self._present)
        here = present > 0
        before = self._visible[here].ravel()
        flags = None if given is None else given[1][here].ravel()
        coded = self._visible_tables.code(coder, flags, len(before), before)
        visible = np.zeros((people, JOINTS), np.int64)
        visible[here] = coded.reshape(-1, JOINTS)
        self._present = here.astype(np.int64)
        self._visible = np.where(here[:, None], visible, 3)
        return here.astype(np.uint8), visible.astype(np.uint8)

    def code_points(
        self, coder: SymbolCoder, given: Int64 | None, known: npt.NDArray[np.bool_]
    ) -> Int16:
        """Positions [P, 17, 2] of one map; zeros where not `known` [P, 17]."""
        points = np.zeros_like(self._points)
        follow = known & self._known
        if follow.any():
            points[follow] = self._follow(coder, None if given is None else given[follow], follow)
        fresh = known & ~self._known
        if fresh.any():
            self._place(coder, given, points, known, fresh)
        if points.min() < LOW or points.max() > HIGH:
            raise BitstreamError("a keypoint is out of range", section="SKELETON")
        self._step = np.where(follow[..., None], points - self._points, 0)
        self._activity[~follow] = 4
        self._points, self._known = points, known
        return points.astype(np.int16)

    def _follow(
        self, coder: SymbolCoder, given: Int64 | None, follow: npt.NDArray[np.bool_]
    ) -> Int64:
        """Positions [n, 2] of the points that the map before had."""
        guess = np.clip(self._points[follow] + (self._step[follow] >> 1), LOW, HIGH)
        activity = self._activity[follow]
        level = np.searchsorted(np.array([2, 5, 9, 16, 30]), activity, side="right")
        residuals = []
        other = np.zeros(len(guess), np.int64)
        for axis in (0, 1):
            wanted = None if given is None else given[:, axis] - guess[:, axis]
            context = level * 4 + axis * (1 + np.minimum(other, 2))
            residual = self._code_residual(coder, wanted, context)
            residuals.append(residual)
            other = abs(residual)
        change = np.stack(residuals, axis=1)
        self._activity[follow] = (3 * activity + 4 * abs(change).sum(axis=1) + 2) >> 2
        result: Int64 = guess + change
        return result

    def _code_residual(self, coder: SymbolCoder, given: Int64 | None, context: Int64) -> Int64:
        numbers = None if given is None else zigzag(given)
        symbols = None if numbers is None else np.minimum(numbers, _DIRECT)
        result = self._residuals.code(coder, symbols, len(context), context).astype(np.int64)
        far = result == _DIRECT
        if far.any():
            rest = None if numbers is None else numbers[far] - _DIRECT
            result[far] += code_uint(coder, rest, int(far.sum()), 2 * (HIGH - LOW))
        return unzigzag(result)

    def _place(
        self,
        coder: SymbolCoder,
        given: Int64 | None,
        points: Int64,
        known: npt.NDArray[np.bool_],
        fresh: npt.NDArray[np.bool_],
    ) -> None:
        """Fill the `fresh` points of `points`, joint by joint, from the joint they hang on."""
        done: npt.NDArray[np.bool_] = np.asarray(known & ~fresh)
        for joint in _ORDER:
            who = np.flatnonzero(fresh[:, joint])
            if not len(who):
                continue
            # The parent, else the first joint that is there, else the middle of the frame.
            first = np.argmax(done[who], axis=1)
            parent = np.where(done[who, _PARENT[joint]], _PARENT[joint], first)
            any_done: npt.NDArray[np.bool_] = np.asarray(done[who].sum(axis=1) > 0)
            guess = np.where(any_done[:, None], points[who, parent], UNITS // 2)
            for axis in (0, 1):
                wanted = None if given is None else given[who, joint, axis] - guess[:, axis]
                context = np.where(any_done, joint * 2 + axis, 2 * JOINTS)
                points[who, joint, axis] = guess[:, axis] + self._code_offset(
                    coder, wanted, context
                )
            done[who, joint] = True

    def _code_offset(self, coder: SymbolCoder, given: Int64 | None, context: Int64) -> Int64:
        """Signed offsets -511..511: adaptively their sign and eighths, then three plain bits."""
        count = len(context)
        number = None if given is None else given + 512
        high = self._offsets.code(coder, None if number is None else number >> 3, count, context)
        low = code_bits(coder, None if number is None else number & 7, count, 3)
        result: Int64 = (high.astype(np.int64) << 3) + low - 512
        return result


@functools.cache
def _start_tables() -> tuple[TableSet, TableSet, TableSet, TableSet]:
    """Presence, visibility, residuals [activity * 4 + axis context], offsets [joint * 2 + axis]."""
    present = normalize(np.array([[1, 1], [1, 31]]))
    visible = normalize(np.array([[30, 1, 1], [1, 20, 4], [1, 2, 40], [2, 2, 12]]))
    rows = []
    for level in range(_ACTIVITY):
        # Geometric: each symbol has this many sixteenths of the one before.
        ratio = (8, 10, 11, 13, 14, 15)[level]
        row = [1 << 20]
        while len(row) < _DIRECT + 1:
            row.append(max(1 << 10, row[-1] * ratio >> 4))
        rows += [row] * 4
    offset = np.array([max(1, 4096 >> min(12, abs(2 * k - 127) // 6)) for k in range(128)])
    offsets = np.tile(offset, (2 * JOINTS + 1, 1))
    return present, visible, normalize(np.array(rows)), normalize(offsets)
