"""Base layer: a small, coarse AV1 video that the generator enhances.

Its payload is one byte (the temporal factor's logarithm in the two high bits, the coarseness in the
six low ones) and the coded frames as OBUs. The AV1 sequence header comes first only where it
differs from the one that the stream states once. Sizes are stated by the stream, too.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from semvc.errors import BitstreamError
from semvc.media import obu

TEMPORAL_FACTORS = (1, 2, 4, 8)
MIN_CRF, MAX_CRF = 7, 70
_SECTION = obu.SECTION


@dataclass(frozen=True, slots=True)
class BaseLayer:
    """A segment's base layer.

    Every `temporal`-th frame (1, 2, 4 or 8) is coded, the first one included. `crf` in 7..70 tells
    the generator how coarsely (the encoder's setting, rounded). `obus` are AV1 frames, to be
    decoded with `sequence_header`. ValueError for factors or settings out of range.
    """

    temporal: int
    crf: int
    sequence_header: bytes
    obus: bytes

    def __post_init__(self) -> None:
        if self.temporal not in TEMPORAL_FACTORS or not MIN_CRF <= self.crf <= MAX_CRF:
            raise ValueError(f"temporal factor {self.temporal}, crf {self.crf}")

    def canonical_bytes(self) -> bytes:
        """Every field, the bytes with their lengths."""
        head = struct.pack(
            "<BBII", self.temporal, self.crf, len(self.sequence_header), len(self.obus)
        )
        return head + self.sequence_header + self.obus

    def coded_frames(self, frames: int) -> int:
        """Return how many frames are coded of a segment with `frames` frames."""
        return -(-frames // self.temporal)


def rounded_crf(crf: float) -> int:
    """Return the setting that a stream states for an encoder's `crf`."""
    return min(max(round(crf), MIN_CRF), MAX_CRF)


def encode_base_layer(layer: BaseLayer, shared_header: bytes, check: int = 0) -> tuple[bytes, int]:
    """Payload of a BASE_AV1 section and the chained check, which holds no symbols of it.

    `shared_header` is the sequence header that the stream states.
    """
    own = b"" if layer.sequence_header == shared_header else layer.sequence_header
    head = TEMPORAL_FACTORS.index(layer.temporal) << 6 | layer.crf - MIN_CRF
    return bytes([head]) + own + layer.obus, check


def decode_base_layer(
    payload: bytes, shared_header: bytes, check: int = 0
) -> tuple[BaseLayer, int]:
    """Inverse of `encode_base_layer`; BitstreamError unless the payload is canonical OBUs."""
    if not payload:
        raise BitstreamError("empty payload", section=_SECTION)
    obus = list(obu.split_obus(payload[1:]))
    header, coded = shared_header, payload[1:]
    if obus and obus[0][0] == obu.SEQUENCE_HEADER:
        header, coded = obus[0][1], payload[1 + len(obus[0][1]) :]
        if header == shared_header:
            raise BitstreamError("a sequence header that the stream states", section=_SECTION)
        obus = obus[1:]
    if not obus or any(kind not in obu.CODED for kind, _ in obus):
        raise BitstreamError("something else than coded frames", section=_SECTION)
    temporal = TEMPORAL_FACTORS[payload[0] >> 6]
    return BaseLayer(temporal, (payload[0] & 63) + MIN_CRF, header, coded), check
