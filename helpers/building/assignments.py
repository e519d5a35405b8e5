"""The assignments of the course: each written once, with solutions and tests, and released without them.

    python -m helpers.building.assignments      # what `make assignments` runs

``notebooks/assignments/`` holds one notebook an assignment, in the format of nbgrader, which runs from top to bottom
and passes its own tests. nbgrader makes of it what students get, and keeps in a data base what grading needs.
Everything is made under ``build/assignments/``:

    release/       what is handed out: no solution, no hidden test; NAME/NAME.ipynb
    solutions/     the same with solutions and all tests, to read and to run
    source/        what nbgrader read
    gradebook.db   the tests and their points, by which ``grading`` grades
"""

import argparse
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import nbformat
from nbformat import NotebookNode
from nbgrader.converters import BaseConverter, GenerateAssignment
from nbgrader.coursedir import CourseDirectory
from nbgrader.utils import capture_log
from traitlets.config import Config

from helpers.building.execution import kernel_environment, remove
from helpers.files import ROOT

SOURCES = ROOT / "notebooks" / "assignments"
HEADING = re.compile(r"## Task (?P<number>\d+)\. (?P<title>.+) \((?P<points>\d+) points?, (?P<minutes>\d+) minutes\)$")
MARKERS = re.compile(r"^\s*### (BEGIN|END) (SOLUTION|HIDDEN TESTS)\n?", re.MULTILINE)
# What students find where a solution was. The stub must end in an error, so that an untouched task gets no points.
STUB = "# your code here\nraise NotImplementedError"
ANSWER = "*Your answer here.*"


class CourseError(Exception):
    """The assignments can't be made, or graded; the message says which and why."""


@dataclass(frozen=True)
class Task:
    """One task: its number, from 1; points, of which ``written`` are given by hand; minutes it is to take."""

    number: int
    title: str
    points: int
    minutes: int
    written: int


def sources(folder: Path = SOURCES) -> dict[str, Path]:
    """The notebooks of all assignments by their names, in order."""
    return {path.stem: path for path in sorted(folder.glob("*.ipynb"))}


def read(path: Path) -> NotebookNode:
    """A notebook, in the newest format."""
    return nbformat.read(path, as_version=4)


def settings(cell: NotebookNode) -> dict[str, Any]:
    """What nbgrader knows of a cell; nothing of one that it does not know."""
    return cell.metadata.get("nbgrader", {})


def task_of(cell: NotebookNode) -> int | None:
    """The number of the task that a cell of nbgrader's belongs to, from its name, ``task-3`` or ``task-3-tests``."""
    found = re.match(r"task-(\d+)", settings(cell).get("grade_id", ""))
    return int(found[1]) if found else None


def tasks(notebook: NotebookNode) -> list[Task]:
    """The tasks of an assignment in order, as their headings and cells say.

    Raises:
        CourseError: the points of a heading are not those of its cells.
    """
    found = []
    for heading in filter(None, (HEADING.match(cell.source.split("\n", 1)[0]) for cell in notebook.cells)):
        number = int(heading["number"])
        graded = [cell for cell in notebook.cells if task_of(cell) == number and settings(cell).get("grade")]
        points = {by_hand: 0 for by_hand in (False, True)}
        for cell in graded:
            points[settings(cell)["solution"]] += settings(cell)["points"]
        if sum(points.values()) != int(heading["points"]):
            raise CourseError(
                f"task {number} has {heading['points']} points in its heading and {sum(points.values())} in its cells"
            )
        found.append(Task(number, heading["title"], int(heading["points"]), int(heading["minutes"]), points[True]))
    return found


def solved(notebook: NotebookNode) -> NotebookNode:
    """An assignment as its solution: with all code and tests, without the marks by which nbgrader finds them."""
    copy = nbformat.from_dict(notebook)
    for cell in copy.cells:
        cell.source = MARKERS.sub("", cell.source)
        cell.metadata = {key: value for key, value in cell.metadata.items() if key != "nbgrader"}
    return copy


def nbgrader(step: type[BaseConverter], folder: Path, name: str, student: str = "", **settings: Any) -> str | None:
    """Let nbgrader take a step, such as ``GenerateAssignment``, in its folder; None, or what went wrong.

    Args:
        step: one of its converters.
        folder: where ``source/``, ``release/``, ``submitted/`` and the data base lie.
        name: of the assignment.
        student: whose submission.
        settings: of parts of nbgrader, as in its configuration.
    """
    config = Config(settings)
    config.CourseDirectory.root = str(folder)
    config.CourseDirectory.db_url = f"sqlite:///{folder.as_posix()}/gradebook.db"
    config.ClearSolutions.code_stub = {"python": STUB}
    config.ClearSolutions.text_stub = ANSWER
    directory = CourseDirectory(config=config)
    directory.assignment_id, directory.student_id = name, student
    app = step(coursedir=directory, config=config)
    app.force = True
    app.log.setLevel(logging.ERROR)
    environment = kernel_environment(folder, 1)
    path = [str(Path(sys.executable).parent), environment.get("PATH", os.defpath)]  # the first for alembic
    with mock.patch.dict(os.environ, environment | {"PATH": os.pathsep.join(path)}, clear=True):
        ran = capture_log(app)
    return None if ran["success"] else str(ran.get("log") or ran["error"]).strip()


def generate(folder: Path, names: Iterable[str], found: dict[str, Path]) -> None:
    """Let nbgrader make the releases of some assignments in its folder.

    Raises:
        CourseError: nbgrader could not make one.
    """
    for name in names:
        place = folder / "source" / name / f"{name}.ipynb"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found[name], place)
        if wrong := nbgrader(GenerateAssignment, folder, name):
            raise CourseError(f"nbgrader could not make the release of {name}:\n{wrong}")


def make(folder: Path = ROOT / "build" / "assignments", found: dict[str, Path] | None = None) -> Path:
    """Make releases and solutions of all assignments anew; the folder of the releases.

    Raises:
        CourseError: nbgrader could not make one, or points do not add up.
    """
    found = sources() if found is None else found
    remove(folder)
    (folder / "solutions").mkdir(parents=True)
    for name, path in found.items():
        notebook = read(path)
        tasks(notebook)
        nbformat.write(solved(notebook), folder / "solutions" / f"{name}.ipynb")
    generate(folder, found, found)
    return folder / "release"


def main() -> int:
    """The command: makes the assignments and prints the one folder to hand out."""
    argparse.ArgumentParser("python -m helpers.building.assignments", description="Make the releases.").parse_args()
    try:
        print(make())
    except CourseError as error:
        print(f"\nThe assignments were not made. {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
