"""Mask signal: coding, sizes, motion, and how well enlarged maps fit."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bench.masks import contours
from hostile import Wild
from hypothesis import given, settings
from hypothesis import strategies as st

from semvc.entropy.coder import Counter
from semvc.entropy.reference import ReferenceDecoder
from semvc.errors import BitstreamError
from semvc.signals.mask import (
    MAX_PIXELS,
    MaskObject,
    MaskTrack,
    code_masks,
    decode_masks,
    encode_masks,
)
from semvc.signals.maskfit import fit_masks, overlap_of, rendered
from semvc.train.mask_tables import logistic, procedural, samples


def cut(maps: Any, motion: Any, scale: int) -> MaskObject:
    """An object of whole maps, cut to its box."""
    rows = np.flatnonzero(maps.any(axis=(0, 2)))
    columns = np.flatnonzero(maps.any(axis=(0, 1)))
    bits = maps[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    present = bits.any(axis=(1, 2))
    motion = motion.astype(np.int16)
    motion[0] = 0
    motion[1:][~(present[1:] & present[:-1])] = 0
    return MaskObject(np.ascontiguousarray(bits), motion, int(rows[0]), int(columns[0]), scale)


@st.composite
def tracks(draw: st.DrawFn) -> tuple[MaskTrack, int, tuple[int, int]]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = (draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    frames, step = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    count = -(-frames // step)
    objects = []
    for _ in range(draw(st.integers(1, 3))):
        scale = draw(st.integers(1, 4))
        shape = (count, -(-size[0] // scale), -(-size[1] // scale))
        maps = (rng.random(shape) < draw(st.sampled_from((0.05, 0.5, 0.95)))).astype(np.uint8)
        maps[rng.random(count) < 0.3] = 0
        maps[-1, 0, 0] |= not maps.any()
        motion = rng.integers(-15, 16, (count, 2)) * rng.integers(0, 2)
        objects.append(cut(maps, motion, scale))
    return MaskTrack(tuple(objects), step), frames, size


@settings(max_examples=20)
@given(tracks(), st.integers(0, 2**32 - 1))
def test_masks_decode_to_themselves(
    case: tuple[MaskTrack, int, tuple[int, int]], check: int
) -> None:
    track, frames, size = case
    payload, after = encode_masks(track, frames, size, check)
    assert decode_masks(payload, frames, size, check) == (track, after)
    counter = Counter(check)
    code_masks(counter, track, frames, size)
    assert 8 * len(payload) < counter.bits + 40 and counter.check == after
    reference = ReferenceDecoder(payload, 1 << 20, check)
    assert code_masks(reference, None, frames, size) == track


def test_masks_that_do_not_fit_are_refused() -> None:
    bits = np.ones((2, 3, 4), np.uint8)
    good = MaskObject(bits, np.zeros((2, 2), np.int16), 1, 2, 4)
    hollow = bits.copy()
    hollow[:, 0] = 0
    gone = bits.copy()
    gone[1] = 0
    wrong: list[dict[str, Any]] = [
        {"bits": bits * 2},
        {"bits": bits[0]},
        {"bits": bits * 0},
        {"bits": hollow},
        {"motion": np.zeros((3, 2), np.int16)},
        {"motion": np.full((2, 2), 1, np.int16)},  # the first map follows nothing
        {"motion": np.array([[0, 0], [16, 0]], np.int16)},
        {"bits": gone, "motion": np.array([[0, 0], [1, 0]], np.int16)},
        {"scale": 17},
        {"top": -1},
    ]
    for change in wrong:
        with pytest.raises(ValueError):
            replace(good, **change)
    with pytest.raises(TypeError):
        replace(good, bits=bits > 0)
    for objects, step in (((), 1), ((good,) * 9, 1), ((good,), 65), ((good,), 0)):
        with pytest.raises(ValueError):
            MaskTrack(objects, step)
    track = MaskTrack((good,), 1)
    for frames, size in ((3, (64, 64)), (2, (12, 64)), (2, (64, 20))):
        with pytest.raises(ValueError):
            encode_masks(track, frames, size)


def test_the_number_of_pixels_is_bounded_before_any_is_read() -> None:
    side = 2048
    bits = np.ones((1, side, side), np.uint8)
    part = MaskObject(bits, np.zeros((1, 2), np.int16), 0, 0, 1)
    assert bits.size > MAX_PIXELS
    with pytest.raises(ValueError, match="pixels"):
        encode_masks(MaskTrack((part,), 1), 1, (side, side))


@pytest.mark.parametrize("seed", range(60))
def test_any_symbols_give_masks_or_an_error(seed: int) -> None:
    rng = random.Random(seed)
    coder, frames = Wild(rng, rng.choice((3, 10, 60, 400))), rng.choice((1, 5, 30))
    size = (rng.randrange(1, 60), rng.randrange(1, 60))
    try:
        made = code_masks(coder, None, frames, size)
    except BitstreamError:
        return
    assert decode_masks(coder.finish(), frames, size)[0] == made


def test_a_flipped_bit_is_an_error_or_other_masks() -> None:
    ids = procedural(1, 4, (96, 128))
    track = fit_masks(ids, step=1)
    assert track is not None
    payload, check = encode_masks(track, 4, (96, 128))
    for place in range(0, 8 * len(payload), 41):
        damaged = bytearray(payload)
        damaged[place >> 3] ^= 1 << (place & 7)
        try:
            found, other = decode_masks(bytes(damaged), 4, (96, 128))
        except BitstreamError:
            continue
        assert found != track and other != check


# --- fitting


@pytest.mark.parametrize("seed", range(3))
def test_maps_are_as_small_as_the_overlap_allows(seed: int) -> None:
    ids = procedural(seed, 8, (240, 426))
    track = fit_masks(ids, step=1)
    assert track is not None
    (part,) = track.objects
    assert overlap_of(part, ids) >= 0.95
    assert part.scale >= 2
    payload, _ = encode_masks(track, 8, (240, 426))
    # measured at 240 rows, where maps are finer for the same object than at 480
    assert len(payload) / 8 < 45


def test_several_objects_keep_their_order() -> None:
    ids = np.zeros((6, 120, 160), np.uint8)
    for t in range(6):
        ids[t, 10:50, 10 + 4 * t : 60 + 4 * t] = 2
        if t > 1:
            ids[t, 70:110, 90 - 2 * t : 130 - 2 * t] = 1
    track = fit_masks(ids, step=2)
    assert track is not None and track.step == 2
    assert [len(part.bits) for part in track.objects] == [3, 3]
    first, second = track.objects
    assert first.top * first.scale > 60 > second.top * second.scale
    assert first.present.tolist() == [False, True, True] and second.present.all()
    assert second.motion[1:, 0].tolist() == [0, 0]
    assert (second.motion[1:, 1] == round(-8 / second.scale)).all()


def test_no_object_gives_no_masks() -> None:
    assert fit_masks(np.zeros((4, 32, 32), np.uint8), step=1) is None


def test_rendered_masks_move_between_maps() -> None:
    ids = np.zeros((9, 96, 160), np.uint8)
    for t in range(9):
        ids[t, 30:70, 20 + 6 * t : 60 + 6 * t] = 1
    track = fit_masks(ids, step=4)
    assert track is not None
    for frame in range(9):
        found = rendered(track, frame, (96, 160))
        assert found.shape == (1, 96, 160) and found.dtype == np.uint8
        same, either = (found[0] & ids[frame]).sum(), (found[0] | ids[frame]).sum()
        assert same / either > 0.9, frame


def test_an_object_that_ends_is_held_until_the_next_map() -> None:
    ids = np.zeros((5, 64, 64), np.uint8)
    ids[:4, 10:40, 10:40] = 1
    track = fit_masks(ids, step=2)
    assert track is not None
    sizes = [int(rendered(track, frame, (64, 64)).sum()) for frame in range(5)]
    assert sizes[0] == sizes[1] == sizes[2] == sizes[3] > 800 and sizes[4] == 0


def test_contours_enclose_their_pixels() -> None:
    bits = np.zeros((5, 6), np.uint8)
    bits[1:4, 1:4] = 1
    bits[2, 2] = 0  # a hole has a contour of its own
    found = contours(bits)
    assert sorted(len(steps) for _, steps in found) == [4, 12]
    assert contours(bits * 0) == []
    assert len(contours(np.eye(3, dtype=np.uint8))) == 3


# --- training


def test_logistic_regression_finds_the_weights() -> None:
    rng = np.random.default_rng(2)
    features = rng.integers(0, 2, (40_000, 3)).astype(np.uint8)
    true = np.array([-1.0, 2.0, -0.5, 0.0])
    chance = 1 / (1 + np.exp(-(true[0] + features @ true[1:])))
    bits = (rng.random(len(features)) < chance).astype(np.uint8)
    assert np.abs(logistic(features, bits) - true).max() < 0.08


def test_samples_see_the_moved_map_before() -> None:
    bits = np.zeros((2, 4, 5), np.uint8)
    bits[0, 1:3, 0:2] = 1
    bits[1, 1:3, 3:5] = 1
    bits[:, 0, 0] = bits[:, 3, 4] = 1
    part = MaskObject(bits, np.array([[0, 0], [0, -3]], np.int16), 0, 0, 2)
    pixel, near, before, follows = samples(part)
    assert len(pixel) == 40 and near.shape == (40, 10) and before.shape == (40, 11)
    assert follows.tolist() == [False] * 20 + [True] * 20
    assert (before[:20] == 0).all()
    here = 20 + 1 * 5 + 3  # row 1, column 3 of the second map
    assert pixel[here] == 1 and before[here, 0] == bits[0, 1, 0] == 1
