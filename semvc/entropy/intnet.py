"""A convolutional network in integers: the same numbers on every machine, whatever multiplies.

Weights are int8, activations uint8, sums int32. A layer gives, for each output channel,

    y = clip((sum of w * x  +  b  +  2**(s - 1)) >> s, 0, top)          (2**(s-1) only if s > 0)

with zeros outside the picture. The sums are formed by the fastest arithmetic that is proved exact
for the actual weights: products of integers in float32 while no partial sum can reach 2**24, in
float64 else; a self-check against plain integers guards against a library that takes other ways.
Following Balle et al. 2019 (integer networks) and He et al. 2022 (requantisation by shifts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from semvc.entropy.tables import Int32, Int64, Ints, check_ints

if TYPE_CHECKING:
    from semvc.types import UInt8

MAX_SHIFT = 24
TOP = 255
_EXACT32 = 1 << 24  # float32 holds all integers up to here
_LIMIT = 1 << 31
_PARTS = ("weight", "bias", "shift")


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One convolution: `weight` int8 [O, I, k, k] with k 1 or 3, `bias` int32 [O], `shift` [O].

    Shifts are 0..24, results 0..`top` (1..255). Raises TypeError for anything but integers and
    ValueError for wrong shapes or for weights whose sums could leave int32.
    """

    weight: npt.NDArray[np.int8]
    bias: Int32
    shift: Int32
    top: int = TOP

    def __post_init__(self) -> None:
        weight = check_ints(self.weight, "weights")
        bias, shift = check_ints(self.bias, "biases"), check_ints(self.shift, "shifts")
        if weight.dtype != np.int8 or weight.ndim != 4 or 0 in weight.shape:
            raise ValueError(
                f"weights must be int8 [O, I, k, k], not {weight.dtype} {weight.shape}"
            )
        if weight.shape[2:] not in ((1, 1), (3, 3)):
            raise ValueError(f"kernels must be 1x1 or 3x3, not {weight.shape[2:]}")
        if bias.shape != weight.shape[:1] or shift.shape != weight.shape[:1]:
            raise ValueError("biases and shifts must be [O]")
        if not 0 <= shift.min() <= shift.max() <= MAX_SHIFT or not 1 <= self.top <= TOP:
            raise ValueError(f"shifts must be in 0..{MAX_SHIFT} and top in 1..{TOP}")
        rounding = (np.int64(1) << shift.astype(np.int64)) >> 1
        if int((_sums(weight) + np.abs(bias.astype(np.int64)) + rounding).max()) >= _LIMIT:
            raise ValueError("a sum of this layer could leave int32")
        for name, array in (("bias", bias), ("shift", shift)):
            object.__setattr__(self, name, array.astype(np.int32))

    @property
    def dtype(self) -> npt.DTypeLike:
        """The narrowest float type in which the products' sums are proved exact."""
        return np.float32 if int(_sums(self.weight).max()) < _EXACT32 else np.float64

    def run(self, x: UInt8, arithmetic: npt.DTypeLike) -> UInt8:
        """Apply the layer to uint8 [I, h, w]; sums are formed in `arithmetic` (exact: int64)."""
        sums = _sums_of_products(self.weight.astype(arithmetic), x.astype(arithmetic))
        sums = sums.astype(np.int32) + self.bias[:, None, None]
        shift = self.shift[:, None, None]
        rounding = (np.int32(1) << shift) >> 1
        found: UInt8 = np.clip((sums + rounding) >> shift, 0, self.top).astype(np.uint8)
        return found


class IntNet:
    """Layers in a row; the last one's `top` bounds the result."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        """Raises ValueError if the layers do not fit each other."""
        if not layers:
            raise ValueError("a network needs layers")
        for before, after in pairwise(layers):
            if before.weight.shape[0] != after.weight.shape[1]:
                raise ValueError("a layer's inputs are not the outputs of the one before")
        self.layers = tuple(layers)
        self.inputs, self.outputs = layers[0].weight.shape[1], layers[-1].weight.shape[0]
        self._arithmetic = [_proved(layer) for layer in layers]

    def run(self, x: UInt8) -> UInt8:
        """Return uint8 [outputs, h, w] for uint8 [inputs, h, w]; TypeError for other types."""
        return self._run(x, self._arithmetic)

    def run_exact(self, x: UInt8) -> UInt8:
        """The same in plain 64-bit integers: slow, and right by construction."""
        return self._run(x, [np.int64] * len(self.layers))

    def _run(self, x: UInt8, arithmetic: Sequence[npt.DTypeLike]) -> UInt8:
        if check_ints(x, "a network's input").dtype != np.uint8:
            raise TypeError(f"a network's input must be uint8, not {x.dtype}")
        if x.ndim != 3 or x.shape[0] != self.inputs:
            raise ValueError(f"a network's input must be [{self.inputs}, h, w], not {x.shape}")
        for layer, dtype in zip(self.layers, arithmetic, strict=True):
            x = layer.run(x, dtype)
        return x

    def arrays(self, prefix: str) -> dict[str, Ints]:
        """The layers as named integer arrays: `prefix.0.weight`, `prefix.0.bias`, and so on."""
        return {
            f"{prefix}.{number}.{part}": getattr(layer, part)
            for number, layer in enumerate(self.layers)
            for part in _PARTS
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Ints], prefix: str, *, top: int) -> IntNet:
        """Inverse of `arrays`; the last layer's results are clipped to `top`.

        Raises KeyError if there is no first layer or a part of one is missing, and as `Layer` does.
        """
        count = 1
        while f"{prefix}.{count}.weight" in arrays:
            count += 1
        layers = []
        for number in range(count):
            parts: dict[str, Any] = {p: arrays[f"{prefix}.{number}.{p}"] for p in _PARTS}
            layers.append(Layer(**parts, top=top if number == count - 1 else TOP))
        return cls(layers)


def _sums(weight: Ints) -> Int64:
    """The largest magnitude that any partial sum of each output channel can reach."""
    found: Int64 = np.abs(weight.astype(np.int64)).sum(axis=(1, 2, 3)) * TOP
    return found


def _sums_of_products(weight: npt.NDArray[Any], x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Convolve [I, h, w] with [O, I, k, k]: one product of matrices, then shifted sums [O, h, w].

    All taps at once are multiplied with the unshifted picture, which is less to move about than
    all neighbourhoods where layers have fewer outputs than inputs.
    """
    outputs, inputs, size, _ = weight.shape
    height, width = x.shape[1:]
    taps = weight.transpose(2, 3, 0, 1).reshape(size * size * outputs, inputs)
    products = (taps @ x.reshape(inputs, height * width)).reshape(
        size, size, outputs, height, width
    )
    if size == 1:
        flat: npt.NDArray[Any] = products[0, 0]
        return flat
    found: npt.NDArray[Any] = np.zeros((outputs, height + 2, width + 2), x.dtype)
    for dy, dx in product(range(3), repeat=2):
        # what the tap sees lies (dy - 1, dx - 1) away, so its product goes the other way
        found[:, 2 - dy : 2 - dy + height, 2 - dx : 2 - dx + width] += products[dy, dx]
    return found[:, 1:-1, 1:-1]


def _proved(layer: Layer) -> npt.DTypeLike:
    """The first arithmetic whose results equal plain integers' on inputs that reach every bound."""
    inputs = layer.weight.shape[1]
    places = np.arange(inputs * 20, dtype=np.int64).reshape(inputs, 4, 5)
    tests = [places * 2654435761 >> 7 & 255, np.full_like(places, TOP), places % 2 * TOP]
    pictures = [test.astype(np.uint8) for test in tests]
    for dtype in (layer.dtype, np.float64):
        if all((layer.run(x, dtype) == layer.run(x, np.int64)).all() for x in pictures):
            return dtype
    return np.int64
