"""What a suite asks for, point by point, and the keys by which finished work is found again.

A key is a hash of everything that decides a result: the bytes of the clip, the settings, the
program's own source and the models. When one of them changes, what depends on it is done again and
nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import semvc
from semvc import weights
from semvc.bench import anchors, networks
from semvc.bench.rows import Skipped
from semvc.bench.suite import Clip, Suite

_PACKAGE = Path(semvc.__file__).parent
_CODING = ("media/elementary.py", "media/color.py", "bench/pictures.py", "bench/anchors.py")
_MEASURING = ("bench/metrics.py", "bench/motion.py", "bench/networks.py", "bench/vdp.py")
_APART = ("bench", "train")  # packages that decide no stream and no picture


@dataclass(frozen=True, slots=True)
class Point:
    """One encode of one clip, by `Row`'s names; the rows of semvc's tiers share it."""

    clip: str
    codec: str
    setting: float
    profile: str = ""
    preset: str = ""
    size: str = "full"
    divisor: int = 1
    tiers: tuple[str, ...] = ("",)

    def skipped(self, reason: str, tier: str = "") -> Skipped:
        """Return the point as one that could not be made."""
        return Skipped(
            self.clip,
            self.codec,
            self.setting,
            reason,
            profile=self.profile,
            tier=tier,
            size=self.size,
            divisor=self.divisor,
        )


def points(suite: Suite, clip: str) -> Iterator[Point]:
    """Yield the points of one clip: semvc's, then those of the anchors in the suite's order."""
    for profile in suite.profiles:
        for quality in suite.qualities:
            yield Point(clip, "semvc", float(quality), profile=profile, tiers=suite.tiers)
    done: set[Point] = set()
    for anchor in suite.anchors:
        preset = anchor.preset or anchors.PRESETS[anchor.codec]
        for size in anchor.sizes:
            for divisor in anchor.divisors:
                for crf in anchor.crf:
                    point = Point(
                        clip,
                        anchor.codec,
                        float(crf),
                        preset=preset,
                        size=size,
                        divisor=divisor,
                    )
                    if point not in done:
                        done.add(point)
                        yield point


class Keys:
    """Keys of one run. `device` is where models and metrics run."""

    def __init__(
        self, suite: Suite, *, models_dir: Path | None, metric_weights: Path | None, device: str
    ) -> None:
        self._suite, self._models_dir = suite, models_dir
        self._device = device
        self._program = _hash_files(_sources())
        self._coding = {"source": _hash_files(_PACKAGE / name for name in _CODING)}
        self._coding["av"] = _version("av")
        self._measuring = {
            "source": _hash_files(_PACKAGE / name for name in _MEASURING),
            "weights": _weights(metric_weights),
            "metrics": list(suite.metrics),
            "every": suite.every,
            "packages": {name: _version(name) for name in ("cvvdp", "opencv-python-headless")},
        }

    def clip(self, clip: Clip, path: Path) -> str:
        """Return the key of a clip's range of frames."""
        return _key({"sha256": weights.sha256(path), "start": clip.start, "frames": clip.frames})

    def stream(self, point: Point, clip_key: str) -> str:
        """Return the key of a point's coded file."""
        what = {**dataclasses.asdict(point), "tiers": None, "clip": clip_key}
        if point.codec == "semvc":
            models = [self.model(point.profile, tier) for tier in ("small", "full")]
            what |= {"program": self._program, "words": self._suite.encode, "models": models}
        else:
            what |= {"coding": self._coding, "gop_seconds": self._suite.gop_seconds}
            if point.codec == "vvenc":
                what["ffmpeg"] = Path(anchors.ffmpeg() or "").name
        return _key(what)

    def rebuilt(self, point: Point, stream_key: str, tier: str) -> str:
        """Return the key of a decode."""
        return _key(
            {
                "stream": stream_key,
                "tier": tier,
                "model": self.model(point.profile, tier),
                "words": self._suite.decode,
                "device": self._device,
            }
        )

    def row(self, rebuilt_key: str) -> str:
        """Return the key of a measured row."""
        return _key({"rebuilt": rebuilt_key, "measuring": self._measuring})

    def model(self, profile: str, tier: str) -> str:
        """Return the model of a profile's tier as a hash over its files, or nothing."""
        for ref in weights.index(self._models_dir):
            if (ref.profile, ref.tier) == (profile, tier):
                return f"{ref.id} {ref.decoder_id().hex()}"
        return ""


def machine(device: str) -> dict[str, Any]:
    """Return what this runs on, as `Report.machine` says."""
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": cores(),
        "memory_bytes": _memory(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "av": _version("av"),
        "device": device,
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def cores() -> int:
    """Return how many processor cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _key(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:20]


def _hash_files(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode("utf-8") + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _sources() -> list[Path]:
    """All files that decide what semvc writes and shows: code, tables, other data."""
    return sorted(
        path
        for path in _PACKAGE.rglob("*")
        if path.is_file()
        and path.suffix in {".py", ".npz", ".safetensors", ".toml", ".json"}
        and path.relative_to(_PACKAGE).parts[0] not in {*_APART, "_models"}
    )


def _weights(folder: Path | None) -> dict[str, str]:
    if folder is None:
        return {}
    names = (networks.ALEX, networks.VGG, networks.HEADS)
    return {name: weights.sha256(folder / name) for name in names if (folder / name).is_file()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
