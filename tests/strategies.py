"""Hypothesis strategies from the wire declarations, sample streams, and ways to damage them."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

from hypothesis import strategies as st

from semvc.bitstream import fields, wire
from semvc.bitstream.framing import ChunkType, Framing
from semvc.bitstream.headers import MAGIC, VERSION, ProfileId, SectionType, StreamHeader
from semvc.bitstream.reader import StreamReader
from semvc.bitstream.segments import Segment
from semvc.bitstream.writer import StreamWriter
from semvc.errors import LimitError, UsageError
from semvc.types import ColorInfo, Limits

S = SectionType


def values(kind: wire.Kind) -> st.SearchStrategy[Any]:
    """All values that a declared field may have."""
    match kind:
        case fields.UInt():
            return st.integers(0, 256**kind.size - 1)
        case fields.UVar():
            return st.integers(kind.low, kind.top(Limits()))
        case fields.Raw():
            size = kind.size or None
            return st.binary(min_size=size or 1, max_size=size or 20)
        case fields.Text():
            return st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
        case fields.Nibble():
            return st.sampled_from(kind.names) if kind.names else st.integers(0, 15)
        case fields.NibbleList():
            member = st.sampled_from(kind.names) | st.integers(128, 255).map(kind.names)
            return st.lists(member, min_size=1, max_size=15, unique=True).map(tuple)
        case fields.Ratio():
            part = st.integers(1, wire.UV_MAX)
            if kind.table:
                small = st.fractions(kind.low, kind.high, max_denominator=100_000)
                return st.sampled_from(kind.table) | small
            return st.builds(Fraction, part, part)
        case fields.Color():
            code = st.integers(0, 255)
            return st.sampled_from(kind.table) | st.builds(
                ColorInfo, code, code, code, st.booleans()
            )
        case fields.Pair():
            return st.tuples(values(kind.item), values(kind.item))
    raise TypeError(f"no strategy for {kind}")


def headers() -> st.SearchStrategy[StreamHeader]:
    """Valid headers of streams, from their declaration."""
    known: dict[str, st.SearchStrategy[Any]] = {}
    for item in wire.declared(StreamHeader):
        strategy = values(item.kind)
        if item.tag:
            absent = StreamHeader.__dataclass_fields__[item.name].default
            strategy = st.just(absent) | strategy
        known[item.name] = strategy
    known["need"] = st.just(0)
    known["base_size"] = st.none() | st.tuples(st.integers(1, 16), st.integers(1, 16))
    known["extra"] = st.sampled_from([(), ((0x90, b"future"),), ((0x80, b""), (0xFF, b"x"))])
    return st.builds(StreamHeader, **known).filter(is_valid)


def is_valid(header: StreamHeader) -> bool:
    """True if the limits that join several fields hold."""
    try:
        header.to_bytes()
    except (LimitError, UsageError):
        return False
    return True


@st.composite
def segments_of(draw: st.DrawFn, header: StreamHeader) -> list[tuple[int, dict[S, bytes], int]]:
    """Arguments of `StreamWriter.write` for a whole stream."""
    frames = st.just(header.segment_frames) | st.integers(1, header.segment_frames)
    payload = st.binary(max_size=12) | st.integers(0, 20_000).map(bytes)
    found = []
    for _ in range(draw(st.integers(0, 5))):
        sections = {kind: draw(payload) for kind in header.sections if kind != S.CAPTION}
        if S.CAPTION in header.sections:
            sections[S.CAPTION] = draw(st.binary(max_size=100))
        found.append((draw(frames), sections, draw(st.integers(0, 0xFFFF))))
    return found


def sample_header(**changes: Any) -> StreamHeader:
    """A header like that of an ordinary stream."""
    base = StreamHeader(
        salt=0x5EED,
        entropy_id=b"entropy!",
        decoder_id=b"deco",
        seed=7,
        width=854,
        height=480,
        frame_rate=Fraction(30),
        segment_frames=150,
        profile=ProfileId.DISCO,
        sections=(S.CAPTION, S.SKETCH, S.AUDIO_OPUS, S.BASE_AV1),
        sequence_header=b"\x0a\x0b\0\0\0\x24\xcf\x7f\xf2\xb0\x20\x08",
        base_size=(214, 120),
        audio=b"\0\1\0\x38\1",
    )
    return replace(base, **changes)


def fill(
    header: StreamHeader, rng: random.Random, segments: int, payload: int
) -> Iterator[tuple[int, dict[S, bytes], int]]:
    """Arguments of `StreamWriter.write` for `segments` segments; the third ones are short."""
    for index in range(segments):
        sections = {kind: rng.randbytes(rng.randrange(1, 60)) for kind in header.sections}
        sections[header.sections[-1]] = rng.randbytes(payload)
        short = index % 3 == 1 and header.segment_frames > 1
        frames = rng.randrange(1, header.segment_frames) if short else header.segment_frames
        yield frames, sections, rng.randrange(1 << 16)


def sample_stream(
    header: StreamHeader | None = None, *, segments: int = 4, payload: int = 300, seed: int = 1
) -> bytes:
    """A whole stream of random payloads."""
    header = header or sample_header()
    sink = io.BytesIO()
    writer = StreamWriter(sink, header)
    for call in fill(header, random.Random(seed), segments, payload):
        writer.write(*call)
    writer.finish()
    return sink.getvalue()


def key(segment: Segment) -> tuple[object, ...]:
    """What must not change about a segment, wherever its chunk lies."""
    return (
        segment.index,
        segment.start,
        segment.frames,
        tuple(segment.sections.items()),
        segment.state_check,
    )


def keys(data: bytes, **options: bool) -> list[tuple[object, ...]]:
    return [key(segment) for segment in StreamReader(io.BytesIO(data), **options)]


def golden() -> dict[str, bytes]:
    """Five small streams that differ in layout."""
    toy = {"sequence_header": b"", "base_size": None, "audio": b""}
    return {
        "usual": sample_stream(segments=4, payload=150),
        "one section": sample_stream(
            sample_header(sections=(S.LATENT,), profile=ProfileId.S2VC, **toy), segments=3
        ),
        "empty": sample_stream(segments=0),
        "short frames": sample_stream(sample_header(segment_frames=1), segments=20, payload=0),
        "many sections": sample_stream(
            sample_header(sections=(*S, S(200), S(201))[-15:], title="é", **toy), segments=2
        ),
    }


def chunks_of(raw: bytes) -> list[bytes]:
    reader = StreamReader(io.BytesIO(raw))
    found = [raw[chunk.offset : chunk.offset + chunk.head.total] for chunk, _ in reader.chunks()]
    return [raw[: len(raw) - sum(map(len, found))], *found]


# Damage to bytes: none of these keeps checksums valid, except by chance.


def _flip(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.randrange(1, 40))


def _delete(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randrange(1, 400)]


def _zeros(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    count = min(rng.randrange(1, 400), len(data) - at)
    data[at : at + count] = bytes(count)


def _copy(data: bytearray, rng: random.Random) -> None:
    at, to = rng.randrange(len(data)), rng.randrange(len(data))
    data[to:to] = data[at : at + rng.randrange(1, 800)]


def _move(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    part = data[at : at + rng.randrange(1, 800)]
    del data[at : at + len(part)]
    to = rng.randrange(len(data) + 1)
    data[to:to] = part


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


_BYTE_DAMAGE: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(_flip, _flip, _set, _set, _insert, _delete, _zeros, _copy, _move, _cut),
)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Damage a stream in 1 to 40 places, mostly few."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5, 40))):
        if found:
            rng.choice(_BYTE_DAMAGE)(found, rng)
    return bytes(found)


# Hostile streams: malformed inside, with checksums that hold.

EDGES = (b"\0", b"\1", b"\x7f", b"\x80\1", b"\xff\x7f", b"\xff\xff\x7f", b"\xff\xff\xff\x7f")
BROKEN_EDGES = (b"\x80\0", b"\xff\xff\xff\xff\1", b"\x80", b"\x81\x80\0")


def sealed_header(body: bytes, *, version: int = VERSION) -> bytes:
    """A header around any body, with the right length and checksum."""
    head = MAGIC + bytes((version, len(body) & 0xFF)) + body
    return head + struct.pack("<I", zlib.crc32(head))


def hostile_body(rng: random.Random) -> bytes:
    """A header body with some of its fields changed to odd values."""
    body = bytearray(sample_header().to_bytes()[6:-4])
    for _ in range(rng.randrange(0, 4)):
        at = rng.randrange(22, len(body)) if rng.random() < 0.8 else rng.randrange(len(body))
        match rng.randrange(4):
            case 0:
                body[at] = rng.randrange(256)
            case 1:
                body[at : at + rng.randrange(1, 3)] = rng.choice(EDGES + BROKEN_EDGES)
            case 2:
                del body[at : at + rng.randrange(1, 4)]
            case 3:
                body[at:at] = rng.randbytes(rng.randrange(1, 4))
    if rng.random() < 0.2:
        tag = rng.choice((1, 2, 3, 4, 5, 0x7F, 0x81, 0x90))
        content = rng.randbytes(rng.randrange(0, 12))
        body += bytes((tag, max(0, len(content) + rng.choice((0, 0, 0, 1, -1))))) + content
    return bytes(body[:250])


def hostile_payload(rng: random.Random) -> bytes:
    """A chunk payload: section lengths at their edges, then some bytes."""
    lengths = [
        rng.choice(EDGES + BROKEN_EDGES) if rng.random() < 0.3 else bytes((rng.randrange(8),))
        for _ in range(rng.randrange(0, 6))
    ]
    return b"".join(lengths) + rng.randbytes(rng.choice((0, 1, 2, 3, 20, 300, 5000)))


def hostile_stream(rng: random.Random) -> bytes:
    """A stream whose checksums hold and whose content may break any rule."""
    whole = rng.random() < 0.5
    head = sample_header().to_bytes() if whole else sealed_header(hostile_body(rng))
    framing = Framing(struct.unpack_from("<I", head.ljust(12, b"\0"), 8)[0])
    found, index, start = bytearray(head), 0, 0
    for _ in range(rng.randrange(0, 6)):
        kind = rng.choice((1, 1, 1, 4, 4, 2, *range(16)))
        payload = hostile_payload(rng)
        if rng.random() < 0.4:
            payload = b"\3\2\1abcdefghij"
        if kind == ChunkType.SEGMENT_SHORT and rng.random() < 0.7:
            payload = rng.choice((b"\0", b"\1", b"\x95\1", b"\x96\1")) + payload
        if kind == ChunkType.END and rng.random() < 0.7:
            payload = rng.choice(EDGES) + rng.randbytes(4)
        if kind == ChunkType.HEADER_COPY and rng.random() < 0.5:
            payload = bytes(head)
        found += framing.chunk(kind, payload, index, start)
        if kind in (1, 4):
            missing = payload[0] % 150 if kind == 4 and payload else 0
            index, start = index + 1, start + 150 - missing
    return bytes(found)
