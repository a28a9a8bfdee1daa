"""Training losses against plain implementations, and the optimiser Muon."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cache import WIDTHS, write_metric_weights
from torch import Tensor

from semvc.media import color
from semvc.train import flow, losses
from semvc.train.muon import Muon


@pytest.fixture(scope="module")
def perceptual(tmp_path_factory: pytest.TempPathFactory) -> losses.Perceptual:
    return losses.Perceptual(write_metric_weights(tmp_path_factory.mktemp("metrics")))


def frames(seed: int, batch: int = 2, side: int = 32) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand((batch, 3, side, side), generator=draw) * 2 - 1


def plain_lpips(metric: losses.Perceptual, made: Tensor, true: Tensor) -> Tensor:
    """Zhang et al. 2018, equation 1, written as it stands there."""
    total = made.new_zeros(())
    pairs = zip(metric.features(made), metric.features(true), metric.heads, strict=True)
    for a, b, head in pairs:
        a, b = (x / (x.square().sum(1, keepdim=True) + 1e-10).sqrt() for x in (a, b))
        total = total + (head[:, None, None] * (a - b).square()).sum(1).mean()
    return total


def plain_dists(metric: losses.Perceptual, made: Tensor, true: Tensor) -> Tensor:
    """Ding et al. 2020, equations 5 to 8, written as they stand there."""
    weight = metric.alpha.sum() + metric.beta.sum()
    total, at = made.new_zeros(()), 0
    levels = zip([made, *metric.features(made)], [true, *metric.features(true)], strict=True)
    for a, b in levels:
        alpha, beta = (p[at : at + a.shape[1]] / weight for p in (metric.alpha, metric.beta))
        at += a.shape[1]
        ma, mb = a.mean((2, 3)), b.mean((2, 3))
        da, db = a - ma[..., None, None], b - mb[..., None, None]
        va, vb, cov = ((x * y).mean((2, 3)) for x, y in ((da, da), (db, db), (da, db)))
        texture = (2 * ma * mb + 1e-6) / (ma**2 + mb**2 + 1e-6)
        structure = (2 * cov + 1e-6) / (va + vb + 1e-6)
        total = total + (alpha * texture + beta * structure).sum(1).mean()
    return 1 - total


@pytest.mark.parametrize(("which", "plain"), [(0, plain_lpips), (1, plain_dists)])
def test_a_perceptual_loss_equals_its_definition(
    perceptual: losses.Perceptual, which: int, plain: object
) -> None:
    assert callable(plain)
    made, true = frames(1), frames(2)
    assert torch.allclose(perceptual(made, true)[which], plain(perceptual, made, true), rtol=1e-4)


@pytest.mark.parametrize(("which", "plain"), [(0, plain_lpips), (1, plain_dists)])
def test_the_gradient_of_a_perceptual_loss_equals_its_definition(
    perceptual: losses.Perceptual, which: int, plain: object
) -> None:
    assert callable(plain)
    found, expected = (frames(1).requires_grad_(True) for _ in range(2))
    perceptual(found, frames(2))[which].backward()
    plain(perceptual, expected, frames(2)).backward()
    assert found.grad is not None
    assert expected.grad is not None
    assert float((found.grad - expected.grad).norm() / expected.grad.norm()) < 1e-3


def test_both_perceptual_losses_of_equal_frames_are_zero(perceptual: losses.Perceptual) -> None:
    lpips, dists = perceptual(frames(1), frames(1))
    assert abs(float(lpips)) < 1e-6
    assert abs(float(dists)) < 1e-6


def test_perceptual_losses_grow_with_the_error(perceptual: losses.Perceptual) -> None:
    near, far = (perceptual(frames(1) + s * frames(2), frames(1)) for s in (0.1, 0.5))
    assert 0 < near[0] < far[0]
    assert 0 < near[1] < far[1]


def test_features_are_taken_after_each_of_five_blocks(perceptual: losses.Perceptual) -> None:
    shapes = [tuple(f.shape[1:]) for f in perceptual.features(frames(1))]
    assert shapes == [(w, 32 >> i, 32 >> i) for i, w in enumerate(WIDTHS)]


def test_the_weights_of_a_perceptual_loss_are_not_trained(perceptual: losses.Perceptual) -> None:
    assert not any(p.requires_grad for p in perceptual.parameters())


def moments(a: Tensor, b: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """What `_Moments` returns, by autograd's own means."""
    x, y = (t.flatten(2) for t in (a, b))
    sums = torch.stack([x.sum(2), y.sum(2), (x * x).sum(2), (y * y).sum(2), (x * y).sum(2)])
    w = w[None, :, None]
    maps = [x * x, y * y, w * x * x, w * y * y, w * x * y]
    return sums, torch.stack([m.sum(1) for m in maps])


def test_moments_and_their_gradient_equal_plain_sums() -> None:
    draw = torch.Generator().manual_seed(4)
    a, b = (torch.randn((2, 5, 6, 7), generator=draw) for _ in range(2))
    w = torch.rand(5, generator=draw)
    left, right = (a.clone().requires_grad_(True) for _ in range(2))
    found, expected = losses._Moments.apply(left, b, w), moments(right, b, w)
    seeds = [torch.randn(t.shape, generator=draw) for t in expected]
    torch.autograd.backward(found, seeds)
    torch.autograd.backward(expected, seeds)
    for x, y in zip(found, expected, strict=True):
        assert torch.allclose(x, y, atol=1e-4)
    assert left.grad is not None
    assert right.grad is not None
    assert torch.allclose(left.grad, right.grad, atol=1e-4)


def test_the_charbonnier_distance_is_nearly_the_mean_error() -> None:
    a = frames(1)
    assert float(losses.charbonnier(a, a)) == pytest.approx(1e-3)
    assert float(losses.charbonnier(a, a + 0.5)) == pytest.approx(0.5, rel=1e-4)


def test_the_temporal_loss_is_zero_when_the_change_is_right() -> None:
    now, before, error = frames(1), frames(2), frames(3)
    right = losses.temporal(now + error, before + error, now, before)
    assert float(right) == pytest.approx(0, abs=1e-6)


def test_the_temporal_loss_weighs_still_places_more() -> None:
    true, flicker = frames(1), 0.1 * torch.ones(2, 3, 32, 32)
    still = losses.temporal(true + flicker, true, true, true)
    moving = losses.temporal(true + 0.5 + flicker, true, true + 0.5, true)
    assert float(still) == pytest.approx(0.1, rel=1e-4)
    assert float(moving) < 0.01 * float(still)


SPEED = (3, -2)  # luma samples a frame, right and up


def texture(seed: int, t: int) -> torch.Tensor:
    """A frame of a rich texture that moves by `SPEED`, [2, 3, 96, 96] in [-1, 1]."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn((2, 3, 40, 40), generator=draw)
    whole = F.interpolate(noise, (160, 160), mode="bicubic").clamp(-2, 2) / 2
    y, x = 32 - SPEED[1] * t, 32 - SPEED[0] * t
    return whole[:, :, y : y + 96, x : x + 96]


def motion(before: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """The flow of two frames of a source as the loader finds it."""
    pairs = torch.stack([before, now], 1).permute(0, 1, 3, 4, 2)
    codes = ((pairs + 1) * 127.5).round().byte().numpy()
    found = np.stack([flow.backward(frames)[0] for frames in codes])
    return torch.from_numpy(found).permute(0, 3, 1, 2).float()


def test_flow_tells_where_things_were() -> None:
    found = motion(texture(1, 0), texture(1, 1))[:, :, 16:-16, 16:-16]
    assert float((found[:, 0] + SPEED[0]).abs().mean()) < 0.15
    assert float((found[:, 1] + SPEED[1]).abs().mean()) < 0.15
    seen, inside = flow.moved(texture(1, 0), motion(texture(1, 0), texture(1, 1)))
    error = (seen - texture(1, 1)).abs() * inside
    assert float(error[:, :, 16:-16, 16:-16].mean()) < 0.02
    assert inside[:, :, 40:-40, 40:-40].all() and not inside[:, :, 40:60, 0].any()


def test_flicker_costs_on_a_texture_that_moves_and_motion_does_not() -> None:
    before, now = texture(1, 0), texture(1, 1)
    moving = motion(before, now)
    own = [0.3 * texture(2, t) for t in (0, 1)]  # detail that is invented, and moves along
    boiling = [0.3 * texture(seed, 0) for seed in (3, 4)]  # the same, new in every frame
    stuck = 0.3 * texture(5, 0)  # the same, standing still on the screen
    costs = {
        name: float(losses.temporal(now + b, before + a, now, before, moving))
        for name, (a, b) in {"own": own, "boiling": boiling, "stuck": (stuck, stuck)}.items()
    }
    assert float(losses.temporal(now, before, now, before, moving)) == 0
    assert costs["boiling"] > 8 * costs["own"] and costs["stuck"] > 8 * costs["own"]
    assert float(losses.temporal(now + boiling[1], before + boiling[0], now, before)) < (
        0.2 * costs["boiling"]
    )  # without motion, flicker hides in what moves


def test_what_is_uncovered_costs_little() -> None:
    before, now = texture(1, 0), texture(1, 1)
    moving = motion(before, now)
    other = now.clone()
    other[:, :, 32:64, 32:64] = texture(9, 0)[:, :, 32:64, 32:64]  # not there before
    wrong = torch.zeros_like(now)
    wrong[:, :, 32:64, 32:64] = 0.3
    covered = losses.temporal(now + wrong, before, now, before, moving)
    uncovered = losses.temporal(other + wrong, before, other, before, moving)
    assert float(uncovered) < 0.2 * float(covered)


def test_the_temporal_loss_teaches_both_frames() -> None:
    before, now = texture(1, 0), texture(1, 1)
    made = [(t + 0.1 * texture(7 + i, 0)).requires_grad_() for i, t in enumerate((before, now))]
    losses.temporal(made[1], made[0], now, before, motion(before, now)).backward()
    for frame in made:
        assert frame.grad is not None and float(frame.grad.abs().sum()) > 0.1


def test_a_critic_scores_patches_at_two_scales() -> None:
    scores = losses.Discriminator(4)(frames(1), frames(2))
    assert [tuple(s.shape) for s in scores] == [(2, 1, 4, 4), (2, 1, 2, 2)]


def test_a_critic_learns_to_tell_frames_apart() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        critic = losses.Discriminator(4)
    optimiser = torch.optim.Adam(critic.parameters(), 1e-2)
    real, made, base = F.avg_pool2d(frames(1), 5, 1, 2), frames(2), frames(3)
    values = []
    for _ in range(30):
        loss = losses.hinge_critic(critic(real, base), critic(made, base))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.5 * values[0]


def test_hinge_losses_have_their_known_values() -> None:
    real, made = [torch.tensor([0.5, 3.0])], [torch.tensor([-2.0, 1.0])]
    assert float(losses.hinge_critic(real, made)) == pytest.approx(0.25 + 1.0)
    assert float(losses.hinge_generator(made)) == pytest.approx(0.5)


def updated(shape: tuple[int, ...], *, steps: int = 1) -> Tensor:
    """What Muon at rate 1 makes of zeros, divided by its scale, [out, rest]."""
    draw = torch.Generator().manual_seed(6)
    p = torch.zeros(shape, requires_grad=True)
    optimiser = Muon([p], lr=1.0)
    for _ in range(steps):
        with torch.no_grad():
            p.zero_()
        p.grad = torch.randn(shape, generator=draw)
        optimiser.step()
    flat = p.detach().flatten(1)
    return flat / (0.2 * max(flat.shape) ** 0.5)


@pytest.mark.parametrize("shape", [(32, 32), (16, 48), (48, 16), (24, 8, 3, 3), (64, 4, 2, 2)])
def test_an_update_of_muon_is_nearly_orthogonal(shape: tuple[int, ...]) -> None:
    values = torch.linalg.svdvals(updated(shape))
    assert float(values.max()) < 1.3
    assert float(values.median()) > 0.6
    assert float(values[:-2].min()) > 0.3


@pytest.mark.parametrize("shape", [(32, 32), (16, 48), (24, 8, 3, 3)])
def test_an_update_of_muon_has_the_promised_size(shape: tuple[int, ...]) -> None:
    flat = updated(shape)
    size = (0.2 * max(flat.shape) ** 0.5 * flat).square().mean().sqrt()
    assert 0.13 < float(size) < 0.23


def test_muon_goes_against_the_gradient() -> None:
    p = torch.zeros(8, 8, requires_grad=True)
    p.grad = torch.eye(8)
    Muon([p], lr=0.1).step()
    assert (p.detach().diagonal() < 0).all()


def test_muon_remembers_earlier_gradients() -> None:
    assert not torch.allclose(updated((8, 8), steps=2), updated((8, 8)), atol=0.1)


def test_muon_leaves_what_has_no_gradient() -> None:
    p = torch.ones(4, 4, requires_grad=True)
    Muon([p], lr=1.0).step()
    assert torch.equal(p, torch.ones(4, 4))


def test_displayed_frames_are_those_of_8_bit_video_and_pass_gradients_on() -> None:
    random = np.random.default_rng(5)
    coarse = random.integers(0, 256, (1, 6, 6, 3), dtype=np.uint8)
    frames = color.resize(coarse, 48, 48)
    shown = color.yuv420_to_rgb(color.rgb_to_yuv420(frames)).astype(np.float32)
    x = (torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1).requires_grad_()
    y = losses.displayed(x)
    got = ((y.detach() + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    assert np.abs(got.clip(0, 255) - shown).mean() < 0.5
    y.sum().backward()
    assert x.grad is not None
    assert float(x.grad.mean()) == pytest.approx(1.0, abs=0.01)


def test_displayed_grey_lies_on_the_219_steps_of_limited_range() -> None:
    levels = torch.linspace(-1, 1, 2048).reshape(1, 1, 32, 64).repeat(1, 3, 1, 1)
    shown = losses.displayed(levels)
    steps = (shown[0, 1] + 1) * 109.5
    assert float((steps - steps.round()).abs().max()) < 1e-2
    assert len(steps.round().unique()) == 220


# Critics


def test_a_critic_of_two_frames_scores_pairs() -> None:
    with torch.random.fork_rng():
        critic = losses.Discriminator(4, frames=2)
    pair = torch.cat([frames(1), frames(2)], 1)
    assert [tuple(s.shape) for s in critic(pair, pair.flip(1))] == [(2, 1, 4, 4), (2, 1, 2, 2)]


def test_what_a_critic_finds_ends_with_its_scores() -> None:
    with torch.random.fork_rng():
        critic = losses.Discriminator(4, spectral=False)
    found = critic.judge(frames(1), frames(2))
    assert [len(levels) for levels in found] == [4, 4]
    scores = critic(frames(1), frames(2))
    assert all(torch.equal(a[-1], b) for a, b in zip(found, scores, strict=True))


def test_a_bounded_critic_cannot_grow_without_limit() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        critics = [losses.Discriminator(4, spectral=s) for s in (True, False)]
    for critic in critics:
        for name, p in critic.named_parameters():
            if p.ndim == 4 or "original" in name:
                p.data.mul_(100)
    bounded, free = (float(c(frames(1), frames(2))[0].detach().abs().max()) for c in critics)
    assert bounded < 0.01 * free


def scores(value: float) -> list[Tensor]:
    return [torch.full((2, 1, 4, 4), value), torch.full((2, 1, 2, 2), value)]


def test_a_relativistic_critic_wants_real_scores_above_made_ones() -> None:
    right, even, wrong = (losses.relativistic_critic(scores(r), scores(-r)) for r in (2, 0, -2))
    assert right < even < wrong
    assert float(even) == pytest.approx(2 * np.log(2))
    higher = losses.relativistic_critic(scores(5), scores(1))
    assert float(higher) == pytest.approx(float(right))


def test_a_relativistic_generator_wants_the_opposite() -> None:
    assert losses.relativistic_generator(scores(1), scores(3)) < losses.relativistic_generator(
        scores(3), scores(1)
    )


def test_feature_matching_is_zero_for_equal_features_and_ignores_the_scores() -> None:
    found = [[torch.ones(1, 2, 4, 4), torch.ones(1, 1, 4, 4)]]
    other = [[torch.ones(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)]]
    assert float(losses.feature_matching(found, other)) == 0
    far = [[torch.full((1, 2, 4, 4), 3.0), torch.ones(1, 1, 4, 4)]]
    assert float(losses.feature_matching(found, far)) == pytest.approx(2)


def test_feature_matching_gives_gradients_to_what_is_made_alone() -> None:
    real, made = (torch.rand(1, 2, 4, 4, requires_grad=True) for _ in range(2))
    losses.feature_matching([[real, real]], [[made, made]]).backward()
    assert real.grad is None
    assert made.grad is not None


@pytest.mark.parametrize("side", [8, 32])
def test_the_gradient_penalty_of_a_linear_critic_is_its_squared_weight(side: int) -> None:
    x = torch.rand(3, 1, side, side, requires_grad=True)
    assert float(losses.gradient_penalty([2 * x, 3 * x], x)) == pytest.approx(25, rel=1e-4)


def test_the_gradient_penalty_reaches_the_critic() -> None:
    with torch.random.fork_rng():
        critic = losses.Discriminator(4, spectral=False)
    x = frames(1).requires_grad_()
    losses.gradient_penalty(critic(x, frames(2)), x).backward()
    grads = [p.grad for n, p in critic.named_parameters() if n.endswith("weight")]
    assert all(g is not None and float(g.abs().max()) > 0 for g in grads)


class _Toy(torch.nn.Module):
    """Adds texture to a flat base: noise through two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(6, 16, 3, padding=1),
            torch.nn.LeakyReLU(0.2),
            torch.nn.Conv2d(16, 3, 3, padding=1),
        )

    def forward(self, base: Tensor, noise: Tensor) -> Tensor:
        return base + self.layers(torch.cat([base, noise], 1))


def striped(draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flat colours [8, 3, 32, 32], and the same under stripes of random phase."""
    base = torch.rand((8, 3, 1, 1), generator=draw).expand(-1, -1, 32, 32) - 0.5
    phase = torch.rand((8, 1, 1, 1), generator=draw) * 6.3
    return base, base + 0.4 * torch.sin(torch.arange(32) * 1.6 + phase)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["hinge", "relativistic"])
def test_a_critic_separates_and_a_generator_learns_to_please_it(
    objective: str,
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        critic, toy = losses.Discriminator(8, spectral=objective == "hinge"), _Toy()
    draw = torch.Generator().manual_seed(3)
    judge = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.5, 0.99))
    maker = torch.optim.Adam(toy.parameters(), lr=2e-3, betas=(0.5, 0.99))

    def critic_step(train: bool) -> float:
        base, real = striped(draw)
        made = toy(base, torch.randn(base.shape, generator=draw)).detach()
        real = real.requires_grad_()
        pair = critic(real, base), critic(made, base)
        if objective == "hinge":
            loss = losses.hinge_critic(*pair)
        else:
            loss = losses.relativistic_critic(*pair)
            loss = loss + 0.05 * losses.gradient_penalty(pair[0], real)
        judge.zero_grad()
        loss.backward()
        if train:
            judge.step()
        return float(loss.detach())

    def maker_loss() -> Tensor:
        base, real = striped(draw)
        made = critic(toy(base, torch.randn(base.shape, generator=draw)), base)
        if objective == "hinge":
            return losses.hinge_generator(made)
        return losses.relativistic_generator(critic(real, base), made)

    first = critic_step(train=False)
    for _ in range(60):
        critic_step(train=True)
    assert critic_step(train=False) < 0.6 * first  # it separates
    before = float(maker_loss().detach())
    for _ in range(60):
        maker.zero_grad()
        maker_loss().backward()
        maker.step()
    assert float(maker_loss().detach()) < before  # against the critic as it stands


def test_a_critic_on_features_learns_to_tell_frames_apart(perceptual: losses.Perceptual) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        critic = losses.FeatureCritic(perceptual.channels, width=8)
    optimiser = torch.optim.Adam(critic.parameters(), 1e-2)
    real, made = (perceptual.features(x) for x in (F.avg_pool2d(frames(1), 5, 1, 2), frames(2)))
    assert [tuple(s.shape) for s in critic(real)] == [(2, 1, 16, 16), (2, 1, 8, 8), (2, 1, 4, 4)]
    values = []
    for _ in range(30):
        loss = losses.hinge_critic(critic(real), critic(made))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.5 * values[0]


# Weaves and views


def test_a_weave_is_found_and_other_changes_are_not() -> None:
    weave = torch.zeros(2, 3, 64, 64)
    weave[..., ::4, ::4] = 1
    wave = torch.sin(torch.arange(128) * 0.9).expand(2, 3, 128, 128)
    assert float(losses.lattice(weave)) == pytest.approx(2 * 15 / 256)
    assert float(losses.lattice(torch.ones(2, 3, 64, 64))) == 0
    assert float(losses.lattice(wave)) < 0.2 * float(wave.abs().mean())


def test_a_view_shifts_turns_and_mirrors_what_it_keeps() -> None:
    x = frames(4, side=64)
    kept = x[..., 3 : 3 + 48, 5 : 5 + 48]
    assert torch.equal(losses.View(3, 5, 0, False).of(x), kept)
    assert torch.equal(losses.View(3, 5, 0, True).of(x), kept.flip(-1))
    assert torch.equal(losses.View(3, 5, 1, False).of(x), kept.transpose(-1, -2).flip(-2))


def test_views_of_small_frames_keep_three_quarters() -> None:
    draw = torch.Generator().manual_seed(1)
    views = [losses.View.drawn(draw) for _ in range(40)]
    assert {tuple(v.of(frames(1, side=32)).shape) for v in views} == {(2, 3, 24, 24)}
    assert len(set(views)) > 30
