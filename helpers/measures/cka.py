"""CKA with a linear kernel: of two arrays, and of many layers over minibatches with standard errors.

Centred kernel alignment compares two representations of the same n images by their Gram matrices K = XXᵀ and
L = YYᵀ, which say how alike any two images look to each (Kornblith et al. 2019; Raghu et al. 2021, eq. 1)::

    CKA(K, L) = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L))

HSIC is the unbiased estimate by default, an inner product of two rows of n² numbers (``hsic.gram_row``).

Nothing is clamped: an unbiased estimate may be slightly negative, and a representation that does not vary over the
images has no CKA (NaN).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from helpers.measures.distributed import process
from helpers.measures.hsic import (
    LEAST,
    center_gram,
    check_same_images,
    gram_linear,
    gram_row,
    hsic_biased,
    hsic_unbiased,
    inner_products,
    power_of_two,
    row_of_gram,
)
from helpers.networks.inputs import float64
from helpers.uncertainty import GROUPS, bootstrap_groups, weighted_jackknife

__all__ = [
    "LEAST", "MinibatchCKA", "Sums", "bootstrap", "center_gram", "cka", "feature_space_linear_cka", "gram_linear",
    "gram_row", "hsic_biased", "hsic_unbiased", "inner_products", "ratio", "row_of_gram",
]  # fmt: skip


def cka(x: Tensor, y: Tensor, debiased: bool = True) -> float:
    """Linear CKA of two representations of the same n images, (n, …) and (n, …), flattened.

    NaN where one of them does not vary. Raises ``ValueError`` where the numbers of images differ, or are below 4
    (debiased), and for values that are not finite.
    """
    check_same_images(x, y)
    _check_finite(x, y)
    x, y = (float64(gram_row(_unit(z), debiased)) for z in (x, y))
    return ratio(float(x @ y), float(x @ x), float(y @ y))


def feature_space_linear_cka(x: Tensor, y: Tensor, debiased: bool = True) -> float:
    """``cka`` by way of the (p, q) feature covariance instead of the (n, n) Gram matrices: cheap where p, q < n.

    With centred columns the biased HSIC is ‖XᵀY‖² up to a factor; the unbiased one takes away what the diagonals of
    the Gram matrices, the squared row lengths a and b, add to it (Kornblith et al. 2019, and their notebook)::

        ‖XᵀY‖² − n/(n − 2) a·b + Σa Σb / ((n − 1)(n − 2))

    NaN and ``ValueError`` as for ``cka``.
    """
    check_same_images(x, y)
    _check_finite(x, y)
    n = len(x)
    if debiased and n < LEAST:
        raise ValueError(f"the unbiased estimate of HSIC needs at least {LEAST} images, not {n}")
    x, y = _unit(x), _unit(y)
    x, y = x - x[:1], y - y[:1]  # what is the same for all images becomes exactly zero
    x, y = (_unit(z - z.mean(0)) for z in (x, y))

    def hsic(x: Tensor, y: Tensor) -> float:
        product = (x.T @ y).square().sum()
        if debiased:
            a, b = x.square().sum(1), y.square().sum(1)
            product = product - n / (n - 2) * (a @ b) + a.sum() * b.sum() / ((n - 1) * (n - 2))
        return float(product)

    return ratio(hsic(x, y), hsic(x, x), hsic(y, y))


def _unit(x: Tensor) -> Tensor:
    """Features (n, …) as (n, p) float32 or float64, divided by a power of two so that the largest is in [1, 2)."""
    x = torch.as_tensor(x).flatten(1)
    x = x if x.dtype == torch.float64 else x.float()
    return x / power_of_two(x.abs().max())


def _check_finite(*representations: Tensor) -> None:
    if not all(torch.as_tensor(x).isfinite().all() for x in representations):
        raise ValueError("the representations hold NaN or infinite values; look at what the network was given")


def ratio(hsic: Any, self_x: Any, self_y: Any) -> Any:
    """HSIC to CKA, NaN where a self-HSIC is not positive. Numbers, or arrays that broadcast."""
    product = np.where((np.asarray(self_x) > 0) & (np.asarray(self_y) > 0), np.multiply(self_x, self_y), np.nan)
    ratio = np.asarray(hsic) / np.sqrt(product)
    return ratio if ratio.ndim else float(ratio)


@dataclass(frozen=True)
class Sums:
    """Sums of HSICs over the batches of each jackknife group: all that CKA and its error need. Numpy arrays.

    ``cross`` (G, L, M), ``self_x`` (G, L), ``self_y`` (G, M) float64, each batch's HSIC times its number of images;
    ``batches`` and ``images`` (G,) whole numbers.
    """

    cross: np.ndarray
    self_x: np.ndarray
    self_y: np.ndarray
    batches: np.ndarray
    images: np.ndarray

    def cka(self, without: int | None = None, weights: np.ndarray | None = None) -> np.ndarray:
        """CKA (L, M) from all groups, from all but one, or with each group as often as ``weights`` (G,) say."""
        parts = (self.cross, self.self_x, self.self_y)
        if weights is not None:
            cross, x, y = (np.tensordot(weights, part, 1) for part in parts)
        else:
            cross, x, y = (part.sum(0) - (0 if without is None else part[without]) for part in parts)
        return ratio(cross, x[:, None], y[None])

    def statistic(self, fn: Callable[[np.ndarray], Any]) -> tuple[Any, Any]:
        """``fn`` of the CKA matrix, and its standard error by the delete-one-group jackknife.

        Groups of unequal numbers of images are weighted accordingly (``uncertainty.weighted_jackknife``). The error is
        NaN below two groups with data. ``fn`` may return a number or an array.
        """
        value = np.asarray(fn(self.cka()), dtype=np.float64)
        groups = np.flatnonzero(self.batches)
        if len(groups) < 2:
            stderr = np.full_like(value, np.nan)
        else:
            left_out = np.stack([np.asarray(fn(self.cka(without=int(group))), dtype=np.float64) for group in groups])
            stderr = weighted_jackknife(value, left_out, self.images[groups] / self.images.sum())
        return (value, stderr) if value.ndim else (float(value), float(stderr))

    def weighted(self) -> "Sums":
        """Sums of HSICs that counted alike, each now times its images; the batches of a group are taken as equal."""
        size = self.images / np.maximum(self.batches, 1)
        parts = self.cross * size[:, None, None], self.self_x * size[:, None], self.self_y * size[:, None]
        return Sums(*parts, self.batches, self.images)

    @property
    def groups(self) -> int:
        """Number of groups with data."""
        return int((self.batches > 0).sum())


def bootstrap(fn: Callable[..., Any], *sums: Sums, times: int = 1000, seed: int = 0) -> tuple[Any, Any]:
    """``fn`` of the CKA matrices of one or more ``Sums``, and its 95 % interval, by a bootstrap over groups.

    For numbers that jump, such as ranks, as ``uncertainty.bootstrap`` is for tables; groups are drawn as by
    ``uncertainty.bootstrap_groups``, the same ones for all ``sums``, which are of the same images. ``fn`` may return a
    number or an array of K; the interval is (low, high) or (K, 2). Raises ValueError where the sums have not the same
    groups, or fewer than two.
    """
    groups = np.flatnonzero(sums[0].batches)
    if len(groups) < 2 or any(not np.array_equal(groups, np.flatnonzero(other.batches)) for other in sums):
        raise ValueError(
            "a bootstrap needs two groups of batches or more, the same ones on all sides; use more batches"
        )

    def of_drawn(drawn: np.ndarray) -> Any:
        weights = np.bincount(groups[drawn], minlength=len(sums[0].batches))
        return fn(*(one.cka(weights=weights) for one in sums))

    return bootstrap_groups(fn(*(one.cka() for one in sums)), of_drawn, len(groups), times, seed)


class MinibatchCKA(Metric):
    """CKA of L layers from minibatches: HSICs are summed over batches, and the ratio is taken of the sums.

    ``update(rows)`` adds a batch, given the stacked ``gram_row`` of each layer (Nguyen, Raghu & Kornblith 2021).
    Each batch has its own normalisation and counts by its number of images, so that a small last one, whose HSIC is
    less sure, does not weigh as much as the others. With ``others`` the rows of M other layers (or of shuffled
    images) are compared with those of the L layers, and matrices are (L, M).

    Batch b adds to jackknife group b mod 16. All states are sums, so they merge over processes: let rank r of R
    process the whole batches r, r + R, … of the single-process order and say so with ``batch_index``; without it
    batches are counted from 0 as they come.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    cross: Tensor
    self_x: Tensor
    self_y: Tensor
    batches: Tensor
    images: Tensor

    def __init__(self, layers: int, others: int | None = None, groups: int = GROUPS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.groups, self.square, columns = groups, others is None, layers if others is None else others
        for name, shape in {"cross": (layers, columns), "self_x": (layers,), "self_y": (columns,)}.items():
            self.add_state(name, torch.zeros(groups, *shape, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("batches", "images"):
            self.add_state(name, torch.zeros(groups, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, rows: Tensor, others: Tensor | None = None, batch_index: int | None = None) -> None:
        """Add one batch: ``rows`` (L, n²), ``others`` (M, n²).

        Raises ``ValueError`` where shapes do not fit, and for values that are not finite.
        """
        columns = rows if others is None else others
        (layers, size), expected = rows.shape, tuple(self.cross.shape[1:])
        if self.square != (others is None) or (layers, len(columns)) != expected or columns.shape[1] != size:
            got = [tuple(rows.shape)] + ([] if others is None else [tuple(others.shape)])
            raise ValueError(f"rows (layers, n²) of {expected} layers and the same n images are expected, not {got}")
        group = (self.update_count - 1 if batch_index is None else batch_index) % self.groups
        cross, self_x, self_y = inner_products(rows, others)
        if not (self_x.isfinite().all() and self_y.isfinite().all()):
            raise ValueError("the rows hold NaN or infinite values; look at what the network was given")
        images = round(size**0.5)
        self.cross[group] += images * cross.to(self.cross)
        self.self_x[group] += images * self_x.to(self.self_x)
        self.self_y[group] += images * self_y.to(self.self_y)
        self.batches[group] += 1
        self.images[group] += images

    def on(self, device: torch.device) -> Self:
        """Itself, its sums where processes that compute on ``device`` add them up: there for CUDA, else on the host.

        MPS has no float64, and gloo, by which processes without CUDA talk, adds on the host.
        """
        return self.to(device) if device.type == "cuda" else self

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """``update``, then the matrix of everything so far."""
        self.update(*args, **kwargs)
        return self.compute()

    def compute(self) -> Tensor:
        """CKA (L, M), float64; NaN where a layer does not vary."""
        return torch.from_numpy(self._local_sums().cka())

    def stderr(self) -> Tensor:
        """Jackknife standard error of each cell, (L, M); NaN below two groups with data."""
        return torch.from_numpy(self.statistic(lambda matrix: matrix)[1])

    def statistic(self, fn: Callable[[np.ndarray], Any]) -> tuple[Any, Any]:
        """Any function of the CKA matrix (a numpy array), and its jackknife standard error."""
        return self.sums().statistic(fn)

    def sums(self) -> Sums:
        """The sums over all processes."""
        with self.sync_context(distributed_available=lambda: process()[1] > 1):
            return self._local_sums()

    def _local_sums(self) -> Sums:
        return Sums(*(getattr(self, name).cpu().numpy().copy() for name in Sums.__dataclass_fields__))
