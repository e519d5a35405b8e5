"""HSIC and CKA with a linear kernel: of two arrays, and of many layers over minibatches with standard errors.

Centred kernel alignment compares two representations of the same n images by their Gram matrices K = XXᵀ and
L = YYᵀ, which say how alike any two images look to each (Kornblith et al. 2019; Raghu et al. 2021, eq. 1)::

    CKA(K, L) = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L))

With features flattened, p ≫ n, and the plain (biased) estimate of HSIC makes unrelated representations look alike; the
unbiased one (Song et al. 2012) does not. Centring a Gram matrix as Székely & Rizzo (2014) do turns it into a row of n²
numbers (``gram_row``) such that the inner product of two rows is exactly the unbiased HSIC.

Nothing is clamped: an unbiased estimate may be slightly negative, and a representation that does not vary over the
images has no CKA (NaN).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from helpers.uncertainty import GROUPS, bootstrap_groups, weighted_jackknife

LEAST = 4  # images the unbiased estimate needs: it divides by n − 3
BLOCK = 64  # rows of a Gram matrix that are computed at once


def gram_linear(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Gram matrix XXᵀ, shape (n, n), of features (n, …), flattened to (n, p).

    Computed in the dtype of ``x`` (float32 for whole numbers and for halves) or in ``dtype``. For a half ``dtype``
    the features' means are taken out first, since they would use up the few digits, and float32 is returned.
    """
    x = torch.as_tensor(x).flatten(1)
    if dtype in (torch.bfloat16, torch.float16):
        x = x if x.is_floating_point() else x.float()  # whole numbers would wrap around
        x = (x - x[:1]).float()
        x = (x - x.mean(0)).to(dtype)
        return torch.mm(x, x.T, out_dtype=torch.float32) if x.is_cuda else (x @ x.T).float()
    x = x.to(dtype or (x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32))
    gram = x.new_zeros(len(x), len(x))
    for start in range(0, len(x), BLOCK):  # only the blocks on and below the diagonal are multiplied out
        rows = slice(start, start + BLOCK)
        gram[rows, : start + BLOCK] = x[rows] @ x[: start + BLOCK].T
    return gram.tril() + gram.tril(-1).T


def center_gram(gram: Tensor, debiased: bool = True) -> Tensor:
    """Centred Gram matrix, (n, n): for the unbiased HSIC (U-centring, zero diagonal) or for the biased one (HKH).

    U-centring: Székely & Rizzo 2014; biased: Gretton et al. 2005. Raises ``ValueError`` below 4 images.
    """
    n = gram.shape[0]
    if gram.shape != (n, n):
        raise ValueError(f"a Gram matrix is square, not {tuple(gram.shape)}")
    if not debiased:
        mean = gram.mean(0)
        return gram - mean[:, None] - mean[None] + mean.mean()
    if n < LEAST:
        raise ValueError(f"the unbiased estimate of HSIC needs at least {LEAST} images, not {n}")
    gram = gram.clone().fill_diagonal_(0)
    mean = gram.sum(0) / (n - 2)
    mean -= mean.sum() / (2 * (n - 1))
    gram -= mean[:, None] + mean[None]
    return gram.fill_diagonal_(0)


def gram_row(x: Tensor, debiased: bool = True, dtype: torch.dtype | None = None) -> Tensor:
    """Features (n, …) as a row (n²,) such that the inner product of two rows is their HSIC.

    The row is the centred Gram matrix, flattened and divided by √(n(n − 3)), or by n − 1 for the biased HSIC.
    Where all images share nearly the same features, centring would cancel more digits than there are; then the
    first image's features and the means are taken out of the features first, which changes no HSIC. A layer that is
    the same for all images gives zeros exactly.
    """
    gram = gram_linear(x, dtype)
    row = row_of_gram(gram, debiased)
    if row.abs().mean() < 1e-4 * gram.abs().mean() / len(gram):
        x = torch.as_tensor(x).flatten(1).to(gram.dtype)
        x = x - x[:1]
        row = row_of_gram(gram_linear(x - x.mean(0), dtype), debiased)
    return row


def row_of_gram(gram: Tensor, debiased: bool = True) -> Tensor:
    """The row (n²,) of a Gram matrix (n, n): ``gram_row`` where the Gram matrix is there already."""
    n = len(gram)
    return center_gram(gram, debiased).flatten() / ((n * (n - 3)) ** 0.5 if debiased else n - 1)


def hsic_biased(gram_x: Tensor, gram_y: Tensor) -> Tensor:
    """Biased estimate of HSIC, tr(KHLH)/(n − 1)², of two Gram matrices (n, n) (Gretton et al. 2005)."""
    _check_same_images(gram_x, gram_y)
    return (center_gram(gram_x, debiased=False) * center_gram(gram_y, debiased=False)).sum() / (len(gram_x) - 1) ** 2


def hsic_unbiased(gram_x: Tensor, gram_y: Tensor) -> Tensor:
    """Unbiased estimate of HSIC (Song et al. 2012), in U-centred form, of two Gram matrices (n, n)."""
    _check_same_images(gram_x, gram_y)
    n = len(gram_x)
    return (center_gram(gram_x) * center_gram(gram_y)).sum() / (n * (n - 3))


def cka(x: Tensor, y: Tensor, debiased: bool = True) -> float:
    """Linear CKA of two representations of the same n images, (n, …) and (n, …), flattened.

    NaN where one of them does not vary. Raises ``ValueError`` where the numbers of images differ, or are below 4
    (debiased), and for values that are not finite.
    """
    _check_same_images(x, y)
    _check_finite(x, y)
    x, y = gram_row(x, debiased).double(), gram_row(y, debiased).double()
    return ratio(float(x @ y), float(x @ x), float(y @ y))


def feature_space_linear_cka(x: Tensor, y: Tensor, debiased: bool = True) -> float:
    """``cka`` by way of the (p, q) feature covariance instead of the (n, n) Gram matrices: cheap where p, q < n.

    With centred columns the biased HSIC is ‖XᵀY‖² up to a factor; the unbiased one takes away what the diagonals of
    the Gram matrices, the squared row lengths a and b, add to it (Kornblith et al. 2019, and their notebook)::

        ‖XᵀY‖² − n/(n − 2) a·b + Σa Σb / ((n − 1)(n − 2))

    NaN and ``ValueError`` as for ``cka``.
    """
    _check_same_images(x, y)
    _check_finite(x, y)
    n = len(x)
    if debiased and n < LEAST:
        raise ValueError(f"the unbiased estimate of HSIC needs at least {LEAST} images, not {n}")
    x, y = (torch.as_tensor(z).flatten(1) for z in (x, y))
    x, y = (z if z.dtype == torch.float64 else z.float() for z in (x, y))
    x, y = x - x[:1], y - y[:1]  # what is the same for all images becomes exactly zero
    x, y = x - x.mean(0), y - y.mean(0)

    def hsic(x: Tensor, y: Tensor) -> float:
        product = (x.T @ y).square().sum()
        if debiased:
            a, b = x.square().sum(1), y.square().sum(1)
            product = product - n / (n - 2) * (a @ b) + a.sum() * b.sum() / ((n - 1) * (n - 2))
        return float(product)

    return ratio(hsic(x, y), hsic(x, x), hsic(y, y))


def _check_same_images(x: Tensor, y: Tensor) -> None:
    if len(x) != len(y):
        raise ValueError(f"CKA compares representations of the same images, but these are {len(x)} and {len(y)} images")


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

    ``cross`` (G, L, M), ``self_x`` (G, L), ``self_y`` (G, M) float64; ``batches`` and ``images`` (G,) whole numbers.
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

        Groups of unequal numbers of batches are weighted accordingly (``uncertainty.weighted_jackknife``). The error is
        NaN below two groups with data. ``fn`` may return a number or an array.
        """
        value = np.asarray(fn(self.cka()), dtype=float)
        groups = np.flatnonzero(self.batches)
        if len(groups) < 2:
            stderr = np.full_like(value, np.nan)
        else:
            left_out = np.stack([np.asarray(fn(self.cka(without=group)), dtype=float) for group in groups])
            stderr = weighted_jackknife(value, left_out, self.batches[groups] / self.batches.sum())
        return (value, stderr) if value.ndim else (float(value), float(stderr))

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
    Each batch counts once with its own normalisation, whatever its number of images. With ``others`` the rows
    of M other layers (or of shuffled images) are compared with those of the L layers, and matrices are (L, M).

    Batch b adds to jackknife group b mod 16. All states are sums, so they merge over processes: let rank r of R
    process the whole batches r, r + R, … of the single-process order and say so with ``batch_index``; without it
    batches are counted from 0 as they come.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    def __init__(self, layers: int, others: int | None = None, groups: int = GROUPS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.groups, self.square, columns = groups, others is None, layers if others is None else others
        for name, shape in {"cross": (layers, columns), "self_x": (layers,), "self_y": (columns,)}.items():
            self.add_state(name, torch.zeros(groups, *shape, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("batches", "images"):
            self.add_state(name, torch.zeros(groups, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, rows: Tensor, others: Tensor | None = None, batch_index: int | None = None) -> None:
        """Add one batch: ``rows`` (L, n²), ``others`` (M, n²). Raises ``ValueError`` where shapes do not fit."""
        columns = rows if others is None else others
        (layers, size), expected = rows.shape, tuple(self.cross.shape[1:])
        if self.square != (others is None) or (layers, len(columns)) != expected or columns.shape[1] != size:
            got = [tuple(rows.shape)] + ([] if others is None else [tuple(others.shape)])
            raise ValueError(f"rows (layers, n²) of {expected} layers and the same n images are expected, not {got}")
        group = (self.update_count - 1 if batch_index is None else batch_index) % self.groups
        product = (rows @ columns.T).to(self.cross)
        self.cross[group] += product
        self.self_x[group] += product.diagonal() if self.square else rows.square().sum(1).to(self.cross)
        self.self_y[group] += product.diagonal() if self.square else columns.square().sum(1).to(self.cross)
        self.batches[group] += 1
        self.images[group] += round(size**0.5)

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
        with self.sync_context():
            return self._local_sums()

    def _local_sums(self) -> Sums:
        return Sums(*(getattr(self, name).cpu().numpy().copy() for name in Sums.__dataclass_fields__))
