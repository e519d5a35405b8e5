"""The process that executes one chapter; ``book`` starts one for each and reads what it reports.

It is run by its path, not as ``helpers.building.run_chapter``: so it does not import the library, and torch with it,
a second time beside the chapter's own kernel. Each line on its standard output is a JSON object. Its standard
input is a pipe that closes when the build ends, however that happens; then it ends too, and its kernel with it.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError
from nbformat import NotebookNode

STOP_TIMEOUT = 15  # seconds for an orderly end
ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")  # of an object in memory, in what Python prints of it
TABLE_ID = re.compile(r'\bid="T_([0-9a-f]+)"')  # which pandas draws by lot for a styled table


def report(**fields: Any) -> None:
    """Tell the build something, in a line."""
    print(json.dumps(fields), flush=True)


def plain(notebook: NotebookNode, names: dict[str, str]) -> NotebookNode:
    """The notebook without traces of this run, so that two runs of one chapter give the same bytes.

    Without what papermill and nbclient noted of paths and times; what went to the standard error, which the site does
    not show, goes to the log instead; lines that were printed one by one are one output; objects have no addresses,
    tables are numbered. ``names``: what stands for the paths of folders.
    """
    tables: dict[str, str] = {}
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
            for output in cell.outputs:
                without_traces(output, names, tables)
    return notebook


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """The outputs of a cell with neighbouring pieces of standard output joined, and without the standard error."""
    kept: list[NotebookNode] = []
    for output in outputs:
        is_text = output.output_type == "stream"
        if is_text and output.name == "stderr":
            print(output.text, file=sys.stderr)
        elif is_text and kept and kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def without_traces(output: NotebookNode, names: dict[str, str], tables: dict[str, str]) -> None:
    """Rewrite the texts of an output. ``tables``: the number of each table of the notebook so far, which grows."""

    def rewritten(text: str) -> str:
        for path, name in names.items():
            text = text.replace(path, name)
        for drawn in TABLE_ID.findall(text):
            tables.setdefault(drawn, f"T_{len(tables)}")
            text = re.sub(rf"\bT_{drawn}(?![0-9a-f])", tables[drawn], text)
        return ADDRESS.sub("at 0x…", text)

    if "text" in output:
        output.text = rewritten(output.text)
    for kind, value in output.get("data", {}).items():
        if isinstance(value, str) and not kind.startswith("image/"):
            output.data[kind] = rewritten(value)


def run(source: str, target: str, timeout: int) -> int:
    """Execute the notebook ``source`` and, if no cell fails, write it to ``target``; the exit status."""
    at, started = 0, time.monotonic()

    def cell_starts(cell: NotebookNode, cell_index: int) -> None:
        nonlocal at
        at = cell_index
        report(cell=cell_index)

    try:
        notebook = papermill.execute_notebook(
            source,
            None,  # nothing is written of a run that fails
            kernel_name="python3",
            progress_bar=False,
            execution_timeout=timeout,
            on_cell_start=cell_starts,
            shutdown_kernel="immediate",
        )
    except papermill.PapermillExecutionError as error:
        report(failed=error.cell_index, error=f"{error.ename}: {error.evalue}", trace="\n".join(error.traceback))
        return 1
    except CellTimeoutError:
        report(failed=at, error=f"it ran for more than {timeout} s", trace="")
        return 1
    except Exception as error:  # the kernel died, or never started
        report(failed=at, error=f"{type(error).__name__}: {error}", trace="")
        return 1
    names = {os.environ["VIT_BOOK_RESULTS"]: "build/results", str(Path.cwd()): "."}
    nbformat.write(plain(notebook, names), target)
    report(seconds=time.monotonic() - started)
    return 0


def leave(*_: object) -> None:
    """Asked to stop, leave by an exception: papermill then shuts its kernel down on the way out."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough, and a second would interrupt just that
    sys.exit(128 + signal.SIGTERM)


def leave_with_the_build() -> None:
    """Wait until the standard input closes, and stop as if asked to; if that takes too long, end at once."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_TIMEOUT)
    os._exit(1)  # the kernel then ends by itself


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)
    threading.Thread(target=leave_with_the_build, daemon=True).start()
    sys.exit(run(sys.argv[1], sys.argv[2], int(sys.argv[3])))
