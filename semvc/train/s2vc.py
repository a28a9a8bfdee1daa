"""Training of profile s2vc: the codec, the autoencoder, the single-step decoder, and all at once.

The loss is S2VC's, averaged over the frames of a sequence: lambda R + L1 + LPIPS + 0.001 semantic +
0.25 motion, with two departures. One model covers all rates: each sequence draws its quality, and
lambda follows from it. And what is semantic and what is motion depends on what is at hand: the
teacher's features are DINOv3's or VGG16's (`s2vc_teacher`), and the motion term is the error of the
change from frame to frame instead of RAFT's flow, so that no flow network is needed.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semvc.errors import UsageError
from semvc.nets import s2vc_synthesis
from semvc.nets.load import place
from semvc.nets.s2vc_codec import MAX_QUALITY, S2vcCodec, State
from semvc.nets.s2vc_decoder import STRIDE, Buffers
from semvc.train import losses
from semvc.train.families import Inputs, Losses
from semvc.train.recipe import Recipe, Stage
from semvc.train.s2vc_rate import Past, RateModel
from semvc.train.s2vc_teacher import DinoTeacher, Predictor, Teacher, VggTeacher
from semvc.train.sequences import SequenceBatch, Sequences

INDEX = {  # one folder holds the generator and its codec
    "role": "generator",
    "profile": "s2vc",
    "tier": "small",
    "licence": "Apache-2.0",
    "source": "bundled",
    "signals": ["latent"],
}
_PARTS = ("codec", "autoencoder", "decoder")
_OUTER = (  # ends of the networks, and what is not a matrix between features
    *("codec.intra.embed", "codec.inter.embed", "codec.anchor.0", "codec.head.1"),
    *("decoder.head", "decoder.unet.conv_out", "decoder.autoencoder", "rate", "predictor"),
)
_CODER = "prior."
_TRAINING = ("rate.", "predictor.", "decoder.autoencoder.encoder.")  # what training adds


@dataclass(frozen=True, slots=True)
class Options:
    """A stage of profile s2vc.

    train: which of codec, autoencoder and decoder are trained; the others stay as they are.
    Sequences have `frames` frames of `crop` luma samples, and a share `photos` of them are
    photographs set in motion. lambdas: the weight of the rate, in bits per pixel, at quality 0 and
    at 63; between them its logarithm is linear. cascade: whether gradients flow through the
    decoder's buffers from frame to frame. judged: of how many frames of a sequence LPIPS and DISTS
    are taken, 0 for all; of those, only every `stagger`-th, beginning with another one in each
    sequence, and of that a window of `window` luma samples, 0 for all of it. VGG16 is most of what
    a step costs, and so part of the pixels can do for a network that sees them all. Gradients flow
    through the codec's buffer over `span` frames at most, 0 for all: over many they can explode.

    Losses of the decoder's frames: l1, lpips, dists, semantic, motion, adversarial. Of the codec's
    own picture: preview (L1) and preview_lpips. latent: L1 between the decoder's latents and those
    of the autoencoder's encoder. Weights are zero when absent.
    """

    train: tuple[str, ...]
    frames: int
    crop: int
    photos: float = 0.5
    lambdas: tuple[float, float] = (5.2, 0.2)
    cascade: bool = True
    judged: int = 0
    stagger: int = 1
    window: int = 0
    span: int = 0
    l1: float = 0.0
    lpips: float = 0.0
    dists: float = 0.0
    semantic: float = 0.0
    motion: float = 0.0
    adversarial: float = 0.0
    preview: float = 0.0
    preview_lpips: float = 0.0
    latent: float = 0.0

    def __post_init__(self) -> None:
        if not self.train or set(self.train) - set(_PARTS):
            raise UsageError(f"train must name some of {', '.join(_PARTS)}, not {self.train}")
        if self.frames < 1 or self.crop < STRIDE or self.crop % STRIDE:
            raise UsageError(f"a stage needs frames >= 1 and a crop that is a multiple of {STRIDE}")
        if "autoencoder" in self.train and "codec" in self.train and not self.decodes:
            raise UsageError("the autoencoder is trained alone or with the decoder")
        if self.stagger < 1 or self.span < 0 or not 0 <= self.window <= self.crop:
            raise UsageError("stagger is >= 1, span >= 0 and a window at most the stage's crop")
        if len(self.lambdas) != 2 or min(self.lambdas) <= 0:
            raise UsageError("lambdas are two positive numbers, at quality 0 and at 63")

    @property
    def decodes(self) -> bool:
        """Whether the stage runs the decoder; else the codec's own picture is all."""
        return "decoder" in self.train

    @property
    def codes(self) -> bool:
        """Whether the stage runs the codec."""
        return "codec" in self.train or self.decodes


class Model(nn.Module):
    """Codec, decoder and what training adds to them: the rate and the teacher's predictor.

    To the loop it has only the parameters that are ever trained, so that neither averages nor
    checkpoints hold a pretrained backbone.
    """

    def __init__(self, given: Mapping[str, Any], teacher: int, backbone: Path) -> None:
        super().__init__()
        self.codec = S2vcCodec(**given["codec"])
        self.decoder = s2vc_synthesis.construct(given["decoder"], backbone)
        sizes = {n: given["codec"][n] for n in ("latents", "groups", "hyper")}
        self.rate = RateModel(**sizes, **given.get("rate", {}))
        self.predictor = Predictor(given["decoder"]["tokens"], teacher) if teacher else None
        frozen = {n for n, p in super().named_parameters() if not p.requires_grad}
        self._kept = [n for n in super().state_dict() if n not in frozen]
        if frozen:
            self.decoder.unet.enable_gradient_checkpointing()  # type: ignore[operator]

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters that are ever trained."""
        kept = set(self._kept) if hasattr(self, "_kept") else None
        for name, p in super().named_parameters(*args, **kwargs):
            if kept is None or name in kept:
                yield name, p

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the tensors that are ever trained."""
        found = super().state_dict(*args, **kwargs)
        return {n: found[n] for n in self._kept} if hasattr(self, "_kept") else found

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load exactly those tensors; RuntimeError if one is missing or another is there.

        Of a model folder, which has the coder's `prior.*` as well, what only training needs may be
        missing and is left as it is.
        """
        odd = set(self._kept) ^ set(state_dict)
        if any(name.startswith(_CODER) for name in state_dict):
            state_dict = {n: t for n, t in state_dict.items() if not n.startswith(_CODER)}
            odd = {n for n in odd if not n.startswith((_CODER, *_TRAINING))}
        if odd:
            raise RuntimeError(f"{len(odd)} tensors are missing or unknown, as {min(odd)}")
        whole = super().state_dict() | dict(state_dict)
        return super().load_state_dict(whole, *args, **kwargs)


@dataclass(frozen=True, slots=True)
class Made:
    """What a batch became, for T frames of B sequences.

    true [B, T, 3, H, W]; frames and previews lists of [B, 3, H, W], as 8-bit video shows them,
    empty where the stage has none; bits [B] of all frames; tokens and latents of each frame.
    """

    true: Tensor
    frames: list[Tensor]
    previews: list[Tensor]
    bits: Tensor | None
    tokens: list[Tensor]
    latents: list[Tensor]


def build(recipe: Recipe, inputs: Inputs) -> S2vc:
    """Return the task; see `families`."""
    return S2vc(recipe, inputs)


def config(recipe: Recipe) -> str:
    """Return the tables [codec] and [decoder] of a model folder as TOML."""
    tables = [table(name, recipe.network[name]) for name in ("codec", "decoder")]
    return "\n".join(itertools.chain(*tables)) + "\n"


def table(name: str, values: Mapping[str, Any]) -> list[str]:
    """Return the lines of a TOML table and of those within it."""
    plain = {k: v for k, v in values.items() if not isinstance(v, Mapping)}
    lines = [f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in plain.items())]
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += table(f"{name}.{key}", value)
    return lines


class S2vc:
    """Profile s2vc as a `families.Task`."""

    def __init__(self, recipe: Recipe, inputs: Inputs) -> None:
        self._device, self._dtype = inputs.device, inputs.dtype
        given = dict(recipe.network)
        self._perceptual = self._judge(recipe, inputs)
        self._teacher = self._find_teacher(recipe, given.pop("teacher", ""), inputs)
        backbone = Path(given.pop("backbone", "."))
        try:
            network = Model(given, 0 if self._teacher is None else self._teacher.channels, backbone)
            self.network = place(network, inputs.device)
            adversarial = any(s.options.adversarial for s in recipe.stages)
            critic = losses.Discriminator(**{"width": 48} | recipe.critic) if adversarial else None
        except (TypeError, KeyError, ValueError) as error:
            raise UsageError(f"recipe of {recipe.model}: {error}") from error
        self.critic = None if critic is None else place(critic, inputs.device)
        decoder, compiled = self.network.decoder, torch.compile if recipe.compile else _as_it_is
        self._latents = compiled(decoder.latents)
        self._pictures = compiled(decoder.autoencoder.decode)
        self._rate = compiled(self.network.rate)
        self._sequences = Sequences(inputs.caches)

    def _judge(self, recipe: Recipe, inputs: Inputs) -> losses.Perceptual | None:
        options = [s.options for s in recipe.stages]
        wanted = any(o.lpips or o.dists or o.preview_lpips for o in options)
        wanted |= any(o.semantic for o in options) and not recipe.network.get("teacher")
        if not wanted:
            return None
        if inputs.metric_weights is None:
            raise UsageError("the losses need VGG16: give its folder with --metric-weights")
        judge = losses.Perceptual(inputs.metric_weights).to(inputs.device)
        place(judge.convolutions, dtype=inputs.dtype)
        return judge

    def _find_teacher(self, recipe: Recipe, folder: str, inputs: Inputs) -> Teacher | None:
        if not any(s.options.semantic for s in recipe.stages):
            return None
        if folder:
            return DinoTeacher(Path(folder), inputs.device)
        return None if self._perceptual is None else VggTeacher(self._perceptual)

    def batch(self, stage: Stage, key: tuple[int, int]) -> SequenceBatch:
        """Return sequences as they are stored, and their qualities."""
        o: Options = stage.options
        return self._sequences.batch(
            stage.batch, frames=o.frames, crop=o.crop, photos=o.photos, key=key
        )

    def forward(self, stage: Stage, batch: SequenceBatch) -> Made:
        """Code and decode the sequences of a batch, frame after frame."""
        o: Options = stage.options
        self._select(o)
        true = batch.frames()
        if not o.codes:
            with self._mixed():
                latents = [self.network.decoder.autoencoder.encode(x) for x in true.unbind(1)]
                frames = [self._pictures(x) for x in latents]
            return Made(true, [losses.displayed(x.float()) for x in frames], [], None, [], latents)
        return self._sequence(o, true, batch.quality)

    def _sequence(self, o: Options, true: Tensor, quality: Tensor) -> Made:
        made = Made(true, [], [], true.new_zeros(len(true)), [], [])
        state: State | None = None
        past: Past | None = None
        buffers: Buffers | None = None
        bits: list[Tensor] = []
        for t, x in enumerate(true.unbind(1)):
            if state is not None and o.span and t % o.span == 0:
                state = state.detach()
            sent, state = self.network.codec.step(x, state, quality, "straight")
            if "codec" in o.train:
                spent, past = self._rate(sent, past, quality)
                bits.append(spent)
            made.previews.append(losses.displayed(self.network.codec.preview(state.features.now)))
            if o.decodes:
                with self._mixed():
                    latent, buffers = self._latents(state.features.now, buffers)
                    frame = self._pictures(latent)
                made.frames.append(losses.displayed(frame.float()))
                made.latents.append(latent)
                made.tokens.append(buffers.tokens)
                buffers = buffers if o.cascade else buffers.detach()
        total = torch.stack(bits).sum(0) if bits else None
        return Made(true, made.frames, made.previews, total, made.tokens, made.latents)

    def _select(self, o: Options) -> None:
        """Let gradients reach the parts that the stage trains."""
        autoencoder = "decoder.autoencoder."
        for name, p in self.network.named_parameters():
            part = "autoencoder" if name.startswith(autoencoder) else name.split(".")[0]
            owner = {"rate": "codec", "predictor": "decoder"}.get(part, part)
            encoder = name.startswith(autoencoder + "encoder.") and o.decodes
            p.requires_grad_(owner in o.train and not encoder)

    def adversarial(self, stage: Stage) -> bool:
        """Whether a loss of the stage needs the critic."""
        return bool(stage.options.adversarial)

    def critic_loss(self, stage: Stage, batch: SequenceBatch, made: Made, step: int) -> Tensor:
        """Return the hinge loss of the critic on real and made frames beside the previews."""
        fake, base = self._windows(made, made.frames)
        real, _ = self._windows(made, list(made.true.unbind(1)))
        with self._mixed():
            return losses.hinge_critic(
                self._critic(real, base.detach()), self._critic(fake.detach(), base.detach())
            )

    def _critic(self, frames: Tensor, base: Tensor) -> list[Tensor]:
        if self.critic is None:
            raise UsageError("a stage has an adversarial loss, the recipe no critic")
        found: list[Tensor] = self.critic(frames, base)
        return found

    def _windows(self, made: Made, frames: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Runs of as many frames as the critic sees, and their previews, [N, 3F, H, W]."""
        count = 1 if self.critic is None else self.critic.frames
        starts = range(len(frames) - count + 1)
        x, base = (
            torch.cat([torch.cat(images[t : t + count], 1) for t in starts])
            for images in (frames, made.previews)
        )
        return x, base

    def losses(self, stage: Stage, batch: SequenceBatch, made: Made) -> Losses:
        """Return all losses that have a weight in this stage."""
        o: Options = stage.options
        values: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        if made.bits is not None:
            pixels = made.true.shape[1] * made.true.shape[3] * made.true.shape[4]
            bpp = made.bits / pixels
            values["traded"] = (trade(batch.quality, o.lambdas) * bpp).mean()
            values["bpp"], weights = bpp.mean(), {"traded": 1.0, "bpp": 0.0}
        if made.frames:
            found = self._picture_losses(o, made.frames, made.true, batch.quality)
            values |= found | self._guidance_losses(o, made)
        if made.previews and (o.preview or o.preview_lpips):
            values |= self._preview_losses(o, made, batch.quality)
        if self.adversarial(stage):
            with self._mixed():
                fake, base = self._windows(made, made.frames)
                values["adversarial"] = losses.hinge_generator(self._critic(fake, base))
        for name in values:
            weights.setdefault(name, getattr(o, name, 0.0))
        total = torch.stack([weights[n] * v.float() for n, v in values.items() if weights[n]])
        return Losses(total.sum(), values)

    def _picture_losses(
        self, o: Options, frames: list[Tensor], true: Tensor, quality: Tensor
    ) -> dict[str, Tensor]:
        wanted = list(true.unbind(1))
        values = {"l1": (torch.stack(frames, 1) - true).abs().mean()}
        if o.motion and len(frames) > 1:
            now, goal = itertools.pairwise(frames), itertools.pairwise(wanted)
            change = [losses.temporal(b, a, d, c) for (a, b), (c, d) in zip(now, goal, strict=True)]
            values["motion"] = torch.stack(change).mean()
        if (o.lpips or o.dists) and self._perceptual is not None:
            x, y = (_judged(o, images, quality) for images in (frames, wanted))
            values["lpips"], values["dists"] = self._perceptual(x, y)
        return values

    def _guidance_losses(self, o: Options, made: Made) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        predictor = self.network.predictor
        if o.semantic and made.tokens and predictor is not None and self._teacher is not None:
            grid = (made.true.shape[3] // STRIDE, made.true.shape[4] // STRIDE)
            with self._mixed():
                goal = self._teacher(made.true.flatten(0, 1))
                guess = predictor(torch.stack(made.tokens, 1).flatten(0, 1), grid)
            values["semantic"] = (guess.float() - goal).abs().mean()
        if o.latent and made.tokens:
            with torch.no_grad(), self._mixed():
                goal = self.network.decoder.autoencoder.encode(made.true.flatten(0, 1))
            found = torch.stack(made.latents, 1).flatten(0, 1)
            values["latent"] = (found.float() - goal.float()).abs().mean()
        return values

    def _preview_losses(self, o: Options, made: Made, quality: Tensor) -> dict[str, Tensor]:
        previews, wanted = made.previews, list(made.true.unbind(1))
        values = {"preview": (torch.stack(previews, 1) - made.true).abs().mean()}
        if o.preview_lpips and self._perceptual is not None:
            x, y = (_judged(o, images, quality) for images in (previews, wanted))
            values["preview_lpips"] = self._perceptual(x, y)[0]
        return values

    def picture(self, stage: Stage, batch: SequenceBatch, made: Made) -> Tensor:
        """Return rows of the source's, the codec's and the decoder's last frame."""
        last = [made.true[:, -1], *(x[-1] for x in (made.previews, made.frames) if x)]
        rows = torch.cat([x.detach().float() for x in last], 3)  # [B, 3, H, 2W or 3W]
        grid = rows.permute(0, 2, 3, 1).flatten(0, 1)
        return ((grid + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def is_inner(self, name: str, parameter: Tensor) -> bool:
        """Vectors, depthwise kernels and the ends of the networks are not for Muon."""
        if parameter.ndim < 2 or (parameter.ndim == 4 and parameter.shape[1] == 1):
            return False
        return not name.startswith(_OUTER) and ".lora_" not in name

    def _mixed(self) -> torch.autocast:
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)


def trade(quality: Tensor, lambdas: tuple[float, float]) -> Tensor:
    """Return the weight of the rate [B] at qualities [B] in [0, 63]."""
    low, high = (math.log(v) for v in lambdas)
    return torch.exp(low + (high - low) * quality / MAX_QUALITY)


def _as_it_is(function: Any) -> Any:
    return function


def _judged(o: Options, frames: list[Tensor], quality: Tensor) -> Tensor:
    """Return of frames, T of [B, 3, S, S], what LPIPS and DISTS see, [N, 3, window, window].

    What is taken follows from the qualities, which are drawn anew for each step.
    """
    drawn = int(float(quality[0]) * 65536)
    at = _spread(len(frames), o.judged)
    size, stagger = o.window or o.crop, min(o.stagger, len(at) + len(frames[0]) - 1)
    spare = o.crop - size + 1
    y, x = drawn % spare, drawn // spare % spare
    return torch.cat(
        [
            frames[t][(drawn + i) % stagger :: stagger, :, y : y + size, x : x + size]
            for i, t in enumerate(at)
        ]
    )


def _spread(count: int, most: int) -> list[int]:
    """`most` of `count` places, spread evenly, the last one always; all for 0."""
    if not most or most >= count:
        return list(range(count))
    return [count - 1 - i * count // most for i in range(most)]
