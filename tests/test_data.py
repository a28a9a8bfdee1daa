"""The training cache as the loop reads it: samples, crops, batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cache import LENGTH, SIDE, write_cache

from semvc.errors import UsageError
from semvc.train import flow
from semvc.train.data import Cache, expand


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cache`."""
    root = tmp_path_factory.mktemp("training")
    write_cache(root / "cache")
    return root


def test_a_cache_counts_the_samples_of_all_shards(shared: Path) -> None:
    assert len(Cache([shared / "cache"])) == 6
    assert len(Cache([shared / "cache", shared / "cache"])) == 12


def test_every_sample_is_found_in_its_shard(shared: Path) -> None:
    cache = Cache([shared / "cache"])
    stored = [np.load(shared / "cache" / f"{n:05d}" / "source.npy") for n in range(2)]
    for index, expected in enumerate(np.concatenate(stored)):
        assert np.array_equal(cache.sample(index)["source"], expected)


def test_a_shard_without_its_last_file_is_left_out(shared: Path, tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", shards=2)
    (tmp_path / "cache" / "00001" / "figure.npy").unlink()
    assert len(Cache([tmp_path / "cache"])) == 3


def test_an_empty_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no training data"):
        Cache([tmp_path])


def test_a_batch_has_the_declared_shapes(shared: Path) -> None:
    batch = Cache([shared / "cache"]).batch(2, unroll=3, crop=32, key=(1, 0))
    assert [t.shape for t in batch.true] == 3 * [(2, 3, 32, 32)]
    for c in batch.conditioning:
        assert c.base.shape == (2, 9, 32, 32)
        assert c.sketch is not None
        assert c.sketch.shape == (2, 1, 8, 8)
        assert c.crf.tolist() == [50, 50]
    assert max(float(t.abs().max()) for t in batch.true) <= 1


def test_a_batch_depends_on_its_key_alone(shared: Path) -> None:
    cache = Cache([shared / "cache"])
    first = cache.batch(2, unroll=2, crop=32, key=(1, 5))
    other = cache.batch(2, unroll=2, crop=32, key=(1, 6))
    again = Cache([shared / "cache"]).batch(2, unroll=2, crop=32, key=(1, 5))
    assert all(torch.equal(a, b) for a, b in zip(first.true, again.true, strict=True))
    assert not torch.equal(first.true[0], other.true[0])


def test_crops_and_flips_of_source_and_base_go_together(shared: Path) -> None:
    cache = Cache([shared / "cache"])
    for step in range(8):
        batch = cache.batch(3, unroll=LENGTH, crop=32, key=(2, step))
        for true, c in zip(batch.true, batch.conditioning, strict=True):
            levels = ((true + 1) * 127.5).round() // 2 + 60  # as the cache was written
            held = ((c.base[:, 3:6] + 1) * 127.5).round()
            assert torch.equal(held, levels)


def test_crops_and_flips_of_source_and_maps_go_together(shared: Path) -> None:
    cache = Cache([shared / "cache"])
    for step in range(8):
        batch = cache.batch(3, unroll=LENGTH, crop=32, key=(2, step))
        for true, c in zip(batch.true, batch.conditioning, strict=True):
            bright = (true[:, :2, ::4, ::4] > 0).float()
            assert c.sketch is not None
            assert c.skeleton is not None
            assert torch.equal(c.sketch, bright[:, :1])
            for skeleton, green in zip(c.skeleton, bright[:, 1:], strict=True):
                assert skeleton.max() == 0 or torch.equal(skeleton, green)


def test_crops_move_in_steps_of_the_largest_base_layer_grid(shared: Path) -> None:
    batch = Cache([shared / "cache"]).batch(8, unroll=1, crop=SIDE - 16, key=(3, 0))
    cells = batch.true[0].unfold(2, 8, 8).unfold(3, 8, 8)
    assert torch.equal(cells.amax((4, 5)), cells.amin((4, 5)))


def test_a_raw_batch_holds_the_same_in_codes(shared: Path) -> None:
    cache = Cache([shared / "cache"])
    raw = cache.raw_batch(2, unroll=2, crop=32, key=(1, 5))
    batch = cache.batch(2, unroll=2, crop=32, key=(1, 5))
    assert raw.source.dtype == raw.arrivals.dtype == torch.uint8
    codes = ((batch.true[1] + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    assert torch.equal(codes, raw.source[:, 1])
    again = expand(raw)
    assert torch.equal(again.conditioning[1].base, batch.conditioning[1].base)


def test_motion_is_found_where_it_is_wanted_and_belongs_to_the_crop(shared: Path) -> None:
    cache = Cache([shared / "cache"])
    plain = cache.raw_batch(3, unroll=3, crop=32, key=(1, 5))
    assert plain.motion is None and expand(plain).motion == []
    raw = cache.raw_batch(3, unroll=3, crop=32, key=(1, 5), motion=True)
    assert torch.equal(raw.source, plain.source)
    assert raw.motion is not None and raw.motion.shape == (3, 2, 32, 32, 2)
    for source, found in zip(raw.source, raw.motion, strict=True):
        assert np.array_equal(flow.backward(source.numpy()), found.numpy())
    moved = expand(raw).motion
    assert [t.shape for t in moved] == 2 * [(3, 2, 32, 32)]
    assert torch.equal(moved[1][:, 0], raw.motion[:, 1, :, :, 0].float())


def test_samples_that_are_too_short_are_never_chosen(shared: Path, tmp_path: Path) -> None:
    write_cache(tmp_path / "short", shards=1)
    for name in ("source", "sketch", "skeleton", "held", "phase"):
        path = tmp_path / "short" / "00000" / f"{name}.npy"
        np.save(path, np.load(path)[:, :2])
    both = Cache([tmp_path / "short", shared / "cache"])
    assert both.raw_batch(20, unroll=2, crop=32, key=(1, 0)).source.shape[:2] == (20, 2)
    assert both.raw_batch(20, unroll=LENGTH, crop=32, key=(1, 0)).source.shape[1] == LENGTH
    with pytest.raises(UsageError, match="no sample of the cache has 4 frames of 32"):
        Cache([tmp_path / "short"]).raw_batch(1, unroll=LENGTH, crop=32, key=(1, 0))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="semvc train prepare"):
        Cache([tmp_path / "none"])
