"""The numbers in the signals' FORMAT.md are those of the program and its assets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from semvc import signals
from semvc.entropy import ASSETS, mixing, tables, textmodel
from semvc.media import audioformat, av1, obu
from semvc.nets import grain as nets_grain
from semvc.signals import (
    audio,
    baselayer,
    camera,
    caption,
    depth,
    grain,
    guide,
    keyframe,
    mask,
    skeleton,
    sketch,
    timing,
)

TEXT = " ".join((Path(signals.__file__).parent / "FORMAT.md").read_text("utf-8").split())


def spaced(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def steps(places: tuple[tuple[int, int], ...]) -> str:
    return " ".join(f"({y},{x})" for y, x in places).replace("-", "−")


CLAIMS = {
    "assets": {f"| `{path.name}` |" for path in ASSETS.iterdir() if path.is_file()},
    "tables": {
        f"{tables.LOGIT_ROWS} rows over {{0, 1}}",
        "memory (1024 if not stated)",
        f"sum to 2^{tables.PRECISION}",
    },
    "mixing": {
        f"max({mixing._BATCH}, number of these bits)) >> {mixing._RATE_BITS}",
        f"clipped to ±2^{mixing._LARGEST.bit_length() - 1}",
        f"n0 + n1 > {sketch.MEMORY}",
    },
    "timing": {
        f"±2^{timing.MAX_TIME.bit_length() - 1}",
        f"{timing._SYMBOLS_PER_FRAME} × (F + 2)",
        "24, 8, 4, 2, 1, 1, 1, 1, 6; strength 4, memory 255",
        f"mod {timing._CONTEXTS}",
    },
    "caption": {
        f"at most {caption.MAX_BYTES} bytes",
        f"8 × {caption.MAX_BYTES + 1}",
        "Q = " + " ".join(map(str, textmodel._QUANT)),
        "both are cut to 20",
    },
    "skeleton": {
        f"P <= {skeleton.MAX_PEOPLE}",
        f"−{-skeleton.LOW}..{skeleton.HIGH}",
        listed(skeleton._PARENT),
        listed(skeleton._ORDER),
        f"min(z, {skeleton._DIRECT})",
        f"`uint({2 * (skeleton.HIGH - skeleton.LOW)})`",
        f"2 + F × 8 × {skeleton._SYMBOLS_PER_PERSON}",
    },
    "sketch": {
        f"at most {spaced(sketch.MAX_PIXELS)};",
        f"| SKETCH | {sketch._HEADER_SYMBOLS} + {spaced(sketch.MAX_PIXELS)} |",
        f"x + 3 y + {sketch._LAG} t",
        *(f"| {number} | {size} |" for number, size in enumerate(sketch.FAMILY_SIZES)),
        "given as (row, column) steps: "
        + " ".join(f"({y},{x})" for y, x in sketch._NEAR + sketch._FAR).replace("-", "−"),
        f"`u16` {sketch.SELECTORS}, `u16` {len(sketch.FAMILY_SIZES)}",
    },
    "guide": {
        f"the shares {listed(guide._SHARES)} percent",
        f"the shares {listed(guide._RIDGE_SHARES)} hold",
        f"steps of −{guide.REACH}..{guide.REACH} rows",
        f"blocks of {guide.BLOCK} × {guide.BLOCK}",
    },
    "base layer": {
        f"coarseness − {baselayer.MIN_CRF} (coarseness {baselayer.MIN_CRF}..{baselayer.MAX_CRF})",
        f"max({av1.MIN_SIDE}, base width)",
        f"2^{av1.MAX_SEGMENT_SAMPLES.bit_length() - 1} luma samples",
        f"frame headers (type {obu.FRAME_HEADER}), tile groups ({obu.TILE_GROUP})"
        f" and frames ({obu.FRAME})",
    },
    "camera": {
        f"`uint({2 * camera.MAX_VALUE})`",
        f"`uint({4 * camera.MAX_VALUE})` = z − {camera._DIRECT}",
        f"the weight w among {listed(camera.INERTIA)}",
        f"how many of {listed(camera._LEVELS)} are",
        f"turn bits − {camera.COARSEST}",
        f"| CAMERA | {camera._HEADER_SYMBOLS} + F × {camera._SYMBOLS_PER_STEP} |",
    },
    "depth": {
        f"min(z, {depth._DIRECT})",
        f"how many of {listed(depth._LEVELS)} are",
        f"a grid of {depth.ROWS} rows of {depth.COLUMNS} nodes",
        f"shift (above {depth.MAX_SHIFT}: damaged)",
        f"| DEPTH | {spaced(depth._SYMBOLS)} |",
    },
    "grain": {
        f"| GRAIN | {grain._SYMBOLS} |",
        f"`bits({grain._BITS})`, coded at once",
        ", ".join(map(str, nets_grain._LIMITS)),
        f"in 1/{nets_grain.UNIT} of a code",
        f"the {nets_grain._DETAIL} × {nets_grain._DETAIL} samples around",
        f"the {nets_grain._PLACE} × {nets_grain._PLACE} samples around",
    },
    "mask": {
        f"{spaced(mask.MAX_PIXELS)}; more is damaged",
        f"x + 3 y + {mask._LAG} t",
        f"outside −{mask.REACH}..{mask.REACH}",
        f"how many of {listed(mask._LEVELS)} are",
        steps(mask.NEAR),
        steps(mask.BEFORE),
        *(listed(row).replace("-", "−") for row in mask.LOGITS),
        *(listed(row) for row in mask.WEIGHTS),
        f"n0 = {mask.STRENGTH} − n1",
        f"| MASK | {mask._HEADER_SYMBOLS} + F × {mask._SYMBOLS_PER_MAP * mask.MAX_OBJECTS}"
        f" + {spaced(mask.MAX_PIXELS)} |",
        *(f"first {near} | first {before}" for near, before in mask.FAMILIES),
    },
    "keyframe": {
        f"at most {keyframe.MAX_KEYFRAMES} |",
        f"coarseness − {keyframe.MIN_CRF} (coarseness {keyframe.MIN_CRF}..{keyframe.MAX_CRF})",
    },
    "sound": {
        f"at most {audio.MAX_PACKETS} of at most {audio.MAX_PACKET_BYTES} bytes",
        f"|o| < 2^{audio.MAX_OFFSET.bit_length() - 1}",
        f"at most {audioformat.MAX_CONFIG_BYTES} bytes",
        f"channels, 1..{audioformat.MAX_CHANNELS}",
        ", ".join(f"{codec.value} {codec.name}" for codec in audioformat.AudioCodec)
        .replace("AC3", "AC-3")
        .replace("EAC", "E-AC"),
    },
}


@pytest.mark.parametrize("what", CLAIMS)
def test_numbers_in_the_text_are_those_of_the_program(what: str) -> None:
    assert [claim for claim in CLAIMS[what] if claim.lower() not in TEXT.lower()] == []


def test_files_named_in_the_text_exist() -> None:
    root = Path(signals.__file__).parents[2]
    names = re.findall(r"`((?:semvc|tests)/[\w./]+)`", TEXT)
    assert names
    assert [name for name in names if not (root / name).exists()] == []
