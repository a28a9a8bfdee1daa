"""Sequences for training: clips, photographs set in motion, their cache."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from s2vc_training import write_training
from torch import Tensor

from semvc.errors import UsageError
from semvc.train import prepare_sequences, sequences, stills
from semvc.train.prepare_sequences import Settings
from semvc.train.sequences import Sequences


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training(tmp_path_factory.mktemp("s2vc"))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(9)
        yield


# Sequences


def test_a_batch_of_sequences_depends_on_its_key_alone(shared: Path) -> None:
    def batch(step: int) -> Tensor:
        given = Sequences([shared / "cache"])
        return given.batch(4, frames=3, crop=64, photos=0.5, key=(1, step)).frames()

    assert torch.equal(batch(0), batch(0))
    assert not torch.equal(batch(0), batch(1))
    assert batch(0).shape == (4, 3, 3, 64, 64)
    assert float(batch(0).abs().max()) <= 1


def test_the_share_of_photographs_is_kept(shared: Path) -> None:
    given = Sequences([shared / "cache"])
    assert given.counts == (2, 3)
    assert given.size == (6, 80)
    for share, expected in ((0.0, 0), (1.0, 5)):
        found = given.batch(5, frames=2, crop=64, photos=share, key=(1, 1))
        assert len(found.photos) == expected
        assert len(found.clips) == 5 - expected
    assert 0 <= float(found.quality.min()) <= float(found.quality.max()) <= 63


def test_frames_of_a_clip_follow_each_other(shared: Path) -> None:
    given = Sequences([shared / "cache"])
    for step in range(8):
        found = given.batch(1, frames=3, crop=64, photos=0.0, key=(2, step)).clips[0].int()
        moved = []
        for speed in (1, 2, -1, -2):  # twice as fast, or mirrored
            a, b = (found[0], found[1]) if speed > 0 else (found[1], found[0])
            moved.append(torch.equal(a[:, abs(speed) :], b[:, : -abs(speed)]))
        assert any(moved)


def test_sequences_too_short_or_small_are_named(shared: Path) -> None:
    given = Sequences([shared / "cache"])
    with pytest.raises(UsageError, match="have 6 frames of 80 luma samples"):
        given.batch(1, frames=7, crop=64, photos=0.0, key=(1, 1))
    with pytest.raises(UsageError, match="below 192"):
        given.batch(1, frames=2, crop=192, photos=1.0, key=(1, 1))


def test_an_empty_folder_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="prepare_sequences"):
        Sequences([tmp_path])


def test_a_camera_at_rest_shows_the_photograph(shared: Path) -> None:
    photo = torch.from_numpy(np.load(shared / "cache" / "photos.npy")[:1])
    still = torch.tensor([[[[1.0, 0, 0], [0, 1, 0]]]])
    path = stills.Path(still, still, torch.zeros(1, 1, 5))
    found = stills.render(photo, photo, path, 64)[0, 0]
    middle = photo[0, 48:112, 64:128].permute(2, 0, 1).float()
    inner = (slice(None), slice(2, 62), slice(2, 62))
    sharp = (middle - middle.roll(1, 1)).abs().sum() + 1
    assert (found - middle)[inner].abs().mean() < 0.05 * sharp / middle.numel() + 12


def test_a_camera_that_moves_shifts_the_picture(shared: Path) -> None:
    photo = torch.from_numpy(np.load(shared / "cache" / "photos.npy")[:1])
    matrices = torch.tensor([[[[1.0, 0, dx], [0, 1, dy]] for dx, dy in ((0, 0), (5, -3))]])
    path = stills.Path(matrices, matrices, torch.zeros(1, 2, 5))
    first, second = stills.render(photo, photo, path, 64)[0]
    assert torch.allclose(second[:, 3:, :59], first[:, :61, 5:], atol=0.1)


def test_a_passing_thing_covers_what_is_behind(shared: Path) -> None:
    photos = torch.from_numpy(np.load(shared / "cache" / "photos.npy"))
    still = torch.tensor([[[[1.0, 0, 0], [0, 1, 0]]]])
    mask = torch.tensor([[[10.0, -5.0, 12.0, 8.0, 1.0]]])
    plain = stills.render(photos[:1], photos[1:2], stills.Path(still, still, 0 * mask), 64)
    covered = stills.render(photos[:1], photos[1:2], stills.Path(still, still, mask), 64)
    changed = (plain - covered).abs().amax(2)[0, 0] > 1
    assert changed[31 - 5, 31 + 10]
    assert not changed[:8].any()
    assert not changed[:, :16].any()


def test_videos_and_photographs_become_a_cache(clip: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(clip.read_bytes())
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    for number in range(2):
        Image.fromarray(pixels.repeat(12, 0).repeat(12, 1)).save(folder / f"{number}.jpg")
    settings = Settings(length=8, side=32, seconds=0.4, photo=(48, 64), preset="ultrafast")
    assert prepare_sequences.clips(folder, tmp_path / "out", settings) == 2
    assert prepare_sequences.photos(folder, tmp_path / "out", settings) == 2
    found = Sequences([tmp_path / "out"])
    assert found.counts == (2, 2)
    assert found.size == (8, 32)
    assert np.load(tmp_path / "out" / "photos.npy").shape == (2, 48, 64, 3)
    assert not list((tmp_path / "out").rglob("*.part*"))


def test_opencv_reads_what_pyav_reads(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install opencv-python-headless")
    expected = sequences.read_video(clip).astype(int)
    monkeypatch.setitem(sys.modules, "av", None)
    found = sequences.read_video(clip).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 3
