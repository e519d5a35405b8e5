"""Ridge regression in closed form, and the probe whose penalty does best on held-out images.

The features are standardised with the mean and standard deviation of the images the probe learns from; the intercept is
not penalised (it is fitted by centring). The penalty l2 multiplies ‖w‖² beside a *sum* of squared errors, so that it is
the ``alpha`` of scikit-learn. Everything is batched over leading axes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

L2S = tuple(10.0**k for k in range(-1, 6))


def all_finite(x: Tensor) -> bool:
    """Whether no number of a tensor is NaN or infinite, in one pass: either would be its least or its largest."""
    return not x.numel() or all(bool(end.isfinite()) for end in torch.aminmax(x))


def ridge(x: Tensor, y: Tensor, l2: float | Sequence[float]) -> tuple[Tensor, Tensor]:
    """Minimise Σ‖y − xw − b‖² + l2 ‖w‖² over weights w (…, D, K) and intercept b (…, K).

    ``x`` (…, N, D), ``y`` (…, N, K), broadcast over leading axes. One ``l2``: Cholesky. Several: one
    eigendecomposition for all, and another leading axis (L, …). Either is of the smaller of D × D and N × N.

    Raises ``ValueError`` for shapes that do not fit, an l2 that is not positive, or values that are not finite.
    """
    l2s = [float(l2)] if isinstance(l2, (int, float)) else [float(one) for one in l2]
    if x.shape[-2] != y.shape[-2]:
        raise ValueError(f"features of {x.shape[-2]} images and targets of {y.shape[-2]}")
    if not l2s or min(l2s) <= 0:
        raise ValueError(f"l2 is a positive number, or several; got {l2}")
    for name, values in (("features", x), ("targets", y)):
        if not all_finite(values):
            raise ValueError(f"the {name} hold NaN or infinite values; look at what the network was given")
    x_mean, y_mean = x.mean(-2, keepdim=True), y.mean(-2, keepdim=True)
    x, y = x - x_mean, y - y_mean
    wide = x.shape[-1] > x.shape[-2]
    gram = x @ x.mT if wide else x.mT @ x
    right = y.expand(*gram.shape[:-2], *y.shape[-2:]) if wide else x.mT @ y
    if not isinstance(l2, (int, float)):
        values, basis = torch.linalg.eigh(gram)
        penalties = torch.as_tensor(l2s, dtype=x.dtype, device=x.device).view(-1, *[1] * values.ndim)
        shrunk = 1 / (values.clamp(min=0) + penalties)  # (L, …, r)
        weights = basis @ (shrunk[..., None] * (basis.mT @ right))
    else:
        penalty = l2s[0] * torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
        weights = torch.cholesky_solve(right, torch.linalg.cholesky(gram + penalty))
    weights = x.mT @ weights if wide else weights
    return weights, (y_mean - x_mean @ weights).squeeze(-2)


@dataclass(frozen=True)
class Probe:
    """A fitted probe: features (…, N, D) → scores (…, N, K), by ``probe(x)``. ``l2`` (…) was chosen."""

    mean: Tensor
    std: Tensor
    weights: Tensor
    intercept: Tensor
    l2: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return _scores(_standardised(x, self.mean, self.std), self.weights, self.intercept)


def _standardised(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (x.float() - mean) / std


def _scores(x: Tensor, weights: Tensor, intercept: Tensor) -> Tensor:
    """Scores (…, N, K) of standardised features (…, N, D)."""
    return x @ weights + intercept[..., None, :]


def fit(
    x: Tensor,
    y: Tensor,
    valid_x: Tensor,
    valid_y: Tensor,
    l2s: Sequence[float],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Probe:
    """The probe whose l2 does best on held-out images. A feature that never changes among the N images is left out.

    Args:
        x: features (…, N, D) to learn from.
        y: their targets (…, N, K).
        valid_x: features (…, V, D) to choose the l2 on.
        valid_y: their targets, as ``loss`` takes them.
        l2s: to choose from; of two that do as well, the larger is taken.
        loss: scores (…, V, K) and ``valid_y`` → one number for each probe (…).

    Returns:
        one probe, or one for each index of the leading axes.

    Raises:
        ValueError: where no feature changes among the N images.
    """
    x = x.float()
    mean = x.mean(-2, keepdim=True)
    std = (x - mean).square().mean(-2, keepdim=True).sqrt()  # several times as fast as torch.std_mean
    fixed = std <= 1e-6 * mean.abs() + 1e-12
    if fixed.all(-1).any():
        raise ValueError("the features are the same for all images, so no probe can read anything from them")
    std = std.masked_fill(fixed, torch.inf)  # 1 / inf = 0
    l2s = sorted(l2s, reverse=True)
    weights, intercept = ridge(_standardised(x, mean, std), y.float(), l2s)
    held_out = _standardised(valid_x, mean, std)
    losses = torch.stack([loss(_scores(held_out, *one), valid_y) for one in zip(weights, intercept, strict=True)])
    best = losses.argmin(0)  # of (L, …): the first, where several are as good
    pick = best.view(1, *best.shape, 1, 1)
    weights, intercept = weights.take_along_dim(pick, 0)[0], intercept.take_along_dim(pick[..., 0], 0)[0]
    return Probe(mean, std, weights, intercept, torch.tensor(l2s)[best])
