"""Rays, the generator of profile cpsgd, and how it is run over a segment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conformance import VECTORS
from modelfolder import write_models
from program import call
from safetensors.torch import save_file
from scene import Scene
from test_reprojection import conditions

from semvc import weights
from semvc.errors import ModelError
from semvc.nets import scene_restore
from semvc.nets.cpsgd_generator import CpsgdGenerator, SceneInputs
from semvc.nets.plucker import rays
from semvc.nets.reprojection import Stage
from semvc.nets.scene_restore import SceneRestorer
from semvc.signals.camera import rotation
from semvc.train import families

TINY: dict[str, Any] = {
    "widths": (8, 12, 16),
    "depths": (1, 1, 1),
    "embedding": 8,
    "memory": 4,
    "pose": 6,
    "control": (4, 6, 8),
}
K = np.array([[80.0, 0, 32], [0, 80, 24], [0, 0, 1]])


def fresh() -> CpsgdGenerator:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return CpsgdGenerator(**TINY).eval().requires_grad_(False)


def filled(seed: int = 1) -> CpsgdGenerator:
    network, draw = fresh(), torch.Generator().manual_seed(seed)
    for p in network.parameters():
        std = 1 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.05
        p.copy_(torch.randn(p.shape, generator=draw) * std)
    return network


# --- rays


def test_a_ray_goes_through_the_centre_of_its_sample() -> None:
    found = rays(np.eye(3), np.zeros(3), K, size=(48, 64))
    assert found.shape == (6, 48, 64) and found.dtype == np.float32
    assert np.allclose(found[:3], 0)
    wanted = np.array([(10.5 - 32) / 80, (20.5 - 24) / 80, 1])
    assert np.allclose(found[3:, 20, 10], wanted / np.linalg.norm(wanted), atol=1e-6)


def test_points_of_a_ray_satisfy_its_coordinates_wherever_the_camera_stands() -> None:
    turn = rotation(np.array([0.1, -0.3, 0.05]))
    stand = np.array([0.4, -0.2, 1.0])
    found = rays(turn, stand, K, size=(48, 64)).astype(np.float64)
    moment, direction = found[:3, 7, 50], found[3:, 7, 50]
    assert np.linalg.norm(direction) == pytest.approx(1, abs=1e-6)
    for along in (-2.0, 0.5, 3.0):
        point = stand + along * direction
        assert np.allclose(np.cross(point, direction), moment, atol=1e-6)
    seen = turn @ (point - stand)  # where the camera sees that point
    assert np.allclose(K @ seen / seen[2], (50.5, 7.5, 1), atol=1e-4)


def test_cells_look_through_their_centres_and_cover_the_picture() -> None:
    fine = rays(np.eye(3), np.ones(3), K, size=(46, 64))
    coarse = rays(np.eye(3), np.ones(3), K, size=(46, 64), cell=4)
    assert coarse.shape == (6, 12, 16)
    around = fine[:, 8:12, 20:24].mean((1, 2))
    assert np.allclose(coarse[:, 2, 5], around, atol=1e-3)


def test_length_scales_the_moment_and_nothing_else() -> None:
    near = rays(np.eye(3), np.array([0.1, 0.2, 0.3]), K, size=(8, 8))
    far = rays(np.eye(3), np.array([1.0, 2.0, 3.0]), K, size=(8, 8))
    assert np.allclose(far[:3], 10 * near[:3], atol=1e-5) and np.array_equal(far[3:], near[3:])


# --- the generator


def given(batch: int = 1, side: int = 32, *, control: bool = True) -> SceneInputs:
    draw = torch.Generator().manual_seed(3)

    def image(channels: int, size: int = side) -> torch.Tensor:
        return torch.rand((batch, channels, size, size), generator=draw) * 2 - 1

    return SceneInputs(
        base=image(3),
        before=image(4),
        after=image(4),
        rays=image(6, side // 4),
        control=image(5) if control else None,
        crf=torch.full((batch,), 40.0),
        factor_log2=torch.zeros(batch),
        phase=torch.full((batch,), 0.25),
    )


def run(network: CpsgdGenerator, inputs: SceneInputs, memory: Any = None) -> Any:
    sample = torch.randn(inputs.base.shape, generator=torch.Generator().manual_seed(4))
    return network(sample, torch.full(inputs.crf.shape, 999), inputs, memory)


def test_an_untrained_generator_shows_the_preview() -> None:
    inputs = given()
    frame, memory = run(fresh(), inputs)
    assert torch.equal(frame, inputs.base)
    assert memory.features.shape == (1, 4, 4, 4)


@pytest.mark.parametrize("name", ["base", "before", "after", "rays", "control", "crf", "phase"])
def test_every_input_counts_in_a_trained_one(name: str) -> None:
    network, inputs = filled(), given()
    plain, memory = run(network, inputs)
    values = {field: getattr(inputs, field) for field in SceneInputs.__dataclass_fields__}
    values[name] = values[name] + 0.5
    other, _ = run(network, SceneInputs(**values))
    shift = 0.5 if name == "base" else 0.0
    assert (other - plain - shift).abs().max() > 1e-4
    again, _ = run(network, inputs, memory)
    assert (again - plain).abs().max() > 1e-4


def test_a_zero_initialised_branch_changes_nothing_at_first() -> None:
    network = filled()
    for module in (network.control.outs, network.pose.outs):
        for layer in module:
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    with_masks, _ = run(network, given())
    values = {f: getattr(given(), f) for f in SceneInputs.__dataclass_fields__}
    values["rays"] = values["rays"] * 0
    values["control"] = values["control"] * 0
    assert torch.equal(with_masks, run(network, SceneInputs(**values))[0])


def test_a_place_does_not_depend_on_the_size_of_the_frame() -> None:
    network = filled()
    inputs = given(side=96)
    whole, _ = run(network, inputs)
    assert whole.shape == (1, 3, 96, 96) and torch.isfinite(whole).all()


def test_the_bundled_size_stays_below_twelve_megabytes() -> None:
    import tomllib

    from semvc import train

    path = Path(train.__file__).parent / "recipes" / "cpsgd-small-v1.toml"
    network = CpsgdGenerator(**tomllib.loads(path.read_text())["network"])
    assert 2 * sum(p.numel() for p in network.parameters()) < 12_000_000


# --- over a segment


def restorer(network: CpsgdGenerator, steps: int = 1) -> SceneRestorer:
    device = torch.device("cpu")
    return SceneRestorer(network, device=device, dtype=torch.float32, steps=steps, seed=7)


def test_an_untrained_model_gives_the_previews_of_a_segment() -> None:
    scene = conditions(Scene(50, 36, 5), (0, 4), masks=True)
    stage = Stage(scene)
    for t, frame in enumerate(restorer(fresh()).frames(scene, 0)):
        assert np.array_equal(frame, stage.frame(t).preview())


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_trained_model_gives_frames_that_depend_on_the_seed_alone(
    masks: bool, steps: int
) -> None:
    scene = conditions(Scene(50, 36, 4), (0, 3), masks=masks)
    one = np.stack(list(restorer(filled(), steps).frames(scene, 2)))
    two = np.stack(list(restorer(filled(), steps).frames(scene, 2)))
    assert one.shape == (4, 36, 50, 3) and one.dtype == np.uint8
    assert np.array_equal(one, two)
    assert not np.array_equal(one, np.stack(list(restorer(filled(), steps).frames(scene, 3))))


def test_a_model_folder_is_read_and_a_wrong_one_refused(tmp_path: Path) -> None:
    network = filled()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    lines = [f"{k} = {list(v) if isinstance(v, tuple) else v}" for k, v in TINY.items()]
    (tmp_path / "config.toml").write_text("[network]\n" + "\n".join(lines) + "\n")
    found = scene_restore.build(tmp_path, torch.device("cpu"), torch.float32)
    assert torch.allclose(run(found, given())[0], run(network, given())[0], atol=1e-4)
    (tmp_path / "config.toml").write_text("[network]\n" + "\n".join(lines[:-1]) + "\n")
    with pytest.raises(ModelError, match="does not fit"):
        scene_restore.build(tmp_path, torch.device("cpu"), torch.float32)


def test_a_stream_is_decoded_by_an_installed_model_and_its_fallen_segments_by_discos(
    tmp_path: Path, capfd: Any
) -> None:
    folder = tmp_path / "models" / "tiny-scenes"
    folder.mkdir(parents=True)
    save_file(filled().state_dict(), folder / weights.WEIGHTS)
    lines = [f"{k} = {list(v) if isinstance(v, tuple) else v}" for k, v in TINY.items()]
    (folder / weights.CONFIG).write_text("[network]\n" + "\n".join(lines) + "\n")
    row = {
        **families.index_row("cpsgd-small"),
        "id": "tiny-scenes",
        "bytes": 1,
        "weights_sha256": weights.sha256(folder / weights.WEIGHTS),
        "config_sha256": weights.sha256(folder / weights.CONFIG),
    }
    text = "\n".join(f"{name} = {json.dumps(value)}" for name, value in row.items())
    (tmp_path / "models" / "index.toml").write_text(f"[[model]]\n{text}\n")
    write_models(tmp_path / "disco")
    index = tmp_path / "models" / "index.toml"
    index.write_text(index.read_text() + (tmp_path / "disco" / "index.toml").read_text())
    (tmp_path / "disco" / "tiny").rename(tmp_path / "models" / "tiny")
    stream = VECTORS / "moving" / "stream.svc"  # made for no model in particular
    models = ("--models-dir", tmp_path / "models", "--quiet")
    small, preview = tmp_path / "small.mp4", tmp_path / "preview.mp4"
    done = call(capfd, "decode", stream, small, *models)
    assert done.code == 0, done.err
    assert call(capfd, "decode", stream, preview, "--tier", "preview", *models).code == 0
    assert small.read_bytes() != preview.read_bytes()
    row = json.loads(call(capfd, "info", stream, "--json", "--models-dir", tmp_path / "models").out)
    assert row["tiers"] == ["preview", "small"]
