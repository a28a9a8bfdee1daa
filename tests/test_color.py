"""Pixels keep their colour, grey stays grey, resizing is exact where it can be."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from hypothesis import given, settings
from hypothesis import strategies as st

from semvc.errors import MediaError
from semvc.media import color
from semvc.types import ColorInfo

PRIMARIES = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]
GREYS = [(g, g, g) for g in (0, 1, 16, 100, 127, 128, 200, 254, 255)]
WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}


def solid(rgb: tuple[int, int, int], pixels: str, matrix: int, full: bool) -> av.VideoFrame:
    """A picture of one colour, its samples computed here from H.273."""
    kr, kb = WEIGHTS[matrix]
    red, green, blue = (c / 255 for c in rgb)
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)
    bits = 10 if "10" in pixels else 8
    top, unit = (1 << bits) - 1, 1 << (bits - 8)
    values = [luma * top if full else (219 * luma + 16) * unit]
    values += [c * top + (1 << (bits - 1)) if full else (224 * c + 128) * unit for c in chroma]
    picture = av.VideoFrame(34, 18, pixels)
    kind = np.uint16 if bits > 8 else np.uint8
    for plane, value in zip(picture.planes, values, strict=True):
        size = plane.buffer_size // np.dtype(kind).itemsize
        plane.update(np.full(size, min(top, round(value)), kind).tobytes())
    picture.colorspace, picture.color_range = matrix, 2 if full else 1
    picture.color_primaries = picture.color_trc = 1
    return picture


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", WEIGHTS)
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv444p10le", "yuv420p10le"])
def test_primaries_and_greys_are_right_for_every_matrix_and_range(
    pixels: str, matrix: int, full: bool
) -> None:
    scaler = VideoReformatter()
    for rgb in PRIMARIES + GREYS:
        picture = solid(rgb, pixels, matrix, full)
        info = color.picture_color(picture)
        assert (info.matrix, info.full_range) == (matrix, full)
        out = color.picture_to_rgb(picture, info, height=18, width=34, scaler=scaler)
        assert np.abs(out.astype(int) - rgb).max() <= 1
        if rgb in GREYS:
            assert (out.max(axis=2) == out.min(axis=2)).all()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", WEIGHTS)
def test_output_samples_are_right_for_every_matrix_and_range(matrix: int, full: bool) -> None:
    info, scaler = ColorInfo(1, 1, matrix, full), VideoReformatter()
    for rgb in PRIMARIES + GREYS:
        frame = np.broadcast_to(np.array(rgb, np.uint8), (18, 34, 3))
        got = color.rgb_to_picture(frame, info, "yuv420p", scaler=scaler)
        want = solid(rgb, "yuv420p", matrix, full)
        for a, b in zip(got.planes, want.planes, strict=True):
            assert abs(bytes(a)[0] - bytes(b)[0]) <= 1


def test_an_unspecified_matrix_follows_the_size_as_in_players() -> None:
    small, large = av.VideoFrame(720, 576, "yuv420p"), av.VideoFrame(1280, 720, "yuv420p")
    for picture in (small, large):
        picture.colorspace = picture.color_primaries = picture.color_trc = 2
    assert color.picture_color(small) == ColorInfo(6, 6, 6, False)
    assert color.picture_color(large) == ColorInfo(1, 1, 1, False)


def test_full_range_formats_and_grey_pictures_are_recognised() -> None:
    assert color.picture_color(av.VideoFrame(64, 64, "yuvj420p")).full_range
    assert color.picture_color(av.VideoFrame(64, 64, "gray")).full_range
    assert color.picture_color(av.VideoFrame(64, 64, "gbrp")) == ColorInfo()


def test_a_matrix_that_swscale_lacks_is_refused() -> None:
    picture = av.VideoFrame(64, 64, "yuv420p")
    picture.colorspace = 8  # YCgCo
    with pytest.raises(MediaError, match="matrix 8"):
        color.picture_color(picture)


def test_base_layer_planes_bring_every_grey_back_within_one() -> None:
    grey = np.arange(256, dtype=np.uint8)[None, :, None, None].repeat(3, 3).repeat(5, 2)
    y, u, v = color.rgb_to_yuv420(grey)
    assert (u == 512).all()
    assert (v == 512).all()
    assert (y.min(), y.max()) == (64, 940)
    back = color.yuv420_to_rgb((y, u, v)).astype(int)
    assert (np.ptp(back, axis=3) == 0).all()
    assert np.abs(back - grey).max() == 1  # 8 bits have 220 steps for 256 greys


def test_base_layer_planes_are_shown_in_the_steps_of_8_bits() -> None:
    luma = np.arange(64, 941, dtype=np.uint16)[None, None]
    neutral = np.full((1, 1, (luma.size + 1) // 2), 512, np.uint16)
    back = color.yuv420_to_rgb((luma, neutral, neutral))
    assert len(np.unique(back)) == 220
    assert (np.diff(back[0, 0, :, 1].astype(int)) >= 0).all()


@pytest.mark.parametrize("size", [(7, 5), (16, 16), (1, 1), (2, 3)])
def test_base_layer_planes_bring_flat_colours_back_within_one(size: tuple[int, int]) -> None:
    for rgb in PRIMARIES:
        flat = np.broadcast_to(np.array(rgb, np.uint8), (2, *size, 3))
        planes = color.rgb_to_yuv420(np.ascontiguousarray(flat))
        assert planes[1].shape == (2, (size[0] + 1) // 2, (size[1] + 1) // 2)
        assert np.abs(color.yuv420_to_rgb(planes).astype(int) - flat).max() <= 1


sides = st.integers(1, 70)


@settings(max_examples=25, deadline=None)
@given(sides, sides, sides, sides)
def test_resizing_keeps_flat_pictures_and_has_the_size_asked_for(
    h: int, w: int, height: int, width: int
) -> None:
    flat = np.full((2, h, w, 3), (10, 128, 250), np.uint8)
    out = color.resize(flat, height, width)
    assert out.shape == (2, height, width, 3)
    assert (out == (10, 128, 250)).all()


def test_shrinking_averages_and_does_not_alias() -> None:
    stripes = np.zeros((1, 64, 64, 1), np.uint8)
    stripes[:, :, ::2] = 255
    assert np.abs(color.resize(stripes, 16, 16)[:, 4:-4, 4:-4].astype(int) - 128).max() <= 3


def test_shrinking_and_growing_back_keeps_a_smooth_picture(frames: Any) -> None:
    small = color.resize(frames[:2], 32, 48)
    error = color.resize(small, 64, 96).astype(float) - frames[:2]
    assert 10 * np.log10(65025 / np.mean(error**2)) > 27


def test_resizing_does_not_depend_on_how_many_frames_come_together(frames: Any) -> None:
    whole = color.resize(frames[:6], 23, 31)
    parts = np.concatenate([color.resize(frames[i : i + 1], 23, 31) for i in range(6)])
    assert np.abs(whole.astype(int) - parts).max() <= 1
    assert (whole == color.resize(frames[:6], 23, 31)).all()


@pytest.mark.parametrize("bad", [(0, 4), (4, 0)])
def test_resizing_to_nothing_is_refused(bad: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="cannot resize"):
        color.resize(np.zeros((1, 4, 4, 3), np.uint8), *bad)


@pytest.mark.parametrize("transfer", [color.PQ, color.HLG])
def test_tone_mapping_keeps_grey_grey_and_order(transfer: int) -> None:
    ramp = np.linspace(0, 65535, 200).astype(np.uint16)[None, :, None].repeat(3, 2)
    out = color.tone_map(ramp, transfer).astype(int)
    assert (np.ptp(out, axis=2) <= 1).all()
    assert (np.diff(out[0, :, 1]) >= 0).all()
    assert out[0, 0, 1] == 0
    assert out[0, -1, 1] > 250
