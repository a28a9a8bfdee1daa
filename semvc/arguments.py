"""What can be typed on the command line: option groups, and values parsed before any work starts.

Every value that is refused is refused here, with exit code 2 and the name of its option.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from semvc import modelarguments, profiles, weights
from semvc.backbones import manifest
from semvc.errors import UsageError
from semvc.modelarguments import Number
from semvc.rate import Target
from semvc.types import EncodeOptions, FullTier, Limits

Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_CODES = """\b
Exit codes:
  0 done                     5 unsupported version, profile or feature
  1 a bug of semvc           6 model missing or different
  2 wrong usage              7 limit exceeded
  3 input video unreadable   8 no space, permission, memory, closed pipe
  4 stream damaged           9 salvaged with gaps
  130, 143 interrupted"""

_DEFAULT_QUALITY = 32.0
_SIZE_UNITS = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 1024,
    "mib": 1 << 20,
    "gib": 1 << 30,
}
_MAX_TITLE_BYTES = 100  # of the header's 250


class _Size(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """A number of bytes, as 500kB or 1.5MB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip().lower()
        number = text.rstrip("bkmgi")
        with contextlib.suppress(ValueError, KeyError, OverflowError):
            if (size := int(float(number) * _SIZE_UNITS[text[len(number) :]])) > 0:
                return size
        self.fail(
            f"{value!r} is not a size: give a number with kB, MB, kiB or MiB, as in 500kB.",
            param,
            ctx,
        )


class _Audio(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """What happens to sound: (opus, copy or none; kbit/s of opus)."""

    name = "audio"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        name, colon, rate = str(value).partition(":")
        if name in ("opus", "copy", "none") and (name == "opus" or not colon):
            with contextlib.suppress(ValueError):
                kbps = int(rate) if colon else 12
                if 6 <= kbps <= 256:
                    return name, kbps
        self.fail(f"{value!r}: give opus, opus:KBPS (6 to 256), copy or none.", param, ctx)


class _Text(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """Text that UTF-8 can hold, in at most `most` bytes; with `files`, @FILE gives a file's."""

    name = "text"

    def __init__(self, most: int, *, files: bool = False) -> None:
        self._most, self._files = most, files

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if self._files and text.startswith("@"):
            text = _read_text(Path(text[1:])).strip()
        try:
            if any("\udc80" <= c <= "\udcff" for c in text):  # bytes unknown to the locale
                text = os.fsencode(text).decode("utf-8")
            size = len(text.encode("utf-8"))
        except UnicodeError:
            self.fail("it is not valid UTF-8.", param, ctx)
        if size > self._most:
            self.fail(f"{size} bytes are too many, at most {self._most}.", param, ctx)
        return text


class _Device(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """Where networks run; whether it is there is seen when they are loaded."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", text := str(value)):
            self.fail(f"{text!r} is unknown: give auto, cpu, cuda, cuda:N or mps.", param, ctx)
        return text


TEXT = _Text(Limits().max_text_bytes, files=True)
DEVICE = _Device()


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(dict)["debug"] = True


def _check_models(ctx: click.Context, param: click.Parameter, folder: Path | None) -> Path | None:
    """Refuse a folder without models: nothing of it would be used, and nobody would notice."""
    if folder is None or (folder / weights.INDEX).is_file():
        return folder
    if any(manifest.is_folder(path) for path in folder.iterdir()):
        return folder
    above = folder.absolute().parent
    hint = f" Did you mean {above}?" if (above / weights.INDEX).is_file() else ""
    raise click.BadParameter(f"{folder} has no {weights.INDEX} and no backbone.{hint}", ctx, param)


_MODELS_DIR = click.option(
    "--models-dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    callback=_check_models,
    help="Folder with models and index.toml, searched before the bundled one.",
)
_FORCE = click.option("--force", "-f", is_flag=True, help="Replace an existing output.")
_DEBUG = click.option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_set_debug,
    help="Show the traceback of an error.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
_ENCODE = (
    click.option(
        "-q",
        "--quality",
        type=Number(0, 63),
        help=f"0 (smallest) to 63; default {_DEFAULT_QUALITY:g}.",
    ),
    click.option(
        "--bpp",
        type=Number(0, min_open=True),
        help="Target bits per source pixel, sound left out: 0.01 is usual.",
    ),
    click.option(
        "--kbps",
        type=Number(0, min_open=True),
        help="Target kilobits per second, sound included.",
    ),
    click.option("--size", type=_Size(), help="Target size of the whole file: 500kB, 1.5MB."),
    click.option(
        "-p",
        "--profile",
        type=click.Choice(profiles.names()),
        default="disco",
        show_default=True,
        help="What is sent: a coarse video (disco), keyframes and the camera's path (cpsgd), or"
        " learned latents (s2vc).",
    ),
    click.option(
        "--caption", type=TEXT, default="none", show_default=True, help="TEXT, @FILE, auto or none."
    ),
    click.option(
        "--sketch/--no-sketch", default=False, show_default=True, help="Send edge maps as well."
    ),
    click.option(
        "--grain/--no-grain",
        default=True,
        show_default=True,
        help="Send how strong lost fine texture was, for noise in its place: 5 bytes a segment.",
    ),
    click.option(
        "--skeleton",
        type=click.Path(path_type=Path),
        help="COCO keypoint JSON, one entry a frame and person; or auto.",
    ),
    click.option(
        "--camera",
        type=click.Path(path_type=Path, exists=True),
        help="Camera path for cpsgd: TUM, COLMAP or RealEstate10K text, npz, or a dump.",
    ),
    click.option(
        "--masks",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="Folder of mask PNGs for cpsgd, one a frame.",
    ),
    click.option(
        "--audio",
        type=_Audio(),
        default="opus",
        show_default=True,
        help="opus[:KBPS], copy or none.",
    ),
    click.option(
        "--factor",
        type=click.Choice(["1", "2", "4", "8"]),
        help="Shrink the coarse video by this; chosen if not given.",
    ),
    click.option(
        "--step",
        type=click.Choice(["1", "2", "4", "8"]),
        help="Send every STEP-th frame; chosen if not given.",
    ),
    click.option(
        "--segment-seconds",
        type=Number(0.5, 10),
        default=5.0,
        show_default=True,
        help="Longest segment; shots are divided evenly.",
    ),
    click.option(
        "--preset",
        type=click.IntRange(0, 12),
        default=4,
        show_default=True,
        help="Of SVT-AV1: 0 is slowest and smallest.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**32 - 1),
        default=0,
        show_default=True,
        help="Of the synthesis noise.",
    ),
    click.option(
        "--title", type=_Text(_MAX_TITLE_BYTES), default="", help="Free text shown by info."
    ),
    click.option(
        "--deterministic",
        is_flag=True,
        help="Take the salt from the input: two runs give equal files.",
    ),
    click.option(
        "--resume",
        is_flag=True,
        help="Continue an interrupted encode of the same input and options.",
    ),
    click.option("--keep-partial", is_flag=True, help="Keep TARGET.part when interrupted."),
    _MODELS_DIR,
)
_DECODE = (
    click.option(
        "--tier",
        type=click.Choice(["preview", "small", "full"]),
        help="preview needs no generator, small is the bundled one, full a large one; by default"
        " small, or preview if no small one is known.",
    ),
    click.option(
        "--steps",
        type=click.IntRange(1, 50),
        help="Diffusion steps; 1 if not given, at tier full the backbone's own number.",
    ),
    click.option("--start", type=Number(0), default=0.0, help="Begin at this second."),
    click.option(
        "--duration", type=Number(0, min_open=True), help="Seconds to decode; all if not given."
    ),
    click.option(
        "--salvage",
        is_flag=True,
        help="Decode what is intact of a damaged stream; exit 9 if there are gaps.",
    ),
    click.option(
        "--resume",
        is_flag=True,
        help="Keep finished segments in TARGET.parts, and go on with those of an earlier run.",
    ),
    click.option(
        "--any-decoder",
        is_flag=True,
        help="Decode with the installed model even if made for another.",
    ),
    click.option(
        "--output-codec",
        type=click.Choice(["h264", "hevc", "av1", "ffv1"]),
        default="h264",
        show_default=True,
        help="Of the rebuilt video; ffv1 loses nothing.",
    ),
    click.option(
        "--output-quality",
        type=click.IntRange(0, 51),
        help="Constant rate factor of the output codec: lower is better and larger.",
    ),
    click.option(
        "--device",
        type=DEVICE,
        default="auto",
        show_default=True,
        help="auto, cpu, cuda, cuda:N or mps.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default="auto",
        show_default=True,
        help="Precision of the generator.",
    ),
    _MODELS_DIR,
)
_OUTPUT = (
    click.option(
        "--report", type=click.Path(path_type=Path), help="Also write the JSON report here."
    ),
    click.option("--quiet", is_flag=True, help="No progress bar, no summary."),
    _FORCE,
    _JSON,
)


def debug_option(command: Command) -> Command:
    """Add --debug, which is noted in the context's object and not passed to the command."""
    return _DEBUG(command)


def json_option(command: Command) -> Command:
    """Add --json."""
    return _JSON(command)


def force_option(command: Command) -> Command:
    """Add --force."""
    return _FORCE(command)


def models_dir_option(command: Command) -> Command:
    """Add --models-dir."""
    return _MODELS_DIR(command)


def encode_options(command: Command) -> Command:
    """Add all options of `encode`."""
    return _all((*_ENCODE, *modelarguments.EXTRACT, *_OUTPUT), command)


def decode_options(command: Command) -> Command:
    """Add all options of `decode`."""
    return _all((*_DECODE, *modelarguments.FULL, *_OUTPUT), command)


def _all(options: tuple[Callable[[Any], Any], ...], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def target_rate(given: dict[str, Any]) -> Target | None:
    """Return what the stream shall weigh, None to use the quality; UsageError for two wishes."""
    wishes = [name for name in ("quality", "bpp", "kbps", "size") if given[name] is not None]
    if len(wishes) > 1:
        raise UsageError(f"give one of -q, --bpp, --kbps and --size, not {len(wishes)}")
    if not wishes or wishes == ["quality"]:
        return None
    return Target(wishes[0], given[wishes[0]])


def bit_options(given: dict[str, Any]) -> EncodeOptions:
    """Return the options that change a stream's bits; UsageError for files that cannot be read."""
    for name in ("camera", "masks"):
        if given[name] is not None and given["profile"] != "cpsgd":
            raise UsageError(f"--{name} needs --profile cpsgd")
    audio, kbps = given["audio"]
    skeleton = given["skeleton"]
    return EncodeOptions(
        profile=given["profile"],
        quality=_DEFAULT_QUALITY if given["quality"] is None else given["quality"],
        segment_seconds=given["segment_seconds"],
        preset=given["preset"],
        seed=given["seed"],
        factor=None if given["factor"] is None else int(given["factor"]),
        step=None if given["step"] is None else int(given["step"]),
        caption=modelarguments.caption(given["caption"]),
        sketch=given["sketch"],
        grain=given["grain"],
        skeleton="" if skeleton in (None, Path("auto")) else _read_text(skeleton),
        camera=given["camera"],
        masks=given["masks"],
        audio=audio,
        audio_kbps=kbps,
        title=given["title"],
        models_dir=given["models_dir"],
        **modelarguments.extractors(given, models_home()),
    )


def full_tier(given: dict[str, Any]) -> FullTier:
    """Return the options of tier full; UsageError if they are given with another tier."""
    return modelarguments.full_tier(given, models_home())


def models_home() -> Path:
    """Return the folder where `models pull` puts backbones and tier full looks for them."""
    return Path.home() / ".cache" / "semvc" / "models"


def caption(text: str) -> str:
    """Return the caption meant by `edit --caption`; UsageError for one that a model would write."""
    if text == "auto":
        raise UsageError("--caption auto looks at pictures: it goes with encode, not with edit")
    return modelarguments.caption(text)


def check_outputs(source: Path, *outputs: Path | None) -> None:
    """Refuse, before any work, outputs in folders that do not exist and outputs named twice.

    An output must not be the input, whatever the two are called, even with --force.
    """
    taken = [source]
    for output in outputs:
        if output is None or str(output) == "-":
            continue
        if not output.parent.is_dir():
            raise UsageError(f"cannot write {output}: the folder {output.parent} does not exist")
        for other in taken:
            if _same(output, other):
                raise UsageError(f"{output} cannot be two things at once: choose another output")
        taken.append(output)


def _same(a: Path, b: Path) -> bool:
    with contextlib.suppress(OSError):
        return a.samefile(b)
    return os.path.abspath(a) == os.path.abspath(b)  # noqa: PTH100 (links are not to be followed)


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read {path}: it is not UTF-8 text") from error
