"""How far decoders of profile s2vc drift from the encoder within a segment.

`python -m tests.s2vc_drift VIDEO [--models-dir DIR] [--frames N] [--quality Q]` codes the first
frames of a video in each arithmetic at hand and decodes the integers in all others. It prints the
PSNR between the encoder's own preview pictures and the decoder's, over all frames and for the last
one; and by how much an error of 1e-4 in the first feature has grown at the end.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from semvc import weights
from semvc.media.reader import VideoReader
from semvc.nets import load, s2vc_runner
from semvc.nets.s2vc_codec import CodecFeatures, Latents, S2vcCodec, State
from semvc.nets.s2vc_runner import CodecRunner
from semvc.types import Runtime

UInt8 = npt.NDArray[np.uint8]
ERROR = 1e-4
Arithmetic = tuple[torch.device, torch.dtype]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", type=Path)
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--quality", type=float, default=16)
    given = parser.parse_args()
    with VideoReader(given.video) as reader:
        frames = np.stack([frame for frame, _ in itertools.islice(reader, given.frames)])
    folder = weights.resolve(weights.codec_for("s2vc", given.models_dir), given.models_dir)
    for name, row in table(folder, frames, given.quality).items():
        print(name, row)
    print("growth of an error", growth(s2vc_runner.build(folder, *plain()), frames, given.quality))


def plain() -> Arithmetic:
    return torch.device("cpu"), torch.float32


def arithmetics() -> list[Arithmetic]:
    """All kinds of arithmetic at hand."""
    device, _ = load.choose_device(Runtime())
    devices = {device.type: device, "cpu": torch.device("cpu")}
    return [(d, t) for d in devices.values() for t in (torch.float32, torch.bfloat16)]


def table(folder: Path, frames: UInt8, quality: float) -> dict[str, str]:
    """PSNR of previews in dB for every pair of encoder and decoder."""
    kinds = arithmetics()
    runners = [CodecRunner(s2vc_runner.build(folder, d, t), device=d, dtype=t) for d, t in kinds]
    size = (frames.shape[1], frames.shape[2])
    found = {}
    for here, encoder in zip(kinds, runners, strict=True):
        sent = (*encoder.encode(frames, quality), quality)
        own = np.stack(list(encoder.previews(*sent, size)))
        for there, decoder in zip(kinds, runners, strict=True):
            other = np.stack(list(decoder.previews(*sent, size)))
            values = f"all {psnr(own, other):.1f} dB, last {psnr(own[-1], other[-1]):.1f} dB"
            found[f"{named(here)} -> {named(there)}"] = values
    return found


def growth(codec: S2vcCodec, frames: UInt8, quality: float) -> float:
    """Size of the feature's error at the end of the segment, over that at its beginning."""
    device, dtype = plain()
    hyper, latent = CodecRunner(codec, device=device, dtype=dtype).encode(frames, quality)
    sent = [Latents(*(torch.from_numpy(v[t : t + 1]).float() for v in (hyper, latent)))
            for t in range(len(frames))]  # fmt: skip
    level = torch.tensor([quality])
    with torch.inference_mode():
        first = codec._advance(sent[0], None, None, level)
        error = ERROR * torch.randn(first.features.now.shape)
        moved = first.features.now + error
        states = [first, State(CodecFeatures(moved, moved), 1)]
        for given in sent[1:]:
            states = [codec._advance(given, codec._context(s), s, level) for s in states]
    last = states[1].features.now - states[0].features.now
    return float(last.norm() / error.norm())


def psnr(a: UInt8, b: UInt8) -> float:
    error = float(np.square(a.astype(np.float32) - b).mean())
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def named(kind: Arithmetic) -> str:
    return f"{kind[0]} {str(kind[1]).removeprefix('torch.')}"


if __name__ == "__main__":
    main()
