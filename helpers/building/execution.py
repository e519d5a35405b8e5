"""Execute the chapters: one papermill process each, in parallel, only those whose inputs have changed.

A chapter is executed again when anything it may read has changed: its notebook, the library, the stored
weights and recordings, the claims, Python, or the versions of the packages; and when what it made, its executed
notebook and its results, is no longer what it made. Contents decide, not dates. (Jupyter Book's own cache looks at a
notebook's code alone, and would not see a change in the library.)

A chapter's process writes into a folder of this run alone, ``build/runs/…``. The build takes its outputs over from
there, so that a process that outlives its build changes nothing, and ends when it notices.
"""

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tqdm import tqdm

from helpers import files
from helpers.results import CHAPTER

CELL_TIMEOUT = 1800  # seconds
STOP_TIMEOUT = 15  # seconds that a chapter's process has for an orderly end
SHARED = ("book/claims.yml", "constraints.txt", "pyproject.toml")  # what every chapter depends on, and these folders:
SHARED_FOLDERS = ("helpers", "data/zoo", "data/recorded")
NOTE = {  # what is noted of a chapter that was executed: hashes of all it was made from and of what it made, its cost
    "key": str,
    "notebook": str,
    "results": dict,
    "cells": int,
    "seconds": float,
    "threads": int,
    "jobs": int,
}


class BookError(Exception):
    """The book can't be made; the message says where and why."""


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chapters(root: Path) -> list[Path]:
    """The chapter notebooks ``notebooks/NN_name.ipynb``, or ``NNb_name.ipynb``, of a repository, in order."""
    return sorted(path for path in (root / "notebooks").glob("*.ipynb") if re.fullmatch(CHAPTER, path.stem))


def digest(root: Path, paths: Iterable[Path]) -> str:
    """One hash over the names and contents of files, given as paths under ``root``."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
        total.update(path.read_bytes())
    return total.hexdigest()


def files_below(folder: Path) -> list[Path]:
    """All files of a folder but compiled and hidden ones; none where the folder is missing."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in found if not {"__pycache__"} & set(path.parts) and not path.name.startswith(".")]


def hashes(folder: Path) -> dict[str, str]:
    """The sha256 of each file of a folder, by its path in it."""
    return {path.relative_to(folder).as_posix(): files.sha256(path) for path in files_below(folder)}


def installed() -> dict[str, str]:
    """The versions of Python and of all packages that a chapter may use: pyproject.toml's own, and what they need."""
    project = tomllib.loads((files.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting = [*project["dependencies"], *project["optional-dependencies"]["book"]]
    found = {"python": sys.version}
    while waiting:
        need = Requirement(waiting.pop())
        name = canonicalize_name(need.name)
        if name in found or (need.marker and not need.marker.evaluate({"extra": ""})):
            continue
        try:
            found[name] = metadata.version(name)
            waiting += metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def shared_inputs(root: Path) -> str:
    """The hash of all that every chapter depends on."""
    singles = [root / name for name in SHARED if (root / name).exists()]
    contents = digest(root, singles + [path for folder in SHARED_FOLDERS for path in files_below(root / folder)])
    return hashlib.sha256(json.dumps([contents, installed()], sort_keys=True).encode()).hexdigest()


def input_keys(root: Path) -> dict[Path, str]:
    """The hash of all that each chapter is made from, by its notebook."""
    shared = shared_inputs(root)
    return {notebook: shared + digest(root, [notebook]) for notebook in chapters(root)}


def is_note(ran: Any) -> bool:
    """Whether something read from the state is what a build notes of a chapter."""
    if not isinstance(ran, dict) or set(ran) != set(NOTE):
        return False
    return all(isinstance(ran[name], kind) for name, kind in NOTE.items()) and math.isfinite(ran["seconds"])


def read_state(root: Path) -> dict[str, Any]:
    """What the last builds noted of each chapter (``NOTE``) and of the site.

    What is missing, damaged or of another form counts as not noted: then the chapter is executed again.
    """
    try:
        found = json.loads((root / "build" / "state.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        found = None
    found = found if isinstance(found, dict) else {}
    noted, site = found.get("chapters"), found.get("site")
    noted = noted if isinstance(noted, dict) else {}
    chapters = {name: ran for name, ran in noted.items() if is_note(ran)}
    return {"chapters": chapters, "site": site if isinstance(site, dict) else None}


def write_state(root: Path, state: dict[str, Any]) -> None:
    """Note the state, as a whole, in ``build/state.json``."""
    files.write(root / "build" / "state.json", json.dumps(state, indent=1))


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that it holds; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_room(build: Path) -> None:
    """Make the folders that a build writes into; what lies in the way of these or of the files in them is removed."""
    shutil.rmtree(build / "runs", ignore_errors=True)  # of builds that were killed
    for name in ("executed", "logs", "results", "runs"):
        if not (build / name).is_dir():
            remove(build / name)
        (build / name).mkdir(parents=True, exist_ok=True)
    for path in (build / "state.json", *(build / "executed").iterdir(), *(build / "logs").iterdir()):
        if path.is_dir():
            remove(path)


def remove_strays(results: Path, owned: set[str]) -> None:
    """Remove all of a folder of results but the files ``owned``, and the folders that are then empty.

    These strays are of chapters that are gone or about to be executed, or of someone else.
    """
    for path in sorted(results.rglob("*"), reverse=True):  # what a folder holds comes before the folder
        if path.is_symlink() or not path.is_dir():
            if path.relative_to(results).as_posix() not in owned:
                path.unlink()
        elif not any(path.iterdir()):
            path.rmdir()


def kernel_environment(results: Path, threads: int) -> dict[str, str]:
    """The environment of a chapter: this Python's own kernel, so many threads, results in the folder ``results``."""
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}  # else no inline figures
    for library in ("OMP", "MKL", "OPENBLAS"):
        environment.setdefault(f"{library}_NUM_THREADS", str(threads))
    return environment | {
        "JUPYTER_PATH": str(Path(sys.prefix, "share", "jupyter")),  # its kernel "python3" comes before any other
        "VIT_BOOK_RESULTS": str(results),
    }


def cell_count(notebook: Path) -> int:
    return len(nbformat.read(notebook, as_version=4).cells)


def expected_seconds(notebook: Path) -> float:
    """How long a chapter takes on one core, as its metadata say; what does not say it is taken to be the longest."""
    return nbformat.read(notebook, as_version=4).metadata.get("seconds", float("inf"))


def cell_message(root: Path, notebook: Path, failure: dict, lines: int = 6) -> str:
    """Chapter, cell, the first lines of the cell's source, and the error."""
    cells = nbformat.read(notebook, as_version=4).cells
    place = min(failure["failed"], len(cells) - 1)
    source = cells[place].source.splitlines()
    shown = [f"    | {line}" for line in source[:lines]] + (["    | …"] if len(source) > lines else [])
    head = f"{notebook.relative_to(root).as_posix()}, cell {place + 1} of {len(cells)}, failed:"
    trace = "\n\n" + failure["trace"] if failure.get("trace") else ""
    return "\n".join([head, "", *shown, "", failure["error"]]) + trace


class Executor:
    """Executes chapters, one process each, so many at a time; the first that fails stops the others."""

    def __init__(self, root: Path, run: Path, jobs: int):
        self.root, self.folder, self.jobs = root, run, jobs
        self.threads = max(1, cores() // jobs)
        self.running: set[subprocess.Popen] = set()
        self.lock = threading.Lock()
        self.stopped = False

    def stop(self) -> None:
        """End every chapter that runs, and its kernel with it."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                process.terminate()
                killing = threading.Timer(STOP_TIMEOUT, process.kill)  # its kernel then ends by itself
                killing.daemon = True
                killing.start()

    def run(self, notebook: Path, bar: tqdm) -> float | None:
        """Execute one chapter; the seconds it took, or None if it was stopped.

        It writes ``chapter.ipynb`` and ``results/`` in a folder of its own in this run's.

        Raises:
            BookError: a cell failed or took too long, or the kernel died.
        """
        own = self.folder / notebook.stem
        (own / "results" / "claims").mkdir(parents=True)
        log_path = self.root / "build" / "logs" / f"{notebook.stem}.log"
        command = [sys.executable, "-P", str(Path(__file__).with_name("run_chapter.py"))]
        command += [notebook.relative_to(self.root).as_posix(), str(own / "chapter.ipynb"), str(CELL_TIMEOUT)]
        environment = kernel_environment(own / "results", self.threads)
        last: dict[str, Any] = {}
        cell = 0
        with log_path.open("w") as log:
            with self.lock:
                if self.stopped:
                    return None
                process = subprocess.Popen(
                    command, cwd=self.root, env=environment, stdout=subprocess.PIPE, stderr=log, text=True,
                    stdin=subprocess.PIPE,  # it closes when this process ends, even if that is killed
                    start_new_session=True,  # Ctrl-C reaches this process alone, and it stops the others in order
                )  # fmt: skip
                self.running.add(process)
            with process:
                for line in process.stdout or ():
                    last = json.loads(line)
                    if "cell" in last:
                        bar.update(last["cell"] - cell)
                        cell = last["cell"]
            with self.lock:
                self.running.discard(process)
        if self.stopped:
            return None
        if "failed" in last:
            raise BookError(cell_message(self.root, notebook, last))
        if process.returncode or "seconds" not in last:
            said = log_path.read_text()[-2000:]
            raise BookError(f"{notebook.name}: its process ended with status {process.returncode}.\n\n{said}")
        bar.update(cell_count(notebook) - cell)
        return last["seconds"]


def up_to_date(root: Path, keys: dict[Path, str]) -> dict[str, dict[str, Any]]:
    """The notes of those chapters whose inputs, executed notebooks and results are as they were noted."""
    build, noted, current = root / "build", read_state(root)["chapters"], {}
    there = hashes(build / "results")
    for notebook, key in keys.items():
        ran, executed = noted.get(notebook.stem), build / "executed" / notebook.name
        if ran is None or ran["key"] != key or not executed.is_file() or files.sha256(executed) != ran["notebook"]:
            continue
        if all(there.get(name) == sha256 for name, sha256 in ran["results"].items()):
            current[notebook.stem] = ran
    return current


def take_over(build: Path, notebook: Path, run: Path, noted: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Move what a chapter made in this run to where the book keeps it; the hashes of it, for the chapter's note.

    Raises:
        BookError: another chapter has written a result of the same name.
    """
    own = run / notebook.stem
    made = {"notebook": files.sha256(own / "chapter.ipynb"), "results": hashes(own / "results")}
    for other, ran in noted.items():
        if both := sorted(set(ran["results"]) & set(made["results"])):
            raise BookError(f"{notebook.stem} and {other} both write {', '.join(both)} of the results")
    for name in made["results"]:
        target = build / "results" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (own / "results" / name).replace(target)
    (own / "chapter.ipynb").replace(build / "executed" / notebook.name)
    return made


def execute(root: Path, jobs: int | None = None) -> list[str]:
    """Execute every chapter that is not up to date, in parallel; the names of those executed.

    Raises:
        BookError: a cell failed. What other chapters had finished by then is kept.
    """
    build, keys = root / "build", input_keys(root)
    make_room(build)
    noted = read_state(root)["chapters"]
    state = read_state(root) | {"chapters": up_to_date(root, keys)}
    remove_strays(build / "results", {name for ran in state["chapters"].values() for name in ran["results"]})
    write_state(root, state)
    # the chapter that takes longest goes first, so that nothing waits for it at the end
    stale = [notebook for notebook in keys if notebook.stem not in state["chapters"]]
    stale.sort(key=lambda notebook: -noted.get(notebook.stem, {}).get("seconds", expected_seconds(notebook)))
    if not stale:
        return []

    run = Path(tempfile.mkdtemp(dir=build / "runs"))
    executor = Executor(root, run, jobs=min(jobs or cores(), len(stale)))
    bar = tqdm(total=sum(map(cell_count, stale)), unit="cell", desc=f"chapters 0/{len(stale)}", disable=None)
    done: list[str] = []

    def one(notebook: Path) -> None:
        try:
            seconds = executor.run(notebook, bar)
            if seconds is None:
                return
            with executor.lock:
                done.append(notebook.stem)
                made = take_over(build, notebook, run, state["chapters"])
                cost = {"seconds": seconds, "threads": executor.threads, "jobs": executor.jobs}
                state["chapters"][notebook.stem] = {"key": keys[notebook], "cells": cell_count(notebook)} | made | cost
                write_state(root, state)
        except BaseException:
            executor.stop()
            raise
        bar.set_description(f"chapters {len(done)}/{len(stale)}")
        bar.write(f"executed {notebook.stem} in {seconds:.0f} s", file=sys.stderr)

    with bar, ThreadPoolExecutor(executor.jobs) as pool:
        try:
            for future in [pool.submit(one, notebook) for notebook in stale]:
                future.result()
        except BaseException:  # also Ctrl-C
            executor.stop()
            raise
    shutil.rmtree(run, ignore_errors=True)
    return done
