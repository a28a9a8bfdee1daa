"""A file that appears under its final name complete or not at all.

It is written as NAME.part beside its target, held by a lock, synced, and renamed. POSIX only.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
from typing import TYPE_CHECKING

from semvc.errors import ResourceError, SemvcError, UsageError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


class PartFile:
    """Context manager for writing `path`; `sink` is the open, unbuffered NAME.part.

    Entering raises UsageError if `path` exists (unless `force`) or an interrupted NAME.part is in
    the way (unless `force` or `resume`), and ResourceError if another process is writing it.
    Leaving without an error makes `path` appear. Leaving with one never does: the part is kept
    after lack of resources or a mistake of ours, so that it can be resumed, and removed after a
    signal, unless `keep_partial` or `resume`. What the writer notes in a file of its own at
    `memo_path`, for those who resume, goes when the part goes.
    """

    def __init__(
        self, path: Path, *, force: bool, resume: bool = False, keep_partial: bool = False
    ) -> None:
        self.path = path
        self.part_path = path.with_name(path.name + ".part")
        self.memo_path = path.with_name(path.name + ".part.memo")
        self._force, self._resume, self._keep = force, resume, keep_partial or resume
        self._fresh = False
        self.sink: io.FileIO

    def __enter__(self) -> PartFile:
        """Open and lock the part."""
        try:
            self._open()
        except OSError as error:
            raise ResourceError(f"cannot write {self.part_path}: {error.strerror}") from error
        except SemvcError:
            raise
        except BaseException:  # a signal
            if self._fresh:
                self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Publish, keep or remove the part."""
        if error is None:
            try:
                self._publish()
            except SemvcError:
                raise  # the part is whole, and the message says where
            except BaseException:  # a signal
                self._remove()
                raise
            return
        kept = self._keeps(error)
        if not kept:
            self._remove()
        self.sink.close()
        if kept and isinstance(error, ResourceError):
            raise ResourceError(
                f"{error}; kept in {self.part_path}, to be continued with --resume"
            ) from error

    def sync(self) -> None:
        """Make everything written so far safe; raise OSError if that fails."""
        getattr(os, "fdatasync", os.fsync)(self.sink.fileno())  # macOS has no fdatasync

    def _open(self) -> None:
        if self.path.is_dir():
            raise UsageError(f"{self.path} is a folder")
        if self.path.exists() and not self.path.is_file():
            raise UsageError(f"{self.path} is a device or a pipe, not a file that can be replaced")
        while True:
            fresh = self._fresh = self._try_open()
            try:
                fcntl.flock(self.sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.sink.close()
                raise ResourceError(f"another process is writing {self.part_path}") from None
            if self._still_named():
                break
            self.sink.close()  # the process that held the lock has just published or removed it
        size = os.fstat(self.sink.fileno()).st_size
        if self._taken():
            if not size:
                self._remove()
            self.sink.close()
            raise UsageError(f"{self.path} exists: use --force to replace it")
        if fresh or self._resume or not size:
            return
        if not self._force:
            self.sink.close()
            raise UsageError(
                f"{self.part_path} is left from an interrupted run: use --resume to continue it or"
                " --force to start anew"
            )
        self.sink.truncate(0)

    def _try_open(self) -> bool:
        # Open the part and return whether it is new.
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            for extra in (os.O_CREAT | os.O_EXCL, 0):
                try:
                    number = os.open(self.part_path, flags | extra, 0o666)
                except FileExistsError:
                    continue
                except FileNotFoundError:
                    if extra:  # a folder where nothing can be made; else it was removed meanwhile
                        raise
                    continue
                self.sink = io.FileIO(number, "r+")
                return bool(extra)

    def _still_named(self) -> bool:
        mine = os.fstat(self.sink.fileno())
        try:
            named = self.part_path.lstat()
        except FileNotFoundError:
            return False
        return (mine.st_dev, mine.st_ino) == (named.st_dev, named.st_ino)

    def _taken(self) -> bool:
        return not self._force and (self.path.exists() or self.path.is_symlink())

    def _publish(self) -> None:
        try:
            os.fsync(self.sink.fileno())
            self.memo_path.unlink(missing_ok=True)
            if self._force:
                self.part_path.replace(self.path)
            else:
                self._rename_without_replacing()
            _sync_folder(self.path.parent)
        except OSError as error:
            raise ResourceError(
                f"cannot put {self.path} in place: {error.strerror}; it is whole in"
                f" {self.part_path}"
            ) from error
        finally:
            self.sink.close()

    def _rename_without_replacing(self) -> None:
        try:
            self.path.hardlink_to(self.part_path)  # unlike renaming, fails if the target exists
        except FileExistsError:
            raise UsageError(
                f"{self.path} appeared meanwhile; the new file is {self.part_path}"
            ) from None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            self.part_path.rename(self.path)  # a file system without hard links
        else:
            self.part_path.unlink()

    def _keeps(self, error: BaseException) -> bool:
        if not os.fstat(self.sink.fileno()).st_size and not self.memo_path.exists():
            return False
        if isinstance(error, ResourceError):
            return True
        if isinstance(error, SemvcError) or not isinstance(error, Exception):
            return self._keep
        return True

    def _remove(self) -> None:
        self.memo_path.unlink(missing_ok=True)
        self.part_path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
