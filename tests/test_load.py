"""Model folders and devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import filled
from safetensors.torch import save_file
from torch import Tensor

from semvc.errors import ModelError, ResourceError, UsageError
from semvc.nets import load
from semvc.types import Runtime


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = (
        "widths = [8, 12, 16]", "depths = [1, 1, 1]", "embedding = 8", "memory = 4",
    )  # fmt: skip
    (tmp_path / "config.toml").write_text("[network]\n" + "\n".join(rows) + "\n", "utf-8")
    write(tmp_path, filled().state_dict())
    return tmp_path


def write(folder: Path, state: dict[str, Tensor]) -> None:
    halves = {n: t.half().contiguous() for n, t in state.items()}
    save_file(halves, folder / "weights.safetensors")


CPU = (torch.device("cpu"), torch.float32)


def test_a_model_folder_becomes_its_network(folder: Path) -> None:
    network = load.build(folder, *CPU)
    for name, p in network.named_parameters():
        assert torch.equal(p, filled().state_dict()[name].half().float()), name
        assert not p.requires_grad
    assert not network.training
    assert network.head.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_network_is_built_in_the_dtype_that_is_asked_for(folder: Path) -> None:
    network = load.build(folder, torch.device("cpu"), torch.bfloat16)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}


def test_a_missing_weight_is_refused(folder: Path) -> None:
    state = filled().state_dict()
    del state["head.bias"]
    write(folder, state)
    with pytest.raises(ModelError, match=r"head\.bias"):
        load.build(folder, *CPU)


def test_a_weight_too_many_is_refused(folder: Path) -> None:
    write(folder, filled().state_dict() | {"tail.bias": torch.zeros(3)})
    with pytest.raises(ModelError, match=r"tail\.bias"):
        load.build(folder, *CPU)


def test_a_weight_of_another_shape_is_refused(folder: Path) -> None:
    write(folder, filled().state_dict() | {"head.bias": torch.zeros(47)})
    with pytest.raises(ModelError, match=r"head\.bias"):
        load.build(folder, *CPU)


def test_weights_cut_short_are_refused(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="does not fit"):
        load.build(folder, *CPU)


@pytest.mark.parametrize(
    ("old", "new"),
    [("memory = 4", "memory = 4\nlayers = 3"), ("memory", "memories"), ("[net", "[n")],
)
def test_a_configuration_with_other_keys_is_refused(folder: Path, old: str, new: str) -> None:
    path = folder / "config.toml"
    path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
    with pytest.raises(ModelError, match="does not fit"):
        load.build(folder, *CPU)


@pytest.mark.parametrize("name", ["abacus", "cuda:x", "meta", "xpu", ""])
def test_an_unknown_device_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="unknown device"):
        load.choose_device(Runtime(device=name))


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
def test_cuda_without_a_gpu_is_a_resource_error(name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ResourceError, match="--device cpu"):
        load.choose_device(Runtime(device=name))


def test_cuda_with_too_few_gpus_is_a_resource_error(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ResourceError, match="1 found"):
        load.choose_device(Runtime(device="cuda:1"))


def test_mps_elsewhere_is_a_resource_error(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.mps, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="MPS"):
        load.choose_device(Runtime(device="mps"))


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_cpu_computes_in_bfloat16_where_that_is_fast(
    fast: bool, dtype: torch.dtype, monkeypatch: Any
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    assert load.choose_device(Runtime(device="cpu")) == (torch.device("cpu"), dtype)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_named_dtype_is_obeyed(name: str) -> None:
    assert load.choose_device(Runtime(device="cpu", dtype=name))[1] == getattr(torch, name)


def test_auto_takes_the_best_device_that_exists(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.mps, "is_available", lambda: True)
    assert load.choose_device(Runtime(dtype="float32"))[0].type == "mps"
    monkeypatch.setattr(torch.mps, "is_available", lambda: False)
    assert load.choose_device(Runtime(dtype="float32"))[0].type == "cpu"
