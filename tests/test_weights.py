"""The index of models, their identities, and the check of their files."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from semvc import weights
from semvc.errors import ModelError
from semvc.weights import ModelRef

FILES = {"config.toml": b"[network]\nmemory = 4\n", "weights.safetensors": bytes(range(256)) * 4}
ROW: dict[str, Any] = {
    "id": "some-model-v1",
    "role": "generator",
    "profile": "disco",
    "tier": "small",
    "bytes": 1024,
    "weights_sha256": "",
    "config_sha256": "",
    "licence": "Apache-2.0",
    "source": "bundled",
    "signals": ["base_av1"],
}


@pytest.fixture(autouse=True)
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where bundled models are looked for; empty."""
    folder = tmp_path / "bundled"
    folder.mkdir()
    monkeypatch.setattr(weights, "BUNDLED", (folder,))
    return folder


def install(root: Path, **changes: Any) -> ModelRef:
    """Put a model and its row under `root`."""
    row = {**ROW, **changes}
    folder = root / row["id"]
    folder.mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
        key = "config_sha256" if name == "config.toml" else "weights_sha256"
        row[key] = changes.get(key, weights.sha256(folder / name))
    with (root / "index.toml").open("a", encoding="utf-8") as index:
        index.write("[[model]]\n" + "".join(f"{k} = {v!r}\n" for k, v in row.items()))
    return ModelRef(**{**row, "signals": tuple(row["signals"])})


def test_the_index_lists_its_rows_in_order(bundled: Path) -> None:
    first, second = install(bundled), install(bundled, id="other-v1", tier="full")
    assert weights.index() == (first, second)


def test_a_folder_without_an_index_knows_no_models(tmp_path: Path) -> None:
    assert weights.index(tmp_path / "nowhere") == ()


@pytest.mark.parametrize(
    "text",
    [
        "[[model]",
        "model = 3",
        "model = [1]",
        "[[model]]\nid = 'a'",
        "[[model]]\nsignals = []",
        b"\xff\xfe",
    ],
)
def test_an_unreadable_index_is_named(bundled: Path, text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text
    (bundled / "index.toml").write_bytes(data)
    with pytest.raises(ModelError, match=r"index\.toml cannot be read"):
        weights.index()


def test_an_unknown_key_of_a_row_is_refused(bundled: Path) -> None:
    install(bundled)
    with (bundled / "index.toml").open("a") as index:
        index.write("colour = 'blue'\n")
    with pytest.raises(ModelError, match="colour"):
        weights.index()


@pytest.mark.parametrize("key", ROW)
def test_a_missing_key_of_a_row_is_refused(bundled: Path, key: str) -> None:
    install(bundled)
    path = bundled / "index.toml"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith(f"{key} ")), "utf-8")
    with pytest.raises(ModelError, match=key):
        weights.index()


def test_the_users_folder_comes_first(tmp_path: Path, bundled: Path) -> None:
    install(bundled, source="bundled")
    mine = install(tmp_path / "mine", source="mine")
    assert weights.index(tmp_path / "mine") == (mine,)
    assert weights.for_profile("disco", "small", tmp_path / "mine") == mine
    assert weights.folder(mine, tmp_path / "mine") == tmp_path / "mine" / mine.id


def test_bundled_models_are_found_beside_the_users(tmp_path: Path, bundled: Path) -> None:
    ours = install(bundled)
    mine = install(tmp_path / "mine", id="mine-v1", tier="full")
    assert weights.index(tmp_path / "mine") == (mine, ours)
    assert weights.resolve(ours, tmp_path / "mine") == bundled / ours.id


def test_a_tier_without_a_model_says_what_to_do(bundled: Path) -> None:
    install(bundled)
    with pytest.raises(ModelError, match=r"disco at tier full.*--tier preview"):
        weights.for_profile("disco", "full")


REF = ModelRef(**{**ROW, "signals": ("base_av1",), "weights_sha256": "a" * 64})


def test_a_decoder_id_has_a_known_value() -> None:
    assert REF.decoder_id().hex() == "1a0f3e25"


@pytest.mark.parametrize(
    "change",
    [{"weights_sha256": "b" * 64}, {"config_sha256": "b" * 64}, {"id": "some-model-v2"}],
)
def test_a_decoder_id_changes_with_all_that_decides_the_picture(change: dict[str, str]) -> None:
    assert dataclasses.replace(REF, **change).decoder_id() != REF.decoder_id()


def test_a_decoder_id_changes_with_the_synthesis(monkeypatch: pytest.MonkeyPatch) -> None:
    before = REF.decoder_id()
    monkeypatch.setattr(weights, "_SYNTHESIS_VERSION", 99)
    assert REF.decoder_id() != before


@pytest.mark.parametrize("change", [{"licence": "MIT"}, {"source": "x"}, {"signals": ()}])
def test_a_decoder_id_ignores_what_does_not_decide_it(change: dict[str, Any]) -> None:
    assert dataclasses.replace(REF, **change).decoder_id() == REF.decoder_id()


def test_a_model_is_found_by_its_decoder_id(bundled: Path) -> None:
    ref = install(bundled)
    assert weights.by_decoder(ref.decoder_id()) == ref
    assert weights.by_decoder(b"\0\0\0\0") is None


def test_a_codec_id_goes_on_where_the_decoder_id_ends() -> None:
    assert len(REF.codec_id()) == 8
    assert REF.codec_id()[:4] == REF.decoder_id()


def test_codecs_and_generators_are_not_mistaken_for_each_other(bundled: Path) -> None:
    codec = install(bundled, id="codec-v1", role="codec", profile="s2vc")
    one = install(bundled, id="one-v1", profile="s2vc", codec="codec-v1")
    both = install(bundled, id="both-v1", profile="s2vc", codec="both-v1")
    assert weights.codec_for("s2vc") == codec
    assert [weights.by_codec(ref.codec_id()) for ref in (codec, one, both)] == [codec, None, both]
    assert [weights.by_decoder(ref.decoder_id()) for ref in (codec, one)] == [None, one]
    assert weights.for_profile("s2vc", "small", codec="codec-v1") == one
    assert weights.for_profile("s2vc", "small", codec="both-v1") == both
    for wanted in ("", "another-v1"):
        with pytest.raises(ModelError, match="s2vc at tier small"):
            weights.for_profile("s2vc", "small", codec=wanted)


def test_a_profile_without_a_codec_says_so(bundled: Path) -> None:
    install(bundled)
    with pytest.raises(ModelError, match=r"s2vc needs a codec model.*--models-dir"):
        weights.codec_for("s2vc")


def test_intact_files_resolve_to_their_folder(bundled: Path) -> None:
    assert weights.resolve(install(bundled)) == bundled / "some-model-v1"


def test_a_missing_model_says_how_to_give_one(bundled: Path) -> None:
    with pytest.raises(ModelError, match=r"some-model-v1 is not installed.*--models-dir"):
        weights.resolve(REF)


@pytest.mark.parametrize("name", FILES)
def test_a_model_without_one_of_its_files_is_not_installed(bundled: Path, name: str) -> None:
    ref = install(bundled)
    (bundled / ref.id / name).unlink()
    assert weights.folder(ref) is None
    with pytest.raises(ModelError, match="is not installed"):
        weights.resolve(ref)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("at", [0, 10, -1])
def test_one_flipped_byte_is_refused_and_the_file_named(bundled: Path, name: str, at: int) -> None:
    ref = install(bundled)
    path = bundled / ref.id / name
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match=name):
        weights.resolve(ref)


def test_looking_up_models_needs_the_standard_library_alone() -> None:
    program = (
        "import sys; from semvc import weights; print({'numpy', 'torch', 'av'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b"set()\n"
