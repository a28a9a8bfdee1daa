"""What must hold for any bytes that a reader is given; shared by tests and fuzzing."""

from __future__ import annotations

import io

from strategies import key

from semvc.bitstream.container import StreamInfo, StreamReader, probe, verify
from semvc.bitstream.headers import AUDIO_SECTIONS
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


def overhead_of(info: StreamInfo) -> tuple[int, list[int]]:
    """What FORMAT.md section 9 says that a stream costs: once, and each segment."""
    header, kinds = info.header, info.header.sections
    fields = (header.width, header.height, header.segment_frames, header.total_frames)
    once = 46 + sum(map(_uv, (*fields, info.frames))) + (len(kinds) + 2) // 2
    once += len(header.title.encode()) + 2 if header.title else 0
    each = []
    for row in info.table:
        sizes, missing = dict(row.sections), header.segment_frames - row.frames
        lengths = {kind: _uv(sizes.get(kind, 0)) for kind in kinds[:-1]}
        frames = _uv(missing) if missing else 0
        payload = sum(sizes.values()) + sum(lengths.values()) + frames + 2
        counted = sum(size for kind, size in lengths.items() if kind not in AUDIO_SECTIONS)
        each.append(8 + _uv(payload) + counted + frames)
    last = info.table[-1].offset + info.table[-1].bytes if info.table else 0
    once += len(header.to_bytes()) + 6 + _uv(len(header.to_bytes())) if last > 100_000 else 0
    return once, each


def _uv(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))
