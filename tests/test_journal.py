"""What a training run writes: rows, curves, pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch

from semvc.errors import UsageError
from semvc.train import journal
from semvc.train.journal import Journal, Row


def losses(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def rows(folder: Path) -> list[Row]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


def test_a_row_holds_the_means_since_the_last_one(tmp_path: Path) -> None:
    seen: list[Row] = []
    written = Journal(tmp_path, on_row=seen.append)
    for value in (1.0, 2.0, 6.0):
        written.add(losses(lpips=value, norm=2 * value))
    written.row(3, stage="frames")
    written.add(losses(lpips=5.0, norm=1.0))
    written.row(4, stage="frames")
    assert [(r["step"], r["stage"], r["lpips"], r["norm"]) for r in rows(tmp_path)] == [
        (3, "frames", 3.0, 6.0),
        (4, "frames", 5.0, 1.0),
    ]
    assert seen == rows(tmp_path)


def test_other_losses_begin_a_new_mean(tmp_path: Path) -> None:
    written = Journal(tmp_path, on_row=None)
    written.add(losses(lpips=100.0))
    written.add(losses(lpips=1.0, critic=2.0))
    written.row(2)
    assert (rows(tmp_path)[0]["lpips"], rows(tmp_path)[0]["critic"]) == (1.0, 2.0)


def test_no_step_gives_no_row(tmp_path: Path) -> None:
    Journal(tmp_path, on_row=None).row(0)
    assert not (tmp_path / "log.jsonl").exists()


def test_the_losses_given_are_not_changed(tmp_path: Path) -> None:
    given = losses(lpips=1.0)
    written = Journal(tmp_path, on_row=None)
    written.add(given)
    written.add(given)
    assert float(given["lpips"]) == 1.0


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 7, 3), (64, 48, 3)])
def test_a_picture_is_a_png_that_others_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    journal.write_png(tmp_path / "a.png", image)
    with av.open(str(tmp_path / "a.png")) as container:
        found = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.array_equal(found, image)


def test_samples_are_named_by_their_step(tmp_path: Path) -> None:
    Journal(tmp_path, on_row=None).picture(42, torch.zeros(4, 4, 3, dtype=torch.uint8))
    assert [p.name for p in (tmp_path / "samples").iterdir()] == ["0000042.png"]


def test_curves_go_to_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    writer = SimpleNamespace(
        add_scalar=lambda *a: calls.append(a),
        add_image=lambda *a, **_: calls.append(a[:1]),
        close=lambda: calls.append(("close",)),
    )
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = lambda _: writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    written = Journal(tmp_path, tensorboard=True, on_row=None)
    written.add(losses(lpips=2.0))
    written.row(7, stage="frames", rate=0.5)
    written.picture(7, torch.zeros(4, 4, 3, dtype=torch.uint8))
    written.close()
    assert calls == [("lpips", 2.0, 7), ("rate", 0.5, 7), ("samples",), ("close",)]


def test_missing_tensorboard_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"pip install semvc\[train\]"):
        Journal(tmp_path, tensorboard=True, on_row=None)
