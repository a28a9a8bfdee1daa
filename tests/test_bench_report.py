"""Reports for people: tables, plots, pictures and the page, made of a report that nobody ran."""

from __future__ import annotations

import base64
import dataclasses
import importlib.util
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchreports import CLIPS, FRAMES, GAINS, OWN, filmed, made

from semvc.bench import findings, gates, page, pictures, plots, stills, tables
from semvc.bench import report as reports
from semvc.bench.rows import ENVELOPE, METRICS, Report, Row
from semvc.errors import UsageError
from semvc.media.reader import VideoReader

pytestmark = pytest.mark.slow  # left to make test

VOID = {"meta", "img", "input", "br", "link", "hr", "source"}


@pytest.fixture(autouse=True)
def simple_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """All files here are plain videos, also those of conventional encoders."""
    monkeypatch.setattr(
        pictures, "rebuilt", lambda folder, row: pictures.frames(folder / row.rebuilt)
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path, reports.Written]:
    """A report with pictures, its folder, and what was written into it."""
    folder = tmp_path_factory.mktemp("bench")
    report = filmed(made(), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "rebuilt", lambda f, row: pictures.frames(f / row.rebuilt))
        return report, folder, reports.write(report, folder)


class Page(HTMLParser):
    """Tags with their attributes; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def values(self, name: str, tag: str = "") -> list[str]:
        """All values of an attribute."""
        return [a[name] or "" for t, a in self.tags if name in a and tag in ("", t)]


@pytest.fixture(scope="module")
def shown(written: tuple[Report, Path, reports.Written]) -> Page:
    """The page, parsed."""
    return Page((written[1] / reports.PAGE).read_text("utf-8"))


# --- the page


def test_tags_of_the_page_are_balanced(shown: Page) -> None:
    assert shown.open == []


def test_unbalanced_tags_would_be_found() -> None:
    with pytest.raises(AssertionError):
        Page("<p><b></p></b>")


def test_the_page_needs_nothing_from_outside(written: Any, shown: Page) -> None:
    text = (written[1] / reports.PAGE).read_text("utf-8")
    assert not re.search(r"https?:|@import|<link|<iframe", text)
    assert all(value.startswith("data:") for value in shown.values("src"))
    assert all(value.startswith("#") for value in shown.values("href"))
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    policy = next(a for t, a in shown.tags if "http-equiv" in a)["content"] or ""
    assert policy.startswith("default-src 'none'")


def test_every_clip_has_its_part(shown: Page) -> None:
    places = [page.anchor(clip) for clip in CLIPS]
    assert [a["id"] for t, a in shown.tags if t == "article"] == places
    text = "".join(shown.words)
    assert all(text.count(clip) > 3 for clip in CLIPS)


def test_links_lead_somewhere_and_ids_are_unique(shown: Page) -> None:
    ids = Counter(shown.values("id"))
    assert max(ids.values()) == 1
    assert {link[1:] for link in shown.values("href")} <= set(ids)


def test_pictures_and_controls_have_names(shown: Page) -> None:
    for tag, given in shown.tags:
        if tag == "img":
            assert "alt" in given and {"width", "height"} <= set(given)
            assert given["alt"] or given["src"] == "data:,"
        if tag == "video" or (tag == "input" and given["type"] == "range"):
            assert given["aria-label"]
        if tag == "svg":
            assert given["role"] == "img" and given["aria-label"]


def test_each_clip_is_shown_beside_the_others(shown: Page) -> None:
    stills_shown = [a["alt"] or "" for t, a in shown.tags if t == "img" and a["alt"]]
    assert len(stills_shown) == 4 * len(CLIPS)
    for clip in CLIPS:
        mine = [alt for alt in stills_shown if alt.startswith(clip)]
        assert "source" in mine[0] and "SVT-AV1" in mine[1]
        assert "preview" in mine[2] and "small" in mine[3]
    assert len([a for t, a in shown.tags if t == "video"]) == len(CLIPS)


def test_the_page_shows_the_numbers(written: Any, shown: Page) -> None:
    report, text = written[0], " ".join(shown.words)
    for row in report.rows:
        assert f"{row.bytes:,}" in text and f"{row.metrics['lpips']:.3f}" in text
    for mean in report.mean_bd_rates:
        if mean.anchor == ENVELOPE and tables.ranked(mean.metric):
            assert tables.percent(mean.percent) in text


def test_numbers_to_sort_by_are_those_shown(shown: Page) -> None:
    assert len(shown.values("data-v")) > 100
    assert all(np.isfinite(float(value)) for value in shown.values("data-v"))


def test_names_are_escaped(written: Any) -> None:
    text = (written[1] / reports.PAGE).read_text("utf-8")
    assert "A &lt;fast&gt; one" in text and "<fast>" not in text


def test_a_page_without_pictures_or_plots_is_whole() -> None:
    found = Page(page.html(made(), {}, {}, ["no plots"]))
    assert found.open == [] and not found.values("src")
    assert "no plots" in "".join(found.words)


def test_a_report_without_semvc_makes_a_page() -> None:
    report = made()
    rows = tuple(row for row in report.rows if row.codec != "semvc")
    bare = dataclasses.replace(report, rows=rows, bd_rates=(), mean_bd_rates=())
    assert Page(page.html(bare, {}, {})).open == []
    assert "There is no BD-rate" in reports.markdown(bare)


# --- files


def test_the_report_comes_back_as_it_was(written: Any) -> None:
    report, folder, _ = written
    assert reports.load(folder) == report == reports.load(folder / reports.JSON)


def test_all_files_are_written(written: Any) -> None:
    _, folder, done = written
    names = {path.relative_to(folder).as_posix() for path in done.paths}
    assert {reports.JSON, reports.MARKDOWN, reports.PAGE} <= names
    assert all(path.stat().st_size for path in done.paths)
    assert not list(folder.rglob("*.part"))
    if not plots.missing():
        assert {"plots/bd-rate.png", "plots/bd-rate.svg", "plots/01-tennis.svg"} <= names
        assert len(names) == 3 + 2 * (1 + len(CLIPS)) and done.notes == ()


def test_without_matplotlib_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = reports.write(made(), tmp_path)
    assert [note for note in done.notes if "matplotlib" in note and "semvc[bench]" in note]
    assert (tmp_path / reports.PAGE).is_file() and not (tmp_path / "plots").exists()
    assert "matplotlib" in (tmp_path / reports.PAGE).read_text("utf-8")


def test_pictures_that_are_gone_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "missing", lambda: "no plots here")
    report = filmed(made(), tmp_path)
    (tmp_path / "1-rebuilt.mp4").unlink()
    done = reports.write(report, tmp_path)
    assert [note for note in done.notes if "tall talk" in note and "no pictures" in note]
    assert Page((tmp_path / reports.PAGE).read_text("utf-8")).open == []


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 99}', '{"format": 1, "x": 2}'])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / reports.JSON).write_text(text)
    with pytest.raises(UsageError):
        reports.load(tmp_path)


def test_a_folder_without_a_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="semvc bench run"):
        reports.load(tmp_path)


# --- Markdown


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_numbers_in_markdown_are_those_of_the_report() -> None:
    report = made()
    text = reports.markdown(report)
    for clip in report.clips:
        part = text.split(f"## All points of {clip}\n\n")[1].split("\n\n")[0].splitlines()
        head, lines = cells(part[0]), [cells(line) for line in part[2:]]
        rows = [row for row in report.rows if row.clip == clip]
        assert len(lines) == len(rows)
        for line in lines:
            found = dict(zip(head, line, strict=True))
            row = the_row(rows, found)
            assert int(found["bytes"].replace(",", "")) == row.bytes
            assert float(found["bpp"]) == pytest.approx(row.bpp, abs=5e-6)
            for metric, value in row.metrics.items():
                shown_value = found[tables.heading(metric)]
                digits = len(shown_value.partition(".")[2])
                assert float(shown_value) == pytest.approx(value, abs=0.51 * 10**-digits)


def the_row(rows: list[Row], found: dict[str, str]) -> Row:
    same = [
        row
        for row in rows
        if (tables.curve_title(row.curve), tables.setting(row))
        == (found["codec"], found["setting"])
    ]
    assert len(same) == 1
    return same[0]


def test_bd_rates_in_markdown_are_those_of_the_report() -> None:
    report = made()
    text = reports.markdown(report)
    lines = [cells(line) for line in text.splitlines() if line.startswith("|")]
    for mean in report.mean_bd_rates:
        if mean.anchor == ENVELOPE and tables.ranked(mean.metric):
            start = [tables.heading(mean.metric), tables.curve_title(mean.curve)]
            line = next(line for line in lines if line[:2] == start)
            assert number(line[2]) == pytest.approx(mean.percent, abs=0.051)
            assert line[4] == f"{len(mean.clips)}/{len(mean.clips) + len(mean.without)}"
            assert number(line[6]) == pytest.approx(mean.worst, abs=0.051)


def number(text: str) -> float:
    return float(text.replace("−", "-").replace("%", "").replace(" ", ""))


def test_known_gains_come_out() -> None:
    report = made()
    found = {
        b.clip: b.percent
        for b in report.bd_rates
        if (b.metric, b.curve, b.anchor) == ("lpips", OWN, "svtav1")
    }
    for clip, gain in GAINS.items():
        assert found[clip] == pytest.approx(100 * (gain - 1), abs=0.5)


def test_markdown_cannot_be_broken_by_names() -> None:
    lines = reports.markdown(made()).splitlines()
    table = [line for line in lines if line.startswith("| sea")]
    assert table and all(r"'x'\|y" in line for line in table)
    assert "not installed" in "\n".join(lines) and "a note of the run" in "\n".join(lines)


# --- findings


def test_the_worst_clips_come_first() -> None:
    worst = [b.clip for b in tables.worst(made(), "lpips", OWN)]
    assert worst == ["sea <&> 'x'|y", "tall talk", "tennis"]


def test_a_clip_lost_throughout_is_worse_than_any_figure() -> None:
    report = made()
    lost = tuple(
        dataclasses.replace(b, percent=None, better="anchor") if b.clip == "tennis" else b
        for b in report.bd_rates
    )
    assert (
        tables.worst(dataclasses.replace(report, bd_rates=lost), "lpips", OWN)[0].clip == "tennis"
    )


def test_caveats_name_clips_that_the_mean_leaves_out() -> None:
    report = made()
    means = tuple(
        dataclasses.replace(m, clips=("tennis",), without=("tall talk",))
        for m in report.mean_bd_rates
    )
    rates = tuple(
        dataclasses.replace(b, percent=None, better="curve") if b.clip == "tall talk" else b
        for b in report.bd_rates
    )
    said = findings.caveats(dataclasses.replace(report, mean_bd_rates=means, bd_rates=rates))
    assert any("leaves out 1 of 2" in s and "better throughout on tall talk" in s for s in said)


def test_caveats_say_what_was_not_measured() -> None:
    said = " ".join(findings.caveats(made()))
    assert "Not measured: ColorVideoVDP" in said
    assert "disco-small-v1 (small)" in said and "One point could not be made" in said


def test_an_encoder_that_failed_is_missed() -> None:
    report = made()
    suite = {**report.suite, "anchors": [{"codec": "vvenc", "crf": [40]}]}
    said = " ".join(findings.caveats(dataclasses.replace(report, suite=suite)))
    assert "No point of VVenC" in said


def test_motion_has_no_bd_rate_on_show() -> None:
    report = made()
    assert any(m.metric == "tlpips" for m in report.mean_bd_rates)
    shown_metrics = [row[0].text for row in tables.mean_table(report).rows]
    assert tables.heading("lpips") in shown_metrics
    assert tables.heading("tlpips") not in shown_metrics


def test_every_metric_has_a_heading_and_digits() -> None:
    for metric in METRICS:
        assert tables.heading(metric) != metric or metric == "tof"
        assert tables.number(metric, 0.123456) != "0.123456"


# --- motion at equal bytes


def test_motion_is_compared_at_equal_bytes() -> None:
    report = made()
    found = {(g.clip, g.metric): g for g in gates.gates(report, OWN)}
    for clip, gain in GAINS.items():
        assert found[clip, "tlpips"].value == pytest.approx(gain)
        assert found[clip, "tlpips"].good == (gain <= 1.1)
        assert found[clip, "flicker_static_db"].value == pytest.approx(gain - 1, abs=1e-9)
    table = gates.gate_table(report, OWN)
    assert [row[0].text for row in table.rows] == list(CLIPS)
    assert number(table.foot[1].text) == pytest.approx(np.mean(list(GAINS.values())), abs=0.01)


def test_rates_beyond_the_anchors_are_left_out() -> None:
    report = made()
    rows = tuple(
        dataclasses.replace(row, bpp=row.bpp * 1000) if row.codec == "semvc" else row
        for row in report.rows
    )
    assert gates.gates(dataclasses.replace(report, rows=rows), OWN) == ()


# --- pictures


def test_pictures_are_of_about_equal_bytes(tmp_path: Path) -> None:
    report = filmed(made(), tmp_path)
    for clip in CLIPS:
        choice = stills.choose(report, clip)
        assert choice is not None
        rows = [item.row for item in choice.shown if item.row is not None]
        assert [row.codec for row in rows] == ["svtav1", "semvc", "semvc"]
        assert 0.75 < rows[0].bytes / rows[-1].bytes < 1.34
        near = [
            row
            for row in report.rows
            if row.clip == clip
            and row.codec in ("svtav1", "x265")
            and 0.8 <= row.bytes / rows[-1].bytes <= 1.25
        ]
        assert not near or rows[0].metrics["lpips"] == min(row.metrics["lpips"] for row in near)
        assert f"{rows[0].bytes / rows[-1].bytes:.2f} times" in choice.note


def test_without_kept_files_nothing_is_chosen() -> None:
    assert stills.choose(made(), "tennis") is None


def test_stills_and_loop_show_the_frames_meant(tmp_path: Path) -> None:
    report = filmed(made(("tennis",)), tmp_path)
    choice = stills.choose(report, "tennis")
    assert choice is not None
    found = stills.take(tmp_path, choice, clips=1)
    assert found.frame == round(stills.STILL * FRAMES) and found.quality == 90
    import cv2

    data = base64.b64decode(found.stills[0].partition(",")[2])
    still = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    true = np.stack(list(pictures.original(tmp_path, report.rows[0])))
    assert np.abs(true.astype(int) - still).mean((1, 2, 3)).argmin() == found.frame
    loop = base64.b64decode(found.loop.partition(",")[2])
    with VideoReader(io.BytesIO(loop)) as reader:
        frames = [frame for frame, _ in reader]
    assert len(frames) == FRAMES and frames[0].shape[1::-1] == found.loop_size


def test_a_tall_clip_stands_in_a_row(tmp_path: Path) -> None:
    report = filmed(made(("tall talk",)), tmp_path)
    choice = stills.choose(report, "tall talk")
    assert choice is not None
    width, height = stills.take(tmp_path, choice, clips=1).loop_size
    assert width > 2 * height


def test_pictures_leave_room_for_those_of_all_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = filmed(made(("tennis",)), tmp_path)
    choice = stills.choose(report, "tennis")
    assert choice is not None
    wide = stills.take(tmp_path, choice, clips=1)
    monkeypatch.setattr(stills, "PAGE_BYTES", 40_000)
    tight = stills.take(tmp_path, choice, clips=4)
    assert tight.quality < wide.quality
    assert sum(map(len, tight.stills)) < sum(map(len, wide.stills))
    assert len(tight.loop) < len(wide.loop) and tight.crf > wide.crf


# --- plots


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder of the plots of one clip, and what a page takes of them."""
    if plots.missing():
        pytest.skip("matplotlib is not installed: pip install 'semvc[bench]'")
    folder = tmp_path_factory.mktemp("plots")
    return folder, plots.draw(made(("tennis",)), folder)


@pytest.mark.slow
def test_plots_are_the_same_every_time(drawn: Any, written: Any) -> None:
    folder, found = drawn
    assert set(found) == {"", "tennis"}
    assert all(path.is_file() for figure in found.values() for path in figure.files)
    for name in ("01-tennis.svg", "01-tennis.png"):
        assert (folder / name).read_bytes() == (written[1] / "plots" / name).read_bytes()


def test_plots_in_the_page_take_its_colours(drawn: Any) -> None:
    for figure in drawn[1].values():
        for svg, what in figure.panels:
            assert "currentColor" in svg and "#010203" not in svg
            assert "<metadata" not in svg and "xmlns" not in svg and "<style" not in svg
            assert Page(svg).open == [] and what


def test_plots_name_every_curve_by_its_colour(drawn: Any) -> None:
    legend = drawn[1]["tennis"].legend
    assert list(legend) == [
        "conventional envelope",
        "SVT-AV1",
        "x265",
        "semvc small",
        "semvc preview",
    ]
    assert len(set(legend.values())) == len(legend)
    assert len(drawn[1]["tennis"].panels) == 3 and len(drawn[1][""].panels) == 2


def test_names_of_files_are_plain() -> None:
    assert [plots.file_name(clip) for clip in CLIPS] == ["tennis", "tall-talk", "sea-x-y"]
    assert plots.file_name("../..") == "clip"


def test_json_of_a_report_has_no_foreign_numbers(written: Any) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads((written[1] / reports.JSON).read_text("utf-8"), parse_constant=refuse)
