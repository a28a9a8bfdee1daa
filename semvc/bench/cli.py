"""`semvc bench`: parses, calls one function, prints its result.

Loaded when the command is asked for; what is heavy is imported inside the commands.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from semvc import arguments
from semvc.arguments import EXIT_CODES
from semvc.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from semvc.bench.report import Written
    from semvc.bench.rows import Report
    from semvc.bench.suite import Suite

_FOLDER = click.Path(path_type=Path, file_okay=False)
_PATH = click.Path(path_type=Path)
_QUIET = click.option("--quiet", is_flag=True, help="No progress bar, no tables.")
_WEIGHTS = click.option(
    "--metric-weights",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with the weights of LPIPS and DISTS; without it the report says what is missing.",
)
_DEVICE = click.option(
    "--device",
    type=arguments.DEVICE,
    default="auto",
    show_default=True,
    help="auto, cpu, cuda or cuda:N.",
)
_LEARNED = ("lpips", "dists")  # checks that need weights


class _Bench(click.Group):
    """A group whose first word may also be a suite: then it means `run`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {option for parameter in self.get_params(ctx) for option in parameter.opts}
        if args and args[0].startswith("-") and args[0] not in own:
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None:
            _check_suite(args[0], self.list_commands(ctx))
            args = ["run", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=_Bench, epilog=EXIT_CODES)
@arguments.debug_option
def bench() -> None:
    """Measure rate and quality beside conventional encoders, and speed.

    A suite (TOML) says which clips, rates and encoders; a run can be interrupted and goes on where
    it stopped. A suite in the place of a command is run.

    \b
    Examples:
      semvc bench dev --clips CLIPS --metric-weights W   run the suite dev
      semvc bench report bench-dev                       make its page again
      semvc bench compare before after                   did a change help?
      semvc bench speed                                  what takes how long
    """


@bench.command(epilog=EXIT_CODES)
@click.argument("suite", type=_PATH)
@click.option(
    "--clips",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path(),
    help="Folder that the suite's clips are in; by default the current one.",
)
@click.option("--out", type=_FOLDER, help="Folder of results; by default bench-SUITE.")
@_WEIGHTS
@arguments.models_dir_option
@click.option(
    "--jobs", type=click.IntRange(1), default=1, show_default=True, help="Points at a time."
)
@click.option("--profiles", help="Profiles in place of the suite's, as disco,s2vc.")
@click.option("--tiers", help="Tiers in place of the suite's, as preview,small.")
@click.option("--metrics", help="Metrics in place of the suite's, as lpips,dists,cvvdp.")
@click.option("--only", help="Only these clips of the suite, by name.")
@click.option("--frames", type=click.IntRange(1), help="At most so many frames of each clip.")
@_DEVICE
@click.option(
    "--keep/--no-keep",
    default=True,
    show_default=True,
    help="Keep coded and rebuilt files; the page takes its pictures from them.",
)
@click.option("--force", "-f", is_flag=True, help="Replace the report of another suite in --out.")
@_QUIET
@arguments.json_option
@arguments.debug_option
def run(suite: Path, **given: Any) -> None:
    """Run SUITE (a TOML file or a shipped suite's name) and write its report.

    Writes report.json, report.md, report.html and plots into the folder of results. Finished points
    found there are taken over as long as nothing that decides them has changed.
    """
    from semvc.bench import report as reports
    from semvc.bench import run as runs
    from semvc.bench.suite import load

    wanted = _narrowed(load(suite), given)
    out = given["out"] or Path(f"bench-{wanted.name}")
    _check_out(out, wanted, force=given["force"])
    job = runs.Job(
        clips=given["clips"],
        out=out,
        metric_weights=given["metric_weights"],
        models_dir=given["models_dir"],
        jobs=given["jobs"],
        device=given["device"],
        keep=given["keep"],
    )
    with _progress("bench", "point", given["quiet"]) as advance:
        found = runs.run(wanted, job, on_progress=advance)
    if not found.rows:
        why = f": {found.skipped[0].reason}" if found.skipped else ""
        raise ResourceError(f"no point of {wanted.name} could be made{why}")
    with _progress("report", "clip", given["quiet"]) as advance:
        written = reports.write(found, out, on_clip=advance)
    _show(found, written, given)


@bench.command("report", epilog=EXIT_CODES)
@click.argument("out", type=_PATH)
@_QUIET
@arguments.json_option
@arguments.debug_option
def report_command(out: Path, **given: Any) -> None:
    """Write page, plots and tables again from the report.json in the folder OUT."""
    from semvc.bench import report as reports

    found = reports.load(out)
    with _progress("report", "clip", given["quiet"]) as advance:
        folder = out if out.is_dir() else out.parent
        written = reports.write(found, folder, on_clip=advance)
    _show(found, written, given)


@bench.command(epilog=EXIT_CODES)
@click.argument("first", type=_PATH)
@click.argument("second", type=_PATH)
@arguments.json_option
@arguments.debug_option
def compare(first: Path, second: Path, as_json: bool) -> None:
    """Compare two reports clip by clip; FIRST is the one that SECOND is measured by."""
    from semvc.bench.compare import compare as compared
    from semvc.bench.report import load

    found = compared(load(first), load(second))
    if as_json:
        click.echo(json.dumps(found.to_json()))
        return
    for kind in ("rate", "value"):
        table = found.table(kind)
        if table.rows:
            click.echo(f"{table.title}\n{table.text()}\n{table.note}\n")
    for curve, ratio in found.bytes_ratio.items():
        click.echo(f"{curve}: {ratio:.3f} times the bytes at the same settings")
    for which, clips in (("first", found.only_first), ("second", found.only_second)):
        if clips:
            click.echo(f"only in the {which}: {', '.join(clips)}")


@bench.command(epilog=EXIT_CODES)
@click.argument("source", type=_PATH, required=False)
@click.option("--size", default="854x480", show_default=True, help="Of the clip that is drawn.")
@click.option(
    "--frames",
    type=click.IntRange(2),
    default=48,
    show_default=True,
    help="Of the clip that is drawn.",
)
@click.option("--profile", "-p", default="disco", show_default=True, help="What is timed.")
@click.option("--tiers", default="preview,small", show_default=True, help="Decoded at.")
@click.option(
    "--preset", type=click.IntRange(0, 12), default=4, show_default=True, help="Of SVT-AV1."
)
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="How often each case counts; one more warms up.",
)
@click.option("--threads", help="Of torch, as 1,2,4; by default doubling up to the cores here.")
@click.option(
    "--scaling/--no-scaling",
    default=True,
    show_default=True,
    help="Also vary length, resolution and threads.",
)
@_DEVICE
@arguments.models_dir_option
@click.option("--report", type=_PATH, help="Also write the JSON here.")
@arguments.force_option
@_QUIET
@arguments.json_option
@arguments.debug_option
def speed(source: Path | None, **given: Any) -> None:
    """Time the parts of encoding and decoding: of the video SOURCE, or of a clip drawn here.

    Medians of several rounds, after one that does not count. Loading the model stands apart.
    """
    from semvc.bench import speed as speeds

    if source is not None and not source.is_file():
        raise UsageError(f"cannot open {source}: no such file")
    arguments.check_outputs(source or Path("-"), given["report"])
    if given["report"] is not None and given["report"].is_file() and not given["force"]:
        raise UsageError(f"{given['report']} exists: use --force to replace it")
    plan = speeds.Plan(
        source=source,
        size=_size(given["size"]),
        frames=given["frames"],
        profile=given["profile"],
        tiers=tuple(_words(given["tiers"])),
        preset=given["preset"],
        repeats=given["repeats"],
        threads=_threads(given["threads"]),
        scaling=given["scaling"],
        device=given["device"],
        models_dir=given["models_dir"],
    )
    with _progress("speed", "case", given["quiet"]) as advance:
        found = speeds.measure(plan, on_case=advance)
    row = found.to_json()
    if given["report"] is not None:
        given["report"].write_text(json.dumps(row, indent=1) + "\n", "utf-8")
    if given["as_json"]:
        click.echo(json.dumps(row))
    elif not given["quiet"]:
        for table in found.tables():
            click.echo(f"{table.title}\n{table.text()}\n")


@bench.command("self-check", epilog=EXIT_CODES)
@_WEIGHTS
@arguments.json_option
@arguments.debug_option
def self_check_command(metric_weights: Path | None, as_json: bool) -> int:
    """Check the measuring itself against known figures; exit 1 if one is off.

    LPIPS and DISTS are held against what their authors published for the example images that lie
    beside the weights.
    """
    from semvc.bench.selfcheck import self_check

    checks = self_check(metric_weights)
    rows = [{**dataclasses.asdict(check), "ok": check.ok} for check in checks]
    wrong = 0
    lines = []
    for check in checks:
        absent = check.value is None and check.name.startswith(_LEARNED)
        wrong += not check.ok and not absent
        state = "ok" if check.ok else "not checked" if absent else "WRONG"
        value = check.reason if check.value is None else f"{check.value:.6g}"
        value = value or "as it has to be"
        lines.append(f"{state:11}  {check.name}: {value}, expected {check.expected:.6g}")
    click.echo(json.dumps(rows) if as_json else "\n".join(lines))
    return 1 if wrong else 0


def _check_suite(word: str, commands: list[str]) -> None:
    """Refuse a word that is neither a command nor a suite, in one line that names both."""
    from semvc.bench.suite import shipped

    path = Path(word)
    if not path.is_file() and path.suffix != ".toml" and word not in shipped():
        raise UsageError(
            f"no command and no suite {word!r}: commands are {', '.join(commands)}; suites are"
            f" TOML files, or one of {', '.join(shipped())}"
        )


def _narrowed(suite: Suite, given: dict[str, Any]) -> Suite:
    """The suite with what the command line asks for: profiles, tiers, metrics, clips, frames."""
    changes: dict[str, Any] = {
        name: tuple(_words(given[name]))
        for name in ("profiles", "tiers", "metrics")
        if given[name] is not None
    }
    clips = suite.clips
    if given["only"] is not None:
        wanted, known = _words(given["only"]), [clip.label for clip in clips]
        if unknown := [name for name in wanted if name not in known]:
            raise UsageError(f"no clip {', '.join(unknown)} in the suite: {', '.join(known)}")
        clips = tuple(clip for clip in clips if clip.label in wanted)
    if (most := given["frames"]) is not None:
        clips = tuple(dataclasses.replace(c, frames=min(c.frames or most, most)) for c in clips)
    return dataclasses.replace(suite, clips=clips, **changes)


def _words(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UsageError(f"{text!r}: give names with commas between them")
    return words


def _check_out(out: Path, suite: Suite, *, force: bool) -> None:
    """Refuse to put a report over one of another suite."""
    from semvc.bench.report import JSON, load

    if force or not (out / JSON).is_file():
        return
    try:
        name = load(out).suite.get("name")
    except UsageError:
        return  # nobody can read it
    if name != suite.name:
        raise UsageError(
            f"{out} holds the report of suite {name}: choose another --out, or use --force"
        )


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()) or min(int(width), int(height)) < 64:
        raise UsageError(f"--size {text}: give WIDTHxHEIGHT, as 854x480, 64 at least")
    return int(width), int(height)


def _threads(text: str | None) -> tuple[int, ...]:
    """Numbers of threads as typed, or 1, 2, 4 and so on to the number of cores."""
    if text is None:
        from semvc.bench.plan import cores

        most = cores()
        return tuple(sorted({most, *(1 << k for k in range(most.bit_length()) if 1 << k <= most)}))
    words = _words(text)
    if not all(word.isdecimal() and int(word) for word in words):
        raise UsageError(f"--threads {text}: give numbers, as 1,2,4")
    return tuple(int(word) for word in words)


def _show(found: Report, written: Written, given: dict[str, Any]) -> None:
    """Say what came out and where it is."""
    from semvc.bench import findings, tables

    if given["as_json"]:
        row = {
            "files": [str(path) for path in written.paths],
            "rows": len(found.rows),
            "skipped": len(found.skipped),
            "mean_bd_rates": [dataclasses.asdict(item) for item in found.mean_bd_rates],
            "notes": [*written.notes, *found.notes],
        }
        click.echo(json.dumps(row))
        return
    for note in written.notes:
        click.echo(f"note: {note}", err=True)
    if given["quiet"]:
        return
    table = tables.mean_table(found)
    if table.rows:
        click.echo(f"{table.title}\n{table.text()}\n")
    for sentence in findings.results(found):
        click.echo(sentence)
    if found.skipped:
        click.echo(f"{len(found.skipped)} points could not be made; the report says why")
    page = next((path for path in written.paths if path.suffix == ".html"), None)
    click.echo(f"\n{page or written.paths[0]}")


@contextlib.contextmanager
def _progress(verb: str, unit: str, quiet: bool) -> Iterator[Callable[..., None]]:
    """A bar with the time left on stderr if that is a terminal; takes (done, all[, what])."""
    from tqdm import tqdm

    disable = True if quiet else None
    with tqdm(desc=verb, unit=unit, file=sys.stderr, disable=disable, dynamic_ncols=True) as bar:

        def advance(done: int, total: int, what: str = "") -> None:
            bar.total = total
            bar.set_postfix_str(what, refresh=False)
            bar.update(done - bar.n)

        yield advance
