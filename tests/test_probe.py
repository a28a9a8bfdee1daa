"""Probing, verifying and editing, and an old reader that meets a newer stream."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from strategies import chunks_of, fill, golden, keys, sample_header, sample_stream, sealed_header

from semvc.bitstream.container import Segment, StreamReader, StreamWriter, edit, probe, verify
from semvc.bitstream.framing import ChunkType, Framing
from semvc.bitstream.headers import SectionType
from semvc.errors import BitstreamError, UnsupportedError, UsageError

S = SectionType

# Forward compatibility: an old reader and a newer stream


def test_a_newer_minor_version_is_read_and_kept() -> None:
    body = sample_header().to_bytes()[6:-4] + b"\x90\3new"
    head = sealed_header(body, version=0x15)
    pieces = chunks_of(sample_stream())
    raw = head + b"".join(pieces[1:])
    assert keys(raw) == keys(sample_stream())
    again = io.BytesIO()
    edit(io.BytesIO(raw), again, state_check=lambda segment, kept: 0)
    assert again.getvalue() == raw


@pytest.mark.parametrize("kind", [8, 10, 11, 13, 14, 15])  # the content of 9 and 12 means something
def test_ancillary_chunks_are_skipped_and_kept(kind: int) -> None:
    sink = io.BytesIO()
    writer = StreamWriter(sink, sample_header())
    calls = list(fill(sample_header(), random.Random(1), 3, 50))
    writer.append(kind, b"first")
    for call in calls:
        writer.write(*call)
        writer.append(kind, b"more")
    writer.finish()
    raw = sink.getvalue()
    assert len(keys(raw)) == 3
    assert StreamReader(io.BytesIO(raw)).read(2).index == 2
    bad = bytearray(raw)
    bad[raw.index(b"first")] ^= 1
    with pytest.raises(BitstreamError):
        keys(bytes(bad))
    assert keys(bytes(bad), salvage=True) == keys(raw)
    again = io.BytesIO()
    edit(io.BytesIO(raw), again, state_check=lambda segment, kept: 0)
    assert (again.getvalue() == raw) is (kind != ChunkType.SIGN)


@pytest.mark.parametrize("kind", [3, 5, 6, 7])
@pytest.mark.parametrize("salvage", [False, True])
def test_unknown_critical_chunks_are_refused(kind: int, salvage: bool) -> None:
    header = sample_header()
    raw = header.to_bytes() + Framing(header.salt).chunk(kind, b"new", 0, 0)
    with pytest.raises(UnsupportedError, match=f"type {kind}"):
        keys(raw, salvage=salvage)


def test_unknown_critical_sections_are_refused_and_ancillary_ones_passed_on() -> None:
    header = sample_header(sections=(S.CAPTION, S(0x90), S.BASE_AV1))
    raw = sample_stream(header)
    reader = StreamReader(io.BytesIO(raw))
    assert all(S(0x90) in segment.sections for segment in reader)
    assert "ANCILLARY_144" in reader.warnings[0]
    body = bytearray(header.to_bytes()[6:-4])
    at = body.index(b"\x32\xf9\x03")
    for bad in (b"\x32\xf1\x03", b"\x32\xf7\xf3"):  # types 16 and 127
        with pytest.raises(UnsupportedError, match="sections"):
            StreamReader(io.BytesIO(sealed_header(bytes(body[:at]) + bad + bytes(body[at + 3 :]))))


# Probing, verifying, editing


def test_probe_accounts_for_every_byte() -> None:
    for raw in golden().values():
        info = probe(io.BytesIO(raw))
        assert info.bytes == len(raw)
        assert info.overhead_bytes + sum(item.bytes for item in info.sections) == len(raw)
        assert info.complete and info.segments == len(keys(raw))


def test_probe_reports_the_promised_keys() -> None:
    found = probe(io.BytesIO(sample_stream())).to_json(segments=True)
    keys_wanted = (
        "profile width height frames duration_s bytes bpp kbps overhead_bytes segments sections"
        " audio_bytes table"
    )
    assert set(keys_wanted.split()) <= found.keys()
    assert found["segments"] == 4
    assert isinstance(found["sections"], list)
    assert all(item.keys() == {"type", "bytes", "count"} for item in found["sections"])
    audio = [item["bytes"] for item in found["sections"] if item["type"] == "audio_opus"]
    assert found["audio_bytes"] == audio[0]


def test_probe_of_a_damaged_stream_says_so() -> None:
    raw = sample_stream()
    info = probe(io.BytesIO(raw[:-1]))
    assert not info.complete and info.segments == 4 and info.warnings


def test_verify_tells_intact_from_damaged() -> None:
    raw = bytearray(sample_stream())
    report = verify(io.BytesIO(raw))
    assert report.ok and report.segments == 4
    raw[300] ^= 1
    report = verify(io.BytesIO(raw))
    assert not report.ok and report.segments == 3
    assert report.damage


def test_probing_loads_the_standard_library_only() -> None:
    code = (
        "import sys, semvc.bitstream.container; "
        "heavy = {'numpy', 'torch', 'av', 'click', 'constriction', 'diffusers', 'tqdm'};"
        "sys.exit(', '.join(heavy & sys.modules.keys()) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_edit_drops_sections_and_what_belongs_to_them() -> None:
    raw = sample_stream()
    sink, seen = io.BytesIO(), []

    def check(segment: Segment, kept: object) -> int:
        seen.append(segment.index)
        return 0xABCD

    edit(io.BytesIO(raw), sink, drop={S.AUDIO_OPUS}, state_check=check)
    reader = StreamReader(io.BytesIO(sink.getvalue()), strict=True)
    assert reader.header == replace(
        sample_header(), sections=(S.CAPTION, S.SKETCH, S.BASE_AV1), audio=b""
    )
    for old, new in zip(StreamReader(io.BytesIO(raw)), reader, strict=True):
        assert new.sections == {k: v for k, v in old.sections.items() if k != S.AUDIO_OPUS}
        assert new.state_check == 0xABCD
    assert seen == [0, 1, 2, 3]


def test_edit_replaces_sections_and_leaves_the_others() -> None:
    raw, sink = sample_stream(), io.BytesIO()
    edit(io.BytesIO(raw), sink, replace={S.CAPTION: b"new"}, state_check=lambda segment, kept: 1)
    for old, new in zip(
        StreamReader(io.BytesIO(raw)), StreamReader(io.BytesIO(sink.getvalue())), strict=True
    ):
        assert new.sections == {**old.sections, S.CAPTION: b"new"}
        assert (new.start, new.frames) == (old.start, old.frames)


def test_edit_refuses_what_is_not_there() -> None:
    for options in ({"drop": {S.MASK}}, {"replace": {S.MASK: b"x"}}, {"drop": set(S)}):
        with pytest.raises(UsageError):
            edit(io.BytesIO(sample_stream()), io.BytesIO(), state_check=lambda s, k: 0, **options)  # type: ignore[arg-type]
