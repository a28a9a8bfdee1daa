"""What a codec model knows about its latents before a segment: start tables and integer networks.

It is part of the model, under names that begin with `prior.`, and nothing but integers. All tables
are start values: each segment adapts a copy of its own.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from semvc.entropy.intnet import IntNet
from semvc.entropy.tables import AdaptiveTables, Ints, check_ints, normalize
from semvc.errors import ModelError
from semvc.weights import CONFIG, WEIGHTS

HYPER_RANGE = 7
LATENT_RANGE = 127
INDICES = 64  # what an integer network says of an element
LEVELS = 64  # of what its indices say of a block together
LADDER = 14  # bits of a magnitude before the rest is coded with an Exp-Golomb code
HISTORY_STEP = 16  # of the history for each unit of a magnitude
CLASSES = 7  # of a sum of magnitudes: its length in bits, at most 6
_STRENGTHS = {"hyper": 32, "sign": 64}
_NEUTRAL_WEIGHT = 1100  # of a family, in 1/4096: experts that agree overrate themselves
_MOST = {"latents": 512, "groups": 16, "hyper": 128, "hyper_levels": 15}


@dataclass(frozen=True, slots=True)
class LatentShape:
    """What is sent of a frame: `latents` channels in `groups`, `hyper` channels.

    `hyper_levels` is how many values a hyper-latent has, 0 for the rounded ones in -7..7.
    ValueError for numbers that do not go together.
    """

    latents: int
    groups: int
    hyper: int
    hyper_levels: int = 0

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            if not (name != "hyper_levels") <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be in 1..{most}, not {getattr(self, name)}")
        if self.latents % self.groups or self.group < 2 or self.hyper_levels == 1:
            raise ValueError(f"{self.latents} latents in {self.groups} groups, or 1 hyper level")

    @property
    def group(self) -> int:
        """Channels of a group, 2 or more."""
        return self.latents // self.groups

    @property
    def hyper_alphabet(self) -> int:
        """Number of values of a hyper-latent."""
        return self.hyper_levels or 2 * HYPER_RANGE + 1

    @property
    def hyper_low(self) -> int:
        """The least value of a hyper-latent, negative."""
        return -(self.hyper_alphabet // 2)

    @property
    def block_families(self) -> tuple[int, ...]:
        """Contexts of each family that predicts whether a block is zero."""
        lead = 4 * self.groups
        return (lead * 80, lead * 40, lead * 64, lead * LEVELS, lead * 64, lead * 40)

    @property
    def element_families(self) -> tuple[int, ...]:
        """Contexts of each family that predicts whether an element is zero."""
        wide = 2 * self.latents * CLASSES
        return (4 * self.latents * 3, 4 * 36, 4 * INDICES, 4 * 32, wide, wide)

    @property
    def magnitude_families(self) -> tuple[int, ...]:
        """Contexts of each family that predicts whether a magnitude is greater still."""
        sums = CLASSES * CLASSES
        return (
            2 * self.latents * LADDER,
            4 * LADDER * CLASSES * 4,
            4 * LADDER * INDICES,
            2 * LADDER * sums,
        )

    def arrays(self) -> dict[str, tuple[int, ...]]:
        """The shape of every table of a prior, by name."""
        return {
            "block.counts": (sum(self.block_families), 2),
            "block.weights": (4 * self.groups * 3, len(self.block_families)),
            "element.counts": (sum(self.element_families), 2),
            "element.weights": (12, len(self.element_families)),
            "magnitude.counts": (sum(self.magnitude_families), 2),
            "magnitude.weights": (2 * LADDER, len(self.magnitude_families)),
            "hyper": (2 * self.hyper * 9, self.hyper_alphabet),
            "sign": (18, 2),
            "lengths": (INDICES,),
            "levels": (LEVELS - 1,),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Prior:
    """Start tables by name (see `LatentShape.arrays`), and networks by (inter, half).

    Raises TypeError for anything but integers, ValueError for shapes and values out of range.
    """

    shape: LatentShape
    tables: Mapping[str, Ints]
    nets: Mapping[tuple[int, int], IntNet] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = self.shape.arrays()
        if self.tables.keys() != wanted.keys():
            raise ValueError(f"a prior has the tables {', '.join(wanted)}")
        for name, shape in wanted.items():
            table = check_ints(self.tables[name], f"prior.{name}")
            low, high = (-32768, 32767) if name.endswith("weights") else (0, 65535)
            if table.shape != shape or not low <= table.min() <= table.max() <= high:
                raise ValueError(f"prior.{name} must be {shape} in {low}..{high}")
        if (np.diff(self.tables["levels"].astype(np.int64)) < 0).any():
            raise ValueError("prior.levels must not fall")
        for (inter, half), net in self.nets.items():
            inputs = self.shape.latents * (1 + half) + self.shape.hyper + 1
            ends = (net.inputs, net.outputs, net.layers[-1].top)
            if inter not in (0, 1) or ends != (inputs, self.shape.latents, INDICES - 1):
                raise ValueError(f"a network of {ends[0]} inputs and {ends[1]} outputs")

    def adaptive(self, name: str) -> AdaptiveTables:
        """A fresh copy of a table that adapts."""
        counts = self.tables[name].astype(np.int64)
        return AdaptiveTables(normalize(counts), strength=_STRENGTHS[name])

    def arrays(self) -> dict[str, Ints]:
        """All integers under the names that a model's weights file has for them."""
        found = {f"prior.{name}": _narrow(name, table) for name, table in self.tables.items()}
        for (inter, half), net in self.nets.items():
            found |= net.arrays(f"prior.net.{inter}{half}")
        return found

    @classmethod
    def from_arrays(cls, shape: LatentShape, arrays: Mapping[str, Any]) -> Prior:
        """Inverse of `arrays`; ModelError if they are not a prior's of this shape."""
        try:
            nets = {}
            for inter in (0, 1):
                for half in (0, 1):
                    name = f"prior.net.{inter}{half}"
                    if f"{name}.0.weight" in arrays:
                        net = IntNet.from_arrays(arrays, name, top=INDICES - 1)
                        nets[inter, half] = net
            tables = {name: arrays[f"prior.{name}"] for name in shape.arrays()}
            prior = cls(shape, tables, nets)
        except (KeyError, ValueError, TypeError) as error:
            raise ModelError(f"the codec's prior does not fit this program: {error}") from error
        strange = arrays.keys() - prior.arrays().keys()
        if strange:
            raise ModelError(f"the codec's prior has {min(strange)}, which is not known here")
        return prior

    @classmethod
    def neutral(
        cls, shape: LatentShape, nets: Mapping[tuple[int, int], IntNet] | None = None
    ) -> Prior:
        """A prior that has seen nothing: zeros are likelier than ones, small is likelier."""
        tables: dict[str, Ints] = {}
        for name, size in shape.arrays().items():
            tables[name] = np.zeros(size, np.int64)
            if name.endswith("counts"):
                tables[name] += [3, 1]
            elif name.endswith("weights"):
                tables[name] += _NEUTRAL_WEIGHT
        places = np.abs(np.arange(shape.hyper_alphabet) + shape.hyper_low)
        tables["hyper"] += np.maximum(1, 4096 >> 2 * places)
        tables["sign"] += 1
        tables["lengths"] += np.minimum(65535, 2 ** (np.arange(INDICES) // 4))
        tables["levels"] += np.minimum(65535, np.arange(1, LEVELS) ** 2 * 8)
        return cls(shape, tables, nets or {})


def read_prior(folder: Path) -> Prior:
    """Return the prior of a codec's model folder: the integers `prior.*` among its weights.

    The shape comes from the table `[codec]` of its `config.toml`. ModelError if they do not fit.
    """
    try:
        config = tomllib.loads((folder / CONFIG).read_text("utf-8"))["codec"]
        names = ("latents", "groups", "hyper", "hyper_levels")
        shape = LatentShape(**{name: config[name] for name in names})
        with safe_open(folder / WEIGHTS, "numpy") as file:
            named = [n for n in file.keys() if n.startswith("prior.")]  # noqa: SIM118  # no mapping
            arrays = {name: file.get_tensor(name) for name in named}
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ModelError(f"model folder {folder} does not fit this program: {error}") from error
    return Prior.from_arrays(shape, arrays)


def _narrow(name: str, table: Ints) -> Ints:
    return table.astype(np.int16 if name.endswith("weights") else np.uint16)
