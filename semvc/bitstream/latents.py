"""How a LATENT section is laid out: its quality and three runs of the range coder.

Standard library only, so that `info` can tell intra frames, hyper-latents and latents apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from semvc.bitstream.wire import Cursor, uv_bytes
from semvc.errors import BitstreamError
from semvc.types import Limits

MAX_QUALITY = 252  # quarter steps
SECTION = "LATENT"


@dataclass(frozen=True, slots=True)
class LatentSection:
    """A LATENT section's parts; `hyper` and `latent` are empty if there is one frame.

    `quality` is in quarter steps, 0..252. `intra` codes the first frame, `hyper` the hyper-latents
    of all others and `latent` their latents.
    """

    quality: int
    intra: bytes
    hyper: bytes
    latent: bytes

    def to_bytes(self) -> bytes:
        """The section's payload."""
        head = bytes([self.quality]) + uv_bytes(len(self.intra)) + uv_bytes(len(self.hyper))
        return head + self.intra + self.hyper + self.latent

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of the parts and of what joins them, by name; they sum to the payload's."""
        head = 1 + len(uv_bytes(len(self.intra))) + len(uv_bytes(len(self.hyper)))
        parts = {"intra": self.intra, "hyper": self.hyper, "latent": self.latent}
        return {"head": head, **{name: len(part) for name, part in parts.items()}}


def split(payload: bytes) -> LatentSection:
    """Inverse of `LatentSection.to_bytes`; BitstreamError for a payload that is not one."""
    cursor = Cursor(payload, Limits())
    try:
        cursor.field = "quality"
        quality = cursor.bound(cursor.uint(1), 0, MAX_QUALITY)
        cursor.field = "length of the intra run"
        intra = cursor.uv()
        cursor.field = "length of the hyper run"
        hyper = cursor.uv()
        cursor.field = "runs"
        first, second = cursor.take(intra), cursor.take(hyper)
        rest = cursor.take(cursor.rest())
    except BitstreamError as error:
        raise BitstreamError(error.rule, offset=error.offset, section=SECTION) from error
    if not first or bool(second) != bool(rest):
        raise BitstreamError("a run is empty that must not be", section=SECTION)
    return LatentSection(quality, first, second, rest)
