"""Packings of reference tokens, their order, and the schedule of noise levels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXVideoTransformer3DModel
from hypothesis import given
from hypothesis import strategies as st
from tinybackbones import exact_shift

from semvc.backbones import flow, tokens
from semvc.backbones.ltx import velocity
from semvc.backbones.text import Text
from semvc.backbones.tokens import Packing, Reference, Sequence
from semvc.errors import ModelError

SHAPE = (3, 2, 4)
RATE = 24.0


@pytest.fixture(scope="module")
def network() -> LTXVideoTransformer3DModel:
    torch.manual_seed(1)
    return LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    ).eval()


def streams(count: int = 2, spacing: int = 1) -> list[Reference]:
    torch.manual_seed(2)
    f, h, w = SHAPE
    size = (1, 8, f, h // spacing, w // spacing)
    return [Reference(torch.randn(size), spacing) for _ in range(count)]


def predict(network: torch.nn.Module, sequence: Sequence) -> torch.Tensor:
    torch.manual_seed(3)
    x, level = torch.randn(1, int(np.prod(SHAPE)), 8), torch.full((1, int(np.prod(SHAPE))), 0.7)
    text = Text(torch.zeros(1, 4, 32), torch.tensor([[1, 0, 0, 0]]))
    with torch.inference_mode():
        return velocity(network, x, level, sequence, text)


@pytest.mark.parametrize("packing", [Packing.SHARED, Packing.OFFSET])
def test_order_does_not_matter_where_coordinates_are_equal(
    network: torch.nn.Module, packing: Packing
) -> None:
    packed = tokens.pack(streams(), packing, RATE)
    mixed = torch.randperm(len(packed.slots), generator=torch.Generator().manual_seed(4))
    other = tokens.Packed(
        packed.tokens[:, mixed], packed.coordinates[:, mixed], packed.slots[mixed].flip(0)
    )
    a, b = (predict(network, Sequence(p, SHAPE, RATE)) for p in (packed, other))
    assert torch.allclose(a, b, atol=1e-5)


def test_streams_may_be_named_in_any_order_when_they_share_coordinates(
    network: torch.nn.Module,
) -> None:
    forward, backward = streams(), streams()[::-1]
    for packing, same in ((Packing.SHARED, True), (Packing.OFFSET, False)):
        a, b = (
            predict(network, Sequence(tokens.pack(s, packing, RATE), SHAPE, RATE))
            for s in (forward, backward)
        )
        assert torch.allclose(a, b, atol=1e-5) == same


def test_references_change_the_prediction(network: torch.nn.Module) -> None:
    packed = tokens.pack(streams(), Packing.SHARED, RATE)
    alone = predict(network, Sequence(None, SHAPE, RATE))
    assert not torch.allclose(predict(network, Sequence(packed, SHAPE, RATE)), alone, atol=1e-3)


@given(st.integers(1, 4), st.integers(1, 9))
def test_alternating_slots_never_repeat(count: int, frames: int) -> None:
    given = [Reference(torch.full((1, 1, frames, 2, 2), float(k))) for k in range(count)]
    packed = tokens.pack(given, Packing.ALTERNATE, RATE)
    assert packed.tokens.shape[1] == frames * 4  # as many as one stream has
    assert len({tuple(c) for c in packed.coordinates.T.tolist()}) == frames * 4
    owner = {int(s): int(v) for s, v in zip(packed.slots, packed.tokens[0, :, 0], strict=True)}
    assert owner == {slot: slot % count for slot in range(frames)}


def test_shared_and_alternating_references_lie_on_target_coordinates() -> None:
    target = {tuple(c) for c in tokens.coordinates(SHAPE, RATE).T.tolist()}
    for packing in Packing:
        found = {tuple(c) for c in tokens.pack(streams(), packing, RATE).coordinates.T.tolist()}
        assert (found <= target) == (packing is not Packing.OFFSET), packing
        if packing is Packing.OFFSET:
            assert not found & target


def test_offset_streams_do_not_meet() -> None:
    packed = tokens.pack(streams(3), Packing.OFFSET, RATE)
    size = len(packed.slots) // 3
    spans = [packed.coordinates[0, k * size : (k + 1) * size] for k in range(3)]
    assert spans[0].max() < spans[1].min() and spans[1].max() < spans[2].min()


def test_half_size_references_have_doubled_spacing() -> None:
    full, small = tokens.coordinates((2, 4, 6), RATE), tokens.coordinates((2, 2, 3), RATE, 2)
    assert set(small[1].tolist()) == {0, 64} and set(small[2].tolist()) == {0, 64, 128}
    assert {tuple(c) for c in small.T.tolist()} < {tuple(c) for c in full.T.tolist()}


def test_the_first_latent_frame_is_one_frame_long() -> None:
    seconds = tokens.coordinates((4, 1, 1), 25.0)[0]
    assert torch.allclose(seconds, torch.tensor([0, 1, 9, 17]) / 25)


def test_tokens_are_interleaved_frame_by_frame() -> None:
    sequence = Sequence(tokens.pack(streams(2), Packing.SHARED, RATE), SHAPE, RATE)
    assert sequence.target.tolist() == ([False] * 16 + [True] * 8) * 3
    assert sequence.coordinates[0].diff().min() >= 0


def test_target_tokens_come_back_in_their_order_and_references_stay_clean() -> None:
    packed = tokens.pack(streams(), Packing.SHARED, RATE)
    sequence = Sequence(packed, SHAPE, RATE)
    x = torch.randn(1, 24, 8)
    filled = sequence.fill(x)
    assert torch.equal(sequence.take(filled), x)
    assert sorted(filled[0, ~sequence.target].flatten().tolist()) == sorted(
        packed.tokens.flatten().tolist()
    )
    levels = sequence.levels(torch.full((1, 24), 0.5))
    assert levels[0].tolist() == [0.5 if target else 0.0 for target in sequence.target]


def test_flattening_is_undone() -> None:
    latents = torch.randn(1, 5, *SHAPE)
    assert torch.equal(tokens.unflatten(tokens.flatten(latents), SHAPE), latents)


def test_references_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        tokens.pack([Reference(torch.zeros(1, 1, n, 1, 1)) for n in (1, 2)], Packing.SHARED, RATE)
    with pytest.raises(ValueError, match="no reference"):
        tokens.pack([], Packing.SHARED, RATE)


# --- noise levels


@pytest.mark.parametrize("steps", [2, 8, 50])
@pytest.mark.parametrize("count", [1024, 2048])
def test_levels_are_those_of_diffusers(steps: int, count: int) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    line = np.linspace(1, 1 / steps, steps)
    theirs.set_timesteps(sigmas=line.tolist(), mu=float(np.log(exact_shift(count))))
    ours = flow.Schedule(low=(1024, 0.95), high=(4096, 2.05), terminal=0.1)
    assert np.allclose(ours.levels(steps, tokens=count), theirs.sigmas.numpy(), atol=1e-6)


@given(st.integers(1, 50), st.floats(0.05, 1), st.floats(0.5, 8))
def test_levels_fall_from_the_strength_to_zero(steps: int, strength: float, shift: float) -> None:
    levels = flow.Schedule(shift).levels(steps, strength=strength)
    assert len(levels) == steps + 1 and levels[0] == pytest.approx(strength) and levels[-1] == 0
    assert (np.diff(levels) < 0).all()


def test_one_step_along_the_true_velocity_arrives() -> None:
    clean, noise = torch.randn(4), torch.randn(4)
    sample = 0.3 * clean + 0.7 * noise
    assert torch.allclose(flow.step(sample, noise - clean, 0.7, 0.0), clean, atol=1e-6)


def test_a_schedule_is_read_from_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "scheduler" / "scheduler_config.json"
    assert flow.read_schedule(tmp_path, 0) == flow.Schedule(1.0)
    path.parent.mkdir()
    path.write_text('{"flow_shift": 3.0}')
    assert flow.read_schedule(tmp_path, 0) == flow.Schedule(3.0)
    assert flow.read_schedule(tmp_path, 5.0) == flow.Schedule(5.0)
    path.write_text('{"use_dynamic_shifting": true}')
    with pytest.raises(ModelError, match="scheduler_config"):
        flow.read_schedule(tmp_path, 0)
