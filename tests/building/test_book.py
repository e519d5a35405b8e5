"""`make book`, on a small book of its own: what is executed when, what a failure leaves, what is published."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from filelock import FileLock
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import helpers
from helpers import results
from helpers.building import book, execution, launch, run_chapter
from helpers.building.execution import BookError

FIGURE = {
    "mystnb": {
        "figure": {"name": "fig-line", "caption": "A line."},
        "image": {"alt": "A straight line that rises from the lower left corner to the upper right one."},
    }
}


def write_chapter(root: Path, name: str, *sources: str, metadata: dict | None = None) -> None:
    """A chapter with a heading and these code cells; the last carries the metadata."""
    cells = [new_markdown_cell(f"# Chapter {name}\n\nWhat it is about."), *map(new_code_cell, sources)]
    cells[-1].metadata.update(metadata or {})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), root / "notebooks" / f"{name}.ipynb")


def write_toc(root: Path, *names: str) -> None:
    toc = {"format": "jb-book", "root": "book/index", "chapters": [{"file": name} for name in names]}
    (root / "book" / "_toc.yml").write_text(yaml.safe_dump(toc))


@pytest.fixture(scope="module", autouse=True)
def address() -> Iterator[None]:
    """A public address of the repository, the same for all builds of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GITHUB_REPOSITORY", "someone/book")
        yield


@pytest.fixture(scope="module")
def built(root, tmp_path_factory, address) -> Path:
    """A small book, made once: an index, a chapter that draws, a chapter that reads a module of helpers/."""
    small = tmp_path_factory.mktemp("small")
    for folder in ("book", "notebooks", "helpers", "data"):
        (small / folder).mkdir()
    shutil.copy(root / "_config.yml", small)
    shutil.copytree(root / "book" / "_static", small / "book" / "_static")
    (small / "book" / "references.bib").write_text("")
    (small / "book" / "index.md").write_text(
        "# A small book\n\nSee [](/notebooks/01_line.ipynb): $e^{i\\pi}$.\n\n{{ 6 * 7 }}\n"
    )
    (small / "helpers" / "answer.py").write_text("ANSWER = 41\n")
    write_toc(small, "notebooks/01_line", "notebooks/02_answer", "book/timings")
    draw = "import matplotlib.pyplot as plt\nplt.plot([0, 1])\nplt.show()"
    write_chapter(small, "01_line", draw, metadata=FIGURE)
    write_chapter(
        small,
        "02_answer",
        "import os, sys, runpy, pathlib\nprint('ANSWER', runpy.run_path('helpers/answer.py')['ANSWER'])",
        "results = pathlib.Path(os.environ['VIT_BOOK_RESULTS'])\n(results / 'kernel.txt').write_text(sys.executable)\n"
        "(results / 'claims' / '02_answer.json').write_text('{}')\n"
        "(results / 'threads.txt').write_text(os.environ['OMP_NUM_THREADS'])",
    )
    book.make(small)
    return small


@pytest.fixture
def small(built, tmp_path) -> Path:
    """A copy of the small book, made and up to date."""
    return Path(shutil.copytree(built, tmp_path / "small"))


@pytest.fixture
def executed(monkeypatch) -> list[str]:
    """Fills with the names of the chapters that are executed while the test runs."""
    names, run = [], execution.Executor.run

    def noting(self, notebook, bar):
        names.append(notebook.stem)
        return run(self, notebook, bar)

    monkeypatch.setattr(execution.Executor, "run", noting)
    return names


def site_as_it_is(root: Path) -> dict:
    return {path: path.stat().st_mtime_ns for path in (root / "build" / "site").rglob("*")}


def test_the_site_has_its_pages_and_the_chapters_outputs(built):
    site = built / "build" / "site"
    assert "url=book/index.html" in (site / "index.html").read_text()
    assert "ANSWER 41" in (site / "notebooks" / "02_answer.html").read_text()
    assert FIGURE["mystnb"]["image"]["alt"] in (site / "notebooks" / "01_line.html").read_text()
    assert "{{ 6 * 7 }}" in (site / "book" / "index.html").read_text()  # nothing in a page is run
    timings = (site / "book" / "timings.html").read_text()
    assert "01_line.html" in timings and "Chapter 02_answer" in timings


def test_the_kernel_is_this_python_and_writes_results_under_build(built):
    kernel = Path((built / "build" / "results" / "kernel.txt").read_text())
    assert kernel.parent == Path(sys.executable).parent
    assert int((built / "build" / "results" / "threads.txt").read_text()) >= 1


def test_the_sources_stay_without_outputs(built):
    for notebook in execution.chapters(built):
        assert not any(cell.get("outputs") for cell in nbformat.read(notebook, 4).cells)


def test_nothing_changed_nothing_done(small, executed, monkeypatch):
    before = site_as_it_is(small)
    monkeypatch.setattr(book, "build", lambda root: pytest.fail("the site was built again"))
    for path in small.rglob("*"):  # a fresh clone has other dates
        os.utime(path, None) if "build" not in path.parts else None
    assert book.make(small) == small / "build" / "site" / "index.html"
    assert executed == [] and site_as_it_is(small) == before


def test_a_changed_helper_executes_every_chapter_and_its_effect_is_seen(small, executed, monkeypatch):
    monkeypatch.delenv("GITHUB_REPOSITORY")  # as in a copy that has no public address
    (small / "helpers" / "answer.py").write_text("ANSWER = 42\n")
    book.make(small)
    assert sorted(executed) == ["01_line", "02_answer"]
    page = (small / "build" / "site" / "notebooks" / "02_answer.html").read_text()
    assert "ANSWER 42" in page and "github.com/someone" not in page


@pytest.mark.parametrize("name", ["data/zoo/model.safetensors", "book/claims.yml", "constraints.txt", "pyproject.toml"])
def test_what_else_executes_every_chapter(small, name):
    before = execution.shared_inputs(small)
    (small / name).parent.mkdir(parents=True, exist_ok=True)
    (small / name).write_bytes(b"changed")
    assert execution.shared_inputs(small) != before


def test_a_changed_notebook_executes_that_chapter_alone(small, executed):
    write_chapter(small, "02_answer", "print('ANSWER', 6 * 7)")
    before = book.stage(small)
    execution.execute(small)
    assert executed == ["02_answer"]
    assert "ANSWER 42" in (small / "build" / "executed" / "02_answer.ipynb").read_text()
    assert book.stage(small) != before  # so the site is built anew
    assert not (small / "build" / "results" / "claims" / "02_answer.json").exists()  # it records no verdict now


def test_a_changed_page_executes_nothing_and_builds_the_site(small, executed):
    with (small / "book" / "index.md").open("a") as page:
        page.write("\nA sentence more.\n")
    book.make(small)
    assert executed == []
    assert "A sentence more." in (small / "build" / "site" / "book" / "index.html").read_text()


@pytest.mark.fault(
    "Building the book", "a cell that fails", "chapter, cell and error are named; the published site stays"
)
def test_a_failing_cell_is_named_and_the_site_stays(small):
    before = site_as_it_is(small)
    write_chapter(small, "01_line", "fine = 1", "first = 1\nsecond = first / 0")
    ran = subprocess.run(
        [sys.executable, "-m", "helpers.building.book", "--root", str(small)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 1 and ran.stdout == ""
    for said in ("notebooks/01_line.ipynb", "cell 3 of 3", "second = first / 0", "ZeroDivisionError: division by zero"):
        assert said in ran.stderr
    assert site_as_it_is(small) == before
    assert not (small / "build" / "executed" / "01_line.ipynb").read_text().count("ZeroDivisionError")


@pytest.mark.fault("Building the book", "a second build after one that failed", "the chapter is executed again")
def test_after_a_failure_the_chapter_is_executed_again(small, executed):
    write_chapter(small, "01_line", "1 / 0")
    for _ in range(2):
        with pytest.raises(BookError, match="ZeroDivisionError"):
            book.make(small)
    assert executed == ["01_line", "01_line"]


@pytest.mark.fault("Building the book", "a cell that does not end", "it is stopped after half an hour and named")
def test_a_cell_that_takes_too_long(small, monkeypatch):
    monkeypatch.setattr(execution, "CELL_TIMEOUT", 2)
    write_chapter(small, "01_line", "1", "import time\ntime.sleep(60)")
    with pytest.raises(BookError, match=r"cell 3 of 3(?s:.*)more than 2 s"):
        book.make(small)


@pytest.mark.fault("Building the book", "a kernel that dies", "the cell is named")
def test_a_kernel_that_dies(small):
    write_chapter(small, "01_line", "import os", "os._exit(1)")
    with pytest.raises(BookError, match=r"cell 3 of 3(?s:.*)DeadKernelError"):
        book.make(small)


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


SLEEP = "import os, time, pathlib\npathlib.Path('{0}.pid').write_text(str(os.getpid()))\ntime.sleep(300)"


@pytest.mark.fault("Building the book", "Ctrl-C, or a request to end", "every chapter's process and kernel is ended")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopping_the_build_ends_the_kernels(small, how):
    names = ("01_line", "02_answer")
    for name in names:
        write_chapter(small, name, SLEEP.format(name))
    before = site_as_it_is(small)
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell starts in the background ignores it
    command = [sys.executable, "-m", "helpers.building.book", "--root", str(small), "--jobs", "2"]
    process = subprocess.Popen(command, preexec_fn=heard)
    wait_for(lambda: all((small / f"{name}.pid").exists() for name in names))
    time.sleep(0.2)  # both run at once: each chapter has a process of its own
    pids = [int((small / f"{name}.pid").read_text()) for name in names]
    assert all(map(alive, pids)) and len(set(pids)) == 2
    process.send_signal(how)
    assert process.wait(60) != 0
    wait_for(lambda: not any(map(alive, pids)))
    assert site_as_it_is(small) == before


@pytest.mark.fault("Building the book", "a chapter fails while others run", "the others and their kernels are ended")
def test_a_failing_chapter_stops_the_others(small):
    write_chapter(small, "01_line", SLEEP.format("01_line"))
    wait = "import pathlib, time\nwhile not pathlib.Path('01_line.pid').exists(): time.sleep(0.1)"
    write_chapter(small, "02_answer", wait, "raise ValueError('no')")
    with pytest.raises(BookError, match="ValueError: no"):
        book.make(small, jobs=2)
    wait_for(lambda: not alive(int((small / "01_line.pid").read_text())))


@pytest.mark.fault(
    "Building the book", "a link or reference that leads nowhere", "it is named; the published site stays"
)
def test_a_warning_of_the_site_builder_fails_and_the_site_stays(small):
    before = site_as_it_is(small)
    with (small / "book" / "index.md").open("a") as page:
        page.write("\nSee {ref}`nowhere`.\n")
    for _ in range(2):  # nor does the second try get past it
        with pytest.raises(BookError, match="undefined label") as failure:
            book.make(small)
        assert "\x1b" not in str(failure.value)
    assert site_as_it_is(small) == before


@pytest.mark.fault(
    "Building the book", "a chapter or page that the table of contents lacks, or has too much", "it is named"
)
def test_the_table_of_contents_and_the_files_agree(small):
    write_chapter(small, "03_new", "1")
    with pytest.raises(BookError, match="does not list these chapters: 03_new"):
        book.make(small)
    write_toc(small, "notebooks/01_line", "notebooks/02_answer", "notebooks/03_new", "book/gone")
    with pytest.raises(BookError, match="do not exist: book/gone"):
        book.make(small)


@pytest.mark.fault("Building the book", "the build is killed while it publishes", "the published site is there again")
def test_a_build_that_was_killed_while_it_published_loses_no_site(small):
    before = {path.name for path in (small / "build" / "site").iterdir()}
    (small / "build" / "site").rename(small / "build" / "site.former")
    write_chapter(small, "01_line", "1 / 0")
    with pytest.raises(BookError, match="ZeroDivisionError"):
        book.make(small)
    assert {path.name for path in (small / "build" / "site").iterdir()} == before


@pytest.mark.fault("Building the book", "two builds at a time", "the second says so and does nothing")
def test_one_build_at_a_time(small):
    with FileLock(small / "build" / ".lock"), pytest.raises(BookError, match="another process"):
        book.make(small)


@pytest.mark.parametrize(
    "remote, url",
    [
        ("https://github.com/someone/book.git", "https://github.com/someone/book"),
        ("git@github.com:someone/book.git", "https://github.com/someone/book"),
        ("https://example.org/someone/book.git", None),
        (None, None),
    ],
)
def test_source_links_only_where_the_repository_is_on_github(small, monkeypatch, remote, url):
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    subprocess.run(["git", "init", "-q"], cwd=small, check=True)
    if remote:
        subprocess.run(["git", "remote", "add", "origin", remote], cwd=small, check=True)
    assert launch.repository_url(small) == url
    config = book.configuration(small)
    assert config["repository"]["url"] == (url or "")
    assert ("launch_buttons" in config) == bool(url)


def test_source_links_lead_to_files_of_the_repository(built):
    page = (built / "build" / "site" / "notebooks" / "01_line.html").read_text()
    for address in ("github.com/someone/book/edit/main/notebooks/01_line.ipynb",
                    "mybinder.org/v2/gh/someone/book/main?urlpath=lab/tree/notebooks/01_line.ipynb",
                    "colab.research.google.com/github/someone/book/blob/launch/01_line.ipynb",
                    "codespaces.new/someone/book"):  # fmt: skip
        assert address in page
    assert (built / "build" / "site" / "launch" / "01_line.ipynb").is_file()


def test_the_longest_chapter_is_executed_first(small, executed):
    for name, seconds in {"01_line": 50, "02_answer": 5}.items():
        path = small / "notebooks" / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata["seconds"] = seconds
        nbformat.write(notebook, path)
    execution.write_state(small, {"chapters": {}, "site": None})
    execution.execute(small, jobs=1)
    assert executed == ["01_line", "02_answer"]  # by what the metadata say
    state = execution.read_state(small)
    for chapter, seconds in zip(state["chapters"].values(), (1.0, 2.0), strict=True):
        chapter |= {"key": "before", "seconds": seconds}
    execution.write_state(small, state)
    execution.execute(small, jobs=1)
    assert executed[2:] == ["02_answer", "01_line"]  # by what the last build noted


@pytest.mark.fault(
    "Building the book", "a claim that its chapter has not recorded", "it is named; no scoreboard is made"
)
def test_a_scoreboard_is_not_made_while_a_chapter_has_not_recorded_its_claims(tmp_path):
    assert "R1" in book.generated_pages(tmp_path, ["book/scoreboard"])["book/scoreboard"]
    with pytest.raises(BookError, match="no record of R1 on scenes.*delete build/executed"):
        book.generated_pages(tmp_path, ["book/scoreboard", "notebooks/02_representation"])


@pytest.mark.fault("Building the book", "a figure without alternative text", "it is named; the published site stays")
@pytest.mark.fault("Building the book", "a script in a page or in the output of a cell", "the published site stays")
def test_a_site_with_faults_is_not_published_and_each_is_named(small):
    before = site_as_it_is(small)
    write_chapter(small, "01_line", "import matplotlib.pyplot as plt\nplt.plot([0, 1])\nplt.show()")
    (small / "book" / "index.md").write_text("# A small book\n\n<script>alert(1)</script>\n")
    write_chapter(small, "02_answer", "from IPython.display import HTML\nHTML('<b onclick=\"alert(1)\">x</b>')")
    with pytest.raises(BookError, match=r"notebooks/01_line.html: image .* has no alternative text") as failure:
        book.make(small)
    assert "book/index.html: has a script that is not the theme's" in str(failure.value)
    assert "02_answer.html: <b> runs a script by its attribute onclick" in str(failure.value)
    assert site_as_it_is(small) == before


# What a build leaves to the next one


@pytest.mark.fault(
    "Building the book",
    "the build is killed (kill -9)",
    "its chapters' processes and kernels end by themselves, and nothing that they wrote is used",
)
def test_a_killed_build_leaves_no_process_and_nothing_of_it_is_published(small, executed):
    write_chapter(small, "02_answer", SLEEP.format("02_answer"), "print('ANSWER old')")
    process = subprocess.Popen([sys.executable, "-m", "helpers.building.book", "--root", str(small), "--jobs", "1"])
    wait_for((small / "02_answer.pid").exists)
    kernel = int((small / "02_answer.pid").read_text())
    chapter = int(Path(f"/proc/{kernel}/stat").read_text().rsplit(")", 1)[1].split()[1])
    process.kill()
    process.wait(60)
    wait_for(lambda: not alive(kernel) and not alive(chapter), seconds=10)
    assert not (small / "build" / "executed" / "02_answer.ipynb").read_text().count("ANSWER old")
    write_chapter(small, "02_answer", "print('ANSWER new')")
    execution.execute(small)
    assert executed == ["02_answer"] and not list((small / "build" / "runs").iterdir())
    assert "ANSWER new" in (small / "build" / "executed" / "02_answer.ipynb").read_text()


@pytest.mark.fault("Building the book", "a chapter's process is killed (kill -9)", "the build says so; its kernel ends")
def test_a_killed_chapter_is_a_failure_and_its_kernel_ends(small):
    kill = "import os, pathlib, signal\npathlib.Path('kernel.pid').write_text(str(os.getpid()))"
    write_chapter(small, "01_line", kill, "os.kill(os.getppid(), signal.SIGKILL)\nimport time\ntime.sleep(300)")
    with pytest.raises(BookError, match="01_line.ipynb: its process ended with status -9"):
        book.make(small)
    wait_for(lambda: not alive(int((small / "kernel.pid").read_text())))


def test_each_run_writes_into_a_folder_of_its_own(small):
    """So what a process writes after its build was killed is nowhere where the next build looks."""
    folders = []
    for number in range(2):
        write_chapter(small, "02_answer", f"import os\nplace = os.environ['VIT_BOOK_RESULTS']\nprint({number}, place)",
                      "open('place', 'w').write(place); open(f'{place}/x', 'w').write(place)")  # fmt: skip
        execution.execute(small)
        folders.append(Path((small / "place").read_text()))
    assert folders[0] != folders[1] and not any(folder.exists() for folder in folders)
    assert all(folder.is_relative_to(small / "build" / "runs") for folder in folders)
    assert (small / "build" / "results" / "x").read_text() == str(folders[1])
    assert "1 build/results" in (small / "build" / "executed" / "02_answer.ipynb").read_text()


DAMAGES = {
    "removed": None,
    "empty": b"",
    "cut off": b'{"chapters": {"01_line"',
    "no JSON": b"\xff\xfe\x00",
    "a list": b"[]",
    "null": b"null",
    "a number": b"3",
    "nested too deep": b"[" * 100_000,
    "without its parts": b"{}",
    "chapters as a list": b'{"chapters": [], "site": null}',
    "chapters as words": b'{"chapters": {"01_line": "fine", "02_answer": 3}, "site": "fine"}',
    "notes without their parts": b'{"chapters": {"01_line": {"key": 1}, "02_answer": {}}, "site": []}',
}


def up_to_date(root: Path) -> list[str]:
    """The chapters that a build would not execute."""
    return sorted(execution.up_to_date(root, execution.input_keys(root)))


@pytest.mark.fault(
    "Building the book", "build/state.json damaged, empty, missing or of another form", "all is made anew"
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_none(small, damage):
    state = small / "build" / "state.json"
    assert up_to_date(small) == ["01_line", "02_answer"]
    state.unlink()
    if DAMAGES[damage] is not None:
        state.write_bytes(DAMAGES[damage])
    assert execution.read_state(small) == {"chapters": {}, "site": None}
    assert up_to_date(small) == []


@pytest.mark.fault(
    "Building the book", "build/state.json damaged, empty, missing or of another form", "all is made anew"
)
def test_a_build_heals_a_damaged_state(small, executed):
    state = small / "build" / "state.json"
    before = json.loads(state.read_text())
    state.write_bytes(DAMAGES["chapters as words"])
    execution.execute(small)
    assert sorted(executed) == ["01_line", "02_answer"]
    after = json.loads(state.read_text())
    for name, ran in before["chapters"].items():
        assert after["chapters"][name]["key"] == ran["key"] and after["chapters"][name]["results"] == ran["results"]


MISPLACED = {  # under build/, and what lies there
    "state.json": "folder",
    "results": "file",
    "logs": "file",
    "executed": "file",
    "runs": "file",
    "results/kernel.txt": "folder",
    "results/claims": "file",
    "executed/01_line.ipynb": "folder",
    "logs/01_line.log": "folder",
    "logs/jupyter-book.log": "folder",
    "src": "file",
    "_build": "file",
    "site": "file",
    "site.former": "file",
    ".lock": "folder",
}


def misplace(path: Path, kind: str) -> None:
    """A file or a link to nowhere in the place of whatever is there, or a folder with something in it."""
    execution.remove(path)
    if kind == "folder":
        path.mkdir()
        (path / "mine.txt").write_text("mine")
    elif kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to("nowhere")


@pytest.mark.fault(
    "Building the book", "a folder in the place of a file under build/, or a file in that of a folder", "it is replaced"
)
@pytest.mark.parametrize("name, kind", [*list(MISPLACED.items())[:8], ("results", "link"), ("executed", "link")])
def test_what_lies_in_the_way_of_the_chapters_is_removed(small, monkeypatch, name, kind):
    def at_once(self, notebook, bar):
        made = self.folder / notebook.stem
        (made / "results" / "claims").mkdir(parents=True)
        shutil.copy(notebook, made / "chapter.ipynb")
        if notebook.stem == "02_answer":
            for result in ("kernel.txt", "claims/02_answer.json"):
                (made / "results" / result).write_text("made")
        return 1.0

    monkeypatch.setattr(execution.Executor, "run", at_once)
    misplace(small / "build" / name, kind)
    execution.execute(small)
    assert up_to_date(small) == ["01_line", "02_answer"] and execution.execute(small) == []
    assert (small / "build" / "results" / "claims" / "02_answer.json").is_file()
    assert "mine" not in {path.stem for path in (small / "build").rglob("*")}


@pytest.mark.fault(
    "Building the book", "a folder in the place of a file under build/, or a file in that of a folder", "it is replaced"
)
def test_a_build_heals_whatever_lies_in_its_way_but_what_was_run_by_hand(small):
    (small / "build" / "own").write_text("by hand")
    for name in set(MISPLACED) - {"results", "logs", "executed"}:  # in which others lie
        misplace(small / "build" / name, MISPLACED[name])
    index = book.make(small)
    assert "ANSWER 41" in (index.parent / "notebooks" / "02_answer.html").read_text()
    assert (small / "build" / "own").read_text() == "by hand"
    assert all((small / "build" / name).is_file() for name in ("state.json", "results/kernel.txt", ".lock"))


@pytest.mark.parametrize(
    "change",
    [{"seconds": "long"}, {"seconds": float("nan")}, {"cells": None}, {"key": 3}, {"results": []}, {"more": 1},
     {"results": {"../../01": "x", "\0": 3}}, {"notebook": None}],
)  # fmt: skip
def test_a_note_of_another_form_is_of_one_chapter_alone(small, change):
    state = execution.read_state(small)
    state["chapters"]["01_line"] |= change
    execution.write_state(small, state)
    assert up_to_date(small) == ["02_answer"]


@pytest.mark.fault(
    "Building the book", "an executed notebook changed by hand", "it is not published but executed again"
)
def test_an_executed_notebook_changed_by_hand_is_not_published(small, executed):
    notebook = small / "build" / "executed" / "02_answer.ipynb"
    notebook.write_text(notebook.read_text().replace("ANSWER 41", "ANSWER 99"))
    execution.execute(small)  # what the site is made from
    assert executed == ["02_answer"] and "ANSWER 41" in notebook.read_text()


@pytest.mark.fault(
    "Building the book", "a result or a record of claims changed by hand or removed", "its chapter runs again"
)
@pytest.mark.parametrize("name", ["claims/02_answer.json", "kernel.txt"])
@pytest.mark.parametrize("change", [lambda path: path.write_text("mine"), Path.unlink])
def test_a_result_changed_by_hand_is_made_again(small, name, change):
    change(small / "build" / "results" / name)
    assert up_to_date(small) == ["01_line"]


@pytest.mark.fault(
    "Building the book", "a file of someone else among the book's results", "it is no result of the book"
)
def test_a_result_that_no_chapter_wrote_is_removed(small, executed):
    stray = small / "build" / "results" / "claims" / "03_gone.json"
    stray.write_text("{}")
    execution.execute(small)
    assert executed == [] and not stray.exists()


@pytest.mark.fault("Building the book", "two chapters that write one result", "both are named")
def test_two_chapters_that_write_the_same_result(small):
    for name in ("01_line", "02_answer"):
        write_chapter(small, name, "import os\nopen(os.environ['VIT_BOOK_RESULTS'] + '/same.txt', 'w').write('x')")
    with pytest.raises(BookError, match=r"(01_line and 02_answer|02_answer and 01_line).*same\.txt"):
        execution.execute(small)


@pytest.mark.fault("Building the book", "a page of the published site changed by hand", "the site is built again")
@pytest.mark.parametrize("change", ["edited", "added", "removed"])
def test_a_site_changed_by_hand_is_built_again(small, built, tmp_path, monkeypatch, change):
    site = small / "build" / "site"
    again = Path(shutil.copytree(built / "build" / "site", tmp_path / "again"))  # what the builder would make
    before = {path.relative_to(site) for path in site.rglob("*")}
    if change == "edited":
        (site / "book" / "index.html").write_text("<p>mine</p>")
    elif change == "added":
        (site / "book" / "mine.html").write_text("<p>mine</p>")
    else:
        (site / "book" / "timings.html").unlink()
    monkeypatch.setattr(book, "build", lambda root: again)
    book.make(small)
    assert "mine" not in (site / "book" / "index.html").read_text()
    assert {path.relative_to(site) for path in site.rglob("*")} == before
    monkeypatch.setattr(book, "build", lambda root: pytest.fail("the site was built again"))
    book.make(small)


@pytest.mark.fault(
    "Building the book", "another Python, or another version of a package", "every chapter is executed again"
)
@pytest.mark.parametrize("other", [{"python": "3.99"}, {"torch": "0"}])
def test_another_python_or_package_executes_every_chapter(small, monkeypatch, other):
    before, installed = execution.shared_inputs(small), execution.installed()
    assert {"python", "torch", "numpy", "pandas", "ipykernel", "filelock", "markupsafe"} <= set(installed)
    assert "absent" not in {installed[name] for name in ("torch", "numpy", "pandas", "timm", "nbclient")}
    assert not {"torch-cka", "pytest"} & set(installed)
    monkeypatch.setattr(execution, "installed", lambda: installed | other)
    assert execution.shared_inputs(small) != before


@pytest.mark.fault(
    "Building the book", "a card, sidecar or record that is not as it must be", "it is named; the published site stays"
)
def test_a_card_that_is_not_as_it_must_be_is_no_traceback(small, monkeypatch):
    def refuse(root, pages):
        raise ValueError("similarity.json: its number of images is 'many'")

    monkeypatch.setattr(book, "generated_pages", refuse)
    with pytest.raises(BookError, match="similarity.json"):
        book.stage(small)


def test_the_version_is_the_same_wherever_it_stands(root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    cited = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    named = re.findall(
        r"^## (\d+\.\d+\.\d+) \(\d{4}-\d\d-\d\d\)$", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.M
    )
    assert project["version"] == cited["version"] == named[0] == helpers.__version__


def test_the_version_stands_at_the_foot_of_every_page(built):
    for page in ("book/index", "notebooks/01_line"):
        foot = (built / "build" / "site" / f"{page}.html").read_text().split("<footer", 1)[1]
        assert f"Version {helpers.__version__}." in foot


# A run by hand


@pytest.mark.fault(
    "Claims and results", "a chapter run by hand with other parameters", "it writes to build/own, never into the book"
)
def test_a_run_by_hand_does_not_write_where_the_book_does(root, monkeypatch):
    monkeypatch.delenv(results.FOLDER_VARIABLE, raising=False)
    assert results.folder() == root / "build" / "own" / "results"
    environment = execution.kernel_environment(root / "build" / "runs", threads=1)
    assert environment[results.FOLDER_VARIABLE] == str(root / "build" / "runs")


@pytest.mark.fault(
    "Claims and results", "a chapter run by hand with other parameters", "it writes to build/own, never into the book"
)
def test_what_was_run_by_hand_is_left_alone_and_not_used(small, executed):
    own = small / "build" / "own" / "results" / "claims" / "02_answer.json"
    own.parent.mkdir(parents=True)
    own.write_text('{"R12": "mine"}')
    execution.execute(small)
    assert executed == [] and own.read_text() == '{"R12": "mine"}'


@pytest.mark.fault(
    "Claims and results", "a chapter run by hand with other parameters", "it writes to build/own, never into the book"
)
def test_the_documented_run_by_hand_works_in_a_fresh_clone(root, built, tmp_path):
    """The lines of the page, on a copy without ``build/`` and with a chapter of its own."""
    page = (root / "book" / "using_your_own.md").read_text(encoding="utf-8")
    (lines,) = [block for block in re.findall(r"```shell\n(.*?)```", page, re.DOTALL) if "papermill" in block]
    clone = shutil.copytree(built, tmp_path / "clone", ignore=shutil.ignore_patterns("build"))
    write_chapter(clone, "02_representation", "print('SEED', seed)")
    (clone / ".venv").symlink_to(Path(sys.executable).parent.parent)
    subprocess.run(["bash", "-ec", lines], cwd=clone, check=True, capture_output=True, timeout=120)
    assert "SEED 1" in (clone / "build" / "own" / "02_representation.ipynb").read_text()


# The same twice

TRACES = """import sys, pandas as pd, torch, matplotlib.pyplot as plt
from pathlib import Path
class Thing: pass
print("one"); print(Path.cwd()); print("a", "warning", file=sys.stderr); print("two", flush=True)
display(Thing())
display(pd.DataFrame({"a": [1, 2]}).style, pd.DataFrame({"b": [3.5]}).style)
plt.plot([0, 1]); plt.show()
print(f"{torch.arange(5000, dtype=torch.float64).mul(1e-3).exp().clamp(max=9).sum().item():.9g}", Thing)"""


@pytest.mark.fault("Building the book", "one commit, built twice", "the executed notebooks are the same bytes")
def test_executed_notebooks_hold_no_trace_of_their_run(small, monkeypatch):
    made = []
    write_chapter(small, "02_answer", TRACES, "display(Thing(), {'x': Thing()})")
    for threads in (1, 1, 2):
        monkeypatch.setattr(execution, "cores", lambda threads=threads: threads)
        (small / "build" / "executed" / "02_answer.ipynb").write_text("")
        execution.execute(small, jobs=1)
        made.append((small / "build" / "executed" / "02_answer.ipynb").read_bytes())
    assert made[0] == made[1] == made[2]
    text = made[0].decode()
    for trace in ("papermill", "iopub", str(small), "0x7", "a warning"):
        assert trace not in text
    assert "a warning" in (small / "build" / "logs" / "02_answer.log").read_text()
    cells = nbformat.reads(text, 4).cells
    assert cells[1].outputs[0].text == "one\n.\ntwo\n"
    html = "".join(output.data["text/html"] for output in cells[1].outputs if "text/html" in output.get("data", {}))
    assert re.findall(r'id="(T_[0-9a-f]+)"', html) == ["T_0", "T_1"]


@pytest.mark.fault("Building the book", "a chapter, run twice", "the same tables and verdicts, bit for bit")
def test_a_chapter_measures_and_shows_the_same_twice(root, tmp_path, monkeypatch):
    """Tables, verdicts and outputs of a real chapter, bit for bit; a sidecar's date is the only trace of a run."""
    from test_chapters import SMALL

    chapter, made, shown = "00_scenes", [], []
    for run in ("a", "b"):
        monkeypatch.setenv(results.FOLDER_VARIABLE, str(tmp_path / run))
        source = str(root / "notebooks" / f"{chapter}.ipynb")
        executed = papermill.execute_notebook(
            source, None, SMALL[chapter], kernel_name="python3", cwd=root, progress_bar=False
        )
        outputs = [cell.get("outputs") for cell in run_chapter.plain(executed, {str(tmp_path / run): "results"}).cells]
        shown.append(outputs)
        files = sorted(path for path in (tmp_path / run).rglob("*") if path.is_file())
        made.append(
            {path.relative_to(tmp_path / run): re.sub(r'"date": ".*?"', "", path.read_text()) for path in files}
        )
    assert made[0] and made[0] == made[1]
    assert shown[0] == shown[1]
