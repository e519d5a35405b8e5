"""CKA between all layers of several networks: the matrix, its parts, its standard errors, and its file on disk."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from safetensors import safe_open
from safetensors.numpy import save_file

from helpers import plots
from helpers.measures.cka import Sums, bootstrap
from helpers.networks.taps import nearest

ALIKE = "summed over minibatches"  # what was recorded at first: every batch counted alike, however small
SUMMED = f"{ALIKE} by their images"


@dataclass(frozen=True)
class CKAResult:
    """CKA between taps of networks, with what errors need and where it comes from.

    ``taps``: a table of model, name, kind and depth (0 at a model's first tap, 1 at its last). ``rows``, ``columns``:
    which of them the matrix compares. ``n_images`` were read in ``batches`` of at most ``batch`` images; ``skipped``
    images were in batches that were too small. ``estimator``, ``dtype``: how HSIC was computed. ``shuffle``: seed of
    the ``control``, which is the same with the images of the columns shuffled.
    """

    sums: Sums
    taps: pd.DataFrame
    rows: np.ndarray
    columns: np.ndarray
    n_images: int
    batch: int
    batches: int
    skipped: int
    estimator: str
    dtype: str
    shuffle: int | None = None
    control: "CKAResult | None" = field(default=None, repr=False)

    @property
    def matrix(self) -> np.ndarray:
        """CKA, (rows, columns)."""
        return self._part(self.sums.cka())

    @property
    def stderr(self) -> np.ndarray:
        """Jackknife standard error of each cell, (rows, columns)."""
        return self.statistic(lambda matrix: matrix)[1]

    def statistic(self, fn: Callable[[np.ndarray], Any]) -> tuple[Any, Any]:
        """``fn`` of the matrix (rows, columns), and its jackknife standard error over groups of batches."""
        return self.sums.statistic(lambda matrix: fn(self._part(matrix)))

    def bootstrap(self, fn: Callable[[np.ndarray], Any]) -> tuple[Any, Any]:
        """``fn`` of the matrix (rows, columns), and its 95 % interval where the jackknife fails: ``cka.bootstrap``."""
        return bootstrap(lambda matrix: fn(self._part(matrix)), self.sums)

    @property
    def groups(self) -> int:
        """Number of groups of batches behind an error."""
        return self.sums.groups

    @property
    def models(self) -> list[str]:
        """Labels of the models, in order."""
        return list(dict.fromkeys(self.taps["model"]))

    @property
    def labels(self) -> list[str]:
        """Labels of the rows, ``model/tap``."""
        return [f"{model}/{name}" for model, name in zip(self.x["model"], self.x["name"], strict=True)]

    @property
    def x(self) -> pd.DataFrame:
        """The taps of the rows: model, name, kind, depth."""
        return self.taps.iloc[self.rows].reset_index(drop=True)

    @property
    def y(self) -> pd.DataFrame:
        """The taps of the columns."""
        return self.taps.iloc[self.columns].reset_index(drop=True)

    @property
    def info(self) -> dict[str, Any]:
        """Counts and settings, for a caption or a sidecar."""
        names = ("n_images", "batch", "batches", "skipped", "estimator", "dtype", "shuffle")
        return {name: getattr(self, name) for name in names}

    def index(self, model: str, kinds: Iterable[str] | None = None) -> np.ndarray:
        """Positions in ``taps`` of a model's taps, of the given kinds or all.

        Raises ``ValueError`` for a model, or a kind of tap, that is not there.
        """
        if model not in self.models:
            raise ValueError(f"no model {model!r}{nearest(model, self.models)}; there are {', '.join(self.models)}")
        kinds = None if kinds is None else list(kinds)
        mine = self.taps["model"] == model
        chosen = mine if kinds is None else mine & self.taps["kind"].isin(kinds)
        if not chosen.any():
            have = ", ".join(self.taps["kind"][mine].unique())
            raise ValueError(f"{model} has no tap of kind {kinds}; it has {have}")
        return np.flatnonzero(chosen)

    def between(self, a: str, b: str | None = None, kinds: Iterable[str] | None = None) -> "CKAResult":
        """The part that compares model ``a`` (rows) with model ``b`` (columns; ``a`` itself by default).

        ``kinds``: of taps, all by default. Raises ``ValueError`` for a model, or a kind of tap, that is not there.
        """
        kinds = None if kinds is None else list(kinds)
        rows, columns = self.index(a, kinds), self.index(a if b is None else b, kinds)
        control = None if self.control is None else replace(self.control, rows=rows, columns=columns)
        return replace(self, rows=rows, columns=columns, control=control)

    def to_frame(self) -> pd.DataFrame:
        """The matrix with the taps' names as index and columns."""
        return pd.DataFrame(self.matrix, index=self.x["name"], columns=self.y["name"])

    def to_table(self) -> pd.DataFrame:
        """One line a pair: model_x, name_x, kind_x, depth_x, the same for y, cka, stderr."""
        i, j = (axis.ravel() for axis in np.indices((len(self.rows), len(self.columns))))
        x, y = self.x.iloc[i].add_suffix("_x"), self.y.iloc[j].add_suffix("_y")
        table = pd.concat([x.reset_index(drop=True), y.reset_index(drop=True)], axis=1)
        return table.assign(cka=self.matrix.ravel(), stderr=self.stderr.ravel())

    def plot(self, ax: Axes | None = None) -> Axes:
        """The matrix as a map (``plots.draw_cka``), on ``ax`` or in a new figure; the entrance at the lower left."""
        x, y = (", ".join(dict.fromkeys(axis["model"])) for axis in (self.y, self.x))
        return plots.draw_cka(self.to_frame(), ax, x=x, y=y)

    def save(self, path: str | Path) -> Path:
        """Write it to one safetensors file, from which any statistic can be had again with its error."""
        arrays = {**vars(self.sums), "rows": self.rows, "columns": self.columns}
        if self.control is not None:
            arrays |= {f"control.{name}": value for name, value in vars(self.control.sums).items()}
        arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        save_file(arrays, path, {"cka": json.dumps({"taps": self.taps.to_dict("list"), "info": self.info})})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "CKAResult":
        """Read what ``save`` wrote. Batches that counted alike, in files of an earlier version, get their weights."""
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            about = {name: json.loads(text) for name, text in file.metadata().items()}
        about = about.get("cka", about)  # one entry, since the order of several is not fixed; at first there were two

        estimator = about["info"]["estimator"]
        if alike := estimator.endswith(ALIKE):
            about["info"]["estimator"] = estimator.removesuffix(ALIKE) + SUMMED

        def sums(prefix: str) -> Sums:
            found = Sums(*(arrays[prefix + name] for name in Sums.__dataclass_fields__))
            return found.weighted() if alike else found

        result = cls(sums(""), pd.DataFrame(about["taps"]), arrays["rows"], arrays["columns"], **about["info"])
        if "control.cross" not in arrays:
            return result
        return replace(result, control=replace(result, sums=sums("control.")))

    def _part(self, matrix: np.ndarray) -> np.ndarray:
        return matrix[np.ix_(self.rows, self.columns)]
