"""Figures of speed and memory, in a table: `python -m tests.bench [startup speed parts memory]`.

Nothing is asserted. Times of whole commands are processor time (user and system), which other work
on the machine disturbs less than the clock; rates are by the clock. All input is drawn here.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # also when run as a module of the repository

import av
import numpy as np
from program import ROOT
from scene import Scene, write_video

from semvc import weights
from semvc.bitstream.container import StreamReader, probe
from semvc.decoder import DecodeJob, decode
from semvc.encoder import EncodeJob, encode
from semvc.entropy.coder import Decoder, Encoder
from semvc.entropy.tables import normalize
from semvc.media import av1
from semvc.types import EncodeOptions

RUNS = 11
WIDTH, HEIGHT, FRAMES = 854, 480, 48
GENERATED = 4  # frames of the generator
LONG_SIZE, LONG_FPS, SHORT_SECONDS, LOOPS = (320, 180), 12, 10, 60

# a child's peak begins with its parent's memory, so that the parent has to be a small one
LAUNCHER = """
import os, subprocess, sys, time
begun = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(child.pid, 0)
print(used.ru_utime + used.ru_stime, time.perf_counter() - begun, used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""

Row = tuple[str, float, str]


def command(words: Sequence[Any], folder: Path) -> tuple[float, float, float]:
    """Processor and clock seconds and peak MB of one process, with cached bytecode.

    The peak is the largest of the process and of each of its children.
    """
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env |= {"PYTHONPYCACHEPREFIX": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, sys.executable, *map(str, words)],
        env=env,
        stdout=subprocess.PIPE,
        check=True,
    )
    cpu, seconds, peak = map(float, done.stdout.split())
    return cpu, seconds, peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def clip(folder: Path) -> Path:
    """The 480p clip, drawn once."""
    path = folder / "clip.mp4"
    if not path.exists():
        write_video(path, Scene(WIDTH, HEIGHT, FRAMES).render()[0])
    return path


def stream(folder: Path) -> Path:
    """The clip's stream at the default options."""
    path = folder / "clip.svc"
    if not path.exists():
        encode(clip(folder), path, EncodeOptions(), job=EncodeJob(deterministic=True))
    return path


def startup(folder: Path) -> Iterator[Row]:
    """What the quick commands cost, beside an interpreter that does nothing."""
    small = stream(folder)
    cases: dict[str, list[Any]] = {
        "bare interpreter": ["-c", "pass"],
        "semvc --help": ["-m", "semvc", "--help"],
        "semvc info": ["-m", "semvc", "info", small],
        "semvc verify": ["-m", "semvc", "verify", small],
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for run in range(RUNS + 1):
        for name, words in cases.items():
            taken = command(words, folder)[0]
            if run:  # the first one fills the caches
                times[name].append(1000 * taken)
    for name, found in times.items():
        yield f"{name}, process time", statistics.median(found), "ms"


def speed(folder: Path) -> Iterator[Row]:
    """Frames per second of whole files at 480p."""
    source, size = clip(folder), f"{WIDTH}x{HEIGHT}"
    for preset in (4, 12):
        report = encode(
            source, folder / "speed.svc", EncodeOptions(preset=preset), job=EncodeJob(force=True)
        )
        yield f"encode {size}, preset {preset}", report.frames / report.seconds, "frames/s"
    for codec in ("h264", "ffv1"):
        with stream(folder).open("rb") as opened:
            job = DecodeJob(tier="preview", codec=codec, force=True)
            report = decode(opened, folder / "speed.mp4", job)
        yield f"decode {size}, preview to {codec}", report.frames / report.seconds, "frames/s"


def parts(folder: Path) -> Iterator[Row]:
    """Single components."""
    many = folder / "clip.svc"
    stream(folder)
    taken = best(lambda: probe(many.open("rb")))
    yield "parse and probe a small stream", 1000 * taken, "ms"
    rng = np.random.default_rng(1)
    tables = normalize(rng.integers(1, 1000, (64, 33)))
    index, values = rng.integers(0, 64, 200_000), rng.integers(0, 33, 200_000)
    payload = coded(values, tables, index)
    yield "entropy, encode", len(values) / best(lambda: coded(values, tables, index)) / 1e6, "M/s"
    found = best(lambda: Decoder(payload, len(values)).code(None, len(values), tables, index))
    yield "entropy, decode", len(values) / found / 1e6, "M/s"
    frames = Scene(WIDTH, HEIGHT, 24).render()[0]
    head, obus = av1.encode_segment(frames, crf=50, preset=12)
    with av1.SegmentDecoder() as decoder:
        taken = best(lambda: decoder.decode(head, obus, (WIDTH, HEIGHT), 24))
    yield f"base layer, decode {WIDTH}x{HEIGHT}", 24 / taken, "frames/s"
    yield from generator(folder)


def coded(values: Any, tables: Any, index: Any) -> bytes:
    """Symbols as a payload."""
    encoder = Encoder()
    encoder.code(values, len(values), tables, index)
    return encoder.finish()


def best(work: Callable[[], Any], runs: int = 5) -> float:
    """Clock seconds of the quickest of several runs."""
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def generator(folder: Path) -> Iterator[Row]:
    """Seconds a frame of each bundled model, the first frame and its loading left out."""
    for ref in weights.index():
        if weights.folder(ref) is not None and ref.tier == "small":
            yield f"{ref.id}, {WIDTH}x{HEIGHT}", frame_seconds(ref.tier, folder), "s/frame"


def frame_seconds(tier: str, folder: Path) -> float:
    """Seconds between the frames of a decode."""
    ticks: list[float] = []
    with stream(folder).open("rb") as opened:
        rate = StreamReader(opened).header.frame_rate
        opened.seek(0)
        job = DecodeJob(tier=tier, duration=float(Fraction(GENERATED) / rate), force=True)
        target = folder / "small.mp4"
        decode(opened, target, job, on_frames=lambda *_: ticks.append(time.perf_counter()))
    return (ticks[-1] - ticks[0]) / (len(ticks) - 1)


def memory(folder: Path) -> Iterator[Row]:
    """Peak memory for a short and a long input of the same content."""
    width, height = LONG_SIZE
    short, long = folder / "short.mp4", folder / "long.mp4"
    scene = Scene(width, height, LONG_FPS * SHORT_SECONDS, Fraction(LONG_FPS), pan=0.02, dolly=0.1)
    write_video(short, scene.render()[0], fps=LONG_FPS)
    loop(short, long, LOOPS)
    for path, name in ((short, "10 s"), (long, "10 min")):
        coded, rebuilt = path.with_suffix(".svc"), path.with_suffix(".out.mp4")
        for verb, words in (
            ("encode", ["encode", path, coded, "--preset", 12]),
            ("decode", ["decode", coded, rebuilt, "--tier", "preview"]),
        ):
            _, seconds, peak = command(["-m", "semvc", *words, "--quiet"], folder)
            yield f"{verb} {name} of {width}x{height}, peak", peak, f"MB ({seconds:.0f} s)"


def loop(source: Path, target: Path, times: int) -> None:
    """Repeat a video's packets, each time one length later."""
    with av.open(str(source)) as given, av.open(str(target), "w") as output:
        video = given.streams.video[0]
        length = video.duration or 0
        copy = output.add_stream_from_template(video)
        for turn in range(times):
            given.seek(0)
            for packet in given.demux(video):
                if packet.pts is None or packet.dts is None:
                    continue
                packet.pts += turn * length
                packet.dts += turn * length
                packet.stream = copy
                output.mux(packet)


GROUPS = {"startup": startup, "speed": speed, "parts": parts, "memory": memory}


def main() -> None:
    wanted = sys.argv[1:] or list(GROUPS)
    if unknown := set(wanted) - set(GROUPS):
        raise SystemExit(f"{', '.join(unknown)}: choose from {', '.join(GROUPS)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            print(f"{name}:")
            for label, value, unit in GROUPS[name](Path(folder)):
                print(f"  {label:44} {value:10.3f} {unit}", flush=True)


if __name__ == "__main__":
    main()
