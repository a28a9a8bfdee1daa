"""Training recipes: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from semvc.errors import UsageError
from semvc.train import recipe

MODELS = Path(__file__).parent.parent / "models"
SHIPPED = MODELS / "disco-small-v1" / "recipe.toml"
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
    assert [(s.name, s.steps, s.options.lpips) for s in found.stages] == [("only", 10, 0.0)]
    assert found.family == "disco-small"


def test_stages_keep_their_order(tmp_path: Path) -> None:
    stage = TEXT[TEXT.index("[[stage]]") :].replace("only", "second")
    assert [s.name for s in load(tmp_path, TEXT + stage).stages] == ["only", "second"]


@pytest.mark.parametrize("path", sorted(MODELS.glob("*/recipe*.toml")), ids=str)
def test_the_shipped_recipes_are_valid(path: Path) -> None:
    assert recipe.load(path).model.startswith(path.parent.name.rpartition("-")[0])


def test_the_steps_of_a_recipe_are_those_of_its_stages(tmp_path: Path) -> None:
    stage = TEXT[TEXT.index("[[stage]]") :].replace("only", "second")
    found = load(tmp_path, TEXT + stage)
    assert found.steps == 20
    places = [found.stage_at(step) for step in (0, 9, 10, 19, 20)]
    named = [None if p is None else (p[0].name, p[1]) for p in places]
    assert named == [("only", 0), ("only", 9), ("second", 0), ("second", 9), None]


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
        ("crop = 32", "crop = 32\nwarmup = 0"),
        ("crop = 32", "crop = 32\nobjective = 'wasserstein'"),
        ("seed = 3", "seed = 3\nfamily = 'unheard-of'"),
    ],
)
def test_a_bad_value_is_refused(tmp_path: Path, line: str, bad: str) -> None:
    with pytest.raises(UsageError):
        load(tmp_path, TEXT.replace(line, bad))


def test_a_recipe_without_stages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one"):
        load(tmp_path, TEXT[: TEXT.index("[[stage]]")])


def test_broken_toml_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"recipe\.toml is not TOML: .*line 3"):
        load(tmp_path, TEXT.replace("seed = 3", "seed = "))


def test_a_recipe_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        recipe.load(tmp_path / "none.toml")


def test_a_key_of_a_family_and_one_of_the_loop_are_told_apart(tmp_path: Path) -> None:
    found = load(tmp_path, TEXT + "warmup = 7\nlpips = 0.5\n").stages[0]
    assert (found.warmup, found.options.lpips) == (7, 0.5)


def test_a_scaled_recipe_has_longer_stages(tmp_path: Path) -> None:
    found = load(tmp_path)
    assert [found.scaled(f).steps for f in (2.5, 1, 0.01)] == [25, 10, 1]
    assert found.scaled(2).stages[0].batch == found.stages[0].batch


@pytest.mark.parametrize("factor", [0, -1, 1e9, float("nan")])
def test_a_scale_out_of_range_is_refused(tmp_path: Path, factor: float) -> None:
    with pytest.raises(UsageError, match="scaled"):
        load(tmp_path).scaled(factor)
