"""What must hold for any bytes that a reader is given; shared by tests and fuzzing."""

from __future__ import annotations

import io

from strategies import key

from semvc.bitstream.container import StreamReader, probe, verify
from semvc.bitstream.segments import pack
from semvc.errors import SemvcError


def check_damaged(raw: bytes, expected: list[tuple[object, ...]]) -> None:
    """Damaged bytes give only declared errors, and nothing at a wrong place."""
    try:
        reader = StreamReader(io.BytesIO(raw), salvage=True)
        found = [key(segment) for segment in reader]
    except SemvcError:
        found = []
    assert set(found) <= set(expected)
    assert sorted(found) == found
    strict = []
    try:
        for segment in StreamReader(io.BytesIO(raw)):
            strict.append(key(segment))
    except SemvcError:
        assert strict == expected[: len(strict)]
    else:
        assert strict == expected


def check_hostile(raw: bytes) -> None:
    """A hostile stream gives only declared errors; what parses is canonical and within limits."""
    for salvage in (False, True):
        try:
            reader = StreamReader(io.BytesIO(raw), salvage=salvage)
            if not (salvage and reader.warnings and "copy" in reader.warnings[0]):
                assert raw.startswith(reader.header.to_bytes())
            for segment in reader:
                assert 1 <= segment.frames <= reader.header.segment_frames
                kind, payload = pack(
                    reader.header, segment.frames, segment.sections, segment.state_check
                )
                chunk = raw[segment.offset : segment.offset + segment.chunk_bytes]
                assert chunk[0] >> 4 == kind and payload in chunk
            probe(io.BytesIO(raw))
            verify(io.BytesIO(raw))
            reader.at_frame(1)
        except SemvcError:
            continue
