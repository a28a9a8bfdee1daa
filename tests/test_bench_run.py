"""A benchmark as a whole: files in, a report out; what is done stays done; a stop is clean."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from program import ROOT, environment, start, wait_until
from scene import Scene, Sound, beeps, write_video

from semvc.bench import anchors, pictures, plan, run
from semvc.bench.children import Children, Stopped
from semvc.bench.metrics import luma, psnr
from semvc.bench.rows import Report, Row
from semvc.bench.suite import Anchor, Clip, Suite, load
from semvc.errors import MediaError, UsageError
from semvc.media import elementary
from semvc.media.reader import VideoReader

FAST = {
    "svtav1": "12",
    "svtav1-vq": "12",
    "x265": "ultrafast",
    "x264": "ultrafast",
    "vp9": "8",
    "vvenc": "faster",
}
SUITE = Suite(
    "toy",
    (Clip(file="whole.mp4"), Clip(file="ranged.mp4", name="part", start=3, frames=8)),
    qualities=(10.0, 40.0),
    tiers=("preview",),
    anchors=(
        Anchor("svtav1", (30.0, 60.0), preset="12", sizes=("full", "half"), divisors=(1, 2)),
        Anchor("x265", (30.0, 45.0), preset="ultrafast", sizes=("half",)),
    ),
    metrics=("psnr_y", "flicker_db", "lpips"),
    every=3,
    encode=("--preset", "12"),
)
ROWS = 2 * (2 + 8)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    video = Scene(96, 64, 14).render()[0]
    write_video(folder / "whole.mp4", video, sound=Sound(beeps(14 / 24)))
    write_video(folder / "ranged.mp4", video[::-1])
    return folder


@pytest.fixture(scope="module")
def done(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[run.Job, Report]:
    job = run.Job(clips, tmp_path_factory.mktemp("out"))
    return job, run.run(SUITE, job)


def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is run from now on."""
    seen: list[list[str]] = []
    whole = Children.run

    def noted(self: Children, command: Any) -> Any:
        seen.append([str(word) for word in command])
        return whole(self, command)

    monkeypatch.setattr(Children, "run", noted)
    return seen


def row(report: Report, clip: str, codec: str, setting: float, **more: Any) -> Row:
    wanted = {
        "clip": clip,
        "codec": codec,
        "setting": setting,
        "size": "full",
        "divisor": 1,
        **more,
    }
    (found,) = (r for r in report.rows if all(getattr(r, k) == v for k, v in wanted.items()))
    return found


# --- what a report says


@pytest.mark.slow
def test_every_point_has_a_row_or_a_reason(done: tuple[run.Job, Report]) -> None:
    _, report = done
    assert len(report.rows) == ROWS
    assert len(report.skipped) == 4 and {s.codec for s in report.skipped} == {"x265"}
    assert all("sides of 64" in item.reason for item in report.skipped)
    assert report.clips == ("whole", "part")
    assert report.curves == ("semvc disco preview", "svtav1")
    for found in report.rows:
        assert set(found.metrics) == {"psnr_y", "flicker_db"}
        assert "--metric-weights" in found.missing["lpips"]
    assert any("lpips" in note for note in report.notes)


@pytest.mark.slow
def test_bytes_are_those_of_the_files(done: tuple[run.Job, Report]) -> None:
    job, report = done
    streams = {p.stat().st_size for p in (job.out / "coded").glob("*.svc")}
    for found in report.rows:
        if found.codec == "semvc":
            assert found.bytes + found.audio_bytes in streams
            parts = sum(found.sections.values()) + found.overhead_bytes
            assert parts == found.bytes + found.audio_bytes and found.overhead_bytes > 0
        else:
            size = (job.out / found.rebuilt).stat().st_size
            assert 0 < size - found.bytes <= 2 * found.frames  # temporal delimiters of AV1
        pixels = found.width * found.height * found.frames
        assert found.bpp == pytest.approx(8 * found.bytes / pixels)
        assert found.kbps == pytest.approx(8 * found.bytes / found.seconds / 1000)
    assert row(report, "whole", "semvc", 10.0).audio_bytes > 0  # not cut: its sound is there
    assert row(report, "part", "semvc", 10.0).audio_bytes == 0


@pytest.mark.slow
def test_quality_falls_with_the_setting_and_pictures_are_where_rows_say(
    done: tuple[run.Job, Report], clips: Path
) -> None:
    job, report = done
    better, worse = (row(report, "part", "svtav1", crf) for crf in (30.0, 60.0))
    assert better.metrics["psnr_y"] > worse.metrics["psnr_y"] + 2 and better.bpp > worse.bpp
    originals = list(pictures.original(job.out, better))
    with VideoReader(clips / "ranged.mp4") as reader:
        expected = [frame for frame, _ in reader][3:11]
    assert len(originals) == 8 and np.array_equal(originals, expected)
    for found in (better, row(report, "part", "semvc", 40.0)):
        rebuilt = np.array(list(pictures.rebuilt(job.out, found)))
        assert rebuilt.shape == np.shape(expected)
        assert np.abs(rebuilt.astype(int) - expected).mean() < 12


@pytest.mark.slow
def test_a_lower_frame_rate_holds_frames(done: tuple[run.Job, Report]) -> None:
    job, report = done
    found = list(pictures.rebuilt(job.out, row(report, "part", "svtav1", 30.0, divisor=2)))
    assert all(np.array_equal(found[t], found[t + 1]) for t in range(0, 8, 2))
    assert not np.array_equal(found[1], found[2])


@pytest.mark.slow
def test_costs_are_positive(done: tuple[run.Job, Report]) -> None:
    for found in done[1].rows:
        assert found.encode_fps and found.encode_fps > 0
        assert found.encode_rss_bytes and found.encode_rss_bytes > 1e7
        if found.codec == "semvc":
            assert found.startup_s and found.startup_s > 0
            assert found.decode_rss_bytes and found.decode_rss_bytes > 1e7


@pytest.mark.slow
def test_the_report_on_disk_is_the_one_returned(done: tuple[run.Job, Report]) -> None:
    job, report = done
    assert Report.from_json(json.loads((job.out / "report.json").read_text("utf-8"))) == (
        Report.from_json(json.loads(json.dumps(report.to_json())))
    )
    assert report.envelopes and report.bd_rates and report.mean_bd_rates
    assert not (job.out / "planes").exists() and not list(job.out.rglob("*.part"))


# --- resuming


@pytest.mark.slow
def test_what_is_done_is_not_done_again(
    done: tuple[run.Job, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, report = done
    seen = commands(monkeypatch)
    told: list[tuple[int, int, str]] = []
    again = run.run(SUITE, job, on_progress=lambda *given: told.append(given))
    assert not seen
    assert again.rows == report.rows
    assert [count for count, _, _ in told] == list(range(ROWS + 5))
    assert {total for _, total, _ in told} == {ROWS + 4}


@pytest.mark.slow
def test_a_new_rate_codes_that_rate_alone(
    done: tuple[run.Job, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = commands(monkeypatch)
    more = dataclasses.replace(SUITE, qualities=(10.0, 25.0, 40.0), clips=SUITE.clips[1:])
    report = run.run(more, done[0])
    assert [words[3] for words in seen] == ["encode", "decode", "decode"]
    assert len(report.rows) == ROWS // 2 + 1


@pytest.mark.slow
def test_a_new_metric_measures_again_and_codes_nothing(
    done: tuple[run.Job, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = commands(monkeypatch)
    more = dataclasses.replace(SUITE, metrics=("psnr_rgb",), clips=SUITE.clips[1:])
    report = run.run(more, done[0])
    assert not seen
    assert all(set(found.metrics) == {"psnr_rgb"} for found in report.rows)


def test_keys_change_with_what_decides_a_result_and_with_nothing_else() -> None:
    def keys(suite: Suite) -> plan.Keys:
        return plan.Keys(suite, models_dir=None, metric_weights=None, device="cpu")

    one, other = (
        keys(SUITE),
        keys(dataclasses.replace(SUITE, name="x", clips=(Clip(file="b"),), encode=("--seed", "1"))),
    )
    ours, theirs = (plan.Point("a", codec, 30.0) for codec in ("semvc", "x265"))
    assert one.stream(ours, "k") != other.stream(ours, "k") != one.stream(ours, "l")
    assert one.stream(theirs, "k") == other.stream(theirs, "k")
    assert one.stream(theirs, "k") != one.stream(dataclasses.replace(theirs, size="half"), "k")
    tiers = dataclasses.replace(ours, tiers=("small",))
    assert one.stream(ours, "k") == one.stream(tiers, "k")
    assert one.rebuilt(ours, "s", "preview") != one.rebuilt(ours, "s", "small")
    assert one.row("r") == other.row("r") != keys(dataclasses.replace(SUITE, every=5)).row("r")


@pytest.mark.slow
def test_without_keep_only_figures_stay(clips: Path, tmp_path: Path) -> None:
    small = dataclasses.replace(SUITE, clips=SUITE.clips[1:], qualities=(10.0,), anchors=())
    job = run.Job(clips, tmp_path, keep=False)
    (found,) = run.run(small, job).rows
    assert found.rebuilt == "" and found.metrics
    assert not list(tmp_path.glob("rebuilt/*.mp4")) and not list(tmp_path.glob("coded/*.svc"))
    (again,) = run.run(small, job).rows
    assert again == found


@pytest.mark.slow
def test_several_jobs_give_the_same_figures(
    done: tuple[run.Job, Report], clips: Path, tmp_path: Path
) -> None:
    some = dataclasses.replace(SUITE, clips=SUITE.clips[1:], qualities=())
    report = run.run(some, run.Job(clips, tmp_path, jobs=3))
    ones = [r for r in done[1].rows if r.clip == "part" and r.codec != "semvc"]
    assert [r.label for r in report.rows] == [r.label for r in ones]
    assert [r.metrics for r in report.rows] == [r.metrics for r in ones]


# --- failures and stops


@pytest.mark.slow
def test_a_decoder_that_fails_is_a_reason_and_not_the_end(clips: Path, tmp_path: Path) -> None:
    broken = dataclasses.replace(
        SUITE, clips=SUITE.clips[1:], qualities=(10.0,), decode=("--start", "99"), anchors=()
    )
    report = run.run(broken, run.Job(clips, tmp_path))
    assert not report.rows and "semvc decode" in report.skipped[0].reason


@pytest.mark.parametrize(
    ("change", "message"),
    [({"jobs": 0}, "at least one"), ({"device": "toaster"}, "unknown device")],
)
def test_jobs_and_devices_that_make_no_sense_are_refused(
    clips: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run.run(SUITE, run.Job(clips, tmp_path, **change))


@pytest.mark.slow
def test_an_interruption_ends_all_processes_and_can_be_resumed(clips: Path, tmp_path: Path) -> None:
    def stop(count: int, *_: object) -> None:
        if count == 2:
            raise KeyboardInterrupt

    some = dataclasses.replace(SUITE, clips=SUITE.clips[1:], qualities=())
    job = run.Job(clips, tmp_path, jobs=2)
    with pytest.raises(KeyboardInterrupt):
        run.run(some, job, on_progress=stop)
    kept = list((tmp_path / "rows").iterdir())
    assert 2 <= len(kept) < 8 and not (tmp_path / "planes").exists()
    assert len(run.run(some, job).rows) == 8
    assert set(kept) < set((tmp_path / "rows").iterdir())


@pytest.mark.slow
def test_a_killed_run_goes_on_and_does_nothing_twice(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some.toml").write_text(
        'metrics = ["psnr_y"]\nqualities = [10, 30]\ntiers = ["preview"]\n'
        'encode = ["--preset", "12"]\n[[clip]]\nfile = "ranged.mp4"\nframes = 8\n'
        '[[anchor]]\ncodec = "svtav1"\npreset = "12"\ncrf = [30, 40, 50, 60]\n'
    )
    words = ("bench", "run", tmp_path / "some.toml", "--clips", clips, "--out", tmp_path / "out")
    child, rows = start(*words, start_new_session=True), tmp_path / "out" / "rows"
    wait_until(lambda: rows.is_dir() and len(list(rows.glob("*.json"))) >= 3, 120)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    kept = {path: path.stat().st_mtime_ns for path in rows.glob("*.json")}
    assert 3 <= len(kept) < 6 and not (tmp_path / "out" / "report.json").exists()
    seen = commands(monkeypatch)
    job = run.Job(clips, tmp_path / "out")
    assert len(run.run(load(tmp_path / "some.toml"), job).rows) == 6
    assert kept.items() <= {p: p.stat().st_mtime_ns for p in rows.glob("*.json")}.items()
    coded = [words for words in seen if "semvc.bench.anchors" in words or "encode" in words]
    assert len(coded) <= 6 - len(kept)


def test_stopping_ends_processes_and_those_they_started(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys; child = subprocess.Popen(['sleep', '60']);"
        " open(sys.argv[1], 'w').write(str(child.pid)); child.wait()"
    )
    code = f"""
import sys, threading, time
from pathlib import Path
from semvc.bench.children import Children, Stopped
from semvc.bench.metrics import luma, psnr
children, note = Children(), Path(sys.argv[1])
def work():
    try:
        children.run([sys.executable, "-c", {script!r}, str(note)])
    except Stopped:
        print("stopped")
thread = threading.Thread(target=work); thread.start()
while not (note.exists() and note.read_text()): time.sleep(0.01)
children.stop(); thread.join()
"""
    note = tmp_path / "pid"
    done = subprocess.run(
        [sys.executable, "-c", code, note],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == [b"stopped"]
    status = Path("/proc") / note.read_text() / "status"
    end = time.monotonic() + 10
    while status.exists() and "Z (zombie)" not in status.read_text():
        assert time.monotonic() < end, "a grandchild outlived its parent"
        time.sleep(0.01)


def test_nothing_starts_after_a_stop() -> None:
    children = Children()
    children.stop()
    with pytest.raises(Stopped):
        children.run([sys.executable, "-c", "pass"])


# --- conventional encoders


@pytest.mark.parametrize("codec", FAST)
def test_each_encoder_gives_a_bare_stream_that_comes_back(codec: str, tmp_path: Path) -> None:
    if why := anchors.unavailable(codec):
        pytest.skip(why)
    side = 64 if codec in ("x265", "vvenc") else 48
    video = Scene(97, side + 1, 6).render()[0]  # odd: padded, and cropped again
    source = write_video(tmp_path / "a.mkv", video, codec="ffv1", pixels="bgr0")
    raw = tmp_path / "a.yuv"
    width, height, count = pictures.write_planes(source, "full", 1, raw)
    assert (width, height, count) == (98, side + 2, 6)
    kind = pictures.KIND[codec]
    target = tmp_path / f"a{elementary.KINDS[kind].suffix}"
    coding = anchors.Coding(
        *(codec, FAST[codec], 20, str(raw), str(target), width, height, "24", 4)
    )
    ended = Children(1).run(anchors.command(coding))
    assert ended.code == 0, ended.err
    coded, data = anchors.result(ended.out), target.read_bytes()
    assert coded.bytes == elementary.payload_bytes(kind, data) and coded.memory > 1e7
    assert elementary.bare(kind, data) == data
    found = Row("a", codec, 1, width=97, height=side + 1, frames=6, rebuilt=target.name)
    rebuilt = list(pictures.rebuilt(tmp_path, found))
    for frame, other in zip(video, rebuilt, strict=True):
        assert psnr(luma(frame), luma(other)) > 30
    short = dataclasses.replace(found, frames=7)
    with pytest.raises(MediaError, match="6 frames instead of 7"):
        list(pictures.rebuilt(tmp_path, short))


def test_one_of_the_two_ways_to_run_svt_is_tuned_for_the_eye() -> None:
    def params(codec: str) -> str:
        coding = anchors.Coding(codec, "4", 50, "a", "b", 64, 64, "24", 4)
        return dict(anchors.encoder(coding).options)["svtav1-params"]

    assert "tune" not in params("svtav1")
    assert params("svtav1-vq") == params("svtav1") + ":tune=0:ac-bias=2"


def test_needless_units_are_left_out_and_nothing_else() -> None:
    def units(*heads: bytes) -> bytes:
        return b"".join(b"\0\0\0\1" + head + b"\x11\x22" for head in heads)

    h264 = units(b"\x67\x42", b"\x06\x05", b"\x09\x10", b"\x65\x88")
    assert elementary.bare("h264", h264) == units(b"\x67\x42", b"\x65\x88")
    hevc = units(b"\x40\x01", b"\x4e\x01", b"\x50\x01", b"\x46\x01", b"\x26\x01")
    assert elementary.bare("hevc", hevc) == units(b"\x40\x01", b"\x26\x01")
    vvc = units(b"\0\x79", b"\0\xa1", b"\0\xb9", b"\0\xc1", b"\0\x39")
    assert elementary.bare("vvc", vvc) == units(b"\0\x79", b"\0\x39")
    assert elementary.bare("av1", b"\0\0\1\6") == b"\0\0\1\6"


def test_x264_writes_a_note_that_is_not_counted(tmp_path: Path) -> None:
    planes = [np.full((48, 64), 512, np.uint16), *(np.full((24, 32), 512, np.uint16),) * 2]
    one = elementary.Encoder("h264", "libx264", (("crf", "40"),), 8, Fraction(24))
    elementary.encode([(planes[0], planes[1], planes[2])] * 2, one, tmp_path / "a.264")
    data = (tmp_path / "a.264").read_bytes()
    assert b"x264" not in data and len(data) < 200


def test_encoders_that_cannot_are_named(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="sides of 64"):
        anchors.command(anchors.Coding("x265", "fast", 30, "a", "b", 62, 80, "24", 4))
    unknown = elementary.Encoder("h264", "libnothing", (), 8, Fraction(24))
    plane = np.full((48, 64), 512, np.uint16)
    with pytest.raises(MediaError, match="libnothing"):
        elementary.encode([(plane, plane[::2, ::2], plane[::2, ::2])], unknown, tmp_path / "a")
    (tmp_path / "b.obu").write_bytes(b"nothing at all")
    with pytest.raises(MediaError, match="cannot be decoded"):
        list(elementary.decode(tmp_path / "b.obu", "av1"))


def test_times_of_a_varying_rate_survive_a_cut(tmp_path: Path) -> None:
    video = Scene(64, 48, 8).render()[0]
    times = [0, 1000, 1500, 4000, 5000, 7000, 7500, 9000]
    source = write_video(tmp_path / "a.mp4", video, times=times)
    pictures.cut(source, Clip(file="a.mp4", start=2, frames=5), tmp_path / "b.mp4")
    with VideoReader(source) as whole, VideoReader(tmp_path / "b.mp4") as part:
        expected, found = list(whole)[2:7], list(part)
        unit = whole.info.time_base / part.info.time_base
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(expected, found, strict=True))
    first = expected[0][1]
    assert [pts for _, pts in found] == [(pts - first) * unit for _, pts in expected]


def test_an_empty_range_is_refused(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", Scene(64, 48, 3).render()[0])
    with pytest.raises(UsageError, match="no frame 9"):
        pictures.cut(source, Clip(file="a.mp4", start=9), tmp_path / "b.mp4")
    assert not (tmp_path / "b.mp4").exists()
