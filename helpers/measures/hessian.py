"""The largest eigenvalues of the Hessian of a network's loss: products with it, and Lanczos' method.

The Hessian H of the loss in P weights is P × P and never written down. A product H v is the gradient of ⟨∇loss, v⟩
(Pearlmutter 1994), and costs a few backward passes. From products alone Lanczos' method finds the eigenvalues at both
ends of the spectrum. The Hessian of a network with ReLUs is that of the piece, between kinks, on which its weights lie;
kinks themselves, where the gradient jumps, have no curvature of their own and do not show in it.

Park & Kim (2022, Figures 1, 4, 6 and C.2 to C.7) take the five eigenvalues of largest *magnitude* on each of many
batches of 16 training images, keep their signs, and pool them over batches: the *max eigenvalue spectrum*. Of it they
read the share that is negative (NEP) and the mean of the positive ones (APE).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from helpers.measures import objective
from helpers.measures.distributed import Share
from helpers.measures.landscape import moved
from helpers.measures.objective import Batch, Weights
from helpers.networks.unfused import unfused
from helpers.uncertainty import delete_one

Product = Callable[[Tensor], Tensor]  # v (P,) → H v (P,)


@dataclass(frozen=True)
class Ritz:
    """What Lanczos' method found. ``values`` (k,): the eigenvalues largest in magnitude, with sign, largest first.

    ``residuals`` (k,): ‖H x − value · x‖ of each with its unit vector x, within which an eigenvalue lies for certain.
    ``steps``: products with H that it took.
    """

    values: np.ndarray
    residuals: np.ndarray
    steps: int


def hessian_vector_product(value: Tensor, parameters: Sequence[Tensor]) -> Product:
    """Products with the Hessian of a scalar in parameters, laid end to end: v (P,) → H v (P,), exact.

    ``value`` has the graph from ``parameters``; its gradient is taken once, for all products (Pearlmutter 1994).

    Raises ValueError for a value that is not a finite scalar; RuntimeError, from torch, where something in it has no
    second derivative, as fused attention (``networks.unfused``).
    """
    if value.ndim or not bool(value.isfinite()):
        raise ValueError(f"the Hessian is that of a finite scalar; got {value.detach().flatten()[:3].tolist()}")
    gradient = _flat(torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True))

    def product(v: Tensor) -> Tensor:
        parts = torch.autograd.grad(gradient, parameters, v, retain_graph=True, materialize_grads=True)
        return _flat(parts).detach()

    return product


def lanczos(
    product: Product,
    size: int,
    top: int = 5,
    tolerance: float = 0.05,
    most: int = 80,
    seed: int = 0,
    device: torch.device | None = None,
) -> Ritz:
    """The ``top`` eigenvalues of largest magnitude of a symmetric matrix, by Lanczos' method.

    Every vector is made orthogonal to all before it, twice, so that no eigenvalue comes back as a ghost of itself. An
    eigenvalue of multiplicity two or more is found once.

    Args:
        product: v (P,) → H v (P,), in float32.
        size: P.
        top: how many eigenvalues.
        tolerance: it ends when each residual is below this share of its eigenvalue. The error of a value that stands
            apart from the others is far smaller still, of the residual's second order.
        most: products after which it ends anyway.
        seed: of the first vector.
        device: of the vectors, by default the host; they come to P floats each, and there are as many as products.

    Returns:
        The eigenvalues with their residuals.

    Raises:
        ValueError: fewer than one eigenvalue, or more than P or than ``most``.
        FloatingPointError: a product is not finite.
    """
    if not 1 <= top <= min(size, most):
        raise ValueError(f"{top} eigenvalues of a matrix {size} × {size} can't be found with {most} products")
    v = torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(device)
    basis, norm = torch.empty(min(size, most), size, device=device), v.norm()
    diagonal: list[float] = []  # of the matrix that the basis makes of H, and the entries beside it
    beside: list[float] = []
    while True:
        step = len(diagonal)
        basis[step] = v / norm
        w = product(basis[step]).float()
        if not bool(w.isfinite().all()):
            raise FloatingPointError(f"product {step + 1} with the Hessian is not finite")
        diagonal.append(float(w @ basis[step]))
        spanned = basis[: step + 1]
        for _ in range(2):
            w = w - spanned.T @ (spanned @ w)
        v, norm = w, w.norm()
        found, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
        largest = np.argsort(-np.abs(found))[:top]
        residuals = float(norm) * np.abs(vectors[-1, largest])
        exhausted = float(norm) <= 1e-5 * np.abs(found).max()  # the basis holds all that products lead to
        settled = len(found) >= top and bool((residuals <= tolerance * np.abs(found[largest])).all())
        if settled or exhausted or len(found) == len(basis):
            return Ritz(found[largest], residuals, len(found))
        beside.append(float(norm))


def hessian_spectra(
    model: nn.Module,
    batches: Iterable[Batch],
    decay: float = 0.0,
    top: int = 5,
    tolerance: float = 0.05,
    most: int = 80,
    seed: int = 0,
    progress: str = "",
) -> pd.DataFrame:
    """The eigenvalues of largest magnitude of the Hessian of loss and penalty, on each batch by itself.

    Args:
        model: a classifier of images; its attention is computed unfused while this runs.
        batches: (images (B, 3, H, W), labels (B,)); Park & Kim's have 16 images.
        decay: of the weights (``objective.penalty``); it is what each eigenvalue gains by the penalty.
        top: eigenvalues of each batch.
        tolerance: as in ``lanczos``.
        most: as in ``lanczos``.
        seed: of Lanczos' first vectors.
        progress: a word that a bar shows; none without it.

    Returns:
        A row for each eigenvalue: ``batch``, ``rank`` from 0, ``eigenvalue`` with its ``residual`` (1), the ``steps``
        it took, and of its batch the ``images`` and the ``loss`` without penalty (nats).

    Raises:
        ValueError: no batch, or as ``lanczos``.
        FloatingPointError: as ``lanczos``.
    """
    found_in: dict[int, list[dict[str, float]]] = {}  # number of a batch → its rows
    parameters, share = dict(model.named_parameters()), Share()
    bar = tqdm(batches, desc=progress, disable=not progress, unit="batch")
    with unfused(model):
        for number, (images, labels) in share.dealt(bar):
            value = objective.loss(model, parameters, images, labels)
            total = value + objective.penalty(parameters, decay)
            product = hessian_vector_product(total, list(parameters.values()))
            size = sum(each.numel() for each in parameters.values())
            found = lanczos(product, size, top, tolerance, most, seed + number, value.device)
            about = {"steps": found.steps, "images": len(images), "loss": float(value.detach())}
            found_in[number] = [
                {"batch": number, "rank": rank, "eigenvalue": eigenvalue, "residual": residual, **about}
                for rank, (eigenvalue, residual) in enumerate(zip(found.values, found.residuals, strict=True))
            ]
    rows = share.in_order(found_in)
    if not rows:
        raise ValueError("there is no batch, so there is no Hessian")
    return pd.DataFrame(rows)


def curvature_along(
    model: nn.Module, images: Tensor, labels: Tensor, directions: Sequence[Weights], distances: Sequence[float]
) -> pd.DataFrame:
    """The curvature of the loss along directions: by the Hessian, and as steps of a finite length find it.

    Along d the Hessian has dᵀ H d. Steps of length h find (L(w + h d) + L(w − h d) − 2 L(w)) / h². For a smooth loss
    this tends to the same as h falls. Where ReLUs make kinks it need not, until h is so short that no kink is met.

    Args:
        model: a classifier of images; its attention is computed unfused while this runs.
        images: (B, 3, H, W).
        labels: (B,).
        directions: each a mapping from the name of a parameter to its direction, as ``landscape.random_direction``.
        distances: h, above 0; from about 0.01 of the weights on, below which rounding is seen.

    Returns:
        A row for each direction with ``direction`` from 0, ``hessian``, and a column for each distance (nats a squared
        length of d).

    Raises:
        ValueError: a distance that is not above 0.
    """
    if not all(far > 0 for far in distances):
        raise ValueError(f"steps have lengths above 0; got {list(distances)}")
    parameters, share = dict(model.named_parameters()), Share()
    rows: dict[int, list[dict[str | float, float]]] = {}
    with unfused(model):
        value = objective.loss(model, parameters, images, labels)
        product = hessian_vector_product(value, list(parameters.values()))
        for number, direction in share.dealt(directions):
            d = _flat(direction[name] for name in parameters)
            row: dict[str | float, float] = {"direction": number, "hessian": float(d @ product(d))}
            for far in distances:
                with torch.no_grad():
                    ends = [moved(parameters, (direction, step)) for step in (far, -far)]
                    two = sum(float(objective.loss(model, at, images, labels)) for at in ends)
                row[far] = (two - 2 * float(value.detach())) / far**2
            rows[number] = [row]
    return pd.DataFrame(share.in_order(rows))


def negative_share(spectra: pd.DataFrame) -> float:
    """NEP: the share of the eigenvalues of ``hessian_spectra``, pooled over batches, that are negative."""
    return float((spectra["eigenvalue"] < 0).mean())


def mean_positive(spectra: pd.DataFrame) -> float:
    """APE: the mean of the positive eigenvalues of ``hessian_spectra``, pooled over batches; NaN without any."""
    return float(spectra.loc[spectra["eigenvalue"] > 0, "eigenvalue"].mean())


def summary(spectra: pd.DataFrame) -> pd.DataFrame:
    """NEP, APE and loss of all batches, and of all but each batch in turn, as ``uncertainty.jackknife`` takes them.

    ``spectra``: as ``hessian_spectra`` gives it. Returns columns ``left_out``, ``nep``, ``ape``, ``loss``.
    """

    def measured(left_out: int | None) -> dict[str, float]:
        kept = spectra if left_out is None else spectra[spectra["batch"] != left_out]
        loss = float(kept.groupby("batch")["loss"].first().mean())
        return {"nep": negative_share(kept), "ape": mean_positive(kept), "loss": loss}

    return delete_one(pd.DataFrame(index=[0]), measured, sorted(spectra["batch"].unique()))


def _flat(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])
