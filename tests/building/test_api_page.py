"""The page of the library names every room that there is, once, and Sphinx is told how to read their docstrings."""

import ast
import importlib
import inspect
import io
import re

import yaml
from docutils.core import publish_doctree
from sphinx.ext.napoleon import GoogleDocstring

from helpers import plots
from helpers.building.api_page import DEPARTMENTS, GIVES, ROOMS, api_page


def test_every_room_of_the_library_is_on_the_page(root):
    page = api_page(root / "helpers")
    named = re.findall(r"^\.\. automodule:: helpers\.([\w.]+)$", page, re.MULTILINE)
    files = [path for folder in DEPARTMENTS.values() for path in (root / "helpers" / folder).iterdir()]
    rooms = {f"{path.parent.name}.{path.stem}" for path in files if path.suffix == ".py" and path.stem != "__init__"}
    assert len(named) == len(set(named)) and set(named) == rooms | set(ROOMS)
    for room in named:
        source = (root / "helpers" / f"{room.replace('.', '/')}.py").read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(source)), f"{room} does not say what it is"


def test_the_page_says_of_every_measure_what_it_gives_and_what_draws_it(root):
    def found(name):
        """What a name on the page means: a function of a room, or a method of a class of the room itself."""
        first, last = name.split(".")
        owner = plots if first == "plots" else rooms.get(first) or classes.get(first)
        return callable(getattr(owner, last, None))

    rooms = {file.stem: importlib.import_module(f"helpers.measures.{file.stem}")
             for file in (root / "helpers" / "measures").glob("[!_]*.py")}  # fmt: skip
    classes = {name: one for room in rooms.values() for name, one in vars(room).items() if inspect.isclass(one)}
    for measure, (table, drawn) in GIVES.items():
        names = [measure, *filter(None, f"{table}, {drawn}".split(", "))]
        assert all(map(found, names)), names
        assert all(f"`{name}`" in api_page(root / "helpers") for name in names)
    asked = set()
    for room, module in rooms.items():
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ != module.__name__ or name.startswith("_"):
                continue
            first, *others = [*inspect.signature(function).parameters, ""]
            shown = {"batches", "loader", "images", "read", "learn"} & set(others)
            if first in ("model", "models", "network", "vit") and shown:
                asked.add(f"{room}.{name}")
    parts = {"landscape.values", "objective.loss", "stream_maps.stream_sums"}  # of measures, not ones
    assert asked - parts == set(GIVES) and parts <= asked


def test_every_docstring_is_text_that_sphinx_can_read(root):
    """The site is built with every warning an error, so one bar or backtick too many would stop it."""
    for folder in DEPARTMENTS.values():
        for file in sorted((root / "helpers" / folder).glob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                kinds = (ast.Module, ast.FunctionDef, ast.ClassDef)
                if isinstance(node, kinds) and not getattr(node, "name", "").startswith("_"):
                    said = io.StringIO()
                    settings = {"report_level": 2, "halt_level": 5, "warning_stream": said}
                    publish_doctree(str(GoogleDocstring(ast.get_docstring(node) or "")), settings_overrides=settings)
                    assert not said.getvalue(), f"{file.name}, {getattr(node, 'name', 'the room')}: {said.getvalue()}"


def test_the_book_reads_docstrings_and_has_the_page(root):
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))["sphinx"]["config"]
    assert {"sphinx.ext.autodoc", "sphinx.ext.napoleon"} <= set(config["extensions"])
    assert "file: book/api" in (root / "book" / "_toc.yml").read_text(encoding="utf-8")
