"""Skeletons: keypoints round-trip, people are followed, and a walk is cheap."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semvc.entropy.coder import Counter, Encoder
from semvc.entropy.integers import code_bits
from semvc.entropy.reference import ReferenceDecoder
from semvc.errors import BitstreamError, UsageError
from semvc.signals.coco import make_skeleton, read_coco, to_coco
from semvc.signals.skeleton import (
    HIGH,
    JOINTS,
    LOW,
    MAX_FRAMES,
    MAX_PEOPLE,
    Skeleton,
    code_skeleton,
    decode_skeleton,
    encode_skeleton,
)


def walk(frames, people=1, *, fps=10, noise=0.4, seed=0):
    """Figures that walk across the frame, float64 [T, P, 17, 3] in 1/256, with detector noise."""
    rng = np.random.default_rng(seed)
    result = np.zeros((frames, people, JOINTS, 3))
    for p in range(people):
        tall, speed, phase = rng.uniform(60, 170), rng.uniform(-25, 25), rng.uniform(0, 6)
        left, top = rng.uniform(40, 200), rng.uniform(20, 80)
        for t in range(frames):
            swing = 0.12 * np.sin(phase + 2 * np.pi * 0.9 * t / fps) * tall
            x, y = left + speed * t / fps, top + abs(swing) * 0.1
            body = {
                0: (0, 0.06), 1: (0.02, 0.04), 2: (-0.02, 0.04), 3: (0.04, 0.05), 4: (-0.04, 0.05),
                5: (0.09, 0.18), 6: (-0.09, 0.18), 7: (0.11, 0.34), 8: (-0.11, 0.34),
                9: (0.12, 0.48), 10: (-0.12, 0.48), 11: (0.06, 0.52), 12: (-0.06, 0.52),
                13: (0.06, 0.75), 14: (-0.06, 0.75), 15: (0.06, 0.97), 16: (-0.06, 0.97),
            }  # fmt: skip
            reach = {7: 0.4, 8: -0.4, 9: 0.9, 10: -0.9, 13: -0.5, 14: 0.5, 15: -1.0, 16: 1.0}
            for joint, (dx, dy) in body.items():
                result[t, p, joint, 0] = x + dx * tall * 0.6 + reach.get(joint, 0) * swing
                result[t, p, joint, 1] = y + dy * tall
        result[:, p, :, 2] = np.where(rng.random((frames, 1)) < 0.02, 1, 2)
        hidden = rng.integers(0, JOINTS)
        result[frames // 3 : frames // 2, p, hidden, 2] = 0
    result[..., :2] += rng.normal(0, noise, result[..., :2].shape)
    return result


def quantised(figures, step=1):
    visible = figures[..., 2].astype(np.uint8)
    points = np.clip(np.rint(figures[..., :2]), LOW, HIGH).astype(np.int16)
    points[visible == 0] = 0
    return Skeleton(points, visible, np.ones(visible.shape[:2], np.uint8), step)


def round_trip(skeleton, frames):
    payload, check = encode_skeleton(skeleton, frames, 2)
    assert decode_skeleton(payload, frames, 2) == (skeleton, check)
    return payload, check


def random_skeleton(seed, count, people, step=1):
    rng = np.random.default_rng(seed)
    present = (rng.random((count, people)) < 0.7).astype(np.uint8)
    visible = rng.integers(0, 3, (count, people, JOINTS)).astype(np.uint8) * present[..., None]
    points = rng.integers(LOW, HIGH + 1, (count, people, JOINTS, 2)).astype(np.int16)
    points[visible == 0] = 0
    return Skeleton(points, visible, present, step)


@pytest.mark.parametrize("noise", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("people", [1, 3, 8])
def test_a_walk_costs_less_than_25_bytes_per_person_and_map(noise, people):
    skeleton = quantised(walk(50, people, noise=noise))
    payload, _ = round_trip(skeleton, 50)
    assert len(payload) / (50 * people) < 25


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([1, 2, 3, 13]), st.integers(0, 8), st.integers(1, 64), st.integers(0, 999))
def test_anything_allowed_round_trips(count, people, step, seed):
    frames = (count - 1) * step + 1
    round_trip(random_skeleton(seed, count, people, step), frames)


@pytest.mark.slow
def test_the_largest_skeleton_round_trips():
    skeleton = quantised(walk(MAX_FRAMES, MAX_PEOPLE, fps=60))
    round_trip(skeleton, MAX_FRAMES)


def test_three_coders_agree():
    skeleton = quantised(walk(20, 2), step=3)
    payload, check = round_trip(skeleton, 60)
    counter = Counter(2)
    assert code_skeleton(counter, skeleton, 60) == skeleton
    assert counter.check == check
    assert abs(counter.bits - 8 * len(payload)) <= 64
    reference = ReferenceDecoder(payload, 100_000, 2)
    assert code_skeleton(reference, None, 60) == skeleton


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80), st.integers(1, 6))
def test_garbage_is_reported_or_is_the_only_spelling_of_its_poses(payload, frames):
    try:
        skeleton, _ = decode_skeleton(payload, frames)
    except BitstreamError:
        return
    assert encode_skeleton(skeleton, frames)[0] == payload


def test_more_than_eight_people_are_damage():
    encoder = Encoder()
    code_bits(encoder, np.array([0]), 1, 6)
    code_bits(encoder, np.array([9]), 1, 4)
    with pytest.raises(BitstreamError, match="9 people"):
        decode_skeleton(encoder.finish(), 5)


def test_skeletons_that_break_a_rule_are_refused():
    good = random_skeleton(1, 3, 2)
    parts = (good.points, good.visible, good.present)

    def changed(number, array):
        return Skeleton(*(array if k == number else part for k, part in enumerate(parts)))

    with pytest.raises(TypeError):
        changed(0, good.points.astype(np.float32))
    for number, array in (
        (0, good.points.astype(np.int32)),
        (0, good.points[:, :1]),
        (0, np.full_like(good.points, HIGH + 1)),
        (0, np.ones_like(good.points)),
        (1, np.full_like(good.visible, 3)),
        (1, np.full_like(good.visible, 1)),
        (2, good.present * 2),
        (2, good.present[:0]),
    ):
        with pytest.raises(ValueError):
            changed(number, array)
    with pytest.raises(ValueError):
        Skeleton(*parts, 65)
    with pytest.raises(ValueError):
        encode_skeleton(good, 4)


def coco(figures, *, tracks=None, size=(512, 256)):
    scale = np.array([size[0] / 256, size[1] / 256, 1])
    entries = []
    for t, people in enumerate(figures):
        for p, person in enumerate(people):
            entry = {"image_id": t, "keypoints": (person * scale).ravel().tolist()}
            if tracks:
                entry["track_id"] = tracks[p]
            entries.append(entry)
    return entries


def test_coco_comes_back_as_coco():
    skeleton = quantised(walk(12, 2))
    text = json.dumps(to_coco(skeleton, start=30, size=(512, 256)))
    again = make_skeleton(read_coco(text), start=30, frames=12, step=1, size=(512, 256))
    assert again == skeleton


def test_people_without_a_track_are_followed():
    figures = walk(30, 3, seed=4)
    figures[:, :, :, 0] += np.array([-90, 0, 90])[None, :, None]
    shuffled = [figure[np.random.default_rng(t).permutation(3)] for t, figure in enumerate(figures)]
    size = (512, 256)
    followed = make_skeleton(
        read_coco(json.dumps(coco(shuffled))), start=0, frames=30, step=1, size=size
    )
    assert followed.present.shape == (30, 3)
    steps = abs(np.diff(followed.points[..., :5, :].astype(int), axis=0))
    known = (followed.visible[1:, :, :5] > 0) & (followed.visible[:-1, :, :5] > 0)
    assert steps[known].max() < 20


def test_of_too_many_people_the_longest_stay():
    figures = walk(6, 10)
    entries = [
        e for e in coco(figures, tracks=list(range(10))) if e["image_id"] or e["track_id"] > 1
    ]
    skeleton = make_skeleton(
        read_coco(json.dumps(entries)), start=0, frames=6, step=1, size=(512, 256)
    )
    assert skeleton.present.shape == (6, 8)
    assert skeleton.present.all()


def test_nobody_gives_no_skeleton_and_images_give_frame_numbers():
    poses = read_coco(
        json.dumps(
            {
                "images": [{"id": 70}, {"id": 50}, {"id": 90, "frame_index": 9}],
                "annotations": [
                    {"image_id": 70, "keypoints": [5, 5, 2] * 17},
                    {"image_id": 90, "keypoints": [1e6, -1e6, 1] * 17},
                    {"image_id": 50, "keypoints": [0, 0, 0] * 17},
                ],
            }
        )
    )
    assert list(poses) == [1, 9]
    assert make_skeleton(poses, start=2, frames=7, step=1, size=(100, 100)) is None
    clamped = make_skeleton(poses, start=9, frames=1, step=1, size=(100, 100))
    assert clamped.points[0, 0, 0].tolist() == [HIGH, LOW]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "{}",
        '{"annotations": 5}',
        "[5]",
        '[{"image_id": 0}]',
        '[{"image_id": "a", "keypoints": []}]',
        '[{"image_id": true, "keypoints": []}]',
        json.dumps([{"image_id": -1, "keypoints": [0, 0, 2] * 17}]),
        json.dumps([{"image_id": 0, "keypoints": [0, 0, 3] * 17}]),
        json.dumps([{"image_id": 0, "keypoints": [0, 0] * 17}]),
        json.dumps([{"image_id": 0, "track_id": -1, "keypoints": [0, 0, 2] * 17}]),
        '[{"image_id": 0, "keypoints": [' + "NaN, " * 50 + "2]}]",
        '[{"image_id": 0, "keypoints": [' + "1e400, " * 50 + "2]}]",
        '{"images": [{}], "annotations": []}',
        '{"images": 3, "annotations": []}',
        '{"images": [], "annotations": [{"image_id": 0, "keypoints": []}]}',
        "[" * 100_000,
    ],
)
def test_files_that_are_no_skeletons_are_usage_errors(text):
    with pytest.raises(UsageError):
        read_coco(text)
