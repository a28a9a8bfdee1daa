"""The golden vectors decode to the same integers everywhere, and to pictures within bounds."""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import conformance
import numpy as np
import pytest
import stranger_latent
from conformance import MODELS, VECTORS, describe, differences, rewrite
from numpy._core import _multiarray_umath as numpy_build

from semvc import decoder, profiles
from semvc.bitstream.container import Segment, StreamReader, verify
from semvc.bitstream.headers import ProfileId, SectionType, StreamHeader
from semvc.entropy.reference import MAX_SYMBOLS, ReferenceDecoder
from semvc.errors import BitstreamError, SemvcError
from semvc.media import av1
from semvc.signals.camera import code_camera
from semvc.signals.caption import code_caption
from semvc.signals.depth import code_depth
from semvc.signals.grain import code_grain
from semvc.signals.latentprior import read_prior
from semvc.signals.mask import code_masks
from semvc.signals.skeleton import code_skeleton
from semvc.signals.sketch import SketchFrame, code_sketch
from semvc.signals.timing import code_timing

NAMES = sorted(path.parent.name for path in VECTORS.glob("*/stream.svc"))
# by the range coder
CODED = ("TIMING", "CAPTION", "SKELETON", "SKETCH", "CAMERA", "DEPTH", "MASK", "GRAIN")
Json = dict[str, Any]


def stream(name: str) -> bytes:
    return (VECTORS / name / "stream.svc").read_bytes()


def expected(name: str) -> Json:
    wanted: Json = json.loads((VECTORS / name / "expect.json").read_text("utf-8"))
    del wanted["about"]
    return wanted


def smallest() -> bytes:
    return min((stream(name) for name in NAMES), key=len)


def parts(name: str) -> tuple[StreamHeader, list[Segment]]:
    reader = StreamReader(io.BytesIO(stream(name)))
    return reader.header, list(reader)


def test_every_kind_of_section_has_a_vector() -> None:
    kinds = {kind for name in NAMES for kind in parts(name)[0].sections}
    assert kinds >= {
        *(SectionType[name] for name in CODED),
        *(SectionType.BASE_AV1, SectionType.AUDIO_OPUS, SectionType.AUDIO_COPY),
        *(SectionType.KEYFRAME, SectionType.LATENT),
    }


def test_vectors_are_small() -> None:
    assert sum(path.stat().st_size for path in VECTORS.rglob("*")) < 400_000


@pytest.mark.parametrize("name", NAMES)
def test_a_vector_decodes_as_expected(name: str) -> None:
    assert differences(describe(stream(name)), expected(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_vector_that_is_parsed_and_written_again_is_the_same(name: str) -> None:
    assert rewrite(stream(name)) == stream(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_vector_verifies(name: str) -> None:
    assert verify(io.BytesIO(stream(name))).ok


CHANGES: dict[str, Callable[[Json], Any]] = {
    "a hash": lambda found: found["segments"][0]["signals"].update(base="0" * 64),
    "a base picture": lambda found: found["segments"][0]["base_planes"].update(sha256=""),
    "a state check": lambda found: found["segments"][0].update(state_check=1),
    "a header field": lambda found: found["header"].update(seed=2),
    "a missing signal": lambda found: found["segments"][0]["signals"].clear(),
    "a missing segment": lambda found: found["segments"].pop(),
    "a number of bytes": lambda found: found["container"].update(overhead_bytes=0),
    "a color": lambda found: found["segments"][0]["preview"]["last"].__setitem__(
        7, found["segments"][0]["preview"]["last"][7] + 1.5
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_comparer_sees(what: str) -> None:
    wanted = expected("scenes")
    found = copy.deepcopy(wanted)
    CHANGES[what](found)
    assert differences(found, wanted)
    assert differences(wanted, found)


def test_the_comparer_lets_colors_differ_a_little() -> None:
    wanted = expected("scenes")
    found = copy.deepcopy(wanted)
    colors = found["segments"][0]["preview"]["last"]
    colors[7] += 0.5
    assert differences(found, wanted) == []


# Damage


def test_every_prefix_of_the_smallest_vector_is_refused_quickly() -> None:
    raw = smallest()
    begun = time.process_time()
    for size in range(len(raw)):
        with pytest.raises(BitstreamError):
            list(StreamReader(io.BytesIO(raw[:size])))
    assert time.process_time() - begun < 0.05 * len(raw)


def test_every_flipped_bit_of_the_smallest_vector_is_noticed() -> None:
    raw = smallest()
    for place in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[place >> 3] ^= 1 << (place & 7)
        try:
            assert not verify(io.BytesIO(bytes(damaged))).ok, place
        except SemvcError:
            continue  # in the header: nothing can be read at all


def flips(data: bytes, step: int) -> list[bytes]:
    places = range(0, 8 * len(data), step)
    found = [bytearray(data) for _ in places]
    for damaged, place in zip(found, places, strict=True):
        damaged[place >> 3] ^= 1 << (place & 7)
    return [bytes(damaged) for damaged in found]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "step"), [("variable", 3), ("controlled", 193), ("odd", 5), ("moving", 41)]
)
def test_a_flipped_bit_that_no_checksum_covers_fails_the_state_check(
    name: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    header, segments = parts(name)
    with closing(profiles.create(header.profile)) as profile:
        planes = decoder.unpack(profile, segments[0], header)[1].planes
    monkeypatch.setattr(av1.SegmentDecoder, "decode", lambda *_, **__: planes)
    for kind in segments[0].sections.keys() & {SectionType[name] for name in CODED}:
        for payload in flips(segments[0].sections[kind], step):
            changed = with_payload(segments[0], kind, payload)
            with pytest.raises(BitstreamError):
                decoder.unpack(profile, changed, header)


def with_payload(segment: Segment, kind: SectionType, payload: bytes) -> Segment:
    return Segment(
        segment.index,
        segment.start,
        segment.frames,
        {**segment.sections, kind: payload},
        segment.state_check,
        segment.offset,
        segment.chunk_bytes,
    )


# Independence of the machine


def coding(timing: Any, signals: Any, segment: Segment, header: StreamHeader) -> dict[str, Any]:
    """Each coded signal with the function that codes it."""
    frames = segment.frames
    wanted = {"TIMING": (timing, partial(code_timing, frames=frames + 1))}
    if header.profile == ProfileId.CPSGD and signals.fallback is None:
        size = (header.height, header.width)
        wanted["CAPTION"] = (signals.caption, code_caption)
        wanted["CAMERA"] = (signals.camera, partial(code_camera, frames=frames))
        wanted["DEPTH"] = (signals.depth, partial(code_depth, count=len(signals.keyframes.places)))
        wanted["MASK"] = (signals.masks, partial(code_masks, frames=frames, size=size))
        wanted["GRAIN"] = (signals.grain, code_grain)
        return wanted
    signals = getattr(signals, "fallback", signals)
    luma = (signals.planes[0] >> 2).astype(np.uint8)
    frame = SketchFrame(frames, header.height, header.width, luma, signals.base.temporal)
    wanted["CAPTION"] = (signals.caption, code_caption)
    wanted["SKELETON"] = (signals.skeleton, partial(code_skeleton, frames=frames))
    wanted["SKETCH"] = (signals.sketch, partial(code_sketch, frame=frame))
    wanted["GRAIN"] = (signals.grain, code_grain)
    return wanted


@pytest.mark.parametrize("name", [name for name in NAMES if name != "latent"])
def test_the_reference_coder_reads_the_same_signals(name: str) -> None:
    header, segments = parts(name)
    with closing(profiles.create(header.profile)) as profile:
        decoded = [decoder.unpack(profile, segment, header) for segment in segments]
    for segment, (timing, signals) in zip(segments, decoded, strict=True):
        wanted = coding(timing, signals, segment, header)
        check = 0
        for name in CODED:
            kind = SectionType[name]
            if kind in segment.sections:
                coder = ReferenceDecoder(segment.sections[kind], MAX_SYMBOLS, check)
                signal, code = wanted[name]
                assert code(coder, None) == signal
                check = coder.check
        assert check & 0xFFFF == segment.state_check


def test_another_decoder_reads_the_same_latents() -> None:
    header, segments = parts("latent")
    prior = read_prior(MODELS / "tiny-codec")
    numbers = {n: getattr(prior.shape, n) for n in ("latents", "groups", "hyper", "hyper_levels")}
    arrays = {n.removeprefix("prior."): a.tolist() for n, a in prior.arrays().items()}
    with closing(profiles.create(header.profile, MODELS)) as profile:
        signals = [decoder.unpack(profile, segment, header)[1] for segment in segments]
    for segment, signal in zip(segments, signals, strict=True):
        payload = segment.sections[SectionType.LATENT]
        grid = signal.latent.shape[2:]
        found = stranger_latent.Segment(payload, segment.frames, grid, numbers, arrays)
        assert found.hyper == signal.hyper.tolist()
        assert found.latent == signal.latent.tolist()
        assert signal.latent.any() and signal.hyper.any()


def _slow_numpy() -> dict[str, str]:
    """Keep numpy from every instruction set that it could do without."""
    active = [name for name in numpy_build.__cpu_dispatch__ if numpy_build.__cpu_features__[name]]
    return {"NPY_DISABLE_CPU_FEATURES": " ".join(active)} if active else {}


MACHINES = {
    "one thread": {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "1"},
    "many threads": {"OPENBLAS_NUM_THREADS": "7", "OMP_NUM_THREADS": "7", "PYTHONHASHSEED": "2"},
    "an old processor": {**_slow_numpy(), "OPENBLAS_CORETYPE": "Nehalem"},
    "another place": {"TZ": "Asia/Kathmandu", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"},
}


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_another_machine_decodes_the_same_integers(machine: str) -> None:
    script = Path(conformance.__file__)
    files = [str(VECTORS / name / "stream.svc") for name in NAMES]
    roots = os.pathsep.join([str(script.parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script), *files],
        env={**os.environ, "PYTHONPATH": roots, **MACHINES[machine]},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name, line in zip(NAMES, done.stdout.splitlines(), strict=True):
        assert differences(json.loads(line), expected(name)) == []
