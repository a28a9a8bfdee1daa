"""The single-step latent diffusion decoder: closed form, guidance, sizes, both dials."""

from __future__ import annotations

import builtins
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from s2vc_models import LARGE, TINY, UNET, features, filled, fresh, write_backbone, write_model
from torch import Tensor

from semvc.errors import ModelError
from semvc.nets import s2vc_decoder, s2vc_pretrained, s2vc_synthesis
from semvc.nets.autoencoder import SmallAutoencoder
from semvc.nets.s2vc_decoder import SD15, SMALL, LatentDecoder
from semvc.nets.s2vc_synthesis import Synthesizer
from semvc.nets.s2vc_unet import LocalAttention

NEEDS_PEFT = "peft is not installed: pip install 'semvc[full]'"
CPU = torch.device("cpu")


# Closed form


@pytest.mark.parametrize("timestep", [0, 400, 999])
def test_the_clean_latent_undoes_the_forward_process(timestep: int) -> None:
    power = s2vc_decoder.signal_power(timestep)
    clean, noise = torch.randn(2, 4, 5, 6), torch.randn(2, 4, 5, 6)
    noisy = power**0.5 * clean + (1 - power) ** 0.5 * noise
    found = s2vc_decoder.clean_latent(noisy, noise, power)
    assert torch.allclose(found, clean, atol=1e-4)


def test_the_schedule_is_stable_diffusions() -> None:
    from diffusers import DDPMScheduler

    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    for timestep in (0, 250, 999):
        expected = float(schedule.alphas_cumprod[timestep])
        assert s2vc_decoder.signal_power(timestep) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_timesteps_outside_the_schedule_are_refused(timestep: int) -> None:
    with pytest.raises(ValueError, match="timestep"):
        s2vc_decoder.signal_power(timestep)


def test_the_closed_form_is_computed_in_float32() -> None:
    power = s2vc_decoder.signal_power(999)
    noise = torch.full((1,), 1.0)
    sample = torch.full((1,), (1 - power) ** 0.5)
    found = s2vc_decoder.clean_latent(sample.bfloat16(), noise.bfloat16(), power)
    exact = (float(sample.bfloat16()) - (1 - power) ** 0.5) / power**0.5
    assert float(found) == pytest.approx(exact, rel=0.01)


# The U-Net's driver


def test_the_driver_gives_what_diffusers_own_forward_gives() -> None:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    network = UNet2DConditionModel(cross_attention_dim=16, **UNET).eval()
    x, tokens = torch.randn(2, 4, 16, 24), torch.randn(2, 7, 16)
    with torch.no_grad():
        expected = network(x, torch.tensor(999), tokens).sample
        found = s2vc_decoder.predict_noise(network, x, 999, tokens)
    assert torch.equal(found, expected)


def test_fusion_leaves_the_skip_connections_alone() -> None:
    def moved(shift: float, level: int, x: Tensor) -> Tensor:
        return x + shift * (level == 2)

    network = filled()
    seen: list[Tensor] = []
    network.unet.up_blocks[0].register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.extend(kwargs["res_hidden_states_tuple"]), with_kwargs=True
    )
    x, tokens = torch.randn(1, 8, 16, 16), torch.randn(1, 4, 16)
    for shift in (0.0, 1.0):
        s2vc_decoder.predict_noise(
            network.unet, x, 0, tokens, grid=(2, 2), fuse=partial(moved, shift)
        )
    assert len(seen) == 4
    assert torch.equal(seen[1], seen[3])


# Guidance


def test_temporal_guidance_changes_nothing_at_the_start() -> None:
    network = fresh()
    _, before = network(features(seed=1), None)
    own = network(features(seed=2), None)[1]
    swapped = s2vc_decoder.Buffers(own.tokens, before.levels)
    again = s2vc_decoder.Buffers(own.tokens, own.levels)
    assert torch.equal(network(features(seed=2), swapped)[0], network(features(seed=2), again)[0])
    network = filled()
    first = network(features(seed=2), s2vc_decoder.Buffers(own.tokens, before.levels))[0]
    other = network(features(seed=2), s2vc_decoder.Buffers(own.tokens, own.levels))[0]
    assert not torch.equal(first, other)


def test_semantic_guidance_changes_nothing_at_the_start() -> None:
    x = torch.randn(1, 8, 16, 16)

    def noise(network: LatentDecoder, seed: int) -> Tensor:
        tokens = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(seed))
        return s2vc_decoder.predict_noise(network.unet, x, 0, tokens, grid=(2, 2))

    network = fresh()
    torch.nn.init.normal_(network.unet.conv_out.weight)
    assert torch.equal(noise(network, 1), noise(network, 2))
    assert not torch.equal(noise(filled(), 1), noise(filled(), 2))


def test_tokens_of_both_frames_are_attended_to() -> None:
    adapter = filled().semantic
    now, before = adapter(features(seed=1)), adapter(features(seed=2))
    assert now.shape == (1, 4, TINY["tokens"])
    assert adapter.pair(now, None).shape == (1, 4, TINY["tokens"])
    both = adapter.pair(now, before)
    assert both.shape == (1, 8, TINY["tokens"])
    assert torch.equal(both[:, :4], adapter.pair(now, None))
    assert not torch.equal(adapter.pair(now, now)[:, 4:], adapter.pair(now, now)[:, :4])


def test_a_frame_depends_on_the_frame_before() -> None:
    network = filled()
    _, one = network(features(seed=1), None)
    _, two = network(features(seed=2), None)
    assert not torch.equal(network(features(seed=3), one)[0], network(features(seed=3), two)[0])


def test_segments_do_not_depend_on_each_other() -> None:
    runner = Synthesizer(filled(), device=CPU, dtype=torch.float32)
    first = [features(seed=s) for s in (1, 2)]
    second = [features(seed=s) for s in (3, 4, 5)]
    alone = list(runner.frames(second, 100, 120))
    list(runner.frames(first, 100, 120))
    after = list(runner.frames(second, 100, 120))
    assert all(np.array_equal(a, b) for a, b in zip(alone, after, strict=True))
    joined = list(runner.frames([*first, *second], 100, 120))
    assert not np.array_equal(joined[2], alone[0])


def test_frames_are_cropped_and_of_eight_bits() -> None:
    runner = Synthesizer(filled(), device=CPU, dtype=torch.float32)
    (frame,) = runner.frames([features()], 97, 113)
    assert frame.shape == (97, 113, 3)
    assert frame.dtype == np.uint8
    assert frame.std() > 1


# Sizes


def test_the_result_does_not_depend_on_the_size_away_from_borders() -> None:
    network, rows, cut = filled(), 36, 2
    frames = [features(rows, 1, seed=s) for s in (1, 2)]

    def second(given: list[Tensor]) -> Tensor:
        before = network(given[0], None)[1]
        return network(given[1], before)[0]

    whole, part = second(frames), second([f[:, :, 8 * cut :] for f in frames])
    difference = (whole[:, :, 64 * cut :] - part).abs().amax((0, 1, 3)).unflatten(0, (-1, 64))
    worst = difference.amax(1)  # of each row of cells
    assert float(worst[0]) > 1e-3
    assert float(worst[24:].max()) < 1e-5


def test_no_layer_of_the_small_dial_looks_over_the_whole_picture() -> None:
    network = fresh()
    kinds = {type(module).__name__ for module in network.modules()}
    assert not any("Group" in kind or "Instance" in kind or "Batch" in kind for kind in kinds)
    assert "_GlobalAttention" not in kinds
    assert "_GlobalAttention" in {type(m).__name__ for m in _on_meta(SD15).modules()}


def test_attention_reads_the_own_and_the_neighbouring_cells() -> None:
    torch.manual_seed(4)
    attention = LocalAttention(8, 6, heads=2, depth=4).requires_grad_(False)
    torch.nn.init.normal_(attention.to_out.weight)
    x, tokens = torch.randn(1, 8, 20, 24), torch.randn(1, 30, 6)  # 5 x 6 cells of 4 x 4
    before = attention(x, tokens, (5, 6))
    changed = tokens.clone()
    changed[0, 2 * 6 + 3] += 1  # the cell of row 2, column 3
    moved = (attention(x, changed, (5, 6)) - before).abs().amax((0, 1)) > 0
    expected = torch.zeros(20, 24, dtype=torch.bool)
    expected[4:16, 8:20] = True
    assert torch.equal(moved, expected)


def test_nearer_tokens_count_more() -> None:
    attention = LocalAttention(8, 6, heads=2, depth=4).requires_grad_(False)
    near = attention._nearness(4, 18, torch.zeros(1))
    assert near.shape == (2, 16, 18)
    assert torch.equal(near[..., :9], near[..., 9:])
    assert near[0, 0].argmax() == 4
    assert near[0, 0, 0] > near[0, 0, 8]  # the first position lies nearer the first cell
    assert near[0, 15, 8] > near[0, 15, 0]


# The autoencoder


@pytest.mark.parametrize(("height", "width"), [(64, 64), (72, 8)])
def test_the_autoencoder_works_at_an_eighth_of_the_resolution(height: int, width: int) -> None:
    network = SmallAutoencoder(latent=4, widths=(8, 6, 4), depths=(1, 2, 1))
    latents = network.encode(torch.rand(2, 3, height, width) * 2 - 1)
    assert latents.shape == (2, 4, height // 8, width // 8)
    assert network.decode(latents).shape == (2, 3, height, width)


def test_latents_are_bounded() -> None:
    network = SmallAutoencoder(latent=4, widths=(8, 6, 4), depths=(1, 1, 1))
    torch.nn.init.normal_(network.requires_grad_(False).encoder[-1].weight, std=100)
    latents = network.encode(torch.rand(1, 3, 64, 64) * 2 - 1)
    assert 0.9 < float(latents.abs().max()) <= 1


# The small dial


def test_the_small_model_fits_its_size_beside_the_codec() -> None:
    from semvc.nets import s2vc_codec

    with torch.device("meta"):
        codec = s2vc_codec.S2vcCodec(**s2vc_codec.SMALL)
        network = LatentDecoder(**SMALL)
    assert SMALL["channels"] == s2vc_codec.SMALL["features"]
    count = sum(p.numel() for p in codec.parameters())
    count += sum(t.numel() for t in s2vc_synthesis.shipped(network).values())
    assert 2 * count <= 12_000_000


def test_the_small_dial_needs_neither_diffusers_nor_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def guarded(name: str, *rest: Any) -> Any:
        assert name.split(".")[0] not in {"diffusers", "peft", "transformers"}
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", guarded)
    frame, _ = LatentDecoder(**TINY)(features(), None)
    assert frame.shape == (1, 3, 128, 128)


def test_a_model_folder_gives_back_its_decoder(tmp_path: Path) -> None:
    network = filled()
    write_model(tmp_path, TINY, network)
    found = s2vc_synthesis.build(tmp_path, CPU, torch.float32)
    assert not hasattr(found.autoencoder, "encoder")
    network.half().float()
    assert torch.allclose(found(features(), None)[0], network(features(), None)[0], atol=1e-5)


def test_a_folder_with_other_weights_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, TINY | {"fused": 2}, filled())
    with pytest.raises(ModelError, match=r"missing or unknown, the first is temporal\.2"):
        s2vc_synthesis.build(tmp_path, CPU, torch.float32)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ModelError, match="kind must be"):
        LatentDecoder(**TINY | {"unet": TINY["unet"] | {"kind": "sd35"}})


# The large dial


def _on_meta(config: dict[str, Any]) -> LatentDecoder:
    with torch.device("meta"):
        return LatentDecoder(**config)


def test_the_large_dial_has_stable_diffusions_size() -> None:
    network = _on_meta(SD15)
    unet, others = 859_520_964, 320 * 9 * (320 - 4)  # its input layer takes 320 channels, not 4
    assert sum(p.numel() for p in network.unet.parameters()) == unet + others
    assert sum(p.numel() for p in network.autoencoder.parameters()) == 49_490_199


def test_the_large_dial_has_the_papers_shapes_at_1080p() -> None:
    network = _on_meta(SD15)
    given = torch.empty(1, 384, 136, 240, device="meta")
    _, before = network.latents(given, None)
    latent, buffers = network.latents(given, before)
    assert latent.shape == (1, 4, 136, 240)
    assert buffers.tokens.shape == (1, 510, 768)
    assert [tuple(x.shape[1:]) for x in buffers.levels] == [
        (320, 68, 120),
        (640, 34, 60),
        (1280, 17, 30),
    ]
    assert network.autoencoder.decode(latent).shape == (1, 3, 1088, 1920)


def test_the_large_dial_decodes_end_to_end_at_a_reduced_width() -> None:
    runner = Synthesizer(filled(LARGE), device=CPU, dtype=torch.float32)
    frames = list(runner.frames([features(seed=s) for s in (1, 2)], 100, 128))
    assert [f.shape for f in frames] == [(100, 128, 3)] * 2
    assert not np.array_equal(*frames)


def test_a_backbone_is_read_from_a_local_folder(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    write_backbone(tmp_path)
    network = fresh(LARGE)
    s2vc_pretrained.load_backbone(network, tmp_path)
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "unet").state_dict()
    found = network.unet.state_dict()
    assert found.keys() == unet.keys()
    assert all(torch.equal(found[n], unet[n]) for n in unet if not n.startswith("conv_in."))
    latents = torch.randn(1, 4, 8, 8)
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae")
    expected = vae.decode(latents / 0.18215).sample
    assert torch.allclose(network.autoencoder.decode(latents), expected, atol=1e-5)


def test_attention_in_windows_does_not_look_further() -> None:
    decoder = fresh(LARGE).autoencoder
    attention = decoder.decoder.mid_block.attentions[0]
    seen: list[Tensor] = []
    attention.register_forward_hook(lambda _m, _a, out: seen.append(out))
    x = torch.randn(1, 16, 8, 40)
    attention.group_norm = torch.nn.Identity()
    for change in (0.0, 1.0):
        x[..., 39] += change
        attention(x)
    moved = (seen[0] != seen[1]).any(2).any(1)[0]
    assert moved.tolist() == [False] * 32 + [True] * 8


def test_a_folder_without_its_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="put the pretrained unet there"):
        s2vc_synthesis.construct(LARGE, tmp_path)


def test_a_backbone_of_another_size_is_refused(tmp_path: Path) -> None:
    write_backbone(tmp_path)
    other = LARGE | {"unet": LARGE["unet"] | {"block_out_channels": [24, 24, 32, 32]}}
    with pytest.raises(ModelError, match=r"do not fit config\.toml"):
        s2vc_synthesis.construct(other, tmp_path)


def test_without_peft_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    write_backbone(tmp_path)
    with pytest.raises(ModelError, match=r"pip install 'semvc\[full\]'"):
        s2vc_synthesis.construct(LARGE, tmp_path)


def test_a_large_model_ships_what_was_trained_alone(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason=NEEDS_PEFT)
    network = s2vc_synthesis.construct(LARGE, write_backbone(tmp_path))
    trained = {n for n, p in network.named_parameters() if p.requires_grad}
    assert trained == set(s2vc_synthesis.shipped(network))
    frame, before = network(features(batch=2), None)
    frame, _ = network(features(batch=2), before)
    frame.mean().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    write_model(tmp_path, LARGE, network)
    found = s2vc_synthesis.build(tmp_path, CPU, torch.float32)
    assert found.autoencoder.post_quant_conv.weight.dtype == torch.float32
    assert torch.allclose(found(features(), None)[0], network(features(), None)[0], atol=1e-2)


def test_signal_power_falls_with_the_timestep() -> None:
    powers = [s2vc_decoder.signal_power(t) for t in range(0, 1000, 37)]
    assert powers == sorted(powers, reverse=True)
    assert 0 < powers[-1] < powers[0] < 1
