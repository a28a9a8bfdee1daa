"""Reference tokens beside target tokens: three ways to pack them, one order to interleave them.

A token is one cell of a latent clip [B, C, f, h, w]; its coordinates are the seconds, rows and
columns (luma samples) where the cell begins. Attention knows a token by its coordinates alone, so
the order in the sequence is free; it is frame by frame, references first (DiSCo's interleaving).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

TIME, SPACE = 8, 32  # frames and luma samples that one latent cell covers


class Packing(Enum):
    """Where references lie.

    SHARED: every stream at the target's own coordinates. OFFSET: stream k begins k + 1 clip
    lengths after the target. ALTERNATE: one stream at the target's coordinates whose frame slots
    are taken from the streams in turn, so that no slot is said twice.
    """

    SHARED = "shared"
    OFFSET = "offset"
    ALTERNATE = "alternate"


@dataclass(frozen=True, slots=True)
class Reference:
    """Latents [B, C, f, h, w] of a clip whose cells are `spacing` times as wide as the target's."""

    latents: Tensor
    spacing: int = 1


@dataclass(frozen=True, slots=True)
class Packed:
    """Clean tokens [B, N, C], their coordinates float32 [3, N] and latent frames int64 [N]."""

    tokens: Tensor
    coordinates: Tensor
    slots: Tensor


def flatten(latents: Tensor) -> Tensor:
    """Return tokens [B, f * h * w, C] of latents [B, C, f, h, w]."""
    return latents.flatten(2).transpose(1, 2)


def unflatten(tokens: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return latents [B, C, f, h, w] of tokens [B, f * h * w, C]."""
    return tokens.transpose(1, 2).unflatten(2, shape)


def coordinates(shape: tuple[int, int, int], frame_rate: float, spacing: int = 1) -> Tensor:
    """Return float32 [3, f * h * w]: where each cell of a latent clip (f, h, w) begins.

    The first latent frame is one frame long (the encoder is causal), the others eight.
    """
    time, row, column = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    seconds = (time * TIME + 1 - TIME).clamp(min=0) / frame_rate
    side = SPACE * spacing
    return torch.stack([seconds, row * side, column * side]).flatten(1).float()


def pack(streams: list[Reference], packing: Packing, frame_rate: float) -> Packed:
    """Return the references' tokens; all streams must have the same number of latent frames."""
    if not streams:
        raise ValueError("no reference to pack")
    if len({stream.latents.shape[2] for stream in streams}) != 1:
        raise ValueError("the references differ in length")
    tokens, places, slots = [], [], []
    for index, stream in enumerate(streams):
        frames, height, width = stream.latents.shape[2:]
        place = coordinates((frames, height, width), frame_rate, stream.spacing)
        slot = torch.arange(frames).repeat_interleave(height * width)
        cells = flatten(stream.latents)
        if packing is Packing.OFFSET:
            place[0] += (index + 1) * frames * TIME / frame_rate
        elif packing is Packing.ALTERNATE:
            mine = torch.nonzero(slot % len(streams) == index)[:, 0]
            place, slot, cells = place[:, mine], slot[mine], cells[:, mine]
        tokens.append(cells)
        places.append(place)
        slots.append(slot)
    return Packed(torch.cat(tokens, 1), torch.cat(places, 1), torch.cat(slots))


class Sequence:
    """The order of reference and target tokens in what the transformer sees.

    coordinates: float32 [3, N]; target: bool [N], True for target tokens, which keep their order.
    """

    def __init__(
        self, packed: Packed | None, shape: tuple[int, int, int], frame_rate: float
    ) -> None:
        place = coordinates(shape, frame_rate)
        slots = torch.arange(shape[0]).repeat_interleave(shape[1] * shape[2])
        known = 0
        if packed is not None:
            known = len(packed.slots)
            place = torch.cat([packed.coordinates, place], 1)
            slots = torch.cat([packed.slots, slots])
        self._packed = packed
        self._order = torch.argsort(slots, stable=True)
        self.coordinates = place[:, self._order]
        self.target = self._order >= known
        self._places = torch.nonzero(self.target)[:, 0]  # indices: masks would make a GPU wait

    def to(self, device: torch.device) -> Sequence:
        """Move to a device and return itself."""
        self._order, self.target = self._order.to(device), self.target.to(device)
        self._places = self._places.to(device)
        self.coordinates = self.coordinates.to(device)
        return self

    def fill(self, target: Tensor) -> Tensor:
        """Return [B, N, C]: the clean references interleaved with target tokens [B, n, C]."""
        if self._packed is None:
            return target[:, self._order]
        clean = self._packed.tokens.to(target)
        return torch.cat([clean.expand(len(target), -1, -1), target], 1)[:, self._order]

    def levels(self, target: Tensor) -> Tensor:
        """Return [B, N]: 0 for references, `target` [B, n] for target tokens."""
        out = target.new_zeros(len(target), len(self._order))
        out[:, self._places] = target
        return out

    def take(self, tokens: Tensor) -> Tensor:
        """Return the target's part [B, n, C] of tokens [B, N, C]; references are dropped."""
        return tokens[:, self._places]
