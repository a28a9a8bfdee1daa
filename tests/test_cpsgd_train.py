"""Training of profile cpsgd: its cache, its preparation, its task in the loop."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache import write_metric_weights
from program import environment
from safetensors.torch import save_file
from test_cpsgd_nets import TINY

from semvc.errors import UsageError
from semvc.nets import scene_restore
from semvc.nets.cpsgd_generator import CpsgdGenerator, SceneInputs
from semvc.nets.generator import Conditioning, Generator, Memory
from semvc.train import checkpoint, cpsgd, families, loop, prepare_scenes, recipe
from semvc.train.scene_data import FIELDS, SceneCache

pytestmark = pytest.mark.slow  # left to make test

RECIPE = """
family = "cpsgd-small"
model = "tiny"
seed = 3
bfloat16 = false
sample_minutes = 0.0

[network]
{network}

[critic]
width = 4

[[stage]]
name = "one"
steps = 6
batch = 2
unroll = 2
crop = 32
rate = 2e-3
final_rate = 1e-3
warmup = 1
lpips = 0.1
temporal = 0.5
adversarial = {adversarial}
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples of procedural scenes, smaller than usual."""
    folder = tmp_path_factory.mktemp("scenes")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SIDE": 48, "LENGTH": 3, "SHARD": 3, "_FRAME": 64}.items():
            patch.setattr(prepare_scenes, name, value)
        patch.setattr(prepare_scenes, "_SPANS", (6, 9))
        random = np.random.default_rng(4)
        shots = prepare_scenes.photo_shots(prepare_scenes.textures(random), random)
        assert prepare_scenes.prepare(shots, folder, shards=2, per_shot=2, seed=1) == 2
    return folder


def load(tmp_path: Path, adversarial: float = 0.0) -> recipe.Recipe:
    lines = [f"{k} = {list(v) if isinstance(v, tuple) else v}" for k, v in TINY.items()]
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(network="\n".join(lines), adversarial=adversarial))
    return recipe.load(path)


def trainer(
    tmp_path: Path, cache: Path, adversarial: float = 0.0, start: Path | None = None
) -> loop.Trainer:
    metrics = tmp_path / "metrics"
    if not metrics.exists():
        write_metric_weights(metrics)
    run = loop.Run(tmp_path / "run", [cache], metrics, start=start)
    return loop.Trainer(load(tmp_path, adversarial), run)


def test_prepared_samples_have_their_fields(cache: Path) -> None:
    shapes = {n: np.load(cache / "00000" / f"{n}.npy") for n in FIELDS}
    assert shapes["source"].shape == shapes["base"].shape == (3, 3, 48, 48, 3)
    assert shapes["before"].shape == shapes["after"].shape == (3, 3, 48, 48, 4)
    assert shapes["control"].shape == (3, 3, 48, 48, 5) and shapes["control"].dtype == np.uint8
    assert shapes["rays"].shape == (3, 3, 6, 12, 12) and shapes["rays"].dtype == np.float16
    assert shapes["phase"].shape == (3, 3) and shapes["settings"].shape == (3, 3)
    norm = np.linalg.norm(shapes["rays"][:, :, 3:].astype(np.float32), axis=2)
    assert np.allclose(norm, 1, atol=2e-3)


def test_what_needs_no_model_is_near_the_source(cache: Path) -> None:
    for shard in sorted(cache.iterdir()):
        source, base = (np.load(shard / f"{n}.npy").astype(float) for n in ("source", "base"))
        spread = np.abs(source - source.mean((2, 3), keepdims=True)).mean()
        assert np.abs(source - base).mean() < 0.8 * spread


def test_a_batch_depends_on_its_key_alone(cache: Path) -> None:
    scenes = SceneCache([cache])
    first, again, other = (scenes.batch(2, unroll=2, crop=32, key=(1, k)) for k in (5, 5, 6))
    for field in dataclasses.fields(first):
        assert torch.equal(getattr(first, field.name), getattr(again, field.name))
    assert not torch.equal(first.source, other.source)
    inputs = first.inputs(1, control=True)
    assert inputs.base.shape == (2, 3, 32, 32) and inputs.rays.shape == (2, 6, 8, 8)
    assert inputs.before.shape == (2, 4, 32, 32)
    assert float(inputs.base.min()) >= -1 and float(inputs.before[:, 3].max()) <= 1
    assert first.inputs(0, control=False).control is None
    with pytest.raises(UsageError, match="holds no 9"):
        scenes.batch(1, unroll=9, crop=32, key=(1, 1))


def test_crops_of_rays_stay_with_their_pictures(cache: Path) -> None:
    scenes = SceneCache([cache])
    whole = scenes.batch(1, unroll=1, crop=48, key=(1, 1)).rays[0, 0]
    assert whole.shape == (6, 12, 12)
    for step in range(6):
        part = scenes.batch(1, unroll=1, crop=16, key=(1, step)).rays[0, 0]
        assert part.shape == (6, 4, 4)


def test_mirrored_crops_have_mirrored_rays(cache: Path) -> None:
    scenes = SceneCache([cache])
    seen = [scenes.batch(1, unroll=3, crop=48, key=(2, k)) for k in range(40)]
    alike = [
        (a, b)
        for a, b in itertools.combinations(seen, 2)
        if torch.equal(a.source, b.source.flip(3)) and not torch.equal(a.source, b.source)
    ]
    assert alike
    first, second = alike[0]
    rays, other = first.rays.float(), second.rays.flip(4).float()
    assert torch.allclose(rays[:, :, 3], -other[:, :, 3]) and rays[:, :, 3].any()
    position = torch.linalg.cross(rays[:, :, 3:], rays[:, :, :3], dim=2)  # d x (o x d)
    mirrored = torch.linalg.cross(other[:, :, 3:], other[:, :, :3], dim=2)
    assert torch.allclose(position[:, :, 0], -mirrored[:, :, 0], atol=2e-3)
    assert torch.allclose(position[:, :, 1:], mirrored[:, :, 1:], atol=2e-3)


@pytest.mark.parametrize("adversarial", [0.0, 0.1])
def test_the_loss_falls_on_one_batch(tmp_path: Path, cache: Path, adversarial: float) -> None:
    one = trainer(tmp_path, cache, adversarial)
    stage, _ = one.recipe.stage_at(0) or (None, 0)
    assert stage is not None
    batch = one.batch(0)
    rows = [one.update(stage, 2, batch) for _ in range(25)]
    assert float(rows[-1]["charbonnier"]) < 0.97 * float(rows[0]["charbonnier"])
    assert ("critic" in rows[0]) == bool(adversarial)
    picture = one.picture(stage)
    assert picture.shape == (64, 96, 3) and picture.dtype == torch.uint8


def test_weights_are_stored_in_half_the_bytes_and_come_back() -> None:
    draw = torch.Generator().manual_seed(3)
    sizes = {"widths": (32, 48, 64), "control": (16, 24, 32), "pose": 24}
    tensors = {
        name: p.detach() + 0.02 * torch.randn(p.shape, generator=draw)
        for name, p in CpsgdGenerator(**TINY | sizes).named_parameters()
    }
    kept = cpsgd.stored(tensors)
    assert kept["stem.weight"].dtype == torch.float16
    assert kept["mid.blocks.0.first.weight"].dtype == torch.int8
    size = sum(t.numel() * t.element_size() for t in kept.values())
    assert size < 0.65 * sum(2 * t.numel() for t in tensors.values())
    again = scene_restore.unpacked(kept)
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        largest = tensor.abs().reshape(len(tensor), -1).amax(1) if tensor.ndim else tensor.abs()
        apart = (again[name].float() - tensor).abs().reshape(len(tensor), -1).amax(1)
        assert (apart <= largest / 250 + 1e-5).all(), name


def test_what_is_exported_is_read_again(tmp_path: Path, cache: Path) -> None:
    done = trainer(tmp_path, cache)
    (tmp_path / "run").mkdir()
    done.save()
    folder = tmp_path / "model"
    checkpoint.export(tmp_path / "run", folder / "weights.safetensors", None, cpsgd.stored)
    (folder / "config.toml").write_text(families.config(done.recipe))
    found = scene_restore.build(folder, torch.device("cpu"), torch.float32)
    for name, p in found.named_parameters():
        assert torch.allclose(p, done.average[name], atol=2e-3), name
    again = trainer(tmp_path, cache, start=folder)
    for name, p in again.network.named_parameters():
        assert torch.allclose(p, done.average[name], atol=2e-3), name


@pytest.mark.parametrize("depth", [1, 3])
def test_a_run_may_start_from_weights_of_profile_disco(
    depth: int, tmp_path: Path, cache: Path
) -> None:
    given = {name: TINY[name] for name in ("widths", "embedding", "memory")}
    given["depths"] = (depth, 1, 1)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        disco = Generator(**given).eval()
        for name, p in disco.named_parameters():
            idle = ".blocks.1." in name or ".blocks.2." in name  # adds nothing
            p.copy_(torch.randn(p.shape, generator=draw) * (0.0 if idle else 0.1))
        save_file(dict(disco.state_dict()), tmp_path / "disco.safetensors")
        begun = trainer(tmp_path, cache, start=tmp_path / "disco.safetensors").network.eval()
        noisy, *views = (torch.rand(2, 3, 32, 32, generator=draw) * 2 - 1 for _ in range(4))
        frame, features = views[0], torch.rand(2, TINY["memory"], 4, 4, generator=draw)
        crf, factor, phase = torch.tensor([[30.0, 60.0], [0.0, 1.0], [0.25, 0.5]])
        level, valid = torch.tensor([999, 400]), torch.rand(2, 1, 32, 32, generator=draw)
        scene = SceneInputs(
            base=views[1],
            before=torch.cat([views[0], valid], 1),
            after=torch.cat([views[2], valid], 1),
            rays=torch.rand(2, 6, 8, 8, generator=draw),
            control=torch.rand(2, 5, 32, 32, generator=draw),
            crf=crf,
            factor_log2=factor,
            phase=phase,
        )
        seen = Conditioning(torch.cat(views, 1), None, None, crf, factor, crf * 0, phase)
        wanted, _ = disco(noisy, level, seen, Memory(frame, features))
        for control in (None, scene.control):
            inputs = dataclasses.replace(scene, control=control)
            found, _ = begun(noisy, level, inputs, Memory(frame, features))
            assert torch.allclose(found, wanted, atol=0.02 if control is not None else 1e-4)
    assert not torch.allclose(wanted, views[1], atol=0.1)


def test_a_resumed_run_equals_the_straight_one(tmp_path: Path, cache: Path) -> None:
    straight = trainer(tmp_path, cache)
    assert straight.train().complete
    wanted = {n: t.clone() for n, t in straight.network.state_dict().items()}
    (tmp_path / "run").rename(tmp_path / "old")
    begun = trainer(tmp_path, cache)
    for step in range(3):
        stage, at = begun.recipe.stage_at(step) or (None, 0)
        assert stage is not None
        begun.update(stage, at)
        begun.step += 1
    begun.run.folder.mkdir()
    begun.save()
    again = trainer(tmp_path, cache)
    assert again.resume() and again.step == 3
    again.train()
    for name, value in again.network.state_dict().items():
        assert torch.allclose(value, wanted[name], atol=1e-6), name


def test_wrong_recipes_are_refused(tmp_path: Path, cache: Path) -> None:
    good = load(tmp_path)
    with pytest.raises(UsageError, match="multiple of 16"):
        families.options("cpsgd-small")(unroll=1, crop=40)
    wrong = dataclasses.replace(good, network={**good.network, "widths": (8, 12)})
    inputs: Any = families.Inputs([cache], tmp_path, torch.device("cpu"), torch.float32)
    with pytest.raises((UsageError, ValueError)):
        families.build(wrong, inputs)
    assert "widths" in families.config(good)
    assert families.index_row("cpsgd-small")["profile"] == "cpsgd"


def test_the_shipped_recipe_is_read() -> None:
    folder = Path(recipe.__file__).parent / "recipes"
    found = recipe.load(folder / "cpsgd-small-v1.toml")
    assert found.family == "cpsgd-small" and found.model == "cpsgd-small-v1"


def test_training_needs_no_media_libraries() -> None:
    script = (
        "import sys\n"
        "for name in ('av', 'constriction', 'diffusers', 'cv2'): sys.modules[name] = None\n"
        "import semvc.train.cpsgd, semvc.train.loop, semvc.train.scene_data\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_pictures_come_endlessly() -> None:
    random = np.random.default_rng(1)
    found = list(itertools.islice(prepare_scenes.textures(random), 2))
    assert all(p.dtype == np.uint8 and p.ndim == 3 and p.std() > 10 for p in found)
    assert not np.array_equal(*found)
