"""Execute the chapters: one papermill process each, in parallel, only those whose inputs have changed.

A chapter is executed again when anything it may read has changed: its notebook, the library, the stored
weights and recordings, the claims, or the versions of the packages. Their contents decide, not their dates.
(Jupyter Book's own cache looks at a notebook's code alone, and would not see a change in the library.)
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from tqdm import tqdm

CELL_TIMEOUT = 1800  # seconds
STOP_TIMEOUT = 15  # seconds that a chapter's process has for an orderly end
SHARED = ("book/claims.yml", "constraints.txt", "pyproject.toml")  # what every chapter depends on, and these folders:
SHARED_FOLDERS = ("helpers", "data/zoo", "data/recorded")


class BookError(Exception):
    """The book can't be made; the message says where and why."""


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chapters(root: Path) -> list[Path]:
    """The chapter notebooks ``notebooks/NN_name.ipynb`` of a repository, in order."""
    return sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def digest(root: Path, paths) -> str:
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


def shared_inputs(root: Path) -> str:
    """The hash of all that every chapter depends on."""
    singles = [root / name for name in SHARED if (root / name).exists()]
    return digest(root, singles + [path for folder in SHARED_FOLDERS for path in files_below(root / folder)])


def read_state(root: Path) -> dict:
    """What the last builds noted: the inputs' hash and the duration of each chapter, the hash of the site."""
    path = root / "build" / "state.json"
    return json.loads(path.read_text()) if path.exists() else {"chapters": {}, "site": None}


def write_state(root: Path, state: dict) -> None:
    part = root / "build" / "state.json.part"
    part.write_text(json.dumps(state, indent=1))
    part.replace(root / "build" / "state.json")


def kernel_environment(root: Path, threads: int) -> dict[str, str]:
    """The environment of a chapter: this Python's own kernel, so many threads, results under ``build/``."""
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}  # else no inline figures
    for library in ("OMP", "MKL", "OPENBLAS"):
        environment.setdefault(f"{library}_NUM_THREADS", str(threads))
    return environment | {
        "JUPYTER_PATH": str(Path(sys.prefix, "share", "jupyter")),  # its kernel "python3" comes before any other
        "VIT_BOOK_RESULTS": str(root / "build" / "results"),
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

    def __init__(self, root: Path, jobs: int):
        self.root, self.jobs = root, jobs
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

        Raises:
            BookError: a cell failed or took too long, or the kernel died.
        """
        target = self.root / "build" / "executed" / notebook.name
        log_path = self.root / "build" / "logs" / f"{notebook.stem}.log"
        command = [sys.executable, "-P", str(Path(__file__).with_name("_chapter.py"))]
        command += [notebook.relative_to(self.root).as_posix(), str(target), str(CELL_TIMEOUT)]
        environment, last, cell = kernel_environment(self.root, self.threads), {}, 0
        with log_path.open("w") as log:
            with self.lock:
                if self.stopped:
                    return None
                process = subprocess.Popen(
                    command, cwd=self.root, env=environment, stdout=subprocess.PIPE, stderr=log, text=True,
                    start_new_session=True,  # Ctrl-C reaches this process alone, and it stops the others in order
                )  # fmt: skip
                self.running.add(process)
            for line in process.stdout:
                last = json.loads(line)
                if "cell" in last:
                    bar.update(last["cell"] - cell)
                    cell = last["cell"]
            process.wait()
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


def execute(root: Path, jobs: int | None = None) -> list[str]:
    """Execute every chapter that is not up to date, in parallel; the names of those executed.

    Raises:
        BookError: a cell failed. What other chapters had finished by then is kept.
    """
    build, shared = root / "build", shared_inputs(root)
    for folder in ("executed", "logs", "results/claims"):
        (build / folder).mkdir(parents=True, exist_ok=True)
    keys = {notebook: shared + digest(root, [notebook]) for notebook in chapters(root)}
    state = read_state(root)
    noted, state["chapters"] = state["chapters"], {}
    for notebook, key in keys.items():
        if noted.get(notebook.stem, {}).get("key") == key and (build / "executed" / notebook.name).exists():
            state["chapters"][notebook.stem] = noted[notebook.stem]
    for path in (build / "results" / "claims").glob("*.json"):
        if path.stem not in state["chapters"]:
            path.unlink()  # the verdicts of a chapter that is gone, or about to be executed
    write_state(root, state)
    # the chapter that takes longest goes first, so that nothing waits for it at the end
    stale = [notebook for notebook in keys if notebook.stem not in state["chapters"]]
    stale.sort(key=lambda notebook: -noted.get(notebook.stem, {}).get("seconds", expected_seconds(notebook)))
    if not stale:
        return []

    executor = Executor(root, jobs=min(jobs or cores(), len(stale)))
    bar = tqdm(total=sum(map(cell_count, stale)), unit="cell", desc=f"chapters 0/{len(stale)}", disable=None)
    done: list[str] = []

    def one(notebook: Path) -> None:
        try:
            seconds = executor.run(notebook, bar)
        except BaseException:
            executor.stop()
            raise
        if seconds is not None:
            with executor.lock:
                done.append(notebook.stem)
                state["chapters"][notebook.stem] = {
                    "key": keys[notebook],
                    "seconds": seconds,
                    "cells": cell_count(notebook),
                    "threads": executor.threads,
                    "jobs": executor.jobs,
                }
                write_state(root, state)
                bar.set_description(f"chapters {len(done)}/{len(stale)}")
                bar.write(f"executed {notebook.stem} in {seconds:.0f} s", file=sys.stderr)

    with bar, ThreadPoolExecutor(executor.jobs) as pool:
        try:
            for future in [pool.submit(one, notebook) for notebook in stale]:
                future.result()
        except BaseException:  # also Ctrl-C
            executor.stop()
            raise
    return done
