"""Signals that break rules behind checksums that hold give only declared errors, soon."""

from __future__ import annotations

import io
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hostile import ALLOWED, SLOW, Profiles, Wild, check_signals, hostile_signals, signal_seeds
from oracles import check_hostile

from semvc.entropy.coder import Decoder
from semvc.entropy.reference import MAX_SYMBOLS
from semvc.entropy.tables import logistic_tables, normalize
from semvc.inspect import verify_signals

CORPUS = Path(__file__).parent / "corpus"


@pytest.fixture(scope="module")
def profile() -> Iterator[Profiles]:
    with closing(Profiles()) as made:
        yield made


def fuzz(profile: Profiles, count: int, seed: int) -> Counter[str]:
    seen: Counter[str] = Counter()
    for case in range(count):
        rng = random.Random((seed << 32) + case)
        raw = hostile_signals(rng.choice(signal_seeds()), rng)
        begun = time.process_time()
        seen.update(check_signals(raw, profile) or ["ok"])
        assert time.process_time() - begun < SLOW, case
    return seen


@pytest.mark.slow
def test_hostile_signals_give_only_declared_errors(profile: Profiles) -> None:
    seen = fuzz(profile, 400, 1)
    assert seen["ok"] > 40 and seen["BitstreamError"] > 100  # both sides of the rules are met


@pytest.mark.nightly
def test_many_hostile_signals_give_only_declared_errors(profile: Profiles) -> None:
    fuzz(profile, 20_000, 2)


def test_verification_reports_hostile_signals_and_raises_nothing_else() -> None:
    rng, seeds = random.Random(3), signal_seeds()
    reports = 0
    for _ in range(8):
        raw = hostile_signals(seeds[0], rng)
        try:
            reports += bool(verify_signals(io.BytesIO(raw)))
        except ALLOWED:
            continue
    assert reports


def test_vectors_pass_the_check_for_hostile_streams(profile: Profiles) -> None:
    for raw in set(signal_seeds()):
        assert check_signals(raw, profile) == []


def test_streams_that_once_failed_do_not_fail_again(profile: Profiles) -> None:
    for path in sorted((CORPUS / "regressions").glob("*.svc")):
        begun = time.process_time()
        check_hostile(path.read_bytes())
        check_signals(path.read_bytes(), profile)
        assert time.process_time() - begun < SLOW, path


def test_a_wild_coder_writes_what_it_returns() -> None:
    coder = Wild(random.Random(1), 50)
    wide = normalize(np.arange(1, 41)[None])
    found = [coder.code(None, 10, table) for table in (wide, logistic_tables()) for _ in range(4)]
    decoder = Decoder(coder.finish(), MAX_SYMBOLS)
    again = [decoder.code(None, 10, table) for table in (wide, logistic_tables()) for _ in range(4)]
    decoder.finish()
    assert np.array_equal(found, again)
    assert not np.any(found[5:])
    assert decoder.check == coder.check
