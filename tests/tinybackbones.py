"""Backbone folders with tiny random networks, saved as diffusers saves them."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    LTXVideoTransformer3DModel,
    WanVACETransformer3DModel,
)
from safetensors.torch import save_file

from semvc.backbones.protocol import Conditions, Settings

TEXT_WIDTH = 32
SETTINGS = {
    "ltx": Settings(steps=2, guidance=1.0, frames=17, overlap=9, max_pixels=1 << 20),
    "vace": Settings(
        steps=2, guidance=1.0, frames=17, overlap=5, max_pixels=1 << 20, strength=0.8, shift=3.0
    ),
}
CPU = torch.device("cpu")


def missing(*names: str) -> pytest.MarkDecorator:
    """Skip where a package of the extra `full` is not installed."""
    absent = [name for name in names if not _is_there(name)]
    return pytest.mark.skipif(bool(absent), reason=f"needs {', '.join(absent)}: semvc[full]")


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that should hold it
        return False


def write_ltx(folder: Path) -> Path:
    """Write an LTX-Video folder with strides 32 and 8, and return it."""
    torch.manual_seed(1)
    LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=TEXT_WIDTH,
    ).save_pretrained(folder / "transformer")
    AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, True, False),
        decoder_spatio_temporal_scaling=(True, True, True, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        timestep_conditioning=False,
        patch_size=4,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    ).save_pretrained(folder / "vae")
    row = {
        "use_dynamic_shifting": True,
        "base_shift": 0.95,
        "max_shift": 2.05,
        "base_image_seq_len": 1024,
        "max_image_seq_len": 4096,
        "shift_terminal": 0.1,
    }
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(row), "utf-8")
    return folder


def write_vace(folder: Path) -> Path:
    """Write a Wan-VACE folder with strides 8 and 4, and return it."""
    torch.manual_seed(2)
    WanVACETransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=TEXT_WIDTH,
        ffn_dim=32,
        num_layers=3,
        rope_max_seq_len=32,
        vace_layers=[0, 2],
    ).save_pretrained(folder / "transformer")
    AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    ).save_pretrained(folder / "vae")
    return folder


def write_text(folder: Path, kind: str = "T5EncoderModel") -> Path:
    """Add a text encoder and a tokenizer of one token a letter; needs transformers."""
    import transformers
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(3)
    config = getattr(transformers, kind.replace("EncoderModel", "Config"))(
        vocab_size=128, d_model=TEXT_WIDTH, d_kv=8, d_ff=37, num_layers=2, num_heads=4
    )
    getattr(transformers, kind)(config).save_pretrained(folder / "text_encoder")
    letters = ["<pad>", "<eos>", "<unk>", *(chr(c) for c in range(32, 127))]
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder / "tokenizer")
    return folder


def write_sentencepiece(folder: Path) -> Path:
    """Replace the tokenizer by one of a sentencepiece model alone, as LTX-Video's folders have."""
    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a cat and a dog", "the quick brown fox"] * 50),
        model_writer=made,
        vocab_size=60,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "spiece.model").write_bytes(made.getvalue())
    row = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 512}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(row), "utf-8")
    return folder


def write_lora(path: Path, network: Any, *, rank: int, scale: float, layers: str = "to_q") -> Path:
    """Write a LoRA of random numbers for every layer whose name ends in `layers`."""
    torch.manual_seed(4)
    state = {}
    for name, layer in network.named_modules():
        if name.endswith(layers):
            shape = layer.out_features, layer.in_features
            state[f"transformer.{name}.lora_A.weight"] = torch.randn(rank, shape[1]) * scale
            state[f"transformer.{name}.lora_B.weight"] = torch.randn(shape[0], rank) * scale
    save_file(state, path)
    return path


def conditions(frames: int, *, height: int = 64, width: int = 96, **given: Any) -> Conditions:
    """Conditions with a base of noise that moves slowly."""
    rng = np.random.default_rng(5)
    base = rng.integers(0, 256, (1, height, width, 3), dtype=np.uint8).repeat(frames, 0)
    base[..., 0] = (base[..., 0] // 2 + np.arange(frames)[:, None, None]).astype(np.uint8)
    row = {
        "base": base,
        "kept": np.zeros(frames, bool),
        "tail": base[:0],
        "frame_rate": 24.0,
    }
    return Conditions(**{**row, **given})


def lines(frames: int, height: int = 64, width: int = 96) -> Any:
    """A sketch: one moving vertical line, uint8 [T, H, W]."""
    drawn = np.zeros((frames, height, width), np.uint8)
    for t in range(frames):
        drawn[t, :, (8 + t) % width] = 255
    return drawn


def noise(count: int, use: int) -> Any:
    """Gaussian noise that depends on its use."""
    return np.random.default_rng(use).standard_normal(count).astype(np.float32)


def exact_shift(tokens: int) -> float:
    """The shift that LTX-Video's scheduler takes for a number of tokens."""
    return math.exp(0.95 + (2.05 - 0.95) * (tokens - 1024) / (4096 - 1024))
