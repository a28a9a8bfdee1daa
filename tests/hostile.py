"""Streams whose checksums hold and whose signals may break any rule, and what must hold for them.

Structure-aware: payloads are made by the coding functions themselves with symbols of our choice,
or cut, flipped, swapped and replaced inside valid segments; then the container is made anew.
"""

from __future__ import annotations

import contextlib
import functools
import io
import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from conformance import MODELS, VECTORS
from strategies import BROKEN_EDGES, EDGES, is_valid, mutate

from semvc import decoder
from semvc.bitstream.container import Segment, StreamReader, StreamWriter
from semvc.bitstream.headers import AUDIO_SECTIONS, ProfileId, SectionType, StreamHeader
from semvc.bitstream.latents import MAX_QUALITY, LatentSection
from semvc.entropy.coder import Encoder
from semvc.entropy.tables import Int32, Ints, TableSet
from semvc.errors import BitstreamError, LimitError, UnsupportedError
from semvc.media import av1, obu
from semvc.media.audioformat import AudioConfig
from semvc.profiles.cpsgd import Cpsgd
from semvc.profiles.cpsgd import Signals as SceneSignals
from semvc.profiles.disco import Disco
from semvc.profiles.s2vc import S2vc
from semvc.signals.audio import decode_audio, encode_audio
from semvc.signals.baselayer import decode_base_layer, encode_base_layer
from semvc.signals.camera import code_camera, encode_camera
from semvc.signals.caption import code_caption, encode_caption
from semvc.signals.depth import code_depth, encode_depth
from semvc.signals.grain import code_grain, encode_grain
from semvc.signals.keyframe import encode_keyframes
from semvc.signals.latent import LatentModel, Latents, encode_latents
from semvc.signals.latentprior import Prior, read_prior
from semvc.signals.mask import code_masks, encode_masks
from semvc.signals.skeleton import code_skeleton, encode_skeleton
from semvc.signals.sketch import SketchFrame, code_sketch, encode_sketch
from semvc.signals.timing import code_timing, decode_timing, encode_timing
from semvc.types import Runtime

S = SectionType
ALLOWED = (BitstreamError, LimitError, UnsupportedError)
CODED = (S.TIMING, S.CAPTION, S.SKELETON, S.SKETCH, S.CAMERA, S.DEPTH, S.MASK, S.GRAIN, S.LATENT)
SLOW = 5.0  # seconds of processor time that no case may take; measured: up to 0.6
MAX_SIDE, MAX_FRAMES = 96, 60  # of hostile headers, to keep a case short


@functools.cache
def signal_seeds() -> list[bytes]:
    """Intact streams to start from: the vectors, mostly the one that has every section."""
    whole = {path.parent.name: path.read_bytes() for path in VECTORS.glob("*/stream.svc")}
    often = [whole["everything"]] * 12 + [whole["moving"]] * 4 + [whole["latent"]] * 3
    return often + [whole[name] for name in sorted(whole)]


class Profiles:
    """A profile object of each kind; the stream's header says which is meant."""

    def __init__(self) -> None:
        self._disco, self._cpsgd, self._s2vc = Disco(), Cpsgd(), S2vc(MODELS)

    def of(self, header: StreamHeader) -> Disco | Cpsgd | S2vc:
        if header.profile == ProfileId.S2VC:
            self._s2vc.load(header, "preview", 1, Runtime(models_dir=MODELS))
            return self._s2vc
        return self._cpsgd if header.profile == ProfileId.CPSGD else self._disco

    def close(self) -> None:
        self._disco.close()
        self._cpsgd.close()
        self._s2vc.close()


class Wild:
    """A `SymbolCoder` that writes symbols of its own choice, and first symbols after `budget`.

    What it writes is a well-formed payload whose meaning may be forbidden.
    """

    def __init__(self, rng: random.Random, budget: int) -> None:
        self._rng, self._left, self._encoder = rng, budget, Encoder()

    @property
    def check(self) -> int:
        return self._encoder.check

    def code(
        self, values: Ints | None, count: int, tables: TableSet, index: Ints | None = None
    ) -> Int32:
        rows = np.zeros(count, np.int64) if index is None else index
        symbols = np.zeros(count, np.int32)
        if self._left > 0:
            style = self._rng.randrange(8)
            if style < 5:  # as the tables expect
                cdf = np.cumsum(tables.freqs[rows], axis=1)
                points = np.array([self._rng.randrange(1 << 24) for _ in range(count)])
                symbols = (cdf <= points[:, None]).sum(axis=1).astype(np.int32)
            elif style == 5:
                symbols[:] = tables.alphabet - 1
            elif style == 6:
                symbols[:] = [self._rng.randrange(tables.alphabet) for _ in range(count)]
        self._left -= count
        return self._encoder.code(symbols, count, tables, index)

    def finish(self) -> bytes:
        return self._encoder.finish()


def hostile_signals(raw: bytes, rng: random.Random) -> bytes:
    """The stream `raw` with other signals, or another header, and checksums that hold."""
    reader = StreamReader(io.BytesIO(raw))
    segments = list(reader)
    header = _header(reader.header, rng) if rng.random() < 0.25 else reader.header
    sink = io.BytesIO()
    writer = StreamWriter(sink, header)
    for segment in segments:
        kinds = [kind for kind in segment.sections if kind in header.sections]
        sections = {kind: segment.sections[kind] for kind in kinds}
        for kind in rng.sample(kinds, min(len(kinds), rng.choice((0, 1, 1, 1, 2)))):
            sections[kind] = _payload(kind, segment, header, rng)
        frames = min(segment.frames, header.segment_frames)
        if rng.random() < 0.1:
            frames = rng.randrange(1, header.segment_frames + 1)
        try:
            writer.write(frames, sections, segment.state_check)
        except LimitError:  # of a caption, most likely
            writer.write(frames, {}, 0)
    writer.finish()
    return sink.getvalue()


def check_signals(raw: bytes, profile: Profiles) -> list[str]:
    """Decode all there is; return the names of errors met, all of them declared ones.

    Whatever decodes has just one spelling. State checks are not looked at, to get further.
    """
    found: list[str] = []
    try:
        reader = StreamReader(io.BytesIO(raw))
        decoder.check_entropy(reader.header)
        if reader.header.audio:
            AudioConfig.from_bytes(reader.header.audio)
        segments = list(reader)
    except ALLOWED as error:
        return [type(error).__name__]
    for segment in segments:
        for step in (_check_timing, _check_sound, _check_pictures):
            try:
                step(segment, reader.header, profile)
            except ALLOWED as error:
                found.append(type(error).__name__)
    return found


def _check_timing(segment: Segment, header: StreamHeader, _: Profiles) -> None:
    if S.TIMING in header.sections:
        payload = segment.sections.get(S.TIMING, b"")
        timing, _ = decode_timing(payload, segment.frames + 1)
        assert encode_timing(timing)[0] == payload


def _check_sound(segment: Segment, _header: StreamHeader, _: Profiles) -> None:
    for kind in AUDIO_SECTIONS & segment.sections.keys():
        audio, _ = decode_audio(segment.sections[kind])
        assert encode_audio(audio)[0] == segment.sections[kind]


def _check_pictures(segment: Segment, header: StreamHeader, profiles: Profiles) -> None:
    profile: Any = profiles.of(header)
    signals, _ = profile.unpack(segment, header, 0)
    for kind, payload in _spelled(signals, segment, header).items():
        assert payload == segment.sections[kind], kind
    frame = next(iter(profile.synthesize(signals, segment, header)))
    assert frame.shape == (header.height, header.width, 3)


def _spelled(signals: Any, segment: Segment, header: StreamHeader) -> dict[S, bytes]:
    """The payloads that these signals are coded as."""
    if isinstance(signals, Latents):
        return {S.LATENT: encode_latents(signals, _prior())[0]}
    if isinstance(signals, SceneSignals):
        if signals.fallback is None:
            return _scene_spelled(signals, segment, header)
        signals = signals.fallback
    found = {S.BASE_AV1: encode_base_layer(signals.base, header.sequence_header)[0]}
    if signals.caption is not None:
        found[S.CAPTION] = encode_caption(signals.caption)[0]
    if signals.skeleton is not None:
        found[S.SKELETON] = encode_skeleton(signals.skeleton, segment.frames)[0]
    if signals.sketch is not None:
        luma = (signals.planes[0] >> 2).astype(np.uint8)
        size = (header.height, header.width)
        frame = SketchFrame(segment.frames, *size, luma, signals.base.temporal)
        found[S.SKETCH] = encode_sketch(signals.sketch, frame)[0]
    if signals.grain is not None:
        found[S.GRAIN] = encode_grain(signals.grain)[0]
    return found


def _scene_spelled(signals: SceneSignals, segment: Segment, header: StreamHeader) -> dict[S, bytes]:
    assert signals.camera is not None and signals.keyframes is not None
    frames, size = segment.frames, (header.height, header.width)
    found = {
        S.CAMERA: encode_camera(signals.camera, frames)[0],
        S.KEYFRAME: encode_keyframes(signals.keyframes, header.sequence_header)[0],
    }
    if signals.caption is not None:
        found[S.CAPTION] = encode_caption(signals.caption)[0]
    if signals.depth is not None:
        found[S.DEPTH] = encode_depth(signals.depth)[0]
    if signals.masks is not None:
        found[S.MASK] = encode_masks(signals.masks, frames, size)[0]
    if signals.grain is not None:
        found[S.GRAIN] = encode_grain(signals.grain)[0]
    return found


# Payloads


def _payload(kind: S, segment: Segment, header: StreamHeader, rng: random.Random) -> bytes:
    payload = segment.sections[kind]
    style = rng.randrange(10)
    if style < 3:
        return mutate(payload, rng)
    if style == 3:
        return rng.choice(list(segment.sections.values()))
    if style == 4:
        return rng.choice((b"\0", b"\xff", rng.randbytes(1))) * rng.choice((0, 1, 2, 40))
    if kind in CODED:
        return _wild(kind, segment, header, rng)
    if kind == S.BASE_AV1:
        return _base(payload, header, rng)
    if kind == S.KEYFRAME:  # a gap or two, then OBUs
        at = 2 + payload[1]
        head = bytearray(payload[:at])
        if rng.random() < 0.5:
            head[rng.randrange(at)] = rng.choice((0, 1, 17, 127, rng.randrange(256)))
        return bytes(head) + _base(b"\0" + payload[at:], header, rng)[1:]
    return _sound(payload, rng)


@functools.lru_cache(64)
def _luma(
    sequence: bytes, payload: bytes, size: tuple[int, int] | None, frames: int
) -> tuple[npt.NDArray[np.uint8] | None, int]:
    """What a base layer says to a sketch, or None if its header was changed too much."""
    try:
        base, _ = decode_base_layer(payload, sequence)
        coded = base.coded_frames(frames)
        planes = av1.decode_segment(
            base.sequence_header, base.obus, size or (1, 1), coded, isolate=False
        )
    except ALLOWED:
        return None, 1
    return (planes[0] >> 2).astype(np.uint8), base.temporal


@functools.cache
def _prior() -> Prior:
    return read_prior(MODELS / "tiny-codec")


def _wild_latents(segment: Segment, header: StreamHeader, rng: random.Random) -> bytes:
    """Three runs of one model, some with symbols of its tables, some with any."""
    height, width = (-(-side // 64) * 4 for side in (header.height, header.width))
    quality = rng.choice((0, MAX_QUALITY, rng.randrange(MAX_QUALITY + 1)))
    model = LatentModel(_prior(), (segment.frames, height, width), quality)
    runs = []
    for code in (model.code_intra, model.code_hypers, model.code_inters):
        coder = Wild(rng, rng.choice((0, 10, 400, 4000)))
        with contextlib.suppress(BitstreamError):
            code(coder, None)
        runs.append(coder.finish())
    if segment.frames == 1 and rng.random() < 0.9:
        runs[1:] = [b"", b""]
    if rng.random() < 0.1:
        rng.shuffle(runs)
    section = LatentSection(quality, runs[0], runs[1], runs[2])
    return bytes([rng.choice((section.quality, 255))]) + section.to_bytes()[1:]


def _wild(kind: S, segment: Segment, header: StreamHeader, rng: random.Random) -> bytes:
    if kind == S.LATENT:
        return _wild_latents(segment, header, rng)
    coder = Wild(rng, rng.choice((3, 10, 50, 400)))
    luma, step = None, 1
    if kind == S.SKETCH:
        base = segment.sections[S.BASE_AV1]
        luma, step = _luma(header.sequence_header, base, header.base_size, segment.frames)
    size = (header.height, header.width)
    frame = SketchFrame(segment.frames, header.height, header.width, luma, step)
    code: dict[S, Callable[[], Any]] = {
        S.TIMING: lambda: code_timing(coder, None, segment.frames + 1),
        S.CAPTION: lambda: code_caption(coder, None),
        S.SKELETON: lambda: code_skeleton(coder, None, segment.frames),
        S.SKETCH: lambda: code_sketch(coder, None, frame),
        S.CAMERA: lambda: code_camera(coder, None, segment.frames),
        S.DEPTH: lambda: code_depth(coder, None, segment.sections[S.KEYFRAME][1] + 1),
        S.MASK: lambda: code_masks(coder, None, segment.frames, size),
        S.GRAIN: lambda: code_grain(coder, None),
    }
    with contextlib.suppress(BitstreamError):  # then what was written so far is the case
        code[kind]()
    payload = coder.finish()
    return payload + rng.randbytes(1) if rng.random() < 0.1 else payload


def _base(payload: bytes, header: StreamHeader, rng: random.Random) -> bytes:
    """A base layer whose OBUs are moved about, or changed inside."""
    units = [whole for _, whole in obu.split_obus(payload[1:])]
    for _ in range(rng.randrange(0, 4)):
        at, other = rng.randrange(len(units)), rng.randrange(len(units))
        match rng.randrange(5):
            case 0:
                units[at], units[other] = units[other], units[at]
            case 1:
                units.insert(at, units[other])
            case 2:
                units[at] = mutate(units[at], rng)
            case 3:
                units[at] = units[at][:1] + rng.choice(EDGES + BROKEN_EDGES) + units[at][2:]
            case 4:
                units.insert(at, _sequence_header(header, rng))
    first = rng.choice((payload[0], rng.randrange(256)))
    return bytes([first]) + b"".join(units)


def _sequence_header(header: StreamHeader, rng: random.Random) -> bytes:
    changed = bytearray(header.sequence_header or b"\x0a\x01\0")
    changed[rng.randrange(2, len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _sound(payload: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(payload))
    edge = rng.choice(EDGES + BROKEN_EDGES)
    return rng.choice((edge + payload, payload + edge, payload[:at] + edge + payload[at:]))


def _header(header: StreamHeader, rng: random.Random) -> StreamHeader:
    """A header that is valid in itself, with one to three other fields."""
    while True:
        side = (rng.randrange(16, MAX_SIDE), rng.randrange(16, MAX_SIDE))
        sequence = bytearray(header.sequence_header)
        if sequence:  # profile s2vc has none
            sequence[rng.randrange(len(sequence))] ^= 1 << rng.randrange(8)
        changes: dict[str, Any] = {
            "width": side[0],
            "height": side[1],
            "base_size": rng.choice((None, side, (1, 1), (2, 2), (16, 16))),
            "segment_frames": rng.choice((header.segment_frames, 1, rng.randrange(1, MAX_FRAMES))),
            "sequence_header": rng.choice((b"", bytes(sequence), mutate(bytes(sequence), rng))),
            "audio": rng.choice((b"", b"\1", mutate(header.audio or b"\1\1\xc0\3\0\0", rng)[:60])),
            "time_base": rng.choice((None, Fraction(1, 90000))),
            "frame_rate": rng.choice((Fraction(1, 60), Fraction(240))),
            "sections": tuple(rng.sample(header.sections, rng.randint(1, len(header.sections)))),
        }
        names = rng.sample(sorted(changes), rng.choice((1, 1, 2, 3)))
        changed = replace(header, **{name: changes[name] for name in names})
        if is_valid(changed):
            return changed
