"""A forward view of a byte source, which may be a pipe that gives a few bytes at a time."""

from __future__ import annotations

from typing import BinaryIO

from semvc.errors import ResourceError

BLOCK = 1 << 16


class Window:
    """Bytes of `source` from `at` on, read as needed and forgotten by `drop`.

    Positions count from the stream's first byte. Memory is bounded by what callers ask for.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        try:
            self.seekable = source.seekable()
            self._origin = source.tell() if self.seekable else 0
        except OSError as error:
            raise ResourceError(f"cannot read the stream: {error}") from error
        self._data = bytearray()
        self._base = 0
        self._ended = False
        self.block = BLOCK

    @property
    def high(self) -> int:
        """Return the position after the last byte read so far."""
        return self._base + len(self._data)

    def need(self, position: int) -> int:
        """Read until `position` or the source's end; return `high`."""
        while self.high < position and not self._ended:
            try:
                if self.seekable:
                    self._source.seek(self._origin + self.high)
                block = self._source.read(max(self.block, position - self.high))
            except OSError as error:
                raise ResourceError(f"cannot read the stream: {error}") from error
            if block is None:
                raise ResourceError("cannot read the stream: the source does not block")
            self._ended = not block
            self._data += block
        return self.high

    def take(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to `end`, fewer if the source ends before."""
        if start < self._base or (start > self.high and self.seekable):
            self.seek(start)
        self.need(end)
        return bytes(self._data[start - self._base : end - self._base])

    def drop(self, position: int) -> None:
        """Forget the bytes before `position`."""
        if position > self._base + 4 * BLOCK or position >= self.high:
            cut = min(position, self.high) - self._base
            del self._data[:cut]
            self._base += cut

    def seek(self, position: int) -> None:
        """Go to any position of a seekable source."""
        if not self.seekable:
            raise ResourceError("cannot go back in a pipe")
        if not self._base <= position <= self.high:
            self._data.clear()
            self._base = position
        self._ended = False

    def size(self) -> int:
        """Return the length of a seekable source in bytes."""
        try:
            return self._source.seek(0, 2) - self._origin
        except OSError as error:
            raise ResourceError(f"cannot read the stream: {error}") from error
