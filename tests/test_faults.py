"""Faults at the worst moments: failing writes, signals, trickling input, little memory."""

from __future__ import annotations

import errno
import io
import os
import random
import resource
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from program import FAST, PREVIEW, Call, environment, names, semvc_process, start, wait_until
from scene import Scene, write_video

from semvc.bitstream import partfile
from semvc.decoder import DecodeJob, decode
from semvc.errors import ResourceError

QUICK = ("--preset", "12", "--deterministic")


# --- writes that fail or take little


class Disk:
    """Stands for `io` in `partfile`: files whose writes take few bytes, and one of which fails."""

    def __init__(self, fails_at: int | None = None, bite: int = 1 << 30) -> None:
        disk, self.writes = self, 0

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                disk.writes += 1
                if disk.writes - 1 == fails_at:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                return super().write(memoryview(data)[:bite])

        self.module = types.SimpleNamespace(FileIO=File)


@pytest.mark.parametrize("bite", [1, 7, 1000])
def test_short_writes_give_the_same_stream(
    bite: int, run: Call, clip: Path, stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(bite=bite)
    monkeypatch.setattr(partfile, "io", disk.module)
    found = run("encode", clip, tmp_path / "a.svc", *QUICK)
    assert found.code == 0, found.err
    assert disk.writes >= stream.stat().st_size / bite
    assert (tmp_path / "a.svc").read_bytes() == stream.read_bytes()


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_a_write_error_keeps_what_is_finished(
    fails_at: int, run: Call, clip: Path, stream: Path, tmp_path: Path
) -> None:
    target = tmp_path / "a.svc"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partfile, "io", Disk(fails_at).module)
        found = run("encode", clip, target, *QUICK)
    assert found.code == 8 and found.out == "" and found.err.count("\n") == 1
    assert "Input/output error" in found.err and not target.exists()
    assert run("encode", clip, target, *QUICK, "--resume").code == 0
    assert target.read_bytes() == stream.read_bytes() and names(tmp_path) == ["a.svc"]


@pytest.mark.parametrize("name", ["fdatasync", "fsync"])
def test_data_that_cannot_be_made_safe_is_exit_code_8(
    name: str, run: Call, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, name, failing, raising=False)
    found = run("encode", clip, tmp_path / "a.svc", *QUICK)
    assert found.code == 8 and "Input/output error" in found.err
    assert names(tmp_path) == ["a.svc.part"]


class Sink(io.RawIOBase):
    """A pipe that takes 1 to 7 bytes a time, and then fails."""

    def __init__(self, room: int) -> None:
        self.rng, self.room, self.taken = random.Random(1), room, bytearray()

    def write(self, data: Any) -> int:
        if len(self.taken) >= self.room:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        part = bytes(data)[: self.rng.randint(1, 7)]
        self.taken += part
        return len(part)


def test_a_video_written_in_short_writes_is_whole(stream: Path) -> None:
    whole, sink = io.BytesIO(), Sink(1 << 30)
    for target in (whole, sink):
        with stream.open("rb") as opened:
            decode(opened, target, DecodeJob(tier="preview"))  # type: ignore[arg-type]
    assert bytes(sink.taken) == whole.getvalue()


@pytest.mark.parametrize("room", [0, 500, 3000])
def test_a_pipe_that_fails_ends_a_decode(room: int, stream: Path) -> None:
    with stream.open("rb") as opened, pytest.raises(ResourceError, match="cannot write the output"):
        decode(opened, Sink(room), DecodeJob(tier="preview"))  # type: ignore[arg-type]


# --- signals at a chosen place

STUCK = """
import importlib, pathlib, sys, time
module, _, path = sys.argv[1].partition(":")
holder = importlib.import_module(module)
*way, last = path.split(".")
for name in way:
    holder = getattr(holder, name)
def stuck(*_, **__):
    pathlib.Path(sys.argv[2]).touch()
    time.sleep(60)
setattr(holder, last, stuck)
from semvc.cli import run
sys.exit(run(sys.argv[3:]))
"""
PLACES = {
    "model load": "semvc.nets.load:build",
    "synthesis": "semvc.profiles.disco:Disco.synthesize",
    "mux": "semvc.media.writer:VideoWriter._mux_last",
    "placing": "semvc.bitstream.partfile:PartFile._rename_without_replacing",
}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", PLACES)
def test_a_signal_at_any_stage_of_a_decode_leaves_nothing(
    place: str, number: signal.Signals, clip: Path, models: Path, run: Call, tmp_path: Path
) -> None:
    stream, marker, folder = tmp_path / "a.svc", tmp_path / "here", tmp_path / "out"
    folder.mkdir()
    own = ("--models-dir", models)
    assert run("encode", clip, stream, *FAST, *own).code == 0
    words = ("decode", stream, folder / "a.mp4", *own, "--device", "cpu")
    child = subprocess.Popen(
        [sys.executable, "-c", STUCK, PLACES[place], str(marker), *map(str, words)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: marker.exists() or child.poll() is not None, 60)
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 128 + number, err
    assert out == b"" and err in (b"semvc: interrupted\n", b"semvc: stopped\n")
    assert names(folder) == []


@pytest.mark.slow
def test_a_signal_while_pieces_are_joined_keeps_them(
    long_stream: Path, tmp_path: Path, run: Call
) -> None:
    marker, target = tmp_path / "here", tmp_path / "a.mp4"
    words = ("decode", long_stream, target, *PREVIEW, "--resume")
    command = [sys.executable, "-c", STUCK, "semvc.pieces:join", str(marker), *map(str, words)]
    child = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE)
    wait_until(lambda: marker.exists() or child.poll() is not None, 60)
    child.send_signal(signal.SIGTERM)
    assert child.communicate(timeout=30)[1] == b"semvc: stopped\n"
    assert child.returncode == 143 and not target.exists()
    found = run(*words, "--json")
    assert found.code == 0 and '"resumed_segments": 5' in found.out


# --- input that trickles


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.mp4", "a.y4m"])
def test_an_input_may_come_a_few_bytes_at_a_time(name: str, clip: Path, tmp_path: Path) -> None:
    source = clip
    if name == "a.y4m":
        frames = Scene(64, 48, 24).render()[0]
        source = write_video(
            tmp_path / name, frames, codec="wrapped_avframe", container="yuv4mpegpipe"
        )
    target, straight = tmp_path / "a.svc", tmp_path / "straight.svc"
    child = start("encode", "-", target, *QUICK, stdin=subprocess.PIPE)
    assert child.stdin is not None
    data, rng, at = source.read_bytes(), random.Random(1), 0
    while at < len(data):
        at += os.write(child.stdin.fileno(), data[at : at + rng.randint(1, 7)])
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    done = semvc_process("encode", "-", straight, *QUICK, input=data)
    assert done.returncode == 0 and target.read_bytes() == straight.read_bytes()


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_an_input_that_ends_early_in_a_pipe_is_exit_code_3(
    share: float, clip: Path, tmp_path: Path
) -> None:
    data = clip.read_bytes()
    done = semvc_process(
        "encode", "-", tmp_path / "a.svc", *QUICK, input=data[: int(share * len(data))]
    )
    assert (done.returncode, done.stdout) == (3, b"") and done.stderr.count(b"\n") == 1
    assert names(tmp_path) == []


# --- little memory


@pytest.mark.slow
@pytest.mark.parametrize("mebibytes", [120, 160, 200, 240, 280, 320, 400])
def test_little_memory_is_no_bug_of_ours(
    mebibytes: int, larger_stream: Path, tmp_path: Path
) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (mebibytes << 20, mebibytes << 20))

    done = semvc_process(
        "decode", larger_stream, tmp_path / "a.mp4", *PREVIEW, preexec_fn=limited,
        env=environment(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1"),
    )  # fmt: skip
    assert done.returncode in (0, 3, 7, 8), done.stderr
    assert names(tmp_path) == (["a.mp4"] if done.returncode == 0 else [])
