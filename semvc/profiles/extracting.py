"""What models find in clips when encoding: captions, skeletons, soft edges. All of it is optional.

Each model is loaded when it is first needed, and asked once for a clip, however often the clip's
coding is tried. Signals do not depend on how they were found.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from semvc.media import scenes
from semvc.signals.coco import Poses, read_coco
from semvc.signals.edges import extract_edges, trace_strengths

if TYPE_CHECKING:
    from semvc.types import Clip, EncodeOptions, UInt8

_NEAR = 16  # frames on either side of a boundary that tell whether it is a cut
_FINER = 4  # samples of a picture for one of a map, as the network for soft edges sees it


@dataclass(frozen=True, slots=True)
class _Scene:
    """The caption of the clip before, its last frames, and the number of the frame after it."""

    text: str
    frames: UInt8
    stop: int


@dataclass(slots=True)
class Extractors:
    """The models that the options name; one object serves one stream."""

    options: EncodeOptions
    _captioner: Any = None
    _finder: Any = None
    _network: Any = None
    _captions: dict[int, str] = field(default_factory=dict)
    _poses: dict[int, Poses] = field(default_factory=dict)
    _maps: tuple[Any, UInt8] | None = None
    _scene: _Scene | None = None
    _sure: dict[str, list[float]] = field(default_factory=dict)

    @property
    def writes_captions(self) -> bool:
        """Whether captions come from a model."""
        return self.options.captioner is not None and not self.options.caption

    @property
    def finds_people(self) -> bool:
        """Whether skeletons come from a model."""
        return self.options.posers is not None and not self.options.skeleton

    @property
    def notes(self) -> tuple[str, ...]:
        """How sure the models were, one sentence for each kind of signal."""
        return tuple(
            f"{what} by a model: {len(found)} found, mean confidence {np.mean(found):.2f}"
            if found
            else f"{what} by a model: nothing found"
            for what, found in self._sure.items()
        )

    def caption(self, clip: Clip, start: int) -> str:
        """Return the caption of a clip that begins at frame `start`; empty if none is wanted.

        With scope `scene`, a clip that goes on with the scene before has that scene's caption:
        every segment decodes alone, so that the text is sent again and not the change.
        """
        if not self.writes_captions:
            return self.options.caption
        if start not in self._captions:
            text = self._continued(clip, start)
            self._captions[start] = self._described(clip) if text is None else text
        text = self._captions[start]
        if self.options.caption_scope == "scene":
            self._scene = _Scene(text, clip.frames[-_NEAR:].copy(), start + len(clip.frames))
        return text

    def _continued(self, clip: Clip, start: int) -> str | None:
        before = self._scene
        if self.options.caption_scope != "scene" or before is None or before.stop != start:
            return None
        rate = float(clip.info.frame_rate or 24)
        cut = scenes.is_cut(before.frames, clip.frames[:_NEAR], rate)
        return None if cut else before.text

    def _described(self, clip: Clip) -> str:
        if self._captioner is None:
            from semvc.backbones.captioner import Captioner

            self._captioner = Captioner(_folder(self.options.captioner), _device())
        found = self._captioner.describe(clip.frames)
        self._sure.setdefault("captions", []).append(found.confidence)
        text: str = found.text
        return text

    def poses(self, clip: Clip, start: int, step: int) -> Poses:
        """Return the people in frames start, start + step, ... of a clip, followed through it."""
        if start not in self._poses:
            if self._finder is None:
                from semvc.backbones.poses import PoseFinder

                detector, pose = self.options.posers or (None, None)
                self._finder = PoseFinder(_folder(detector), _folder(pose), _device())
            sure = self._sure.setdefault("people", [])
            rows = []
            for t in range(0, len(clip.frames), step):
                for person in self._finder.find(clip.frames[t]):
                    rows.append(person.to_coco(start + t))
                    sure.append(person.confidence)
            self._poses[start] = read_coco(json.dumps(rows))
        return self._poses[start]

    def edges(self, frames: UInt8, start: int, size: tuple[int, int], density: float) -> UInt8:
        """Return edge maps uint8 {0, 1} [T, h, w] of frames uint8 [T, H, W, 3] of a clip.

        The clip begins at frame `start`; `size` is (h, w).
        """
        if self.options.edges is None:
            luma = (frames @ np.array([0.2126, 0.7152, 0.0722], np.float32)).astype(np.uint8)
            return extract_edges(luma, size, density=density)
        key = (start, frames.shape, size, density)
        if self._maps is None or self._maps[0] != key:
            self._maps = (key, trace_strengths(self._strengths(frames, size), size, density))
        return self._maps[1]

    def _strengths(self, frames: UInt8, size: tuple[int, int]) -> UInt8:
        from semvc.media import color

        if self._network is None:
            from semvc.backbones.softedges import SoftEdges

            self._network = SoftEdges(_folder(self.options.edges), _device())
        height, width = (
            min(_FINER * part, side) for part, side in zip(size, frames.shape[1:3], strict=True)
        )
        found = []
        for frame in frames:
            strength = self._network.find(color.resize(frame[None], height, width)[0])
            found.append(strength)
            sure = strength[strength >= 128]
            if sure.size:
                self._sure.setdefault("soft edges", []).append(float(sure.mean()) / 255)
        return np.stack(found)


def _folder(path: Any) -> Any:
    if path is None:
        raise ValueError("no model is named")
    return path


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
