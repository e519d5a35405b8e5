"""The page of faults: what goes wrong, what happens then, and which test holds it. Read from the tests themselves.

A test says so by its marker, and a case of a parametrized test by ``pytest.param(..., marks=...)``:

    @pytest.mark.fault("Building", "the build is killed", "no process stays; the next build starts anew")

The tests are parsed, not imported or run.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

from helpers.markup import code, literal

MARKER = "fault"
INTRODUCTION = """\
# What goes wrong, and what happens then

Inputs that are not as they should be, and faults of the machine around a measurement. Each line is held by at least one
test, from whose own words this page is made.
"""


@dataclass(frozen=True)
class Fault:
    """One line of the table: an area of the book, what goes in, what happens, and the ids of the tests that hold it."""

    area: str
    given: str
    happens: str
    tests: tuple[str, ...]


def collect(folder: Path) -> list[Fault]:
    """The faults that the tests of a folder are marked with, by area and in the order of the files.

    Raises:
        ValueError: a marker without its three texts; the message names the file and the line.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        for function, name in _tests(ast.parse(path.read_text(encoding="utf-8"))):
            for mark in _marks(function):
                test = f"{path.relative_to(folder).as_posix()}::{name}"
                tests = found.setdefault(_texts(mark, path), [])
                tests.extend([test] if test not in tests else [])
    return [Fault(*texts, tuple(tests)) for texts, tests in sorted(found.items(), key=lambda item: item[0][0])]


def _tests(module: ast.Module) -> list[tuple[ast.FunctionDef, str]]:
    """Every test of a module, as a function of it or of one of its classes, and its name in a test's id."""
    found = []
    for node in module.body:
        members = (
            [(member, f"{node.name}::") for member in node.body] if isinstance(node, ast.ClassDef) else [(node, "")]
        )
        found += [
            (member, prefix + member.name)
            for member, prefix in members
            if isinstance(member, ast.FunctionDef) and member.name.startswith("test")
        ]
    return found


def _marks(function: ast.FunctionDef) -> list[ast.expr]:
    """The uses of the marker in a function's decorators, also within their arguments, as in ``pytest.param``."""
    inside = [node for decorator in function.decorator_list for node in ast.walk(decorator)]
    called = {id(node.func): node for node in inside if isinstance(node, ast.Call)}
    named = [
        node for node in inside if isinstance(node, ast.Attribute) and ast.unparse(node) == f"pytest.mark.{MARKER}"
    ]
    return [called.get(id(node), node) for node in named]


def _texts(mark: ast.expr, path: Path) -> tuple[str, str, str]:
    """The area, what goes in, and what happens, of one marker."""
    given = [*mark.args, *mark.keywords] if isinstance(mark, ast.Call) else []
    values = [argument.value for argument in given if isinstance(argument, ast.Constant)]
    texts = [" ".join(value.split()) for value in values if isinstance(value, str) and value.strip()]
    if len(texts) != 3 or len(given) != 3:
        raise ValueError(
            f"{path.name}, line {mark.lineno}: the marker {MARKER} takes three texts, as literal strings: "
            f"the area, what goes in, and what happens; it stands as {ast.unparse(mark)}"
        )
    return texts[0], texts[1], texts[2]


def faults_page(folder: Path) -> str:
    """The page "What goes wrong, and what happens then" in MyST Markdown, of the tests in a folder."""
    lines, area = [INTRODUCTION], None
    for fault in collect(folder):
        if fault.area != area:
            area = fault.area
            lines += ["", f"## {literal(area)}", "", "| What goes in | What happens, and the test |", "|:--|:--|"]
        tests = "<br>".join(code(test, in_table=True) for test in fault.tests)
        lines.append(f"| {literal(fault.given)} | {literal(fault.happens)}<br>{tests} |")
    return "\n".join(lines) + "\n"
