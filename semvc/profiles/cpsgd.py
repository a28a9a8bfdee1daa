"""Profile cpsgd: keyframes, a camera path, depth and masks stand for the motion of a scene.

After CPSGD (Zhang et al., 2026): background motion is sent as the camera's trajectory, foreground
motion as sparse masks, appearance as keyframes; a diffusion model that is conditioned on them makes
the frames. Here each keyframe also has a coarse grid of depth, so that it can be shown from any
pose, even without a model. A segment whose camera cannot be found is coded by profile disco.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from semvc import weights
from semvc.bitstream.headers import ProfileId, SectionType, StreamHeader
from semvc.errors import BitstreamError, ModelError, UsageError
from semvc.media import av1, color
from semvc.media.files import write_png
from semvc.nets import conditioning
from semvc.nets.grain import GrainSynthesizer, measure_grain
from semvc.nets.reprojection import SceneConditions, Stage
from semvc.profiles import Coded, keyframing
from semvc.profiles.disco import Disco
from semvc.profiles.disco import Signals as DiscoSignals
from semvc.profiles.findings import Finder, Findings
from semvc.signals.baselayer import decode_base_layer, encode_base_layer
from semvc.signals.camera import UNITS, Camera, decode_camera, encode_camera, poses, to_tum
from semvc.signals.camerafit import Path as CameraPath
from semvc.signals.camerafit import choose_camera
from semvc.signals.caption import Caption, decode_caption, encode_caption
from semvc.signals.depth import COLUMNS, ROWS, Depth, decode_depth, encode_depth, fit_depth
from semvc.signals.grain import Grain, decode_grain, encode_grain, to_text
from semvc.signals.keyframe import (
    MAX_CRF,
    MIN_CRF,
    Keyframes,
    decode_keyframes,
    encode_keyframes,
)
from semvc.signals.mask import MAX_STEP, MaskTrack, decode_masks, encode_masks
from semvc.signals.maskfit import fit_masks, rendered
from semvc.types import Clip, EncodeOptions, Runtime

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from semvc.bitstream.segments import Segment
    from semvc.nets.scene_restore import SceneRestorer
    from semvc.types import UInt8

    Float32 = npt.NDArray[np.float32]

SCENE = (SectionType.CAMERA, SectionType.DEPTH, SectionType.MASK, SectionType.KEYFRAME)
SECTIONS = (SectionType.BASE_AV1, *SCENE)  # the longest last: its length is not written
_BEST_LEVEL, _WORST_LEVEL = 16.0, 92.0  # crf of keyframes at full size, quality 63 and 0
_SAVED = 12.0  # crf steps that halving both sides of the picture is worth in bytes
_SWITCH = 58.0  # level above which the next smaller keyframes are used
_MAX_FACTOR = 4
_FEWEST_MASKS, _MOST_MASKS = 2.0, 6.0  # maps a second, quality 0 and 63
_MASK_UNIT = 31  # of `dump`: steps of grey between objects
_DEPTH_UNIT = 1000  # of `dump`: values of the picture in a scene depth


@dataclass(frozen=True, slots=True)
class Signals:
    """All that a segment says, integers only; with `fallback`, that is all there is."""

    caption: Caption | None
    camera: Camera | None
    depth: Depth | None
    masks: MaskTrack | None
    keyframes: Keyframes | None
    planes: color.Planes
    fallback: DiscoSignals | None = None
    grain: Grain | None = None


@dataclass(slots=True)
class _Known:
    """What analysis found in the clip that starts at `start`, and what was made of it so far."""

    start: int
    findings: Findings
    camera: Camera
    footage: keyframing.Footage
    trials: dict[bool, keyframing.Trial]  # by whether depth is sent
    tracks: dict[int, MaskTrack | None]  # by step


class Cpsgd:
    """The profile's encoder and decoder; one object serves one stream."""

    id: ClassVar[ProfileId] = ProfileId.CPSGD

    def __init__(self, models_dir: Path | None = None) -> None:
        self._options = EncodeOptions(profile="cpsgd")
        self._rate = Fraction(24)
        self._sequence_header = b""
        self._base_header = b""
        self._finder: Finder | None = None
        self._known: _Known | None = None
        self._av1 = av1.SegmentDecoder()
        self._disco = Disco(models_dir)
        self._restorer: SceneRestorer | None = None
        self._load_disco: Callable[[], None] | None = None

    def close(self) -> None:
        """End the child processes that decode AV1."""
        self._av1.close()
        self._disco.close()

    # --- analysis

    def begin(self, clip: Clip, options: EncodeOptions) -> dict[str, Any]:
        """Look at the first clip and the user's files; return the header fields."""
        if options.sketch or options.skeleton:
            raise UsageError("--sketch and --skeleton go with --profile disco, not cpsgd")
        self._options = options
        self._rate = clip.info.frame_rate or Fraction(24)
        if self._finder is None:
            self._finder = Finder(options.camera, options.masks)
        base = self._disco.begin(clip, options)
        self._base_header = base["sequence_header"]
        factor, crf = _coarseness(options.quality)
        picture = _shrunk(clip.frames[:1], factor)
        self._sequence_header, _ = av1.encode_segment(picture, crf=crf, preset=options.preset)
        wanted = (SectionType.GRAIN, *SECTIONS) if options.grain else SECTIONS
        if options.caption:
            wanted = (SectionType.CAPTION, *wanted)
        return {
            "base_size": base["base_size"],
            "sequence_header": self._sequence_header,
            "sections": wanted,
            "decoder_id": self._decoder_id(),
        }

    def _decoder_id(self) -> bytes:
        try:
            return weights.for_profile("cpsgd", "small", self._options.models_dir).decoder_id()
        except ModelError:
            return bytes(4)

    def encode(self, clip: Clip, start: int, quality: float, check: int) -> Coded:
        """Code one clip that begins at frame `start`; by profile disco if it has no camera path."""
        known = self._look(clip, start)
        if known is None:
            return self._fallen(clip, start, quality, check)
        sections: dict[SectionType, bytes] = {}
        if self._options.caption:
            caption = Caption(self._options.caption)
            sections[SectionType.CAPTION], check = encode_caption(caption, check)
        frames, size = len(clip.frames), (clip.info.height, clip.info.width)
        keyframes, depth = self._pictured(clip, known, quality)
        sections[SectionType.CAMERA], check = encode_camera(known.camera, frames, check)
        if depth is not None:
            sections[SectionType.DEPTH], check = encode_depth(depth, check)
        masks = self._masks(known, quality)
        if masks is not None:
            sections[SectionType.MASK], check = encode_masks(masks, frames, size, check)
        if self._options.grain:
            lost = self._lost(clip, keyframes)
            if any(lost.levels):
                sections[SectionType.GRAIN], check = encode_grain(lost, check)
        payload, check = encode_keyframes(keyframes, self._sequence_header, check)
        sections[SectionType.KEYFRAME] = payload
        return Coded(sections, check)

    def _fallen(self, clip: Clip, start: int, quality: float, check: int) -> Coded:
        """The clip as profile disco codes it, its base layer's header written out."""
        coded = self._disco.encode(clip, start, quality, check)
        base, _ = decode_base_layer(coded.sections[SectionType.BASE_AV1], self._base_header)
        payload, _ = encode_base_layer(base, self._sequence_header)
        return Coded({**coded.sections, SectionType.BASE_AV1: payload}, coded.check)

    def _look(self, clip: Clip, start: int) -> _Known | None:
        """What is known of the clip; looked for once, however often its coding is tried."""
        if self._finder is None:
            raise ValueError("begin was not called")
        findings = self._finder.find(clip, start)
        if findings is None:
            return None
        if self._known is None or self._known.start != start:
            found = findings.path
            size = (clip.info.width, clip.info.height)
            path = CameraPath(
                found.rotations,
                found.positions(),
                found.focal,
                size,
                found.centre,
                findings.nearest,
            )
            camera = choose_camera(path)
            rotations, positions = poses(camera, len(clip.frames))
            footage = keyframing.Footage(
                clip.frames,
                rotations,
                positions,
                camera.focal / UNITS,
                _centre(camera, size),
                findings.ids(),
            )
            self._known = _Known(start, findings, camera, footage, {}, {})
        return self._known

    def _trial(self, known: _Known, *, deep: bool) -> keyframing.Trial:
        if deep not in known.trials:
            places = keyframing.candidates(len(known.footage.frames))
            depths = np.ones((len(places), ROWS, COLUMNS), np.float32)
            if deep:
                depths = fit_depth(known.findings.depths(places)).depths()
            known.trials[deep] = keyframing.Trial(known.footage, depths)
        return known.trials[deep]

    def _pictured(
        self, clip: Clip, known: _Known, quality: float
    ) -> tuple[Keyframes, Depth | None]:
        """Choose and code the keyframes; their depth, if it takes out more error than its bytes."""
        factor, crf = _coarseness(quality)
        header, obus = self._coded(clip, (0,), factor, crf)
        size = conditioning.base_size(clip.info.width, clip.info.height, factor)
        again = color.yuv420_to_rgb(self._av1.decode(header, obus, size, 1))
        shown = _enlarged(again, factor, clip.frames.shape[1:3])
        pair = keyframing.small(np.concatenate((shown, clip.frames[:1]))).astype(np.float32)
        coding_error = float(((pair[0] - pair[1]) ** 2).mean())
        moving = bool(known.camera.moves.any()) and known.findings.deep
        trial = self._trial(known, deep=moving)
        places = trial.choose(coding_error)
        depth = None
        if moving:
            depth = fit_depth(known.findings.depths(places))
            plain = self._trial(known, deep=False)
            better = plain.error(places) - trial.error(places)
            share = len(encode_depth(depth)[0]) / (len(obus) * len(places))
            if better <= coding_error * share:
                depth, places = None, plain.choose(coding_error)
        if len(places) > 1:
            header, obus = self._coded(clip, places, factor, crf)
        stated = min(MAX_CRF, max(MIN_CRF, round(crf)))
        return Keyframes(places, factor, stated, header, obus), depth

    def _lost(self, clip: Clip, keyframes: Keyframes) -> Grain:
        """The grain that the keyframes lack of a clip."""
        size = conditioning.base_size(clip.info.width, clip.info.height, keyframes.factor)
        count, places = len(keyframes.places), list(keyframes.places)
        planes = self._av1.decode(keyframes.sequence_header, keyframes.obus, size, count)
        pictures = color.yuv420_to_rgb(planes)
        shown = _enlarged(pictures, keyframes.factor, clip.frames.shape[1:3])
        return Grain(measure_grain(list(clip.frames[places]), list(shown)))

    def _coded(
        self, clip: Clip, places: tuple[int, ...], factor: int, crf: float
    ) -> tuple[bytes, bytes]:
        pictures = _shrunk(clip.frames[list(places)], factor)
        return av1.encode_segment(pictures, crf=crf, preset=self._options.preset)

    def _masks(self, known: _Known, quality: float) -> MaskTrack | None:
        ids = known.footage.ids
        if ids is None:
            return None
        often = _FEWEST_MASKS + (_MOST_MASKS - _FEWEST_MASKS) * quality / 63
        step = min(MAX_STEP, max(1, round(float(self._rate) / often)))
        if step not in known.tracks:
            known.tracks[step] = fit_masks(ids, step=step)
        return known.tracks[step]

    # --- sections to signals

    def unpack(self, segment: Segment, header: StreamHeader, check: int) -> tuple[Signals, int]:
        """Return a segment's signals and the chained check; BitstreamError if they are damaged."""
        sections = segment.sections
        if SectionType.BASE_AV1 in sections:
            if sections.keys() & set(SCENE):
                raise BitstreamError("a base layer beside a scene", section="BASE_AV1")
            fallback, check = self._disco.unpack(segment, header, check)
            return Signals(None, None, None, None, None, fallback.planes, fallback), check
        if not {SectionType.KEYFRAME, SectionType.CAMERA} <= sections.keys():
            raise BitstreamError("the segment has neither keyframes and camera nor a base layer")
        caption = depth = masks = None
        if payload := sections.get(SectionType.CAPTION):
            caption, check = decode_caption(payload, check)
        camera, check = decode_camera(sections[SectionType.CAMERA], segment.frames, check)
        payload = sections[SectionType.KEYFRAME]
        keyframes, _ = decode_keyframes(payload, segment.frames, header.sequence_header)
        if payload := sections.get(SectionType.DEPTH):
            depth, check = decode_depth(payload, len(keyframes.places), check)
        if payload := sections.get(SectionType.MASK):
            size = (header.height, header.width)
            masks, check = decode_masks(payload, segment.frames, size, check)
        lost = None
        if payload := sections.get(SectionType.GRAIN):
            lost, check = decode_grain(payload, check)
        small = conditioning.base_size(header.width, header.height, keyframes.factor)
        planes = self._av1.decode(
            keyframes.sequence_header, keyframes.obus, small, len(keyframes.places)
        )
        return Signals(caption, camera, depth, masks, keyframes, planes, grain=lost), check

    # --- synthesis

    def load(self, header: StreamHeader, tier: str, steps: int, runtime: Runtime) -> None:
        """Get ready to synthesize at a tier; ModelError if the model is missing or another one.

        Segments that fell back are decoded by disco's model of the same tier, which no stream of
        this profile names: it is loaded with the first of them.
        """
        if tier == "preview":
            return
        ref = weights.for_profile("cpsgd", tier, runtime.models_dir)
        from semvc.nets import load
        from semvc.nets.scene_restore import SceneRestorer, build

        named = header.decoder_id
        if named not in (ref.decoder_id(), bytes(4)) and not runtime.any_decoder:
            known = weights.by_decoder(named, runtime.models_dir)
            raise ModelError(
                f"the stream was made for decoder {named.hex() if known is None else known.id},"
                f" installed is {ref.id} ({ref.decoder_id().hex()}); the stream itself is intact:"
                " --any-decoder decodes it with the installed one, --tier preview without any"
            )
        device, dtype = load.choose_device(runtime)
        network = build(weights.resolve(ref, runtime.models_dir), device, dtype)
        self._restorer = SceneRestorer(
            network, device=device, dtype=dtype, steps=steps, seed=header.seed
        )
        anyone = dataclasses.replace(runtime, any_decoder=True)
        self._load_disco = lambda: self._disco.load(header, tier, steps, anyone)

    def synthesize(
        self, signals: Signals, segment: Segment, header: StreamHeader
    ) -> Iterator[UInt8]:
        """Yield the segment's frames, uint8 [H, W, 3] RGB."""
        if signals.fallback is not None:
            if self._load_disco is not None:
                self._load_disco()
                self._load_disco = None
            yield from self._disco.synthesize(signals.fallback, segment, header)
            return
        given = _conditions(signals, segment, header)
        if self._restorer is not None:
            frames = self._restorer.frames(given, segment.index)
        else:
            stage = Stage(given)
            frames = (stage.frame(t).preview() for t in range(segment.frames))
        if signals.grain is None or self._restorer is not None:
            yield from frames  # the model makes texture of its own: it was trained without grain
            return
        size = (header.width, header.height)
        texture = GrainSynthesizer(signals.grain.levels, size, seed=header.seed)
        yield from (texture.apply(frame, frame) for frame in frames)

    def dump(self, signals: Signals, segment: Segment, header: StreamHeader, folder: Path) -> None:
        """Write the camera as TUM text; keyframes, depth and masks as PNG; or what disco writes."""
        stem = f"{segment.index:05d}"
        if signals.fallback is not None:
            self._disco.dump(signals.fallback, segment, header, folder)
            return
        if signals.caption is not None:
            (folder / f"{stem}-caption.txt").write_text(signals.caption.text + "\n", "utf-8")
        if signals.camera is not None:
            seconds = (segment.start + np.arange(segment.frames)) / float(header.frame_rate)
            text = to_tum(signals.camera, segment.frames, seconds)
            (folder / f"{stem}-camera.txt").write_text(text, "ascii")
        if signals.masks is not None:
            ids = _ids(signals.masks, (header.height, header.width))
            for frame in range(segment.frames):
                path = folder / f"{stem}-mask-{frame:04d}.png"
                write_png(path, ids(frame) * np.uint8(_MASK_UNIT))
        if signals.grain is not None:
            (folder / f"{stem}-grain.txt").write_text(to_text(signals.grain), "ascii")
        pictures = color.yuv420_to_rgb(signals.planes)
        for k, place in enumerate(() if signals.keyframes is None else signals.keyframes.places):
            write_png(folder / f"{stem}-keyframe-{place:04d}.png", pictures[k])
            if signals.depth is not None:
                depth = np.clip(np.rint(signals.depth.depths()[k] * _DEPTH_UNIT), 1, 65535)
                write_png(folder / f"{stem}-depth-{place:04d}.png", depth.astype(np.uint16))


def _conditions(signals: Signals, segment: Segment, header: StreamHeader) -> SceneConditions:
    camera, keyframes = signals.camera, signals.keyframes
    if camera is None or keyframes is None:
        raise ValueError("a segment that fell back has no scene")
    width, height = header.width, header.height
    rotations, positions = poses(camera, segment.frames)
    centre = _centre(camera, (width, height))
    focal = camera.focal / UNITS * width
    plain = np.ones((len(keyframes.places), ROWS, COLUMNS), np.float32)
    return SceneConditions(
        width=width,
        height=height,
        frames=segment.frames,
        keyframes=_enlarged(color.yuv420_to_rgb(signals.planes), keyframes.factor, (height, width)),
        places=keyframes.places,
        depths=plain if signals.depth is None else signals.depth.depths(),
        rotations=rotations,
        positions=positions,
        intrinsics=np.array(
            [[focal, 0, centre[0] * width], [0, focal, centre[1] * height], [0, 0, 1]]
        ),
        crf=keyframes.crf,
        factor=keyframes.factor,
        ids=None if signals.masks is None else _ids(signals.masks, (height, width)),
    )


def _centre(camera: Camera, size: tuple[int, int]) -> tuple[float, float]:
    """The principal point as fractions of the `size` (width, height)."""
    x, y = camera.centre
    return 0.5 + x / UNITS, 0.5 + y / UNITS * size[0] / size[1]


def _ids(track: MaskTrack, size: tuple[int, int]) -> Callable[[int], UInt8]:
    """Numbers of the objects in a frame, uint8 [height, width]; where two lie, the later one's."""

    def ids(frame: int) -> UInt8:
        found = np.zeros(size, np.uint8)
        for number, mask in enumerate(rendered(track, frame, size), 1):
            found[mask > 0] = number
        return found

    return ids


def _shrunk(frames: UInt8, factor: int) -> UInt8:
    """Frames [K, H, W, 3] padded and made smaller by `factor`, as base layers are."""
    width, height = conditioning.base_size(frames.shape[2], frames.shape[1], factor)
    padded = np.stack([color.pad_to(frame, height * factor, width * factor) for frame in frames])
    return color.resize(padded, height, width)


def _enlarged(pictures: UInt8, factor: int, size: tuple[int, ...]) -> UInt8:
    """Inverse of `_shrunk`: pictures of `size` (height, width)."""
    height, width = pictures.shape[1:3]
    return color.resize(pictures, height * factor, width * factor)[:, : size[0], : size[1]]


def _coarseness(quality: float) -> tuple[int, float]:
    """Factor and crf of keyframes."""
    level = _BEST_LEVEL + (_WORST_LEVEL - _BEST_LEVEL) * (63 - quality) / 63
    factor = 1
    while level >= _SWITCH and factor < _MAX_FACTOR:
        factor, level = factor * 2, level - _SAVED
    return factor, min(float(MAX_CRF), max(1.0, round(level * 4) / 4))
