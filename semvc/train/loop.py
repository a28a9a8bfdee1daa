"""The training loop of all models: stages, running average, checkpoints, logs.

A resumed run equals the straight one: all randomness of a step derives from (seed, step). SIGTERM,
SIGINT and the time budget write a checkpoint and stop after the current step.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semvc.errors import UsageError
from semvc.train import checkpoint, families, feed, parallel
from semvc.train.checkpoint import Checkpoint
from semvc.train.families import Inputs
from semvc.train.journal import Journal, Row
from semvc.train.muon import Muon
from semvc.train.recipe import Recipe, Stage

_SAMPLES_STEP = 1 << 40  # the batch that sample pictures are made of: a step that never comes
_AHEAD = 3  # batches ready before they are needed, for each thread that makes them


@dataclass(frozen=True, slots=True)
class Run:
    """Where a run reads and writes, and how long it may take (minutes; 0 = to the end).

    `start` overrides the recipe's; `recipe_folder` is what the recipe's is relative to. `workers`
    threads make batches; None leaves the choice to the device.
    """

    folder: Path
    caches: list[Path]
    metric_weights: Path | None
    device: str = "cpu"
    minutes: float = 0.0
    start: Path | None = None
    recipe_folder: Path = Path()
    workers: int | None = None
    accelerate: bool = False
    tensorboard: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: at which step, whether that was the last, and by which signal if any."""

    step: int
    complete: bool
    stopped_by: int | None = None


class Trainer:
    """State of one run: task, optimisers, running average, step."""

    def __init__(self, recipe: Recipe, run: Run) -> None:
        self.recipe, self.run, self.step = recipe, run, 0
        self.team = parallel.accelerated() if run.accelerate else parallel.alone(run.device)
        self.device = self.team.device
        dtype = torch.bfloat16 if recipe.bfloat16 else torch.float32
        inputs = Inputs(run.caches, run.metric_weights, self.device, dtype)
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            self.task = families.build(recipe, inputs)
        self.network: nn.Module = self.task.network
        judged = any(self.task.adversarial(stage) for stage in recipe.stages)
        self.critic = self.task.critic if judged else None
        self._named = {n: p for n, p in self.network.named_parameters()}
        self.started_from = ""
        self._start()
        self.average = {n: p.detach().clone() for n, p in self._named.items()}
        self.optimisers = self._optimisers()

    def _start(self) -> None:
        given = self.run.start
        if given is None and self.recipe.start:
            given = self.run.recipe_folder / self.recipe.start
        if given is None:
            return
        tensors, self.started_from = checkpoint.weights_to_start_from(given)
        try:
            self.network.load_state_dict(tensors)
        except RuntimeError as error:
            raise UsageError(
                f"the network of the recipe is not that of {given}: {error}"
            ) from error

    def _optimisers(self) -> dict[str, torch.optim.Optimizer]:
        inner = [p for n, p in self._named.items() if self.task.is_inner(n, p)]
        outer = [p for n, p in self._named.items() if not self.task.is_inner(n, p)]
        fused = self.device.type == "cuda"
        found: dict[str, torch.optim.Optimizer] = {}
        if inner:
            found["muon"] = Muon(inner, lr=0.0)
        if outer:
            found["adam"] = torch.optim.AdamW(
                outer,
                lr=0.0,
                betas=(0.9, 0.99),
                weight_decay=self.recipe.weight_decay,
                fused=fused,
            )
        if self.critic is not None:
            found["critic_adam"] = torch.optim.Adam(
                self.critic.parameters(),
                lr=self.recipe.critic_rate,
                betas=(0.5, 0.99),
                fused=fused,
            )
        return found

    def stage(self) -> tuple[Stage, int] | None:
        """Return the current stage and the step within it, or None at the end."""
        return self.recipe.stage_at(self.step)

    def _stage_at(self, step: int) -> tuple[Stage, int]:
        found = self.recipe.stage_at(step)
        if found is None:
            raise ValueError(f"the recipe ends before step {step}")
        return found

    def train(
        self,
        *,
        on_row: Callable[[Row], None] | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Outcome:
        """Run to the end, the time budget or a signal.

        `on_row` gets every row of the log, `on_step` the steps done and those of the recipe.
        """
        folder, first = self.run.folder, self.team.rank == 0
        folder.mkdir(parents=True, exist_ok=True)
        journal = Journal(folder, tensorboard=self.run.tensorboard and first, on_row=on_row)
        begun = saved = drawn = time.monotonic()
        workers = self._workers()
        steps = range(self.step, self.recipe.steps)
        batches = feed.ahead(self.batch, steps, workers=workers, depth=workers * _AHEAD)
        with _signals() as stopped, contextlib.closing(batches):
            for batch in batches:
                stage, at = self._stage_at(self.step)
                journal.add(self.update(stage, at, batch))
                self.step += 1
                now = time.monotonic()
                if first and self.step % self.recipe.log_steps == 0:
                    journal.row(self.step, **self._facts(stage, at))
                over = bool(self.run.minutes) and now - begun > 60 * self.run.minutes
                stop = over or bool(stopped)
                if first and (stop or now - saved > 60 * self.recipe.checkpoint_minutes):
                    self.save()
                    saved = now
                if first and self._wants_picture(now - drawn):
                    journal.picture(self.step, self.picture(stage))
                    drawn = now
                if on_step is not None:
                    on_step(self.step, self.recipe.steps)
                if stop:
                    break
        journal.close()
        complete = self.step >= self.recipe.steps
        if first and complete:
            self.save()
        return Outcome(self.step, complete, stopped[0] if stopped else None)

    def batch(self, step: int, stage: Stage | None = None) -> Any:
        """Return the batch of a step, or what it would be in another stage."""
        stage = stage or self._stage_at(step)[0]
        key = (self.recipe.seed, step * self.team.size + self.team.rank)
        batch = self.task.batch(stage, key)
        return feed.pinned(batch) if self.device.type == "cuda" else batch

    def update(self, stage: Stage, at: int, batch: Any = None) -> dict[str, Tensor]:
        """Take one optimiser step; return the losses, scalars on the device."""
        batch = self.batch(self.step, stage) if batch is None else batch
        batch = feed.moved(batch, self.device)
        made = self.task.forward(stage, batch)
        values: dict[str, Tensor] = {}
        critic = self.critic
        if critic is not None and self.task.adversarial(stage):
            values["critic"] = self._update_critic(critic, stage, batch, made)
            critic.requires_grad_(False)
        found = self.task.losses(stage, batch, made)
        for group in self._groups():
            group["lr"] = rate(stage, at)
        self.network.zero_grad(set_to_none=True)
        found.total.backward()
        if critic is not None:
            critic.requires_grad_(True)
        norm = self._clip()
        for name in ("muon", "adam"):
            if name in self.optimisers:
                self.optimisers[name].step()
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        parameters = [p.detach() for p in self._named.values()]
        torch._foreach_lerp_(list(self.average.values()), parameters, 1 - decay)
        values |= {n: v.detach().float() for n, v in found.values.items()}
        return values | {"norm": norm}

    def _update_critic(self, critic: nn.Module, stage: Stage, batch: Any, made: Any) -> Tensor:
        loss = self.task.critic_loss(stage, batch, made, self.step)
        critic.zero_grad(set_to_none=True)
        loss.backward()
        self.team.average_gradients(list(critic.parameters()))
        self.optimisers["critic_adam"].step()
        return loss.detach().float()

    def _clip(self) -> Tensor:
        """Bound the gradient's norm and return it; a gradient that is not finite becomes zero.

        All on the device: the step is taken without waiting for the norm.
        """
        self.team.average_gradients(list(self._named.values()))
        grads = [p.grad for p in self._named.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        scale = (self.recipe.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, torch.where(torch.isfinite(norm), scale, 0.0))
        for grad in grads:
            torch.nan_to_num_(grad, 0.0, 0.0, 0.0)
        return norm.detach().float()

    def _groups(self) -> Iterator[dict[str, Any]]:
        for name in ("muon", "adam"):
            if name in self.optimisers:
                yield from self.optimisers[name].param_groups

    def _workers(self) -> int:
        if self.run.workers is not None:
            return self.run.workers
        return min(8, os.cpu_count() or 1) if self.device.type == "cuda" else 0

    def _facts(self, stage: Stage, at: int) -> Row:
        facts: Row = {"stage": stage.name, "rate": rate(stage, at)}
        if self.device.type == "cuda":
            facts["gigabytes"] = round(torch.cuda.max_memory_allocated(self.device) / 1e9, 2)
        return facts

    def _wants_picture(self, seconds: float) -> bool:
        every = self.recipe.sample_minutes
        return bool(every) and (self.step == 1 or seconds > 60 * every)

    def picture(self, stage: Stage) -> Tensor:
        """Return uint8 [H, W, 3]: what the running average makes of a batch that stays the same."""
        batch = self.task.batch(stage, (self.recipe.seed, _SAMPLES_STEP))
        with torch.no_grad(), self._averaged():
            made = self.task.forward(stage, feed.moved(batch, self.device))
            return self.task.picture(stage, batch, made)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Let the network have the averaged weights for a while."""
        kept = {n: p.detach().clone() for n, p in self._named.items()}
        try:
            self._assign(self.average)
            yield
        finally:
            self._assign(kept)

    def _assign(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self._named.items():
                p.copy_(values[name])

    def save(self) -> None:
        """Write the checkpoint under its final name, complete or not at all."""
        parts: dict[str, dict[str, Tensor]] = {
            "generator": dict(self.network.state_dict()),
            "average": self.average,
        }
        if self.critic is not None:
            parts["critic"] = dict(self.critic.state_dict())
        for label, optimiser in self.optimisers.items():
            parts[label] = {
                f"{i}.{n}": torch.as_tensor(t)
                for i, state in optimiser.state_dict()["state"].items()
                for n, t in state.items()
            }
        notes = {
            "step": str(self.step),
            "model": self.recipe.model,
            "family": self.recipe.family,
            "start": self.started_from,
        }
        checkpoint.save(self.run.folder, Checkpoint(parts, notes))

    def resume(self) -> bool:
        """Continue from the folder's checkpoint; return False when there is none."""
        found = checkpoint.load(self.run.folder)
        if found is None:
            return False
        try:
            self.network.load_state_dict(found.parts["generator"])
            if self.critic is not None and "critic" in found.parts:
                self.critic.load_state_dict(found.parts["critic"])
        except (KeyError, RuntimeError) as error:
            raise UsageError(
                f"the checkpoint in {self.run.folder} is of another network than the recipe's:"
                " train in a new folder, or give the old one with --start"
            ) from error
        self.step = int(found.notes["step"])
        self.started_from = found.notes.get("start", "")
        self.average = {n: found.parts["average"][n].to(self.device) for n in self._named}
        for label, optimiser in self.optimisers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in found.parts.get(label, {}).items():
                i, field = name.split(".")
                state.setdefault(int(i), {})[field] = tensor
            optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
        return True


def rate(stage: Stage, at: int) -> float:
    """Return the learning rate of a stage's step `at`: linear warm-up times a cosine."""
    warm = min(1.0, (at + 1) / stage.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * at / stage.steps))
    return warm * (stage.final_rate + (stage.rate - stage.final_rate) * cosine)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Note SIGTERM and SIGINT instead of acting on them; a second one acts as it did before."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, _: object) -> None:
        seen.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in numbers:
        signal.signal(number, note)
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
