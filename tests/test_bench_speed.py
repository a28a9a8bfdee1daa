"""The stopwatch and what it is hung around; speed is measured here, and never judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from program import call

from semvc.bench import speed, stopwatch
from semvc.bench.stopwatch import OTHER, Stopwatch, watched
from semvc.entropy import coder
from semvc.media import av1
from semvc.media.reader import VideoReader
from semvc.media.writer import VideoWriter
from semvc.profiles.disco import Disco

TINY = speed.Plan(size=(64, 64), frames=4, tiers=("preview",), preset=12, repeats=2)


class Clock:
    """A clock that goes on when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_moment_counts_for_the_innermost_part() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    clock.now += 1
    with watch.part("outer"):
        clock.now += 2
        with watch.part("inner"):
            clock.now += 4
        clock.now += 8
    with watch.part("outer"):
        clock.now += 16
    clock.now += 32
    assert watch.stop() == {OTHER: 33, "outer": 26, "inner": 4}


def test_a_part_that_fails_is_left() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    with pytest.raises(KeyError), watch.part("outer"):
        clock.now += 1
        raise KeyError
    clock.now += 2
    assert watch.stop() == {OTHER: 2, "outer": 1}


def test_the_time_between_items_counts_for_whoever_takes_them() -> None:
    clock = Clock()
    watch = Stopwatch(clock)

    def items() -> Any:
        for item in "ab":
            clock.now += 1
            yield item

    found = []
    for item in stopwatch._timed(items, watch, "giving", one_by_one=True)():
        clock.now += 10
        found.append(item)
    assert found == ["a", "b"] and watch.stop() == {"giving": 2, OTHER: 20}


@pytest.mark.parametrize("verb", ["encode", "decode"])
def test_the_stopwatch_is_taken_off_again(verb: str) -> None:
    places = [(place[0], place[1]) for _, _, place in stopwatch._owners(verb, Disco)]
    before = [getattr(*place) for place in places]
    with pytest.raises(KeyError), watched(verb, Disco):
        assert all(getattr(*p) is not b for p, b in zip(places, before, strict=True))
        raise KeyError
    assert all(getattr(*p) is b for p, b in zip(places, before, strict=True))
    assert coder.Encoder in [owner for owner, _ in places]
    assert verb == "decode" or (av1, "encode_segment") in places
    assert verb == "encode" or (VideoWriter, "write") in places


def test_a_drawn_clip_moves_and_is_the_same_every_time(tmp_path: Path) -> None:
    found = []
    for name in "ab":
        path = speed.draw(tmp_path / f"{name}.mp4", (96, 64), 5)
        with VideoReader(path) as reader:
            found.append(np.stack([frame for frame, _ in reader]))
    assert found[0].shape == (5, 64, 96, 3) and (found[0] == found[1]).all()
    assert np.abs(np.diff(found[0].astype(int), axis=0)).mean() > 2 and found[0].std() > 20


def test_parts_add_up_to_the_whole() -> None:
    told: list[Any] = []
    found = speed.measure(
        speed.Plan(**{**vars_of(TINY), "scaling": False}), on_case=lambda *a: told.append(a)
    )
    assert [t.verb for t in found.timings] == ["encode", "decode preview"]
    encode, decode = found.timings
    assert {"base layer, encode", "entropy coder", "analysis and signals"} <= set(encode.parts)
    assert {"parse the stream", "signals", "generator", "base layer, decode"} <= set(decode.parts)
    assert "encode and mux the output" in decode.parts
    for timing in found.timings:
        assert (timing.width, timing.height, timing.frames) == (64, 64, 4)
        low = sum(part.low for name, part in timing.parts.items() if name != speed.LOADING)
        high = sum(part.high for name, part in timing.parts.items() if name != speed.LOADING)
        assert low <= timing.seconds.median <= high
        assert timing.seconds.low <= timing.seconds.median <= timing.seconds.high
    assert encode.generator_fps is None and decode.generator_fps
    assert [done for done, _, _ in told] == [0, 1] and {total for _, total, _ in told} == {1}
    json.dumps(found.to_json(), allow_nan=False)


def vars_of(plan: speed.Plan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in speed.Plan.__slots__}


def timing(axis: str, label: str, seconds: float, **given: Any) -> speed.Timing:
    size = {"width": 64, "height": 64, "frames": 10, "threads": 0, **given}
    spread = speed.Spread(seconds, seconds, seconds)
    return speed.Timing(axis, label, "encode", seconds=spread, parts={}, **size)


def test_ratios_are_by_frame_and_by_pixel() -> None:
    rows = [
        timing("length", "10", 1.0),
        timing("length", "20", 3.0, frames=20),
        timing("resolution", "64x64", 1.0),
        timing("resolution", "128x64", 1.0, width=128),
    ]
    ratios = [row.ratio for row in speed._with_ratios(rows)]
    assert ratios == pytest.approx([1.0, 1.5, 1.0, 0.5])


def test_all_kinds_of_scaling_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[speed._Case] = []

    def instead(case: speed._Case, plan: speed.Plan, folder: Path) -> list[speed.Timing]:
        with VideoReader(case.path) as reader:
            count = sum(1 for _ in reader)
        seen.append(case)
        return [timing(case.axis, case.label, 1.0, frames=count)]

    monkeypatch.setattr(speed, "_run", instead)
    found = speed.measure(speed.Plan(size=(64, 64), frames=2, threads=(1, 2)))
    axes = [case.axis for case in seen]
    assert axes == ["parts", *["length"] * 3, *["resolution"] * 3, *["threads"] * 2]
    assert [t.frames for t in found.timings if t.axis == "length"] == [2, 4, 8]
    assert [case.threads for case in seen][-2:] == [1, 2]
    text = "\n".join(table.text() for table in found.tables())
    assert "854x480" in text and "8 frames" in text


def test_the_command_prints_one_json_object(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch, clip: Path
) -> None:
    plans: list[speed.Plan] = []

    def instead(plan: speed.Plan, *, on_case: Any) -> speed.Speeds:
        plans.append(plan)
        on_case(0, 1, "parts")
        return speed.Speeds((timing("parts", "", 2.0),), {"cores": 2}, plan.repeats)

    monkeypatch.setattr(speed, "measure", instead)
    words = ("bench", "speed", clip, "--threads", "1,3", "--tiers", "preview", "--repeats", "2")
    done = call(capfd, *words, "--report", tmp_path / "r.json", "--json")
    assert done.code == 0 and json.loads(done.out)["timings"][0]["fps"] == 5.0
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads(done.out)
    assert plans[0].threads == (1, 3) and plans[0].tiers == ("preview",)
    assert plans[0].source == clip and plans[0].repeats == 2
    done = call(capfd, *words, "--report", tmp_path / "r.json")
    assert done.code == 2 and "--force" in done.err
    assert "Parts at 64x64" in call(capfd, "bench", "speed").out
    threads = plans[-1].threads
    assert threads[0] == 1 and list(threads) == sorted(set(threads))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--size", "854"), "WIDTHxHEIGHT"),
        (("--size", "16x16"), "64 at least"),
        (("--threads", "0"), "1,2,4"),
        (("--threads", "a"), "1,2,4"),
        (("nothing.mp4",), "no such file"),
        (("--tiers", ","), "names with commas"),
    ],
)
def test_what_cannot_be_timed_is_refused(capfd: Any, words: tuple[str, ...], said: str) -> None:
    done = call(capfd, "bench", "speed", *words)
    assert done.code == 2 and said in done.err
