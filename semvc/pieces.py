"""Decoded segments kept as files of their own, so that an interrupted decode can go on.

The work folder NAME.parts lies beside the output. A piece is named by the number of its segment, a
hash over everything that decides its content (the segment's bytes, the header, the options) and a
hash of the file itself. It appears complete or not at all; in the end all pieces are joined
without coding again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from semvc import __version__
from semvc.bitstream.partfile import PartFile
from semvc.errors import MediaError, ResourceError, UsageError
from semvc.media.join import Piece, check_target, join
from semvc.media.writer import OutputOptions, VideoWriter

if TYPE_CHECKING:
    from semvc.bitstream.container import Segment
    from semvc.media.audio import Packets
    from semvc.media.audioformat import AudioConfig
    from semvc.types import UInt8, VideoInfo

_UNFINISHED = "unfinished.mp4"
_OURS = re.compile(r"unfinished\.mp4(\.part)?|\d{5,}-[0-9a-f]{16}-[0-9a-f]{16}\.mp4")


class PieceStore:
    """Takes the place of a `VideoWriter`, one piece for each segment.

    `identity` is everything but the segment's own bytes that decides a piece's content. UsageError
    for an output that cannot be made of pieces or that exists, and for a work folder that is a
    link or open to others; ResourceError if another process writes the same output.
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
        check_target(target, options.codec)
        self._info, self._options, self._audio = info, options, audio
        neutral = dataclasses.replace(options, force=False)
        self._identity = f"{__version__}\n{identity}\n{info}\n{neutral}"
        self._folder = target.with_name(target.name + ".parts")
        self._pieces: list[Piece] = []
        self._sound: list[tuple[int, Packets]] = []
        self._writer: VideoWriter | None = None
        self._key, self._begin = "", 0
        with contextlib.ExitStack() as stack:
            # held from the start: it is the lock, and says at once if the output is in the way
            self._part = stack.enter_context(PartFile(target, force=options.force, resume=True))
            self._part.sink.truncate(0)  # what a join left that was killed
            _make_private(self._folder)
            self._stack = stack.pop_all()

    def begin(self, segment: Segment, pts: int) -> bool:
        """Start the piece of a segment shown from `pts`; False if it is finished already."""
        digest = hashlib.sha256(f"{self._identity}\n{segment.start} {segment.frames}".encode())
        for kind, payload in segment.sections.items():
            digest.update(bytes([kind]) + len(payload).to_bytes(4, "little") + payload)
        self._key = f"{segment.index:05d}-{digest.hexdigest()[:16]}"
        self._begin, self._sound = pts, []
        if self._finished() is not None:
            return False
        path = self._folder / _UNFINISHED
        for leftover in (path, path.with_name(path.name + ".part")):
            leftover.unlink(missing_ok=True)
        with self._kept():
            self._writer = VideoWriter(path, self._info, options=self._options)
        return True

    def write(self, frame: UInt8, pts: int, duration: int) -> None:
        """Add a frame to the piece; `pts` counts from the start of the whole video."""
        if self._writer is None:
            raise ValueError("no piece was begun")
        with self._kept():
            self._writer.write(frame, pts - self._begin, duration)

    def write_audio(self, start: int, packets: Packets) -> None:
        """Keep packets for the piece; `start` is in samples of the whole."""
        self._sound.append((start, packets))

    def end(self) -> None:
        """Finish the piece."""
        if self._writer is not None:
            with self._kept():
                self._writer.close()
            self._writer = None
            path = self._folder / _UNFINISHED
            path.rename(self._folder / f"{self._key}-{_checksum(path)}.mp4")
        path = self._finished() or self._folder / self._key
        start = Fraction(self._begin) * self._info.time_base
        self._pieces.append(Piece(path, start, tuple(self._sound)))

    def abort(self) -> None:
        """Give the piece in progress up; finished ones stay for the next time."""
        if self._writer is not None:
            self._writer.abort()
            self._writer = None
        self._stack.__exit__(MediaError, MediaError("given up"), None)
        with contextlib.suppress(OSError):
            self._folder.rmdir()  # if it is empty

    def close(self) -> None:
        """Join all pieces into the output and remove the work folder."""
        with self._stack:
            try:
                with self._kept():
                    join(self._pieces, self._part, rate=self._info.frame_rate, audio=self._audio)
            except BaseException:
                self._part.sink.truncate(0)  # the pieces are kept, half a join is of no use
                raise
        for path in self._folder.iterdir():
            if _OURS.fullmatch(path.name):
                path.unlink()
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def _finished(self) -> Path | None:
        """The piece now due if it is there and intact; others of its name are removed."""
        for path in sorted(self._folder.glob(f"{self._key}-*.mp4")):
            if path.stem.endswith(_checksum(path)):
                return path
            path.unlink()
        return None

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except ResourceError as error:
            raise ResourceError(
                f"{error}; {len(self._pieces)} finished segments are kept in {self._folder}, to be"
                " continued with --resume"
            ) from error


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        mine = found.st_uid == os.geteuid() and not found.st_mode & 0o077
        if not (stat.S_ISDIR(found.st_mode) and mine):
            raise UsageError(
                f"{folder} is in the way: it is no private folder of an interrupted decode; remove"
                " it or choose another output"
            ) from None
    except OSError as error:
        raise ResourceError(f"cannot make {folder}: {error.strerror}") from error


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
