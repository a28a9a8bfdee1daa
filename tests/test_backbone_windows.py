"""Windows over long segments, and colours that must not creep."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinybackbones import SETTINGS

from semvc.backbones import windows
from semvc.backbones.protocol import Conditions, Noise, up_to
from semvc.nets.conditioning import SegmentConditions
from semvc.profiles.fulltier import FullTier


@given(st.integers(1, 400), st.integers(2, 90), st.integers(0, 20))
def test_windows_cover_every_frame_and_overlap(frames: int, longest: int, overlap: int) -> None:
    overlap = min(overlap, longest - 1)
    found = windows.plan(frames, longest, overlap)
    assert found[0][0] == 0 and found[-1][1] == frames
    assert all(0 < stop - start <= longest for start, stop in found)
    for (_, stop), (start, after) in itertools.pairwise(found):
        assert start == stop - overlap and after > stop


def test_windows_that_would_not_advance_are_refused() -> None:
    with pytest.raises(ValueError, match="no windows"):
        windows.plan(10, 5, 5)


@given(st.integers(0, 300), st.sampled_from([4, 8]))
def test_frame_counts_are_raised_to_the_rule(frames: int, multiple: int) -> None:
    found = up_to(frames, multiple, plus=1)
    assert found % multiple == 1 and frames <= found < max(frames, 1) + multiple


def test_windows_are_blended_from_one_to_the_other() -> None:
    a, b = np.full((4, 2, 2, 3), 100, np.uint8), np.full((4, 2, 2, 3), 200, np.uint8)
    assert windows.blend(a, b)[:, 0, 0, 0].tolist() == [120, 140, 160, 180]
    assert np.array_equal(windows.blend(b, b), b) and windows.blend(a[:0], b[:0]).shape[0] == 0


class Jumping:
    """Each window is brighter on the left than the one before, whatever it is told."""

    def __init__(self) -> None:
        self.count = 0

    def fit_size(self, width: int, height: int) -> tuple[int, int]:
        return up_to(width, 32), up_to(height, 32)

    def fit_frames(self, frames: int) -> int:
        return up_to(frames, 8, plus=1)

    def encode(self, given: Conditions) -> Conditions:
        return given

    def generate(self, encoded: Conditions, noise: Noise, steps: int) -> Any:
        made = np.full_like(encoded.base, 100)
        made[:, :, ::2] += np.uint8(40 * self.count)
        self.count += 1
        return made


def test_a_generator_that_jumps_is_shown_without_a_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "match_colours", lambda made, base: made)
    tier = FullTier(Jumping(), SETTINGS["ltx"], seed=1)
    shown = list(tier.frames(segment(25), caption="", frame_rate=24.0, segment=0))
    steps = np.abs(np.diff(np.stack(shown)[:, 0, 0, 0].astype(int)))
    assert len(shown) == 25 and shown[-1][0, 0, 0] == 140 and steps.max() <= 4


# --- colours


def picture(frames: int) -> Any:
    """A base layer of broad areas whose brightness moves slowly, uint8 [T, 64, 96, 3]."""
    rng = np.random.default_rng(1)
    areas = rng.integers(60, 180, (1, 4, 6, 3)).repeat(16, 1).repeat(16, 2)
    ramp = np.linspace(0, 20, frames)[:, None, None, None]
    return (areas + ramp).astype(np.uint8)


def test_a_true_picture_is_left_alone() -> None:
    base = picture(9)
    assert np.abs(windows.match_colours(base, base).astype(int) - base).max() <= 1


def test_tint_contrast_and_drift_are_taken_back_and_detail_is_kept() -> None:
    base = picture(17)
    detail = np.random.default_rng(2).normal(0, 6, base.shape)
    drift = np.linspace(0, 15, 17)[:, None, None, None]
    made = (base - 110.0) * 1.2 + 110 + drift + np.array([9.0, -7.0, 3.0]) + detail
    found = windows.match_colours(np.clip(made, 0, 255).astype(np.uint8), base).astype(float)
    assert np.abs((found - base).mean((1, 2))).max() < 1.5
    assert found.std((0, 1, 2)) == pytest.approx((base + detail).std((0, 1, 2)), rel=0.03)
    assert np.corrcoef((found - base).ravel(), detail.ravel())[0, 1] > 0.95


def test_flat_pictures_have_no_contrast_to_correct() -> None:
    base = np.full((5, 16, 16, 3), 100, np.uint8)
    made = np.random.default_rng(3).integers(110, 130, base.shape, dtype=np.uint8)
    found = windows.match_colours(made, base)
    assert found.mean() == pytest.approx(100, abs=0.6)
    assert found.std() == pytest.approx(made.std(), rel=0.05)


# --- a generator that drifts


class Drifting:
    """Each window begins with the colours that the last one ended with, and adds to their error."""

    def __init__(self) -> None:
        self.asked: list[Conditions] = []
        self.noises: list[bytes] = []

    def fit_size(self, width: int, height: int) -> tuple[int, int]:
        return up_to(width, 32), up_to(height, 32)

    def fit_frames(self, frames: int) -> int:
        return up_to(frames, 8, plus=1)

    def encode(self, given: Conditions) -> Conditions:
        self.asked.append(given)
        return given

    def generate(self, encoded: Conditions, noise: Noise, steps: int) -> Any:
        self.noises.append(noise(4, 0).tobytes())
        error = 0.0
        if len(encoded.tail):
            start = encoded.base[: len(encoded.tail)].astype(float)
            error = float((encoded.tail - start).mean())
        drift = np.linspace(error, error + 12, len(encoded.base))[:, None, None, None]
        made = (encoded.base - 110.0) * 1.05 + 110 + drift
        return np.clip(made, 0, 255).astype(np.uint8)


def segment(frames: int) -> SegmentConditions:
    return SegmentConditions(
        width=90, height=60, frames=frames, base=picture(frames)[:, :60, :90], factor=1, step=1,
        crf=40.0,
    )  # fmt: skip


def test_colours_do_not_creep_over_ten_segments() -> None:
    backbone = Drifting()
    tier = FullTier(backbone, SETTINGS["ltx"], seed=1)
    for index in range(10):
        given = segment(57)
        shown = list(tier.frames(given, caption="", frame_rate=24.0, segment=index))
        error = (np.stack(shown).astype(float) - given.base).mean((1, 2, 3))
        assert len(shown) == 57 and shown[0].shape == (60, 90, 3)
        assert np.abs(error).max() < 1, index
    assert len(backbone.asked) == 10 * 6  # windows of 17 that share 9 frames
    assert len(set(backbone.noises)) == 60  # every window has noise of its own


def test_the_drifting_generator_creeps_when_nothing_is_corrected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(windows, "match_colours", lambda made, base: made)
    given = segment(57)
    shown = list(
        FullTier(Drifting(), SETTINGS["ltx"], seed=1).frames(
            given, caption="", frame_rate=24.0, segment=0
        )
    )
    assert np.stack(shown)[-1].mean() - given.base[-1].mean() > 20


def test_windows_begin_with_what_was_shown_and_are_padded_to_the_rule() -> None:
    backbone = Drifting()
    given = segment(20)
    shown = list(
        FullTier(backbone, SETTINGS["ltx"], seed=1).frames(
            given, caption="words", frame_rate=25.0, segment=0
        )
    )
    first, second = backbone.asked
    assert len(first.base) == 17 and not len(first.tail)
    assert len(second.base) == 17 and len(second.tail) == 9  # 12 frames are raised to 17
    before, both = second.tail[:, :60, :90].astype(int), np.stack(shown[8:17]).astype(int)
    assert np.abs(both - before).max() < 12 and len(shown) == 20
    assert (second.base[12:] == second.base[11]).all()
    assert first.base.shape[1:3] == (64, 96)
    assert (first.caption, first.frame_rate) == ("words", 25.0)


def test_large_pictures_are_drawn_smaller_and_enlarged() -> None:
    import dataclasses

    backbone = Drifting()
    settings = dataclasses.replace(SETTINGS["ltx"], max_pixels=60 * 90 // 4)
    tier = FullTier(backbone, settings, seed=1)
    shown = list(tier.frames(segment(3), caption="", frame_rate=24.0, segment=0))
    assert backbone.asked[0].base.shape[1:3] == (32, 64)
    assert shown[0].shape == (60, 90, 3)


def test_lines_are_rendered_at_the_drawn_size_and_held() -> None:
    import dataclasses

    backbone = Drifting()
    maps = np.zeros((2, 6, 9), np.uint8)
    maps[0, 2, :], maps[1, :, 4] = 1, 1
    points = np.full((6, 1, 17, 2), 0.5, np.float32)
    points[..., 0] = np.linspace(0.1, 0.9, 17)
    given = dataclasses.replace(
        segment(6), sketch=maps, sketch_step=3, points=points, visible=np.ones((6, 1, 17), np.uint8)
    )
    tier = FullTier(backbone, SETTINGS["ltx"], seed=1)
    list(tier.frames(given, caption="", frame_rate=24.0, segment=0))
    (asked,) = backbone.asked
    assert asked.sketch is not None and asked.skeleton is not None
    assert (asked.sketch[0, 20:30, :90] == 255).all() and (asked.sketch[2] == asked.sketch[0]).all()
    assert (asked.sketch[3, :60, 40:50] == 255).all() and not asked.sketch[:, 60:].any()
    assert asked.skeleton.max() > 200 and not asked.skeleton[:, :, 90:].any()


@pytest.mark.parametrize(("factor", "step", "kept"), [(1, 4, [0, 4]), (1, 2, []), (2, 4, [])])
def test_rare_full_size_frames_are_keyframes(factor: int, step: int, kept: list[int]) -> None:
    import dataclasses

    backbone = Drifting()
    base = picture(2)[:, : 60 // factor, : 90 // factor]
    given = dataclasses.replace(segment(7), base=np.repeat(base, 2, 0), factor=factor, step=step)
    tier = FullTier(backbone, SETTINGS["ltx"], seed=1)
    list(tier.frames(given, caption="", frame_rate=24.0, segment=0))
    assert np.flatnonzero(backbone.asked[0].kept[:7]).tolist() == kept
