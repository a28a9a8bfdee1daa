"""A decoder written from FORMAT.md alone gives what the program gives."""

from __future__ import annotations

import io
import zlib
from contextlib import closing

import numpy as np
import pytest
import stranger
import stranger_grain
from conformance import VECTORS

from semvc import decoder, profiles
from semvc.bitstream.container import StreamReader
from semvc.bitstream.headers import SectionType
from semvc.signals.caption import Caption, encode_caption
from semvc.signals.skeleton import Skeleton, encode_skeleton
from semvc.signals.sketch import Sketch, SketchFrame, encode_sketch
from semvc.signals.timing import Timing, encode_timing

S = SectionType


@pytest.mark.slow
@pytest.mark.parametrize("name", ["everything", "variable", "odd", "grain"])
def test_format_md_suffices_to_decode(name: str) -> None:
    reader = StreamReader(io.BytesIO((VECTORS / name / "stream.svc").read_bytes()))
    header = reader.header
    with closing(profiles.create(header.profile)) as profile:
        for segment in reader:
            timing, signals = decoder.unpack(profile, segment, header)
            runs = {
                kind: stranger.Run(segment.sections[kind])
                for kind in (S.TIMING, S.CAPTION, S.SKELETON, S.SKETCH, S.GRAIN)
                if kind in segment.sections
            }
            if timing is not None:
                assert stranger.timing(runs[S.TIMING], segment.frames) == list(timing.pts)
            if signals.caption is not None:
                assert stranger.caption(runs[S.CAPTION]) == signals.caption.text
            if signals.skeleton is not None:
                check_skeleton(runs[S.SKELETON], signals.skeleton)
            if signals.sketch is not None:
                luma = (signals.planes[0] >> 2).tolist()
                size = (header.height, header.width)
                step, scale, maps = stranger.sketch(
                    runs[S.SKETCH], segment.frames, size, luma, signals.base.temporal
                )
                assert (step, scale) == (signals.sketch.step, signals.sketch.scale)
                assert maps == signals.sketch.maps.tolist()
            if signals.grain is not None:
                assert stranger_grain.grain(runs[S.GRAIN]) == list(signals.grain.levels)
            check = 0
            for kind, run in runs.items():
                assert run.payload() == segment.sections[kind]
                check = zlib.crc32(np.array(run.symbols, "<u2").tobytes(), check)
            assert check & 0xFFFF == segment.state_check


@pytest.mark.parametrize("seed", range(4))
def test_wild_skeletons_are_read_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, people = 6, 3
    present = (rng.random((count, people)) < 0.8).astype(np.uint8)
    visible = rng.choice(3, (count, people, 17), p=(0.2, 0.3, 0.5)).astype(np.uint8)
    visible *= present[:, :, None]
    steps = rng.choice((0, 1, 3, 200), (count, people, 17, 2), p=(0.5, 0.3, 0.15, 0.05))
    points = np.clip(100 + np.cumsum(steps * rng.choice((-1, 1), steps.shape), 0), -64, 320)
    points = (points * (visible > 0)[..., None]).astype(np.int16)
    skeleton = Skeleton(points, visible, present, 2)
    check_skeleton(stranger.Run(encode_skeleton(skeleton, 12)[0]), skeleton)


@pytest.mark.parametrize("seed", range(4))
def test_wild_times_are_read_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = rng.choice((1, 2, 1001, 3003, 2**32 - 1, *range(50, 60)), 40)
    times = np.cumsum((int(rng.integers(-(2**46), 2**46)), *steps)).tolist()
    run = stranger.Run(encode_timing(Timing(tuple(times)))[0])
    assert stranger.timing(run, len(times) - 1) == times


@pytest.mark.parametrize(
    ("size", "base", "base_step"), [((30, 21), (12, 40), 4), ((9, 40), (30, 26), 1)]
)
def test_wild_sketches_are_read_alike(
    size: tuple[int, int], base: tuple[int, int], base_step: int
) -> None:
    rng = np.random.default_rng(base_step)
    luma = rng.integers(0, 256, (2, *base)).astype(np.uint8).repeat(2, 0)
    luma[1:, :, 3:] = luma[1:, :, :-3]
    frame = SketchFrame(8, *size, luma, base_step)
    maps = (rng.random(frame.shape(3, 1)) < 0.1).astype(np.uint8)
    run = stranger.Run(encode_sketch(Sketch(maps, 3, 1), frame)[0])
    assert stranger.sketch(run, 8, size, luma.tolist(), base_step) == (3, 1, maps.tolist())


def test_captions_of_any_letters_are_read_alike() -> None:
    text = "A man's dog, “Žofie”, runs \t past THE dog's man. 走る dog runs; a man's dog runs."
    assert stranger.caption(stranger.Run(encode_caption(Caption(text))[0])) == text


def check_skeleton(run: stranger.Run, skeleton: Skeleton) -> None:
    coded = stranger.Skeletons(run)
    assert coded.step == skeleton.step
    for present, visible, points in zip(
        skeleton.present, skeleton.visible, skeleton.points, strict=True
    ):
        assert coded.next_map() == (present.tolist(), visible.tolist(), points.tolist())
