"""The process that executes one chapter; ``book`` starts one for each and reads what it reports.

It is run by its path, not as ``helpers._chapter``: so it does not import the library, and torch with it,
a second time beside the chapter's own kernel. Each line on its standard output is a JSON object.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError


def report(**fields) -> None:
    print(json.dumps(fields), flush=True)


def plain(notebook):
    """The notebook without what papermill and nbclient noted of paths and times: they differ in every run."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
    return notebook


def run(source: str, target: str, timeout: int) -> int:
    """Execute the notebook ``source`` and, if no cell fails, write it to ``target``; the exit status."""
    at, started = 0, time.monotonic()

    def cell_starts(cell, cell_index):
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
    part = Path(target + ".part")
    nbformat.write(plain(notebook), part)
    os.replace(part, target)
    report(seconds=time.monotonic() - started)
    return 0


if __name__ == "__main__":
    # asked to stop, leave by an exception: papermill then shuts its kernel down on the way out
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(run(sys.argv[1], sys.argv[2], int(sys.argv[3])))
