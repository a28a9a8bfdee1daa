"""Batches made ahead by background threads, in order, and moved to the device.

Which batch comes when depends on the recipe alone; threads only decide how early it is ready.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch")


def ahead(
    make: Callable[[int], Batch], steps: range, *, workers: int, depth: int
) -> Generator[Batch]:
    """Yield `make(step)` for every step in order; up to `depth` are made ahead by `workers`.

    With no workers each is made when it is asked for. An error of `make` is raised at its turn.
    """
    if not workers:
        yield from map(make, steps)
        return
    waiting: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batch")
    try:
        for step in steps:
            waiting.append(pool.submit(make, step))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def pinned(values: Any) -> Any:
    """Return the same with its tensors in page-locked memory, from where CUDA copies alone."""
    return _each(values, lambda t: t.pin_memory())


def moved(values: Any, device: torch.device) -> Any:
    """Return the same with its tensors on `device`; the copy from pinned memory does not wait."""
    return _each(values, lambda t: t.to(device, non_blocking=True))


def _each(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply `change` to every tensor in nested tuples, lists, dicts and dataclasses."""
    match values:
        case Tensor():
            return change(values)
        case list():
            return [_each(v, change) for v in values]
        case tuple():
            return tuple(_each(v, change) for v in values)
        case dict():
            return {name: _each(v, change) for name, v in values.items()}
    if dataclasses.is_dataclass(values) and not isinstance(values, type):
        names = [f.name for f in dataclasses.fields(values)]
        return dataclasses.replace(values, **{n: _each(getattr(values, n), change) for n in names})
    return values
