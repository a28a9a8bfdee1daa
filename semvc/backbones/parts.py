"""Networks of a diffusers folder: read from disk, adapted, quantised, and moved when used."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from semvc.errors import ModelError

_SMALL = 1 << 12  # weights of a layer that is not worth quantising


@contextlib.contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Turn what libraries raise for a missing or foreign file or package into ModelError."""
    try:
        yield
    except ImportError as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"backbone folder {folder} needs another package ({first}): pip install 'semvc[full]'"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"backbone folder {folder} cannot be read: {first}; 'semvc models verify' says what is"
            " missing"
        ) from error


def read(folder: Path, part: str, kind: str, dtype: torch.dtype) -> Any:
    """Return the network `part` of a folder, of diffusers' class `kind`, without gradients."""
    if not _has("accelerate"):  # diffusers keeps some layers in float32 only with its help
        raise ModelError("tier full needs more packages: pip install 'semvc[full]'")
    diffusers = importlib.import_module("diffusers")
    with loading(folder):
        network = getattr(diffusers, kind).from_pretrained(
            folder / part,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
        )
    return network.eval().requires_grad_(False)


class Part:
    """A network that lies on the device, or comes there only while it is used."""

    def __init__(self, network: Any, device: torch.device, *, resident: bool) -> None:
        self._network, self._device, self._resident = network, device, resident
        if resident:
            network.to(device)

    @contextlib.contextmanager
    def used(self) -> Iterator[Any]:
        """Give the network on its device."""
        try:
            yield self._network if self._resident else self._network.to(self._device)
        finally:
            if not self._resident and self._device.type != "cpu":
                self._network.to("cpu")
                torch.cuda.empty_cache()


class _Grouped(Part):
    """A network whose blocks come to the device one after another."""

    def __init__(self, network: Any, device: torch.device) -> None:
        super().__init__(network, device, resident=False)
        network.enable_group_offload(
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=device.type == "cuda",
        )

    @contextlib.contextmanager
    def used(self) -> Iterator[Any]:
        yield self._network


def place(network: Any, device: torch.device, memory: str) -> Part:
    """Return a transformer placed as --memory says: full, offload or group."""
    if memory == "group":
        return _Grouped(network, device)
    return Part(network, device, resident=memory == "full")


def quantise(network: Any, quant: str, dtype: torch.dtype) -> None:
    """Store the weights of large layers in 8 bits; they are computed with in `dtype`."""
    if quant == "fp8":
        network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
    elif quant == "int8":
        for parent in list(network.modules()):
            for name, layer in list(parent.named_children()):
                if type(layer) is nn.Linear and layer.weight.numel() >= _SMALL:
                    setattr(parent, name, Int8Linear(layer))
    elif quant != "none":
        raise ValueError(f"unknown quantisation {quant!r}")


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and one scale for each output."""

    weight: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale.to(layer.weight.dtype))
        self.bias = layer.bias
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out] in the dtype of `x`."""
        weight = self.weight.to(x.dtype) * self.scale.to(x.dtype)
        return functional.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def lora_notes(path: Path) -> dict[str, str]:
    """Return what a LoRA file says of itself: of our own training, packing and reference_scale."""
    with loading(path), safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def add_loras(network: Any, family: str, files: tuple[Path, ...]) -> None:
    """Merge LoRA files into a transformer's weights; ModelError if they do not fit."""
    for index, path in enumerate(files):
        attach_lora(network, family, path, f"lora{index}")
    if files:
        with loading(files[0]):
            network.fuse_lora()
            network.unload_lora()
        network.requires_grad_(False)


def attach_lora(network: Any, family: str, path: Path, name: str) -> None:
    """Add one LoRA file as a peft adapter; keys may be diffusers', peft's or the originals'."""
    try:
        importlib.import_module("peft")
    except ImportError as error:
        raise ModelError("a LoRA needs peft: pip install 'semvc[full]'") from error
    if not path.is_file():
        raise ModelError(f"no LoRA file {path}: give a safetensors file with --lora")
    with loading(path):
        state = _converted(load_file(path), family)
        prefix = "transformer" if any(k.startswith("transformer.") for k in state) else None
        network.load_lora_adapter(state, prefix=prefix, adapter_name=name)
        if not any(f".lora_A.{name}." in key for key in network.state_dict()):
            raise ValueError("none of its layers is in this transformer")


def _converted(state: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    loaders = importlib.import_module("diffusers.loaders")
    kind = {"ltx": "LTXVideoLoraLoaderMixin", "vace": "WanLoraLoaderMixin"}[family]
    converted: dict[str, Tensor] = getattr(loaders, kind).lora_state_dict(state)
    return converted
