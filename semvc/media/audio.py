"""Sound: read, encoded as Opus or copied packet by packet, and given to a muxer again.

Times are counted in samples from the first video frame. A stream's packets form one continuous
run, dealt out to segments by where they begin; each segment says where its first packet lies.
A packet of zero bytes stands for a gap as long as a packet.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av
import numpy as np

from semvc.errors import MediaError, UnsupportedError
from semvc.media.audioformat import AudioCodec, AudioConfig
from semvc.media.source import Source, reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

DEFAULT_KBPS = 12
MIN_KBPS, MAX_KBPS = 6, 256
STEREO_KBPS = 24  # more than this is enough for two channels
MAX_LAST_SECONDS = 120  # of sound in the last segment: what goes on for longer is left out
_MAX_TAKE_BYTES = 1 << 20
_OPUS_RATE = 48000
_OPUS_PACKET = 2880  # 60 ms: fewest bytes around the sound
_GAP = _OPUS_RATE // 50  # a jump in time of this many samples is real, less is rounding
_MAX_GAP_PACKETS = 50_000
_COPYABLE = {
    "opus": AudioCodec.OPUS,
    "aac": AudioCodec.AAC,
    "mp3": AudioCodec.MP3,
    "mp3float": AudioCodec.MP3,
    "ac3": AudioCodec.AC3,
    "eac3": AudioCodec.EAC3,
    "flac": AudioCodec.FLAC,
}
_ENCODERS = {  # only opened to let the muxer know the codec's parameters
    AudioCodec.OPUS: "libopus",
    AudioCodec.AAC: "aac",
    AudioCodec.MP3: "libmp3lame",
    AudioCodec.AC3: "ac3",
    AudioCodec.EAC3: "eac3",
    AudioCodec.FLAC: "flac",
}

Packets = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class AudioStreamInfo:
    """Sound of an input: `start` is in seconds after the first video frame (may be negative).

    It is the first of `tracks` that can be used.
    """

    codec: str
    channels: int
    rate: int
    start: Fraction
    copyable: bool
    tracks: int


def describe_audio(
    container: av.container.InputContainer, video_start: Fraction
) -> AudioStreamInfo | None:
    """Return what sound `container` has, None without any. Only the first track counts."""
    stream = _stream(container)
    if stream is None:
        return None
    start = (stream.start_time or 0) * (stream.time_base or Fraction(1)) - video_start
    context = stream.codec_context
    copyable = context.name in _COPYABLE and _config(stream, 1) is not None
    return AudioStreamInfo(
        context.name,
        context.channels,
        context.sample_rate,
        start,
        copyable,
        len(container.streams.audio),
    )


class AudioTrack:
    """The packets of an input's sound, in order; a context manager.

    With `kbps` the sound is encoded as Opus, mono up to 24 kbit/s; with None its own packets are
    copied. `config` describes the packets. MediaError if the sound cannot be decoded,
    UnsupportedError if it cannot be copied.
    """

    def __init__(
        self, source: Source, video_start: Fraction, *, kbps: int | None = DEFAULT_KBPS
    ) -> None:
        if kbps is not None and not MIN_KBPS <= kbps <= MAX_KBPS:
            raise ValueError(f"{kbps} kbit/s, allowed {MIN_KBPS} to {MAX_KBPS}")
        self._container = source.open()
        stream = _stream(self._container)
        if stream is None:
            raise MediaError(f"{source.name} has no sound")
        packets: Iterator[tuple[int, bytes]]
        if kbps is None:
            self.config, packets = _copied(self._container, stream, video_start)
        else:
            self.config, packets = _encoded(self._container, stream, video_start, kbps)
        self._name = source.name
        self._packets = packets
        self._next: tuple[int, bytes] | None = None

    def __enter__(self) -> AudioTrack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the input."""
        self._container.close()

    @property
    def has_more(self) -> bool:
        """Whether there are packets that nobody has taken."""
        return self._peek() is not None

    def take(
        self, start: Fraction, end: Fraction | None, *, video_end: Fraction = Fraction(0)
    ) -> tuple[int, Packets]:
        """Return (samples from `start` to the first packet, the packets) up to `end`.

        All are in seconds after the first video frame; calls must follow each other in time. The
        last call passes None and gets what is left, at most a mebibyte, and at most up to
        `MAX_LAST_SECONDS` after `video_end`, which is 0 if not known. No packets: the offset is 0.
        """
        rate = self.config.rate
        last = sample_at(max(start, video_end) + MAX_LAST_SECONDS if end is None else end, rate)
        zero, first = sample_at(start, rate), 0
        found: list[bytes] = []
        size = 0
        while (item := self._peek()) is not None and item[0] < last:
            if end is None and size > _MAX_TAKE_BYTES:
                break
            self._next = None
            if not found:
                first = item[0]
            if found or item[1]:  # gaps at the start say nothing
                size += len(item[1])
                found.append(item[1])
        while found and not found[-1]:  # nor at the end
            found.pop()
        return (first - zero if found else 0), tuple(found)

    def _peek(self) -> tuple[int, bytes] | None:
        if self._next is None:
            try:
                self._next = next(self._packets, None)
            except av.FFmpegError as error:
                raise MediaError(f"{self._name}: damaged sound{reason(error)}") from error
        return self._next


class AudioMuxer:
    """Puts packets into an output container that has not been started yet."""

    def __init__(self, container: av.container.OutputContainer, config: AudioConfig) -> None:
        self._container, self._config = container, config
        self._next: int | None = None
        name = _ENCODERS[config.codec]
        layout = {1: "mono", 2: "stereo", 6: "5.1"}.get(config.channels, f"{config.channels}c")
        try:
            stream = container.add_stream(name, rate=config.rate, layout=layout)
            self._stream = cast("av.AudioStream", stream)
            self._stream.codec_context.open()
        except (av.FFmpegError, ValueError) as error:
            what = f"{config.codec.name} sound with {config.channels} channels"
            raise UnsupportedError(f"{what} cannot be written{reason(error)}") from error
        self._stream.time_base = Fraction(1, config.rate)
        if config.codec == AudioCodec.OPUS:
            self._stream.codec_context.extradata = _opus_header(config)
        elif config.header:
            self._stream.codec_context.extradata = config.header

    def write(self, start: int, packets: Packets) -> None:
        """Mux `packets`; the first begins `start` samples after the first video frame."""
        length = self._config.packet_samples
        if self._next is not None and (start < self._next or start - self._next <= 2):
            start = self._next  # rounding of a segment's start, or an overlap
        for index, data in enumerate(packets):
            if data:
                packet = av.Packet(data)
                packet.pts = packet.dts = start + index * length
                packet.duration, packet.time_base = length, Fraction(1, self._config.rate)
                packet.stream = self._stream
                self._container.mux(packet)
        self._next = start + len(packets) * length


def sample_at(seconds: Fraction, rate: int) -> int:
    """Return the sample nearest to a time; both directions of the codec use this rule."""
    return int((seconds * rate + Fraction(1, 2)) // 1)


def _stream(container: av.container.InputContainer) -> av.AudioStream | None:
    for stream in container.streams.audio:
        if stream.codec_context is not None and stream.codec_context.sample_rate:
            return stream
    return None


def _config(stream: av.AudioStream, samples: int) -> AudioConfig | None:
    """The configuration for copying, None if the stream's properties do not fit one."""
    context = stream.codec_context
    codec, header, skip = _COPYABLE[context.name], context.extradata or b"", 0
    if codec == AudioCodec.OPUS:
        if context.channels > 2 or len(header) < 19:
            return None
        header, skip = b"", int.from_bytes(header[10:12], "little")
    elif codec not in (AudioCodec.AAC, AudioCodec.FLAC):
        header = b""
    elif not header:
        return None  # AAC with a header in every packet
    rate = _OPUS_RATE if codec == AudioCodec.OPUS else context.sample_rate
    config = AudioConfig(codec, context.channels, rate, samples, skip, header)
    try:
        config.to_bytes()
    except ValueError:
        return None
    except Exception as error:
        raise MediaError(str(error)) from error
    return config


def _opus_header(config: AudioConfig) -> bytes:
    head = b"OpusHead\x01" + bytes([config.channels]) + config.pre_skip.to_bytes(2, "little")
    return head + _OPUS_RATE.to_bytes(4, "little") + bytes(3)


def _copied(
    container: av.container.InputContainer, stream: av.AudioStream, video_start: Fraction
) -> tuple[AudioConfig, Iterator[tuple[int, bytes]]]:
    """Own packets with their start in samples; gaps filled with empty ones, overlaps dropped."""
    name = stream.codec_context.name
    packets = (p for p in container.demux(stream) if p.size and p.pts is not None)
    first = next(packets, None)
    config = None
    if first is not None and name in _COPYABLE:
        scale = (stream.time_base or Fraction(1)) * stream.codec_context.sample_rate
        if name == "opus":
            scale = (stream.time_base or Fraction(1)) * _OPUS_RATE
        config = _config(
            stream, round((first.duration or 0) * scale) or stream.codec_context.frame_size
        )
    if config is None or first is None:
        raise UnsupportedError(
            f"this {name} sound cannot be copied (AC3, EAC3, FLAC and MP3 can, AAC of MP4 and"
            " Matroska, Opus of up to two channels): --audio opus encodes it"
        )
    chain = itertools.chain((first,), packets)
    return config, _run(chain, config, (stream.time_base or Fraction(1)), video_start)


def _run(
    packets: Iterator[av.Packet[av.AudioStream]],
    config: AudioConfig,
    base: Fraction,
    video_start: Fraction,
) -> Iterator[tuple[int, bytes]]:
    length, expected, short = config.packet_samples, None, False
    for packet in packets:
        if short:
            raise UnsupportedError(
                "sound whose packets differ in length cannot be copied: --audio opus encodes it"
            )
        short = 0 < (packet.duration or 0) * base * config.rate < length * Fraction(3, 4)
        at = sample_at((packet.pts or 0) * base - video_start, config.rate)
        if at + 2 * length <= 0:
            continue  # one packet before the first frame is kept: decoders need it to settle
        if expected is None:
            expected = at
        if at < expected - length // 2:
            continue
        gap = (at - expected + length // 2) // length
        if gap > _MAX_GAP_PACKETS:
            raise _too_wide(gap * length // config.rate)
        for _ in range(gap):
            yield expected, b""
            expected += length
        yield expected, bytes(packet)
        expected += length


def _encoded(
    container: av.container.InputContainer,
    stream: av.AudioStream,
    video_start: Fraction,
    kbps: int,
) -> tuple[AudioConfig, Iterator[tuple[int, bytes]]]:
    channels = 1 if kbps <= STEREO_KBPS or stream.codec_context.channels == 1 else 2
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout = _OPUS_RATE, "mono" if channels == 1 else "stereo"
    encoder.format, encoder.bit_rate = "flt", kbps * 1000
    encoder.time_base = Fraction(1, _OPUS_RATE)
    encoder.options = {"frame_duration": "60", "application": "audio", "vbr": "on"}
    encoder.open()
    skip = int.from_bytes((encoder.extradata or bytes(12))[10:12], "little")
    config = AudioConfig(AudioCodec.OPUS, channels, _OPUS_RATE, _OPUS_PACKET, skip)
    blocks = _blocks(_timed_samples(container, stream, video_start, channels))
    return config, _opus(encoder, blocks, skip)


def _timed_samples(
    container: av.container.InputContainer,
    stream: av.AudioStream,
    video_start: Fraction,
    channels: int,
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Decoded sound as (start, float32 [samples, channels]) at 48 kHz."""
    resampler, before = None, None
    for packet in container.demux(stream):
        try:
            decoded = packet.decode()
        except av.FFmpegError:
            continue  # a damaged packet becomes a gap, as in players
        for frame in decoded:
            if frame.pts is None:
                continue
            at = sample_at(frame.pts * (frame.time_base or 0) - video_start, _OPUS_RATE)
            frame.pts = None  # the resampler counts by itself; its small delay is compensated
            kind = (frame.format.name, frame.layout.name, frame.sample_rate)
            if resampler is None or kind != before:  # broadcasts change in the middle
                layout = "mono" if channels == 1 else "stereo"
                resampler, before = av.AudioResampler("flt", layout, _OPUS_RATE), kind
            for out in resampler.resample(frame):
                yield at, out.to_ndarray().astype(np.float32, copy=False).reshape(-1, channels)


def _blocks(
    pieces: Iterator[tuple[int, npt.NDArray[np.float32]]],
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """The same sound without jumps, from time 0 at the earliest, in blocks of a packet's length."""
    waiting: list[npt.NDArray[np.float32]] = []
    begin, end = 0, None
    for at, samples in pieces:
        if end is None:
            samples = samples[max(0, -at) :]
            begin = end = max(0, at)
            at = begin
            if not len(samples):
                end = None
                continue
        if at - end > _GAP:
            waiting.extend(_silence(at - end, samples.shape[1]))
            end = at
        elif end - at > _GAP:
            samples = samples[end - at :]
        waiting.append(samples)
        end += len(samples)
        if end - begin >= _OPUS_PACKET:
            joined = np.concatenate(waiting)
            whole = len(joined) - len(joined) % _OPUS_PACKET
            for start in range(0, whole, _OPUS_PACKET):
                yield begin + start, joined[start : start + _OPUS_PACKET]
            begin, waiting = begin + whole, [joined[whole:]]
    rest = np.concatenate(waiting) if waiting else np.empty((0, 1), np.float32)
    if len(rest):
        yield begin, np.pad(rest, ((0, _OPUS_PACKET - len(rest)), (0, 0)))


def _too_wide(seconds: int) -> MediaError:
    return MediaError(
        f"a gap of {seconds} seconds in the sound, as where recordings were joined; 'ffmpeg -i IN"
        " -c copy OUT.mkv' gives them new times, --audio none leaves the sound out"
    )


def _silence(samples: int, channels: int) -> list[npt.NDArray[np.float32]]:
    if samples > _MAX_GAP_PACKETS * _OPUS_PACKET:
        raise _too_wide(samples // _OPUS_RATE)
    return [np.zeros((samples, channels), np.float32)]


def _opus(
    encoder: av.AudioCodecContext,
    blocks: Iterator[tuple[int, npt.NDArray[np.float32]]],
    skip: int,
) -> Iterator[tuple[int, bytes]]:
    begin: int | None = None
    count = 0
    for start, block in blocks:
        begin = start if begin is None else begin
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(block).reshape(1, -1), format="flt", layout=encoder.layout.name
        )
        frame.sample_rate, frame.pts = _OPUS_RATE, start
        frame.time_base = Fraction(1, _OPUS_RATE)
        for packet in encoder.encode(frame):
            yield begin - skip + count * _OPUS_PACKET, bytes(packet)
            count += 1
    if begin is None:
        return
    for packet in encoder.encode(None):
        yield begin - skip + count * _OPUS_PACKET, bytes(packet)
        count += 1
