"""A folder with one tiny generator and its index, as `--models-dir` takes it."""

from __future__ import annotations

from pathlib import Path

from networks import TINY, filled
from safetensors.torch import save_file

from semvc import weights

MODEL = "tiny"


def write_models(root: Path, *, seed: int = 1) -> Path:
    """Write the folder and return it; `seed` draws the weights."""
    folder = root / MODEL
    folder.mkdir(parents=True)
    lines = [f"{name} = {list(v) if isinstance(v, tuple) else v}" for name, v in TINY.items()]
    (folder / weights.CONFIG).write_text("\n".join(("[network]", *lines, "")), "utf-8")
    state = {name: value.half().contiguous() for name, value in filled(seed).state_dict().items()}
    save_file(state, folder / weights.WEIGHTS)
    row = {
        "id": MODEL,
        "role": "generator",
        "profile": "disco",
        "tier": "small",
        "bytes": (folder / weights.WEIGHTS).stat().st_size,
        "weights_sha256": weights.sha256(folder / weights.WEIGHTS),
        "config_sha256": weights.sha256(folder / weights.CONFIG),
        "licence": "CC0-1.0",
        "source": "made by a test",
        "signals": ["base_av1"],
    }
    lines = [f"{name} = {value!r}".replace("'", '"') for name, value in row.items()]
    (root / "index.toml").write_text("\n".join(("[[model]]", *lines, "")), "utf-8")
    return root
