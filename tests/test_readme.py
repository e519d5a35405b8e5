"""What the README and the pages tell a reader to type is what continuous integration runs, and exists."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands(text: str) -> list[str]:
    """The lines that run make, without variables set before it."""
    return re.findall(r"^\s*(?:[A-Z_]+=\S+ )*(make \S+)\s*$", text, re.MULTILINE)


def test_the_two_commands_are_those_that_ci_runs():
    section = README.split("## Two commands", 1)[1].split("\n## ", 1)[0]
    (block,) = re.findall(r"^```\w*\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert commands(block) == block.strip().splitlines() == ["make book", "make test"]
    checked = ["make lint", "make book", "make test"]
    assert commands((ROOT / ".ci" / "run").read_text()) == checked
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "book.yml").read_text())
    steps = [step["run"] for step in workflow["jobs"]["book"]["steps"] if "run" in step]
    assert steps == checked


@pytest.mark.parametrize("path", ["README.md", "book/using_your_own.md"])  # both spell it out
def test_the_two_commands_without_make_are_those_of_the_makefile(path):
    """Word for word but for quotes and pip's quietness, so that a machine without make does the same."""
    (block,) = re.findall(r"^python -m venv \.venv\n.*?(?=^```)", (ROOT / path).read_text(), re.MULTILINE | re.DOTALL)
    said = [line.removeprefix(".venv/bin/python ").replace('"', "'") for line in block.splitlines()[1:]]
    makefile = re.sub(r" --(quiet|disable-pip-version-check)\b", "", (ROOT / "Makefile").read_text(encoding="utf-8"))
    made = re.findall(r"^\t@\$\(RUN\) (.*)$", makefile, re.MULTILINE)
    assert [line.partition(" $(if")[0] for line in made if line.partition(" $(if")[0] in said] == said


@pytest.mark.parametrize("path", ["README.md", "book/using_your_own.md", "book/course/index.md"])
def test_every_target_that_is_named_exists(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    named = set(re.findall(r"`make ([a-z]+)", text)) | {command.split()[1] for command in commands(text)}
    assert named and named <= TARGETS


def test_make_help_lists_every_target():
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make (\w+)", said, re.MULTILINE)) == TARGETS
    default = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert default == said


def test_make_clean_removes_what_was_built_and_leaves_the_rest(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    built = (
        "build/site/index.html",
        "build/.lock",
        "helpers/__pycache__/a.pyc",
        "helpers/images/deep/__pycache__/a.pyc",
    )
    kept = (
        "build/own/results/mine.csv",
        "build/reports/mine/a.csv",
        "helpers/images/a.py",
        "tests/a.py",
        ".venv/bin/python",
        "data/zoo/vit.json",
    )
    for name in built + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for _ in range(2):
        subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
        there = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
        assert there == {"Makefile", *kept}


def test_every_place_and_picture_that_the_readme_names_exists():
    for path in re.findall(r"^\| `([\w./]+)` \|", README, re.MULTILINE):
        assert (ROOT / path).exists(), path
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", README)
    assert pictures
    for alt, path in pictures:
        assert len(alt) >= 40 and (ROOT / path).exists(), path


def test_ci_fails_where_the_browser_is_missing(tmp_path):
    """Without Chromium the browser tests are left out, and it says so; with REQUIRE_BROWSER=1 they fail."""
    test = "tests/building/test_site.py::test_the_reader_can_switch_to_the_dark"
    for required, status, said in (("1", 1, "there is no Chromium"), ("", 0, "LEFT OUT")):
        environment = {"PATH": str(tmp_path), "REQUIRE_BROWSER": required, "HOME": str(tmp_path)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert ran.returncode == status and said in ran.stdout, ran.stdout
    assert "REQUIRE_BROWSER=1 make test" in (ROOT / ".ci" / "run").read_text()
