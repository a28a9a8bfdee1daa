"""Whom the program trusts: not streams, not inputs, not models that are not what they claim."""

from __future__ import annotations

import dataclasses
import io
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from modelfolder import MODEL
from program import (
    FAST,
    PREVIEW,
    Call,
    environment,
    names,
)
from scene import write_video
from strategies import chunks_of, sealed_header

from semvc.bitstream.container import Segment, StreamReader, StreamWriter
from semvc.bitstream.framing import Framing
from semvc.bitstream.headers import SectionType, StreamHeader
from semvc.bitstream.wire import uv_bytes
from semvc.media import av1


def read(stream: Path) -> tuple[StreamHeader, list[Segment]]:
    with stream.open("rb") as opened:
        reader = StreamReader(opened)
        return reader.header, list(reader)


def written(header: StreamHeader, segments: list[Segment]) -> bytes:
    sink = io.BytesIO()
    writer = StreamWriter(sink, header)
    for segment in segments:
        writer.write(segment.frames, segment.sections, segment.state_check)
    writer.finish()
    return sink.getvalue()


# --- limits and hostile streams


@pytest.mark.parametrize(
    ("width", "height", "count", "code"),
    [(4096, 2304, 0, 4), (4096, 2305, 0, 7), (4097, 16, 0, 7), (4096, 2304, 1 << 22, 7)],
)
def test_sizes_beyond_the_limits_are_refused_at_once(
    width: int, height: int, count: int, code: int, run: Call, stream: Path, tmp_path: Path
) -> None:
    header = read(stream)[0]
    plain = dataclasses.replace(header, width=64, height=48, total_frames=0)
    body, old = plain.to_bytes()[6:-4], bytes((64, 48))
    at = body.index(old, 22)
    sizes = b"".join(uv_bytes(value) for value in (width, height))
    body = body[:at] + sizes + body[at + 2 :]
    rate_color_segment = body[at + len(sizes) :]
    zero = rate_color_segment.index(b"\0", 2)
    counted = rate_color_segment[:zero] + uv_bytes(count) + rate_color_segment[zero + 1 :]
    path = tmp_path / "huge.svc"
    path.write_bytes(sealed_header(body[: at + len(sizes)] + counted, version=plain.version))
    for words in (("info", path), ("decode", path, tmp_path / "a.mp4", *PREVIEW)):
        if words[0] == "info" and code == 4:
            continue  # a header alone is a damaged stream that `info` can describe
        found = run(*words)
        assert found.code == code and found.out == "" and (code == 4 or "limit" in found.err)
    assert names(tmp_path) == ["huge.svc"]


def test_a_video_beyond_the_limits_is_refused(run: Call, tmp_path: Path) -> None:
    wide = np.zeros((1, 16, 4100, 3), np.uint8)
    source = write_video(tmp_path / "wide.mp4", wide)
    found = run("encode", source, tmp_path / "a.svc")
    assert found.code == 7 and "4100x16 is too large, at most 4096 a side" in found.err
    assert names(tmp_path) == ["wide.mp4"]


def bombs(stream: Path) -> dict[str, bytes]:
    """Streams whose checksums hold and whose base layer is not what they say."""
    header, segments = read(stream)
    first = segments[0]
    options = {"crf": 60, "preset": 12}
    big_header, big = av1.encode_segment(np.zeros((2, 1024, 1024, 3), np.uint8), **options)
    many_header, many = av1.encode_segment(np.zeros((200, 48, 64, 3), np.uint8), **options)

    def with_base(obus: bytes, sequence: bytes) -> bytes:
        sections = {
            **first.sections,
            SectionType.BASE_AV1: first.sections[SectionType.BASE_AV1][:1] + obus,
        }
        return written(
            dataclasses.replace(header, sequence_header=sequence),
            [dataclasses.replace(first, sections=sections)],
        )

    return {
        "a large picture": with_base(big, big_header),
        "a large picture behind a small header": with_base(big, header.sequence_header),
        "many pictures": with_base(many, many_header),
        "noise": with_base(random.Random(1).randbytes(5000), header.sequence_header),
        "nothing": with_base(b"", header.sequence_header),
    }


@pytest.mark.parametrize(
    "name",
    [
        "a large picture",
        "a large picture behind a small header",
        "many pictures",
        "noise",
        "nothing",
    ],
)
def test_bombs_in_the_base_layer_are_refused(
    name: str, run: Call, stream: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bomb.svc"
    path.write_bytes(bombs(stream)[name])
    assert run("verify", path).code == 0
    found = run("decode", path, tmp_path / "a.mp4", *PREVIEW)
    assert found.code in (4, 7) and found.out == ""
    assert run("verify", path, "--deep").code == 4
    assert names(tmp_path) == ["bomb.svc"]


def test_a_flood_of_empty_sound_is_refused(run: Call, stream: Path, tmp_path: Path) -> None:
    header, segments = read(stream)
    flood = uv_bytes(0) + uv_bytes((1 << 28) - 1) + bytes(100)
    sections = {**segments[0].sections, SectionType.AUDIO_OPUS: flood}
    path = tmp_path / "flood.svc"
    path.write_bytes(written(header, [dataclasses.replace(segments[0], sections=sections)]))
    found = run("decode", path, tmp_path / "a.mp4", *PREVIEW)
    assert found.code in (4, 7) and found.out == "" and names(tmp_path) == ["flood.svc"]


# --- newer streams


def test_a_newer_minor_version_is_read(run: Call, stream: Path, tmp_path: Path) -> None:
    header, segments = read(stream)
    newer = dataclasses.replace(header, version=0x1F, extra=((0x90, b"future"),))
    path = tmp_path / "a.svc"
    path.write_bytes(written(newer, segments))
    assert run("verify", path, "--deep").code == 0
    assert run("decode", path, tmp_path / "a.mp4", *PREVIEW).code == 0


def test_what_must_be_known_and_is_not_is_exit_code_5(
    run: Call, stream: Path, tmp_path: Path
) -> None:
    data = stream.read_bytes()
    head, *chunks = chunks_of(data)
    salt = struct.unpack_from("<I", data, 8)[0]
    body = head[6:-4]
    streams = {
        "format 2.0": sealed_header(body, version=0x20) + b"".join(chunks),
        "feature bit 3": sealed_header(b"\x08\0" + body[2:]) + b"".join(chunks),
        "chunk of type 5": head + Framing(salt).chunk(5, b"new", 0, 0) + b"".join(chunks),
        "record 0x7f": sealed_header(body + b"\x7f\x01x") + b"".join(chunks),
    }
    path = tmp_path / "a.svc"
    for text, content in streams.items():
        path.write_bytes(content)
        found = run("decode", path, tmp_path / "a.mp4", *PREVIEW)
        assert found.code == 5, (text, found)
        assert found.err.startswith(f"semvc: {path}: ") and text in found.err, found.err
        assert found.err.count("\n") == 1
    assert names(tmp_path) == ["a.svc"]


def test_an_unknown_ancillary_chunk_is_passed_over(run: Call, stream: Path, tmp_path: Path) -> None:
    header, segments = read(stream)
    sink = io.BytesIO()
    writer = StreamWriter(sink, header)
    writer.append(14, b"of the future")
    for segment in segments:
        writer.write(segment.frames, segment.sections, segment.state_check)
    writer.finish()
    path = tmp_path / "a.svc"
    path.write_bytes(sink.getvalue())
    assert run("verify", path, "--deep").code == 0
    assert run("decode", path, tmp_path / "a.mp4", *PREVIEW).code == 0


def test_a_profile_that_is_not_here_is_exit_code_5(run: Call, stream: Path, tmp_path: Path) -> None:
    header, segments = read(stream)
    path = tmp_path / "a.svc"
    path.write_bytes(
        written(dataclasses.replace(header, profile=type(header.profile).TOY), segments)
    )
    found = run("decode", path, tmp_path / "a.mp4", *PREVIEW)
    assert found.code == 5 and "profile toy cannot be decoded here; known: disco" in found.err
    assert run("info", path).code == 0


# --- wrong models


def test_other_entropy_tables_are_exit_code_6(run: Call, stream: Path, tmp_path: Path) -> None:
    header, segments = read(stream)
    path = tmp_path / "a.svc"
    path.write_bytes(written(dataclasses.replace(header, entropy_id=b"othertab"), segments))
    for words in (
        ("decode", path, tmp_path / "a.mp4", *PREVIEW),
        ("verify", path, "--deep"),
        ("dump", path, tmp_path / "d"),
    ):
        found = run(*words)
        assert found.code == 6 and found.out == "", found
        assert f"needs entropy tables {b'othertab'.hex()}" in found.err
    assert run("verify", path).code == run("info", path).code == 0
    assert names(tmp_path) == ["a.svc"]


def test_a_stream_for_another_decoder_is_exit_code_6_and_can_be_forced(
    run: Call, stream: Path, models: Path, tmp_path: Path
) -> None:
    words = ("decode", stream, tmp_path / "a.mp4", "--models-dir", models, "--device", "cpu")
    found = run(*words)
    assert found.code == 6 and found.out == "" and names(tmp_path) == []
    assert "the stream was made for decoder" in found.err and f"installed is {MODEL}" in found.err
    assert "the stream itself is intact: --any-decoder decodes it" in found.err
    assert run(*words, "--any-decoder").code == 0


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "index", "config"])
def test_a_model_that_is_not_what_it_claims_is_exit_code_6(
    damage: str, run: Call, clip: Path, models: Path, tmp_path: Path
) -> None:
    own, stream = tmp_path / "models", tmp_path / "a.svc"
    shutil.copytree(models, own)
    assert run("encode", clip, stream, *FAST, "--models-dir", own).code == 0
    weights, index = own / MODEL / "weights.safetensors", own / "index.toml"
    data = bytearray(weights.read_bytes())
    match damage:
        case "flip":
            data[len(data) // 2] ^= 1
            weights.write_bytes(data)
        case "cut":
            weights.write_bytes(data[:-1])
        case "missing":
            weights.unlink()
        case "index":
            index.write_text("[[model]]\nid = 1\n", "utf-8")
        case "config":
            config = own / MODEL / "config.toml"
            config.write_text(config.read_text("utf-8") + "\n", "utf-8")
    texts = {"missing": "model tiny is not installed", "index": "index.toml cannot be read"}
    expected = texts.get(damage, "is not the file that model tiny consists of")
    words = ("decode", stream, tmp_path / "a.mp4", "--models-dir", own, "--device", "cpu")
    found = run(*words)
    assert found.code == 6 and found.out == "" and expected in found.err
    assert run("models", "verify", "--models-dir", own).code == 6
    assert not (tmp_path / "a.mp4").exists()
    assert run(*words, *PREVIEW).code == 0


# --- no connections, no other files


GUARD = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "urllib.Request",
                 "pickle.find_class", "os.system", "ftplib.connect"):
        print("FORBIDDEN", event, arguments, file=sys.stderr)
        raise RuntimeError(event)
sys.addaudithook(refuse)
from semvc.cli import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.slow
def test_nothing_connects_anywhere(clip: Path, models: Path, tmp_path: Path) -> None:
    own = ("--models-dir", models)
    for words in (
        ("encode", clip, tmp_path / "a.svc", *FAST, *own, "--sketch", "--caption", "hello"),
        ("decode", tmp_path / "a.svc", tmp_path / "a.mp4", *own, "--device", "cpu"),
        ("verify", tmp_path / "a.svc", "--deep"),
        ("dump", tmp_path / "a.svc", tmp_path / "d"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", GUARD, *map(str, words)],
            env=environment(),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0 and b"FORBIDDEN" not in done.stderr, done.stderr


def test_the_guard_notices_a_connection() -> None:
    script = GUARD.split("from semvc")[0] + "import socket; socket.create_connection(('::1', 9))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert b"FORBIDDEN socket.getaddrinfo" in done.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.mp4", "ffconcat version 1.0\nfile secret.mp4\n"),
        ("play.m3u8", "#EXTM3U\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n"),
    ],
)
def test_an_input_opens_no_other_file(
    name: str, text: str, run: Call, clip: Path, tmp_path: Path
) -> None:
    shutil.copy(clip, tmp_path / "secret.mp4")
    (tmp_path / name).write_text(text, "ascii")
    found = run("encode", tmp_path / name, tmp_path / "a.svc")
    assert found.code == 3 and "not a video file that can be read" in found.err
    assert not (tmp_path / "a.svc").exists()


def test_encoding_a_stream_names_the_command_that_was_meant(
    run: Call, stream: Path, tmp_path: Path
) -> None:
    found = run("encode", stream, tmp_path / "a.svc")
    assert (found.code, found.out, names(tmp_path)) == (3, "", [])
    assert found.err == (
        f"semvc: {stream} is a semvc stream, not a video: 'semvc decode' rebuilds its video\n"
    )


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/a.mp4", "concat:a.mp4|b.mp4"])
def test_an_address_is_no_input(address: str, run: Call, tmp_path: Path) -> None:
    found = run("encode", address, tmp_path / "a.svc")
    assert found.code == 3 and "addresses are not opened" in found.err
    assert names(tmp_path) == []
