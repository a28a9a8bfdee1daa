"""Profile disco: a degraded video and optional control signals drive a generator.

After DiSCo (Wang et al., 2026): the encoder sends a spatially and temporally degraded video (the
base layer) and compact control signals, each with a codec of its own; the decoder fills the base
layer forward in time and lets a conditional diffusion model put the picture back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from semvc import weights
from semvc.bitstream.headers import ProfileId, SectionType, StreamHeader
from semvc.errors import BitstreamError, ModelError
from semvc.media import av1, color
from semvc.media.files import write_png
from semvc.media.writer import OutputOptions, VideoWriter
from semvc.nets import conditioning
from semvc.nets.conditioning import FACTORS, SegmentConditions, Upsampler
from semvc.nets.grain import GrainSynthesizer, measure_grain
from semvc.nets.propagation import Propagator, anchors_of
from semvc.profiles import Coded
from semvc.profiles.basesize import is_half_better, shrunk
from semvc.profiles.extracting import Extractors
from semvc.signals.baselayer import BaseLayer, decode_base_layer, encode_base_layer, rounded_crf
from semvc.signals.caption import Caption, decode_caption, encode_caption
from semvc.signals.coco import Poses, make_skeleton, read_coco, to_coco
from semvc.signals.grain import Grain, decode_grain, encode_grain, to_text
from semvc.signals.skeleton import MAX_STEP as SKELETON_STEP
from semvc.signals.skeleton import UNITS, Skeleton, decode_skeleton, encode_skeleton
from semvc.signals.sketch import (
    MAX_PIXELS,
    MAX_SCALE,
    MAX_STEP,
    Sketch,
    SketchFrame,
    decode_sketch,
    encode_sketch,
)
from semvc.types import Clip, EncodeOptions, Runtime, VideoInfo

if TYPE_CHECKING:
    from pathlib import Path

    from semvc.bitstream.segments import Segment
    from semvc.nets.restore import Restorer
    from semvc.profiles.fulltier import FullTier
    from semvc.types import UInt8

SECTIONS = (
    SectionType.CAPTION,
    SectionType.SKELETON,
    SectionType.SKETCH,
    SectionType.GRAIN,
    SectionType.BASE_AV1,
)
_BEST_LEVEL, _WORST_LEVEL = 35.0, 91.0  # crf of the base layer at full size, quality 63 and 0
_SAVED = 7.0  # crf steps that halving both sides of the picture is worth in bytes
_SWITCH = 70.0  # level above which the next smaller base layer is used
_MAX_CRF = 70.0
_LOOKED_FROM = 60.0  # level above which the content decides whether the next smaller one is used
_LOOKED_FACTOR = 2  # up to which, for the same: smaller layers were not measured
_LOOKED_SIDE = 240  # of the base layer at least, for the same
_MIN_VIDEO = 16  # luma samples of a side of the base layer's video in `dump`
_SKELETONS_PER_SECOND = 10.0
_MEASURED = 8  # frames of a segment in which its grain is measured
_SKETCHES_PER_SECOND, _SKETCH_SIDE, _SKETCH_DENSITY = 3.0, 80, 0.03


@dataclass(frozen=True, slots=True)
class Signals:
    """All that a segment says, integers only."""

    base: BaseLayer
    planes: color.Planes
    caption: Caption | None
    sketch: Sketch | None
    skeleton: Skeleton | None
    grain: Grain | None = None


class Disco:
    """The profile's encoder and decoder; one object serves one stream."""

    id: ClassVar[ProfileId] = ProfileId.DISCO
    notes: tuple[str, ...] = ()  # what the user should know of the models at work

    def __init__(self, models_dir: Path | None = None) -> None:
        del models_dir  # signals need no model here
        self._options = EncodeOptions()
        self._factor = self._step = 1
        self._rate = Fraction(24)
        self._sequence_header = b""
        self._poses: Poses = {}
        self._found = Extractors(self._options)
        self._small: tuple[tuple[int, int, int], UInt8] | None = None
        self._restorer: Restorer | None = None
        self._full: FullTier | None = None
        self._av1 = av1.SegmentDecoder()

    def close(self) -> None:
        """End the child process that decodes base layers."""
        self._av1.close()

    # --- analysis

    def begin(self, clip: Clip, options: EncodeOptions) -> dict[str, Any]:
        """Choose the base layer's factors from the first clip; return the header fields."""
        self._options = options
        level = _level(options.quality)
        self._rate = clip.info.frame_rate or Fraction(24)
        self._step = options.step or _step(clip, level)
        self._factor = options.factor or self._fitting(clip, level)
        small = self._degraded(clip, 0)
        crf = _crf(level, self._factor)
        self._sequence_header, _ = av1.encode_segment(
            small[:1], crf=crf, preset=options.preset, fps=self._rate / self._step
        )
        wanted = {SectionType.BASE_AV1}
        self._found.options = options
        if options.caption or self._found.writes_captions:
            wanted.add(SectionType.CAPTION)
        if options.sketch:
            wanted.add(SectionType.SKETCH)
        if options.grain:
            wanted.add(SectionType.GRAIN)
        if options.skeleton:
            wanted.add(SectionType.SKELETON)
            self._poses = read_coco(options.skeleton)
        elif self._found.finds_people:
            wanted.add(SectionType.SKELETON)
        return {
            "base_size": (small.shape[2], small.shape[1]),
            "sequence_header": self._sequence_header,
            "sections": tuple(kind for kind in SECTIONS if kind in wanted),
            "decoder_id": self._decoder_id(),
        }

    def _fitting(self, clip: Clip, level: float) -> int:
        """The spatial factor that suits a level and the first clip."""
        factor = _factor(level)
        sides = conditioning.base_size(clip.info.width, clip.info.height, factor)
        if level < _LOOKED_FROM or factor > _LOOKED_FACTOR or min(sides) < _LOOKED_SIDE:
            return factor
        sent, crf = clip.frames[:: self._step], _crf(level, factor)
        half = is_half_better(
            sent,
            factor,
            crf,
            saved=_SAVED,
            fps=self._rate / self._step,
            preset=self._options.preset,
        )
        return 2 * factor if half else factor

    def _decoder_id(self) -> bytes:
        try:
            return weights.for_profile("disco", "small", self._options.models_dir).decoder_id()
        except ModelError:
            return bytes(4)

    def encode(self, clip: Clip, start: int, quality: float, check: int) -> Coded:
        """Code one clip that begins at frame `start` at `quality`."""
        sections: dict[SectionType, bytes] = {}
        if caption := self._found.caption(clip, start):
            sections[SectionType.CAPTION], check = encode_caption(Caption(caption), check)
        skeleton = self._skeleton(clip, start)
        if skeleton is not None:
            frames = len(clip.frames)
            sections[SectionType.SKELETON], check = encode_skeleton(skeleton, frames, check)
        small = self._degraded(clip, start)
        crf = _crf(_level(quality), self._factor)
        header, obus = av1.encode_segment(
            small, crf=crf, preset=self._options.preset, fps=self._rate / self._step
        )
        base = BaseLayer(self._step, rounded_crf(crf), header, obus)
        count, height, width = small.shape[:3]
        planes: color.Planes | None = None
        if self._options.sketch or self._options.grain:
            planes = self._av1.decode(header, obus, (width, height), count)
        if self._options.sketch and planes is not None:
            frame = _sketch_frame(len(clip.frames), clip.frames.shape[1:3], base, planes)
            sketch = _sketch(clip, start, frame, self._found)
            sections[SectionType.SKETCH], check = encode_sketch(sketch, frame, check)
        if self._options.grain and planes is not None:
            lost = self._lost(clip, planes)
            if any(lost.levels):
                sections[SectionType.GRAIN], check = encode_grain(lost, check)
        payload, check = encode_base_layer(base, self._sequence_header, check)
        sections[SectionType.BASE_AV1] = payload
        self.notes = self._found.notes
        return Coded(sections, check)

    def _lost(self, clip: Clip, planes: color.Planes) -> Grain:
        """The grain that the base layer lacks of a clip, measured in some of its frames."""
        count = len(planes[0])
        places = sorted({count * (2 * k + 1) // (2 * _MEASURED) for k in range(_MEASURED)})
        needed = sorted({*places, *(a for k in places for a in anchors_of(k, count))})
        found = color.yuv420_to_rgb(tuple(p[needed] for p in planes))  # type: ignore[arg-type]
        base = dict(zip(needed, found, strict=True))
        height, width = clip.frames.shape[1:3]
        rows, columns = (side * self._factor for side in found.shape[1:3])
        propagator = Propagator(found.shape[2], found.shape[1])
        shown = []
        for k in places:
            frame = propagator(base[k], [base[a] for a in anchors_of(k, count)])
            shown.append(color.resize(frame[None], rows, columns)[0, :height, :width])
        return Grain(measure_grain([clip.frames[k * self._step] for k in places], shown))

    def _skeleton(self, clip: Clip, start: int) -> Skeleton | None:
        step = min(SKELETON_STEP, max(1, round(float(self._rate) / _SKELETONS_PER_SECOND)))
        poses = self._poses
        if self._found.finds_people:
            poses = self._found.poses(clip, start, step)
        if not poses:
            return None
        size = (clip.info.width, clip.info.height)
        return make_skeleton(poses, start=start, frames=len(clip.frames), step=step, size=size)

    def _degraded(self, clip: Clip, start: int) -> UInt8:
        """The base layer's input, uint8 [K, h, w, 3]; kept while a rate search tries again."""
        key = (start, self._factor, self._step)
        if self._small is None or self._small[0] != key:
            self._small = (key, shrunk(clip.frames[:: self._step], self._factor))
        return self._small[1]

    # --- sections to signals

    def unpack(self, segment: Segment, header: StreamHeader, check: int) -> tuple[Signals, int]:
        """Return a segment's signals and the chained check; BitstreamError if they are damaged."""
        caption = None
        if payload := segment.sections.get(SectionType.CAPTION):
            caption, check = decode_caption(payload, check)
        skeleton = None
        if payload := segment.sections.get(SectionType.SKELETON):
            skeleton, check = decode_skeleton(payload, segment.frames, check)
        if SectionType.BASE_AV1 not in segment.sections or header.base_size is None:
            raise BitstreamError("the segment has no base layer", section="BASE_AV1")
        if conditioning.factor_of((header.width, header.height), header.base_size) is None:
            raise BitstreamError(
                f"a base layer of {header.base_size} for a picture of"
                f" {header.width}x{header.height}",
                section="BASE_AV1",
            )
        payload = segment.sections[SectionType.BASE_AV1]
        base, _ = decode_base_layer(payload, header.sequence_header)
        count = base.coded_frames(segment.frames)
        planes = self._av1.decode(base.sequence_header, base.obus, header.base_size, count)
        sketch = None
        if payload := segment.sections.get(SectionType.SKETCH):
            frame = _sketch_frame(segment.frames, (header.height, header.width), base, planes)
            sketch, check = decode_sketch(payload, frame, check)
        lost = None
        if payload := segment.sections.get(SectionType.GRAIN):
            lost, check = decode_grain(payload, check)
        return Signals(base, planes, caption, sketch, skeleton, lost), check

    # --- synthesis

    def load(self, header: StreamHeader, tier: str, steps: int, runtime: Runtime) -> None:
        """Get ready to synthesize at a tier; ModelError if the model is missing or another one."""
        if tier == "preview":
            return
        if tier == "full" and not _has_generator(tier, runtime):
            from semvc.profiles import fulltier

            self._full = fulltier.load(header, runtime)
            self.notes = tuple(self._full.notes)
            return
        from semvc.nets import load
        from semvc.nets.restore import Restorer

        device, dtype = load.choose_device(runtime)
        ref = weights.for_profile("disco", tier, runtime.models_dir)
        if ref.decoder_id() != header.decoder_id and not runtime.any_decoder:
            named = weights.by_decoder(header.decoder_id, runtime.models_dir)
            what = header.decoder_id.hex() if named is None else named.id
            raise ModelError(
                f"the stream was made for decoder {what}, installed is {ref.id}"
                f" ({ref.decoder_id().hex()}); the stream itself is intact: --any-decoder"
                " decodes it with the installed one, --tier preview without any"
            )
        network = load.build(weights.resolve(ref, runtime.models_dir), device, dtype)
        self._restorer = Restorer(
            network, device=device, dtype=dtype, steps=steps, seed=header.seed
        )

    def synthesize(
        self, signals: Signals, segment: Segment, header: StreamHeader
    ) -> Iterator[UInt8]:
        """Yield the segment's frames, uint8 [H, W, 3] RGB."""
        given = conditions(signals, segment, header)
        if self._full is not None:
            caption = "" if signals.caption is None else signals.caption.text
            rate = float(header.frame_rate)
            yield from self._full.frames(
                given, caption=caption, frame_rate=rate, segment=segment.index
            )
            return
        received = Upsampler(given)
        held = conditioning.forward_fill(given.frames, given.step)[:, 1].tolist()
        frames: Iterator[UInt8] = (received(k) for k in held)
        if self._restorer is not None:
            frames = self._restorer.frames(given, segment.index, received)
        if signals.grain is None:
            yield from frames
            return
        size = (given.width, given.height)
        texture = GrainSynthesizer(signals.grain.levels, size, seed=header.seed)
        yield from (texture.apply(f, received(k)) for f, k in zip(frames, held, strict=True))

    def dump(self, signals: Signals, segment: Segment, header: StreamHeader, folder: Path) -> None:
        """Write the caption as text, the base layer as a video, each sketch map as a PNG."""
        stem = f"{segment.index:05d}"
        if signals.caption is not None:
            (folder / f"{stem}-caption.txt").write_text(signals.caption.text + "\n", "utf-8")
        if signals.skeleton is not None:
            size = (header.width, header.height)
            people = to_coco(signals.skeleton, start=segment.start, size=size)
            (folder / f"{stem}-skeleton.json").write_text(json.dumps(people), "utf-8")
        if signals.sketch is not None:
            for index, bits in enumerate(signals.sketch.maps):
                frame = index * signals.sketch.step
                write_png(folder / f"{stem}-sketch-{frame:04d}.png", bits * np.uint8(255))
        if signals.grain is not None:
            (folder / f"{stem}-grain.txt").write_text(to_text(signals.grain), "ascii")
        frames = color.yuv420_to_rgb(signals.planes)
        bigger = -(-_MIN_VIDEO // min(frames.shape[1:3]))  # players and encoders want some size
        frames = frames.repeat(bigger, 1).repeat(bigger, 2)
        rate = header.frame_rate / signals.base.temporal
        info = VideoInfo(frames.shape[2], frames.shape[1], rate, 1 / rate)
        options = OutputOptions(crf=8, force=True)
        with VideoWriter(folder / f"{stem}-base.mp4", info, options=options) as writer:
            for index, frame in enumerate(frames):
                writer.write(frame, index)


def _has_generator(tier: str, runtime: Runtime) -> bool:
    """Whether the user's own index has a generator of our kind for a tier, and wants it."""
    rows = () if runtime.full.backbone else weights.index(runtime.models_dir)
    return any((r.role, r.profile, r.tier) == ("generator", "disco", tier) for r in rows)


def conditions(signals: Signals, segment: Segment, header: StreamHeader) -> SegmentConditions:
    """Return what a generator is given of a segment's signals."""
    size = (header.width, header.height)
    factor = conditioning.factor_of(size, header.base_size or size) or 1  # `unpack` has checked it
    points, visible = _held_skeleton(signals.skeleton, segment.frames)
    return SegmentConditions(
        width=header.width,
        height=header.height,
        frames=segment.frames,
        base=color.yuv420_to_rgb(signals.planes),
        factor=factor,
        step=signals.base.temporal,
        crf=signals.base.crf,
        sketch=None if signals.sketch is None else signals.sketch.maps,
        sketch_step=1 if signals.sketch is None else signals.sketch.step,
        points=points,
        visible=visible,
    )


def _held_skeleton(
    skeleton: Skeleton | None, frames: int
) -> tuple[npt.NDArray[np.float32], UInt8] | tuple[None, None]:
    """Points as fractions of the frame and what is seen of them, held until the next map."""
    if skeleton is None:
        return None, None
    held = np.arange(frames) // skeleton.step
    points = skeleton.points[held].astype(np.float32) / np.float32(UNITS)
    return points, (skeleton.visible[held] > 0).astype(np.uint8)


def _sketch_frame(
    frames: int, size: tuple[int, ...], base: BaseLayer, planes: color.Planes
) -> SketchFrame:
    """What both ends know before the sketch: among it the base layer's luma, integers."""
    luma = (planes[0] >> 2).astype(np.uint8)
    return SketchFrame(frames, size[0], size[1], luma, base.temporal)


def _sketch(clip: Clip, start: int, frame: SketchFrame, found: Extractors) -> Sketch:
    """Extract the sketch of a clip at the default rate and size."""
    rate = float(clip.info.frame_rate or 24)
    step = min(MAX_STEP, max(1, round(rate / _SKETCHES_PER_SECOND)))
    scale = min(MAX_SCALE, max(1, round(min(frame.height, frame.width) / _SKETCH_SIDE)))
    count, height, width = frame.shape(step, scale)
    while count * height * width > MAX_PIXELS and step < MAX_STEP:
        step += 1
        count, height, width = frame.shape(step, scale)
    maps = found.edges(clip.frames[::step], start, (height, width), _SKETCH_DENSITY)
    return Sketch(maps, step, scale)


def _level(quality: float) -> float:
    """Map quality to the base layer's crf as it would be at full size (above 70: only smaller)."""
    return _BEST_LEVEL + (_WORST_LEVEL - _BEST_LEVEL) * (63 - quality) / 63


def _factor(level: float) -> int:
    for index, factor in enumerate(FACTORS):
        if level < _SWITCH + _SAVED * index or factor == FACTORS[-1]:
            return factor
    raise ValueError(level)


def _crf(level: float, factor: int) -> float:
    crf = level - _SAVED * FACTORS.index(factor)
    return min(_MAX_CRF, max(1.0, round(crf * 4) / 4))


def _step(clip: Clip, level: float) -> int:
    """Every how many frames one is sent: more rarely in still clips and at high rates."""
    luma = clip.frames[:, ::8, ::8].mean(3)
    motion = float(np.abs(np.diff(luma, axis=0)).mean()) if len(luma) > 1 else 0.0
    step = 1
    if (clip.info.frame_rate or 0) > 40 and level > _SWITCH:
        step = 2
    if motion < 0.2 and level > _SWITCH:
        step = min(8, step * 4)
    return step
