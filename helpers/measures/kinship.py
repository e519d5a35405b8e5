"""How alike two networks are, place by place: what claim B1 is made of.

Each function takes a matrix of CKA and the ``structure.Places`` of networks in it, so that ``CKAResult.statistic`` can
give its numbers jackknife errors.
"""

import numpy as np

from helpers.measures.structure import Places, between


def same_depth(matrix: np.ndarray, network: Places, other: Places) -> np.ndarray:
    """CKA of each place of a network with the place of another that is nearest to it in depth, shape (places,).

    Of two places as near the lower one is taken. Whoever holds two networks with the same places against a third one
    compares the same pairs of places in both, so that a map that fades with distance does not tell them apart.
    """
    apart = np.abs(network.depth[:, None] - other.depth[None]).round(9)  # depths are fractions: no tie goes by rounding
    return between(matrix, network, other)[np.arange(len(network.depth)), apart.argmin(1)]


def nearer(matrix: np.ndarray, first: Places, second: Places, other: Places) -> np.ndarray:
    """Claim B1: how much more a first network is like another one than a second network is; shape (2,).

    The difference of the mean CKA at the same depth (``same_depth``), and of the mean highest CKA to any place.
    """
    depth, best = (
        [np.mean(fn(of)) for of in (first, second)]
        for fn in (lambda of: same_depth(matrix, of, other), lambda of: between(matrix, of, other).max(1))
    )
    return np.array([depth[0] - depth[1], best[0] - best[1]])
