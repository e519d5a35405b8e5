"""A measure's table with what is known of it: read from a folder, drawn, and kept, each in one call.

Nothing has to be a ``Result``: a measure gives a plain table, and this holds one for whoever has no wish to name its
columns and units. CKA has a result of its own, ``CKAResult``, with the same four methods.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from helpers import results
from helpers.measures import figures

UNITS = {  # of the columns of the measures that ``figures`` draws; all others have none
    **dict.fromkeys(("distance", "plain", "uniform", "radius", "row", "column", "side"), "px"),
    "prefix": "share of attention",
    "displacement": "patches",
    "top_frequency": "π rad a position",
}
ABOUT_THE_FILE = ("what", "units", "rows", "text", "sha256")  # in a sidecar, beside what the table was made from


@dataclass(frozen=True, eq=False)
class Result:
    """What a measure gave.

    ``name``: of the table, which is the measure's where ``figures`` is to draw it. ``table``: one observation a row.
    ``what`` it holds, in one sentence. ``units``: of its columns of floats; those of ``figures.NAMES`` are known.
    ``provenance``: what it was made from, as in the sidecars of ``results``: models, images, seed, code, …
    """

    name: str
    table: pd.DataFrame = field(repr=False)
    what: str = ""
    units: Mapping[str, str] = field(default_factory=dict, repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def to_frame(self) -> pd.DataFrame:
        """A copy of the table."""
        return self.table.copy()

    def plot(self) -> Figure:
        """The measure's usual figure, as in a report; in a notebook a semicolon behind it keeps it from showing twice.

        Raises ValueError for a table of which ``figures.draw`` knows none.
        """
        return figures.draw(self.name.rpartition("/")[2], self.table)

    def save(self, folder: str | Path) -> Path:
        """Write table and sidecar to a folder, from which ``load`` has both again; returns the path of the CSV.

        Raises as ``results.write``.
        """
        known = self.table.select_dtypes("float") if self.name.rpartition("/")[2] in figures.NAMES else ()
        units = {str(column): UNITS.get(str(column), "1") for column in known} | dict(self.units)
        what = self.what or self.name.replace("_", " ")
        table, where = self.table.reset_index(drop=True), Path(folder).expanduser()
        return results.write(self.name, table, what=what, units=units, where=where, **self.provenance)

    @classmethod
    def load(cls, folder: str | Path, name: str) -> "Result":
        """What ``save`` wrote, or any other table of ``results``: of a report, a recording, a chapter.

        Raises FileNotFoundError where there is none, with those there are, and ValueError as ``results.read``.
        """
        folder = Path(folder).expanduser()
        if not (folder / f"{name}.csv").exists():
            there = [other for other in results.names(folder) if "/" not in other]
            have = f"there are {', '.join(there)}" if there else "there is none"
            raise FileNotFoundError(f"no result {name!r} in {folder}; {have}")
        table, sidecar = results.read(name, folder)
        provenance = {key: value for key, value in sidecar.items() if key not in ABOUT_THE_FILE}
        return cls(name, table, sidecar["what"], sidecar["units"], provenance)
