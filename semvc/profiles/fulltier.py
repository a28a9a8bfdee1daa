"""Tier full of profile disco: the same signals as the small model's, drawn by a large backbone.

A backbone is never the decoder that a stream names. That is no error here: signals are exact and
the same for all tiers, the picture is another one, and the report says so. Segments are drawn in
windows; the end of one begins the next, the two are blended, and colours are those of the base
layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from semvc.backbones import manifest, memory, parts, protocol, windows
from semvc.backbones.protocol import Backbone, Conditions, Settings
from semvc.bitstream.headers import SectionType, StreamHeader
from semvc.errors import ResourceError, UsageError
from semvc.media import color
from semvc.nets import conditioning, noise
from semvc.nets.conditioning import SegmentConditions
from semvc.nets.load import choose_device

if TYPE_CHECKING:
    from semvc.types import Runtime, UInt8

_NOISE, _USES, _WINDOWS = 64, 8, 24  # noise purposes 64 to 255: eight uses, 24 windows in turn
_KEYFRAME_STEP = 4  # full-size base frames that come this rarely are keyframes in all but name


@dataclass(frozen=True, slots=True)
class Fit:
    """A picture's size, the size it is drawn at, and that size padded to what a backbone makes."""

    picture: tuple[int, int]
    drawn: tuple[int, int]
    padded: tuple[int, int]

    @staticmethod
    def of(picture: tuple[int, int], backbone: Backbone, max_pixels: int) -> Fit:
        """Return how a backbone draws a picture of (width, height) in at most `max_pixels`."""
        width, height = picture
        scale = min(1.0, (max_pixels / (width * height)) ** 0.5)
        drawn = (max(1, int(width * scale)), max(1, int(height * scale)))
        return Fit(picture, drawn, backbone.fit_size(*drawn))

    def place(self, frame: UInt8) -> UInt8:
        """Return uint8 [H, W, C] at the padded size, edges repeated."""
        small: UInt8 = color.resize(frame[None], self.drawn[1], self.drawn[0])[0]
        return color.pad_to(small, self.padded[1], self.padded[0])

    def restore(self, frame: UInt8) -> UInt8:
        """Return uint8 [H, W, 3] at the picture's size."""
        cut = frame[: self.drawn[1], : self.drawn[0]]
        found: UInt8 = color.resize(cut[None], self.picture[1], self.picture[0])[0]
        return found


@dataclass(slots=True)
class FullTier:
    """A backbone with its settings, the stream's seed and the device's name.

    `backbone` may be what loads one: it is called with the first segment, so that the notes, with
    the estimate of memory, are known before a long wait.
    """

    backbone: Backbone | Callable[[], Backbone]
    settings: Settings
    seed: int
    device: str = "cpu"
    notes: list[str] = field(default_factory=list)

    def frames(
        self, given: SegmentConditions, *, caption: str, frame_rate: float, segment: int
    ) -> Iterator[UInt8]:
        """Yield a segment's frames, uint8 [H, W, 3] RGB; ResourceError if memory runs out."""
        backbone = self.backbone = self.backbone() if callable(self.backbone) else self.backbone
        size = (given.width, given.height)
        fit = Fit.of(size, backbone, self.settings.max_pixels)
        spans = windows.plan(given.frames, self.settings.frames, self.settings.overlap)
        tail = np.zeros((0, *reversed(fit.padded), 3), np.uint8)
        for number, (start, stop) in enumerate(spans):
            frames = backbone.fit_frames(stop - start)
            conditions = window(given, (start, stop), frames, fit, tail, caption, frame_rate)
            purpose = _NOISE + _USES * (number % _WINDOWS)
            try:
                encoded = backbone.encode(conditions)
                made = backbone.generate(
                    encoded, self._noise(segment, purpose), self.settings.steps
                )
            except torch.OutOfMemoryError as error:
                raise ResourceError(
                    f"out of memory on {self.device} at {fit.padded[0]}x{fit.padded[1]}:"
                    " use --memory group, --quant int8 or --tier small"
                ) from error
            made = windows.match_colours(made[: stop - start], conditions.base[: stop - start])
            made[: len(tail)] = windows.blend(tail, made[: len(tail)])
            ready = len(made) - (self.settings.overlap if stop < given.frames else 0)
            tail = made[ready:]  # shown with the next window
            for frame in made[:ready]:
                yield fit.restore(frame)

    def _noise(self, segment: int, purpose: int) -> protocol.Noise:
        return lambda count, use: noise.gaussian(
            count, seed=self.seed, segment=segment, purpose=purpose + use
        )


def window(
    given: SegmentConditions,
    span: tuple[int, int],
    frames: int,
    fit: Fit,
    tail: UInt8,
    caption: str,
    frame_rate: float,
) -> Conditions:
    """Return the conditions of a window of a segment, its last frame repeated up to `frames`."""
    shown = np.minimum(np.arange(span[0], span[0] + frames), span[1] - 1)
    held = conditioning.forward_fill(given.frames, given.step)[shown, 1]
    received = conditioning.Upsampler(given)
    pictures = {int(k): fit.place(received(int(k))) for k in sorted(set(held))}
    arrived = shown % given.step == 0
    return Conditions(
        base=np.stack([pictures[int(k)] for k in held]),
        kept=arrived & (given.factor == 1) & (given.step >= _KEYFRAME_STEP),
        tail=tail,
        frame_rate=frame_rate,
        caption=caption,
        sketch=None if given.sketch is None else _sketches(given, shown, fit),
        skeleton=None if given.points is None else _skeletons(given, shown, fit),
    )


def _sketches(given: SegmentConditions, shown: Any, fit: Fit) -> UInt8:
    maps = given.sketch if given.sketch is not None else np.zeros((1, 1, 1), np.uint8)
    held = np.minimum(shown // given.sketch_step, len(maps) - 1)
    drawn = {
        int(k): conditioning.render_map(maps[k], fit.drawn[1], fit.drawn[0]) for k in set(held)
    }
    return np.stack([_on_black(drawn[int(k)], fit) for k in held])


def _skeletons(given: SegmentConditions, shown: Any, fit: Fit) -> UInt8:
    shape = (fit.drawn[1], fit.drawn[0])
    points, visible = given.points, given.visible
    if points is None or visible is None:
        return np.zeros((len(shown), *reversed(fit.padded)), np.uint8)
    drawn = [conditioning.render_skeleton(points[t], visible[t], shape) for t in shown]
    return np.stack([_on_black(lines, fit) for lines in drawn])


def _on_black(lines: UInt8, fit: Fit) -> UInt8:
    out = np.zeros((fit.padded[1], fit.padded[0]), np.uint8)
    out[: fit.drawn[1], : fit.drawn[0]] = lines
    return out


def load(header: StreamHeader, runtime: Runtime) -> FullTier:
    """Return the backbone that the user names, or the first installed; weights come on first use.

    ModelError if none is installed or its files do not fit; ResourceError if memory will not do.
    """
    wanted = runtime.full
    roots = [root for root in (runtime.models_dir, wanted.home) if root is not None]
    entry, folder = manifest.find(wanted.backbone, roots)
    manifest.check_sizes(entry, folder)
    settings = settings_of(entry, wanted)
    device, dtype = choose_device(runtime)
    scale = min(1.0, (settings.max_pixels / (header.width * header.height)) ** 0.5)
    size = (max(1, int(header.width * scale)), max(1, int(header.height * scale)))
    load = memory.read_load(
        folder,
        size=size,
        frames=settings.frames,
        tile=settings.tile,
        quant=settings.quant,
        item=4 if dtype == torch.float32 else 2,
        caption=SectionType.CAPTION in header.sections,
        references=1
        + sum(k in header.sections for k in (SectionType.SKETCH, SectionType.SKELETON)),
    )
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory.host_free()
    mode, estimate = memory.choose(load, wanted.memory, free, device=device.type)
    settings = dataclasses.replace(settings, memory=mode)
    backbone = partial(protocol.load, entry.family, folder, settings, device, dtype)
    notes = [
        f"drawn by {entry.id}, which is not the decoder that the stream names"
        f" ({header.decoder_id.hex()}): the signals are the same, the picture differs",
        f"{entry.id} at {size[0]}x{size[1]}, {settings.steps} steps, windows of {settings.frames}"
        f" frames: {estimate}",
    ]
    if entry.family == "ltx" and not wanted.loras:
        notes.append(
            "no in-context LoRA was given with --lora: this transformer was not trained to read"
            " references, so the picture starts from the base layer instead of from noise"
        )
    return FullTier(backbone, settings, header.seed, str(device), notes)


def settings_of(entry: manifest.Entry, wanted: Any) -> Settings:
    """Return a backbone's settings with the user's (`types.FullTier`) in place of its own.

    What a LoRA file says of its training comes between: packing and reference_scale. UsageError
    where the user contradicts it.
    """
    own = entry.strength if wanted.loras else entry.strength_alone
    notes: dict[str, str] = {}
    for path in wanted.loras:
        if not Path(path).is_file():
            raise UsageError(f"no LoRA file {path}: give a safetensors file with --lora")
        notes |= parts.lora_notes(path)
    trained = notes.get("packing", "")
    if wanted.packing and trained not in ("", wanted.packing):
        raise UsageError(
            f"the LoRA was trained with --packing {trained}, not {wanted.packing}: leave it out"
        )
    return Settings(
        steps=wanted.steps or entry.steps,
        guidance=entry.guidance if wanted.guidance is None else wanted.guidance,
        frames=entry.frames,
        overlap=entry.overlap,
        max_pixels=entry.max_pixels,
        strength=own if wanted.strength is None else wanted.strength,
        shift=entry.shift,
        tile=entry.tile,
        packing=wanted.packing or trained or "shared",
        reference_scale=2 if notes.get("reference_scale") == "2" else 1,
        quant=wanted.quant,
        loras=tuple(wanted.loras),
    )
