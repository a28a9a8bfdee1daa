"""What the documents, the packaging and the tests themselves promise."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from program import ROOT

from semvc import cli, errors, weights
from semvc.arguments import EXIT_CODES

README = (ROOT / "README.md").read_text("utf-8")
ARCHITECTURE = (ROOT / "semvc" / "ARCHITECTURE.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SOURCES = sorted(path for name in ("semvc", "tests") for path in (ROOT / name).rglob("*.py"))
MAX_LINES, MAX_FILE, MAX_ALL = 500, 12_000_000, 30_000_000
SIGNALS = {130, 143}  # exit codes that no class owns


def commands(group: click.Group = cli.main, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


COMMANDS = dict(commands())


def in_readme() -> list[str]:
    """What follows `semvc` in README's code, as `encode in.mp4 out.svc --bpp 0.01`."""
    code = re.findall(r"`([^`\n]+)`", README) + re.findall(r"^    \$? ?(.+)$", README, re.MULTILINE)
    return [text.removeprefix("semvc ") for text in code if text.startswith("semvc ")]


# --- README


@pytest.mark.parametrize("text", in_readme())
def test_commands_in_readme_exist(text: str) -> None:
    words = shlex.split(text, comments=True)
    if words[0] == "COMMAND":
        return
    name = next((n for n in (" ".join(words[:2]), words[0]) if n in COMMANDS), None)
    assert name is not None, text
    known = {option for p in COMMANDS[name].params for option in (*p.opts, *p.secondary_opts)}
    given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert given <= known | {"--help"}
    found = CliRunner().invoke(cli.main, [*name.split(), "--help"])
    assert found.exit_code == 0 and "Usage:" in found.output


def test_readme_names_every_command() -> None:
    for name in COMMANDS:
        first, _, last = name.partition(" ")
        assert re.search(rf"`semvc {first}\b.*`{last}`|`semvc {name}\b", README), name


def test_options_in_readme_exist() -> None:
    given = [p for command in COMMANDS.values() for p in command.params]
    known = {option for p in given for option in (*p.opts, *p.secondary_opts)}
    known |= {"--help", "--index-url"}  # of click, and of pip
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README)) <= known


def test_readme_names_the_two_commands_of_make() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", README.split("## Two commands")[1]))
    assert {"demo", "test"} <= named <= targets


def test_exit_codes_in_readme_are_those_of_the_errors() -> None:
    owned = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.SemvcError)
    }
    table = README.split("| exit | meaning |")[1].split("\n\n")[0]
    cells = [cell.strip() for line in table.splitlines() for cell in line.split("|")]
    listed = {int(n) for cell in cells if re.fullmatch(r"[\d, ]+", cell) for n in cell.split(",")}
    assert listed == owned | SIGNALS | {0}
    shown = {int(number) for number in re.findall(r"(?<![\w])(\d+)[ ,]", EXIT_CODES)}
    assert shown == listed


def test_the_file_map_names_files_that_exist() -> None:
    rows = re.findall(r"^\| (`.+?) \|", README.split("## Files")[1], re.MULTILINE)
    paths = [re.findall(r"`([^`]+)`", row) for row in rows]
    assert len(paths) >= 8
    for first, *others in paths:
        for path in (Path(first), *(Path(first).parent / other for other in others)):
            assert (ROOT / path).exists(), path


def test_links_lead_to_files() -> None:
    for path in (*ROOT.glob("*.md"), *ROOT.glob("semvc/**/*.md"), *ROOT.glob("models/**/*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text("utf-8")):
            assert (path.parent / link).exists(), (path, link)


# --- help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str) -> None:
    command = COMMANDS[name]
    assert command.help and command.get_short_help_str()
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.opts


def test_every_group_has_help() -> None:
    assert cli.main.help and all(command.help for command in cli.main.commands.values())


# --- architecture, packaging


def test_the_layers_in_the_document_are_those_checked() -> None:
    contract = next(
        c for c in PROJECT["tool"]["importlinter"]["contracts"] if c["type"] == "layers"
    )
    checked = []
    for line in contract["layers"]:
        names = [n.strip() for n in line.split("|") if not n.strip().startswith("(")]
        checked.append(" | ".join(name.removeprefix("semvc.") for name in names))
    block = re.search(r"```\n(.*?)```", ARCHITECTURE.split("## Layers")[1], re.DOTALL)
    assert block is not None
    assert block[1].splitlines() == [line for line in checked if line]


def test_the_wheel_holds_the_models() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"models": "semvc/_models"} and wheel["packages"] == ["semvc"]


def test_bundled_models_are_those_of_the_index() -> None:
    here = [ref for ref in weights.index() if weights.folder(ref) is not None]
    for ref in here:
        path = weights.resolve(ref)  # compares both hashes
        assert (path / weights.WEIGHTS).stat().st_size == ref.bytes <= MAX_FILE


def test_what_git_tracks_stays_small() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: run this in a clone")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    sizes = {path: path.stat().st_size for path in files if path.is_file()}
    assert max(sizes.values()) <= MAX_FILE and sum(sizes.values()) <= MAX_ALL


# --- the code and its tests


def test_no_file_is_too_long() -> None:
    long = {str(path): count for path in SOURCES if (count := lines(path)) > MAX_LINES}
    assert not long


def lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def skips(tree: ast.AST, *, guarded: bool = False) -> Iterator[int]:
    """Lines of tests skipped whatever the circumstances."""
    for node in ast.iter_child_nodes(tree):
        inside = guarded or isinstance(node, ast.If | ast.ExceptHandler)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in (
            "pytest.mark.skip",
            "pytest.mark.xfail",
        ):
            yield node.lineno
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "pytest.skip" and not inside:
            yield node.lineno
        yield from skips(node, guarded=inside)


def test_no_test_is_skipped_without_a_condition() -> None:
    found = [
        (path.name, line)
        for path in SOURCES
        for line in skips(ast.parse(path.read_text("utf-8")))
        if "pytest" in path.read_text("utf-8")
    ]
    assert not found


def test_a_skip_without_a_condition_would_be_found() -> None:
    for text in ("pytest.skip('x')", "@pytest.mark.skip\ndef f(): pass", "def f(): pytest.skip()"):
        assert list(skips(ast.parse(text)))
    assert not list(skips(ast.parse("if not gpu:\n    pytest.skip('no GPU')")))
