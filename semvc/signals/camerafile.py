"""Camera paths that a user brings: TUM, RealEstate10K and COLMAP text, and npz.

Whatever the file's convention, what comes back is world-to-camera rotations and positions with one
pose for each frame, axes right, down, forward, the first frame as the world.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from semvc.errors import UsageError

Float64 = npt.NDArray[np.float64]

MAX_BYTES = 64 << 20
_USUAL_FOCAL = 0.9  # picture widths: where the file says nothing
_TUM, _REALESTATE = 8, 19  # numbers in a line
_COLMAP = 10  # words in a line of images.txt


@dataclass(frozen=True, slots=True)
class CameraFile:
    """`rotations` float64 [T, 3, 3] world to camera, `positions` [T, 3] in the file's unit.

    `focal` is in picture widths, `centre` the principal point as fractions of width and height.
    """

    rotations: Float64
    positions: Float64
    focal: float
    centre: tuple[float, float] = (0.5, 0.5)


def read_camera(path: Path) -> CameraFile:
    """Read a camera path; the format is seen from the content.

    TUM: `time tx ty tz qx qy qz qw`, camera to world; a comment `# focal F of the width` gives the
    focal length. RealEstate10K: `time fx fy cx cy 0 0` and 3 x 4 numbers, world to camera. COLMAP:
    images.txt, in the order of image names, beside cameras.txt. npz: `poses` [T, 3 or 4, 4] camera
    to world, and `focal` in picture widths if it is there. Raises UsageError for anything else.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} has more than {MAX_BYTES} bytes: that is no camera path")
        with path.open("rb") as file:
            packed = file.read(2) == b"PK"
        found = _npz(path) if packed else _text(path)
    except (OSError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    except (ValueError, KeyError, IndexError) as error:
        raise UsageError(f"{path} is no camera path that is understood: {error}") from error
    return _relative(found, path)


def _relative(found: CameraFile, path: Path) -> CameraFile:
    rotations, positions = found.rotations, found.positions
    if not len(rotations) or not (np.isfinite(rotations).all() and np.isfinite(positions).all()):
        raise UsageError(f"{path} holds no poses, or some that are not finite")
    # the nearest rotation, so that rounded numbers do no harm
    u, _, vt = np.linalg.svd(rotations)
    rotations = u @ vt
    if (np.linalg.det(rotations) < 0).any():
        raise UsageError(f"{path} holds a mirrored pose: axes must be right, down, forward")
    first = rotations[0]
    return CameraFile(
        rotations @ first.T, (positions - positions[0]) @ first.T, found.focal, found.centre
    )


def _npz(path: Path) -> CameraFile:
    with np.load(path, allow_pickle=False) as arrays:
        poses = np.asarray(arrays["poses"], np.float64)
        focal = float(arrays["focal"]) if "focal" in arrays else _USUAL_FOCAL
    if poses.ndim != 3 or poses.shape[1] not in (3, 4) or poses.shape[2] != 4:
        raise ValueError(f"poses of shape {poses.shape}")
    return CameraFile(np.swapaxes(poses[:, :3, :3], 1, 2), poses[:, :3, 3], focal)


def _text(path: Path) -> CameraFile:
    text = path.read_text("utf-8")
    lines = [line.split() for line in text.splitlines() if line.strip()]
    said = re.search(r"focal\s+([\d.]+)", text)
    focal = float(said[1]) if said else _USUAL_FOCAL
    rows = [line for line in lines if not line[0].startswith("#")]
    if rows and rows[0][0].startswith("http"):
        rows = rows[1:]
    if rows and len(rows[0]) == _REALESTATE:
        numbers = np.array(rows, np.float64)
        pose = numbers[:, 7:].reshape(-1, 3, 4)
        positions = -np.einsum("tji,tj->ti", pose[:, :, :3], pose[:, :, 3])
        middle = (float(numbers[0, 3]), float(numbers[0, 4]))
        return CameraFile(pose[:, :, :3], positions, float(numbers[0, 1]), middle)
    if rows and len(rows[0]) == _TUM:
        numbers = np.array(rows, np.float64)
        to_world = _from_quaternions(numbers[:, 4:])
        return CameraFile(np.swapaxes(to_world, 1, 2), numbers[:, 1:4], focal)
    return _colmap(path, [line.split() for line in text.splitlines() if line[:1] != "#"])


def _colmap(path: Path, lines: list[list[str]]) -> CameraFile:
    """images.txt: two lines for each image, the second (its points) maybe empty."""
    images = sorted((row for row in lines[0::2] if len(row) == _COLMAP), key=lambda row: row[9])
    if not images:
        raise ValueError("lines have another number of words")
    numbers = np.array([row[1:8] for row in images], np.float64)
    rotations = _from_quaternions(numbers[:, [1, 2, 3, 0]])
    positions = -np.einsum("tji,tj->ti", rotations, numbers[:, 4:])
    focal, centre = _USUAL_FOCAL, (0.5, 0.5)
    beside = path.with_name("cameras.txt")
    if beside.is_file():
        rows = [row.split() for row in beside.read_text("utf-8").splitlines() if row[:1] != "#"]
        row = next(row for row in rows if row[0] == images[0][8])
        width, height = float(row[2]), float(row[3])
        values = [float(word) for word in row[4:]]
        two = row[1] in ("PINHOLE", "OPENCV", "FULL_OPENCV", "OPENCV_FISHEYE")
        focal = values[0] / width
        centre = (values[1 + two] / width, values[2 + two] / height)
    return CameraFile(rotations, positions, focal, centre)


def _from_quaternions(quaternions: Float64) -> Float64:
    """Rotation matrices [T, 3, 3] of quaternions x, y, z, w, which need not have unit length."""
    norm = np.linalg.norm(quaternions, axis=1, keepdims=True)
    if (norm < 1e-9).any():
        raise ValueError("a quaternion is zero")
    x, y, z, w = (quaternions / norm).T
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return np.moveaxis(np.array(rows), 2, 0)
