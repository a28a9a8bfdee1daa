"""Speed and memory of tier full at full size, with random weights: what a GPU is asked for.

    python -m tests.measure_backbones WORK [--names ltx-video-13b,wan-vace-1.3b] [--device cuda]

Networks of the published sizes get random weights in bfloat16 and are written to WORK as diffusers
writes them (26 GB for the largest), read back by the decoder's own code, and draw one window of the
size that the goals name. Every row of the table is one run: seconds a window (the first one, which
compiles and warms up, is left out) and the most memory held. Captions are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))  # the modules of the tests, for `python -m`

from test_full_size import NETWORKS
from tinybackbones import conditions, noise

from semvc.backbones import manifest
from semvc.backbones.protocol import load
from semvc.profiles.fulltier import settings_of
from semvc.types import FullTier

WINDOWS = {  # (width, height, frames, steps) of the goals
    "ltx-video-2b": ((512, 512, 57, 50), (512, 512, 57, 8)),
    "ltx-video-13b": ((512, 512, 57, 50), (512, 512, 57, 8)),
    "wan-vace-1.3b": ((832, 480, 81, 4),),
}
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"memory": "offload"},
    {"memory": "group"},
    {"quant": "int8"},
    {"quant": "fp8"},
    {"compiled": True},
    {"attention": "_native_flash"},
    {"attention": "_native_cudnn"},
    {"attention": "_native_math"},
)


@dataclass(frozen=True, slots=True)
class Way:
    """How a window is drawn: memory and quant as in `Settings`, and what only this script tries."""

    memory: str = "full"
    quant: str = "none"
    compiled: bool = False
    attention: str = ""

    def __str__(self) -> str:
        words = [self.memory, *([] if self.quant == "none" else [self.quant])]
        return ", ".join(
            words + ["compile"] * self.compiled + [self.attention] * bool(self.attention)
        )


def write(folder: Path, networks: dict[str, tuple[str, dict[str, Any]]], device: str) -> Path:
    """Write transformer and autoencoder with random weights, unless they are there."""
    import diffusers

    for part in ("transformer", "vae"):
        if (folder / part / "config.json").is_file():
            continue
        kind, config = networks[part]
        with torch.device("meta"):
            network = getattr(diffusers, kind)(**config).to(torch.bfloat16)
        network = network.to_empty(device=device)
        draw = torch.Generator(device).manual_seed(1)
        for weight in (*network.parameters(), *network.buffers()):
            if weight.is_floating_point():
                weight.data.normal_(0, 0.02, generator=draw)
        for name, buffer in network.named_buffers():
            if name == "latents_std":
                buffer.fill_(1)
        network.save_pretrained(folder / part, max_shard_size="5GB")
    return folder


def measure(
    name: str, folder: Path, way: Way, window: tuple[int, int, int, int], device: str
) -> dict[str, Any]:
    """Draw two windows; return a row of the table: figures, or the error that it failed with."""
    entry = manifest.named(name)
    width, height, frames, steps = window
    row = {
        "backbone": name,
        "way": str(way),
        "window": f"{width}x{height}x{frames}",
        "steps": steps,
    }
    settings = settings_of(entry, FullTier(guidance=1.0, strength=1.0, quant=way.quant))
    settings = replace(settings, memory=way.memory, frames=frames)
    kind = torch.device(device)
    if kind.type == "cuda":
        torch.cuda.reset_peak_memory_stats(kind)
    try:
        backbone: Any = load(entry.family, folder, settings, kind, torch.bfloat16)
        network = backbone._transformer._network
        if way.attention:
            network.set_attention_backend(way.attention)
        if way.compiled:
            network.compile_repeated_blocks(fullgraph=True)
        given = conditions(frames, height=height, width=width)
        seconds = []
        for _ in range(2):
            begun = time.perf_counter()
            backbone.generate(backbone.encode(given), noise, steps)
            seconds.append(time.perf_counter() - begun)
    except Exception as error:  # a backend that is not there is a row, too
        return row | {"error": f"{type(error).__name__}: {error}".splitlines()[0][:120]}
    peak = torch.cuda.max_memory_allocated(kind) / 1e9 if kind.type == "cuda" else None
    return row | {"seconds": round(seconds[1], 2), "first": round(seconds[0], 2), "gigabytes": peak}


def rows(names: list[str], work: Path, device: str) -> Iterator[dict[str, Any]]:
    """Measure every way for every backbone's first window, and the usual way for the others."""
    for name in names:
        folder = write(work / name, NETWORKS[name], device)
        first, *others = WINDOWS[name]
        for words in WAYS:
            yield measure(name, folder, Way(**words), first, device)
        for window in others:
            yield measure(name, folder, Way(), window, device)


def main() -> None:
    """Print a table of Markdown, and every row as JSON on stderr as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--names", default=",".join(WINDOWS))
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    found = []
    for row in rows(given.names.split(","), given.work, given.device):
        print(json.dumps(row), file=sys.stderr, flush=True)
        found.append(row)
    print("| backbone | window | steps | how | seconds | GB |\n|---|---|--:|---|--:|--:|")
    for row in found:
        peak = row.get("gigabytes")
        figures = [str(row.get("seconds", row.get("error"))), "" if peak is None else f"{peak:.1f}"]
        words = (row["backbone"], row["window"], str(row["steps"]), row["way"], *figures)
        print(f"| {' | '.join(words)} |")


if __name__ == "__main__":
    main()
