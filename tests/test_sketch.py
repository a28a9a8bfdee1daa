"""Sketches: edge maps round-trip exactly, and know how to use the base layer."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semvc.entropy.coder import Counter, Encoder
from semvc.entropy.mixing import BitMixer
from semvc.entropy.reference import ReferenceDecoder
from semvc.errors import BitstreamError
from semvc.signals import sketch as module
from semvc.signals.edges import extract_edges
from semvc.signals.guide import REACH, build_guide
from semvc.signals.sketch import (
    Sketch,
    SketchFrame,
    code_sketch,
    decode_sketch,
    encode_sketch,
)


def moving_shapes(frames, height, width):
    """Luma uint8 [T, H, W]: discs, bars and a slanted gradient that move at different speeds."""
    y, x = np.mgrid[:height, :width]
    result = []
    for t in range(frames):
        image = 60 + 40 * (x + y) / (height + width)
        image[np.hypot(y - height / 2, x - width / 4 - 2 * t) < height / 5] = 200
        image[(abs(x - 0.7 * width + t) < width / 20) & (y > height / 4)] = 20
        image[np.hypot(y - height / 4 - t, x - 0.8 * width) < height / 9] = 240
        result.append(image)
    return np.array(result, np.uint8)


def round_trip(sketch, frame):
    payload, check = encode_sketch(sketch, frame, 11)
    decoded, other = decode_sketch(payload, frame, 11)
    assert decoded == sketch
    assert other == check
    return payload, check


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5),
    st.sampled_from([1, 2, 3, 7, 16, 31]),
    st.sampled_from([1, 2, 5, 13, 32, 37]),
    st.sampled_from([(1, 1), (2, 3), (5, 4), (64, 16)]),
    st.integers(0, 2**32 - 1),
)
def test_maps_of_any_size_and_content_round_trip(count, height, width, rate, seed):
    rng = np.random.default_rng(seed)
    step, scale = rate
    frames = count * step - int(rng.integers(0, step))
    base = rng.integers(0, 256, (max(1, frames // 2), 9, 11), dtype=np.uint8)
    frame = SketchFrame(frames, height, width, base if seed % 3 else None, 2)
    shape = frame.shape(step, scale)
    maps = (rng.random(shape) < rng.choice([0, 0.05, 0.5, 1])).astype(np.uint8)
    round_trip(Sketch(maps, step, scale), frame)


def test_three_coders_agree():
    luma = moving_shapes(12, 96, 128)
    frame = SketchFrame(12, 96, 128, luma[:, ::2, ::2].copy())
    sketch = Sketch(extract_edges(luma[::3], (24, 32), density=0.1), 3, 4)
    payload, check = round_trip(sketch, frame)
    counter = Counter(11)
    assert code_sketch(counter, sketch, frame) == sketch
    assert counter.check == check
    assert abs(counter.bits - 8 * len(payload)) <= 64
    reference = ReferenceDecoder(payload, 100_000, 11)
    assert code_sketch(reference, None, frame) == sketch
    assert reference.check == check


def test_the_base_layer_makes_a_sketch_smaller():
    luma = moving_shapes(15, 180, 320)
    sketch = Sketch(extract_edges(luma[::5], (45, 80), density=0.06), 5, 4)
    assert sketch.maps.mean() > 0.02
    alone = len(encode_sketch(sketch, SketchFrame(15, 180, 320))[0])
    guided = len(encode_sketch(sketch, SketchFrame(15, 180, 320, luma[:, ::2, ::2]))[0])
    assert guided < 0.8 * alone


def test_a_blank_sketch_costs_a_few_bytes_and_is_not_empty():
    sketch = Sketch(np.zeros((15, 60, 107), np.uint8), 5, 8)
    payload, _ = round_trip(sketch, SketchFrame(75, 480, 854))
    assert 1 <= len(payload) < 60


def test_a_wrong_base_layer_never_raises_anything_but_damage():
    luma = moving_shapes(6, 48, 64)
    sketch = Sketch(extract_edges(luma[::2], (12, 16)), 2, 4)
    payload, _ = encode_sketch(sketch, SketchFrame(6, 48, 64, luma))
    other = SketchFrame(6, 48, 64, 255 - luma)
    with contextlib.suppress(BitstreamError):
        decode_sketch(payload, other)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60))
def test_garbage_is_reported_or_is_the_only_spelling_of_its_maps(payload):
    frame = SketchFrame(9, 33, 47, moving_shapes(9, 17, 24))
    try:
        sketch, _ = decode_sketch(payload, frame)
    except BitstreamError:
        return
    assert encode_sketch(sketch, frame)[0] == payload


def test_too_many_pixels_are_refused_before_they_are_allocated():
    encoder = Encoder()
    small = SketchFrame(1, 16, 16)
    code_sketch(encoder, Sketch(np.zeros((1, 16, 16), np.uint8), 1, 1), small)
    with pytest.raises(BitstreamError, match="pixels"):
        decode_sketch(encoder.finish(), SketchFrame(1024, 2304, 4096))


@pytest.mark.parametrize(
    ("maps", "step", "scale"),
    [
        (np.full((1, 2, 2), 2, np.uint8), 1, 1),
        (np.zeros((2, 2), np.uint8), 1, 1),
        (np.zeros((0, 2, 2), np.uint8), 1, 1),
        (np.zeros((1, 2, 2), np.int32), 1, 1),
        (np.zeros((1, 2, 2), np.uint8), 0, 1),
        (np.zeros((1, 2, 2), np.uint8), 65, 1),
        (np.zeros((1, 2, 2), np.uint8), 1, 17),
    ],
)
def test_arrays_that_are_no_sketch_are_refused(maps, step, scale):
    with pytest.raises(ValueError):
        Sketch(maps, step, scale)


def test_floats_are_refused_in_maps_and_base():
    with pytest.raises(TypeError):
        Sketch(np.zeros((1, 2, 2)), 1, 1)
    with pytest.raises(TypeError):
        build_guide(np.zeros((1, 8, 8)), 1, (1, 4, 4), 1)


def test_a_sketch_that_does_not_fit_its_segment_is_a_value_error():
    with pytest.raises(ValueError):
        encode_sketch(Sketch(np.zeros((2, 4, 4), np.uint8), 1, 4), SketchFrame(3, 16, 16))


def test_the_guide_finds_the_motion_of_the_base_layer():
    rng = np.random.default_rng(5)
    wide = rng.integers(0, 256, (64, 96), dtype=np.uint8)
    base = np.stack([wide[8:56, 8:72], wide[6:54, 11:75]])
    guide = build_guide(base, 1, (2, 48, 64), 1)
    inside = guide.motion[1, 8:40, 8:56]
    assert (inside == np.array([-2, 3])).all(axis=-1).mean() > 0.95
    assert abs(guide.motion).max() <= REACH


def test_the_guide_of_a_known_picture_never_changes():
    luma = moving_shapes(4, 40, 52)
    for size, digest in GUIDES.items():
        guide = build_guide(luma, 1, (2, *size), 2)
        found = tuple(int(part.astype(np.int64).sum()) for part in (guide.strength, guide.ridge))
        moved = int(abs(guide.motion).sum())
        assert (*found, moved) == digest


GUIDES = {(10, 13): (238, 138, 104), (40, 52): (3578, 1803, 5312), (64, 70): (8278, 4460, 9632)}


def test_every_neighbour_of_a_pixel_is_coded_in_an_earlier_wave():
    count, height, width = 3, 7, 9
    time = np.full((count, height, width), -1)
    for wave, (pixels, _) in enumerate(module._waves(count, height, width)):
        assert (time.reshape(-1)[pixels] == -1).all()
        time.reshape(-1)[pixels] = wave
    assert time.min() >= 0
    for t, y, x in np.ndindex(time.shape):
        for dy, dx in module._NEAR + module._FAR:
            if y + dy >= 0 and 0 <= x + dx < width:
                assert time[t, y + dy, x + dx] < time[t, y, x]
        if t:
            reach = REACH + 1
            before = time[
                t - 1, max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1
            ]
            assert before.max() < time[t, y, x]


def test_the_mixer_does_not_depend_on_the_order_inside_a_batch():
    rng = np.random.default_rng(2)
    contexts, select = rng.integers(0, 9, (2, 300)), rng.integers(0, 3, 300)
    bits = rng.integers(0, 2, 300)
    states = []
    for order in (np.arange(300), rng.permutation(300)):
        mixer = BitMixer([np.ones((9, 2), np.int64)] * 2, np.full((3, 2), 2000), memory=20)
        mixer.code(Counter(), bits[order], contexts[:, order], select[order])
        states.append((mixer._counts, mixer._weights))
    assert np.array_equal(states[0][0], states[1][0])
    assert np.array_equal(states[0][1], states[1][1])
    assert states[0][0].reshape(-1, 2).sum(axis=1).max() <= 21


def test_the_mixer_learns_which_family_to_trust():
    rng = np.random.default_rng(3)
    mixer = BitMixer([np.ones((2, 2), np.int64)] * 2, np.full((1, 2), 1400))
    costs = []
    for _ in range(60):
        bits = rng.integers(0, 2, 200)
        noise = rng.integers(0, 2, 200)
        counter = Counter()
        mixer.code(counter, bits, np.stack([bits ^ (rng.random(200) < 0.02), noise]), noise * 0)
        costs.append(counter.bits / 200)
    assert costs[0] > 0.9
    assert np.mean(costs[-10:]) < 0.2


def test_edges_are_thin_and_have_the_density_asked_for():
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (2, 40, 60)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    for density in (0.02, 0.06):
        maps = extract_edges(texture, (160, 240), density=density)
        assert maps.dtype == np.uint8
        assert maps.shape == (2, 160, 240)
        assert 0.7 * density < maps.mean() < 1.3 * density
    blocks = maps[:, :-1, :-1] + maps[:, 1:, :-1] + maps[:, :-1, 1:] + maps[:, 1:, 1:]
    assert (blocks == 4).mean() < 0.002


def test_flat_and_noisy_pictures_have_no_edges():
    rng = np.random.default_rng(0)
    assert extract_edges(np.full((2, 50, 50), 128, np.uint8), (25, 25)).sum() == 0
    noise = np.clip(rng.normal(128, 2, (2, 80, 80)), 0, 255).astype(np.uint8)
    assert extract_edges(noise, (20, 20)).mean() < 0.01


@pytest.mark.parametrize(
    ("size", "density"), [((51, 10), 0.04), ((0, 10), 0.04), ((10, 10), 0.0), ((10, 10), 0.6)]
)
def test_extraction_refuses_sizes_and_densities_out_of_range(size, density):
    with pytest.raises(ValueError):
        extract_edges(np.zeros((1, 50, 50), np.uint8), size, density=density)


def test_extraction_handles_the_smallest_pictures():
    assert extract_edges(np.zeros((0, 5, 5), np.uint8), (5, 5)).shape == (0, 5, 5)
    assert extract_edges(np.zeros((1, 1, 1), np.uint8), (1, 1)).shape == (1, 1, 1)
