"""Camera paths from files of other programs: TUM, COLMAP text, RealEstate10K text and npz.

- TUM: lines `time tx ty tz qx qy qz qw`, camera to world.
- COLMAP: `images.txt` with `cameras.txt` beside it; images in order of name, world to camera.
- RealEstate10K: an address, then lines `time fx fy cx cy 0 0 r11 .. t3`, world to camera, with
  intrinsics as fractions of width and height.
- npz: `rotations` [T, 3, 3] and `translations` [T, 3], world to camera, or `poses` [T, 3 or 4, 4],
  camera to world; optional `focal`, in picture widths.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semvc.analysis.camera import PRIOR
from semvc.analysis.types import MOVING, STATIC, TURNING, CameraPath, Float64
from semvc.errors import UsageError

_MAX_BYTES = 64 << 20
_STILL = 1e-9


@dataclass(frozen=True, slots=True)
class _Poses:
    """World to camera, and the focal length in picture widths if the file says it."""

    rotations: Float64
    translations: Float64
    focal: float | None = None
    centre: tuple[float, float] = (0.5, 0.5)


def read_path(file: Path, start: int, count: int, size: tuple[int, int]) -> CameraPath:
    """Return poses `start` to `start + count` of a file, relative to the first of them.

    `size` is the frames' (width, height). Lengths stay in the file's unit. Raises UsageError for a
    file that cannot be read, is of no known kind or holds too few poses.
    """
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise UsageError(f"camera file {file} is larger than {_MAX_BYTES >> 20} MiB")
        poses = _read(file, size)
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"cannot read camera file {file}: {error}; "
            "give text as of TUM, COLMAP or RealEstate10K, or npz"
        ) from error
    have = len(poses.rotations)
    if have < start + count:
        raise UsageError(
            f"camera file {file} has {have} poses; frame {start + count - 1} needs one"
        )
    rotations = _orthonormal(poses.rotations[start : start + count], file)
    translations = poses.translations[start : start + count]
    first, origin = rotations[0], translations[0]
    rotations = rotations @ first.T
    translations = translations - rotations @ origin
    kind = MOVING
    if np.abs(translations).max() <= _STILL:
        kind = STATIC if np.abs(rotations - np.eye(3)).max() <= _STILL else TURNING
    focal = poses.focal or PRIOR[0] * max(size) / size[0]
    try:
        return CameraPath(rotations, translations, focal, poses.centre, kind, 1.0, "file")
    except ValueError as error:
        raise UsageError(f"camera file {file}: {error}") from error


def _read(file: Path, size: tuple[int, int]) -> _Poses:
    if file.suffix == ".npz":
        return _read_npz(file)
    if file.is_dir():
        file = file / "images.txt"
    lines = [line.split() for line in file.read_text("utf-8").splitlines()]
    if file.name == "images.txt":
        return _read_colmap(file, size)
    rows = [line for line in lines if line and not line[0].startswith("#")]
    if rows and len(rows[0]) == 1 and len(rows[0][0]) and len(rows) > 1 and len(rows[1]) == 19:
        rows = rows[1:]  # the address of the video
    widths = {len(row) for row in rows}
    if widths == {19}:
        return _read_realestate(rows)
    if widths == {8}:
        return _read_tum(rows)
    raise ValueError(f"lines hold {sorted(widths)} numbers, not 8 (TUM) or 19 (RealEstate10K)")


def _read_npz(file: Path) -> _Poses:
    with np.load(file, allow_pickle=False) as data:
        focal = float(data["focal"]) if "focal" in data else None
        if "poses" not in data:
            rotations = np.asarray(data["rotations"], np.float64)
            return _Poses(rotations, np.asarray(data["translations"], np.float64), focal)
        poses = np.asarray(data["poses"], np.float64)
    if poses.ndim != 3 or poses.shape[1] not in (3, 4) or poses.shape[2] != 4:
        raise ValueError(f"poses are {poses.shape}, not [T, 3 or 4, 4]")
    rotations = np.swapaxes(poses[:, :3, :3], 1, 2)
    return _Poses(rotations, -np.einsum("tij,tj->ti", rotations, poses[:, :3, 3]), focal)


def _read_tum(rows: list[list[str]]) -> _Poses:
    table = np.array(rows, np.float64)
    rotations = np.swapaxes(_from_quaternions(table[:, 4:8]), 1, 2)
    return _Poses(rotations, -np.einsum("tij,tj->ti", rotations, table[:, 1:4]))


def _read_realestate(rows: list[list[str]]) -> _Poses:
    table = np.array(rows, np.float64)
    matrices = table[:, 7:].reshape(-1, 3, 4)
    centre = (float(table[0, 3]), float(table[0, 4]))
    return _Poses(matrices[:, :, :3], matrices[:, :, 3], float(table[0, 1]), centre)


def _read_colmap(file: Path, size: tuple[int, int]) -> _Poses:
    lines = [line for line in file.read_text("utf-8").splitlines() if not line.startswith("#")]
    heads = sorted((line.split() for line in lines[::2] if line.strip()), key=lambda row: row[9])
    table = np.array([row[1:8] for row in heads], np.float64)
    rotations = _from_quaternions(table[:, [1, 2, 3, 0]])
    for line in (file.parent / "cameras.txt").read_text("utf-8").splitlines():
        words = line.split()
        if words and words[0] == heads[0][8]:
            width, focal = float(words[2]), float(words[4])
            pinhole = words[1] in ("PINHOLE", "OPENCV", "FULL_OPENCV", "OPENCV_FISHEYE")
            cx, cy = (float(word) for word in words[6 - (not pinhole) :][:2])
            centre = (cx / width, cy / float(words[3]))
            return _Poses(rotations, table[:, 4:], focal / width, centre)
    raise ValueError(f"cameras.txt has no camera {heads[0][8]}")


def _from_quaternions(q: Float64) -> Float64:
    """Rotation matrices [T, 3, 3] of quaternions [T, 4] as (x, y, z, w)."""
    length = np.linalg.norm(q, axis=1, keepdims=True)
    if not (length > 1e-6).all():
        raise ValueError("a quaternion is zero")
    x, y, z, w = (q / length).T
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return np.asarray(np.moveaxis(np.array(rows), 2, 0))


def _orthonormal(rotations: Float64, file: Path) -> Float64:
    """The nearest rotations; raises UsageError if a matrix is far from being one."""
    if rotations.ndim != 3 or rotations.shape[1:] != (3, 3) or not np.isfinite(rotations).all():
        raise UsageError(f"camera file {file}: rotations must be finite, [T, 3, 3]")
    u, _, v = np.linalg.svd(rotations)
    near = u @ v
    if np.abs(near - rotations).max() > 0.02 or (np.linalg.det(near) < 0).any():
        raise UsageError(f"camera file {file}: a pose holds no rotation")
    return np.asarray(near)
