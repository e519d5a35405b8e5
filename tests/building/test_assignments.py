"""The assignments: solutions get all points, untouched releases none, wrong answers lose their own task's alone.

nbgrader and its kernel are tested whole on the first assignment; of the others the cells are run here, in this process.
"""

import ast
import builtins
import os
import re
from functools import cache
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from assignment_answers import WRONG

from helpers.building import assignments, grading
from helpers.building.assignments import settings, task_of
from helpers.building.checks import by_hand, same

HELPERS = Path(assignments.__file__).parents[1]  # which may refuse an answer itself
SOURCES = assignments.sources()
FIRST = "01_similarity"
each = pytest.mark.parametrize("name", SOURCES)
NUMBERS = {name: [task.number for task in assignments.tasks(assignments.read(path))] for name, path in SOURCES.items()}
each_task = pytest.mark.parametrize("name, number", [(name, n) for name, numbers in NUMBERS.items() for n in numbers])


@cache
def notebook(name):
    return assignments.read(SOURCES[name])


def code_of(name, number):
    """Of a task the cells of code that students fill, and the cells of tests."""
    own = [cell for cell in notebook(name).cells if task_of(cell) == number and cell.cell_type == "code"]
    return [cell for cell in own if settings(cell)["solution"]], [cell for cell in own if settings(cell)["grade"]]


def setups(name):
    return [cell for cell in notebook(name).cells if cell.cell_type == "code" and task_of(cell) is None]


def run(cell, namespace):
    exec(compile(cell.source, cell.id, "exec"), namespace)


def prepared(name):
    """What the cells that are no task's define, with the precision they set, which every test begins without."""
    namespace, precision = prepared_once(name)
    torch.set_default_dtype(precision)
    return namespace


@cache
def prepared_once(name):
    """They do not depend on any task, or this would fail."""
    namespace = {"__name__": "__main__"}
    for cell in setups(name):
        run(cell, namespace)
    return namespace, torch.get_default_dtype()


@pytest.fixture(autouse=True)
def default_dtype():
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


def defined(cells):
    """The names that cells define at their top level."""
    found = set()
    for node in ast.walk(ast.parse("\n".join(cell.source for cell in cells))):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
            found |= {argument.arg for argument in ast.walk(node) if isinstance(argument, ast.arg)}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.arg):
            found.add(node.arg)
    return found


def used(cells):
    nodes = ast.walk(ast.parse("\n".join(cell.source for cell in cells)))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


@each
def test_an_assignment_has_its_form(name):
    """Six to eight tasks whose points add up, from code to words, an answer and a test for each."""
    tasks = assignments.tasks(notebook(name))
    assert [task.number for task in tasks] == list(range(1, len(tasks) + 1)) and 6 <= len(tasks) <= 8
    assert any(task.written for task in tasks) and sum(task.minutes for task in tasks) <= 360
    names = [settings(cell)["grade_id"] for cell in notebook(name).cells if settings(cell)]
    assert len(set(names)) == len(names) and not notebook(name).metadata.get("papermill")
    for cell in notebook(name).cells:
        assert cell.get("outputs", []) == [] and cell.get("execution_count") is None
        kind = settings(cell)
        if kind.get("grade") and kind["solution"]:
            assert cell.cell_type == "markdown" and "### BEGIN SOLUTION" in cell.source
            text = next(other for other in notebook(name).cells if other.id == f"task-{task_of(cell)}-text")
            assert "*Points*:" in text.source, "a written answer has its rubric in the task"
        elif kind.get("grade"):
            assert cell.source.count("### BEGIN HIDDEN TESTS") == cell.source.count("### END HIDDEN TESTS") == 1


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Releases and solutions of all assignments, as ``make assignments`` makes them."""
    folder = tmp_path_factory.mktemp("course") / "assignments"
    assert assignments.make(folder) == folder / "release"
    return folder


@each
def test_the_release_holds_no_solution_and_no_hidden_test(name, made):
    released = made / "release"
    text = (released / name / f"{name}.ipynb").read_text(encoding="utf-8")
    assert "BEGIN SOLUTION" not in text and "HIDDEN TESTS" not in text
    release = assignments.read(released / name / f"{name}.ipynb")
    for number in {task.number for task in assignments.tasks(notebook(name))}:
        solutions = [cell for cell in release.cells if task_of(cell) == number and settings(cell)["solution"]]
        assert all(
            "raise NotImplementedError" in cell.source or cell.source == assignments.ANSWER for cell in solutions
        )
    for cell in notebook(name).cells:
        for hidden in re.findall(r"### BEGIN (?:SOLUTION|HIDDEN TESTS)\n(.*?)### END", cell.source, re.DOTALL):
            there = "\n".join(other.source for other in release.cells)
            assert hidden not in there and max(hidden.splitlines(), key=len) not in there
    solution = (made / "solutions" / f"{name}.ipynb").read_text(encoding="utf-8")
    assert "### " not in re.sub(r'"### ', "", solution) and assignments.STUB.splitlines()[0] not in solution


def test_nbgrader_leaves_the_environment_as_it_was(tmp_path):
    """Its own ``setenv`` takes PATH away, after which neither a kernel nor a test finds any other program."""
    before = dict(os.environ)
    assignments.make(tmp_path / "course", {FIRST: SOURCES[FIRST]})
    assert dict(os.environ) == before and "PATH" in before


@each_task
def test_a_task_stands_alone(name, number):
    """A task needs what is there for all, and its own names: so no task loses another's points."""
    solutions, tests = code_of(name, number)
    if not solutions + tests:
        return  # in words
    known = defined(setups(name)) | defined(solutions) | defined(tests) | set(dir(builtins))
    assert used(solutions + tests) <= known
    redefined = defined(solutions) & defined(setups(name))
    assert not {n for n in redefined if n in _top_level(solutions)}, "a task defines a name anew that all tasks use"


def _top_level(cells):
    nodes = ast.parse("\n".join(cell.source for cell in cells)).body
    return {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))} | {
        target.id
        for node in nodes
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


@each_task
def test_the_solution_passes_the_untouched_and_the_wrong_do_not(name, number):
    solutions, tests = code_of(name, number)
    if not tests:
        return
    wrong = WRONG[name][number]
    assert len(wrong) >= 2, "two plausible wrong answers a task"
    names = _top_level(solutions)
    namespace = dict(prepared(name))
    for cell in solutions + tests:
        run(cell, namespace)
    for mistake, code in wrong.items():
        namespace = dict(prepared(name))
        exec(compile(code, mistake, "exec"), namespace)
        assert names <= set(namespace), f"{mistake}: define {names}"
        with pytest.raises((AssertionError, ValueError)) as failed:
            for cell in tests:
                run(cell, namespace)
        own = failed.traceback[-1].path  # an answer that merely breaks is no plausible one
        assert failed.type is AssertionError or HELPERS in own.parents, f"{mistake}: {failed.value!r}"
        assert len(str(failed.value)) > 15, f"{mistake}: the message says nothing"
    namespace = dict(prepared(name))
    exec(compile("\n".join(_stubs(solutions)), "stub", "exec"), namespace)
    with pytest.raises(NotImplementedError):
        for cell in tests:
            run(cell, namespace)


def _stubs(cells):
    """The cells as students find them; at the top level of a cell the stub's error stays away."""
    for cell in cells:
        text = re.sub(
            r"( *)### BEGIN SOLUTION.*?### END SOLUTION", r"\1raise NotImplementedError", cell.source, flags=re.DOTALL
        )
        yield re.sub(r"^raise NotImplementedError$", "", text, flags=re.MULTILINE)


# The whole machine, on the first assignment


ENDLESS = """
def biased_cka(x, y):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
"""


def filled(answers):
    """The release of the first assignment with some of its tasks answered: number → code."""
    copy = nbformat.from_dict(released())
    for cell in copy.cells:
        if task_of(cell) in answers and settings(cell)["solution"]:
            cell.source = answers[task_of(cell)]
    return copy


@cache
def released():
    release = nbformat.from_dict(notebook(FIRST))
    from nbgrader.preprocessors import ClearHiddenTests, ClearSolutions

    for step in (
        ClearSolutions(code_stub={"python": assignments.STUB}, text_stub=assignments.ANSWER),
        ClearHiddenTests(),
    ):
        release, _ = step.preprocess(release, {})
    return release


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """Five submissions, in the layouts in which they come, and the table of their points."""
    folder, out = tmp_path_factory.mktemp("submitted"), tmp_path_factory.mktemp("graded")
    solution = {task.number: "" for task in assignments.tasks(notebook(FIRST))}
    for cell in notebook(FIRST).cells:
        if settings(cell).get("solution"):
            solution[task_of(cell)] = assignments.MARKERS.sub("", cell.source)
    broken = solution | {
        2: ENDLESS,
        3: "def unbiased_hsic(K, L):\n    import os\n    os._exit(1)",
        4: "def minibatch_cka(pairs):\n    raise KeyError('batch')",
        5: "def jackknife_error(hsics)\n    no syntax",
        8: assignments.ANSWER,
    }
    places = {
        f"solved/{FIRST}/{FIRST}.ipynb": solution,
        f"untouched/{FIRST}.ipynb": {},
        f"broken_{FIRST}.ipynb": broken,
    }
    for place, answers in places.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(filled(answers), folder / place)
    copied = filled(solution)
    for cell in copied.cells:
        if task_of(cell) == 2:
            del cell.metadata["nbgrader"]
    (folder / "copied").mkdir()
    nbformat.write(copied, folder / "copied" / f"{FIRST}.ipynb")
    (folder / "torn").mkdir()
    (folder / "torn" / f"{FIRST}.ipynb").write_text("{")
    (folder / "notes.ipynb").write_text("{}")
    table, unread = grading.grade(folder, out, timeout=15)
    return folder, out, table, unread


def points(graded, student):
    table = graded[2]
    return table[table["student"] == student].set_index("task")


def test_the_solution_gets_all_points_but_those_that_a_person_gives(graded):
    rows = points(graded, "solved")
    assert (rows["points"] + rows["waiting"] == rows["of"]).all() and rows["remark"].eq("").all()
    written = {task.number: task.written for task in assignments.tasks(notebook(FIRST))}
    assert rows["waiting"].to_dict() == written


def test_the_untouched_release_gets_none_and_nothing_waits(graded):
    rows = points(graded, "untouched")
    assert len(rows) == 8 and rows[["points", "waiting"]].to_numpy().sum() == 0
    assert rows["remark"].iloc[:-1].str.startswith("NotImplementedError").all()


@pytest.mark.fault(
    "Assignments",
    "a submission with an endless loop",
    "it loses its own task's points; the rest is run again without it",
)
@pytest.mark.fault(
    "Assignments",
    "a submission that ends the kernel",
    "it loses its own task's points; the rest is run again without it",
)
@pytest.mark.fault("Assignments", "a submission that raises an error", "it loses its own task's points")
def test_loops_and_errors_lose_their_own_points_alone(graded):
    rows = points(graded, "broken")
    assert (rows["points"] == rows["of"]).to_dict() == {1: 1, 2: 0, 3: 0, 4: 0, 5: 0, 6: 1, 7: 1, 8: 0}
    said = rows["remark"]
    assert said[2].startswith("Timeout") and said[3].startswith("KernelEnded") and said[4] == "KeyError: 'batch'"
    assert said[5].startswith("SyntaxError")


@pytest.mark.fault(
    "Assignments",
    "a submission whose cells lost the marks by which they are graded",
    "its task says so and waits for a person; the others are graded",
)
def test_cells_that_are_not_those_of_the_release_are_named(graded):
    rows = points(graded, "copied")
    assert rows.loc[2, ["points", "waiting"]].tolist() == [0, rows.loc[2, "of"]] and "missing" in rows.loc[2, "remark"]
    others = rows.drop(2)
    assert (others["points"] + others["waiting"] == others["of"]).all() and others["remark"].eq("").all()


@pytest.mark.fault(
    "Assignments", "a submission that is no notebook, or of no assignment", "it is named, and the others are graded"
)
def test_what_is_no_submission_is_named(graded):
    _, _, table, unread = graded
    assert set(table["student"]) == {"solved", "untouched", "broken", "copied"}
    assert len(unread) == 2 and "notes.ipynb" in unread[0] and "no notebook" in unread[1]


def test_points_given_by_hand_are_kept(graded):
    """What the formgrader writes into the data base is in the next table, and nothing that is unchanged runs again."""
    from nbgrader.api import Gradebook

    folder, out, before, _ = graded
    with Gradebook(f"sqlite:///{out.as_posix()}/gradebook.db") as book:
        grade = book.find_grade("task-8-words", FIRST, FIRST, "solved")
        grade.manual_score, grade.needs_manual_grade = 3, False
        book.db.commit()
    ran = out / "autograded" / "solved" / FIRST / f"{FIRST}.ipynb"
    when = ran.stat().st_mtime_ns
    table, _ = grading.grade(folder, out, timeout=15)
    assert ran.stat().st_mtime_ns == when
    row = table[(table["student"] == "solved") & (table["task"] == 8)].iloc[0]
    assert (row["points"], row["waiting"]) == (3, 0)
    rest = table["task"] != 8
    pd.testing.assert_frame_equal(table[rest], before[rest])


@pytest.mark.fault(
    "Assignments", "a student who handed in an assignment twice", "both files are named, and nothing is graded"
)
def test_two_of_a_kind_are_refused(tmp_path):
    for name in (f"a/{FIRST}.ipynb", f"a/late/{FIRST}.ipynb"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(assignments.CourseError, match="twice"):
        grading.grade(tmp_path, tmp_path / "out")


@pytest.mark.fault("Assignments", "a folder without submissions", "it says how the notebooks must be named")
def test_nothing_to_grade(tmp_path):
    with pytest.raises(assignments.CourseError, match="name the notebooks"):
        grading.grade(tmp_path, tmp_path / "out")
    with pytest.raises(assignments.CourseError, match="no folder"):
        grading.grade(tmp_path / "none", tmp_path / "out")


def test_points_that_do_not_add_up_are_refused():
    copy = nbformat.from_dict(notebook(FIRST))
    next(cell for cell in copy.cells if settings(cell).get("grade"))["metadata"]["nbgrader"]["points"] += 1
    with pytest.raises(assignments.CourseError, match="task 1"):
        assignments.tasks(copy)


# What the tests say


def test_messages_name_what_is_wrong():
    import torch

    same(1.0, 1, "a number")
    for got, wanted, said in (
        (None, 1, "forget to return"),
        ("x", 1, "a number or a tensor is expected"),
        (torch.ones(2), torch.ones(3), "shape"),
        (torch.tensor([1.0, torch.nan]), torch.ones(2), "1 of 2 values are NaN"),
        (torch.tensor([1.0, 5.0]), torch.ones(2), r"5 at \(1,\), and 1 is right"),
        (2.0, 1.0, "twice"),
    ):
        with pytest.raises(AssertionError, match=said):
            same(got, wanted, "this", hints={"it is twice as much": 2.0})


def test_answers_from_the_library_are_refused():
    namespace: dict = {}
    exec(
        """
from helpers.measures import cka as room
from helpers.measures.cka import cka

def plain(x):
    return sum(x)

def borrowed(x):
    return cka(x, x)

def by_module(x):
    return room.cka(x, x)

def inside(x):
    from helpers.measures.cka import cka as other
    return (lambda: other(x, x))()
""",
        namespace,
    )
    by_hand(namespace["plain"])
    by_hand(namespace["borrowed"], allowed=["cka"])
    for name in ("borrowed", "by_module", "inside"):
        with pytest.raises(AssertionError, match="write it yourself"):
            by_hand(namespace[name])
