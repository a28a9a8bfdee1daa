"""What a benchmark found: one `Row` per rate point, and the `Report` that report.json holds.

Standard library only. Everything here goes to JSON and back without loss: `Report.to_json` gives
what report.json contains, `Report.from_json` reads it. The keys of the file are the fields below,
by the same names; a number that could not be measured is null, and `missing` says why.

Files that a row names are relative to the folder of report.json. `semvc.bench.pictures` reads them:
`original(folder, row)` yields the frames of the clip, `rebuilt(folder, row)` those of the
reconstruction, both uint8 [H, W, 3] RGB of the clip's size, `row.frames` of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from semvc.errors import UsageError

FORMAT = 1  # of report.json; raised when a field changes its meaning or goes

CODECS = ("semvc", "svtav1", "svtav1-vq", "x265", "x264", "vp9", "vvenc")
SIZES = {"full": 1, "half": 2, "quarter": 4}  # divisor of width and height
ENVELOPE = "envelope"  # stands for the conventional envelope where a curve is named

_Any = TypeVar("_Any")


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of quality: `better` is lower, higher, zero (nearer to it) or "" (context only).

    Only figures that are better lower or higher have envelopes and BD-rates, and of those not the
    errors of motion: see `curves.COMPARED`.
    """

    name: str
    better: str
    title: str
    unit: str = ""


METRICS = {
    metric.name: metric
    for metric in (
        Metric("lpips", "lower", "LPIPS (AlexNet)"),
        Metric("lpips_vgg", "lower", "LPIPS (VGG16)"),
        Metric("dists", "lower", "DISTS"),
        Metric("pkid", "lower", "patch KID", "x 1000"),
        Metric("cvvdp", "higher", "ColorVideoVDP", "JOD"),
        Metric("ms_ssim", "higher", "MS-SSIM"),
        Metric("psnr_y", "higher", "PSNR, luma", "dB"),
        Metric("psnr_rgb", "higher", "PSNR, RGB", "dB"),
        Metric("tlpips", "lower", "tLPIPS"),
        Metric("ewarp", "lower", "warping error", "x 1000"),
        Metric("ewarp_source", "", "warping error of the source itself", "x 1000"),
        Metric("tof", "lower", "difference of optical flow", "luma samples"),
        Metric("flicker_db", "zero", "energy of frame differences", "dB"),
        Metric("flicker_static_db", "zero", "the same where the source is still", "dB"),
        Metric("sharp_db", "zero", "sharpness ratio", "dB"),
    )
}


@dataclass(frozen=True, slots=True)
class Row:
    """One clip, one codec, one setting: what it cost and how it looks.

    `clip` is its name in the suite. `codec` is one of `CODECS`; `profile` and `tier` are semvc's
    and empty for others. `size` is a key of `SIZES`, the size at which a conventional encoder
    worked; `divisor` is that of its frame rate. `setting` is the quality of semvc (higher is
    better) or the encoder's own constant-quality number (lower is better). `width`, `height`,
    `frames`, `frame_rate` (per second) and `seconds` are the clip's.

    `bytes` is the whole coded file without sound, `audio_bytes` the sound in it, `sections` the
    payload bytes of each kind and `overhead_bytes` all the rest of the file. `bpp` and `kbps` come
    from `bytes` and the clip's own pixels and seconds.

    `encode_fps` and `decode_fps` count the clip's frames over the clock seconds spent on them;
    semvc writes what it decodes without loss. `startup_s` is what a decode costs before that: the
    clock seconds of one that ends after its first frame (process, imports, model). Memory is the
    peak in bytes of the process, resident (`rss`) or on the graphics card (`cuda`).

    `metrics` maps names of `METRICS` to values, `missing` the names of those that were asked for
    and not measured to the reason. `original` and `rebuilt` are files, empty when not kept.
    """

    clip: str
    codec: str
    setting: float
    profile: str = ""
    tier: str = ""
    size: str = "full"
    divisor: int = 1
    width: int = 0
    height: int = 0
    frames: int = 0
    frame_rate: float = 0.0
    seconds: float = 0.0
    bytes: int = 0
    audio_bytes: int = 0
    sections: Mapping[str, int] = field(default_factory=dict)
    overhead_bytes: int = 0
    bpp: float = 0.0
    kbps: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    encode_fps: float | None = None
    decode_fps: float | None = None
    startup_s: float | None = None
    encode_rss_bytes: int | None = None
    decode_rss_bytes: int | None = None
    encode_cuda_bytes: int | None = None
    decode_cuda_bytes: int | None = None
    original: str = ""
    rebuilt: str = ""

    @property
    def curve(self) -> str:
        """Name of the curve that the row is a point of: "x265", or "semvc disco small"."""
        return " ".join(word for word in (self.codec, self.profile, self.tier) if word)

    @property
    def label(self) -> str:
        """The curve and the setting, as "svtav1 half 1/2 crf 40" or "semvc disco small q 32"."""
        words = [self.curve]
        if self.size != "full":
            words.append(self.size)
        if self.divisor != 1:
            words.append(f"1/{self.divisor}")
        return " ".join([*words, "q" if self.codec == "semvc" else "crf", f"{self.setting:g}"])

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Row:
        """Return the row; UsageError for keys that it does not have."""
        return _build(Row, values)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A rate point that could not be made at all, and why. Fields as in `Row`."""

    clip: str
    codec: str
    setting: float
    reason: str
    profile: str = ""
    tier: str = ""
    size: str = "full"
    divisor: int = 1


@dataclass(frozen=True, slots=True)
class EnvelopePoint:
    """A point of the conventional envelope: its rate in bpp, its value, and whose it is."""

    bpp: float
    value: float
    codec: str
    size: str
    divisor: int
    setting: float


@dataclass(frozen=True, slots=True)
class Envelope:
    """The best of the conventional encoders for one clip and metric, by rising rate.

    Every point is better than all cheaper ones.
    """

    clip: str
    metric: str
    points: tuple[EnvelopePoint, ...]


@dataclass(frozen=True, slots=True)
class BdRate:
    """Mean change of rate at equal quality of `curve` against `anchor` on one clip, in percent.

    Negative is better. `anchor` is a curve or "envelope". `low` and `high` bound the qualities that
    both cover, where the mean is taken; `overlap` and `anchor_overlap` are the shares of either
    curve's range of qualities that this is. `percent` is None, and `reason` says why, when the
    curves share no range; nothing is extrapolated.

    `better` says which of the two is better throughout when there is no overlap: curve, anchor or
    "" (as on crossing or one-point curves).
    """

    clip: str
    metric: str
    curve: str
    anchor: str
    percent: float | None
    low: float | None = None
    high: float | None = None
    overlap: float = 0.0
    anchor_overlap: float = 0.0
    better: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class MeanBdRate:
    """Mean over clips of `BdRate.percent`, over the clips that have one.

    `clips` are those counted, `without` those that have none; `overlap` is the mean of the former's
    `overlap`; `worst_clip` has the largest percent, `worst`. `percent` is None without clips.
    """

    metric: str
    curve: str
    anchor: str
    percent: float | None
    overlap: float
    clips: tuple[str, ...]
    without: tuple[str, ...] = ()
    worst_clip: str = ""
    worst: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """A whole benchmark: report.json.

    `program` is semvc's version, `suite` the suite as it was read with all defaults filled in,
    `machine` what it ran on (system, processor, cores, memory_bytes, python, torch, av, gpu),
    `models` the model ids by tier. `notes` are sentences about what is missing or limited.
    """

    program: str
    suite: Mapping[str, Any]
    machine: Mapping[str, Any]
    rows: tuple[Row, ...]
    models: Mapping[str, str] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    envelopes: tuple[Envelope, ...] = ()
    bd_rates: tuple[BdRate, ...] = ()
    mean_bd_rates: tuple[MeanBdRate, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what report.json holds."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Report:
        """Return the report; UsageError if another version of the program wrote it."""
        given = dict(values)
        found = given.pop("format", None)
        if found != FORMAT:
            raise UsageError(f"report of format {found}, not {FORMAT}: run the benchmark again")
        lists: tuple[tuple[str, type[Any]], ...] = (
            ("rows", Row),
            ("skipped", Skipped),
            ("envelopes", Envelope),
            ("bd_rates", BdRate),
            ("mean_bd_rates", MeanBdRate),
        )
        for name, kind in lists:
            given[name] = tuple(_build(kind, item) for item in given.get(name, ()))
        return _build(Report, given)

    @property
    def clips(self) -> tuple[str, ...]:
        """Names of the clips in the order of the rows."""
        return tuple(dict.fromkeys(row.clip for row in self.rows))

    @property
    def curves(self) -> tuple[str, ...]:
        """Names of the curves in the order of the rows."""
        return tuple(dict.fromkeys(row.curve for row in self.rows))


def _build(kind: type[_Any], values: Mapping[str, Any]) -> _Any:
    """Make a dataclass of JSON values; lists become tuples."""
    fields = {item.name for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - fields):
        raise UsageError(f"{kind.__name__} has no {', '.join(unknown)}: run the benchmark again")
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    if kind is Envelope:
        given["points"] = tuple(_build(EnvelopePoint, point) for point in given["points"])
    try:
        return kind(**given)
    except TypeError as error:
        raise UsageError(f"{kind.__name__} is incomplete: {error}") from error
