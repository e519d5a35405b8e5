"""`make book`, on a small book of its own: what is executed when, what a failure leaves, what is published."""

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from helpers import book, execution
from helpers.execution import BookError

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


@pytest.fixture(scope="module")
def built(root, tmp_path_factory) -> Path:
    """A small book, made once: an index, a chapter that draws, a chapter that reads a module of helpers/."""
    small = tmp_path_factory.mktemp("small")
    for folder in ("book", "notebooks", "helpers", "data"):
        (small / folder).mkdir()
    shutil.copy(root / "_config.yml", small)
    shutil.copytree(root / "book" / "_static", small / "book" / "_static")
    (small / "book" / "references.bib").write_text("")
    (small / "book" / "index.md").write_text("# A small book\n\nSee [](/notebooks/01_line.ipynb): $e^{i\\pi}$.\n")
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
    timings = (site / "book" / "timings.html").read_text()
    assert "01_line.html" in timings and "Chapter 02_answer" in timings


def test_the_kernel_is_this_python_and_writes_results_under_build(built):
    kernel = Path((built / "build" / "results" / "kernel.txt").read_text())
    assert kernel.parent == Path(sys.executable).parent
    assert int((built / "build" / "results" / "threads.txt").read_text()) >= 1


def test_executed_chapters_hold_no_paths_or_times_of_the_run(built):
    text = (built / "build" / "executed" / "02_answer.ipynb").read_text()
    assert "papermill" not in text and "iopub" not in text and str(built) not in text


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


def test_a_changed_helper_executes_every_chapter_and_its_effect_is_seen(small, executed):
    (small / "helpers" / "answer.py").write_text("ANSWER = 42\n")
    book.make(small)
    assert sorted(executed) == ["01_line", "02_answer"]
    assert "ANSWER 42" in (small / "build" / "site" / "notebooks" / "02_answer.html").read_text()


@pytest.mark.parametrize("name", ["data/zoo/model.safetensors", "book/claims.yml", "constraints.txt", "pyproject.toml"])
def test_what_else_executes_every_chapter(small, name):
    before = execution.shared_inputs(small)
    (small / name).parent.mkdir(parents=True, exist_ok=True)
    (small / name).write_bytes(b"changed")
    assert execution.shared_inputs(small) != before


def test_a_changed_notebook_executes_that_chapter_alone(small, executed):
    write_chapter(small, "02_answer", "print('ANSWER', 6 * 7)")
    book.make(small)
    assert executed == ["02_answer"]
    assert "ANSWER 42" in (small / "build" / "site" / "notebooks" / "02_answer.html").read_text()
    assert not (small / "build" / "results" / "claims" / "02_answer.json").exists()  # it records no verdict now


def test_a_changed_page_executes_nothing_and_builds_the_site(small, executed):
    with (small / "book" / "index.md").open("a") as page:
        page.write("\nA sentence more.\n")
    book.make(small)
    assert executed == []
    assert "A sentence more." in (small / "build" / "site" / "book" / "index.html").read_text()


def test_a_failing_cell_is_named_and_the_site_stays(small):
    before = site_as_it_is(small)
    write_chapter(small, "01_line", "fine = 1", "first = 1\nsecond = first / 0")
    ran = subprocess.run(
        [sys.executable, "-m", "helpers.book", "--root", str(small)], capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 1 and ran.stdout == ""
    for said in ("notebooks/01_line.ipynb", "cell 3 of 3", "second = first / 0", "ZeroDivisionError: division by zero"):
        assert said in ran.stderr
    assert site_as_it_is(small) == before
    assert not (small / "build" / "executed" / "01_line.ipynb").read_text().count("ZeroDivisionError")


def test_after_a_failure_the_chapter_is_executed_again(small, executed):
    write_chapter(small, "01_line", "1 / 0")
    for _ in range(2):
        with pytest.raises(BookError, match="ZeroDivisionError"):
            book.make(small)
    assert executed == ["01_line", "01_line"]


def test_a_cell_that_takes_too_long(small, monkeypatch):
    monkeypatch.setattr(execution, "CELL_TIMEOUT", 2)
    write_chapter(small, "01_line", "1", "import time\ntime.sleep(60)")
    with pytest.raises(BookError, match=r"cell 3 of 3(?s:.*)more than 2 s"):
        book.make(small)


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


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopping_the_build_ends_the_kernels(small, how):
    names = ("01_line", "02_answer")
    for name in names:
        write_chapter(small, name, SLEEP.format(name))
    before = site_as_it_is(small)
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell starts in the background ignores it
    command = [sys.executable, "-m", "helpers.book", "--root", str(small), "--jobs", "2"]
    process = subprocess.Popen(command, preexec_fn=heard)
    wait_for(lambda: all((small / f"{name}.pid").exists() for name in names))
    time.sleep(0.2)  # both run at once: each chapter has a process of its own
    pids = [int((small / f"{name}.pid").read_text()) for name in names]
    assert all(map(alive, pids)) and len(set(pids)) == 2
    process.send_signal(how)
    assert process.wait(60) != 0
    wait_for(lambda: not any(map(alive, pids)))
    assert site_as_it_is(small) == before


def test_a_failing_chapter_stops_the_others(small):
    write_chapter(small, "01_line", SLEEP.format("01_line"))
    wait = "import pathlib, time\nwhile not pathlib.Path('01_line.pid').exists(): time.sleep(0.1)"
    write_chapter(small, "02_answer", wait, "raise ValueError('no')")
    with pytest.raises(BookError, match="ValueError: no"):
        book.make(small, jobs=2)
    wait_for(lambda: not alive(int((small / "01_line.pid").read_text())))


def test_a_warning_of_the_site_builder_fails_and_the_site_stays(small):
    before = site_as_it_is(small)
    with (small / "book" / "index.md").open("a") as page:
        page.write("\nSee {ref}`nowhere`.\n")
    for _ in range(2):  # nor does the second try get past it
        with pytest.raises(BookError, match="undefined label") as failure:
            book.make(small)
        assert "\x1b" not in str(failure.value)
    assert site_as_it_is(small) == before


def test_a_figure_without_alternative_text_fails_and_the_site_stays(small):
    before = site_as_it_is(small)
    write_chapter(small, "01_line", "import matplotlib.pyplot as plt\nplt.plot([0, 1])\nplt.show()")
    with pytest.raises(BookError, match=r"notebooks/01_line.html: image .* has no alternative text"):
        book.make(small)
    assert site_as_it_is(small) == before


def test_the_table_of_contents_and_the_files_agree(small):
    write_chapter(small, "03_new", "1")
    with pytest.raises(BookError, match="does not list these chapters: 03_new"):
        book.make(small)
    write_toc(small, "notebooks/01_line", "notebooks/02_answer", "notebooks/03_new", "book/gone")
    with pytest.raises(BookError, match="do not exist: book/gone"):
        book.make(small)


def test_a_build_that_was_killed_while_it_published_loses_no_site(small):
    before = {path.name for path in (small / "build" / "site").iterdir()}
    (small / "build" / "site").rename(small / "build" / "site.former")
    write_chapter(small, "01_line", "1 / 0")
    with pytest.raises(BookError, match="ZeroDivisionError"):
        book.make(small)
    assert {path.name for path in (small / "build" / "site").iterdir()} == before


def test_one_build_at_a_time(small):
    import fcntl

    with (small / "build" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BookError, match="another process"):
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
    assert book.repository_url(small) == url
    config = book.configuration(small)
    assert config["repository"]["url"] == (url or "")
    assert ("launch_buttons" in config) == bool(url)


def test_source_links_lead_to_files_of_the_repository(small, monkeypatch):
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/book")
    book.make(small)
    page = (small / "build" / "site" / "notebooks" / "01_line.html").read_text()
    for address in ("github.com/someone/book/edit/main/notebooks/01_line.ipynb",
                    "colab.research.google.com/github/someone/book/blob/main/notebooks/01_line.ipynb"):  # fmt: skip
        assert address in page


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


def test_a_scoreboard_is_not_made_while_a_chapter_has_not_recorded_its_claims(tmp_path):
    assert "R1" in book.generated_pages(tmp_path, ["book/scoreboard"])["book/scoreboard"]
    with pytest.raises(BookError, match="no record of R1 on scenes.*delete build/executed"):
        book.generated_pages(tmp_path, ["book/scoreboard", "notebooks/02_representation"])
