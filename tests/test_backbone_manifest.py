"""The manifest, downloads from a hub that the tests make, and estimates of memory."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from modelfolder import MODEL
from program import Call
from tinybackbones import write_ltx, write_vace

import semvc
from semvc import arguments
from semvc.backbones import hub, manifest, memory
from semvc.errors import ModelError, ResourceError, UsageError

VACE = "wan-vace-1.3b"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the user's."""
    monkeypatch.setattr(arguments, "models_home", lambda: tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vace(tmp_path_factory.mktemp("source"))


class Hub:
    """A server with one repository: what is in the folder `source`."""

    def __init__(self, source: Path) -> None:
        self.source, self.asked = source, []

    def HfApi(self) -> Any:
        return self

    def model_info(self, repository: str, **_: Any) -> Any:
        self.asked.append(repository)
        files = []
        for path in sorted(p for p in self.source.rglob("*") if p.is_file()):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            lfs = SimpleNamespace(sha256=digest) if path.suffix == ".safetensors" else None
            name = path.relative_to(self.source).as_posix()
            files.append(SimpleNamespace(rfilename=name, size=path.stat().st_size, lfs=lfs))
        return SimpleNamespace(sha="c0ffee", siblings=files)

    def snapshot_download(self, repository: str, *, local_dir: str, **how: Any) -> None:
        assert how["revision"] == "c0ffee" and "transformer/*.safetensors" in how["allow_patterns"]
        shutil.copytree(self.source, local_dir, dirs_exist_ok=True)


@pytest.fixture
def server(source: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(source)
    monkeypatch.setattr(hub, "_library", lambda: made)
    return made


# --- rows


def test_every_row_is_complete_and_invents_no_figures() -> None:
    for entry in manifest.entries():
        assert entry.family in ("ltx", "vace") and entry.licence and entry.vram
        rule = {"ltx": 8, "vace": 4}[entry.family]
        assert entry.frames % rule == entry.overlap % rule == 1 and entry.overlap < entry.frames
        assert all("safetensors" in f or "json" in f or f == "tokenizer/*" for f in entry.files)
        shown = entry.to_json()
        for name in ("commit", "bytes", "sha256"):
            assert shown[name] == (getattr(entry, name) or "unknown until pulled")


def test_names_are_ids_or_families() -> None:
    assert manifest.named("ltx-video-13b").id == "ltx-video-13b"
    assert manifest.named("vace").id == VACE
    with pytest.raises(ModelError, match="known: wan-vace"):
        manifest.named("sora")


def test_only_the_file_for_downloads_names_a_hub() -> None:
    root = Path(semvc.__file__).parent
    naming = [p for p in root.rglob("*.py") if "huggingface_hub" in p.read_text("utf-8")]
    assert naming == [root / "backbones" / "hub.py"]
    importing = [
        path.name
        for path in root.rglob("*.py")
        if "backbones import hub" in path.read_text("utf-8")
    ]
    assert importing == ["modelcommands.py"]


# --- folders


def test_a_folder_is_found_by_id_or_family(source: Path, tmp_path: Path) -> None:
    for name in (VACE, "vace"):
        root = tmp_path / name
        shutil.copytree(source, root / name)
        assert manifest.find("", [root]) == (manifest.named(VACE), root / name)
    with pytest.raises(ModelError, match=r"ltx-video-2b is not installed.*pull ltx-video-2b"):
        manifest.find("ltx", [tmp_path / "vace"])


def test_a_folder_is_taken_as_it_is_with_the_settings_of_the_nearest_size(
    source: Path, tmp_path: Path
) -> None:
    assert manifest.find(str(source), []) == (manifest.named(VACE), source)
    for name in ("LTXVideoTransformer3DModel", "Other"):
        path = tmp_path / name / "transformer"
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps({"_class_name": name}), "utf-8")
    folder = tmp_path / "LTXVideoTransformer3DModel"
    rows = {"a": {"shape": [13000, 1000000], "dtype": "F32", "data_offsets": [0, 0]}}
    head = json.dumps(rows).encode()
    (folder / "transformer" / "a.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    assert manifest.find(str(folder), [])[0].id == "ltx-video-13b"
    with pytest.raises(ModelError, match="no backbone here"):
        manifest.find(str(tmp_path / "Other"), [])


def test_a_folder_of_another_family_is_refused(tmp_path: Path) -> None:
    write_ltx(tmp_path / VACE)
    with pytest.raises(ModelError, match="not of backbone family vace"):
        manifest.find("vace", [tmp_path])


def test_damage_after_a_download_is_found(server: Hub, tmp_path: Path) -> None:
    entry = manifest.named(VACE)
    hub.pull(entry, tmp_path)
    assert manifest.verify(entry, tmp_path) == "ok, 4 files, commit c0ffee"
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    manifest.check_sizes(entry, tmp_path)
    with pytest.raises(ModelError, match=r"vae.*models pull"):
        manifest.verify(entry, tmp_path)
    path.write_bytes(data[:-1])
    with pytest.raises(ModelError, match="incomplete"):
        manifest.check_sizes(entry, tmp_path)


# --- downloads


def test_what_came_is_compared_with_the_server(server: Hub, tmp_path: Path) -> None:
    entry = replace(manifest.named(VACE), sha256={"vae/config.json": "0" * 64})
    with pytest.raises(ModelError, match="is not what"):
        hub.pull(entry, tmp_path)
    assert not (tmp_path / manifest.RECORD).exists()


def test_without_a_network_the_command_that_helps_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("cannot reach the server\nand more")

    monkeypatch.setattr(hub, "_library", lambda: SimpleNamespace(HfApi=fail))
    with pytest.raises(ModelError, match=r"cannot reach the server\. On a machine.*--to DIR"):
        hub.pull(manifest.named(VACE), tmp_path)


def test_a_full_disk_is_seen_before_the_download(
    server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(ResourceError, match="choose another folder"):
        hub.pull(manifest.named(VACE), tmp_path)


def test_pull_shows_the_licence_and_goes_where_it_is_told(
    run: Call, server: Hub, tmp_path: Path
) -> None:
    done = run("models", "pull", VACE, "--to", tmp_path / "mine")
    assert done.code == 0 and "licence     Apache-2.0" in done.out and "c0ffee" in done.out
    assert "memory      8 to 12 GB" in done.out
    assert "recorded, and trusted from then on" in done.out
    where = ("--models-dir", tmp_path / "mine")
    (row,) = json.loads(run("models", "info", VACE, "--json", *where).out)
    assert row["commit"] == "c0ffee" and len(row["sha256"]) == 4 and row["bytes"] > 1000
    assert run("models", "path", VACE, *where).out.strip() == str(tmp_path / "mine" / VACE)
    assert f"{VACE}: ok, 4 files" in run("models", "verify", *where).out
    assert "installed  disco/full" in run("models", "list", *where).out


def test_an_extractor_is_pulled_listed_checked_and_named_apart(
    run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text("{}", "utf-8")
    made = Hub(folder)
    made.snapshot_download = (  # type: ignore[method-assign]
        lambda _, *, local_dir, **how: shutil.copytree(folder, local_dir, dirs_exist_ok=True)
    )
    monkeypatch.setattr(hub, "_library", lambda: made)
    assert run("models", "pull", "vitpose-base", "--to", tmp_path / "mine").code == 0
    assert made.asked == ["usyd-community/vitpose-base-simple"]
    where = ("--models-dir", tmp_path / "mine")
    assert "vitpose-base  installed  encode/pose" in run("models", "list", *where).out
    found = run("models", "path", "vitpose-base", *where)
    assert found.out.strip() == str(tmp_path / "mine" / "vitpose-base"), found.err
    assert "vitpose-base: ok, 1 files" in run("models", "verify", *where).out
    assert run("models", "path", "blip-base", *where).code == 6
    (tmp_path / "mine" / "vitpose-base" / "config.json").write_text("{ }", "utf-8")
    assert run("models", "verify", *where).code == 6


def test_extractors_are_complete_and_invent_no_figures() -> None:
    families = [entry.family for entry in manifest.extractors()]
    assert set(families) == set(manifest.EXTRACTORS)
    for entry in manifest.extractors():
        assert entry.licence in ("Apache-2.0", "BSD-3-Clause") and entry.parameters
        assert "config.json" in entry.files and "model.safetensors" in entry.files
        assert not any("*" in name and "safetensors" not in name for name in entry.files)
    with pytest.raises(ModelError, match="draws no pictures"):
        manifest.find("blip-base", [])


def test_conditions_are_agreed_to_before_a_download(
    run: Call, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("click.confirm", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    done = run("models", "pull", "ltx-video-13b")
    assert done.code == 130 and "revenue" in done.out and not server.asked
    run("models", "pull", "ltx-video-13b", "--yes")
    assert server.asked == ["Lightricks/LTX-Video-0.9.7-dev"]


@pytest.mark.parametrize(
    ("answer", "said"), [("", "nobody is there to agree: give --yes"), ("n\n", "was not agreed to")]
)
def test_without_an_agreement_nothing_is_downloaded(
    answer: str, said: str, run: Call, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    done = run("models", "pull", "ltx-video-13b")
    assert done.code == 2 and said in done.err and not server.asked


def test_info_says_what_is_unknown(run: Call) -> None:
    text = run("models", "info").out
    every = manifest.entries() + manifest.extractors()
    assert text.count("unknown until pulled") == 3 * len(every)
    assert run("models", "info", "sora").code == run("models", "path", VACE).code == 6


def test_models_are_listed_and_checked(run: Call, models: Path) -> None:
    rows = json.loads(run("models", "list", "--models-dir", models, "--json").out)
    row = next(row for row in rows if row["id"] == MODEL)
    assert row["available"] and row["decoder_id"]
    others = {row["id"]: row for row in rows}
    assert others[VACE]["role"] == "backbone" and others[VACE]["available"] is False
    assert others["blip-base"]["use"] == "encode/caption" and others["blip-base"]["bytes"] is None
    text = run("models", "list", "--models-dir", models).out
    assert f"{MODEL}  {row['decoder_id']}  installed  disco/small" in text


# --- memory

LOAD = memory.Load(
    parameters={"transformer": 1_000_000_000, "vae": 100_000_000, "text_encoder": 5_000_000_000},
    blocks=40, tokens=1000, width=1000, tile_samples=1000, item=2, stored=2, caption=True,
)  # fmt: skip


def test_each_memory_mode_needs_less_than_the_one_before() -> None:
    full, offload, group = (replace(LOAD, caption=False).bytes(mode) for mode in memory.MODES)
    assert full > offload > group > 0
    assert LOAD.bytes("full") == 2_400_000_000 + 10_000_000_000
    assert LOAD.bytes("group") == 10_000_000_000  # the text encoder alone
    assert replace(LOAD, stored=1).bytes("full") < LOAD.bytes("full")


@pytest.mark.parametrize(("free", "mode"), [(40, "full"), (2.6, "offload"), (1, "group")])
def test_auto_takes_the_first_mode_that_fits(free: float, mode: str) -> None:
    load = replace(LOAD, caption=False)
    found, words = memory.choose(load, "auto", int(free * 1e9), device="cuda")
    assert found == mode and "estimated" in words and f"--memory {mode}" in words


def test_what_cannot_fit_says_what_helps() -> None:
    with pytest.raises(ResourceError, match=r"12\.4 GB.*1\.0 GB are free.*--quant int8"):
        memory.choose(LOAD, "full", 10**9, device="cuda")
    with pytest.raises(ResourceError, match="--tier small"):
        memory.choose(LOAD, "auto", 10**9, device="cpu")
    with pytest.raises(UsageError, match="no GPU"):
        memory.choose(LOAD, "group", None, device="cpu")
    assert memory.choose(LOAD, "auto", None, device="cpu")[0] == "full"


def test_memory_that_caches_hold_counts_as_free(tmp_path: Path) -> None:
    source = tmp_path / "meminfo"
    assert memory.host_free(source) is None
    source.write_text("MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:   5 kB\n")
    assert memory.host_free(source) == 5 * 1024


def test_parameters_are_counted_in_headers(source: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(source / "transformer" / "diffusion_pytorch_model.safetensors")
    load = memory.read_load(
        source, size=(832, 480), frames=81, tile=256, quant="int8", item=2, caption=False,
        references=1,
    )  # fmt: skip
    assert load.parameters["transformer"] == sum(w.numel() for w in tensors.values())
    assert load.tokens == 21 * 30 * 52 and load.stored == 1 and load.blocks == 3


def test_a_file_that_is_not_safetensors_is_a_model_error(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match="not a safetensors file"):
        memory.read_load(
            tmp_path, size=(64, 64), frames=9, tile=64, quant="none", item=4, caption=False,
            references=1,
        )  # fmt: skip
