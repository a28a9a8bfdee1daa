"""The profiles: how a clip becomes sections and sections become a clip.

Nothing else in the program knows which profile is running. Classes are named by text and imported
on use, so that the rest of the program has no import path to torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from semvc.bitstream.headers import ProfileId, SectionType, StreamHeader
from semvc.errors import UnsupportedError, UsageError
from semvc.types import Clip, EncodeOptions, Runtime

if TYPE_CHECKING:
    from pathlib import Path

    from semvc.bitstream.segments import Segment
    from semvc.types import UInt8

_CLASSES = {
    ProfileId.DISCO: "semvc.profiles.disco:Disco",
    ProfileId.CPSGD: "semvc.profiles.cpsgd:Cpsgd",
    ProfileId.S2VC: "semvc.profiles.s2vc:S2vc",
}


@dataclass(frozen=True, slots=True)
class Coded:
    """One segment's sections and the CRC-32 of all entropy-coded integers in them."""

    sections: dict[SectionType, bytes]
    check: int


class Profile(Protocol):
    """One decoding process. An object serves one stream, in one direction.

    Encoding: `begin` looks at the first clip and returns the header fields that this profile
    decides; then `encode` is called for each clip. Decoding: `unpack` turns a segment's sections
    into signals (integers only), `synthesize` turns those into pictures.
    """

    id: ClassVar[ProfileId]

    def begin(self, clip: Clip, options: EncodeOptions) -> dict[str, Any]:
        """Look at the first clip; return the `StreamHeader` fields that the profile decides."""

    def encode(self, clip: Clip, start: int, quality: float, check: int) -> Coded:
        """Code one clip that begins at frame `start`."""

    def unpack(self, segment: Segment, header: StreamHeader, check: int) -> tuple[Any, int]:
        """Return a segment's signals and the chained check; BitstreamError for damage."""

    def load(self, header: StreamHeader, tier: str, steps: int, runtime: Runtime) -> None:
        """Get ready to synthesize; ModelError if the model is missing or another one."""

    def synthesize(self, signals: Any, segment: Segment, header: StreamHeader) -> Iterator[UInt8]:
        """Yield the segment's frames, uint8 [H, W, 3] full-range RGB."""

    def close(self) -> None:
        """Let go of child processes."""

    def dump(self, signals: Any, segment: Segment, header: StreamHeader, folder: Path) -> None:
        """Write the signals as files a person can open."""


def create(profile: ProfileId, models_dir: Path | None = None) -> Profile:
    """Return a new object of a profile; UnsupportedError if this program has none.

    Models that signals need are looked for in `models_dir` before the bundled ones.
    """
    if profile not in _CLASSES:
        raise UnsupportedError(
            f"profile {profile.name.lower()} cannot be decoded here; known: {', '.join(names())}"
        )
    module, name = _CLASSES[profile].split(":")
    made: Profile = getattr(importlib.import_module(module), name)(models_dir)
    return made


def names() -> tuple[str, ...]:
    """Return the names of all profiles, the usual one first."""
    return tuple(profile.name.lower() for profile in _CLASSES)


def by_name(name: str) -> ProfileId:
    """Return the profile of a name as typed by a user; UsageError if there is none."""
    if name not in names():
        raise UsageError(f"unknown profile {name!r}; known: {', '.join(names())}")
    return ProfileId[name.upper()]
