"""Videos in and out: every container and sample format, exact times, clear errors, whole files."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from scene import Pipe, Scene, Sound, beeps, write_video

from semvc.errors import LimitError, MediaError, ResourceError, SemvcError, UsageError
from semvc.media.reader import VideoReader
from semvc.media.writer import CODECS, NOTE, OutputOptions, VideoWriter
from semvc.types import ColorInfo, Limits, VideoInfo

CONTAINERS = {
    "a.mp4": {},
    "a.mov": {},
    "a.mkv": {},
    "a.webm": {"codec": "libvpx-vp9"},
    "a.avi": {"codec": "mpeg4", "options": {"qscale": "2"}},
    "a.ts": {},
    "a.y4m": {"codec": "wrapped_avframe", "container": "yuv4mpegpipe"},
    "a.ivf": {"codec": "libvpx-vp9"},
}


def read(source: Any, **options: Any) -> tuple[VideoInfo, Any, list[int]]:
    with VideoReader(source, **options) as reader:
        pairs = list(reader)
        return reader.info, np.stack([f for f, _ in pairs]), [p for _, p in pairs]


def write(path: Path, frames: Any, info: VideoInfo, codec: str = "h264") -> None:
    with VideoWriter(path, info, options=OutputOptions(codec=codec)) as writer:
        for t, frame in enumerate(frames):
            writer.write(frame, t)


def psnr(a: Any, b: Any) -> float:
    return float(10 * np.log10(65025 / max(np.mean((a.astype(float) - b) ** 2), 1e-9)))


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("piped", [False, True])
def test_every_container_gives_all_frames_in_time(
    tmp_path: Path, frames: Any, name: str, piped: bool
) -> None:
    path = write_video(tmp_path / name, frames[:8], **CONTAINERS[name])
    source = Pipe(path.read_bytes()) if piped else path
    info, got, pts = read(source)
    assert (info.width, info.height, info.frame_rate) == (96, 64, 24)
    assert info.time_base == Fraction(1, 24)
    assert pts == list(range(8))
    assert info.frame_count in (0, 8)
    assert psnr(got, frames[:8]) > 24


@pytest.mark.parametrize("pixels", ["yuv422p", "yuv444p", "yuv420p10le", "yuv444p10le"])
def test_other_samplings_and_depths_are_read(tmp_path: Path, frames: Any, pixels: str) -> None:
    path = write_video(tmp_path / "a.mkv", frames[:3], pixels=pixels)
    assert psnr(read(path)[1], frames[:3]) > 26


def test_rgb_without_loss_is_read_without_loss(tmp_path: Path, frames: Any) -> None:
    path = write_video(tmp_path / "a.mkv", frames[:3], codec="ffv1", pixels="bgr0")
    info, got, _ = read(path)
    assert (got == frames[:3]).all()
    assert info.color == ColorInfo()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [1, 6, 9])
def test_tagged_colours_survive_a_lossless_file(tmp_path: Path, matrix: int, full: bool) -> None:
    colours = np.array(
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [128, 128, 128], [0, 0, 0]],
        np.uint8,
    )
    bars = np.broadcast_to(colours.repeat(8, 0)[None, None], (1, 32, 48, 3))
    info = VideoInfo(48, 32, Fraction(24), Fraction(1, 24), color=ColorInfo(1, 1, matrix, full))
    path = tmp_path / "a.mp4"
    with VideoWriter(path, info, options=OutputOptions(crf=0)) as writer:
        writer.write(np.ascontiguousarray(bars[0]), 0)
    shown, got, _ = read(path)
    assert shown.color == info.color
    middle = got[0, :, 4::8]
    assert np.abs(middle.astype(int) - colours).max() <= 2
    assert (np.ptp(middle[:, 3:].astype(int), axis=2) == 0).all()


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_rotation_is_applied_once(tmp_path: Path, frames: Any, angle: int) -> None:
    path = write_video(tmp_path / "a.mp4", frames[:2], rotation=angle)
    with av.open(str(path)) as container:
        turns = next(container.decode(video=0)).rotation // 90
    info, got, _ = read(path)
    upright = np.rot90(frames[:2], turns, axes=(1, 2))
    assert (info.height, info.width) == upright.shape[1:3]
    assert "rotation" in info.notes[0]
    assert psnr(got, upright) > 26
    copy = tmp_path / "b.mp4"
    with VideoWriter(copy, info) as writer:
        for t, frame in enumerate(got):
            writer.write(frame, t)
    again = read(copy)
    assert again[0].notes == ()
    assert psnr(again[1], upright) > 26


def test_interlaced_video_is_deinterlaced_and_says_so(tmp_path: Path, frames: Any) -> None:
    options = {"flags": "+ildct+ilme", "x264-params": "tff=1"}
    path = write_video(tmp_path / "a.mp4", frames[:6], options=options)
    info, got, pts = read(path)
    assert "deinterlaced" in info.notes[0]
    assert pts == list(range(6))
    assert len(got) == 6


def test_interlaced_pictures_may_change_their_size(tmp_path: Path, frames: Any) -> None:
    parts = []
    for index, size in enumerate([(64, 96), (576, 720), (16, 64)]):
        pictures = np.resize(frames[:6], (6, *size, 3))
        path = write_video(
            tmp_path / "a.ts",
            pictures,
            options={"flags": "+ildct+ilme", "x264-params": "tff=1", "bf": "0"},
            times=[1000 * (6 * index + t) for t in range(6)],
        )
        parts.append(path.read_bytes())
    path.write_bytes(b"".join(parts))
    info, got, pts = read(path)
    assert got.shape == (18, 64, 96, 3) and pts == list(range(18))
    assert "deinterlaced" in info.notes[0]


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_is_mapped_to_sdr_and_says_so(tmp_path: Path, frames: Any, transfer: int) -> None:
    tags = {"color_primaries": 9, "color_trc": transfer, "colorspace": 9, "color_range": 1}
    path = write_video(
        tmp_path / "a.mp4",
        frames[:2],
        codec="libx264",  # x265 is not safe with pictures this small
        pixels="yuv420p10le",
        tags=tags,
    )
    info, got, _ = read(path)
    assert "HDR" in info.notes[0]
    assert info.color == ColorInfo()
    assert got.std() > 5


def test_pixels_that_are_not_square_are_made_square(tmp_path: Path, frames: Any) -> None:
    path = write_video(tmp_path / "a.mkv", frames[:2], tags={"sample_aspect_ratio": Fraction(4, 3)})
    info, got, _ = read(path)
    assert got.shape == (2, 64, 128, 3)
    assert "square" in info.notes[0]


@pytest.mark.parametrize(
    ("aspect", "shape"),
    [
        (Fraction(32, 27), (64, 114)),  # 113.8: an odd side would cost players that are common
        (Fraction(40, 33), (64, 116)),
        (Fraction(8, 9), (64, 86)),
        (Fraction(1, 4), (64, 24)),
        (Fraction(8), (64, 768)),
    ],
)
def test_square_pixels_keep_sides_even(
    tmp_path: Path, frames: Any, aspect: Fraction, shape: tuple[int, int]
) -> None:
    path = write_video(tmp_path / "a.mkv", frames[:1], tags={"sample_aspect_ratio": aspect})
    assert read(path)[1].shape[1:3] == shape


def test_a_shape_of_pixels_that_nobody_means_is_said_to_be_ignored(
    tmp_path: Path, frames: Any
) -> None:
    path = write_video(tmp_path / "a.mkv", frames[:1], tags={"sample_aspect_ratio": Fraction(20)})
    info, got, _ = read(path)
    assert got.shape == (1, 64, 96, 3)
    assert info.notes == ("the file says that pixels have shape 20, which is not believed",)


@pytest.mark.parametrize("size", [(17, 16), (33, 35), (64, 65), (16, 16)])
@pytest.mark.parametrize("codec", CODECS)
def test_every_output_codec_keeps_size_and_colour(
    tmp_path: Path, codec: str, size: tuple[int, int]
) -> None:
    if codec == "hevc" and min(size) < 64:
        with pytest.raises(UsageError, match="64 at least"):
            write(tmp_path / "a.mp4", [], VideoInfo(*size, Fraction(25), Fraction(1, 25)), codec)
        return
    rendered = Scene(width=size[0], height=size[1], frames=3).render()[0]
    info = VideoInfo(*size, Fraction(25), Fraction(1, 25))
    path = tmp_path / "a.mp4"
    write(path, rendered, info, codec)
    shown, got, pts = read(path)
    assert (shown.width, shown.height, shown.frame_rate) == (*size, 25)
    assert pts == [0, 1, 2]
    assert psnr(got, rendered) > (90 if codec == "ffv1" else 22)


def test_output_has_its_index_in_front_and_says_what_it_is(tmp_path: Path, frames: Any) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(path, VideoInfo(96, 64, Fraction(24), Fraction(1, 24))) as writer:
        for t, frame in enumerate(frames):
            writer.write(frame, t)
    data = path.read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")
    with av.open(str(path)) as container:
        assert container.metadata["comment"] == NOTE
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
        assert container.duration == 1_000_000


def test_output_to_a_pipe_is_readable_and_never_seeks(frames: Any) -> None:
    class Sink(io.RawIOBase):
        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            part = bytes(data)[:1000]  # short writes, as pipes do
            self.data += part
            return len(part)

    sink = Sink()
    info = VideoInfo(96, 64, Fraction(24), Fraction(1, 24))
    with VideoWriter(sink, info) as writer:  # type: ignore[arg-type]
        for t, frame in enumerate(frames):
            writer.write(frame, t)
    shown, got, _ = read(io.BytesIO(bytes(sink.data)))
    assert len(got) == 24
    assert shown.frame_rate == 24


def test_a_closed_pipe_is_a_clear_error(frames: Any) -> None:
    class Closed(io.RawIOBase):
        def write(self, _: Any) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    info = VideoInfo(96, 64, Fraction(24), Fraction(1, 24))
    writer = VideoWriter(Closed(), info)  # type: ignore[arg-type]
    with pytest.raises(ResourceError, match="Broken pipe"):
        for t, frame in enumerate(frames):
            writer.write(frame, t)
        writer.close()
    writer.abort()


def test_a_file_is_not_replaced_without_force(tmp_path: Path, frames: Any) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"mine")
    info = VideoInfo(96, 64, Fraction(24), Fraction(1, 24))
    with pytest.raises(UsageError, match="force"):
        VideoWriter(path, info)
    assert path.read_bytes() == b"mine"
    with VideoWriter(path, info, options=OutputOptions(force=True)) as writer:
        writer.write(frames[0], 0)
    assert len(path.read_bytes()) > 100
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_leaves_no_file(tmp_path: Path, frames: Any) -> None:
    info = VideoInfo(96, 64, Fraction(24), Fraction(1, 24))
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "a.mp4", info) as writer:
        writer.write(frames[0], 0)
        raise RuntimeError
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4", info) as writer:
        writer.write(frames[0], 0)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_clear_error_and_leaves_no_file(tmp_path: Path) -> None:
    script = """
import resource, signal, sys, numpy as np
from fractions import Fraction
from pathlib import Path
from semvc.errors import ResourceError
from semvc.media.writer import OutputOptions, VideoWriter
from semvc.types import VideoInfo
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
try:
    info = VideoInfo(64, 64, Fraction(24), Fraction(1, 24))
    with VideoWriter(Path(sys.argv[1]), info, options=OutputOptions(codec="ffv1")) as writer:
        for t in range(30):
            writer.write(noise, t)
except ResourceError as error:
    print("as expected:", error)
"""
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.mp4")],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "as expected" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "codec"), [("a.txt", "h264"), ("a.webm", "h264"), ("a.mov", "ffv1"), ("a.mp4", "x")]
)
def test_codecs_and_suffixes_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, codec: str
) -> None:
    info = VideoInfo(96, 64, Fraction(24), Fraction(1, 24))
    with pytest.raises(UsageError):
        VideoWriter(tmp_path / name, info, options=OutputOptions(codec=codec))
    assert list(tmp_path.iterdir()) == []


def test_frames_out_of_order_or_of_another_size_are_refused(tmp_path: Path, frames: Any) -> None:
    info = VideoInfo(96, 64, Fraction(24), Fraction(1, 24))
    writer = VideoWriter(tmp_path / "a.mp4", info)
    writer.write(frames[0], 5)
    for frame, pts in ((frames[0], 5), (frames[0][:, :-1], 6)):
        with pytest.raises(ValueError, match=r"pts 5|shape"):
            writer.write(frame, pts)
    writer.abort()


def test_inputs_without_pictures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "junk.mp4").write_bytes(os.urandom(5000))
    with av.open(str(tmp_path / "sound.mp4"), "w") as output:
        track: Any = output.add_stream("aac", rate=48000, layout="mono")
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 9600), np.float32), format="fltp", layout="mono"
        )
        silence.sample_rate = 48000
        output.mux(track.encode(silence))
        output.mux(track.encode(None))
    for name, text in (("empty", "empty"), ("junk", "can be read"), ("sound", "only audio")):
        with pytest.raises(MediaError, match=text) as caught:
            VideoReader(tmp_path / f"{name}.mp4")
        assert "\n" not in str(caught.value)
    with pytest.raises(MediaError, match="No such file"):
        VideoReader(tmp_path / "missing.mp4")
    with pytest.raises(MediaError, match="directory"):
        VideoReader(tmp_path)
    with pytest.raises(MediaError, match="empty"):
        VideoReader(Pipe(b""))  # type: ignore[arg-type]


def test_a_file_cut_anywhere_is_refused(tmp_path: Path, frames: Any) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(path, VideoInfo(96, 64, Fraction(24), Fraction(1, 24))) as writer:
        for t, frame in enumerate(frames):
            writer.write(frame, t)
    data = path.read_bytes()
    for share in (0.01, 0.05, 0.3, 0.6, 0.9):
        with pytest.raises(MediaError):
            read(io.BytesIO(data[: int(share * len(data))]))


def test_cover_art_is_not_the_video(tmp_path: Path, frames: Any) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as output:
        cover: Any = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = 0x400
        stream: Any = output.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        still = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        output.mux(cover.encode(still))
        for frame in frames[:3]:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
    info, got, _ = read(path)
    assert (info.width, info.height, len(got)) == (96, 64, 3)


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile '{0}'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{0}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://localhost/{0}\n#EXT-X-ENDLIST\n",
    ],
)
def test_a_list_of_other_files_opens_none_of_them(tmp_path: Path, frames: Any, text: str) -> None:
    inner = write_video(tmp_path / "inner.ts", frames[:3])
    outer = tmp_path / "outer.mp4"
    outer.write_text(text.format(inner.name))
    with pytest.raises(MediaError):
        VideoReader(outer)


@pytest.mark.parametrize("name", ["concat:a.mp4|b.mp4", "subfile:,,:a", "http:/localhost/a.mp4"])
def test_addresses_are_not_opened(name: str) -> None:
    with pytest.raises(MediaError, match="addresses"):
        VideoReader(Path(name))


def test_odd_file_names_work(tmp_path: Path, frames: Any) -> None:
    info = VideoInfo(96, 64, Fraction(24), Fraction(1, 24))
    for name in ("-x.mp4", "a:b.mp4", "naïve 日本.mp4", "100%d.mp4", os.fsdecode(b"\xff.mp4")):
        path = tmp_path / name
        with VideoWriter(path, info) as writer:
            writer.write(frames[0], 0)
        assert read(path)[0].width == 96


def test_sizes_beyond_the_limits_are_refused(tmp_path: Path, frames: Any) -> None:
    path = write_video(tmp_path / "a.mp4", frames[:2])
    for limits in (Limits(max_width=95, max_height=95), Limits(max_pixels=96 * 64 - 1)):
        with pytest.raises(LimitError, match="too large"):
            VideoReader(path, limits=limits)
    with pytest.raises(LimitError, match="more than 1 frames"):
        VideoReader(path, limits=Limits(max_frames=1))
    tiny = write_video(tmp_path / "b.mkv", frames[:2, :8, :8], codec="ffv1", pixels="bgr0")
    with pytest.raises(MediaError, match="too small"):
        VideoReader(tiny)


def test_damaged_files_give_frames_or_one_clear_error(tmp_path: Path, frames: Any) -> None:
    sound = Sound(beeps(0.5))
    data = write_video(tmp_path / "a.mp4", frames[:6], sound=sound).read_bytes()
    rng = np.random.default_rng(3)
    for _ in range(40):
        changed = bytearray(data)
        for at in rng.integers(0, len(data), 5):
            changed[at] = rng.integers(0, 256)
        try:
            read(io.BytesIO(bytes(changed)), limits=Limits(max_pixels=1 << 16))
        except SemvcError as error:
            assert "\n" not in str(error)


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    script = """
import resource, sys
from pathlib import Path
from semvc.media.reader import VideoReader
with VideoReader(Path(sys.argv[1])) as reader:
    for frame, _ in reader:
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    still = np.zeros((240, 320, 3), np.uint8)
    peaks = []
    for count in (20, 600):
        frames = np.broadcast_to(still, (count, *still.shape))
        path = write_video(tmp_path / f"{count}.mp4", frames, options={"preset": "ultrafast"})
        root = Path(__file__).parent.parent
        done = subprocess.run(
            [sys.executable, "-c", script, str(path)], cwd=root, capture_output=True, check=True
        )
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 20_000  # kB
