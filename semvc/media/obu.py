"""AV1 open bitstream units: told apart, and checked before a native decoder sees them (AV1 5.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semvc.errors import BitstreamError, LimitError

if TYPE_CHECKING:
    from collections.abc import Iterator

SECTION = "BASE_AV1"
SEQUENCE_HEADER, FRAME_HEADER, TILE_GROUP, FRAME = 1, 3, 4, 6
CODED = (FRAME_HEADER, TILE_GROUP, FRAME)


def split_obus(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (type, whole OBU) of a sequence of OBUs that all carry their size.

    BitstreamError for reserved bits, a missing or over-long size, or a size beyond the end.
    """
    at = 0
    while at < len(data):
        head = data[at]
        if head & 0x81 or not head & 2:
            raise BitstreamError("OBU header", offset=at, section=SECTION)
        kind, start = head >> 3 & 15, at + 1 + (head >> 2 & 1)
        size = 0
        for shift in range(0, 28, 7):
            if start >= len(data):
                raise BitstreamError("OBU cut off", offset=at, section=SECTION)
            size |= (data[start] & 0x7F) << shift
            start += 1
            if not data[start - 1] & 0x80:
                break
        else:
            raise BitstreamError("OBU size", offset=at, section=SECTION)
        if start + size > len(data):
            raise BitstreamError("OBU cut off", offset=at, section=SECTION)
        yield kind, data[at : start + size]
        at = start + size


def check_sequence_header(obu: bytes, width: int, height: int) -> None:
    """Raise BitstreamError unless `obu` announces what this module writes.

    That is: main profile, 8 bit 4:2:0, pictures of `width` x `height` at most, one operating
    point, no still picture, no timing, no frame ids, no scaling, no film grain (AV1 5.5).
    """
    obus = list(split_obus(obu))
    if len(obus) != 1 or obus[0][0] != SEQUENCE_HEADER:
        raise BitstreamError("one sequence header expected", section=SECTION)
    bits = _Bits(obu[2:])  # such a header is short: its size takes one byte
    ok = bits.read(3) == 0  # profile
    ok &= bits.read(9) == 0  # still, reduced, timing, delay, operating points - 1
    bits.read(12)  # operating point
    if bits.read(5) > 7:  # level
        bits.read(1)
    sizes = bits.read(4) + 1, bits.read(4) + 1
    ok &= (bits.read(sizes[0]) + 1, bits.read(sizes[1]) + 1) == (width, height)
    ok &= bits.read(1) == 0  # frame ids
    bits.read(7)
    order_hint = bits.read(1)
    bits.read(2 * order_hint)
    tools = 2 if bits.read(1) else bits.read(1)
    if tools and not bits.read(1):
        bits.read(1)
    bits.read(3 * order_hint)
    ok &= bits.read(1) == 0  # super-resolution
    bits.read(2)
    ok &= bits.read(3) == 0  # not high bit depth, not monochrome, no colour description
    bits.read(4)
    ok &= bits.read(1) == 0  # film grain
    if not ok or bits.past_end:
        raise BitstreamError("sequence header asks for something else", section=SECTION)


def frame_packets(sequence_header: bytes, obus: bytes, frames: int) -> list[bytes]:
    """Return one packet for each coded or repeated frame; each gives one picture at most.

    The first also holds `sequence_header`. BitstreamError for other OBUs than frames or fewer
    packets than `frames`, LimitError for many more.
    """
    packets: list[bytes] = []
    for kind, obu in split_obus(obus):
        if kind == TILE_GROUP and packets:
            packets[-1] += obu
        elif kind in (FRAME_HEADER, FRAME):
            packets.append(obu)
        else:
            raise BitstreamError(f"OBU type {kind} in a segment", section=SECTION)
    if len(packets) < frames:
        raise BitstreamError(f"{len(packets)} coded frames for {frames}", section=SECTION)
    if len(packets) > 3 * frames + 8:  # hidden references and overlays included
        raise LimitError(f"base layer: {len(packets)} coded frames for {frames}")
    packets[0] = sequence_header + packets[0]
    return packets


class _Bits:
    """Reads bits, most significant first; zeros past the end."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            return 0
        return self._value >> self._left & ((1 << count) - 1)

    @property
    def past_end(self) -> bool:
        return self._left < 0
