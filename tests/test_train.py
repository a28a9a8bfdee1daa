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
from cache import write_cache, write_metric_weights
from click.testing import CliRunner, Result
from networks import TINY
from safetensors.torch import load_file

from semvc import weights
from semvc.errors import UsageError
from semvc.nets import load
from semvc.train import loop, losses
from semvc.train.commands import main
from semvc.train.data import expand
from semvc.train.disco import Options
from semvc.train.loop import Run, Trainer
from semvc.train.parallel import Team
from semvc.train.recipe import Recipe, Stage

pytestmark = pytest.mark.slow  # left to make test

FRAMES = Stage("frames", 8, 2, 4e-3, 1e-3, Options(unroll=1, crop=32, lpips=1.0, dists=0.5))
_UNROLLED = replace(FRAMES.options, unroll=3, temporal=1.0, adversarial=0.1)
SEQUENCES = replace(FRAMES, name="sequences", steps=12, options=_UNROLLED)
CRITIC = {"width": 4, "frames": 2}
RECIPE = Recipe("tiny-v1", 3, TINY, (FRAMES, SEQUENCES), critic=CRITIC, bfloat16=False, log_steps=5)


def changed(stage: Stage, **given: Any) -> Stage:
    """The stage with other options, or another of its own fields."""
    own = {n: v for n, v in given.items() if n in Stage.__slots__}
    options = {n: v for n, v in given.items() if n not in own}
    return replace(stage, **own, options=replace(stage.options, **options))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cache` and `metrics`."""
    root = tmp_path_factory.mktemp("training")
    write_cache(root / "cache")
    write_metric_weights(root / "metrics")
    return root


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A trainer takes SIGTERM for itself and gives it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before


def trainer(shared: Path, folder: Path, recipe: Recipe = RECIPE, **given: Any) -> Trainer:
    return Trainer(recipe, Run(folder, [shared / "cache"], shared / "metrics", **given))


def advance(given: Trainer, steps: int) -> list[dict[str, float]]:
    values = []
    for _ in range(steps):
        found = given.stage()
        assert found is not None
        values.append({n: float(v) for n, v in given.update(*found).items()})
        given.step += 1
    return values


# Steps


def test_noise_depends_on_the_step_alone(shared: Path, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []
    stage = changed(FRAMES, one_step=1.0)
    for steps in ((4, 5), (5,)):
        given = trainer(shared, tmp_path)
        given.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for given.step in steps:
            given.update(stage, 0)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])


def test_the_loss_falls_on_one_batch(shared: Path, tmp_path: Path) -> None:
    stage = changed(FRAMES, steps=1000, rate=5e-3, one_step=1.0)
    given = trainer(shared, tmp_path, replace(RECIPE, stages=(stage,)))
    values = [given.update(stage, 100) for _ in range(60)]
    assert values[-1]["charbonnier"] < 0.5 * values[0]["charbonnier"]
    assert values[-1]["lpips"] < 0.5 * values[0]["lpips"]


def test_a_step_reports_the_losses_of_its_stage(shared: Path, tmp_path: Path) -> None:
    given = trainer(shared, tmp_path)
    expected = {"charbonnier", "lpips", "dists", "norm"}
    assert given.update(FRAMES, 0).keys() == expected
    assert given.update(SEQUENCES, 0).keys() == expected | {"temporal", "adversarial", "critic"}


def test_grain_is_judged_with_the_frames_and_not_remembered(shared: Path, tmp_path: Path) -> None:
    given = trainer(shared, tmp_path)
    remembered: list[torch.Tensor] = []
    given.network.register_forward_hook(lambda *call: remembered.append(call[2][1].frame.detach()))
    stages = [changed(SEQUENCES, grain=grain) for grain in (False, True)]
    plain, grainy = (
        given.task.forward(stage, given.task.batch(stage, (3, 1))).shown for stage in stages
    )
    for without, added in zip(plain, grainy, strict=True):
        difference = (added - without).detach() * 127.5
        assert 0 < difference.abs().mean() < 4
        assert difference.abs().amax() < 32
    half = len(remembered) // 2
    assert all(map(torch.equal, remembered[:half], remembered[half:]))


def test_only_losses_with_a_weight_are_computed(shared: Path, tmp_path: Path) -> None:
    given = trainer(shared, tmp_path)
    assert given.update(changed(FRAMES, lpips=0, dists=0), 0).keys() == {"charbonnier", "norm"}


def test_gradients_that_are_not_finite_leave_the_weights(shared: Path, tmp_path: Path) -> None:
    given = trainer(shared, tmp_path)
    before = {n: p.detach().clone() for n, p in given.network.named_parameters()}
    given.update(changed(FRAMES, charbonnier=float("inf"), lpips=0, dists=0), 0)
    assert all(torch.equal(p, before[n]) for n, p in given.network.named_parameters())


def test_the_average_follows_the_weights(shared: Path, tmp_path: Path) -> None:
    given = trainer(shared, tmp_path)
    start = given.average["head.bias"].clone()
    advance(given, 3)
    now, average = given.network.state_dict()["head.bias"], given.average["head.bias"]
    assert 0 < float((average - start).norm()) < float((now - start).norm())


def test_every_weight_is_trained_by_exactly_one_optimiser(shared: Path, tmp_path: Path) -> None:
    given = trainer(shared, tmp_path)
    trained = [
        id(p)
        for name, optimiser in given.optimisers.items()
        if name != "critic_adam"
        for group in optimiser.param_groups
        for p in group["params"]
    ]
    assert sorted(trained) == sorted(id(p) for p in given.network.parameters())


def test_training_in_bfloat16_runs(shared: Path, tmp_path: Path) -> None:
    given = trainer(shared, tmp_path, replace(RECIPE, bfloat16=True))
    assert all(np.isfinite(list(row.values())).all() for row in advance(given, 10))


# Adversarial stages

PENALISED = changed(SEQUENCES, objective="relativistic", matching=0.2, penalty=0.1, penalty_every=2)


def test_a_relativistic_stage_reports_matching_as_well(shared: Path, tmp_path: Path) -> None:
    values = trainer(shared, tmp_path).update(PENALISED, 0)
    assert {"adversarial", "critic", "matching"} <= values.keys()
    assert all(torch.isfinite(v) for v in values.values())


def test_the_penalty_is_taken_in_every_nth_step(shared: Path, tmp_path: Path) -> None:
    given = trainer(shared, tmp_path)
    heavy = changed(PENALISED, penalty=1e6)
    found = []
    for given.step in (2, 3):
        batch = given.batch(9, heavy)
        made = given.task.forward(heavy, batch)
        loss = given.task.critic_loss(heavy, batch, made, given.step)
        found.append(float(loss.detach()))
    assert found[0] > 100 * found[1]


def test_the_critic_is_trained_in_adversarial_stages_alone(shared: Path, tmp_path: Path) -> None:
    given = trainer(shared, tmp_path)
    assert given.task.critic is not None
    before = [p.detach().clone() for p in given.task.critic.parameters()]
    given.update(FRAMES, 50)
    after = list(given.task.critic.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    given.update(SEQUENCES, 50)
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_critic_learns_nothing_from_the_losses_of_the_network(
    shared: Path, tmp_path: Path
) -> None:
    given = trainer(shared, tmp_path)
    assert given.task.critic is not None
    given.task.critic_loss = lambda *_: torch.zeros((), requires_grad=True)  # type: ignore[method-assign]
    given.update(SEQUENCES, 50)
    assert all(p.grad is None for p in given.task.critic.parameters())
    assert all(p.requires_grad for p in given.task.critic.parameters())


def test_a_critic_on_features_is_trained_and_leaves_the_network_alone(
    shared: Path, tmp_path: Path
) -> None:
    stage = changed(SEQUENCES, adversarial=0.5)
    recipe = replace(RECIPE, stages=(stage,), critic={"features": True, "width": 4})
    given = trainer(shared, tmp_path, recipe)
    assert given.critic is not None
    before = {n: p.clone() for n, p in given.critic.state_dict().items()}
    batch = given.batch(0, stage)
    made = given.task.forward(stage, batch)
    loss = given.task.critic_loss(stage, batch, made, 0)
    loss.backward()
    assert all(p.grad is None for p in given.network.parameters())
    assert given.update(stage, 100, batch).keys() >= {"critic", "adversarial"}
    after = given.critic.state_dict()
    assert any(not torch.equal(before[n], after[n]) for n in before)


def test_a_critic_on_features_reaches_the_network(shared: Path, tmp_path: Path) -> None:
    stage = changed(SEQUENCES, adversarial=0.5)
    recipe = replace(RECIPE, stages=(stage,), critic={"features": True, "width": 4})
    given = trainer(shared, tmp_path, recipe)
    batch = given.batch(0, stage)
    found = given.task.losses(stage, batch, given.task.forward(stage, batch))
    head = given.network.head.weight
    (slope,) = torch.autograd.grad(found.values["adversarial"], [head])
    assert float(slope.abs().sum()) > 0


def test_losses_see_frames_and_source_from_the_same_side(shared: Path, tmp_path: Path) -> None:
    given = trainer(shared, tmp_path)
    batch = given.task.batch(FRAMES, (3, 1))
    made = given.task.forward(FRAMES, batch)
    true = torch.cat(made.batch.true)
    assert made.seen.shape == made.wanted.shape != true.shape
    assert torch.equal(made.wanted, batch.view.of(true))


def test_a_critic_of_more_frames_than_are_unrolled_is_refused(shared: Path, tmp_path: Path) -> None:
    short = replace(RECIPE, stages=(changed(SEQUENCES, unroll=1),))
    with pytest.raises(UsageError, match="critic sees 2 frames"):
        trainer(shared, tmp_path, short)


def test_a_run_with_every_adversarial_loss_resumes_as_the_straight_one(
    shared: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, stages=(replace(PENALISED, steps=6),))
    assert trainer(shared, tmp_path / "straight", recipe).train().complete
    first = trainer(shared, tmp_path / "cut", recipe)
    advance(first, 3)
    first.run.folder.mkdir()
    first.save()
    second = trainer(shared, tmp_path / "cut", recipe)
    assert second.resume()
    assert second.train().complete
    assert_equal(tmp_path / "straight", tmp_path / "cut")


def test_an_adversarial_stage_may_follow_a_run_without_a_critic(
    shared: Path, tmp_path: Path
) -> None:
    plain = replace(RECIPE, stages=(FRAMES,))
    assert trainer(shared, tmp_path, plain).train().complete
    assert not any(name.startswith("critic") for name in checkpoint(tmp_path))
    longer = trainer(shared, tmp_path, replace(RECIPE, stages=(FRAMES, SEQUENCES)))
    assert longer.resume()
    assert longer.train().complete
    assert any(name.startswith("critic") for name in checkpoint(tmp_path))


# Starting from weights


def test_a_run_starts_from_the_weights_of_another(
    shared: Path, straight: Path, tmp_path: Path
) -> None:
    given = trainer(shared, tmp_path, start=straight)
    averages = checkpoint(straight)
    for name, p in given.network.named_parameters():
        assert torch.equal(p, averages[f"average.{name}"]), name
        assert torch.equal(given.average[name], p), name
    assert given.step == 0
    given.save()
    again = trainer(shared, tmp_path)
    again.resume()
    assert again.started_from == given.started_from
    assert len(given.started_from) == 64


def test_the_start_of_a_recipe_is_found_beside_it(
    shared: Path, straight: Path, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, start=straight.name)
    given = trainer(shared, tmp_path, recipe, recipe_folder=straight.parent)
    assert given.started_from


def test_weights_of_another_network_are_refused(
    shared: Path, straight: Path, tmp_path: Path
) -> None:
    other = replace(RECIPE, network=TINY | {"memory": 8})
    with pytest.raises(UsageError, match="not that of"):
        trainer(shared, tmp_path, other, start=straight)
    with pytest.raises(UsageError, match="another network"):
        trainer(shared, straight, other).resume()


# Runs


def test_building_a_run_leaves_the_global_randomness(shared: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    trainer(shared, tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())


def test_two_processes_see_other_batches_and_one_the_usual_ones(
    shared: Path, tmp_path: Path
) -> None:
    given = trainer(shared, tmp_path)
    alone = [given.batch(step).noise for step in range(4)]
    for rank in range(2):
        given.team = Team(rank, 2, given.device, lambda values: values)
        for step in range(2):
            assert torch.equal(given.batch(step).noise, alone[2 * step + rank])


def test_sample_pictures_show_source_base_and_what_the_average_makes(
    shared: Path, tmp_path: Path
) -> None:
    given = trainer(shared, tmp_path)
    advance(given, 3)
    before = [p.detach().clone() for p in given.network.parameters()]
    picture = given.picture(FRAMES)
    assert picture.shape == (2 * 32, 3 * 32, 3)
    batch = given.task.batch(FRAMES, (RECIPE.seed, loop._SAMPLES_STEP))
    source = losses.displayed(expand(batch.raw).true[0])[0].permute(1, 2, 0)
    codes = ((source + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(picture[:32, :32], codes)
    assert torch.equal(picture, given.picture(FRAMES))
    assert all(torch.equal(a, b) for a, b in zip(before, given.network.parameters(), strict=True))


def test_a_run_draws_samples_and_writes_a_log(straight: Path) -> None:
    assert [p.name for p in (straight / "samples").iterdir()] == ["0000001.png"]
    rows = [json.loads(r) for r in (straight / "log.jsonl").read_text("utf-8").splitlines()]
    assert [(r["step"], r["stage"]) for r in rows] == [(5, "frames")] + [
        (step, "sequences") for step in (10, 15, 20)
    ]
    assert {"lpips", "norm", "rate", "seconds"} <= rows[0].keys()


@pytest.fixture(scope="module")
def straight(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of all 20 steps."""
    folder = tmp_path_factory.mktemp("straight")
    assert trainer(shared, folder).train().complete
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
    assert second.train().complete
    assert_equal(straight, tmp_path)


def test_a_run_without_a_checkpoint_has_nothing_to_resume(shared: Path, tmp_path: Path) -> None:
    given = trainer(shared, tmp_path)
    assert not given.resume()
    assert given.step == 0


def test_a_complete_run_has_nothing_left_to_do(shared: Path, straight: Path) -> None:
    given = trainer(shared, straight)
    given.resume()
    assert given.stage() is None
    assert given.train().complete


@pytest.mark.parametrize(
    ("number", "at_step", "workers"), [(signal.SIGTERM, 12, 2), (signal.SIGINT, 3, 0)]
)
def test_a_signal_writes_a_checkpoint_from_which_the_same_run_goes_on(
    shared: Path, straight: Path, tmp_path: Path, number: int, at_step: int, workers: int
) -> None:
    given = trainer(shared, tmp_path, workers=workers)
    update = given.update

    def interrupted(stage: Stage, at: int, batch: Any) -> dict[str, torch.Tensor]:
        if given.step == at_step:
            os.kill(os.getpid(), number)
        return update(stage, at, batch)

    given.update = interrupted  # type: ignore[method-assign]
    assert given.train() == loop.Outcome(at_step + 1, complete=False, stopped_by=number)
    again = trainer(shared, tmp_path, workers=workers)
    assert again.resume()
    assert again.step == at_step + 1
    assert again.train().complete
    assert_equal(straight, tmp_path)


def test_a_spent_time_budget_writes_a_checkpoint_and_stops(shared: Path, tmp_path: Path) -> None:
    assert not trainer(shared, tmp_path, minutes=1e-9).train().complete
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
    rates = [loop.rate(stage, at) for at in range(1000)]
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
        f'model = "tiny-v1"\nseed = 3\nbfloat16 = false\n\n[network]\n{network}\n'
        '[[stage]]\nname = "only"\nsteps = 3\nbatch = 1\nunroll = 1\ncrop = 32\n'
        "rate = 1e-3\nfinal_rate = 1e-3\n",
        "utf-8",
    )
    return path


def invoke(*words: object) -> Result:
    done = CliRunner().invoke(main, [str(w) for w in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def test_a_trained_run_is_exported_as_a_model_folder(
    shared: Path, recipe_path: Path, tmp_path: Path
) -> None:
    options = ("--cache", shared / "cache", "--metric-weights", shared / "metrics")
    assert "step 3 of 3: complete" in invoke("run", recipe_path, tmp_path / "run", *options).stderr
    done = invoke("export", recipe_path, tmp_path / "run", tmp_path / "tiny-v1")
    (row,) = tomllib.loads(done.stdout)["model"]
    found = tmp_path / "tiny-v1" / weights.WEIGHTS
    assert row["id"] == "tiny-v1"
    assert row["bytes"] == found.stat().st_size
    assert row["weights_sha256"] == weights.sha256(found)
    network = load.build(tmp_path / "tiny-v1", torch.device("cpu"), torch.float32)
    averages = checkpoint(tmp_path / "run")
    for name, p in network.named_parameters():
        assert torch.equal(p, averages[f"average.{name}"].half().float()), name
