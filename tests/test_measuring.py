"""Quick first codings for a target rate: shown, noted, and not done twice by an encode resumed."""

from __future__ import annotations

import contextlib
import os
import termios
from pathlib import Path
from typing import Any

import pytest
from program import FAST, names, semvc_process

from semvc import encoder
from semvc.encoder import EncodeJob, encode
from semvc.rate import Memo, Shares, Target
from semvc.types import EncodeOptions

pytestmark = pytest.mark.slow  # left to make test

OPTIONS = EncodeOptions(preset=12, segment_seconds=1)
JOB = EncodeJob(target=Target("kbps", 14.0), deterministic=True)
RESUMED = EncodeJob(target=JOB.target, deterministic=True, resume=True)


class Interrupted(BaseException):
    """Stands for a signal."""


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The qualities of all quick codings that are really done."""
    done: list[float] = []
    measure = encoder._Encoder._measured

    def noted(self: Any, quality: float, on_measured: Any) -> Shares:
        found = measure(self, quality, on_measured)
        done.append(quality)
        return found

    monkeypatch.setattr(encoder._Encoder, "_measured", noted)
    return done


def stop_at(frames: int) -> Any:
    def on_frames(done: int, _: int) -> None:
        if done >= frames:
            raise Interrupted

    return on_frames


def test_the_frames_of_quick_codings_are_counted_before_those_that_are_written(
    scenes: Path, tmp_path: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    encode(
        scenes,
        tmp_path / "a.svc",
        OPTIONS,
        job=JOB,
        on_frames=lambda *both: seen.append(("write", *both)),
        on_measured=lambda *both: seen.append(("measure", *both)),
    )
    counts = [("measure", 24 * k, 120) for k in range(6)]
    begin = [i for i, item in enumerate(seen) if item == counts[0]]
    assert begin and all(seen[i : i + 6] == counts for i in begin)
    assert seen[6 * len(begin) :] == [("write", 24 * k, 120) for k in range(1, 6)]


def test_a_resumed_encode_takes_what_was_measured_and_gives_the_same_file(
    scenes: Path, tmp_path: Path, passes: list[float]
) -> None:
    encode(scenes, tmp_path / "straight.svc", OPTIONS, job=JOB)
    straight = list(passes)
    with pytest.raises(Interrupted):
        encode(scenes, tmp_path / "a.svc", OPTIONS, job=RESUMED, on_frames=stop_at(48))
    assert names(tmp_path) == ["a.svc.part", "a.svc.part.memo", "straight.svc"]
    assert passes == 2 * straight and straight
    encode(scenes, tmp_path / "a.svc", OPTIONS, job=RESUMED)
    assert passes == 2 * straight
    assert (tmp_path / "a.svc").read_bytes() == (tmp_path / "straight.svc").read_bytes()
    assert names(tmp_path) == ["a.svc", "straight.svc"]


def test_a_quick_coding_that_was_finished_is_kept_though_nothing_was_written(
    scenes: Path, tmp_path: Path, passes: list[float]
) -> None:
    job = EncodeJob(target=Target("kbps", 60.0), resume=True)  # far from the first guess
    begun = 0

    def stop(done: int, _: int) -> None:
        nonlocal begun
        begun += done == 0
        if begun == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        encode(scenes, tmp_path / "a.svc", OPTIONS, job=job, on_measured=stop)
    assert len(passes) == 1
    encode(scenes, tmp_path / "a.svc", OPTIONS, job=job)
    assert len(passes) == len(set(passes)) > 1
    assert names(tmp_path) == ["a.svc"]


@pytest.mark.parametrize("change", ["options", "damage"])
def test_what_was_measured_for_another_encode_is_not_taken(
    change: str, scenes: Path, tmp_path: Path, passes: list[float]
) -> None:
    with pytest.raises(Interrupted):
        encode(scenes, tmp_path / "a.svc", OPTIONS, job=RESUMED, on_frames=stop_at(24))
    (tmp_path / "a.svc.part").unlink()
    passes.clear()
    options = OPTIONS
    if change == "options":
        options = EncodeOptions(preset=12, segment_seconds=1, factor=2)
    else:
        memo = tmp_path / "a.svc.part.memo"
        memo.write_bytes(memo.read_bytes()[:-9])
    encode(scenes, tmp_path / "a.svc", options, job=RESUMED)
    assert passes
    assert names(tmp_path) == ["a.svc"]


def test_an_interrupted_encode_that_is_not_to_be_resumed_leaves_nothing(
    scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        encode(scenes, tmp_path / "a.svc", OPTIONS, job=JOB, on_frames=stop_at(24))
    assert names(tmp_path) == []


def test_a_memo_gives_back_what_it_was_given_under_its_own_key(tmp_path: Path) -> None:
    path, shares = tmp_path / "memo", Shares(31.75, (400, 0, 12), (3, 0, 1), 70)
    Memo(path, "one", read=True).add(shares)
    assert Memo(path, "one", read=True).find(31.75) == shares
    assert Memo(path, "one", read=True).find(32.0) is None
    assert Memo(path, "two", read=True).find(31.75) is None
    assert Memo(path, "one", read=False).find(31.75) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"key": "k"}', '{"key": "k", "shares": [{"quality": 1}]}']
)
def test_a_memo_that_makes_no_sense_is_empty(text: str, tmp_path: Path) -> None:
    path = tmp_path / "memo"
    path.write_text(text, "utf-8")
    assert Memo(path, "k", read=True).find(1.0) is None


def test_where_no_memo_can_be_written_it_is_remembered(tmp_path: Path) -> None:
    shares = Shares(32.0, (1,), (0,), 1)
    memo = Memo(tmp_path / "none" / "memo", "k", read=True)
    memo.add(shares)
    assert memo.find(32.0) == shares


def test_a_terminal_shows_both_kinds_of_progress(clip: Path, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    words = ("encode", clip, tmp_path / "a.svc", "--kbps", "14", *FAST)
    done = semvc_process(*words, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal ends on Linux
        while part := os.read(ours, 1 << 16):
            shown += part
    os.close(ours)
    assert done.returncode == 0
    assert shown.index(b"measure: 100%") < shown.index(b"encode: 100%")
    assert b"24/24" in shown
