"""Run in a chapter's kernel before its first cell: notes the jackknife errors it takes and the bars and bands it draws.

``test_intervals.watched`` copies this file to where IPython looks for what to run at its start. Each note is a line of
JSON in the file that ``WATCH_INTERVALS`` names: {"groups": G, "errors": […]} or {"drawn": […]}, half-widths.
"""

import json
import os
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from helpers import uncertainty
from helpers.measures.cka import Sums

FILE = os.environ["WATCH_INTERVALS"]
_jackknife, _statistic = uncertainty.jackknife, Sums.statistic
_errorbar, _fill_between = Axes.errorbar, Axes.fill_between


def _note(**what: Any) -> None:
    with open(FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(what) + "\n")


def _jackknife_noted(fn: Any, *tables: Any) -> tuple[Any, Any]:
    value, stderr = _jackknife(fn, *tables)
    _note(groups=uncertainty.groups(tables[0]), errors=np.ravel(stderr).tolist())
    return value, stderr


def _statistic_noted(self: Sums, fn: Any) -> tuple[Any, Any]:
    value, stderr = _statistic(self, fn)
    _note(groups=self.groups, errors=np.ravel(stderr).tolist())
    return value, stderr


def _errorbar_noted(self: Axes, x: Any, y: Any, yerr: Any = None, xerr: Any = None, **look: Any) -> Any:
    for reach in (yerr, xerr):
        if reach is not None and np.ndim(reach) < 2:  # two rows are the lower and the upper reach of other intervals
            _note(drawn=np.ravel(reach).tolist())
    return _errorbar(self, x, y, yerr, xerr, **look)


def _fill_between_noted(self: Axes, x: Any, low: Any, high: Any = 0, **look: Any) -> Any:
    _note(drawn=np.ravel((np.asarray(high, dtype=float) - np.asarray(low, dtype=float)) / 2).tolist())
    return _fill_between(self, x, low, high, **look)


uncertainty.jackknife, Sums.statistic = _jackknife_noted, _statistic_noted
Axes.errorbar, Axes.fill_between = _errorbar_noted, _fill_between_noted
