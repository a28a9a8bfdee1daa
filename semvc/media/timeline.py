"""When the pictures of a video are shown, read from its packets without decoding them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np

from semvc.bitstream.wire import UV_MAX
from semvc.errors import LimitError, MediaError

if TYPE_CHECKING:
    import numpy.typing as npt

    from semvc.types import Limits

    Int64 = npt.NDArray[np.int64]

_MIN_RATE, _MAX_RATE = Fraction(1, 60), Fraction(240)  # frames per second that a stream can state
JITTER = Fraction(101, 100)  # ticks that times at a constant rate may be off: containers round
_MOST_LOST = 1  # second at the end that may be missing without a word: writers round
_BACK = 1  # second that times of decoding may go back: muxers err
MAX_STEP, MAX_TIME = (1 << 32) - 1, 1 << 47  # ticks: what a stream can state of varying times
_COARSER = (Fraction(1, 10**8), Fraction(1, 10**6), Fraction(1, 1000))  # instead of too fine ones
_COMMON_RATES = tuple(
    Fraction(n, d)
    for n, d in (
        *((24000, 1001), (24, 1), (25, 1), (30000, 1001), (30, 1), (50, 1), (60000, 1001), (60, 1)),
        *(
            (5, 1),
            (8, 1),
            (10, 1),
            (12, 1),
            (15, 1),
            (16, 1),
            (48, 1),
            (100, 1),
            (120, 1),
            (240, 1),
        ),
    )
)


@dataclass(frozen=True, slots=True)
class Timeline:
    """Presentation times: `count` pictures, 0 if not known before the end.

    With a constant `rate`, picture i is shown at i / rate seconds and `pts` is empty. Otherwise
    `rate` is None, and picture i is shown at pts[i] (int64 [count], from 0) in units of
    `time_base`, the last one until `end`. `start` is the first one's time in the file, in seconds.
    `lost` are seconds at the end that the file announces and lacks. Not `timed`: pts of pictures
    say nothing.
    """

    rate: Fraction | None
    time_base: Fraction
    count: int
    pts: Int64
    end: int
    start: Fraction
    lost: Fraction = Fraction(0)
    timed: bool = True


def scan(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    limits: Limits,
    name: str,
    *,
    first: int | None = None,
) -> Timeline:
    """Return the timeline of `stream`, reading all of `container`.

    `first` is the pts of the first picture that can be decoded, None if it has none: what lies
    before (a recording may begin anywhere) is not counted. MediaError when the file ends before
    what it announces, LimitError for too many frames.
    """
    found = _read(container, stream, limits, name)
    times, base = found.times, stream.time_base or Fraction(1, 90000)
    if not times:
        raise MediaError(f"{name} has a video stream without frames")
    mov = "mov" in container.format.name
    if mov and len(times) < stream.frames and not _edited(stream, times):
        raise MediaError(f"{name} is cut off: {len(times)} of {stream.frames} frames are there")
    if None in times:
        return _without_times(stream, base, len(times))
    pts = np.array(sorted(t for t in times if t is not None), np.int64)
    if int(pts[-1]) - int(pts[0]) >= 1 << 62:
        raise MediaError(f"{name}: its pictures are years apart")
    duration = found.last[1]
    if mov and len(times) == stream.frames and stream.duration:
        # durations there follow the coding order, only their sum is right
        duration = max(0, stream.duration - int(pts[-1] - pts[0])) or duration
    timed = "avi" not in container.format.name  # it stores no order of display: pts are guessed
    if timed and first is not None and first in times:
        pts = pts[pts >= first]
    lost = _lost(container, found.end)
    return replace(_from_times(stream, base, pts, duration), lost=lost, timed=timed)


@dataclass(slots=True)
class _Found:
    """What the packets of a file say: pts of pictures, pts and duration of the last one of them,
    and when all streams end, in seconds (of the video alone where nobody asks).
    """

    times: list[int | None]
    last: tuple[int, int] = (-(1 << 63), 0)
    end: Fraction = Fraction(0)


def _read(
    container: av.container.InputContainer, stream: av.VideoStream, limits: Limits, name: str
) -> _Found:
    found = _Found([])
    before: int | None = None
    try:
        for packet in container.demux(*(() if _says_its_length(container) else (stream,))):
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.pts is not None and packet.time_base is not None:
                found.end = max(found.end, (packet.pts + (packet.duration or 0)) * packet.time_base)
            if packet.stream.index != stream.index:
                continue
            now, base = packet.dts, packet.time_base or Fraction(1, 90000)
            if before is not None and now is not None and (before - now) * base > _BACK:
                raise MediaError(
                    f"{name}: its times jump back after {len(found.times)} frames, as where"
                    " recordings were joined; 'ffmpeg -i IN -c copy OUT.mkv' gives it new ones"
                )
            before = now
            found.times.append(packet.pts)
            if packet.pts is not None:
                found.last = max(found.last, (packet.pts, packet.duration or 0))
            if len(found.times) > limits.max_frames:
                raise LimitError(f"{name} has more than {limits.max_frames} frames")
    except av.FFmpegError as error:
        raise MediaError(
            f"{name} is damaged after {len(found.times)} frames: {error.strerror}"
        ) from error
    return found


def _says_its_length(container: av.container.InputContainer) -> bool:
    """Whether a duration is that of all streams as written: others count frames, or guess."""
    return "matroska" in container.format.name


def _lost(container: av.container.InputContainer, end: Fraction) -> Fraction:
    """Seconds that a file announces and lacks."""
    if not _says_its_length(container) or not container.duration:
        return Fraction(0)
    lost = Fraction(container.duration, av.time_base) - end
    return lost if lost > _MOST_LOST else Fraction(0)


def constant(stream: av.VideoStream, name: str) -> Timeline:
    """Return the timeline of a stream that cannot be read twice: constant rate, unknown length.

    Nothing said of the rate means 25 frames per second; MediaError for one that cannot be stated.
    """
    rates = _declared(stream)
    if not rates and stream.guessed_rate:
        raise MediaError(
            f"{name}: {float(stream.guessed_rate):g} frames per second, allowed in a pipe are 1/60"
            f" to {_MAX_RATE}: use a file"
        )
    rate = rates[0] if rates else Fraction(25)
    return Timeline(rate, 1 / rate, 0, np.empty(0, np.int64), 0, Fraction(0), timed=False)


def _edited(stream: av.VideoStream, times: list[int | None]) -> bool:
    """Whether fewer packets than announced can be an edit list's doing: the time is all there."""
    known = [t for t in times if t is not None]
    if not known or not stream.duration or not stream.frames:
        return False
    return max(known) - min(known) + 2 * stream.duration // stream.frames >= stream.duration


def _declared(stream: av.VideoStream) -> list[Fraction]:
    rates = (stream.guessed_rate, stream.average_rate, stream.base_rate)
    return [rate for rate in rates if rate and _MIN_RATE <= rate <= _MAX_RATE]


def _without_times(stream: av.VideoStream, base: Fraction, count: int) -> Timeline:
    rate = (stream.average_rate or 0) or (stream.guessed_rate or 0)
    if not _MIN_RATE <= rate <= _MAX_RATE:
        rate = Fraction(25)
    rate = Fraction(rate)
    start = Fraction(stream.start_time or 0) * base
    return Timeline(rate, 1 / rate, count, np.empty(0, np.int64), count, start, timed=False)


def _from_times(stream: av.VideoStream, base: Fraction, pts: Int64, last: int) -> Timeline:
    start, pts = Fraction(int(pts[0])) * base, pts - pts[0]
    count = len(pts)
    rates = [*_declared(stream), *_COMMON_RATES]
    if count > 1 and pts[-1] > 0:
        rates.append((Fraction(count - 1) / (int(pts[-1]) * base)).limit_denominator(1001))
    for rate in rates:
        if not _MIN_RATE <= rate <= _MAX_RATE:
            continue
        length = float(1 / (rate * base))
        rounded = np.abs(pts - np.arange(count) * length).max() <= JITTER
        if rounded and last <= 2 * length + JITTER:  # else the last picture stays
            return Timeline(rate, 1 / rate, count, np.empty(0, np.int64), count, start)
    stop = pts[-1] + (last or max(1, int(pts[-1] - pts[-2])))
    for unit in (base, *_COARSER):
        ticks = _in_units(np.append(pts, stop), base, unit)
        if unit.denominator <= UV_MAX and np.diff(ticks).max() <= MAX_STEP and ticks[-1] < MAX_TIME:
            return Timeline(None, unit, count, ticks[:-1], int(ticks[-1]), start)
    raise MediaError("its pictures are years apart: give it other times, by remuxing it")


def _in_units(times: Int64, base: Fraction, unit: Fraction) -> Int64:
    """Rising times from 0 in units of `unit` instead of `base`; no two pictures share one."""
    if unit != base:
        times = np.array([round(int(time) * base / unit) for time in times], np.int64)
    steps = np.maximum(np.diff(times), 1)
    ticks: Int64 = np.concatenate(([0], np.cumsum(steps)))
    return ticks
