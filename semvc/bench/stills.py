"""Pictures for the page: stills and short loops of one clip, all at about equal bytes.

Which frame and which rate are shown follows a fixed rule and not the looks: `STILL` and `LOOP` of
the clip, and the rate nearest to `AIM`. Everything comes back as data URIs.
"""

from __future__ import annotations

import base64
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from semvc.bench import tables
from semvc.bench.curves import ENVELOPE_CODECS
from semvc.bench.rows import METRICS, Report, Row
from semvc.errors import SemvcError
from semvc.media.writer import OutputOptions, VideoWriter
from semvc.types import VideoInfo

if TYPE_CHECKING:
    from semvc.types import UInt8

AIM = 0.0077  # bits per pixel: the middle, by its logarithm, of 0.002 to 0.03
STILL = 0.55  # of the clip: the frame shown
LOOP = (0.3, 48)  # of the clip: where the loop begins; how many frames at most
PAGE_BYTES = 9_500_000  # of pictures before base64, which adds a third

_EQUAL = 1.25  # rates within this factor of each other count as equal
_QUALITIES = (90, 82, 74, 66, 58, 50)  # of WebP
_CRFS = (20, 24, 28, 32, 36)  # of H.264
_MAX_STILLS, _MAX_LOOP = 800_000, 900_000  # bytes of a clip, also when there is room for more
_LOOP_SHARE = 0.55  # of a clip's bytes
_PANEL = 426  # long side of a picture in a loop
_LABEL = 24  # height of the line above it


@dataclass(frozen=True, slots=True)
class Shown:
    """One of the pictures side by side: its title, and the row that it shows (None: the source)."""

    title: str
    row: Row | None


@dataclass(frozen=True, slots=True)
class Choice:
    """What is shown of a clip: the source, then conventional, then semvc; `note` on the rates."""

    clip: str
    shown: tuple[Shown, ...]
    note: str


@dataclass(frozen=True, slots=True)
class Pictures:
    """A clip's pictures as data URIs: `stills` one for each of `choice.shown`, `loop` an MP4.

    `frame` is the still's number; `loop_size` is (width, height), `quality` the WebP quality of all
    stills and `crf` the H.264 rate factor of the loop.
    """

    choice: Choice
    stills: tuple[str, ...]
    size: tuple[int, int]
    frame: int
    quality: int
    loop: str = ""
    loop_size: tuple[int, int] = (0, 0)
    crf: int = 0


def choose(report: Report, clip: str) -> Choice | None:
    """Return what to show of a clip; None if no reconstruction of it by semvc was kept.

    Of semvc's points, the first curve's one is taken that lies near `AIM` and has a conventional
    point near its bytes. Of the envelope's encoders within a quarter of those bytes, the one best
    in the first metric measured is shown; the other tiers are those of the same stream.
    """
    kept = [row for row in report.rows if row.clip == clip and row.rebuilt]
    own = [curve for curve in tables.own_curves(report) if any(r.curve == curve for r in kept)]
    if not own:
        return None
    mine = [row for row in kept if row.curve == own[0]]
    others = [row for row in kept if row.codec in ENVELOPE_CODECS]
    first = min(mine, key=lambda row: _distance(row, others))
    shown = [Shown("source", None)]
    note = "No conventional encoding of this clip was kept."
    if others:
        best, metric = _best(first, others)
        shown.append(Shown(tables.curve_title(best.curve), best))
        note = _rate_note(first, best, metric)
    tiers = [first, *_same_stream(first, kept)]
    tiers.sort(key=lambda row: own.index(row.curve), reverse=True)  # the preview comes first
    shown += [Shown(tables.curve_title(row.curve), row) for row in tiers]
    return Choice(clip, tuple(shown), note)


def take(folder: Path, choice: Choice, *, clips: int) -> Pictures:
    """Read the pictures of a choice and code them for the page.

    `folder` is that of report.json, `clips` how many clips share the page's room. Raises what
    reading the kept files raises.
    """
    row = next(item.row for item in choice.shown if item.row is not None)
    frame = min(row.frames - 1, round(STILL * row.frames))
    first = min(round(LOOP[0] * row.frames), max(0, row.frames - LOOP[1]))
    last = min(row.frames, first + LOOP[1])
    stills: list[UInt8] = []
    panels: list[list[UInt8]] = []
    for item in choice.shown:
        small: list[UInt8] = []
        for index, picture in enumerate(_frames(folder, item, row)):
            if index == frame:
                stills.append(picture)
            if first <= index < last:
                small.append(_panel(picture, item.title))
            if index >= max(frame, last - 1):
                break
        if len(stills) <= len(panels):
            raise SemvcError(f"{item.title} of {choice.clip} has fewer than {frame + 1} frames")
        panels.append(small)
    room = PAGE_BYTES // max(1, clips)
    loop_room = min(_MAX_LOOP, round(room * _LOOP_SHARE))
    coded, quality = _webps(stills, min(_MAX_STILLS, room - loop_room))
    data, size, crf = _mp4([_composed(t) for t in zip(*panels, strict=False)], row, loop_room)
    return Pictures(
        choice,
        tuple(_uri("image/webp", still) for still in coded),
        (row.width, row.height),
        frame,
        quality,
        _uri("video/mp4", data) if data else "",
        size,
        crf,
    )


def _distance(row: Row, others: Sequence[Row]) -> float:
    """How far a rate is from `AIM`, and from that of the nearest conventional point."""
    nearest = min((abs(math.log(row.bytes / o.bytes)) for o in others), default=0.0)
    return abs(math.log(row.bpp / AIM)) + 2 * nearest


def _best(row: Row, others: Sequence[Row]) -> tuple[Row, str]:
    """The conventional point shown beside `row`, and the metric that chose it."""
    near = [o for o in others if abs(math.log(o.bytes / row.bytes)) <= math.log(_EQUAL)]
    if not near:
        return min(others, key=lambda o: abs(math.log(o.bytes / row.bytes))), ""
    for metric in (*tables.MAIN, "ms_ssim", "psnr_y"):
        having = [o for o in near if metric in o.metrics]
        if having:
            sign = -1 if METRICS[metric].better == "higher" else 1
            return min(having, key=lambda o: sign * o.metrics[metric]), metric
    return min(near, key=lambda o: abs(math.log(o.bytes / row.bytes))), ""


def _same_stream(row: Row, kept: Sequence[Row]) -> list[Row]:
    """The other tiers of the same stream."""
    same = (row.codec, row.profile, row.setting, row.bytes)
    return [
        other
        for other in kept
        if other.curve != row.curve
        and (other.codec, other.profile, other.setting, other.bytes) == same
    ]


def _rate_note(own: Row, other: Row, metric: str) -> str:
    ratio = other.bytes / own.bytes
    if not metric:
        why = "the nearest in bytes that was kept"
    else:
        why = f"the best in {tables.heading(metric)} of those kept within 25 % of the bytes"
    return f"{tables.curve_title(other.curve)}: {why}; it has {ratio:.2f} times semvc's bytes."


def _frames(folder: Path, item: Shown, row: Row) -> Iterator[UInt8]:
    from semvc.bench import pictures

    if item.row is None:
        return pictures.original(folder, row)
    return pictures.rebuilt(folder, item.row)


def _webps(pictures: Sequence[UInt8], room: int) -> tuple[list[bytes], int]:
    """Code stills, all at the best quality at which they fit together, or the lowest."""
    for quality in _QUALITIES:
        coded = [_webp(picture, quality) for picture in pictures]
        if sum(map(len, coded)) <= room:
            break
    return coded, quality


def _webp(picture: UInt8, quality: int) -> bytes:
    bgr = np.ascontiguousarray(picture[..., ::-1])
    done, data = cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, quality])
    if not done:
        raise SemvcError("OpenCV cannot write WebP here")
    return bytes(data)


def _panel(picture: UInt8, title: str) -> UInt8:
    """A small picture under its title, even in width and height."""
    height, width = picture.shape[:2]
    scale = min(1.0, _PANEL / max(height, width))
    columns, rows = (max(16, round(v * scale / 2) * 2) for v in (width, height))
    small = cv2.resize(np.ascontiguousarray(picture), (columns, rows), interpolation=cv2.INTER_AREA)
    made = np.full((rows + _LABEL, columns, 3), 24, np.uint8)
    made[_LABEL:] = small
    size = min(0.5, columns / (11 * max(1, len(title))))
    font, color = cv2.FONT_HERSHEY_SIMPLEX, (240, 240, 240)
    cv2.putText(made, title, (6, 17), font, size, color, 1, cv2.LINE_AA)
    return made


def _composed(panels: Sequence[UInt8]) -> UInt8:
    """Pictures of one moment: two by two if they are wide, else in a row."""
    height, width = panels[0].shape[:2]
    if len(panels) < 3 or height > width:
        return np.concatenate(panels, 1)
    blank = np.full_like(panels[0], 24)
    filled = [*panels, blank][: 2 * -(-len(panels) // 2)]
    pairs = [np.concatenate(filled[k : k + 2], 1) for k in range(0, len(filled), 2)]
    return np.concatenate(pairs, 0)


def _mp4(frames: Sequence[UInt8], row: Row, room: int) -> tuple[bytes, tuple[int, int], int]:
    """Code a loop as H.264 at the best rate factor that fits, or the last."""
    if len(frames) < 2:
        return b"", (0, 0), 0
    height, width = frames[0].shape[:2]
    rate = Fraction(row.frame_rate).limit_denominator(1001) if row.frame_rate else Fraction(25)
    info = VideoInfo(width, height, rate, 1 / rate, len(frames))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "loop.mp4"
        for crf in _CRFS:
            options = OutputOptions(crf=crf, preset="slow", force=True)
            _write(path, info, options, frames)
            if path.stat().st_size <= room:
                break
        return path.read_bytes(), (width, height), crf


def _write(path: Path, info: VideoInfo, options: OutputOptions, frames: Iterable[UInt8]) -> None:
    with VideoWriter(path, info, options=options) as writer:
        for index, frame in enumerate(frames):
            writer.write(frame, index)


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
