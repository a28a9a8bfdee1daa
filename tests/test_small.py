"""The bundled model's recipe, shortened: from footage to a model that loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cache import write_metric_weights
from scene import Scene, write_video

from semvc import cli
from semvc.nets import load
from semvc.nets.conditioning import SegmentConditions
from semvc.nets.restore import Restorer
from semvc.train import loop, recipe

RECIPE = Path(__file__).parent.parent / "models" / "disco-small-v1" / "recipe.toml"


def error(folder: Path, root: Path) -> float:
    """Mean loss of a run's average on batches that stay the same."""
    given = recipe.load(RECIPE)
    job = loop.Run(folder, [root / "cache" / "clips"], root / "metrics")
    trainer = loop.Trainer(given, job)
    trainer.resume()
    stage = given.stages[0]
    values = []
    with torch.no_grad(), trainer._averaged():
        for key in range(4):
            batch = trainer.task.batch(stage, (1, key))
            made = trainer.task.forward(stage, batch)
            values.append(float(trainer.task.losses(stage, batch, made).total))
    return sum(values) / len(values)


@pytest.mark.slow
def test_the_shipped_recipe_trains_resumes_and_gives_a_model_that_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for seed in range(2):
        frames = Scene(width=208, height=176, frames=20, seed=seed).render()[0]
        write_video(tmp_path / "in" / f"{seed}.mp4", frames)
    write_metric_weights(tmp_path / "metrics")
    options = ["--rounds", "1", "--preset", "12", "--quiet"]
    cache, run = tmp_path / "cache", tmp_path / "run"
    assert cli.run(["train", "prepare", str(cache), "--clips", str(tmp_path / "in"), *options]) == 0
    words = ["train", "run", str(RECIPE), str(run), "--cache", str(cache / "clips")]
    words += ["--metric-weights", str(tmp_path / "metrics"), "--scale", "0.02", "--quiet"]
    before = error(run, tmp_path)
    assert cli.run([*words, "--minutes", "0.2", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert cli.run([*words, "--json"]) == 0
    last = json.loads(capsys.readouterr().out)
    assert first["step"] <= last["step"] == last["steps"]
    after = error(run, tmp_path)
    assert after < 0.97 * before

    assert cli.run(["train", "export", str(RECIPE), str(run), str(tmp_path / "model")]) == 0
    cpu = torch.device("cpu")
    network = load.build(tmp_path / "model", cpu, torch.float32)
    restorer = Restorer(network, device=cpu, dtype=torch.float32, steps=1, seed=1)
    base = np.random.default_rng(1).integers(0, 256, (2, 32, 48, 3), np.uint8)
    frames = list(restorer.frames(SegmentConditions(48, 32, 2, base, 1, 1, 55.0), 0))
    assert [f.shape for f in frames] == [(32, 48, 3)] * 2
    assert not np.array_equal(frames[0], base[0])
