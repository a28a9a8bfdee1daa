"""The integer network gives the same numbers by every arithmetic, and takes no floats."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stranger_net
from hypothesis import given
from hypothesis import strategies as st
from numpy._core import _multiarray_umath as numpy_build

from semvc.entropy import intnet
from semvc.entropy.intnet import IntNet, Layer

GOLDEN = Path(__file__).parent / "vectors" / "intnet.json"


def random_net(seed: int, sizes: tuple[int, ...], kernels: tuple[int, ...], top: int) -> IntNet:
    """Weights made by integer arithmetic alone, so that every machine has the same."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    layers = []
    for number, size in enumerate(kernels):
        shape = (sizes[number + 1], sizes[number], size, size)
        raw = rng.bit_generator.random_raw(int(np.prod(shape)) + 2 * shape[0])
        values = (raw & np.uint64(255)).astype(np.int64) - 128
        weight = values[: int(np.prod(shape))].reshape(shape).astype(np.int8)
        bias = values[int(np.prod(shape)) :][: shape[0]] * 64
        shift = 6 + (raw[-shape[0] :] & np.uint64(3)).astype(np.int64)
        layers.append(Layer(weight, bias, shift, top if number == len(kernels) - 1 else 255))
    return IntNet(layers)


def picture(seed: int, channels: int, height: int, width: int) -> Any:
    raw = np.random.Philox(key=seed).random_raw(channels * height * width)
    return (raw >> np.uint64(11)).astype(np.uint8).reshape(channels, height, width)


NET = random_net(1, (6, 12, 9, 5), (1, 3, 1), 63)


def plain(net: IntNet) -> list[stranger_net.Layer]:
    return [
        stranger_net.Layer(la.weight.tolist(), la.bias.tolist(), la.shift.tolist(), la.top)
        for la in net.layers
    ]


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 6), st.sampled_from((1, 3)))
def test_three_implementations_agree(seed: int, height: int, width: int, size: int) -> None:
    net = random_net(seed, (3, 4, 2), (size, 3), 63)
    x = picture(seed + 1, 3, height, width)
    found = net.run(x)
    assert (found == net.run_exact(x)).all()
    assert found.tolist() == stranger_net.run(plain(net), x.tolist())


def test_results_use_their_range() -> None:
    found = NET.run(picture(5, 6, 9, 11))
    assert found.dtype == np.uint8
    assert found.shape == (5, 9, 11)
    assert len(np.unique(found)) > 10
    assert found.max() <= 63


@pytest.mark.parametrize("order", ["C", "F", "strided", "one by one"])
def test_memory_formats_and_batches_change_nothing(order: str) -> None:
    x = picture(5, 6, 8, 10)
    wanted = NET.run(x)
    match order:
        case "F":
            found = NET.run(np.asfortranarray(x))
        case "strided":
            found = NET.run(np.repeat(x, 2, axis=2)[:, :, ::2])
        case "one by one":
            apart = [NET.run(x[:, :, max(0, i - 1) : i + 2]) for i in range(10)]
            found = np.stack([a[:, :, 1 if i else 0] for i, a in enumerate(apart)], 2)
        case _:
            found = NET.run(np.ascontiguousarray(x))
    assert (found == wanted).all()


def test_weights_at_every_bound_are_exact() -> None:
    weight = np.full((2, 80, 3, 3), -128, np.int8)
    weight[1] = 127
    layer = Layer(weight, np.array([2**24, -(2**24)]), np.array([17, 17]))
    assert layer.dtype is np.float64  # 80 * 9 * 128 * 255 passes 2**24
    net = IntNet([layer])
    x = np.full((80, 5, 4), 255, np.uint8)
    x[:, ::2] -= picture(3, 80, 3, 4) % 2
    assert (net.run(x) == net.run_exact(x)).all()


def test_small_sums_are_formed_in_the_fast_arithmetic() -> None:
    assert NET._arithmetic == [np.float32] * 3


def test_arithmetic_that_is_not_exact_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Layer.run

    def coarse(self: Layer, x: Any, arithmetic: Any) -> Any:
        """As if a library multiplied float32 with fewer bits."""
        found = run(self, x, arithmetic)
        return found ^ (arithmetic is np.float32)

    monkeypatch.setattr(Layer, "run", coarse)
    assert IntNet(NET.layers)._arithmetic == [np.float64] * 3
    monkeypatch.setattr(Layer, "run", lambda *a: run(*a) ^ (a[2] is not np.int64))
    assert IntNet(NET.layers)._arithmetic == [np.int64] * 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.bool_])
def test_no_float_enters(dtype: type) -> None:
    with pytest.raises(TypeError):
        NET.run(picture(1, 6, 3, 3).astype(dtype))
    good = NET.layers[0]
    for part in ("weight", "bias", "shift"):
        parts = {p: getattr(good, p) for p in ("weight", "bias", "shift")}
        parts[part] = parts[part].astype(dtype)
        with pytest.raises(TypeError):
            Layer(**parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": np.zeros((2, 3, 5, 5), np.int8)}, "1x1 or 3x3"),
        ({"weight": np.zeros((2, 3, 1, 1), np.int16)}, "int8"),
        ({"bias": np.zeros(3, np.int32)}, r"\[O\]"),
        ({"shift": np.full(2, 25, np.int32)}, "shifts"),
        ({"shift": np.full(2, -1, np.int32)}, "shifts"),
        ({"top": 256}, "top"),
        ({"bias": np.full(2, 2**31 - 1, np.int32)}, "int32"),
    ],
)
def test_broken_layers_are_refused(change: dict[str, Any], message: str) -> None:
    zeros = np.zeros(2, np.int32)
    parts = {"weight": np.ones((2, 3, 3, 3), np.int8), "bias": zeros, "shift": zeros, **change}
    with pytest.raises(ValueError, match=message):
        Layer(**parts)


def test_a_network_survives_being_stored() -> None:
    again = IntNet.from_arrays(NET.arrays("prior.net"), "prior.net", top=63)
    x = picture(9, 6, 4, 4)
    assert (again.run(x) == NET.run(x)).all()
    assert again.arrays("a").keys() == NET.arrays("a").keys()
    with pytest.raises(KeyError):
        IntNet.from_arrays({}, "prior.net", top=63)


def digest() -> str:
    """SHA-256 of what a fixed network makes of a fixed picture, in three sizes."""
    net = random_net(77, (20, 32, 32, 64), (1, 3, 1), 63)
    found = hashlib.sha256()
    for height, width in ((1, 1), (7, 13), (32, 52)):
        found.update(net.run(picture(height, 20, height, width)).tobytes())
    return found.hexdigest()


def test_the_golden_integers_are_reproduced() -> None:
    assert digest() == json.loads(GOLDEN.read_text("utf-8"))["sha256"]


def _slow_numpy() -> dict[str, str]:
    active = [name for name in numpy_build.__cpu_dispatch__ if numpy_build.__cpu_features__[name]]
    return {"NPY_DISABLE_CPU_FEATURES": " ".join(active)} if active else {}


MACHINES = {
    "one thread": {"OPENBLAS_NUM_THREADS": "1"},
    "many threads": {"OPENBLAS_NUM_THREADS": "7"},
    "an old processor": {**_slow_numpy(), "OPENBLAS_CORETYPE": "Nehalem"},
    "a middling processor": {"OPENBLAS_CORETYPE": "Haswell"},
}


@pytest.mark.parametrize("machine", MACHINES)
def test_another_machine_gives_the_golden_integers(machine: str) -> None:
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **MACHINES[machine]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == json.loads(GOLDEN.read_text("utf-8"))["sha256"]


def test_the_proof_counts_every_partial_sum() -> None:
    weight = np.array([[[[100]], [[-100]]]], np.int8)
    assert intnet._sums(weight).tolist() == [200 * 255]


if __name__ == "__main__":
    print(digest())
