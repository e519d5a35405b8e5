"""Chapters without the solutions of their exercises, for a site that is read while a class works on them.

``hide_solutions`` of sphinx-exercise is for solutions that are one directive: it ends the build where a solution begins
and ends in text cells with code cells between. So the staged chapters lose their solutions before Sphinx reads them.
"""

import re
from typing import Any

import nbformat
from nbformat import NotebookNode

BOUND = re.compile(r"^(?P<fence>`{3,})\{solution-(?P<end>start|end)\}.*?^(?P=fence)[ \t]*$\n?", re.M | re.S)
DIRECTIVE = re.compile(r"^[`:]{3,}\{solution\}", re.M)


def hidden(config: dict[str, Any]) -> bool:
    """Whether a Jupyter Book's configuration, ``_config.yml``, says ``hide_solutions``."""
    return bool(config.get("sphinx", {}).get("config", {}).get("hide_solutions", False))


def without_solutions(notebook: NotebookNode) -> NotebookNode:
    """A copy without what stands between ``solution-start`` and ``solution-end``: text, code and its outputs.

    Raises:
        ValueError: a solution does not begin or does not end, or is a directive ``solution``, which holds no code cell.
    """
    kept, inside = [], False
    for cell in nbformat.from_dict(notebook).cells:
        if cell.cell_type == "markdown":
            if DIRECTIVE.search(cell.source):
                raise ValueError(f"{cell.id}: write this solution with solution-start and solution-end")
            cell.source, inside = _outside(cell, inside)
            if cell.source.strip():
                kept.append(cell)
        elif not inside:
            kept.append(cell)
    if inside:
        raise ValueError("a solution does not end: close it with solution-end")
    return nbformat.from_dict(notebook | {"cells": kept})


def _outside(cell: NotebookNode, inside: bool) -> tuple[str, bool]:
    """The text of a cell that belongs to no solution, and whether one is open at its end."""
    text, at = "", 0
    for bound in BOUND.finditer(cell.source):
        if (bound["end"] == "start") == inside:
            raise ValueError(f"{cell.id}: solution-{bound['end']} without its counterpart")
        if not inside:
            text += cell.source[at : bound.start()]
        at, inside = bound.end(), not inside
    return text + ("" if inside else cell.source[at:]), inside
