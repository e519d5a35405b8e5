"""CKA between all layers of several networks, from minibatches, at little more than the cost of the forward passes.

The unbiased HSIC can be averaged over minibatches before the ratio is taken (Nguyen, Raghu & Kornblith 2021), which
is what Raghu et al. (2021) do. Each tapped activation is turned into a row of n² numbers inside its hook
(``hsic.gram_row``); one matrix product of the stacked rows gives the HSICs of all pairs of layers of all networks;
the sums of these L × L products over batches are all that is kept.

The batches are dealt to sixteen groups, and leaving out one group at a time (the jackknife) gives any number made from
a CKA matrix its standard error: ``result.statistic(fn)``.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn
from tqdm import tqdm

from helpers.measures.cka import (
    LEAST,
    MinibatchCKA,
    Sums,
    bootstrap,
    center_gram,
    cka,
    feature_space_linear_cka,
    gram_linear,
    gram_row,
    hsic_biased,
    hsic_unbiased,
)
from helpers.networks.inputs import normalise, pixels
from helpers.networks.taps import Tap, capture, evaluating, nearest, taps_for

__all__ = [
    "CKAResult", "MinibatchCKA", "Sums", "center_gram", "cka", "cka_heatmap", "feature_space_linear_cka",
    "gram_linear", "gram_row", "hsic_biased", "hsic_unbiased",
]  # fmt: skip


@dataclass(frozen=True)
class CKAResult:
    """CKA between taps of networks, with what errors need and where it comes from.

    ``taps``: a table of model, name, kind and depth (0 at a model's first tap, 1 at its last). ``rows``, ``columns``:
    which of them the matrix compares. ``control``: the same, with the images of the columns shuffled. ``skipped``:
    images of a last batch that was too small.
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
        """``fn`` of the matrix (rows, columns), and its 95 % interval where the jackknife fails: ``hsic.bootstrap``."""
        return bootstrap(lambda matrix: fn(self._part(matrix)), self.sums)

    @property
    def groups(self) -> int:
        """Number of groups of batches behind an error."""
        return self.sums.groups

    @property
    def models(self) -> list[str]:
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
        """Positions in ``taps`` of a model's taps, of the given kinds or all."""
        if model not in self.models:
            raise ValueError(f"no model {model!r}{nearest(model, self.models)}; there are {', '.join(self.models)}")
        mine = self.taps["model"] == model
        chosen = mine if kinds is None else mine & self.taps["kind"].isin(kinds := list(kinds))
        if not chosen.any():
            have = ", ".join(self.taps["kind"][mine].unique())
            raise ValueError(f"{model} has no tap of kind {kinds}; it has {have}")
        return np.flatnonzero(chosen)

    def between(self, a: str, b: str | None = None, kinds: Iterable[str] | None = None) -> "CKAResult":
        """The part that compares model ``a`` (rows) with model ``b`` (columns; ``a`` itself by default)."""
        kinds = None if kinds is None else list(kinds)
        part = {"rows": self.index(a, kinds), "columns": self.index(a if b is None else b, kinds)}
        return replace(self, **part, control=self.control and replace(self.control, **part))

    def to_frame(self) -> pd.DataFrame:
        """The matrix with the taps' names as index and columns."""
        return pd.DataFrame(self.matrix, index=self.x["name"], columns=self.y["name"])

    def to_table(self) -> pd.DataFrame:
        """One line a pair: model_x, name_x, kind_x, depth_x, the same for y, cka, stderr."""
        i, j = (axis.ravel() for axis in np.indices((len(self.rows), len(self.columns))))
        x, y = self.x.iloc[i].add_suffix("_x"), self.y.iloc[j].add_suffix("_y")
        table = pd.concat([x.reset_index(drop=True), y.reset_index(drop=True)], axis=1)
        return table.assign(cka=self.matrix.ravel(), stderr=self.stderr.ravel())

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
        """Read what ``save`` wrote."""
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            about = {name: json.loads(text) for name, text in file.metadata().items()}
        about = about.get("cka", about)  # one entry, since the order of several is not fixed; at first there were two
        sums, control = (
            Sums(*(arrays[prefix + name] for name in Sums.__dataclass_fields__)) if prefix + "cross" in arrays else None
            for prefix in ("", "control.")
        )
        result = cls(sums, pd.DataFrame(about["taps"]), arrays["rows"], arrays["columns"], **about["info"])
        return result if control is None else replace(result, control=replace(result, sums=control))

    def _part(self, matrix: np.ndarray) -> np.ndarray:
        return matrix[np.ix_(self.rows, self.columns)]


def cka_heatmap(
    models: Mapping[str, nn.Module],
    loader: Iterable,
    kinds: Iterable[str] | Mapping[str, Iterable[Tap | str] | None] | None = None,
    *,
    batches: int | None = None,
    progress: bool = False,
    shuffle: int | None = None,
    debiased: bool = True,
    gram_dtype: torch.dtype = torch.float32,
    preprocess: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> CKAResult:
    """CKA between all taps of all models in one pass over one stream of images (Raghu et al. 2021, Figs. 1, 2, B.1).

    Args:
        models: label → network; run in eval mode where its weights are, its modes restored at the end.
        loader: batches of images (n, 3, H, W), or tuples that begin with them. Read once, so it may shuffle. A last,
            smaller batch counts with its own normalisation; below 4 images it is left out (``result.skipped``).
        kinds: kinds of taps (``taps.KINDS``) for all models, or label → kinds or ``Tap``s; all taps by default.
        batches: how many batches to read; all by default.
        progress: show a bar with images a second.
        shuffle: a seed; ``result.control`` is then CKA with the images of each batch permuted on one side: near 0.
        debiased: False for the biased estimate, for teaching alone.
        gram_dtype: precision of the Gram matrices; bfloat16 is an option for GPUs.
        preprocess: label → function of a batch of images, in place of ``images.normalise``.

    Returns:
        The result, whose ``taps`` are in the order of models and depth. In distributed runs (torchrun) each rank reads
        the loader, computes whole batches in turn and gets the full result.

    Raises:
        ValueError: no models, no batch of 4 images, and, naming the model and the tap, activations that are not
            finite or whose first axis is not the images.
    """
    if not models:
        raise ValueError("no models to compare")
    strangers = set(kinds if isinstance(kinds, Mapping) else ()) | set(preprocess or ())
    if strangers := sorted(strangers - set(models)):
        raise ValueError(f"kinds or preprocess for {strangers}, but the models are {', '.join(models)}")
    taps = {
        label: _taps(model, kinds.get(label) if isinstance(kinds, Mapping) else kinds)
        for label, model in models.items()
    }
    prepare = {label: (preprocess or {}).get(label) or partial(normalise, model) for label, model in models.items()}
    row = partial(gram_row, debiased=debiased, dtype=gram_dtype)
    places = _places(taps)
    device = next(next(iter(models.values())).parameters(), torch.empty(0)).device
    metric, control = MinibatchCKA(len(places)), MinibatchCKA(len(places), len(places))
    if device.type == "cuda":  # distributed sums of CUDA processes need their states there
        metric, control = metric.to(device), control.to(device)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
    size = skipped = used = 0
    with evaluating(*models.values()), torch.inference_mode(), _bar(loader, batches, progress and rank == 0) as bar:
        for index, batch in enumerate(islice(loader, batches)):
            images = pixels(batch)
            n = len(images)
            bar.update(n)
            if n < LEAST:
                skipped += n
                continue
            size, used = max(size, n), used + 1
            if index % world != rank:
                continue
            rows = torch.stack(
                [
                    found.to(device)
                    for label, model in models.items()
                    for found in _rows(label, model, prepare[label](images), n, taps[label], row)
                ]
            )
            _check_finite(rows, places, gram_dtype)
            metric.update(rows, batch_index=index)
            if shuffle is not None:
                control.update(rows, _shuffled(rows, (shuffle, index)), batch_index=index)
    if not used:
        raise ValueError(f"no batch of at least {LEAST} images was read; CKA needs one")
    sums, everything = metric.sums(), np.arange(len(places))
    result = CKAResult(
        sums, places, everything, everything,
        n_images=int(sums.images.sum()), batch=size, batches=used, skipped=skipped,
        estimator="HSIC, unbiased, summed over minibatches" if debiased else "HSIC, biased, summed over minibatches",
        dtype=str(gram_dtype).removeprefix("torch."), shuffle=shuffle,
    )  # fmt: skip
    return result if shuffle is None else replace(result, control=replace(result, sums=control.sums()))


def _taps(model: nn.Module, wanted: Iterable[Tap | str] | None) -> list[Tap]:
    """The taps of a model: those given, those of the kinds given, or all."""
    wanted = None if wanted is None else list(wanted)
    return wanted if wanted and isinstance(wanted[0], Tap) else taps_for(model, wanted)


def _places(taps: Mapping[str, list[Tap]]) -> pd.DataFrame:
    """The table of all models' taps: model, name, kind, depth from 0 to 1 along the taps of its model."""
    rows = [
        (model, tap.name, tap.kind, i / max(len(of_model) - 1, 1))
        for model, of_model in taps.items()
        for i, tap in enumerate(of_model)
    ]
    return pd.DataFrame(rows, columns=["model", "name", "kind", "depth"])


def _bar(loader: Iterable, batches: int | None, shown: bool) -> tqdm:
    """A bar that counts images; it knows how many there are where the loader says so."""
    if hasattr(loader, "__len__"):
        batches = len(loader) if batches is None else min(batches, len(loader))
    batch = getattr(loader, "batch_size", None)
    return tqdm(total=batches * batch if batches and batch else None, desc="CKA", unit=" images", disable=not shown)


def _rows(
    label: str, model: nn.Module, x: Tensor, n: int, taps: list[Tap], row: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """The ``gram_row`` (n²,) of each tap of a model that is given the ``n`` images ``x``."""
    with capture(model, taps, row) as out:
        model(x)
    for name, found in out.items():
        if len(found) != n * n:
            raise ValueError(f"{label}/{name}: its first axis is not the {n} images; CKA cannot use it")
    return list(out.values())


def _check_finite(rows: Tensor, places: pd.DataFrame, dtype: torch.dtype) -> None:
    """Raise ValueError for rows (L, n²) that are not finite, naming the first place."""
    finite = rows.isfinite().all(1)
    if not finite.all():
        bad = places.iloc[int(finite.int().argmin())]
        raise ValueError(f"{bad['model']}/{bad['name']}: activations are not finite, or too large for {dtype}")


def _shuffled(rows: Tensor, seed: tuple[int, int]) -> Tensor:
    """The rows (L, n²) of the same representations with the images in another order."""
    n = round(rows.shape[1] ** 0.5)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n)).to(rows.device)
    return rows.view(-1, n, n)[:, order][:, :, order].flatten(1)
