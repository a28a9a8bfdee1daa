"""A finished benchmark as files for people: report.json, report.md, plots and report.html.

What cannot be made (plots without matplotlib, pictures of files that were not kept) is left out,
and one line in `Written.notes` says why; everything else is still written.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from semvc.bench import findings, gates, page, plots, stills, tables
from semvc.bench.rows import Report
from semvc.bench.tables import Table
from semvc.errors import SemvcError, UsageError

JSON, MARKDOWN, PAGE, PLOTS = "report.json", "report.md", "report.html", "plots"

OnClip = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Written:
    """The files that were written, and sentences on what was left out."""

    paths: tuple[Path, ...]
    notes: tuple[str, ...]


def load(source: Path) -> Report:
    """Read a report from its file or its folder; UsageError if there is none that can be read."""
    path = source / JSON if source.is_dir() else source
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; `semvc bench run` writes it"
        ) from error
    except ValueError as error:
        raise UsageError(f"{path} is not a report: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} is not a report: it holds no JSON object")
    return Report.from_json(values)


def write(report: Report, folder: Path, *, on_clip: OnClip | None = None) -> Written:
    """Write all files of a report into `folder`, where its rows' files are too.

    `on_clip(done, total)` is called as the pictures of clips are read. Existing files of the same
    names are replaced; each appears complete or not at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    notes = []
    figures: dict[str, plots.Drawn] = {}
    if lacking := plots.missing():
        notes.append(lacking)
    elif report.rows:
        figures = plots.draw(report, folder / PLOTS)
    shown, gone = _pictures(report, folder, on_clip or (lambda *_: None))
    notes += gone
    paths = [
        _replace(folder / JSON, json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n"),
        _replace(folder / MARKDOWN, markdown(report, notes)),
        _replace(folder / PAGE, page.html(report, figures, shown, notes)),
    ]
    paths += [path for figure in figures.values() for path in figure.files]
    return Written(tuple(paths), tuple(notes))


def markdown(report: Report, notes: list[str] | None = None) -> str:
    """Return the report as Markdown; `notes` are sentences on what could not be made."""
    own = tables.own_curves(report)
    blocks = [f"# {findings.title(report)}", findings.machine(report)]
    blocks += [_bullets(findings.results(report))]
    blocks += _block(tables.mean_table(report))
    for curve in own:
        blocks += _block(tables.clip_table(report, curve))
    blocks += _block(tables.worst_table(report))
    blocks += _block(tables.anchor_table(report))
    for curve in own:
        blocks += _block(gates.gate_table(report, curve))
    blocks += ["## Before quoting a figure", _bullets([*(notes or ()), *findings.caveats(report)])]
    blocks += ["## Method", _bullets(findings.method(report))]
    blocks += _block(tables.skipped_table(report))
    for clip in report.clips:
        blocks += _block(tables.rate_table(report, clip))
    return "\n\n".join(blocks) + "\n"


def _pictures(
    report: Report, folder: Path, on_clip: OnClip
) -> tuple[dict[str, stills.Pictures], list[str]]:
    """Pictures by clip, and what to say about the clips that have none."""
    found: dict[str, stills.Pictures] = {}
    notes: list[str] = []
    without: list[str] = []
    for index, clip in enumerate(report.clips):
        choice = stills.choose(report, clip)
        if choice is None:
            without.append(clip)
        else:
            try:
                found[clip] = stills.take(folder, choice, clips=len(report.clips))
            except (SemvcError, OSError) as error:
                notes.append(f"no pictures of {clip}: {error}")
        on_clip(index + 1, len(report.clips))
    if without:
        every = len(without) == len(report.clips)
        which = "any clip" if every else tables.joined(without, "or")
        notes.append(f"no pictures of {which}: no reconstruction by semvc was kept")
    return found, notes


def _block(table: Table) -> list[str]:
    if not table.rows:
        return []
    parts = [f"## {table.title}", table.markdown(), table.note]
    return [part for part in parts if part]


def _bullets(sentences: list[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _replace(path: Path, text: str) -> Path:
    part = path.with_name(path.name + ".part")
    part.write_text(text, "utf-8")
    part.replace(path)
    return path
