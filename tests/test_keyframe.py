"""Keyframes and their depth: payloads, bounds, fitting."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hostile import Wild
from hypothesis import given, settings
from hypothesis import strategies as st

from semvc.entropy.coder import Counter
from semvc.errors import BitstreamError
from semvc.media import av1
from semvc.signals.depth import (
    COLUMNS,
    ROWS,
    Depth,
    code_depth,
    decode_depth,
    encode_depth,
    fit_depth,
)
from semvc.signals.keyframe import Keyframes, decode_keyframes, encode_keyframes

NODES = ROWS * COLUMNS


@st.composite
def depths(draw: st.DrawFn) -> Depth:
    shift = draw(st.integers(0, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, spread = draw(st.integers(1, 4)), draw(st.sampled_from((1, 5, 255)))
    start = rng.integers(0, 256)
    nodes = np.clip(start + rng.integers(-spread, spread + 1, (count, ROWS, COLUMNS)), 0, 255)
    grids = (nodes >> shift << shift).astype(np.uint8)
    return Depth(grids, draw(st.integers(0, 7)), shift)


@settings(max_examples=25)
@given(depths(), st.integers(0, 2**32 - 1))
def test_depth_decodes_to_itself(depth: Depth, check: int) -> None:
    payload, after = encode_depth(depth, check)
    assert decode_depth(payload, len(depth.grids), check) == (depth, after)
    counter = Counter(check)
    code_depth(counter, depth, len(depth.grids))
    assert 8 * len(payload) < counter.bits + 40 and counter.check == after


def test_depth_that_does_not_fit_is_refused() -> None:
    grids = np.full((2, ROWS, COLUMNS), 64, np.uint8)
    good = Depth(grids, 2, 3)
    wrong: list[dict[str, Any]] = [
        {"grids": grids.astype(np.int16)},
        {"grids": grids[:, :8]},
        {"grids": grids[:0]},
        {"grids": grids.repeat(9, 0)},
        {"grids": grids + 1},  # no multiple of 8
        {"range": 8},
        {"shift": 5},
    ]
    for change in wrong:
        with pytest.raises(ValueError):
            replace(good, **change)
    with pytest.raises(TypeError):
        replace(good, grids=grids.astype(np.float32))
    with pytest.raises(ValueError):
        code_depth(Counter(), good, 3)


@pytest.mark.parametrize("seed", range(40))
def test_any_symbols_give_depth_or_an_error(seed: int) -> None:
    rng = random.Random(seed)
    coder, count = Wild(rng, rng.choice((2, 10, 400))), rng.randrange(1, 4)
    try:
        made = code_depth(coder, None, count)
    except BitstreamError:
        return
    assert decode_depth(coder.finish(), count)[0] == made


def test_fitted_depth_is_close_and_smooth_grids_are_cheap() -> None:
    rows, columns = np.mgrid[0:ROWS, 0:COLUMNS]
    inverse = 0.4 + 0.1 * rows + 0.01 * columns  # a floor
    depth = fit_depth(1 / inverse[None])
    assert depth.range == 1
    assert np.abs(1 / depth.depths()[0] - inverse).max() <= 2.0**-8
    assert len(encode_depth(depth)[0]) < NODES * 3 / 8
    rough = inverse + np.random.default_rng(1).normal(size=inverse.shape) * 0.05
    sizes = [len(encode_depth(fit_depth(1 / rough[None], shift))[0]) for shift in (0, 2, 4)]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
    far = fit_depth(np.full((1, ROWS, COLUMNS), 1e9))
    assert (far.grids == 0).all() and np.isfinite(far.depths()).all()
    near = fit_depth(np.full((1, ROWS, COLUMNS), 1e-3))
    assert near.range == 7 and (near.grids == 255).all()


# --- keyframes


@pytest.fixture(scope="module")
def coded() -> tuple[bytes, bytes]:
    pictures = np.random.default_rng(1).integers(0, 255, (2, 4, 4, 3)).astype(np.uint8)
    return av1.encode_segment(pictures.repeat(8, 1).repeat(8, 2), crf=40, preset=12)


@pytest.mark.parametrize("places", [(0,), (0, 1), (0, 130), (0, 9, 10, 1023)])
@pytest.mark.parametrize("shared", [True, False])
def test_keyframes_decode_to_themselves(
    coded: tuple[bytes, bytes], places: tuple[int, ...], shared: bool
) -> None:
    header, obus = coded
    keyframes = Keyframes(places, 2, 40, header, obus)
    stated = header if shared else b""
    payload, check = encode_keyframes(keyframes, stated, 7)
    assert check == 7
    assert decode_keyframes(payload, 1024, stated, 7) == (keyframes, 7)
    head = 2 + sum(1 + (b - a > 128) for a, b in itertools.pairwise(places))
    assert len(payload) == head + len(obus) + (0 if shared else len(header))


def test_keyframes_that_break_a_rule_are_refused(coded: tuple[bytes, bytes]) -> None:
    header, obus = coded
    for places in ((), (1,), (0, 0), (0, 5, 4), tuple(range(17))):
        with pytest.raises(ValueError):
            Keyframes(places, 1, 40, header, obus)
    for factor, crf in ((3, 40), (1, 6), (1, 71)):
        with pytest.raises(ValueError):
            Keyframes((0,), factor, crf, header, obus)
    good = encode_keyframes(Keyframes((0, 5), 1, 40, header, obus), header)[0]
    wrong = [
        b"",
        good[:1],
        good[:2],
        good[:3],
        good[:1] + b"\x10" + good[2:],
        good[:2] + b"\x80\x00" + good[3:],
        good[:3] + header + obus,  # stated by the stream
        good[:3] + header + header + obus,
        good[:3] + obus + b"\0",
        good[:3] + obus[:-1],
    ]
    for payload in wrong:
        with pytest.raises(BitstreamError):
            decode_keyframes(payload, 6, header)
    with pytest.raises(BitstreamError, match="keyframe 5 of 5"):
        decode_keyframes(good, 5, header)
    assert decode_keyframes(good, 6, header)[0].places == (0, 5)
