"""Exception tree; each class owns its process exit code.

Every error that semvc raises on purpose derives from `SemvcError`. Its text is one line that
says what is wrong, where, what is allowed and what to do next.
"""

from __future__ import annotations


class SemvcError(Exception):
    """Base of all deliberate errors; `exit_code` is what the command line returns for it."""

    exit_code = 1


class UsageError(SemvcError):
    """Arguments that contradict each other or cannot be met (exit 2)."""

    exit_code = 2


class MediaError(SemvcError):
    """The input video or audio cannot be read, or the output cannot be encoded (exit 3)."""

    exit_code = 3


class BitstreamError(SemvcError):
    """The stream is damaged or malformed (exit 4).

    `rule` names the rule of FORMAT.md that is broken, `offset` the byte in the file (None if not
    known) and `section` the section type's name (None outside a section).
    """

    exit_code = 4

    def __init__(self, rule: str, *, offset: int | None = None, section: str | None = None) -> None:
        self.rule, self.offset, self.section = rule, offset, section
        where = "" if section is None else f" in section {section}"
        where += "" if offset is None else f" at byte {offset}"
        super().__init__(f"damaged stream{where}: {rule}")


class NoStreamError(BitstreamError):
    """The bytes begin no stream at all (exit 4)."""

    def __init__(self) -> None:
        super().__init__("the magic number is missing", offset=0)
        self.args = ("no semvc stream; 'semvc encode' makes one of a video",)


class UnsupportedError(SemvcError):
    """A newer version, or an unknown profile, feature or critical element (exit 5)."""

    exit_code = 5


class ModelError(SemvcError):
    """A model is missing, or is not the one that the stream was made for (exit 6)."""

    exit_code = 6


class LimitError(SemvcError):
    """The stream or the input asks for more than `Limits` allow (exit 7)."""

    exit_code = 7


class ResourceError(SemvcError):
    """No space, no permission, a closed pipe, or out of memory (exit 8)."""

    exit_code = 8


class GapsError(SemvcError):
    """Salvage worked, but segments are missing from the output (exit 9)."""

    exit_code = 9
