"""A benchmark suite: dataclasses read from TOML; an unknown key is an error.

    metrics = ["lpips", "dists"]     # names of `rows.METRICS`; all of them if absent
    every = 6                        # figures of single frames look at one frame in this many
    qualities = [12, 24, 36, 48]     # of semvc
    profiles = ["disco"]
    tiers = ["small"]
    encode = ["--preset", "4"]       # further words for `semvc encode`; decode = [...] likewise
    gop_seconds = 4.5                # longest run between key frames of conventional encoders

    [[clip]]                         # any number; paths are relative to the folder of clips
    file = "tennis.mp4"
    start = 0                        # first frame
    frames = 60                      # 0 or absent: to the end

    [[clip]]
    folder = "more"                  # all files that match, by name
    glob = "*.mp4"
    frames = 60

    [[anchor]]                       # any number, as of one codec at other settings
    codec = "svtav1"                 # svtav1, svtav1-vq, x265, x264, vp9 or vvenc
    preset = "3"                     # the encoder's own; a slow one if absent
    sizes = ["full", "half"]         # and quarter
    divisors = [1, 2]                # of the frame rate
    crf = [35, 45, 55]

A clip without a range is coded as it is, sound included; one with a range is first cut, without
loss and without sound.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from semvc.bench.rows import CODECS, METRICS, SIZES
from semvc.errors import UsageError

SHIPPED = Path(__file__).with_name("suites")

_Any = TypeVar("_Any")

# the settings that each conventional encoder accepts
CRF_RANGE = {
    "svtav1": (1, 70),
    "svtav1-vq": (1, 70),
    "x265": (0, 51),
    "x264": (0, 51),
    "vp9": (0, 63),
    "vvenc": (0, 63),
}
MAX_DIVISOR = 8


@dataclass(frozen=True, slots=True)
class Clip:
    """One entry of a suite: a file or all files of a folder, and which frames of them.

    `start` is the first frame, `frames` how many, 0 for all that follow. `name` is the file's stem
    if empty; it is what rows say.
    """

    file: str = ""
    folder: str = ""
    glob: str = ""
    name: str = ""
    start: int = 0
    frames: int = 0

    def __post_init__(self) -> None:
        if bool(self.file) == bool(self.glob) or (self.folder and self.file):
            raise UsageError("a clip needs either a file, or a glob (and a folder)")
        if self.glob and self.name:
            raise UsageError(f"clips of {self.glob} are named by their files: leave out the name")
        if min(self.start, self.frames) < 0:
            raise UsageError(f"clip {self.file or self.glob}: start and frames are 0 or more")

    @property
    def label(self) -> str:
        """What the entry is called: its name, its file's stem, or its pattern."""
        return self.name or Path(self.file).stem or self.glob

    @property
    def whole(self) -> bool:
        """Whether the file is taken as it is."""
        return not self.start and not self.frames


@dataclass(frozen=True, slots=True)
class Anchor:
    """A conventional encoder with its settings; see the module's text."""

    codec: str
    crf: tuple[float, ...]
    preset: str = ""
    sizes: tuple[str, ...] = ("full",)
    divisors: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        known = [codec for codec in CODECS if codec in CRF_RANGE]
        _among("anchor", (self.codec,), known)
        _among("size", self.sizes, SIZES)
        low, high = CRF_RANGE[self.codec]
        for crf in self.crf:
            if not low <= crf <= high:
                raise UsageError(f"crf {crf} of {self.codec}: between {low} and {high}")
        for divisor in self.divisors:
            if not 1 <= divisor <= MAX_DIVISOR:
                raise UsageError(f"frame-rate divisor {divisor}: between 1 and {MAX_DIVISOR}")
        if not (self.crf and self.sizes and self.divisors):
            raise UsageError(f"anchor {self.codec} needs a crf, a size and a divisor at least")


@dataclass(frozen=True, slots=True)
class Suite:
    """All that decides what a benchmark measures, but not where the clips are."""

    name: str
    clips: tuple[Clip, ...]
    qualities: tuple[float, ...] = ()
    profiles: tuple[str, ...] = ("disco",)
    tiers: tuple[str, ...] = ("small",)
    anchors: tuple[Anchor, ...] = ()
    metrics: tuple[str, ...] = tuple(METRICS)
    every: int = 4
    encode: tuple[str, ...] = ()
    decode: tuple[str, ...] = ()
    gop_seconds: float = 4.5

    def __post_init__(self) -> None:
        _among("metric", self.metrics, METRICS)
        if not self.clips:
            raise UsageError(f"suite {self.name}: at least one [[clip]] is needed")
        if not self.qualities and not self.anchors:
            raise UsageError(f"suite {self.name}: nothing to measure, give qualities or anchors")
        if any(not 0 <= quality <= 63 for quality in self.qualities):
            raise UsageError(f"suite {self.name}: qualities are between 0 and 63")
        if self.every < 1 or self.gop_seconds <= 0:
            raise UsageError(f"suite {self.name}: every and gop_seconds are positive")

    def to_json(self) -> dict[str, Any]:
        """Return the suite as JSON-ready values."""
        return dataclasses.asdict(self)

    def files(self, folder: Path) -> tuple[tuple[Clip, Path], ...]:
        """Return every clip by itself, with its name, and its file below `folder`.

        UsageError for files that are not there, globs that match nothing and names used twice.
        """
        found: list[tuple[Clip, Path]] = []
        for clip in self.clips:
            if clip.file:
                paths = [folder / clip.file]
                if not paths[0].is_file():
                    raise UsageError(f"no clip {paths[0]}: give the clips' folder with --clips")
            else:
                paths = sorted((folder / clip.folder).glob(clip.glob))
                if not paths:
                    raise UsageError(f"nothing in {folder / clip.folder} matches {clip.glob}")
            for path in paths:
                name = clip.name or path.stem
                found.append(
                    (dataclasses.replace(clip, file=str(path), folder="", glob="", name=name), path)
                )
        names = Counter(clip.name for clip, _ in found)
        if twice := [name for name, count in names.items() if count > 1]:
            raise UsageError(f"clips named twice: {', '.join(twice)}; give a name to each")
        return tuple(found)


def shipped() -> tuple[str, ...]:
    """Return the names of the suites that come with the program."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.toml")))


def load(source: Path) -> Suite:
    """Read a suite from a TOML file, or a shipped one by its name; `UsageError` says what is wrong.

    "dev" and "suites/dev.toml" both mean the shipped suite when no such file exists here.
    """
    path = source if source.is_file() else SHIPPED / f"{source.stem}.toml"
    if not path.is_file():
        raise UsageError(f"no suite {source}: give a file, or one of {', '.join(shipped())}")
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error
    try:
        clips = tuple(_build(Clip, row) for row in _tables(raw, "clip"))
        anchors = tuple(_build(Anchor, row) for row in _tables(raw, "anchor"))
        return _build(Suite, {"name": path.stem, **raw, "clips": clips, "anchors": anchors})
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _tables(raw: dict[str, Any], name: str) -> list[dict[str, Any]]:
    tables = raw.pop(name, [])
    if not isinstance(tables, list) or not all(isinstance(row, dict) for row in tables):
        raise UsageError(f"{name} is a table: write [[{name}]]")
    return tables


def _build(kind: type[_Any], values: dict[str, Any]) -> _Any:
    """Make a dataclass of TOML values; keys and types are checked against its defaults."""
    known = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(known)):
        raise UsageError(f"unknown key {', '.join(unknown)}; known: {', '.join(known)}")
    given = {}
    for name, value in values.items():
        wanted = str(known[name].type)
        given[name] = tuple(value) if isinstance(value, list) else value
        if not _fits(given[name], wanted):
            raise UsageError(f"{name} = {value!r} is not of type {wanted}")
    try:
        return kind(**given)
    except TypeError as error:
        raise UsageError(str(error).split(") ", 1)[-1]) from error


def _fits(value: object, wanted: str) -> bool:
    if wanted.startswith("tuple["):
        item = wanted.removeprefix("tuple[").removesuffix(", ...]")
        return isinstance(value, tuple) and all(_fits(one, item) for one in value)
    kinds: dict[str, tuple[type, ...]] = {
        "str": (str,),
        "int": (int,),
        "float": (int, float),
        "Clip": (Clip,),
        "Anchor": (Anchor,),
    }
    return isinstance(value, kinds[wanted]) and not isinstance(value, bool)


def _among(what: str, values: tuple[str, ...], known: Any) -> None:
    for value in values:
        if value not in known:
            raise UsageError(f"unknown {what} {value!r}: choose from {', '.join(known)}")
