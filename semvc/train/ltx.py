"""Training of an in-context LoRA for LTX-Video: the transformer learns to read references.

After DiSCo (Wang et al., 2026) and the in-context LoRAs of LTX-Video's own trainer: tokens of the
base layer, the sketch and the skeleton stay clean at timestep 0 among the noisy target tokens, and
the loss is taken of target tokens alone. The transformer itself is frozen and, like the network at
decoding, reads what `backbones.tokens` packs; only the adapter is trained, averaged and saved.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semvc.backbones import flow, parts, tokens
from semvc.backbones.ltx import TEXT_TOKENS, velocity
from semvc.backbones.ltxvae import LtxPictures
from semvc.backbones.protocol import up_to
from semvc.backbones.text import Text
from semvc.backbones.tokens import TIME, Packing, Reference, Sequence
from semvc.errors import ModelError, UsageError
from semvc.train.families import Inputs, Losses
from semvc.train.recipe import Recipe, Stage
from semvc.train.windows import STREAMS, Window, Windows

INDEX = {
    "role": "lora",
    "profile": "disco",
    "tier": "full",
    "licence": "that of the backbone",
    "source": "own training",
    "signals": ["base_av1", "sketch", "skeleton", "caption"],
}
_ADAPTER = "incontext"
_LOW, _HIGH = (1024, 0.95), (4096, 2.05)  # (target tokens, mean of the logit of the noise level)
_SHOWN = 2  # latent frames that sample pictures are decoded from


@dataclass(frozen=True, slots=True)
class Options:
    """A stage of an in-context LoRA.

    drop_base, drop_sketch, drop_skeleton and drop_caption: shares of windows that are trained
    without them. known: share of windows whose first one or two latent frames are clean, as they
    are where a window goes on from the one before.
    """

    drop_base: float = 0.05
    drop_sketch: float = 0.5
    drop_skeleton: float = 0.5
    drop_caption: float = 0.1
    known: float = 0.2

    def __post_init__(self) -> None:
        shares = (*(self.dropped(n) for n in STREAMS), self.drop_caption, self.known)
        if not all(0 <= share <= 1 for share in shares):
            raise UsageError("shares of windows lie between 0 and 1")

    def dropped(self, stream: str) -> float:
        """Return the share of windows that go without a stream."""
        found: float = getattr(self, f"drop_{stream}")
        return found


@dataclass(frozen=True, slots=True)
class _Given:
    """A window with its random numbers: noise [1, n, C] and one level for all tokens not known.

    `text` [1, 256, D] is padded and `mask` int64 [1, 256]; `known` counts clean target tokens.
    """

    target: Tensor
    references: dict[str, Tensor]
    text: Tensor
    mask: Tensor
    noise: Tensor
    level: float
    known: int
    frame_rate: float


@dataclass(frozen=True, slots=True)
class _Made:
    """Of each window the velocity [1, n, C] that was found, and the one that was wanted."""

    found: list[Tensor]
    wanted: list[Tensor]


class Adapted(nn.Module):
    """A frozen transformer with one LoRA. To the loop it has the LoRA's parameters alone.

    They are called as in a LoRA file: `transformer.LAYER.lora_A.weight`.
    """

    def __init__(self, transformer: Any, rank: int, layers: tuple[str, ...]) -> None:
        super().__init__()
        try:
            peft = importlib.import_module("peft")
        except ImportError as error:
            raise ModelError("training a LoRA needs peft: pip install 'semvc[full]'") from error
        config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(layers))
        transformer.add_adapter(config, adapter_name=_ADAPTER)
        self.transformer = transformer
        self._lora: dict[str, nn.Parameter] = {}
        for name, p in transformer.named_parameters():
            p.requires_grad_(".lora_" in name)
            if ".lora_" in name:
                p.data = p.data.float()  # the optimiser's steps are too small for bfloat16
                self._lora["transformer." + name.replace(f".{_ADAPTER}.", ".")] = p
        transformer.enable_gradient_checkpointing()

    def forward(self, **given: Any) -> Any:
        """Run the transformer."""
        return self.transformer(**given)

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the LoRA's parameters."""
        yield from self._lora.items()

    def state_dict(self, *_: Any, **__: Any) -> Any:
        """Return the LoRA's tensors."""
        return {name: p.detach() for name, p in self._lora.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], *_: Any, **__: Any) -> Any:
        """Load exactly those tensors; RuntimeError if names or shapes differ."""
        if odd := set(self._lora) ^ set(state_dict):
            raise RuntimeError(f"{len(odd)} tensors are missing or unknown, as {min(odd)}")
        with torch.no_grad():
            for name, p in self._lora.items():
                if p.shape != state_dict[name].shape:
                    raise RuntimeError(f"{name} is {tuple(state_dict[name].shape)}")
                p.copy_(state_dict[name])


@dataclass(frozen=True, slots=True)
class Network:
    """The table [network] of a recipe.

    backbone: a folder in diffusers' layout, relative to where the run is started. layers: endings
    of the names of the linear layers that get a LoRA of `rank`. packing and reference_scale: as in
    `backbones.protocol.Settings`; both are written into the LoRA file, where decoding finds them.
    """

    backbone: str
    rank: int
    layers: tuple[str, ...]
    packing: str = "shared"
    reference_scale: int = 1

    def __post_init__(self) -> None:
        if self.packing not in [packing.value for packing in Packing]:
            raise UsageError(f"unknown packing {self.packing!r}: use shared, offset or alternate")
        if self.rank < 1 or not self.layers or self.reference_scale not in (1, 2):
            raise UsageError("a LoRA has a rank, layers, and references at full or half size")


def read_network(recipe: Recipe) -> Network:
    """Return the table [network]; UsageError for unknown or missing keys."""
    try:
        return Network(**{**recipe.network, "layers": tuple(recipe.network["layers"])})
    except (TypeError, KeyError) as error:
        raise UsageError(f"recipe of {recipe.model}: {error}") from error


def build(recipe: Recipe, inputs: Inputs) -> LtxLora:
    """Return the task; see `families`."""
    return LtxLora(recipe, inputs)


def config(recipe: Recipe) -> str:
    """Return the table [lora] of the model folder as TOML."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in notes(recipe).items()]
    return "[lora]\n" + "\n".join(lines) + "\n"


def notes(recipe: Recipe) -> dict[str, str]:
    """Return what the LoRA file says of itself, so that it is decoded as it was trained."""
    found = read_network(recipe)
    return {
        "backbone": Path(found.backbone).name,
        "packing": found.packing,
        "reference_scale": str(found.reference_scale),
    }


class LtxLora:
    """An in-context LoRA as a `families.Task`."""

    critic = None

    def __init__(self, recipe: Recipe, inputs: Inputs) -> None:
        self._settings = found = read_network(recipe)
        self._folder, self._device, self._dtype = (
            Path(found.backbone), inputs.device, inputs.dtype,
        )  # fmt: skip
        transformer = parts.read(
            self._folder, "transformer", "LTXVideoTransformer3DModel", inputs.dtype
        )
        self._width: int = transformer.config.caption_channels
        try:
            self.network = Adapted(transformer, found.rank, found.layers).to(inputs.device)
        except ValueError as error:  # peft found no layer of these names
            raise UsageError(f"recipe of {recipe.model}: {error}") from error
        self._run = torch.compile(self.network) if recipe.compile else self.network
        self._windows = Windows(inputs.caches, found.reference_scale)
        self._pictures: LtxPictures | None = None

    def batch(self, stage: Stage, key: tuple[int, int]) -> list[_Given]:
        """Return windows and all random numbers of a step."""
        draw = torch.Generator().manual_seed(key[0] * 1_000_003 + key[1])
        order = torch.randint(1 << 40, (stage.batch,), generator=draw).tolist()
        return [self._given(stage.options, self._windows.read(i), draw) for i in order]

    def _given(self, o: Options, window: Window, draw: torch.Generator) -> _Given:
        def happens(share: float) -> bool:
            return float(torch.rand((), generator=draw)) < share

        streams = {n: x for n, x in window.references.items() if not happens(o.dropped(n))}
        text = window.text[:TEXT_TOKENS] if not happens(o.drop_caption) else window.text[:0]
        if len(text) and text.shape[1] != self._width:
            raise UsageError("the windows were made with another text encoder: make them again")
        values = torch.zeros(1, TEXT_TOKENS, self._width)
        values[0, : len(text)] = text
        mask = torch.zeros(1, TEXT_TOKENS, dtype=torch.int64)
        mask[0, : max(len(text), 1)] = 1  # an attention over nothing has no meaning
        count = window.target[0, 0].numel()
        frames = int(torch.randint(1, 3, (), generator=draw)) if happens(o.known) else 0
        known = min(frames, window.target.shape[2] - 1) * window.target[0, 0, 0].numel()
        channels = window.target.shape[1]
        noise = torch.randn(1, count, channels, generator=draw)
        logit = torch.randn((), generator=draw) + level_shift(count)
        return _Given(
            window.target, streams, values, mask, noise,
            float(torch.sigmoid(logit)), known, window.frame_rate,
        )  # fmt: skip

    def forward(self, stage: Stage, batch: list[_Given]) -> _Made:
        """Predict the velocities of a batch, window after window."""
        made = _Made([], [])
        for given in batch:
            clean = tokens.flatten(given.target)
            at = torch.full(clean.shape[:2], given.level, device=clean.device)
            at[:, : given.known] = 0.0
            noisy = torch.lerp(clean, given.noise, at[..., None])
            text = Text(given.text, given.mask)
            with torch.autocast(
                self._device.type, self._dtype, enabled=self._dtype != torch.float32
            ):
                found = velocity(self._run, noisy.to(self._dtype), at, self._sequence(given), text)
            made.found.append(found[:, given.known :])
            made.wanted.append((given.noise - clean)[:, given.known :])
        return made

    def _sequence(self, given: _Given) -> Sequence:
        scale = self._settings.reference_scale
        streams = [Reference(x, scale) for x in given.references.values()]
        packing = Packing(self._settings.packing)
        packed = tokens.pack(streams, packing, given.frame_rate) if streams else None
        return Sequence(packed, _shape(given), given.frame_rate).to(given.target.device)

    def adversarial(self, stage: Stage) -> bool:
        """Never: there is no critic."""
        return False

    def critic_loss(self, stage: Stage, batch: list[_Given], made: _Made, step: int) -> Tensor:
        """There is no critic."""
        raise UsageError("an in-context LoRA is trained without a critic")

    def losses(self, stage: Stage, batch: list[_Given], made: _Made) -> Losses:
        """Return the mean squared error of the velocity of target tokens that were noisy."""
        pairs = zip(made.found, made.wanted, strict=True)
        error = torch.stack([(a - b).square().mean() for a, b in pairs]).mean()
        return Losses(error, {"velocity": error})

    def picture(self, stage: Stage, batch: list[_Given], made: _Made) -> Tensor:
        """Return the original, what is given of it, and the clean picture guessed at once."""
        if self._pictures is None:
            self._pictures = LtxPictures(
                self._folder, self._device, self._dtype, tile=512, resident=False
            )
        rows = []
        with self._pictures.used() as vae:
            for given, found in zip(batch, made.found, strict=True):
                clips = [given.target.to(self._device), self._guess(given, found)]
                base = given.references.get("base")
                if base is not None and self._settings.reference_scale == 1:
                    clips.insert(1, base.to(self._device))
                shown = [
                    self._pictures.pixels(vae, x[:, :, :_SHOWN].float(), _no_noise)[-1]
                    for x in clips
                ]
                rows.append(torch.cat([torch.from_numpy(frame) for frame in shown], 1))
        width = max(row.shape[1] for row in rows)
        same = [nn.functional.pad(row, (0, 0, 0, width - row.shape[1])) for row in rows]
        return torch.cat(same)

    def _guess(self, given: _Given, found: Tensor) -> Tensor:
        clean = tokens.flatten(given.target).to(self._device)
        noisy = torch.lerp(clean, given.noise.to(self._device), given.level)
        guess = flow.step(noisy[:, given.known :], found.float(), given.level, 0.0)
        whole = torch.cat([clean[:, : given.known], guess], 1)
        return tokens.unflatten(whole, _shape(given))

    def is_inner(self, name: str, parameter: Tensor) -> bool:
        """AdamW trains everything."""
        return False


def level_shift(count: int) -> float:
    """Return the mean of the logit of the noise level for a number of target tokens.

    It is linear from 0.95 at 1,024 tokens to 2.05 at 4,096, as in LTX-Video's trainer.
    """
    (a, low), (b, high) = _LOW, _HIGH
    return low + (high - low) * (count - a) / (b - a)


def usable_frames(frames: int) -> int:
    """Return the largest 8k + 1 that is at most `frames`, 0 below 9."""
    found = up_to(frames - TIME + 1, TIME, plus=1)
    return found if TIME < found <= frames else 0


def _shape(given: _Given) -> tuple[int, int, int]:
    frames, height, width = given.target.shape[2:]
    return frames, height, width


def _no_noise(count: int, _: int) -> Any:
    return torch.zeros(count).numpy()
