"""The tables of a report, made once and shown as Markdown, in the page and in the terminal.

Every number in them comes from the `Report` they are given; each cell keeps the number beside its
text, so that a page can sort by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from semvc.bench.rows import ENVELOPE, METRICS, BdRate, MeanBdRate, Report, Row

MAIN = ("lpips", "dists")  # the figures that lead every summary
MOTION = ("tlpips", "ewarp", "tof")  # blurred or held pictures are best in them: no BD-rate shown
WORST = 3  # clips named for each metric

_DIGITS = {
    "lpips": 3,
    "lpips_vgg": 3,
    "dists": 3,
    "pkid": 0,
    "cvvdp": 2,
    "ms_ssim": 4,
    "psnr_y": 2,
    "psnr_rgb": 2,
    "tlpips": 4,
    "ewarp": 3,
    "ewarp_source": 3,
    "tof": 2,
    "flicker_db": 2,
    "flicker_static_db": 2,
    "sharp_db": 2,
}
_HEADINGS = {
    "lpips": "LPIPS",
    "lpips_vgg": "LPIPS VGG",
    "dists": "DISTS",
    "pkid": "patch KID",
    "cvvdp": "CVVDP",
    "ms_ssim": "MS-SSIM",
    "psnr_y": "PSNR-Y",
    "psnr_rgb": "PSNR-RGB",
    "tlpips": "tLPIPS",
    "ewarp": "warp error",
    "ewarp_source": "of source",
    "tof": "flow error",
    "flicker_db": "flicker dB",
    "flicker_static_db": "static flicker dB",
    "sharp_db": "sharpness dB",
}
_CODECS = {
    "svtav1": "SVT-AV1",
    "svtav1-vq": "SVT-AV1 tune 0",
    "x265": "x265",
    "x264": "x264",
    "vp9": "VP9",
    "vvenc": "VVenC",
    ENVELOPE: "envelope",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """What is shown, and the number to sort by (None: by the text, or nothing measured).

    `mark` is "best" or "bad" where a page may emphasise it, else empty.
    """

    text: str
    value: float | None = None
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its heading, whether it holds numbers, and a sentence that explains it."""

    title: str
    numeric: bool = True
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table: `title` says what it shows, `note` what to know when reading it, `foot` a mean."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    foot: tuple[Cell, ...] = ()

    @property
    def lines(self) -> tuple[tuple[Cell, ...], ...]:
        """The rows, and the foot after them."""
        return (*self.rows, self.foot) if self.foot else self.rows

    def markdown(self) -> str:
        """Return the table as GitHub's Markdown, without title and note."""
        lines = [[_plain(column.title) for column in self.columns]]
        lines.append(["--:" if column.numeric else "---" for column in self.columns])
        lines += [[_plain(cell.text) for cell in row] for row in self.lines]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def text(self) -> str:
        """Return the table as aligned columns for a terminal, without title and note."""
        lines = [[column.title for column in self.columns]]
        lines += [[cell.text for cell in row] for row in self.lines]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                text.rjust(width) if column.numeric else text.ljust(width)
                for text, width, column in zip(line, widths, self.columns, strict=True)
            ).rstrip()
            for line in lines
        )


def heading(metric: str) -> str:
    """Return a metric's short name, as in a column's heading."""
    return _HEADINGS.get(metric, metric)


def number(metric: str, value: float | None) -> str:
    """Return a metric's value with as many digits as mean something."""
    return "–" if value is None else f"{value:.{_DIGITS.get(metric, 3)}f}"


def percent(value: float | None) -> str:
    """Return a BD-rate as text with its sign."""
    return "–" if value is None else f"{value:+.1f} %".replace("-", "−")


def share(value: float) -> str:
    """Return a share as text."""
    return f"{100 * value:.0f} %"


def codec(name: str) -> str:
    """Return an encoder's name as its makers write it."""
    return _CODECS.get(name, name)


def curve_title(curve: str) -> str:
    """Return a curve's name for people: "semvc small", "SVT-AV1"; a profile other than disco."""
    first, *others = curve.split()
    words = [word for word in others if word != "disco"] if first == "semvc" else others
    return " ".join([codec(first), *words])


def setting(row: Row) -> str:
    """Return how a row was made: "half size, 1/2 frame rate, crf 40", or "q 32"."""
    words = [] if row.size == "full" else [f"{row.size} size"]
    if row.divisor != 1:
        words.append(f"1/{row.divisor} frame rate")
    return ", ".join([*words, f"{'q' if row.codec == 'semvc' else 'crf'} {row.setting:g}"])


def ranked(metric: str) -> bool:
    """Return whether BD-rates of a metric are shown: of those that judge single pictures."""
    return METRICS[metric].better in ("lower", "higher") and metric not in MOTION


def measured(report: Report, clip: str | None = None) -> tuple[str, ...]:
    """Return the metrics that at least one row (of a clip) has, in their usual order."""
    rows = [row for row in report.rows if clip in (None, row.clip)]
    return tuple(name for name in METRICS if any(name in row.metrics for row in rows))


def own_curves(report: Report) -> tuple[str, ...]:
    """Return semvc's curves: the tiers with a model first, the instant preview last."""
    found = [curve for curve in report.curves if curve.split()[0] == "semvc"]
    return tuple(sorted(found, key=lambda curve: curve.endswith("preview")))


def mean_table(report: Report) -> Table:
    """BD-rate of each of semvc's curves against the conventional envelope, mean over clips."""
    columns = (
        Column("metric", numeric=False),
        Column("decoder", numeric=False),
        Column("BD-rate", hint="bytes needed for the same value; negative is better"),
        Column("overlap", hint="share of the curve's range of values that the envelope shares"),
        Column("clips", hint="clips with a figure, of those measured"),
        Column("worst clip", numeric=False),
        Column("its BD-rate"),
    )
    rows = [
        (
            Cell(heading(item.metric)),
            Cell(curve_title(item.curve)),
            _percent_cell(item.percent),
            Cell(share(item.overlap) if item.clips else "–", item.overlap),
            Cell(f"{len(item.clips)}/{len(item.clips) + len(item.without)}", len(item.clips)),
            Cell(item.worst_clip or "–"),
            _percent_cell(item.worst),
        )
        for item in _envelope_means(report)
    ]
    return Table(
        "BD-rate against the conventional envelope",
        columns,
        tuple(rows),
        "Mean over the clips that have a figure. A clip has none where the two curves share no "
        "range of the metric: nothing is extrapolated.",
    )


def anchor_table(report: Report) -> Table:
    """BD-rate of semvc's curves against each conventional encoder by itself."""
    metrics = [m for m in measured(report) if ranked(m)]
    rows = []
    means = {(m.metric, m.curve, m.anchor): m for m in report.mean_bd_rates}
    anchors = [a for a in dict.fromkeys(m.anchor for m in report.mean_bd_rates) if a != ENVELOPE]
    for curve in own_curves(report):
        for anchor in anchors:
            found = [means.get((metric, curve, anchor)) for metric in metrics]
            cells = [
                Cell("–") if mean is None else _counted_cell(mean, len(report.clips))
                for mean in found
            ]
            rows.append((Cell(curve_title(curve)), Cell(curve_title(anchor)), *cells))
    columns = (Column("decoder", numeric=False), Column("against", numeric=False))
    return Table(
        "BD-rate against each encoder by itself",
        (*columns, *(Column(heading(metric)) for metric in metrics)),
        tuple(rows),
        "In brackets: clips with a figure, where it is not all of them.",
    )


def clip_table(report: Report, curve: str) -> Table:
    """BD-rate of one curve against the envelope, clip by clip, with the overlap."""
    found = {(b.clip, b.metric): b for b in report.bd_rates if _is_envelope(b, curve)}
    metrics = [m for m in METRICS if ranked(m) and any(metric == m for _, metric in found)]
    columns = [Column("clip", numeric=False)]
    for metric in metrics:
        columns += [Column(heading(metric)), Column("overlap")]
    rows = []
    for clip in report.clips:
        cells = [Cell(clip)]
        for metric in metrics:
            cells += _clip_cells(found.get((clip, metric)))
        rows.append(tuple(cells))
    throughout = {"better", "worse"} & {cell.text for row in rows for cell in row}
    return Table(
        f"BD-rate of {curve_title(curve)} against the envelope, by clip",
        tuple(columns),
        tuple(rows),
        "“Better” and “worse” mean throughout, at the rates that both have: there is no equal "
        "quality whose rates could be compared."
        if throughout
        else "",
    )


def worst(report: Report, metric: str, curve: str) -> tuple[BdRate, ...]:
    """Return the clips where a curve fares worst against the envelope, the worst first.

    A clip on which the envelope is better throughout comes before every clip with a figure; clips
    on which the curve is better throughout are not named.
    """
    found = [b for b in report.bd_rates if b.metric == metric and _is_envelope(b, curve)]
    losing = [b for b in found if b.percent is None and b.better == "anchor"]
    counted = sorted((b for b in found if b.percent is not None), key=lambda b: -(b.percent or 0))
    return tuple([*losing, *counted][:WORST])


def worst_table(report: Report) -> Table:
    """The worst clips of each of semvc's curves, for each metric with a BD-rate."""
    rows = []
    for item in _envelope_means(report):
        clips = ", ".join(
            f"{b.clip} {percent(b.percent) if b.percent is not None else '(worse throughout)'}"
            for b in worst(report, item.metric, item.curve)
        )
        rows.append((Cell(heading(item.metric)), Cell(curve_title(item.curve)), Cell(clips or "–")))
    titles = ("metric", "decoder", "worst first")
    return Table("Worst clips", tuple(Column(t, numeric=False) for t in titles), tuple(rows))


def rate_table(report: Report, clip: str) -> Table:
    """Every point measured on a clip: what it cost and how it looks."""
    metrics = measured(report, clip)
    columns = [
        Column("codec", numeric=False),
        Column("setting", numeric=False),
        Column("bytes", hint="of the whole file without sound"),
        Column("bpp", hint="bits per pixel of the source"),
        Column("kbit/s"),
        *(Column(heading(m), hint=_hint(m)) for m in metrics),
        Column("encode fps"),
        Column("decode fps"),
    ]
    rows = []
    order = list(dict.fromkeys((*own_curves(report), *report.curves)))
    mine = [row for row in report.rows if row.clip == clip]
    for row in sorted(mine, key=lambda r: (order.index(r.curve), r.bytes)):
        rows.append(
            (
                Cell(curve_title(row.curve)),
                Cell(setting(row)),
                Cell(f"{row.bytes:,}", row.bytes),
                Cell(f"{row.bpp:.5f}", row.bpp),
                Cell(f"{row.kbps:.1f}", row.kbps),
                *(Cell(number(m, row.metrics.get(m)), row.metrics.get(m)) for m in metrics),
                *(Cell(_fps(value), value) for value in (row.encode_fps, row.decode_fps)),
            )
        )
    return Table(f"All points of {clip}", tuple(columns), tuple(rows))


def skipped_table(report: Report) -> Table:
    """Rate points that could not be made, and why."""
    titles = ("clip", "codec", "setting", "reason")
    rows = tuple(
        (
            Cell(item.clip),
            Cell(" ".join(word for word in (codec(item.codec), item.profile, item.tier) if word)),
            Cell(f"{item.size} 1/{item.divisor}, {item.setting:g}"),
            Cell(item.reason),
        )
        for item in report.skipped
    )
    return Table("Points that could not be made", tuple(Column(t, False) for t in titles), rows)


def missing(report: Report) -> dict[str, str]:
    """Return the metrics that rows lack, each with its reason and how many rows it concerns."""
    counts: dict[tuple[str, str], int] = {}
    for row in report.rows:
        for metric, reason in row.missing.items():
            counts[metric, reason] = counts.get((metric, reason), 0) + 1
    return {
        METRICS[metric].title if metric in METRICS else metric: (
            reason if count == len(report.rows) else f"{reason} ({count} of {len(report.rows)})"
        )
        for (metric, reason), count in counts.items()
    }


def _envelope_means(report: Report) -> list[MeanBdRate]:
    """Means against the envelope: main metrics first, then the rest, each with every curve."""
    order = [*MAIN, *(metric for metric in METRICS if metric not in MAIN)]
    curves = own_curves(report)
    means = [m for m in report.mean_bd_rates if m.anchor == ENVELOPE and m.curve in curves]
    found = [mean for mean in means if ranked(mean.metric)]
    return sorted(found, key=lambda m: (order.index(m.metric), curves.index(m.curve)))


def _is_envelope(item: BdRate, curve: str) -> bool:
    return item.anchor == ENVELOPE and item.curve == curve


def _clip_cells(item: BdRate | None) -> list[Cell]:
    if item is None:
        return [Cell("–"), Cell("–")]
    if item.percent is not None:
        return [_percent_cell(item.percent), Cell(share(item.overlap), item.overlap)]
    word, mark = {"curve": ("better", "best"), "anchor": ("worse", "bad")}.get(
        item.better, ("no overlap", "")
    )
    return [Cell(word, None, mark), Cell("none", 0.0)]


def _percent_cell(value: float | None) -> Cell:
    mark = "" if value is None else "best" if value < 0 else "bad" if value > 0 else ""
    return Cell(percent(value), value, mark)


def _counted_cell(mean: MeanBdRate, clips: int) -> Cell:
    cell = _percent_cell(mean.percent)
    if not mean.clips or len(mean.clips) == clips:
        return cell
    return Cell(f"{cell.text} ({len(mean.clips)})", cell.value, cell.mark)


def _hint(metric: str) -> str:
    known = METRICS[metric]
    way = {"lower": "lower is better", "higher": "higher is better", "zero": "0 is best"}
    unit = f", {known.unit}" if known.unit else ""
    return f"{known.title}{unit}; {way.get(known.better, 'for comparison')}"


def _fps(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _plain(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def joined(items: Iterable[str], last: str = "and") -> str:
    """Return "a, b and c"."""
    words: Sequence[str] = list(items)
    return f" {last} ".join([*([", ".join(words[:-1])] if words[1:] else []), *words[-1:]])
