"""HSIC with a linear kernel: from features to Gram matrices, and to rows whose inner products are HSICs.

With features flattened, p ≫ n, and the plain (biased) estimate of HSIC makes unrelated representations look alike; the
unbiased one (Song et al. 2012) does not. Centring a Gram matrix as Székely & Rizzo (2014) do turns it into a row of n²
numbers (``gram_row``) such that the inner product of two rows is exactly the unbiased HSIC.

HSIC grows with the fourth power of the activations, and those of deep networks, untrained ones above all, grow or fade
from layer to layer beyond what squares in float32 can hold. Numbers are therefore divided by powers of two before they
are multiplied, and multiplied by them again in float64: no digit changes by that, but none is lost.
"""

import torch
from torch import Tensor

from helpers.networks.inputs import float64

LEAST = 4  # images the unbiased estimate needs: it divides by n − 3
BLOCK = 64  # rows of a Gram matrix that are computed at once
SAFE = 2.0**-80, 2.0**80  # largest number of a float32 row, within which its digits are all there
NEAR = 2.0**-40, 2.0**40  # largest number of float32 rows whose inner products have all their digits
HALVES = (torch.bfloat16, torch.float16)


def gram_linear(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Gram matrix XXᵀ, shape (n, n), of features (n, …), flattened to (n, p).

    Computed in the dtype of ``x`` (float32 for whole numbers and for halves) or in ``dtype``. For a half ``dtype``
    the features' means are taken out first, since they would use up the few digits, the features are scaled to where
    halves have all their digits, and the products are summed in float32, which is returned.
    """
    x = torch.as_tensor(x).flatten(1)
    if dtype in HALVES:
        x = x.float()
        x = x - x[:1]
        x = x - x.mean(0)
        power = power_of_two(x.abs().max())
        x = (x / power).to(dtype)
        gram = torch.mm(x, x.T, out_dtype=torch.float32) if x.is_cuda else x.float() @ x.float().T
        return gram * power * power
    x = x.to(dtype or (x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32))
    gram = x.new_zeros(len(x), len(x))
    for start in range(0, len(x), BLOCK):  # only the blocks on and below the diagonal are multiplied out
        rows = slice(start, start + BLOCK)
        gram[rows, : start + BLOCK] = x[rows] @ x[: start + BLOCK].T
    return gram.tril() + gram.tril(-1).T


def power_of_two(x: Tensor) -> Tensor:
    """The largest power of two up to each number of ``x``, which are not negative; 1 for zero.

    To divide by it takes numbers to [1, 2), and changes no digit. NaN where a number is not finite.
    """
    return torch.where(x == 0, 1, x / (2 * torch.frexp(x).mantissa))


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

    The row has the dtype of the Gram matrix (``gram_linear``); where its numbers are too large or too small for
    float32 it is computed from scaled features and returned in float64. Values that are not finite give NaN.
    """
    x = torch.as_tensor(x).flatten(1)
    row = _row(x, debiased, dtype)
    if row.dtype == torch.float64 or SAFE[0] < float(row.abs().max()) < SAFE[1]:
        return row
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    power = power_of_two(x.abs().max())
    scaled = _row(x / power, debiased, dtype)
    return float64(scaled) * float64(power) ** 2 if scaled.any() else scaled


def _row(x: Tensor, debiased: bool, dtype: torch.dtype | None) -> Tensor:
    """The row (n²,) of features (n, p): ``gram_row`` where squares of the features are numbers of their dtype."""
    gram = gram_linear(x, dtype)
    row = _row_of_gram(gram, debiased)
    if row.abs().mean() < 1e-4 * gram.abs().mean() / len(gram):
        x = x.to(gram.dtype)
        x = x - x[:1]
        row = _row_of_gram(gram_linear(x - x.mean(0), dtype), debiased)
    return row


def row_of_gram(gram: Tensor, debiased: bool = True) -> Tensor:
    """The row (n²,) of a Gram matrix (n, n): ``gram_row`` where the Gram matrix is there already.

    Raises ``ValueError`` for values that are not finite, as products that are too large for their dtype are.
    """
    if not gram.isfinite().all():
        raise ValueError(
            f"a Gram matrix holds NaN or infinite values: products too large for {gram.dtype}, or features that are "
            "not finite; compute it in float32 or float64, and look at what the network was given"
        )
    return _row_of_gram(gram, debiased)


def _row_of_gram(gram: Tensor, debiased: bool) -> Tensor:
    n = len(gram)
    return center_gram(gram, debiased).flatten() / ((n * (n - 3)) ** 0.5 if debiased else n - 1)


def inner_products(rows: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """HSICs of ``rows`` (L, n²) with ``columns`` (M, n²), and of each with itself: (L, M), (L,), (M,), all float64.

    Multiplied in the dtype of the rows, which are scaled by powers of two before and back after where it is needed, so
    that the rows of a layer may be of any size. Without ``columns`` they are the rows. NaN where a row is not finite.
    """
    x, x_power = _scaled(rows)
    y, y_power = (x, x_power) if columns is None else _scaled(columns)
    dtype = torch.promote_types(x.dtype, y.dtype)
    cross = x.to(dtype) @ y.to(dtype).T
    if columns is None:
        own_x = own_y = cross.diagonal()
    else:
        own_x, own_y = x.square().sum(1), y.square().sum(1)
    back = x_power[:, None] * y_power
    return float64(cross) * back, float64(own_x) * x_power.square(), float64(own_y) * y_power.square()


def _scaled(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (L, n²) whose products are numbers of their dtype, and the powers of two (L,) float64 they were divided by.

    Their largest numbers are in [1, 2), or all lie near enough to 1 for the rows to be taken as they are.
    """
    power = power_of_two(torch.maximum(rows.amax(1), -rows.amin(1)))
    if power.min() > NEAR[0] and power.max() < NEAR[1]:
        return rows, torch.ones_like(float64(power))
    return rows / power[:, None], float64(power)


def hsic_biased(gram_x: Tensor, gram_y: Tensor) -> Tensor:
    """Biased estimate of HSIC, tr(KHLH)/(n − 1)², of two Gram matrices (n, n) (Gretton et al. 2005)."""
    check_same_images(gram_x, gram_y)
    return (center_gram(gram_x, debiased=False) * center_gram(gram_y, debiased=False)).sum() / (len(gram_x) - 1) ** 2


def hsic_unbiased(gram_x: Tensor, gram_y: Tensor) -> Tensor:
    """Unbiased estimate of HSIC (Song et al. 2012), in U-centred form, of two Gram matrices (n, n)."""
    check_same_images(gram_x, gram_y)
    n = len(gram_x)
    return (center_gram(gram_x) * center_gram(gram_y)).sum() / (n * (n - 3))


def check_same_images(x: Tensor, y: Tensor) -> None:
    """Raise ``ValueError`` for representations, or Gram matrices, of different numbers of images."""
    if len(x) != len(y):
        raise ValueError(f"CKA compares representations of the same images, but these are {len(x)} and {len(y)} images")
