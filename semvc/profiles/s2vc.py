"""Profile s2vc: latents of a conditional video codec, and a generator that reads its features.

After S2VC (Xue et al., CVPR 2026), with differences that make it a codec: every frame is written,
the entropy decoder depends on integers alone, and one model covers all qualities. Two models take
part: the codec, without which nothing of a stream can be read, and a generator trained for it. The
tier `preview` is the codec's own picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from semvc import weights
from semvc.bitstream.headers import ProfileId, SectionType, StreamHeader
from semvc.errors import BitstreamError, ModelError, UnsupportedError, UsageError
from semvc.profiles import Coded
from semvc.signals.latent import Latents, decode_latents, encode_latents
from semvc.signals.latentprior import Prior, read_prior
from semvc.types import Clip, EncodeOptions, Runtime

if TYPE_CHECKING:
    from semvc.bitstream.segments import Segment
    from semvc.nets.s2vc_runner import CodecRunner
    from semvc.nets.s2vc_synthesis import Synthesizer
    from semvc.types import UInt8
    from semvc.weights import ModelRef

NAME = "s2vc"
_CELL, _PER_CELL = 64, 4  # luma samples of a hyper-latent's side; latents on it
_DTYPES = ("float32", "bfloat16")  # what the codec computes in, by the header's preset
_NOT_SENT = ("caption", "sketch", "skeleton", "factor", "step", "camera", "masks")


class S2vc:
    """The profile's encoder and decoder; one object serves one stream."""

    id: ClassVar[ProfileId] = ProfileId.S2VC

    def __init__(self, models_dir: Path | None = None) -> None:
        self._models_dir = models_dir
        self._codec: ModelRef | None = None
        self._prior: Prior | None = None
        self._runner: CodecRunner | None = None
        self._preset = 0
        self._synthesizer: Synthesizer | None = None

    def close(self) -> None:
        """Nothing to end."""

    # --- analysis

    def begin(self, clip: Clip, options: EncodeOptions) -> dict[str, Any]:
        """Load the codec; return the header fields. ModelError if no codec is installed."""
        given = [name for name in _NOT_SENT if getattr(options, name, None)]
        if given:
            raise UsageError(f"profile {NAME} does not send {given[0]}: leave --{given[0]} out")
        if self._codec is None:
            self._use(weights.codec_for(NAME, options.models_dir), Runtime(), options.models_dir)
        codec, _ = self._opened()
        try:
            made_for = weights.for_profile(NAME, "small", options.models_dir, codec=codec.id)
            decoder_id = made_for.decoder_id()
        except ModelError:
            decoder_id = bytes(4)
        return {
            "sections": (SectionType.LATENT,),
            "codec_id": codec.codec_id(),
            "preset": self._preset,
            "decoder_id": decoder_id,
        }

    def encode(self, clip: Clip, start: int, quality: float, check: int) -> Coded:
        """Code one clip at `quality`."""
        _, prior = self._opened()
        if self._runner is None:
            raise ValueError("begin comes first")
        steps = round(4 * quality)
        hyper, latent = self._runner.encode(clip.frames, steps / 4)
        payload, check = encode_latents(Latents(steps, hyper, latent), prior, check)
        return Coded({SectionType.LATENT: payload}, check)

    # --- sections to signals

    def unpack(self, segment: Segment, header: StreamHeader, check: int) -> tuple[Latents, int]:
        """Return a segment's latents and the chained check; BitstreamError if they are damaged."""
        prior = self._prior_of(header)
        if SectionType.LATENT not in segment.sections:
            raise BitstreamError("the segment has no latents", section="LATENT")
        height, width = (_PER_CELL * -(-side // _CELL) for side in (header.height, header.width))
        size = (segment.frames, height, width)
        return decode_latents(segment.sections[SectionType.LATENT], size, prior, check)

    def _prior_of(self, header: StreamHeader) -> Prior:
        if self._prior is None:
            self._codec = self._named(header, self._models_dir)
            self._prior = read_prior(weights.resolve(self._codec, self._models_dir))
        return self._prior

    # --- synthesis

    def load(self, header: StreamHeader, tier: str, steps: int, runtime: Runtime) -> None:
        """Get ready to synthesize at a tier; ModelError if a model is missing or another one."""
        if steps != 1:
            raise UsageError(f"profile {NAME} decodes in one step: leave --steps out")
        if header.preset >= len(_DTYPES):
            raise UnsupportedError(f"preset {header.preset} of profile {NAME} is not known here")
        codec = self._named(header, runtime.models_dir)
        generator = None if tier == "preview" else _generator(header, tier, codec, runtime)
        # the encoder's arithmetic keeps the buffers nearest to the encoder's
        wanted = _DTYPES[header.preset] if runtime.dtype == "auto" else runtime.dtype
        self._use(codec, dataclasses.replace(runtime, dtype=wanted), runtime.models_dir)
        if generator is not None:
            from semvc.nets import load, s2vc_synthesis

            device, dtype = load.choose_device(runtime)
            folder = weights.resolve(generator, runtime.models_dir)
            network = s2vc_synthesis.build(folder, device, dtype)
            self._synthesizer = s2vc_synthesis.Synthesizer(network, device=device, dtype=dtype)

    def synthesize(
        self, signals: Latents, segment: Segment, header: StreamHeader
    ) -> Iterator[UInt8]:
        """Yield the segment's frames, uint8 [H, W, 3] RGB."""
        if self._runner is None:
            raise ValueError("load comes first")
        given = (signals.hyper, signals.latent, signals.quality / 4)
        if self._synthesizer is None:
            yield from self._runner.previews(*given, (header.height, header.width))
        else:
            features = self._runner.features(*given)
            yield from self._synthesizer.frames(features, header.height, header.width)

    def dump(self, signals: Latents, segment: Segment, header: StreamHeader, folder: Path) -> None:
        """Write hyper-latents and latents as int8 .npy files [F, C, h, w], the quality as text."""
        stem = f"{segment.index:05d}"
        np.save(folder / f"{stem}-hyper.npy", signals.hyper, allow_pickle=False)
        np.save(folder / f"{stem}-latent.npy", signals.latent, allow_pickle=False)
        (folder / f"{stem}-quality.txt").write_text(f"{signals.quality / 4:g}\n", "ascii")

    # --- models

    def _use(self, codec: ModelRef, runtime: Runtime, models_dir: Path | None) -> None:
        from semvc.nets import load, s2vc_runner

        folder = weights.resolve(codec, models_dir)
        device, dtype = load.choose_device(runtime)
        network = s2vc_runner.build(folder, device, dtype)
        self._preset = _DTYPES.index(str(dtype).removeprefix("torch."))
        self._codec, self._prior = codec, read_prior(folder)
        self._runner = s2vc_runner.CodecRunner(network, device=device, dtype=dtype)

    def _opened(self) -> tuple[ModelRef, Prior]:
        if self._codec is None or self._prior is None:
            raise ValueError("begin comes first")
        return self._codec, self._prior

    def _named(self, header: StreamHeader, models_dir: Path | None) -> ModelRef:
        codec = weights.by_codec(header.codec_id, models_dir)
        if codec is None:
            raise ModelError(
                f"the stream was coded with codec {header.codec_id.hex() or 'none'}, which is not"
                " installed, and nothing else can read it; the stream itself is intact: give the"
                " codec's folder with --models-dir"
            )
        return codec


def _generator(header: StreamHeader, tier: str, codec: ModelRef, runtime: Runtime) -> ModelRef:
    """The generator of a tier; ModelError if there is none, or another than the stream's.

    A stream made where no generator was installed, and a tier other than the stream's own, take
    any generator that was trained for the codec.
    """
    ref = weights.for_profile(NAME, tier, runtime.models_dir, codec=codec.id)
    if ref.decoder_id() == header.decoder_id or not any(header.decoder_id) or runtime.any_decoder:
        return ref
    named = weights.by_decoder(header.decoder_id, runtime.models_dir)
    if named is not None and named.tier != tier:
        return ref
    what = header.decoder_id.hex() if named is None else named.id
    raise ModelError(
        f"the stream was made for decoder {what}, installed is {ref.id} ({ref.decoder_id().hex()});"
        " the stream itself is intact: --any-decoder decodes it with the installed one, --tier"
        " preview with none"
    )
