"""Sound of a segment: packets of Opus, or of the input's own codec, and where the first one lies.

Payload: the offset as a zigzag varint, then each packet with its length before it. A length of zero
is a gap that lasts as long as a packet.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from semvc.bitstream.wire import Cursor, uv_bytes
from semvc.errors import BitstreamError
from semvc.types import Limits

MAX_PACKETS = 1 << 16
MAX_PACKET_BYTES = 1 << 16
MAX_OFFSET = 1 << 27  # samples; what the varint holds
_SECTION = "AUDIO"


@dataclass(frozen=True, slots=True)
class Audio:
    """The packets that begin within a segment.

    `offset` is where the first one begins, in samples after the segment's first frame (negative
    at the start of a stream, when the codec needs samples to settle). ValueError unless packets
    and offset are within bounds, and neither the first nor the last packet is a gap.
    """

    offset: int
    packets: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not -MAX_OFFSET < self.offset < MAX_OFFSET or (self.offset and not self.packets):
            raise ValueError(f"an offset of {self.offset} samples")
        if len(self.packets) > MAX_PACKETS:
            raise ValueError(f"{len(self.packets)} packets, at most {MAX_PACKETS}")
        if self.packets and not (self.packets[0] and self.packets[-1]):
            raise ValueError("gaps belong between packets")
        if any(len(packet) > MAX_PACKET_BYTES for packet in self.packets):
            raise ValueError(f"a packet has at most {MAX_PACKET_BYTES} bytes")

    def canonical_bytes(self) -> bytes:
        """Offset, packet lengths and packets."""
        sizes = [len(packet) for packet in self.packets]
        head = struct.pack(f"<iI{len(sizes)}I", self.offset, len(sizes), *sizes)
        return head + b"".join(self.packets)


def encode_audio(audio: Audio, check: int = 0) -> tuple[bytes, int]:
    """Payload of an audio section and the chained check, which holds no symbols of it."""
    if not audio.packets:
        return b"", check
    parts = [uv_bytes(2 * audio.offset if audio.offset >= 0 else -2 * audio.offset - 1)]
    for packet in audio.packets:
        parts += (uv_bytes(len(packet)), packet)
    return b"".join(parts), check


def decode_audio(payload: bytes, check: int = 0) -> tuple[Audio, int]:
    """Inverse of `encode_audio`; BitstreamError for anything that it does not write."""
    if not payload:
        return Audio(0, ()), check
    cursor = Cursor(payload, Limits())
    cursor.field = _SECTION
    folded = cursor.uv()
    packets: list[bytes] = []
    while cursor.rest():
        if len(packets) == MAX_PACKETS:
            raise BitstreamError(f"more than {MAX_PACKETS} packets", section=_SECTION)
        packets.append(cursor.take(cursor.uv()))
    if not packets:
        raise BitstreamError("an offset without packets", section=_SECTION)
    try:
        return Audio(-(folded + 1) // 2 if folded & 1 else folded // 2, tuple(packets)), check
    except ValueError as error:
        raise BitstreamError(str(error), section=_SECTION) from error
