"""What a stream says once about its sound: codec, channels, rate. Without FFmpeg.

Layout of `AudioConfig.to_bytes` (little-endian): codec u8, channels u8, samples per packet u16,
pre-skip u16, sample rate u24 (left out for Opus: always 48,000), then the codec's own header.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from semvc.errors import BitstreamError, UnsupportedError

MAX_CONFIG_BYTES = 64
MAX_CHANNELS = 8
_HEAD = struct.Struct("<BBHH")
_SECTION = "audio configuration"


class AudioCodec(IntEnum):
    """Codecs of sound; numbers are part of the format (1.0)."""

    OPUS = 1
    AAC = 2
    MP3 = 3
    AC3 = 4
    EAC3 = 5
    FLAC = 6


@dataclass(frozen=True, slots=True)
class AudioConfig:
    """Constant properties of the packets of a stream's sound.

    `rate` is in samples per second; `packet_samples` is how long each packet lasts; `pre_skip` is
    how many samples at the very start are not shown; `header` is the codec's own (AAC:
    AudioSpecificConfig, FLAC: STREAMINFO, others empty).
    """

    codec: AudioCodec
    channels: int
    rate: int
    packet_samples: int
    pre_skip: int = 0
    header: bytes = b""

    def to_bytes(self) -> bytes:
        """Return the wire form; ValueError when a field is out of range."""
        if self.codec == AudioCodec.OPUS and self.rate != 48000:
            raise ValueError("Opus always counts 48,000 samples per second")
        head = _HEAD.pack(self.codec, self.channels, self.packet_samples, self.pre_skip)
        rate = b"" if self.codec == AudioCodec.OPUS else self.rate.to_bytes(3, "little")
        data = head + rate + self.header
        if AudioConfig.from_bytes(data) != self:
            raise ValueError(f"not a valid configuration: {self}")
        return data

    @staticmethod
    def from_bytes(data: bytes) -> AudioConfig:
        """Return the configuration; BitstreamError if malformed, UnsupportedError if unknown."""
        if not _HEAD.size <= len(data) <= MAX_CONFIG_BYTES:
            raise BitstreamError(f"{len(data)} bytes", section=_SECTION)
        code, channels, samples, pre_skip = _HEAD.unpack_from(data)
        try:
            codec = AudioCodec(code)
        except ValueError:
            raise UnsupportedError(f"audio codec {code} is not known to this version") from None
        rest = data[_HEAD.size :]
        rate = 48000
        if codec != AudioCodec.OPUS:
            rate, rest = int.from_bytes(rest[:3], "little"), rest[3:]
        elif rest:
            raise BitstreamError("Opus has no header here", section=_SECTION)
        if not 1 <= channels <= MAX_CHANNELS or not 4000 <= rate <= 192000 or samples == 0:
            raise BitstreamError(f"{channels} channels at {rate} Hz", section=_SECTION)
        return AudioConfig(codec, channels, rate, samples, pre_skip, rest)
