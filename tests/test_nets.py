"""Noise, its schedule, and the generator."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import filled, fresh
from torch import Tensor

from semvc.nets import noise, schedule
from semvc.nets.generator import Conditioning, Generator, Memory

RECIPE = Path(__file__).parent.parent / "models" / "disco-small-v1" / "recipe.toml"


def inputs(height: int = 32, width: int = 48, batch: int = 1) -> tuple[Tensor, Tensor]:
    """A noisy sample [B, 3, H, W] and base frames [B, 9, H, W]."""
    draw = torch.Generator().manual_seed(2)
    sample = torch.randn((batch, 3, height, width), generator=draw)
    return sample, torch.rand((batch, 9, height, width), generator=draw) * 2 - 1


def conditions(base: Tensor, **given: Any) -> Conditioning:
    batch, _, height, width = base.shape
    one = torch.ones(batch)
    maps = (torch.rand((batch, 1, height // 4, width // 4)) > 0.5).float()
    plain = Conditioning(base, maps, maps.flip(3), 50 * one, one, 0 * one, 0 * one)
    return replace(plain, **given)


LAST = torch.tensor([999])


# Noise

FIRST = [3834, 52, 6015, 8981, -278, -6235, 1245, -1045]
DIGEST = "84182e427dc1eb16"


def test_noise_begins_with_known_values() -> None:
    found = noise.gaussian(8, seed=1, segment=2, purpose=3) * 4096
    assert found.tolist() == FIRST


def test_a_million_noise_values_have_a_known_hash() -> None:
    found = noise.gaussian(1_000_000, seed=2**32 - 1, segment=70_000, purpose=255)
    assert hashlib.sha256(found.astype("<f4").tobytes()).hexdigest()[:16] == DIGEST


def test_noise_is_the_same_in_another_process() -> None:
    program = (
        "import sys; from semvc.nets import noise;"
        "sys.stdout.buffer.write(noise.gaussian(999, seed=1, segment=2, purpose=3).tobytes())"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert other.stdout == noise.gaussian(999, seed=1, segment=2, purpose=3).tobytes()


def test_noise_is_standard_normal() -> None:
    x = noise.gaussian(1_000_000, seed=0, segment=0, purpose=0).astype(np.float64)
    assert abs(x.mean()) < 0.004
    assert abs(x.std() - 1) < 0.004
    assert abs((x**4).mean() / x.var() ** 2 - 3) < 0.03
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 0.004


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 997])
def test_a_noise_value_does_not_depend_on_how_many_are_asked_for(count: int) -> None:
    long = noise.gaussian(1000, seed=1, segment=2, purpose=3)
    assert np.array_equal(noise.gaussian(count, seed=1, segment=2, purpose=3), long[:count])


@pytest.mark.parametrize("change", [{"seed": 2}, {"segment": 3}, {"purpose": 4}])
def test_noise_of_another_key_is_unrelated(change: dict[str, int]) -> None:
    key = {"seed": 1, "segment": 2, "purpose": 3}
    a, b = noise.gaussian(20_000, **key), noise.gaussian(20_000, **{**key, **change})
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03


@pytest.mark.parametrize("purpose", [-1, 256])
def test_noise_for_a_purpose_out_of_range_is_refused(purpose: int) -> None:
    with pytest.raises(ValueError, match="purpose"):
        noise.gaussian(1, seed=0, segment=0, purpose=purpose)


# Schedule


@pytest.fixture(scope="module")
def reference() -> Any:
    """diffusers' scheduler with the settings that `schedule` promises to equal."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type="sample",
        clip_sample=False,
    )


def test_signal_powers_equal_those_of_diffusers(reference: Any) -> None:
    found = schedule.alphas_cumprod()
    assert found.dtype == torch.float32
    assert torch.allclose(found, reference.alphas_cumprod, rtol=1e-5, atol=1e-6)


def test_the_last_timestep_is_pure_noise() -> None:
    clean, pure = inputs()[0], inputs()[0].flip(2)
    assert torch.equal(schedule.add_noise(clean, pure, LAST, schedule.alphas_cumprod()), pure)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 7, 8, 10, 20, 25, 50, 999, 1000])
def test_timesteps_equal_those_of_diffusers(reference: Any, steps: int) -> None:
    reference.set_timesteps(steps)
    assert schedule.timesteps(steps) == reference.timesteps.tolist()


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_number_of_steps_out_of_range_is_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="steps must be in"):
        schedule.timesteps(steps)


@pytest.mark.parametrize("steps", [2, 4, 5, 8, 10, 50])
def test_steps_equal_those_of_diffusers(reference: Any, steps: int) -> None:
    reference.set_timesteps(steps)
    alphas, times = schedule.alphas_cumprod(), schedule.timesteps(steps)
    ours = theirs = inputs()[0]
    clean = inputs()[1][:, :3]
    for now, after in itertools.pairwise(times):
        theirs = reference.step(clean, now, theirs, eta=0.0).prev_sample
        ours = schedule.step(clean, ours, now, after, alphas)
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5), now


def test_noise_is_added_as_diffusers_does(reference: Any) -> None:
    (clean, base), at = inputs(batch=3), torch.tensor([0, 500, 998])
    ours = schedule.add_noise(clean, base[:, :3], at, schedule.alphas_cumprod())
    assert torch.allclose(ours, reference.add_noise(clean, base[:, :3], at), rtol=1e-4, atol=1e-5)


# Generator


def test_an_untrained_generator_returns_the_held_frame() -> None:
    sample, base = inputs()
    frame, _ = fresh()(sample, LAST, conditions(base), None)
    assert torch.equal(frame, base[:, 3:6])


def test_memory_has_the_declared_shapes() -> None:
    sample, base = inputs(batch=2)
    frame, memory = filled()(sample, LAST.repeat(2), conditions(base), None)
    assert torch.equal(memory.frame, frame)
    assert memory.features.shape == (2, 4, 32 // 8, 48 // 8)


def test_an_absent_condition_differs_from_an_empty_one() -> None:
    network, (sample, base) = filled(), inputs()
    empty = torch.zeros(1, 1, 8, 12)
    for name in ("sketch", "skeleton"):
        given = conditions(base, **{name: empty})
        absent = network(sample, LAST, replace(given, **{name: None}), None)[0]
        assert not torch.equal(network(sample, LAST, given, None)[0], absent), name


@pytest.mark.parametrize("sketch", [True, False])
@pytest.mark.parametrize("skeleton", [True, False])
@pytest.mark.parametrize("memory", [True, False])
def test_any_set_of_conditions_gives_a_finite_frame(
    sketch: bool, skeleton: bool, memory: bool
) -> None:
    sample, base = inputs()
    given = conditions(base)
    given = replace(
        given,
        sketch=given.sketch if sketch else None,
        skeleton=given.skeleton if skeleton else None,
    )
    kept = Memory(sample, torch.ones(1, 4, 4, 6)) if memory else None
    frame, _ = filled()(sample, LAST, given, kept)
    assert frame.shape == sample.shape
    assert torch.isfinite(frame).all()


@pytest.mark.parametrize("name", ["crf", "spatial_log2", "temporal_log2", "phase"])
def test_every_setting_changes_a_trained_frame(name: str) -> None:
    network, (sample, base) = filled(), inputs()
    given = conditions(base)
    other = replace(given, **{name: getattr(given, name) + 1})
    before, after = (network(sample, LAST, c, None)[0] for c in (given, other))
    assert not torch.equal(before, after)


def test_the_noise_level_changes_a_trained_frame() -> None:
    network, (sample, base) = filled(), inputs()
    given = conditions(base)
    early, late = (network(sample, torch.tensor([t]), given, None)[0] for t in (999, 300))
    assert not torch.equal(early, late)


def with_head() -> Generator:
    network = fresh()
    network.head.weight.fill_(0.01)
    return network


def test_memory_has_no_influence_before_training() -> None:
    network, (sample, base) = with_head(), inputs()
    given, memory = conditions(base), Memory(sample, torch.ones(1, 4, 4, 6))
    without, with_it = (network(sample, LAST, given, m)[0] for m in (None, memory))
    assert not torch.equal(without, base[:, 3:6])
    assert torch.equal(with_it, without)


@pytest.mark.parametrize("layer", ["stem_previous", "fuse_memory"])
def test_memory_has_influence_once_its_weights_are_not_zero(layer: str) -> None:
    network, (sample, base) = with_head(), inputs()
    getattr(network, layer).weight.fill_(0.05)
    given, memory = conditions(base), Memory(sample, torch.ones(1, 4, 4, 6))
    without, with_it = (network(sample, LAST, given, m)[0] for m in (None, memory))
    assert not torch.equal(with_it, without)


def test_a_shift_of_the_input_shifts_the_interior_of_the_frame() -> None:
    network, (sample, base) = filled(), inputs(288, 288)
    given = conditions(base)

    def shifted(x: Tensor, by: int) -> Tensor:
        return torch.roll(x, (by, -by), (2, 3))

    moved = replace(
        given,
        base=shifted(base, 16),
        sketch=shifted(given.sketch, 4),
        skeleton=shifted(given.skeleton, 4),
    )
    here = shifted(network(sample, LAST, given, None)[0], 16)
    there = network(shifted(sample, 16), LAST, moved, None)[0]
    inside = (..., slice(128, 160), slice(128, 160))
    assert torch.allclose(there[inside], here[inside], atol=1e-5)
    assert not torch.allclose(there, here, atol=1e-5)


def test_one_place_does_not_depend_on_the_size_of_the_frame() -> None:
    network, (sample, base) = filled(), inputs(288, 288)
    given = conditions(base, sketch=None, skeleton=None)
    large = network(sample, LAST, given, None)[0]
    small = network(
        sample[..., :256, :256], LAST, replace(given, base=base[..., :256, :256]), None
    )[0]
    inside = (..., slice(0, 128), slice(0, 128))
    assert torch.allclose(small[inside], large[inside], atol=1e-5)


def test_frames_of_a_batch_do_not_mix() -> None:
    network, (sample, base) = filled(), inputs(batch=2)
    given = conditions(base)
    both = network(sample, LAST.repeat(2), given, None)[0]
    first = Conditioning(
        *(None if v is None else v[:1] for v in (getattr(given, n) for n in given.__slots__))
    )
    alone = network(sample[:1], LAST, first, None)[0]
    assert torch.allclose(both[:1], alone, atol=1e-5)


def test_the_shipped_network_has_at_most_six_million_parameters() -> None:
    network = Generator(**tomllib.loads(RECIPE.read_text("utf-8"))["network"])
    assert sum(p.numel() for p in network.parameters()) <= 6_000_000
