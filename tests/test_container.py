"""The container: what is written is read back, damage is found, survivors stay in their place."""

from __future__ import annotations

import io
import os
import random
import threading
import time
import tracemalloc
from dataclasses import replace
from fractions import Fraction
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import overhead_of
from strategies import (
    EDGES,
    chunks_of,
    fill,
    headers,
    key,
    keys,
    sample_header,
    sample_stream,
    sealed_header,
    segments_of,
)

from semvc.bitstream.container import (
    StreamReader,
    StreamWriter,
    edit,
    probe,
    verify,
)
from semvc.bitstream.framing import ChunkType, Framing, crc8, index_of, start_of, undo
from semvc.bitstream.headers import ProfileId, SectionType, StreamHeader
from semvc.errors import (
    BitstreamError,
    LimitError,
    ResourceError,
    UsageError,
)
from semvc.types import Limits

S = SectionType


class Trickle(io.RawIOBase):
    """A pipe that gives 1 to 7 bytes at a time."""

    def __init__(self, data: bytes, seed: int = 1) -> None:
        self._data, self._rng = io.BytesIO(data), random.Random(seed)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, self._rng.randrange(1, 8)))


class Broken(io.RawIOBase):
    """A source on a failing disk."""

    def read(self, size: int = -1) -> bytes:
        raise OSError(5, "Input/output error")


class Miser(io.BytesIO):
    """A sink that takes 1 to 7 bytes at a time, and fails after `room` bytes."""

    def __init__(self, room: int = 1 << 30) -> None:
        super().__init__()
        self._room, self._rng = room, random.Random(1)

    def write(self, data: object) -> int:
        part = bytes(data)[: min(self._room, self._rng.randrange(1, 8))]  # type: ignore[call-overload]
        if not part:
            raise OSError(28, "No space left on device")
        self._room -= len(part)
        return super().write(part)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=600, deadline=None, derandomize=True)
def test_streams_survive_a_round_trip(data: st.DataObject) -> None:
    header = data.draw(headers())
    calls = data.draw(segments_of(header))
    sink = io.BytesIO()
    writer = StreamWriter(sink, header)
    try:
        sizes = [writer.write(*call) for call in calls]
    except LimitError:
        pixels = header.width * header.height
        assert pixels * sum(frames for frames, _, _ in calls) > Limits().max_samples
        return
    writer.finish()
    raw = sink.getvalue()
    reader = StreamReader(io.BytesIO(raw), strict=True)
    found = list(reader)
    assert reader.header == header
    start = 0
    for (frames, sections, check), segment, size in zip(calls, found, sizes, strict=True):
        full = {kind: sections[kind] for kind in header.sections if sections.get(kind)}
        assert (segment.frames, segment.sections, segment.state_check) == (frames, full, check)
        assert (segment.start, segment.chunk_bytes) == (start, size)
        start += frames
    assert reader.end is not None and reader.end.total_frames == start
    again = io.BytesIO()
    edit(io.BytesIO(raw), again, state_check=lambda segment, kept: 0)
    assert again.getvalue() == raw


def test_checksums_are_the_published_ones() -> None:
    assert crc8(b"123456789") == 0xDF


def test_the_place_of_a_chunk_can_be_solved_for() -> None:
    rng = random.Random(1)
    framing = Framing(rng.getrandbits(32))
    for _ in range(200):
        index, start = rng.randrange(1 << 22), rng.randrange(1 << 22)
        chunk = framing.chunk(1, rng.randbytes(rng.randrange(300)), index, start)
        prefix, undone = framing.prefix(chunk), undo(int.from_bytes(chunk[-4:], "little"))
        assert framing.holds(chunk, index, start)
        assert start_of(prefix, undone, index) == start
        assert index_of(prefix, undone, start) == index


def test_a_small_stream_has_known_bytes() -> None:
    header = StreamHeader(
        salt=1, entropy_id=bytes(8), decoder_id=bytes(4), width=16, height=16,
        frame_rate=Fraction(25), segment_frames=8, profile=ProfileId.TOY, sections=(S.KEYFRAME,),
    )  # fmt: skip
    sink = io.BytesIO()
    writer = StreamWriter(sink, header)
    writer.write(8, {S.KEYFRAME: b"abc"}, 0x1234)
    writer.write(3, {}, 0)  # five frames are missing
    writer.finish()
    assert sink.getvalue().hex() == (
        "8a535643101e00000100000000000000000000000000000000000000101003010800001c5e489b"
        "9c10057d616263341200aa93df4103c705000049b640b52205ef0b3f42137a47d1f0a3"
    )


# Overhead


def overhead_stream(sections: tuple[S, ...], frames: list[int]) -> bytes:
    header = sample_header(sections=sections, total_frames=sum(frames))
    if S.AUDIO_OPUS not in sections:
        header = replace(header, audio=b"")
    if S.BASE_AV1 not in sections:
        header = replace(header, sequence_header=b"", base_size=None)
    sink = io.BytesIO()
    writer = StreamWriter(sink, header)
    sizes = {S.CAPTION: 60, S.SKETCH: 120, S.SKELETON: 100, S.AUDIO_OPUS: 4000, S.LATENT: 9000}
    for count in frames:
        chosen = {kind: bytes(sizes.get(kind, 9000)) for kind in sections}
        writer.write(count, chosen, 1)
    writer.finish()
    return sink.getvalue()


@pytest.mark.parametrize(
    "sections",
    [
        (S.LATENT,),
        (S.CAPTION, S.BASE_AV1),
        (S.CAPTION, S.AUDIO_OPUS, S.BASE_AV1),
        (S.CAPTION, S.SKETCH, S.BASE_AV1),
        (S.CAPTION, S.SKETCH, S.AUDIO_OPUS, S.BASE_AV1),
        (S.CAPTION, S.SKETCH, S.SKELETON, S.BASE_AV1),
    ],
)
@pytest.mark.parametrize("frames", [[150], [150] * 12, [150, 100, 150, 90], [150] * 60 + [120]])
def test_overhead_stays_within_its_budget(sections: tuple[S, ...], frames: list[int]) -> None:
    raw = overhead_stream(sections, frames)
    info = probe(io.BytesIO(raw))
    once, each = overhead_of(info)
    assert info.overhead_bytes == once + sum(each)
    assert once <= 61 + (len(info.header.to_bytes()) + 8 if len(raw) > 100_000 else 0)
    assert each == [each[0] + (count < 150) for count in frames] and each[0] <= 13
    assert info.bytes == len(raw) == info.overhead_bytes + sum(s.bytes for s in info.sections)


def test_overhead_of_the_usual_layouts_is_known() -> None:
    layouts = {
        (S.LATENT,): (57, 10),
        (S.CAPTION, S.BASE_AV1): (58, 11),
        (S.CAPTION, S.SKETCH, S.BASE_AV1): (58, 12),
        (S.CAPTION, S.SKETCH, S.SKELETON, S.BASE_AV1): (59, 13),
        (S.CAPTION, S.SKETCH, S.AUDIO_OPUS, S.BASE_AV1): (59, 12),
    }
    for sections, (fixed, each) in layouts.items():
        one, two = (
            probe(io.BytesIO(overhead_stream(sections, [150] * n))).overhead_bytes for n in (1, 2)
        )
        assert (one - each, two - one) == (fixed, each), sections


# Sources and sinks


def test_pipes_that_give_few_bytes_read_the_same() -> None:
    raw = sample_stream(segments=5, payload=3000)
    for seed in range(5):
        pipe: BinaryIO = Trickle(raw, seed)  # type: ignore[assignment]
        assert [key(segment) for segment in StreamReader(pipe)] == keys(raw)
    bad = bytearray(raw)
    bad[4000] ^= 1
    pipe = Trickle(bytes(bad))  # type: ignore[assignment]
    assert [key(s) for s in StreamReader(pipe, salvage=True)] == keys(bytes(bad), salvage=True)
    assert probe(Trickle(raw)).to_json() == probe(io.BytesIO(raw)).to_json()  # type: ignore[arg-type]


def test_a_real_pipe_reads_the_same() -> None:
    raw = sample_stream(segments=30, payload=9000)
    reader, writer = os.pipe()

    def feed() -> None:
        with os.fdopen(writer, "wb") as sink:
            sink.write(raw)

    thread = threading.Thread(target=feed)
    thread.start()
    with os.fdopen(reader, "rb", buffering=0) as source:
        assert [key(segment) for segment in StreamReader(source)] == keys(raw)
    thread.join()


def test_a_source_that_fails_is_a_resource_error() -> None:
    with pytest.raises(ResourceError, match="cannot read"):
        StreamReader(Broken())  # type: ignore[arg-type]


def test_a_pipe_is_read_once_and_has_no_random_access() -> None:
    reader = StreamReader(Trickle(sample_stream()))  # type: ignore[arg-type]
    list(reader)
    with pytest.raises(UsageError):
        list(reader)
    with pytest.raises(UsageError):
        reader.read(0)


def test_sinks_that_take_few_bytes_get_the_same() -> None:
    sink = Miser()
    writer = StreamWriter(sink, sample_header())
    for call in fill(sample_header(), random.Random(1), 4, 300):
        writer.write(*call)
    writer.finish()
    assert sink.getvalue() == sample_stream()


def test_a_sink_that_fails_says_how_much_is_safe() -> None:
    raw = sample_stream()
    ends = [s.offset + s.chunk_bytes for s in StreamReader(io.BytesIO(raw))]
    for room in range(len(raw)):
        sink = Miser(room)
        safe = sum(end <= room for end in ends)
        try:
            writer = StreamWriter(sink, sample_header())
        except ResourceError:
            continue
        with pytest.raises(ResourceError, match=f"{safe} segments"):
            for call in fill(sample_header(), random.Random(1), 4, 300):
                writer.write(*call)
            writer.finish()
        assert sink.getvalue() == raw[:room]
        with pytest.raises(UsageError, match="closed"):
            writer.finish()


def test_random_access_finds_every_segment_and_frame() -> None:
    for count in (1, 5, 256, 257, 400):
        raw = sample_stream(segments=count, payload=10)
        reader = StreamReader(io.BytesIO(raw))
        whole = list(StreamReader(io.BytesIO(raw)))
        for segment in whole[:: max(1, count // 40)] + whole[-1:]:
            assert reader.read(segment.index) == segment
            for frame in (segment.start, segment.start + segment.frames - 1):
                assert reader.at_frame(frame) == segment
        for missing in (-1, count):
            with pytest.raises(UsageError):
                reader.read(missing)
        with pytest.raises(UsageError):
            reader.at_frame(whole[-1].start + whole[-1].frames)


def test_random_access_during_iteration_does_not_disturb_it() -> None:
    raw = sample_stream(segments=60, payload=9000)
    reader, found = StreamReader(io.BytesIO(raw)), []
    for segment in reader:
        found.append(key(segment))
        reader.read((segment.index * 7) % 60)
    assert found == keys(raw)


def test_an_index_that_lies_or_is_damaged_costs_nothing() -> None:
    pieces = chunks_of(sample_stream(segments=300, payload=10))
    rng = random.Random(3)
    for _ in range(20):
        lie = bytearray(pieces[-2])
        lie[rng.randrange(5, len(lie) - 8)] ^= 1 << rng.randrange(8)
        reader = StreamReader(io.BytesIO(b"".join([*pieces[:-2], bytes(lie), pieces[-1]])))
        index = rng.randrange(300)
        assert reader.read(index).index == index
        frame = rng.randrange(20_000)
        found = reader.at_frame(frame)
        assert found.start <= frame < found.start + found.frames


def test_long_streams_carry_an_index_and_large_ones_a_header_copy() -> None:
    def kinds(raw: bytes) -> list[int]:
        return [c.head.kind for c, s in StreamReader(io.BytesIO(raw)).chunks() if s is None]

    assert kinds(sample_stream(segments=256, payload=10)) == [2]
    assert kinds(sample_stream(segments=257, payload=10)) == [9, 2]
    assert kinds(sample_stream(segments=300, payload=500)) == [12, 9, 2]


# Limits


def test_a_bomb_of_sixty_bytes_is_refused_at_once() -> None:
    body = bytearray(sample_header(width=4096, height=2304, base_size=None).to_bytes()[6:-4])
    at = body.index(b"\x96\1\0")
    body[at + 2 : at + 3] = b"\x80\x80\x80\2"  # 2**22 frames
    raw = sealed_header(bytes(body))
    begun = time.process_time()
    tracemalloc.start()
    with pytest.raises(LimitError, match="samples"):
        StreamReader(io.BytesIO(raw))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert time.process_time() - begun < 0.05


def one_segment(payload: int, limit: int = 1 << 21) -> bytes:
    header = sample_header(sections=(S.LATENT,), sequence_header=b"", base_size=None, audio=b"")
    framing = Framing(header.salt)
    chunk = framing.chunk(ChunkType.SEGMENT, bytes(payload), 0, 0)
    return header.to_bytes() + chunk


def test_chunks_are_limited_in_size() -> None:
    limit = Limits().max_chunk_bytes
    for size in (limit - 1, limit):
        assert next(iter(StreamReader(io.BytesIO(one_segment(size))))).frames == 150
    with pytest.raises(LimitError, match="chunk"):
        next(iter(StreamReader(io.BytesIO(one_segment(limit + 1)))))
    header = sample_header(sections=(S.LATENT,))
    with pytest.raises(LimitError):
        StreamWriter(io.BytesIO(), header).write(150, {S.LATENT: bytes(limit - 1)}, 0)
    StreamWriter(io.BytesIO(), header).write(150, {S.LATENT: bytes(limit - 2)}, 0)


def test_captions_are_limited_in_size() -> None:
    for size, fits in ((4095, True), (4096, True), (4097, False)):
        writer = StreamWriter(io.BytesIO(), sample_header())
        if fits:
            writer.write(150, {S.CAPTION: bytes(size)}, 0)
        else:
            with pytest.raises(LimitError, match="caption"):
                writer.write(150, {S.CAPTION: bytes(size)}, 0)


def test_the_sum_of_frames_is_limited_while_reading() -> None:
    raw = sample_stream(segments=4)
    total = sum(segment.frames for segment in StreamReader(io.BytesIO(raw)))
    assert len(list(StreamReader(io.BytesIO(raw), Limits(max_frames=total)))) == 4
    with pytest.raises(LimitError, match="frames"):
        list(StreamReader(io.BytesIO(raw), Limits(max_frames=total - 1)))
    area = 854 * 480
    assert len(list(StreamReader(io.BytesIO(raw), Limits(max_samples=area * total)))) == 4
    with pytest.raises(LimitError, match="samples"):
        list(StreamReader(io.BytesIO(raw), Limits(max_samples=area * total - 1)))


def test_segments_that_do_not_fit_the_header_are_refused() -> None:
    writer = StreamWriter(io.BytesIO(), sample_header())
    for frames, sections, check in (
        (0, {}, 0),
        (151, {}, 0),
        (150, {S.MASK: b"x"}, 0),
        (150, {}, 1 << 16),
    ):
        with pytest.raises(UsageError):
            writer.write(frames, sections, check)
    assert writer.next_index == 0


@pytest.mark.parametrize("uv", [b"\0", b"\x96\1", b"\x97\1", b"\x80\0"])
def test_a_short_segment_must_be_shorter_than_a_full_one(uv: bytes) -> None:
    header = sample_header(sections=(S.LATENT,))
    chunk = Framing(header.salt).chunk(ChunkType.SEGMENT_SHORT, uv + b"abcd\0\0", 0, 0)
    with pytest.raises(BitstreamError, match="frames"):
        list(StreamReader(io.BytesIO(header.to_bytes() + chunk)))


def test_section_lengths_beyond_the_payload_are_refused() -> None:
    header = sample_header(sections=(S.CAPTION, S.LATENT))
    for uv in EDGES[2:]:
        chunk = Framing(header.salt).chunk(ChunkType.SEGMENT, uv + b"abcd\0\0", 0, 0)
        with pytest.raises(BitstreamError, match=r"LATENT|CAPTION"):
            list(StreamReader(io.BytesIO(header.to_bytes() + chunk)))


def test_end_must_agree_with_the_segments() -> None:
    header, framing = sample_header(), Framing(sample_header().salt)
    for payload in (b"\1\0\0\0\0", b"\0\1\0\0\0", b"\0\0\0\0", b"\0\0\0\0\0\0", b"\x80\0\0\0\0\0"):
        raw = header.to_bytes() + framing.chunk(ChunkType.END, payload, 0, 0)
        with pytest.raises(BitstreamError):
            list(StreamReader(io.BytesIO(raw)))
    raw = header.to_bytes() + framing.chunk(ChunkType.END, b"\0\0\0\0\0", 0, 0)
    assert list(StreamReader(io.BytesIO(raw), strict=True)) == []


def test_bytes_after_end_are_a_warning_unless_strict() -> None:
    raw = sample_stream() + b"trailing"
    reader = StreamReader(io.BytesIO(raw))
    assert len(list(reader)) == 4
    assert reader.trailing and "follow END" in reader.warnings[0]
    assert verify(io.BytesIO(raw)).ok and not verify(io.BytesIO(raw), strict=True).ok
    assert probe(io.BytesIO(raw)).bytes == len(raw)
    with pytest.raises(BitstreamError):
        list(StreamReader(io.BytesIO(raw), strict=True))
