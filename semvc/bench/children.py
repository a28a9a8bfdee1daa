"""Child processes that can all be stopped at once, from another thread."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_GRACE = 10.0  # seconds in which a process may clean up after being told to end


class Stopped(Exception):
    """The work was called off."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: its exit code, its output, its clock seconds."""

    code: int
    out: bytes
    err: str
    seconds: float

    def reason(self, what: str) -> str:
        """Return why it failed, in its own last words."""
        lines = self.err.strip().splitlines()
        return f"{what}: {lines[-1] if lines else f'exit code {self.code}'}"


class Children:
    """Runs processes for any number of threads, until `stop`.

    They are in sessions of their own: Ctrl-C reaches them through `stop` alone. `threads` limits
    what each may use, 0 leaves the choice to it.
    """

    def __init__(self, threads: int = 0) -> None:
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._environment = dict(os.environ)
        if threads:
            self._environment["OMP_NUM_THREADS"] = str(threads)

    def run(self, command: Sequence[str | Path]) -> Ended:
        """Run a command to its end; Stopped if `stop` was called before or meanwhile."""
        begun = time.monotonic()
        with self._started([str(word) for word in command]) as child:
            out, err = child.communicate()
        self.check()
        seconds = time.monotonic() - begun
        return Ended(child.returncode, out, err.decode("utf-8", errors="replace"), seconds)

    def check(self) -> None:
        """Raise Stopped if `stop` was called."""
        if self._stopped.is_set():
            raise Stopped

    def stop(self) -> None:
        """End all processes, kindly first, and start no more."""
        with self._lock:
            self._stopped.set()
            running = list(self._running)
        for child in running:
            _signal(child, signal.SIGTERM)
        end = time.monotonic() + _GRACE
        for child in running:
            try:
                child.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal(child, signal.SIGKILL)

    @contextlib.contextmanager
    def _started(self, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
        with self._lock:
            self.check()
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment,
                start_new_session=True,
            )
            self._running.add(child)
        try:
            yield child
        finally:
            with self._lock:
                self._running.discard(child)


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to a process and to those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)
