"""The loss of a network around its weights: along random rays, over a plane, and along the way of its training.

A random direction in the space of weights means nothing until it is scaled, since a network computes the same with many
sizes of weights. Li et al. (2018) scale it filter by filter to the norms of the network's own weights: a step of 1 then
moves every filter by its own length. Directions leave parameters of one axis (biases, norms) where they are, and
position embeddings and class tokens too, as Park & Kim (2022, Figures 1 and C.4) do.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from helpers.measures import objective
from helpers.measures.distributed import Share
from helpers.measures.objective import Batch, Weights
from helpers.networks.inputs import float64
from helpers.uncertainty import delete_one

FILTERS = ("output", "input")
HELD = ("pos_embed", "cls_token", "relative_position")  # parts of the names of what no direction moves


def random_direction(at: Weights, seed: int, per: str = "output") -> dict[str, Tensor]:
    """A Gaussian direction, each filter of it scaled to the norm of the network's own.

    Args:
        at: the weights around which the loss is looked at.
        seed: of the direction.
        per: what a filter is. "output": all weights of one output channel or neuron, as in Li et al. (2018). "input":
            for each place in it, the weights of all outputs, as in Park & Kim's published code (norms over axis 0).

    Returns:
        name → direction of that parameter; zero for those that are held.

    Raises:
        ValueError: another kind of filter.
    """
    if per not in FILTERS:
        raise ValueError(f"a direction is normalised per {' or '.join(FILTERS)}; got {per!r}")
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, value in at.items():
        drawn = torch.randn(value.shape, generator=generator).to(value)
        if value.ndim < 2 or any(part in name for part in HELD):
            found[name] = torch.zeros_like(value)
            continue
        axes = tuple(range(1, value.ndim)) if per == "output" else (0,)
        own, random = (torch.linalg.vector_norm(x, dim=axes, keepdim=True) for x in (value, drawn))
        found[name] = drawn * own / random.clamp_min(torch.finfo(value.dtype).tiny)
    return found


def moved(at: Weights, *steps: tuple[Weights, float]) -> dict[str, Tensor]:
    """Weights after steps: for each a direction and how far along it."""
    new = dict(at)
    for direction, far in steps:
        new = {name: value + far * direction[name] for name, value in new.items()}
    return new


@torch.no_grad()
def values(model: nn.Module, at: Weights, batches: Iterable[Batch], decay: float) -> dict[str, float]:
    """``loss`` (nats, a mean over images), ``penalty`` and ``published_penalty`` of a network with the weights ``at``.

    A loss that is not finite is given as NaN. Raises ValueError without a batch.
    """
    total, count = 0.0, 0
    for images, labels in batches:
        total += float(objective.loss(model, at, images, labels)) * len(images)
        count += len(images)
    if not count:
        raise ValueError("there is no batch, so there is no loss")
    penalties = {"penalty": objective.penalty(at, decay), "published_penalty": objective.published_penalty(at, decay)}
    found = {"loss": total / count} | {name: float(value) for name, value in penalties.items()}
    return {name: value if math.isfinite(value) else math.nan for name, value in found.items()}


def rays(
    model: nn.Module,
    batches: Sequence[Batch],
    radii: Sequence[float],
    seeds: Sequence[int],
    decay: float,
    per: str = "output",
) -> pd.DataFrame:
    """The loss along random rays that start at the network's weights.

    Args:
        model: a classifier of images.
        batches: the images on which the loss is taken, the same at every point.
        radii: distances from the weights, in lengths of filters; negative ones lie on the other side.
        seeds: of the directions, a ray for each.
        decay: of the weights.
        per: as in ``random_direction``.

    Returns:
        A row for each ray and radius, and one of radius 0 for each ray: ``ray``, ``radius``, and ``loss``,
        ``penalty`` and ``published_penalty`` as ``values`` has them.

    Raises:
        ValueError: as ``random_direction`` and ``values``.
    """
    points = list(product(seeds, map(float, radii)))
    start, *there = _values_at([(), *((point,) for point in points)], model, batches, decay, per)
    rows = [{"ray": seed, "radius": 0.0, **start} for seed in seeds]
    rows += [{"ray": seed, "radius": far, **found} for (seed, far), found in zip(points, there, strict=True)]
    return pd.DataFrame(rows).sort_values(["ray", "radius"], ignore_index=True)


def rises(rays: pd.DataFrame) -> pd.DataFrame:
    """How far loss and penalties lie above those of the network itself, at each distance, both sides averaged.

    Returns a row for each ray and distance > 0 with ``ray``, ``distance`` and the rise of each column of ``rays``.
    """
    names = ["loss", "penalty", "published_penalty"]
    origin = rays[rays["radius"] == 0].set_index("ray")[names]
    away = rays[rays["radius"] != 0]
    risen = away[names].to_numpy() - origin.loc[away["ray"]].to_numpy()
    table = pd.DataFrame(risen, columns=names).assign(
        ray=away["ray"].to_numpy(), distance=away["radius"].abs().to_numpy()
    )
    return table.groupby(["ray", "distance"], as_index=False)[names].mean()


def mean_rises(rays: pd.DataFrame) -> pd.DataFrame:
    """``rises``, averaged over all rays, and over all but each ray in turn, as ``uncertainty.jackknife`` takes them.

    Returns a row for each ``distance`` and ``left_out``. Its error tells of directions, not of images.
    """
    of_each = rises(rays)
    names = ["loss", "penalty", "published_penalty"]

    def measured(left_out: int | None) -> dict[str, np.ndarray]:
        kept = of_each if left_out is None else of_each[of_each["ray"] != left_out]
        means = kept.groupby("distance")[names].mean()
        return {name: means[name].to_numpy() for name in names}

    distances = pd.DataFrame({"distance": sorted(of_each["distance"].unique())})
    return delete_one(distances, measured, sorted(of_each["ray"].unique()))


def plane(
    model: nn.Module,
    batches: Sequence[Batch],
    axis: Sequence[float],
    seeds: tuple[int, int],
    decay: float,
    per: str = "output",
) -> pd.DataFrame:
    """The loss over a plane through the network's weights: columns ``x``, ``y`` and as ``rays`` has them.

    ``axis``: the coordinates along either of two random directions, those of the two ``seeds``. Raises as ``rays``.
    """
    points = list(product(map(float, axis), repeat=2))
    steps = [tuple(zip(seeds, (x, y), strict=True)) for y, x in points]
    there = _values_at(steps, model, batches, decay, per)
    return pd.DataFrame([{"x": x, "y": y, **found} for (y, x), found in zip(points, there, strict=True)])


def _values_at(
    points: Sequence[Sequence[tuple[int, float]]], model: nn.Module, batches: Iterable[Batch], decay: float, per: str
) -> list[dict[str, float]]:
    """``values`` at each point, which is given by its steps: the seed of a direction, and how far along it.

    In distributed runs each process is dealt some of the points, and gets the values of all.
    """
    at, share = objective.weights(model), Share()
    direction = lru_cache(2)(partial(random_direction, at, per=per))  # points of one ray follow each other
    found = {
        number: [values(model, moved(at, *((direction(seed), far) for seed, far in steps)), batches, decay)]
        for number, steps in share.dealt(points)
    }
    return share.in_order(found)


def polar(way: Sequence[Weights]) -> pd.DataFrame:
    """The way of a training in polar coordinates around its end (Park & Kim 2022, Figure 1b).

    With w_t the weights at a point of the way, w_0 its first and w_1 its last, ``distance`` is
    ‖w_t − w_1‖ / ‖w_0 − w_1‖ and ``angle`` (degrees) that between w_t − w_1 and w_0 − w_1, undefined at the end. A
    straight way has angle 0 throughout.

    Raises ValueError for fewer than two points, points that have not the same weights, or an end at the start.
    """
    if len(way) < 2 or any(point.keys() != way[0].keys() for point in way):
        raise ValueError("a way has two points or more, of the same weights each")
    points = [_in_one(point, way[0]) - _in_one(way[-1], way[0]) for point in way]
    start = points[0].norm()
    if not start:
        raise ValueError("the way ends where it starts, so it has no direction")
    rows = []
    for point in points:
        cosine = float(point @ points[0] / (point.norm() * start)) if point.norm() else math.nan
        angle = math.degrees(math.acos(max(-1.0, min(1.0, cosine)))) if cosine == cosine else math.nan
        rows.append({"distance": float(point.norm() / start), "angle": angle})
    return pd.DataFrame(rows)


def _in_one(point: Weights, names: Iterable[str]) -> Tensor:
    return torch.cat([float64(point[name]).reshape(-1) for name in names])
