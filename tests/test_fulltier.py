"""Tier full from the command line: the streams of the small model, drawn by tiny backbones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from program import Call
from tinybackbones import missing, write_lora, write_ltx, write_text, write_vace

from semvc import arguments
from semvc.backbones import parts
from semvc.encoder import EncodeJob, encode
from semvc.media.reader import VideoReader
from semvc.types import EncodeOptions

VACE, LTX = "wan-vace-1.3b", "ltx-video-2b"
FULL = ("--tier", "full", "--steps", "2", "--dtype", "float32", "--output-codec", "ffv1")

needs_full = missing("accelerate")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the user's."""
    monkeypatch.setattr(arguments, "models_home", lambda: tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("backbones")
    write_vace(root / VACE)
    write_ltx(root / LTX)
    return root


@pytest.fixture(scope="module")
def captioned(clip: Path) -> Path:
    """`clip` as a stream with a caption and a sketch, at half size."""
    path = clip.with_name("captioned.svc")
    options = EncodeOptions(preset=12, caption="a cat", sketch=True, factor=2)
    encode(clip, path, options, job=EncodeJob(deterministic=True))
    return path


def frames(path: Path) -> Any:
    with VideoReader(path) as reader:
        return np.stack([frame for frame, _ in reader])


@needs_full
@pytest.mark.parametrize("family", ["vace", "ltx"])
def test_a_stream_for_the_small_model_is_drawn_by_a_backbone(
    run: Call, stream: Path, backbones: Path, tmp_path: Path, family: str
) -> None:
    out = [tmp_path / f"{i}.mkv" for i in range(3)]
    words = (*FULL, "--backbone", family, "--models-dir", backbones)
    done = run("decode", stream, out[0], *words)
    assert done.code == 0, done.err
    assert done.err.count("which is not the decoder that the stream names") == 1
    assert "the signals are the same, the picture differs" in done.err
    assert "estimated from parameters" in done.err
    assert ("no in-context LoRA" in done.err) == (family == "ltx")
    assert run("decode", stream, out[1], *words, "--quiet").err == ""
    assert np.array_equal(frames(out[0]), frames(out[1]))
    row = json.loads(run("decode", stream, out[2], *words, "--guidance", "1", "--json").out)
    assert row["frames"] == 24 and any("not the decoder" in note for note in row["notes"])


@needs_full
def test_the_picture_follows_the_base_layer(
    run: Call, stream: Path, backbones: Path, tmp_path: Path
) -> None:
    made, preview = tmp_path / "a.mkv", tmp_path / "b.mkv"
    run("decode", stream, made, *FULL, "--models-dir", backbones)
    run("decode", stream, preview, "--tier", "preview", "--output-codec", "ffv1")
    a, b = frames(made).astype(float), frames(preview).astype(float)
    assert a.shape == b.shape and (a != b).any()
    assert np.abs((a - b).mean((0, 1, 2))).max() < 5


def test_a_missing_backbone_names_the_command_that_helps(
    run: Call, stream: Path, tmp_path: Path
) -> None:
    done = run("decode", stream, tmp_path / "a.mkv", *FULL)
    assert done.code == 6 and "semvc models pull wan-vace-1.3b" in done.err
    done = run("decode", stream, tmp_path / "a.mkv", *FULL, "--backbone", "ltx")
    assert done.code == 6 and "semvc models pull ltx-video-2b" in done.err
    done = run("decode", stream, tmp_path / "a.mkv", *FULL, "--backbone", "none")
    assert done.code == 6 and "unknown backbone" in done.err
    assert not list(tmp_path.glob("*.mkv*"))


@needs_full
def test_pulled_backbones_are_found_without_an_option(
    run: Call, stream: Path, backbones: Path, home: Path, tmp_path: Path
) -> None:
    home.symlink_to(backbones)
    assert json.loads(run("info", stream, "--json").out)["tiers"][-1] == "full"
    assert run("decode", stream, tmp_path / "a.mkv", *FULL).code == 0


def test_without_a_backbone_info_does_not_promise_tier_full(run: Call, stream: Path) -> None:
    assert "full" not in json.loads(run("info", stream, "--json").out)["tiers"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--tier", "small", "--backbone", "ltx"), 2, "--backbone needs --tier full"),
        (("--quant", "int8"), 2, "--quant needs --tier full"),
        ((*FULL, "--memory", "offload"), 2, "no GPU"),
        ((*FULL, "--strength", "0"), 2, "--strength"),
        ((*FULL, "--packing", "other"), 2, "--packing"),
        ((*FULL, "--lora", "none.safetensors"), 2, "does not exist"),
    ],
)
def test_options_that_cannot_be_met_are_refused(
    run: Call, stream: Path, backbones: Path, tmp_path: Path, words: Any, code: int, message: str
) -> None:
    done = run(
        "decode", stream, tmp_path / "a.mkv", *words, "--models-dir", backbones, "--device", "cpu"
    )
    assert done.code == code and message in done.err, done.err


@needs_full
def test_strength_and_quantisation_change_the_picture(
    run: Call, stream: Path, backbones: Path, tmp_path: Path
) -> None:
    made = []
    for index, words in enumerate(((), ("--strength", "0.3"), ("--quant", "int8"))):
        out = tmp_path / f"{index}.mkv"
        assert run("decode", stream, out, *FULL, *words, "--models-dir", backbones).code == 0
        made.append(frames(out).tobytes())
    assert len(set(made)) == 3


@needs_full
def test_a_caption_without_a_text_encoder_is_a_model_error(
    run: Call, captioned: Path, backbones: Path, tmp_path: Path
) -> None:
    done = run("decode", captioned, tmp_path / "a.mkv", *FULL, "--models-dir", backbones)
    assert done.code == 6


@missing("transformers", "tokenizers", "peft", "accelerate")
@pytest.mark.parametrize("packing", ["shared", "alternate"])
def test_caption_sketch_and_lora_together(
    run: Call, captioned: Path, tmp_path: Path, packing: str
) -> None:
    folder = write_text(write_ltx(tmp_path / "m" / "ltx"))
    network = parts.read(folder, "transformer", "LTXVideoTransformer3DModel", torch.float32)
    lora = write_lora(tmp_path / "lora.safetensors", network, rank=256, scale=0.1)
    words = (*FULL, "--models-dir", tmp_path / "m", "--lora", lora, "--packing", packing)
    done = run("decode", captioned, tmp_path / "a.mkv", *words)
    assert done.code == 0 and "no in-context LoRA" not in done.err, done.err


def test_a_damaged_folder_is_a_model_error(
    run: Call, stream: Path, backbones: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "m" / VACE / "transformer"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{")
    done = run("decode", stream, tmp_path / "a.mkv", *FULL, "--models-dir", tmp_path / "m")
    assert done.code == 6 and "config.json" in done.err


def test_a_missing_extra_names_the_command_that_helps(
    run: Call, stream: Path, backbones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_has", lambda _: False)
    done = run("decode", stream, tmp_path / "a.mkv", *FULL, "--models-dir", backbones)
    assert done.code == 6 and "pip install 'semvc[full]'" in done.err
