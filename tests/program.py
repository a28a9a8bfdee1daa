"""Running semvc as users do, as a process of its own; and files for it to work on."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import semvc
from semvc import cli

ROOT = Path(semvc.__file__).parents[1]
PROGRAM = (sys.executable, "-m", "semvc")
FAST = ("--preset", "12", "--segment-seconds", "1")
PREVIEW = ("--tier", "preview")
TIMEOUT = 120


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended: its exit code and what it wrote."""

    code: int
    out: str
    err: str


Call = Callable[..., Result]  # what the fixture `run` is


def environment(**changes: str | None) -> dict[str, str]:
    """This process's environment with some variables changed, or removed (None)."""
    found: dict[str, str | None] = {**os.environ, "PYTHONPATH": str(ROOT), **changes}
    return {name: value for name, value in found.items() if value is not None}


def semvc_process(
    *words: Any, input: bytes | None = None, env: dict[str, str] | None = None, **how: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run `semvc WORDS` in a process of its own; output as bytes."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": TIMEOUT, **how}
    if "stdin" not in how:
        how["input"] = input or b""
    command = [*PROGRAM, *(word if isinstance(word, bytes) else str(word) for word in words)]
    return subprocess.run(command, env=env or environment(), check=False, **how)


def start(*words: Any, **how: Any) -> subprocess.Popen[bytes]:
    """Start `semvc WORDS` and do not wait for it."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    return subprocess.Popen([*PROGRAM, *map(str, words)], env=environment(), **how)


def call(capture: Any, *words: Any) -> Result:
    """Run one command inside this process; `capture` is pytest's `capfd`."""
    capture.readouterr()
    code = cli.run([str(word) for word in words])
    return Result(code, *capture.readouterr())


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until `condition` holds; fail if it does not."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the condition did not come true")
        time.sleep(0.002)


def size(path: Path) -> int:
    """Length of a file in bytes, 0 if there is none."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())
