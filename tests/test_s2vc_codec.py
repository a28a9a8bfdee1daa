"""The codec of profile s2vc: what it sends, what it buffers, and what its qualities do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from s2vc_codecs import LEVELS, TINY, fresh
from torch import Tensor

from semvc.nets import s2vc_codec
from semvc.nets.s2vc_codec import FULL, SMALL, Gains, Latents, S2vcCodec, State

CONFIGS = {"rounded": TINY, "levels": LEVELS}
Q = torch.tensor([40.0])


def pictures(count: int = 5, rows: int = 1, columns: int = 2, seed: int = 4) -> list[Tensor]:
    """A pattern that moves, [1, 3, H, W] each, in [-1, 1]."""
    draw = torch.Generator().manual_seed(seed)
    wide = torch.rand((1, 3, 64 * rows, 64 * columns + 8 * count), generator=draw) * 2 - 1
    return [wide[..., 8 * t : 8 * t + 64 * columns] for t in range(count)]


def coded(config: dict[str, Any], frames: list[Tensor], quality: Tensor = Q) -> list[Latents]:
    return [sent for sent, _ in fresh(config).encode(frames, quality)]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_decoder_has_the_encoders_buffers_exactly(name: str) -> None:
    codec = fresh(CONFIGS[name])
    both = list(codec.encode(pictures(), Q))
    assert any(bool(sent.latent.any()) for sent, _ in both[1:])
    for (_, buffers), found in zip(both, codec.decode([s for s, _ in both], Q), strict=True):
        assert torch.equal(found.now, buffers.now)
        assert torch.equal(found.before, buffers.before)


def test_buffers_hold_this_frame_and_the_one_before() -> None:
    buffers = [b for _, b in fresh().encode(pictures(3), Q)]
    assert buffers[0].now.shape == (1, TINY["features"], 8, 16)
    assert buffers[0].before is buffers[0].now
    assert torch.equal(buffers[1].before, buffers[0].now)
    assert torch.equal(buffers[2].before, buffers[1].now)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_sent_are_integers_in_their_range(name: str) -> None:
    config = CONFIGS[name]
    levels = config["hyper_levels"]
    low, high = (-(levels // 2), (levels - 1) // 2) if levels else (-7, 7)
    for sent in coded(config, [30 * x for x in pictures()], torch.tensor([63.0])):
        assert sent.latent.shape == (1, 8, 4, 8)
        assert sent.hyper.shape == (1, 3, 1, 2)
        assert torch.equal(sent.latent, sent.latent.round())
        assert torch.equal(sent.hyper, sent.hyper.round())
        assert sent.latent.abs().max() <= 127
        assert low <= sent.hyper.min() <= sent.hyper.max() <= high


def test_frames_depend_on_no_later_ones() -> None:
    frames = pictures(4)
    other = [*frames[:3], -frames[3]]
    for t, (a, b) in enumerate(zip(coded(TINY, frames), coded(TINY, other), strict=True)):
        assert torch.equal(a.latent, b.latent) == (t < 3)


def test_the_reference_is_made_anew_at_times(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, made, now = fresh(), [], [0]
    preview = codec.preview
    monkeypatch.setattr(codec, "preview", lambda f: made.append(now[0]) or preview(f))
    for t, x in enumerate(pictures(8)):
        state = None if t == 0 else state  # noqa: F821
        now[0] = t
        _, state = codec.step(x, state, Q, "round")
    assert made == [1, 4, 7]  # reset is 3


def test_a_disturbed_buffer_does_not_outlive_a_new_reference() -> None:
    """Where the feature differs in what the preview does not show, the reset forgets it."""
    codec = fresh(TINY | {"reset": 2})
    for p in codec.head.parameters():
        p.zero_()  # a preview that shows nothing
    features = torch.randn(1, 8, 8, 16)
    buffers = [s2vc_codec.CodecFeatures(f, f) for f in (features, features + 1)]
    a, b = (codec._context(State(x, 3)) for x in buffers)
    assert torch.equal(a, b)
    a, b = (codec._context(State(x, 2)) for x in buffers)
    assert not torch.equal(a, b)


def test_two_passes_share_the_grid_between_them() -> None:
    codec = fresh()
    like = torch.zeros(1, 8, 4, 8)
    first, second = codec._mask(0, like), codec._mask(1, like)
    assert torch.equal(first + second, torch.ones_like(first))
    assert first[0, 0, 0, 0] == 1
    assert first[0, 4, 0, 0] == 0  # the other group begins on the other color


# Qualities


def test_every_gain_rises_smoothly_with_quality() -> None:
    gains = Gains(5)
    with torch.no_grad():
        gains.rises.normal_(0, 3)
    found = gains(torch.linspace(0, 63, 253)).log()[:, :, 0, 0]
    steps = found.diff(dim=0)
    assert (steps > 0).all()
    assert steps.max() < 40 * found[-1].abs().max() / 252


def test_steps_begin_at_their_stated_range() -> None:
    ends = Gains(3)(torch.tensor([0.0, 63.0]))[:, 0, 0, 0]
    assert torch.allclose(ends, torch.tensor([0.25, 8.0]), rtol=1e-4)


def test_more_quality_sends_more() -> None:
    frames = pictures()
    sums = []
    for quality in (0.0, 16.0, 32.0, 48.0, 63.0):
        sent = coded(TINY, frames, torch.tensor([quality]))
        sums.append(float(sum(s.latent.abs().sum() for s in sent)))
    assert sums == sorted(sums)
    assert sums[-1] > 4 * sums[0]


def test_a_dead_zone_sends_fewer() -> None:
    some, none = (
        sum(int((s.latent != 0).sum()) for s in coded(TINY | {"dead_zone": d}, pictures()))
        for d in (0.0, 0.45)
    )
    assert none < some


# Training


def test_gradients_reach_earlier_frames_through_the_buffer() -> None:
    codec = fresh().requires_grad_(True)
    frames = [x.requires_grad_(True) for x in pictures(3)]
    state = None
    for x in frames:
        _, state = codec.step(x, state, Q, "straight")
    assert state is not None
    codec.preview(state.features.now).mean().backward()
    assert all(x.grad is not None and bool(x.grad.abs().sum() > 0) for x in frames)
    assert codec.intra.enter.weight.grad is not None


def test_straight_sends_what_rounding_sends() -> None:
    codec, x = fresh(), pictures(1)[0]
    a, b = (codec.step(x, None, Q, how)[0] for how in ("round", "straight"))
    assert torch.allclose(a.latent, b.latent, atol=1e-5)
    assert torch.allclose(a.hyper, b.hyper, atol=1e-5)


def test_noise_stays_within_half_a_step_of_the_unrounded() -> None:
    x = torch.randn(1000)
    found = s2vc_codec._quantise(x, "noise", 0.0) - x
    assert found.abs().max() <= 0.5
    assert found.std() > 0.2


def test_batches_code_as_single_segments_do() -> None:
    a, b = pictures(3), pictures(3, seed=9)
    qualities = torch.tensor([20.0, 50.0])
    together = coded(TINY, [torch.cat(pair) for pair in zip(a, b, strict=True)], qualities)
    alone = coded(TINY, b, qualities[1:])
    differ = sum(
        int((x.latent[1:] != y.latent).sum()) for x, y in zip(together, alone, strict=True)
    )
    assert differ <= 2  # a float may round to the other side


# Sizes


@pytest.mark.parametrize(
    ("config", "most", "device"),
    [(SMALL, 3.2e6, "cpu"), pytest.param(FULL, 80e6, "meta", marks=pytest.mark.slow)],
)
def test_the_dials_have_their_shapes(config: dict[str, Any], most: float, device: str) -> None:
    with torch.device(device):
        codec = S2vcCodec(**config)
        x, quality = torch.zeros(1, 3, 128, 192), torch.zeros(1)
        first, state = codec.step(x, None, quality, "round")
        then, state = codec.step(x, state, quality, "round")
    for sent in (first, then):
        assert sent.latent.shape == (1, config["latents"], 8, 12)
        assert sent.hyper.shape == (1, config["hyper"], 2, 3)
    assert state.features.now.shape == (1, config["features"], 16, 24)
    assert sum(p.numel() for p in codec.parameters()) < most


@pytest.mark.parametrize(
    "change", [{"latents": 7}, {"hyper_levels": 1}, {"dead_zone": 0.5}, {"reset": 0}]
)
def test_numbers_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        S2vcCodec(**TINY | change)
