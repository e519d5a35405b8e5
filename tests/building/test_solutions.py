"""Solutions of exercises: left out of the site by one setting, and in the chapters always code that runs."""

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from helpers.building import book, execution, solutions

EXERCISE = "```{exercise-start}\n:label: ex-sum\n```\n\nAdd one and two.\n\n```{exercise-end}\n```\n"
START = "````{solution-start} ex-sum\n:class: dropdown\n````\n\nOne adds them.\n"
END = "It is SECRET.\n\n```{solution-end}\n```\n"


def chapter(*sources):
    """A chapter of text cells and, where a source is a tuple, code cells with what they printed."""
    cells = []
    for source in sources:
        if isinstance(source, tuple):
            cells.append(new_code_cell(source[0], outputs=[new_output("stream", text=source[1])]))
        else:
            cells.append(new_markdown_cell(source))
    return new_notebook(cells=cells)


def sources(notebook):
    return [cell.source for cell in notebook.cells]


def test_a_solution_goes_with_its_code_and_the_rest_stays():
    whole = chapter(f"# One\n\n{EXERCISE}\n{START}", ("SECRET + 1", "3"), f"{END}\n## Two", ("1 + 1", "2"))
    before = nbformat.writes(whole)
    assert sources(solutions.without_solutions(whole)) == [f"# One\n\n{EXERCISE}\n", "\n## Two", "1 + 1"]
    assert nbformat.writes(whole) == before


def test_two_solutions_in_one_cell_and_cells_that_hold_nothing_else():
    whole = chapter("a\n\n" + START, ("x", "3"), END, f"b\n\n{START}\n{END}\nc\n\n{START}", ("y", "3"), END, "d")
    kept = "\n".join(sources(solutions.without_solutions(whole)))
    assert kept.split() == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "cells, said",
    [
        ([START], "does not end"),
        ([END], "without its counterpart"),
        ([START, START, END], "without its counterpart"),
        (["```{solution} ex-sum\nThree.\n```"], "write this solution with solution-start"),
    ],
)
def test_solutions_that_can_not_be_found_are_refused(cells, said):
    with pytest.raises(ValueError, match=said):
        solutions.without_solutions(chapter(*cells))


@pytest.mark.parametrize("hide", [False, True])
def test_one_setting_leaves_solutions_out_of_the_staged_book(root, tmp_path, hide):
    for name in ("notebooks", "build/executed"):
        (tmp_path / name).mkdir(parents=True)
        whole = chapter(f"# Sums\n\n{EXERCISE}\n{START}", ("1 + 2  # SECRET", "THREE"), f"{END}\n## After\n\nMore.")
        nbformat.write(whole, tmp_path / name / "01_sum.ipynb")
    config = yaml.safe_load((root / "_config.yml").read_text())
    config["sphinx"]["config"]["hide_solutions"] = hide
    (tmp_path / "_config.yml").write_text(yaml.safe_dump(config))
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "index.md").write_text("# A small book\n")
    toc = {"format": "jb-book", "root": "book/index", "chapters": [{"file": "notebooks/01_sum"}]}
    (tmp_path / "book" / "_toc.yml").write_text(yaml.safe_dump(toc))
    book.stage(tmp_path)
    staged = (tmp_path / "build" / "src" / "notebooks" / "01_sum.ipynb").read_text()
    assert "Add one and two." in staged and "More." in staged
    assert all((word in staged) != hide for word in ("One adds them", "SECRET", "THREE"))


def test_the_setting_is_read_where_sphinx_exercise_has_it(root):
    config = yaml.safe_load((root / "_config.yml").read_text())
    assert not solutions.hidden(config) and not solutions.hidden({})
    config["sphinx"]["config"]["hide_solutions"] = True
    assert solutions.hidden(config)


@pytest.mark.parametrize("path", execution.chapters(execution.files.ROOT), ids=lambda path: path.stem)
def test_every_solution_of_a_chapter_holds_code_that_runs_with_it(path):
    """It is a cell, so that ``tests/test_chapters.py`` executes it, and not a listing in the text."""
    open_ = None
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            open_ = open_ and open_ | {"code": True}
            continue
        assert not solutions.DIRECTIVE.search(cell.source), cell.id
        for bound in solutions.BOUND.finditer(cell.source):
            if bound["end"] == "start":
                open_ = {"cell": cell.id, "code": False}
            else:
                assert open_["code"], f"the solution that begins in {open_['cell']} holds no code cell"
                open_ = None
    assert open_ is None
