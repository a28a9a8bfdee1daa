"""Keyframes: pictures from which a segment is made, as one short AV1 sequence.

The payload says where in the segment they lie and how large they are, then come OBUs as in a base
layer. Plain bytes: nothing of it is entropy coded here.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

from semvc.bitstream.wire import Cursor, uv_bytes
from semvc.errors import BitstreamError
from semvc.media import obu
from semvc.types import Limits

FACTORS = (1, 2, 4, 8)
MAX_KEYFRAMES = 16
MIN_CRF, MAX_CRF = 7, 70
_SECTION = "KEYFRAME"


@dataclass(frozen=True, slots=True)
class Keyframes:
    """`places` are frames of the segment, rising; the first is 0; at most 16.

    `factor` (1, 2, 4 or 8) is how much smaller the pictures are than the video, rounded as base
    layers are; `crf` in 7..70 tells the generator how coarse they are. `obus` are AV1 frames, to
    be decoded with `sequence_header`, one picture for each place. ValueError otherwise.
    """

    places: tuple[int, ...]
    factor: int
    crf: int
    sequence_header: bytes
    obus: bytes

    def __post_init__(self) -> None:
        if not 1 <= len(self.places) <= MAX_KEYFRAMES or self.places[0] != 0:
            raise ValueError(f"keyframes at {self.places}")
        if any(b <= a for a, b in itertools.pairwise(self.places)):
            raise ValueError(f"keyframes at {self.places} do not rise")
        if self.factor not in FACTORS or not MIN_CRF <= self.crf <= MAX_CRF:
            raise ValueError(f"keyframes of factor {self.factor}, crf {self.crf}")

    def canonical_bytes(self) -> bytes:
        """Every field, the bytes with their lengths."""
        head = struct.pack("<BBB", self.factor, self.crf, len(self.places))
        places = struct.pack(f"<{len(self.places)}H", *self.places)
        sizes = struct.pack("<II", len(self.sequence_header), len(self.obus))
        return head + places + sizes + self.sequence_header + self.obus


def encode_keyframes(
    keyframes: Keyframes, shared_header: bytes, check: int = 0
) -> tuple[bytes, int]:
    """Payload of a KEYFRAME section and the chained check, which holds no symbols of it.

    `shared_header` is the sequence header that the stream states.
    """
    own = b"" if keyframes.sequence_header == shared_header else keyframes.sequence_header
    head = FACTORS.index(keyframes.factor) << 6 | keyframes.crf - MIN_CRF
    places = keyframes.places
    gaps = (b - a - 1 for a, b in itertools.pairwise(places))
    data = bytes((head, len(places) - 1)) + b"".join(uv_bytes(gap) for gap in gaps)
    return data + own + keyframes.obus, check


def decode_keyframes(
    payload: bytes, frames: int, shared_header: bytes, check: int = 0
) -> tuple[Keyframes, int]:
    """Inverse of `encode_keyframes` for a segment of `frames` frames; BitstreamError for damage."""
    if len(payload) < 2 or payload[1] >= MAX_KEYFRAMES:
        raise BitstreamError("keyframes have no such head", section=_SECTION)
    cursor = Cursor(payload[2:], Limits(), base=2)
    cursor.field = "keyframe gap"
    places = [0]
    for _ in range(payload[1]):
        places.append(places[-1] + 1 + cursor.uv())
    if places[-1] >= frames:
        raise BitstreamError(f"keyframe {places[-1]} of {frames} frames", section=_SECTION)
    coded = cursor.take(cursor.rest())
    obus = list(obu.split_obus(coded))
    header = shared_header
    if obus and obus[0][0] == obu.SEQUENCE_HEADER:
        header, coded = obus[0][1], coded[len(obus[0][1]) :]
        if header == shared_header:
            raise BitstreamError("a sequence header that the stream states", section=_SECTION)
        obus = obus[1:]
    if not obus or any(kind not in obu.CODED for kind, _ in obus):
        raise BitstreamError("something else than coded frames", section=_SECTION)
    factor = FACTORS[payload[0] >> 6]
    return Keyframes(tuple(places), factor, (payload[0] & 63) + MIN_CRF, header, coded), check
