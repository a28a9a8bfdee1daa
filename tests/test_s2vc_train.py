"""Training of profile s2vc: options, teachers, steps, resuming, export."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from s2vc_models import LARGE as LARGE_DECODER
from s2vc_models import TINY, write_backbone
from s2vc_training import (
    AUTOENCODER,
    CODEC,
    CODING,
    DECODING,
    JOINT,
    NETWORK,
    RECIPE,
    stage,
    task,
    trainer,
    write_training,
)
from safetensors.torch import load_file
from torch import Tensor

from semvc import weights
from semvc.errors import ModelError, UsageError
from semvc.nets import s2vc_runner, s2vc_synthesis
from semvc.signals.latentprior import read_prior
from semvc.train import families, losses, s2vc, s2vc_export, s2vc_teacher
from semvc.train.recipe import load
from semvc.train.s2vc import Options

pytestmark = pytest.mark.slow  # left to make test

RECIPES = Path(s2vc.__file__).parent / "recipes"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training(tmp_path_factory.mktemp("s2vc"))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(9)
        yield


# Options


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train": ()}, "train must name"),
        ({"train": ("unet",)}, "train must name"),
        ({"crop": 96}, "multiple of 64"),
        ({"frames": 0}, "frames >= 1"),
        ({"span": -1}, "span >= 0"),
        ({"stagger": 0}, "stagger is >= 1"),
        ({"window": 65}, "a window at most"),
        ({"lambdas": (1.0, 0.0)}, "two positive"),
        ({"train": ("codec", "autoencoder")}, "alone or with the decoder"),
    ],
)
def test_options_that_make_no_sense_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(CODING, **changed)


def test_the_weight_of_the_rate_falls_with_quality() -> None:
    weights = s2vc.trade(torch.tensor([0.0, 31.5, 63.0]), (5.0, 0.2)).tolist()
    assert weights == pytest.approx([5.0, 1.0, 0.2], rel=1e-5)


@pytest.mark.parametrize(
    ("count", "most", "expected"), [(4, 0, 4), (4, 9, 4), (8, 3, 3), (2, 1, 1)]
)
def test_judged_frames_are_spread_and_hold_the_last(count: int, most: int, expected: int) -> None:
    found = s2vc._spread(count, most)
    assert len(found) == len(set(found)) == expected
    assert max(found) == count - 1
    assert min(found) >= 0


def test_windows_of_some_frames_are_judged_and_never_none() -> None:
    stage = replace(CODING, crop=128, frames=3, stagger=4, window=64)
    where = torch.arange(128.0 * 128).view(128, 128)
    true = [
        torch.stack([torch.stack([where * 0 + 2 * t + b, where]) for b in (0, 1)]) for t in range(3)
    ]
    frames, places = set(), set()
    for quality in torch.rand(60, 1) * 63:
        found = s2vc._judged(stage, true, quality)
        assert len(found) in (1, 2) and found.shape[2:] == (64, 64)
        frames |= set(found[:, 0, 0, 0].tolist())
        places |= set(found[:, 1, 0, 0].tolist())
    assert frames == set(range(6)) and len(places) > 30
    assert len(s2vc._judged(replace(stage, stagger=1, window=0), true, quality)) == 6


@pytest.mark.parametrize("name", ["s2vc-small-v1", "s2vc-sd15"])
def test_shipped_recipes_are_read(name: str) -> None:
    recipe = load(RECIPES / f"{name}.toml")
    assert recipe.family == "s2vc"
    lengths = [s.options.frames for s in recipe.stages]
    assert max(lengths) == 32
    last = recipe.stages[-1].options
    assert (last.l1, last.lpips, last.semantic, last.motion) == (1.0, 1.0, 0.001, 0.25)


def test_the_recipes_networks_are_the_dials() -> None:
    from semvc.nets import s2vc_codec, s2vc_decoder

    def plain(values: Any) -> Any:
        if isinstance(values, dict):
            return {k: plain(v) for k, v in values.items() if k not in ("csg", "tcg")}
        return list(values) if isinstance(values, tuple) else values

    for name, codec, decoder in (
        ("s2vc-small-v1", s2vc_codec.SMALL, s2vc_decoder.SMALL),
        ("s2vc-sd15", s2vc_codec.FULL, s2vc_decoder.SD15),
    ):
        network = load(RECIPES / f"{name}.toml").network
        assert plain(network["codec"]) == plain(codec)
        assert plain(network["decoder"]) == plain(decoder)


# Teachers


def test_the_teacher_sees_cells_of_32_samples(shared: Path) -> None:
    teacher = s2vc_teacher.VggTeacher(losses.Perceptual(shared / "metrics"))
    found = teacher(torch.rand(2, 3, 128, 192) * 2 - 1)
    assert found.shape == (2, teacher.channels, 4, 6)
    assert torch.allclose(found.mean(1), torch.zeros(2, 4, 6), atol=1e-5)
    guess = s2vc_teacher.Predictor(16, teacher.channels)(torch.randn(2, 6, 16), (2, 3))
    assert guess.shape == found.shape


def test_a_predictor_keeps_the_tokens_arrangement() -> None:
    predictor = s2vc_teacher.Predictor(4, 3)
    tokens = torch.zeros(1, 6, 4)
    tokens[0, 4] = 1  # row 1, column 1 of 2 x 3
    moved = (predictor(tokens, (2, 3)) - predictor(0 * tokens, (2, 3))).abs().amax((0, 1)) > 0
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[2:4, 2:4] = True
    assert torch.equal(moved, expected)


def test_a_teacher_from_a_folder_needs_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"semvc\[full\]"):
        s2vc_teacher.DinoTeacher(tmp_path, torch.device("cpu"))


def test_a_vision_transformer_of_a_folder_teaches(tmp_path: Path) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install 'semvc[full]'"
    )
    config = transformers.DINOv3ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        patch_size=16,
        num_register_tokens=2,
    )
    transformers.DINOv3ViTModel(config).save_pretrained(tmp_path)
    teacher = s2vc_teacher.DinoTeacher(tmp_path, torch.device("cpu"))
    assert teacher(torch.rand(2, 3, 64, 128) * 2 - 1).shape == (2, 16, 2, 4)


# Steps


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (AUTOENCODER, {"l1", "lpips", "dists"}),
        (CODING, {"traded", "bpp", "preview", "preview_lpips"}),
        (DECODING, {"l1", "lpips", "dists", "semantic", "motion", "latent"}),
        (JOINT, {"traded", "bpp", "l1", "lpips", "dists", "semantic", "motion", "preview"}),
    ],
)
def test_a_stage_has_its_losses_and_trains_its_parts(
    shared: Path, options: Options, expected: set[str]
) -> None:
    given, made_by = task(shared), stage(options)
    batch = given.batch(made_by, (1, 0))
    found = given.losses(made_by, batch, given.forward(made_by, batch))
    assert found.values.keys() == expected
    found.total.backward()
    moved = {n for n, p in given.network.named_parameters() if p.grad is not None}
    owners = {
        ".".join(n.split(".")[:2]) if n.startswith("decoder.auto") else n.split(".")[0]
        for n in moved
    }
    wanted = {
        "codec": {"codec", "rate"},
        "autoencoder": {"decoder.autoencoder"},
        "decoder": {"decoder", "predictor"},
    }
    assert owners == set().union(*(wanted[part] for part in options.train))


def test_every_weight_of_the_small_model_is_trained_in_some_stage(shared: Path) -> None:
    given = task(shared)
    moved: set[str] = set()
    for options in (AUTOENCODER, CODING, replace(JOINT, frames=3)):
        made_by = stage(options)
        batch = given.batch(made_by, (1, 0))
        given.network.zero_grad(set_to_none=True)
        given.losses(made_by, batch, given.forward(made_by, batch)).total.backward()
        moved |= {n for n, p in given.network.named_parameters() if p.grad is not None}
    left = {n for n, _ in given.network.named_parameters()} - moved
    assert left == set()


def test_gradients_reach_earlier_frames_by_cascade_alone(shared: Path) -> None:
    given = task(shared)
    for p in given.network.decoder.parameters():  # no layer shall be zero
        torch.nn.init.normal_(p, std=0.2)

    def reached(cascade: bool) -> bool:
        seen: list[Tensor] = []
        hook = given.network.decoder.unet.down_blocks[0].register_forward_hook(
            lambda _m, _a, out: seen.append(out[0])
        )
        options = replace(DECODING, cascade=cascade, frames=2)
        made = given.forward(stage(options), given.batch(stage(options), (1, 0)))
        hook.remove()
        seen[0].retain_grad()
        made.frames[1].sum().backward()
        return seen[0].grad is not None and bool(seen[0].grad.any())

    assert reached(True)
    assert not reached(False)


@pytest.mark.parametrize(("span", "reached"), [(0, True), (3, True), (2, False), (1, False)])
def test_gradients_pass_over_as_many_frames_of_the_codec_as_allowed(
    shared: Path, span: int, reached: bool
) -> None:
    given, options = task(shared), replace(CODING, frames=3, span=span)
    made = given.forward(stage(options), given.batch(stage(options), (1, 0)))
    made.previews[2].sum().backward()
    first, last = given.network.codec.intra.embed[1], given.network.codec.head[1]
    assert last.weight.grad is not None and bool(last.weight.grad.any())
    assert (first.weight.grad is not None and bool(first.weight.grad.any())) == reached


def test_a_decoder_without_guidance_does_not_read_the_frame_before(shared: Path) -> None:
    network = NETWORK | {"decoder": TINY | {"csg": False, "tcg": False}}
    decoder = task(shared, replace(RECIPE, network=network)).network.decoder
    for p in decoder.parameters():
        torch.nn.init.normal_(p, std=0.1)
    one, two, now = (torch.randn(1, 8, 8, 8) for _ in range(3))
    with torch.no_grad():
        a, b = (decoder(now, decoder(f, None)[1])[0] for f in (one, two))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "name", "share"),
    [(AUTOENCODER, "l1", 0.97), (CODING, "preview", 0.97), (DECODING, "latent", 0.9)],
)
def test_the_loss_falls_on_one_batch(
    shared: Path, tmp_path: Path, options: Options, name: str, share: float
) -> None:
    recipe = replace(RECIPE, stages=(stage(options, steps=1000, rate=1e-2),))
    given = trainer(shared, tmp_path, recipe)
    batch = given.batch(0)
    values = [float(given.update(recipe.stages[0], 0, batch)[name]) for _ in range(16)]
    assert values[-1] < share * values[0]


def test_the_rate_falls_if_it_costs_enough(shared: Path, tmp_path: Path) -> None:
    options = replace(CODING, lambdas=(50.0, 50.0))
    recipe = replace(RECIPE, stages=(stage(options, steps=1000, rate=5e-3),))
    given = trainer(shared, tmp_path, recipe)
    batch = given.batch(0)
    values = [given.update(recipe.stages[0], 0, batch) for _ in range(16)]
    assert float(values[-1]["bpp"]) < 0.8 * float(values[0]["bpp"])


def test_an_adversarial_stage_trains_its_critic(shared: Path, tmp_path: Path) -> None:
    options = replace(DECODING, adversarial=0.1)
    recipe = replace(RECIPE, stages=(stage(options),), critic={"width": 4})
    given = trainer(shared, tmp_path, recipe)
    assert given.task.critic is not None
    before = [p.detach().clone() for p in given.task.critic.parameters()]
    values = given.update(recipe.stages[0], 0)
    assert {"critic", "adversarial"} <= values.keys()
    after = list(given.task.critic.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_training_in_bfloat16_runs(shared: Path, tmp_path: Path) -> None:
    given = trainer(shared, tmp_path, replace(RECIPE, bfloat16=True))
    for made_by in RECIPE.stages:
        values = given.update(made_by, 0)
        assert all(math.isfinite(float(v)) for v in values.values())


def test_sample_pictures_have_a_column_for_each_kind(shared: Path) -> None:
    given = task(shared)
    for options, columns in ((AUTOENCODER, 2), (CODING, 2), (JOINT, 3)):
        made_by = stage(options)
        batch = given.batch(made_by, (1, 0))
        with torch.no_grad():
            image = given.picture(made_by, batch, given.forward(made_by, batch))
        assert image.shape == (2 * 64, columns * 64, 3)
        assert image.dtype == torch.uint8


def test_losses_that_need_vgg_ask_for_it(shared: Path) -> None:
    inputs = families.Inputs([shared / "cache"], None, torch.device("cpu"), torch.float32)
    with pytest.raises(UsageError, match="--metric-weights"):
        s2vc.build(RECIPE, inputs)


def test_a_recipe_with_another_network_is_refused(shared: Path) -> None:
    with pytest.raises(UsageError, match="recipe of tiny-v1"):
        task(shared, replace(RECIPE, network={"codec": CODEC | {"wings": 2}, "decoder": TINY}))


@pytest.mark.slow
def test_a_pretrained_backbone_is_neither_trained_nor_saved(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed: pip install 'semvc[full]'")
    write_backbone(tmp_path)
    network = NETWORK | {"decoder": LARGE_DECODER, "backbone": str(tmp_path)}
    joint = replace(JOINT, train=("codec", "decoder"), frames=2)
    recipe = replace(RECIPE, network=network, stages=(stage(joint),))
    (tmp_path / "run").mkdir()
    given = trainer(shared, tmp_path / "run", recipe)
    given.update(recipe.stages[0], 0)
    names = {n for n, _ in given.network.named_parameters()}
    assert names == set(given.network.state_dict())
    assert any(".lora_A." in n for n in names)
    assert not any(n.endswith("base_layer.weight") or "autoencoder" in n for n in names)
    given.save()
    again = trainer(shared, tmp_path / "run", recipe)
    assert again.resume()


# Runs


def checkpoint(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "checkpoint.safetensors")


@pytest.fixture(scope="module")
def straight(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run through all stages."""
    folder = tmp_path_factory.mktemp("straight")
    assert trainer(shared, folder).train().complete
    return folder


@pytest.mark.parametrize("at", [5])
@pytest.mark.slow
def test_a_resumed_run_equals_the_straight_one(
    shared: Path, straight: Path, tmp_path: Path, at: int
) -> None:
    first = trainer(shared, tmp_path)
    for first.step in range(at):
        found = first.stage()
        assert found is not None
        first.update(*found)
    first.step = at
    first.save()
    second = trainer(shared, tmp_path)
    assert second.resume()
    assert second.train().complete
    expected, got = checkpoint(straight), checkpoint(tmp_path)
    assert expected.keys() == got.keys()
    assert [n for n in expected if not torch.equal(expected[n], got[n])] == []


def test_a_run_becomes_a_model_folder(shared: Path, straight: Path, tmp_path: Path) -> None:
    settings = s2vc_export.Settings(count=4, frames=3)
    model = tmp_path / "tiny-v1"
    report = s2vc_export.export(RECIPE, straight, model, [shared / "cache"], settings)
    assert report.fitted > 0
    row = s2vc_export.index_row(RECIPE, model)
    lines = [f"{name} = {json.dumps(value)}" for name, value in row.items()]
    (tmp_path / "index.toml").write_text("\n".join(["[[model]]", *lines]), "utf-8")
    ref = weights.for_profile("s2vc", "small", tmp_path, codec="tiny-v1")
    assert weights.resolve(ref, tmp_path) == model
    assert weights.codec_for("s2vc", tmp_path) == ref
    assert read_prior(model).nets.keys() == {(i, h) for i in (0, 1) for h in (0, 1)}
    tensors = load_file(model / "weights.safetensors")
    assert {n.split(".")[0] for n in tensors} == {"codec", "decoder", "prior"}
    assert not any("autoencoder.encoder" in n for n in tensors)
    decoder = s2vc_synthesis.build(model, torch.device("cpu"), torch.float32)
    assert decoder(torch.randn(1, 8, 8, 8), None)[0].shape == (1, 3, 64, 64)
    s2vc_runner.build(model, torch.device("cpu"), torch.float32)


def test_training_goes_on_from_a_model_folder(shared: Path, straight: Path, tmp_path: Path) -> None:
    settings = s2vc_export.Settings(count=4, frames=2)
    s2vc_export.export(RECIPE, straight, tmp_path / "m", [shared / "cache"], settings)
    found = trainer(shared, tmp_path / "run", start=tmp_path / "m")
    own, tensors = found.network.state_dict(), load_file(tmp_path / "m" / weights.WEIGHTS)
    assert found.started_from == weights.sha256(tmp_path / "m" / weights.WEIGHTS)
    shipped = {n: t for n, t in tensors.items() if not n.startswith("prior.")}
    assert [n for n, t in shipped.items() if not torch.equal(own[n], t.float())] == []
    del tensors["codec.head.1.bias"]
    with pytest.raises(RuntimeError, match="1 tensors are missing or unknown"):
        found.network.load_state_dict(tensors)
    with pytest.raises(RuntimeError, match=r"as rate\."):  # no model folder
        kept = {n: t for n, t in own.items() if not n.startswith("rate.")}
        found.network.load_state_dict(kept)


def test_an_export_without_weights_is_refused(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to start from"):
        s2vc_export.export(
            RECIPE, tmp_path, tmp_path / "m", [shared / "cache"], s2vc_export.Settings()
        )


@pytest.mark.slow
def test_training_the_small_model_imports_no_codec_library() -> None:
    blocked = ("av", "constriction", "diffusers", "peft", "transformers")
    code = (
        f"import sys\nfor n in {blocked!r}: sys.modules[n] = None\n"
        "import semvc.train.s2vc, semvc.train.loop\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
