"""A report as one HTML page that needs nothing else: no network, no files beside it, no framework.

It reads well on a phone, in light and dark, by keyboard and with a screen reader; without scripts
everything is there but sorting and the before-and-after slider. Its content policy forbids every
connection.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from semvc.bench import findings, gates, tables
from semvc.bench.plots import Drawn, file_name
from semvc.bench.rows import MeanBdRate, Report, Row
from semvc.bench.stills import Pictures, Shown
from semvc.bench.tables import Cell, Column, Table

_HERE = Path(__file__).parent
_POLICY = (
    "default-src 'none'; img-src data:; media-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'"
)
_WRAP = 40  # letters from which a cell's text may break


def html(
    report: Report,
    plots: Mapping[str, Drawn],
    pictures: Mapping[str, Pictures],
    notes: Sequence[str] = (),
) -> str:
    """Return the page. `plots` are by clip, "" for all clips; `pictures` are by clip too.

    `notes` are sentences on what this page itself lacks, as plots without matplotlib.
    """
    title = escape(findings.title(report))
    body = "\n".join(
        (
            '<a class="skip" href="#summary">Skip to the summary</a>',
            f"<header>\n<h1>{title}</h1>",
            f'<p class="soft">{escape(findings.machine(report))}</p>',
            _contents(report),
            "</header>\n<main>",
            _summary(report, notes),
            _rates(report, plots),
            _motion(report),
            _clips(report, plots, pictures),
            _rest(report),
            "</main>",
            "<footer><p>Made by <code>semvc bench</code>; report.json beside this page holds every "
            "number.</p></footer>",
        )
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{_part('page.css')}</style>\n</head>\n<body>\n"
        f"{body}\n<script>\n{_part('page.js')}</script>\n</body>\n</html>\n"
    )


def anchor(clip: str) -> str:
    """Return the id of a clip's part of the page."""
    return f"clip-{file_name(clip)}"


def _part(name: str) -> str:
    return (_HERE / name).read_text("utf-8")


def _contents(report: Report) -> str:
    links = [
        ("summary", "Summary"),
        ("rates", "BD-rates"),
        ("motion", "Motion"),
        ("clips", "Clips"),
        ("rest", "Method and machine"),
    ]
    if not _motion(report):
        links = [link for link in links if link[0] != "motion"]
    items = "".join(f'<li><a href="#{place}">{text}</a></li>' for place, text in links)
    return f'<nav aria-label="Parts of this page"><ul>{items}</ul></nav>'


def _summary(report: Report, notes: Sequence[str]) -> str:
    cards = "".join(_card(mean) for mean in findings.headlines(report))
    return "\n".join(
        (
            '<section id="summary">\n<h2>Summary</h2>',
            f'<div class="cards">{cards}</div>' if cards else "",
            _list(findings.results(report)),
            "<h3>Before quoting a figure</h3>",
            _list([*notes, *findings.caveats(report)]),
            "</section>",
        )
    )


def _card(mean: MeanBdRate) -> str:
    mark = "" if mean.percent is None else "best" if mean.percent < 0 else "bad"
    of = len(mean.clips) + len(mean.without)
    worst = f"; worst {mean.worst_clip} {tables.percent(mean.worst)}" if mean.worst_clip else ""
    return (
        f'<div class="card">{escape(tables.heading(mean.metric))}'
        f'<b class="{mark}">{tables.percent(mean.percent)}</b>'
        f'<span class="soft">bytes of {escape(tables.curve_title(mean.curve))} against the best '
        f"conventional, {len(mean.clips)} of {of} clips, overlap {tables.share(mean.overlap)}"
        f"{escape(worst)}</span></div>"
    )


def _rates(report: Report, plots: Mapping[str, Drawn]) -> str:
    parts = ['<section id="rates">\n<h2>BD-rates</h2>', _table(tables.mean_table(report))]
    if "" in plots:
        parts.append(_plot(plots[""]))
    links = {clip: f"#{anchor(clip)}" for clip in report.clips}
    for curve in tables.own_curves(report):
        parts.append(_table(tables.clip_table(report, curve), links))
    parts.append(_table(tables.worst_table(report)))
    parts.append(_table(tables.anchor_table(report)))
    return "\n".join([*parts, "</section>"])


def _motion(report: Report) -> str:
    links = {clip: f"#{anchor(clip)}" for clip in report.clips}
    found = [gates.gate_table(report, curve) for curve in tables.own_curves(report)]
    shown = [_table(table, links) for table in found if table.rows]
    if not shown:
        return ""
    return "\n".join(
        ['<section id="motion">\n<h2>Motion, at equal bytes</h2>', *shown, "</section>"]
    )


def _clips(report: Report, plots: Mapping[str, Drawn], pictures: Mapping[str, Pictures]) -> str:
    links = ", ".join(f'<a href="#{anchor(clip)}">{escape(clip)}</a>' for clip in report.clips)
    parts = ['<section id="clips">\n<h2>Clips</h2>', f"<p>{links}</p>"]
    for clip in report.clips:
        parts += [
            f'<article class="clip" id="{anchor(clip)}">',
            f"<h3>{escape(clip)}</h3>",
            f'<p class="soft">{escape(_facts(report, clip))}</p>',
            _shown(pictures[clip]) if clip in pictures else "",
            _plot(plots[clip]) if clip in plots else "",
            "<details><summary>All points of this clip</summary>",
            _table(tables.rate_table(report, clip)),
            "</details>\n</article>",
        ]
    return "\n".join([*parts, "</section>"])


def _facts(report: Report, clip: str) -> str:
    row = next(row for row in report.rows if row.clip == clip)
    return (
        f"{row.width}x{row.height}, {row.frames} frames, {row.frame_rate:.4g} frames/s, "
        f"{row.seconds:.2f} s"
    )


def _shown(pictures: Pictures) -> str:
    choice = pictures.choice
    width, height = pictures.size
    tall = " tall" if height > width else ""
    stills = "".join(
        f'<figure><img src="{uri}" width="{width}" height="{height}" decoding="async" '
        f'alt="{escape(_alt(choice.clip, item, pictures.frame))}">'
        f"<figcaption><b>{escape(item.title)}</b>{escape(_cost(item.row))}</figcaption></figure>"
        for item, uri in zip(choice.shown, pictures.stills, strict=True)
    )
    note = (
        f"{choice.note} Frame {pictures.frame}, of every clip the one at the same share of its "
        f"length. Coded for this page as WebP (quality {pictures.quality})."
    )
    parts = [
        f'<h4>At about equal bytes</h4>\n<p class="soft">{escape(note)}</p>',
        _compare(pictures, tall),
        f'<div class="stills{tall}">{stills}</div>',
    ]
    if pictures.loop:
        columns, rows = pictures.loop_size
        label = escape(f"{choice.clip} in motion: {tables.joined(i.title for i in choice.shown)}")
        parts.append(
            f'<figure class="loop{tall}"><video src="{pictures.loop}" width="{columns}" '
            f'height="{rows}" controls loop muted playsinline preload="metadata" '
            f'aria-label="{label}"></video><figcaption>The same in motion, smaller: '
            f"{escape(_places(pictures))}. Coded for this page as H.264 (crf {pictures.crf})."
            "</figcaption></figure>"
        )
    return "\n".join(parts)


def _compare(pictures: Pictures, tall: str) -> str:
    width, height = pictures.size
    shown = pictures.choice.shown
    last = len(shown) - 1

    def options(chosen: int) -> str:
        return "".join(
            f'<option value="{k}"{" selected" if k == chosen else ""}>{escape(item.title)}</option>'
            for k, item in enumerate(shown)
        )

    image = f'width="{width}" height="{height}" src="data:," alt=""'
    return (
        f'<div class="compare{tall}" hidden style="--real: {width}px">'
        f'<div class="view"><div class="stage"><img {image}><img class="over" {image}>'
        '<span></span><span class="right"></span></div></div>'
        '<input type="range" min="0" max="100" step="0.5" value="50" '
        f'aria-label="Where the left picture ends, {escape(pictures.choice.clip)}">'
        f'<div class="controls"><label>left <select>{options(min(1, last))}</select></label>'
        '<label><input type="checkbox"> one pixel for one</label>'
        f'<label class="right">right <select>{options(last)}</select></label></div></div>'
    )


def _places(pictures: Pictures) -> str:
    """What stands where in a loop, in words."""
    titles = [item.title for item in pictures.choice.shown]
    columns, rows = pictures.loop_size
    if len(titles) < 3 or columns > 2 * rows or pictures.size[1] > pictures.size[0]:
        return f"from the left {tables.joined(titles)}"
    return f"above {tables.joined(titles[:2])}, below {tables.joined(titles[2:])}"


def _alt(clip: str, item: Shown, frame: int) -> str:
    how = "source" if item.row is None else f"{item.title}, {tables.setting(item.row)}"
    return f"{clip}, frame {frame}: {how}"


def _cost(row: Row | None) -> str:
    if row is None:
        return "what all others were given"
    metrics = [m for m in tables.MAIN if m in row.metrics] or list(row.metrics)[:2]
    figures = [f"{tables.heading(m)} {tables.number(m, row.metrics[m])}" for m in metrics]
    rate = f"{row.bytes:,} bytes, {row.bpp:.5f} bpp"
    return " · ".join([tables.setting(row), rate, *figures])


def _rest(report: Report) -> str:
    settings = json.dumps({"suite": report.suite, "machine": report.machine}, indent=2, default=str)
    parts = [
        '<section id="rest">\n<h2>Method and machine</h2>',
        _list(findings.method(report)),
        f"<p>{escape(findings.machine(report))}</p>",
    ]
    if report.skipped:
        parts.append(_table(tables.skipped_table(report)))
    parts.append(
        f"<details><summary>The suite and the machine in full</summary><pre>{escape(settings)}"
        "</pre></details>\n</section>"
    )
    return "\n".join(parts)


def _list(sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{_code(text)}</li>" for text in sentences)
    return f"<ul>{items}</ul>"


def _code(text: str) -> str:
    """Escape text; what stands between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _plot(drawn: Drawn) -> str:
    panels = "".join(
        svg.replace("<svg", f'<svg role="img" aria-label="{escape(what)}"', 1)
        for svg, what in drawn.panels
    )
    legend = "".join(
        f'<li><span style="background: {color}"></span>{escape(title)}</li>'
        for title, color in drawn.legend.items()
    )
    return (
        f'<figure class="plot"><div>{panels}</div>'
        f'<figcaption><ul aria-label="Colours">{legend}</ul></figcaption></figure>'
    )


def _table(table: Table, links: Mapping[str, str] | None = None) -> str:
    """A table that scrolls by itself; the first column's cells are headings of their rows."""
    if not table.rows:
        return ""
    head = "".join(_heading(column) for column in table.columns)
    rows = "\n".join(_row(table, row, links or {}) for row in table.rows)
    foot = f"<tfoot>{_row(table, table.foot, {}, header=False)}</tfoot>" if table.foot else ""
    note = f'<p class="soft">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(table.title)}">'
        f"<table><caption>{escape(table.title)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody>{foot}</table></div>{note}"
    )


def _heading(column: Column) -> str:
    hint = f' title="{escape(column.hint)}"' if column.hint else ""
    kind = _class("n" if column.numeric else "")
    return f'<th scope="col"{kind}{hint}>{escape(column.title)}</th>'


def _row(
    table: Table, cells: Sequence[Cell], links: Mapping[str, str], *, header: bool = True
) -> str:
    made = []
    for index, (cell, column) in enumerate(zip(cells, table.columns, strict=True)):
        words = [cell.mark, "n" if column.numeric else "", "wrap" if len(cell.text) > _WRAP else ""]
        value = f' data-v="{cell.value:.10g}"' if cell.value is not None else ""
        text = escape(cell.text)
        if index == 0 and cell.text in links:
            text = f'<a href="{links[cell.text]}">{text}</a>'
        tag = "th" if index == 0 and header else "td"
        scope = ' scope="row"' if tag == "th" else ""
        made.append(f"<{tag}{scope}{_class(*words)}{value}>{text}</{tag}>")
    return f"<tr>{''.join(made)}</tr>"


def _class(*words: str) -> str:
    given = " ".join(word for word in words if word)
    return f' class="{given}"' if given else ""
