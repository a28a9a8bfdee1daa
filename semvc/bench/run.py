"""Runs a suite: codes files, decodes them, measures what came back, and keeps every result.

semvc runs as a process, by the same command line that everybody uses; so do the other encoders.
The folder `out` holds

    report.json         the result, see `rows.Report`
    rows/KEY.json       one finished row each; a second run takes those whose key it meets again
    clips/              ranges of frames that were cut from clips, without loss
    coded/              coded files, and what it cost to make them
    rebuilt/            semvc's decoded videos, without loss
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

import semvc
from semvc.bench import anchors, curves, metrics, pictures, plan
from semvc.bench.children import Children
from semvc.bench.plan import Keys, Point
from semvc.bench.rows import Report, Row, Skipped
from semvc.bench.suite import Clip, Suite
from semvc.errors import MediaError, SemvcError, UsageError
from semvc.media import elementary

Progress = Callable[[int, int, str], None]

_PROGRAM = (sys.executable, "-m", "semvc")


@dataclass(frozen=True, slots=True)
class Job:
    """How to run a suite, which decides nothing about its figures but speed and memory.

    `clips` is the folder that the suite's paths start from, `out` the folder of results.
    `metric_weights` is described in `networks`. `jobs` points are worked on at once. `device` is
    auto, cpu, cuda or cuda:N. Without `keep`, coded and rebuilt files are removed once measured.
    """

    clips: Path
    out: Path
    metric_weights: Path | None = None
    models_dir: Path | None = None
    jobs: int = 1
    device: str = "auto"
    keep: bool = True


def run(suite: Suite, job: Job, *, on_progress: Progress | None = None) -> Report:
    """Measure all points of a suite; write and return the report.

    `on_progress` gets the number of rows done, of all rows, and what was done last; it is called
    from this thread. Points that fail are reported as skipped. Whatever interrupts the run ends all
    its processes first; a second run goes on where it stopped.

    UsageError for clips that are missing or a device that is.
    """
    if job.jobs < 1:
        raise UsageError(f"{job.jobs} jobs: at least one is needed")
    device = _device(job.device)
    threads = max(1, plan.cores() // job.jobs) if job.jobs > 1 else 0
    with _torch_threads(threads):
        runner = _Runner(suite, job, device, threads)
        return runner.run(on_progress or (lambda *_: None))


@dataclass(frozen=True, slots=True)
class _Source:
    """A clip as it is coded: its key, its file, and what it is."""

    key: str
    path: Path
    width: int
    height: int
    frames: int
    rate: Fraction
    seconds: float


class _Runner:
    """One run of a suite."""

    def __init__(self, suite: Suite, job: Job, device: str, threads: int) -> None:
        self._suite, self._job, self._device, self._threads = suite, job, device, threads
        self._files = suite.files(job.clips)
        self._children, self._locks = Children(threads), _Locks()
        self._keys = Keys(
            suite, models_dir=job.models_dir, metric_weights=job.metric_weights, device=device
        )
        self._meter = metrics.Meter(
            suite.metrics, weights=job.metric_weights, every=suite.every, device=device
        )
        codecs = dict.fromkeys(anchor.codec for anchor in suite.anchors)
        self._absent = {c: why for c in codecs if (why := anchors.unavailable(c))}
        for name in ("rows", "clips", "planes", "coded", "rebuilt"):
            (job.out / name).mkdir(parents=True, exist_ok=True)
        self._clip_keys: dict[str, str] = {}
        self._startups: dict[tuple[str, str, str], float] = {}
        self._left = Counter[str]()

    def run(self, on_progress: Progress) -> Report:
        """Work on all points, clip by clip."""
        work = [
            (clip, path, point)
            for clip, path in self._files
            for point in plan.points(self._suite, clip.name)
            if point.codec not in self._absent
        ]
        self._left = Counter(clip.name for clip, _, _ in work)
        total, done = sum(len(point.tiers) for _, _, point in work), 0
        found: dict[Point, list[Row | Skipped]] = {}
        pool = ThreadPoolExecutor(self._job.jobs)
        on_progress(0, total, "")
        try:
            waiting = {pool.submit(self._point, *item): item[2] for item in work}
            for future in as_completed(waiting):
                found[waiting[future]] = future.result()
                for item in future.result():
                    done += 1
                    on_progress(done, total, _label(item))
        finally:
            self._children.stop()
            pool.shutdown(cancel_futures=True)
            shutil.rmtree(self._job.out / "planes", ignore_errors=True)
        return self._report([item for _, _, point in work for item in found[point]])

    def _point(self, clip: Clip, path: Path, point: Point) -> list[Row | Skipped]:
        """Return a point's rows, one a tier, made now or before."""
        found: list[Row | Skipped] = []
        try:
            clip_key = self._clip_key(clip, path)
            stream_key = self._keys.stream(point, clip_key)
            for tier in point.tiers:
                try:
                    found.append(self._row(clip, path, point, (clip_key, stream_key, tier)))
                except SemvcError as error:
                    self._children.check()
                    found.append(point.skipped(str(error), tier))
        finally:
            self._drop_planes(clip)
        return found

    def _row(self, clip: Clip, path: Path, point: Point, keys: tuple[str, str, str]) -> Row:
        clip_key, stream_key, tier = keys
        rebuilt_key = self._keys.rebuilt(point, stream_key, tier)
        kept = self._job.out / "rows" / f"{self._keys.row(rebuilt_key)}.json"
        if (row := _kept_row(kept, self._job.out)) is not None:
            return dataclasses.replace(row, clip=clip.name)
        self._children.check()
        with self._locks.holding(clip_key):
            source = self._source(clip, path, clip_key)
        with self._locks.holding(stream_key):
            if point.codec == "semvc":
                row = self._coded_by_semvc(point, source, stream_key)
            else:
                row = self._coded_by_other(point, source, stream_key)
        stream = self._job.out / row.rebuilt
        if point.codec == "semvc":
            row = self._decoded(dataclasses.replace(row, tier=tier), source, stream, rebuilt_key)
        row = self._measured(row)
        _write_json(kept, row.to_json())
        if not self._job.keep:
            (self._job.out / row.rebuilt).unlink()
            if tier == point.tiers[-1]:
                stream.unlink(missing_ok=True)
            row = dataclasses.replace(row, rebuilt="")
        return row

    # --- clips

    def _clip_key(self, clip: Clip, path: Path) -> str:
        with self._locks.holding(clip.name):
            if clip.name not in self._clip_keys:
                self._clip_keys[clip.name] = self._keys.clip(clip, path)
            return self._clip_keys[clip.name]

    def _source(self, clip: Clip, path: Path, key: str) -> _Source:
        """Return the clip as a file of its own, cut if it is a range."""
        stem = self._job.out / "clips" / f"{clip.name}-{key[:8]}"
        file, record = path.absolute(), stem.with_name(stem.name + ".json")
        if not clip.whole:
            file = stem.with_name(stem.name + ".mp4")
            if not file.is_file():
                pictures.cut(path, clip, file)
        if not record.is_file():
            info, count, seconds = pictures.describe(file)
            rate = pictures.frame_rate(info, count, seconds)
            facts = [info.width, info.height, count, str(rate), seconds]
            _write_json(record, facts)
        width, height, count, rate_text, seconds = json.loads(record.read_text("utf-8"))
        return _Source(key, file, width, height, count, Fraction(rate_text), seconds)

    def _planes(self, clip: str, source: _Source, point: Point) -> tuple[Path, int, int, int]:
        """Return raw planes for conventional encoders, their width, height and number."""
        folder = self._job.out / "planes" / clip
        raw = folder / f"{point.size}-{point.divisor}.yuv"
        record = raw.with_suffix(".json")
        with self._locks.holding(str(raw)):
            if not record.is_file():
                folder.mkdir(parents=True, exist_ok=True)
                _write_json(
                    record, pictures.write_planes(source.path, point.size, point.divisor, raw)
                )
            width, height, count = json.loads(record.read_text("utf-8"))
        return raw, width, height, count

    def _drop_planes(self, clip: Clip) -> None:
        with self._locks.holding("left"):
            self._left[clip.name] -= 1
            if not self._left[clip.name]:
                shutil.rmtree(self._job.out / "planes" / clip.name, ignore_errors=True)

    # --- coding

    def _new_row(self, point: Point, source: _Source, file: Path, size: int, **more: Any) -> Row:
        pixels = source.width * source.height * source.frames
        return Row(
            point.clip,
            point.codec,
            point.setting,
            profile=point.profile,
            size=point.size,
            divisor=point.divisor,
            width=source.width,
            height=source.height,
            frames=source.frames,
            frame_rate=float(source.rate),
            seconds=source.seconds,
            bytes=size,
            bpp=8 * size / pixels,
            kbps=8 * size / source.seconds / 1000 if source.seconds else 0.0,
            original=_relative(source.path, self._job.out),
            rebuilt=_relative(file, self._job.out),
            **more,
        )

    def _coded_by_semvc(self, point: Point, source: _Source, key: str) -> Row:
        """Return a row whose `rebuilt` is still the coded file."""
        file = self._job.out / "coded" / f"{key}.svc"
        record = file.with_suffix(".json")
        if not (file.is_file() and record.is_file()):
            words = ["-q", f"{point.setting:g}", "-p", point.profile, *self._suite.encode]
            report = self._semvc("encode", source.path, file, words)
            _write_json(record, report)
        report = json.loads(record.read_text("utf-8"))
        audio = int(report["audio_bytes"])
        return self._new_row(
            point,
            source,
            file,
            report["bytes"] - audio,
            audio_bytes=audio,
            sections=report["sections"],
            overhead_bytes=report["bytes"] - sum(report["sections"].values()),
            encode_fps=report["fps"],
            encode_rss_bytes=report["peak_memory_bytes"],
            encode_cuda_bytes=report.get("peak_cuda_bytes"),
        )

    def _coded_by_other(self, point: Point, source: _Source, key: str) -> Row:
        suffix = elementary.KINDS[pictures.KIND[point.codec]].suffix
        file = self._job.out / "coded" / f"{key}{suffix}"
        record = file.with_suffix(".json")
        if not (file.is_file() and record.is_file()):
            raw, width, height, _ = self._planes(point.clip, source, point)
            rate = source.rate / point.divisor
            coding = anchors.Coding(
                point.codec,
                point.preset,
                point.setting,
                str(raw),
                str(file),
                width,
                height,
                str(rate),
                max(1, round(self._suite.gop_seconds * rate)),
                self._threads,
            )
            ended = self._children.run(anchors.command(coding))
            if ended.code:
                raise MediaError(ended.reason(point.codec))
            _write_json(record, dataclasses.asdict(anchors.result(ended.out)))
        cost = anchors.Coded(**json.loads(record.read_text("utf-8")))
        begun = time.monotonic()
        for _ in elementary.decode(file, pictures.KIND[point.codec]):
            self._children.check()
        return self._new_row(
            point,
            source,
            file,
            cost.bytes,
            encode_fps=source.frames / cost.seconds,
            encode_rss_bytes=cost.memory,
            decode_fps=source.frames / (time.monotonic() - begun),
        )

    def _decoded(self, row: Row, source: _Source, stream: Path, key: str) -> Row:
        """Return the row with the decoded video and what it cost."""
        file = self._job.out / "rebuilt" / f"{key}.mp4"
        record = file.with_suffix(".json")
        if not (file.is_file() and record.is_file()):
            words = ["--tier", row.tier, "--output-codec", "ffv1", "--device", self._device]
            words += self._suite.decode
            startup = self._startup(source, stream, (row.profile, row.tier), words)
            report = self._semvc("decode", stream, file, words)
            _write_json(record, {**report, "startup_s": startup})
        report = json.loads(record.read_text("utf-8"))
        spent = report["clock_seconds"] - report["startup_s"]
        return dataclasses.replace(
            row,
            rebuilt=_relative(file, self._job.out),
            decode_fps=(source.frames - 1) / spent if spent > 0 and source.frames > 1 else None,
            startup_s=report["startup_s"],
            decode_rss_bytes=report["peak_memory_bytes"],
            decode_cuda_bytes=report.get("peak_cuda_bytes"),
        )

    def _startup(
        self, source: _Source, stream: Path, kind: tuple[str, str], words: Sequence[str]
    ) -> float:
        """Return the clock seconds of a decode of one frame, taken once for a clip and a tier."""
        name = (source.key, *kind)
        with self._locks.holding(str(name)):
            if name not in self._startups:
                first = str(float(1 / source.rate) / 2)
                scratch = stream.with_name(f"{stream.stem}-{kind[1]}-first.mp4")
                report = self._semvc("decode", stream, scratch, [*words, "--duration", first])
                scratch.unlink()
                self._startups[name] = report["clock_seconds"]
            return self._startups[name]

    def _semvc(self, verb: str, source: Path, target: Path, words: Sequence[str]) -> dict[str, Any]:
        """Run `semvc encode` or `decode` on files; return its report and `clock_seconds`."""
        command = [*_PROGRAM, verb, str(source), str(target), *words, "--json", "--quiet"]
        command.append("--force")
        if self._job.models_dir is not None:
            command += ["--models-dir", str(self._job.models_dir)]
        ended = self._children.run(command)
        if ended.code:
            raise MediaError(ended.reason(f"semvc {verb}"))
        return {**json.loads(ended.out), "clock_seconds": ended.seconds}

    # --- measuring

    def _measured(self, row: Row) -> Row:
        def pairs() -> Iterator[tuple[Any, Any]]:
            folder = self._job.out
            originals, others = pictures.original(folder, row), pictures.rebuilt(folder, row)
            for pair in pictures.paired(originals, others):
                self._children.check()
                yield pair

        found = self._meter.measure(pairs, (row.height, row.width, row.frames), row.frame_rate)
        values = {name: value for name, value in found.values.items() if math.isfinite(value)}
        beyond = {name: "not a finite number" for name in set(found.values) - set(values)}
        return dataclasses.replace(row, metrics=values, missing={**found.missing, **beyond})

    def _report(self, found: Sequence[Row | Skipped]) -> Report:
        rows = tuple(item for item in found if isinstance(item, Row))
        bd_rates = curves.bd_rates(rows)
        notes = [f"{codec} was left out: {why}" for codec, why in self._absent.items()]
        notes += [f"{name} was not measured: {why}" for name, why in self._meter.missing.items()]
        models = {
            f"{profile} {tier}": model
            for profile in self._suite.profiles
            for tier in self._suite.tiers
            if (model := self._keys.model(profile, tier))
        }
        report = Report(
            semvc.__version__,
            self._suite.to_json(),
            plan.machine(self._device),
            rows,
            models=models,
            skipped=tuple(item for item in found if isinstance(item, Skipped)),
            envelopes=curves.envelopes(rows),
            bd_rates=bd_rates,
            mean_bd_rates=curves.means(bd_rates),
            notes=tuple(notes),
        )
        _write_json(self._job.out / "report.json", report.to_json())
        return report


class _Locks:
    """A lock for every name."""

    def __init__(self) -> None:
        self._lock, self._locks = threading.Lock(), dict[str, threading.Lock]()

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Let one thread at a time do what has this name."""
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            yield


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Limit the threads of one torch operation while several are at work; 0 leaves it alone."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _device(name: str) -> str:
    """Return the device meant; UsageError if it is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"no graphics card for --device {name}: use cpu")
    try:
        return str(torch.device(name))
    except RuntimeError as error:
        raise UsageError(f"unknown device {name}: use auto, cpu or cuda") from error


def _kept_row(path: Path, out: Path) -> Row | None:
    """Return a finished row, without names of files that are gone; None if it is not there."""
    try:
        row = Row.from_json(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, UsageError):
        return None
    gone = {
        name: ""
        for name in ("original", "rebuilt")
        if getattr(row, name) and not (out / getattr(row, name)).is_file()
    }
    return dataclasses.replace(row, **gone)  # type: ignore[arg-type]  # both are text


def _relative(path: Path, folder: Path) -> str:
    """Return a path as a row names it: below the folder, or absolute."""
    whole = path.absolute()
    try:
        return whole.relative_to(folder.absolute()).as_posix()
    except ValueError:
        return str(whole)


def _write_json(path: Path, values: Any) -> None:
    part = path.with_name(f"{path.name}.{threading.get_ident()}.part")
    part.write_text(json.dumps(values, indent=1), "utf-8")
    part.replace(path)


def _label(item: Row | Skipped) -> str:
    if isinstance(item, Row):
        return f"{item.clip}: {item.label}"
    return f"{item.clip}: {item.codec} {item.setting:g} skipped"
