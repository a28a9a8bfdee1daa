"""Reads a model folder into a network, and chooses where it runs."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from semvc.errors import ModelError, ResourceError, UsageError
from semvc.nets.generator import Generator
from semvc.types import Runtime
from semvc.weights import CONFIG, WEIGHTS

Network = TypeVar("Network", bound=nn.Module)
_DEVICES = ("cpu", "cuda", "mps")


def build(folder: Path, device: torch.device, dtype: torch.dtype) -> Generator:
    """Return the network of a model folder, ready to run; keys and shapes must match exactly."""
    config = tomllib.loads((folder / CONFIG).read_text("utf-8"))
    try:
        network = Generator(**config["network"])
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(f"model folder {folder} does not fit this program: {error}") from error
    network.eval().requires_grad_(False)
    return place(network, device, dtype)


def place(
    network: Network, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> Network:
    """Return `network` itself, moved, its convolutions' weights in channels-last order."""
    return network.to(  # type: ignore[call-overload]  # torch's stub lacks memory_format
        device=device, dtype=dtype, memory_format=torch.channels_last
    )


def choose_device(runtime: Runtime) -> tuple[torch.device, torch.dtype]:
    """Return where and in which dtype to compute.

    `auto` takes CUDA, then Apple's MPS, then the CPU; bfloat16 where the hardware multiplies it
    (CUDA from compute capability 8, CPUs with AMX or AVX-512 BF16), float32 elsewhere.
    """
    name = runtime.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in _DEVICES:
            raise RuntimeError("a device that nothing here was tried on")
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}: use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ResourceError(
            f"no CUDA device {name}: {torch.cuda.device_count()} found; use --device cpu"
        )
    if device.type == "mps" and not torch.mps.is_available():
        raise ResourceError("no MPS device on this machine; use --device cpu")
    if runtime.dtype != "auto":
        return device, {"float32": torch.float32, "bfloat16": torch.bfloat16}[runtime.dtype]
    fast = (
        torch.cuda.get_device_capability(device)[0] >= 8
        if device.type == "cuda"
        else device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    )
    return device, torch.bfloat16 if fast else torch.float32
