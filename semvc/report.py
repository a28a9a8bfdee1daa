"""What an encode or decode did: sizes, times, memory."""

from __future__ import annotations

import dataclasses
import resource
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semvc.bitstream.headers import AUDIO_SECTIONS


@dataclass(slots=True)
class Report:
    """What was done: sizes in bytes, times in seconds, memory in bytes; filled while running."""

    verb: str
    width: int
    height: int
    frames: int = 0
    segments: int = 0
    bytes: int = 0
    video_seconds: float = 0.0
    seconds: float = 0.0
    sections: Counter[str] = field(default_factory=Counter)
    qualities: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    gaps: int = 0
    resumed_segments: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready values; bpp and kbps count the whole stream."""
        pixels = self.width * self.height * self.frames
        audio = sum(self.sections[kind.name.lower()] for kind in AUDIO_SECTIONS)
        row = {
            **dataclasses.asdict(self),
            "sections": dict(self.sections),
            "audio_bytes": audio,
            "bpp": 8 * self.bytes / pixels if pixels else 0.0,
            "video_bpp": 8 * (self.bytes - audio) / pixels if pixels else 0.0,
            "kbps": 8 * self.bytes / self.video_seconds / 1000 if self.video_seconds else 0.0,
            "fps": self.frames / self.seconds if self.seconds else 0.0,
            "peak_memory_bytes": _peak_memory(),
            "peak_cuda_bytes": _peak_cuda_memory(),
        }
        return row

    def summary(self) -> str:
        """Return one line for a person."""
        row = self.to_json()
        rate = f"{self.bytes} bytes, {row['bpp']:.5f} bpp, {row['kbps']:.2f} kbit/s"
        return (
            f"{self.frames} frames in {self.segments} segments, {rate}, {row['fps']:.1f} frames/s"
        )


def _peak_memory() -> int:
    """Largest resident size of this process in bytes.

    Linux keeps `ru_maxrss` across exec, so that a large parent would be counted; VmHWM is our own.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text("ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _peak_cuda_memory() -> int | None:
    """Most memory of a graphics card that torch held at once in bytes; None if it used none.

    torch is only looked at if something else imported it.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.max_memory_allocated())
