"""Camera paths and masks that users bring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scene import Scene

from semvc.analysis.external import MaskFolder, read_path, segment_file
from semvc.errors import UsageError
from semvc.media.files import write_png
from semvc.signals.camera import UNITS, Camera, poses, to_tum

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


@pytest.mark.parametrize(
    "arrays",
    [
        {"focal": np.ones(2)},
        {"focal": np.array("wide")},
        {"translations": np.zeros((12, 2))},
        {"translations": np.zeros((11, 3))},
        {"rotations": np.ones(3)},
    ],
)
def test_arrays_of_other_shapes_are_refused(arrays: dict[str, Any], tmp_path: Path) -> None:
    whole = {"rotations": np.tile(np.eye(3), (12, 1, 1)), "translations": np.zeros((12, 3))}
    np.savez(tmp_path / "a.npz", **{**whole, **arrays})
    with pytest.raises(UsageError, match=r"a\.npz"):
        read_path(tmp_path / "a.npz", 0, 12, SIZE)


def test_a_camera_of_no_width_is_refused(tmp_path: Path) -> None:
    file = as_colmap(tmp_path)
    (tmp_path / "cameras.txt").write_text("7 SIMPLE_RADIAL 0 48 86 48 32 0.01\n")
    with pytest.raises(UsageError, match="cannot read camera file"):
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


def test_a_tum_comment_gives_focal_length_and_centre(tmp_path: Path) -> None:
    lines = (
        "# focal 0.8 of the width; principal point 0.45 of the width, +0.02 of the width from the"
    )
    (tmp_path / "a.txt").write_text(lines + " middle of the height\n" + "0 0 0 0 0 0 0 1\n" * 3)
    path = read_path(tmp_path / "a.txt", 0, 3, SIZE)
    assert path.focal == pytest.approx(0.8)
    assert path.centre == pytest.approx((0.45, 0.5 + 0.02 * SIZE[0] / SIZE[1]))


def test_a_dumped_path_comes_back(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    steps = random.integers(-300, 300, (2, 5, 3)).astype(np.int32)
    camera = Camera(700, steps[0], steps[1], 14, 12, 1, (20, -30))
    (tmp_path / "a.txt").write_text(to_tum(camera, 11, np.arange(11) / 24))
    path = read_path(tmp_path / "a.txt", 0, 11, SIZE)
    rotations, positions = poses(camera, 11)
    assert np.abs(path.rotations - rotations).max() < 1e-7
    assert np.abs(path.positions() - positions).max() < 1e-7
    assert path.focal == pytest.approx(700 / UNITS, abs=1e-6)
    assert path.centre[0] - 0.5 == pytest.approx(20 / UNITS, abs=1e-6)
    assert (path.centre[1] - 0.5) * SIZE[1] / SIZE[0] == pytest.approx(-30 / UNITS, abs=1e-6)


def dumped(folder: Path) -> Path:
    """A dump of two segments of three frames; the second one has no camera."""
    rows = [{"start": 0, "frames": 3}, {"start": 3, "frames": 3}]
    (folder / "info.json").write_text(json.dumps({"table": rows}))
    lines = [f"0 {t} 0 0 0 0 0 1\n" for t in range(3)]
    (folder / "00000-camera.txt").write_text("# focal 0.7 of the width\n" + "".join(lines))
    for name, value in (
        ("00000-mask-0001", 62),
        ("00001-mask-0002", 31),
        ("00000-keyframe-0000", 9),
    ):
        cv2.imwrite(str(folder / f"{name}.png"), np.full((6, 8), value, np.uint8))
    return folder


def test_a_dump_is_read_by_its_segments(tmp_path: Path) -> None:
    folder = dumped(tmp_path)
    path = read_path(folder, 1, 2, SIZE)
    assert path.focal == pytest.approx(0.7)
    assert path.positions()[:, 0].tolist() == [0, 1]
    assert segment_file(folder, 4, 2) is None
    with pytest.raises(UsageError, match="no camera for frame 3"):
        read_path(folder, 3, 3, SIZE)
    with pytest.raises(UsageError, match="more than one segment"):
        read_path(folder, 2, 2, SIZE)
    with pytest.raises(UsageError, match="no segment with frame 6"):
        read_path(folder, 6, 1, SIZE)
    ids = MaskFolder(folder).read(0, 6, (6, 8))
    assert ids[:, 0, 0].tolist() == [0, 2, 0, 0, 0, 1]


def test_a_dump_without_its_description_is_refused(tmp_path: Path) -> None:
    folder = dumped(tmp_path)
    (folder / "info.json").unlink()
    with pytest.raises(UsageError, match=r"info\.json"):
        read_path(folder, 0, 3, SIZE)
    with pytest.raises(UsageError, match=r"info\.json"):
        MaskFolder(folder)


def test_masks_are_read_in_order_of_name(tmp_path: Path) -> None:
    for t in range(3):
        layer = np.zeros((6, 8), np.uint8)
        layer[t] = (2, 8, 255)[t]
        cv2.imwrite(str(tmp_path / f"m{t}.png"), layer)
    ids = MaskFolder(tmp_path).read(1, 2, (6, 8))
    assert ids[0, 1].tolist() == [2] * 8
    assert ids[1, 2].tolist() == [3] * 8
    assert ids.sum() == 8 * 5


def test_masks_of_any_colors_are_read(tmp_path: Path) -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[0, 0], image[1, 1], image[2, 2] = (128, 0, 0), (0, 128, 0), (0, 0, 1)
    write_png(tmp_path / "b.png", image)
    write_png(tmp_path / "a.png", image * 0)
    ids = MaskFolder(tmp_path).read(0, 2, (4, 6))
    assert not ids[0].any() and (ids[1, 2, 2], ids[1, 1, 1], ids[1, 0, 0]) == (1, 2, 3)
    write_png(tmp_path / "c.png", np.arange(24, dtype=np.uint8).reshape(4, 6))
    with pytest.raises(UsageError, match="at most 8 objects"):
        MaskFolder(tmp_path)


def test_masks_of_another_size_or_too_few_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no mask PNG files"):
        MaskFolder(tmp_path)
    cv2.imwrite(str(tmp_path / "m.png"), np.full((6, 9), 1, np.uint8))
    with pytest.raises(UsageError, match="is 9x6, the video 8x6"):
        MaskFolder(tmp_path).read(0, 1, (6, 8))
    with pytest.raises(UsageError, match="has 1 masks"):
        MaskFolder(tmp_path).read(0, 2, (6, 9))
