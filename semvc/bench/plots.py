"""Rate and quality drawn with matplotlib (extra `bench`): one figure a clip, and one of all clips.

matplotlib is imported when something is drawn; `missing` says in one line what to do without it.
"""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from semvc.bench import tables
from semvc.bench.curves import front
from semvc.bench.rows import ENVELOPE, METRICS, Report, Row

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = 4  # metrics drawn of a clip
_ORDER = ("lpips", "dists", "ms_ssim", "cvvdp", "psnr_y", "lpips_vgg", "pkid", "psnr_rgb")
_INK = "#010203"  # stands for the colour of text; the page puts its own in its place
_STYLES = {  # colours that colour-blind readers can tell apart (Okabe and Ito 2008), and markers
    "svtav1": ("#e69f00", "^"),
    "svtav1-vq": ("#b8860b", "h"),
    "x265": ("#0a86c9", "v"),
    "x264": ("#a98467", "<"),
    "vp9": ("#7d8f1e", ">"),
    "vvenc": ("#009e73", "D"),
}
_OWN = (("#d5301e", "o", "-"), ("#c061a6", "s", "--"), ("#7a5cc9", "P", "-."))
_SETTINGS: dict[str, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.color": "#808080",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#808080",
    "axes.titlesize": 10,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
}


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure taken apart for a page, which lays it out by its width.

    `files` are its PNG and SVG as a whole. `panels` are SVGs, each with what it shows in words;
    `legend` maps titles of curves to colours.
    """

    files: tuple[Path, ...]
    panels: tuple[tuple[str, str], ...]
    legend: dict[str, str]


def missing() -> str:
    """Return what to do to get plots, nothing if they can be drawn."""
    if importlib.util.find_spec("matplotlib") is not None:
        return ""
    return "no plots: matplotlib is not installed; pip install 'semvc[bench]' adds it"


def draw(report: Report, folder: Path) -> dict[str, Drawn]:
    """Write PNG and SVG of every figure into `folder`; return them for a page, by name.

    Names are those of the clips, and "" for the figure of all clips (absent without BD-rates).
    The same report gives the same files.
    """
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    with matplotlib.rc_context(_SETTINGS):
        if metrics := _compared(report):
            found[""] = _draw(report, "", metrics, folder / "bd-rate")
        for number, clip in enumerate(report.clips):
            if metrics := _metrics(report, clip):
                name = f"{number + 1:02d}-{file_name(clip)}"
                found[clip] = _draw(report, clip, metrics, folder / name)
    return found


def file_name(text: str) -> str:
    """Return `text` with everything that may not be in a file's name or an anchor as a dash."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-") or "clip"


def _draw(report: Report, clip: str, metrics: Sequence[str], path: Path) -> Drawn:
    """Write a figure with a panel for each metric, and return its panels one by one.

    That of a clip shows its curves, that of all clips ("") their BD-rates.
    """
    columns = min(2, len(metrics))
    lines = -(-len(metrics) // columns)
    width, height = (4.2, 3.1) if clip else (5.0, 0.28 * len(report.clips) + 1.1)
    figure = _figure(width * columns, height * lines + 0.5)
    handles: dict[str, Any] = {}
    for place, metric in enumerate(metrics):
        axes = figure.add_subplot(lines, columns, place + 1)
        handles |= _panel(axes, report, clip, metric, names=place == 0)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=max(1, min(4, len(handles))),
        frameon=False,
    )
    files = _write(figure, path)
    panels = []
    for metric in metrics:
        figure = _figure(width, height)
        _panel(figure.add_subplot(), report, clip, metric, names=True)
        what = (
            f"Rate and {METRICS[metric].title} of {clip}"
            if clip
            else (f"BD-rate in {METRICS[metric].title} against the conventional envelope by clip")
        )
        panels.append((for_page(_svg(figure, path.name), f"{path.name}-{metric}"), what))
    return Drawn(files, tuple(panels), {title: line.get_color() for title, line in handles.items()})


def _panel(axes: Axes, report: Report, clip: str, metric: str, *, names: bool) -> dict[str, Any]:
    if not clip:
        return _gains(axes, report, metric, names=names)
    return _curves(axes, report, [row for row in report.rows if row.clip == clip], metric)


def _curves(axes: Axes, report: Report, rows: Sequence[Row], metric: str) -> dict[str, Any]:
    """Draw one metric of a clip; return the legend's handles by title."""
    lower = METRICS[metric].better == "lower"
    handles: dict[str, Any] = {}
    clip = rows[0].clip
    best = next((e for e in report.envelopes if e.clip == clip and e.metric == metric), None)
    if best is not None and best.points:
        x, y = [p.bpp for p in best.points], [p.value for p in best.points]
        (line,) = axes.plot(x, y, color="#808080", alpha=0.35, linewidth=6, zorder=1)
        handles["conventional envelope"] = line
    own = tables.own_curves(report)
    curves = dict.fromkeys(row.curve for row in rows if metric in row.metrics)
    for curve in [*(c for c in curves if c not in own), *(c for c in own if c in curves)]:
        mine = [row for row in rows if row.curve == curve and metric in row.metrics]
        kept = front([(row.bpp, row.metrics[metric]) for row in mine], lower=lower)
        color, marker, dash = _style(curve, own)
        strong = curve in own
        (line,) = axes.plot(
            *zip(*kept, strict=True),
            color=color,
            marker=marker,
            linestyle=dash,
            linewidth=2 if strong else 1,
            zorder=3 if strong else 2,
        )
        handles[tables.curve_title(curve)] = line
    way = "lower is better" if lower else "higher is better"
    axes.set_title(f"{METRICS[metric].title} ({way})")
    axes.set_xlabel("bits per pixel")
    _log_axis(axes)
    return handles


def _gains(axes: Axes, report: Report, metric: str, *, names: bool) -> dict[str, Any]:
    """Draw BD-rates against the envelope, a line a clip; return the legend's handles by title."""
    clips, own = report.clips, tables.own_curves(report)
    handles: dict[str, Any] = {}
    axes.axvline(0, color="#808080", linewidth=1)
    for curve in own:
        found = {b.clip: b for b in _shown(report) if (b.metric, b.curve) == (metric, curve)}
        points = [(b.percent, clips.index(c)) for c, b in found.items() if b.percent is not None]
        color, marker, _ = _style(curve, own)
        if points:
            x, y = zip(*points, strict=True)
            line = axes.plot(x, y, color=color, marker=marker, linestyle="", markersize=6)[0]
            handles[tables.curve_title(curve)] = line
    axes.set_title(f"{METRICS[metric].title}, BD-rate (left of 0 is better)")
    axes.set_xlabel("percent")
    axes.set_ylim(len(clips) - 0.5, -0.5)
    axes.set_yticks(range(len(clips)), clips if names else [""] * len(clips))
    return handles


def _compared(report: Report) -> list[str]:
    """The metrics of the figure of all clips."""
    having = [b.metric for b in _shown(report) if b.percent is not None]
    main = [metric for metric in tables.MAIN if metric in having]
    return main or list(dict.fromkeys(m for m in having if tables.ranked(m)))[:2]


def _shown(report: Report) -> list[Any]:
    own = tables.own_curves(report)
    return [b for b in report.bd_rates if b.anchor == ENVELOPE and b.curve in own]


def _metrics(report: Report, clip: str) -> list[str]:
    """Up to `PANELS` metrics of a clip that are better lower or higher."""
    having = tables.measured(report, clip)
    return [metric for metric in _ORDER if metric in having][:PANELS]


def _style(curve: str, own: Sequence[str]) -> tuple[str, str, str]:
    if curve in own:
        return _OWN[own.index(curve) % len(_OWN)]
    color, marker = _STYLES.get(curve.split()[0], ("#555555", "x"))
    return color, marker, "-"


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _log_axis(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6f}".rstrip("0")))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _write(figure: Figure, path: Path) -> tuple[Path, ...]:
    """Write PATH.png on white and PATH.svg; return both."""
    png, svg = (path.with_name(path.name + suffix) for suffix in (".png", ".svg"))
    figure.savefig(png, dpi=150, metadata={"Software": None})
    svg.write_text(_svg(figure, path.name), "utf-8")
    return png, svg


def _svg(figure: Figure, salt: str) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def for_page(svg: str, name: str) -> str:
    """Return an SVG that can stand in a page beside others: no foreign names, ids of its own.

    Text takes the page's colour and font.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\sxmlns(:xlink)?=\"[^\"]*\"", "", svg)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would hold for all the page
    svg = svg.replace("<svg", '<svg style="stroke-linejoin: round; stroke-linecap: butt"', 1)
    svg = re.sub(r" d=\"[^\"]*\"", lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    known = re.findall(r"\bid=\"([^\"]+)\"", svg)
    for kept in dict.fromkeys(known):
        quoted = re.escape(kept)
        svg = re.sub(rf"(\bid=\"|\bhref=\"#|url\(#){quoted}(?=[\")])", rf"\g<1>{name}-{kept}", svg)
    svg = svg.replace(_INK, "currentColor")
    svg = re.sub(r"font(-family)?: [^;\"]*sans-serif[^;\"]*", _font, svg)
    return re.sub(r"\s(width|height)=\"[\d.]+pt\"", "", svg, count=2).strip()


def _font(found: re.Match[str]) -> str:
    """Keep a font's size and leave its family to the page."""
    size = re.search(r"[\d.]+px", found[0])
    return f"font-size: {size[0]}" if size else "font-family: inherit"
