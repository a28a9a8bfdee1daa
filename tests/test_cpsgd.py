"""Profile cpsgd end to end, with known cameras and masks, as users run it; no model is needed."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from program import FAST, call, names
from scene import Scene, Sound, beep_times, beeps, read_sound, write_video

from semvc import decoder, encoder, profiles, weights
from semvc.bitstream.container import StreamReader
from semvc.bitstream.headers import ProfileId, SectionType
from semvc.errors import BitstreamError
from semvc.inspect import verify_signals
from semvc.media.files import read_png, write_png
from semvc.profiles import keyframing
from semvc.profiles.findings import Finder, Findings, packed
from semvc.signals.camera import Camera, encode_camera, poses, to_tum
from semvc.types import Clip, EncodeOptions

S = SectionType
WIDTH, HEIGHT, FRAMES = 96, 64, 36
SCENE = Scene(WIDTH, HEIGHT, FRAMES, pan=0.2, dolly=0.3)


@dataclasses.dataclass(frozen=True)
class Made:
    """A video, its camera and masks as files, and the stream made of them."""

    video: Path
    camera: Path
    masks: Path
    stream: Path

    def words(self) -> tuple[Any, ...]:
        return ("-p", "cpsgd", "--camera", self.camera, "--masks", self.masks, *FAST, "--quiet")


def write_camera(path: Path, scene: Scene) -> Path:
    lines = ["# focal 0.9 of the width"]
    for t, pose in enumerate(scene.poses()):
        half = 0.5 * scene.pan * t / float(scene.fps)
        x, y, z = pose[:3, 3] / 5  # the wall's distance
        lines.append(
            f"{t / 24:.5f} {x:.7f} {y:.7f} {z:.7f} 0 {np.sin(half):.9f} 0 {np.cos(half):.9f}"
        )
    path.write_text("\n".join(lines) + "\n")
    return path


def write_masks(folder: Path, scene: Scene) -> Path:
    folder.mkdir()
    for t, shown in enumerate(scene.render()[1]):
        ids = sum((k + 1) * (mask > 0) for k, mask in enumerate(shown))
        write_png(folder / f"{t:05d}.png", np.asarray(ids).clip(0, 2).astype(np.uint8) * 90)
    return folder


@pytest.fixture(scope="module", autouse=True)
def no_analysis() -> Iterator[None]:
    """Take the user's path as it is, its unit as the scene's depth: quick, and without depth."""

    def known(self: Finder, clip: Clip, ids: Any, start: int) -> Findings | None:
        path = self._given(clip, start)
        return None if path is None else packed(path, ids)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Finder, "_analysed", known)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("cpsgd")
    frames = SCENE.render()[0]
    video = write_video(folder / "in.mp4", frames, sound=Sound(beeps(FRAMES / 24)))
    found = Made(
        video,
        write_camera(folder / "camera.txt", SCENE),
        write_masks(folder / "masks", SCENE),
        folder / "a.svc",
    )
    options = EncodeOptions(
        profile="cpsgd", preset=12, segment_seconds=1, camera=found.camera, masks=found.masks
    )
    job = encoder.EncodeJob(deterministic=True)
    encoder.encode(video, found.stream, options, job=job)
    return found


def pictures(path: Path) -> Any:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def error(found: Any, wanted: Any) -> float:
    return float(np.abs(found.astype(float) - wanted.astype(float)).mean())


def test_a_scene_goes_through_the_command_line(made: Made, tmp_path: Path, capfd: Any) -> None:
    stream, video = tmp_path / "a.svc", tmp_path / "out.mp4"
    done = call(capfd, "encode", made.video, stream, *made.words(), "-q", 40)
    assert done.code == 0, done.err
    assert call(capfd, "decode", stream, video, "--tier", "preview", "--quiet").code == 0
    found = pictures(video)
    true = SCENE.render()[0]
    assert found.shape == true.shape
    held = np.stack([true[0 if t < 18 else 18] for t in range(FRAMES)])
    assert error(found, true) < 0.6 * error(held, true)
    assert call(capfd, "verify", "--deep", stream).code == 0
    row = json.loads(call(capfd, "info", stream, "--json").out)
    assert row["profile"] == "cpsgd" and row["fallback_segments"] == 0
    assert {"camera", "keyframe", "mask"} <= {s["type"] for s in row["sections"] if s["count"] > 0}
    assert "0 of 2 segments are coded as profile disco does" in call(capfd, "info", stream).out


def test_without_a_model_no_tier_means_preview_and_says_so(
    made: Made, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "BUNDLED", ())
    done = call(capfd, "decode", made.stream, tmp_path / "out.mp4")
    assert done.code == 0
    assert "no model for profile cpsgd is installed: decoded at tier preview" in done.err
    refused = call(capfd, "decode", made.stream, tmp_path / "b.mp4", "--tier", "small")
    assert refused.code == 6 and "--tier preview" in refused.err
    assert not (tmp_path / "b.mp4").exists()


def test_the_bundled_model_decodes_without_being_asked_for(
    made: Made, tmp_path: Path, capfd: Any
) -> None:
    done = call(capfd, "decode", made.stream, tmp_path / "a.mp4")
    assert done.code == 0 and "preview" not in done.err
    words = ("--tier", "preview", "--quiet")
    assert call(capfd, "decode", made.stream, tmp_path / "b.mp4", *words).code == 0
    found, plain = (pictures(tmp_path / name) for name in ("a.mp4", "b.mp4"))
    assert found.shape == plain.shape
    assert 0.1 < error(found, plain) < 20
    row = json.loads(call(capfd, "info", made.stream, "--json").out)
    assert "cpsgd-small" in json.dumps(row)


def test_everything_is_dumped(made: Made, tmp_path: Path, capfd: Any) -> None:
    assert call(capfd, "dump", made.stream, tmp_path / "d").code == 0
    found = names(tmp_path / "d")
    assert "00000-camera.txt" in found and "00001-camera.txt" in found
    assert "00000-keyframe-0000.png" in found and "00001-mask-0000.png" in found
    ids = read_png(tmp_path / "d" / "00000-mask-0000.png")[..., 0]
    true = SCENE.render()[1][0].any(0)
    assert ((ids > 0) & true).sum() / ((ids > 0) | true).sum() > 0.85
    assert {int(v) for v in np.unique(ids)} <= {0, 31, 62}
    lines = (tmp_path / "d" / "00001-camera.txt").read_text().splitlines()
    assert float(lines[2].split()[0]) == pytest.approx(18 / 24, abs=1e-5)


@pytest.mark.slow
def test_what_is_dumped_can_be_used_again(made: Made, tmp_path: Path, capfd: Any) -> None:
    first, second = tmp_path / "d", tmp_path / "e"
    call(capfd, "dump", made.stream, first)
    words = ("-p", "cpsgd", "--camera", first, "--masks", first, *FAST, "--quiet")
    again = call(capfd, "encode", made.video, tmp_path / "b.svc", *words)
    assert again.code == 0, again.err
    assert call(capfd, "dump", tmp_path / "b.svc", second).code == 0
    for name in ("00000-camera.txt", "00001-camera.txt"):
        one, two = (np.loadtxt(folder / name) for folder in (first, second))
        assert np.abs(one - two).max() < 0.02
        assert (first / name).read_text().splitlines()[0] in (second / name).read_text()
    for name in ("00000-mask-0005.png", "00001-mask-0003.png"):
        one, two = (read_png(folder / name) for folder in (first, second))
        assert (one == two).mean() > 0.97
    short = write_video(tmp_path / "short.mp4", SCENE.render()[0][:18])
    words = ("-p", "cpsgd", "--camera", first / "00000-camera.txt", *FAST, "--quiet")
    assert call(capfd, "encode", short, tmp_path / "c.svc", *words).code == 0


def test_sound_is_kept(made: Made, tmp_path: Path, capfd: Any) -> None:
    assert call(capfd, "decode", made.stream, tmp_path / "out.mp4", "--quiet").code == 0
    times = beep_times(read_sound(tmp_path / "out.mp4"))
    assert np.allclose(times, [0, 0.5, 1.0], atol=0.03)


def test_a_range_is_decoded_alone(made: Made, tmp_path: Path, capfd: Any) -> None:
    words = ("--quiet", "--output-codec", "ffv1", "--tier", "preview")
    whole, part = tmp_path / "whole.mkv", tmp_path / "part.mkv"
    assert call(capfd, "decode", made.stream, whole, *words).code == 0
    more = ("--start", "0.9", "--duration", "0.5")
    assert call(capfd, "decode", made.stream, part, *words, *more).code == 0
    first = int(0.9 * 24)
    assert np.array_equal(pictures(part), pictures(whole)[first : first + 12])


def test_damage_costs_its_own_segment(made: Made, tmp_path: Path, capfd: Any) -> None:
    raw = bytearray(made.stream.read_bytes())
    reader = StreamReader(io.BytesIO(bytes(raw)))
    first = next(iter(reader))
    raw[first.offset + first.chunk_bytes // 2] ^= 1
    broken = tmp_path / "broken.svc"
    broken.write_bytes(raw)
    assert call(capfd, "decode", broken, tmp_path / "a.mp4").code == 4
    done = call(capfd, "decode", broken, tmp_path / "b.mp4", "--salvage", "--quiet")
    assert done.code == 9 and len(pictures(tmp_path / "b.mp4")) == FRAMES


@pytest.mark.slow
def test_an_interrupted_encode_and_decode_go_on(made: Made, tmp_path: Path, capfd: Any) -> None:
    raw = made.stream.read_bytes()
    segments = list(StreamReader(io.BytesIO(raw)))
    target = tmp_path / "a.svc"
    target.with_name("a.svc.part").write_bytes(raw[: segments[1].offset + 9])
    words = (*made.words(), "--resume", "--deterministic")
    assert call(capfd, "encode", made.video, target, *words).code == 0
    assert target.read_bytes() == raw
    words = ("--resume", "--quiet", "--tier", "preview")
    assert call(capfd, "decode", target, tmp_path / "a.mp4", *words).code == 0
    assert len(pictures(tmp_path / "a.mp4")) == FRAMES


@pytest.mark.slow
def test_a_target_rate_is_met(made: Made, tmp_path: Path, capfd: Any) -> None:
    target = tmp_path / "a.svc"
    words = (*made.words(), "--bpp", "0.15", "--audio", "none")
    assert call(capfd, "encode", made.video, target, *words).code == 0
    bpp = 8 * target.stat().st_size / (WIDTH * HEIGHT * FRAMES)
    assert bpp == pytest.approx(0.15, rel=0.06)


def test_signals_can_be_dropped_and_the_caption_replaced(
    made: Made, tmp_path: Path, capfd: Any
) -> None:
    words = (*made.words(), "--caption", "Two balls.")
    assert call(capfd, "encode", made.video, tmp_path / "a.svc", *words).code == 0
    words = ("--drop", "mask", "--drop", "depth", "--caption", "A room.")
    assert call(capfd, "edit", tmp_path / "a.svc", tmp_path / "b.svc", *words).code == 0
    with (tmp_path / "b.svc").open("rb") as file:
        assert verify_signals(file) == []
        file.seek(0)
        reader = StreamReader(file)
        with closing(profiles.create(ProfileId.CPSGD)) as profile:
            for segment in reader:
                _, signals = decoder.unpack(profile, segment, reader.header)
                assert signals.masks is None and signals.caption.text == "A room."
    for kind in ("keyframe", "camera"):
        done = call(capfd, "edit", made.stream, tmp_path / "c.svc", "--drop", kind)
        assert done.code == 2 and f"{kind} cannot be dropped" in done.err


def test_what_does_not_fit_the_video_is_refused(made: Made, tmp_path: Path, capfd: Any) -> None:
    short = tmp_path / "short.txt"
    short.write_text("\n".join(made.camera.read_text().splitlines()[:20]))
    words = ("-p", "cpsgd", "--camera", short, *FAST)
    done = call(capfd, "encode", made.video, tmp_path / "a.svc", *words)
    assert done.code == 2 and "has 19 poses" in done.err and names(tmp_path) == ["short.txt"]
    few = tmp_path / "few"
    few.mkdir()
    write_png(few / "0.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    words = ("-p", "cpsgd", "--camera", made.camera, "--masks", few, *FAST)
    assert "has 1 masks" in call(capfd, "encode", made.video, tmp_path / "a.svc", *words).err
    words = ("-p", "cpsgd", "--sketch", *FAST)
    assert call(capfd, "encode", made.video, tmp_path / "a.svc", *words).code == 2


# --- signals and sections


def parts(made: Made) -> tuple[Any, list[Any]]:
    reader = StreamReader(io.BytesIO(made.stream.read_bytes()))
    return reader.header, list(reader)


def test_a_segment_has_a_scene_or_a_base_layer(made: Made) -> None:
    header, segments = parts(made)
    sections = dict(segments[0].sections)
    with closing(profiles.create(ProfileId.CPSGD)) as profile:
        for lost in (S.CAMERA, S.KEYFRAME):
            less = {kind: data for kind, data in sections.items() if kind != lost}
            with pytest.raises(BitstreamError):
                profile.unpack(dataclasses.replace(segments[0], sections=less), header, 0)
        both = {**sections, S.BASE_AV1: b"\0"}
        with pytest.raises(BitstreamError, match="beside a scene"):
            profile.unpack(dataclasses.replace(segments[0], sections=both), header, 0)


def test_signals_come_back_as_they_were_chosen(made: Made) -> None:
    header, segments = parts(made)
    with closing(profiles.create(ProfileId.CPSGD)) as profile:
        _, signals = decoder.unpack(profile, segments[0], header)
    true = SCENE.poses()[:18]
    rotations, positions = poses(signals.camera, 18)
    assert np.abs(rotations - np.swapaxes(true[:, :3, :3], 1, 2)).max() < 2e-3
    assert np.abs(positions - true[:, :3, 3] / 5).max() < 5e-3
    assert encode_camera(signals.camera, 18)[0] == segments[0].sections[S.CAMERA]
    assert len(signals.masks.objects) == 2


def test_a_segment_without_a_camera_is_coded_as_disco_does(
    made: Made, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Finder.find
    lost = lambda self, clip, start: None if start else usual(self, clip, start)  # noqa: E731
    monkeypatch.setattr(Finder, "find", lost)
    target = tmp_path / "a.svc"
    words = (*made.words(), "--caption", "A room.")
    assert call(capfd, "encode", made.video, target, *words).code == 0
    row = json.loads(call(capfd, "info", target, "--json").out)
    assert row["fallback_segments"] == 1 and row["segments"] == 2
    assert call(capfd, "verify", "--deep", target).code == 0
    assert call(capfd, "decode", target, tmp_path / "a.mp4", "--quiet").code == 0
    found = pictures(tmp_path / "a.mp4")
    assert error(found[18:], SCENE.render()[0][18:]) < 25
    assert call(capfd, "dump", target, tmp_path / "d").code == 0
    listed = names(tmp_path / "d")
    assert "00001-base.mp4" in listed and "00000-camera.txt" in listed
    assert "00001-caption.txt" in listed


# --- keyframes


def footage(scene: Scene) -> keyframing.Footage:
    made = scene.poses()
    rotations = np.swapaxes(made[:, :3, :3], 1, 2)
    frames = scene.render()[0]
    return keyframing.Footage(frames, rotations, made[:, :3, 3] / 5, 0.9, (0.5, 0.5))


def chosen(scene: Scene, coding_error: float) -> tuple[int, ...]:
    depths = np.ones((len(keyframing.candidates(scene.frames)), 9, 16), np.float32)
    return keyframing.Trial(footage(scene), depths).choose(coding_error)


def test_keyframes_are_sent_where_the_scene_changes_and_bytes_allow() -> None:
    still = Scene(WIDTH, HEIGHT, 25, pan=0.0, dolly=0.0, balls=0)
    assert chosen(still, 1.0) == (0,)
    pan = Scene(WIDTH, HEIGHT, 25, pan=0.5, dolly=0.0, balls=0)
    coarse, fine = chosen(pan, 3000.0), chosen(pan, 20.0)
    assert coarse == (0,) and fine[0] == 0 and len(fine) > 1 and fine[-1] > 15
    assert chosen(Scene(WIDTH, HEIGHT, 1), 1.0) == (0,)


def test_candidates_are_the_ends_and_between() -> None:
    assert keyframing.candidates(1) == (0,)
    assert keyframing.candidates(2) == (0,)
    assert keyframing.candidates(13) == tuple(range(0, 13, 2))
    assert keyframing.candidates(109)[-1] == 108


def test_tum_text_of_a_still_camera() -> None:
    none = np.zeros((0, 3), np.int32)
    text = to_tum(Camera(900, none, none), 2, [0.0, 0.5])
    assert text.splitlines()[3] == "0.500000 " + " ".join(["0.000000000"] * 6) + " 1.000000000"
