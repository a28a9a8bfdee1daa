"""Training of profile cpsgd's small generator: unrolled repair of scenes warped from keyframes.

A run may start from weights of profile disco's small generator of the same widths: both have one
trunk, which then knows how to repair coded pictures before the first step. Where there are fewer
blocks, some are left out: each only adds to what it is given.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from semvc.errors import UsageError
from semvc.nets import schedule
from semvc.nets.cpsgd_generator import PATCH, STRIDE, VIEW, CpsgdGenerator
from semvc.nets.generator import Memory
from semvc.nets.load import place
from semvc.nets.scene_restore import SCALE, unpacked
from semvc.train import losses
from semvc.train.families import Inputs, Losses
from semvc.train.recipe import Recipe, Stage
from semvc.train.scene_data import SceneBatch, SceneCache

INDEX = {
    "role": "generator",
    "profile": "cpsgd",
    "tier": "small",
    "licence": "Apache-2.0",
    "source": "bundled",
    "signals": ["camera", "depth", "mask", "keyframe"],
}


_ENDS = ("stem", "head", "embed", "pose.first", "control.first")
_WORTH_PACKING = 4096  # numbers of a tensor


@dataclass(frozen=True, slots=True)
class Options:
    """A stage of the scene generator.

    `unroll` frames are made in a row, gradients flowing through the recurrence; `crop` is in luma
    samples. `one_step` is the share of samples trained at pure noise, the rest draw their noise
    level uniformly. `drop_control` is the share of batches trained without masks. The weights of
    the losses are zero when absent; `adversarial` trains a critic on VGG16's features.
    """

    unroll: int
    crop: int
    one_step: float = 0.7
    drop_control: float = 0.3
    charbonnier: float = 1.0
    lpips: float = 0.0
    dists: float = 0.0
    temporal: float = 0.0
    lattice: float = 0.0
    adversarial: float = 0.0

    def __post_init__(self) -> None:
        if self.unroll < 1 or self.crop < STRIDE or self.crop % STRIDE:
            raise UsageError(f"a stage needs unroll >= 1 and a crop that is a multiple of {STRIDE}")


@dataclass(frozen=True, slots=True)
class _Given:
    """A batch with its random numbers: noise [B, 3, H, W], noise levels int64 [B]."""

    raw: SceneBatch
    noise: Tensor
    level: Tensor
    view: losses.View
    keep_control: bool


@dataclass(frozen=True, slots=True)
class _Made:
    """Frames as they are shown, as they were, and as they are without a model.

    `seen` and `wanted` are views of all shown and all true frames, `found` and `goal` their
    features in VGG16.
    """

    frames: list[Tensor]
    true: list[Tensor]
    base: list[Tensor]
    seen: Tensor
    wanted: Tensor
    found: list[Tensor]
    goal: list[Tensor]


def build(recipe: Recipe, inputs: Inputs) -> Cpsgd:
    """Return the task; see `families`."""
    return Cpsgd(recipe, inputs)


def config(recipe: Recipe) -> str:
    """Return the constructor arguments of `CpsgdGenerator` as TOML."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in recipe.network.items()]
    return "[network]\n" + "\n".join(lines) + "\n"


def stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights as they are written: fp16, inner convolutions in int8 (see `unpacked`).

    Half the bytes; rounding moves a weight by at most 1/254 of the largest of its output.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 4 or tensor.numel() < _WORTH_PACKING or name.startswith(_ENDS):
            found[name] = tensor.half().contiguous()
            continue
        scale = tensor.float().abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12) / 127
        found[name] = (tensor.float() / scale).round().to(torch.int8).contiguous()
        found[name + SCALE] = scale
    return found


class Cpsgd:
    """The scene generator as a `families.Task`."""

    def __init__(self, recipe: Recipe, inputs: Inputs) -> None:
        self._device, self._dtype = inputs.device, inputs.dtype
        if inputs.metric_weights is None:
            raise UsageError("the losses need VGG16: give its folder with --metric-weights")
        self._perceptual = losses.Perceptual(inputs.metric_weights).to(inputs.device)
        place(self._perceptual.convolutions, dtype=inputs.dtype)
        try:
            network = CpsgdGenerator(**recipe.network)
            network.register_load_state_dict_pre_hook(_accept_disco)
            self.network = place(network, inputs.device)
            critic = losses.FeatureCritic(
                self._perceptual.channels, **{"width": 48} | recipe.critic
            )
        except TypeError as error:
            raise UsageError(f"recipe of {recipe.model}: {error}") from error
        self.critic = place(critic, inputs.device)
        self._run = torch.compile(self.network) if recipe.compile else self.network
        self._alphas = schedule.alphas_cumprod().to(inputs.device)
        self._cache = SceneCache(inputs.caches)

    def batch(self, stage: Stage, key: tuple[int, int]) -> _Given:
        """Return raw samples and all random numbers of a step."""
        o: Options = stage.options
        draw = torch.Generator().manual_seed(key[0] * 1_000_003 + key[1])
        noise = torch.randn((stage.batch, 3, o.crop, o.crop), generator=draw)
        level = torch.randint(0, schedule.TRAIN_STEPS, (stage.batch,), generator=draw)
        pure = torch.rand(stage.batch, generator=draw) < o.one_step
        return _Given(
            raw=self._cache.batch(stage.batch, unroll=o.unroll, crop=o.crop, key=key),
            noise=noise,
            level=torch.where(pure, schedule.TRAIN_STEPS - 1, level),
            view=losses.View.drawn(draw),
            keep_control=float(torch.rand((), generator=draw)) >= o.drop_control,
        )

    def forward(self, stage: Stage, batch: _Given) -> _Made:
        """Unroll the generator over the frames of a batch."""
        memory: Memory | None = None
        frames, trues, bases = [], [], []
        for t in range(stage.options.unroll):
            true = batch.raw.true(t)
            given = batch.raw.inputs(t, control=batch.keep_control)
            sample = schedule.add_noise(true, batch.noise, batch.level, self._alphas)
            with self._mixed():
                frame, memory = self._run(sample, batch.level, given, memory)
            frames.append(losses.displayed(frame.float()))
            trues.append(losses.displayed(true))
            bases.append(given.base)
        seen, wanted = (batch.view.of(torch.cat(images)) for images in (frames, trues))
        with torch.no_grad():
            goal = self._perceptual.features(wanted)
        found = self._perceptual.features(seen)
        return _Made(frames, trues, bases, seen, wanted, found, goal)

    def adversarial(self, stage: Stage) -> bool:
        """Whether the critic has a say in this stage."""
        return bool(stage.options.adversarial)

    def critic_loss(self, stage: Stage, batch: _Given, made: _Made, step: int) -> Tensor:
        """Return the critic's hinge loss on real and made frames."""
        with self._mixed():
            scores = self.critic([features.detach() for features in made.found])
            return losses.hinge_critic(self.critic(made.goal), scores)

    def losses(self, stage: Stage, batch: _Given, made: _Made) -> Losses:
        """Return all losses that have a weight in this stage."""
        o: Options = stage.options
        true, x = torch.cat(made.true), torch.cat(made.frames)
        values = {"charbonnier": losses.charbonnier(x, true)}
        if o.lpips or o.dists:
            values["lpips"], values["dists"] = self._perceptual.compare(
                made.seen, made.wanted, made.found, made.goal
            )
        if o.lattice:
            values["lattice"] = losses.lattice(x - torch.cat(made.base))
        if o.temporal and o.unroll > 1:
            now, wanted = itertools.pairwise(made.frames), itertools.pairwise(made.true)
            changes = [
                losses.temporal(b, a, d, c) for (a, b), (c, d) in zip(now, wanted, strict=True)
            ]
            values["temporal"] = torch.stack(changes).mean()
        if o.adversarial:
            with self._mixed():
                values["adversarial"] = losses.hinge_generator(self.critic(made.found))
        total = torch.stack([getattr(o, n) * v.float() for n, v in values.items()]).sum()
        return Losses(total, values)

    def picture(self, stage: Stage, batch: _Given, made: _Made) -> Tensor:
        """Return rows of the last frame: as it was, without a model, and made."""
        columns = [made.true[-1], made.base[-1], made.frames[-1]]
        rows = torch.cat([c.detach().float() for c in columns], 3)  # [B, 3, H, 3W]
        grid = rows.permute(0, 2, 3, 1).flatten(0, 1)
        return ((grid + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def is_inner(self, name: str, parameter: Tensor) -> bool:
        """Ends of the network and vectors are not for Muon."""
        return parameter.ndim >= 2 and not name.startswith(_ENDS)

    def _mixed(self) -> torch.autocast:
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)


def _accept_disco(network: CpsgdGenerator, state: dict[str, Any], *_: Any) -> None:
    """Make weights of `generator.Generator` those of `network`, in place, if they are such.

    Disco's held, previous and next frame become the base and the views before and after; what it
    does not have keeps its first values, which are without influence.
    """
    whole = unpacked(state)
    state.clear()
    state.update(whole)
    if "stem.weight" not in state or any(name.startswith("pose.") for name in state):
        return
    own = network.state_dict()
    given, cell = dict(state), PATCH * PATCH
    stem = own["stem.weight"].clone()
    stem[:, 3 * cell :] = 0
    before, after = 6 * cell, (6 + VIEW) * cell
    # to: noise, base, before, after; from: noise, previous, held, next
    for to, source in ((0, 0), (3 * cell, 6 * cell), (before, 3 * cell), (after, 9 * cell)):
        stem[:, to : to + 3 * cell] = given["stem.weight"][:, source : source + 3 * cell]
    embed = torch.zeros_like(own["embed.0.weight"])
    times = network.embedding
    found = given["embed.0.weight"]
    embed[:, :times] = found[:, :times]
    # to: crf, factor, phase, memory; from: crf, spatial factor, phase, memory
    for to, source, scale in ((0, 0, 70 / 63), (1, 1, 1.0), (2, 3, 1.0), (4, 6, 1.0)):
        embed[:, times + to] = found[:, times + source] * scale
    given |= {"stem.weight": stem, "embed.0.weight": embed}
    state.clear()
    for name in own:
        state[name] = given.get(_kept(name, own, given), own[name])


def _kept(name: str, own: dict[str, Any], given: dict[str, Any]) -> str:
    """Which of the given tensors is to become `name`: of many blocks, the first to the last."""
    stage, mark, rest = name.partition(".blocks.")
    if not mark:
        return name
    index, _, rest = rest.partition(".")

    def blocks(state: dict[str, Any]) -> int:
        heads = [key.partition(mark) for key in state]
        return len({tail.partition(".")[0] for head, _, tail in heads if head == stage})

    mine, theirs = blocks(own), blocks(given)
    source = int(index) * max(0, theirs - 1) // max(1, mine - 1)
    return f"{stage}{mark}{source}.{rest}"
