"""A folder with a tiny s2vc codec, a decoder trained for it (by name only), and their index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import latent_samples
import s2vc_models
import torch
from safetensors.torch import save_file

from semvc import weights
from semvc.nets import s2vc_runner
from semvc.nets.s2vc_codec import S2vcCodec
from semvc.signals.latentprior import LatentShape, Prior

TINY: dict[str, Any] = {
    "features": s2vc_models.TINY["channels"],
    "hidden": 12,
    "latents": 8,
    "groups": 2,
    "hyper": 3,
    "hyper_levels": 0,
    "depths": (1, 1, 1, 1),
    "reset": 3,
}
LEVELS = TINY | {"hyper_levels": 4, "dead_zone": 0.2}
CODEC, GENERATOR = "tiny-codec", "tiny-decoder"


def fresh(config: dict[str, Any] = TINY, seed: int = 1) -> S2vcCodec:
    """A codec as training begins with, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return S2vcCodec(**config).eval().requires_grad_(False)


def prior(config: dict[str, Any] = TINY, *, network: bool = True) -> Prior:
    """A prior of the codec's shape that nobody trained."""
    names = ("latents", "groups", "hyper", "hyper_levels")
    return latent_samples.prior(LatentShape(**{n: config[n] for n in names}), network=network)


def write_codec(root: Path, config: dict[str, Any] = TINY, *, seed: int = 1) -> Path:
    """Write a codec's folder and its row of the index; return `root`."""
    folder = root / CODEC
    folder.mkdir(parents=True)
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
    (folder / weights.CONFIG).write_text("\n".join(s2vc_models.table("codec", plain)) + "\n")
    tensors = {
        s2vc_runner.PREFIX + name: tensor.half().contiguous()
        for name, tensor in fresh(config, seed).state_dict().items()
    }
    for name, array in prior(config).arrays().items():
        tensors[name] = torch.from_numpy(array.copy())
    save_file(tensors, folder / weights.WEIGHTS)
    (folder / weights.WEIGHTS).chmod(0o644)  # safetensors writes for the owner alone
    add_row(root, CODEC, "codec", "preview")
    return root


def write_generator(root: Path, *, codec: str = CODEC) -> Path:
    """Write a decoder's folder and its row of the index; return `root`."""
    folder = s2vc_models.write_model(root / GENERATOR, s2vc_models.TINY, s2vc_models.filled())
    add_row(root, folder.name, "generator", "small", codec=codec)
    return root


def add_row(root: Path, name: str, role: str, tier: str, **more: str) -> None:
    folder = root / name
    row = {
        "id": name,
        "role": role,
        "profile": "s2vc",
        "tier": tier,
        "bytes": (folder / weights.WEIGHTS).stat().st_size,
        "weights_sha256": weights.sha256(folder / weights.WEIGHTS),
        "config_sha256": weights.sha256(folder / weights.CONFIG),
        "licence": "CC0-1.0",
        "source": "made by a test",
        "signals": ["latent"],
        **more,
    }
    lines = [f"{key} = {value!r}".replace("'", '"') for key, value in row.items()]
    with (root / "index.toml").open("a", encoding="utf-8") as index:
        index.write("\n".join(("[[model]]", *lines, "")))
