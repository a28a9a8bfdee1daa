"""Stable Diffusion's U-Net and autoencoder as parts of the s2vc decoder, from a local folder.

diffusers and peft are imported when they are asked for and no earlier; peft comes with the extra
`full`. The folder has diffusers' layout: `unet/` and `vae/`, each with `config.json` and
`diffusion_pytorch_model.safetensors`. Nothing is downloaded and nothing is unpickled.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semvc.errors import ModelError

_LORA_TARGETS = [  # attention, projections, both linears of the feed-forward, all convolutions
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
    "time_emb_proj",
]
_WINDOW = 16  # positions on a side that the autoencoder's attention sees at once


def unet(*, tokens: int, **config: Any) -> nn.Module:
    """Return a `UNet2DConditionModel` with random weights whose input has its first width.

    `config` are the constructor's arguments; `lora` is not among them, see `add_lora`.
    """
    diffusers = _diffusers()
    config.pop("lora", None)
    network = diffusers.UNet2DConditionModel(cross_attention_dim=tokens, **config)
    width = config["block_out_channels"][0]
    network.conv_in = nn.Conv2d(width, width, 3, padding=1)
    return cast(nn.Module, network)


class KLDecoder(nn.Module):
    """The decoding half of an `AutoencoderKL`, in float32 whatever the rest computes in.

    Its attention at an eighth of the resolution works in windows of 16x16 positions, since over a
    whole 1080p picture it would compare 32,400 positions with each other.
    """

    def __init__(self, *, latent: int, scaling_factor: float = 0.18215, **config: Any) -> None:
        super().__init__()
        whole = _diffusers().AutoencoderKL(
            latent_channels=latent, scaling_factor=scaling_factor, **config
        )
        self.post_quant_conv, self.decoder = whole.post_quant_conv, whole.decoder
        self.scaling_factor = scaling_factor
        for attention in self.decoder.mid_block.attentions:
            attention.set_processor(WindowedAttention(_WINDOW))

    def decode(self, latents: Tensor) -> Tensor:
        """Return float32 frames [B, 3, 8h, 8w], nominally in [-1, 1]."""
        x = latents.to(self.post_quant_conv.weight.dtype) / self.scaling_factor
        kind = latents.device.type
        plain = nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)
        with plain:
            return cast(Tensor, self.decoder(self.post_quant_conv(x)))


class WindowedAttention:
    """A processor for diffusers' `Attention` over [B, C, h, w] that looks within square windows."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Return the block's result of the same shape; windows at the edge are smaller.

        The other arguments are there for diffusers' signature: an autoencoder has none of them.
        """
        x = attn.group_norm(hidden_states)
        rows = [
            torch.cat([self._attend(attn, w) for w in row.split(self.side, 3)], 3)
            for row in x.split(self.side, 2)
        ]
        found = torch.cat(rows, 2)
        if attn.residual_connection:
            found = found + hidden_states
        return cast(Tensor, found / attn.rescale_output_factor)

    def _attend(self, attn: Any, x: Tensor) -> Tensor:
        flat = x.flatten(2).transpose(1, 2)
        q, k, v = (
            project(flat).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return cast(Tensor, attn.to_out[0](found).transpose(1, 2).reshape(x.shape))


def load_backbone(network: Any, folder: Path) -> None:
    """Fill `network.unet` (but its input layer) and `network.autoencoder` from `folder`.

    `ModelError` if a part is missing or has other shapes. To be called before `add_lora`.
    """
    diffusers = _diffusers()
    for name in ("unet", "vae"):
        if not (folder / name / "config.json").is_file():
            raise ModelError(
                f"{folder / name} has no config.json: put the pretrained {name} there in diffusers'"
                " layout (Stable Diffusion 1.5's unet, Stable Diffusion 2.1's vae)"
            )
    given: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    try:
        state = diffusers.UNet2DConditionModel.from_pretrained(
            folder / "unet", **given
        ).state_dict()
        own = network.unet.state_dict()
        own |= {n: t for n, t in state.items() if not n.startswith("conv_in.")}
        network.unet.load_state_dict(own)
        state = diffusers.AutoencoderKL.from_pretrained(folder / "vae", **given).state_dict()
        kept = {n: t for n, t in state.items() if n.startswith(("decoder.", "post_quant_conv."))}
        network.autoencoder.load_state_dict(kept)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"the models in {folder} do not fit config.toml: {error}") from error
    network.autoencoder.requires_grad_(False)


def add_lora(network: nn.Module, *, rank: int = 64, alpha: int = 8) -> None:
    """Freeze a pretrained U-Net and put low-rank adapters (Hu et al. 2022) beside its layers.

    Only the adapters and the input layer stay trainable. One adapter serves all frames: that a
    segment's first frame has no buffers is all that sets it apart. `ModelError` without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ModelError(
            "low-rank adapters of a pretrained U-Net need peft: pip install 'semvc[full]'"
        ) from error
    network.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        init_lora_weights="gaussian",
        target_modules=_LORA_TARGETS,
    )
    inject_adapter_in_model(config, network)
    cast(nn.Module, network.conv_in).requires_grad_(True)


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ModelError("the large decoder needs diffusers: pip install semvc") from error
    return diffusers
