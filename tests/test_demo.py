"""What `make demo` compares."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from semvc import demo
from semvc.bitstream.probe import probe
from semvc.errors import MediaError


@pytest.mark.parametrize(("memory", "segments"), [(120, 5), (119, 4), (50, 2), (1, 1)])
def test_a_long_clip_is_compared_by_its_first_segments(
    memory: int, segments: int, long_stream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with long_stream.open("rb") as opened:
        found = probe(opened)
    monkeypatch.setattr(demo, "_MOST_BYTES", memory * 3 * 64 * 48)
    frames, size = demo._part(found)
    assert frames == 24 * segments
    whole = found.bytes - found.audio_bytes
    if segments == 5:
        assert size == whole
    else:
        assert size < whole and abs(size / whole - segments / 5) < 0.2


def test_a_clip_that_cannot_be_fetched_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **how: Any) -> subprocess.CompletedProcess[bytes]:
        if how.get("check"):
            raise subprocess.CalledProcessError(1, "pip")
        return subprocess.CompletedProcess([], 1)

    monkeypatch.setattr(subprocess, "run", offline)
    with pytest.raises(MediaError, match=r"make demo IN=your\.mp4"):
        demo._sample(tmp_path)
