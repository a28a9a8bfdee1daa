"""Fuzzes the container for some minutes: `python tests/fuzz.py [minutes] [seed]` (make fuzz).

Starts from the streams in tests/corpus and from samples, damages them or builds hostile ones, and
checks what must hold for any bytes. A failure is shrunk and saved to tests/corpus/regressions.
"""

from __future__ import annotations

import hashlib
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from oracles import check_damaged, check_hostile
from strategies import golden, hostile_stream, keys, mutate

from semvc.errors import SemvcError

CORPUS = Path(__file__).parent / "corpus"
SLOW = 1.0  # seconds that no input may take

Check = Callable[[bytes], None]


def seeds() -> list[tuple[bytes, Check]]:
    """Intact streams, each with the check for its damaged versions."""
    found: list[tuple[bytes, Check]] = []
    vectors = Path(__file__).parent / "vectors"
    files = sorted([*CORPUS.glob("seeds/*.svc"), *vectors.glob("**/*.svc")])
    for raw in (*golden().values(), *(path.read_bytes() for path in files)):
        try:
            expected = keys(raw)
        except SemvcError:
            found.append((raw, check_hostile))
            continue
        found.append((raw, lambda data, expected=expected: check_damaged(data, expected)))
    return found


def fails(check: Check, data: bytes) -> bool:
    """True if the check fails or takes too long."""
    begun = time.perf_counter()
    try:
        check(data)
    except Exception:
        return True
    return time.perf_counter() - begun > SLOW


def shrink(check: Check, data: bytes) -> bytes:
    """Return a shorter input that still fails."""
    size = len(data) // 2
    while size:
        at = 0
        while at < len(data):
            shorter = data[:at] + data[at + size :]
            if fails(check, shorter):
                data = shorter
            else:
                at += size
        size //= 2
    return data


def report(check: Check, data: bytes) -> None:
    """Show a failure and keep it for ever."""
    data = shrink(check, data)
    path = CORPUS / "regressions" / f"{hashlib.sha256(data).hexdigest()[:16]}.svc"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    print(f"saved {path} ({len(data)} bytes)")
    try:
        check(data)
    except Exception:
        traceback.print_exc(limit=-4)


def main() -> int:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    rng, sources, count, failures = random.Random(seed), seeds(), 0, 0
    print(f"seed {seed}, {len(sources)} streams, {minutes:g} minutes")
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end and failures < 10:
        if rng.random() < 0.5:
            raw, check = rng.choice(sources)
            data = mutate(raw, rng)
        else:
            data, check = hostile_stream(rng), check_hostile
            data = mutate(data, rng) if rng.random() < 0.2 else data
        count += 1
        if fails(check, data):
            failures += 1
            report(check, data)
    print(f"{count} inputs, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
