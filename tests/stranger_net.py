"""The integer network of FORMAT.md once more, in plain Python without arrays."""

from __future__ import annotations

from dataclasses import dataclass

Planes = list[list[list[int]]]  # [channel][row][column]


@dataclass
class Layer:
    """weight [O][I][k][k], bias [O], shift [O], top."""

    weight: list[list[list[list[int]]]]
    bias: list[int]
    shift: list[int]
    top: int


def run(layers: list[Layer], planes: Planes) -> Planes:
    for layer in layers:
        planes = [channel(layer, o, planes) for o in range(len(layer.bias))]
    return planes


def channel(layer: Layer, o: int, planes: Planes) -> list[list[int]]:
    height, width, reach = len(planes[0]), len(planes[0][0]), len(layer.weight[o][0]) // 2
    steps = range(-reach, reach + 1)
    found = [[layer.bias[o]] * width for _ in range(height)]
    for weights, plane in zip(layer.weight[o], planes, strict=True):
        for dy in steps:
            for dx in steps:
                w = weights[dy + reach][dx + reach]
                for y in range(max(0, -dy), min(height, height - dy)):
                    for x in range(max(0, -dx), min(width, width - dx)):
                        found[y][x] += w * plane[y + dy][x + dx]
    s = layer.shift[o]
    half = 1 << s >> 1
    return [[min(layer.top, max(0, v + half >> s)) for v in row] for row in found]
