"""Training of an in-context LoRA: windows, one step, the file that decoding reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from program import Call
from safetensors import safe_open
from scene import Scene, write_video
from tinybackbones import CPU, SETTINGS, conditions, missing, noise, write_ltx, write_text

from semvc.backbones import captioner, protocol
from semvc.errors import UsageError
from semvc.train import families, loop, ltx, prepare_windows, recipe, windows
from semvc.train.recipe import Recipe, Stage

pytestmark = missing("accelerate", "peft", "transformers", "tokenizers")

ROWS = [{"image_id": t, "track_id": 1, "keypoints": [40 + t, 30, 2] * 17} for t in range(9)]
SETTINGS_64 = prepare_windows.Settings(frames=9, side=64, most=1, preset=12)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(write_ltx(tmp_path_factory.mktemp("ltx")))


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    for name, seed in (("a", 1), ("b", 2)):
        write_video(folder / f"{name}.mp4", Scene(96, 80, 20, seed=seed).render()[0])
    (folder / "a.txt").write_text("a room with balls\n", "utf-8")
    (folder / "a.json").write_text(json.dumps(ROWS), "utf-8")
    return folder


@pytest.fixture(scope="module")
def cache(backbone: Path, footage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cache")
    assert prepare_windows.fill(footage, out, backbone, SETTINGS_64, device=CPU) == 2
    return out


def made(backbone: Path, **network: Any) -> Recipe:
    row = {"backbone": str(backbone), "rank": 4, "layers": ["to_q", "to_k"], **network}
    options = ltx.Options(drop_base=0.0, drop_sketch=0.0, drop_skeleton=0.0, drop_caption=0.0)
    stage = Stage("lora", 3, 1, 0.01, 0.0, options, warmup=1)
    return Recipe(
        "tiny", 7, row, (stage,), family="ltx-lora", bfloat16=False, sample_minutes=0.0, log_steps=1
    )


def trainer(given: Recipe, cache: Path, folder: Path) -> loop.Trainer:
    return loop.Trainer(given, loop.Run(folder, [cache], None))


# --- windows


def test_windows_hold_what_a_decoder_is_given(cache: Path) -> None:
    found = windows.Windows([cache], 1)
    first, second = found.read(0), found.read(1)
    assert list(first.references) == ["base", "sketch", "skeleton"]
    assert list(second.references) == ["base", "sketch"]
    assert {x.shape for x in first.references.values()} == {(1, 8, 2, 2, 2)}
    assert first.target.shape == (1, 8, 2, 2, 2) and first.frame_rate == 24
    assert first.text.shape == (18, 32) and second.text.shape == (0, 32)  # one token a letter
    assert (first.references["base"] != first.target).any()


def test_a_window_is_the_largest_square_and_the_skeleton_goes_with_it(footage: Path) -> None:
    (found,) = prepare_windows.cut(footage / "a.mp4", SETTINGS_64)
    assert found.frames.shape == (9, 64, 64, 3) and found.caption == "a room with balls"
    rows = json.loads(found.skeleton)
    assert len(rows) == 9 and rows[3]["keypoints"][:3] == [(43 - 8) * 0.8, 30 * 0.8, 2]


def test_a_model_describes_what_has_no_caption(
    backbone: Path, footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Teller:
        def __init__(self, folder: Path, _: str) -> None:
            assert folder == tmp_path

        def describe(self, frames: Any) -> Any:
            assert frames.shape == (9, 64, 64, 3)
            return captioner.Described("a ball", 0.5)

    monkeypatch.setattr(prepare_windows, "Captioner", Teller)
    settings = dataclasses.replace(SETTINGS_64, captioner=tmp_path)
    prepare_windows.fill(footage, tmp_path / "c", backbone, settings, device=CPU)
    found = windows.Windows([tmp_path / "c"], 1)
    assert [len(found.read(k).text) for k in (0, 1)] == [18, 7]  # one token a letter, and the end


def test_windows_that_are_there_are_not_made_again(
    cache: Path, footage: Path, backbone: Path
) -> None:
    assert prepare_windows.fill(footage, cache, backbone, SETTINGS_64, device=CPU) == 0


@pytest.mark.parametrize(
    "given", [{"frames": 10}, {"side": 48}, {"side": 32, "reference_scale": 2}]
)
def test_settings_that_no_backbone_can_make_are_refused(given: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        prepare_windows.Settings(**given)


def test_windows_of_another_scale_or_none_are_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="make the windows again"):
        windows.Windows([cache], 2)
    with pytest.raises(UsageError, match="semvc train windows"):
        windows.Windows([tmp_path], 1)


# --- steps


@pytest.mark.parametrize("packing", ["shared", "offset", "alternate"])
def test_one_step_moves_the_lora_and_nothing_else(
    backbone: Path, cache: Path, tmp_path: Path, packing: str
) -> None:
    run = trainer(made(backbone, packing=packing), cache, tmp_path)
    whole: Any = run.network.transformer
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    values = run.update(*run.recipe.stage_at(0))  # type: ignore[misc]
    moved = {n for n, value in whole.state_dict().items() if (value != before[n]).any()}
    assert moved and all(".lora_B." in name for name in moved)  # the other half begins at zero
    assert {n for n in before if ".lora_B." in n} == moved
    assert values["velocity"] > 0 and values["norm"] > 0


def test_only_noisy_target_tokens_count(backbone: Path, cache: Path, tmp_path: Path) -> None:
    run = trainer(made(backbone), cache, tmp_path)
    stage = dataclasses.replace(run.recipe.stages[0], options=ltx.Options(known=1.0))
    (given,) = run.batch(0, stage)
    made_ = run.task.forward(stage, [given])
    cells = 2 * 2
    assert given.known == cells and made_.found[0].shape == (1, cells, 8)
    wanted = given.noise - given.target.flatten(2).transpose(1, 2)
    assert torch.allclose(made_.wanted[0], wanted[:, cells:])


def test_references_are_read(backbone: Path, cache: Path, tmp_path: Path) -> None:
    run = trainer(made(backbone), cache, tmp_path)
    stage = run.recipe.stages[0]
    (given,) = run.batch(0)
    other = {n: x.flip(-1) for n, x in given.references.items()}
    with torch.no_grad():
        a, b, c = (
            run.task.forward(stage, [dataclasses.replace(given, references=x)]).found[0]
            for x in (given.references, other, {})
        )
    assert a.shape == b.shape == c.shape and (a != b).any() and (a != c).any()


def test_conditions_are_left_out_as_often_as_asked(
    backbone: Path, cache: Path, tmp_path: Path
) -> None:
    run = trainer(made(backbone), cache, tmp_path)
    stage = run.recipe.stages[0]
    none = dataclasses.replace(stage, options=ltx.Options(1.0, 1.0, 1.0, 1.0, 0.0))
    half = dataclasses.replace(stage, options=ltx.Options(0.0, 0.5, 0.0, 0.0, 0.0))
    for step in range(4):
        (given,) = run.batch(step, none)
        assert given.references == {} and int(given.mask.sum()) == 1 and given.known == 0
    seen = ["sketch" in run.batch(step, half)[0].references for step in range(40)]
    assert 8 < sum(seen) < 32


def test_noise_levels_rise_with_the_number_of_tokens() -> None:
    assert ltx.level_shift(1024) == pytest.approx(0.95)
    assert ltx.level_shift(4096) == pytest.approx(2.05)
    assert ltx.level_shift(2048) == pytest.approx(0.95 + 1.1 / 3)


def test_checkpointing_changes_no_gradient(backbone: Path, cache: Path, tmp_path: Path) -> None:
    grads = []
    for on in (True, False):
        run = trainer(made(backbone), cache, tmp_path)
        whole: Any = run.network.transformer
        assert whole.is_gradient_checkpointing
        if not on:
            whole.disable_gradient_checkpointing()
        stage = run.recipe.stages[0]
        batch = run.batch(0)
        run.task.losses(stage, batch, run.task.forward(stage, batch)).total.backward()
        grads.append([p.grad for _, p in run.network.named_parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_bfloat16_keeps_the_lora_in_float32(backbone: Path, cache: Path, tmp_path: Path) -> None:
    given = dataclasses.replace(made(backbone), bfloat16=True)
    run = trainer(given, cache, tmp_path)
    run.update(*given.stage_at(0))  # type: ignore[misc]
    assert {p.dtype for _, p in run.network.named_parameters()} == {torch.float32}
    layer: Any = run.network.transformer.transformer_blocks[0].attn1.to_v
    assert layer.weight.dtype == torch.bfloat16


def test_half_size_references_are_trained_too(
    backbone: Path, footage: Path, tmp_path: Path
) -> None:
    settings = dataclasses.replace(SETTINGS_64, reference_scale=2)
    prepare_windows.fill(footage, tmp_path / "c", backbone, settings, device=CPU)
    run = trainer(made(backbone, reference_scale=2), tmp_path / "c", tmp_path)
    (given,) = run.batch(0)
    assert given.references["base"].shape == (1, 8, 2, 1, 1)
    assert run.update(*run.recipe.stage_at(0))["velocity"] > 0  # type: ignore[misc]


def test_a_resumed_run_equals_the_straight_one(backbone: Path, cache: Path, tmp_path: Path) -> None:
    straight = trainer(made(backbone), cache, tmp_path / "a")
    straight.train()
    begun = trainer(made(backbone), cache, tmp_path / "b")
    for step in range(2):
        begun.update(*begun.recipe.stage_at(step))  # type: ignore[misc]
        begun.step += 1
    (tmp_path / "b").mkdir()
    begun.save()
    again = trainer(made(backbone), cache, tmp_path / "b")
    assert again.resume() and again.step == 2
    again.train()
    for name, value in straight.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name


def test_sample_pictures_show_original_base_and_guess(
    backbone: Path, cache: Path, tmp_path: Path
) -> None:
    run = trainer(made(backbone), cache, tmp_path)
    found = run.picture(run.recipe.stages[0])
    assert found.shape == (64, 3 * 64, 3) and found.dtype == torch.uint8


# --- recipes


def test_the_recipe_of_the_paper_is_read(tmp_path: Path) -> None:
    given = recipe.load(Path(ltx.__file__).parent / "recipes" / "disco-ltx-13b.toml")
    network = ltx.read_network(given)
    (stage,) = given.stages
    assert (network.rank, stage.steps, stage.rate, stage.final_rate) == (256, 8000, 2e-4, 0.0)
    assert given.bfloat16 and given.family == "ltx-lora" and network.packing == "shared"
    assert prepare_windows.Settings().frames == 57 and prepare_windows.Settings().side == 512
    assert loop.rate(stage, 4000) == pytest.approx(1e-4, rel=0.01)
    assert families.index_row("ltx-lora")["role"] == "lora"


@pytest.mark.parametrize(
    "changed",
    [{"packing": "other"}, {"rank": 0}, {"layers": []}, {"reference_scale": 3}, {"width": 1}],
)
def test_recipes_that_make_no_sense_are_refused(backbone: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ltx.read_network(made(backbone, **changed))
    with pytest.raises(UsageError, match="between 0 and 1"):
        ltx.Options(known=2.0)


def test_layers_that_are_not_there_are_refused(backbone: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="recipe of tiny"):
        trainer(made(backbone, layers=["no_such_layer"]), cache, tmp_path)


# --- from videos to a decoded stream


def test_a_trained_lora_is_decoded_as_it_was_trained(
    run: Call, backbone: Path, footage: Path, stream: Path, tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "ltx").symlink_to(backbone)
    row = made(backbone, packing="alternate").network
    text = "\n".join(f"{name} = {json.dumps(value)}" for name, value in row.items())
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'family = "ltx-lora"\nmodel = "mine"\nseed = 1\nbfloat16 = false\nema = 0.5\n[network]\n'
        f'{text}\n[[stage]]\nname = "s"\nsteps = 2\nbatch = 1\nrate = 0.05\nfinal_rate = 0.01\n'
        f"warmup = 1\n",
        "utf-8",
    )
    made_ = run(
        "train", "windows", tmp_path / "c", backbone, "--clips", footage, "--frames", "9",
        "--side", "64", "--most", "1", "--preset", "12", "--json",
    )  # fmt: skip
    assert json.loads(made_.out) == {"windows": 2}, made_.err
    done = run("train", "run", path, tmp_path / "r", "--cache", tmp_path / "c", "--quiet")
    assert done.code == 0, done.err
    assert run("train", "export", path, tmp_path / "r", tmp_path / "mine").code == 0
    file = tmp_path / "mine" / "weights.safetensors"
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["packing"] == "alternate"
        assert all(name.startswith("transformer.") for name in opened.keys())  # noqa: SIM118
    words = (
        "decode", stream, tmp_path / "a.mkv", "--tier", "full", "--steps", "1", "--dtype",
        "float32", "--models-dir", tmp_path / "m", "--lora", file, "--force",
    )  # fmt: skip
    done = run(*words)
    assert done.code == 0 and "no in-context LoRA" not in done.err, done.err
    done = run(*words, "--packing", "shared")
    assert done.code == 2 and "trained with --packing alternate" in done.err


def test_the_exported_file_changes_the_picture(backbone: Path, cache: Path, tmp_path: Path) -> None:
    run = trainer(made(backbone), cache, tmp_path)
    for step in range(2):
        run.update(*run.recipe.stage_at(step))  # type: ignore[misc]
    run.save()
    from semvc.train import checkpoint

    path = tmp_path / "lora.safetensors"
    checkpoint.export(tmp_path, path, ltx.notes(run.recipe))
    pictures = []
    for loras in ((), (path,)):
        settings = dataclasses.replace(SETTINGS["ltx"], loras=loras)
        opened = protocol.load("ltx", backbone, settings, CPU, torch.float32)
        pictures.append(opened.generate(opened.encode(conditions(9)), noise, 1))
    assert not np.array_equal(*pictures)
