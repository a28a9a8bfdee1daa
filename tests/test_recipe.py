"""Training recipes: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from semvc.errors import UsageError
from semvc.train import recipe

SHIPPED = Path(__file__).parent.parent / "models" / "disco-small-v1" / "recipe.toml"
TEXT = """
model = "some-v1"
seed = 3

[network]
memory = 4

[[stage]]
name = "only"
steps = 10
batch = 2
unroll = 1
crop = 32
rate = 1e-3
final_rate = 1e-4
"""


def load(tmp_path: Path, text: str = TEXT) -> recipe.Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text, "utf-8")
    return recipe.load(path)


def test_a_recipe_is_read_with_its_defaults(tmp_path: Path) -> None:
    found = load(tmp_path)
    assert (found.model, found.seed, found.network) == ("some-v1", 3, {"memory": 4})
    assert [(s.name, s.steps, s.lpips) for s in found.stages] == [("only", 10, 0.0)]


def test_stages_keep_their_order(tmp_path: Path) -> None:
    stage = TEXT[TEXT.index("[[stage]]") :].replace("only", "second")
    assert [s.name for s in load(tmp_path, TEXT + stage).stages] == ["only", "second"]


def test_the_shipped_recipe_is_valid() -> None:
    found = recipe.load(SHIPPED)
    assert found.model == SHIPPED.parent.name


@pytest.mark.parametrize("anchor", ['model = "some-v1"', "steps = 10"])
def test_an_unknown_key_is_refused_and_named(tmp_path: Path, anchor: str) -> None:
    with pytest.raises(UsageError, match=r"unknown key learning_speed; known: .*"):
        load(tmp_path, TEXT.replace(anchor, f"{anchor}\nlearning_speed = 1"))


@pytest.mark.parametrize("line", ["seed = 3", "steps = 10", "crop = 32", "final_rate = 1e-4"])
def test_a_missing_key_is_refused_and_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(UsageError, match=line.split()[0]):
        load(tmp_path, TEXT.replace(line, ""))


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("steps = 10", "steps = 0"),
        ("batch = 2", "batch = 0"),
        ("unroll = 1", "unroll = -1"),
        ("crop = 32", "crop = 40"),
        ("steps = 10", "steps = 'many'"),
    ],
)
def test_a_bad_value_is_refused(tmp_path: Path, line: str, bad: str) -> None:
    with pytest.raises(UsageError):
        load(tmp_path, TEXT.replace(line, bad))


def test_a_recipe_without_stages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one"):
        load(tmp_path, TEXT[: TEXT.index("[[stage]]")])
