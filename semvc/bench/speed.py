"""How fast the program is: its parts, and how that grows with length, resolution and threads.

Files are encoded and decoded by the library functions behind the command line, in this process, a
few times each in turn, after one round that does not count. Figures are medians with the lowest
and highest; ratios are to the first of a row of cases. Times leave out starting the program and
loading the model, which stand by themselves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from semvc import decoder, encoder, profiles
from semvc.bench.stopwatch import OTHER, watched
from semvc.bench.tables import Cell, Column, Table
from semvc.media import color
from semvc.media.reader import VideoReader
from semvc.media.writer import OutputOptions, VideoWriter
from semvc.types import EncodeOptions, Runtime, VideoInfo

LOADING = "load the model"
GENERATOR = "generator"
_RATE = Fraction(24)
_SIZES = ((426, 240), (640, 360), (854, 480))
_LENGTHS = (1, 2, 4)  # times the frames of a case
_SCALING_SIZE = (426, 240)
_OCTAVES = 4

OnCase = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to time: `source` None draws a clip of `size` (width, height) and `frames`.

    `tiers` are those to decode at, `repeats` how often each case counts, `threads` the numbers of
    torch's threads to try; `scaling` False leaves out all cases but the first.
    """

    source: Path | None = None
    size: tuple[int, int] = (854, 480)
    frames: int = 48
    profile: str = "disco"
    tiers: tuple[str, ...] = ("preview", "small")
    preset: int = 4
    repeats: int = 5
    threads: tuple[int, ...] = ()
    scaling: bool = True
    device: str = "auto"
    models_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, lowest and highest of some repeats."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        return Spread(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Timing:
    """One verb ("encode", "decode preview") of one case.

    `axis` is what is varied (parts, length, resolution, threads), `label` how much of it. `seconds`
    leave out loading the model; `parts` are seconds each and add up to a whole run. `ratio` is the
    time a frame (by resolution: a pixel) takes, over that of the axis's first case.
    """

    axis: str
    label: str
    verb: str
    width: int
    height: int
    frames: int
    threads: int
    seconds: Spread
    parts: dict[str, Spread]
    ratio: float = 1.0

    @property
    def fps(self) -> float:
        """Frames a second, of the median."""
        return self.frames / self.seconds.median

    @property
    def generator_fps(self) -> float | None:
        """Frames a second of the generator alone; None in an encode."""
        found = self.parts.get(GENERATOR)
        return self.frames / found.median if found is not None and found.median else None

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values, rates included."""
        row = dataclasses.asdict(self)
        return {**row, "fps": self.fps, "generator_fps": self.generator_fps}


@dataclass(frozen=True, slots=True)
class _Case:
    axis: str
    label: str
    path: Path
    threads: int  # of torch; 0 leaves them as they are


@dataclass(frozen=True, slots=True)
class Speeds:
    """All timings, the machine and the repeats behind every median."""

    timings: tuple[Timing, ...]
    machine: dict[str, Any]
    repeats: int

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "machine": self.machine,
            "repeats": self.repeats,
            "timings": [timing.to_json() for timing in self.timings],
        }

    def tables(self) -> list[Table]:
        """Return a table of the parts and one of each kind of scaling."""
        found = [_parts_table([t for t in self.timings if t.axis == "parts"])]
        for axis in dict.fromkeys(t.axis for t in self.timings):
            if axis != "parts":
                found.append(_scaling_table(axis, [t for t in self.timings if t.axis == axis]))
        return found


def measure(plan: Plan, *, on_case: OnCase | None = None) -> Speeds:
    """Time everything the plan asks for; `on_case(done, all, what)` is called before each case.

    Raises what encoding and decoding raise.
    """
    from semvc.bench.plan import machine

    told = on_case or (lambda *_: None)
    timings: list[Timing] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = list(_cases(plan, folder))
        for index, case in enumerate(cases):
            told(index, len(cases), f"{case.axis} {case.label}")
            timings += _run(case, plan, folder)
        told(len(cases), len(cases), "")
    return Speeds(tuple(_with_ratios(timings)), machine(plan.device), plan.repeats)


def draw(path: Path, size: tuple[int, int], frames: int, *, seed: int = 1) -> Path:
    """Write a clip of moving noise in several scales, with patches that move against it.

    `size` is (width, height). It is neither easy nor hard to code, and the same every time.
    """
    width, height = size
    rng = np.random.default_rng(seed)
    ground = _noise(rng, height + 2 * frames, width + 2 * frames)
    patch = 255 - _noise(rng, height // 3, width // 3)
    info = VideoInfo(width, height, _RATE, 1 / _RATE, frames)
    options = OutputOptions(crf=18, preset="veryfast", force=True)
    with VideoWriter(path, info, options=options) as writer:
        for t in range(frames):
            picture = ground[t : t + height, 2 * t : 2 * t + width].copy()
            y = round((height - len(patch)) * (0.5 + 0.4 * np.sin(t / 9)))
            x = round((width - patch.shape[1]) * (0.5 + 0.4 * np.cos(t / 13)))
            picture[y : y + len(patch), x : x + patch.shape[1]] = patch
            writer.write(picture, t)
    return path


def _noise(rng: np.random.Generator, height: int, width: int) -> Any:
    """Smooth noise in octaves, uint8 [height, width, 3]."""
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(_OCTAVES):
        cells = 4 * 3**octave
        small = rng.normal(size=(cells * height // width + 2, cells + 2, 3)).astype(np.float32)
        total += color.resize(small[None], height, width)[0] / (1 + octave)
    return np.clip(128 + 40 * total, 0, 255).astype(np.uint8)


def _cases(plan: Plan, folder: Path) -> Iterator[_Case]:
    drawn = folder / "clip.mp4"
    first = plan.source or draw(drawn, plan.size, plan.frames)
    yield _Case("parts", "", first, 0)
    if not plan.scaling:
        return
    for times in _LENGTHS:
        path = folder / f"length{times}.mp4"
        frames = times * plan.frames
        yield _Case("length", f"{frames} frames", draw(path, _SCALING_SIZE, frames), 0)
    for width, height in _SIZES:
        path = draw(folder / f"size{width}.mp4", (width, height), plan.frames)
        yield _Case("resolution", f"{width}x{height}", path, 0)
    for count in plan.threads:
        yield _Case("threads", str(count), first, count)


def _run(case: _Case, plan: Plan, folder: Path) -> list[Timing]:
    """Time the verbs of a case in turn, round after round."""
    verbs = ["encode", *(f"decode {tier}" for tier in plan.tiers)]
    if case.axis == "threads":  # of torch: the generator alone is affected
        verbs = [verb for verb in verbs if verb not in ("encode", "decode preview")]
    stream = folder / "timed.svc"
    found: dict[str, list[dict[str, float]]] = {verb: [] for verb in verbs}
    frames = 0
    with _torch_threads(case.threads):
        if "encode" not in verbs:
            _encode(case.path, stream, plan)
        for turn in range(plan.repeats + 1):
            for verb in verbs:
                if verb == "encode":
                    frames, parts = _encode(case.path, stream, plan)
                else:
                    frames, parts = _decode(stream, verb.split()[1], plan, folder)
                if turn:
                    found[verb].append(parts)
    with VideoReader(case.path) as reader:
        size = reader.info.width, reader.info.height
    return [_timing(case, verb, runs, size=size, frames=frames) for verb, runs in found.items()]


def _encode(source: Path, stream: Path, plan: Plan) -> tuple[int, dict[str, float]]:
    options = EncodeOptions(
        profile=plan.profile,
        preset=plan.preset,
        sketch=plan.profile == "disco",  # so that the entropy coder has something to do
        models_dir=plan.models_dir,
    )
    with watched("encode", _profile(plan)) as watch:
        report = encoder.encode(source, stream, options, job=encoder.EncodeJob(force=True))
        return report.frames, watch.stop()


def _decode(stream: Path, tier: str, plan: Plan, folder: Path) -> tuple[int, dict[str, float]]:
    runtime = Runtime(device=plan.device, models_dir=plan.models_dir)
    job = decoder.DecodeJob(tier=tier, force=True)
    source = io.BytesIO(stream.read_bytes())
    with watched("decode", _profile(plan)) as watch:
        report = decoder.decode(source, folder / "timed.mp4", job, runtime=runtime)
        return report.frames, watch.stop()


def _profile(plan: Plan) -> type[Any]:
    with contextlib.closing(profiles.create(profiles.by_name(plan.profile))) as made:
        return type(made)


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    if not count:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _timing(
    case: _Case,
    verb: str,
    runs: Sequence[dict[str, float]],
    *,
    size: tuple[int, int],
    frames: int,
) -> Timing:
    names = dict.fromkeys(name for run in runs for name in run)
    parts = {name: Spread.of([run.get(name, 0.0) for run in runs]) for name in names}
    whole = [sum(s for name, s in run.items() if name != LOADING) for run in runs]
    return Timing(
        *(case.axis, case.label, verb, *size, frames, case.threads),
        seconds=Spread.of(whole),
        parts=parts,
    )


def _with_ratios(timings: Sequence[Timing]) -> Iterator[Timing]:
    firsts: dict[tuple[str, str], float] = {}
    for timing in timings:
        work = timing.frames
        if timing.axis == "resolution":
            work *= timing.width * timing.height
        cost = timing.seconds.median / work
        first = firsts.setdefault((timing.axis, timing.verb), cost)
        yield dataclasses.replace(timing, ratio=cost / first)


def _parts_table(timings: Sequence[Timing]) -> Table:
    rows = []
    for timing in timings:
        total = timing.seconds.median
        order = sorted(timing.parts, key=lambda name: (name == OTHER, -timing.parts[name].median))
        for name in order:
            spread = timing.parts[name]
            share = "" if name == LOADING else f"{100 * spread.median / total:.1f} %"
            rows.append((Cell(timing.verb), Cell(name), *_spread_cells(spread), Cell(share)))
        rows.append(
            (
                Cell(timing.verb),
                Cell(f"all, {timing.fps:.1f} frames/s"),
                *_spread_cells(timing.seconds),
                Cell("100 %"),
            )
        )
    columns = [Column(title, numeric=False) for title in ("verb", "part")]
    columns += [Column(title) for title in ("seconds", "lowest", "highest", "share")]
    first = timings[0] if timings else None
    what = f" at {first.width}x{first.height}, {first.frames} frames" if first else ""
    return Table(f"Parts{what}", tuple(columns), tuple(rows))


def _scaling_table(axis: str, timings: Sequence[Timing]) -> Table:
    rows = tuple(
        (
            Cell(timing.verb),
            Cell(timing.label),
            Cell(f"{timing.fps:.1f}", timing.fps),
            Cell("–" if timing.generator_fps is None else f"{timing.generator_fps:.1f}"),
            *_spread_cells(timing.seconds),
            Cell(f"{timing.ratio:.2f}", timing.ratio),
        )
        for timing in sorted(timings, key=lambda t: t.verb)
    )
    each = "pixel" if axis == "resolution" else "frame"
    titles = (axis, "frames/s", "generator frames/s", "seconds", "lowest", "highest")
    columns = [Column("verb", numeric=False), *map(Column, titles), Column(f"time a {each}, ratio")]
    return Table(f"By {axis}", tuple(columns), rows)


def _spread_cells(spread: Spread) -> tuple[Cell, ...]:
    return tuple(Cell(f"{v:.3f}", v) for v in (spread.median, spread.low, spread.high))
