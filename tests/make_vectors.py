"""Writes the golden vectors: `python -m tests.make_vectors [NAME...]` (make vectors).

A vector is a stream and what it decodes to. It is made once and then kept: a program that decodes
it to other integers is wrong, whatever its encoder writes today. Make one anew only when the
format or the entropy coder's assets change on purpose, and say so in the commit.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parent))  # also when run as a module of the repository

from conformance import MODELS, VECTORS, describe
from s2vc_codecs import write_codec
from scene import WALL, Scene, Sound, beeps, write_video

from semvc import weights
from semvc.analysis.types import CameraPath
from semvc.encoder import EncodeJob, encode
from semvc.errors import ModelError
from semvc.profiles import s2vc
from semvc.profiles.findings import Finder, Findings
from semvc.signals.camera import rotation
from semvc.types import Clip, EncodeOptions, Runtime


@dataclass(frozen=True)
class Vector:
    """A source video, made by `source(path)`, and how it is encoded."""

    about: str
    source: Callable[[Path], Path]
    options: dict[str, Any] = field(default_factory=dict)
    find: Callable[[Clip, int], Findings | None] | None = None  # instead of analysis


def _clip(
    width: int, height: int, frames: int, *, cut: int = 0, **options: Any
) -> Callable[[Path], Path]:
    """A scene as a video; from frame `cut` on it is another one."""
    pictures = Scene(width, height, frames).render()[0]
    if cut:
        other = Scene(width, height, frames - cut, seed=5, pan=-0.1).render()[0]
        pictures[cut:] = 255 - other
    return lambda path: write_video(path, pictures, **options)


def _noisy(path: Path) -> Path:
    """A scene as a bad sensor sees it."""
    pictures = Scene(64, 48, 12).render()[0]
    noise = np.random.default_rng(1).normal(0, 5, pictures.shape[:3])[..., None]
    return write_video(path, np.clip(pictures + noise, 0, 255).round().astype(np.uint8))


def _people(frames: int) -> str:
    """COCO keypoints of two walkers, one of whom comes later and loses a wrist."""
    across = np.array([0, 1, -1, 2, -2, 4, -4, 6, -6, 7, -7, 3, -3, 3, -3, 4, -4])
    down = np.array([0, -1, -1, 0, 0, 5, 5, 11, 11, 16, 16, 17, 17, 25, 25, 33, 33])
    rows = []
    for frame in range(frames):
        for track, first in ((1, 0), (2, frames // 3)):
            if frame < first:
                continue
            sway = np.sin(0.5 * frame + np.arange(17)) * (down > 6)
            seen = np.full(17, 2)
            seen[9] = 0 if track == 2 and frame % 8 > 4 else 1
            x, y = across + sway + 20 + 24 * track + 0.7 * frame, down + 12
            keypoints = np.stack((x, y, seen), 1) * (seen[:, None] > 0)
            entry = {"image_id": frame, "track_id": track, "keypoints": keypoints.ravel().tolist()}
            rows.append(entry)
    return json.dumps(rows)


def _jitter(frames: int) -> list[int]:
    """Presentation times in thousandths of a frame: several rates, one pause."""
    steps = ([1000] * 5 + [500] * 6 + [1001, 999, 1000, 3000]) * frames
    return np.cumsum([0, *steps])[:frames].tolist()


_ROOM = Scene(80, 48, 26, pan=0.1, dolly=2.0, balls=1, seed=3)


def _room(path: Path) -> Path:
    """The room walked through, then another one; with sound."""
    pictures = np.concatenate((_ROOM.render()[0], 255 - Scene(80, 48, 22, seed=5).render()[0]))
    return write_video(path, pictures, sound=Sound(beeps(2.0)))


def _found(clip: Clip, start: int) -> Findings | None:
    """What is true of the room; the next one has no camera."""
    if start:
        return None
    poses, shown = _ROOM.poses(), _ROOM.render()[1]
    turned, moves = np.swapaxes(poses[:, :3, :3], 1, 2), poses[:, :3, 3] / WALL
    path = CameraPath(turned, -np.einsum("tij,tj->ti", turned, moves), 0.9)

    def depth(places: tuple[int, ...]) -> npt.NDArray[np.float32]:
        y, x = np.mgrid[0:9, 0:16]
        rays = np.stack(((x / 15 - 0.5) / 0.9, (y / 8 - 0.5) * 48 / 80 / 0.9, x * 0 + 1), -1)
        found = []
        for place in places:
            world = rays @ turned[place]
            inverse = np.maximum(world[..., 2] / (1 - moves[place, 2]), world[..., 1] * WALL)
            found.append(1 / inverse)
        return np.stack(found).astype(np.float32)

    shape = (len(shown), *shown.shape[2:])
    return Findings(path, depth, 3.0, shape, zlib.compress(shown[:, 0].tobytes()))


def _turning(clip: Clip, start: int) -> Findings | None:
    """A camera that turns back and forth."""
    turns = np.zeros((len(clip.frames), 3))
    turns[:, 1] = 0.05 * np.sin(0.2 * np.arange(len(turns)))
    return Findings(CameraPath(rotation(turns), np.zeros_like(turns), 0.9))


def _vectors() -> dict[str, Vector]:
    both = {"sketch": True, "caption": "Two people walk past a patterned wall."}
    sound = Sound(beeps(2.0))
    return {
        "plain": Vector("one segment at constant rate", _clip(64, 48, 12)),
        "scenes": Vector(
            "two scenes, so a short segment; a caption, Opus sound, a title",
            _clip(64, 48, 48, cut=26, sound=sound),
            {"caption": "A ball rolls – 転がる – past a wall.", "title": "Zwei Räume"},
        ),
        "copied-sound": Vector(
            "packets of the source's own AAC sound",
            _clip(48, 32, 24, sound=Sound(beeps(1.0))),
            {"audio": "copy"},
        ),
        "variable": Vector(
            "frames at varying times, in three segments",
            _clip(48, 48, 60, times=_jitter(60)),
            {"segment_seconds": 1.0, "quality": 10.0, "caption": "Tick."},
        ),
        "controlled": Vector(
            "sketch, skeleton and caption over a base layer of factor 2",
            _clip(128, 96, 24),
            {**both, "factor": 2, "skeleton": _people(24)},
        ),
        "odd": Vector(
            "odd width and height, factor 4, a base layer smaller than AV1's smallest block",
            _clip(53, 37, 7, pixels="yuv444p"),
            {"factor": 4, "sketch": True},
        ),
        "long": Vector(
            "one long segment of which every fourth frame is sent",
            _clip(64, 64, 96),
            {"step": 4, "sketch": True, "segment_seconds": 6.0, "quality": 20.0},
        ),
        "everything": Vector(
            "all sections in one tiny stream",
            _clip(32, 32, 12, times=_jitter(12), sound=Sound(beeps(0.5))),
            {**both, "factor": 1, "step": 2, "skeleton": _people(12), "quality": 20.0}
            | {"grain": True},
        ),
        "scene": Vector(
            "a camera that turns, in two segments; keyframes and nothing else",
            _clip(64, 48, 48, cut=26),
            {"profile": "cpsgd", "quality": 45.0},
            _turning,
        ),
        "moving": Vector(
            "camera, depth, masks and a caption; the second segment fell back to a base layer",
            _room,
            {"profile": "cpsgd", "caption": "A ball in a room.", "quality": 50.0},
            _found,
        ),
        "latent": Vector(
            "latents of a tiny codec that nobody trained, in two segments, with sound",
            _clip(72, 48, 40, cut=26, sound=sound),
            {"profile": "s2vc", "quality": 50.0, "models_dir": MODELS},
        ),
        "grain": Vector(
            "a noisy source, whose lost texture is stated",
            _noisy,
            {"grain": True, "quality": 30.0},
        ),
        "single": Vector(
            "the smallest picture, a single frame", _clip(16, 16, 1), {"quality": 0.0}
        ),
    }


def _make(name: str, vector: Vector, folder: Path) -> int:
    """Encode and describe one vector; return its stream's length in bytes."""
    source = vector.source(folder / f"{name}.mkv")
    sink = io.BytesIO()
    options = EncodeOptions(
        **{"quality": 32.0, "preset": 8, "seed": 1, "grain": False, **vector.options}
    )
    # Signals are normative, pictures are not: a vector is made for no model in particular.
    with contextlib.ExitStack() as stack:
        none = mock.patch.object(weights, "for_profile", side_effect=ModelError("none"))
        stack.enter_context(none)
        exact = partial(Runtime, dtype="float32")  # pictures of a coarser type differ more
        stack.enter_context(mock.patch.object(s2vc, "Runtime", exact))
        if vector.find is not None:
            find = lambda _, clip, start: vector.find(clip, start)  # noqa: E731
            stack.enter_context(mock.patch.object(Finder, "find", find))
        encode(source, sink, options, job=EncodeJob(deterministic=True))
    raw = sink.getvalue()
    target = VECTORS / name
    target.mkdir(parents=True, exist_ok=True)
    (target / "stream.svc").write_bytes(raw)
    text = json.dumps({"about": vector.about, **describe(raw)}, indent=1, ensure_ascii=False)
    (target / "expect.json").write_text(_compact(text) + "\n", "utf-8")
    return len(raw)


def _compact(text: str) -> str:
    """Put each list that holds no other on one line."""
    return re.sub(r"\[[^\[\]{}\"]*\]", lambda found: " ".join(found[0].split()), text)


def main() -> None:
    vectors = _vectors()
    names = sys.argv[1:] or list(vectors)
    if not MODELS.exists():  # never anew by itself: streams name the codec by its hash
        write_codec(MODELS)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            print(f"{name}: {_make(name, vectors[name], Path(folder))} bytes")


if __name__ == "__main__":
    main()
