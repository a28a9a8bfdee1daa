"""Training of profile disco's small generator: unrolled restoration of real base layers."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semvc.errors import UsageError
from semvc.nets import schedule
from semvc.nets.generator import Conditioning, Generator, Memory
from semvc.nets.load import place
from semvc.train import losses
from semvc.train.data import Batch, Cache, RawBatch, expand
from semvc.train.families import Inputs, Losses
from semvc.train.recipe import Recipe, Stage

INDEX = {
    "role": "generator",
    "profile": "disco",
    "tier": "small",
    "licence": "Apache-2.0",
    "source": "bundled",
    "signals": ["base_av1", "sketch", "skeleton"],
}
_STRIDE = 16  # crops are a multiple of the generator's
_OBJECTIVES = ("hinge", "relativistic")


@dataclass(frozen=True, slots=True)
class Options:
    """A stage of the small generator.

    `unroll` frames are made in a row, gradients flowing through the recurrence; `crop` is in luma
    samples. `one_step` is the share of samples trained at pure noise, the rest draw their noise
    level uniformly. `drop_sketch` and `drop_skeleton` are the shares trained without them. The
    weights of the losses are zero when absent. Where `adversarial` has a weight, a critic is
    trained by `objective`, with `penalty` as the weight of its gradient penalty, which is computed
    in every `penalty_every`-th step; `matching` is the weight of feature matching in the critic.
    A recipe's critic with `features = true` is `losses.FeatureCritic`, which has neither.
    With `grain` frames are judged with the grain that a decoder would add to them.
    """

    unroll: int
    crop: int
    one_step: float = 0.7
    drop_sketch: float = 0.5
    drop_skeleton: float = 0.5
    charbonnier: float = 1.0
    lpips: float = 0.0
    dists: float = 0.0
    temporal: float = 0.0
    lattice: float = 0.0
    adversarial: float = 0.0
    matching: float = 0.0
    grain: bool = False
    objective: str = "hinge"
    penalty: float = 0.0
    penalty_every: int = 8

    @property
    def perceptual(self) -> bool:
        """Whether LPIPS or DISTS has a weight."""
        return bool(self.lpips or self.dists)

    def __post_init__(self) -> None:
        if self.unroll < 1 or self.crop < _STRIDE or self.crop % _STRIDE:
            raise UsageError(
                f"a stage needs unroll >= 1 and a crop that is a multiple of {_STRIDE}"
            )
        if self.objective not in _OBJECTIVES or self.penalty_every < 1:
            raise UsageError(f"objective is {' or '.join(_OBJECTIVES)}, and penalty_every >= 1")


@dataclass(frozen=True, slots=True)
class _Given:
    """A batch with its random numbers: noise [B, 3, H, W], noise levels int64 [B].

    `grain` is that of `_grain`, or None in stages without.
    """

    raw: RawBatch
    grain: Tensor | None
    noise: Tensor
    level: Tensor
    view: losses.View
    keep_sketch: bool
    keep_skeleton: bool


@dataclass(frozen=True, slots=True)
class _Made:
    """The unrolled frames, `shown` with grain, and what they were made from.

    `seen` and `wanted` are views of all shown and all true frames, `found` and `goal` their
    features in VGG16, empty where no loss needs them.
    """

    frames: list[Tensor]
    shown: list[Tensor]
    batch: Batch
    seen: Tensor
    wanted: Tensor
    found: list[Tensor]
    goal: list[Tensor]


def _grain(raw: RawBatch, seed: int) -> Tensor:
    """Return the grain of a batch, int8 [B, L, 3, H, W] in code values, to be added to frames.

    It is measured in each sample as an encoder measures a segment.
    """
    try:
        from semvc.nets.grain import GrainSynthesizer, measure_grain
    except ImportError as error:
        raise UsageError("grain needs OpenCV: pip install opencv-python-headless") from error
    places = raw.held[:, :, 1].numpy()
    sources = raw.source.numpy()
    height, width = sources.shape[2:4]
    grey = np.full((height, width, 3), 128, np.uint8)
    found = np.zeros(sources.shape, np.int8)
    for k, (source, arrivals, place_of) in enumerate(
        zip(sources, raw.arrivals.numpy(), places, strict=True)
    ):
        base = arrivals[place_of]  # [L, H, W, 3]
        levels = measure_grain(list(source), list(base))
        grain = GrainSynthesizer(levels, (width, height), seed=seed * len(sources) + k)
        for t, frame in enumerate(base):
            found[k, t] = grain.apply(grey, frame).astype(np.int16) - 128
    return torch.from_numpy(found).permute(0, 1, 4, 2, 3)


def build(recipe: Recipe, inputs: Inputs) -> Disco:
    """Return the task; see `families`."""
    return Disco(recipe, inputs)


def _critic(
    arguments: dict[str, Any], judge: losses.Perceptual
) -> losses.Discriminator | losses.FeatureCritic:
    """Return the critic that a recipe's arguments describe."""
    given = {"width": 48, "features": False} | arguments
    if given.pop("features"):
        return losses.FeatureCritic(judge.channels, **given)
    return losses.Discriminator(**given)


def config(recipe: Recipe) -> str:
    """Return the constructor arguments of `Generator` as TOML."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in recipe.network.items()]
    return "[network]\n" + "\n".join(lines) + "\n"


class Disco:
    """The small generator as a `families.Task`."""

    def __init__(self, recipe: Recipe, inputs: Inputs) -> None:
        self._device, self._dtype = inputs.device, inputs.dtype
        if inputs.metric_weights is None:
            raise UsageError("the losses need VGG16: give its folder with --metric-weights")
        self._perceptual = losses.Perceptual(inputs.metric_weights).to(inputs.device)
        place(self._perceptual.convolutions, dtype=inputs.dtype)
        try:
            self.network = place(Generator(**recipe.network), inputs.device)
            critic = _critic(recipe.critic, self._perceptual)
        except TypeError as error:
            raise UsageError(f"recipe of {recipe.model}: {error}") from error
        self.critic = place(critic, inputs.device)
        self._frames = critic.frames
        for stage in recipe.stages:
            if self.adversarial(stage) and stage.options.unroll < self._frames:
                raise UsageError(
                    f"stage {stage.name}: the critic sees {self._frames} frames at once, so that"
                    " unroll cannot be less"
                )
        self._run = torch.compile(self.network) if recipe.compile else self.network
        self._alphas = schedule.alphas_cumprod().to(inputs.device)
        self._cache = Cache(inputs.caches)

    def batch(self, stage: Stage, key: tuple[int, int]) -> _Given:
        """Return raw samples and all random numbers of a step."""
        o: Options = stage.options
        draw = torch.Generator().manual_seed(key[0] * 1_000_003 + key[1])
        noise = torch.randn((stage.batch, 3, o.crop, o.crop), generator=draw)
        level = torch.randint(0, schedule.TRAIN_STEPS, (stage.batch,), generator=draw)
        pure = torch.rand(stage.batch, generator=draw) < o.one_step
        raw = self._cache.raw_batch(
            stage.batch, unroll=o.unroll, crop=o.crop, key=key, motion=o.temporal > 0
        )
        return _Given(
            raw=raw,
            grain=_grain(raw, key[1]) if o.grain else None,
            noise=noise,
            level=torch.where(pure, schedule.TRAIN_STEPS - 1, level),
            view=losses.View.drawn(draw),
            keep_sketch=float(torch.rand((), generator=draw)) >= o.drop_sketch,
            keep_skeleton=float(torch.rand((), generator=draw)) >= o.drop_skeleton,
        )

    def forward(self, stage: Stage, batch: _Given) -> _Made:
        """Unroll the generator over the frames of a batch."""
        full = expand(batch.raw)
        memory: Memory | None = None
        frames, shown = [], []
        for t, (true, c) in enumerate(zip(full.true, full.conditioning, strict=True)):
            given = replace(
                c,
                sketch=c.sketch if batch.keep_sketch else None,
                skeleton=c.skeleton if batch.keep_skeleton else None,
            )
            frame, memory = self._frame(batch, true, given, memory)
            frames.append(frame.float())
            grain = 0 if batch.grain is None else batch.grain[:, t].float() / 127.5
            shown.append(losses.displayed(frames[-1] + grain))
        full = replace(full, true=[losses.displayed(frame) for frame in full.true])
        seen, wanted = (batch.view.of(torch.cat(images)) for images in (shown, full.true))
        found, goal = [], []
        on_features = isinstance(self.critic, losses.FeatureCritic)
        if stage.options.perceptual or (on_features and self.adversarial(stage)):
            with torch.no_grad():
                goal = self._perceptual.features(wanted)
            found = self._perceptual.features(seen)
        return _Made(frames, shown, full, seen, wanted, found, goal)

    def _frame(
        self, batch: _Given, true: Tensor, given: Conditioning, memory: Memory | None
    ) -> tuple[Tensor, Memory]:
        sample = schedule.add_noise(true, batch.noise, batch.level, self._alphas)
        with self._mixed():
            return self._run(sample, batch.level, given, memory)

    def adversarial(self, stage: Stage) -> bool:
        """Whether a loss of the stage needs the critic."""
        return bool(stage.options.adversarial or stage.options.matching)

    def critic_loss(self, stage: Stage, batch: _Given, made: _Made, step: int) -> Tensor:
        """Return the critic's loss on real and made frames, now and then with its penalty."""
        o: Options = stage.options
        compare = losses.hinge_critic if o.objective == "hinge" else losses.relativistic_critic
        if isinstance(self.critic, losses.FeatureCritic):
            with self._mixed():
                scores = self.critic([f.detach() for f in made.found])
                return compare(self.critic(made.goal), scores)
        fake, base = self._windows(made, made.shown)
        real, _ = self._windows(made, made.batch.true)
        with self._mixed():
            scores = self.critic(fake.detach(), base)
            found = self.critic(real, base)
            loss = compare(found, scores)
        if o.penalty and step % o.penalty_every == 0:
            real = real.detach().requires_grad_()
            slope = losses.gradient_penalty(self.critic(real, base), real)
            loss = loss + 0.5 * o.penalty * o.penalty_every * slope
        return loss

    def losses(self, stage: Stage, batch: _Given, made: _Made) -> Losses:
        """Return all losses that have a weight in this stage."""
        o: Options = stage.options
        true, x = torch.cat(made.batch.true), torch.cat(made.shown)
        values = {"charbonnier": losses.charbonnier(x, true)}
        if o.perceptual:
            values["lpips"], values["dists"] = self._perceptual.compare(
                made.seen, made.wanted, made.found, made.goal
            )
        if o.lattice:
            held = torch.cat([c.base[:, 3:6] for c in made.batch.conditioning])
            values["lattice"] = losses.lattice(torch.cat(made.frames) - held)
        if o.temporal and o.unroll > 1:
            now, wanted = itertools.pairwise(made.shown), itertools.pairwise(made.batch.true)
            changes = [
                losses.temporal(b, a, d, c, moved)
                for (a, b), (c, d), moved in zip(now, wanted, made.batch.motion, strict=True)
            ]
            values["temporal"] = torch.stack(changes).mean()
        if self.adversarial(stage):
            values |= self._judged(o, made)
        total = torch.stack([getattr(o, n) * v.float() for n, v in values.items()]).sum()
        return Losses(total, values)

    def _judged(self, o: Options, made: _Made) -> dict[str, Tensor]:
        if isinstance(self.critic, losses.FeatureCritic):
            with self._mixed():
                scores = self.critic(made.found)
                if o.objective == "hinge":
                    return {"adversarial": losses.hinge_generator(scores)}
                real = self.critic(made.goal)
                return {"adversarial": losses.relativistic_generator(real, scores)}
        fake, base = self._windows(made, made.shown)
        real, _ = self._windows(made, made.batch.true)
        with self._mixed():
            found = self.critic.judge(fake, base)
            scores = [levels[-1] for levels in found]
            values: dict[str, Tensor] = {}
            if o.matching or o.objective == "relativistic":
                with torch.no_grad():
                    goal = self.critic.judge(real, base)
                values["matching"] = losses.feature_matching(goal, found)
            if o.objective == "hinge":
                values["adversarial"] = losses.hinge_generator(scores)
            else:
                values["adversarial"] = losses.relativistic_generator(
                    [levels[-1] for levels in goal], scores
                )
        return values

    def _windows(self, made: _Made, frames: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Runs of as many frames as the critic sees, and their held base frames, [N, 3F, H, W]."""
        held = [c.base[:, 3:6] for c in made.batch.conditioning]
        starts = range(len(frames) - self._frames + 1)
        x, base = (
            torch.cat([torch.cat(images[t : t + self._frames], 1) for t in starts])
            for images in (frames, held)
        )
        return x, base

    def picture(self, stage: Stage, batch: _Given, made: _Made) -> Tensor:
        """Return rows of the source's, the base layer's and the made last frame."""
        columns = [made.batch.true[-1], made.batch.conditioning[-1].base[:, 3:6], made.shown[-1]]
        rows = torch.cat([c.detach().float() for c in columns], 3)  # [B, 3, H, 3W]
        grid = rows.permute(0, 2, 3, 1).flatten(0, 1)
        return ((grid + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def is_inner(self, name: str, parameter: Tensor) -> bool:
        """Ends of the network and vectors are not for Muon."""
        return parameter.ndim >= 2 and not name.startswith(("stem", "head", "embed"))

    def _mixed(self) -> torch.autocast:
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)
