import itertools
import os
import random
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from modelfolder import write_models
from program import names, semvc_process, start, wait_until
from scene import Scene, Sound, beeps, read_sound, write_video

from semvc import pieces as pieces_module
from semvc.bitstream.container import StreamReader
from semvc.bitstream.partfile import PartFile
from semvc.decoder import DecodeJob, decode
from semvc.encoder import EncodeJob, encode
from semvc.errors import BitstreamError, MediaError, ResourceError, UsageError
from semvc.media.join import Piece, join
from semvc.media.writer import OutputOptions, VideoWriter
from semvc.report import Report
from semvc.types import EncodeOptions, Runtime, VideoInfo

FRAMES, SEGMENT_SECONDS = 65, 0.5
OUTPUTS = (
    *(("h264", suffix) for suffix in (".mp4", ".mov", ".mkv")),
    *((codec, suffix) for codec in ("av1", "ffv1") for suffix in (".mp4", ".mkv")),
    ("hevc", ".mp4"),
)
STEPS = (1000, 1500, 500, 2000, 1000)  # of a variable rate, in thousandths of the mean's frame


def make_stream(folder: Path, name: str, times: list[int] | None) -> Path:
    shot = Scene(64, 64, 24).render()[0]
    frames = np.concatenate((shot, shot, shot))[:FRAMES]
    seconds = times[-1] / 24000 if times else FRAMES / 24
    source = write_video(
        folder / f"{name}.mp4", frames, times=times, sound=Sound(beeps(float(seconds)))
    )
    stream = folder / f"{name}.svc"
    options = EncodeOptions(preset=12, segment_seconds=SEGMENT_SECONDS)
    encode(source, stream, options, job=EncodeJob(deterministic=True))
    return stream


@pytest.fixture(scope="session")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stream of six segments at 24 frames per second, with sound; do not change it."""
    return make_stream(tmp_path_factory.mktemp("steady"), "steady", None)


@pytest.fixture(scope="session")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stream of seven segments of variable frame rate, with sound; do not change it."""
    times = itertools.accumulate(itertools.islice(itertools.cycle(STEPS), FRAMES - 1), initial=0)
    return make_stream(tmp_path_factory.mktemp("uneven"), "uneven", list(times))


def run(stream: Path, target: Path, *, runtime: Runtime | None = None, **job: Any) -> Report:
    """Decode at tier preview with --resume, unless told otherwise."""
    given = {"tier": "preview", "resume": True, **job}
    with stream.open("rb") as opened:
        return decode(opened, target, DecodeJob(**given), runtime=runtime)


def interrupt(stream: Path, target: Path, segments: int, **job: Any) -> None:
    """Decode with --resume and stop as if by Ctrl-C in the segment after the first `segments`."""
    with stream.open("rb") as opened:
        enough = sum(s.frames for s in itertools.islice(StreamReader(opened), segments)) + 2

    def stop(done: int, _: int) -> None:
        if done == enough:
            raise KeyboardInterrupt

    with stream.open("rb") as opened, pytest.raises(KeyboardInterrupt):
        given = {"tier": "preview", "resume": True, **job}
        decode(opened, target, DecodeJob(**given), on_frames=stop)


def folder_of(target: Path) -> Path:
    return target.with_name(target.name + ".parts")


@dataclass(frozen=True)
class Shown:
    """What players find in a file."""

    pictures: list[Any]
    times: list[Fraction]
    dts: list[int]
    late: list[int]  # pts minus dts
    length: Fraction | None
    codec: tuple[Any, ...]
    note: str


def look(path: Path) -> Shown:
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(container.streams.video[0]) if p.size]
        timed = [(p.pts, p.dts) for p in packets if p.pts is not None and p.dts is not None]
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        base = video.time_base or Fraction(0)
        found = [(f.pts or 0, f.to_ndarray(format="rgb24")) for f in container.decode(video)]
        context = video.codec_context
        tags = (context.color_primaries, context.color_trc, context.colorspace, context.color_range)
        kind = (context.name, context.codec_tag, context.pix_fmt, context.width, context.height)
        return Shown(
            [picture for _, picture in found],
            [pts * base for pts, _ in found],
            [dts for _, dts in timed],
            [pts - dts for pts, dts in timed],
            None if video.duration is None else video.duration * base,
            (*kind, *tags),
            {key.lower(): text for key, text in container.metadata.items()}["comment"],
        )


# --- the output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["steady", "uneven"])
@pytest.mark.parametrize(("codec", "suffix"), OUTPUTS)
def test_joined_pieces_show_what_a_plain_decode_shows(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, codec: str, suffix: str
) -> None:
    stream = request.getfixturevalue(name)
    plain, joined = tmp_path / f"plain{suffix}", tmp_path / f"joined{suffix}"
    reports = [
        run(stream, path, codec=codec, resume=path == joined).to_json() for path in (plain, joined)
    ]
    for key in ("frames", "segments", "bytes", "video_seconds", "sections"):
        assert reports[0][key] == reports[1][key]
    one, other = look(plain), look(joined)
    assert len(other.times) == FRAMES and other.times == one.times
    assert other.codec == one.codec and other.note == one.note
    # MP4 keeps how long pictures last in coding order: how long the last one shown lasts is lost
    assert abs((other.length or 0) - (one.length or 0)) < max(np.diff(one.times))
    assert min(np.diff(other.dts)) > 0 and min(other.late) >= 0
    apart = [
        np.abs(a.astype(int) - b).mean() for a, b in zip(one.pictures, other.pictures, strict=True)
    ]
    assert max(apart) <= (0 if codec == "ffv1" else 4)
    assert np.array_equal(read_sound(plain), read_sound(joined))
    assert names(tmp_path) == sorted([plain.name, joined.name])


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_two_runs_give_the_same_bytes(steady: Path, tmp_path: Path, suffix: str) -> None:
    outputs = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for output in outputs:
        run(steady, output)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_a_range_is_joined_from_its_pieces(steady: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / "plain.mp4", tmp_path / "joined.mp4"]
    for output in outputs:
        run(steady, output, start=0.7, duration=1.2, resume=output == outputs[1])
    one, other = map(look, outputs)
    assert one.times == other.times and one.length == other.length
    assert np.array_equal(read_sound(outputs[0]), read_sound(outputs[1]))


def write_pieces(
    folder: Path, codec: str, lengths: Sequence[int], times: Sequence[int], info: VideoInfo
) -> list[Piece]:
    frames = itertools.cycle(Scene(64, 64, 24).render()[0])
    made, first = [], 0
    for number, length in enumerate(lengths):
        path = folder / f"{number}.mp4"
        with closing(VideoWriter(path, info, options=OutputOptions(codec))) as writer:
            for index in range(first, first + length):
                step = times[index + 1] - times[index]
                writer.write(next(frames), times[index] - times[first], step)
        made.append(Piece(path, times[first] * info.time_base, ()))
        first += length
    return made


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1", "ffv1"])
@pytest.mark.parametrize("rate", [None, Fraction(30000, 1001)])
def test_dts_increase_across_pieces_of_any_length(
    tmp_path: Path, codec: str, rate: Fraction | None
) -> None:
    lengths = (5, 1, 1, 2, 9, 3, 1, 4, 1)
    steps = [1] * 27 if rate else random.Random(3).choices((1, 2, 5, 40), k=27)
    times = list(itertools.accumulate(steps, initial=0))
    base = 1 / rate if rate else Fraction(1, 90)
    info = VideoInfo(64, 64, rate, base)
    made = write_pieces(tmp_path, codec, lengths, times, info)
    target = tmp_path / "joined.mp4"
    with PartFile(target, force=False) as part:
        join(made, part, rate=rate, audio=None)
    found = look(target)
    assert found.times == [time * base for time in times[:-1]]
    assert found.length is not None
    if rate:  # MP4 adds durations up in coding order, so for others this is no sum
        assert abs(found.length - times[-1] * base) < Fraction(1, 1000)
    assert min(np.diff(found.dts)) > 0 and min(found.late) >= 0


def test_pieces_that_overlap_or_differ_are_not_joined(tmp_path: Path) -> None:
    info = VideoInfo(64, 64, Fraction(24), Fraction(1, 24))
    made = write_pieces(tmp_path, "h264", (3, 3), range(7), info)
    (tmp_path / "other").mkdir()
    other = write_pieces(tmp_path / "other", "hevc", (3, 3), range(7), info)
    overlap = Piece(made[1].path, Fraction(1, 24), ())
    for bad, words in ((other[1], "another way"), (overlap, "overlap")):
        target = tmp_path / "joined.mp4"
        with pytest.raises(MediaError, match=words), PartFile(target, force=False) as part:
            join([made[0], bad], part, rate=info.frame_rate, audio=None)
        assert not target.exists()


def test_names_that_look_like_addresses_are_files(
    steady: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("http:out.mp4", "-y.mp4", "a b%d.mp4"):
        run(steady, Path(name))
        assert names(tmp_path) == [name]
        Path(name).unlink()


# --- going on


def test_an_interrupted_decode_goes_on_with_finished_pieces(steady: Path, tmp_path: Path) -> None:
    whole, target = tmp_path / "whole.mp4", tmp_path / "out.mp4"
    assert run(steady, whole).resumed_segments == 0
    interrupt(steady, target, 2)
    assert names(tmp_path) == [folder_of(target).name, "whole.mp4"]
    assert len(names(folder_of(target))) == 2
    interrupt(steady, target, 4)
    report = run(steady, target)
    assert report.resumed_segments == 4 and report.segments == 6 and report.frames == FRAMES
    assert target.read_bytes() == whole.read_bytes()
    assert names(tmp_path) == ["out.mp4", "whole.mp4"]


def test_an_interrupt_in_the_first_segment_leaves_nothing(steady: Path, tmp_path: Path) -> None:
    interrupt(steady, tmp_path / "out.mp4", 0)
    assert names(tmp_path) == []


def test_an_interrupted_join_is_made_again(
    steady: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.mp4"

    def stop(_: Any, part: PartFile, **__: Any) -> None:
        part.sink.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pieces_module, "join", stop)
        run(steady, target)
    assert names(tmp_path) == [folder_of(target).name]
    (tmp_path / "out.mp4.part").write_bytes(b"left by a killed join")
    assert run(steady, target).resumed_segments == 6
    assert len(look(target).times) == FRAMES and names(tmp_path) == ["out.mp4"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{"codec": "av1"}, {"quality": 30}, {"steps": 2}, {"start": 0.1}, {"duration": 2.0}],
)
def test_a_changed_option_does_not_reuse_pieces(
    steady: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    fresh, target = tmp_path / "fresh.mp4", tmp_path / "out.mp4"
    interrupt(steady, target, 2)
    assert run(steady, target, **change).resumed_segments == 0
    run(steady, fresh, **change)
    assert target.read_bytes() == fresh.read_bytes()
    assert names(tmp_path) == ["fresh.mp4", "out.mp4"]


def test_another_tier_does_not_reuse_pieces(steady: Path, tmp_path: Path) -> None:
    models = write_models(tmp_path / "models")
    target = tmp_path / "out.mp4"
    interrupt(steady, target, 2)
    runtime = Runtime(device="cpu", models_dir=models, any_decoder=True)
    with steady.open("rb") as opened:
        entry = next(iter(StreamReader(opened)))
    report = run(steady, target, tier="small", runtime=runtime, duration=entry.frames / 24)
    assert report.resumed_segments == 0 and report.frames == entry.frames


def test_another_stream_does_not_reuse_pieces(steady: Path, uneven: Path, tmp_path: Path) -> None:
    interrupt(steady, tmp_path / "out.mp4", 2)
    assert run(uneven, tmp_path / "out.mp4").resumed_segments == 0


def test_force_is_no_changed_option(steady: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    interrupt(steady, target, 2)
    target.write_bytes(b"mine")
    with pytest.raises(UsageError, match="--force"):
        run(steady, target)
    assert target.read_bytes() == b"mine" and len(names(folder_of(target))) == 2
    assert run(steady, target, force=True).resumed_segments == 2
    assert names(tmp_path) == ["out.mp4"]


def test_a_damaged_piece_is_made_again(steady: Path, tmp_path: Path) -> None:
    whole, target = tmp_path / "whole.mp4", tmp_path / "out.mp4"
    run(steady, whole)
    interrupt(steady, target, 3)
    piece = sorted(folder_of(target).iterdir())[1]
    data = bytearray(piece.read_bytes())
    data[len(data) // 2] ^= 1
    piece.write_bytes(data)
    assert run(steady, target).resumed_segments == 2
    assert target.read_bytes() == whole.read_bytes()


def test_a_damaged_stream_keeps_the_pieces_before_the_damage(steady: Path, tmp_path: Path) -> None:
    target, copy = tmp_path / "out.mp4", tmp_path / "copy.svc"
    with steady.open("rb") as opened:
        fourth = list(StreamReader(opened))[3]
    data = bytearray(steady.read_bytes())
    data[fourth.offset + fourth.chunk_bytes // 2] ^= 4
    copy.write_bytes(data)
    with pytest.raises(BitstreamError):
        run(copy, target)
    assert not target.exists() and len(names(folder_of(target))) == 3
    assert run(steady, target).resumed_segments == 3
    assert names(tmp_path) == ["copy.svc", "out.mp4"]


# --- the work folder


def test_the_work_folder_is_private(steady: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        interrupt(steady, tmp_path / "out.mp4", 1)
    finally:
        os.umask(before)
    assert folder_of(tmp_path / "out.mp4").stat().st_mode & 0o777 == 0o700


def plant_link(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(folder.parent / "elsewhere")


def plant_open_folder(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


@pytest.mark.parametrize("plant", [plant_link, plant_open_folder, Path.touch])
def test_a_folder_that_is_not_ours_is_refused(
    steady: Path, tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    folder = folder_of(tmp_path / "out.mp4")
    plant(folder)
    before = names(tmp_path)
    with pytest.raises(UsageError, match="in the way"):
        run(steady, tmp_path / "out.mp4")
    assert names(tmp_path) == before and (folder.is_file() or not names(folder))


def test_files_of_others_in_the_work_folder_stay(steady: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "out.mp4")
    folder.mkdir(mode=0o700)
    (folder / "diary.txt").write_text("mine")
    run(steady, tmp_path / "out.mp4")
    assert names(folder) == ["diary.txt"]


def test_two_decodes_to_one_output_do_not_meet(steady: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    refused = []

    def second(done: int, _: int) -> None:
        if done == 20:
            with pytest.raises(ResourceError, match="another process"):
                run(steady, target)
            refused.append(done)

    with steady.open("rb") as opened:
        decode(opened, target, DecodeJob(tier="preview", resume=True), on_frames=second)
    assert refused and len(look(target).times) == FRAMES


@pytest.mark.parametrize(
    ("name", "job", "words"),
    [
        ("out.webm", {"codec": "av1"}, "joined"),
        ("out.mov", {"codec": "ffv1"}, "ffv1 goes into"),
        ("out", {}, "joined"),
        ("out.mp4", {"salvage": True}, "do not go together"),
        (".", {}, "joined"),
    ],
)
def test_what_cannot_be_resumed_is_refused_before_any_work(
    steady: Path, tmp_path: Path, name: str, job: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        run(steady, tmp_path / name, **job)
    assert names(tmp_path) == []


def test_a_pipe_cannot_be_resumed(steady: Path, tmp_path: Path) -> None:
    job = DecodeJob(tier="preview", resume=True)
    with (
        (tmp_path / "pipe").open("wb") as pipe,
        steady.open("rb") as opened,
        pytest.raises(UsageError, match="pipe"),
    ):
        decode(opened, pipe, job)
    ended = semvc_process("decode", steady, "-", "--tier", "preview", "--resume")
    assert ended.returncode == 2 and b"pipe" in ended.stderr and not ended.stdout


@pytest.mark.slow
def test_a_full_disk_keeps_pieces_and_says_how_to_go_on(steady: Path, tmp_path: Path) -> None:
    whole, target = tmp_path / "whole.mp4", tmp_path / "out.mp4"
    run(steady, whole)
    words = ("decode", steady, target, "--tier", "preview", "--resume")
    most = whole.stat().st_size * 2 // 3  # enough for each piece

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    ended = semvc_process(*words, preexec_fn=limit)
    assert ended.returncode == 8, ended.stderr
    assert b"6 finished segments are kept" in ended.stderr and b"--resume" in ended.stderr
    assert names(tmp_path) == [folder_of(target).name, "whole.mp4"]
    assert semvc_process(*words).returncode == 0
    assert target.read_bytes() == whole.read_bytes()


# --- kill -9


def kill_and_resume(stream: Path, folder: Path, whole: bytes, seed: int) -> int:
    """Kill a decode up to three times and finish it; return how often it was interrupted."""
    draw = random.Random(seed)
    target = folder / f"{seed}.mp4"
    words = ("decode", stream, target, "--tier", "preview", "--resume", "--quiet")
    killed = 0
    for _ in range(draw.randint(1, 3)):
        killed += kill(words, target, draw.randint(0, 6), draw.uniform(0, 0.05))
        if target.exists():  # killed while tidying up, or too late
            break
    else:
        ended = semvc_process(*words)
        assert ended.returncode == 0, ended.stderr
        assert names(folder) == [target.name]
    assert target.read_bytes() == whole
    return killed


def kill(words: Sequence[Any], target: Path, pieces: int, wait: float) -> bool:
    """Run semvc until `pieces` are there, `wait` seconds longer at most; True if it was killed."""
    with start(*words) as process:
        wait_until(
            lambda: (
                process.poll() is not None or len(list(folder_of(target).glob("0*.mp4"))) >= pieces
            )
        )
        time.sleep(wait)
        process.kill()
        process.communicate()
    return process.returncode == -9


def kill_often(stream: Path, tmp_path: Path, seeds: range) -> int:
    run(stream, tmp_path / "whole.mp4")
    whole = (tmp_path / "whole.mp4").read_bytes()
    killed = 0
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        killed += kill_and_resume(stream, folder, whole, seed)
    return killed


@pytest.mark.slow
def test_a_killed_decode_resumes_to_the_same_bytes(steady: Path, tmp_path: Path) -> None:
    assert kill_often(steady, tmp_path, range(4)) >= 2


@pytest.mark.nightly
def test_a_killed_decode_resumes_to_the_same_bytes_often(steady: Path, tmp_path: Path) -> None:
    assert kill_often(steady, tmp_path, range(100, 200)) >= 50
