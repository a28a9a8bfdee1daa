"""When pictures are shown: from the first that can be decoded to the end of the last one."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from program import FAST, Call
from scene import Pipe, Sound, beeps, write_video

from semvc.errors import MediaError
from semvc.media import reader as reader_module
from semvc.media import timeline
from semvc.media.reader import VideoReader
from semvc.media.writer import VideoWriter
from semvc.signals import timing


def test_variable_frame_times_are_exact_through_both_directions(
    tmp_path: Path, frames: Any
) -> None:
    times = [0, 1000, 1400, 4000, 4001, 9000]
    path = write_video(tmp_path / "a.mp4", frames[:6], times=times)
    with VideoReader(path) as reader:
        assert reader.info.frame_rate is None
        assert reader.info.time_base == Fraction(1, 24000)
        pairs = list(reader)
        assert [p for _, p in pairs] == times
        copy = tmp_path / "b.mp4"
        with VideoWriter(copy, reader.info) as writer:
            for frame, pts in pairs:
                writer.write(frame, pts, 333)
    with VideoReader(copy) as reader:
        assert reader.info.time_base == Fraction(1, 24000)
        assert [p for _, p in reader] == times
        assert reader.end_pts == 9333


def test_info_tells_varying_times_from_a_rate(tmp_path: Path, frames: Any, run: Call) -> None:
    times = [0, 1000, 1400, 4000, 4001, 9000]
    for name, given, expected in (
        ("a.mp4", None, "6 frames, 29.97 fps, 0.20 s"),
        ("b.mp4", times, "6 frames, at varying times: about "),
    ):
        path = write_video(tmp_path / name, frames[:6], fps=Fraction(30000, 1001), times=given)
        stream = path.with_suffix(".svc")
        assert run("encode", path, stream, *FAST).code == 0
        assert expected in run("info", stream).out


@pytest.mark.parametrize(("stated", "fps"), [(b"F24:1", 24), (b"F0:0", 25), (b"F1000:1", None)])
def test_a_pipe_has_the_rate_that_it_states(
    tmp_path: Path, frames: Any, stated: bytes, fps: int | None
) -> None:
    path = tmp_path / "a.y4m"
    write_video(path, frames[:2], codec="wrapped_avframe", container="yuv4mpegpipe")
    pipe = Pipe(path.read_bytes().replace(b"F24:1", stated, 1))
    if fps is None:
        with pytest.raises(MediaError, match=r"1000 frames per second.*use a file"):
            VideoReader(pipe)  # type: ignore[arg-type]
        return
    with VideoReader(pipe) as reader:  # type: ignore[arg-type]
        assert reader.info.frame_rate == fps


def lasting(source: Path, target: Path, seconds: int) -> Path:
    """Copy a video without B-frames whose last picture stays for some seconds."""
    with av.open(str(source)) as given, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        packets = [p for p in given.demux(video=0) if p.size]
        packets[-1].duration = int(seconds / packets[-1].time_base)
        for packet in packets:
            packet.stream = stream
            output.mux(packet)
    return target


@pytest.mark.parametrize("count", [1, 6])
def test_a_last_picture_stays_as_long_as_its_file_says(
    tmp_path: Path, frames: Any, count: int
) -> None:
    short = write_video(tmp_path / "a.mp4", frames[:count], options={"bf": "0"})
    with VideoReader(lasting(short, tmp_path / "b.mp4", 180)) as reader:
        assert reader.info.frame_rate is None and reader.info.frame_count == count
        times = [pts * reader.info.time_base for _, pts in reader]
        assert times == [Fraction(t, 24) for t in range(count)]
        assert reader.end_pts * reader.info.time_base == times[-1] + 180


def test_time_bases_too_fine_for_a_stream_are_made_coarser(tmp_path: Path, frames: Any) -> None:
    times = [0, 10_000_000, 25_000_000, 6_000_000_000]  # nanoseconds
    path = write_video(tmp_path / "a.mkv", frames[:4], fps=1, times=times)
    data = path.read_bytes()
    scale = bytes.fromhex("2ad7b183")  # TimestampScale, three bytes
    assert data.count(scale + (10**6).to_bytes(3, "big")) == 1
    path.write_bytes(data.replace(scale + (10**6).to_bytes(3, "big"), scale + bytes([0, 0, 1])))
    with VideoReader(path) as reader:
        assert reader.info.time_base == Fraction(1, 10**8)
        assert [pts for _, pts in reader] == [time // 10 for time in times]
    assert (timeline.MAX_STEP, timeline.MAX_TIME) == (timing.MAX_STEP, timing.MAX_TIME)


def test_rounded_times_of_matroska_are_still_a_constant_rate(tmp_path: Path, frames: Any) -> None:
    path = write_video(tmp_path / "a.mkv", frames, fps=Fraction(30000, 1001))
    with VideoReader(path) as reader:
        assert reader.info.frame_rate == Fraction(30000, 1001)
        assert [pts for _, pts in reader] == list(range(24))


def test_time_begins_with_the_first_picture_that_can_be_decoded(
    tmp_path: Path, frames: Any
) -> None:
    options = {"g": "12", "bf": "2"}
    path = write_video(
        tmp_path / "a.ts", frames, codec="mpeg2video", options=options, sound=Sound(beeps(1))
    )
    packets = path.read_bytes()
    path.write_bytes(packets[len(packets) // 188 // 4 * 188 :])  # a recording begins anywhere
    with av.open(str(path)) as container:
        base = container.streams.video[0].time_base
        shown = [f.pts for f in container.decode(video=0)]
        container.seek(0)
        assert min(p.pts for p in container.demux(video=0) if p.size) < shown[0]
    with VideoReader(path) as reader:
        assert reader.start == shown[0] * base
        assert reader.audio is not None and -Fraction(1, 2) < reader.audio.start < 0
        assert reader.info.frame_rate == 24
        assert [p for _, p in reader] == list(range(len(shown)))
        assert reader.end_pts == len(shown)


def test_frames_of_an_avi_are_counted_not_timed(tmp_path: Path, frames: Any) -> None:
    path = write_video(tmp_path / "a.avi", frames, options={"bf": "3"})
    with av.open(str(path)) as container:
        assert [f.pts for f in container.decode(video=0)] != list(range(1, 25))
    with VideoReader(path) as reader:
        assert reader.info.frame_count == 24
        assert [pts for _, pts in reader] == list(range(24))


def test_recordings_joined_without_new_times_are_refused(tmp_path: Path, frames: Any) -> None:
    data = write_video(tmp_path / "a.ts", frames, fps=12).read_bytes()
    (tmp_path / "a.ts").write_bytes(data + data)
    with pytest.raises(MediaError, match=r"jump back after 2\d frames.*ffmpeg -i"):
        VideoReader(tmp_path / "a.ts")


@pytest.mark.parametrize("lost", [{5}, {5, 6}, {22, 23}])
def test_pictures_that_a_decoder_loses_do_not_shift_the_rest(
    tmp_path: Path, frames: Any, lost: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mkv", frames)
    with VideoReader(path) as whole:
        expected = [frame for frame, _ in whole]
    real = reader_module._pictures
    monkeypatch.setattr(
        reader_module,
        "_pictures",
        lambda *given: (p for i, p in enumerate(real(*given)) if i not in lost),
    )
    with VideoReader(path) as reader:
        found = list(reader)
    last = max(set(range(24)) - lost)
    assert [pts for _, pts in found] == list(range(last + 1))
    held = [next(k for k in range(t, -1, -1) if k not in lost) for t in range(last + 1)]
    assert all(np.array_equal(f, expected[k]) for (f, _), k in zip(found, held, strict=True))


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.webm", "libvpx")])
def test_a_matroska_file_that_is_cut_off_is_read_and_says_so(
    tmp_path: Path, frames: Any, name: str, codec: str
) -> None:
    path = write_video(tmp_path / name, frames, codec=codec, fps=8, options={"g": "4"})
    with VideoReader(path) as reader:
        assert reader.info.notes == ()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with VideoReader(path) as reader:
        (note,) = reader.info.notes
        count = sum(1 for _ in reader)
    assert 1 <= count < 20
    assert note.startswith("the file is cut off: its last ")
    assert abs(float(note.split()[-4]) - (3 - count / 8)) < 0.2
