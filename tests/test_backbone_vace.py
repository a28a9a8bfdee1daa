"""Wan2.1-VACE without training, on tiny random networks read from disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tinybackbones import (
    CPU,
    SETTINGS,
    conditions,
    lines,
    missing,
    noise,
    write_lora,
    write_text,
    write_vace,
)

from semvc.backbones import parts
from semvc.backbones.protocol import Backbone, Settings, load
from semvc.backbones.vace import control_clip, mask_channels
from semvc.errors import ModelError

pytestmark = missing("accelerate")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vace(tmp_path_factory.mktemp("vace"))


def opened(folder: Path, **changed: Any) -> Backbone:
    settings: Settings = dataclasses.replace(SETTINGS["vace"], **changed)
    return load("vace", folder, settings, CPU, torch.float32)


def run(backbone: Backbone, **given: Any) -> Any:
    made = conditions(5, height=32, width=48, **given)
    return backbone.generate(backbone.encode(made), noise, 2)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    return run(opened(folder))


def test_it_fits_sizes_and_frames(folder: Path) -> None:
    backbone = opened(folder)
    assert backbone.fit_size(100, 64) == (112, 64)
    assert [backbone.fit_frames(n) for n in (1, 2, 5, 6, 81)] == [1, 5, 5, 9, 81]


def test_kept_pictures_and_the_tail_are_shown_and_the_rest_may_change() -> None:
    kept = np.zeros(9, bool)
    kept[6] = True
    given = conditions(9, kept=kept, sketch=lines(9), tail=np.full((5, 64, 96, 3), 7, np.uint8))
    shown, free = control_clip(given)
    assert (shown[:5] == 7).all() and np.array_equal(shown[6], given.base[6])
    assert np.array_equal(shown[8, ..., 1], 255 - given.sketch[8])
    assert free.tolist() == [False] * 5 + [True, False, True, True]
    assert np.array_equal(control_clip(conditions(9))[0], given.base)


def test_mask_cells_become_channels_as_in_diffusers() -> None:
    mask = (torch.rand(1, 1, 9, 16, 24) > 0.5).float()
    found = mask_channels(mask)
    assert found.shape == (1, 64, 3, 2, 3)
    for row, column, cell in ((0, 0, 0), (3, 5, 3 * 8 + 5), (7, 7, 63)):
        for slot, frame in enumerate((1, 4, 7)):  # centres of three thirds
            expected = mask[0, 0, frame, row::8, column::8]
            assert torch.equal(found[0, cell, slot], expected)


@missing("transformers", "ftfy")
def test_control_latents_are_those_of_the_ready_made_pipeline(folder: Path) -> None:
    from diffusers import UniPCMultistepScheduler, WanVACEPipeline

    backbone: Any = opened(folder)
    kept = np.array([True, False, False, False, True])
    given = conditions(5, height=32, width=48, kept=kept)
    pipe = WanVACEPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=backbone._vae._network,
        scheduler=UniPCMultistepScheduler(),
        transformer=backbone._transformer._network,
    )
    video = torch.from_numpy(given.base).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    mask = torch.from_numpy(~kept).float()[None, None, :, None, None].expand(1, 1, 5, 32, 48)
    theirs = torch.cat(
        [
            pipe.prepare_video_latents(video, mask.expand(1, 3, -1, -1, -1), [[]], None, CPU),
            pipe.prepare_masks(mask, [[]]),
        ],
        1,
    )
    assert torch.allclose(backbone.encode(given).control, theirs, atol=1e-5)


def test_little_strength_stays_near_the_base_layer(folder: Path) -> None:
    made = conditions(5, height=32, width=48)
    weak, strong = (opened(folder, strength=s, shift=1.0) for s in (0.001, 1.0))
    vae: Any = weak
    start = vae.encode(made).start
    with torch.inference_mode():
        base = vae._vae._network.decode(start * vae._std + vae._mean, return_dict=False)[0]
    base = (base[0].clamp(-1, 1) + 1).permute(1, 2, 3, 0).numpy() * 127.5
    near, far = (np.abs(b.generate(b.encode(made), noise, 2) - base).mean() for b in (weak, strong))
    assert near < far / 2


def test_every_condition_changes_the_picture(folder: Path, plain: Any) -> None:
    backbone = opened(folder)
    sketch = lines(5, 32, 48)
    kept = np.array([True, False, False, False, False])
    tail = np.full((1, 32, 48, 3), 200, np.uint8)
    for given in ({"sketch": sketch}, {"skeleton": sketch}, {"kept": kept}, {"tail": tail}):
        assert (run(backbone, **given) != plain).any(), given
    assert np.array_equal(run(backbone), plain) and plain.shape == (5, 32, 48, 3)


@pytest.mark.parametrize("changed", [{"memory": "group"}, {"memory": "offload"}])
def test_memory_options_give_the_same_picture(
    folder: Path, plain: Any, changed: dict[str, Any]
) -> None:
    assert np.array_equal(run(opened(folder, **changed)), plain)


@pytest.mark.parametrize("quant", ["int8", "fp8"])
def test_eight_bit_weights_give_nearly_the_same_picture(
    folder: Path, plain: Any, quant: str
) -> None:
    found = run(opened(folder, quant=quant)).astype(int)
    assert np.abs(found - plain).mean() < 12


@pytest.mark.parametrize("changed", [{}, {"quant": "int8"}, {"quant": "fp8"}])
def test_it_runs_in_bfloat16(folder: Path, plain: Any, changed: dict[str, Any]) -> None:
    settings: Settings = dataclasses.replace(SETTINGS["vace"], **changed)
    found = run(load("vace", folder, settings, CPU, torch.bfloat16)).astype(int)
    assert np.abs(found - plain).mean() < 12


@missing("peft")
def test_a_lora_in_the_original_layout_is_read(folder: Path, plain: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(8)
    state = {}
    for block in range(3):
        stem = f"diffusion_model.blocks.{block}.self_attn.q"
        state[f"{stem}.lora_down.weight"] = torch.randn(4, 24)
        state[f"{stem}.lora_up.weight"] = torch.randn(24, 4)
    path = tmp_path / "few-steps.safetensors"
    save_file(state, path)
    assert (run(opened(folder, loras=(path,))) != plain).any()


@missing("peft")
def test_a_lora_in_the_layout_of_diffusers_is_read(
    folder: Path, plain: Any, tmp_path: Path
) -> None:
    network = parts.read(folder, "transformer", "WanVACETransformer3DModel", torch.float32)
    path = write_lora(tmp_path / "a.safetensors", network, rank=4, scale=1)
    assert (run(opened(folder, loras=(path,))) != plain).any()


@missing("transformers", "tokenizers")
def test_a_caption_goes_through_umt5(tmp_path: Path) -> None:
    folder = write_text(write_vace(tmp_path), "UMT5EncoderModel")
    backbone = opened(folder, guidance=5.0)
    assert (run(backbone, caption="a cat") != run(backbone)).any()


def test_parts_of_two_models_are_refused(folder: Path, tmp_path: Path) -> None:
    from diffusers import WanVACETransformer3DModel

    other = write_vace(tmp_path)
    WanVACETransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=1, vace_layers=[0],
        vace_in_channels=80, ffn_dim=32, text_dim=32, rope_max_seq_len=32,
    ).save_pretrained(other / "transformer")  # fmt: skip
    with pytest.raises(ModelError, match="not of one model"):
        opened(other)
