"""Latents round-trip exactly, cost little where they are zero, and depend on integers alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import latent_samples
import numpy as np
import pytest
from hostile import Wild
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_samples import LEVELS, SHAPE, decoded, golden, latents, prior, stored
from test_intnet import MACHINES

from semvc.bitstream.latents import LatentSection, split
from semvc.entropy.coder import Counter
from semvc.entropy.intnet import IntNet, Layer
from semvc.entropy.reference import MAX_SYMBOLS, ReferenceDecoder
from semvc.errors import BitstreamError, LimitError, ModelError, SemvcError
from semvc.signals.latent import (
    MAX_POSITIONS,
    LatentModel,
    Latents,
    decode_latents,
    encode_latents,
)
from semvc.signals.latentprior import LatentShape, Prior

SHAPES = {"rounded": SHAPE, "levels": LEVELS}
PRIORS = {
    (name, network): prior(shape, network=network)
    for name, shape in SHAPES.items()
    for network in (False, True)
}


def size(sample: Latents) -> tuple[int, int, int]:
    return (sample.latent.shape[0], *sample.latent.shape[2:])


def round_trip(sample: Latents, known: Prior) -> bytes:
    payload, check = encode_latents(sample, known, 5)
    decoded, other = decode_latents(payload, size(sample), known, 5)
    assert decoded == sample
    assert other == check
    return payload


@settings(max_examples=25)
@given(
    st.sampled_from(list(PRIORS)),
    st.integers(1, 4),
    st.sampled_from([(4, 4), (4, 8), (12, 4), (8, 12)]),
    st.sampled_from([1, 3, 30, 10**6]),
    st.integers(0, 2**32),
)
def test_latents_of_any_size_and_content_round_trip(
    which: tuple[str, bool], frames: int, grid: tuple[int, int], rare: int, seed: int
) -> None:
    round_trip(latents(seed, frames, grid, SHAPES[which[0]], rare), PRIORS[which])


@pytest.mark.parametrize("which", PRIORS)
def test_extreme_latents_round_trip(which: tuple[str, bool]) -> None:
    sample, shape = latents(1, 2, (4, 4), SHAPES[which[0]]), SHAPES[which[0]]
    for value in (-127, 127):
        for hyper in (shape.hyper_low, shape.hyper_low + shape.hyper_alphabet - 1):
            full = dataclasses.replace(
                sample,
                latent=np.full_like(sample.latent, value),
                hyper=np.full_like(sample.hyper, hyper),
            )
            round_trip(full, PRIORS[which])


def test_nothing_costs_next_to_nothing() -> None:
    shape = LatentShape(64, 4, 16)
    zeros = Latents(
        9, np.zeros((12, 16, 4, 8), np.int8), np.zeros((12, 64, 16, 32), np.int8)
    )  # 393 216 latents
    assert len(encode_latents(zeros, Prior.neutral(shape))[0]) < 200


def test_what_repeats_gets_cheaper() -> None:
    one = latents(3, 1, rare=10)
    still = Latents(1, one.hyper.repeat(8, 0), one.latent.repeat(8, 0))
    parts = split(encode_latents(still, prior())[0])
    assert len(parts.latent) / 7 < 0.6 * len(parts.intra)


def test_the_counter_and_the_reference_agree_with_the_coder() -> None:
    sample, known = latents(17, 3), prior()
    parts = split(encode_latents(sample, known)[0])
    names = ("code_intra", "code_hypers", "code_inters")
    counted = LatentModel(known, size(sample), sample.quality)
    again = LatentModel(known, size(sample), sample.quality)
    for name, run in zip(names, (parts.intra, parts.hyper, parts.latent), strict=True):
        counter = Counter()
        getattr(counted, name)(counter, sample)
        assert abs(counter.bits - 8 * len(run)) < 24
        getattr(again, name)(ReferenceDecoder(run, MAX_SYMBOLS), None)
    assert Latents(sample.quality, again.hyper, again.latent) == sample


# Damage


def test_garbage_behind_a_payload_is_refused() -> None:
    sample, known = latents(4), prior()
    payload = encode_latents(sample, known)[0]
    for garbage in (b"\1", b"\0", b"\0\1", payload):
        with pytest.raises(BitstreamError):
            decode_latents(payload + garbage, size(sample), known)


def test_every_prefix_and_flipped_bit_is_refused_or_changes_the_check() -> None:
    sample, known = latents(4, 2, (4, 4)), prior()
    payload, check = encode_latents(sample, known)
    damaged = [payload[:length] for length in range(len(payload))]
    for place in range(8, 8 * len(payload), 3):  # the first byte is the quality
        flipped = bytearray(payload)
        flipped[place >> 3] ^= 1 << (place & 7)
        damaged.append(bytes(flipped))
    refused = 0
    for data in damaged:
        try:
            found, other = decode_latents(data, size(sample), known)
        except SemvcError:
            refused += 1
            continue
        assert found != sample
        assert other != check
    assert refused > len(damaged) // 2


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_or_are_the_one_spelling(data: bytes) -> None:
    known = PRIORS["rounded", True]
    try:
        found, _ = decode_latents(data, (2, 4, 4), known)
    except BitstreamError:
        return
    assert encode_latents(found, known)[0] == data


@pytest.mark.parametrize("which", PRIORS)
@pytest.mark.parametrize("budget", [5, 60, 100_000])
def test_symbols_of_any_choice_decode_to_their_one_spelling(
    which: tuple[str, bool], budget: int
) -> None:
    known, refused = PRIORS[which], 0
    for seed in range(3):
        rng = random.Random(seed)
        model = LatentModel(known, (3, 4, 4), 252)
        runs = []
        for code in (model.code_intra, model.code_hypers, model.code_inters):
            coder = Wild(rng, budget)
            with contextlib.suppress(BitstreamError):  # then what was written so far is the case
                code(coder, None)
            runs.append(coder.finish())
        payload = LatentSection(252, *runs).to_bytes()
        try:
            found, _ = decode_latents(payload, (3, 4, 4), known)
        except BitstreamError:
            refused += 1
            continue
        assert encode_latents(found, known)[0] == payload
    assert refused < 3


@pytest.mark.parametrize(
    "parts",
    [
        LatentSection(0, b"", b"", b""),
        LatentSection(0, b"\1", b"\1", b""),
        LatentSection(0, b"\1", b"", b"\1"),
        LatentSection(253, b"\1", b"\1", b"\1"),
    ],
)
def test_impossible_sections_are_refused(parts: LatentSection) -> None:
    with pytest.raises(BitstreamError, match="LATENT"):
        split(parts.to_bytes())


def test_a_section_says_what_its_parts_weigh() -> None:
    payload = round_trip(latents(6), prior())
    assert sum(split(payload).sizes.values()) == len(payload)
    assert split(payload).to_bytes() == payload


def test_a_single_frame_has_no_other_runs() -> None:
    sample = latents(6, 1)
    parts = split(round_trip(sample, prior()))
    assert (parts.hyper, parts.latent) == (b"", b"")
    with pytest.raises(BitstreamError, match="has not"):
        decode_latents(dataclasses.replace(parts, hyper=b"\1", latent=b"\1").to_bytes(),
                       size(sample), prior())  # fmt: skip


def test_too_many_places_are_refused_before_anything_is_made() -> None:
    with pytest.raises(LimitError, match=str(MAX_POSITIONS)):
        decode_latents(b"\0", (1024, 2304, 4096), prior())


# Integers alone


@pytest.mark.parametrize("what", ["latent", "hyper"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int16])
def test_only_int8_is_a_latent(what: str, dtype: type) -> None:
    sample = latents(1)
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(sample, **{what: getattr(sample, what).astype(dtype)})


@pytest.mark.parametrize("name", SHAPE.arrays())
def test_no_float_table_enters_a_prior(name: str) -> None:
    known = prior()
    planted = {**known.tables, name: known.tables[name].astype(np.float32)}
    with pytest.raises(TypeError, match=name):
        dataclasses.replace(known, tables=planted)
    with pytest.raises(ModelError, match=name):
        arrays: dict[str, Any] = {**known.arrays(), f"prior.{name}": planted[name]}
        Prior.from_arrays(SHAPE, arrays)


@pytest.mark.parametrize("place", ["network", "blocks", "elements", "history"])
def test_a_float_planted_on_the_way_is_stopped(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sample, known = latents(2), prior()
    encode_latents(sample, known)  # fine before
    match place:
        case "network":
            run = IntNet.run
            monkeypatch.setattr(IntNet, "run", lambda net, x: run(net, x.astype(np.float32)))
        case "history":
            run_layer = Layer.run
            monkeypatch.setattr(IntNet, "run", lambda net, x: IntNet.run_exact(net, x / 1))
            monkeypatch.setattr(Layer, "run", run_layer)
        case "blocks" | "elements":
            from semvc.entropy.mixing import BitMixer

            predict = BitMixer.predict

            def planted(mixer: BitMixer, contexts: Any, select: Any) -> Any:
                guess = predict(mixer, contexts, select)
                return guess._replace(rows=guess.rows * 1.0)

            monkeypatch.setattr(BitMixer, "predict", planted)
    with pytest.raises((TypeError, IndexError)):
        encode_latents(sample, known)


def test_no_array_on_the_way_to_the_coder_is_a_float(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Watching(Counter):
        def code(self, values: Any, count: Any, tables: Any, index: Any = None) -> Any:
            seen.extend(a.dtype.kind for a in (values, index, tables.freqs) if a is not None)
            return super().code(values, count, tables, index)

    sample = latents(2)
    model = LatentModel(prior(), size(sample), sample.quality)
    for run in (model.code_intra, model.code_hypers, model.code_inters):
        run(Watching(), sample)
    assert set(seen) <= {"i", "u"}
    for table in model.state().values():
        assert table.dtype.kind in "iu"


def test_priors_survive_being_stored() -> None:
    for known in PRIORS.values():
        again = Prior.from_arrays(known.shape, known.arrays())
        sample = latents(8, shape=known.shape)
        assert encode_latents(sample, again) == encode_latents(sample, known)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prior.hyper": None}, "prior.hyper"),
        ({"prior.sign": np.ones((18, 3), np.uint16)}, "prior.sign"),
        ({"prior.levels": np.arange(63, 0, -1).astype(np.uint16)}, "fall"),
        ({"prior.net.11.0.weight": None}, "prior.net.11"),
        ({"prior.net.10.1.bias": np.zeros(3, np.float32)}, "biases"),
        ({"prior.other": np.ones(3, np.uint16)}, "prior.other"),
    ],
)
def test_priors_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    arrays: dict[str, Any] = {**prior().arrays(), **change}
    with pytest.raises(ModelError, match=message):
        Prior.from_arrays(SHAPE, {k: v for k, v in arrays.items() if v is not None})


@pytest.mark.parametrize("numbers", [(8, 3, 2, 0), (8, 8, 2, 0), (8, 2, 2, 1), (0, 1, 1, 0)])
def test_shapes_that_make_no_sense_are_refused(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        LatentShape(*numbers)


# Golden integers


def test_golden_latents_decode_to_the_same_integers() -> None:
    assert decoded(stored()) == stored()


def test_golden_latents_are_coded_as_ever() -> None:
    assert golden() == stored()


@pytest.mark.parametrize("machine", MACHINES)
def test_another_machine_decodes_the_golden_integers(machine: str) -> None:
    roots = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, latent_samples.__file__],
        env={**os.environ, "PYTHONPATH": roots, **MACHINES[machine]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == stored()


def test_samples_are_worth_testing() -> None:
    sample = latents(31, 5, (8, 8))
    assert 0.01 < (sample.latent != 0).mean() < 0.2
    assert np.abs(sample.latent).max() > 30
    assert set(latent_samples.nets(SHAPE)) == {(0, 0), (0, 1), (1, 0), (1, 1)}
