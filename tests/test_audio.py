"""Sound stays in step with the pictures through every way it can go."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scene import Sound, beep_times, beeps, read_sound, write_video

from semvc.encoder import encode
from semvc.errors import BitstreamError, MediaError, UnsupportedError
from semvc.media.audio import AudioTrack, _run, sample_at
from semvc.media.audioformat import AudioCodec, AudioConfig
from semvc.media.reader import VideoReader
from semvc.media.writer import VideoWriter
from semvc.signals.audio import Audio, decode_audio, encode_audio
from semvc.types import EncodeOptions

FRAME = 1 / 24  # what sound may be off by, in seconds
COPYABLE = {
    "aac": "a.mp4",
    "libmp3lame": "a.mkv",
    "libopus": "a.mkv",
    "ac3": "a.mp4",
    "flac": "a.mkv",
}


def through(source: Path, target: Path, kbps: int | None, *, step: int = 10) -> int:
    """Take a video through segments of `step` frames and back; return the sound's bytes."""
    size = 0
    with VideoReader(source) as reader, AudioTrack(reader.source, reader.start, kbps=kbps) as track:
        config = AudioConfig.from_bytes(track.config.to_bytes())
        rate = reader.info.frame_rate or Fraction(24)
        frames = [frame for frame, _ in reader]
        with VideoWriter(target, reader.info, audio=config) as writer:
            for start in range(0, len(frames), step):
                last = start + step >= len(frames)
                begin, end = start / rate, None if last else (start + step) / rate
                payload, _ = encode_audio(Audio(*track.take(begin, end)))
                size += len(payload)
                audio, _ = decode_audio(payload)
                for t in range(start, min(start + step, len(frames))):
                    writer.write(frames[t], t)
                if audio.packets:
                    writer.write_audio(sample_at(begin, config.rate) + audio.offset, audio.packets)
    return size


def close(found: list[float], wanted: list[float]) -> bool:
    return len(found) == len(wanted) and bool(np.allclose(found, wanted, atol=FRAME))


@pytest.mark.parametrize("kbps", [12, 64])
def test_opus_keeps_time_and_costs_what_was_asked(tmp_path: Path, frames: Any, kbps: int) -> None:
    source = write_video(tmp_path / "a.mp4", frames, fps=12, sound=Sound(beeps(2)))
    size = through(source, tmp_path / "b.mp4", kbps)
    assert close(beep_times(read_sound(tmp_path / "b.mp4")), [0, 0.5, 1, 1.5])
    assert size < 1.3 * kbps * 1000 / 8 * 2


@pytest.mark.parametrize("codec", COPYABLE)
def test_copied_packets_keep_time(tmp_path: Path, frames: Any, codec: str) -> None:
    source = write_video(
        tmp_path / COPYABLE[codec], frames, fps=12, sound=Sound(beeps(2), codec=codec)
    )
    through(source, tmp_path / "b.mp4", None)
    assert close(beep_times(read_sound(tmp_path / "b.mp4")), [0, 0.5, 1, 1.5])


@pytest.mark.parametrize("kbps", [12, None])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_sound_that_starts_late_stays_late(
    tmp_path: Path, frames: Any, name: str, kbps: int | None
) -> None:
    sound = Sound(beeps(1), start=0.75)
    source = write_video(tmp_path / name, frames, fps=12, sound=sound)
    through(source, tmp_path / "b.mp4", kbps)
    assert close(beep_times(read_sound(tmp_path / "b.mp4")), [0.75, 1.25])


@pytest.mark.parametrize("kbps", [12, None])
def test_sound_longer_than_the_video_is_kept(tmp_path: Path, frames: Any, kbps: int | None) -> None:
    source = write_video(tmp_path / "a.mp4", frames[:12], fps=12, sound=Sound(beeps(2)))
    through(source, tmp_path / "b.mp4", kbps)
    assert close(beep_times(read_sound(tmp_path / "b.mp4")), [0, 0.5, 1, 1.5])


@pytest.mark.slow
def test_sound_much_longer_than_the_video_is_cut(tmp_path: Path, frames: Any) -> None:
    long = Sound(beeps(130, rate=8000), rate=8000)
    source = write_video(tmp_path / "a.mp4", frames[:2], sound=long)
    with VideoReader(source) as reader, AudioTrack(reader.source, reader.start) as track:
        packets = track.take(Fraction(0), None)[1]
        assert 119 < len(packets) * 0.06 <= 120.1


@pytest.mark.parametrize("kbps", [12, None])
def test_sound_shorter_than_the_video_ends_early(
    tmp_path: Path, frames: Any, kbps: int | None
) -> None:
    source = write_video(tmp_path / "a.mp4", frames, fps=12, sound=Sound(beeps(0.6)))
    through(source, tmp_path / "b.mp4", kbps, step=6)
    assert close(beep_times(read_sound(tmp_path / "b.mp4")), [0, 0.5])


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_other_sample_rates_keep_time(tmp_path: Path, frames: Any, rate: int) -> None:
    sound = Sound(beeps(2, rate=rate), rate=rate)
    source = write_video(tmp_path / "a.mp4", frames, fps=12, sound=sound)
    for kbps in (12, None):
        target = tmp_path / f"b{kbps}.mp4"
        through(source, target, kbps)
        assert close(beep_times(read_sound(target)), [0, 0.5, 1, 1.5])


def test_sound_that_changes_its_rate_half_way_keeps_time(tmp_path: Path, frames: Any) -> None:
    first = write_video(tmp_path / "a.ts", frames[:12], fps=12, sound=Sound(beeps(1)))
    other = write_video(
        tmp_path / "b.ts",
        frames[:12],
        fps=12,
        times=[1000 * t for t in range(14, 26)],  # the other begins 2 frames late: B-frames
        sound=Sound(beeps(1, rate=44100), rate=44100, start=14 / 12),
    )
    source = tmp_path / "c.ts"  # broadcasts change channels and rates between programmes
    source.write_bytes(first.read_bytes() + other.read_bytes())
    through(source, tmp_path / "d.mp4", 12)
    assert close(beep_times(read_sound(tmp_path / "d.mp4")), [0, 0.5, 1, 1.5])


def test_a_pause_in_the_sound_stays_a_pause(tmp_path: Path, frames: Any) -> None:
    source = write_video(tmp_path / "a.mkv", frames, fps=12, sound=Sound(beeps(2)))
    with VideoReader(source) as reader, AudioTrack(reader.source, reader.start) as track:
        pieces = [track.take(Fraction(t, 2), Fraction(t + 1, 2)) for t in range(3)]
        pieces.append(track.take(Fraction(3, 2), None))
        assert pieces[0][0] == -track.config.pre_skip
        starts = [t * 24000 + offset for t, (offset, _) in enumerate(pieces)]
        lengths = [len(packets) * 2880 for _, packets in pieces]
        assert starts[1:] == [s + n for s, n in zip(starts, lengths, strict=True)][:-1]


def test_gaps_in_copied_sound_are_kept_and_only_between_packets(
    tmp_path: Path, frames: Any
) -> None:
    sound = Sound(beeps(2), codec="libopus", hole=(0.7, 1.3))
    source = write_video(tmp_path / "a.mkv", frames, fps=12, sound=sound)
    with VideoReader(source) as reader:
        for kbps in (None, 12):
            through(source, tmp_path / "b.mp4", kbps, step=12)
            assert close(beep_times(read_sound(tmp_path / "b.mp4")), [0, 0.5, 1.5])
            (tmp_path / "b.mp4").unlink()
        with AudioTrack(reader.source, reader.start, kbps=None) as track:
            first, second = (track.take(Fraction(t), Fraction(t + 1))[1] for t in range(2))
        assert b"" not in first
        assert second[0] != b""


def test_a_reader_says_what_sound_there_is(tmp_path: Path, frames: Any) -> None:
    source = write_video(tmp_path / "a.mp4", frames, fps=12, sound=Sound(beeps(1), start=0.5))
    with VideoReader(source) as reader:
        assert reader.audio is not None
        assert (reader.audio.codec, reader.audio.channels, reader.audio.rate) == ("aac", 1, 48000)
        assert abs(reader.audio.start - 0.5) < FRAME
        assert reader.audio.copyable and reader.audio.tracks == 1
    silent = write_video(tmp_path / "b.mp4", frames[:2])
    with VideoReader(silent) as reader:
        assert reader.audio is None
        with pytest.raises(MediaError, match="no sound"):
            AudioTrack(reader.source, reader.start)


def test_a_second_sound_track_is_said_to_be_left_out(clip: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.mkv"
    with av.open(str(clip)) as given, av.open(str(source), "w") as output:
        kinds = (given.streams.video[0], given.streams.audio[0], given.streams.audio[0])
        copies = [output.add_stream_from_template(kind) for kind in kinds]
        for packet in given.demux():
            packet.stream = copies[packet.stream.index]
            if packet.size:
                output.mux(packet)
    report = encode(source, tmp_path / "a.svc", EncodeOptions(preset=12))
    assert report.notes == ["the first of 2 sound tracks is kept"]
    silent = encode(source, tmp_path / "b.svc", EncodeOptions(preset=12, audio="none"))
    assert silent.notes == []


def test_sound_that_cannot_be_copied_is_refused_clearly(tmp_path: Path, frames: Any) -> None:
    source = write_video(tmp_path / "a.mkv", frames[:3], sound=Sound(beeps(0.5), codec="pcm_f32le"))
    with VideoReader(source) as reader:
        assert reader.audio is not None
        assert not reader.audio.copyable
        with pytest.raises(UnsupportedError, match="--audio opus encodes it"):
            AudioTrack(reader.source, reader.start, kbps=None)


def test_aac_of_a_transport_stream_is_refused_as_such(tmp_path: Path, frames: Any) -> None:
    source = write_video(tmp_path / "a.ts", frames[:3], sound=Sound(beeps(0.5)))
    with (
        VideoReader(source) as reader,
        pytest.raises(UnsupportedError, match=r"this aac sound.*AAC of MP4 and Matroska"),
    ):
        AudioTrack(reader.source, reader.start, kbps=None)


@pytest.mark.parametrize("lengths", [[2880, 960, 960], [2880, 2880, 960, 2880]])
def test_packets_of_different_lengths_are_not_copied(lengths: list[int]) -> None:
    packets, config = [], AudioConfig(AudioCodec.OPUS, 1, 48000, 2880)
    for index, length in enumerate(lengths):
        packets.append(av.Packet(b"sound"))
        packets[-1].pts, packets[-1].duration = sum(lengths[:index]), length
    run = _run(iter(packets), config, Fraction(1, 48000), Fraction(0))
    with pytest.raises(UnsupportedError, match="differ in length"):
        list(run)
    last_is_short = _run(iter(packets[:2]), config, Fraction(1, 48000), Fraction(0))
    assert len(list(last_is_short)) == 2


def test_rates_out_of_range_are_refused(tmp_path: Path, frames: Any) -> None:
    source = write_video(tmp_path / "a.mp4", frames[:3], sound=Sound(beeps(0.5)))
    with VideoReader(source) as reader, pytest.raises(ValueError, match="kbit"):
        AudioTrack(reader.source, reader.start, kbps=1)


packets = st.lists(st.binary(min_size=1, max_size=300), max_size=8).map(tuple)


@given(st.integers(-(1 << 27) + 1, (1 << 27) - 1), packets)
def test_packets_round_trip_and_every_other_spelling_is_refused(
    offset: int, content: tuple[bytes, ...]
) -> None:
    audio = Audio(offset if content else 0, content)
    payload, check = encode_audio(audio, 9)
    assert decode_audio(payload, 9) == (audio, check)
    for cut in range(1, len(payload)):
        try:
            other, _ = decode_audio(payload[:cut])
        except BitstreamError:
            continue
        assert encode_audio(other)[0] == payload[:cut]


def test_gaps_are_only_between_packets() -> None:
    assert decode_audio(encode_audio(Audio(0, (b"a", b"", b"", b"b")))[0])[0].packets[2] == b""
    for content in ((b"",), (b"", b"a"), (b"a", b"")):
        with pytest.raises(ValueError, match="gaps"):
            Audio(0, content)
    for payload in (b"\x00", b"\x00\x00", b"\x00\x01a\x00", b"\x80\x00\x01a", b"\x00\x05abc"):
        with pytest.raises(BitstreamError):
            decode_audio(payload)


def test_a_flood_of_packets_is_refused() -> None:
    with pytest.raises(BitstreamError, match="more than"):
        decode_audio(bytes(100_000))


configs = st.builds(
    AudioConfig,
    st.sampled_from([codec for codec in AudioCodec if codec != AudioCodec.OPUS]),
    st.integers(1, 8),
    st.integers(4000, 192_000),
    st.integers(1, 65535),
    st.integers(0, 65535),
    st.binary(max_size=40),
)


@given(configs)
def test_configurations_round_trip(config: AudioConfig) -> None:
    assert AudioConfig.from_bytes(config.to_bytes()) == config


def test_the_opus_configuration_takes_six_bytes() -> None:
    config = AudioConfig(AudioCodec.OPUS, 1, 48000, 2880, 312)
    assert len(config.to_bytes()) == 6
    assert AudioConfig.from_bytes(config.to_bytes()) == config


@given(st.binary(max_size=80))
def test_any_bytes_are_a_configuration_or_a_clear_error(data: bytes) -> None:
    try:
        config = AudioConfig.from_bytes(data)
    except (BitstreamError, UnsupportedError):
        return
    assert config.to_bytes() == data
