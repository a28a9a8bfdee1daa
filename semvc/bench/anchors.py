"""Conventional encoders at their best: SVT-AV1, x265, x264, VP9 and VVenC, one key frame a segment.

SVT-AV1 comes twice: as it is by default, tuned for PSNR, and for the eye ("svtav1-vq": its tune 0
with ac-bias 2, as profile disco codes its base layer).

Each runs in a process of its own, which says how long it took and how much memory it used:
`python -m semvc.bench.anchors REQUEST`, where REQUEST is JSON. VVenC is not in PyAV and comes from
an ffmpeg program: the one that the imageio-ffmpeg package brings, else the one on the path.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from semvc.bench import pictures
from semvc.errors import MediaError, SemvcError
from semvc.media import elementary
from semvc.report import Report

PRESETS = {
    "svtav1": "3",
    "svtav1-vq": "3",
    "x265": "veryslow",
    "x264": "veryslow",
    "vp9": "1",
    "vvenc": "medium",
}
MIN_SIDE = {"svtav1": 16, "svtav1-vq": 16, "x265": 64, "x264": 16, "vp9": 16, "vvenc": 64}
# what gives lower LPIPS at these rates: 8 bits with SVT-AV1, 10 with x265
BITS = {"svtav1": 8, "svtav1-vq": 8, "x265": 10, "x264": 8, "vp9": 8, "vvenc": 10}
_FFMPEG_NAMES = {
    "svtav1": "libsvtav1",
    "svtav1-vq": "libsvtav1",
    "x265": "libx265",
    "x264": "libx264",
    "vp9": "libvpx-vp9",
}
_VQ = ":tune=0:ac-bias=2"  # of SVT-AV1, against its default tune 1, for PSNR


@dataclass(frozen=True, slots=True)
class Coding:
    """One encode: raw 10-bit 4:2:0 of `source`, as `pictures.write_planes` leaves it, to `target`.

    `gop` is the longest run of frames between key frames, `fps` a fraction as text, `threads` 0 for
    the encoder's own choice.
    """

    codec: str
    preset: str
    crf: float
    source: str
    target: str
    width: int
    height: int
    fps: str
    gop: int
    threads: int = 0


@dataclass(frozen=True, slots=True)
class Coded:
    """What an encode cost: bytes of the stream, seconds, peak memory in bytes."""

    bytes: int
    seconds: float
    memory: int


def unavailable(codec: str) -> str:
    """Return why an encoder cannot be used here, or nothing."""
    if codec == "vvenc" and ffmpeg() is None:
        return "no ffmpeg with libvvenc: pip install imageio-ffmpeg brings one"
    return ""


@functools.cache
def ffmpeg() -> str | None:
    """Return the path of an ffmpeg program that has VVenC, None if there is none."""
    try:
        found: list[str | None] = [importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()]
    except (ImportError, RuntimeError):
        found = []
    for path in (*found, shutil.which("ffmpeg")):
        if path is None:
            continue
        try:
            done = subprocess.run(
                [path, "-hide_banner", "-encoders"], capture_output=True, check=False
            )
        except OSError:
            continue
        if b"libvvenc" in done.stdout:
            return path
    return None


def command(coding: Coding) -> list[str]:
    """Return the command that does an encode and prints `Coded` as JSON.

    MediaError for pictures that the encoder cannot take.
    """
    least = MIN_SIDE[coding.codec]
    if min(coding.width, coding.height) < least:
        raise MediaError(
            f"{coding.codec} needs sides of {least} at least, not {coding.width}x{coding.height}"
        )
    request = {**dataclasses.asdict(coding), "program": ""}
    if coding.codec == "vvenc":
        request["program"] = ffmpeg() or ""
    return [sys.executable, "-m", "semvc.bench.anchors", json.dumps(request)]


def result(output: bytes) -> Coded:
    """Return what `command` printed."""
    return Coded(**json.loads(output))


def encoder(coding: Coding) -> elementary.Encoder:
    """Return the settings of an encoder that PyAV has; the strongest that are in common use."""
    crf, gop, threads = f"{coding.crf:g}", str(coding.gop), str(coding.threads)
    options: dict[str, str]
    match coding.codec:
        case "svtav1" | "svtav1-vq":
            # the library's own crf goes to 70 in quarters; irefresh-type 2 closes segments
            params = f"crf={crf}:keyint={gop}:irefresh-type=2:lp={threads}"
            params += _VQ if coding.codec == "svtav1-vq" else ""
            options = {"preset": coding.preset, "svtav1-params": params}
        case "x265":
            params = f"crf={crf}:keyint={gop}:open-gop=0:info=0:log-level=none"
            if coding.threads:
                params += f":pools={threads}:frame-threads=1"
            options = {"preset": coding.preset, "x265-params": params}
        case "x264":
            params = f"keyint={gop}:open-gop=0"
            options = {"preset": coding.preset, "crf": crf, "x264-params": params}
            options |= {"threads": threads} if coding.threads else {}
        case _:
            options = {"crf": crf, "b": "0", "g": gop, "deadline": "good"}
            options |= {"cpu-used": coding.preset, "lag-in-frames": "25", "auto-alt-ref": "1"}
            options |= {"threads": threads} if coding.threads else {}
    return elementary.Encoder(
        pictures.KIND[coding.codec],
        _FFMPEG_NAMES[coding.codec],
        tuple(options.items()),
        BITS[coding.codec],
        Fraction(coding.fps),
    )


def _encode(coding: Coding, program: str) -> Coded:
    target = Path(coding.target)
    begun = time.monotonic()
    if coding.codec == "vvenc":
        _encode_vvc(coding, program)
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        memory *= 1 if sys.platform == "darwin" else 1024
    else:
        planes = pictures.read_planes(Path(coding.source), coding.width, coding.height)
        elementary.encode(planes, encoder(coding), target)
        memory = Report("encode", coding.width, coding.height).to_json()["peak_memory_bytes"]
    seconds = time.monotonic() - begun
    size = elementary.payload_bytes(pictures.KIND[coding.codec], target.read_bytes())
    return Coded(size, seconds, memory)


def _encode_vvc(coding: Coding, program: str) -> None:
    if not program:
        raise MediaError(unavailable("vvenc"))
    target = Path(coding.target)
    words = ["-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "yuv420p10le"]
    words += ["-s", f"{coding.width}x{coding.height}", "-r", coding.fps, "-i", coding.source]
    words += ["-c:v", "libvvenc", "-preset", coding.preset, "-qp", f"{coding.crf:g}", "-qpa", "1"]
    words += ["-threads", str(coding.threads or 2)]
    params = f"intraperiod={coding.gop}:decodingrefreshtype=idr"
    words += ["-vvenc-params", params, "-f", "vvc", str(target)]
    done = subprocess.run([program, *words], stderr=subprocess.PIPE, check=False)
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise MediaError(f"VVenC failed: {' '.join(why) or done.returncode}")
    target.write_bytes(elementary.bare("vvc", target.read_bytes()))


def main(words: list[str]) -> int:
    """Do one encode and print what it cost; the exit code is that of the error."""
    request: dict[str, Any] = json.loads(words[0])
    program = request.pop("program")
    try:
        coded = _encode(Coding(**request), program)
    except SemvcError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(dataclasses.asdict(coded)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
