"""Camera paths and masks that users bring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scene import Scene

from semvc.analysis.external import read_path
from semvc.analysis.masks import read_masks
from semvc.errors import UsageError

SIZE = (96, 64)
SCENE = Scene(*SIZE, 12, pan=0.4, dolly=0.8, shake=0.05)


def truth() -> tuple[Any, Any]:
    inverse = np.linalg.inv(SCENE.poses())
    return inverse[:, :3, :3], inverse[:, :3, 3]


def quaternion(rotation: Any) -> Any:
    """(x, y, z, w) of a rotation by less than half a turn."""
    w = np.sqrt(max(0.0, 1 + np.trace(rotation))) / 2
    x = (rotation[2, 1] - rotation[1, 2]) / (4 * w)
    y = (rotation[0, 2] - rotation[2, 0]) / (4 * w)
    z = (rotation[1, 0] - rotation[0, 1]) / (4 * w)
    return np.array([x, y, z, w])


def as_tum(folder: Path) -> Path:
    lines = ["# time tx ty tz qx qy qz qw"]
    for t, pose in enumerate(SCENE.poses()):
        numbers = [t / 24, *pose[:3, 3], *quaternion(pose[:3, :3])]
        lines.append(" ".join(f"{n:.9f}" for n in numbers))
    file = folder / "path.txt"
    file.write_text("\n".join(lines))
    return file


def as_realestate(folder: Path) -> Path:
    lines = ["https://example.org/video"]
    for rotation, translation in zip(*truth(), strict=True):
        matrix = np.concatenate((rotation, translation[:, None]), 1)
        numbers = [0.9, 0.9 * SIZE[0] / SIZE[1], 0.5, 0.5, 0, 0, *matrix.ravel()]
        lines.append("1000 " + " ".join(f"{n:.9f}" for n in numbers))
    file = folder / "path.txt"
    file.write_text("\n".join(lines))
    return file


def as_colmap(folder: Path) -> Path:
    lines = ["# images"]
    for t, (rotation, translation) in enumerate(zip(*truth(), strict=True)):
        x, y, z, w = quaternion(rotation)
        numbers = " ".join(f"{n:.9f}" for n in (w, x, y, z, *translation))
        lines += [f"{40 - t} {numbers} 7 frame{t:03d}.png", "1.0 2.0 -1"]
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    (folder / "cameras.txt").write_text(
        f"# cameras\n7 SIMPLE_RADIAL {SIZE[0]} {SIZE[1]} {0.9 * SIZE[0]} 48 32 0.01\n"
    )
    return folder / "images.txt"


def as_npz(folder: Path) -> Path:
    np.savez(folder / "path.npz", poses=SCENE.poses(), focal=0.9)
    return folder / "path.npz"


@pytest.mark.parametrize("write", [as_tum, as_realestate, as_colmap, as_npz])
def test_every_kind_of_file_gives_the_same_path(write: Any, tmp_path: Path) -> None:
    path = read_path(write(tmp_path), 0, 12, SIZE)
    rotations, translations = truth()
    assert np.abs(path.rotations - rotations).max() < 1e-6
    assert np.abs(path.translations - translations).max() < 1e-6
    assert path.focal == pytest.approx(0.9)
    assert path.centre == pytest.approx((0.5, 0.5))
    assert (path.kind, path.method, path.confidence) == ("moving", "file", 1.0)


def test_a_later_segment_is_relative_to_its_first_frame(tmp_path: Path) -> None:
    path = read_path(as_npz(tmp_path), 4, 8, SIZE)
    assert np.allclose(path.rotations[0], np.eye(3))
    assert np.allclose(path.translations[0], 0)
    places = SCENE.poses()[4:, :3, 3] - SCENE.poses()[4, :3, 3]
    assert np.allclose(path.positions() @ SCENE.poses()[4, :3, :3].T, places)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"1 2 3\n4 5 6\n", "TUM"),
        ("a.txt", b"", "TUM"),
        ("a.txt", b"0 0 0 0 0 0 0 0\n" * 12, "quaternion"),
        ("a.txt", b"0 nan 0 0 0 0 0 1\n" * 12, "finite"),
        ("a.txt", b"0 0 0 0 0 0 0 1\n" * 11, "has 11 poses"),
        ("a.txt", b"\xff\xfe", "cannot read"),
        ("a.npz", b"not a zip file", "cannot read"),
        ("images.txt", b"1 1 0 0 0 0 0 0 1 a.png\n\n", "cannot read"),
    ],
)
def test_unusable_files_are_refused(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        read_path(file, 0, 12, SIZE)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_path(tmp_path / "none.txt", 0, 1, SIZE)


def test_a_matrix_that_is_no_rotation_is_refused(tmp_path: Path) -> None:
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[1, 0, 0] = -1
    np.savez(tmp_path / "a.npz", poses=poses)
    with pytest.raises(UsageError, match="no rotation"):
        read_path(tmp_path / "a.npz", 0, 3, SIZE)


def test_masks_are_read_in_order_of_name(tmp_path: Path) -> None:
    for t in range(3):
        layer = np.zeros((6, 8), np.uint8)
        layer[t] = (2, 8, 255)[t]
        cv2.imwrite(str(tmp_path / f"m{t}.png"), layer)
    masks = read_masks(tmp_path, (2, 6, 8), start=1)
    assert masks.ids[0, 1].tolist() == [8] * 8
    assert masks.ids[1, 2].tolist() == [1] * 8
    assert masks.ids.sum() == 8 * 9


@pytest.mark.parametrize(("shape", "value"), [((6, 9), 1), ((6, 8), 9)])
def test_masks_of_another_size_or_id_are_refused(
    shape: tuple[int, int], value: int, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "m.png"), np.full(shape, value, np.uint8))
    with pytest.raises(UsageError, match="mask"):
        read_masks(tmp_path, (1, 6, 8))


def test_too_few_masks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 PNG masks"):
        read_masks(tmp_path, (1, 6, 8))
