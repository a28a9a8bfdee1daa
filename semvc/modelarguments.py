"""Command line options of pretrained models: backbones when decoding, extractors when encoding."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from semvc.backbones import manifest
from semvc.errors import UsageError
from semvc.types import FullTier


class Number(click.FloatRange):
    """A finite number in a range."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number; fail for one that is not finite."""
        if not math.isfinite(number := float(super().convert(value, param, ctx))):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


FULL = (
    click.option(
        "--backbone", help="Of tier full: ltx, vace, an id of 'models info', or a folder."
    ),
    click.option(
        "--lora",
        "loras",
        multiple=True,
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Safetensors file that adapts the backbone; can be given again.",
    ),
    click.option(
        "--memory",
        type=click.Choice(["auto", "full", "offload", "group"]),
        help="Of tier full: all on the GPU, one network at a time, or one block at a time; by"
        " default what fits.",
    ),
    click.option(
        "--quant",
        type=click.Choice(["none", "fp8", "int8"]),
        help="Of tier full: keep the transformer's weights in 8 bits.",
    ),
    click.option(
        "--packing",
        type=click.Choice(["shared", "offset", "alternate"]),
        help="Of backbone ltx: where reference tokens lie; by default as its LoRA says.",
    ),
    click.option(
        "--strength",
        type=Number(0, 1, min_open=True),
        help="Of tier full: share of noise that a picture starts from.",
    ),
    click.option(
        "--guidance",
        type=Number(1, 20),
        help="Of tier full: weight of the caption; 1 halves the work, for few-step LoRAs.",
    ),
)
EXTRACT = (
    click.option("--captioner", help="Of --caption auto: an id of 'models info', or a folder."),
    click.option(
        "--caption-scope",
        type=click.Choice(["segment", "scene"]),
        help="Of --caption auto: what one caption is written for; a segment if not given.",
    ),
    click.option(
        "--pose-models",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="Of --skeleton auto: folder with detector/ and pose/, if not the installed ones.",
    ),
    click.option(
        "--edges",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Of --sketch: safetensors file of a network for soft edges.",
    ),
)


def caption(text: str) -> str:
    """Return the caption meant by --caption, empty for one that a model writes."""
    return "" if text in ("none", "auto") else text


def extractors(given: dict[str, Any], home: Path) -> dict[str, Any]:
    """Return the fields of `EncodeOptions` that name models; ModelError if one is missing.

    UsageError for options that need another one.
    """
    captions, people = given["caption"] == "auto", given["skeleton"] == Path("auto")
    _needs(given, "captioner", captions, "--caption auto")
    _needs(given, "caption_scope", captions, "--caption auto")
    _needs(given, "pose_models", people, "--skeleton auto")
    _needs(given, "edges", given["sketch"], "--sketch")
    if (captions or people) and given["profile"] != "disco":
        raise UsageError("--caption auto and --skeleton auto go with --profile disco")
    if given["caption_scope"] == "scene" and given["resume"]:
        raise UsageError(
            "--caption-scope scene needs the segments before, which --resume does not look at again"
        )
    roots = [root for root in (given["models_dir"], home) if root is not None]
    found: dict[str, Any] = {"edges": given["edges"]}
    if captions:
        found["captioner"] = _installed("caption", given["captioner"] or "", roots)
        found["caption_scope"] = given["caption_scope"] or "segment"
    if people:
        folder = given["pose_models"]
        names = ["", ""] if folder is None else [str(folder / k) for k in ("detector", "pose")]
        found["posers"] = (
            _installed("detector", names[0], roots),
            _installed("pose", names[1], roots),
        )
    return found


def _installed(family: str, name: str, roots: list[Path]) -> Path:
    folder = manifest.find_extractor(family, name, roots)
    rows = [entry for entry in manifest.extractors() if entry.family == family]
    named = next((entry for entry in rows if entry.id == folder.name), rows[0])
    manifest.check_sizes(named, folder)
    return folder


def _needs(given: dict[str, Any], name: str, met: bool, other: str) -> None:
    if given[name] is not None and not met:
        raise UsageError(f"--{name.replace('_', '-')} needs {other}")


def full_tier(given: dict[str, Any], home: Path) -> FullTier:
    """Return the options of tier full; UsageError if they are given with another tier."""
    names = ("backbone", "loras", "memory", "quant", "packing", "strength", "guidance")
    if given["tier"] != "full":
        for name in names:
            if given[name] not in (None, ()):
                raise UsageError(f"--{name.removesuffix('s')} needs --tier full")
    return FullTier(
        backbone=given["backbone"] or "",
        home=home,
        loras=given["loras"],
        memory=given["memory"] or "auto",
        quant=given["quant"] or "none",
        packing=given["packing"] or "",
        steps=given["steps"] or 0,
        strength=given["strength"],
        guidance=given["guidance"],
    )
