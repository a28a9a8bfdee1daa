"""The training loop: batches, steps, checkpoints, resuming, exporting."""

from __future__ import annotations

import json
import os
import signal
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache import LENGTH, SIDE, write_cache, write_metric_weights
from click.testing import CliRunner
from networks import TINY
from safetensors.torch import load_file

from semvc import weights
from semvc.errors import UsageError
from semvc.nets import load
from semvc.train import loop
from semvc.train.__main__ import main
from semvc.train.data import Cache
from semvc.train.loop import Run, Trainer
from semvc.train.recipe import Recipe, Stage

FRAMES = Stage("frames", 8, 2, 1, 32, 4e-3, 1e-3, lpips=1.0, dists=0.5)
SEQUENCES = replace(FRAMES, name="sequences", steps=12, unroll=3, temporal=1.0, adversarial=0.1)
RECIPE = Recipe("tiny-v1", 3, TINY, (FRAMES, SEQUENCES), critic_width=4, bfloat16=False)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cache` and `metrics`."""
    root = tmp_path_factory.mktemp("training")
    write_cache(root / "cache")
    write_metric_weights(root / "metrics")
    return root


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A trainer takes SIGTERM for itself; give it back. Its seeding stays within a test."""
    before = signal.getsignal(signal.SIGTERM)
    with torch.random.fork_rng():
        yield
    signal.signal(signal.SIGTERM, before)


def trainer(shared: Path, folder: Path, recipe: Recipe = RECIPE, **given: Any) -> Trainer:
    return Trainer(recipe, Run(folder, [shared / "cache"], shared / "metrics", **given))


def advance(given: Trainer, steps: int) -> list[dict[str, float]]:
    values = []
    for _ in range(steps):
        found = given.stage()
        assert found is not None
        values.append(given.update(*found))
        given.step += 1
    return values


# Data


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


# Steps


def test_noise_depends_on_the_step_alone(shared: Path, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []
    stage = replace(FRAMES, one_step=1.0)
    for steps in ((4, 5), (5,)):
        given = trainer(shared, tmp_path)
        given.generator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for given.step in steps:
            given.update(stage, 0)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])


def test_the_loss_falls_on_one_batch(shared: Path, tmp_path: Path) -> None:
    stage = replace(FRAMES, steps=1000, rate=5e-3, one_step=1.0)
    given = trainer(shared, tmp_path, replace(RECIPE, stages=(stage,)))
    values = [given.update(stage, 100) for _ in range(60)]
    assert values[-1]["charbonnier"] < 0.5 * values[0]["charbonnier"]
    assert values[-1]["lpips"] < 0.5 * values[0]["lpips"]


def test_a_step_reports_the_losses_of_its_stage(shared: Path, tmp_path: Path) -> None:
    given = trainer(shared, tmp_path)
    expected = {"charbonnier", "lpips", "dists", "norm"}
    assert given.update(FRAMES, 0).keys() == expected
    assert given.update(SEQUENCES, 0).keys() == expected | {"temporal", "adversarial", "critic"}


def test_only_losses_with_a_weight_are_computed(shared: Path, tmp_path: Path) -> None:
    given = trainer(shared, tmp_path)
    assert given.update(replace(FRAMES, lpips=0, dists=0), 0).keys() == {"charbonnier", "norm"}


def test_gradients_that_are_not_finite_leave_the_weights(shared: Path, tmp_path: Path) -> None:
    given = trainer(shared, tmp_path)
    before = {n: p.detach().clone() for n, p in given.generator.named_parameters()}
    given.update(replace(FRAMES, charbonnier=float("inf"), lpips=0, dists=0), 0)
    assert all(torch.equal(p, before[n]) for n, p in given.generator.named_parameters())


def test_the_average_follows_the_weights(shared: Path, tmp_path: Path) -> None:
    given = trainer(shared, tmp_path)
    start = given.average["head.bias"].clone()
    advance(given, 3)
    now, average = given.generator.state_dict()["head.bias"], given.average["head.bias"]
    assert 0 < float((average - start).norm()) < float((now - start).norm())


def test_every_weight_is_trained_by_exactly_one_optimiser(shared: Path, tmp_path: Path) -> None:
    given = trainer(shared, tmp_path)
    trained = [
        id(p)
        for optimiser in given.optimisers.values()
        for group in optimiser.param_groups
        for p in group["params"]
    ]
    assert sorted(trained) == sorted(id(p) for p in given.generator.parameters())


def test_training_in_bfloat16_runs(shared: Path, tmp_path: Path) -> None:
    given = trainer(shared, tmp_path, replace(RECIPE, bfloat16=True))
    assert all(np.isfinite(list(row.values())).all() for row in advance(given, 10))


# Runs


@pytest.fixture(scope="module")
def straight(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of all 20 steps."""
    folder = tmp_path_factory.mktemp("straight")
    before = signal.getsignal(signal.SIGTERM)
    with torch.random.fork_rng():
        assert trainer(shared, folder).train()
    signal.signal(signal.SIGTERM, before)
    return folder


def checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint.safetensors")


def assert_equal(a: Path, b: Path) -> None:
    first, second = checkpoint(a), checkpoint(b)
    assert first.keys() == second.keys()
    assert [n for n in first if not torch.equal(first[n], second[n])] == []


@pytest.mark.parametrize("at", [5, 10])
def test_a_resumed_run_equals_the_straight_one(
    shared: Path, straight: Path, tmp_path: Path, at: int
) -> None:
    first = trainer(shared, tmp_path)
    advance(first, at)
    first.save()
    second = trainer(shared, tmp_path)
    assert second.resume()
    assert second.step == at
    assert second.train()
    assert_equal(straight, tmp_path)


def test_a_run_without_a_checkpoint_has_nothing_to_resume(shared: Path, tmp_path: Path) -> None:
    given = trainer(shared, tmp_path)
    assert not given.resume()
    assert given.step == 0


def test_a_complete_run_has_nothing_left_to_do(shared: Path, straight: Path) -> None:
    given = trainer(shared, straight)
    given.resume()
    assert given.stage() is None
    assert given.train()


def test_sigterm_writes_a_checkpoint_and_stops(shared: Path, tmp_path: Path) -> None:
    given = trainer(shared, tmp_path)
    update = given.update

    def interrupted(stage: Stage, at: int) -> dict[str, float]:
        if given.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(stage, at)

    given.update = interrupted  # type: ignore[method-assign]
    assert not given.train()
    assert given.step == 4
    again = trainer(shared, tmp_path)
    assert again.resume()
    assert again.step == 4


def test_a_spent_time_budget_writes_a_checkpoint_and_stops(shared: Path, tmp_path: Path) -> None:
    assert not trainer(shared, tmp_path, minutes=1e-9).train()
    assert (tmp_path / "checkpoint.safetensors").exists()


def test_stages_follow_each_other(shared: Path, tmp_path: Path) -> None:
    given = trainer(shared, tmp_path)
    seen = []
    for given.step in (0, 7, 8, 19, 20):
        found = given.stage()
        seen.append(None if found is None else (found[0].name, found[1]))
    assert seen == [("frames", 0), ("frames", 7), ("sequences", 0), ("sequences", 11), None]


def test_the_learning_rate_warms_up_and_falls() -> None:
    stage = replace(FRAMES, steps=1000)
    rates = [loop._rate(stage, at) for at in range(1000)]
    assert rates[0] < 0.02 * stage.rate
    assert max(rates) == pytest.approx(stage.rate, rel=0.05)
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] == pytest.approx(stage.final_rate, rel=0.01)


# Commands


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    network = "\n".join(f"{k} = {json.dumps(v)}" for k, v in TINY.items())
    path.write_text(
        f'model = "tiny-v1"\nseed = 3\nbfloat16 = false\ncritic_width = 4\n\n[network]\n{network}\n'
        '[[stage]]\nname = "only"\nsteps = 3\nbatch = 1\nunroll = 1\ncrop = 32\n'
        "rate = 1e-3\nfinal_rate = 1e-3\n",
        "utf-8",
    )
    return path


def invoke(*words: object) -> str:
    done = CliRunner().invoke(main, [str(w) for w in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_trained_run_is_exported_as_a_model_folder(
    shared: Path, recipe_path: Path, tmp_path: Path
) -> None:
    options = ("--cache", shared / "cache", "--metric-weights", shared / "metrics")
    assert "step 3: complete" in invoke("run", recipe_path, tmp_path / "run", *options)
    row = tomllib.loads(invoke("export", recipe_path, tmp_path / "run", tmp_path / "tiny-v1"))
    found = tmp_path / "tiny-v1" / weights.WEIGHTS
    assert row["id"] == "tiny-v1"
    assert row["bytes"] == found.stat().st_size
    assert row["weights_sha256"] == weights.sha256(found)
    network = load.build(tmp_path / "tiny-v1", torch.device("cpu"), torch.float32)
    averages = checkpoint(tmp_path / "run")
    for name, p in network.named_parameters():
        assert torch.equal(p, averages[f"average.{name}"].half().float()), name
