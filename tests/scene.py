"""A procedural video with everything known: camera path, objects, masks, sound. Used by all tests.

A room with a patterned wall and floor and textured balls that move in it, ray-cast with numpy. The
same arguments give the same samples on every machine up to rounding of floats.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
WALL, FLOOR = 5.0, 1.0  # depth of the wall and height of the floor below the camera's start


@dataclass(frozen=True, slots=True)
class Scene:
    """`frames` pictures of `width` x `height` at `fps`; `seed` chooses textures and paths.

    `pan` is the camera's turn per second in radians, `dolly` its way forward per second, `shake`
    how far it trembles by hand, in radians and lengths. `focal` is in picture widths. `balls` move,
    `stones` are balls that do not and count as part of the room.
    """

    width: int = 96
    height: int = 64
    frames: int = 24
    fps: Fraction = Fraction(24)
    seed: int = 0
    pan: float = 0.05
    dolly: float = 0.3
    balls: int = 2
    shake: float = 0.0
    focal: float = 0.9
    stones: int = 0

    def intrinsics(self) -> tuple[float, float, float, float]:
        """Focal lengths and centre (fx, fy, cx, cy) in luma samples."""
        return self.focal * self.width, self.focal * self.width, self.width / 2, self.height / 2

    def poses(self) -> Array:
        """Camera to world, float64 [T, 4, 4], axes right, down, forward."""
        poses = np.tile(np.eye(4), (self.frames, 1, 1))
        seconds = np.arange(self.frames) / float(self.fps)
        cos, sin = np.cos(self.pan * seconds), np.sin(self.pan * seconds)
        poses[:, 0, 0], poses[:, 0, 2], poses[:, 2, 0], poses[:, 2, 2] = cos, sin, -sin, cos
        poses[:, 2, 3] = self.dolly * seconds
        if self.shake:
            self._tremble(poses, seconds)
        return poses

    def _tremble(self, poses: Array, seconds: Array) -> None:
        rng = np.random.default_rng(self.seed + 2)
        swing = np.zeros((len(seconds), 6))
        for hertz in (0.4, 0.9, 1.7):  # as hands do: slow and wide, quick and small
            phase = rng.uniform(0, 2 * np.pi, 6)
            angle = 2 * np.pi * hertz * seconds[:, None] + phase
            swing += (np.sin(angle) - np.sin(phase)) * rng.uniform(0.3, 0.6, 6) * 0.4 / hertz
        a, b, c = (self.shake * swing[:, :3]).T
        for axis, (i, j) in zip((a, b, c), ((1, 2), (2, 0), (0, 1)), strict=True):
            turn = np.tile(np.eye(3), (len(seconds), 1, 1))
            turn[:, i, i] = turn[:, j, j] = np.cos(axis)
            turn[:, i, j], turn[:, j, i] = -np.sin(axis), np.sin(axis)
            poses[:, :3, :3] = poses[:, :3, :3] @ turn
        poses[:, :3, 3] += 3 * self.shake * swing[:, 3:]

    def room_depth(self, t: int) -> Array:
        """Depth along the viewing axis in frame `t` without the balls, float64 [H, W]."""
        fx, fy, cx, cy = self.intrinsics()
        x, y = np.meshgrid(np.arange(self.width) + 0.5, np.arange(self.height) + 0.5)
        local = np.stack(((x - cx) / fx, (y - cy) / fy, np.ones_like(x)), -1)
        pose = self.poses()[t]
        depth: Array = self._room(local @ pose[:3, :3].T, pose[:3, 3])[1]
        return depth

    def centres(self) -> Array:
        """Ball centres in the world, float64 [T, balls, 3]; their radius is 0.5."""
        rng = np.random.default_rng(self.seed + 1)
        start = np.stack(
            (
                rng.uniform(-1, 1, self.balls),
                rng.uniform(-0.4, 0.4, self.balls),
                rng.uniform(3, 4, self.balls),
            ),
            -1,
        )
        speed = rng.uniform(-0.6, 0.6, (self.balls, 3)) * (1, 0.3, 0.3)
        seconds = np.arange(self.frames)[:, None, None] / float(self.fps)
        return start + speed * seconds

    def render(self) -> tuple[Array, Array]:
        """Frames uint8 [T, H, W, 3] and masks uint8 {0, 1} [T, balls, H, W]."""
        fx, fy, cx, cy = self.intrinsics()
        x, y = np.meshgrid(np.arange(self.width) + 0.5, np.arange(self.height) + 0.5)
        local = np.stack(((x - cx) / fx, (y - cy) / fy, np.ones_like(x)), -1)
        frames = np.empty((self.frames, self.height, self.width, 3), np.uint8)
        masks = np.zeros((self.frames, self.balls, self.height, self.width), np.uint8)
        for t, (pose, centres) in enumerate(zip(self.poses(), self.centres(), strict=True)):
            rays, eye = local @ pose[:3, :3].T, pose[:3, 3]
            image, depth = self._room(rays, eye)
            for stone, centre in enumerate(self._stones()):
                nowhere = np.zeros((1, *depth.shape), np.uint8)
                self._ball(0, centre - eye, rays, image, depth, nowhere, 20 + stone)
            for ball, centre in enumerate(centres):
                self._ball(ball, centre - eye, rays, image, depth, masks[t], 4 + ball)
            frames[t] = np.clip(image, 0, 255)
        return frames, masks

    def _room(self, rays: Array, eye: Array) -> tuple[Array, Array]:
        to_wall = (WALL - eye[2]) / rays[..., 2]
        with np.errstate(divide="ignore"):
            to_floor = np.where(rays[..., 1] > 0, (FLOOR - eye[1]) / rays[..., 1], np.inf)
        floor = to_floor < to_wall
        depth = np.where(floor, to_floor, to_wall)
        points = eye + rays * depth[..., None]
        wall = self._texture(points[..., 0], points[..., 1], 2)
        ground = self._texture(points[..., 0], points[..., 2], 3)
        return np.where(floor[..., None], ground, wall), depth

    def _stones(self) -> Array:
        """Centres of the stones: on the floor and in the air, spread from left to right."""
        rng = np.random.default_rng(self.seed + 3)
        x = np.linspace(-1.9, 1.9, self.stones)
        y = np.where(np.arange(self.stones) % 2, -0.7, 0.6)
        return np.stack((x, y, rng.uniform(2.6, 4.4, self.stones)), -1)

    def _ball(
        self,
        ball: int,
        centre: Array,
        rays: Array,
        image: Array,
        depth: Array,
        masks: Array,
        texture: int,
    ) -> None:
        along, size = rays @ centre, (rays * rays).sum(-1)
        root = along**2 - size * (centre @ centre - 0.25)
        near = (along - np.sqrt(np.maximum(root, 0))) / size
        hit = (root > 0) & (near < depth)
        normal = rays * near[..., None] - centre
        color = self._texture(2 * normal[..., 0], 2 * normal[..., 1], texture)
        color = color * (0.6 - 0.8 * normal[..., 2:])  # lit from the camera's side
        image[hit], depth[hit] = color[hit], near[hit]
        masks[:, hit] = 0
        masks[ball][hit] = 1

    def _texture(self, u: Array, v: Array, number: int) -> Array:
        rng = np.random.default_rng((self.seed, number))
        total = np.zeros((*u.shape, 3)) + rng.uniform(70, 180, 3)
        for wave in (1, 2.3, 4.1, 7.7):
            angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 6.3)
            value = np.sin(wave * 3 * (u * np.cos(angle) + v * np.sin(angle)) + phase)
            total += value[..., None] * rng.uniform(-30, 30, 3)
        squares = (np.floor(2 * u) + np.floor(2 * v)) % 2
        return total + (squares * 24 - 12)[..., None]


def beeps(seconds: float, *, rate: int = 48000, every: float = 0.5) -> Array:
    """Sound float32 [samples] in [-1, 1]: a beep of 50 ms at 0, `every`, 2 `every` ... seconds."""
    t = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * 880 * t) * (t % every < 0.05)).astype(np.float32)


def beep_times(sound: Array, *, rate: int = 48000) -> list[float]:
    """Where beeps begin in float [samples], in seconds, to a millisecond or two."""
    loud = np.abs(sound) > 0.15
    starts = np.flatnonzero(loud & ~np.concatenate(([False], loud[:-1])))
    found: list[float] = []
    for start in starts / rate:
        if not found or start - found[-1] > 0.2:
            found.append(float(start))
    return found


@dataclass(frozen=True, slots=True)
class Sound:
    """Sound for `write_video`: float32 [samples], its rate, codec and start in seconds.

    What lies within `hole`, in seconds, is left out: the file has a gap there.
    """

    samples: Array
    rate: int = 48000
    codec: str = "aac"
    start: float = 0.0
    hole: tuple[float, float] = (0.0, 0.0)


def write_video(
    path: Path,
    frames: Array,
    *,
    fps: Fraction | int = 24,
    times: Sequence[int] | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    tags: dict[str, int] | None = None,
    sound: Sound | None = None,
    container: str | None = None,
    rotation: int = 0,
) -> Path:
    """Write uint8 [T, H, W, 3] (or ready `av.VideoFrame`s) with PyAV alone; return `path`.

    `times` are in units of 1 / (1000 `fps`) seconds, by default constant. `tags` are attributes
    of the codec context, such as colorspace.
    """
    with av.open(str(path), "w", format=container) as output:
        rate = Fraction(fps)
        quality = {"crf": "12"} if codec in ("libx264", "libx265", "libvpx-vp9") else {}
        stream: Any = output.add_stream(codec, rate, options={**quality, **(options or {})})
        first = frames[0]
        ready = isinstance(first, av.VideoFrame)
        stream.height, stream.width = (
            (first.height, first.width) if ready else (len(first), len(first[0]))
        )
        stream.pix_fmt = pixels
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        base = 1 / (1000 * rate) if times else 1 / rate
        stream.time_base = stream.codec_context.time_base = base
        if rotation:
            stream.set_display_rotation(rotation)
        track: Any = None
        if sound is not None:
            track = output.add_stream(sound.codec, rate=sound.rate, layout="mono")
        for i, frame in enumerate(frames):
            picture = frame if ready else av.VideoFrame.from_ndarray(frame, format="rgb24")
            if not ready and tags and "colorspace" in tags:
                wanted = 5 if tags["colorspace"] == 6 else tags["colorspace"]
                picture = picture.reformat(format=pixels, dst_colorspace=wanted)
            picture.pts, picture.time_base = (times[i] if times else i), base
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
        if sound is not None:
            _write_sound(output, track, sound)
    return path


def _write_sound(output: Any, track: Any, sound: Sound) -> None:
    size = 960
    for start in range(0, len(sound.samples), size):
        if sound.hole[0] <= start / sound.rate < sound.hole[1]:
            continue
        part = sound.samples[start : start + size]
        frame = av.AudioFrame.from_ndarray(part[None], format="fltp", layout="mono")
        frame.sample_rate = sound.rate
        frame.time_base = Fraction(1, sound.rate)
        frame.pts = start + round(sound.start * sound.rate)
        output.mux(track.encode(frame))
    output.mux(track.encode(None))


class Pipe(io.RawIOBase):
    """Bytes that come a few at a time and cannot be sought in."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, 777) if size > 0 else size)


def read_sound(path: Path, *, rate: int = 48000) -> Array:
    """Sound of a file as players hear it, float32 [samples] from the first frame's time on."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        zero = (video.start_time or 0) * (video.time_base or Fraction(1))
        pieces: list[tuple[int, Array]] = []
        resampler = av.AudioResampler("flt", "mono", rate)
        for frame in container.decode(container.streams.audio[0]):
            at = float((frame.pts or 0) * (frame.time_base or 0) - zero)
            frame.pts = None
            pieces += [(round(at * rate), out.to_ndarray()[0]) for out in resampler.resample(frame)]
    end = max((at + len(part) for at, part in pieces), default=0)
    heard = np.zeros(max(end, 0), np.float32)
    for at, part in pieces:
        part = part[max(0, -at) :]
        heard[max(0, at) : max(0, at) + len(part)] = part
    return heard
