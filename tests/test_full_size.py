"""Every pretrained network at its full size, without weights: on the meta device nothing is stored.

Parameters are counted and compared with the published numbers, and whole decodes are run through
the decoder's own code, so that every shape is checked.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tinybackbones import conditions, lines, missing, noise, write_ltx, write_vace
from torch import Tensor

from semvc.backbones import ltx, ltxvae, manifest, parts, text, vace
from semvc.backbones.parts import Part
from semvc.backbones.protocol import Backbone, load
from semvc.backbones.tokens import Sequence
from semvc.profiles.fulltier import settings_of
from semvc.types import FullTier

META = torch.device("meta")
LTX_2B: dict[str, Any] = {"num_layers": 28, "attention_head_dim": 64, "cross_attention_dim": 2048}
LTX_13B: dict[str, Any] = {"num_layers": 48, "attention_head_dim": 128, "cross_attention_dim": 4096}
VACE_SMALL: dict[str, Any] = {
    "num_attention_heads": 12,
    "ffn_dim": 8960,
    "num_layers": 30,
    "vace_layers": list(range(0, 30, 2)),
}
VACE_LARGE: dict[str, Any] = {
    "num_attention_heads": 40,
    "ffn_dim": 13824,
    "num_layers": 40,
    "vace_layers": list(range(0, 40, 5)),
}
LTX_VAE_095: dict[str, Any] = {  # of versions 0.9.5 to 0.9.8
    "block_out_channels": (128, 256, 512, 1024, 2048),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "decoder_block_out_channels": (256, 512, 1024),
    "layers_per_block": (4, 6, 6, 2, 2),
    "decoder_layers_per_block": (5, 5, 5, 5),
    "spatio_temporal_scaling": (True,) * 4,
    "decoder_spatio_temporal_scaling": (True,) * 3,
    "decoder_inject_noise": (False,) * 4,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "upsample_residual": (True,) * 3,
    "upsample_factor": (2,) * 3,
    "timestep_conditioning": True,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
T5 = ("T5EncoderModel", {**XXL, "vocab_size": 32128})
UMT5 = ("UMT5EncoderModel", {**XXL, "vocab_size": 256384})
NETWORKS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "ltx-video-2b": {
        "transformer": ("LTXVideoTransformer3DModel", LTX_2B),
        "vae": ("AutoencoderKLLTXVideo", {}),
        "text_encoder": T5,
    },
    "ltx-video-13b": {
        "transformer": ("LTXVideoTransformer3DModel", LTX_13B),
        "vae": ("AutoencoderKLLTXVideo", LTX_VAE_095),
        "text_encoder": T5,
    },
    "wan-vace-1.3b": {
        "transformer": ("WanVACETransformer3DModel", VACE_SMALL),
        "vae": ("AutoencoderKLWan", {}),
        "text_encoder": UMT5,
    },
    "wan-vace-14b": {
        "transformer": ("WanVACETransformer3DModel", VACE_LARGE),
        "vae": ("AutoencoderKLWan", {}),
        "text_encoder": UMT5,
    },
}
PUBLISHED = {  # billions; transformers are those of the manifest
    ("ltx-video-2b", "vae"): 0.42,
    ("ltx-video-2b", "text_encoder"): 4.76,
    ("wan-vace-1.3b", "vae"): 0.127,
    ("wan-vace-1.3b", "text_encoder"): 5.68,
}


def made(name: str, part: str, dtype: torch.dtype = torch.float32) -> Any:
    """One network of a backbone on the meta device."""
    kind, config = NETWORKS[name][part]
    if part == "text_encoder":
        library = importlib.import_module("transformers")
        given: Any = getattr(library, kind.replace("EncoderModel", "Config"))(**config)
        with META:
            return getattr(library, kind)(given).to(dtype).eval()
    with META:
        return getattr(importlib.import_module("diffusers"), kind)(**config).to(dtype).eval()


def count(network: Any) -> int:
    return sum(p.numel() for p in network.parameters())


class Words:
    """A tokenizer that gives as many tokens as it is asked for."""

    def __call__(self, _: list[str], *, max_length: int, **__: Any) -> Any:
        class Ids:
            input_ids = torch.zeros(1, max_length, dtype=torch.int64)
            attention_mask = torch.ones(1, max_length, dtype=torch.int64)

        return Ids


class Unmasked(torch.nn.Module):
    """A text encoder that does not look at the values of a mask: there are none."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, _: Tensor) -> Any:
        return self.network(ids)


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the decoder's code work without values: what depends on values stays on the CPU."""

    def read(folder: Path, part: str, kind: str, dtype: torch.dtype) -> Any:
        assert NETWORKS[folder.name][part][0] == kind
        return made(folder.name, part, dtype)

    def load_text(self: Any) -> None:
        self._tokenizer = Words()
        network = Unmasked(made(self._folder.name, "text_encoder", self._dtype))
        self._part = Part(network, META, resident=True)

    def move(self: Sequence, device: torch.device) -> Sequence:
        self.coordinates = self.coordinates.to(device)
        return self

    def shown(values: Tensor) -> Any:
        return np.zeros((*values.shape[2:], 3), np.uint8) if values.shape[1] == 3 else None

    monkeypatch.setattr(parts, "read", read)
    monkeypatch.setattr(text.TextEncoder, "_load", load_text)
    monkeypatch.setattr(Sequence, "to", move)
    monkeypatch.setattr(ltxvae, "from_pixels", shown)
    monkeypatch.setattr(vace, "from_pixels", shown)


def opened(name: str, **wanted: Any) -> Backbone:
    entry = manifest.named(name)
    settings = replace(settings_of(entry, FullTier(**wanted)), memory="full")
    return load(entry.family, Path(name), settings, META, torch.bfloat16)


# --- parameters


@pytest.mark.parametrize("name", NETWORKS)
def test_transformers_have_the_published_number_of_parameters(name: str) -> None:
    assert count(made(name, "transformer")) == pytest.approx(
        manifest.named(name).parameters, rel=0.005
    )


@pytest.mark.parametrize(
    ("name", "part"),
    [
        pytest.param(*key, marks=missing("transformers") if key[1] == "text_encoder" else ())
        for key in PUBLISHED
    ],
)
def test_other_parts_have_the_published_number_of_parameters(name: str, part: str) -> None:
    assert count(made(name, part)) == pytest.approx(PUBLISHED[name, part] * 1e9, rel=0.01)


@pytest.mark.slow
@missing("peft", "accelerate")
def test_the_lora_of_the_recipe_has_about_as_many_parameters_as_the_papers() -> None:
    from semvc.train import ltx as training
    from semvc.train import recipe

    path = Path(training.__file__).parent / "recipes" / "disco-ltx-13b.toml"
    network = training.read_network(recipe.load(path))
    transformer = made("ltx-video-13b", "transformer", torch.bfloat16)
    adapted = training.Adapted(transformer, network.rank, network.layers)
    found = sum(p.numel() for _, p in adapted.named_parameters())
    assert found == 48 * 6 * 2 * 256 * 4096  # queries, keys and values of two attentions a block
    assert found == pytest.approx(625e6, rel=0.05)


def qwen(width: int, inner: int, layers: int, heads: int) -> tuple[str, str, dict[str, Any]]:
    """Qwen3-VL with a language model of this size."""
    return (
        "Qwen3VLConfig",
        "Qwen3VLForConditionalGeneration",
        {
            "text_config": {
                "vocab_size": 151936,
                "hidden_size": width,
                "intermediate_size": inner,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "tie_word_embeddings": True,
            },
            "vision_config": {
                "depth": 24,
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_heads": 16,
                "out_hidden_size": width,
                "deepstack_visual_indexes": [5, 11, 17],
            },
            "tie_word_embeddings": True,
        },
    )


EXTRACTORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "smolvlm2-500m": (
        "SmolVLMConfig",
        "SmolVLMForConditionalGeneration",
        {
            "text_config": {
                "model_type": "llama",
                "vocab_size": 49280,
                "hidden_size": 960,
                "intermediate_size": 2560,
                "num_hidden_layers": 32,
                "num_attention_heads": 15,
                "num_key_value_heads": 5,
            },
            "vision_config": {
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "image_size": 512,
                "patch_size": 16,
            },
            "scale_factor": 4,
            "tie_word_embeddings": False,
        },
    ),
    "blip-base": (
        "BlipConfig",
        "BlipForConditionalGeneration",
        {"vision_config": {"image_size": 384}},
    ),
    "qwen3-vl-2b": qwen(2048, 6144, 28, 16),
    "qwen3-vl-4b": qwen(2560, 9728, 36, 32),
    "rtdetr-r50": ("RTDetrConfig", "RTDetrForObjectDetection", {"num_labels": 80}),
    "vitpose-base": (
        "VitPoseConfig",
        "VitPoseForPoseEstimation",
        {
            "backbone_config": {"model_type": "vitpose_backbone", "out_indices": [12]},
            "use_simple_decoder": True,
            "num_labels": 17,
        },
    ),
}


@missing("transformers")
@pytest.mark.parametrize("name", EXTRACTORS)
def test_extractors_have_the_published_number_of_parameters(name: str) -> None:
    import transformers

    config, kind, given = EXTRACTORS[name]
    with META:
        model = getattr(transformers, kind)(getattr(transformers, config)(**given))
    assert count(model) == pytest.approx(manifest.named(name).parameters, rel=0.01)


# --- shapes


@pytest.mark.slow
@missing("transformers", "accelerate")
@pytest.mark.parametrize("name", ["ltx-video-2b", "ltx-video-13b"])
@pytest.mark.parametrize("packing", ["shared", "alternate"])
def test_a_whole_decode_of_ltx_at_full_size(meta: None, name: str, packing: str) -> None:
    backbone = opened(name, packing=packing, strength=1.0)
    frames, side = manifest.named(name).frames, 512
    given = conditions(
        frames, height=side, width=side, caption="a cat", sketch=lines(frames, side, side)
    )
    encoded = backbone.encode(given)
    target = 8 * 16 * 16
    assert encoded.shape == (8, 16, 16) and int(encoded.sequence.target.sum()) == target
    streams = 1 if packing == "alternate" else 2
    assert encoded.sequence.coordinates.shape == (3, (1 + streams) * target)
    assert encoded.text.values.shape == (1, ltx.TEXT_TOKENS, 4096)
    assert backbone.generate(encoded, noise, 1).shape == (frames, side, side, 3)


@pytest.mark.slow
@missing("transformers", "accelerate")
@pytest.mark.parametrize(
    ("name", "size"), [("wan-vace-1.3b", (832, 480)), ("wan-vace-14b", (1280, 720))]
)
def test_a_whole_decode_of_vace_at_full_size(meta: None, name: str, size: tuple[int, int]) -> None:
    backbone = opened(name)
    width, height = backbone.fit_size(*size)
    assert (width, height) == size and manifest.named(name).max_pixels == width * height
    frames = 9  # its autoencoder goes four frames at a time: more would only be more of the same
    given = conditions(
        frames, height=height, width=width, caption="a cat", sketch=lines(frames, height, width)
    )
    encoded = backbone.encode(given)
    cells = ((frames - 1) // 4 + 1, height // 8, width // 8)
    assert encoded.control.shape == (1, 96, *cells) and encoded.start.shape == (1, 16, *cells)
    assert encoded.text.values.shape == (1, vace.TEXT_TOKENS, 4096)
    assert backbone.generate(encoded, noise, 1).shape == (frames, height, width, 3)


# --- the script that measures all this on a GPU


@missing("accelerate")
@pytest.mark.parametrize("name", ["ltx-video-2b", "wan-vace-1.3b"])
def test_the_measurements_run_with_tiny_networks(name: str, tmp_path: Path) -> None:
    import measure_backbones as script

    write = {"ltx": write_ltx, "vace": write_vace}[manifest.named(name).family]
    write(tmp_path / "source")
    networks = {}
    for part in ("transformer", "vae"):
        config = json.loads((tmp_path / "source" / part / "config.json").read_text("utf-8"))
        given = {k: v for k, v in config.items() if not k.startswith("_")}
        networks[part] = (NETWORKS[name][part][0], given)
    folder = script.write(tmp_path / "made", networks, "cpu")
    for words in ({}, {"quant": "int8"}, {"memory": "group"}):
        row = script.measure(name, folder, script.Way(**words), (64, 64, 9, 1), "cpu")
        assert row.get("seconds", 0) > 0, row
    row = script.measure(name, folder, script.Way(attention="none"), (64, 64, 9, 1), "cpu")
    assert "error" in row and row["way"] == "full, none"
    assert all(script.WINDOWS[n] for n in script.WINDOWS if n in NETWORKS)
