"""Opening of input files: only plain files and pipes, only known containers, never an address.

FFmpeg sees a file object and no name, and may use no protocol, so that nothing inside a file can
make it open another file or a connection.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

import av

from semvc.bitstream.headers import MAGIC
from semvc.errors import MediaError, ResourceError

_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,avi,ivf,yuv4mpegpipe"
_OPTIONS = {"protocol_whitelist": "", "format_whitelist": _DEMUXERS}
# `Path` turns http://x into http:/x; nothing here would open it, this only makes the error clear
_ADDRESS = re.compile(r"[a-z][a-z0-9+]*:/|(concat|subfile|data|pipe|crypto):", re.IGNORECASE)
_STREAMED = b"YUV4MPEG2 "  # the one format that is read from a pipe without a copy


class Source:
    """An input that can be read from several places at once; a context manager.

    A pipe is copied to an unnamed temporary file, except Y4M (`streamed`), which is read once, in
    order. MediaError when the input cannot be opened, is empty, or is a directory or an address.
    """

    def __init__(self, source: Path | BinaryIO) -> None:
        self.name = _name(source)
        self.streamed = False
        self._owned = isinstance(source, Path)
        self._file: BinaryIO
        if isinstance(source, Path):
            if _ADDRESS.match(str(source)) and not source.exists():
                raise MediaError(f"{source}: addresses are not opened, only files and '-'")
            try:
                self._file = source.open("rb")
            except OSError as error:
                raise MediaError(f"cannot open {source}: {error.strerror}") from error
        else:
            self._file = source
        try:
            self._prepare()
        except MediaError:
            self.close()
            raise

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> av.container.InputContainer:
        """Return a container that reads from the start, independent of others if not `streamed`."""
        cursor = self._file if self.streamed else _Cursor(self._file)
        try:
            return av.open(cursor, "r", options=dict(_OPTIONS), metadata_errors="replace")
        except (av.FFmpegError, ValueError) as error:
            if not self.streamed and _Cursor(self._file).read(len(MAGIC)) == MAGIC:
                raise MediaError(
                    f"{self.name} is a semvc stream, not a video: 'semvc decode' rebuilds its video"
                ) from error
            raise MediaError(
                f"{self.name}: not a video file that can be read{reason(error)}; MP4, MOV, MKV,"
                " WebM, AVI, TS, Y4M and IVF are"
            ) from error

    def digest(self) -> bytes:
        """Return the SHA-256 of the input's bytes; MediaError if they cannot be read.

        Of an input that is `streamed`, whose bytes come once, it is that of none.
        """
        found, cursor = hashlib.sha256(), _Cursor(self._file)
        try:
            while not self.streamed and (part := cursor.read(1 << 20)):
                found.update(part)
        except OSError as error:
            raise MediaError(f"cannot read {self.name}: {error.strerror}") from error
        return found.digest()

    def close(self) -> None:
        """Close what this object opened itself."""
        if self._owned:
            self._file.close()

    def _prepare(self) -> None:
        try:
            if not _seekable(self._file):
                self._spool()
            elif not self._file.seek(0, io.SEEK_END):
                raise MediaError(f"{self.name} is empty")
        except OSError as error:
            raise MediaError(f"cannot read {self.name}: {error.strerror}") from error

    def _spool(self) -> None:
        head = b""
        while len(head) < len(_STREAMED) and (part := self._file.read(len(_STREAMED) - len(head))):
            head += part
        if not head:
            raise MediaError(f"{self.name} is empty")
        if head == _STREAMED:
            self.streamed = True
            self._file = _Pushback(head, self._file)  # type: ignore[assignment]
            return
        copy = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as this object)
        try:
            copy.write(head)
            shutil.copyfileobj(self._file, copy, 1 << 20)
            copy.flush()
        except OSError as error:
            copy.close()
            raise ResourceError(f"cannot keep a copy of {self.name}: {error.strerror}") from error
        if self._owned:
            self._file.close()
        self._file, self._owned = copy, True


def reason(error: Exception) -> str:
    """Return " (why)" for an error of FFmpeg, or nothing when it says nothing."""
    text = getattr(error, "strerror", None) or str(error)
    return f" ({text})" if text else ""


class _Cursor:
    """A read position of its own in a shared file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._at = file, 0

    def read(self, size: int = -1) -> bytes:
        self._file.seek(self._at)
        data = self._file.read(size)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at}.get(whence)
        if base is None:
            base = self._file.seek(0, io.SEEK_END)
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at


class _Pushback:
    """A pipe whose first bytes were already read."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self._head, self._file = head, file

    def read(self, size: int = -1) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return self._file.read(size)


def _seekable(file: BinaryIO) -> bool:
    try:
        return file.seekable()
    except AttributeError:
        return False


def _name(source: Path | BinaryIO) -> str:
    if isinstance(source, Path):
        return str(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) and not name.startswith("<") else "standard input"
