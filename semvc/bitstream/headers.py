"""Headers of a stream, declared once, and the numbers that name profiles and sections.

`StreamHeader.to_bytes` and `parse_header` are inverse to each other: a valid header parses to a
value that writes the same bytes. Checks run in the order of FORMAT.md: magic, version, length,
checksum, required features, then each field and the limits that join several fields.
"""

# ruff: noqa: RUF009 - wire.field and wire.record are dataclasses.field with metadata

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from enum import IntEnum
from fractions import Fraction

from semvc.bitstream import fields, wire
from semvc.errors import BitstreamError, LimitError, NoStreamError, UnsupportedError
from semvc.types import ColorInfo, Limits

MAGIC = b"\x8aSVC"
VERSION = 0x10  # major << 4 | minor
MIN_BODY, MAX_BODY = 30, 250  # bytes between the length byte and the checksum
MAX_HEADER = 6 + MAX_BODY + 4
DEFAULT_LIMITS = Limits()
KNOWN_FEATURES = 0  # bits of `need` that this program understands


class ProfileId(IntEnum):
    """Decoding process of a stream. Append only."""

    TOY = 0  # 1.0: plain pictures, for tests
    DISCO = 1  # 1.0
    S2VC = 2  # 1.0
    CPSGD = 3  # 1.0


class SectionType(IntEnum):
    """What a section's payload holds. Append only; 128 and above may be skipped if unknown."""

    LATENT = 1  # 1.0
    CAPTION = 2  # 1.0
    BASE_AV1 = 3  # 1.0
    BASE_HEVC = 4  # 1.0, reserved
    SKETCH = 5  # 1.0
    SKELETON = 6  # 1.0
    CAMERA = 7  # 1.0
    MASK = 8  # 1.0
    AUDIO_OPUS = 9  # 1.0
    GRAIN = 10  # 1.0
    TIMING = 11  # 1.0
    KEYFRAME = 12  # 1.0
    AUDIO_COPY = 13  # 1.0
    DEPTH = 14  # 1.0
    OVERRIDE = 15  # 1.0, reserved

    @classmethod
    def _missing_(cls, value: object) -> SectionType | None:
        if not isinstance(value, int) or not 128 <= value <= 255:
            return None
        member = int.__new__(cls, value)
        member._name_, member._value_ = f"ANCILLARY_{value}", value
        return member

    @property
    def known(self) -> bool:
        """True if this program knows what the payload means."""
        return self < 128


AUDIO_SECTIONS = frozenset({SectionType.AUDIO_OPUS, SectionType.AUDIO_COPY})

FRAME_RATES = tuple(
    Fraction(text)
    for text in (
        *("24000/1001", "24", "25", "30000/1001", "30", "50", "60000/1001", "60"),
        *("1", "5", "8", "10", "12", "25/2", "15000/1001", "15"),
        *("20", "48", "100", "120000/1001", "120", "240"),
    )
)  # code 1 is the first; append only

COLORS = (
    ColorInfo(1, 1, 1, False),
    ColorInfo(1, 1, 1, True),
    ColorInfo(6, 6, 6, False),
    ColorInfo(6, 6, 6, True),
    ColorInfo(5, 6, 5, False),
    ColorInfo(5, 6, 6, False),
    ColorInfo(9, 14, 9, False),
    ColorInfo(9, 1, 9, False),
    ColorInfo(9, 16, 9, False),
    ColorInfo(9, 18, 9, False),
    ColorInfo(2, 2, 2, False),
    ColorInfo(2, 2, 2, True),
    ColorInfo(1, 13, 0, True),
    ColorInfo(1, 13, 1, True),
)  # code 1 is the first; append only


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamHeader:
    """Everything that a decoder must know before the first segment.

    `total_frames` 0 means not known when writing began. `frame_rate` is in frames per second: the
    nominal rate when `time_base` says that TIMING sections carry each frame's pts. `version` and
    `extra` (unknown ancillary records) are kept so that a newer stream is written back unchanged.
    """

    need: int = wire.field(
        fields.UInt(2), "required features: an unknown bit is refused", default=0
    )
    salt: int = wire.field(fields.UInt(4), "mixed into every checksum of the stream")
    entropy_id: bytes = wire.field(
        fields.Raw(8), "first 8 bytes of SHA-256 over the entropy coder's assets"
    )
    decoder_id: bytes = wire.field(
        fields.Raw(4), "first 4 bytes of SHA-256 of the decoder's manifest"
    )
    seed: int = wire.field(fields.UInt(4), "seed of the synthesis noise", default=0)
    width: int = wire.field(fields.UVar(16, limit="max_width"), "luma samples")
    height: int = wire.field(fields.UVar(16, limit="max_height"), "luma samples")
    frame_rate: Fraction = wire.field(
        fields.Ratio(Fraction(1, 60), Fraction(240), FRAME_RATES), "frames per second"
    )
    color: ColorInfo = wire.field(
        fields.Color(COLORS), "color of the source, to be restored", default=COLORS[0]
    )
    segment_frames: int = wire.field(
        fields.UVar(1, limit="max_segment_frames"), "frames of a SEGMENT chunk"
    )
    total_frames: int = wire.field(
        fields.UVar(0, limit="max_frames"), "frames announced; 0 if not known", default=0
    )
    profile: ProfileId = wire.field(fields.Nibble(ProfileId), "decoding process")
    preset: int = wire.field(
        fields.Nibble(), "row of the sampling table in the decoder's manifest", default=0
    )
    sections: tuple[SectionType, ...] = wire.field(
        fields.NibbleList(SectionType), "sections of every segment, in payload order"
    )
    sequence_header: bytes = wire.record(
        0x01, fields.Raw(), "AV1 sequence header OBU of the base layer", b""
    )
    base_size: tuple[int, int] | None = wire.record(
        0x02,
        fields.Pair(fields.UVar(1, limit="max_width")),
        "width and height of the base layer in luma samples",
        None,
    )
    audio: bytes = wire.record(0x03, fields.Raw(), "configuration of the audio sections", b"")
    time_base: Fraction | None = wire.record(
        0x04, fields.Ratio(), "seconds per pts tick; present if frame timing varies", None
    )
    codec_id: bytes = wire.record(
        0x05, fields.Raw(8), "first 8 bytes of SHA-256 of the latents' codec's manifest", b""
    )
    title: str = wire.record(0x81, fields.Text(), "free text, shown and never interpreted", "")
    extra: tuple[tuple[int, bytes], ...] = ()
    version: int = field(default=VERSION)

    def to_bytes(self, limits: Limits = DEFAULT_LIMITS) -> bytes:
        """Return the whole header, magic to checksum; raise UsageError or LimitError."""
        out = wire.Builder(limits)
        wire.write(self, out)
        self._check(limits)
        out.field = "header"
        out.bound(len(out.data), MIN_BODY, MAX_BODY)
        head = MAGIC + bytes((self.version, len(out.data))) + bytes(out.data)
        return head + zlib.crc32(head).to_bytes(4, "little")

    def to_json(self) -> dict[str, object]:
        """Return the fields as JSON-ready values: fractions as text, bytes as hexadecimal."""
        return {"version": f"{self.version >> 4}.{self.version & 15}", **wire.to_json(self)}

    def _check(self, limits: Limits) -> None:
        pixels = self.width * self.height
        if pixels > limits.max_pixels:
            raise LimitError(
                f"picture of {self.width}x{self.height}: the limit is {limits.max_pixels} pixels"
            )
        check_samples(self, self.total_frames, limits)
        if self.base_size is not None:
            width, height = self.base_size
            if width > self.width + 63 or height > self.height + 63:  # room for padding to 64
                raise LimitError(
                    f"base layer of {width}x{height} exceeds picture of {self.width}x{self.height}"
                )


def check_samples(header: StreamHeader, frames: int, limits: Limits) -> None:
    """Raise LimitError if a stream of `frames` frames is longer than `limits` allow."""
    if frames > limits.max_frames:
        raise LimitError(f"stream of {frames} frames: the limit is {limits.max_frames}")
    if header.width * header.height * frames > limits.max_samples:
        raise LimitError(
            f"{header.width}x{header.height} pixels times {frames} frames: the limit is"
            f" {limits.max_samples} samples"
        )


def header_size(data: bytes) -> int:
    """Return the length in bytes of the header that `data` (6 bytes or more) begins.

    Raises NoStreamError if these bytes begin none, UnsupportedError for a newer major
    version.
    """
    if data[:4] != MAGIC[: len(data)] or not data:
        raise NoStreamError
    if len(data) < 6:
        raise BitstreamError("the stream ends inside its header", offset=len(data))
    if data[4] >> 4 != VERSION >> 4:
        raise UnsupportedError(
            f"stream of format {data[4] >> 4}.{data[4] & 15}; this program reads"
            f" {VERSION >> 4}.x: a newer semvc can read it"
        )
    if not MIN_BODY <= data[5] <= MAX_BODY:
        raise BitstreamError(f"header length {data[5]} outside {MIN_BODY}..{MAX_BODY}", offset=5)
    return 6 + data[5] + 4


def parse_header(data: bytes, limits: Limits = DEFAULT_LIMITS) -> StreamHeader:
    """Return the header that `data` holds exactly.

    Raises BitstreamError, LimitError or UnsupportedError, naming the field and its byte.
    """
    size = header_size(data)
    if len(data) < size:
        raise BitstreamError("the stream ends inside its header", offset=len(data))
    if zlib.crc32(data[: size - 4]) != int.from_bytes(data[size - 4 : size], "little"):
        raise BitstreamError("the header's checksum does not hold", offset=size - 4)
    need = int.from_bytes(data[6:8], "little") & ~KNOWN_FEATURES
    if need:
        bits = ", ".join(str(bit) for bit in range(16) if need >> bit & 1)
        raise UnsupportedError(
            f"stream needs feature bit {bits}, unknown to format {VERSION >> 4}.{VERSION & 15}:"
            " a newer semvc can read it"
        )
    header = wire.read(StreamHeader, wire.Cursor(data[6 : size - 4], limits, base=6))
    object.__setattr__(header, "version", data[4])
    header._check(limits)
    return header
