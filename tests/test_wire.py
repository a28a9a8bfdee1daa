"""Field types and headers: every value has one spelling, and nothing out of range gets in."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import headers, sample_header, sealed_header

from semvc.bitstream import fields, wire
from semvc.bitstream.headers import (
    COLORS,
    FRAME_RATES,
    ProfileId,
    SectionType,
    StreamHeader,
    parse_header,
)
from semvc.errors import BitstreamError, LimitError, UnsupportedError, UsageError
from semvc.types import ColorInfo, Limits

FAST = settings(max_examples=500, deadline=None, derandomize=True)


def read(kind: wire.Kind, data: bytes) -> object:
    cursor = wire.Cursor(data, Limits(), base=100)
    cursor.field = "thing"
    value = kind.read(cursor)
    assert not cursor.rest()
    return value


@pytest.mark.parametrize(
    ("value", "spelling"),
    [(0, "00"), (127, "7f"), (128, "8001"), (16383, "ff7f"), (16384, "808001"),
     (2**21 - 1, "ffff7f"), (2**28 - 1, "ffffff7f")],
)  # fmt: skip
def test_uv_has_known_bytes(value: int, spelling: str) -> None:
    assert wire.uv_bytes(value).hex() == spelling
    assert read(fields.UVar(0), bytes.fromhex(spelling)) == value


@pytest.mark.parametrize("spelling", ["8000", "808000", "ff8000", "ffffffff", "80808080", "80", ""])
def test_other_spellings_of_uv_are_refused(spelling: str) -> None:
    with pytest.raises(BitstreamError):
        read(fields.UVar(0), bytes.fromhex(spelling))


def test_uv_beyond_28_bits_cannot_be_written() -> None:
    with pytest.raises(UsageError):
        wire.uv_bytes(1 << 28)


def test_range_errors_name_the_field_and_its_byte() -> None:
    with pytest.raises(BitstreamError, match=r"byte 100: thing is 3, outside 5\.\.9") as caught:
        read(fields.UVar(5, 9), b"\3")
    assert caught.value.offset == 100


def test_a_value_above_a_limit_is_a_limit_error() -> None:
    with pytest.raises(LimitError, match="thing at byte 100 is 4097; the limit is 4096"):
        read(fields.UVar(16, limit="max_width"), wire.uv_bytes(4097))


@given(st.binary(max_size=6))
@FAST
def test_whatever_reads_as_uv_writes_the_same_bytes(data: bytes) -> None:
    cursor = wire.Cursor(data, Limits())
    try:
        value = cursor.uv()
    except BitstreamError:
        return
    assert wire.uv_bytes(value) == data[: cursor.at]


@pytest.mark.slow
@given(headers())
@settings(max_examples=2000, deadline=None, derandomize=True)
def test_headers_survive_a_round_trip(header: StreamHeader) -> None:
    raw = header.to_bytes()
    parsed = parse_header(raw)
    assert parsed == header
    assert parsed.to_bytes() == raw


@given(st.integers(0, 2**32), st.binary(min_size=30, max_size=60))
@FAST
def test_any_body_with_a_valid_checksum_parses_canonically_or_fails(at: int, noise: bytes) -> None:
    body = bytearray(sample_header(title="x").to_bytes()[6:-4])
    at = at % len(body)
    body[at : at + 1 + len(noise) % 3] = noise[: 1 + noise[0] % 3]
    raw = sealed_header(bytes(body))
    try:
        header = parse_header(raw)
    except (BitstreamError, LimitError, UnsupportedError):
        return
    assert header.to_bytes() == raw


@pytest.mark.parametrize("code", range(1, len(FRAME_RATES) + 1))
def test_a_frame_rate_that_has_a_code_must_use_it(code: int) -> None:
    rate = FRAME_RATES[code - 1]
    kind = fields.Ratio(Fraction(1, 60), Fraction(240), FRAME_RATES)
    assert read(kind, bytes((code,))) == rate
    with pytest.raises(BitstreamError, match="has a code"):
        read(kind, b"\0" + wire.uv_bytes(rate.numerator) + wire.uv_bytes(rate.denominator))


def test_fractions_must_be_in_lowest_terms_and_positive() -> None:
    for data in (b"\2\4", b"\0\1", b"\1\0"):
        with pytest.raises(BitstreamError):
            read(fields.Ratio(), data)


@pytest.mark.parametrize(
    "rate", [Fraction(1, 60), Fraction(240), Fraction(1, 61), Fraction(241), Fraction(2401, 10)]
)
def test_frame_rates_are_limited(rate: Fraction) -> None:
    header = sample_header(frame_rate=rate)
    if Fraction(1, 60) <= rate <= 240:
        assert parse_header(header.to_bytes()).frame_rate == rate
    else:
        with pytest.raises(LimitError):
            header.to_bytes()


def test_a_color_that_has_a_code_must_use_it() -> None:
    kind = fields.Color(COLORS)
    assert read(kind, b"\1") == ColorInfo()
    assert read(kind, b"\0\1\2\3\1") == ColorInfo(1, 2, 3, True)
    with pytest.raises(BitstreamError, match="has a code"):
        read(kind, b"\0\1\1\1\0")
    with pytest.raises(BitstreamError, match="range flag"):
        read(kind, b"\0\1\2\3\2")
    with pytest.raises(UnsupportedError):
        read(kind, b"\xf0")


def test_section_lists_are_compact_and_canonical() -> None:
    kind = fields.NibbleList(SectionType)
    out = wire.Builder(Limits())
    kind.write(out, (SectionType.CAPTION, SectionType(0x90), SectionType.BASE_AV1))
    assert out.data.hex() == "32f903"
    assert read(kind, bytes(out.data)) == (2, 0x90, 3)
    for bad in ("00", "223310", "221f", "1f02", "0123"):
        with pytest.raises((BitstreamError, UnsupportedError)):
            read(kind, bytes.fromhex(bad))


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [("width", 16, 4096), ("height", 16, 4096), ("segment_frames", 1, 1024)],
)
def test_sizes_are_accepted_up_to_their_limits(field: str, low: int, high: int) -> None:
    for value in (low, high - 1, high):
        header = sample_header(base_size=None, **{field: value})
        assert getattr(parse_header(header.to_bytes()), field) == value
    with pytest.raises(LimitError, match=field):
        sample_header(**{field: high + 1}).to_bytes()
    with pytest.raises(UsageError, match=field):
        sample_header(**{field: low - 1}).to_bytes()


def test_pixels_frames_and_samples_are_limited() -> None:
    assert sample_header(width=4096, height=2304).to_bytes()
    assert sample_header(width=128, height=128, base_size=None, total_frames=1 << 22).to_bytes()
    for changes in (
        {"width": 4096, "height": 2305},
        {"total_frames": (1 << 22) + 1},
        {"width": 4096, "height": 2304, "total_frames": (1 << 40) // (4096 * 2304) + 1},
    ):
        with pytest.raises(LimitError):
            sample_header(**changes).to_bytes()


def test_a_reader_can_raise_its_limits() -> None:
    wide = sample_header(width=5000, base_size=None).to_bytes(Limits(max_width=5000))
    with pytest.raises(LimitError):
        parse_header(wide)
    assert parse_header(wide, Limits(max_width=5000)).width == 5000


def test_a_header_that_is_too_long_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="header"):
        sample_header(title="t" * 200).to_bytes()


def test_records_out_of_order_repeated_or_empty_are_refused() -> None:
    body = sample_header(sequence_header=b"", base_size=None, audio=b"").to_bytes()[6:-4]
    two = bytes((2, 2, 20, 20))
    assert parse_header(sealed_header(body + two)).base_size == (20, 20)
    for records in (two + two, b"\x81\1a" + two, b"\1\0", b"\x81\1\xff", b"\2\3\x14\x14\0", b"\3"):
        with pytest.raises(BitstreamError):
            parse_header(sealed_header(body + records))


def test_unknown_critical_records_are_refused_and_ancillary_ones_kept() -> None:
    body = sample_header().to_bytes()[6:-4]
    with pytest.raises(UnsupportedError, match="0x7e"):
        parse_header(sealed_header(body + b"\x7e\1x"))
    raw = sealed_header(body + b"\x90\3new", version=0x17)
    header = parse_header(raw)
    assert header.extra == ((0x90, b"new"),)
    assert header.to_bytes() == raw


def test_newer_major_versions_unknown_features_and_profiles_are_refused() -> None:
    raw = bytearray(sample_header().to_bytes())
    with pytest.raises(UnsupportedError, match=r"format 2\.0"):
        parse_header(bytes(raw[:4]) + b"\x20" + bytes(raw[5:]))
    body = bytearray(raw[6:-4])
    with pytest.raises(UnsupportedError, match="feature bit 3, 12"):
        parse_header(sealed_header(b"\x08\x10" + bytes(body[2:])))
    at = sample_header(profile=ProfileId.CPSGD).to_bytes().index(b"\x30\x42", 20) - 6
    body[at] = 0x90
    with pytest.raises(UnsupportedError, match="profile"):
        parse_header(sealed_header(bytes(body)))


def test_a_header_with_damage_says_so() -> None:
    raw = sample_header().to_bytes()
    for at in range(len(raw)):
        for bit in range(8):
            bad = bytearray(raw)
            bad[at] ^= 1 << bit
            with pytest.raises((BitstreamError, UnsupportedError)):
                parse_header(bytes(bad))
        with pytest.raises(BitstreamError):
            parse_header(raw[:at])


def test_header_bytes_are_known() -> None:
    # The wire itself: this changes only with a new version of the format.
    assert sample_header(title="hi").to_bytes().hex() == (
        "8a53564310410000ed5e0000656e74726f7079216465636f07000000d606e003050196010010425930"
        "010c0a0b00000024cf7ff2b020080203d6017803050001003801810268690e6a2687"
    )


def test_ids_are_never_renumbered() -> None:
    assert {kind.name: int(kind) for kind in SectionType} == {
        "LATENT": 1, "CAPTION": 2, "BASE_AV1": 3, "BASE_HEVC": 4, "SKETCH": 5, "SKELETON": 6,
        "CAMERA": 7, "MASK": 8, "AUDIO_OPUS": 9, "GRAIN": 10, "TIMING": 11, "KEYFRAME": 12,
        "AUDIO_COPY": 13, "DEPTH": 14, "OVERRIDE": 15,
    }  # fmt: skip
    assert {item.name: int(item) for item in ProfileId} == {
        "TOY": 0, "DISCO": 1, "S2VC": 2, "CPSGD": 3
    }  # fmt: skip


def test_json_comes_from_the_declaration() -> None:
    header = replace(sample_header(), title="clip", time_base=Fraction(1, 90000))
    found = header.to_json()
    assert found["profile"] == "disco"
    assert found["frame_rate"] == "30"
    assert found["time_base"] == "1/90000"
    assert found["sections"] == ["caption", "sketch", "audio_opus", "base_av1"]
    assert found["entropy_id"] == b"entropy!".hex()
    assert "title" not in sample_header().to_json()
