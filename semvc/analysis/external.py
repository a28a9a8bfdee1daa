"""Camera paths and masks from files: of other programs, and of this one's `dump`.

- TUM: lines `time tx ty tz qx qy qz qw`, camera to world. The line `# focal F of the width;
  principal point X of the width, Y of the width from the middle of the height` is understood.
- COLMAP: `images.txt` with `cameras.txt` beside it; images in order of name, world to camera.
- RealEstate10K: an address, then lines `time fx fy cx cy 0 0 r11 .. t3`, world to camera, with
  intrinsics as fractions of width and height.
- npz: `rotations` [T, 3, 3] and `translations` [T, 3], world to camera, or `poses` [T, 3 or 4, 4],
  camera to world; optional `focal`, in picture widths.
- A folder that `dump` wrote: `NNNNN-camera.txt` for each segment, TUM; `info.json` says where each
  begins.
- Masks: PNG files, see `MaskFolder`.
"""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semvc.analysis.camera import PRIOR
from semvc.analysis.types import (
    MAX_OBJECTS,
    MOVING,
    STATIC,
    TURNING,
    CameraPath,
    Float64,
    Int64,
    UInt8,
)
from semvc.errors import UsageError
from semvc.media.files import read_png

_MAX_BYTES = 64 << 20
_STILL = 1e-9
_FOCAL = re.compile(
    r"#\s*focal (\S+) of the width"
    r"(?:; principal point (\S+) of the width, (\S+) of the width from the middle)?"
)
_DUMPED = re.compile(r"(\d+)-(mask|keyframe|depth)-(\d+)\.png")


@dataclass(frozen=True, slots=True)
class _Poses:
    """World to camera, and the focal length in picture widths if the file says it."""

    rotations: Float64
    translations: Float64
    focal: float | None = None
    centre: tuple[float, float] = (0.5, 0.5)


def segment_file(folder: Path, start: int, count: int) -> tuple[Path, int] | None:
    """The file of a dump that has the camera of `count` frames from `start` on, and where there.

    None if those frames lie in a segment without a camera. Raises UsageError if they lie in more
    than one segment, whose paths have nothing in common, or beyond the last.
    """
    for index, (first, frames) in enumerate(_segments(folder)):
        if first <= start < first + frames:
            if start + count > first + frames:
                raise UsageError(
                    f"frames {start} to {start + count - 1} lie in more than one segment of"
                    f" {folder}: encode with the segments that were dumped"
                )
            file = folder / f"{index:05d}-camera.txt"
            return (file, start - first) if file.exists() else None
    raise UsageError(f"{folder} has no segment with frame {start}")


def _segments(folder: Path) -> list[tuple[int, int]]:
    """First frame and number of frames of each segment of a dump."""
    try:
        rows = json.loads((folder / "info.json").read_text("utf-8"))["table"]
        return [(int(row["start"]), int(row["frames"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"cannot read {folder / 'info.json'}, which says where segments begin: {error}"
        ) from error


def read_path(file: Path, start: int, count: int, size: tuple[int, int]) -> CameraPath:
    """Return poses `start` to `start + count` of a file, relative to the first of them.

    `size` is the frames' (width, height). Lengths stay in the file's unit. Raises UsageError for a
    file that cannot be read, is of no known kind or holds too few poses, and for a dump's segment
    without a camera.
    """
    if file.is_dir() and not (file / "images.txt").exists():
        found = segment_file(file, start, count)
        if found is None:
            raise UsageError(f"{file} has no camera for frame {start}")
        file, start = found
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise UsageError(f"camera file {file} is larger than {_MAX_BYTES >> 20} MiB")
        poses = _read(file, size)
    except (
        *(OSError, ValueError, TypeError, KeyError, IndexError),
        *(ZeroDivisionError, zipfile.BadZipFile),
    ) as error:
        raise UsageError(
            f"cannot read camera file {file}: {error}; "
            "give text as of TUM, COLMAP or RealEstate10K, or npz"
        ) from error
    have = len(poses.rotations)
    if have < start + count:
        raise UsageError(
            f"camera file {file} has {have} poses; frame {start + count - 1} needs one"
        )
    if poses.translations.shape != (have, 3):
        raise UsageError(f"camera file {file}: translations are not [{have}, 3]")
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


class MaskFolder:
    """PNG files of a folder, one for each frame in the order of their names.

    Black is background, every other color an object; the first in order of color is number 1. All
    files may be grey, as `dump` writes them, or colored, as annotation tools do. In a folder that
    `dump` wrote, masks are for the frames that their names say; other frames have no objects.
    Raises UsageError for a folder without PNG files, or with too many colors.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder of mask PNG files")
        self._folder = folder
        self._dumped = any(_DUMPED.fullmatch(path.name) for path in folder.glob("*.png"))
        self._paths = self._by_segment() if self._dumped else self._by_name()
        if not self._paths:
            raise UsageError(f"{folder} has no mask PNG files")
        colors: set[int] = set()
        for path in self._paths.values():
            colors.update(np.unique(_colors(path)).tolist())
        self._colors = sorted(colors - {0})
        if len(self._colors) > MAX_OBJECTS:
            raise UsageError(
                f"the masks in {folder} have {len(self._colors)} colors besides black, at most"
                f" {MAX_OBJECTS} objects are possible"
            )

    def read(self, start: int, count: int, size: tuple[int, ...]) -> UInt8:
        """Numbers of objects in some frames, uint8 [count, height, width].

        Raises UsageError if masks are missing or of another size than `size` (height, width).
        """
        if not self._dumped and len(self._paths) < start + count:
            raise UsageError(
                f"{self._folder} has {len(self._paths)} masks, and the video at least"
                f" {start + count} frames: it needs one for each"
            )
        ids = np.zeros((count, *size), np.uint8)
        for t in range(count):
            if start + t not in self._paths:
                continue
            path = self._paths[start + t]
            found = _colors(path)
            if found.shape != tuple(size):
                raise UsageError(
                    f"{path} is {found.shape[1]}x{found.shape[0]}, the video {size[1]}x{size[0]}"
                )
            for number, color in enumerate(self._colors, 1):
                ids[t][found == color] = number
        return ids

    def _by_name(self) -> dict[int, Path]:
        return dict(enumerate(sorted(self._folder.glob("*.png"))))

    def _by_segment(self) -> dict[int, Path]:
        starts = [first for first, _ in _segments(self._folder)]
        paths = {}
        for path in self._folder.glob("*-mask-*.png"):
            named = _DUMPED.fullmatch(path.name)
            if named is not None and int(named[1]) < len(starts):
                paths[starts[int(named[1])] + int(named[3])] = path
        return paths


def _colors(path: Path) -> Int64:
    """A PNG's colors as numbers [H, W]."""
    channels = read_png(path).astype(np.int64)
    found: Int64 = channels @ np.array([1 << 16, 1 << 8, 1])
    return found


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
        heads = (_FOCAL.match(" ".join(line)) for line in lines)
        return _read_tum(rows, next((head for head in heads if head), None), size)
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


def _read_tum(rows: list[list[str]], head: re.Match[str] | None, size: tuple[int, int]) -> _Poses:
    table = np.array(rows, np.float64)
    rotations = np.swapaxes(_from_quaternions(table[:, 4:8]), 1, 2)
    translations = -np.einsum("tij,tj->ti", rotations, table[:, 1:4])
    if head is None:
        return _Poses(rotations, translations)
    centre = (0.5, 0.5)
    if head[2] is not None:
        centre = (float(head[2]), 0.5 + float(head[3]) * size[0] / size[1])
    return _Poses(rotations, translations, float(head[1]), centre)


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
