"""Batches made ahead: their order, their errors, their way to the device."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from semvc.train import feed


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_order_whoever_makes_them(workers: int) -> None:
    def make(step: int) -> int:
        time.sleep(0.002 * (step % 3))
        return step * step

    found = list(feed.ahead(make, range(5, 25), workers=workers, depth=4))
    assert found == [step * step for step in range(5, 25)]


def test_no_more_batches_are_made_ahead_than_asked_for() -> None:
    made: list[int] = []
    batches = feed.ahead(lambda s: made.append(s) or s, range(100), workers=2, depth=3)
    assert next(batches) == 0
    time.sleep(0.05)
    assert len(made) <= 4
    batches.close()


def test_without_workers_a_batch_is_made_when_it_is_asked_for() -> None:
    made: list[int] = []
    batches = feed.ahead(lambda s: made.append(s) or s, range(9), workers=0, depth=5)
    next(batches)
    assert made == [0]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_at_its_turn(workers: int) -> None:
    def make(step: int) -> int:
        if step == 2:
            raise ValueError("no such sample")
        return step

    batches = feed.ahead(make, range(9), workers=workers, depth=4)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(ValueError, match="no such sample"):
        next(batches)


def test_threads_end_when_batches_are_wanted_no_more() -> None:
    batches = feed.ahead(lambda s: s, range(1000), workers=2, depth=4)
    next(batches)
    assert any(t.name.startswith("batch") for t in threading.enumerate())
    batches.close()
    assert not any(t.name.startswith("batch") for t in threading.enumerate())


@dataclass(frozen=True, slots=True)
class Pair:
    first: Any
    second: Any


def test_tensors_are_moved_wherever_they_are_nested() -> None:
    one = torch.ones(2)
    given = Pair([one, (one, None)], {"a": Pair(one, 3), "b": "text"})
    found = feed.moved(given, torch.device("meta"))
    assert found.first[0].is_meta and found.first[1][0].is_meta and found.second["a"].first.is_meta
    assert found.first[1][1] is None
    assert found.second["a"].second == 3
    assert found.second["b"] == "text"
    assert not one.is_meta
