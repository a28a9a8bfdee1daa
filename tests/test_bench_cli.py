"""`semvc bench`: what it takes, what it says, what it loads; and two reports side by side."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchreports import CLIPS, OWN, made
from program import call, environment

from semvc.bench import compare, plots, run, selfcheck
from semvc.bench import report as reports
from semvc.bench.rows import Report, Skipped
from semvc.errors import UsageError

SUITE = """
qualities = [10, 25, 40]
tiers = ["small", "preview"]
[[clip]]
file = "tennis.mp4"
"""


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take long and have their own tests."""
    monkeypatch.setattr(plots, "missing", lambda: "no plots in this test")


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `run.run` was called with; it returns a report that nobody measured."""
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(SUITE)
    calls: list[Any] = []

    def instead(suite: Any, job: run.Job, *, on_progress: Any) -> Report:
        calls.append((suite, job))
        on_progress(1, 2, "tennis")
        on_progress(2, 2, "tennis")
        return dataclasses.replace(made(), suite=suite.to_json())

    monkeypatch.setattr(run, "run", instead)
    return calls


# --- run


def test_a_suite_in_the_place_of_a_command_is_run(ran: list[Any], capfd: Any) -> None:
    done = call(capfd, "bench", "mine.toml", "--jobs", "3", "--metric-weights", ".")
    assert done.code == 0, done.err
    suite, job = ran[0]
    assert suite.name == "mine" and job.jobs == 3 and job.metric_weights == Path()
    assert job.out == Path("bench-mine") and job.clips == Path()
    names = {path.name for path in Path("bench-mine").iterdir()}
    assert {"report.json", "report.md", "report.html"} <= names
    assert "BD-rate" in done.out and "report.html" in done.out
    assert "note: no plots in this test" in done.err


@pytest.mark.parametrize(
    "words",
    [
        ("bench", "run", "mine.toml"),
        ("bench", "--jobs", "1", "mine.toml"),
        ("bench", "--debug", "mine.toml"),
        ("bench", "--debug", "run", "mine.toml"),
    ],
)
def test_options_may_come_first(ran: list[Any], capfd: Any, words: tuple[str, ...]) -> None:
    assert call(capfd, *words, "--quiet").code == 0
    assert ran[0][0].name == "mine"


def test_a_shipped_suite_is_known_by_name_and_by_file(ran: list[Any], capfd: Any) -> None:
    for word in ("dev", "suites/dev.toml"):
        assert call(capfd, "bench", word, "--quiet").code == 0
    assert [suite.name for suite, _ in ran] == ["dev", "dev"]


def test_profiles_and_tiers_can_be_narrowed(ran: list[Any], capfd: Any) -> None:
    words = ("bench", "mine.toml", "--profiles", "s2vc, disco", "--tiers", "small", "--json")
    done = call(capfd, *words)
    suite = ran[0][0]
    assert suite.profiles == ("s2vc", "disco") and suite.tiers == ("small",)
    row = json.loads(done.out)
    assert row["rows"] == len(made().rows) and row["skipped"] == 1
    assert any(name.endswith("report.html") for name in row["files"])


def test_a_word_that_is_nothing_is_explained(capfd: Any) -> None:
    done = call(capfd, "bench", "reprot", "x")
    assert done.code == 2 and done.out == ""
    assert "no command and no suite 'reprot'" in done.err
    assert "report" in done.err and "dev" in done.err


def test_the_report_of_another_suite_is_kept(ran: list[Any], capfd: Any) -> None:
    Path("other.toml").write_text(SUITE)
    assert call(capfd, "bench", "mine.toml", "--out", "o", "--quiet").code == 0
    assert call(capfd, "bench", "mine.toml", "--out", "o", "--quiet").code == 0
    done = call(capfd, "bench", "other.toml", "--out", "o", "--quiet")
    assert done.code == 2 and "suite mine" in done.err and "--force" in done.err
    assert call(capfd, "bench", "other.toml", "--out", "o", "--quiet", "--force").code == 0
    assert len(ran) == 3


def test_a_run_without_any_point_fails(
    ran: list[Any], capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = Report("1", {}, {}, (), skipped=(Skipped("tennis", "semvc", 1.0, "no such model"),))
    monkeypatch.setattr(run, "run", lambda *_, **__: empty)
    done = call(capfd, "bench", "mine.toml")
    assert done.code == 8 and "no such model" in done.err


def test_quiet_says_nothing(ran: list[Any], capfd: Any) -> None:
    done = call(capfd, "bench", "mine.toml", "--quiet")
    assert done.out == "" and "BD-rate" not in done.err


def test_clips_frames_and_metrics_can_be_narrowed(ran: list[Any], capfd: Any) -> None:
    more = '[[clip]]\nfile = "dogs.mp4"\nframes = 9\n[[clip]]\nfile = "b.mp4"\nname = "cats"\n'
    Path("mine.toml").write_text(SUITE + more)
    words = ("bench", "mine.toml", "--only", "dogs,cats", "--frames", "12")
    assert call(capfd, *words, "--metrics", "lpips,cvvdp").code == 0
    suite = ran[0][0]
    assert [(clip.label, clip.frames) for clip in suite.clips] == [("dogs", 9), ("cats", 12)]
    assert suite.metrics == ("lpips", "cvvdp")
    done = call(capfd, "bench", "mine.toml", "--only", "dogs,cows")
    assert done.code == 2 and "no clip cows in the suite: tennis, dogs, cats" in done.err
    done = call(capfd, "bench", "mine.toml", "--metrics", "vmaf")
    assert done.code == 2 and "unknown metric 'vmaf'" in done.err


@pytest.mark.parametrize("given", ["--profiles", "--tiers"])
def test_an_empty_list_is_refused(ran: list[Any], capfd: Any, given: str) -> None:
    assert call(capfd, "bench", "mine.toml", given, " , ").code == 2


# --- report


def test_a_report_is_made_again(tmp_path: Path, capfd: Any) -> None:
    (tmp_path / reports.JSON).write_text(json.dumps(made().to_json()))
    for source in (tmp_path, tmp_path / reports.JSON):
        done = call(capfd, "bench", "report", source)
        assert done.code == 0 and "tall talk" in done.out
        (tmp_path / reports.PAGE).unlink()


def test_a_folder_without_report_is_named(tmp_path: Path, capfd: Any) -> None:
    done = call(capfd, "bench", "report", tmp_path / "no")
    assert done.code == 2 and f"cannot read {tmp_path / 'no'}" in done.err


# --- compare


def test_equal_reports_do_not_differ() -> None:
    found = compare.compare(made(), made())
    assert {item.kind for item in found.differences} == {"rate", "value"}
    for item in found.differences:
        assert item.mean == pytest.approx(0, abs=1e-9) and set(item.by_clip) == set(CLIPS)
        assert item.error == pytest.approx(0, abs=1e-9)
    assert set(found.bytes_ratio.values()) == {1.0}


def test_half_the_bytes_are_found() -> None:
    # all of semvc's points at half the bytes, with the same quality
    found = compare.compare(made(), made(gain=0.5))
    rates = [d for d in found.differences if d.kind == "rate" and d.curve == OWN]
    assert {item.metric for item in rates} == {"lpips", "dists", "ms_ssim"}
    for item in rates:
        assert item.mean == pytest.approx(-50, abs=0.5) and (item.better, item.worse) == (3, 0)
    assert found.bytes_ratio[OWN] == pytest.approx(0.5, abs=0.01)


def test_pictures_that_got_worse_are_counted() -> None:
    first = made()
    rows = tuple(
        dataclasses.replace(row, metrics={**row.metrics, "lpips": row.metrics["lpips"] + 0.02})
        if (row.clip, row.curve) == ("tennis", OWN)
        else row
        for row in first.rows
    )
    found = compare.compare(first, dataclasses.replace(first, rows=rows))
    item = next(
        d for d in found.differences if (d.kind, d.metric, d.curve) == ("value", "lpips", OWN)
    )
    assert item.mean == pytest.approx(0.02 / 3) and item.error == pytest.approx(0.02 / 3)
    assert (item.better, item.worse, item.worst_clip) == (0, 1, "tennis")


def test_higher_is_better_where_it_is() -> None:
    first = made()
    rows = tuple(
        dataclasses.replace(row, metrics={**row.metrics, "ms_ssim": row.metrics["ms_ssim"] + 0.01})
        for row in first.rows
    )
    found = compare.compare(first, dataclasses.replace(first, rows=rows))
    item = next(d for d in found.differences if (d.kind, d.metric) == ("value", "ms_ssim"))
    assert item.mean == pytest.approx(0.01) and (item.better, item.worse) == (3, 0)


def test_reports_with_nothing_in_common_are_refused() -> None:
    with pytest.raises(UsageError, match="nothing in common"):
        compare.compare(made(("tennis",)), made(("tall talk",)))


def test_clips_of_one_report_are_named(tmp_path: Path, capfd: Any) -> None:
    for name, clips in (("a", CLIPS), ("b", CLIPS[:2])):
        (tmp_path / name).mkdir()
        (tmp_path / name / reports.JSON).write_text(json.dumps(made(clips).to_json()))
    done = call(capfd, "bench", "compare", tmp_path / "a", tmp_path / "b")
    assert done.code == 0 and f"only in the first: {CLIPS[2]}" in done.out
    done = call(capfd, "bench", "compare", tmp_path / "a", tmp_path / "b", "--json")
    row = json.loads(done.out)
    assert row["only_first"] == [CLIPS[2]] and row["differences"][0]["kind"] == "rate"


# --- self-check


def test_the_self_check_passes_and_says_what_it_lacks(capfd: Any) -> None:
    done = call(capfd, "bench", "self-check")
    assert done.code == 0 and "ok" in done.out
    assert "not checked" in done.out and "WRONG" not in done.out
    rows = json.loads(call(capfd, "bench", "self-check", "--json").out)
    assert {row["ok"] for row in rows} == {True, False}


@pytest.mark.parametrize("value", [None, 1.5])
def test_a_wrong_figure_fails_the_self_check(
    capfd: Any, monkeypatch: pytest.MonkeyPatch, value: float | None
) -> None:
    wrong = selfcheck.Check("BD-rate of known shifts", value, 0.0, 0.0, "off" if value else "")
    monkeypatch.setattr(selfcheck, "self_check", lambda weights: (wrong,))
    done = call(capfd, "bench", "self-check")
    assert done.code == 1 and "WRONG" in done.out


# --- what is loaded


def modules(*words: str) -> set[str]:
    """Names of all modules in memory after a command."""
    script = (
        "import sys; from semvc.cli import run; code = run(sys.argv[1:]);"
        " print('\\nLOADED', *sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words], env=environment(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.decode().rsplit("LOADED ", 1)[1].split())


def test_info_loads_nothing_of_the_benchmark(stream: Path) -> None:
    found = modules("info", str(stream))
    assert "semvc.bitstream.probe" in found
    assert not [name for name in found if name.startswith("semvc.bench")]


@pytest.mark.parametrize("words", [("--help",), ("bench", "--help"), ("bench", "run", "--help")])
def test_help_is_light(words: tuple[str, ...]) -> None:
    found = modules(*words)
    assert "semvc.bench.cli" in found  # it could be loaded, and was
    heavy = {"numpy", "torch", "av", "cv2", "matplotlib", "constriction"}
    assert not {name.split(".")[0] for name in found} & heavy
