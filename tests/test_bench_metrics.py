"""Metrics: known figures and distortions, streaming, and what is said without weights."""

from __future__ import annotations

import sys
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scene import Scene

from semvc.bench import collect, metrics, motion, networks, selfcheck
from semvc.bench.metrics import Meter
from semvc.bench.networks import Networks
from semvc.bench.rows import METRICS
from semvc.errors import MediaError, ModelError, UsageError

PLAIN = ("psnr_y", "psnr_rgb", "sharp_db", *motion.FLICKER, *motion.FLOW)
LEARNED = ("lpips", "lpips_vgg", "dists", "pkid", "tlpips")
ALEX_SHAPES = ((6, 3, 11), (8, 6, 5), (8, 8, 3), (8, 8, 3), (6, 8, 3))
VGG_WIDTHS = (3, 4, 4, 5, 5, 6, 6, 6, 7, 7, 7, 8, 8, 8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks of the true layout, a few channels wide, with weights drawn here."""
    folder = tmp_path_factory.mktemp("weights")
    draw = torch.Generator().manual_seed(1)

    def layers(shapes: Any, numbers: Any) -> dict[str, torch.Tensor]:
        state = {}
        for number, (out, into, side) in zip(numbers, shapes, strict=True):
            shape = (out, into, side, side)
            scale = (2 / (into * side * side)) ** 0.5
            state[f"features.{number}.weight"] = scale * torch.randn(shape, generator=draw)
            state[f"features.{number}.bias"] = 0.1 * torch.randn(out, generator=draw)
        return state

    vgg = [(VGG_WIDTHS[i + 1], VGG_WIDTHS[i], 3) for i in range(13)]
    save_file(layers(ALEX_SHAPES, (0, 3, 6, 8, 10)), folder / networks.ALEX)
    save_file(layers(vgg, range(0, 39, 3)), folder / networks.VGG)
    heads = {f"alex.lin{i}": torch.rand((1, s[0], 1, 1)) for i, s in enumerate(ALEX_SHAPES)}
    levels = (4, 5, 6, 7, 8)
    heads |= {f"vgg.lin{i}": torch.rand((1, c, 1, 1)) for i, c in enumerate(levels)}
    count = 3 + sum(levels)
    heads |= {"dists.alpha": torch.rand(1, count, 1, 1), "dists.beta": torch.rand(1, count, 1, 1)}
    save_file(heads, folder / networks.HEADS)
    return folder


@pytest.fixture(scope="module")
def video() -> Any:
    return Scene(192, 176, 9, pan=0.2).render()[0]


def measured(video: Any, other: Any, names: Any, **how: Any) -> metrics.Measured:
    shape = (video.shape[1], video.shape[2], len(video))
    meter = Meter(names, every=how.pop("every", 2), **how)
    return meter.measure(lambda: zip(video, other, strict=True), shape, 24.0)


def blurred(video: Any) -> Any:
    wide = np.pad(video.astype(np.float32), ((0, 0), (2, 2), (2, 2), (0, 0)), "edge")
    h, w = video.shape[1:3]
    total = sum(wide[:, y : y + h, x : x + w] for y in range(5) for x in range(5))
    return np.rint(total / 25).astype(np.uint8)


def noisy(video: Any, *, still: bool) -> Any:
    shape = video.shape[1:] if still else video.shape
    noise = np.random.default_rng(3).normal(0, 8, shape)
    return np.clip(np.rint(video + noise), 0, 255).astype(np.uint8)


def test_equal_videos_are_perfect(video: Any, weights: Path) -> None:
    names = tuple(name for name in METRICS if name != "cvvdp")
    found = measured(video, video, names, weights=weights)
    assert not found.missing
    assert found.values["psnr_y"] == found.values["psnr_rgb"] == 100
    assert found.values["ms_ssim"] == pytest.approx(1)
    assert found.values["ewarp"] == found.values["ewarp_source"] > 0
    rest = ("sharp_db", "tof", "tlpips", *motion.FLICKER, *LEARNED)
    assert {name: found.values[name] for name in rest} == pytest.approx(
        dict.fromkeys(rest, 0.0), abs=1e-5
    )


def test_blur_noise_and_boiling_are_told_apart(video: Any) -> None:
    names = (*PLAIN, "ms_ssim")
    blur = measured(video, blurred(video), names).values
    fixed = measured(video, noisy(video, still=True), names).values
    boiling = measured(video, noisy(video, still=False), names).values
    assert blur["sharp_db"] < -3 < 3 < fixed["sharp_db"]
    assert fixed["psnr_y"] == pytest.approx(boiling["psnr_y"], abs=0.5)
    assert boiling["flicker_static_db"] > fixed["flicker_static_db"] + 6
    assert boiling["ewarp"] > 2 * boiling["ewarp_source"] > 2 * blur["ewarp"]
    assert blur["ewarp_source"] == boiling["ewarp_source"]
    assert all(found["ms_ssim"] < 0.999 for found in (blur, fixed, boiling))


def test_psnr_is_that_of_luma_in_the_limited_range(video: Any) -> None:
    lighter = np.clip(video, 0, 250) + 5
    found = measured(np.clip(video, 0, 250), lighter, ("psnr_y", "psnr_rgb")).values
    assert found["psnr_rgb"] == pytest.approx(20 * np.log10(255 / 5), abs=1e-3)
    assert found["psnr_y"] == pytest.approx(20 * np.log10(255 / (5 * 219 / 255)), abs=1e-3)


def test_lpips_is_the_formula(video: Any, weights: Path) -> None:
    net = Networks(weights, dtype=torch.float32)
    a, b = net.frames(video[0]), net.frames(video[-1])
    for kind in ("alex", "vgg"):
        maps = [net.lpips_maps(x, kind) for x in (a, b)]
        heads = net._head_weights()
        expected = 0.0
        for i, (x, y) in enumerate(zip(*maps, strict=True)):
            assert torch.allclose(x.square().sum(1), torch.ones(()), atol=1e-3) or x.min() == 0
            weighted = (x - y).square() * heads[f"{kind}.lin{i}"]
            expected += float(weighted.sum(1).mean())
        assert float(net.lpips(*maps, kind)) == pytest.approx(expected, rel=1e-5) != 0


def test_frames_of_a_batch_do_not_see_each_other(video: Any, weights: Path) -> None:
    net = Networks(weights, dtype=torch.float32)
    both = net.dists_maps(net.frames(video[0], video[4]))
    single = net.dists_maps(net.frames(video[4]))
    for pair, alone in zip(both, single, strict=True):
        assert torch.allclose(pair[1:], alone, atol=1e-5)
    first, second = [m[:1] for m in both], [m[1:] for m in both]
    assert float(net.dists(first, second)) == pytest.approx(float(net.dists(second, first)))
    assert float(net.dists(first, second)) > 1e-4


def test_bfloat16_changes_little(video: Any, weights: Path) -> None:
    other = blurred(video)
    found = [
        measured(video, other, ("lpips", "dists"), weights=weights, dtype=dtype).values
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert found[0] == pytest.approx(found[1], rel=0.05) and found[0] != found[1]


def test_patch_kid_ignores_where_and_sees_what() -> None:
    draw = torch.Generator().manual_seed(2)
    a, b = (torch.rand((60, 12), generator=draw) for _ in range(2))
    shuffled = a[torch.randperm(60, generator=draw)]
    assert networks.patch_kid(a, a) == pytest.approx(0, abs=1e-9)
    assert abs(networks.patch_kid(a, shuffled)) < 0.1 * networks.patch_kid(a, b**4)
    with pytest.raises(ValueError, match="two patches"):
        networks.patch_kid(a[:1], b[:1])


def test_steps_over_a_cut_do_not_count() -> None:
    shots = [Scene(96, 64, 12, seed=seed).render()[0] for seed in (0, 5)]
    video = np.concatenate(shots)
    names = ("flicker_db", *motion.FLOW)
    found = measured(video, video, names, every=1).values
    alone = [measured(shot, shot, names, every=1).values["ewarp"] for shot in shots]
    assert found["ewarp"] == pytest.approx(np.mean(alone), rel=1e-3)


def test_a_single_frame_has_no_motion(video: Any) -> None:
    found = measured(video[:1], video[:1], ("psnr_y", "tof", "flicker_db"))
    assert set(found.values) == {"psnr_y"}
    assert set(found.missing) == {"tof", "flicker_db"}


def test_small_frames_lack_what_needs_large_ones(weights: Path) -> None:
    video = Scene(80, 64, 2).render()[0]
    found = measured(video, video, ("ms_ssim", "pkid", "dists"), weights=weights, every=4)
    assert set(found.values) == {"dists"}
    assert "176" in found.missing["ms_ssim"] and "patches" in found.missing["pkid"]


def test_without_weights_the_rest_is_measured_and_the_lack_is_named(
    video: Any, tmp_path: Path
) -> None:
    for folder, why in ((None, "--metric-weights"), (tmp_path, "alexnet")):
        found = measured(video, video, ("psnr_y", "lpips"), weights=folder)
        assert set(found.values) == {"psnr_y"} and why in found.missing["lpips"]


def test_packages_that_are_not_installed_are_named(
    video: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> Any:
        raise ImportError("not here")

    monkeypatch.setattr(motion, "_opencv", absent)
    monkeypatch.setattr(metrics.vdp, "_package", absent)
    found = measured(video, video, ("psnr_y", "ewarp", "cvvdp", "flicker_db"))
    assert set(found.values) == {"psnr_y", "flicker_db"}
    assert "opencv" in found.missing["ewarp"] and "cvvdp" in found.missing["cvvdp"]


def test_weights_that_are_something_else_are_refused(weights: Path, tmp_path: Path) -> None:
    for name in (networks.ALEX, networks.HEADS):
        (tmp_path / name).write_bytes((weights / networks.HEADS).read_bytes())
    net = Networks(tmp_path)
    with pytest.raises(ModelError, match="convolutions"):
        net.lpips_maps(net.frames(np.zeros((64, 64, 3), np.uint8)))
    (tmp_path / networks.ALEX).write_bytes(b"not weights")
    with pytest.raises(ModelError, match="cannot read"):
        net.lpips_maps(net.frames(np.zeros((64, 64, 3), np.uint8)))


def test_other_sizes_and_lengths_are_refused(video: Any) -> None:
    meter = Meter(("psnr_y",))
    with pytest.raises(MediaError, match="another size"):
        meter.measure(lambda: zip(video, video[:, :100], strict=True), (176, 192, 9), 24.0)
    with pytest.raises(MediaError, match="4 frames where 9"):
        meter.measure(lambda: zip(video[:4], video[:4], strict=True), (176, 192, 9), 24.0)


def test_videos_are_not_held_in_memory(weights: Path) -> None:
    alive: list[weakref.ref[Any]] = []
    most = 0

    def pairs() -> Iterator[tuple[Any, Any]]:
        nonlocal most
        for t in range(40):
            pair = tuple(np.full((64, 64, 3), t + k, np.uint8) for k in range(2))
            alive.extend(weakref.ref(frame) for frame in pair)
            most = max(most, sum(ref() is not None for ref in alive))
            yield pair[0], pair[1]

    Meter((*PLAIN, "lpips", "tlpips"), weights=weights).measure(pairs, (64, 64, 40), 24.0)
    assert most <= 8


def test_sampled_frames_are_uneven_and_begin_with_the_first() -> None:
    found = metrics.sampled(60, 6)
    assert found[0] == 0 and len(found) == 10 and found[-1] < 60
    assert len(set(np.diff(found))) > 1
    assert metrics.sampled(5, 1) == (0, 1, 2, 3, 4) and metrics.sampled(3, 8) == (0,)


class Module:
    """Of a package: something with a state."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self.state_dict = lambda: state


def test_weights_can_be_collected_from_the_packages_of_the_metrics(
    weights: Path, video: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lpips(net: str, **_: Any) -> Module:
        name = {"alex": networks.ALEX, "vgg": networks.VGG}[net]
        state = {
            f"net.slice1.{k.split('.', 1)[1]}": v for k, v in load_file(weights / name).items()
        }
        heads = load_file(weights / networks.HEADS)
        return Module(state | {f"lin{i}.model.1.weight": heads[f"{net}.lin{i}"] for i in range(5)})

    def dists() -> Module:
        heads = load_file(weights / networks.HEADS)
        return Module({name: heads[f"dists.{name}"] for name in ("alpha", "beta")})

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=lpips))
    monkeypatch.setitem(sys.modules, "DISTS_pytorch", types.SimpleNamespace(DISTS=dists))
    assert collect.main([str(tmp_path)]) == 0
    other = blurred(video)
    both = [measured(video, other, LEARNED, weights=w, every=8) for w in (weights, tmp_path)]
    assert both[0].values == both[1].values
    monkeypatch.setitem(
        sys.modules, "DISTS_pytorch", types.SimpleNamespace(DISTS=lambda: Module({}))
    )
    with pytest.raises(ModelError, match="alpha"):
        collect.collect(tmp_path)
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UsageError, match="pip install lpips"):
        collect.collect(tmp_path)
    assert collect.main([]) == collect.main([str(tmp_path)]) == 2


def test_the_self_check_checks_and_says_what_it_lacks(weights: Path) -> None:
    found = {check.name: check for check in selfcheck.self_check(weights)}
    learned = [name for name in found if name.startswith(("lpips", "dists"))]
    assert len(learned) == 3
    assert all("example image" in found[name].reason for name in learned)
    assert all(check.ok for name, check in found.items() if name not in learned)
    assert not any(found[name].ok for name in learned)
    wrong = selfcheck.Check("x", 1.0, 1.1, 0.01)
    assert not wrong.ok
