from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from scene import Sound, beep_times, beeps, read_sound, write_video

from semvc.media.audio import AudioTrack
from semvc.media.audioformat import AudioCodec
from semvc.media.files import write_packets, write_png
from semvc.media.reader import VideoReader


@pytest.mark.parametrize("shape", [(1, 1), (17, 5), (16, 32), (1, 1, 3), (5, 17, 3), (48, 64, 3)])
def test_a_png_holds_every_sample(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(5).integers(0, 256, shape, np.uint8)
    write_png(tmp_path / "a.png", image)
    with av.open(str(tmp_path / "a.png")) as container:
        (frame,) = container.decode(video=0)
        found = frame.to_ndarray(format="gray" if len(shape) == 2 else "rgb24")
    assert np.array_equal(found, image)


def test_a_png_holds_sixteen_bits(tmp_path: Path) -> None:
    image = np.random.default_rng(5).integers(0, 65536, (9, 16)).astype(np.uint16)
    write_png(tmp_path / "a.png", image)
    with av.open(str(tmp_path / "a.png")) as container:
        (frame,) = container.decode(video=0)
        assert frame.format.name == "gray16be"
        assert np.array_equal(frame.to_ndarray(), image)


def test_a_png_of_a_view_is_the_view(tmp_path: Path) -> None:
    image = np.random.default_rng(6).integers(0, 256, (20, 30, 3), np.uint8)[::-2, 3:17]
    write_png(tmp_path / "a.png", image)
    with av.open(str(tmp_path / "a.png")) as container:
        (frame,) = container.decode(video=0)
        assert np.array_equal(frame.to_ndarray(format="rgb24"), image)


@pytest.mark.parametrize(
    ("codec", "kbps", "suffix"),
    [
        ("aac", 12, ".opus"),
        ("aac", None, ".mka"),
        ("flac", None, ".mka"),
        ("libopus", None, ".opus"),
    ],
)
def test_written_packets_sound_as_the_source(
    tmp_path: Path, codec: str, kbps: int | None, suffix: str
) -> None:
    sound = Sound(beeps(3.0), codec=codec)
    frames = np.zeros((72, 32, 32, 3), np.uint8)
    source = write_video(tmp_path / "clip.mkv", frames, sound=sound)
    with VideoReader(source) as reader, AudioTrack(reader.source, reader.start, kbps=kbps) as track:
        config, runs = track.config, []
        for second in range(3):
            end = None if second == 2 else Fraction(second + 1)
            offset, packets = track.take(Fraction(second), end)
            runs.append((second * config.rate + offset, packets))
    path = write_packets(tmp_path / "sound.of.it", config, runs)
    assert path.name == "sound.of.it" + suffix and (suffix == ".opus") == (
        config.codec == AudioCodec.OPUS
    )
    with av.open(str(path)) as container:
        assert [stream.type for stream in container.streams] == ["audio"]
        resampler = av.AudioResampler("flt", "mono", 48000)
        parts = [
            out.to_ndarray()[0]
            for frame in container.decode(audio=0)
            for out in resampler.resample(frame)
        ]
    heard, meant = beep_times(np.concatenate(parts)), beep_times(read_sound(source))
    assert len(heard) == len(meant) >= 6
    assert np.abs(np.diff(heard) - 0.5).max() < 0.005


def test_a_stem_with_dots_keeps_them(tmp_path: Path) -> None:
    source = write_video(
        tmp_path / "clip.mkv", np.zeros((24, 32, 32, 3), np.uint8), sound=Sound(beeps(1.0))
    )
    with VideoReader(source) as reader, AudioTrack(reader.source, reader.start, kbps=12) as track:
        offset, packets = track.take(Fraction(0), None)
        path = write_packets(tmp_path / "v1.0", track.config, [(offset, packets)])
    assert path.name == "v1.0.opus"
