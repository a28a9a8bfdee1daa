"""Latents, priors and networks for tests, made by integer arithmetic alone; golden payloads.

`python tests/latent_samples.py` prints what the golden payloads decode to; with `write` it makes
them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from semvc.entropy.intnet import IntNet, Layer
from semvc.signals.latent import Latents, decode_latents, encode_latents
from semvc.signals.latentprior import INDICES, LatentShape, Prior

GOLDEN = Path(__file__).parent / "vectors" / "latent.json"
SHAPE = LatentShape(latents=8, groups=2, hyper=3)
LEVELS = LatentShape(latents=6, groups=3, hyper=2, hyper_levels=4)


def random_net(seed: int, sizes: tuple[int, ...], kernels: tuple[int, ...], top: int) -> IntNet:
    """The same network on every machine."""
    layers = []
    for number, size in enumerate(kernels):
        shape = (sizes[number + 1], sizes[number], size, size)
        count = int(np.prod(shape))
        raw = np.random.Philox(key=seed + number).random_raw(count + 2 * shape[0])
        values = (raw & np.uint64(255)).astype(np.int64) - 128
        weight = values[:count].reshape(shape).astype(np.int8)
        bias = values[count : count + shape[0]] * 64
        shift = 6 + (raw[-shape[0] :] & np.uint64(3)).astype(np.int64)
        layers.append(Layer(weight, bias, shift, top if number == len(kernels) - 1 else 255))
    return IntNet(layers)


def nets(shape: LatentShape, seed: int = 3) -> dict[tuple[int, int], IntNet]:
    """A network for every pass of both kinds of frames."""
    found = {}
    for inter in (0, 1):
        for half in (0, 1):
            inputs = shape.latents * (1 + half) + shape.hyper + 1
            sizes = (inputs, 5, 6, shape.latents)
            found[inter, half] = random_net(seed + 2 * inter + half, sizes, (1, 3, 1), INDICES - 1)
    return found


def prior(shape: LatentShape = SHAPE, *, network: bool = True) -> Prior:
    """A prior that nobody trained."""
    return Prior.neutral(shape, nets(shape) if network else {})


def latents(
    seed: int,
    frames: int = 4,
    size: tuple[int, int] = (8, 12),
    shape: LatentShape = SHAPE,
    rare: int = 24,
) -> Latents:
    """Moving specks: about one element in `rare` is not zero, and some are large."""
    height, width = size
    counts = (frames, shape.latents, height, width)
    raw = np.random.Philox(key=seed).random_raw(2 * int(np.prod(counts))).reshape(2, *counts)
    some = (raw[0] % np.uint64(rare) == 0) & (raw[0] >> np.uint64(40) & np.uint64(3) > 0)
    sizes = np.minimum(127, 1 << (np.minimum(raw[1] & np.uint64(255), 60)).astype(np.int64) // 12)
    sizes = np.where(raw[1] % np.uint64(50) == 1, 127, sizes)
    sign = np.where(raw[1] >> np.uint64(20) & np.uint64(1), -1, 1)
    latent = np.where(some, sizes * sign, 0)
    latent[1:] = np.where(raw[0][1:] % np.uint64(5) == 0, latent[:-1], latent[1:])
    places = (frames, shape.hyper, height // 4, width // 4)
    words = np.random.Philox(key=seed + 999).random_raw(int(np.prod(places)))
    spread = (words >> np.uint64(30)) % np.uint64(shape.hyper_alphabet)
    hyper = np.where(words % np.uint64(3) == 0, spread.astype(np.int64) + shape.hyper_low, 0)
    return Latents(seed % 253, hyper.reshape(places).astype(np.int8), latent.astype(np.int8))


# Golden integers

SAMPLES = {"network": (31, True), "counts": (32, False)}


def golden() -> dict[str, dict[str, str]]:
    """Payloads of fixed latents, and SHA-256 of what they decode to."""
    found = {}
    for name, (seed, network) in SAMPLES.items():
        sample = latents(seed, 5, (8, 8))
        payload, check = encode_latents(sample, prior(network=network))
        digest = hashlib.sha256(sample.canonical_bytes()).hexdigest()
        found[name] = {"payload": payload.hex(), "sha256": digest, "check": f"{check:08x}"}
    return found


def decoded(wanted: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The same, by decoding the golden payloads."""
    found = {}
    for name, row in wanted.items():
        known = prior(network=SAMPLES[name][1])
        sample, check = decode_latents(bytes.fromhex(row["payload"]), (5, 8, 8), known)
        digest = hashlib.sha256(sample.canonical_bytes()).hexdigest()
        found[name] = {**row, "sha256": digest, "check": f"{check:08x}"}
    return found


def stored() -> dict[str, dict[str, str]]:
    rows: dict[str, dict[str, str]] = json.loads(GOLDEN.read_text("utf-8"))["latents"]
    return rows


if __name__ == "__main__":
    if sys.argv[1:] == ["write"]:
        about = "tests/latent_samples.py: payloads of fixed latents, hashes of what they decode to"
        text = json.dumps({"about": about, "latents": golden()}, indent=1)
        GOLDEN.write_text(text + "\n", "utf-8")
    else:
        print(json.dumps(decoded(stored())))
