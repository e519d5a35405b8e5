"""Chapters opened elsewhere: the cell that fetches the book, what it installs, and who reads of it."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from helpers.building import book, launch
from helpers.building.execution import chapters

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ADDRESS = "https://github.com/someone/book"


@pytest.fixture
def asked(monkeypatch):
    """The commands that would have been run."""
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    return commands


def test_the_cell_does_nothing_where_the_book_is(asked, capsys):
    before = list(sys.path)
    exec(launch.first_cell(ADDRESS), {})
    assert asked == [] and sys.path == before and capsys.readouterr().out == ""


def test_elsewhere_the_cell_clones_the_right_address_and_installs(asked, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "helpers.chapter", None)  # its import fails
    exec(launch.first_cell(ADDRESS), {})
    place = str(tmp_path / "book")
    clone, install = asked
    assert clone[:2] == ["git", "clone"] and clone[-2:] == [ADDRESS, place]
    assert install[:4] == [sys.executable, "-m", "pip", "install"] and install[-1] == f"{place}[chapters]"
    assert sys.path[0] == place
    (tmp_path / "book").mkdir()  # a second try, after pip had failed
    exec(launch.first_cell(ADDRESS), {})
    assert asked[2:] == [install]


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


carried = cache(metadata.packages_distributions)  # by which distribution each module comes


def imported(code: str) -> set[str]:
    """The distributions that code imports, wherever in it the import stands."""
    tops = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            tops |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            tops.add(str(node.module).split(".")[0])
    return {canonicalize_name(carried()[top][0]) for top in tops - set(sys.stdlib_module_names) - {"helpers"}}


def test_what_the_cell_installs_is_what_the_chapters_and_their_library_import():
    """No more and no less: an environment with nothing else runs every chapter."""
    needed: set[str] = set()
    for path in chapters(ROOT):
        code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        needed |= imported("\n".join(code))
    for path in (ROOT / "helpers").rglob("*.py"):
        if not {"building", "recording", "reporting"} & set(path.parts):  # rooms that no chapter needs
            needed |= imported(path.read_text(encoding="utf-8"))
    assert needed == names(PROJECT["dependencies"] + PROJECT["optional-dependencies"][launch.EXTRA])


def test_the_copies_begin_with_the_cell_and_are_else_the_chapters(tmp_path):
    config = {"repository": {"url": ADDRESS}}
    launch.offer(ROOT, tmp_path, config)
    assert {path.name for path in (tmp_path / launch.BRANCH).iterdir()} == {path.name for path in chapters(ROOT)}
    for path in chapters(ROOT):
        copy = nbformat.read(tmp_path / launch.BRANCH / path.name, as_version=4)
        nbformat.validate(copy)
        first, *rest = copy.cells
        assert f'"{ADDRESS}"' in first.source and "remove-cell" in first.metadata.tags
        assert rest == nbformat.read(path, as_version=4).cells


def test_without_an_address_there_is_nothing_to_launch(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "repository_url", lambda root: None)
    config = book.configuration(ROOT)
    launch.offer(ROOT, tmp_path, config)
    assert list(tmp_path.iterdir()) == [] and "launch_buttons" not in config
    assert launch.__name__ not in config["sphinx"]["config"]["extensions"]


@pytest.mark.parametrize(
    "setting, url",
    [("https://github.com/a/b/", "https://github.com/a/b"), ("https://example.org/a/b", None), ("", ADDRESS)],
)
def test_one_setting_names_another_address(tmp_path, monkeypatch, setting, url):
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/book")
    (tmp_path / "_config.yml").write_text(yaml.safe_dump({"repository": {"url": setting}}))
    assert launch.repository_url(tmp_path) == url


def test_no_page_has_a_placeholder_for_the_address():
    for page in [*(ROOT / "book").rglob("*.md"), *chapters(ROOT), ROOT / "README.md"]:
        assert not re.search(r"\bADDRESS\b", page.read_text(encoding="utf-8")), page


def test_the_workflow_pushes_the_copies_to_the_branch_that_the_buttons_name():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text(encoding="utf-8"))
    said = "\n".join(step.get("run", "") for step in workflow["jobs"]["launch"]["steps"])
    assert f"./{launch.BRANCH}" in said and f"HEAD:refs/heads/{launch.BRANCH}" in said


def test_binder_installs_the_book_at_the_versions_that_it_is_built_with():
    folder = ROOT / ".binder"
    lines = [line.partition("#")[0].split() for line in (folder / "requirements.txt").read_text().splitlines()]
    options = dict(line for line in lines if line)
    assert (folder / options["--constraint"]).resolve() == ROOT / "constraints.txt"  # relative to the file
    assert options["--editable"] == ".[book]" and "book" in PROJECT["optional-dependencies"]  # to the repository
    python = (folder / "runtime.txt").read_text().strip().removeprefix("python-")
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)


def test_a_dev_container_makes_the_environment_that_make_makes():
    settings = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    python = settings["image"].rpartition(":")[2]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    command, target = settings["postCreateCommand"].split()
    asked = subprocess.run([command, "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert command == "make" and asked.returncode == 0, asked.stderr
    interpreter = settings["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert interpreter == f"${{containerWorkspaceFolder}}/{Path(target).parent}/bin/python"
