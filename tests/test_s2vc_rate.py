"""What latents cost in training, and the coder's fit to a trained codec."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from s2vc_training import SIZES, write_training
from torch import Tensor

from semvc.entropy.coder import Counter
from semvc.nets.s2vc_codec import HYPER_RANGE, Latents
from semvc.signals.latent import LatentModel
from semvc.signals.latent import Latents as Signal
from semvc.signals.latentprior import LatentShape, Prior
from semvc.train import s2vc_prior, s2vc_rate
from semvc.train.s2vc_rate import Past, RateModel


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training(tmp_path_factory.mktemp("s2vc"))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(9)
        yield


# Rate


def random_latents(seed: int = 1, frames: int = 3) -> Signal:
    """Sparse integers whose density depends on the place."""
    rng = np.random.default_rng(seed)
    dense = rng.random((1, 8, 8, 8)) ** 3
    latent = (rng.laplace(0, 1, (frames, 8, 8, 8)) * dense * 2).round().clip(-127, 127)
    hyper = rng.laplace(0, 0.7, (frames, 2, 2, 2)).round().clip(-7, 7)
    return Signal(100, hyper.astype(np.int8), latent.astype(np.int8))


def in_frames(given: Signal) -> list[Latents]:
    return [
        Latents(torch.from_numpy(z).float()[None], torch.from_numpy(y).float()[None])
        for z, y in zip(given.hyper, given.latent, strict=True)
    ]


def bits_of(rate: RateModel, given: Signal) -> Tensor:
    past: Past | None = None
    bits = []
    for sent in in_frames(given):
        spent, past = rate(sent, past, torch.tensor([given.quality / 4]))
        bits.append(spent)
    return torch.stack(bits).sum()


def test_code_lengths_are_those_of_a_distribution() -> None:
    rate = RateModel(**SIZES, hidden=4).requires_grad_(False)
    index = torch.full((1, 8, 1, 1), 45.0)
    chances = torch.zeros(8)
    for value in range(-200, 201):
        latent = torch.full((1, 8, 1, 1), float(value))
        chances += torch.exp2(-rate.element_bits(latent, index, (0, 0)))[0, :, 0, 0]
    assert torch.allclose(chances, torch.ones(8), atol=1e-4)
    totals = torch.zeros(2)
    for value in range(-HYPER_RANGE, HYPER_RANGE + 1):
        for channel in (0, 1):
            hyper = torch.zeros(1, 2, 1, 1)
            hyper[0, channel] = value
            rest = rate._hyper_bits(0 * hyper, 0 * hyper, 0) / 2
            totals[channel] += float(torch.exp2(rest - rate._hyper_bits(hyper, 0 * hyper, 0)))
    assert torch.allclose(totals, torch.ones(2), atol=1e-4)


def test_a_quarter_step_of_the_index_is_a_quarter_of_a_bit() -> None:
    rate = RateModel(**SIZES, hidden=4).requires_grad_(False)
    one = torch.ones(1, 8, 1, 1)
    for index in (8.0, 20.0, 40.0):
        a, b = (rate.element_bits(one, torch.full_like(one, i), (0, 0)) for i in (index, index + 1))
        assert torch.allclose(a - b, torch.full_like(a, 0.25), atol=0.06)


def test_the_slope_of_a_code_length_is_a_central_difference() -> None:
    rate = RateModel(**SIZES, hidden=4).requires_grad_(False)
    values = torch.tensor([0.0, 1.0, -2.0, 0.3]).expand(1, 8, 1, 4).clone().requires_grad_()
    index = torch.full((1, 8, 1, 4), 40.0)
    rate.element_bits(values, index, (0, 0)).sum().backward()

    def length(value: float) -> float:
        return float(
            rate.element_bits(torch.full((1, 8, 1, 1), value), index[..., :1], (0, 0))[0, 0]
        )

    assert values.grad is not None
    slopes = values.grad[0, 0, 0].tolist()
    assert slopes[0] == 0
    assert slopes[1] == pytest.approx((length(2) - length(0)) / 2, rel=1e-4)
    assert slopes[2] == pytest.approx(-(length(3) - length(1)) / 2, rel=1e-4)
    assert slopes[3] > 0


def test_planes_are_the_coders(monkeypatch: pytest.MonkeyPatch) -> None:
    given, shape = random_latents(), LatentShape(8, 2, 2)
    seen: dict[tuple[int, int], list[np.ndarray]] = {(i, h): [] for i in (0, 1) for h in (0, 1)}

    class Spy:
        def __init__(self, key: tuple[int, int]) -> None:
            self.key = key
            self.inputs, self.outputs = 8 * (1 + key[1]) + 3, 8
            self.layers = [type("Last", (), {"top": 63})]

        def run(self, x: np.ndarray) -> np.ndarray:
            seen[self.key].append(x.copy())
            return np.full((8, *x.shape[1:]), 30, np.uint8)

    nets: Any = {key: Spy(key) for key in seen}
    model = LatentModel(Prior(shape, Prior.neutral(shape).tables, nets), (3, 8, 8), given.quality)
    for run in (model.code_intra, model.code_hypers, model.code_inters):
        run(Counter(), given)
    found: dict[tuple[int, int], list[np.ndarray]] = {key: [] for key in seen}
    rate = RateModel(**SIZES, hidden=4)
    for key, planes in s2vc_prior._planes(rate, given):
        found[key].append(planes[0].numpy().astype(np.uint8))
    for key, expected in seen.items():
        assert len(expected) == (1 if key[0] == 0 else 2)
        assert all(np.array_equal(a, b) for a, b in zip(expected, found[key], strict=True))


def test_integer_networks_say_what_the_trained_ones_say() -> None:
    rate = RateModel(**SIZES, hidden=8).requires_grad_(False)
    for net in rate.nets.values():
        for p in net.parameters():
            p.normal_(0, 1.5 / p[0].numel() ** 0.5 if p.ndim > 1 else 1.0)
        net[4].bias += 4
        net[4].weight *= 0.5
    given = [s2vc_prior.Sample(random_latents(seed), 0.0) for seed in (1, 2)]
    nets = s2vc_prior.integer_networks(rate, given)
    assert nets.keys() == {(i, h) for i in (0, 1) for h in (0, 1)}
    for key, planes in s2vc_prior._planes(rate, given[0].latents):
        exact = (s2vc_rate.GAIN * rate.nets[f"{key[0]}{key[1]}"](planes / 16)[0]).clamp(0, 63)
        found = nets[key].run(planes[0].numpy().astype(np.uint8))
        assert found.std() > 1
        assert float((exact - torch.from_numpy(found).float()).abs().mean()) < 0.6


def test_a_trained_rate_model_comes_near_the_real_coder(tmp_path: Path) -> None:
    rate = RateModel(**SIZES, hidden=8)
    given = [random_latents(seed) for seed in range(4)]
    optimiser = torch.optim.Adam(rate.parameters(), 0.03)
    for _ in range(15):
        loss = sum((bits_of(rate, g) for g in given[:3]), torch.zeros(()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    rate.requires_grad_(False)
    samples = [s2vc_prior.Sample(g, float(bits_of(rate, g))) for g in given]
    prior, report = s2vc_prior.fit(LatentShape(8, 2, 2), rate, samples)
    assert report.fitted <= report.networks <= 1.02 * report.neutral
    assert 0.7 * report.guessed < report.fitted < 1.4 * report.guessed
    again = Prior.from_arrays(LatentShape(8, 2, 2), prior.arrays())
    assert s2vc_prior._coded(again, samples[3::4]) == report.fitted


def test_bits_do_not_depend_on_other_sequences_of_a_batch() -> None:
    rate = RateModel(**SIZES, hidden=4)
    frames = [in_frames(random_latents(s))[0] for s in (1, 2)]
    both = Latents(*(torch.cat([getattr(f, n) for f in frames]) for n in ("hyper", "latent")))
    quality = torch.tensor([5.0, 50.0])
    together, _ = rate(both, None, quality)
    alone = torch.cat([rate(f, None, q[None])[0] for f, q in zip(frames, quality, strict=True)])
    assert torch.allclose(together, alone, rtol=1e-5)


def test_the_past_is_kept_as_the_coder_keeps_it() -> None:
    rate = RateModel(**SIZES, hidden=4)
    past: Past | None = None
    for sent in in_frames(random_latents(frames=4)):
        _, past = rate(sent, past, torch.zeros(1))
        assert torch.equal(past.history, past.history.round())
        assert float(past.history.max()) <= s2vc_rate.PLANE * 15
