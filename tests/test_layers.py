"""What may import what, what starts quickly, and what no file may call."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from program import PROGRAM, ROOT, environment

import semvc

PACKAGE = Path(semvc.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("numpy", "torch", "av", "constriction", "diffusers", "safetensors", "tqdm")
STARTUP = 0.15  # seconds of processor time for `info`, beyond a bare interpreter


def test_the_layers_hold() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    if not linter.exists():
        pytest.fail("import-linter is not installed: it belongs to the dev dependencies")
    done = subprocess.run(
        [linter, "--no-cache"], cwd=ROOT, env=environment(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout.decode()


def loaded_by(*words: str) -> set[str]:
    """Top-level modules in memory after a command."""
    script = (
        "import sys; from semvc.cli import run; code = run(sys.argv[1:]);"
        " print('\\nLOADED', *sorted({name.split('.')[0] for name in sys.modules}));"
        " sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words], env=environment(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.decode().rsplit("LOADED ", 1)[1].split())


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["encode", "--help"],
        ["info", "{}"],
        ["info", "{}", "--json"],
        ["verify", "{}"],
        ["models", "list"],
        ["completion", "bash"],
    ],
)
def test_light_commands_load_nothing_heavy(words: list[str], stream: Path) -> None:
    assert not loaded_by(*(word.format(stream) for word in words)) & set(HEAVY)


@pytest.mark.parametrize(
    "words",
    [
        ["decode", "{}", "{folder}/a.mp4", "--tier", "preview", "--quiet"],
        ["verify", "{}", "--deep"],
        ["dump", "{}", "{folder}/dump"],
        ["edit", "{}", "{folder}/a.svc", "--drop", "audio_opus"],
    ],
)
def test_signals_and_previews_need_no_torch(words: list[str], stream: Path, tmp_path: Path) -> None:
    words = [word.format(stream, folder=tmp_path) for word in words]
    assert not loaded_by(*words) & {"torch", "diffusers", "safetensors"}


def test_encoding_needs_no_torch(clip: Path, tmp_path: Path) -> None:
    words = ("encode", str(clip), str(tmp_path / "a.svc"), "--preset", "12", "--quiet")
    assert not loaded_by(*words) & {"torch", "diffusers", "safetensors"}


def test_importing_the_package_imports_nothing() -> None:
    script = "import sys; before = set(sys.modules); import semvc; print(*set(sys.modules)-before)"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, check=True
    )
    assert not set(done.stdout.decode().split()) & set(HEAVY)


def test_the_package_offers_what_it_names() -> None:
    for name in semvc.__all__:
        assert getattr(semvc, name)
    with pytest.raises(AttributeError, match="no attribute 'transcode'"):
        semvc.transcode  # noqa: B018


def processor_seconds(*command: str) -> float:
    """The least of five runs."""
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=-3, check=True);"
        " used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime)"
    )
    found = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", script, *command],
            env=environment(),
            capture_output=True,
            check=True,
        )
        found.append(float(done.stdout))
    return min(found)


def test_info_starts_quickly(stream: Path) -> None:
    bare = processor_seconds(sys.executable, "-c", "pass")
    assert processor_seconds(*PROGRAM, "info", str(stream)) - bare < STARTUP


# --- banned calls

BANNED_CALLS = {
    *("eval", "exec", "compile", "__import__", "breakpoint", "input"),
    *("pickle.load", "pickle.loads", "torch.load", "torch.save", "torch.hub.load"),
    *("os.system", "os.popen", "tempfile.mktemp", "marshal.loads", "yaml.load"),
}
BANNED_MODULES = {
    *("pickle", "dill", "shelve", "marshal", "joblib", "requests", "urllib", "http"),
    *("socket", "ssl", "ftplib", "huggingface_hub"),
}
BANNED_ARGUMENTS = {"allow_pickle": True, "trust_remote_code": True, "shell": True}


def dotted(node: ast.expr) -> str:
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            return f"{dotted(node.value)}.{node.attr}"
    return ""


def offences(source: str) -> Iterator[str]:
    """What a file does that no file here may do."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call():
                if dotted(node.func) in BANNED_CALLS:
                    yield f"line {node.lineno}: calls {dotted(node.func)}"
                for keyword in node.keywords:
                    value = getattr(keyword.value, "value", None)
                    if keyword.arg in BANNED_ARGUMENTS and value is not False:
                        yield f"line {node.lineno}: passes {keyword.arg}"
            case ast.Import():
                for name in node.names:
                    if name.name.split(".")[0] in BANNED_MODULES:
                        yield f"line {node.lineno}: imports {name.name}"
            case ast.ImportFrom():
                if (node.module or "").split(".")[0] in BANNED_MODULES:
                    yield f"line {node.lineno}: imports from {node.module}"
            case ast.Assert():
                yield f"line {node.lineno}: asserts"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_calls_what_is_banned(path: Path) -> None:
    assert list(offences(path.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "eval(x)",
        "import pickle",
        "from urllib.request import urlopen",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "subprocess.run(x, shell=flag)",
        "assert x",
    ],
)
def test_the_search_for_banned_calls_finds_them(source: str) -> None:
    assert len(list(offences(source))) == 1


def test_no_file_is_too_long() -> None:
    lengths = {path.name: len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert {name: count for name, count in lengths.items() if count > 500} == {}


def test_no_function_is_too_long() -> None:
    found = [
        f"{path.name}: {node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert found == []
