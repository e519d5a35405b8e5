"""Figures that answer a pointer: a page's script draws them from numbers that stand in the page itself.

They are a second view of a figure, never the only one: without scripts, in a notebook or on paper, a sentence stands in
their place. The numbers are whole ten-thousandths, 16 bits each, so a cell shows what the table of its figure holds;
deflated, since a chapter's attention in all blocks would otherwise weigh as much as the rest of its page.
"""

import base64
import html
import io
import json
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.pyplot import imsave

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
    views = []
    for heading, (matrix, errors) in maps.items():
        if matrix.shape != np.shape(errors):
            raise ValueError(f"{heading}: a matrix of {matrix.shape} and errors of {np.shape(errors)}")
        x, y = names[heading]
        rows, columns = ([str(name) for name in axis] for axis in (matrix.index, matrix.columns))
        view = {"heading": heading, "x": x, "y": y, "rows": rows, "columns": columns}
        views.append({**view, "values": packed(matrix.to_numpy()), "errors": packed(errors)})
    return Explorer("heat-maps", label, {"steps": STEPS, "colours": _scale(colours), "views": views})


def token_maps(
    label: str,
    maps: np.ndarray,
    choices: Mapping[str, Sequence[str]],
    pictures: Sequence[np.ndarray],
    grid: tuple[int, int],
    patch: int,
    distance: bool = False,
    colours: str = "viridis",
) -> Explorer:
    """Maps over patches, one for each patch that asks: choose a picture, a block, a head, and the patch in the picture.

    Args:
        label: what a value of a map is, such as "attention", as the page says it.
        maps: (pictures, …, T, T), an axis for each of ``choices``, then the patch that asks, then the patch asked.
        choices: name → options of each axis before the last two; the first chooses the picture.
        pictures: an image (H, W, 3), of [0, 1] or uint8, for each option of the first choice.
        grid: rows and columns of patches, T in all.
        patch: side of a patch, px.
        distance: whether maps are weights, whose mean distance from the patch that asks is told beside them.
        colours: a colour map of matplotlib, from 0 to the largest value of a map.

    Raises:
        ValueError: maps of another shape than the choices and the grid say, or a picture too few or too many.
    """
    tokens = grid[0] * grid[1]
    wanted = (*map(len, choices.values()), tokens, tokens)
    if maps.shape != wanted or len(pictures) != wanted[0]:
        raise ValueError(
            f"maps of {maps.shape} and {len(pictures)} pictures, where choices and grid ask for {wanted} and "
            f"{wanted[0]}"
        )
    data = {
        "steps": STEPS,
        "colours": _scale(colours),
        "label": label,
        "choices": [[name, list(options)] for name, options in choices.items()],
        "pictures": [_as_address(picture) for picture in pictures],
        "grid": list(grid),
        "patch": patch,
        "distance": distance,
        "values": packed(maps),
    }
    return Explorer("token-maps", label, data)


def field_maps(
    label: str, maps: Mapping[str, np.ndarray], places: Mapping[str, pd.DataFrame], colours: str = "viridis"
) -> Explorer:
    """Maps over pixels, one for each place of a network: choose a network, and move through its depth.

    Colours are those of the square root of a value over the map's largest, so that what is faint is still seen.

    Args:
        label: what the maps show, such as "receptive field".
        maps: name of a network → its maps (places, H, W), not negative.
        places: name of a network → a row for each of its maps: ``name``, ``depth``, the centre's ``row`` and
            ``column``, and the ``radius`` of the disc around it that holds half of the mass, px.
        colours: a colour map of matplotlib.

    Raises:
        ValueError: another number of places than of maps; a map that is negative, or nowhere positive.
    """
    views = []
    for name, fields in maps.items():
        table, most = places[name], np.asarray(fields, float).max(axis=(1, 2), keepdims=True)
        if len(table) != len(fields):
            raise ValueError(f"{name}: {len(fields)} maps and {len(table)} places")
        if np.min(fields) < 0 or not (most > 0).all():
            raise ValueError(f"{name}: a map is negative somewhere, or positive nowhere")
        view = {"heading": name, "size": list(np.shape(fields)[1:]), "values": packed(fields / most)}
        view |= {column: table[column].round(3).tolist() for column in ("depth", "row", "column", "radius")}
        views.append(view | {"places": table["name"].tolist()})
    return Explorer("field-maps", label, {"steps": STEPS, "colours": _scale(colours), "label": label, "views": views})


def _as_address(picture: np.ndarray) -> str:
    """An image (H, W, 3), of [0, 1] or uint8, as the address of a PNG that holds it."""
    stream = io.BytesIO()
    imsave(stream, np.asarray(picture), format="png")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _scale(colours: str) -> list[str]:
    """A colour map of matplotlib in so many steps as the pages draw with."""
    return [to_hex(colormaps[colours](step / (COLOURS - 1))) for step in range(COLOURS)]


def packed(numbers: np.ndarray) -> str:
    """Numbers as base64 of deflated whole ten-thousandths, 16 bits each; NaN as the least of them.

    All low bytes stand before all high bytes, which are mostly alike and take little room next to one another.

    Raises ValueError for a number beyond ± 3.2767.
    """
    whole = np.round(np.asarray(numbers, float) * STEPS)
    if np.nanmax(np.abs(whole), initial=0) > 32767:
        raise ValueError(f"16 bits hold numbers up to 3.2767 in ten-thousandths, not {np.nanmax(np.abs(numbers)):g}")
    halves = np.nan_to_num(whole, nan=-32768).astype("<i2").ravel().view(np.uint8).reshape(-1, 2).T
    return base64.b64encode(zlib.compress(halves.tobytes(), 9)).decode()
