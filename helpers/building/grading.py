"""Grade a folder of submissions: points a task for every student, as tables.

    python -m helpers.building.grading FOLDER [--out FOLDER]      # what `make grade SUBMISSIONS=folder` runs

A submission is a notebook anywhere below the folder, one a student and assignment, in any of the layouts in which they
come: ``STUDENT/01_similarity.ipynb``, ``STUDENT/01_similarity/01_similarity.ipynb`` (nbgrader), or one flat folder of
``STUDENT_01_similarity.ipynb``. What is made, by default in ``build/own/grading``, which ``make clean`` leaves alone:

    points.csv     one row a student, assignment and task: points, of how many, how many wait for a person, first error
    totals.csv     one row a student and assignment
    autograded/    the submissions as they ran, with all tests and their messages
    gradebook.db   nbgrader's own; points given by hand in its formgrader are kept, and are in the tables next time

nbgrader runs each submission, with its own test cells in the place of the student's, and gives the points. A cell that
takes too long, or ends the kernel, loses its own points alone: it is left out, and the rest is run again.

The code of students runs with all rights of whoever grades. Grade in a container or under an account of its own.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbconvert.preprocessors import ClearMetadataPreprocessor
from nbformat import NotebookNode
from nbgrader.api import Gradebook
from nbgrader.converters import Autograde
from nbgrader.preprocessors import AssignLatePenalties, Execute, LimitOutput, SaveAutoGrades

from helpers import files
from helpers.building.assignments import CourseError, Task, generate, nbgrader, read, settings, sources, task_of, tasks
from helpers.building.execution import remove
from helpers.files import ROOT

OUT = ROOT / "build" / "own" / "grading"
TIMEOUT = 60  # seconds that a cell of a task may take
SETUP = 10  # times as long may others take
COLUMNS = ["student", "assignment", "task", "title", "points", "of", "waiting", "remark"]


class ExecuteAround(Execute):
    """nbgrader's execution, which goes around the cells that hang or end the kernel, as often as there are any."""

    interrupt_on_timeout = False  # a loop may catch the interruption
    error_on_timeout = None

    def _get_timeout(self, cell: NotebookNode | None) -> int:
        """Seconds that a cell may take: those before the tasks load the library and its networks, and take longer."""
        return self.timeout if cell is None or task_of(cell) else SETUP * self.timeout

    def preprocess(self, nb: NotebookNode, resources: Any, km: Any = None) -> tuple[NotebookNode, Any]:
        """Run a notebook; a cell that did not come to an end has an error for its output."""
        self.left_out: dict[int, NotebookNode] = {}
        while True:
            try:
                return super().preprocess(nb, resources, km)
            except (CellTimeoutError, DeadKernelError):
                continue  # with one cell fewer, in a new kernel

    def preprocess_cell(self, cell: NotebookNode, resources: Any, index: int) -> tuple[NotebookNode, Any]:
        """Run a cell, or say why it is left out; what it prints as a warning costs no points."""
        if index in self.left_out:
            cell.outputs = [self.left_out[index]]
            return cell, resources
        try:
            cell, resources = super().preprocess_cell(cell, resources, index)
        except (CellTimeoutError, DeadKernelError) as error:
            late = isinstance(error, CellTimeoutError)
            why = f"not done within {self.timeout} seconds" if late else "the kernel ended in this cell"
            name = "Timeout" if late else "KernelEnded"
            self.left_out[index] = nbformat.v4.new_output("error", ename=name, evalue=why, traceback=[f"{name}: {why}"])
            raise
        if settings(cell).get("grade") and cell.cell_type == "code":
            # nbgrader takes a warning for a failed test, and a value that a cell ends in for the points
            cell.outputs = [output for output in cell.outputs if output.output_type == "error"]
        return cell, resources


def submissions(folder: Path, names: list[str]) -> tuple[dict[tuple[str, str], Path], list[str]]:
    """The notebooks below a folder by student and assignment; and of those that are none, which and why.

    Raises:
        CourseError: no such folder, no submission in it, or two of one student for one assignment.
    """
    if not folder.is_dir():
        raise CourseError(f"there is no folder {folder}")
    found: dict[tuple[str, str], Path] = {}
    others = []
    for path in sorted(folder.rglob("*.ipynb")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") for part in parts):
            continue  # checkpoints
        name = next((name for name in names if name in path.stem), None)
        if name is None:
            others.append(f"{path}: its name holds none of {', '.join(names)}")
            continue
        student = parts[0] if len(parts) > 1 else path.stem.replace(name, "").strip(" _-.")
        key = re.sub(r"[^\w.@-]+", "_", student), name
        if not key[0]:
            others.append(f"{path}: neither a folder nor the file's name says whose it is")
        elif key in found:
            raise CourseError(f"{key[0]} handed in {name} twice, {found[key]} and {path}: remove one")
        else:
            found[key] = path
    if not found:
        raise CourseError(f"no submission below {folder}: name the notebooks {', '.join(names)}")
    return found, others


def grade(folder: Path, out: Path = OUT, timeout: int = TIMEOUT) -> tuple[pd.DataFrame, list[str]]:
    """Grade all submissions below a folder; the table of points, and what could not be graded, and why.

    A submission that is as it was the last time, of an assignment that is, too, keeps its points.

    Args:
        folder: of the submissions.
        out: what is written goes there.
        timeout: seconds that one cell may take.

    Returns:
        one row a student, assignment and task with ``COLUMNS``; ``waiting`` are points that a person gives. The
        second is a sentence for each notebook that has no row.

    Raises:
        CourseError: nothing to grade, or nbgrader could not make an assignment.
    """
    assignments = sources()
    found, unread = submissions(folder, list(assignments))
    out.mkdir(parents=True, exist_ok=True)
    stale = {name for _, name in found if _changed(assignments[name], out / "source" / name / f"{name}.ipynb")}
    generate(out, sorted(stale), assignments)
    configure(out)
    steps = [ExecuteAround, ClearMetadataPreprocessor, LimitOutput, SaveAutoGrades, AssignLatePenalties]
    running = {"timeout": timeout, "iopub_timeout": timeout, "shutdown_kernel": "immediate"}
    for (student, name), path in found.items():
        kept = out / "submitted" / student / name / f"{name}.ipynb"
        if not _changed(path, kept) and name not in stale and (out / "autograded" / student / name).is_dir():
            continue
        try:
            nbformat.validate(read(path))
        except Exception as error:  # whatever a file that is no notebook makes the reader raise
            unread.append(f"{path}: no notebook ({type(error).__name__})")
            continue
        remove(kept.parent)
        kept.parent.mkdir(parents=True)
        shutil.copyfile(path, kept)
        print(f"grading {name} of {student}", file=sys.stderr)
        settings = {"Autograde": {"autograde_preprocessors": steps}, "ExecuteAround": running}
        if wrong := nbgrader(Autograde, out, name, student, **settings):
            unread.append(f"{path}: {wrong.splitlines()[-1]}")
            remove(out / "autograded" / student / name)
    rows = [row for student, name in found for row in _rows(out, student, name, tasks(read(assignments[name])))]
    return pd.DataFrame(rows, columns=COLUMNS), unread


def configure(out: Path) -> None:
    """Write the settings by which nbgrader's formgrader finds the folder."""
    text = f'c = get_config()\nc.CourseDirectory.root = r"{out}"\n'
    files.write(out / "nbgrader_config.py", text)


def _changed(new: Path, old: Path) -> bool:
    return not old.is_file() or files.sha256(new) != files.sha256(old)


def _rows(out: Path, student: str, name: str, wanted: list[Task]) -> Iterator[tuple]:
    """The rows of one submission; none where it was not graded."""
    graded = out / "autograded" / student / name / f"{name}.ipynb"
    if not graded.is_file():
        return
    remarks = _remarks(read(graded))
    with Gradebook(f"sqlite:///{out.as_posix()}/gradebook.db") as book:
        (notebook,) = book.find_submission(name, student).notebooks
        found = [(int(re.findall(r"\d+", one.name)[0]), one) for one in notebook.grades]
        for task in wanted:
            own = [one for number, one in found if number == task.number]
            waiting = sum((float(one.max_score) for one in own if one.needs_manual_grade), 0.0)
            got = sum(float(one.score) for one in own)
            lost = "a cell of this task is missing, or another one" if waiting > task.written else ""
            yield student, name, task.number, task.title, got, task.points, waiting, remarks.get(task.number, lost)


def _remarks(notebook: NotebookNode) -> dict[int, str]:
    """The first error of each task, as its cells show it."""
    found: dict[int, str] = {}
    for cell in notebook.cells:
        number = task_of(cell)
        for output in cell.get("outputs", []):
            if number is not None and output.output_type == "error":
                found.setdefault(number, " ".join(f"{output.ename}: {output.evalue}".split()))
    return found


def main() -> int:
    """The command: grades, writes the tables and prints where they lie."""
    parser = argparse.ArgumentParser(prog="python -m helpers.building.grading", description="Grade submissions.")
    parser.add_argument("folder", type=Path, help="of the submissions")
    parser.add_argument("--out", type=Path, default=OUT, help="what is made goes there (default: build/own/grading)")
    parser.add_argument("--timeout", type=int, default=TIMEOUT, help="seconds that a cell may take (default: 60)")
    arguments = parser.parse_args()
    try:
        table, unread = grade(arguments.folder.resolve(), arguments.out.resolve(), arguments.timeout)
    except CourseError as error:
        print(f"\nNothing was graded. {error}", file=sys.stderr)
        return 1
    files.write(arguments.out / "points.csv", table.to_csv(index=False))
    totals = table.groupby(["student", "assignment"], as_index=False)[["points", "of", "waiting"]].sum()
    files.write(arguments.out / "totals.csv", totals.to_csv(index=False))
    print(arguments.out / "points.csv")
    for sentence in unread:
        print(f"not graded: {sentence}", file=sys.stderr)
    return 1 if unread else 0


if __name__ == "__main__":
    sys.exit(main())
