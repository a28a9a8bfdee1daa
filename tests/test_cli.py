"""The command line: what each command prints where, and how it ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from modelfolder import MODEL
from program import FAST, Call, Result, names, semvc_process
from scene import Scene, write_video

import semvc
from semvc import cli, errors, modelcommands
from semvc.media.reader import VideoReader


@pytest.fixture
def damaged(stream: Path, tmp_path: Path) -> Path:
    """A stream with one wrong bit in its segment."""
    data = bytearray(stream.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged.svc").write_bytes(data)
    return tmp_path / "damaged.svc"


# --- all commands


def commands(group: click.Group = cli.main) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", c) for inner, c in commands(command))
        else:
            yield name, command


MODELS = modelcommands.models.commands
EVERY = dict(commands()) | {f"models {name}": MODELS[name] for name in MODELS}


def test_the_commands_are_those_that_are_documented() -> None:
    assert set(EVERY) == {
        *("encode", "decode", "info", "verify", "dump", "edit", "completion"),
        *(f"models {name}" for name in ("list", "info", "path", "pull", "verify")),
    }


@pytest.mark.parametrize("name", EVERY)
def test_every_command_says_what_it_does_and_can_debug(name: str, run: Call) -> None:
    found = run(*name.split(), "--help")
    assert (found.code, found.err) == (0, "")
    assert EVERY[name].help and "--debug" in found.out


def test_the_list_of_exit_codes_is_that_of_the_errors(run: Call) -> None:
    text = run("--help").out
    for kind in (k for k in vars(errors).values() if isinstance(k, type)):
        code = getattr(kind, "exit_code", None)
        assert code is None or f"{code} " in text, kind


def test_version_is_the_package_version(run: Call) -> None:
    assert run("--version").out == f"semvc, version {semvc.__version__}\n"


def test_no_command_shows_help_with_code_2(run: Call) -> None:
    found = run()
    assert found.code == 2 and "Commands:" in found.out + found.err


def test_an_unknown_command_is_wrong_usage(run: Call) -> None:
    found = run("transcode")
    assert (found.code, found.out) == (2, "") and "No such command 'transcode'" in found.err


FAILING: dict[str, tuple[tuple[str, ...], int]] = {
    "encode": (("none.mp4", "out.svc"), 3),
    "decode": (("none.svc", "out.mp4"), 2),
    "info": (("none.svc",), 2),
    "verify": (("none.svc",), 2),
    "dump": (("none.svc", "folder"), 2),
    "edit": (("none.svc", "out.svc", "--drop", "sketch"), 2),
}


@pytest.mark.parametrize("name", FAILING)
def test_debug_shows_where_and_keeps_the_exit_code(
    name: str, run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words, code = FAILING[name]
    quiet, loud, early = (
        run(name, *words), run(name, "--debug", *words), run("--debug", name, *words)
    )  # fmt: skip
    assert (quiet.code, loud.code, early.code) == (code, code, code)
    assert "Traceback" not in quiet.err and "Traceback" in loud.err and "Traceback" in early.err
    assert quiet.err.startswith("semvc: cannot open none.") and quiet.err.count("\n") == 1
    assert loud.err.endswith(quiet.err) and quiet.out == loud.out == ""
    assert names(tmp_path) == []


def test_a_bug_is_exit_code_1_and_asks_for_a_report(
    run: Call, stream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("semvc.bitstream.probe.probe", broken)
    found = run("info", stream)
    assert (found.code, found.out) == (1, "")
    assert found.err == (
        "semvc: internal error: ZeroDivisionError('oops'); --debug shows where. Please report it.\n"
    )


# --- wrong usage of encode and decode


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-q", "64"], "64.0 is not in the range 0<=x<=63"),
        (["-q", "nan"], "'nan' is not a finite number"),
        (["--bpp", "0"], "0.0 is not in the range x>0"),
        (["--bpp", "inf"], "'inf' is not a finite number"),
        (["--bpp", "0.1", "-q", "3"], "give one of -q, --bpp, --kbps and --size, not 2"),
        (["--size", "many"], "'many' is not a size: give a number with kB, MB, kiB or MiB"),
        (["--size", "-5"], "'-5' is not a size"),
        (["--size", "1e999kB"], "'1e999kB' is not a size"),
        (["--audio", "mp3"], "'mp3': give opus, opus:KBPS (6 to 256), copy or none"),
        (["--audio", "opus:5"], "'opus:5': give opus, opus:KBPS (6 to 256), copy or none"),
        (["--audio", "copy:12"], "'copy:12': give opus"),
        (["--caption", "@none.txt"], "cannot read none.txt: No such file or directory"),
        (["--caption", "x" * 4097], "4097 bytes are too many, at most 4096"),
        (["--caption", "\udcff"], "it is not valid UTF-8"),
        (["--title", "x" * 101], "101 bytes are too many, at most 100"),
        (["--skeleton", "none.json"], "cannot read none.json: No such file or directory"),
        (["--profile", "vvc"], "'vvc' is not one of 'disco', 'cpsgd', 's2vc'"),
        (["--factor", "3"], "'3' is not one of '1', '2', '4', '8'"),
        (["--segment-seconds", "11"], "11.0 is not in the range 0.5<=x<=10"),
        (["--models-dir", "none"], "Directory 'none' does not exist"),
        (["--masks", "."], "--masks needs --profile cpsgd"),
        (["--report", "none/report.json"], "the folder none does not exist"),
        (["--report", "out.svc"], "out.svc cannot be two things at once"),
    ],
)
def test_encode_refuses_wrong_options_before_it_works(
    words: list[str],
    message: str,
    run: Call,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    found = run("encode", clip, "out.svc", *words)
    assert (found.code, found.out) == (2, "")
    assert message in found.err
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--start", "nan"], "'nan' is not a finite number"),
        (["--start", "-1"], "-1.0 is not in the range x>=0"),
        (["--start", "1e9"], "nothing to decode: the stream ends at 1 s, before --start"),
        (["--duration", "0"], "0.0 is not in the range x>0"),
        (["--steps", "0"], "0 is not in the range 1<=x<=50"),
        (["--tier", "best"], "'best' is not one of 'preview', 'small'"),
        (["--output-quality", "52"], "52 is not in the range 0<=x<=51"),
        (["--resume", "--salvage"], "--resume and --salvage do not go together"),
        (["--steps", "4"], "preview has none"),
        (["--device", "tpu"], "'tpu' is unknown: give auto, cpu, cuda, cuda:N or mps"),
        (["--models-dir", "."], "has no index.toml and no backbone"),
    ],
)
def test_decode_refuses_wrong_options(
    words: list[str], message: str, run: Call, stream: Path, tmp_path: Path
) -> None:
    tier = [] if "--tier" in words else ["--tier", "preview"]
    found = run("decode", stream, tmp_path / "out.mp4", *tier, *words)
    assert (found.code, found.out) == (2, "") and message in found.err
    assert names(tmp_path) == []


def test_a_suffix_without_a_container_is_wrong_usage(
    run: Call, stream: Path, tmp_path: Path
) -> None:
    found = run("decode", stream, tmp_path / "out.txt", "--tier", "preview")
    assert found.code == 2 and found.err.endswith("h264 goes into .mp4, .m4v, .mov, .mkv\n")


def test_salvage_that_finds_nothing_is_exit_code_4(run: Call, stream: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.svc").write_bytes(stream.read_bytes()[:200])
    words = ("decode", tmp_path / "cut.svc", tmp_path / "a.mp4", "--tier", "preview", "--salvage")
    found = run(*words)
    assert (found.code, found.out) == (4, "") and "no segment that is wanted is intact" in found.err
    assert names(tmp_path) == ["cut.svc"]


def test_a_report_cannot_be_a_folder(run: Call, clip: Path, tmp_path: Path) -> None:
    found = run("encode", clip, tmp_path / "a.svc", *FAST, "--report", tmp_path)
    assert found.code == 2 and found.err == f"semvc: {tmp_path} is a folder\n"
    assert names(tmp_path) == []


@pytest.mark.parametrize("command", ["encode", "decode", "edit"])
def test_the_output_must_be_another_file_than_the_input(
    command: str, run: Call, stream: Path, tmp_path: Path
) -> None:
    source, link = tmp_path / "a.svc", tmp_path / "b.svc"
    shutil.copy(stream, source)
    link.symlink_to(source)
    extra = ("--drop", "audio_opus") if command == "edit" else ()
    for target in (source, link):
        found = run(command, source, target, "--force", *extra)
        assert found.code == 2 and "cannot be two things at once" in found.err
    assert source.read_bytes() == stream.read_bytes()


@pytest.mark.parametrize("command", ["encode", "decode", "edit"])
def test_an_output_folder_that_is_missing_is_noticed_first(
    command: str, run: Call, stream: Path, tmp_path: Path
) -> None:
    extra = ("--drop", "audio_opus") if command == "edit" else ()
    target = tmp_path / "none" / "out.svc"
    found = run(command, stream, target, *extra)
    assert found.code == 2
    assert found.err == f"semvc: cannot write {target}: the folder {target.parent} does not exist\n"


def test_nothing_is_replaced_without_force(
    run: Call, clip: Path, stream: Path, tmp_path: Path
) -> None:
    taken = {name: tmp_path / name for name in ("a.svc", "a.mp4", "report.json")}
    for path in taken.values():
        path.write_text("precious", "ascii")
    report = ("--report", taken["report.json"])
    for words in (
        ("encode", clip, taken["a.svc"]),
        ("decode", stream, taken["a.mp4"], "--tier", "preview"),
        ("edit", stream, taken["a.svc"], "--drop", "audio_opus"),
        ("encode", clip, tmp_path / "new.svc", *report),
    ):
        found = run(*words)
        assert found.code == 2 and "exists: use --force to replace it" in found.err
    assert {path.read_text("ascii") for path in taken.values()} == {"precious"}
    assert names(tmp_path) == sorted(taken)
    assert run("encode", clip, taken["a.svc"], *FAST, *report, "--force").code == 0
    assert json.loads(taken["report.json"].read_text("utf-8"))["frames"] == 24


def test_a_folder_or_a_device_is_no_output(run: Call, clip: Path, tmp_path: Path) -> None:
    found = run("encode", clip, tmp_path, "--force")
    assert found.code == 2 and f"{tmp_path} is a folder" in found.err
    found = run("encode", clip, "/dev/null", "--force")
    assert found.code == 2 and "/dev/null is a device or a pipe" in found.err
    assert Path("/dev/null").is_char_device()


def test_stdout_takes_the_stream_or_the_report(run: Call, clip: Path) -> None:
    found = run("encode", clip, "-", "--json")
    assert (found.code, found.out) == (2, "")
    assert "'-' and --json both want stdout: use --report FILE" in found.err


# --- what commands print


def test_encode_says_one_line_on_stderr(run: Call, clip: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.svc"
    found = run("encode", clip, target, *FAST)
    assert (found.code, found.out) == (0, "")
    assert found.err.startswith(f"{target}: 24 frames in 1 segments, {target.stat().st_size} bytes")
    assert found.err.count("\n") == 1
    assert names(tmp_path) == ["a.svc"]


def test_quiet_says_nothing(run: Call, clip: Path, tmp_path: Path) -> None:
    found = run("encode", clip, tmp_path / "a.svc", *FAST, "--quiet")
    assert found == Result(0, "", "")


def test_json_is_all_there_is_on_stdout(run: Call, tmp_path: Path) -> None:
    turned = write_video(tmp_path / "a.mp4", Scene(64, 48, 8).render()[0], rotation=90)
    found = run("encode", turned, tmp_path / "a.svc", *FAST, "--json")
    report = json.loads(found.out)
    assert (found.code, found.err) == (0, "")
    assert (report["width"], report["height"], report["frames"]) == (48, 64, 8)
    assert "the rotation stored in the file was applied" in report["notes"]
    spoken = run("encode", turned, tmp_path / "a.svc", *FAST, "--force")
    assert spoken.out == "" and "note: the rotation stored in the file was applied" in spoken.err


def test_the_report_file_holds_what_json_prints(run: Call, stream: Path, tmp_path: Path) -> None:
    words = ("decode", stream, tmp_path / "a.mp4", "--tier", "preview", "--json")
    found = run(*words, "--report", tmp_path / "report.json")
    assert found.code == 0
    assert json.loads(found.out) == json.loads((tmp_path / "report.json").read_text("utf-8"))


def test_info_accounts_for_every_byte(run: Call, stream: Path) -> None:
    row = json.loads(run("info", stream, "--json", "--segments").out)
    sections = sum(item["bytes"] for item in row["sections"])
    assert sections + row["overhead_bytes"] == row["bytes"] == stream.stat().st_size
    assert (row["frames"], row["segments"], len(row["table"])) == (24, 1, 1)
    assert row["complete"] and row["tiers"][0] == "preview"
    text = run("info", stream).out
    assert "picture    64x48, 24 frames, 24 fps, 1.00 s" in text
    assert "fine detail is plausible, not recorded" in text


def test_info_shows_text_of_the_stream_without_letting_it_act(
    run: Call, clip: Path, tmp_path: Path
) -> None:
    target = tmp_path / "a.svc"
    assert run("encode", clip, target, *FAST, "--title", "a\x1b[31m\u202eb\nc").code == 0
    text = run("info", target).out
    assert r"title      a\x1b[31m\u202eb\nc" in text and "\x1b" not in text


@pytest.mark.parametrize("command", ["info", "verify", "decode", "dump"])
@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (None, 2, "cannot open {}: No such file or directory"),
        (b"", 4, "{}: no semvc stream; 'semvc encode' makes one of a video"),
        (b"\x8aSVC", 4, "{}: damaged stream at byte 4: the stream ends inside its header"),
        (b"PK\3\4 is a zip", 4, "{}: no semvc stream; 'semvc encode' makes one of a video"),
    ],
)
def test_what_is_no_stream_is_named(
    command: str, content: bytes | None, code: int, message: str, run: Call, tmp_path: Path
) -> None:
    path = tmp_path / "a.svc"
    if content is not None:
        path.write_bytes(content)
    target = {"decode": [tmp_path / "a.mp4"], "dump": [tmp_path / "a"]}.get(command, [])
    found = run(command, path, *target)
    assert (found.code, found.out) == (code, "")
    assert found.err.startswith(f"semvc: {message.format(path)}")
    assert names(tmp_path) == ([] if content is None else ["a.svc"])


def test_a_folder_is_no_stream(run: Call, tmp_path: Path) -> None:
    assert run("info", tmp_path) == Result(
        2, "", f"semvc: cannot open {tmp_path}: Is a directory\n"
    )


def test_what_is_no_video_is_named(run: Call, tmp_path: Path) -> None:
    for content in (b"", b"not a video"):
        (tmp_path / "a.mp4").write_bytes(content)
        found = run("encode", tmp_path / "a.mp4", tmp_path / "a.svc")
        assert (found.code, found.out) == (3, "")
        assert found.err.startswith(f"semvc: {tmp_path / 'a.mp4'}")
        assert ("MP4, MOV, MKV" in found.err) == bool(content)
        assert names(tmp_path) == ["a.mp4"]


def test_verify_tells_intact_from_damaged(run: Call, stream: Path, damaged: Path) -> None:
    found = run("verify", stream)
    size = stream.stat().st_size
    assert found == Result(0, f"{stream}: intact, 1 segments, 24 frames, {size} bytes\n", "")
    found = run("verify", damaged)
    assert found.code == 4 and found.err == ""
    assert found.out.startswith("damaged: damaged stream at byte")
    row = run("verify", damaged, "--json")
    assert row.code == 4 and json.loads(row.out)["intact"] is False


def test_deep_verify_decodes_every_integer(run: Call, stream: Path) -> None:
    found = run("verify", stream, "--deep", "--json")
    assert (found.code, found.err) == (0, "")
    assert json.loads(found.out) == {
        "intact": True,
        "deep": True,
        "bytes": stream.stat().st_size,
        "segments": 1,
        "frames": 24,
        "damage": [],
        "warnings": [],
    }


def test_dump_writes_files_a_person_can_open(run: Call, stream: Path, tmp_path: Path) -> None:
    folder = tmp_path / "signals"
    found = run("dump", stream, folder)
    assert found == Result(0, f"{folder}: 4 files\n", "")
    assert names(folder) == ["00000-base.mp4", "00000-grain.txt", "audio.opus", "info.json"]
    again = run("dump", stream, folder)
    assert again.code == 2 and "exists and is not empty: use --force" in again.err
    assert run("dump", stream, folder, "--force").code == 0


def test_a_dump_that_fails_leaves_no_empty_folder(run: Call, damaged: Path, tmp_path: Path) -> None:
    before = names(tmp_path)
    found = run("dump", damaged, tmp_path / "new" / "signals")
    assert found.code == 4
    assert names(tmp_path) == before


def test_edit_drops_sound_and_keeps_the_picture(run: Call, stream: Path, tmp_path: Path) -> None:
    target = tmp_path / "silent.svc"
    assert run("edit", stream, target, "--drop", "audio_opus") == Result(0, "", "")
    assert run("verify", target, "--deep").code == 0
    row = json.loads(run("info", target, "--json").out)
    assert [item["type"] for item in row["sections"]] == ["grain", "base_av1"]
    assert row["frames"] == 24


def test_edit_changes_the_caption(run: Call, clip: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "a.svc", tmp_path / "b.svc"
    assert run("encode", clip, source, *FAST, "--caption", "two balls").code == 0
    (tmp_path / "new.txt").write_text("three bälls\n", "utf-8")
    assert run("edit", source, target, "--caption", f"@{tmp_path / 'new.txt'}").code == 0
    assert run("verify", target, "--deep").code == 0
    assert run("dump", target, tmp_path / "dump").code == 0
    text = (tmp_path / "dump" / "00000-caption.txt").read_text("utf-8")
    assert text == "three bälls\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to do: give --drop TYPE or --caption TEXT"),
        (["--drop", "smell"], "unknown section type 'smell'; known: latent, caption"),
        (["--drop", "base_av1"], "base_av1 cannot be dropped"),
        (["--drop", "sketch"], "the stream has no section sketch"),
        (["--caption", "new"], "the stream has no section caption"),
    ],
)
def test_edit_refuses_what_cannot_be(
    words: list[str], message: str, run: Call, stream: Path, tmp_path: Path
) -> None:
    found = run("edit", stream, tmp_path / "a.svc", *words)
    assert (found.code, found.out) == (2, "") and message in found.err
    assert names(tmp_path) == []


def test_completion_prints_a_script(run: Call) -> None:
    for shell in ("bash", "zsh", "fish"):
        found = run("completion", shell)
        assert found.code == 0 and "_SEMVC_COMPLETE" in found.out


# --- each command once as users run it


def test_encode_and_decode_as_processes(clip: Path, models: Path, tmp_path: Path) -> None:
    stream, video = tmp_path / "a.svc", tmp_path / "a.mp4"
    own = ("--models-dir", models)
    done = semvc_process("encode", clip, stream, *FAST, *own, "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["bytes"] == stream.stat().st_size
    done = semvc_process("decode", stream, video, *own, "--device", "cpu")
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"24 frames in 1 segments" in done.stderr
    with VideoReader(video) as reader:
        assert len(list(reader)) == 24 and reader.audio is not None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["info", "{stream}"], b"profile    disco"),
        (["verify", "{stream}", "--deep"], b"intact, 1 segments"),
        (["dump", "{stream}", "{folder}/d"], b"4 files"),
        (["edit", "{stream}", "{folder}/b.svc", "--drop", "audio_opus"], b""),
        (["models", "list"], b""),
        (["completion", "bash"], b"_semvc_completion"),
    ],
)
def test_other_commands_as_processes(
    words: list[str], expected: bytes, stream: Path, tmp_path: Path
) -> None:
    done = semvc_process(*(word.format(stream=stream, folder=tmp_path) for word in words))
    assert (done.returncode, done.stderr) == (0, b"")
    assert expected in done.stdout


def test_models_verify_as_a_process(models: Path, tmp_path: Path) -> None:
    own = tmp_path / "models"
    shutil.copytree(models, own)
    weights = own / MODEL / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = semvc_process("models", "verify", "--models-dir", own)
    assert done.returncode == 6 and done.stdout == b""
    assert b"is not the file that model tiny consists of" in done.stderr
