"""The training loop: stages, EMA, checkpoints; a resumed run equals the straight one.

All randomness of a step derives from (seed, step). A checkpoint is one safetensors file, written by
part-and-rename; SIGTERM and the time budget write one and stop.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from semvc.nets import schedule
from semvc.nets.generator import Conditioning, Generator, Memory
from semvc.nets.load import place
from semvc.train import losses
from semvc.train.data import Batch, Cache
from semvc.train.muon import Muon
from semvc.train.recipe import Recipe, Stage

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Run:
    """Where a run reads and writes, and how long it may take (minutes; 0 = to the end)."""

    folder: Path
    caches: list[Path]
    metric_weights: Path
    device: str = "cpu"
    minutes: float = 0.0


class Trainer:
    """State of one run: networks, optimisers, running average, step."""

    def __init__(self, recipe: Recipe, run: Run) -> None:
        self.recipe, self.run = recipe, run
        torch.manual_seed(recipe.seed)
        self.device = torch.device(run.device)
        self.generator = place(Generator(**recipe.network), self.device)
        self.average = {n: p.detach().clone() for n, p in self.generator.named_parameters()}
        self.critic = place(losses.Discriminator(recipe.critic_width), self.device)
        inner, outer = _split(self.generator)
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            "muon": Muon(inner, lr=0.0),
            "adam": torch.optim.AdamW(
                outer, lr=0.0, betas=(0.9, 0.99), weight_decay=recipe.weight_decay
            ),
        }
        self.critic_optimiser = torch.optim.Adam(
            self.critic.parameters(), lr=recipe.critic_rate, betas=(0.5, 0.99)
        )
        self.perceptual = losses.Perceptual(run.metric_weights).to(self.device)
        self.dtype = torch.bfloat16 if recipe.bfloat16 else torch.float32
        place(self.perceptual.convolutions, dtype=self.dtype)
        self.alphas = schedule.alphas_cumprod().to(self.device)
        self.cache = Cache(run.caches)
        self.step = 0

    def stage(self) -> tuple[Stage, int] | None:
        """Return the current stage and the step within it, or None at the end."""
        at = self.step
        for stage in self.recipe.stages:
            if at < stage.steps:
                return stage, at
            at -= stage.steps
        return None

    def train(self) -> bool:
        """Run to the end or the time budget; return True when the recipe is complete."""
        self.run.folder.mkdir(parents=True, exist_ok=True)
        stop = {"now": False}
        signal.signal(signal.SIGTERM, lambda *_: stop.update(now=True))
        begun = saved = time.monotonic()
        sums: dict[str, float] = {}
        counted = 0
        while (found := self.stage()) is not None:
            values = self.update(*found)
            counted += 1
            sums = {k: sums.get(k, 0.0) + v for k, v in values.items()}
            self.step += 1
            now = time.monotonic()
            if self.step % 50 == 0:
                means = {k: round(v / counted, 5) for k, v in sums.items()}
                row = {
                    "step": self.step,
                    "stage": found[0].name,
                    "seconds": round(now - begun, 1),
                    **means,
                }
                with (self.run.folder / "log.jsonl").open("a", encoding="utf-8") as log:
                    log.write(json.dumps(row) + "\n")
                _log.info("%s", row)
                sums, counted = {}, 0
            over = bool(self.run.minutes) and now - begun > 60 * self.run.minutes
            if over or stop["now"] or now - saved > 60 * self.recipe.checkpoint_minutes:
                self.save()
                saved = now
            if over or stop["now"]:
                return False
        self.save()
        return True

    def update(self, stage: Stage, at: int) -> dict[str, float]:
        """Take one optimiser step; return the losses."""
        key = (self.recipe.seed, self.step)
        batch = self.cache.batch(stage.batch, unroll=stage.unroll, crop=stage.crop, key=key)
        draw = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.step)
        batch = _to(batch, self.device)
        made = [losses.displayed(m.float()) for m in self._unroll(stage, batch, draw)]
        true = torch.cat(batch.true)
        x = torch.cat(made)
        values = {"charbonnier": losses.charbonnier(x, true)}
        if stage.lpips or stage.dists:
            values["lpips"], values["dists"] = self.perceptual(x, true)
        if stage.temporal and stage.unroll > 1:
            pairs = zip(made[1:], made, batch.true[1:], batch.true, strict=False)
            values["temporal"] = torch.stack(
                [losses.temporal(a, b, c, d) for a, b, c, d in pairs]
            ).mean()
        base = torch.cat([c.base[:, 3:6] for c in batch.conditioning])
        if stage.adversarial:
            values["critic"] = self._train_critic(x.detach(), true, base)
            self.critic.requires_grad_(False)
            with torch.autocast(self.device.type, self.dtype, enabled=self.recipe.bfloat16):
                values["adversarial"] = losses.hinge_generator(self.critic(x, base))
            self.critic.requires_grad_(True)
        total = sum(getattr(stage, n) * v for n, v in values.items() if n != "critic")
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = _rate(stage, at)
        self.generator.zero_grad(set_to_none=True)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.generator.parameters(), self.recipe.clip_norm)
        if torch.isfinite(norm):
            for optimiser in self.optimisers.values():
                optimiser.step()
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, p in self.generator.named_parameters():
                self.average[name].lerp_(p, 1 - decay)
        return {n: float(v.detach()) for n, v in values.items()} | {"norm": float(norm)}

    def _unroll(self, stage: Stage, batch: Batch, draw: torch.Generator) -> list[Tensor]:
        shape = batch.true[0].shape
        noise = torch.randn(shape, generator=draw).to(self.device)
        level = torch.randint(0, schedule.TRAIN_STEPS, shape[:1], generator=draw)
        pure = torch.rand(shape[:1], generator=draw) < stage.one_step
        level = torch.where(pure, schedule.TRAIN_STEPS - 1, level).to(self.device)
        keep_sketch = float(torch.rand((), generator=draw)) >= stage.drop_sketch
        keep_skeleton = float(torch.rand((), generator=draw)) >= stage.drop_skeleton
        memory: Memory | None = None
        made = []
        for true, c in zip(batch.true, batch.conditioning, strict=True):
            c = Conditioning(
                c.base,
                c.sketch if keep_sketch else None,
                c.skeleton if keep_skeleton else None,
                c.crf,
                c.spatial_log2,
                c.temporal_log2,
                c.phase,
            )
            sample = schedule.add_noise(true, noise, level, self.alphas)
            with torch.autocast(self.device.type, self.dtype, enabled=self.recipe.bfloat16):
                frame, memory = self.generator(sample, level, c, memory)
            made.append(frame)
        return made

    def _train_critic(self, made: Tensor, true: Tensor, base: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.recipe.bfloat16):
            loss = losses.hinge_critic(self.critic(true, base), self.critic(made, base))
        self.critic_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.critic_optimiser.step()
        return loss.detach()

    def save(self) -> None:
        """Write the checkpoint under its final name, complete or not at all."""
        tensors: dict[str, Tensor] = {}
        tensors |= {f"generator.{n}": t for n, t in self.generator.state_dict().items()}
        tensors |= {f"average.{n}": t for n, t in self.average.items()}
        tensors |= {f"critic.{n}": t for n, t in self.critic.state_dict().items()}
        for label, optimiser in self._all_optimisers():
            for i, state in optimiser.state_dict()["state"].items():
                tensors |= {f"{label}.{i}.{n}": torch.as_tensor(t) for n, t in state.items()}
        part = self.run.folder / "checkpoint.part"
        save_file(
            {n: t.contiguous().cpu() for n, t in tensors.items()}, part, {"step": str(self.step)}
        )
        part.replace(self.run.folder / "checkpoint.safetensors")

    def resume(self) -> bool:
        """Continue from the folder's checkpoint; return False when there is none."""
        path = self.run.folder / "checkpoint.safetensors"
        if not path.exists():
            return False
        with safe_open(path, "pt") as file:
            self.step = int(file.metadata()["step"])
        tensors = load_file(path)

        def part(label: str) -> dict[str, Tensor]:
            return {n[len(label) + 1 :]: t for n, t in tensors.items() if n.startswith(label + ".")}

        self.generator.load_state_dict(part("generator"))
        self.critic.load_state_dict(part("critic"))
        self.average = {n: t.to(self.device) for n, t in part("average").items()}
        for label, optimiser in self._all_optimisers():
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in part(label).items():
                i, field = name.split(".")
                state.setdefault(int(i), {})[field] = tensor
            optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
        return True

    def _all_optimisers(self) -> list[tuple[str, torch.optim.Optimizer]]:
        return [*self.optimisers.items(), ("critic_adam", self.critic_optimiser)]


def export(checkpoint: Path, path: Path) -> None:
    """Write a checkpoint's running average as fp16 weights, the form in which models ship."""
    label = "average."
    tensors = {n[len(label) :]: t for n, t in load_file(checkpoint).items() if n.startswith(label)}
    save_file({n: t.half().contiguous() for n, t in tensors.items()}, path)
    path.chmod(0o644)  # safetensors writes for the owner alone


def _split(network: Generator) -> tuple[list[Tensor], list[Tensor]]:
    """Weights inside the network, for Muon; those at its ends, and vectors, for Adam."""
    inner: list[Tensor] = []
    outer: list[Tensor] = []
    for name, p in network.named_parameters():
        ends = name.startswith(("stem", "head", "embed"))
        (outer if ends or p.ndim < 2 else inner).append(p)
    return inner, outer


def _rate(stage: Stage, at: int) -> float:
    warm = min(1.0, (at + 1) / 100)
    cosine = 0.5 * (1 + math.cos(math.pi * at / stage.steps))
    return warm * (stage.final_rate + (stage.rate - stage.final_rate) * cosine)


def _to(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    moved = [
        Conditioning(
            base=c.base.to(device),
            sketch=None if c.sketch is None else c.sketch.to(device),
            skeleton=None if c.skeleton is None else c.skeleton.to(device),
            crf=c.crf.to(device),
            spatial_log2=c.spatial_log2.to(device),
            temporal_log2=c.temporal_log2.to(device),
            phase=c.phase.to(device),
        )
        for c in batch.conditioning
    ]
    return Batch([t.to(device) for t in batch.true], moved)
