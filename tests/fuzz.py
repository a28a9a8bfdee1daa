"""Fuzzes container and signals for some minutes: `python -m tests.fuzz [minutes] [seed]`.

Starts from the golden vectors, the streams in tests/corpus and samples, damages them or builds
hostile ones, and checks what must hold for any bytes. A failure is shrunk and saved to
tests/corpus/regressions, where tests/test_hostile.py tries it again for ever.
"""

from __future__ import annotations

import hashlib
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # also when run as a module of the repository

from hostile import SLOW, Profiles, check_signals, hostile_signals, signal_seeds
from oracles import check_damaged, check_hostile
from strategies import golden, hostile_stream, keys, mutate

from semvc.errors import SemvcError

CORPUS = Path(__file__).parent / "corpus"

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
    begun = time.process_time()
    try:
        check(data)
    except Exception:
        return True
    return time.process_time() - begun > SLOW


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
    rng, sources, failures = random.Random(seed), seeds(), 0
    inputs: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    print(f"seed {seed}, {len(sources)} streams, {minutes:g} minutes")
    end = time.monotonic() + 60 * minutes
    with closing(Profiles()) as profile:

        def check_wild(data: bytes) -> None:
            outcomes.update(check_signals(data, profile) or ["intact"])

        while time.monotonic() < end and failures < 10:
            kind = rng.choice(("damaged", "hostile", "signals", "signals"))
            if kind == "damaged":
                raw, check = rng.choice(sources)
                data = mutate(raw, rng)
            elif kind == "hostile":
                data, check = hostile_stream(rng), check_hostile
                data = mutate(data, rng) if rng.random() < 0.2 else data
            else:
                data, check = hostile_signals(rng.choice(signal_seeds()), rng), check_wild
            inputs[kind] += 1
            if fails(check, data):
                failures += 1
                report(check, data)
    print(f"{dict(inputs)} inputs, {failures} failures; signals: {dict(outcomes)}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
