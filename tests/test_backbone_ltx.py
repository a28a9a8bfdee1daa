"""LTX-Video with references, on tiny random networks read from disk."""

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
    write_ltx,
    write_sentencepiece,
    write_text,
)

from semvc.backbones import flow, parts
from semvc.backbones.ltx import velocity
from semvc.backbones.protocol import Backbone, Settings, load
from semvc.errors import ModelError

pytestmark = missing("accelerate")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ltx(tmp_path_factory.mktemp("ltx"))


def opened(folder: Path, **changed: Any) -> Backbone:
    settings: Settings = dataclasses.replace(SETTINGS["ltx"], **changed)
    return load("ltx", folder, settings, CPU, torch.float32)


def run(backbone: Backbone, **given: Any) -> Any:
    return backbone.generate(backbone.encode(conditions(9, **given)), noise, 2)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    return run(opened(folder), sketch=lines(9))


def test_it_fits_sizes_and_frames(folder: Path) -> None:
    assert opened(folder).fit_size(100, 64) == (128, 64)
    assert opened(folder, reference_scale=2).fit_size(100, 65) == (128, 128)
    assert [opened(folder).fit_frames(n) for n in (1, 2, 9, 10, 57)] == [1, 9, 9, 17, 57]


@pytest.mark.parametrize("packing", ["shared", "offset", "alternate"])
@pytest.mark.parametrize("scale", [1, 2])
def test_every_packing_gives_a_picture_that_depends_on_the_sketch(
    folder: Path, packing: str, scale: int
) -> None:
    backbone = opened(folder, packing=packing, reference_scale=scale)
    size = {"height": 64, "width": 128}
    a = run(backbone, **size, sketch=lines(9, **size))
    b = run(backbone, **size, sketch=lines(9, **size)[:, :, ::-1].copy())
    assert a.shape == (9, 64, 128, 3) and a.dtype == np.uint8
    assert (a != b).any()


def test_the_picture_depends_on_noise_and_nothing_else_random(folder: Path, plain: Any) -> None:
    again = opened(folder)
    torch.manual_seed(99)
    assert np.array_equal(run(again, sketch=lines(9)), plain)
    given = again.encode(conditions(9, sketch=lines(9)))
    assert (again.generate(given, lambda n, use: noise(n, use + 1), 2) != plain).any()


def test_a_tail_stays_as_it_is_shown(folder: Path) -> None:
    backbone = opened(folder)
    given = conditions(17)
    encoded = backbone.encode(dataclasses.replace(given, tail=given.base[:9]))
    seen: list[torch.Tensor] = []
    transformer = backbone._transformer._network  # type: ignore[attr-defined]

    def spy(_: Any, __: Any, kwargs: Any) -> None:
        seen.append(encoded.sequence.take(kwargs["timestep"][..., None])[0, :, 0])
        first = encoded.sequence.take(kwargs["hidden_states"])[:, : encoded.tail[0, 0].numel()]
        assert torch.allclose(first, encoded.tail.flatten(2).transpose(1, 2))

    handle = transformer.register_forward_pre_hook(spy, with_kwargs=True)
    backbone.generate(encoded, noise, 2)
    handle.remove()
    cells = 2 * 3
    for timesteps in seen:
        assert (timesteps[: 2 * cells] == 0).all() and (timesteps[2 * cells :] > 0).all()
    assert len(seen) == 2


def test_without_a_caption_no_text_encoder_is_touched(folder: Path) -> None:
    assert not (folder / "text_encoder").exists()
    backbone = opened(folder)
    run(backbone)
    assert not backbone._texts.is_loaded  # type: ignore[attr-defined]


def test_a_missing_part_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot be read.*models verify"):
        opened(tmp_path)


@pytest.mark.parametrize("quant", ["int8", "fp8"])
def test_eight_bit_weights_give_nearly_the_same_picture(
    folder: Path, plain: Any, quant: str
) -> None:
    found = run(opened(folder, quant=quant), sketch=lines(9))
    error = np.abs(found.astype(int) - plain).mean()
    assert 0 < error < 12


def test_group_offload_gives_the_same_picture(folder: Path, plain: Any) -> None:
    assert np.array_equal(run(opened(folder, memory="group"), sketch=lines(9)), plain)


def test_int8_layers_round_to_half_a_step() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 64)
    found = parts.Int8Linear(layer)
    error = (found.weight.float() * found.scale - layer.weight).abs()
    assert (error <= found.scale / 2 + 1e-6).all()


@pytest.mark.parametrize("changed", [{}, {"quant": "int8"}, {"quant": "fp8"}, {"strength": 0.5}])
def test_it_runs_in_bfloat16_with_exact_timesteps(folder: Path, changed: dict[str, Any]) -> None:
    settings: Settings = dataclasses.replace(SETTINGS["ltx"], **changed)
    backbone: Any = load("ltx", folder, settings, CPU, torch.bfloat16)
    seen: list[torch.Tensor] = []
    backbone._transformer._network.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["timestep"]), with_kwargs=True
    )
    found = run(backbone, sketch=lines(9)).astype(int)
    assert all(t.dtype == torch.float32 for t in seen) and len(seen) == 2
    full = run(opened(folder, **changed), sketch=lines(9))
    assert np.abs(found - full).mean() < 6


# --- captions


@missing("transformers", "tokenizers")
def test_a_caption_steers_the_picture_and_is_encoded_once(tmp_path: Path) -> None:
    folder = write_text(write_ltx(tmp_path))
    backbone = opened(folder, guidance=3.0)
    empty, cat, dog = (run(backbone, caption=c) for c in ("", "a cat", "a dog"))
    assert (cat != dog).any() and (cat != empty).any()
    texts = backbone._texts  # type: ignore[attr-defined]
    assert texts("a cat") is texts("a cat")


@missing("transformers", "tokenizers")
def test_captions_are_read_exactly_as_stored(tmp_path: Path) -> None:
    texts = opened(write_text(write_ltx(tmp_path)))._texts  # type: ignore[attr-defined]
    texts("x")
    seen: list[str] = []
    inner = texts._tokenizer
    texts._tokenizer = lambda words, **options: (seen.extend(words), inner(words, **options))[1]
    stored = "  Two\tspaces &amp; CAPITALS \u00e9 "
    values = texts(stored).values
    assert seen == [stored]
    assert (values != texts(stored.strip()).values).any()


@missing("transformers", "tokenizers")
def test_a_package_that_a_tokenizer_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def fail(*_: Any, **__: Any) -> None:
        raise ImportError("T5Tokenizer needs SentencePiece\nand more")

    folder = write_text(write_ltx(tmp_path))
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(ModelError, match=r"SentencePiece\): pip install 'semvc\[full\]'"):
        run(opened(folder), caption="a cat")


@missing("transformers", "sentencepiece", "google.protobuf")
def test_a_tokenizer_of_a_sentencepiece_model_alone_is_read(tmp_path: Path) -> None:
    folder = write_sentencepiece(write_text(write_ltx(tmp_path)))
    texts = opened(folder)._texts  # type: ignore[attr-defined]
    cat, dog = texts("a cat"), texts("a dog")
    assert 2 < int(cat.mask.sum()) < 12 and (cat.values != dog.values).any()


# --- LoRA


@missing("peft")
def test_a_lora_file_of_rank_256_changes_the_picture(
    folder: Path, plain: Any, tmp_path: Path
) -> None:
    network = parts.read(folder, "transformer", "LTXVideoTransformer3DModel", torch.float32)
    strong = write_lora(tmp_path / "a.safetensors", network, rank=256, scale=0.2)
    none = write_lora(tmp_path / "b.safetensors", network, rank=256, scale=0)
    assert (run(opened(folder, loras=(strong,)), sketch=lines(9)) != plain).any()
    assert np.array_equal(run(opened(folder, loras=(none,)), sketch=lines(9)), plain)


@missing("peft")
def test_loras_go_together_with_eight_bits_and_groups(folder: Path, tmp_path: Path) -> None:
    network = parts.read(folder, "transformer", "LTXVideoTransformer3DModel", torch.float32)
    path = write_lora(tmp_path / "a.safetensors", network, rank=4, scale=0.2)
    for quant in ("int8", "fp8"):
        run(opened(folder, loras=(path,), quant=quant, memory="group"))


@missing("peft")
def test_a_lora_of_another_network_is_a_model_error(folder: Path, tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.safetensors", torch.nn.ModuleDict(), rank=1, scale=1)
    with pytest.raises(ModelError):
        opened(folder, loras=(path,))
    with pytest.raises(ModelError, match="no LoRA file"):
        opened(folder, loras=(tmp_path / "none.safetensors",))


@missing("peft")
def test_one_training_step_moves_the_lora_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    network = parts.read(folder, "transformer", "LTXVideoTransformer3DModel", torch.float32)
    path = write_lora(tmp_path / "a.safetensors", network, rank=4, scale=0.1)
    parts.attach_lora(network, "ltx", path, "mine")
    for name, weight in network.named_parameters():
        weight.requires_grad_("lora_" in name)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    backbone = opened(folder)
    encoded = backbone.encode(conditions(9, sketch=lines(9)))
    torch.manual_seed(6)
    clean, fresh = torch.randn(2, 1, 12, 8)
    x = flow.step(fresh, clean - fresh, 0.0, 0.4)
    found = velocity(network, x, torch.full((1, 12), 0.6), encoded.sequence, encoded.text)
    (found - (fresh - clean)).square().mean().backward()
    torch.optim.AdamW([w for w in network.parameters() if w.requires_grad], lr=0.01).step()
    moved = {
        name for name, weight in network.state_dict().items() if (weight != before[name]).any()
    }
    assert moved and moved == {name for name in before if "lora_" in name}
