"""Decoded segments kept as files of their own, so that an interrupted decode can go on.

The work folder NAME.parts lies beside the output. A piece is named by the number of its segment and
a hash over everything that decides its content: the segment's bytes, the header, the options. It
appears complete or not at all; in the end all pieces are joined without coding again.
"""

from __future__ import annotations

import hashlib
import shutil
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from semvc import __version__
from semvc.errors import UsageError
from semvc.media.join import Piece, join
from semvc.media.writer import OutputOptions, VideoWriter

if TYPE_CHECKING:
    from semvc.bitstream.container import Segment
    from semvc.media.audio import Packets
    from semvc.media.audioformat import AudioConfig
    from semvc.types import UInt8, VideoInfo


class PieceStore:
    """Takes the place of a `VideoWriter`, one piece for each segment.

    `identity` is everything but the segment's own bytes that decides a piece's content. UsageError
    for an output that cannot be made of pieces.
    """

    def __init__(
        self,
        target: Path,
        info: VideoInfo,
        *,
        options: OutputOptions,
        audio: AudioConfig | None,
        identity: str,
    ) -> None:
        if target.exists() and not options.force:
            raise UsageError(f"{target} exists: use --force to replace it")
        self._target, self._info, self._options, self._audio = target, info, options, audio
        self._identity = f"{__version__}\n{identity}\n{info}\n{options}"
        self._folder = target.with_name(target.name + ".parts")
        if self._folder.is_symlink():
            raise UsageError(f"{self._folder} is a link: remove it")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._pieces: list[Piece] = []
        self._sound: list[tuple[int, Packets]] = []
        self._writer: VideoWriter | None = None
        self._path, self._begin = Path(), 0

    def begin(self, segment: Segment, pts: int) -> bool:
        """Start the piece of a segment shown from `pts`; False if it is finished already."""
        digest = hashlib.sha256(f"{self._identity}\n{segment.frames}".encode())
        for kind, payload in segment.sections.items():
            digest.update(bytes([kind]) + len(payload).to_bytes(4, "little") + payload)
        suffix = ".mkv" if self._options.codec == "ffv1" else ".mp4"
        self._path = self._folder / f"{segment.index:05d}-{digest.hexdigest()[:16]}{suffix}"
        self._begin, self._sound = pts, []
        if self._path.exists():
            return False
        self._path.with_name(self._path.name + ".part").unlink(missing_ok=True)
        self._writer = VideoWriter(self._path, self._info, options=self._options)
        return True

    def write(self, frame: UInt8, pts: int, duration: int) -> None:
        """Add a frame to the piece; `pts` counts from the start of the whole video."""
        if self._writer is None:
            raise ValueError("no piece was begun")
        self._writer.write(frame, pts - self._begin, duration)

    def write_audio(self, start: int, packets: Packets) -> None:
        """Keep packets for the piece; `start` is in samples of the whole."""
        self._sound.append((start, packets))

    def end(self) -> None:
        """Finish the piece."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        start = Fraction(self._begin) * self._info.time_base
        self._pieces.append(Piece(self._path, start, tuple(self._sound)))

    def abort(self) -> None:
        """Give the piece in progress up; finished ones stay for the next time."""
        if self._writer is not None:
            self._writer.abort()
            self._writer = None

    def close(self) -> None:
        """Join all pieces into the output and remove the work folder."""
        join(self._pieces, self._target, audio=self._audio, force=self._options.force)
        shutil.rmtree(self._folder)
