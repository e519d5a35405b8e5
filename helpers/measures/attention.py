"""Where the heads of a transformer look: how far on average, at how many patches, and at which.

The attention distance of a head is the distance in the image between a query patch and the patches it looks at,
weighted by A, averaged over query patches and images (Dosovitskiy et al. 2021, Figures 7 and 11; Raghu et al. 2021,
Figures 3 to 5, C.5, C.6). It has nothing to do with products of queries with queries, as is sometimes read. What falls
on prefix tokens (CLS, registers) has no place in the image. Much code leaves these columns out and goes on with rows
that no longer sum to one: half of the mass on CLS then halves the distance. Here a row is divided by its mass on
patches first, the other number is kept beside it, and so is the mass on the prefix.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from helpers.measures.attention_maps import (
    WINDOWED,
    Grid,
    attention_maps,
    attentions,
    block_numbers,
    grid_of,
    network_of,
    one_a_block,
)
from helpers.measures.distributed import Share
from helpers.measures.streams import at_least_one, at_least_two
from helpers.networks.inputs import normalise, pixels
from helpers.networks.positions import prefix_tokens
from helpers.networks.taps import Tap, capture, evaluating
from helpers.uncertainty import GROUPS, delete_one

CHUNK = 64  # images whose maps of one layer are held at a time
COLUMNS = ["head", "distance", "plain", "prefix", "name", "block", "uniform", "windowed", "left_out"]


def uniform_distance(grid: tuple[int, int], patch: float | tuple[float, float]) -> float:
    """Attention distance, px, of uniform attention on a grid (rows, columns) of patches of ``patch`` pixels.

    The mean distance of two places of the grid, a place and itself among them: 116.5 px for 14 × 14 patches of 16.
    """
    return Grid(grid, patch if isinstance(patch, tuple) else (patch, patch), 0).uniform()


def nearest_distance(grid: tuple[int, int], patch: float | tuple[float, float]) -> float:
    """Attention distance, px, of a head that looks at the 3 × 3 patches around each patch alike, itself among them.

    16.7 px for 14 × 14 patches of 16. Arguments as for ``uniform_distance``.
    """
    return Grid(grid, patch if isinstance(patch, tuple) else (patch, patch), 0).nearest()


def distances(attention: Tensor, grid: Grid) -> Tensor:
    """Of maps (B, heads, N, N) for each head: distance, px; the same without renormalisation; prefix mass. (heads, 3).

    Means over the images and over the query patches that count in the grid, to the patches that count. A query that
    gives all it has to others has no distance and is left out of the first.
    """
    tokens = [grid.prefix + patch for patch in grid.kept()]
    counts, prefix = torch.zeros(2, attention.shape[-1]).to(attention)
    counts[tokens], prefix[: grid.prefix] = 1, 1
    far = torch.zeros(len(counts), len(counts)).to(attention)
    far[grid.prefix :, grid.prefix :] = grid.distances().to(far)
    weights = torch.stack([far * counts, counts.expand_as(far), prefix.expand_as(far)], dim=-1)  # (N, N, 3)
    rows = attention.flatten(0, 1).transpose(0, 1)  # (queries, B · heads, N)
    sums = torch.bmm(rows, weights)[tokens].unflatten(1, attention.shape[:2])  # (queries, B, heads, 3)
    plain, mass, prefixes = sums.unbind(-1)
    means = [(plain / mass.where(mass > 0, torch.nan)).nanmean((0, 1)), plain.mean((0, 1)), prefixes.mean((0, 1))]
    return torch.stack(means, dim=1).cpu().double()


def patches_attended(attention: Tensor, prefix: int) -> Tensor:
    """How many patches a query spreads its attention over, mean over images and query patches: (heads,).

    ``attention``: maps (B, heads, N, N), whose first ``prefix`` tokens are no patches. The number is the exponential
    of the entropy of a row, divided by its mass on patches first: 1 where a query looks at one patch, their number
    where it looks at all alike. For ``attention_maps(model, partial(patches_attended, prefix=prefix_tokens(model)))``.
    """
    patches = attention[..., prefix:, prefix:]
    patches = patches / patches.sum(-1, keepdim=True)
    return torch.special.entr(patches).sum(-1).exp().mean((0, 2))


@torch.inference_mode()
def attention_distance(
    model: nn.Module,
    batches: Iterable,
    names: Iterable[str] | None = None,
    *,
    groups: int = GROUPS,
    chunk: int = CHUNK,
    corners: bool = True,
) -> pd.DataFrame:
    """Attention distance of every head (Raghu et al. 2021, Figure 3), with what its errors need.

    Args:
        model: a transformer of timm's; run in eval mode, its modes restored.
        batches: batches of images (n, 3, H, W), or tuples that begin with them; batch b is in group b mod ``groups``.
        names: of attention modules, all by default.
        groups: number of jackknife groups, at least 2.
        chunk: images whose maps are held at a time.
        corners: whether the four patches in the corners count; without them the distance is that between the others,
            and so is that of uniform attention.

    Returns:
        a table with one row a head, once for all images (``left_out`` −1) and once without each group: ``name`` and
        ``block`` (number, from 0) of the attention, ``head``; ``distance`` and ``plain`` (px), with and without
        renormalisation over patches; ``prefix``, the share of patches' attention that falls on prefix tokens;
        ``uniform`` (px), the distance of uniform attention, within a window where ``windowed``. A windowed head is
        bounded by its window and should not be called local beside heads that could look anywhere.

    Raises:
        ValueError: as ``attention_maps`` and ``grid_of`` do, for fewer than two groups, fewer batches than groups,
            a chunk below 1, and where corners are to be left out of windows or of very small grids.
    """
    at_least_one(chunk=chunk)
    at_least_two(groups)
    names = attentions(model, names)
    sums: dict[str, list[Any]] = {name: [0] * groups for name in names}
    counts, read, share = [0] * groups, 0, Share()
    grids: dict[str, Grid] = {}
    with evaluating(model), ExitStack() as stack:
        for number, batch in share.dealt(batches):
            images = pixels(batch)
            if not grids:
                with attention_maps(model, lambda A: A.shape[-1], names) as tokens:
                    model(normalise(model, images[:1]))
                height, width = images.shape[-2:]
                found_grids = {name: grid_of(model, name, n, (height, width)) for name, n in tokens.items()}
                grids = {name: replace(grid, corners=corners) for name, grid in found_grids.items()}
                alike = {grid: [name for name in names if grids[name] == grid] for grid in grids.values()}
                found = [
                    stack.enter_context(attention_maps(model, partial(distances, grid=grid), own))
                    for grid, own in alike.items()
                ]
            for part in images.split(chunk):
                model(normalise(model, part))
                for name, value in (item for maps in found for item in maps.items()):
                    sums[name][number % groups] += len(part) * value
            counts[number % groups] += len(images)
            read += 1
    sums, counts, read = share.summed((sums, counts, read))
    if read < groups:
        raise ValueError(f"{groups} jackknife groups need as many batches; got {read}: use smaller ones")

    def means(left_out: int | None) -> dict[str, np.ndarray]:
        kept = [group for group in range(groups) if group != left_out]
        total = sum(counts[group] for group in kept)
        values = np.concatenate([(sum(sums[name][group] for group in kept) / total).numpy() for name in names])
        return dict(zip(("distance", "plain", "prefix"), values.T, strict=True))  # each (heads of all attentions,)

    rows = [
        (head, grids[name].uniform(), grids[name].windowed, name, block)
        for block, name in zip(block_numbers(names), names, strict=True)
        for head in range(len(sums[name][0]))
    ]
    heads = pd.DataFrame(rows, columns=["head", "uniform", "windowed", "name", "block"])
    return delete_one(heads, means, range(groups))[COLUMNS]


@torch.inference_mode()
def attended_patches(model: nn.Module, batches: Iterable, *, chunk: int = CHUNK) -> pd.DataFrame:
    """Where patches look, wherever they are, and how large the tokens are that are looked at (Darcet et al. 2024).

    Returns a table of ``block``, ``row``, ``column``; ``share`` of the attention between patches that falls on this
    patch, the rows divided by their mass on patches, mean over images, heads and queries; ``norm`` of its token on
    entering the block, mean over images. Raises ``ValueError`` as ``attention_maps`` and ``grid_of``, for windows,
    for blocks that see different grids, without images, and for a chunk below 1.
    """
    names, totals, images, share = attentions(model), torch.zeros(()), 0, Share()
    one_a_block(model, names)
    at_least_one(chunk=chunk)
    network, _ = network_of(model, names[0])
    prefix = prefix_tokens(network)
    if isinstance(network, WINDOWED):
        raise ValueError(f"{type(model).__name__} attends within windows, which have no places of their own")
    taps = [Tap(name, name.rsplit(".", 1)[0], "input") for name in names]

    def received(attention: Tensor) -> Tensor:
        patches = attention[..., prefix:, prefix:]
        return (patches / patches.sum(-1, keepdim=True)).mean((1, 2)).sum(0).cpu().double()

    def norms(x: Tensor) -> Tensor:
        return x[:, prefix:].norm(dim=-1).sum(0).cpu().double()

    with evaluating(model), attention_maps(model, received) as looked, capture(model, taps, norms) as entered:
        for _, batch in share.dealt(batches):
            for part in pixels(batch).split(chunk):
                model(normalise(model, part))
                if len(counts := {looked[name].numel() for name in names}) > 1:
                    raise ValueError(
                        f"{type(model).__name__} has blocks of {min(counts)} to {max(counts)} patches, and this "
                        "measure needs one grid for all blocks: take a network without stages"
                    )
                found = [torch.stack([looked[name], entered[name]]) for name in names]
                totals, images = totals + torch.stack(found, dim=1), images + len(part)
                height, width = part.shape[-2:]
        if not images:
            raise ValueError("no images were given, so there are no patches to look at; give a batch or more")
    totals, images = share.summed((totals, images))
    grid = grid_of(model, names[0], totals.shape[-1] + prefix, (height, width))
    share, norm = (totals / images).unflatten(-1, grid.shape).numpy()
    values = [(*at, share[at], norm[at]) for at in np.ndindex(share.shape)]
    return pd.DataFrame(values, columns=["block", "row", "column", "share", "norm"])


def corners(table: pd.DataFrame) -> pd.DataFrame:
    """How much of the attention between patches falls on the four corner patches, and how large their tokens are.

    ``table``: what ``attended_patches`` returns. Returns one row a block: ``block``; ``share`` of attention on the
    four corners; ``norm in corners`` and ``norm elsewhere``, means over patches.
    """
    at_rim = [table[axis].isin([0, table[axis].max()]) for axis in ("row", "column")]
    corner = at_rim[0] & at_rim[1]
    inside, outside = table[corner].groupby("block"), table[~corner].groupby("block")
    columns = {
        "share": inside["share"].sum(),
        "norm in corners": inside["norm"].mean(),
        "norm elsewhere": outside["norm"].mean(),
    }
    return pd.DataFrame(columns).reset_index()


def smallest(table: pd.DataFrame, blocks: Iterable[int]) -> float:
    """Claims R7 to R10 and C3: the smallest distance of a head in some blocks, over uniform."""
    rows = table[table["block"].isin(list(blocks))]
    return float((rows["distance"] / rows["uniform"]).min())


def largest(table: pd.DataFrame, blocks: Iterable[int]) -> float:
    """Claims R7 and C3: the largest distance of a head in some blocks, over uniform."""
    rows = table[table["block"].isin(list(blocks))]
    return float((rows["distance"] / rows["uniform"]).max())


def growth(table: pd.DataFrame) -> float:
    """Claim C4: Spearman's correlation of a block's number with the mean distance of its heads."""
    blocks, block = np.unique(table["block"], return_inverse=True)  # in numpy: a bootstrap asks a thousand times
    mean = np.bincount(block, weights=table["distance"]) / np.bincount(block)
    return float(spearmanr(blocks, mean).statistic)
