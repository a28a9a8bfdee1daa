"""Profile s2vc on whole files: what comes back, the models it needs, and what its streams tell."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from program import call
from s2vc_codecs import CODEC, GENERATOR, LEVELS, write_codec, write_generator
from test_layers import loaded_by

from semvc import decoder, inspect, profiles, weights
from semvc.bitstream.container import Segment, StreamReader, probe, verify
from semvc.bitstream.headers import ProfileId, SectionType, StreamHeader
from semvc.decoder import DecodeJob, decode
from semvc.encoder import EncodeJob, encode
from semvc.entropy import entropy_id
from semvc.errors import BitstreamError, ModelError, UnsupportedError, UsageError
from semvc.media.reader import VideoReader
from semvc.rate import Target
from semvc.report import Report
from semvc.signals.latent import Latents
from semvc.types import Clip, EncodeOptions, Runtime, VideoInfo

UInt8 = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny codec and a decoder for it."""
    return write_generator(write_codec(tmp_path_factory.mktemp("models")))


@pytest.fixture(scope="module")
def stream(clip: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`clip` in two segments of 12 frames, with sound; do not change it."""
    path = tmp_path_factory.mktemp("s2vc") / "a.svc"
    encode(clip, path, options(models), job=EncodeJob(deterministic=True))
    return path


def options(models: Path, **changes: Any) -> EncodeOptions:
    given = {"profile": "s2vc", "quality": 20, "segment_seconds": 0.5, "models_dir": models}
    return EncodeOptions(**given | changes)


def play(stream: Path, target: Path, models: Path, runtime: Any = None, **job: Any) -> Report:
    given = {"tier": "preview", "codec": "ffv1", "force": True, **job}
    with stream.open("rb") as opened:
        return decode(
            opened, target, DecodeJob(**given), runtime=runtime or Runtime(models_dir=models)
        )


def watch(path: Path) -> UInt8:
    with VideoReader(path) as reader:
        return np.stack([frame for frame, _ in reader])


def unpacked(stream: Path, models: Path) -> list[Latents]:
    reader = StreamReader(io.BytesIO(stream.read_bytes()))
    profile = profiles.create(reader.header.profile, models)
    return [decoder.unpack(profile, segment, reader.header)[1] for segment in reader]


def test_a_video_comes_back_whole(stream: Path, models: Path, tmp_path: Path) -> None:
    assert verify(io.BytesIO(stream.read_bytes())).ok
    report = play(stream, tmp_path / "a.mkv", models)
    assert (report.frames, report.segments) == (24, 2)
    assert watch(tmp_path / "a.mkv").shape == (24, 48, 64, 3)
    assert report.sections["audio_opus"] > 0


def test_the_generator_draws_other_pictures(stream: Path, models: Path, tmp_path: Path) -> None:
    play(stream, tmp_path / "a.mkv", models)
    assert play(stream, tmp_path / "b.mkv", models, tier="small").frames == 24
    a, b = watch(tmp_path / "a.mkv"), watch(tmp_path / "b.mkv")
    assert a.shape == b.shape
    assert (a != b).any()


@pytest.mark.parametrize("tier", ["preview", pytest.param("small", marks=pytest.mark.slow)])
def test_a_segment_decodes_alone(stream: Path, models: Path, tmp_path: Path, tier: str) -> None:
    play(stream, tmp_path / "all.mkv", models, tier=tier)
    play(stream, tmp_path / "end.mkv", models, tier=tier, start=0.5)
    assert (watch(tmp_path / "end.mkv") == watch(tmp_path / "all.mkv")[12:]).all()


def test_the_decoder_computes_as_the_encoder_did(
    clip: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from semvc.nets import load, s2vc_runner

    used: list[torch.dtype] = []
    build = s2vc_runner.build
    monkeypatch.setattr(s2vc_runner, "build", lambda *a: used.append(a[2]) or build(*a))
    choose = load.choose_device
    for dtype in ("float32", "bfloat16"):
        with monkeypatch.context() as patch:  # as if on another machine
            other = Runtime(device="cpu", dtype=dtype)
            patch.setattr(load, "choose_device", lambda _, other=other: choose(other))
            encode(clip, tmp_path / f"{dtype}.svc", options(models))
        play(tmp_path / f"{dtype}.svc", tmp_path / "a.mkv", models)
        play(tmp_path / f"{dtype}.svc", tmp_path / "a.mkv", models,
             Runtime(models_dir=models, dtype="float32"))  # fmt: skip
    single, half = torch.float32, torch.bfloat16
    assert used == [single, single, single, half, half, single]


def test_an_unknown_arithmetic_is_refused(stream: Path, models: Path) -> None:
    header = StreamReader(io.BytesIO(stream.read_bytes())).header
    profile = profiles.create(ProfileId.S2VC, models)
    with pytest.raises(UnsupportedError, match="preset 2"):
        profile.load(dataclasses.replace(header, preset=2), "preview", 1, Runtime())


def test_a_decode_can_be_resumed(stream: Path, models: Path, tmp_path: Path) -> None:
    report = play(stream, tmp_path / "a.mp4", models, resume=True, codec="h264")
    assert report.frames == 24


def test_encoding_again_gives_the_same_bytes(clip: Path, stream: Path, models: Path) -> None:
    again = stream.with_name("again.svc")
    encode(clip, again, options(models), job=EncodeJob(deterministic=True))
    assert again.read_bytes() == stream.read_bytes()


def test_an_interrupted_encode_goes_on(clip: Path, stream: Path, models: Path) -> None:
    target = stream.with_name("resumed.svc")
    reader = StreamReader(io.BytesIO(stream.read_bytes()))
    cut = list(reader)[1].offset + 5
    target.with_name("resumed.svc.part").write_bytes(stream.read_bytes()[:cut])
    encode(clip, target, options(models), job=EncodeJob(deterministic=True, resume=True))
    assert target.read_bytes() == stream.read_bytes()


@pytest.mark.slow
def test_more_quality_takes_more_bytes(clip: Path, models: Path, tmp_path: Path) -> None:
    sizes = []
    for quality in (0, 30, 63):
        path = tmp_path / f"{quality}.svc"
        encode(clip, path, options(models, quality=quality, audio="none"))
        sizes.append(path.stat().st_size)
        assert {x.quality for x in unpacked(path, models)} == {4 * quality}
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.slow
def test_a_target_is_met(clip: Path, models: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.svc"
    report = encode(clip, path, options(models), job=EncodeJob(target=Target("bpp", 0.1)))
    assert report.to_json()["video_bpp"] == pytest.approx(0.1, rel=0.05)


def test_hyper_latents_of_levels_are_sent_as_well(clip: Path, tmp_path: Path) -> None:
    models = write_codec(tmp_path, LEVELS)
    encode(clip, tmp_path / "a.svc", options(models))
    found = unpacked(tmp_path / "a.svc", models)
    assert -2 <= min(x.hyper.min() for x in found) <= max(x.hyper.max() for x in found) <= 1
    assert play(tmp_path / "a.svc", tmp_path / "a.mkv", models).frames == 24


# Models


def test_a_fresh_install_encodes_and_decodes(clip: Path, tmp_path: Path, capsys: Any) -> None:
    stream = tmp_path / "a.svc"
    assert call(capsys, "encode", clip, stream, "-p", "s2vc", "-q", "40").code == 0
    assert call(capsys, "verify", stream, "--deep").code == 0
    means = {}
    for tier in ("preview", "small"):
        target = tmp_path / f"{tier}.mkv"
        assert call(capsys, "decode", stream, target, "--tier", tier).code == 0
        error = np.abs(watch(target).astype(float) - watch(clip))
        means[tier] = error.mean()
    assert max(means.values()) < 30 and means["preview"] != means["small"]
    assert weights.for_profile("s2vc", "small", codec=weights.codec_for("s2vc").id).bytes < 12e6


def test_without_a_codec_nothing_is_encoded(
    clip: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "BUNDLED", ())
    (tmp_path / "index.toml").touch()
    done = call(capsys, "encode", clip, tmp_path / "a.svc", "-p", "s2vc", "--models-dir", tmp_path)
    assert done.code == 6
    assert "profile s2vc needs a codec model" in done.err
    assert "--models-dir" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["index.toml"]


def test_another_codec_does_not_decode(stream: Path, tmp_path: Path) -> None:
    other = write_codec(tmp_path / "other", seed=2)
    named = StreamReader(io.BytesIO(stream.read_bytes())).header.codec_id.hex()
    for action in (
        lambda: play(stream, tmp_path / "a.mkv", other),
        lambda: unpacked(stream, other),
        lambda: inspect.verify_signals(io.BytesIO(stream.read_bytes()), other),
    ):
        with pytest.raises(ModelError, match=f"codec {named}.*not installed.*--models-dir"):
            action()
    runtime = Runtime(models_dir=other, any_decoder=True)
    with pytest.raises(ModelError, match="not installed"):  # nothing can read these integers
        play(stream, tmp_path / "a.mkv", other, runtime)


def test_a_changed_codec_is_not_used(stream: Path, models: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(models, tmp_path / "models")
    path = changed / CODEC / weights.WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    with pytest.raises(ModelError, match="SHA-256"):
        unpacked(stream, changed)


def test_a_missing_generator_is_named_and_preview_offered(
    stream: Path, models: Path, tmp_path: Path
) -> None:
    alone = write_codec(tmp_path / "alone")
    play(stream, tmp_path / "a.mkv", alone)
    for tier in ("small", "full"):
        with pytest.raises(ModelError, match=f"at tier {tier} is installed.*--tier preview"):
            play(stream, tmp_path / "b.mkv", alone, tier=tier)
    assert not (tmp_path / "b.mkv").exists()


def test_a_generator_for_another_codec_is_not_used(stream: Path, tmp_path: Path) -> None:
    other = write_generator(write_codec(tmp_path / "models"), codec="another")
    with pytest.raises(ModelError, match="at tier small"):
        play(stream, tmp_path / "b.mkv", other, tier="small")


@pytest.mark.slow
def test_a_generator_that_the_stream_does_not_name_must_be_asked_for(
    stream: Path, models: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(models, tmp_path / "models")
    shutil.move(other / GENERATOR, other / "newer")
    index = (other / "index.toml").read_text("utf-8")
    (other / "index.toml").write_text(index.replace(GENERATOR, "newer"), "utf-8")
    with pytest.raises(ModelError, match=r"installed is newer.*--any-decoder.*--tier preview"):
        play(stream, tmp_path / "b.mkv", other, tier="small")
    runtime = Runtime(models_dir=other, any_decoder=True)
    assert play(stream, tmp_path / "b.mkv", other, runtime, tier="small").frames == 24


@pytest.mark.slow
def test_a_stream_made_without_a_generator_takes_any(clip: Path, tmp_path: Path) -> None:
    models = write_codec(tmp_path / "models")
    encode(clip, tmp_path / "a.svc", options(models))
    raw = (tmp_path / "a.svc").read_bytes()
    assert not any(StreamReader(io.BytesIO(raw)).header.decoder_id)
    write_generator(models)
    assert play(tmp_path / "a.svc", tmp_path / "a.mkv", models, tier="small").frames == 24


@pytest.mark.slow
def test_one_folder_may_hold_both(clip: Path, models: Path, tmp_path: Path) -> None:
    both = shutil.copytree(models, tmp_path / "models")
    merge(both / CODEC, both / GENERATOR)
    from s2vc_codecs import add_row

    (both / "index.toml").unlink()
    add_row(both, CODEC, "generator", "small", codec=CODEC)
    encode(clip, tmp_path / "a.svc", options(both))
    assert play(tmp_path / "a.svc", tmp_path / "a.mkv", both, tier="small").frames == 24
    assert play(tmp_path / "a.svc", tmp_path / "a.mkv", both).frames == 24


def merge(into: Path, other: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(into / weights.WEIGHTS) | load_file(other / weights.WEIGHTS)
    save_file(tensors, into / weights.WEIGHTS)
    texts = [(folder / weights.CONFIG).read_text("utf-8") for folder in (into, other)]
    (into / weights.CONFIG).write_text("\n".join(texts), "utf-8")


@pytest.mark.parametrize("damage", ["config", "shape", "prior"])
def test_a_codec_that_does_not_fit_is_refused(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_codec(tmp_path) / CODEC
    text = (folder / weights.CONFIG).read_text("utf-8")
    tensors = load_file(folder / weights.WEIGHTS)
    match damage:
        case "config":
            text += "unknown = 3\n"
        case "shape":
            text = text.replace("hidden = 12", "hidden = 16")
        case "prior":
            tensors["prior.sign"] = tensors["prior.sign"].float()
    save_file(tensors, folder / weights.WEIGHTS)
    (folder / weights.CONFIG).write_text(text, "utf-8")
    (tmp_path / "index.toml").unlink()
    from s2vc_codecs import add_row

    add_row(tmp_path, CODEC, "codec", "preview")
    profile = profiles.create(ProfileId.S2VC)
    with pytest.raises(ModelError, match="does not fit"):
        profile.begin(None, options(tmp_path))  # type: ignore[arg-type]  # not looked at


# What the profile does not take


@pytest.mark.parametrize("what", [{"caption": "a"}, {"sketch": True}, {"factor": 2}, {"step": 2}])
def test_signals_of_another_profile_are_refused(models: Path, what: dict[str, Any]) -> None:
    name = next(iter(what))
    with pytest.raises(UsageError, match=f"--{name}"):
        profiles.create(ProfileId.S2VC).begin(None, options(models, **what))  # type: ignore[arg-type]


def test_more_steps_are_refused(stream: Path, models: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one step"):
        play(stream, tmp_path / "a.mkv", models, tier="small", steps=2)


def test_latents_cannot_be_dropped_but_sound_can(
    stream: Path, models: Path, tmp_path: Path
) -> None:
    with stream.open("rb") as opened, pytest.raises(UsageError, match="latent"):
        inspect.edit(opened, tmp_path / "a.svc", drop=("latent",), models_dir=models)
    with stream.open("rb") as opened:
        inspect.edit(opened, tmp_path / "a.svc", drop=("audio_opus",), models_dir=models)
    assert unpacked(tmp_path / "a.svc", models) == unpacked(stream, models)


# What a stream tells


def test_info_tells_first_frames_hyper_latents_and_latents_apart(
    stream: Path, models: Path, capsys: Any
) -> None:
    found = probe(io.BytesIO(stream.read_bytes()))
    parts = dict(found.latent_parts)
    assert parts.keys() == {"head", "intra", "hyper", "latent"}
    payload = sum(
        dict(row.sections)[SectionType.LATENT] for row in found.table
    )  # the section's own count has the header's record as well
    assert sum(parts.values()) == payload
    row = json.loads(call(capsys, "info", stream, "--models-dir", models, "--json").out)
    assert row["latent_parts"] == parts
    assert row["tiers"] == ["preview", "small"]
    assert [m["id"] for m in row["models"]] == [GENERATOR, CODEC]
    text = call(capsys, "info", stream).out
    assert "of it hyper-latents" in text
    assert "none: the codec is not installed" in text


def test_dump_writes_latents_as_arrays(stream: Path, models: Path, tmp_path: Path) -> None:
    with stream.open("rb") as opened:
        inspect.dump(opened, tmp_path / "dump", force=False, models_dir=models)
    for index, latents in enumerate(unpacked(stream, models)):
        stem = tmp_path / "dump" / f"{index:05d}"
        assert (np.load(f"{stem}-latent.npy") == latents.latent).all()
        assert (np.load(f"{stem}-hyper.npy") == latents.hyper).all()
        assert Path(f"{stem}-quality.txt").read_text() == "20\n"


def test_reading_the_integers_needs_no_torch(stream: Path, models: Path) -> None:
    words = ("verify", str(stream), "--deep", "--models-dir", str(models))
    assert not loaded_by(*words) & {"torch", "diffusers"}


def test_info_of_latents_loads_nothing_heavy(stream: Path, models: Path) -> None:
    words = ("info", str(stream), "--models-dir", str(models))
    assert not loaded_by(*words) & {"torch", "numpy", "safetensors"}


# Damage


def test_a_damaged_segment_is_salvaged_around(stream: Path, models: Path, tmp_path: Path) -> None:
    raw = bytearray(stream.read_bytes())
    first = next(iter(StreamReader(io.BytesIO(raw))))
    raw[first.offset + first.chunk_bytes // 2] ^= 1
    damaged = tmp_path / "a.svc"
    damaged.write_bytes(raw)
    with pytest.raises(BitstreamError):
        play(damaged, tmp_path / "a.mkv", models)
    report = play(damaged, tmp_path / "a.mkv", models, salvage=True)
    assert (report.gaps, report.frames) == (1, 24)


def test_other_integers_behind_valid_checksums_are_noticed(stream: Path, models: Path) -> None:
    reader = StreamReader(io.BytesIO(stream.read_bytes()))
    segment = next(iter(reader))
    profile = profiles.create(reader.header.profile, models)
    payload = segment.sections[SectionType.LATENT]
    noticed = 0
    for place in range(8, 8 * len(payload), len(payload) // 2):
        changed = bytearray(payload)
        changed[place >> 3] ^= 1 << (place & 7)
        sections = {**segment.sections, SectionType.LATENT: bytes(changed)}
        fields = {name: getattr(segment, name) for name in segment.__slots__}
        with pytest.raises(BitstreamError):
            decoder.unpack(profile, type(segment)(**fields | {"sections": sections}), reader.header)
        noticed += 1
    assert noticed >= 15


# Drift


def test_decoders_of_the_same_arithmetic_do_not_drift(models: Path, frames: UInt8) -> None:
    from s2vc_drift import growth, plain, table

    from semvc.nets import s2vc_runner

    folder = models / CODEC
    found = table(folder, frames[:6], 20)
    same = {name: row for name, row in found.items() if len(set(name.split(" -> "))) == 1}
    assert same
    assert set(same.values()) == {"all inf dB, last inf dB"}
    assert any("inf" not in row for row in found.values())
    assert 0 < growth(s2vc_runner.build(folder, *plain()), frames[:6], 20) < 1e4


# Sizes


@pytest.mark.parametrize(("count", "height", "width"), [(1, 17, 33), (2, 64, 65), (3, 16, 16)])
def test_pictures_of_any_size_come_back(models: Path, count: int, height: int, width: int) -> None:
    rng = np.random.default_rng(count)
    pictures = rng.integers(0, 256, (count, height, width, 3)).astype(np.uint8)
    info = VideoInfo(width, height, Fraction(24), Fraction(1, 24))
    clip = Clip(pictures, np.arange(count), info)
    encoder = profiles.create(ProfileId.S2VC)
    fields = encoder.begin(clip, options(models))
    coded = encoder.encode(clip, 0, 40, 7)
    header = StreamHeader(
        **{name: value for name, value in fields.items() if name != "sections"},
        **{"salt": 0, "entropy_id": entropy_id(), "width": width, "height": height},
        **{"frame_rate": Fraction(24), "segment_frames": 5, "profile": ProfileId.S2VC},
        sections=fields["sections"],
    )
    segment = Segment(0, 0, count, coded.sections, coded.check & 0xFFFF, 0, 0)
    reader = profiles.create(ProfileId.S2VC, models)
    signals, check = reader.unpack(segment, header, 7)
    assert check == coded.check
    assert signals.latent.shape[2:] == (-(-height // 64) * 4, -(-width // 64) * 4)
    for tier in ("preview", "small"):
        reader.load(header, tier, 1, Runtime(models_dir=models))
        frames = list(reader.synthesize(signals, segment, header))
        assert [frame.shape for frame in frames] == [(height, width, 3)] * count
