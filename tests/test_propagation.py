"""Detail that goes from a segment's best frames to those between."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from semvc.nets import propagation
from semvc.nets.conditioning import SegmentConditions, Upsampler, enlarged
from semvc.nets.propagation import ANCHORS, Propagator, anchors_of, propagated

SIDE = 96


def picture(shift: int = 0) -> np.ndarray:
    """A textured picture that has moved to the right, uint8 [96, 96, 3]."""
    rng = np.random.default_rng(3)
    wide = cv2.GaussianBlur(rng.integers(0, 256, (SIDE, 2 * SIDE)).astype(np.float32), (0, 0), 1.2)
    wide = np.clip((wide - wide.mean()) * 2 + 128, 0, 255).astype(np.uint8)
    seen = wide[:, SIDE // 2 - shift : SIDE // 2 - shift + SIDE]
    return np.repeat(seen[..., None], 3, 2)


def blurred(frame: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(frame, (0, 0), 1.5)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    inner = np.s_[12:-12, 12:-12]
    return float(np.abs(a[inner].astype(float) - b[inner]).mean())


def test_frames_have_the_anchors_around_them() -> None:
    assert [anchors_of(k, 40) for k in (0, 1, 15, 16, 31, 32, 39)] == [
        [16], [0, 16], [0, 16], [], [16, 32], [], [32],
    ]  # fmt: skip
    assert anchors_of(3, 4) == [0]
    assert anchors_of(0, ANCHORS) == []


@pytest.mark.parametrize("flow_side", [SIDE, 40])
@pytest.mark.parametrize("shift", [0, 3])
def test_a_blurred_frame_gets_the_detail_of_an_anchor_that_moves(
    shift: int, flow_side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(propagation, "_FLOW_SIDE", flow_side)
    true, anchor = picture(shift), picture()
    made = Propagator(SIDE, SIDE)(blurred(true), [anchor])
    assert distance(made, true) < 0.5 * distance(blurred(true), true)


def test_two_anchors_are_no_worse_than_one() -> None:
    true = picture(2)
    propagator = Propagator(SIDE, SIDE)
    both = propagator(blurred(true), [picture(0), picture(4)])
    one = propagator(blurred(true), [picture(0)])
    assert distance(both, true) < 1.1 * distance(one, true)


def test_a_frame_without_likeness_stays_as_it_is() -> None:
    frame = np.full((SIDE, SIDE, 3), 200, np.uint8)
    assert np.array_equal(Propagator(SIDE, SIDE)(frame, [np.zeros_like(frame)]), frame)


def test_flat_pictures_stay_flat() -> None:
    frame = np.full((SIDE, SIDE, 3), 90, np.uint8)
    assert np.array_equal(Propagator(SIDE, SIDE)(frame, [frame, frame]), frame)


def test_colours_keep_their_differences() -> None:
    frame = blurred(picture(1)) // 2 + np.array([10, 40, 70], np.uint8)
    made = Propagator(SIDE, SIDE)(frame, [picture() // 2 + np.array([10, 40, 70], np.uint8)])
    assert not np.array_equal(made, frame)
    assert np.array_equal(np.diff(made.astype(int), axis=2), np.diff(frame.astype(int), axis=2))


def test_pictures_too_small_for_flow_are_left_alone() -> None:
    frame = picture()[:16, :64].copy()
    assert Propagator(64, 16)(frame, [frame]) is frame


@pytest.mark.parametrize("factor", [1, 2])
def test_received_frames_are_enlarged_with_their_detail(factor: int) -> None:
    base = np.stack([blurred(picture()) for _ in range(ANCHORS + 3)])
    base[0] = base[ANCHORS] = picture()
    size = SIDE * factor - 2
    given = SegmentConditions(size, size, len(base), base, factor, 1, 50.0)
    received, plain = Upsampler(given), Upsampler(replace(given, base=base[1:2]))
    wanted = received(ANCHORS)
    assert np.array_equal(propagated(base)[ANCHORS], base[ANCHORS])
    for k in (5, 1, ANCHORS + 2):
        assert distance(received(k), wanted) < 0.5 * distance(plain(0), wanted)
        assert np.array_equal(enlarged(propagated(base)[k], given), received(k))
