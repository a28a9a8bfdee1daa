"""Checkpoints: complete or not at all, read back, exported, started from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from semvc.errors import UsageError
from semvc.train import checkpoint
from semvc.train.checkpoint import Checkpoint


def kept(value: float = 1.0) -> Checkpoint:
    weight = torch.full((2, 3), value)
    parts = {"generator": {"a.weight": weight}, "average": {"a.weight": weight + 0.1}}
    return Checkpoint(parts, {"step": "7"})


def test_a_checkpoint_is_read_back(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, kept())
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert found.notes == {"step": "7"}
    assert found.parts.keys() == {"generator", "average"}
    assert torch.equal(found.parts["generator"]["a.weight"], torch.ones(2, 3))


def test_a_folder_without_a_checkpoint_has_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) is None


def test_a_checkpoint_replaces_the_one_before_and_leaves_no_part(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, kept(1.0))
    checkpoint.save(tmp_path, kept(2.0))
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.NAME]
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert float(found.parts["generator"]["a.weight"][0, 0]) == 2


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / checkpoint.NAME).write_bytes(b"not safetensors")
    with pytest.raises(UsageError, match="not a checkpoint"):
        checkpoint.load(tmp_path)


def test_an_export_is_the_average_in_half_precision(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, kept())
    checkpoint.export(tmp_path, tmp_path / "weights.safetensors")
    found = load_file(tmp_path / "weights.safetensors")
    assert found.keys() == {"a.weight"}
    assert torch.equal(found["a.weight"], torch.full((2, 3), 1.1).half())
    assert (tmp_path / "weights.safetensors").stat().st_mode & 0o777 == 0o644


def test_nothing_trained_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="train first"):
        checkpoint.export(tmp_path, tmp_path / "weights.safetensors")


def test_a_start_is_a_model_folder_a_file_or_a_run(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, kept())
    model = tmp_path / "model"
    model.mkdir()
    save_file({"a.weight": torch.full((2, 3), 1.5).half()}, model / "weights.safetensors")
    for path, value in ((model, 1.5), (model / "weights.safetensors", 1.5), (tmp_path, 1.1)):
        tensors, digest = checkpoint.weights_to_start_from(path)
        assert torch.equal(tensors["a.weight"], torch.full((2, 3), value)), path
        assert tensors["a.weight"].dtype == torch.float32
        file = tmp_path / checkpoint.NAME if value == 1.1 else model / "weights.safetensors"
        assert digest == hashlib.sha256(file.read_bytes()).hexdigest()


def test_nothing_to_start_from_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to start from"):
        checkpoint.weights_to_start_from(tmp_path / "none")


def test_weights_that_cannot_be_read_are_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"no")
    with pytest.raises(UsageError, match="holds no weights"):
        checkpoint.weights_to_start_from(tmp_path)
