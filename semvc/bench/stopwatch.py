"""Times the parts of the program while it works on real files.

`watched` hangs a stopwatch around a few of the program's own functions and takes it off again. Each
moment counts for the innermost part that is running, so that the parts of a run add up to it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

OTHER = "the rest"

# part, "module:class" ("module" for a function), name, whether it gives things one by one
_COMMON = (
    ("entropy coder", "semvc.entropy.coder:Encoder", "code", False),
    ("entropy coder", "semvc.entropy.coder:Encoder", "finish", False),
    ("entropy coder", "semvc.entropy.coder:Decoder", "code", False),
    ("entropy coder", "semvc.entropy.coder:Decoder", "finish", False),
    ("base layer, decode", "semvc.media.av1:SegmentDecoder", "decode", False),
)
_PLACES = {
    "encode": (
        ("read the video", "semvc.media.reader:VideoReader", "__iter__", True),
        ("find shots", "semvc.media.scenes:SegmentPlanner", "push", False),
        ("find shots", "semvc.media.scenes:SegmentPlanner", "finish", False),
        ("base layer, encode", "semvc.media.av1", "encode_segment", False),
        ("sound", "semvc.media.audio:AudioTrack", "take", False),
        ("write the stream", "semvc.bitstream.container:StreamWriter", "write", False),
        ("write the stream", "semvc.bitstream.container:StreamWriter", "finish", False),
        ("analysis and signals", "{profile}", "begin", False),
        ("analysis and signals", "{profile}", "encode", False),
        *_COMMON,
    ),
    "decode": (
        ("parse the stream", "semvc.bitstream.container:StreamReader", "__init__", False),
        ("parse the stream", "semvc.bitstream.container:StreamReader", "__iter__", True),
        ("signals", "{profile}", "unpack", False),
        ("load the model", "{profile}", "load", False),
        ("generator", "{profile}", "synthesize", True),
        ("encode and mux the output", "semvc.media.writer:VideoWriter", "write", False),
        ("encode and mux the output", "semvc.media.writer:VideoWriter", "close", False),
        *_COMMON,
    ),
}


class Stopwatch:
    """Seconds of each part, in `seconds`, from its making until `stop`."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._running = [OTHER]
        self._since = clock()
        self.seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside for `name`, less that of parts within it."""
        self._turn()
        self._running.append(name)
        try:
            yield
        finally:
            self._turn()
            self._running.pop()

    def stop(self) -> dict[str, float]:
        """Return the seconds of all parts so far."""
        self._turn()
        return dict(self.seconds)

    def _turn(self) -> None:
        now = self._clock()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now


@contextlib.contextmanager
def watched(verb: str, profile: type[Any]) -> Iterator[Stopwatch]:
    """Time an encode or decode (`verb`) of a profile's class in this process, one at a time."""
    with contextlib.ExitStack() as stack:
        for _, _, place in (places := list(_owners(verb, profile))):
            stack.callback(setattr, *place)
        watch = Stopwatch()
        for part, one_by_one, (owner, name, function) in places:
            setattr(owner, name, _timed(function, watch, part, one_by_one=one_by_one))
        yield watch


def _owners(verb: str, profile: type[Any]) -> Iterator[tuple[str, bool, tuple[Any, str, Any]]]:
    for part, where, name, one_by_one in _PLACES[verb]:
        if where == "{profile}":
            owner: Any = profile
        else:
            module, _, attribute = where.partition(":")
            owner = importlib.import_module(module)
            owner = getattr(owner, attribute) if attribute else owner
        yield part, one_by_one, (owner, name, getattr(owner, name))


def _timed(
    function: Callable[..., Any], watch: Stopwatch, part: str, *, one_by_one: bool
) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        with watch.part(part):
            return function(*given, **named)

    @functools.wraps(function)
    def iterate(*given: Any, **named: Any) -> Iterator[Any]:
        items = call(*given, **named)
        while True:
            with watch.part(part):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    return iterate if one_by_one else call
