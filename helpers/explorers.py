"""Figures that answer a pointer: a page's script draws them from numbers that stand in the page itself.

They are a second view of a figure, never the only one: without scripts, in a notebook or on paper, a sentence stands in
their place. The numbers are whole ten-thousandths, 16 bits each, so a cell shows what the table of its figure holds.
"""

import base64
import html
import json
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex

STEPS = 10_000  # to one
COLOURS = 64  # of a colour scale


class Explorer:
    """A figure that a page's script makes answer; in a notebook a sentence says where it does."""

    def __init__(self, kind: str, label: str, data: dict):
        self.kind, self.label, self.data = kind, label, data

    def __repr__(self) -> str:
        return f"{self.label} (it answers a pointer on the book's pages)"

    def _repr_html_(self) -> str:
        data = html.escape(json.dumps(self.data, separators=(",", ":")))
        words = html.escape(
            f"{self.label}: with scripts switched on, this figure answers a pointer and the arrow keys."
        )
        name = html.escape(self.label)
        return f'<div class="explorer" data-kind="{self.kind}" aria-label="{name}" data-explorer="{data}">{words}</div>'


def heat_maps(
    label: str,
    maps: Mapping[str, tuple[pd.DataFrame, np.ndarray]],
    names: Mapping[str, tuple[str, str]],
    colours: str = "viridis",
) -> Explorer:
    """Heat-maps to choose from, whose cells tell places, value, error, and the best match of their row.

    Args:
        label: what the maps show.
        maps: heading → (matrix with names of places as index and columns, standard errors of the same shape).
        names: heading → (name of the columns' network, name of the rows').
        colours: a colour map of matplotlib, from 0 to 1.

    Raises:
        ValueError: errors of another shape than their matrix; a value that 16 bits do not hold.
    """
    scale = [to_hex(colormaps[colours](step / (COLOURS - 1))) for step in range(COLOURS)]
    views = []
    for heading, (matrix, errors) in maps.items():
        if matrix.shape != np.shape(errors):
            raise ValueError(f"{heading}: a matrix of {matrix.shape} and errors of {np.shape(errors)}")
        x, y = names[heading]
        rows, columns = ([str(name) for name in axis] for axis in (matrix.index, matrix.columns))
        view = {"heading": heading, "x": x, "y": y, "rows": rows, "columns": columns}
        views.append({**view, "values": packed(matrix.to_numpy()), "errors": packed(errors)})
    return Explorer("heat-maps", label, {"steps": STEPS, "colours": scale, "views": views})


def packed(numbers: np.ndarray) -> str:
    """Numbers as base64 of little-endian whole ten-thousandths, 16 bits each; NaN as the least of them.

    Raises ValueError for a number beyond ± 3.2767.
    """
    whole = np.round(np.asarray(numbers, float) * STEPS)
    if np.nanmax(np.abs(whole), initial=0) > 32767:
        raise ValueError(f"16 bits hold numbers up to 3.2767 in ten-thousandths, not {np.nanmax(np.abs(numbers)):g}")
    return base64.b64encode(np.nan_to_num(whole, nan=-32768).astype("<i2").tobytes()).decode()
