"""Makes the folder of metric weights out of the packages of the metrics' own authors.

`pip install lpips DISTS-pytorch`, then `python -m semvc.bench.collect DIR`. The packages hold their
own weights; those of AlexNet and VGG16 they get through torchvision, which downloads them if the
machine has none yet. What `networks` reads is written, and nothing else is kept.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from semvc.bench import networks
from semvc.errors import ModelError, SemvcError, UsageError


def collect(folder: Path) -> tuple[Path, ...]:
    """Write the three files of weights into `folder` and return them.

    UsageError when a package is missing, ModelError when it holds something else than expected.
    """
    heads: dict[str, Tensor] = {}
    files: dict[str, dict[str, Tensor]] = {networks.HEADS: heads}
    for net, name in (("alex", networks.ALEX), ("vgg", networks.VGG)):
        state = _package("lpips").LPIPS(net=net, version="0.1", verbose=False).state_dict()
        files[name] = _features(state)
        heads |= {f"{net}.lin{i}": _only(state, f"lin{i}.model.1.weight") for i in range(5)}
    state = _package("DISTS_pytorch", "DISTS-pytorch").DISTS().state_dict()
    heads |= {f"dists.{name}": _only(state, name) for name in ("alpha", "beta")}
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in files.items():
        part = folder / f"{name}.part"
        save_file({key: tensor.contiguous().cpu() for key, tensor in tensors.items()}, part)
        part.replace(folder / name)
    return tuple(folder / name for name in files)


def _features(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The convolutions by torchvision's names, from the slices that LPIPS makes of them."""
    found = {}
    for key, tensor in state.items():
        words = key.split(".")
        if len(words) == 4 and words[0] == "net" and words[3] in ("weight", "bias"):
            found[f"features.{words[2]}.{words[3]}"] = tensor
    if not found:
        raise ModelError("this version of the package lpips names its layers otherwise")
    return found


def _only(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ModelError(f"the metrics' packages have no {name}: another version of them?")
    return state[name]


def _package(module: str, package: str = "") -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"the package {package or module} is missing: pip install {package or module}"
        ) from error


def main(words: list[str]) -> int:
    """Collect into the folder that is named; return the exit code."""
    if len(words) != 1:
        sys.stderr.write("usage: python -m semvc.bench.collect DIR\n")
        return UsageError.exit_code
    try:
        for path in collect(Path(words[0])):
            sys.stdout.write(f"{path}\n")
    except SemvcError as error:
        sys.stderr.write(f"semvc: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
