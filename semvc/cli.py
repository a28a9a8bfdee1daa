"""The command line: parses, calls one function, prints its report. No logic of its own.

Heavy modules are imported inside the commands that need them: `info` and `--help` are quick.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import click
from click.shell_completion import get_completion_class, shell_complete

from semvc import __version__, arguments
from semvc.arguments import EXIT_CODES
from semvc.errors import (
    BitstreamError,
    GapsError,
    LimitError,
    ResourceError,
    SemvcError,
    UnsupportedError,
    UsageError,
)

_COMPLETE = "_SEMVC_COMPLETE"
_LATER = {  # groups in modules of their own
    "bench": "semvc.bench.cli:bench",
    "models": "semvc.modelcommands:models",
    "train": "semvc.train.commands:main",
}
_CLEANING_SECONDS = 2.0  # signals that come so soon after one are taken as the same


class _Stopped(BaseException):
    """SIGINT or SIGTERM arrived; clean-up runs as for any error."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


def run(words: list[str]) -> int:
    """Run one command; return the process exit code. Errors become one line on stderr."""
    settings: dict[str, bool] = {}
    with _signals():
        try:
            _escape_output()
            if instruction := os.environ.get(_COMPLETE):
                return shell_complete(main, {}, "semvc", _COMPLETE, instruction)
            with main.make_context("semvc", words, obj=settings) as context:
                result = main.invoke(context)
            sys.stdout.flush()
            return result if isinstance(result, int) else 0
        except (Exception, KeyboardInterrupt, _Stopped) as error:
            code, message = _outcome(error)
            if settings.get("debug") and not isinstance(error, click.exceptions.Exit):
                traceback.print_exception(error)
            if message:
                _say(message)
            return code
        finally:
            _close_output()


def _outcome(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the message of whatever ended a command."""
    match error:
        case click.exceptions.Exit():
            return error.exit_code, ""
        case click.ClickException():
            error.show()
            return error.exit_code, ""
        case _Stopped():
            return 128 + error.number, "interrupted" if error.number == signal.SIGINT else "stopped"
        case click.Abort() | KeyboardInterrupt():
            return 130, "interrupted"
        case BrokenPipeError():
            return ResourceError.exit_code, ""  # nobody listens any more
        case SemvcError():
            closed = isinstance(error.__cause__, BrokenPipeError)
            return error.exit_code, "" if closed else str(error)
        case MemoryError():
            message = "out of memory: use --tier preview or a smaller picture"
            return ResourceError.exit_code, message
        case RuntimeError() | ImportError() if _is_out_of_memory(error):
            return ResourceError.exit_code, f"out of memory: {error}"
        case OSError():
            names = [str(name) for name in (error.filename, error.filename2) if name]
            where = " -> ".join(names) or "input or output"
            return ResourceError.exit_code, f"{where}: {error.strerror or error}"
        case Exception():
            return 1, f"internal error: {error!r}; --debug shows where. Please report it."
    raise error


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error that says otherwise is the lack of memory for threads or libraries."""
    return any(
        text in str(error)
        for text in ("can't start new thread", "failed to map segment", "cannot allocate memory")
    )


def _say(message: str) -> None:
    with contextlib.suppress(OSError):
        click.echo(f"semvc: {message}", err=True)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `_Stopped`; a second one does not disturb the clean-up."""
    last = -_CLEANING_SECONDS

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal last
        now, before = time.monotonic(), last
        if now - before >= _CLEANING_SECONDS:
            last = now
            raise _Stopped(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _escape_output() -> None:
    """Let text that the terminal's encoding cannot hold be shown escaped."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _close_output() -> None:
    """Flush stdout; if nobody takes it, let the interpreter not try again at its end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Main(click.Group):
    """The commands below, and the groups of `_LATER`, which are imported when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_LATER})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _LATER:
            module, _, attribute = _LATER[cmd_name].partition(":")
            found: click.Command = getattr(importlib.import_module(module), attribute)
            return found
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Main, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="semvc")
@arguments.debug_option
def main() -> None:
    """A semantic video codec: video in, a tiny .svc stream, video out.

    The decoder rebuilds the picture with a diffusion model. Detail in it is plausible, not
    recorded.

    \b
    Examples:
      semvc encode in.mp4 out.svc            encode at the default quality
      semvc encode in.mp4 out.svc --bpp 0.01 encode at 0.01 bits per pixel
      semvc decode out.svc rec.mp4           rebuild the video
      semvc info out.svc                     what the stream holds, byte by byte
    """


@main.command(epilog=EXIT_CODES)
@click.argument("source", type=click.Path(path_type=Path, allow_dash=True))
@click.argument("target", type=click.Path(path_type=Path, allow_dash=True))
@arguments.encode_options
@arguments.debug_option
def encode(source: Path, target: Path, **given: Any) -> None:
    """Encode the video SOURCE into the stream TARGET ('-' for stdin and stdout).

    SOURCE is MP4, MOV, MKV, WebM, AVI, TS, Y4M or IVF. One of -q, --bpp, --kbps and --size sets
    the rate.

    \b
    Examples:
      semvc encode in.mp4 out.svc -q 20              smaller than usual
      semvc encode in.mp4 out.svc --size 500kB       sound included
      semvc encode in.mp4 out.svc --kbps 50 --audio opus:16
      ffmpeg -i in.mp4 -f yuv4mpegpipe - | semvc encode - out.svc
    """
    from semvc import encoder

    job = encoder.EncodeJob(
        target=arguments.target_rate(given),
        deterministic=given["deterministic"],
        force=given["force"],
        resume=given["resume"],
        keep_partial=given["keep_partial"],
    )
    options = arguments.bit_options(given)
    _check_outputs(source, target, given)
    if str(target) == "-" and given["resume"]:
        raise UsageError("a pipe cannot be resumed")
    with _progress("encode", given) as advance:
        opened: Path | BinaryIO = sys.stdin.buffer if str(source) == "-" else source
        output: Path | BinaryIO = sys.stdout.buffer if str(target) == "-" else target
        measured = functools.partial(advance, verb="measure")
        report = encoder.encode(
            opened, output, options, job=job, on_frames=advance, on_measured=measured
        )
    _finish(report, given, target)


@main.command(epilog=EXIT_CODES)
@click.argument("source", type=click.Path(path_type=Path, allow_dash=True))
@click.argument("target", type=click.Path(path_type=Path, allow_dash=True))
@arguments.decode_options
@arguments.debug_option
def decode(source: Path, target: Path, **given: Any) -> None:
    """Rebuild the video of the stream SOURCE as TARGET ('-' for stdin and stdout).

    TARGET is MP4, MOV or MKV.

    \b
    Examples:
      semvc decode in.svc out.mp4                    with the bundled model
      semvc decode in.svc out.mp4 --tier preview     at once, without a model
      semvc decode in.svc out.mp4 --start 10 --duration 5
      semvc decode in.svc - | ffplay -
    """
    from semvc import decoder
    from semvc.types import Runtime

    runtime = Runtime(
        device=given["device"],
        dtype=given["dtype"],
        models_dir=given["models_dir"],
        any_decoder=given["any_decoder"],
        full=arguments.full_tier(given),
    )
    job = decoder.DecodeJob(
        tier=given["tier"] or "",
        steps=given["steps"] or 1,
        start=given["start"],
        duration=given["duration"],
        salvage=given["salvage"],
        resume=given["resume"],
        force=given["force"],
        codec=given["output_codec"],
        quality=given["output_quality"],
    )
    if given["tier"] == "preview" and given["steps"]:
        raise UsageError("--steps is for tiers that have a model, and preview has none")
    _check_outputs(source, target, given)
    told = given["told"] = []

    def tell(note: str) -> None:
        """Say before a long run what has been decided."""
        if job.tier == "full" and not given["quiet"] and not given["as_json"]:
            click.echo(f"note: {note}", err=True)
            told.append(note)

    with _stream(source) as opened, _progress("decode", given) as advance:
        output: Path | BinaryIO = sys.stdout.buffer if str(target) == "-" else target
        report = decoder.decode(
            opened, output, job, runtime=runtime, on_frames=advance, on_note=tell
        )
    _finish(report, given, target)
    if report.gaps:
        what = "1 gap was" if report.gaps == 1 else f"{report.gaps} gaps were"
        raise GapsError(f"{target}: {what} filled with held frames")


@main.command(epilog=EXIT_CODES)
@click.argument("source", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--segments", is_flag=True, help="Also list every segment.")
@arguments.models_dir_option
@arguments.json_option
@arguments.debug_option
def info(source: Path, segments: bool, models_dir: Path | None, as_json: bool) -> None:
    """Show what a stream holds: picture, rate, bytes of every signal, models it names."""
    from semvc import describe
    from semvc.bitstream.probe import probe

    with _stream(source) as opened:
        found = probe(opened)
    home = arguments.models_home()
    rows = describe.stream(found, models_dir, segments=segments, home=home)
    click.echo(json.dumps(rows) if as_json else describe.table(rows))


@main.command(epilog=EXIT_CODES)
@click.argument("source", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--deep", is_flag=True, help="Also decode every integer and the base layer.")
@arguments.models_dir_option
@arguments.json_option
@arguments.debug_option
def verify(source: Path, deep: bool, models_dir: Path | None, as_json: bool) -> int:
    """Check every checksum, limit and the end of a stream; exit 4 if it is damaged.

    'semvc decode --salvage' rebuilds what is intact of a damaged one.
    """
    from semvc.bitstream.probe import verify as verify_container

    with _stream(source, pipe=not deep) as opened:
        report = verify_container(opened)
        damage = list(report.damage)
        if deep and not damage:
            from semvc import inspect

            damage += inspect.verify_signals(opened, models_dir)
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
            f"{source}: {state}, {report.segments} segments, {report.frames} frames,"
            f" {report.bytes} bytes"
        )
    return 4 if damage else 0


@main.command(epilog=EXIT_CODES)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--force", "-f", is_flag=True, help="Write into a folder that has files.")
@arguments.models_dir_option
@arguments.debug_option
def dump(source: Path, folder: Path, force: bool, models_dir: Path | None) -> None:
    """Write every signal of a stream as files a person can open."""
    from semvc import inspect

    with _stream(source) as opened:
        count = inspect.dump(opened, folder, force=force, models_dir=models_dir)
    click.echo(f"{folder}: {count} files")


@main.command(epilog=EXIT_CODES)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--drop", multiple=True, help="Section type to leave out, as sketch or audio_opus.")
@click.option("--caption", type=arguments.TEXT, help="New text of every caption, or @FILE.")
@arguments.force_option
@arguments.models_dir_option
@arguments.debug_option
def edit(
    source: Path,
    target: Path,
    drop: tuple[str, ...],
    caption: str | None,
    force: bool,
    models_dir: Path | None,
) -> None:
    """Drop a section type or replace the caption; the rest stays byte for byte.

    'semvc info' lists the section types of a stream.
    """
    from semvc import inspect

    if not drop and caption is None:
        raise UsageError("nothing to do: give --drop TYPE or --caption TEXT")
    text = None if caption is None else arguments.caption(caption)
    arguments.check_outputs(source, target)
    with _stream(source, pipe=False) as opened:
        inspect.edit(opened, target, drop=drop, caption=text, force=force, models_dir=models_dir)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@arguments.debug_option
def completion(shell: str) -> None:
    """Print the completion script of a shell, as in: eval "$(semvc completion bash)"."""
    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"no completion for {shell}")
    click.echo(kind(main, {}, "semvc", _COMPLETE).source())


def _check_outputs(source: Path, target: Path, given: dict[str, Any]) -> None:
    if str(target) == "-" and given["as_json"]:
        raise UsageError("'-' and --json both want stdout: use --report FILE")
    if str(target) == "-" and sys.stdout.isatty():
        raise UsageError("refusing to write binary data to a terminal")
    arguments.check_outputs(source, target, given["report"])
    report: Path | None = given["report"]
    if report is not None and report.is_dir():
        raise UsageError(f"{report} is a folder")
    if report is not None and report.is_file() and not given["force"]:
        raise UsageError(f"{report} exists: use --force to replace it")


@contextlib.contextmanager
def _stream(source: Path, *, pipe: bool = True) -> Iterator[BinaryIO]:
    """Open a stream for reading; errors that its bytes cause name the file."""
    try:
        if str(source) == "-":
            opened: Any = contextlib.nullcontext(sys.stdin.buffer)
        else:
            opened = source.open("rb")
    except OSError as error:
        raise UsageError(f"cannot open {source}: {error.strerror}") from error
    with opened as file:
        if not pipe and not file.seekable():
            raise UsageError(f"{source} is a pipe, and this command reads it twice: use a file")
        try:
            yield file
        except (BitstreamError, LimitError, UnsupportedError) as error:
            error.args = (f"{source}: {error}",)
            raise


@contextlib.contextmanager
def _progress(verb: str, given: dict[str, Any]) -> Iterator[Callable[..., None]]:
    """A bar on stderr if that is a terminal; the callback takes frames done and frames in all.

    It may be given another `verb`: each begins a bar anew, as does a count that goes back.
    """
    from tqdm import tqdm

    disable = True if given["quiet"] else None
    with tqdm(desc=verb, unit="frame", file=sys.stderr, disable=disable, dynamic_ncols=True) as bar:
        shown = verb

        def advance(done: int, total: int, verb: str = verb) -> None:
            nonlocal shown
            if verb != shown or done < bar.n:
                shown = verb
                bar.refresh()  # what is finished, whole
                bar.set_description(verb, refresh=False)
                bar.reset()
            if total and bar.total != total:
                bar.total = total
            bar.update(done - bar.n)

        yield advance


def _write_report(path: Path, text: str) -> None:
    """Write a file that appears complete or not at all; pipes and devices are written to."""
    if path.exists() and not path.is_file():
        path.write_text(text, "utf-8")
        return
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, "utf-8")
        part.replace(path)
    except BaseException:  # also a signal
        part.unlink(missing_ok=True)
        raise


def _finish(report: Any, given: dict[str, Any], target: Path) -> None:
    row = report.to_json()
    if given["report"] is not None:
        try:
            _write_report(given["report"], json.dumps(row, indent=2) + "\n")
        except OSError as error:
            message = f"{target} is complete, but not {given['report']}: {error.strerror}"
            raise ResourceError(message) from error
    if given["as_json"]:
        click.echo(json.dumps(row))
    elif not given["quiet"]:
        for note in row.get("notes", []):
            if note not in given.get("told", ()):
                click.echo(f"note: {note}", err=True)
        click.echo(f"{target}: {report.summary()}", err=True)
