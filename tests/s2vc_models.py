"""Tiny decoders of profile s2vc, both kinds, and folders of a tiny pretrained backbone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from semvc.nets import s2vc_synthesis
from semvc.nets.s2vc_decoder import LatentDecoder

TINY: dict[str, Any] = {
    "channels": 8,
    "timestep": 400,
    "tokens": 16,
    "semantic": 8,
    "adapter_blocks": 1,
    "fused": 3,
    "unet": {"kind": "small", "latent": 4, "widths": [8, 12, 16], "layers": 1, "heads": 2},
    "autoencoder": {"kind": "small", "latent": 4, "widths": [8, 6, 4], "depths": [1, 1, 1]},
}
UNET: dict[str, Any] = {
    "block_out_channels": [16, 16, 32, 32],
    "attention_head_dim": 4,
    "norm_num_groups": 8,
    "layers_per_block": 1,
}
VAE: dict[str, Any] = {
    "block_out_channels": [8, 8, 16, 16],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
LARGE: dict[str, Any] = TINY | {  # the large dial at a reduced width
    "timestep": 999,
    "unet": {"kind": "diffusers", "lora": {"rank": 4, "alpha": 2}, **UNET},
    "autoencoder": {"kind": "diffusers", "latent": 4, "scaling_factor": 0.18215, **VAE},
}


def fresh(config: dict[str, Any] = TINY) -> LatentDecoder:
    """A decoder as training begins with, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return LatentDecoder(**config).eval().requires_grad_(False)


def filled(config: dict[str, Any] = TINY, seed: int = 1) -> LatentDecoder:
    """A decoder without zero layers: every path counts."""
    network, draw = fresh(config), torch.Generator().manual_seed(seed)
    for p in network.parameters():
        std = 1 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.05
        p.copy_(torch.randn(p.shape, generator=draw) * std)
    return network


def features(rows: int = 2, columns: int = 2, *, seed: int = 3, batch: int = 1) -> torch.Tensor:
    """Features of a picture of `rows` x `columns` cells of 64 luma samples."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn((batch, TINY["channels"], 8 * rows, 8 * columns), generator=draw)


def write_backbone(folder: Path) -> Path:
    """Save a tiny pretrained U-Net and autoencoder in diffusers' layout; return `folder`."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(8)
        unet = UNet2DConditionModel(cross_attention_dim=LARGE["tokens"], **UNET)
        unet.save_pretrained(folder / "unet")
        AutoencoderKL(latent_channels=4, **VAE).save_pretrained(folder / "vae")
    return folder


def write_model(folder: Path, config: dict[str, Any], network: LatentDecoder) -> Path:
    """Save the model folder of a decoder; return `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = s2vc_synthesis.shipped(network)
    named = {s2vc_synthesis.PREFIX + n: t.half().contiguous() for n, t in tensors.items()}
    save_file(named, folder / "weights.safetensors")
    (folder / "config.toml").write_text("\n".join(table("decoder", config)) + "\n", "utf-8")
    return folder


def table(name: str, values: dict[str, Any]) -> list[str]:
    """A TOML table and those within it, line by line."""
    plain = {k: v for k, v in values.items() if not isinstance(v, dict)}
    lines = [f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in plain.items())]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += table(f"{name}.{key}", value)
    return lines
