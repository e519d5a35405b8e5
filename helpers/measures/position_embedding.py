"""What a transformer's position embeddings know of the grid: their cosines, against distance, rows and columns.

Each patch has a vector of its own that is added to its token. Nothing tells these vectors at first which patches are
neighbours. After training the cosine of two of them shows it (Dosovitskiy et al. 2021, Figures 7, centre, and 10): near
patches have like vectors, and patches of one row or one column more than others. The tokens of CLS and registers
have no place and are left out. (A widely used script multiplies the vectors without dividing by their
lengths; that is another quantity.)

A network trained on images and on their mirror images and quarter turns alike cannot tell a place from its mirror
places by what it sees. Its embeddings can only follow the grid *modulo* these symmetries: ``folded_distances``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn

from helpers.measures.attention_maps import Grid

WAYS = ("none", "mean", "permuted")  # in which position embeddings are taken from a trained network


def position_embeddings(model: nn.Module) -> Tensor:
    """The position embeddings of the patches of a timm transformer, (rows, columns, D) in float32.

    Raises ``ValueError`` where there is none that is added to tokens (relative positions, Swin, Mixers, ResNets),
    and where it is not one vector for each token of a known grid.
    """
    embedding, prefix = _found(model)
    rows, columns = _grid(model)
    return embedding[0, prefix:].detach().float().cpu().unflatten(0, (rows, columns)).clone()


@contextmanager
def positions_replaced(model: nn.Module, way: str, seed: int = 0) -> Iterator[nn.Module]:
    """A trained model with the position embeddings of its patches replaced within the context, and restored after it.

    ``way``: "none" adds nothing; "mean" gives every patch the mean of all, so that tokens keep their usual mean;
    "permuted" deals them to other patches, by ``seed``. Prefix tokens keep theirs. This is no network that was trained
    without position embeddings. Raises ``ValueError`` for another way, and as ``position_embeddings``.
    """
    if way not in WAYS:
        raise ValueError(f"position embeddings are replaced by {', '.join(WAYS)}; got {way!r}")
    embedding, prefix = _found(model)
    before = embedding.detach().clone()
    patches = before[:, prefix:]
    order = torch.randperm(patches.shape[1], generator=torch.Generator().manual_seed(seed)).to(before.device)
    new = {"none": torch.zeros_like(patches), "mean": patches.mean(1, keepdim=True), "permuted": patches[:, order]}
    try:
        with torch.no_grad():
            embedding[:, prefix:] = new[way]
        yield model
    finally:
        with torch.no_grad():
            embedding.copy_(before)


def cosines(embeddings: Tensor) -> NDArray[np.float64]:
    """Cosine of every two of the embeddings (rows, columns, D), patches row by row: (T, T).

    Raises ``ValueError`` for another shape, fewer than four patches, and for an embedding without length.
    """
    if embeddings.ndim != 3 or embeddings.shape[0] * embeddings.shape[1] < 4:
        raise ValueError(f"embeddings of four patches or more are (rows, columns, D); got {tuple(embeddings.shape)}")
    x = embeddings.detach().cpu().double().flatten(0, 1)
    length = x.norm(dim=1, keepdim=True)
    if not (length > 0).all():
        raise ValueError("an embedding of length zero has no cosine with others")
    return ((x / length) @ (x / length).T).clamp(-1, 1).numpy()


def grid_distances(grid: tuple[int, int]) -> NDArray[np.float64]:
    """Distance between every two patches of a grid (rows, columns), in patches: (T, T)."""
    return Grid(grid, (1, 1), 0).distances().double().numpy()


def folded_distances(grid: tuple[int, int]) -> NDArray[np.float64]:
    """The same modulo the eight symmetries of a square: from a patch to the nearest mirror place of the other, (T, T).

    Two mirror places of each other are at distance 0. Raises ``ValueError`` for a grid that is no square.
    """
    if grid[0] != grid[1]:
        raise ValueError(f"only a square has eight symmetries; the grid is {grid[0]} × {grid[1]}")
    places = np.arange(grid[0] * grid[1]).reshape(grid)
    turned = [np.rot90(side, k).ravel() for side in (places, places.T) for k in range(4)]
    far = grid_distances(grid)
    return np.min([far[:, order] for order in turned], axis=0)


def distance_correlation(cosine: NDArray, distance: NDArray) -> float:
    """Claim C1, distance: Spearman's correlation, over all pairs of two patches, of distance and cosine."""
    pairs = np.triu_indices(len(cosine), 1)
    return float(spearmanr(distance[pairs], cosine[pairs]).statistic)


def row_and_column(cosine: NDArray, grid: tuple[int, int]) -> float:
    """Claim C1, rows: mean cosine of pairs in one row or column minus that of other pairs of the same distance.

    Averaged over the distances that both kinds have. These are few: a distance of other pairs is the hypotenuse of a
    right-angled triangle, and a whole number only for (3, 4, 5), (6, 8, 10), (5, 12, 13), …, so that 7 × 7 and 8 × 8
    patches have one such distance and 14 × 14 have three. Raises ``ValueError`` for a grid that has none.
    """
    differences = []
    for _, within, others in equal_distances(grid):
        differences.append(cosine[within].mean() - cosine[others].mean())
    if not differences:
        raise ValueError(f"no two patches of a {grid[0]} × {grid[1]} grid lie as far apart as two of one row or column")
    return float(np.mean(differences))


def equal_distances(grid: tuple[int, int]) -> Iterator[tuple[int, tuple, tuple]]:
    """The whole distances that pairs in one row or column share with other pairs: distance, the ones, the others.

    Pairs are two arrays of patch numbers, to index a (T, T) matrix with; each pair once.
    """
    row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    first, second = np.triu_indices(len(row), 1)
    down, across = np.abs(row[first] - row[second]), np.abs(column[first] - column[second])
    straight = (down == 0) | (across == 0)
    for distance in range(1, max(grid)):
        at = down**2 + across**2 == distance**2
        if (at & straight).any() and (at & ~straight).any():
            chosen = [np.flatnonzero(at & kind) for kind in (straight, ~straight)]
            within, others = ((first[pairs], second[pairs]) for pairs in chosen)
            yield distance, within, others


def permuted(cosine: NDArray, statistic: Callable[[NDArray], float], times: int = 200, seed: int = 0) -> NDArray:
    """What a statistic of cosines (T, T) gives when the embeddings are dealt to patches by chance, (times,).

    The null of no relation between embeddings and places: the same vectors, in other places. Raises ``ValueError``
    for fewer than one draw.
    """
    if times < 1:
        raise ValueError(f"a null needs one draw or more; got {times}")
    rng, found = np.random.default_rng(seed), []
    for _ in range(times):
        order = rng.permutation(len(cosine))
        found.append(statistic(cosine[np.ix_(order, order)]))
    return np.array(found)


def _found(model: nn.Module) -> tuple[Tensor, int]:
    """The parameter of a model's position embeddings, (1, p + T, D), and how many prefix tokens p it has."""
    kind, embedding = type(model).__name__, getattr(model, "pos_embed", None)
    if not isinstance(embedding, Tensor):
        raise ValueError(
            f"{kind} adds no position embedding to its tokens; this measure is for ViTs that do, not for those "
            "with relative positions or none, nor for networks without tokens"
        )
    rows, columns = _grid(model)
    prefix = embedding.shape[1] - rows * columns if embedding.ndim == 3 else -1
    if embedding.shape[0] != 1 or prefix not in (0, int(getattr(model, "num_prefix_tokens", 0))):
        raise ValueError(
            f"{kind} has a position embedding of shape {tuple(embedding.shape)}, which is not one vector for each of "
            f"{rows} × {columns} patches, with or without its prefix tokens"
        )
    return embedding, prefix


def _grid(model: nn.Module) -> tuple[int, int]:
    embed: Any = getattr(model, "patch_embed", None)
    grid = getattr(embed, "grid_size", None)
    if grid is None:
        raise ValueError(f"{type(model).__name__} does not say into how many patches it cuts an image")
    return int(grid[0]), int(grid[1])
