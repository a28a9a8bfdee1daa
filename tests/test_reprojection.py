"""What frames show without a model: warped keyframes, filled holes, moved objects."""

from __future__ import annotations

import numpy as np
import pytest
from scene import Scene

from semvc.nets.reprojection import SceneConditions, Stage, View, blend, filled, gathered, grown

WIDTH, HEIGHT = 96, 64


def conditions(scene: Scene, places: tuple[int, ...], *, masks: bool) -> SceneConditions:
    frames, shown = scene.render()
    poses = scene.poses()
    ids = np.zeros(frames.shape[:3], np.uint8)
    for k in range(scene.balls):
        ids[shown[:, k] > 0] = k + 1
    fx, fy, cx, cy = scene.intrinsics()
    depth = np.full((len(places), 9, 16), 5.0, np.float32)
    return SceneConditions(
        width=scene.width,
        height=scene.height,
        frames=scene.frames,
        keyframes=frames[list(places)],
        places=places,
        depths=depth,
        rotations=np.swapaxes(poses[:, :3, :3], 1, 2),
        positions=poses[:, :3, 3],
        intrinsics=np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]),
        crf=20,
        factor=1,
        ids=(lambda t: ids[t]) if masks else None,
    )


def error(made: object, true: object) -> float:
    return float(np.abs(np.asarray(made, float) - np.asarray(true, float)).mean())


def test_a_keyframe_shows_itself() -> None:
    scene = Scene(WIDTH, HEIGHT, 13, balls=0)
    frames = scene.render()[0]
    stage = Stage(conditions(scene, (0, 12), masks=False))
    for place in (0, 12):
        assert np.array_equal(stage.frame(place).preview(), frames[place])
    assert stage.frame(6).phase == 0.5 and stage.frame(12).phase == 0


def test_warping_is_better_than_holding_and_two_keyframes_better_than_one() -> None:
    scene = Scene(WIDTH, HEIGHT, 13, pan=0.4, dolly=0.3, balls=0)
    frames = scene.render()[0]
    one = Stage(conditions(scene, (0,), masks=False)).frame(9)
    two = Stage(conditions(scene, (0, 12), masks=False)).frame(9)
    held = error(frames[0], frames[9])
    single, pair = error(one.preview(), frames[9]), error(two.preview(), frames[9])
    assert pair < single < 0.7 * held
    both = np.maximum(two.before.valid, two.after.valid)
    assert one.before.valid.mean() < 0.95 < 0.99 < both.mean()


def test_objects_move_with_their_masks_and_leave_the_background() -> None:
    scene = Scene(WIDTH, HEIGHT, 13, pan=0.0, dolly=0.0, seed=2)
    frames, shown = scene.render()
    still = Stage(conditions(scene, (0,), masks=False)).frame(12).preview()
    moved = Stage(conditions(scene, (0,), masks=True)).frame(12)
    now = shown[12].any(0)
    assert (moved.known > 0).any() and np.array_equal(moved.known > 0, now)
    assert error(moved.preview()[now], frames[12][now]) < error(still[now], frames[12][now])
    left = shown[0].any(0) & ~now  # uncovered: the ball must not stay there
    assert error(moved.preview()[left], frames[12][left]) < error(still[left], frames[12][left])


def test_an_object_without_a_look_is_background() -> None:
    scene = Scene(WIDTH, HEIGHT, 5)
    given = conditions(scene, (0,), masks=True)
    ids = given.ids
    assert ids is not None
    stage = Stage(
        SceneConditions(
            **{
                **{name: getattr(given, name) for name in given.__dataclass_fields__},
                "ids": lambda t: ids(t) * np.uint8(t > 0),
            }
        )
    )
    found = stage.frame(4)
    assert (found.ids > 0).any() and not found.known.any()


def test_gathered_colors_follow_size_and_place() -> None:
    keyframe = np.zeros((60, 80, 3), np.uint8)
    source = np.zeros((60, 80), bool)
    source[10:30, 10:30] = True
    keyframe[10:30, 10:20], keyframe[10:30, 20:30] = (200, 0, 0), (0, 0, 200)
    target = np.zeros((60, 80), bool)
    target[15:45, 40:70] = True
    out = np.zeros((60, 80, 3), np.float32)
    out[target] = gathered(keyframe, source, target)
    assert np.allclose(out[30, 42:53], (200, 0, 0), atol=1)
    assert np.allclose(out[30, 58:68], (0, 0, 200), atol=1)


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (48, 64), (33, 70)])
def test_holes_are_filled_with_what_surrounds_them(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    image = rng.uniform(100, 120, (*size, 3)).astype(np.float32)
    valid = np.ones(size, np.float32)
    valid[size[0] // 3 :, size[1] // 3 : size[1] // 2 + 1] = 0
    broken = image.copy()
    broken[valid == 0] = 0
    found = filled(broken, valid)
    if valid.any():
        assert np.allclose(found[valid == 1], image[valid == 1], atol=1e-3)
        assert found.min() > 99 and found.max() < 121
    else:
        assert np.array_equal(found, broken)


def test_blending_trusts_what_is_valid() -> None:
    shape = (4, 4)
    white = View(np.full((*shape, 3), 255, np.float32), np.ones(shape, np.float32))
    black = View(np.zeros((*shape, 3), np.float32), np.zeros(shape, np.float32))
    assert blend(white, black, 0.9).min() > 250
    both = View(black.image, white.valid)
    assert np.allclose(blend(white, both, 0.25), 0.75 * 255, atol=0.1)
    neither = View(white.image, black.valid)
    assert np.allclose(blend(neither, black, 0.25), 0.75 * 255, atol=0.1)


def test_masks_grow_on_all_sides() -> None:
    mask = np.zeros((9, 9), bool)
    mask[4, 4] = True
    assert grown(mask, 2)[2:7, 2:7].all() and grown(mask, 2).sum() == 25
    assert np.array_equal(grown(mask, 0), mask)
