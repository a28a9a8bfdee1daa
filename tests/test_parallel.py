"""Training by several processes at once."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from semvc.errors import UsageError
from semvc.train import parallel
from semvc.train.parallel import Team


def parameters(*values: float) -> list[torch.Tensor]:
    found = [torch.zeros(2, 3, requires_grad=True) for _ in values]
    for p, value in zip(found, values, strict=True):
        p.grad = torch.full((2, 3), float(value))
    return found


def test_gradients_become_the_mean_of_all_processes() -> None:
    team = Team(0, 2, torch.device("cpu"), lambda mine: (mine + 3) / 2)  # the other's are all 3
    trained = parameters(1, 5)
    team.average_gradients([*trained, torch.zeros(1, requires_grad=True)])
    assert [float(p.grad.unique()) for p in trained] == [2, 4]


def test_one_process_alone_keeps_its_gradients() -> None:
    team, trained = parallel.alone("cpu"), parameters(1)
    before = trained[0].grad
    team.average_gradients(trained)
    assert trained[0].grad is before
    assert (team.rank, team.size) == (0, 1)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_does_not_exist_is_a_usage_error(device: str) -> None:
    with pytest.raises(UsageError, match="cannot train on device"):
        parallel.alone(device)


def test_a_process_of_accelerate_knows_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    reduced: list[str] = []

    def reduce(values: torch.Tensor, how: str) -> torch.Tensor:
        reduced.append(how)
        return values / 2

    accelerator = SimpleNamespace(
        process_index=1, num_processes=2, device=torch.device("cpu"), reduce=reduce
    )
    module = ModuleType("accelerate")
    module.Accelerator = lambda: accelerator  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "accelerate", module)
    team, trained = parallel.accelerated(), parameters(4)
    team.average_gradients(trained)
    assert (team.rank, team.size, reduced) == (1, 2, ["mean"])
    assert float(trained[0].grad.unique()) == 2


def test_missing_accelerate_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(UsageError, match=r"pip install semvc\[train\]"):
        parallel.accelerated()
