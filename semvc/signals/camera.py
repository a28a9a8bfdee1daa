"""Camera: where it looks and stands, as integer steps between evenly spaced poses.

A segment's path is N + 1 poses at even times; each step to the next one is predicted from the step
before. Frames between them lie on a spline, which is synthesis: no float is ever coded.

Axes are right, down, forward; the first frame is the world. Lengths are in units of the first
frame's median scene depth, so that a step of 2**-n means the same shift in the picture for every
scene. Sample centres are at +0.5, pixels are square.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from semvc.entropy.coder import Decoder, Encoder, SymbolCoder
from semvc.entropy.integers import code_bits, code_uint, unzigzag, zigzag
from semvc.entropy.tables import (
    AdaptiveTables,
    Int32,
    Int64,
    Ints,
    TableSet,
    check_ints,
    normalize,
)
from semvc.errors import BitstreamError

Float64 = npt.NDArray[np.float64]

MAX_FRAMES = 1024
UNITS = 1024  # of the picture's width: focal length and principal point
MAX_FOCAL = 1 << 14
MAX_OFFSET = 512  # of the principal point from the picture's middle, each way
FINEST = 21  # steps are 2**-6 to 2**-21 radians or scene depths
COARSEST = 6
MAX_VALUE = 1 << 20  # of a step's integers, each way
INERTIA = (0, 2, 3, 4)  # quarters of the step before that the next one is predicted to be
_DIRECT = 16  # residuals, zigzag, that have a symbol of their own; the next one is the escape
_LEVELS = (1, 3, 6, 12, 24, 48)  # activities from which a level begins
_SYMBOLS_PER_STEP = 6 * 48
_HEADER_SYMBOLS = 24


@dataclass(frozen=True, slots=True, eq=False)
class Camera:
    """A segment's camera: `turns` and `moves` int32 [N, 3], N <= 1023, |values| <= 2**20.

    Step k turns the camera by the rotation vector turns[k] * 2**-turn_bits about its own axes, in
    radians, and moves it by moves[k] * 2**-move_bits along them, in scene depths. `focal` is in
    1/1024 of the picture's width, 1..16384; `centre` is the principal point's offset (x, y) from
    the picture's middle in the same unit, -512..511. `inertia` 0..3 is how steps are predicted.

    A camera that stands still has N = 0; one that only turns has moves of zero. What is not needed
    is zero: the bits without steps or moves, the inertia without steps. Raises TypeError or
    ValueError otherwise.
    """

    focal: int
    turns: Int32
    moves: Int32
    turn_bits: int = 0
    move_bits: int = 0
    inertia: int = 0
    centre: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        for part in (check_ints(self.turns, "turns"), check_ints(self.moves, "moves")):
            if part.dtype != np.int32 or part.shape != (len(self.turns), 3):
                raise ValueError(
                    f"camera steps must be int32 [N, 3], not {part.dtype} {part.shape}"
                )
            if abs(part.astype(np.int64)).max(initial=0) > MAX_VALUE:
                raise ValueError(f"camera steps are in ±{MAX_VALUE}")
        if len(self.turns) >= MAX_FRAMES or not 1 <= self.focal <= MAX_FOCAL:
            raise ValueError(f"{len(self.turns)} camera steps, focal length {self.focal}")
        if any(not -MAX_OFFSET <= part < MAX_OFFSET for part in self.centre):
            raise ValueError(f"principal point {self.centre} is out of range")
        moving, turning = bool(self.moves.any()), bool(self.turns.any())
        if len(self.turns) and not (moving or turning):
            raise ValueError("a camera that stands still has no steps")
        if not self._bits_fit(moving) or not 0 <= self.inertia <= (3 if len(self.turns) else 0):
            raise ValueError(f"camera step of {self.turn_bits}, {self.move_bits} bits")

    def _bits_fit(self, moving: bool) -> bool:
        wanted = ((self.turn_bits, bool(len(self.turns))), (self.move_bits, moving))
        return all(COARSEST <= n <= FINEST if used else n == 0 for n, used in wanted)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Camera) and self.canonical_bytes() == other.canonical_bytes()

    def __hash__(self) -> int:
        return hash(self.canonical_bytes())

    def canonical_bytes(self) -> bytes:
        """Focal length, N, centre, bits and inertia as little-endian i16, then all steps as i32."""
        numbers = (len(self.turns), *self.centre, self.turn_bits, self.move_bits, self.inertia)
        head = np.array([self.focal, *numbers], "<i2").tobytes()
        return head + self.turns.astype("<i4").tobytes() + self.moves.astype("<i4").tobytes()


def code_camera(coder: SymbolCoder, camera: Camera | None, frames: int) -> Camera:
    """Code the camera of a segment of `frames` frames (1..1024), fewer steps than frames.

    Raises ValueError when the camera does not fit, BitstreamError for damage.
    """
    if not 1 <= frames <= MAX_FRAMES:
        raise ValueError(f"frames must be in 1..{MAX_FRAMES}, not {frames}")

    def number(value: int | None, bits: int) -> int:
        given = None if value is None else np.array([value])
        return int(code_bits(coder, given, 1, bits)[0])

    c = camera
    focal = number(None if c is None else c.focal - 1, 14) + 1
    centre = (0, 0)
    if number(None if c is None else int(c.centre != (0, 0)), 1):
        x = number(None if c is None else c.centre[0] + MAX_OFFSET, 10) - MAX_OFFSET
        y = number(None if c is None else c.centre[1] + MAX_OFFSET, 10) - MAX_OFFSET
        centre = (x, y)
        if centre == (0, 0):
            raise BitstreamError("a principal point is moved by nothing", section="CAMERA")
    given = None if c is None else np.array([len(c.turns)])
    count = int(code_uint(coder, given, 1, frames - 1)[0])
    still = np.zeros((0, 3), np.int32)
    if not count:
        return Camera(focal, still, still, centre=centre)
    turn_bits = number(None if c is None else c.turn_bits - COARSEST, 4) + COARSEST
    inertia = number(None if c is None else c.inertia, 2)
    moving = number(None if c is None else int(c.move_bits > 0), 1)
    move_bits = 0
    if moving:
        move_bits = number(None if c is None else c.move_bits - COARSEST, 4) + COARSEST
    given = None if c is None else np.stack((c.turns, c.moves), 1).astype(np.int64)
    steps = _code_steps(coder, given, (count, 1 + moving), INERTIA[inertia])
    turns = steps[:, 0].astype(np.int32)
    moves = steps[:, 1].astype(np.int32) if moving else np.zeros_like(turns)
    if (moving and not moves.any()) or not (turns.any() or moves.any()):
        raise BitstreamError("a camera that stands still has steps", section="CAMERA")
    return Camera(focal, turns, moves, turn_bits, move_bits, inertia, centre)


def encode_camera(camera: Camera, frames: int, check: int = 0) -> tuple[bytes, int]:
    """Payload of a CAMERA section and the chained check."""
    encoder = Encoder(check)
    code_camera(encoder, camera, frames)
    return encoder.finish(), encoder.check


def decode_camera(payload: bytes, frames: int, check: int = 0) -> tuple[Camera, int]:
    """Inverse of `encode_camera`."""
    decoder = Decoder(payload, _HEADER_SYMBOLS + frames * _SYMBOLS_PER_STEP, check)
    camera = code_camera(decoder, None, frames)
    decoder.finish()
    return camera, decoder.check


def _code_steps(
    coder: SymbolCoder, given: Int64 | None, shape: tuple[int, int], weight: int
) -> Int64:
    """Code steps int64 [N, parts, 3]: turns, then moves if there are two parts."""
    count, parts = shape
    steps = np.zeros((count, parts, 3), np.int64)
    tables = AdaptiveTables(_residual_tables(), strength=16, memory=255)
    activity = np.full((parts, 3), 4, np.int64)
    for k in range(count):
        for part in range(parts):
            wanted = None if given is None else given[k, part]
            if k == 0:
                first = None if wanted is None else zigzag(wanted)
                step = unzigzag(code_uint(coder, first, 3, 2 * MAX_VALUE))
            else:
                guess = (steps[k - 1, part] * weight) >> 2
                level = np.searchsorted(np.array(_LEVELS), activity[part], side="right")
                rest = None if wanted is None else wanted - guess
                found = _code_residual(coder, tables, rest, level + part * (len(_LEVELS) + 1))
                activity[part] = (3 * activity[part] + 4 * abs(found) + 2) >> 2
                step = guess + found
            if abs(step).max() > MAX_VALUE:
                raise BitstreamError("a camera step is out of range", section="CAMERA")
            steps[k, part] = step
    return steps


def _code_residual(
    coder: SymbolCoder, tables: AdaptiveTables, given: Ints | None, context: Ints
) -> Int64:
    numbers = None if given is None else zigzag(np.asarray(given, np.int64))
    symbols = None if numbers is None else np.minimum(numbers, _DIRECT)
    result = tables.code(coder, symbols, len(context), context).astype(np.int64)
    far = result == _DIRECT
    if far.any():
        rest = None if numbers is None else numbers[far] - _DIRECT
        result[far] += code_uint(coder, rest, int(far.sum()), 4 * MAX_VALUE)
    return unzigzag(result)


@functools.cache
def _residual_tables() -> TableSet:
    """Rows of turns by level of activity, then of moves: geometric, flatter with each level."""
    rows = []
    for ratio in (5, 8, 10, 12, 14, 15, 16):  # sixteenths that each symbol has of the one before
        row = [1 << 20]
        while len(row) < _DIRECT + 1:
            row.append(max(1 << 10, row[-1] * ratio >> 4))
        rows.append(row)
    return normalize(np.array(rows * 2))


# --- synthesis


def rotation(vectors: Float64) -> Float64:
    """Rotation matrices float64 [..., 3, 3] of rotation vectors [..., 3] in radians (Rodrigues)."""
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).reshape(*x.shape, 3, 3)
    # np.sinc(a) is sin(pi a) / (pi a), and 1 at 0
    half = np.sinc(angle / (2 * np.pi))
    matrices: Float64 = np.eye(3) + np.sinc(angle / np.pi) * cross + half**2 / 2 * (cross @ cross)
    return matrices


def rotation_vector(matrices: Float64) -> Float64:
    """Inverse of `rotation`, for angles below pi."""
    skew = np.stack(
        (
            matrices[..., 2, 1] - matrices[..., 1, 2],
            matrices[..., 0, 2] - matrices[..., 2, 0],
            matrices[..., 1, 0] - matrices[..., 0, 1],
        ),
        -1,
    )
    sine = np.linalg.norm(skew, axis=-1, keepdims=True) / 2
    cosine = (np.trace(matrices, axis1=-2, axis2=-1)[..., None] - 1) / 2
    angle = np.arctan2(sine, cosine)
    result: Float64 = skew / 2 * np.where(sine > 1e-9, angle / np.maximum(sine, 1e-9), 1.0)
    return result


def poses(camera: Camera, frames: int) -> tuple[Float64, Float64]:
    """World-to-camera rotations float64 [frames, 3, 3] and positions [frames, 3] in the world.

    Steps lie evenly between the first and the last frame. A cubic spline joins the poses, its
    second derivative continuous, and constant in the first and in the last interval. Turns are
    interpolated as rotation vectors from the pose before.
    """
    count = len(camera.turns)
    if not count:
        return np.tile(np.eye(3), (frames, 1, 1)), np.zeros((frames, 3))
    turns: Float64 = camera.turns * np.float64(2.0**-camera.turn_bits)
    moves: Float64 = camera.moves * np.float64(2.0**-camera.move_bits)
    rotations, positions = np.empty((count + 1, 3, 3)), np.zeros((count + 1, 3))
    rotations[0] = np.eye(3)
    for k, step in enumerate(rotation(turns)):
        rotations[k + 1] = step @ rotations[k]
        positions[k + 1] = positions[k] + moves[k] @ rotations[k]
    return resampled(rotations, positions, turns, frames)


def resampled(
    rotations: Float64, positions: Float64, turns: Float64, frames: int
) -> tuple[Float64, Float64]:
    """`frames` poses at even times, first to last, from N + 1 such poses and the N turns between.

    N >= 1; see `poses` for the spline.
    """
    count = len(turns)
    time = np.arange(frames) * (count / max(1, frames - 1))
    k = np.minimum(time.astype(np.int64), count - 1)
    u = (time - k)[:, None]
    ahead, start, stop = (3 - 2 * u) * u * u, u * (1 - u) ** 2, u * u * (u - 1)

    def curve(steps: Float64) -> Float64:
        slope = _slopes(steps)
        result: Float64 = ahead * steps[k] + start * slope[k] + stop * slope[k + 1]
        return result

    return rotation(curve(turns)) @ rotations[k], positions[k] + curve(np.diff(positions, axis=0))


def _slopes(steps: Float64) -> Float64:
    """Slopes [N + 1, 3] at the poses, per interval, of the cubic spline with steps [N, 3]."""
    count = len(steps)
    if count == 1:
        return steps[[0, 0]]
    known: Float64 = np.concatenate((2 * steps[:1], 3 * (steps[:-1] + steps[1:]), 2 * steps[-1:]))
    form = np.eye(count + 1) * 4 + np.eye(count + 1, k=1) + np.eye(count + 1, k=-1)
    form[0, 0] = form[-1, -1] = 1
    return np.asarray(np.linalg.solve(form, known), np.float64)


def to_tum(camera: Camera, frames: int, times: npt.ArrayLike) -> str:
    """The path as TUM text, a line for each frame: time in seconds, position, quaternion x y z w.

    Positions and quaternions say how a camera's coordinates become the world's.
    """
    rotations, positions = poses(camera, frames)
    x, y = (0.5 + part / UNITS for part in camera.centre)
    lines = [
        f"# focal {camera.focal / UNITS:.6f} of the width; principal point {x:.6f} of the width,"
        f" {y - 0.5:+.6f} of the width from the middle of the height",
        "# time tx ty tz qx qy qz qw",
    ]
    for time, matrix, position in zip(np.asarray(times), rotations, positions, strict=True):
        numbers = (*position, *_quaternion(matrix.T))
        lines.append(f"{time:.6f} " + " ".join(f"{value + 0.0:.9f}" for value in numbers))
    return "\n".join(lines) + "\n"


def _quaternion(matrix: Float64) -> Float64:
    """Unit quaternion x, y, z, w >= 0 of a rotation: an eigenvector (Bar-Itzhack 2000)."""
    (a, b, c), (d, e, f), (g, h, i) = matrix
    form = np.array(
        [
            [a - e - i, d + b, g + c, h - f],
            [d + b, e - a - i, h + f, c - g],
            [g + c, h + f, i - a - e, d - b],
            [h - f, c - g, d - b, a + e + i],
        ]
    )
    vector: Float64 = np.linalg.eigh(form)[1][:, -1]
    return vector if vector[3] >= 0 else -vector
