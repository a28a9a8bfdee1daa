"""What goes wrong around the codec: full disks, signals, pipes, odd names and surroundings."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from program import (
    FAST,
    PREVIEW,
    Call,
    environment,
    names,
    semvc_process,
    size,
    start,
    wait_until,
)

# --- no space


def limited(count: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (count, count))


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.001, 0.3, 0.7, 0.999])
def test_a_full_disk_stops_an_encode_which_can_be_resumed(
    share: float, scenes: Path, tmp_path: Path
) -> None:
    straight, target = tmp_path / "straight.svc", tmp_path / "a.svc"
    words = ("encode", scenes, "--deterministic", *FAST)
    assert semvc_process(*words, straight).returncode == 0
    room = int(share * size(straight))
    done = semvc_process(*words, target, preexec_fn=limited(room))
    assert (done.returncode, done.stdout) == (8, b"")
    assert b"cannot write the stream: File too large" in done.stderr
    assert not target.exists()
    assert semvc_process(*words, target, "--resume").returncode == 0
    assert target.read_bytes() == straight.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 1000, 20_000])
def test_a_full_disk_stops_a_decode_and_leaves_nothing(
    room: int, long_stream: Path, tmp_path: Path
) -> None:
    done = semvc_process(
        "decode", long_stream, tmp_path / "a.mp4", *PREVIEW, preexec_fn=limited(room)
    )
    assert (done.returncode, done.stdout) == (8, b"")
    assert b"cannot write the output" in done.stderr and b"File too large" in done.stderr
    assert names(tmp_path) == []


@pytest.mark.parametrize("command", ["encode", "decode", "info", "verify", "models"])
def test_a_full_device_as_stdout_is_exit_code_8(command: str, clip: Path, stream: Path) -> None:
    words: tuple[object, ...] = {
        "encode": (clip, "-", *FAST),
        "decode": (stream, "-", *PREVIEW),
        "models": ("list",),
    }.get(command, (stream,))
    with Path("/dev/full").open("wb") as full:
        done = semvc_process(command, *words, stdout=full)
    assert done.returncode == 8
    assert done.stderr.count(b"\n") == 1 and b"No space left on device" in done.stderr


def test_a_report_that_cannot_be_written_names_its_file(clip: Path, tmp_path: Path) -> None:
    words = ("encode", clip, tmp_path / "a.svc", *FAST, "--report", "/dev/full")
    done = semvc_process(*words)
    assert (done.returncode, done.stdout) == (8, b"")
    assert b"a.svc is complete, but not /dev/full: No space left on device" in done.stderr
    assert names(tmp_path) == ["a.svc"]


def test_a_report_is_never_half_there(
    run: Call, stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, write = tmp_path / "r.json", Path.write_text
    report.write_text("old", "utf-8")

    def fill_the_disk(path: Path, text: str, *how: Any) -> int:
        write(path, text[: len(text) // 2], *how)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill_the_disk)
    found = run("decode", stream, tmp_path / "a.mp4", *PREVIEW, "--report", report, "--force")
    assert found.code == 8 and f"is complete, but not {report}: No space left" in found.err
    assert report.read_text("utf-8") == "old"
    assert names(tmp_path) == ["a.mp4", "r.json"]


def test_a_folder_without_permission_is_exit_code_8(
    run: Call, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("semvc.bitstream.partfile.PartFile._try_open", refused)
    found = run("encode", clip, tmp_path / "a.svc")
    assert found.code == 8
    assert found.err == f"semvc: cannot write {tmp_path / 'a.svc.part'}: Permission denied\n"


def test_lack_of_memory_is_exit_code_8(
    run: Call, stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("semvc.media.color.resize", greedy)
    found = run("decode", stream, tmp_path / "a.mp4", *PREVIEW)
    assert found.code == 8
    assert found.err == "semvc: out of memory: use --tier preview or a smaller picture\n"
    assert names(tmp_path) == []


# --- signals


def children_of(number: int) -> list[str]:
    path = Path(f"/proc/{number}/task/{number}/children")
    return path.read_text("ascii").split() if path.exists() else []


def is_alive(number: str) -> bool:
    try:
        text = Path(f"/proc/{number}/stat").read_text("ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["encode", "decode"])
def test_signals_leave_nothing_behind(
    number: signal.Signals, command: str, larger: Path, larger_stream: Path, tmp_path: Path
) -> None:
    target = tmp_path / ("a.svc" if command == "encode" else "a.mp4")
    words = ("encode", larger, target, "--preset", 3) if command == "encode" else (
        "decode", larger_stream, target, *PREVIEW
    )  # fmt: skip
    rng = random.Random(f"{command} {number}")
    stopped = 0
    for attempt in range(3):
        child = start(*words, "--force")
        wait_until(lambda: names(tmp_path) != [] or child.poll() is not None)  # noqa: B023
        threading.Event().wait(rng.uniform(0, 0.4))
        family = children_of(child.pid)
        child.send_signal(number)
        if attempt == 2:
            child.send_signal(number)  # impatient
        out, err = child.communicate(timeout=20)  # less than the longest watchdog
        wait_until(lambda: not any(map(is_alive, family)), 5)  # noqa: B023
        if child.returncode == 0:  # it was quicker
            target.unlink()
            continue
        stopped += 1
        assert child.returncode == 128 + number, err
        assert out == b"" and err in (b"semvc: interrupted\n", b"semvc: stopped\n")
        assert names(tmp_path) == []
    assert stopped


@pytest.mark.slow
def test_keep_partial_keeps_what_is_finished(larger: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.svc"
    part = tmp_path / "a.svc.part"
    words = ("encode", larger, target, "--preset", 3, "--segment-seconds", 1, "--keep-partial")
    child = start(*words)
    wait_until(lambda: size(part) > 300 or child.poll() is not None)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=30)
    assert child.returncode == 130 and names(tmp_path) == ["a.svc.part"]
    done = semvc_process(*words, "--resume", "--json")
    assert done.returncode == 0 and "continued after" in json.loads(done.stdout)["notes"][0]


@pytest.mark.slow
def test_killing_a_decode_ends_its_child_too(larger_stream: Path, tmp_path: Path) -> None:
    child = start("decode", larger_stream, tmp_path / "a.mp4", *PREVIEW)
    wait_until(lambda: children_of(child.pid) != [] or child.poll() is not None)
    family = children_of(child.pid)
    child.kill()
    child.communicate()
    wait_until(lambda: not any(map(is_alive, family)), 20)
    assert not (tmp_path / "a.mp4").exists()


# --- pipes


def test_both_commands_work_between_pipes(clip: Path, stream: Path, tmp_path: Path) -> None:
    done = semvc_process("encode", "-", "-", *FAST, input=clip.read_bytes())
    assert done.returncode == 0 and done.stdout.startswith(b"\x8aSVC")
    assert b"-: 24 frames" in done.stderr
    back = semvc_process("decode", "-", "-", *PREVIEW, input=done.stdout)
    assert back.returncode == 0 and b"moof" in back.stdout
    assert semvc_process("verify", "-", input=done.stdout).returncode == 0
    row = json.loads(semvc_process("info", "-", "--json", input=done.stdout).stdout)
    assert row["frames"] == 24 and row["bytes"] == len(done.stdout)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_pipe_may_give_a_few_bytes_at_a_time(step: int, stream: Path, tmp_path: Path) -> None:
    child = start("decode", "-", tmp_path / "a.mp4", *PREVIEW, stdin=subprocess.PIPE)
    assert child.stdin is not None
    data = stream.read_bytes()
    for at in range(0, len(data), step):
        os.write(child.stdin.fileno(), data[at : at + step])
    _, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert b"24 frames in 1 segments" in err


def test_a_fifo_is_read_like_a_file(clip: Path, stream: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for source, words in (
        (clip, ("encode", fifo, tmp_path / "a.svc", *FAST)),
        (stream, ("decode", fifo, tmp_path / "a.mp4", *PREVIEW)),
        (stream, ("info", fifo)),
    ):
        feeder = threading.Thread(target=lambda: fifo.write_bytes(source.read_bytes()))  # noqa: B023
        feeder.start()
        done = semvc_process(*words)
        feeder.join()
        assert done.returncode == 0, done.stderr
    assert names(tmp_path) == ["a.mp4", "a.svc", "fifo"]


@pytest.mark.parametrize(
    "words", [("verify", "-", "--deep"), ("edit", "-", "{}", "--drop", "sketch")]
)
def test_commands_that_read_twice_refuse_a_pipe(
    words: tuple[str, ...], stream: Path, tmp_path: Path
) -> None:
    done = semvc_process(*(w.format(tmp_path / "a") for w in words), input=stream.read_bytes())
    assert done.returncode == 2
    assert done.stderr == b"semvc: - is a pipe, and this command reads it twice: use a file\n"


@pytest.mark.parametrize("command", ["encode", "decode", "info"])
def test_a_closed_pipe_is_a_quiet_exit_code_8(
    command: str, scenes: Path, long_stream: Path
) -> None:
    words: tuple[object, ...] = {
        "encode": (scenes, "-", *FAST), "decode": (long_stream, "-", *PREVIEW),
    }.get(command, (long_stream,))  # fmt: skip
    reader, writer = os.pipe()
    os.close(reader)
    done = semvc_process(command, *words, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (8, b"")


def test_a_stream_that_ends_early_in_a_pipe_is_damaged(stream: Path, tmp_path: Path) -> None:
    done = semvc_process(
        "decode", "-", tmp_path / "a.mp4", *PREVIEW, input=stream.read_bytes()[:-20]
    )
    assert done.returncode == 4 and b"-: damaged stream" in done.stderr
    assert names(tmp_path) == []


# --- names, homes, locales


ODD = ["-x", "a:b", "file:c", "with space", "new\nline", "%d.%05d", "häß", "é" * 100, b"\xff\xfe"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD, ids=repr)
def test_odd_file_names_work(name: str | bytes, clip: Path, tmp_path: Path) -> None:
    stem = tmp_path / os.fsdecode(name)
    video = stem.with_name(stem.name + ".mp4")
    shutil.copy(clip, video)
    home = {"cwd": tmp_path}
    words = ("encode", "--preset", "12", "--", video.name, stem.name)
    done = semvc_process(*map(os.fsencode, words), **home)
    assert done.returncode == 0, done.stderr
    rebuilt = stem.with_name(stem.name + ".mov")
    for words in (
        ("info", "--", stem.name),
        ("verify", "--deep", "--", stem.name),
        ("decode", *PREVIEW, "--", stem.name, rebuilt.name),
    ):
        done = semvc_process(*map(os.fsencode, words), **home)
        assert done.returncode == 0, (words, done.stderr)
    assert len(names(tmp_path)) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"HOME": None, "XDG_CACHE_HOME": None, "USER": None, "TMPDIR": None},
        {"HOME": "/nonexistent"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"TZ": "Asia/Kathmandu", "LANG": "tr_TR.UTF-8"},
        {"PYTHONOPTIMIZE": "2", "PYTHONDONTWRITEBYTECODE": "1"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_surroundings_do_not_matter(
    changes: dict[str, str | None], clip: Path, models: Path, tmp_path: Path
) -> None:
    env, target = environment(**changes), tmp_path / "ä.svc"
    words = ("encode", clip, target, *FAST, "--title", "ü", "--models-dir", models)
    assert semvc_process(*words, env=env).returncode == 0
    done = semvc_process("info", target, "--json", env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["header"]["title"] == "ü"
    tier = ("--models-dir", models, "--device", "cpu") if "USER" in changes else PREVIEW
    done = semvc_process("decode", target, tmp_path / "ä.mp4", *tier, env=env)
    assert done.returncode == 0, done.stderr
    assert len(names(tmp_path)) == 2


def test_the_demo_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "semvc.demo", "--input", tmp_path / "none.mp4"]
    done = subprocess.run(
        [*command, "--out", tmp_path / "demo"], env=environment(), capture_output=True, check=False
    )
    assert done.returncode == 3 and done.stderr.count(b"\n") == 1
    assert done.stderr.startswith(b"demo: cannot open ")
