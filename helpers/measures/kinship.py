"""How alike two networks are, place by place: what claims B1 and B4 to B8 are made of.

Each function takes a matrix of CKA and the ``structure.Places`` of networks in it, so that ``CKAResult.statistic`` can
give its numbers jackknife errors.
"""

from collections.abc import Sequence

import numpy as np

from helpers.measures.structure import Places, between


def same_depth(matrix: np.ndarray, network: Places, other: Places) -> np.ndarray:
    """CKA of each place of a network with the place of another that is nearest to it in depth, shape (places,).

    Of two places as near the lower one is taken. Whoever holds two networks with the same places against a third one
    compares the same pairs of places in both, so that a map that fades with distance does not tell them apart.
    """
    apart = np.abs(network.depth[:, None] - other.depth[None]).round(9)  # depths are fractions: no tie goes by rounding
    return between(matrix, network, other)[np.arange(len(network.depth)), apart.argmin(1)]


def likeness(matrix: np.ndarray, network: Places, other: Places) -> np.ndarray:
    """How like another network a network is, in two ways, each the mean over its own places; shape (2,).

    CKA with the place of the other at the same depth (``same_depth``), and the highest CKA to any place of the other.
    """
    return np.array([same_depth(matrix, network, other).mean(), between(matrix, network, other).max(1).mean()])


def nearer(matrix: np.ndarray, first: Places, second: Places, other: Places) -> np.ndarray:
    """Claims B1 and B7: how much more a first network is like another one than a second network is; shape (2,)."""
    return likeness(matrix, first, other) - likeness(matrix, second, other)


def sides(matrix: np.ndarray, network: Places, first: Places, second: Places) -> np.ndarray:
    """Claims B4 and B5: how much more a network is like a first one than like a second one; shape (2,)."""
    return likeness(matrix, network, first) - likeness(matrix, network, second)


def by_objective(matrix: np.ndarray, network: Places, aims: Sequence[Places], forms: Sequence[Places]) -> float:
    """Claim B6: how much more a network is like others of its architecture than like others of its objective.

    ``aims``: networks of the same architecture, trained for something else. ``forms``: of other architectures, trained
    for the same. The mean CKA at the same depth (``same_depth``) over the network's places and over the ones, minus
    that over the others; positive where the architecture says more.
    """
    aim, form = (np.mean([same_depth(matrix, network, other) for other in others]) for others in (aims, forms))
    return float(aim - form)


def apart_from(matrix: np.ndarray, first: Places, second: Places, third: Places) -> float:
    """Claim B8: how much more two networks are like each other than like a third one, all at the same depth.

    The mean CKA of the first with the second minus the mean of each one's with the third.
    """
    pair, *rest = (same_depth(matrix, a, b).mean() for a, b in ((first, second), (first, third), (second, third)))
    return float(pair - np.mean(rest))
