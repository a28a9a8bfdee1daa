"""Files appear whole or not at all, and an interrupted one goes on to the same bytes."""

from __future__ import annotations

import fcntl
import io
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from strategies import fill, sample_header, sample_stream

from semvc.bitstream.container import (
    PartFile,
    StreamReader,
    StreamWriter,
    part_header,
    resume_writer,
    verify,
)
from semvc.bitstream.headers import StreamHeader
from semvc.errors import MediaError, ResourceError, UsageError

SEGMENTS, PAYLOAD = 12, 3000
ROOT = Path(__file__).parents[1]

CHILD = """
import signal, sys
from pathlib import Path
sys.path[:0] = ["tests"]
import test_partfile as t
from semvc.errors import SemvcError
path, resume, pause = Path(sys.argv[1]), sys.argv[2] == "1", float(sys.argv[3])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
try:
    t.encode(path, resume=resume, pause=pause)
except SemvcError as error:
    sys.stderr.write(str(error))
    sys.exit(error.exit_code)
"""


def encode(
    path: Path, *, resume: bool = False, pause: float = 0.0, header: StreamHeader | None = None
) -> None:
    header = header or sample_header()
    with PartFile(path, force=False, resume=resume) as part:
        if resume:
            writer = resume_writer(part, header)
        else:
            writer = StreamWriter(part.sink, header, sync=part.sync)
        calls = list(fill(header, random.Random(1), SEGMENTS, PAYLOAD))
        for call in calls[writer.next_index :]:
            time.sleep(pause)
            writer.write(*call)
        writer.finish()


def whole() -> bytes:
    return sample_stream(segments=SEGMENTS, payload=PAYLOAD)


def child(path: Path, *, resume: bool = False, pause: float = 0.0) -> list[str]:
    return [sys.executable, "-c", CHILD, str(path), str(int(resume)), str(pause)]


def leave_part(path: Path, data: bytes) -> Path:
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    return part


def test_a_finished_file_has_its_name_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "a.svc"
    encode(path)
    assert path.read_bytes() == whole()
    assert [item.name for item in tmp_path.iterdir()] == ["a.svc"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600


def test_the_part_grows_by_whole_segments_before_the_name_exists(tmp_path: Path) -> None:
    path = tmp_path / "a.svc"
    with PartFile(path, force=False) as part:
        writer = StreamWriter(part.sink, sample_header(), sync=part.sync)
        for index, call in enumerate(fill(sample_header(), random.Random(1), SEGMENTS, PAYLOAD)):
            writer.write(*call)
            found = verify(io.BytesIO(part.part_path.read_bytes()))
            assert found.segments == index + 1 and not path.exists()
        writer.finish()
    assert path.read_bytes() == whole()


def test_an_existing_target_is_kept_without_force(tmp_path: Path) -> None:
    path = tmp_path / "a.svc"
    path.write_bytes(b"precious")
    with pytest.raises(UsageError, match="--force"):
        encode(path)
    assert path.read_bytes() == b"precious"
    assert [item.name for item in tmp_path.iterdir()] == ["a.svc"]
    with PartFile(path, force=True) as part:
        part.sink.write(b"new")
        assert path.read_bytes() == b"precious"
    assert path.read_bytes() == b"new"


def test_a_target_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.svc"
    with pytest.raises(UsageError, match="appeared"), PartFile(path, force=False) as part:
        part.sink.write(b"mine")
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert part.part_path.read_bytes() == b"mine"


def test_an_interrupted_part_is_in_the_way_unless_forced_or_resumed(tmp_path: Path) -> None:
    path = tmp_path / "a.svc"
    part = leave_part(path, whole()[:9000])
    with pytest.raises(UsageError, match="--resume"):
        encode(path)
    assert part.read_bytes() == whole()[:9000]
    with PartFile(path, force=True) as file:
        assert file.sink.read() == b""
    encode(tmp_path / "b.svc", resume=True)
    assert (tmp_path / "b.svc").read_bytes() == whole()


def test_a_part_that_another_process_writes_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.svc"
    part = leave_part(path, b"data")
    with part.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        for options in ({"force": False}, {"force": True}, {"force": False, "resume": True}):
            with pytest.raises(ResourceError, match="another process"):
                PartFile(path, **options).__enter__()
    assert part.read_bytes() == b"data"


def test_a_symbolic_link_as_part_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "a.svc.part").symlink_to(victim)
    with pytest.raises(ResourceError):
        PartFile(tmp_path / "a.svc", force=True).__enter__()
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["missing/a.svc", "."])
def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path: Path, name: str) -> None:
    with pytest.raises((ResourceError, UsageError)):
        PartFile(tmp_path / name, force=False).__enter__()


@pytest.mark.parametrize(
    ("error", "options", "kept"),
    [
        (KeyboardInterrupt(), {}, False),
        (SystemExit(143), {}, False),
        (KeyboardInterrupt(), {"keep_partial": True}, True),
        (KeyboardInterrupt(), {"resume": True}, True),
        (MediaError("input"), {}, False),
        (ResourceError("full"), {}, True),
        (OSError(28, "full"), {}, True),
        (MemoryError(), {}, True),
        (ZeroDivisionError(), {}, True),
    ],
)
def test_a_part_is_kept_or_removed_by_the_rules(
    tmp_path: Path, error: BaseException, options: dict[str, bool], kept: bool
) -> None:
    path = tmp_path / "a.svc"
    with pytest.raises(type(error)), PartFile(path, force=False, **options) as part:
        part.sink.write(b"data")
        raise error
    assert [item.name for item in tmp_path.iterdir()] == (["a.svc.part"] if kept else [])


def test_an_empty_part_is_never_kept(tmp_path: Path) -> None:
    with pytest.raises(ResourceError), PartFile(tmp_path / "a.svc", force=False):
        raise ResourceError("full")
    assert not list(tmp_path.iterdir())


def test_resuming_gives_the_same_bytes_from_every_kind_of_part(tmp_path: Path) -> None:
    data, rng = whole(), random.Random(2)
    ends = [s.offset + s.chunk_bytes for s in StreamReader(io.BytesIO(data))]
    parts = [b"", data[:1], data[:40], data, data[:-1], data + b"\0" * 4096, bytes(300)]
    parts += [data[: rng.randrange(len(data))] for _ in range(20)]
    parts += [data[: rng.randrange(len(data))] + bytes(rng.randrange(5000)) for _ in range(20)]
    parts += [data[: rng.choice(ends)] + rng.randbytes(1000) for _ in range(5)]
    for number, content in enumerate(parts):
        path = tmp_path / f"{number}.svc"
        leave_part(path, content)
        encode(path, resume=True)
        assert path.read_bytes() == data, number


def test_resuming_starts_anew_where_there_is_no_part(tmp_path: Path) -> None:
    path = tmp_path / "a.svc"
    encode(path, resume=True)
    assert path.read_bytes() == whole()


def test_resuming_says_where_to_go_on(tmp_path: Path) -> None:
    data = whole()
    segments = list(StreamReader(io.BytesIO(data)))
    leave_part(tmp_path / "a.svc", data[: segments[5].offset + 7])
    with (
        pytest.raises(ResourceError),
        PartFile(tmp_path / "a.svc", force=False, resume=True) as part,
    ):
        assert part_header(part) == sample_header()
        writer = resume_writer(part, sample_header())
        assert (writer.next_index, writer.next_frame) == (5, segments[5].start)
        assert writer.bytes_written == segments[5].offset
        raise ResourceError("enough")


@pytest.mark.parametrize("other", [{"salt": 6}, {"seed": 8}, {"total_frames": 5}, {"title": "x"}])
def test_a_part_with_another_header_is_refused_and_untouched(
    tmp_path: Path, other: dict[str, object]
) -> None:
    path = tmp_path / "a.svc"
    part = leave_part(path, whole())
    with pytest.raises(UsageError, match="another input"):
        encode(path, resume=True, header=sample_header(**other))
    assert part.read_bytes() == whole()
    leave_part(path, b"something else entirely" * 9)
    with pytest.raises(UsageError, match="another input"):
        encode(path, resume=True)
    assert part.read_bytes() == b"something else entirely" * 9


def kill_and_resume(folder: Path, seed: int) -> bool:
    """Kill a writer with SIGKILL, maybe tear its tail, and resume; True if it was interrupted."""
    rng = random.Random(seed)
    path = folder / f"{seed}.svc"
    part = path.with_name(path.name + ".part")
    process = subprocess.Popen(child(path, pause=0.004), cwd=ROOT)
    while not part.exists() and not path.exists():
        assert process.poll() in (None, 0), "the writer failed by itself"
        time.sleep(0.001)
    time.sleep(rng.random() * 0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if path.exists():
        assert path.read_bytes() == whole()
        return False
    found = part.read_bytes()
    assert whole().startswith(found)
    if seed % 2 and found:
        cut = rng.randrange(len(found))
        part.write_bytes(found[:cut] + bytes(rng.randrange(3000)) * (cut > 70))
    encode(path, resume=True)
    assert path.read_bytes() == whole()
    assert not part.exists()
    return True


@pytest.mark.slow
def test_a_killed_writer_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    assert sum(kill_and_resume(tmp_path, seed) for seed in range(20)) >= 10


@pytest.mark.nightly
def test_a_killed_writer_resumes_to_the_same_bytes_often(tmp_path: Path) -> None:
    assert sum(kill_and_resume(tmp_path, seed) for seed in range(1000, 1500)) >= 250


def test_a_full_disk_keeps_whole_segments_and_resumes(tmp_path: Path) -> None:
    data = whole()
    script = (
        "import resource, sys; sys.path[:0] = ['tests']; import test_partfile as t;"
        " t.fill_disk(sys.argv[1])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    for path in tmp_path.iterdir():
        assert path.read_bytes() == data
    assert len(list(tmp_path.iterdir())) >= 30


def fill_disk(folder: str) -> None:
    """Write under file-size limits of every kind (in a process of its own)."""
    import resource

    data = whole()
    ends = [s.offset + s.chunk_bytes for s in StreamReader(io.BytesIO(data))]
    for room in (1, 30, *range(1024, len(data), 1300)):
        path = Path(folder) / f"{room}.svc"
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        try:
            encode(path)
        except ResourceError as error:
            safe = sum(end <= room for end in ends)
            assert f"{safe} segments" in str(error) and "--resume" in str(error), error
        else:
            raise AssertionError("no error")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert not path.exists()
        encode(path, resume=True)


def test_a_full_device_and_a_closed_pipe_are_resource_errors() -> None:
    with Path("/dev/full").open("wb", buffering=0) as sink, pytest.raises(ResourceError):
        StreamWriter(sink, sample_header())
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb", buffering=0) as pipe, pytest.raises(ResourceError) as caught:
        StreamWriter(pipe, sample_header())
    assert isinstance(caught.value.__cause__, BrokenPipeError)


def test_a_terminated_writer_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.svc"
    process = subprocess.Popen(child(path, pause=0.05), cwd=ROOT)
    while not path.with_name("a.svc.part").exists():
        time.sleep(0.01)
    time.sleep(0.15)
    process.terminate()
    assert process.wait() == 143
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder where none can write")
def test_a_folder_where_nothing_can_be_made_is_a_resource_error() -> None:
    with pytest.raises(ResourceError, match="No such file"), PartFile(Path("/proc/a"), force=True):
        pass


def test_one_of_many_writers_wins(tmp_path: Path) -> None:
    path = tmp_path / "a.svc"
    crowd = [
        subprocess.Popen(child(path, pause=0.03), cwd=ROOT, stderr=subprocess.DEVNULL)
        for _ in range(4)
    ]
    codes = sorted(process.wait() for process in crowd)
    assert codes[0] == 0 and set(codes[1:]) <= {2, 8}
    assert path.read_bytes() == whole()
    assert [item.name for item in tmp_path.iterdir()] == ["a.svc"]
