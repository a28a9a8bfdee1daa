"""Captions, skeletons and soft edges by models: tiny ones of the real classes, read from disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from program import Call
from scene import Scene, write_video
from tinybackbones import missing
from tinyextractors import write_captioner, write_edges, write_posers

from semvc import arguments
from semvc.backbones import captioner, manifest, poses
from semvc.backbones.captioner import Captioner, patches, shortened
from semvc.backbones.poses import Person, PoseFinder, peaks
from semvc.backbones.softedges import SoftEdges
from semvc.encoder import EncodeJob, encode
from semvc.errors import ModelError
from semvc.media.scenes import is_cut
from semvc.profiles import extracting
from semvc.signals.edges import trace_strengths
from semvc.types import EncodeOptions

KINDS = ("blip", "smolvlm", "qwen3_vl")
needs_transformers = missing("transformers", "tokenizers", "accelerate")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the user's."""
    monkeypatch.setattr(arguments, "models_home", lambda: tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One captioner of each kind, and the models for skeletons, under the manifest's ids."""
    root = tmp_path_factory.mktemp("extractors")
    for name, kind in zip(("blip-base", "smolvlm2-500m", "qwen3-vl-2b"), KINDS, strict=True):
        write_captioner(root / name, kind)
    people = write_posers(root)
    people.joinpath("detector").rename(root / "rtdetr-r50")
    people.joinpath("pose").rename(root / "vitpose-base")
    return root


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_edges(tmp_path_factory.mktemp("edges") / "hed.safetensors")


# --- captions


@needs_transformers
@pytest.mark.parametrize("name", ["blip-base", "smolvlm2-500m", "qwen3-vl-2b"])
def test_every_captioner_describes_a_clip_and_says_how_sure_it_is(
    folders: Path, frames: Any, name: str
) -> None:
    model = Captioner(folders / name)
    found = model.describe(frames)
    assert found == model.describe(frames)
    assert 0 < found.confidence < 1
    assert found.text == shortened(found.text) and len(found.text.encode()) <= captioner.MAX_BYTES


@needs_transformers
@pytest.mark.parametrize("name", ["smolvlm2-500m", "qwen3-vl-2b"])
def test_a_captioner_sees_frames_from_all_of_the_clip(
    folders: Path, frames: Any, name: str
) -> None:
    model: Any = Captioner(folders / name)
    seen: list[dict[str, Any]] = []
    inner = model._model.generate
    model._model.generate = lambda **given: (seen.append(given), inner(**given))[1]
    model.describe(frames[:1].repeat(8, 0))
    other = frames[:1].repeat(8, 0)
    other[7] = 255 - other[7]
    model.describe(other)
    a, b = (given["pixel_values"] for given in seen)
    assert a.shape == b.shape and (a != b).any()
    model.describe(frames[:1])
    assert seen[2]["pixel_values"].shape[:2] != a.shape[:2]


@needs_transformers
def test_patches_are_those_of_the_library() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    processor = Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, temporal_patch_size=2, do_resize=False,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    theirs = processor(images=[picture], return_tensors="pt")["pixel_values"]
    pixels = (torch.from_numpy(picture).permute(2, 0, 1) / 255 - 0.5) / 0.5
    assert torch.allclose(patches(pixels, 16, 2, 2), theirs.float(), atol=1e-5)


@needs_transformers
def test_pictures_keep_their_aspect_in_smolvlm(folders: Path, frames: Any) -> None:
    model: Any = Captioner(folders / "smolvlm2-500m")
    made = model._smolvlm(frames[:2])
    assert made["pixel_values"].shape == (1, 2, 3, 64, 64)
    height = round(64 * frames.shape[1] / frames.shape[2])
    assert made["pixel_attention_mask"][0, 0].sum() == height * 64
    assert (made["pixel_values"][..., height:, :] == 0).all()
    image = model._config.image_token_id
    assert int((made["input_ids"] == image).sum()) == 2 * (64 // 16) ** 2 // 4


@given(st.text(max_size=400))
def test_captions_are_cut_at_words_and_stay_one_line(text: str) -> None:
    found = shortened(text)
    assert len(found.encode("utf-8", "surrogatepass")) <= captioner.MAX_BYTES
    assert all(c.isprintable() for c in found) and found == " ".join(found.split())
    assert shortened("word " * 100).endswith(" word")


def test_a_folder_without_a_captioner_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json|transformers"):
        Captioner(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', "utf-8")
    with pytest.raises(ModelError, match=r"'bert'|transformers"):
        Captioner(tmp_path)


# --- skeletons


@needs_transformers
def test_people_are_found_surest_first(folders: Path, frames: Any) -> None:
    finder = PoseFinder(folders / "rtdetr-r50", folders / "vitpose-base")
    found = finder.find(frames[0], threshold=0.0)
    assert len(found) == 8 and all(p.keypoints.shape == (17, 3) for p in found)
    sure = [p.confidence for p in found]
    assert sure == sorted(sure, reverse=True) and min(sure) >= 0 and max(sure) <= 1
    assert finder.find(frames[0], threshold=1.0) == []


@needs_transformers
def test_keypoints_lie_in_the_box_they_were_sought_in(folders: Path, frames: Any) -> None:
    finder: Any = PoseFinder(folders / "rtdetr-r50", folders / "vitpose-base")
    boxes = torch.tensor([[10.0, 5.0, 30.0, 50.0], [40.0, 20.0, 50.0, 10.0]])
    finder._detect = lambda *_: (boxes, torch.tensor([0.9, 0.8]))
    for person, (x, y, w, h) in zip(finder.find(frames[0]), boxes.tolist(), strict=True):
        span = 1.25 * max(w, h * 48 / 64)
        centre = np.array([x + w / 2, y + h / 2])
        off = np.abs(person.keypoints[:, :2] - centre)
        assert (off[:, 0] <= span / 2).all() and (off[:, 1] <= span * 64 / 48 / 2).all()


@needs_transformers
def test_a_box_is_cut_out_of_the_picture(folders: Path) -> None:
    finder: Any = PoseFinder(folders / "rtdetr-r50", folders / "vitpose-base")
    ramp = torch.arange(96.0).expand(1, 3, 96, 96) / 255
    crops, corners, spans = finder._crops(ramp, torch.tensor([[24.0, 16.0, 48.0, 64.0]]))
    mean, deviation = poses._MEAN[0], poses._DEVIATION[0]
    columns = (crops[0, 0, 32] * deviation + mean) * 255
    expected = corners[0, 0] + (torch.arange(48) + 0.5) / 48 * spans[0, 0] - 0.5
    assert torch.allclose(columns, expected.clamp(0, 95), atol=0.6)
    assert torch.allclose(spans, torch.tensor([[60.0, 80.0]]))


def test_peaks_are_found_between_samples() -> None:
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(12.0), indexing="ij")
    maps = torch.exp(-((x - 5.3) ** 2 + (y - 7.8) ** 2) / 8)[None, None]
    where, height = peaks(maps)
    assert torch.allclose(where[0, 0], torch.tensor([5.3, 7.8]), atol=0.02)
    assert 0.9 < float(height) <= 1
    flat, low = peaks(torch.zeros(1, 2, 4, 4))
    assert flat.isfinite().all() and (low == 0).all()


def test_keypoints_with_little_score_are_not_sent() -> None:
    points = np.array([[3.0, 4.0, 0.9]] * 16 + [[5.0, 6.0, 0.1]], np.float32)
    row = Person((0, 0, 9, 9), points, 0.8).to_coco(7)
    assert row["image_id"] == 7 and row["keypoints"][:3] == [3, 4, 2]
    assert row["keypoints"][-3:] == [0, 0, 0] and len(row["keypoints"]) == 51


def test_folders_without_models_for_skeletons_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json|transformers"):
        PoseFinder(tmp_path, tmp_path)


# --- soft edges


def test_soft_edges_give_maps_of_the_wanted_density(network: Path, frames: Any) -> None:
    finder = SoftEdges(network)
    strengths = np.stack([finder.find(frame) for frame in frames[:3]])
    assert strengths.shape == (3, *frames.shape[1:3])
    maps = trace_strengths(strengths, (32, 48), 0.05)
    assert maps.shape == (3, 32, 48) and maps.dtype == np.uint8
    assert 0.01 < maps.mean() < 0.12


def test_lines_of_strength_become_thin() -> None:
    strengths = np.zeros((1, 32, 32), np.uint8)
    strengths[0, :, 14:19] = [60, 150, 255, 150, 60]
    maps = trace_strengths(strengths, (32, 32), 0.1)
    assert (maps[0].sum(1) == 1).all() and (maps[0].argmax(1) == 16).all()


@pytest.mark.parametrize("size", [(0, 4), (64, 64)])
def test_sizes_that_do_not_fit_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        trace_strengths(np.zeros((1, 32, 32), np.uint8), size)


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    save_file({"norm": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="soft edges"):
        SoftEdges(path)
    path.write_bytes(b"\0")
    with pytest.raises(ModelError, match="safetensors"):
        SoftEdges(path)


# --- where they lie


def test_extractors_are_found_by_folder_id_or_family(tmp_path: Path) -> None:
    for name in ("blip-base", "smolvlm2-500m"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}", "utf-8")
    find = manifest.find_extractor
    assert find("caption", "", [tmp_path]) == tmp_path / "smolvlm2-500m"
    assert find("caption", "blip-base", [tmp_path]) == tmp_path / "blip-base"
    assert find("caption", str(tmp_path / "blip-base"), []) == tmp_path / "blip-base"
    with pytest.raises(ModelError, match="models pull qwen3-vl-2b"):
        find("caption", "qwen3-vl-2b", [tmp_path])
    with pytest.raises(ModelError, match="models pull rtdetr-r50"):
        find("detector", "", [tmp_path])
    with pytest.raises(ModelError, match="known: smolvlm2-500m"):
        find("caption", "sora", [tmp_path])


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--caption", "auto"), 6, "semvc models pull smolvlm2-500m"),
        (("--skeleton", "auto"), 6, "semvc models pull rtdetr-r50"),
        (("--captioner", "blip-base"), 2, "--captioner needs --caption auto"),
        (("--caption-scope", "scene"), 2, "--caption-scope needs --caption auto"),
        (("--pose-models", "."), 2, "--pose-models needs --skeleton auto"),
        (("--caption", "auto", "--profile", "cpsgd"), 2, "--profile disco"),
        (("--caption", "auto", "--caption-scope", "scene", "--resume"), 2, "--resume"),
    ],
)
def test_what_cannot_be_met_is_refused_before_any_work(
    run: Call, clip: Path, tmp_path: Path, words: Any, code: int, message: str
) -> None:
    done = run("encode", clip, tmp_path / "a.svc", *words)
    assert done.code == code and message in done.err, done.err
    assert not list(tmp_path.glob("*.svc*"))


def test_edit_cannot_look_at_pictures(run: Call, stream: Path, tmp_path: Path) -> None:
    done = run("edit", stream, tmp_path / "a.svc", "--caption", "auto")
    assert done.code == 2 and "goes with encode" in done.err


# --- whole streams


@needs_transformers
def test_models_found_by_their_ids_describe_a_stream(
    run: Call, clip: Path, folders: Path, network: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(poses, "_FOUND", 0.0)
    monkeypatch.setattr(poses, "_SEEN", 0.0)
    out = tmp_path / "a.svc"
    done = run(
        "encode", clip, out, "--preset", "12", "--models-dir", folders, "--caption", "auto",
        "--captioner", "blip-base", "--skeleton", "auto", "--sketch", "--edges", network,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "captions by a model: 1 found, mean confidence" in done.err
    row = json.loads(run("info", out, "--json").out)
    sizes = {item["type"]: item["bytes"] for item in row["sections"]}
    assert sizes["sketch"] > 0 and "skeleton" in sizes
    assert run("verify", out, "--deep").code == 0
    assert run("dump", out, tmp_path / "d").code == 0
    people = json.loads((tmp_path / "d" / "00000-skeleton.json").read_text("utf-8"))
    assert {p["track_id"] for p in people["annotations"]}
    wanted = Captioner(folders / "blip-base")
    assert (tmp_path / "d" / "00000-caption.txt").read_text("utf-8").strip() == (
        wanted.describe(_frames(clip)).text
    )


def _frames(path: Path) -> Any:
    from semvc.media.reader import VideoReader

    with VideoReader(path) as reader:
        return np.stack([frame for frame, _ in reader])


class Teller:
    """A captioner that counts what it describes."""

    told = 0

    def __init__(self, *_: Any) -> None:
        self.told = 0

    def describe(self, _: Any) -> Any:
        Teller.told += 1
        return captioner.Described(f"text {Teller.told}", 0.5)


@pytest.mark.parametrize(("scope", "texts"), [("segment", [1, 2, 3, 4]), ("scene", [1, 1, 2, 2])])
def test_a_caption_is_written_once_for_a_segment_or_a_scene(
    run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scope: str, texts: list[int]
) -> None:
    monkeypatch.setattr(captioner, "Captioner", Teller)
    Teller.told = 0
    shots = [Scene(64, 48, 48, seed=seed).render()[0] for seed in (0, 5)]
    clip = write_video(tmp_path / "c.mp4", np.concatenate(shots))
    options = EncodeOptions(
        preset=12, segment_seconds=1.0, captioner=tmp_path, caption_scope=scope, audio="none"
    )
    report = encode(clip, tmp_path / "a.svc", options, job=EncodeJob(deterministic=True))
    assert report.segments == 4 and Teller.told == len(set(texts))
    assert any(f"{len(set(texts))} found" in note for note in report.notes)
    run("dump", tmp_path / "a.svc", tmp_path / "d")
    found = [p.read_text("utf-8").strip() for p in sorted((tmp_path / "d").glob("*caption.txt"))]
    assert found == [f"text {k}" for k in texts]


def test_a_target_rate_pays_for_captions_and_asks_the_model_once(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from semvc.rate import Target

    monkeypatch.setattr(captioner, "Captioner", Teller)
    Teller.told = 0
    options = EncodeOptions(preset=12, captioner=tmp_path, audio="none")
    job = EncodeJob(deterministic=True, target=Target("size", 3000))
    report = encode(clip, tmp_path / "a.svc", options, job=job)
    assert Teller.told == 1 and report.sections["caption"] > 0
    assert (tmp_path / "a.svc").stat().st_size < 3150


def test_cuts_at_a_boundary_are_told_from_going_on() -> None:
    one, other = (Scene(64, 48, 32, seed=seed).render()[0] for seed in (0, 5))
    assert is_cut(one[16:], other[:16], 24.0)
    assert not is_cut(one[:16], one[16:], 24.0)


def test_nothing_is_loaded_that_nobody_asked_for(frames: Any) -> None:
    found = extracting.Extractors(EncodeOptions(caption="as it is"))
    assert found.caption(None, 0) == "as it is" and found.notes == ()  # type: ignore[arg-type]
    assert not found.finds_people and not found.writes_captions
