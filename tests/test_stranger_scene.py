"""A decoder of cameras, depth, masks and keyframes written from FORMAT.md alone agrees."""

from __future__ import annotations

import io
import zlib
from contextlib import closing

import numpy as np
import pytest
import stranger_scene as stranger
from conformance import VECTORS
from stranger import caption
from stranger_coder import Run

from semvc import decoder, profiles
from semvc.bitstream.container import StreamReader
from semvc.bitstream.headers import SectionType
from semvc.signals.camera import Camera, encode_camera
from semvc.signals.depth import Depth, encode_depth
from semvc.signals.mask import MaskObject, MaskTrack, encode_masks
from semvc.signals.maskfit import fit_masks

S = SectionType


def check_camera(run: Run, frames: int, camera: Camera) -> None:
    found = stranger.camera(run, frames)
    assert (found.focal, found.centre) == (camera.focal, camera.centre)
    bits = (camera.turn_bits, camera.move_bits, camera.inertia)
    assert (found.turn_bits, found.move_bits, found.inertia) == bits
    assert found.turns == camera.turns.tolist() and found.moves == camera.moves.tolist()


def check_masks(run: Run, frames: int, size: tuple[int, int], track: MaskTrack) -> None:
    step, objects = stranger.masks(run, frames, size)
    assert step == track.step and len(objects) == len(track.objects)
    for found, part in zip(objects, track.objects, strict=True):
        assert (found.scale, found.top, found.left) == (part.scale, part.top, part.left)
        assert found.maps == part.bits.tolist() and found.motion == part.motion.tolist()


@pytest.mark.parametrize("name", ["scene", "moving"])
def test_format_md_suffices_to_decode_a_scene(name: str) -> None:
    reader = StreamReader(io.BytesIO((VECTORS / name / "stream.svc").read_bytes()))
    header = reader.header
    with closing(profiles.create(header.profile)) as profile:
        for segment in reader:
            _, signals = decoder.unpack(profile, segment, header)
            if signals.fallback is not None:
                continue
            runs = {
                kind: Run(segment.sections[kind])
                for kind in (S.CAPTION, S.CAMERA, S.DEPTH, S.MASK)
                if kind in segment.sections
            }
            if signals.caption is not None:
                assert caption(runs[S.CAPTION]) == signals.caption.text
            check_camera(runs[S.CAMERA], segment.frames, signals.camera)
            factor, coarse, places, rest = stranger.keyframes(segment.sections[S.KEYFRAME])
            k = signals.keyframes
            assert (factor, coarse, tuple(places)) == (k.factor, k.crf, k.places)
            assert rest.endswith(k.obus)
            if signals.depth is not None:
                found = stranger.depth(runs[S.DEPTH], len(places))
                depth = signals.depth
                assert found == (depth.range, depth.shift, depth.grids.tolist())
            if signals.masks is not None:
                size = (header.height, header.width)
                check_masks(runs[S.MASK], segment.frames, size, signals.masks)
            check = 0
            for kind, run in runs.items():
                assert run.payload() == segment.sections[kind]
                check = zlib.crc32(np.array(run.symbols, "<u2").tobytes(), check)
            assert check & 0xFFFF == segment.state_check


@pytest.mark.parametrize("seed", range(6))
def test_wild_cameras_are_read_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    turns = rng.choice((0, 1, -3, 20, 300, 1 << 20), (8, 3), p=(0.4, 0.2, 0.2, 0.1, 0.05, 0.05))
    moves = turns[::-1] * (seed % 2)
    camera = Camera(
        1 + seed * 3000,
        turns.astype(np.int32),
        moves.astype(np.int32),
        6 + seed,
        21 if moves.any() else 0,
        seed % 4,
        (seed * 100 - 300, seed),
    )
    check_camera(Run(encode_camera(camera, 9 + seed)[0]), 9 + seed, camera)


@pytest.mark.parametrize("seed", range(3))
def test_wild_depth_is_read_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    smooth = np.cumsum(np.cumsum(rng.integers(-2, 3, (2, 9, 16)), 1), 2) + 90
    wild = rng.integers(0, 256, (2, 9, 16))
    grids = np.clip(np.where(seed == 2, wild, smooth), 0, 255) >> seed << seed
    depth = Depth(grids.astype(np.uint8), seed, seed)
    found = stranger.depth(Run(encode_depth(depth)[0]), 2)
    assert found == (depth.range, depth.shift, depth.grids.tolist())


def test_wild_masks_are_read_alike() -> None:
    rng = np.random.default_rng(5)
    ids = np.zeros((7, 40, 60), np.uint8)
    for t in range(7):
        ids[t, 5:20, 3 + 4 * t : 20 + 4 * t] = 1
        if t not in (2, 3):
            ids[t, 24 - t : 38 - t, 40:55] = 2
    ids[rng.random(ids.shape) < 0.02] = 2
    track = fit_masks(ids, step=1)
    assert track is not None
    check_masks(Run(encode_masks(track, 7, (40, 60))[0]), 7, (40, 60), track)
    noise = (rng.random((3, 6, 7)) < 0.5).astype(np.uint8)
    motion = np.array([[0, 0], [-15, 15], [7, -3]], np.int16)
    lone = MaskTrack((MaskObject(noise, motion, 2, 1, 3),) * 2, 4)
    check_masks(Run(encode_masks(lone, 12, (40, 60))[0]), 12, (40, 60), lone)
