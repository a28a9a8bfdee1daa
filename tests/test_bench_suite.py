"""Suites: what ships can be read, and what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from semvc.bench import suite
from semvc.bench.plan import points
from semvc.errors import UsageError

CLIP = '[[clip]]\nfile = "a.mp4"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "toy.toml"
    path.write_text(text, "utf-8")
    return path


def test_shipped_suites_can_be_read_and_stay_short() -> None:
    assert {"dev", "quick"} <= set(suite.shipped())
    for name in suite.shipped():
        found = suite.load(Path(name))
        assert found.name == name and 3 <= len(found.qualities) <= 5
        assert all(0 < clip.frames <= 64 for clip in found.clips)
        assert {"svtav1", "x265"} <= {anchor.codec for anchor in found.anchors}
        json.dumps(found.to_json())
    assert len(suite.load(Path("suites/dev.toml")).clips) == 16
    assert len(suite.load(Path("quick")).clips) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CLIP + "start = 1\ncolour = 3\n", "unknown key colour"),
        ("speed = 1\nqualities = [1]\n" + CLIP, "unknown key speed"),
        ('qualities = [1]\nmetrics = ["lpps"]\n' + CLIP, "unknown metric 'lpps'"),
        ("qualities = [64]\n" + CLIP, "between 0 and 63"),
        ('qualities = ["high"]\n' + CLIP, "not of type"),
        ("qualities = 5\n" + CLIP, "not of type"),
        ("qualities = [1]\nevery = true\n" + CLIP, "not of type"),
        ("qualities = [1]\nevery = 0\n" + CLIP, "positive"),
        ("qualities = [1]\n", "at least one"),
        (CLIP, "nothing to measure"),
        ("qualities = [1]\n[[clip]]\nstart = 3\n", "file, or a glob"),
        ('qualities = [1]\n[[clip]]\nfile = "a"\nframes = -1\n', "0 or more"),
        ('qualities = [1]\n[[clip]]\nglob = "*"\nname = "x"\n', "named by their files"),
        ('qualities = [1]\n[clip]\nfile = "a"\n', r"\[\[clip\]\]"),
        (CLIP + '[[anchor]]\ncodec = "h263"\ncrf = [1]\n', "unknown anchor 'h263'"),
        (CLIP + '[[anchor]]\ncodec = "semvc"\ncrf = [1]\n', "unknown anchor"),
        (CLIP + '[[anchor]]\ncodec = "x265"\ncrf = [52]\n', "between 0 and 51"),
        (CLIP + '[[anchor]]\ncodec = "x265"\ncrf = []\n', "a crf"),
        (CLIP + '[[anchor]]\ncodec = "x265"\n', "crf"),
        (CLIP + '[[anchor]]\ncodec = "x265"\ncrf = [30]\nsizes = ["third"]\n', "unknown size"),
        (CLIP + '[[anchor]]\ncodec = "x265"\ncrf = [30]\ndivisors = [0]\n', "between 1 and"),
        ("qualities = [", "toy.toml"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        suite.load(written(tmp_path, text))


def test_a_suite_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(UsageError, match="dev, quick"):
        suite.load(Path("nowhere/none.toml"))


def test_globs_give_clips_by_name(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in ("a.mp4", "more/c.mp4", "more/b.mp4", "more/b.txt"):
        (tmp_path / name).touch()
    text = f'qualities = [1]\n{CLIP}[[clip]]\nfolder = "more"\nglob = "*.mp4"\nframes = 5\n'
    found = suite.load(written(tmp_path, text)).files(tmp_path)
    assert [clip.name for clip, _ in found] == ["a", "b", "c"]
    assert [clip.whole for clip, _ in found] == [True, False, False]
    assert [path.name for _, path in found] == ["a.mp4", "b.mp4", "c.mp4"]


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ('[[clip]]\nfile = "b.mp4"\n', "no clip"),
        ('[[clip]]\nglob = "*.mkv"\n', "matches"),
        (CLIP + CLIP, "named twice: a"),
    ],
)
def test_clips_that_are_not_there_are_named(tmp_path: Path, clips: str, message: str) -> None:
    (tmp_path / "a.mp4").touch()
    loaded = suite.load(written(tmp_path, "qualities = [1]\n" + clips))
    with pytest.raises(UsageError, match=message):
        loaded.files(tmp_path)


def test_points_are_all_combinations_once(tmp_path: Path) -> None:
    anchor = (
        '[[anchor]]\ncodec = "x265"\nsizes = ["full", "half"]\ndivisors = [1, 2]\ncrf = [30, 40]\n'
    )
    text = f'qualities = [10, 20]\ntiers = ["preview", "small"]\n{CLIP}{anchor}{anchor}'
    found = list(points(suite.load(written(tmp_path, text)), "a"))
    assert len(found) == 2 + 8
    assert sum(len(point.tiers) for point in found) == 4 + 8
    assert {point.preset for point in found} == {"", "veryslow"}
