"""Whole files through the library: what comes back, targets, resuming, ranges, salvage."""

from __future__ import annotations

import io
import random
import subprocess
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from modelfolder import write_models
from oracles import overhead_of
from program import FAST, PROGRAM, environment, semvc_process, size, start, wait_until
from scene import Scene, Sound, beep_times, beeps, read_sound, write_video

from semvc.bitstream.container import Segment, StreamReader, StreamWriter, probe, verify
from semvc.bitstream.headers import AUDIO_SECTIONS, SectionType
from semvc.decoder import DecodeJob, decode
from semvc.encoder import EncodeJob, encode
from semvc.errors import BitstreamError, UsageError
from semvc.media.reader import VideoReader
from semvc.rate import Target
from semvc.report import Report
from semvc.types import EncodeOptions, Runtime

UInt8 = npt.NDArray[np.uint8]
OPTIONS = EncodeOptions(preset=12)
PREVIEW = DecodeJob(tier="preview", codec="ffv1", force=True)

PICTURES = {SectionType.GRAIN, SectionType.BASE_AV1}  # sections of silent footage


def watch(path: Path) -> tuple[UInt8, list[Fraction]]:
    """Frames uint8 [T, H, W, 3] of a video and their times in seconds."""
    with VideoReader(path) as reader:
        frames, pts = zip(*reader, strict=True)
        return np.stack(frames), [int(p) * reader.info.time_base for p in pts]


def play(stream: Path, target: Path, **changes: Any) -> Report:
    """Decode a stream at tier preview, without loss after that."""
    job = DecodeJob(**{"tier": "preview", "codec": "ffv1", "force": True, **changes})
    with stream.open("rb") as opened:
        return decode(opened, target, job)


def through(source: Path, folder: Path, options: EncodeOptions = OPTIONS) -> tuple[Path, Path]:
    """Encode and decode a video; the stream and the reconstruction."""
    stream, video = folder / "through.svc", folder / "through.mp4"
    encode(source, stream, options)
    play(stream, video)
    return stream, video


def psnr(a: UInt8, b: UInt8) -> float:
    error = float(np.square(a.astype(np.float64) - b).mean())
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def segments(stream: Path) -> list[Segment]:
    with stream.open("rb") as opened:
        return list(StreamReader(opened))


# --- round trips


def test_a_clip_comes_back_with_its_frames_times_and_sound(clip: Path, tmp_path: Path) -> None:
    _, video = through(clip, tmp_path, EncodeOptions(preset=12, quality=63))
    before, after = watch(clip), watch(video)
    assert after[0].shape == before[0].shape and after[1] == before[1]
    assert psnr(before[0], after[0]) > 25
    assert beep_times(read_sound(video)) == pytest.approx([0.0, 0.5], abs=0.01)


def test_higher_quality_is_nearer_and_larger(clip: Path, tmp_path: Path) -> None:
    found = []
    for quality in (5.0, 30.0, 55.0):
        stream, video = through(clip, tmp_path, EncodeOptions(preset=12, quality=quality))
        found.append((stream.stat().st_size, psnr(watch(clip)[0], watch(video)[0])))
        stream.unlink()
    assert found == sorted(found)


@pytest.mark.parametrize(("width", "height"), [(64, 48), (63, 47), (16, 16), (17, 96), (130, 18)])
def test_every_size_comes_back(width: int, height: int, tmp_path: Path) -> None:
    frames = Scene(width, height, 5).render()[0]
    source = write_video(tmp_path / "a.mkv", frames, codec="ffv1", pixels="bgr0")
    _, video = through(source, tmp_path, EncodeOptions(preset=12, quality=63))
    assert watch(video)[0].shape == frames.shape
    assert psnr(frames, watch(video)[0]) > 20


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("step", [1, 8])
def test_every_base_layer_comes_back(factor: int, step: int, clip: Path, tmp_path: Path) -> None:
    options = EncodeOptions(preset=12, factor=factor, step=step)
    _, video = through(clip, tmp_path, options)
    assert watch(video)[0].shape == watch(clip)[0].shape


def test_a_clip_of_one_frame_comes_back(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", Scene(64, 48, 1).render()[0])
    stream, video = through(source, tmp_path)
    assert watch(video)[0].shape == (1, 48, 64, 3)
    assert [(s.start, s.frames) for s in segments(stream)] == [(0, 1)]


def test_varying_times_come_back_exactly(tmp_path: Path) -> None:
    frames = Scene(64, 48, 30).render()[0]
    steps = np.random.default_rng(3).integers(500, 3000, 30)
    times = [int(t) for t in np.cumsum(steps) - steps[0]]
    source = write_video(tmp_path / "a.mp4", frames, times=times)
    stream, video = through(source, tmp_path)
    assert watch(video)[1] == watch(source)[1]
    assert SectionType.TIMING in segments(stream)[0].sections


def test_a_rate_counts_the_seconds_that_frames_are_shown(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", Scene(64, 48, 40).render()[0], fps=1000)
    report = encode(source, tmp_path / "a.svc", OPTIONS)
    assert (
        report.video_seconds == 0.04 == play(tmp_path / "a.svc", tmp_path / "b.mp4").video_seconds
    )
    aimed = EncodeJob(target=Target("kbps", report.to_json()["kbps"]), force=True)
    again = encode(source, tmp_path / "a.svc", OPTIONS, job=aimed)
    assert abs(again.bytes / report.bytes - 1) < 0.05


def test_sound_left_out_at_the_end_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semvc.media.audio.MAX_LAST_SECONDS", 1)
    source = write_video(tmp_path / "a.mp4", Scene(64, 48, 42).render()[0], sound=Sound(beeps(4)))
    one_segment = EncodeOptions(preset=12, segment_seconds=10)
    report = encode(source, tmp_path / "a.svc", one_segment)
    (note,) = report.notes
    assert note.startswith("sound more than 1 seconds after the video") and "left out" in note
    play(tmp_path / "a.svc", tmp_path / "b.mp4")
    assert np.allclose(beep_times(read_sound(tmp_path / "b.mp4")), np.arange(6) / 2, atol=0.04)


def test_segments_begin_where_scenes_do(long_stream: Path) -> None:
    assert [segment.start for segment in segments(long_stream)] == [0, 24, 48, 72, 96]


def test_a_silent_video_stays_silent(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", Scene(64, 48, 8).render()[0])
    stream, video = through(source, tmp_path)
    assert set(segments(stream)[0].sections) == PICTURES
    with VideoReader(video) as reader:
        assert reader.audio is None


def test_sound_can_be_left_out_or_copied(clip: Path, tmp_path: Path) -> None:
    stream, _ = through(clip, tmp_path, EncodeOptions(preset=12, audio="none"))
    assert set(segments(stream)[0].sections) == PICTURES
    stream.unlink()
    stream, video = through(clip, tmp_path, EncodeOptions(preset=12, audio="copy"))
    assert SectionType.AUDIO_COPY in segments(stream)[0].sections
    assert beep_times(read_sound(video)) == pytest.approx([0.0, 0.5], abs=0.01)


def test_caption_sketch_and_title_travel_along(clip: Path, tmp_path: Path) -> None:
    options = EncodeOptions(preset=12, caption="a room", sketch=True, title="t")
    stream, _ = through(clip, tmp_path, options)
    kinds = PICTURES | {SectionType.CAPTION, SectionType.SKETCH, SectionType.AUDIO_OPUS}
    assert set(segments(stream)[0].sections) == kinds
    with stream.open("rb") as opened:
        assert probe(opened).header.title == "t"


def test_containers_cost_what_the_format_says(
    scenes: Path, long_stream: Path, tmp_path: Path
) -> None:
    options = EncodeOptions(preset=12, caption="a room", sketch=True, quality=50, segment_seconds=1)
    encode(scenes, tmp_path / "a.svc", options)
    for path in (tmp_path / "a.svc", long_stream):
        with path.open("rb") as opened:
            info = probe(opened)
        once, each = overhead_of(info)
        assert info.overhead_bytes == once + sum(each) and once <= 61
        for row, cost in zip(info.table, each, strict=True):
            sizes = dict(row.sections)
            large = [kind for kind in sizes if kind not in AUDIO_SECTIONS][:-1]
            more = sum(sizes[kind] >= 128 for kind in large)
            assert cost <= 13 + (row.frames < info.header.segment_frames) + more


def test_the_small_tier_runs_with_a_model_of_ones_own(clip: Path, tmp_path: Path) -> None:
    models = write_models(tmp_path / "models")
    stream = tmp_path / "a.svc"
    encode(clip, stream, EncodeOptions(preset=12, models_dir=models))
    pictures = []
    for steps in (1, 1, 2):
        job = DecodeJob(codec="ffv1", force=True, steps=steps)
        runtime = Runtime(device="cpu", dtype="float32", models_dir=models)
        with stream.open("rb") as opened:
            decode(opened, tmp_path / "a.mp4", job, runtime=runtime)
        pictures.append(watch(tmp_path / "a.mp4")[0])
    assert pictures[0].shape == (24, 48, 64, 3)
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_the_library_takes_open_files_too(clip: Path, stream: Path) -> None:
    sink = io.BytesIO()
    with clip.open("rb") as source:
        encode(source, sink, OPTIONS)
    assert verify(io.BytesIO(sink.getvalue())).ok
    video = io.BytesIO()
    report = decode(io.BytesIO(sink.getvalue()), video, DecodeJob(tier="preview"))
    assert report.frames == 24 and b"moof" in video.getvalue()


def test_progress_counts_up_to_the_last_frame(clip: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    encode(clip, tmp_path / "a.svc", OPTIONS, on_frames=lambda *both: seen.append(both))
    assert seen == [(24, 24)]
    with (tmp_path / "a.svc").open("rb") as opened:
        decode(opened, tmp_path / "a.mp4", PREVIEW, on_frames=lambda *both: seen.append(both))
    assert seen[-1] == (24, 24) and seen[1:] == sorted(seen[1:])


@pytest.mark.parametrize(
    ("begin", "length", "last"),
    [(1.5, 1.0, (24, 24)), (4.5, None, (12, 12)), (4.5, 9.0, (12, 12)), (0.0, None, (120, 120))],
)
def test_progress_of_a_range_counts_what_is_shown(
    begin: float, length: float | None, last: tuple[int, int], long_stream: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    job = DecodeJob(tier="preview", codec="ffv1", start=begin, duration=length)
    with long_stream.open("rb") as opened:
        decode(opened, tmp_path / "a.mp4", job, on_frames=lambda *both: seen.append(both))
    assert seen[-1] == last and seen == sorted(seen)
    assert {total for _, total in seen} == {last[1]}


# --- targets


@pytest.mark.parametrize(("kind", "value"), [("bpp", 0.12), ("kbps", 14.0), ("size", 9000.0)])
def test_targets_are_hit_within_five_percent(
    kind: str, value: float, scenes: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.svc"
    options = EncodeOptions(preset=12, factor=1, step=1)
    report = encode(scenes, path, options, job=EncodeJob(target=Target(kind, value)))
    row = report.to_json()
    found = {"bpp": row["video_bpp"], "kbps": row["kbps"], "size": path.stat().st_size}[kind]
    assert found == pytest.approx(value, rel=0.05)
    assert row["notes"] == []


def test_a_target_above_all_that_can_be_used_is_missed_with_a_note(
    clip: Path, tmp_path: Path
) -> None:
    job = EncodeJob(target=Target("bpp", 50.0))
    report = encode(clip, tmp_path / "a.svc", OPTIONS, job=job)
    assert report.qualities == [63.0]
    assert len(report.notes) == 1 and "no quality needs more" in report.notes[0]


def test_a_target_below_the_floor_says_what_is_possible(clip: Path, tmp_path: Path) -> None:
    job = EncodeJob(target=Target("size", 200.0))
    with pytest.raises(UsageError, match=r"the smallest stream .* has about \d+ bytes"):
        encode(clip, tmp_path / "a.svc", OPTIONS, job=job)
    assert list(tmp_path.iterdir()) == []


# --- the same again


@pytest.mark.parametrize("target", [None, Target("kbps", 14.0)])
def test_deterministic_encodes_are_equal(target: Target | None, clip: Path, tmp_path: Path) -> None:
    job = EncodeJob(deterministic=True, target=target)
    for name in ("a", "b"):
        encode(clip, tmp_path / name, OPTIONS, job=job)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_encodes_differ_only_in_salt_and_checksums(clip: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        encode(clip, tmp_path / name, OPTIONS)
    a, b = (tmp_path / name for name in ("a", "b"))
    assert a.read_bytes() != b.read_bytes() and len(a.read_bytes()) == len(b.read_bytes())
    assert [s.sections for s in segments(a)] == [s.sections for s in segments(b)]


@pytest.mark.slow
@pytest.mark.parametrize("rate", [(), ("--kbps", "14")])
def test_a_killed_encode_goes_on_to_the_same_file(
    rate: tuple[str, ...], scenes: Path, tmp_path: Path
) -> None:
    straight, target = tmp_path / "straight.svc", tmp_path / "a.svc"
    words = ("encode", scenes, "--deterministic", *FAST, *rate)
    assert semvc_process(*words, straight).returncode == 0
    part, rng = target.with_name("a.svc.part"), random.Random(8)
    for _ in range(3):
        whole = straight.stat().st_size
        goal = rng.randrange(min(max(1, size(part)), whole - 1), whole)
        child = start(*words, target, "--resume")
        wait_until(lambda: size(part) >= goal or child.poll() is not None)  # noqa: B023
        child.kill()
        child.communicate()
        if rng.random() < 0.5 and part.exists():  # what a crash of the machine may leave
            part.write_bytes(part.read_bytes()[: -rng.randrange(1, 40)] + bytes(50))
    if not target.exists():
        done = semvc_process(*words, target, "--resume", "--json")
        assert done.returncode == 0, done.stderr
    assert target.read_bytes() == straight.read_bytes()
    assert not part.exists()


def interrupted(source: Path, target: Path, limit: int) -> Path:
    """Encode until `limit` bytes are written; return the part that is left."""
    shell = 'ulimit -f "$1"; shift; exec "$@"'
    command = [*PROGRAM, "encode", str(source), str(target), *FAST]
    done = subprocess.run(
        ["bash", "-c", shell, "-", str(limit // 1024), *command],
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 8, done.stderr
    return target.with_name(target.name + ".part")


def test_resuming_another_input_is_refused_and_harms_nothing(scenes: Path, tmp_path: Path) -> None:
    other = write_video(
        tmp_path / "other.mp4", Scene(64, 48, 120, seed=9).render()[0], sound=Sound(beeps(5.0))
    )
    part = interrupted(scenes, tmp_path / "a.svc", 4096)
    kept = part.read_bytes()[:3000]  # what follows is torn
    options, job = EncodeOptions(preset=12, segment_seconds=1), EncodeJob(resume=True)
    for source, changed in ((other, options), (scenes, EncodeOptions(preset=12, quality=10))):
        with pytest.raises(UsageError, match="from another input or with other options"):
            encode(source, tmp_path / "a.svc", changed, job=job)
        assert part.read_bytes().startswith(kept)
    report = encode(scenes, tmp_path / "a.svc", options, job=job)
    assert report.notes == ["continued after 2 finished segments"]
    assert report.to_json()["sections"] == section_bytes(tmp_path / "a.svc")


def section_bytes(stream: Path) -> dict[str, int]:
    total: Counter[str] = Counter()
    for segment in segments(stream):
        total.update({kind.name.lower(): len(data) for kind, data in segment.sections.items()})
    return dict(total)


# --- ranges


@pytest.mark.parametrize(
    ("begin", "length", "first", "count", "touched"),
    [
        (0.0, 1.0, 0, 24, 1),
        (1.0, None, 24, 96, 4),
        (1.5, 1.0, 36, 24, 2),
        (0.7, 0.01, 16, 1, 1),
        (4.99, 9.0, 119, 1, 1),
    ],
)
def test_a_range_decodes_the_segments_it_touches(
    begin: float,
    length: float | None,
    first: int,
    count: int,
    touched: int,
    long_stream: Path,
    tmp_path: Path,
) -> None:
    play(long_stream, tmp_path / "all.mp4")
    report = play(long_stream, tmp_path / "part.mp4", start=begin, duration=length)
    assert (report.frames, report.segments) == (count, touched)
    assert report.video_seconds == pytest.approx(count / 24)
    part, times = watch(tmp_path / "part.mp4")
    assert np.array_equal(part, watch(tmp_path / "all.mp4")[0][first : first + count])
    assert times[0] == 0


def test_sound_of_a_range_is_in_step(long_stream: Path, tmp_path: Path) -> None:
    play(long_stream, tmp_path / "a.mp4", start=1.25, duration=2.0)
    sound = read_sound(tmp_path / "a.mp4")
    assert beep_times(sound) == pytest.approx([0.25, 0.75, 1.25, 1.75], abs=0.01)
    assert len(sound) / 48000 == pytest.approx(2.0, abs=0.1)


def test_a_range_of_varying_times_goes_by_the_times(tmp_path: Path) -> None:
    frames = Scene(64, 48, 40).render()[0]
    times = [*range(0, 20_000, 1000), *range(20_000, 100_000, 4000)]  # 24 and 6 frames a second
    source = write_video(tmp_path / "a.mp4", frames, times=times)
    encode(source, tmp_path / "a.svc", EncodeOptions(preset=12, segment_seconds=1))
    play(tmp_path / "a.svc", tmp_path / "all.mp4")
    report = play(tmp_path / "a.svc", tmp_path / "part.mp4", start=2.0, duration=1.0)
    everything, part = watch(tmp_path / "all.mp4"), watch(tmp_path / "part.mp4")
    first = max(i for i, t in enumerate(everything[1]) if t <= 2)
    assert report.frames == 6 and report.video_seconds == pytest.approx(1.0, abs=0.01)
    assert np.array_equal(part[0], everything[0][first : first + 6])
    assert part[1] == [t - everything[1][first] for t in everything[1][first : first + 6]]


def test_a_segment_alone_decodes_as_it_does_in_place(long_stream: Path, tmp_path: Path) -> None:
    play(long_stream, tmp_path / "all.mp4")
    everything = watch(tmp_path / "all.mp4")[0]
    with long_stream.open("rb") as opened:
        reader = StreamReader(opened)
        segment = reader.read(3)
    with (tmp_path / "one.svc").open("wb") as sink:
        writer = StreamWriter(sink, reader.header)
        writer.write(segment.frames, segment.sections, segment.state_check)
        writer.finish()
    play(tmp_path / "one.svc", tmp_path / "one.mp4")
    assert np.array_equal(watch(tmp_path / "one.mp4")[0], everything[72:96])


# --- damage


@pytest.fixture
def torn(long_stream: Path, tmp_path: Path) -> Path:
    """The long stream with its third segment damaged."""
    data, middle = bytearray(long_stream.read_bytes()), segments(long_stream)[2]
    data[middle.offset + middle.chunk_bytes // 2] ^= 16
    (tmp_path / "torn.svc").write_bytes(data)
    return tmp_path / "torn.svc"


def test_damage_ends_a_decode_and_leaves_no_file(torn: Path, tmp_path: Path) -> None:
    with pytest.raises(BitstreamError, match="checksum does not hold"):
        play(torn, tmp_path / "a.mp4")
    assert not (tmp_path / "a.mp4").exists()


def test_salvage_holds_the_picture_over_a_gap(
    torn: Path, long_stream: Path, tmp_path: Path
) -> None:
    play(long_stream, tmp_path / "whole.mp4")
    report = play(torn, tmp_path / "a.mp4", salvage=True)
    assert (report.gaps, report.frames, report.segments) == (1, 120, 4)
    whole, found = watch(tmp_path / "whole.mp4"), watch(tmp_path / "a.mp4")
    assert found[1] == whole[1]
    assert np.array_equal(found[0][:48], whole[0][:48])
    assert np.array_equal(found[0][72:], whole[0][72:])
    assert (found[0][48:72] == whole[0][47]).all()
    times = beep_times(read_sound(tmp_path / "a.mp4"))
    assert times == pytest.approx([0, 0.5, 1, 1.5, 2, 3, 3.5, 4, 4.5], abs=0.07)  # packets overlap


def test_a_gap_outside_the_range_does_not_count(torn: Path, tmp_path: Path) -> None:
    assert play(torn, tmp_path / "a.mp4", salvage=True, duration=1.0).gaps == 0
    assert play(torn, tmp_path / "a.mp4", salvage=True, start=3.0).gaps == 0
    assert play(torn, tmp_path / "a.mp4", salvage=True, start=2.5).gaps == 1


def test_salvage_of_a_cut_file_has_the_announced_length(long_stream: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.svc").write_bytes(long_stream.read_bytes()[:4000])
    report = play(tmp_path / "cut.svc", tmp_path / "a.mp4", salvage=True)
    assert (report.gaps, report.frames) == (1, 120)


def test_integers_that_are_not_those_coded_are_noticed(long_stream: Path, tmp_path: Path) -> None:
    found = segments(long_stream)
    with long_stream.open("rb") as opened, (tmp_path / "wrong.svc").open("wb") as sink:
        writer = StreamWriter(sink, StreamReader(opened).header)
        for segment in found:
            check = segment.state_check ^ (segment.index == 2)
            writer.write(segment.frames, segment.sections, check)
        writer.finish()
    with pytest.raises(BitstreamError, match="segment 2: the decoded integers are not those"):
        play(tmp_path / "wrong.svc", tmp_path / "a.mp4")
    report = play(tmp_path / "wrong.svc", tmp_path / "a.mp4", salvage=True)
    assert (report.gaps, report.frames) == (1, 120)


def test_salvage_ends_with_code_9(torn: Path, tmp_path: Path) -> None:
    done = semvc_process("decode", torn, tmp_path / "a.mp4", "--tier", "preview", "--salvage")
    assert (done.returncode, done.stdout) == (9, b"")
    assert b"1 gap was filled with held frames" in done.stderr
