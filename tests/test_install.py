"""What pip installs: the library under a name that cannot be somebody else's, and a word on where the zoo is."""

import ast
import json
import os
import shutil
import subprocess
import sys
from zipfile import ZipFile

import pytest

USE = """
from how_vits_see import results
from how_vits_see.claims.registry import load
from how_vits_see.networks import zoo
print(results.code_version(), "R1" in load())
try:
    print(zoo.card("vit")["sha256"])
except FileNotFoundError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def installed(root, tmp_path_factory):
    """The folder that a wheel of the repository would be unpacked to, and the place where it was built."""
    built = tmp_path_factory.mktemp("wheel")
    shutil.copytree(root / "helpers", built / "helpers", ignore=shutil.ignore_patterns("__pycache__"))
    (built / "book").mkdir()
    for name in ("setup.py", "pyproject.toml", "LICENSE", "book/claims.yml"):
        shutil.copy(root / name, built / name)
    subprocess.run([sys.executable, "setup.py", "-q", "build", "--build-lib", "lib"], cwd=built, check=True)
    return built / "lib"


def test_the_wheel_holds_one_package_whose_name_is_the_projects(root, installed):
    assert [path.name for path in installed.iterdir()] == ["how_vits_see"]
    rooms = {path.relative_to(root / "helpers") for path in (root / "helpers").rglob("*.py")}
    kept = {path.relative_to(installed / "how_vits_see") for path in installed.rglob("*.py")}
    assert kept == {path for path in rooms if path.parts[0] != "building"}
    shipped = (installed / "how_vits_see" / "claims" / "claims.yml").read_bytes()
    assert shipped == (root / "book" / "claims.yml").read_bytes()


def test_the_wheel_says_which_package_it_holds(installed, tmp_path):
    built = installed.parent
    subprocess.run([sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(tmp_path)], cwd=built, check=True)
    (wheel,) = tmp_path.glob("how_vits_see-*.whl")
    with ZipFile(wheel) as file:
        (named,) = (name for name in file.namelist() if name.endswith(".dist-info/top_level.txt"))
        assert file.read(named).split() == [b"how_vits_see"]
        assert {name.partition("/")[0] for name in file.namelist()} == {"how_vits_see", named.partition("/")[0]}


def test_no_module_of_the_wheel_imports_helpers(installed):
    notebook = json.loads((installed / "how_vits_see" / "reporting" / "report.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"]]
    own = 0
    for text in [*cells, *(path.read_text(encoding="utf-8") for path in installed.rglob("*.py"))]:
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "helpers" for name in names)
            own += any(name.split(".")[0] == "how_vits_see" for name in names)
    assert own > 100


@pytest.mark.fault(
    "Models", "a network of the zoo where pip installed the library alone", "refused: clone, and name the clone"
)
def test_an_installed_library_stands_beside_a_strangers_helpers(root, installed, tmp_path):
    (tmp_path / "helpers.py").write_text("raise RuntimeError('of somebody else')\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{installed}"}
    environment.pop("VIT_BOOK_CLONE", None)

    def said(**more):
        ran = subprocess.run(
            [sys.executable, "-c", USE], cwd=tmp_path, env={**environment, **more}, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    alone = said()
    assert alone.startswith("{} True") and "Clone it, and name the clone" in alone and "VIT_BOOK_CLONE" in alone
    pinned = json.loads((root / "data" / "zoo" / "vit.json").read_text(encoding="utf-8"))["sha256"]
    assert said(VIT_BOOK_CLONE=str(root)) == f"{{}} True\n{pinned}\n"
