"""Fits the coder of profile s2vc to a trained codec: integer networks and start tables.

The networks of a `RateModel` become integer ones after training, with a power of two as each output
channel's scale (He et al. 2022). The tables are what the coder itself has counted after it coded
training sequences one after another; how much trust a new segment puts in them is chosen on
sequences that were not counted, by what their segments cost.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from semvc.entropy.coder import Counter
from semvc.entropy.intnet import MAX_SHIFT, TOP, IntNet, Layer
from semvc.entropy.tables import Ints
from semvc.nets import s2vc_codec
from semvc.nets.s2vc_codec import STRIDE, S2vcCodec
from semvc.signals.latent import LatentModel, Latents
from semvc.signals.latentprior import INDICES, LEVELS, LatentShape, Prior
from semvc.train.s2vc_rate import BITS, GAIN, PLANE, STEPS, Past, RateModel
from semvc.train.sequences import Sequences

_log = logging.getLogger(__name__)

_STRENGTHS = (16, 48, 128, 400)  # observations that a start table stands for, at most
_QUARTERS = 4  # of a quality step, as the coder numbers them


@dataclass(frozen=True, slots=True)
class Report:
    """Bytes of the held-out segments: as the rate model guesses, and as the coder counts them.

    `neutral` is the coder without tables or networks, `networks` with the networks, `fitted` with
    both.
    """

    guessed: float
    neutral: int
    networks: int
    fitted: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A coded training segment: its integers, and what the rate model thinks they cost (bits)."""

    latents: Latents
    bits: float


def samples(
    codec: S2vcCodec, rate: RateModel, sequences: Sequences, *, count: int, frames: int, seed: int
) -> Iterator[Sample]:
    """Yield the integers of `count` sequences of `frames` frames, qualities spread over 0..63."""
    side = sequences.size[1] // STRIDE * STRIDE
    device = next(codec.parameters()).device
    for number in range(count):
        batch = sequences.batch(1, frames=frames, crop=side, photos=0.3, key=(seed, number))
        quality = (number * 97 % 253) / _QUARTERS
        level = torch.full((1,), quality, device=device)
        true = batch.frames().to(device)
        hyper, latent, bits = [], [], 0.0
        past: Past | None = None
        for sent, _ in codec.encode(true.unbind(1), level):
            with torch.no_grad():
                spent, past = rate(sent, past, level)
            bits += float(spent)
            hyper.append(_int8(sent.hyper))
            latent.append(_int8(sent.latent))
        found = Latents(round(quality * _QUARTERS), np.stack(hyper), np.stack(latent))
        yield Sample(found, bits)


def fit(shape: LatentShape, rate: RateModel, given: Sequence[Sample]) -> tuple[Prior, Report]:
    """Return the prior fitted to three quarters of `given`, and what it does on the rest."""
    held = list(given[3::4])
    counted = [s for i, s in enumerate(given) if i % 4 != 3]
    nets = integer_networks(rate, counted)
    neutral = Prior.neutral(shape)
    start = Prior(shape, dict(neutral.tables) | _levels(shape), nets)
    learnt = _learn(start, counted)
    _log.info("counted %d segments", len(counted))
    tried = [_trusting(start, learnt, strength) for strength in _STRENGTHS]
    sizes = [_coded(prior, held) for prior in tried]
    best = int(np.argmin(sizes))
    _log.info("bytes by strength: %s", dict(zip(_STRENGTHS, sizes, strict=True)))
    guessed = sum(s.bits for s in held) / 8
    report = Report(guessed, _coded(neutral, held), _coded(start, held), sizes[best])
    return tried[best], report


def integer_networks(rate: RateModel, given: Iterable[Sample]) -> dict[tuple[int, int], IntNet]:
    """Return the networks of a rate model in integers, by (inter, half).

    The range of each hidden layer is taken from what `given` makes it reach.
    """
    seen: dict[tuple[int, int], list[Tensor]] = {(i, h): [] for i in (0, 1) for h in (0, 1)}
    for sample in given:
        for key, planes in _planes(rate, sample.latents):
            seen[key].append(planes)
    return {
        key: _integer_network(rate.nets[f"{key[0]}{key[1]}"], inputs)
        for key, inputs in seen.items()
        if inputs
    }


@torch.no_grad()
def _planes(rate: RateModel, latents: Latents) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """The inputs of every network for every frame of a segment, as the coder has them."""
    device = next(rate.parameters()).device
    level = torch.full((1,), latents.quality / _QUARTERS, device=device)
    past: Past | None = None
    for y, z in zip(latents.latent, latents.hyper, strict=True):
        whole, hyper = (torch.from_numpy(v).float().to(device)[None] for v in (y, z))
        known = past or Past(torch.zeros_like(whole), torch.zeros_like(hyper))
        for half in (0, 1):
            yield (int(past is not None), half), rate.planes(whole, hyper, known, level, half)
        past = rate(s2vc_codec.Latents(hyper, whole), past, level)[1]


@torch.no_grad()
def _integer_network(network: nn.Module, inputs: list[Tensor]) -> IntNet:
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    scale, layers = PLANE, []
    current = [x / PLANE for x in inputs]
    for number, layer in enumerate(convolutions):
        last = number == len(convolutions) - 1
        current = [layer(x) for x in current]
        if last:
            after = GAIN
        else:
            current = [torch.relu(x) for x in current]
            after = TOP / max(1e-3, max(float(x.max()) for x in current))
        layers.append(_integer_layer(layer, scale, after, INDICES - 1 if last else TOP))
        scale = after
    return IntNet(layers)


def _integer_layer(layer: nn.Conv2d, before: float, after: float, top: int) -> Layer:
    """A convolution between activations that are stored times `before` and times `after`."""
    weight = layer.weight.double().cpu().numpy() * (after / before)
    bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.double().cpu().numpy()
    largest = np.maximum(np.abs(weight).max((1, 2, 3)), 1e-9)
    reach = np.abs(weight).sum((1, 2, 3)) * TOP + np.abs(bias) * after  # sums must fit int32
    room = np.minimum(127 / largest, 2.0**30 / np.maximum(reach, 1e-9))
    shift = np.clip(np.floor(np.log2(room)), 0, MAX_SHIFT).astype(np.int32)
    unit = np.exp2(shift.astype(np.float64))
    rounded = np.clip(np.rint(weight * unit[:, None, None, None]), -127, 127).astype(np.int8)
    return Layer(rounded, np.rint(bias * after * unit).astype(np.int32), shift, top=top)


def _levels(shape: LatentShape) -> dict[str, Ints]:
    """What indices say of a block together: chances add up; levels are spread over 12 doublings."""
    chance = np.exp2(np.arange(INDICES) / STEPS - BITS) * 65535
    steps = shape.group * np.exp2(12 * np.arange(LEVELS - 1) / (LEVELS - 2))
    return {
        "lengths": np.clip(np.rint(chance), 1, 65535).astype(np.int64),
        "levels": np.clip(np.rint(steps), 1, 65535).astype(np.int64),
    }


def _learn(start: Prior, given: Iterable[Sample]) -> dict[str, Ints]:
    """All tables after every segment was coded, each going on from where the last one ended."""
    prior, state = start, dict(start.tables)
    for sample in given:
        model = LatentModel(prior, _size(sample.latents), sample.latents.quality)
        counter = Counter()
        model.code_intra(counter, sample.latents)
        model.code_hypers(counter, sample.latents)
        model.code_inters(counter, sample.latents)
        found = model.state()
        state = dict(start.tables) | {n: _stored(n, t) for n, t in found.items()}
        prior = Prior(start.shape, state, start.nets)
    return state


def _stored(name: str, table: Ints) -> Ints:
    """A table as a prior holds it: in 16 bits, its rows' proportions kept."""
    if name.endswith("weights"):
        return np.clip(table, -32768, 32767).astype(np.int64)
    largest = table.max(axis=1, keepdims=True)
    down = np.maximum(largest, 65535)
    return np.maximum(table.astype(np.int64) * 65535 // down, 0 if name.endswith("counts") else 1)


def _trusting(start: Prior, learnt: dict[str, Ints], strength: int) -> Prior:
    """A prior whose binary counts stand for `strength` observations at most."""
    tables = dict(learnt)
    for name in (name for name in learnt if name.endswith(".counts")):
        total = np.maximum(1, learnt[name].sum(axis=1, keepdims=True))
        share = np.minimum(1.0, strength / total)
        tables[name] = np.rint(learnt[name] * share).astype(np.int64)
    return Prior(start.shape, tables, start.nets)


def _coded(prior: Prior, given: Iterable[Sample]) -> int:
    total = 0.0
    for sample in given:
        model, counter = (
            LatentModel(prior, _size(sample.latents), sample.latents.quality),
            Counter(),
        )
        for run in (model.code_intra, model.code_hypers, model.code_inters):
            run(counter, sample.latents)
        total += counter.bits
    return math.ceil(total / 8)


def _size(latents: Latents) -> tuple[int, int, int]:
    frames, _, height, width = latents.latent.shape
    return frames, height, width


def _int8(x: Tensor) -> npt.NDArray[np.int8]:
    found: npt.NDArray[np.int8] = x[0].round().to(torch.int8).cpu().numpy()
    return found
