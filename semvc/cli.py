"""The command line: parses, calls one function, prints its report. No logic of its own.

Heavy modules are imported inside the commands that need them, so that `info` and `--help` are quick.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from semvc import __version__
from semvc.errors import ResourceError, SemvcError, UsageError

_SIZE_UNITS = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 1024,
    "mib": 1 << 20,
    "gib": 1 << 30,
}
_EXIT_CODES = """\b
Exit codes:
  0 done                     5 unsupported version, profile or feature
  1 a bug of semvc           6 model missing or different
  2 wrong usage              7 limit exceeded
  3 input video unreadable   8 no space, permission, memory, closed pipe
  4 stream damaged           9 salvaged with gaps
  130, 143 interrupted"""


class _Terminated(BaseException):
    """SIGTERM arrived; clean-up runs as for Ctrl-C."""


def run(arguments: list[str]) -> int:
    """Run one command; return the process exit code. Errors become one line on stderr."""

    def terminate(*_: object) -> None:
        raise _Terminated

    signal.signal(signal.SIGTERM, terminate)
    debug = "--debug" in arguments
    try:
        result = main.main(args=arguments, prog_name="semvc", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _say("interrupted", 130)
    except _Terminated:
        return _say("terminated", 143)
    except SemvcError as error:
        if debug:
            raise
        return _say(str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more can be said
        return ResourceError.exit_code
    except MemoryError:
        return _say(
            "out of memory: use --tier preview or a smaller picture", ResourceError.exit_code
        )
    except OSError as error:
        if debug:
            raise
        name = f"{error.filename}: " if error.filename else ""
        return _say(f"{name}{error.strerror or error}", ResourceError.exit_code)
    except Exception as error:
        if debug:
            raise
        return _say(f"internal error: {error!r}; --debug shows where. Please report it.", 1)


def _say(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        click.echo(f"semvc: {message}", err=True)
    return code


def _json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(
        command
    )


def _output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--force", "-f", is_flag=True, help="Replace an existing output."),
        click.option("--quiet", is_flag=True, help="No progress bar, no summary."),
        click.option(
            "--report", type=click.Path(path_type=Path), help="Also write the JSON report here."
        ),
        click.option("--debug", is_flag=True, help="Show the traceback of an error."),
    ):
        command = option(command)
    return _json_option(command)


def _runtime_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."
        ),
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16"]),
            default="auto",
            show_default=True,
        ),
        click.option(
            "--models-dir",
            type=click.Path(path_type=Path),
            help="Folder with models and index.toml.",
        ),
    ):
        command = option(command)
    return command


@click.group(epilog=_EXIT_CODES)
@click.version_option(__version__, prog_name="semvc")
def main() -> None:
    """A semantic video codec: video in, a tiny .svc stream, video out.

    The decoder rebuilds the picture with a diffusion model. Detail in it is plausible, not recorded.

    \b
    Examples:
      semvc encode in.mp4 out.svc            encode at the default quality
      semvc encode in.mp4 out.svc --bpp 0.01 encode at 0.01 bits per pixel
      semvc decode out.svc rec.mp4           rebuild the video
      semvc info out.svc                     what the stream holds, byte by byte
    """


def _size(text: str) -> int:
    number = text.strip().lower().rstrip("bkmgi")
    unit = text.strip().lower()[len(number) :].strip()
    try:
        return int(float(number) * _SIZE_UNITS[unit])
    except (ValueError, KeyError):
        raise click.BadParameter(
            f"{text!r} is not a size: give a number with kB, MB, kiB or MiB, as in 500kB",
            param_hint="--size",
        ) from None


def _audio(text: str) -> tuple[str, int]:
    name, _, rate = text.partition(":")
    if name in ("opus", "copy", "none") and (not rate or name == "opus"):
        with contextlib.suppress(ValueError):
            kbps = int(rate or 12)
            if 6 <= kbps <= 256:
                return name, kbps
    raise click.BadParameter(
        f"{text!r}: give opus, opus:KBPS (6 to 256), copy or none", param_hint="--audio"
    )


def _caption(text: str) -> str:
    if text == "none":
        return ""
    if text == "auto":
        raise UsageError(
            "--caption auto needs a captioning model, and none is installed with this version:"
            " write the caption yourself, or leave it out"
        )
    if text.startswith("@"):
        try:
            return Path(text[1:]).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the caption from {text[1:]}: {error}") from error
    return text


@main.command(epilog=_EXIT_CODES)
@click.argument("source", type=click.Path(path_type=Path, allow_dash=True))
@click.argument("target", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "-q", "--quality", type=click.FloatRange(0, 63), help="0 (smallest) to 63; default 32."
)
@click.option(
    "--bpp",
    type=click.FloatRange(0, min_open=True),
    help="Target bits per source pixel, sound left out.",
)
@click.option(
    "--kbps",
    type=click.FloatRange(0, min_open=True),
    help="Target kilobits per second, sound included.",
)
@click.option("--size", help="Target size of the whole file, as 500kB or 1.5MB.")
@click.option(
    "-p", "--profile", default="disco", show_default=True, help="How pictures are described."
)
@click.option("--caption", default="none", show_default=True, help="TEXT, @FILE, auto or none.")
@click.option(
    "--sketch/--no-sketch", default=False, show_default=True, help="Send edge maps as well."
)
@click.option(
    "--skeleton",
    type=click.Path(path_type=Path),
    help="COCO keypoint JSON, one entry a frame and person.",
)
@click.option("--audio", default="opus", show_default=True, help="opus[:KBPS], copy or none.")
@click.option(
    "--factor",
    type=click.Choice(["1", "2", "4", "8"]),
    help="Spatial factor; by content if not given.",
)
@click.option(
    "--step", type=click.Choice(["1", "2", "4", "8"]), help="Send every STEP-th frame; by content."
)
@click.option("--segment-seconds", type=click.FloatRange(0.5, 10), default=4.5, show_default=True)
@click.option(
    "--preset",
    type=click.IntRange(0, 12),
    default=4,
    show_default=True,
    help="Of SVT-AV1: 0 is slowest.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of the synthesis noise.",
)
@click.option("--title", default="", help="Free text shown by info.")
@click.option(
    "--deterministic", is_flag=True, help="Take the salt from the input: two runs give equal files."
)
@click.option(
    "--resume", is_flag=True, help="Continue an interrupted encode of the same input and options."
)
@click.option("--keep-partial", is_flag=True, help="Keep TARGET.part when interrupted.")
@_output_options
def encode(source: Path, target: Path, **given: Any) -> None:
    """Encode the video SOURCE into the stream TARGET ('-' for stdin and stdout).

    One of -q, --bpp, --kbps and --size sets the rate.
    """
    from semvc import encoder
    from semvc.rate import Target
    from semvc.types import EncodeOptions

    rates = {n: given[n] for n in ("quality", "bpp", "kbps", "size") if given[n] is not None}
    if len(rates) > 1:
        raise UsageError(f"give one of -q, --bpp, --kbps and --size, not {len(rates)}")
    if "size" in rates:
        rates["size"] = _size(rates["size"])
    audio, kbps = _audio(given["audio"])
    skeleton = ""
    if given["skeleton"] is not None:
        try:
            skeleton = given["skeleton"].read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read {given['skeleton']}: {error}") from error
    options = EncodeOptions(
        profile=given["profile"],
        quality=rates.pop("quality", 32.0),
        segment_seconds=given["segment_seconds"],
        preset=given["preset"],
        seed=given["seed"],
        factor=None if given["factor"] is None else int(given["factor"]),
        step=None if given["step"] is None else int(given["step"]),
        caption=_caption(given["caption"]),
        sketch=given["sketch"],
        skeleton=skeleton,
        audio=audio,
        audio_kbps=kbps,
        title=given["title"],
    )
    job = encoder.EncodeJob(
        target=Target(*rates.popitem()) if rates else None,
        deterministic=given["deterministic"],
        force=given["force"],
        resume=given["resume"],
        keep_partial=given["keep_partial"],
    )
    _check_dash(target, given)
    with _progress("encode", given) as advance, _input(source) as opened:
        output: Path | BinaryIO = sys.stdout.buffer if str(target) == "-" else target
        report = encoder.encode(opened, output, options, job=job, on_frames=advance)
    _finish(report, given, str(target))


@main.command(epilog=_EXIT_CODES)
@click.argument("source", type=click.Path(path_type=Path, allow_dash=True))
@click.argument("target", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--tier",
    type=click.Choice(["preview", "small"]),
    default="small",
    show_default=True,
    help="preview needs no model; small is the bundled generator.",
)
@click.option(
    "--steps",
    type=click.IntRange(1, 50),
    default=1,
    show_default=True,
    help="Diffusion steps a frame.",
)
@click.option(
    "--start", type=click.FloatRange(0), default=0.0, help="Begin at this second (of its segment)."
)
@click.option(
    "--duration", type=click.FloatRange(0, min_open=True), help="Seconds to decode; whole segments."
)
@click.option(
    "--salvage",
    is_flag=True,
    help="Decode what is intact of a damaged stream; exit 9 if there are gaps.",
)
@click.option(
    "--any-decoder", is_flag=True, help="Decode with the installed model even if made for another."
)
@click.option(
    "--output-codec",
    type=click.Choice(["h264", "hevc", "av1", "ffv1"]),
    default="h264",
    show_default=True,
)
@click.option(
    "--output-quality", type=click.IntRange(0, 51), help="Constant rate factor of the output codec."
)
@_runtime_options
@_output_options
def decode(source: Path, target: Path, **given: Any) -> int:
    """Rebuild the video of the stream SOURCE as TARGET ('-' for stdin and stdout)."""
    from semvc import decoder
    from semvc.types import Runtime

    runtime = Runtime(
        device=given["device"],
        dtype=given["dtype"],
        models_dir=given["models_dir"],
        any_decoder=given["any_decoder"],
    )
    job = decoder.DecodeJob(
        tier=given["tier"],
        steps=given["steps"],
        start=given["start"],
        duration=given["duration"],
        salvage=given["salvage"],
        force=given["force"],
        codec=given["output_codec"],
        quality=given["output_quality"],
    )
    _check_dash(target, given)
    with _progress("decode", given) as advance, _stream(source) as opened:
        output: Path | BinaryIO = sys.stdout.buffer if str(target) == "-" else target
        report = decoder.decode(opened, output, job, runtime=runtime, on_frames=advance)
    _finish(report, given, str(target))
    if report.gaps:
        return _say(f"{target}: {report.gaps} gaps were filled with held frames", 9)
    return 0


@main.command(epilog=_EXIT_CODES)
@click.argument("source", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--segments", is_flag=True, help="Also list every segment.")
@click.option(
    "--models-dir", type=click.Path(path_type=Path), help="Folder with models and index.toml."
)
@_json_option
def info(source: Path, segments: bool, models_dir: Path | None, as_json: bool) -> None:
    """Show what a stream holds: picture, rate, bytes of every signal, models it names."""
    from semvc import describe
    from semvc.bitstream.probe import probe

    with _stream(source) as opened:
        found = probe(opened)
    rows = describe.stream(found, models_dir, segments=segments)
    click.echo(json.dumps(rows) if as_json else describe.table(rows))


@main.command(epilog=_EXIT_CODES)
@click.argument("source", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--deep", is_flag=True, help="Also decode every integer and the base layer.")
@_json_option
def verify(source: Path, deep: bool, as_json: bool) -> int:
    """Check every checksum, limit and the end of a stream; exit 4 if it is damaged."""
    from semvc.bitstream.probe import verify as verify_container

    with _stream(source) as opened:
        report = verify_container(opened)
        damage = list(report.damage)
        if deep and not damage:
            from semvc import inspect

            damage += inspect.verify_signals(opened)
    row = {
        "intact": not damage,
        "deep": deep,
        "bytes": report.bytes,
        "segments": report.segments,
        "frames": report.frames,
        "damage": damage,
        "warnings": list(report.warnings),
    }
    if as_json:
        click.echo(json.dumps(row))
    else:
        for line in (*(f"damaged: {d}" for d in damage), *(f"note: {w}" for w in report.warnings)):
            click.echo(line)
        state = "damaged" if damage else "intact"
        click.echo(
            f"{source}: {state}, {report.segments} segments, {report.frames} frames, {report.bytes} bytes"
        )
    return 4 if damage else 0


@main.command(epilog=_EXIT_CODES)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--force", "-f", is_flag=True, help="Write into a folder that has files.")
def dump(source: Path, folder: Path, force: bool) -> None:
    """Write every signal of a stream as files a person can open."""
    from semvc import inspect

    with _stream(source) as opened:
        count = inspect.dump(opened, folder, force=force)
    click.echo(f"{folder}: {count} files")


@main.command(epilog=_EXIT_CODES)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--drop", multiple=True, help="Section type to leave out, as sketch or audio_opus.")
@click.option("--caption", help="New text of every caption, or @FILE.")
@click.option("--force", "-f", is_flag=True, help="Replace an existing output.")
def edit(
    source: Path, target: Path, drop: tuple[str, ...], caption: str | None, force: bool
) -> None:
    """Drop a section type or replace the caption; the rest stays byte for byte."""
    from semvc import inspect

    if not drop and caption is None:
        raise UsageError("nothing to do: give --drop TYPE or --caption TEXT")
    text = None if caption is None else _caption(caption)
    with _stream(source) as opened:
        inspect.edit(opened, target, drop=drop, caption=text, force=force)


@main.group()
def models() -> None:
    """List and check the models that decode streams."""


@models.command("list")
@click.option("--models-dir", type=click.Path(path_type=Path))
@_json_option
def models_list(models_dir: Path | None, as_json: bool) -> None:
    """List known models and whether their files are here."""
    from semvc import describe, weights

    rows = [describe.model(ref, models_dir) for ref in weights.index(models_dir)]
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        state = "installed" if row["available"] else "missing"
        click.echo(
            f"{row['id']}  {row['decoder_id']}  {state}  {row['profile']}/{row['tier']}  {row['bytes']} bytes"
            f"  {row['licence']}"
        )


@models.command("verify")
@click.option("--models-dir", type=click.Path(path_type=Path))
def models_verify(models_dir: Path | None) -> None:
    """Check the full SHA-256 of every model; exit 6 if one is missing or different."""
    from semvc import weights

    for ref in weights.index(models_dir):
        click.echo(f"{ref.id}: ok, {weights.resolve(ref, models_dir)}")


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell, as in: eval "$(semvc completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"no completion for {shell}")
    click.echo(kind(main, {}, "semvc", "_SEMVC_COMPLETE").source())


def _check_dash(target: Path, given: dict[str, Any]) -> None:
    if str(target) == "-" and given["as_json"]:
        raise UsageError("'-' and --json both want stdout: use --report FILE")
    if str(target) == "-" and sys.stdout.isatty():
        raise UsageError("refusing to write binary data to a terminal")
    if str(target) == "-" and given["resume"]:
        raise UsageError("a pipe cannot be resumed")


@contextlib.contextmanager
def _input(source: Path) -> Iterator[Path | BinaryIO]:
    yield sys.stdin.buffer if str(source) == "-" else source


@contextlib.contextmanager
def _stream(source: Path) -> Iterator[BinaryIO]:
    if str(source) == "-":
        yield sys.stdin.buffer
        return
    try:
        opened = source.open("rb")
    except OSError as error:
        raise UsageError(f"cannot open {source}: {error.strerror}") from error
    with opened:
        yield opened


@contextlib.contextmanager
def _progress(verb: str, given: dict[str, Any]) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr if that is a terminal; the callback takes frames done and frames in all."""
    from tqdm import tqdm

    disable = True if given["quiet"] else None
    with tqdm(desc=verb, unit="frame", file=sys.stderr, disable=disable, dynamic_ncols=True) as bar:

        def advance(done: int, total: int) -> None:
            if total and bar.total != total:
                bar.total = total
            bar.update(done - bar.n)

        yield advance


def _finish(report: Any, given: dict[str, Any], target: str) -> None:
    row = report.to_json()
    if given["report"] is not None:
        given["report"].write_text(json.dumps(row, indent=2) + "\n", "utf-8")
    if given["as_json"]:
        click.echo(json.dumps(row))
    elif not given["quiet"]:
        for note in row.get("notes", []):
            click.echo(f"note: {note}", err=True)
        click.echo(f"{target}: {report.summary()}", err=True)
