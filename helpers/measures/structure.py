"""The structure of a CKA heat-map in a few numbers: uniformity, stages, and which depths correspond.

Each function takes a matrix of CKA and the ``Places`` of one or two networks in it and returns one number (claims R1 to
R6 of ``book/claims.yml``), so that ``CKAResult.statistic`` can give it a jackknife error::

    vit, resnet = places(result, "ViT"), places(result, "ResNet")
    value, stderr = result.statistic(lambda matrix: contrast(matrix, resnet, resnet) - contrast(matrix, vit, resnet))

Depth runs from 0 to 1 along the complete network, so that networks of different lengths can be laid side by side, and
one that lacks its last stage ends before 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from helpers.measures.cka import Sums
from helpers.measures.cka_result import CKAResult
from helpers.networks.places import STREAM, stage
from helpers.uncertainty import half_width, weighted_jackknife


@dataclass(frozen=True)
class Places:
    """Where a network's places stand: ``index`` in the matrix, ``depth``, ``stage`` (−1 at the entrance); each (P,)."""

    index: np.ndarray
    depth: np.ndarray
    stage: np.ndarray


def places(result: CKAResult, model: str, length: int | None = None) -> Places:
    """The residual stream of a model in a result: a transformer's embedding and stream, a ResNet's stem and blocks.

    ``length``: number of the complete network's places after the first, where the result has not all of them (16 for
    a ResNet-50). Stages are those of names (``networks.places.stage``); a ViT has none (all −1).

    Raises ``ValueError`` for a model that is not there, and for a ``length`` below the number of its places.
    """
    own_kinds = set(result.taps["kind"][result.taps["model"] == model])
    index = result.index(model, [kind for kind in STREAM if kind in own_kinds])
    stages = np.array([stage(name) for name in result.taps["name"].iloc[index]])
    length = len(index) - 1 if length is None else length
    if length < len(index) - 1:
        raise ValueError(f"{model} has {len(index)} places here, more than a complete network of {length + 1}")
    return Places(index, np.arange(len(index)) / length, stages)


def only(result: CKAResult, *networks: Places) -> tuple[CKAResult, list[Places]]:
    """The part of a result that some networks' places make up, and where they stand in it.

    A statistic of few of many places is found sooner in it, and is the same. ``result`` compares all its taps with all.
    """
    index = np.unique(np.concatenate([network.index for network in networks]))
    sums, every = result.sums, np.arange(len(index))
    part = replace(
        sums, cross=sums.cross[:, index][:, :, index], self_x=sums.self_x[:, index], self_y=sums.self_y[:, index]
    )
    taps = result.taps.iloc[index].reset_index(drop=True)
    smaller = replace(result, sums=part, taps=taps, rows=every, columns=every, control=None)
    return smaller, [replace(network, index=np.searchsorted(index, network.index)) for network in networks]


def between(matrix: np.ndarray, a: Places, b: Places) -> np.ndarray:
    """CKA of the places of ``a`` (rows) with those of ``b`` (columns)."""
    return matrix[np.ix_(a.index, b.index)]


def off_diagonal(matrix: np.ndarray, network: Places) -> np.ndarray:
    """CKA of all pairs of two different places of a network."""
    own = between(matrix, network, network)
    return own[np.triu_indices(len(own), 1)]


def uniformity(matrix: np.ndarray, vit: Places, resnet: Places) -> np.ndarray:
    """R1: mean, and standard deviation, of CKA over pairs of places, ViT minus ResNet; shape (2,)."""
    vit_pairs, resnet_pairs = off_diagonal(matrix, vit), off_diagonal(matrix, resnet)
    return np.array([vit_pairs.mean() - resnet_pairs.mean(), vit_pairs.std() - resnet_pairs.std()])


def ends(matrix: np.ndarray, network: Places) -> float:
    """Mean CKA of the places at depth ≤ 1/3 with those at depth ≥ 2/3 (R2 is the ViT's minus the ResNet's)."""
    low, high = network.depth <= 1 / 3 + 1e-9, network.depth >= 2 / 3 - 1e-9
    return float(between(matrix, network, network)[np.ix_(low, high)].mean())


def contrast(matrix: np.ndarray, network: Places, resnet: Places) -> float:
    """Mean CKA within a stage minus between stages, at equal distance (R3 is the ResNet's minus the ViT's).

    A network without stages is cut at the depths at which those of ``resnet`` end; the entrance and what lies beyond
    the last end are left out. Raises ``ValueError`` as ``apart`` does.
    """
    parts = network.stage
    if (parts < 0).all():
        edges = np.array([resnet.depth[resnet.stage == s].max() for s in np.unique(resnet.stage[resnet.stage >= 0])])
        parts = np.searchsorted(edges, network.depth - 1e-9)
        parts = np.where((parts == len(edges)) | (np.arange(len(parts)) == 0), -1, parts)
    inside = parts >= 0
    return apart(between(matrix, network, network)[np.ix_(inside, inside)], parts[inside])


def lowest_contrast(matrix: np.ndarray, staged: Sequence[Places], vit: Places, resnet: Places) -> float:
    """P16: the lowest contrast of networks with stages minus that of a ViT, which is cut where the ResNet's stages end.

    Raises ``ValueError`` as ``contrast``, and for no network with stages.
    """
    if not staged or any((network.stage < 0).all() for network in staged):
        raise ValueError("the lowest contrast is of one network with stages or more")
    return min(contrast(matrix, network, resnet) for network in staged) - contrast(matrix, vit, resnet)


def apart(own: np.ndarray, part: np.ndarray) -> float:
    """Mean of a map over pairs within a part minus over pairs from different parts that lie as many places apart.

    ``own`` (P, P), of consecutive places; ``part`` (P,), which part each belongs to. The difference is taken for each
    distance of i and j that has both kinds of pairs, and averaged over these, so that one that only fades with distance
    has 0. Raises ``ValueError`` where no distance has both.
    """
    i, j = np.triu_indices(len(own), 1)
    same, distance, pairs = part[i] == part[j], j - i, own[i, j]
    both = np.intersect1d(distance[same], distance[~same])
    if not both.size:
        raise ValueError("no two places of one part lie as far apart as two places of different parts")
    means = [[pairs[(distance == d) & kind].mean() for kind in (same, ~same)] for d in both]
    return float(np.subtract(*np.transpose(means)).mean())


def best_depth(matrix: np.ndarray, vit: Places, resnet: Places) -> np.ndarray:
    """For each place of the ResNet the depth of the ViT place with the highest CKA, shape (resnet places,)."""
    found = between(matrix, resnet, vit)  # a place that does not vary (NaN) matches nothing
    return vit.depth[np.where(np.isnan(found), -np.inf, found).argmax(1)]


def half_way(matrix: np.ndarray, vit: Places, resnet: Places) -> np.ndarray:
    """R4: mean best ViT depth of the ResNet places at depths 0.4 to 0.6, and Spearman of the two depths; (2,)."""
    best = best_depth(matrix, vit, resnet)
    middle = (resnet.depth >= 0.4 - 1e-9) & (resnet.depth <= 0.6 + 1e-9)
    order = spearmanr(resnet.depth, best).statistic if len(np.unique(best)) > 1 else 0.0
    return np.array([best[middle].mean(), order])


def upper_half(matrix: np.ndarray, vit: Places, resnet: Places) -> np.ndarray:
    """R5: mean best ViT depth of the ResNet's places at depth ≥ 0.5, and their share within 0.25 to 0.65; (2,)."""
    best = best_depth(matrix, vit, resnet)[resnet.depth >= 0.5 - 1e-9]
    return np.array([best.mean(), ((best >= 0.25) & (best <= 0.65)).mean()])


def last_third(matrix: np.ndarray, vit: Places, resnet: Places) -> float:
    """R6: the highest CKA to any ResNet place, mean over ViT places at depth ≥ 2/3 minus mean over those below."""
    highest = between(matrix, vit, resnet).max(1)
    late = vit.depth >= 2 / 3 - 1e-9
    return float(highest[late].mean() - highest[~late].mean())


def across_block(matrix: np.ndarray, vit: Places, block: int) -> float:
    """R17: mean CKA of the places of a ViT up to the input of a block (from 0) with those from its output on.

    Raises ValueError for a block that the ViT does not have.
    """
    blocks = (len(vit.index) - 1) // 2  # two places each, after the embedding
    if not 0 <= block < blocks:
        raise ValueError(f"there is no block {block}: this network has blocks 0 to {blocks - 1}")
    own = between(matrix, vit, vit)
    return float(own[: 2 * block + 1, 2 * block + 2 :].mean())


def largest_difference(a: CKAResult, b: CKAResult) -> tuple[float, tuple[float, float]]:
    """R30: the largest absolute difference of two CKA matrices of the same places and images, and its 95 % interval.

    The interval is that of the cell where the difference is largest, by a jackknife that leaves the same images out of
    both, cut off at 0. Raises ``ValueError`` where the results compare different places, or their groups hold different
    numbers of images or are fewer than two (``grouped`` makes them alike).
    """
    if a.labels != b.labels:
        raise ValueError("the two results compare different places")
    images = a.sums.images
    groups = np.flatnonzero(images)
    if not np.array_equal(images, b.sums.images) or len(groups) < 2:
        raise ValueError(f"the same images are left out of both, in two groups or more; got {images}, {b.sums.images}")

    def differences(without: int | None = None) -> np.ndarray:
        return (b.sums.cka(without) - a.sums.cka(without))[np.ix_(a.rows, a.columns)]

    left_out = np.stack([differences(int(group)) for group in groups])
    error = weighted_jackknife(differences(), left_out, images[groups] / images.sum())
    size = np.abs(differences())
    cell = np.unravel_index(size.argmax(), size.shape)
    reach = half_width(error[cell], len(groups))
    return float(size[cell]), (max(0.0, float(size[cell] - reach)), float(size[cell] + reach))


def grouped(results: Sequence[CKAResult], groups: Sequence[Sequence[int]] | None = None) -> CKAResult:
    """Results of the same places on other images as one, with a jackknife group for each of them.

    ``groups``: of a single result, instead, which of its own groups make each new one. Raises ``ValueError`` where the
    results compare different places.
    """
    if any(other.labels != results[0].labels for other in results):
        raise ValueError("the results compare different places")
    chosen: list[Any] = [(one, slice(None)) for one in results]
    if groups:
        chosen = [(results[0], list(group)) for group in groups]
    names = Sums.__dataclass_fields__
    parts = {name: np.stack([getattr(one.sums, name)[group].sum(0) for one, group in chosen]) for name in names}
    return replace(
        results[0], sums=Sums(**parts), n_images=int(parts["images"].sum()), batches=int(parts["batches"].sum())
    )


def frame(result: CKAResult, a: str, b: str | None = None) -> pd.DataFrame:
    """CKA of the places of model ``a`` (rows) with those of ``b`` (``a`` itself by default), labelled, for a figure."""
    rows, columns = places(result, a).index, places(result, a if b is None else b).index
    names = result.taps["name"]
    return pd.DataFrame(result.matrix[np.ix_(rows, columns)], names.iloc[rows], names.iloc[columns])
