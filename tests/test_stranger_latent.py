"""A decoder of LATENT written from LATENT.md alone gives what the program gives."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import stranger_latent
from latent_samples import LEVELS, SHAPE, latents, prior

from semvc import signals
from semvc.bitstream.latents import MAX_QUALITY
from semvc.entropy import intnet
from semvc.entropy.reference import MAX_SYMBOLS
from semvc.signals import latent, latentprior
from semvc.signals.latent import encode_latents
from semvc.signals.latentprior import LatentShape

TEXT = " ".join((Path(signals.__file__).parent / "LATENT.md").read_text("utf-8").split())


@pytest.mark.parametrize("network", [False, True])
@pytest.mark.parametrize(
    ("shape", "frames", "rare", "seed"),
    [(SHAPE, 3, 12, 3), (LEVELS, 3, 12, 4), (SHAPE, 1, 3, 5), (SHAPE, 2, 1, 6), (SHAPE, 4, 90, 7)],
)
def test_latent_md_suffices_to_decode(
    shape: LatentShape, frames: int, rare: int, seed: int, network: bool
) -> None:
    sample, known = latents(seed, frames, (4, 8), shape, rare), prior(shape, network=network)
    payload, check = encode_latents(sample, known)
    names = ("latents", "groups", "hyper", "hyper_levels")
    numbers = {name: getattr(shape, name) for name in names}
    arrays = {n.removeprefix("prior."): a.tolist() for n, a in known.arrays().items()}
    found = stranger_latent.Segment(payload, frames, (4, 8), numbers, arrays)
    assert found.quality == sample.quality
    assert found.hyper == sample.hyper.tolist()
    assert found.latent == sample.latent.tolist()
    own = 0
    for run, part in zip(found.runs, found.parts, strict=True):
        assert run.payload() == part
        own = zlib.crc32(np.array(run.symbols, "<u2").tobytes(), own)
    assert own == check


def spaced(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def test_numbers_in_the_text_are_those_of_the_program() -> None:
    one = LatentShape(2, 1, 1)  # so that a table's rows are the text's factors
    blocks, elements = one.block_families, one.element_families
    sizes = one.magnitude_families
    claims = {
        f"F × h × w is at most {spaced(latent.MAX_POSITIONS)};",
        f"{latent._SYMBOLS_PER_ELEMENT} × F × C × h × w symbols",
        f"never more than 2^{MAX_SYMBOLS.bit_length() - 1}",
        f"in quarter steps, at most {MAX_QUALITY}",
        f"−{latentprior.LATENT_RANGE}..{latentprior.LATENT_RANGE}",
        f"`uint({latentprior.LATENT_RANGE - latentprior.LADDER - 1})` = magnitude −"
        f" {latentprior.LADDER + 1} of those that are greater than {latentprior.LADDER}",
        f"for l = 0 to {latentprior.LADDER - 1} a batch",
        f"| {2 * latentprior.LADDER} × {len(sizes)} |",
        f"shifts s (0..{intnet.MAX_SHIFT})",
        f"top = {latentprior.INDICES - 1} in the last layer, else {intnet.TOP}",
        f"2..{latentprior._MOST['hyper_levels']}; 0 stands for {2 * latentprior.HYPER_RANGE + 1}",
        *(f"at most {most}" for name, most in latentprior._MOST.items() if name != "hyper_levels"),
        *(f"| {family} | {rows} G |" for family, rows in enumerate(blocks)),
        f"| 0 | {elements[0] // 2} C |",
        *(f"| {family} | {elements[family]} |" for family in (1, 2, 3)),
        *(f"| {family} | {elements[family] // 2} C |" for family in (4, 5)),
        f"| 0 | {sizes[0] // 2} C |",
        *(f"| {family} | {sizes[family]} |" for family in (1, 2, 3)),
        f"Strength {latentprior._STRENGTHS['hyper']}. ## 5",
        f"sign(g). Strength {latentprior._STRENGTHS['sign']}.",
    }
    assert [claim for claim in claims if claim not in TEXT] == []


def test_every_tensor_is_described() -> None:
    named = set(re.findall(r"`prior\.([a-z.]+)`", TEXT)) - {"net.kp.i.weight"}
    assert named == set(SHAPE.arrays())
