"""Shot changes are found where they are, and segments are cut there, never too short or long."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scene import Scene

from semvc.media.scenes import CutDetector, SegmentPlanner

FPS = 24


@lru_cache
def shot(seed: int, frames: int = 40, pan: float = 0.05) -> Any:
    return Scene(width=64, height=48, frames=frames, seed=seed, pan=pan).render()[0]


def cuts(frames: Any, fps: float = FPS) -> list[int]:
    detector = CutDetector(fps)
    return [cut for frame in frames for cut in detector.push(frame)] + detector.finish()


def mixed(a: Any, b: Any, share: float) -> Any:
    return (a * (1 - share) + b * share).astype(np.uint8)


@pytest.mark.parametrize("seed", range(6))
def test_a_moving_shot_has_no_cut(seed: int) -> None:
    assert cuts(shot(seed)) == []
    assert cuts(shot(seed, pan=0.6)) == []


@pytest.mark.parametrize("seed", range(6))
def test_a_hard_cut_is_found_exactly(seed: int) -> None:
    assert cuts(np.concatenate((shot(seed), shot(seed + 1)))) == [40]


def test_several_cuts_are_all_found() -> None:
    parts = [shot(seed)[: 12 + seed] for seed in range(5)]
    ends = np.cumsum([len(part) for part in parts])[:-1]
    assert cuts(np.concatenate(parts)) == list(ends)


@pytest.mark.parametrize("length", [8, 12, 18])
def test_a_dissolve_is_one_cut_within_it(length: int) -> None:
    a, b = shot(1), shot(2)
    between = [mixed(a[-1], b[0], (i + 1) / (length + 1)) for i in range(length)]
    found = cuts(np.concatenate((a, between, b)))
    assert len(found) == 1
    assert 40 <= found[0] <= 40 + length


@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("still", [0, 20])
def test_a_fade_through_black_or_white_is_one_cut(level: int, still: int) -> None:
    a, b, flat = shot(3), shot(4), np.full_like(shot(3)[0], level)
    out = [mixed(a[-1], flat, (i + 1) / 12) for i in range(12)] + [flat] * still
    back = [mixed(flat, b[0], (i + 1) / 12) for i in range(12)]
    found = cuts(np.concatenate((a, out, back, b)))
    assert len(found) == 1
    assert 40 <= found[0] <= 64 + still


def test_flashes_and_exposure_changes_are_not_cuts() -> None:
    a = shot(5).copy()
    a[20] = 255
    a[30:32] = np.clip(a[30:32].astype(int) + 120, 0, 255)
    assert cuts(a) == []
    ramp = np.linspace(0.4, 1.0, 40)[:, None, None, None]
    assert cuts((shot(5) * ramp).astype(np.uint8)) == []


def test_a_blink_to_black_in_one_shot_is_not_a_cut() -> None:
    a = shot(6).copy()
    a[18:21] = 0
    assert cuts(a) == []


def test_black_and_tiny_and_very_short_videos_are_fine() -> None:
    assert cuts(np.zeros((30, 48, 64, 3), np.uint8)) == []
    assert cuts(shot(0)[:1]) == []
    assert cuts([]) == []
    assert cuts(np.zeros((30, 16, 17, 3), np.uint8)) == []


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.integers(2, 30),
    st.integers(1, 9),
    st.integers(-50, 50),
)
def test_segments_cover_all_frames_within_their_bounds(
    lengths: list[int], longest: int, least: int, error: int
) -> None:
    least, total = min(least, longest // 2), sum(lengths) + error
    parts = [shot(seed % 4)[:length] for seed, length in enumerate(lengths)]
    planner = SegmentPlanner(FPS, max_frames=longest, min_frames=least, total=max(0, total))
    spans = [span for frame in np.concatenate(parts) for span in planner.push(frame)]
    spans += planner.finish()
    at = 0
    for span in spans:
        assert span.start == at
        assert 1 <= span.count <= longest
        at += span.count
    assert at == sum(lengths)
    assert all(span.count >= least for span in spans[:-1])


def test_segments_begin_at_shot_changes() -> None:
    planner = SegmentPlanner(FPS, max_frames=60, min_frames=12)
    video = np.concatenate((shot(0), shot(1), shot(2)[:30]))
    spans = [span for frame in video for span in planner.push(frame)] + planner.finish()
    assert [span.start for span in spans] == [0, 40, 80]


def spans_of(video: Any, total: int = 0) -> list[int]:
    planner = SegmentPlanner(FPS, max_frames=48, min_frames=12, total=total)
    spans = [span for frame in video for span in planner.push(frame)] + planner.finish()
    return [span.count for span in spans]


@pytest.mark.parametrize("total", [0, 200, 100])
def test_decisions_come_soon(total: int) -> None:
    planner = SegmentPlanner(FPS, max_frames=48, min_frames=12, total=total)
    assert planner.reach == 72
    taken = 0
    for count, frame in enumerate(np.concatenate([shot(0)] * 5), 1):
        taken += sum(span.count for span in planner.push(frame))
        assert count - taken <= planner.reach + FPS / 2


@pytest.mark.parametrize("length", [49, 60, 72, 73, 97, 115, 145, 150])
@pytest.mark.parametrize("known", [True, False])
def test_a_shot_is_divided_evenly(length: int, known: bool) -> None:
    video = shot(0, 150)[:length]
    counts = spans_of(video, length if known else 0)
    assert sum(counts) == length
    if known or length <= 72:  # its end is in sight
        assert max(counts) - min(counts) <= 1
        assert len(counts) == -(-length // 48)
    assert min(counts) >= 24


def test_a_shot_between_cuts_is_divided_evenly() -> None:
    video = np.concatenate((shot(0, 66), shot(1, 150)[:71], shot(2, 40)))
    for total in (0, len(video)):
        assert spans_of(video, total) == [33, 33, 36, 35, 40]


@pytest.mark.parametrize("total", [50, 1000])
def test_a_wrong_length_in_the_file_does_little_harm(total: int) -> None:
    counts = spans_of(shot(0, 150), total)
    assert sum(counts) == 150
    assert 24 <= min(counts) <= max(counts) <= 48


def test_impossible_bounds_are_refused() -> None:
    for longest, least in ((10, 6), (0, 0), (1, 1), (10, 0)):
        with pytest.raises(ValueError, match="segments of"):
            SegmentPlanner(FPS, max_frames=longest, min_frames=least)
