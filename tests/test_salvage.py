"""Damage: it is always found, costs little, and never puts anything at a wrong place."""

from __future__ import annotations

import io
import random
import time
import tracemalloc
from pathlib import Path

import pytest
from oracles import check_damaged, check_hostile
from strategies import (
    chunks_of,
    golden,
    hostile_stream,
    key,
    keys,
    mutate,
    sample_header,
    sample_stream,
)

from semvc.bitstream.container import StreamReader, StreamWriter, verify
from semvc.bitstream.framing import ChunkType, Framing
from semvc.bitstream.headers import SectionType
from semvc.errors import BitstreamError, UnsupportedError

S = SectionType


@pytest.mark.slow
def test_truncation_at_every_byte_keeps_every_whole_segment() -> None:
    for name, raw in golden().items():
        whole = list(StreamReader(io.BytesIO(raw)))
        expected = [key(segment) for segment in whole]
        begun = time.process_time()
        for size in range(len(raw)):
            try:
                reader = StreamReader(io.BytesIO(raw[:size]), salvage=True)
            except BitstreamError:
                assert not whole or size < whole[0].offset, name
                continue
            found = [key(segment) for segment in reader]
            count = sum(segment.offset + segment.chunk_bytes <= size for segment in whole)
            assert found == expected[:count], (name, size)
            assert reader.damage and reader.end is None
            with pytest.raises(BitstreamError):
                list(StreamReader(io.BytesIO(raw[:size])))
        assert time.process_time() - begun < 0.05 * len(raw), name


@pytest.mark.slow
def test_every_flipped_bit_is_found_and_costs_at_most_one_segment() -> None:
    raw = sample_stream(segments=7, payload=320)
    assert 2900 <= len(raw) <= 3200
    expected = keys(raw)
    lost = {0: 0, 1: 0}
    for at in range(8 * len(raw)):
        bad = bytearray(raw)
        bad[at // 8] ^= 1 << at % 8
        try:
            reader = StreamReader(io.BytesIO(bad), salvage=True)
        except (BitstreamError, UnsupportedError):
            assert at // 8 < 80
            continue
        found = [key(segment) for segment in reader]
        assert reader.damage, at
        assert set(found) <= set(expected), at
        lost[len(expected) - len(found)] += 1
    assert lost[1] > 20 * lost[0] > 0


def run_byte_mutations(count: int, seed: int) -> None:
    sources = [(raw, keys(raw)) for raw in golden().values()]
    rng = random.Random(seed)
    for _ in range(count):
        raw, expected = rng.choice(sources)
        begun = time.process_time()
        check_damaged(mutate(raw, rng), expected)
        assert time.process_time() - begun < 1


def run_hostile_streams(count: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(count):
        raw = hostile_stream(rng)
        if rng.random() < 0.1:
            raw = mutate(raw, rng)
        begun = time.process_time()
        check_hostile(raw)
        assert time.process_time() - begun < 1


def test_damaged_bytes_never_mislead() -> None:
    run_byte_mutations(2500, seed=4)


@pytest.mark.slow
def test_hostile_streams_give_only_declared_errors() -> None:
    run_hostile_streams(4000, seed=5)


def test_what_fuzzing_once_found_stays_fixed() -> None:
    for path in Path(__file__).parent.glob("corpus/regressions/*.svc"):
        check_hostile(path.read_bytes())


@pytest.mark.nightly
def test_damaged_bytes_never_mislead_in_full() -> None:
    run_byte_mutations(20_000, seed=104)


@pytest.mark.nightly
def test_hostile_streams_give_only_declared_errors_in_full() -> None:
    run_hostile_streams(20_000, seed=105)


@pytest.mark.slow
def test_hostile_streams_take_little_memory() -> None:
    rng = random.Random(6)
    tracemalloc.start()
    try:
        for _ in range(300):
            check_hostile(hostile_stream(rng))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_deleted_doubled_and_swapped_chunks_are_never_misplaced() -> None:
    raw = sample_stream(segments=40, payload=60)
    expected, pieces = keys(raw), chunks_of(raw)
    rng = random.Random(7)
    for trial in range(300):
        order = list(pieces)
        at, to = rng.randrange(1, len(order) - 1), rng.randrange(1, len(order) - 1)
        if trial % 3 == 0:
            del order[at : at + rng.randrange(1, 30)]
        elif trial % 3 == 1:
            order.insert(to, order[at])
        else:
            order[at], order[to] = order[to], order[at]
        bad = b"".join(order)
        if bad == raw:
            continue
        check_damaged(bad, expected)
        assert not verify(io.BytesIO(bad)).ok


def test_a_long_deletion_is_bridged_by_two_witnesses() -> None:
    raw = sample_stream(segments=100, payload=60)
    expected, pieces = keys(raw), chunks_of(raw)
    bad = b"".join(pieces[:20] + pieces[60:])
    reader = StreamReader(io.BytesIO(bad), salvage=True)
    assert [key(segment) for segment in reader] == expected[:19] + expected[59:]
    (gap,) = reader.gaps
    assert (gap.index, gap.segments) == (19, 40)
    assert gap.start + (gap.frames or 0) == expected[59][1]


def test_a_stream_inside_a_payload_is_not_mistaken_for_the_stream() -> None:
    inner = sample_stream(sample_header(salt=99), segments=3)
    header = sample_header(sections=(S.LATENT,), sequence_header=b"", base_size=None, audio=b"")
    sink = io.BytesIO()
    writer = StreamWriter(sink, header)
    for _ in range(3):
        writer.write(150, {S.LATENT: inner}, 0)
    writer.finish()
    raw = bytearray(sink.getvalue())
    raw[len(header.to_bytes())] ^= 1  # the first chunk's head, so that salvage walks through it
    reader = StreamReader(io.BytesIO(raw), salvage=True)
    assert [(segment.index, segment.sections[S.LATENT]) for segment in reader] == [
        (1, inner),
        (2, inner),
    ]


def test_salvage_work_is_bounded() -> None:
    header = sample_header()
    framing = Framing(header.salt)
    head = framing.chunk(ChunkType.SEGMENT, bytes(700_000), 0, 0)[:5]
    raw = header.to_bytes() + head * 300_000
    begun = time.process_time()
    reader = StreamReader(io.BytesIO(raw), salvage=True)
    assert list(reader) == []
    assert time.process_time() - begun < 2
    assert any("gave up" in text for text in reader.warnings)


def test_a_zero_filled_tail_is_recognised() -> None:
    raw = chunks_of(sample_stream(segments=3))
    with pytest.raises(BitstreamError, match="zeros"):
        list(StreamReader(io.BytesIO(b"".join(raw[:-1]) + bytes(5000))))


def test_a_damaged_header_is_replaced_by_its_copy() -> None:
    raw = bytearray(sample_stream(segments=12, payload=12_000))
    expected = keys(bytes(raw))
    raw[30] ^= 0xFF
    with pytest.raises(BitstreamError):
        StreamReader(io.BytesIO(raw))
    reader = StreamReader(io.BytesIO(raw), salvage=True)
    assert reader.header == sample_header()
    assert [key(segment) for segment in reader] == expected
    assert not verify(io.BytesIO(raw)).ok


def test_a_header_copy_that_lies_is_refused() -> None:
    sink = io.BytesIO()
    writer = StreamWriter(sink, sample_header())
    writer.append(ChunkType.HEADER_COPY, sample_header(seed=8).to_bytes())
    writer.finish()
    with pytest.raises(BitstreamError, match="copy of the header"):
        list(StreamReader(io.BytesIO(sink.getvalue())))
