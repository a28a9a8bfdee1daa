"""Caches packed into pieces and unpacked again."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from cache import write_cache

from semvc.errors import UsageError
from semvc.train import losses, packing
from semvc.train.data import FIELDS, Cache
from semvc.train.packing import Packing


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("packed") / "cache", shards=4)


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return {n: np.load(folder / f"{n}.npy") for n in FIELDS}


def as_video(frames: np.ndarray) -> np.ndarray:
    """Frames [..., H, W, 3] as 8-bit 4:2:0 video shows them, rounded to RGB codes."""
    flat = torch.from_numpy(frames.reshape(-1, *frames.shape[-3:])).permute(0, 3, 1, 2)
    shown = losses.displayed(flat.float() / 127.5 - 1)
    codes = ((shown + 1) * 127.5).round().clamp(0, 255).byte()
    return codes.permute(0, 2, 3, 1).numpy().reshape(frames.shape)


def test_without_loss_frames_come_back_as_8_bit_video_shows_them(
    cache: Path, tmp_path: Path
) -> None:
    pieces = packing.pack([cache], tmp_path / "pieces", Packing(crf=0))
    assert packing.unpack(pieces, tmp_path / "out") == 4
    for number in range(4):
        before = arrays(cache / f"{number:05d}")
        after = arrays(tmp_path / "out" / f"00-{number:05d}")
        for name in ("source", "arrivals"):
            assert np.array_equal(after[name], as_video(before[name])), name
        for name in set(FIELDS) - {"source", "arrivals"}:
            assert np.array_equal(after[name], before[name]), name
            assert after[name].dtype == before[name].dtype, name


def test_with_loss_frames_stay_close_and_pieces_small(cache: Path, tmp_path: Path) -> None:
    sizes = {}
    for crf in (0, 20):
        pieces = packing.pack([cache], tmp_path / f"p{crf}", Packing(crf=crf))
        sizes[crf] = sum(p.stat().st_size for p in pieces)
        packing.unpack(pieces, tmp_path / f"c{crf}")
    assert sizes[20] < sizes[0]
    exact, rough = (np.load(tmp_path / f"c{c}" / "00-00000" / "source.npy") for c in (0, 20))
    assert 0 < np.abs(exact.astype(int) - rough).mean() < 8


def test_the_trainer_reads_what_was_unpacked(cache: Path, tmp_path: Path) -> None:
    packing.unpack(packing.pack([cache], tmp_path / "p", Packing()), tmp_path / "c")
    batch = Cache([tmp_path / "c"]).batch(2, unroll=3, crop=32, key=(1, 0))
    plain = Cache([cache]).batch(2, unroll=3, crop=32, key=(1, 0))
    for a, b in zip(batch.true, plain.true, strict=True):
        assert float((a.mean((2, 3)) - b.mean((2, 3))).abs().max()) < 0.2


def test_no_piece_is_larger_than_asked_for(cache: Path, tmp_path: Path) -> None:
    (whole,) = packing.pack([cache], tmp_path / "one", Packing())
    limit = whole.stat().st_size / 2.5
    pieces = packing.pack([cache], tmp_path / "more", Packing(megabytes=limit / 1e6))
    assert len(pieces) >= 3
    assert max(p.stat().st_size for p in pieces) <= limit
    assert packing.unpack(pieces, tmp_path / "out") == 4


def test_a_shard_too_large_for_a_piece_is_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="make pieces larger"):
        packing.pack([cache], tmp_path / "p", Packing(megabytes=0.001))


def test_caches_of_the_same_name_stay_apart(cache: Path, tmp_path: Path) -> None:
    pieces = packing.pack([cache, cache], tmp_path / "p", Packing())
    assert packing.unpack(pieces, tmp_path / "c") == 8


def test_shards_that_are_there_stay(cache: Path, tmp_path: Path) -> None:
    pieces = packing.pack([cache], tmp_path / "p", Packing())
    packing.unpack(pieces, tmp_path / "c")
    (tmp_path / "c" / "00-00001" / "figure.npy").unlink()  # as if interrupted
    assert packing.unpack(pieces, tmp_path / "c") == 1


def test_opencv_unpacks_as_pyav_does(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = packing.pack([cache], tmp_path / "p", Packing())
    packing.unpack(pieces, tmp_path / "av")
    monkeypatch.setitem(sys.modules, "av", None)
    packing.unpack(pieces, tmp_path / "cv")
    for name in ("source", "arrivals"):
        a, b = (np.load(tmp_path / w / "00-00002" / f"{name}.npy") for w in ("av", "cv"))
        assert np.array_equal(a, b), name


def test_without_any_decoder_unpacking_says_what_to_install(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = packing.pack([cache], tmp_path / "p", Packing())
    for name in ("av", "cv2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="pip install av"):
        packing.unpack(pieces, tmp_path / "c")


@pytest.mark.parametrize("name", ["../outside", "a/../../b", "/root", ".."])
def test_a_piece_cannot_write_outside_its_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in ("source.mkv", "arrivals.mkv", "rest.npz"):
            archive.writestr(f"{name}/{file}", b"")
    with pytest.raises(UsageError, match="not a piece"):
        packing.unpack([path], tmp_path / "c")


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_a_file_that_is_no_piece_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.zip"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not a piece"):
        packing.unpack([path], tmp_path / "c")


@pytest.mark.parametrize("given", [{"megabytes": 0}, {"crf": -1}, {"crf": 52}])
def test_packings_out_of_range_are_refused(given: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Packing(**given)


def test_an_empty_cache_cannot_be_packed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, message in (("empty", "no training data"), ("none", "no folder")):
        with pytest.raises(UsageError, match=message):
            packing.pack([tmp_path / folder], tmp_path / "p", Packing())
