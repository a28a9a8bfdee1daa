"""Training of profile s2vc: sequences, rate, losses, stages, resuming, the coder's fit, export."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache import write_metric_weights
from s2vc_models import LARGE as LARGE_DECODER
from s2vc_models import TINY, write_backbone
from safetensors.torch import load_file
from torch import Tensor

from semvc import weights
from semvc.entropy.coder import Counter
from semvc.errors import ModelError, UsageError
from semvc.nets import s2vc_runner, s2vc_synthesis
from semvc.nets.s2vc_codec import HYPER_RANGE, Latents
from semvc.signals.latent import LatentModel
from semvc.signals.latent import Latents as Signal
from semvc.signals.latentprior import LatentShape, Prior, read_prior
from semvc.train import (
    families,
    losses,
    prepare_sequences,
    s2vc,
    s2vc_export,
    s2vc_prior,
    s2vc_rate,
    s2vc_teacher,
    sequences,
    stills,
)
from semvc.train.loop import Run, Trainer
from semvc.train.prepare_sequences import Settings
from semvc.train.recipe import Recipe, Stage, load
from semvc.train.s2vc import Options
from semvc.train.s2vc_rate import Past, RateModel
from semvc.train.sequences import Sequences

RECIPES = Path(s2vc.__file__).parent / "recipes"
CODEC: dict[str, Any] = {
    "features": TINY["channels"],
    "hidden": 8,
    "latents": 8,
    "groups": 2,
    "hyper": 2,
    "hyper_levels": 0,
    "depths": [1, 1, 1, 1],
    "reset": 32,
}
SIZES = {"latents": 8, "groups": 2, "hyper": 2}
NETWORK: dict[str, Any] = {"codec": CODEC, "decoder": TINY, "rate": {"hidden": 4}}
JUDGED = {"l1": 1.0, "lpips": 1.0, "semantic": 0.001, "motion": 0.25}
AUTOENCODER = Options(train=("autoencoder",), frames=1, crop=64, l1=1.0, lpips=0.5)
CODING = Options(train=("codec",), frames=2, crop=64, preview=1.0, preview_lpips=0.5)
DECODING = Options(train=("decoder",), frames=2, crop=64, latent=0.5, **JUDGED)
JOINT = Options(train=("codec", "autoencoder", "decoder"), frames=3, crop=64, preview=0.3, **JUDGED)


def stage(options: Options, steps: int = 2, **given: Any) -> Stage:
    kept = {"rate": 2e-3, "final_rate": 1e-3, "batch": 2, "warmup": 1} | given
    return Stage(name="-".join(options.train), steps=steps, options=options, **kept)


RECIPE = Recipe(
    model="tiny-v1",
    family="s2vc",
    seed=3,
    network=NETWORK,
    stages=tuple(stage(o) for o in (AUTOENCODER, CODING, DECODING, JOINT)),
    bfloat16=False,
    sample_minutes=0.0,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cache` (two sequences of 6 frames, three photographs) and `metrics`."""
    root = tmp_path_factory.mktemp("s2vc")
    write_sequences(root / "cache")
    write_metric_weights(root / "metrics")
    return root


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(9)
        yield


def write_sequences(folder: Path) -> None:
    """Write the unpacked form: coarse random squares that move to the right."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(2)
    coarse = rng.integers(0, 256, (2, 1, 10, 16, 3), np.uint8).repeat(8, 2).repeat(8, 3)
    clips = np.concatenate([coarse[:, :, :80, t : t + 80] for t in range(6)], 1)
    np.save(folder / "clips.npy", clips)
    photos = rng.integers(0, 256, (3, 20, 24, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    np.save(folder / "photos.npy", photos)


def trainer(shared: Path, folder: Path, recipe: Recipe = RECIPE, **given: Any) -> Trainer:
    return Trainer(recipe, Run(folder, [shared / "cache"], shared / "metrics", **given))


def task(shared: Path, recipe: Recipe = RECIPE) -> s2vc.S2vc:
    inputs = families.Inputs(
        [shared / "cache"], shared / "metrics", torch.device("cpu"), torch.float32
    )
    return s2vc.build(recipe, inputs)


# Sequences


def test_a_batch_of_sequences_depends_on_its_key_alone(shared: Path) -> None:
    def batch(step: int) -> Tensor:
        given = Sequences([shared / "cache"])
        return given.batch(4, frames=3, crop=64, photos=0.5, key=(1, step)).frames()

    assert torch.equal(batch(0), batch(0))
    assert not torch.equal(batch(0), batch(1))
    assert batch(0).shape == (4, 3, 3, 64, 64)
    assert float(batch(0).abs().max()) <= 1


def test_the_share_of_photographs_is_kept(shared: Path) -> None:
    given = Sequences([shared / "cache"])
    assert given.counts == (2, 3)
    assert given.size == (6, 80)
    for share, expected in ((0.0, 0), (1.0, 5)):
        found = given.batch(5, frames=2, crop=64, photos=share, key=(1, 1))
        assert len(found.photos) == expected
        assert len(found.clips) == 5 - expected
    assert 0 <= float(found.quality.min()) <= float(found.quality.max()) <= 63


def test_frames_of_a_clip_follow_each_other(shared: Path) -> None:
    given = Sequences([shared / "cache"])
    for step in range(8):
        found = given.batch(1, frames=3, crop=64, photos=0.0, key=(2, step)).clips[0].int()
        moved = []
        for speed in (1, 2, -1, -2):  # twice as fast, or mirrored
            a, b = (found[0], found[1]) if speed > 0 else (found[1], found[0])
            moved.append(torch.equal(a[:, abs(speed) :], b[:, : -abs(speed)]))
        assert any(moved)


def test_sequences_too_short_or_small_are_named(shared: Path) -> None:
    given = Sequences([shared / "cache"])
    with pytest.raises(UsageError, match="have 6 frames of 80 luma samples"):
        given.batch(1, frames=7, crop=64, photos=0.0, key=(1, 1))
    with pytest.raises(UsageError, match="below 192"):
        given.batch(1, frames=2, crop=192, photos=1.0, key=(1, 1))


def test_an_empty_folder_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="prepare_sequences"):
        Sequences([tmp_path])


def test_a_camera_at_rest_shows_the_photograph(shared: Path) -> None:
    photo = torch.from_numpy(np.load(shared / "cache" / "photos.npy")[:1])
    still = torch.tensor([[[[1.0, 0, 0], [0, 1, 0]]]])
    path = stills.Path(still, still, torch.zeros(1, 1, 5))
    found = stills.render(photo, photo, path, 64)[0, 0]
    middle = photo[0, 48:112, 64:128].permute(2, 0, 1).float()
    inner = (slice(None), slice(2, 62), slice(2, 62))
    sharp = (middle - middle.roll(1, 1)).abs().sum() + 1
    assert (found - middle)[inner].abs().mean() < 0.05 * sharp / middle.numel() + 12


def test_a_camera_that_moves_shifts_the_picture(shared: Path) -> None:
    photo = torch.from_numpy(np.load(shared / "cache" / "photos.npy")[:1])
    matrices = torch.tensor([[[[1.0, 0, dx], [0, 1, dy]] for dx, dy in ((0, 0), (5, -3))]])
    path = stills.Path(matrices, matrices, torch.zeros(1, 2, 5))
    first, second = stills.render(photo, photo, path, 64)[0]
    assert torch.allclose(second[:, 3:, :59], first[:, :61, 5:], atol=0.1)


def test_a_passing_thing_covers_what_is_behind(shared: Path) -> None:
    photos = torch.from_numpy(np.load(shared / "cache" / "photos.npy"))
    still = torch.tensor([[[[1.0, 0, 0], [0, 1, 0]]]])
    mask = torch.tensor([[[10.0, -5.0, 12.0, 8.0, 1.0]]])
    plain = stills.render(photos[:1], photos[1:2], stills.Path(still, still, 0 * mask), 64)
    covered = stills.render(photos[:1], photos[1:2], stills.Path(still, still, mask), 64)
    changed = (plain - covered).abs().amax(2)[0, 0] > 1
    assert changed[31 - 5, 31 + 10]
    assert not changed[:8].any()
    assert not changed[:, :16].any()


def test_videos_and_photographs_become_a_cache(clip: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(clip.read_bytes())
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    for number in range(2):
        Image.fromarray(pixels.repeat(12, 0).repeat(12, 1)).save(folder / f"{number}.jpg")
    settings = Settings(length=8, side=32, seconds=0.4, photo=(48, 64), preset="ultrafast")
    assert prepare_sequences.clips(folder, tmp_path / "out", settings) == 2
    assert prepare_sequences.photos(folder, tmp_path / "out", settings) == 2
    found = Sequences([tmp_path / "out"])
    assert found.counts == (2, 2)
    assert found.size == (8, 32)
    assert np.load(tmp_path / "out" / "photos.npy").shape == (2, 48, 64, 3)
    assert not list((tmp_path / "out").rglob("*.part*"))


def test_opencv_reads_what_pyav_reads(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed: pip install opencv-python-headless")
    expected = sequences.read_video(clip).astype(int)
    monkeypatch.setitem(sys.modules, "av", None)
    found = sequences.read_video(clip).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 3


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
        net[4].bias += 30
        net[4].weight *= 4
    given = [s2vc_prior.Sample(random_latents(seed), 0.0) for seed in (1, 2)]
    nets = s2vc_prior.integer_networks(rate, given)
    assert nets.keys() == {(i, h) for i in (0, 1) for h in (0, 1)}
    for key, planes in s2vc_prior._planes(rate, given[0].latents):
        exact = rate.nets[f"{key[0]}{key[1]}"](planes / 16)[0].clamp(0, 63)
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


# Options


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train": ()}, "train must name"),
        ({"train": ("unet",)}, "train must name"),
        ({"crop": 96}, "multiple of 64"),
        ({"frames": 0}, "frames >= 1"),
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
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        patch_size=16,
        num_register_tokens=2,
    )
    transformers.DINOv3ViTModel(config).save_pretrained(tmp_path)
    teacher = s2vc_teacher.DinoTeacher(tmp_path, torch.device("cpu"))
    assert teacher(torch.rand(2, 3, 64, 128) * 2 - 1).shape == (2, 12, 2, 4)


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


def test_a_pretrained_backbone_is_neither_trained_nor_saved(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed: pip install 'semvc[full]'")
    write_backbone(tmp_path)
    network = NETWORK | {"decoder": LARGE_DECODER, "backbone": str(tmp_path)}
    joint = replace(JOINT, train=("codec", "decoder"), frames=2)
    recipe = replace(RECIPE, network=network, stages=(stage(joint),))
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


def test_an_export_without_weights_is_refused(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to start from"):
        s2vc_export.export(
            RECIPE, tmp_path, tmp_path / "m", [shared / "cache"], s2vc_export.Settings()
        )


def test_training_the_small_model_imports_no_codec_library() -> None:
    blocked = ("av", "constriction", "diffusers", "peft", "transformers")
    code = (
        f"import sys\nfor n in {blocked!r}: sys.modules[n] = None\n"
        "import semvc.train.s2vc, semvc.train.loop\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_past_is_kept_as_the_coder_keeps_it() -> None:
    rate = RateModel(**SIZES, hidden=4)
    past: Past | None = None
    for sent in in_frames(random_latents(frames=4)):
        _, past = rate(sent, past, torch.zeros(1))
        assert torch.equal(past.history, past.history.round())
        assert float(past.history.max()) <= s2vc_rate.PLANE * 15
