"""Where in the image a token comes from: numbers of a matrix of CKA between tokens and patches of the input.

``token_patches`` gives the matrix (T, T), positions by patches, both row by row from the upper left. The functions of a
``matrix`` and its ``grid`` (rows, columns) return one number, so that ``TokenPatches.statistic`` can give it a
jackknife error; ``table`` has most of them (Raghu et al. 2021, Section 7, Figures 9, 10 and D.1 to D.3).
"""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd

from helpers.measures.token_patches import PixelTokens, TokenPatches, own_patches, token_patches
from helpers.uncertainty import delete_one

__all__ = [
    "PixelTokens", "TokenPatches", "border_confusion", "chance", "displacement", "distances", "hit_rate", "hits",
    "matched_confusion", "own_patches", "own_similarity", "relative_confusion", "rim", "table", "token_patches",
]  # fmt: skip


def table(found: Mapping[str, TokenPatches], depths: Sequence[float], **labels: Any) -> pd.DataFrame:
    """The numbers of several places, once with all images (``left_out`` −1) and without each group, for ``jackknife``.

    Columns: ``labels``, place, depth, left_out, chance, hit_rate, displacement, border_confusion, matched_confusion,
    relative_confusion; and shuffled, the hit rate of the control (NaN without one).
    """
    measures = (hit_rate, displacement, border_confusion, matched_confusion, relative_confusion)

    def measure(at: TokenPatches, left_out: int | None) -> dict[str, float]:
        matrix = at.sums.cka(without=left_out)
        numbers = {fn.__name__: fn(matrix, at.grid) for fn in measures}
        shuffled = np.nan if at.control is None else hit_rate(at.control.sums.cka(without=left_out), at.grid)
        return {"chance": chance(at.grid), **numbers, "shuffled": shuffled}

    tables = [
        delete_one(
            pd.DataFrame([{**labels, "place": place, "depth": depth}]),
            partial(measure, at),
            np.flatnonzero(at.sums.batches),
        )
        for (place, at), depth in zip(found.items(), depths, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)


def rim(grid: tuple[int, int]) -> np.ndarray:
    """Which positions of a grid lie on its rim: (T,) bool. The others are interior."""
    inside = np.zeros(grid, dtype=bool)
    inside[1:-1, 1:-1] = True
    return ~inside.ravel()


def hit_rate(matrix: np.ndarray, grid: tuple[int, int]) -> float:
    """Claims R18, R20, R21: the share of interior positions whose CKA is highest with their own patch."""
    return float(hits(matrix)[_inside(grid)].mean())


def own_similarity(matrix: np.ndarray, grid: tuple[int, int]) -> float:
    """CKA of a position with its own patch: the mean over interior positions, those that do not vary left out."""
    return float(np.nanmean(np.diag(matrix)[_inside(grid)]))


def chance(grid: tuple[int, int]) -> float:
    """The hit rate of positions that know nothing of where they are: one over the number of patches."""
    return 1 / (grid[0] * grid[1])


def hits(matrix: np.ndarray) -> np.ndarray:
    """Which positions resemble their own patch most: (T,) bool. A position that does not vary (NaN) has no hit."""
    filled = np.where(np.isnan(matrix), -np.inf, matrix)
    return (filled.argmax(1) == np.arange(len(matrix))) & np.isfinite(filled.max(1))


def displacement(matrix: np.ndarray, grid: tuple[int, int]) -> float:
    """How far from its own patch an interior position has the patch it resembles most: mean, in steps of the grid."""
    best = np.where(np.isnan(matrix), -np.inf, matrix).argmax(1)
    return float(distances(grid)[np.arange(len(best)), best][_inside(grid)].mean())


def border_confusion(matrix: np.ndarray, grid: tuple[int, int]) -> float:
    """Claim R19: of positions on the rim, mean CKA with the rim's other patches minus that with the interior's."""
    edge, inside = rim(grid), _inside(grid)
    others = edge[None] & ~np.eye(len(edge), dtype=bool)
    mine = np.where(others, matrix, np.nan)[edge]
    return float(np.nanmean(np.nanmean(mine, 1) - matrix[edge][:, inside].mean(1)))


def relative_confusion(matrix: np.ndarray, grid: tuple[int, int]) -> float:
    """Claim R19: ``border_confusion`` over the mean CKA of the rim's positions with their own patch.

    Similarity to pixels fades with depth, all of it. This asks how bright the rest of the rim is in the map of one of
    its positions, measured by what that position keeps of its own patch; of pixels it is ``border_confusion`` itself.
    """
    return border_confusion(matrix, grid) / float(np.nanmean(np.diag(matrix)[rim(grid)]))


def matched_confusion(matrix: np.ndarray, grid: tuple[int, int]) -> float:
    """``border_confusion`` between patches that lie equally far away, averaged over such distances.

    Near patches resemble each other, and the rim is, on average, farther from a position on it than the interior is.
    Taking pairs of equal distance takes that out. Raises ``ValueError`` for a grid that has no such pairs.
    """
    weights = _matched_weights(grid)
    return float((weights * np.where(weights, matrix, 0.0)).sum())


@cache
def _matched_weights(grid: tuple[int, int]) -> np.ndarray:
    """What each cell of a matrix (T, T) counts in ``matched_confusion``; raises as it does."""
    edge, apart = rim(grid), distances(grid).round(6)
    weights, count = np.zeros(apart.shape), 0
    for token in np.flatnonzero(edge):
        for distance in np.unique(apart[token])[1:]:
            there = apart[token] == distance
            if (there & edge).any() and (there & ~edge).any():
                weights[token, there & edge] = 1 / (there & edge).sum()
                weights[token, there & ~edge] = -1 / (there & ~edge).sum()
                count += 1
    if not count:
        raise ValueError(f"a grid of {grid[0]} × {grid[1]} has no rim and interior equally far from a position")
    return weights / count


def distances(grid: tuple[int, int]) -> np.ndarray:
    """Distances (T, T) between the positions of a grid, in its steps."""
    at = np.stack(np.unravel_index(np.arange(grid[0] * grid[1]), grid), 1)
    return np.linalg.norm(at[:, None] - at[None], axis=-1)


def _inside(grid: tuple[int, int]) -> np.ndarray:
    """Which positions of a grid are interior: (T,) bool. Raises ``ValueError`` where there is none."""
    inside = ~rim(grid)
    if not inside.any():
        raise ValueError(
            f"a grid of {grid[0]} × {grid[1]} has no interior; a place with 3 × 3 positions or more has one"
        )
    return inside
