"""Entropy coding: exact known words, three coders that agree, and nothing but integers."""

from __future__ import annotations

import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semvc import entropy
from semvc.entropy.coder import Counter, Decoder, Encoder
from semvc.entropy.integers import code_bits, code_uint, unzigzag, zigzag
from semvc.entropy.reference import ReferenceDecoder
from semvc.entropy.tables import (
    TOTAL,
    AdaptiveTables,
    TableSet,
    load_counts,
    logistic_tables,
    normalize,
    store_counts,
    stretch_table,
)
from semvc.errors import BitstreamError
from semvc.train.tables import build_logistic

SKEWED = TableSet(
    np.array([[TOTAL - 2, 1, 1], [1, TOTAL - 2, 1], [TOTAL // 2, TOTAL // 4, TOTAL // 4]])
)


KNOWN_BYTES = (
    "7ffffe78a3f807d3c4503ca159f9872157c93317ed625d8fc1d9432c1ea1a6bb3ad6f673e31129c98dacd1c605"
)


def random_tables(rng, rows, alphabet, power=4):
    counts = (rng.random((rows, alphabet)) ** power * 60000).astype(np.int64) + 1
    return normalize(counts)


def draw(rng, tables, count):
    """Symbols drawn from their own tables, with a few unlikely ones."""
    index = rng.integers(0, tables.rows, count)
    points = rng.integers(0, TOTAL, count)
    values = (np.cumsum(tables.freqs, axis=1)[index] <= points[:, None]).sum(axis=1)
    wild = rng.random(count) < 0.01
    values[wild] = rng.integers(0, tables.alphabet, wild.sum())
    return values.astype(np.int32), index


def encode(calls, check=0):
    encoder = Encoder(check)
    for values, tables, index in calls:
        encoder.code(values, len(values), tables, index)
    return encoder.finish(), encoder.check


def test_the_bytes_of_a_fixed_message_never_change():
    tables = normalize(np.array([[5, 3, 1, 1], [1, 1, 1, 97], [1 << 20, 1, 1, 1]]))
    values = np.arange(48, dtype=np.int32) * 7 % 11 % 4
    index = np.arange(48) % 3
    payload, check = encode([(values, tables, index)])
    assert payload.hex() == KNOWN_BYTES
    assert check == zlib.crc32(values.astype("<i2").tobytes())


@pytest.mark.parametrize("count", [0, 1, 2, 7, 31, 10_000])
@pytest.mark.parametrize("alphabet", [2, 3, 33, 257])
def test_fast_and_reference_decoder_return_what_was_encoded(count, alphabet):
    rng = np.random.default_rng(count * 1000 + alphabet)
    tables = random_tables(rng, 64, alphabet)
    values, index = draw(rng, tables, count)
    payload, check = encode([(values, tables, index)], 5)
    for kind in (Decoder, ReferenceDecoder):
        decoder = kind(payload, count, 5)
        assert np.array_equal(decoder.code(None, count, tables, index), values)
        assert decoder.check == check
    counter = Counter(5)
    counter.code(values, count, tables, index)
    assert counter.check == check
    # A payload is at most two bytes longer than the ideal code.
    assert -1 < 8 * len(payload) - counter.bits < 16 + counter.bits / 10_000


@pytest.mark.nightly
def test_a_million_symbols_agree_with_the_reference():
    rng = np.random.default_rng(1)
    tables = random_tables(rng, 64, 33)
    values, index = draw(rng, tables, 1_000_000)
    payload, _ = encode([(values, tables, index)])
    for kind in (Decoder, ReferenceDecoder):
        decoder = kind(payload, len(values))
        assert np.array_equal(decoder.code(None, len(values), tables, index), values)


def test_extreme_tables_survive_unlikely_and_likely_symbols():
    values = np.array([0, 1, 2] * 100 + [0] * 300, np.int32)
    index = np.array([0, 1, 2] * 100 + [1] * 150 + [0] * 150)
    payload, _ = encode([(values, SKEWED, index)])
    decoder = Decoder(payload, 600)
    assert np.array_equal(decoder.code(None, 600, SKEWED, index), values)
    decoder.finish()
    reference = ReferenceDecoder(payload, 600)
    assert np.array_equal(reference.code(None, 600, SKEWED, index), values)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=8), st.integers(0, 2**32 - 1))
def test_splitting_a_message_into_calls_does_not_change_its_bytes(sizes, seed):
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, 5, 7)
    calls = []
    for size in sizes:
        values, index = draw(rng, tables, size)
        calls.append((values, tables, index))
    payload, check = encode(calls)
    everything = [np.concatenate([call[k] for call in calls] or [[]]) for k in (0, 2)]
    together = (everything[0].astype(np.int32), tables, everything[1].astype(np.int64))
    assert encode([together]) == (payload, check)
    decoder = Decoder(payload, sum(sizes))
    for values, _, index in calls:
        assert np.array_equal(decoder.code(None, len(values), tables, index), values)
    decoder.finish()


def test_a_payload_is_never_empty_and_never_ends_in_zero():
    assert encode([])[0] == b"\0"
    assert encode([(np.zeros(50, np.int32), SKEWED, None)])[0] == b"\0"
    for bad in (b"", b"\0\0", b"\1\0"):
        with pytest.raises(BitstreamError):
            Decoder(bad, 10)


def test_left_over_data_is_rejected():
    rng = np.random.default_rng(3)
    tables = random_tables(rng, 4, 9)
    values, index = draw(rng, tables, 100)
    payload, _ = encode([(values, tables, index)])
    for bad in (payload + b"\1", payload + b"\0\0\0\0\1", payload + payload):
        decoder = Decoder(bad, 100)
        with pytest.raises(BitstreamError):
            decoder.code(None, 100, tables, index)
            decoder.finish()
    decoder = Decoder(payload, 100)
    decoder.code(None, 60, tables, index[:60])
    with pytest.raises(BitstreamError):
        decoder.finish()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 60))
def test_garbage_decodes_to_an_error_or_to_its_own_spelling(data, count):
    tables = random_tables(np.random.default_rng(count), 3, 5)
    index = np.arange(count) % 3
    try:
        decoder = Decoder(data, count)
        symbols = decoder.code(None, count, tables, index)
        decoder.finish()
    except BitstreamError:
        return
    assert encode([(symbols, tables, index)])[0] == data
    reference = ReferenceDecoder(data, count)
    assert np.array_equal(reference.code(None, count, tables, index), symbols)


def test_a_prefix_of_a_payload_never_passes_for_the_whole():
    rng = np.random.default_rng(9)
    tables = random_tables(rng, 4, 17)
    values, index = draw(rng, tables, 200)
    payload, _ = encode([(values, tables, index)])
    for size in range(len(payload)):
        try:
            decoder = Decoder(payload[:size], 200)
            symbols = decoder.code(None, 200, tables, index)
            decoder.finish()
        except BitstreamError:
            continue
        # Another message, in its own only spelling: telling them apart is the checksums' task.
        assert not np.array_equal(symbols, values)
        assert encode([(symbols, tables, index)])[0] == payload[:size]


def test_a_long_run_of_zero_words_is_stripped_and_read_back():
    half = TableSet(np.array([[TOTAL // 2, TOTAL // 2]]))
    zeros = np.zeros(5000, np.int32)
    payload, _ = encode([(zeros, half, None)])
    assert payload == b"\0"
    for kind in (Decoder, ReferenceDecoder):
        assert np.array_equal(kind(payload, 5000).code(None, 5000, half), zeros)
    ending = np.concatenate([np.ones(40, np.int32), zeros])
    payload, _ = encode([(ending, half, None)])
    assert len(payload) < 10
    decoder = Decoder(payload, 5040)
    assert np.array_equal(decoder.code(None, 5040, half), ending)
    decoder.finish()


def test_a_decoder_refuses_more_symbols_than_its_budget_before_it_allocates():
    decoder = Decoder(b"\1", 10)
    with pytest.raises(BitstreamError, match="more symbols"):
        decoder.code(None, 1 << 60, SKEWED)
    with pytest.raises(ValueError, match="max_symbols"):
        Decoder(b"\1", 1 << 40)


@pytest.mark.parametrize("kind", [Encoder, Counter])
def test_a_float_anywhere_is_a_type_error(kind):
    whole = np.array([0, 1], np.int32)
    with pytest.raises(TypeError):
        kind().code(whole.astype(np.float64), 2, SKEWED)
    with pytest.raises(TypeError):
        kind().code(whole, 2, SKEWED, whole.astype(np.float32))
    with pytest.raises(TypeError):
        kind().code(whole, 2.0, SKEWED)
    with pytest.raises(TypeError):
        kind().code([0, 1], 2, SKEWED)
    with pytest.raises(TypeError):
        kind().code(whole, 2, SKEWED.freqs)
    with pytest.raises(TypeError):
        Decoder(b"\1", 9).code(None, 2, SKEWED, whole.astype(np.float16))
    with pytest.raises(TypeError):
        ReferenceDecoder(b"\1", 9).code(None, 2, SKEWED, whole.astype(np.float16))


def test_float_tables_and_counts_are_type_errors():
    with pytest.raises(TypeError):
        TableSet(SKEWED.freqs.astype(np.float64))
    with pytest.raises(TypeError):
        normalize(np.array([[0.5, 0.5]]))
    with pytest.raises(TypeError):
        store_counts(np.array([[0.5, 0.5]]))


@pytest.mark.parametrize(
    "rows",
    [
        [[TOTAL, 0]],
        [[TOTAL - 1, 2]],
        [[TOTAL + 1, -1]],
        [[TOTAL]],
        [[1, TOTAL - 1], [1, 1]],
    ],
)
def test_tables_that_break_a_rule_are_refused(rows):
    with pytest.raises(ValueError):
        TableSet(np.array(rows))


def test_symbols_and_rows_out_of_range_are_value_errors():
    for values, index in ([3], None), ([-1], None), ([0], [3]), ([0], [-1]), ([0, 0], [0]):
        with pytest.raises(ValueError):
            Encoder().code(np.array(values), 1, SKEWED, None if index is None else np.array(index))
    with pytest.raises(ValueError):
        Encoder().code(None, 1, SKEWED)


def test_failures_of_the_library_become_bitstream_errors(monkeypatch):
    class Panic(BaseException):
        pass

    class Broken:
        def decode(self, *_):
            raise Panic("a panic from another language")

    decoder = Decoder(b"\1", 10)
    monkeypatch.setattr(decoder, "_reader", Broken())
    with pytest.raises(BitstreamError, match="Panic"):
        decoder.code(None, 1, SKEWED)


def test_an_encoder_does_not_return_words_that_its_reference_cannot_read(monkeypatch):
    encoder = Encoder()
    encoder.code(np.array([2, 1, 0]), 3, SKEWED)
    monkeypatch.setattr(encoder._writer, "payload", lambda: b"\x12\x34")
    with pytest.raises(RuntimeError):
        encoder.finish()


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 2**40), max_size=20),
    st.integers(0, 2**40),
    st.integers(0, 20),
)
def test_integers_round_trip_at_any_size(values, maximum, bits):
    values = np.array([value % (maximum + 1) for value in values], np.int64)
    small = values & ((1 << bits) - 1)
    encoder, counter = Encoder(), Counter()
    for coder in (encoder, counter):
        code_uint(coder, values, len(values), maximum)
        code_bits(coder, small, len(small), bits)
    payload = encoder.finish()
    assert 8 * len(payload) <= counter.bits + 64  # less where zeros end it: they are not stored
    decoder = Decoder(payload, 1 << 20)
    assert np.array_equal(code_uint(decoder, None, len(values), maximum), values)
    assert np.array_equal(code_bits(decoder, None, len(small), bits), small)
    decoder.finish()
    assert decoder.check == encoder.check == counter.check


def test_an_integer_above_its_maximum_is_damage_when_read_and_a_mistake_when_written():
    encoder = Encoder()
    with pytest.raises(ValueError):
        code_uint(encoder, np.array([6]), 1, 5)
    code_uint(encoder, np.array([6]), 1, 6)
    with pytest.raises(BitstreamError):
        code_uint(Decoder(encoder.finish(), 100), None, 1, 5)


def test_zigzag_is_a_bijection():
    values = np.arange(-500, 500)
    assert sorted(zigzag(values).tolist()) == list(range(1000))
    assert np.array_equal(unzigzag(zigzag(values)), values)


def test_adaptation_learns_and_never_reaches_zero():
    tables = AdaptiveTables(normalize(np.array([[1, 1, 1], [1, 1, 1]])), strength=4, memory=50)
    before = tables.tables.freqs.copy()
    for _ in range(200):
        tables.update(np.zeros(9, np.int64), np.full(9, 2))
    after = tables.tables.freqs
    assert after[0, 2] > TOTAL * 9 // 10
    assert after.min() >= 1
    assert np.array_equal(after[1], before[1])


def test_adaptation_does_not_depend_on_the_order_in_a_batch():
    rng = np.random.default_rng(0)
    index, values = rng.integers(0, 3, 500), rng.integers(0, 5, 500)
    results = []
    for order in (np.arange(500), rng.permutation(500)):
        tables = AdaptiveTables(random_tables(np.random.default_rng(1), 3, 5), memory=100)
        tables.update(index[order], values[order])
        results.append(tables.tables.freqs)
    assert np.array_equal(*results)


def test_adaptive_tables_are_known_exactly():
    tables = AdaptiveTables(normalize(np.array([[2, 1, 1]])), strength=16, memory=64)
    tables.update(np.zeros(5, np.int64), np.array([0, 1, 1, 2, 1]))
    assert tables.tables.freqs.tolist() == [[7190236, 5592405, 3994575]]


def test_logistic_tables_are_monotone_and_stretch_is_their_inverse():
    ones = logistic_tables().freqs[:, 1]
    assert (np.diff(ones) >= 0).all()
    assert np.array_equal(ones[::-1], TOTAL - ones)
    stretch = stretch_table()
    assert (np.diff(stretch) >= 0).all()
    assert stretch[1 << 15] == 0
    middle = np.arange(-2000, 2000)
    assert abs(stretch[ones[middle + 3072] >> 8] - middle).max() <= 16


def test_counts_survive_storage(tmp_path, monkeypatch):
    counts = np.array([[1, 65535, 3], [0, 7, 9]])
    (tmp_path / "x").write_bytes(store_counts(counts))
    monkeypatch.setattr("semvc.entropy.tables.ASSETS", tmp_path)
    assert np.array_equal(load_counts("x"), counts)
    (tmp_path / "y").write_bytes(store_counts(counts) + b"\0")
    with pytest.raises(ValueError):
        load_counts("y")


def test_naming_the_tables_needs_the_standard_library_only():
    script = (
        "import sys, semvc.entropy as e; assert len(e.ENTROPY_ID) == 8;"
        "sys.exit(any(m in sys.modules for m in ('numpy', 'constriction', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_entropy_id_changes_with_any_byte_of_any_asset(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"12")
    (tmp_path / "b").write_bytes(b"3")
    monkeypatch.setattr(entropy, "ASSETS", tmp_path)
    seen = set()
    for name, content in (("a", b"12"), ("a", b"13"), ("a", b"123"), ("b", b""), ("c", b"")):
        (tmp_path / name).write_bytes(content)
        seen.add(entropy.entropy_digest.__wrapped__())
    assert len(seen) == 5


def test_the_logistic_asset_is_what_its_builder_writes():
    assert (entropy.ASSETS / "logistic.u32").read_bytes() == build_logistic()
