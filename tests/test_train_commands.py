"""`semvc train`: what it says, what it refuses, what it needs to run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cache import write_cache, write_metric_weights
from networks import TINY
from program import environment
from scene import Scene, write_video

from semvc import cli

pytestmark = pytest.mark.slow  # left to make test

BLOCKED = ("av", "constriction", "diffusers", "cv2")
PROGRAM = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
import runpy
runpy.run_module("semvc.train", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    network = "\n".join(f"{k} = {json.dumps(v)}" for k, v in TINY.items())
    path.write_text(
        f'model = "tiny-v1"\nseed = 3\nlog_steps = 2\n\n[network]\n{network}\n'
        '[[stage]]\nname = "only"\nsteps = 4\nbatch = 1\nunroll = 2\ncrop = 32\n'
        "rate = 1e-3\nfinal_rate = 1e-3\nlpips = 1.0\nadversarial = 0.1\n"
        "[critic]\nwidth = 4\n",
        "utf-8",
    )
    write_cache(tmp_path / "cache")
    write_metric_weights(tmp_path / "metrics")
    return path


def words(recipe: Path, *more: str) -> list[str]:
    folder = recipe.parent
    given = ["run", str(recipe), str(folder / "run"), "--cache", str(folder / "cache")]
    return [*given, "--metric-weights", str(folder / "metrics"), *more]


def test_training_needs_no_codec(recipe: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words(recipe, "--json", "--threads", "1")],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert (row["step"], row["steps"], row["complete"]) == (4, 4, True)
    assert "blocked" not in done.stderr


def test_the_block_of_that_test_works(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    given = ["prepare", str(tmp_path / "out"), "--clips", str(tmp_path / "in")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *given], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "blocked" in done.stderr


def test_a_run_reports_on_stderr_and_goes_on_from_its_checkpoint(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", *words(recipe, "--minutes", "1e-9")]) == 0
    assert "step 1 of 4: to be continued" in capsys.readouterr().err
    assert cli.run(["train", *words(recipe)]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "going on from step 1" in shown.err
    assert "step 4 of 4: complete" in shown.err
    rows = [json.loads(line) for line in shown.err.splitlines() if line.startswith("{")]
    assert [row["step"] for row in rows] == [2, 4]


def test_a_stopped_run_exits_by_its_signal_with_a_checkpoint(recipe: Path) -> None:
    recipe.write_text(recipe.read_text("utf-8").replace("steps = 4", "steps = 100000"), "utf-8")
    program = [sys.executable, "-m", "semvc", "train", *words(recipe, "--threads", "1")]
    child = subprocess.Popen(program, env=environment(), stderr=subprocess.PIPE, text=True)
    log = recipe.parent / "run" / "log.jsonl"
    limit = time.monotonic() + 100
    while not log.exists() and time.monotonic() < limit:
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGTERM)
    _, shown = child.communicate(timeout=60)
    assert child.returncode == 143, shown
    assert (recipe.parent / "run" / "checkpoint.safetensors").exists()
    assert "to be continued" in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seed = 3", "seed = 3\nspeed = 4"), "unknown key speed"),
        (("seed = 3", "seed ="), "is not TOML"),
        (('model = "tiny-v1"', 'model = "tiny-v1"\nstart = "nowhere"'), "nothing to start from"),
        (("memory = 4", "depth = 4"), "recipe of tiny-v1"),
        (("crop = 32", "crop = 512"), "no sample of the cache"),
    ],
)
def test_a_bad_recipe_is_a_usage_error_of_one_line(
    recipe: Path, change: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = recipe.read_text("utf-8")
    assert change[0] in text
    recipe.write_text(text.replace(*change), "utf-8")
    assert cli.run(["train", *words(recipe)]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_a_cache_that_is_not_there_is_a_usage_error(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [w if not w.endswith("cache") or w == "--cache" else w + "2" for w in words(recipe)]
    assert cli.run(["train", *given]) == 2
    assert "semvc train prepare" in capsys.readouterr().err


def test_losses_without_their_weights_are_a_usage_error(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words(recipe)
    assert cli.run(["train", *given[: given.index("--metric-weights")]]) == 2
    assert "--metric-weights" in capsys.readouterr().err


def test_nothing_to_prepare_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", "prepare", str(tmp_path)]) == 2
    assert "--clips or --photos" in capsys.readouterr().err


def test_prepared_footage_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    frames = Scene(width=208, height=176, frames=8).render()[0]
    write_video(tmp_path / "in" / "a.mp4", frames)
    given = ["--clips", str(tmp_path / "in"), "--rounds", "1", "--samples", "2", "--preset", "12"]
    assert cli.run(["train", "prepare", str(tmp_path / "out"), *given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"clips": 2}


def test_an_export_prints_the_row_of_the_index(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", *words(recipe)]) == 0
    capsys.readouterr()
    given = ["export", str(recipe), str(recipe.parent / "run"), str(recipe.parent / "model")]
    assert cli.run(["train", *given, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["profile"], row["tier"], row["id"]) == ("disco", "small", "tiny-v1")
    names = sorted(p.name for p in (recipe.parent / "model").iterdir())
    assert names == ["config.toml", "recipe.toml", "weights.safetensors"]


def test_packed_data_are_unpacked_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, out = str(write_cache(tmp_path / "cache")), str(tmp_path / "pieces")
    assert cli.run(["train", "pack", cache, cache, out, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["bytes"] == sum(Path(p).stat().st_size for p in row["pieces"])
    assert cli.run(["train", "unpack", *row["pieces"], str(tmp_path / "there"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"shards": 4}


def test_packing_what_is_not_there_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["train", "pack", str(tmp_path / "none"), str(tmp_path / "pieces")]) == 2
    assert "no folder" in capsys.readouterr().err


def test_an_export_without_a_checkpoint_leaves_no_folder(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.run(["train", "export", str(recipe), str(tmp_path / "run"), str(tmp_path / "m")])
    assert code == 2 and "train first" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_weights_of_losses_that_are_missing_are_named(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recipe.parent / "metrics" / "heads.safetensors").unlink()
    assert cli.run(["train", *words(recipe)]) == 2
    said = capsys.readouterr().err
    assert "no heads.safetensors in" in said and "--metric-weights" in said


def test_footage_too_small_for_a_sample_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "a.mp4", Scene(64, 48, 8).render()[0])
    code = cli.run(["train", "prepare", str(tmp_path / "c"), "--clips", str(tmp_path / "clips")])
    assert code == 2 and "large and long enough" in capsys.readouterr().err
