"""Forward filling, sizes of base layers, and rendered maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from program import FAST, Call

from semvc.nets import conditioning


@pytest.mark.parametrize("step", [1, 2, 4, 8])
@pytest.mark.parametrize("frames", [1, 2, 7, 8, 9, 31])
def test_a_frame_holds_the_last_received_one(frames: int, step: int) -> None:
    received = list(range(0, frames, step))
    expected = []
    for t in range(frames):
        held = max(k for k, at in enumerate(received) if at <= t)
        expected.append([max(held - 1, 0), held, min(held + 1, len(received) - 1)])
    assert conditioning.forward_fill(frames, step).tolist() == expected
    assert conditioning.arrivals(frames, step) == len(received)


@pytest.mark.parametrize("factor", conditioning.FACTORS)
def test_the_factor_follows_from_the_size_of_the_base_layer(factor: int) -> None:
    for width in (9, 10, 15, 16, 17, 33, 97, 426, 854, 1919, 1920, 4096):
        for height in (1, 2, 9, 31, 240, 479, 480, 1080, 1081):
            base = conditioning.base_size(width, height, factor)
            assert conditioning.factor_of((width, height), base) == factor


@pytest.mark.parametrize("factor", conditioning.FACTORS)
def test_a_base_layer_is_even_and_barely_covers_the_picture(factor: int) -> None:
    for size in range(1, 200):
        base = conditioning.base_size(size, size, factor)[0]
        assert base % 2 == 0
        assert base * factor >= size > (base - 2) * factor


def test_a_size_that_no_factor_gives_has_none() -> None:
    assert conditioning.factor_of((854, 480), (300, 200)) is None


def test_a_base_layer_has_one_factor_in_every_picture_of_a_stream() -> None:
    for long in range(16, 4097):
        sizes = [conditioning.base_size(long, 16, factor) for factor in conditioning.FACTORS]
        assert len(set(sizes)) == 4
        assert [conditioning.factor_of((long, 16), size) for size in sizes] == [1, 2, 4, 8]
    assert conditioning.factor_of((8, 8), conditioning.base_size(8, 8, 8)) == 4  # as 4, not 8


@pytest.mark.parametrize("shape", [(8, 12), (16, 24), (5, 7), (3, 30), (20, 5), (1, 1)])
def test_a_map_covers_its_grid(shape: tuple[int, int]) -> None:
    bits = np.random.default_rng(5).integers(0, 2, (8, 12), np.uint8)
    found = conditioning.render_map(bits, *shape)
    (h, w), (height, width) = bits.shape, shape

    def cells(i: int, size: int, grid: int) -> slice:
        first = i * size // grid
        coarser = height < h or width < w
        return slice(first, max((i + 1) * size // grid, first + 1) if coarser else first + 1)

    expected = [
        [255 * bits[cells(y, h, height), cells(x, w, width)].max() for x in range(width)]
        for y in range(height)
    ]
    assert found.dtype == np.uint8
    assert found.tolist() == expected


def body(**where: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """One person of whom some keypoints (`k5=(x, y)`) are seen."""
    points, visible = np.zeros((1, 17, 2), np.float32), np.zeros((1, 17), np.uint8)
    for name, place in where.items():
        points[0, int(name[1:])], visible[0, int(name[1:])] = place, 1
    return points, visible


def test_a_limb_is_a_line_between_its_ends() -> None:
    drawn = conditioning.render_skeleton(*body(k5=(0.25, 0.5), k6=(0.75, 0.5)), (20, 40))
    assert (drawn[9:11, 10:30] == 255).all()
    assert drawn[:8].max() == drawn[12:].max() == drawn[:, :8].max() == drawn[:, 32:].max() == 0


@pytest.mark.parametrize("seen", [{}, {"k5": (0.2, 0.5)}, {"k5": (0.2, 0.5), "k9": (0.8, 0.5)}])
def test_a_limb_whose_ends_are_not_both_seen_is_not_drawn(seen: Any) -> None:
    assert conditioning.render_skeleton(*body(**seen), (20, 40)).max() == 0


def test_a_limb_may_have_no_length_or_leave_the_frame() -> None:
    drawn = conditioning.render_skeleton(
        *body(k5=(0.5, 0.5), k6=(0.5, 0.5), k11=(0.5, 9.0)), (20, 40)
    )
    assert drawn[10, 20] > 200
    assert drawn[:, :15].max() == 0


def test_no_people_give_an_empty_map() -> None:
    nobody = np.zeros((0, 17, 2), np.float32), np.zeros((0, 17), np.uint8)
    assert conditioning.render_skeleton(*nobody, (3, 4)).tolist() == [[0] * 4] * 3


def test_factors_of_the_base_layer_can_be_chosen(run: Call, clip: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.svc"
    assert run("encode", clip, target, *FAST, "--factor", "2", "--step", "4").code == 0
    header = json.loads(run("info", target, "--json").out)["header"]
    assert (header["width"], header["height"], header["base_size"]) == (64, 48, [32, 24])
    assert run("dump", target, tmp_path / "dump").code == 0
    with av.open(str(tmp_path / "dump" / "00000-base.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 6  # of 24
