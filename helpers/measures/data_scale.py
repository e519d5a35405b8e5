"""What data, fine-tuning and architecture do to representations: the statistics of claims R24 to R29, C7 and C8.

Networks of one family are compared block by block: block i of a network trained on part of the data with block i of
one trained on all of it (Raghu et al. 2021, Figure 12), or block i before and after fine-tuning (Figure G.1). The
functions of a ``matrix`` take one CKA matrix of several networks and where their blocks or places stand in it, so that
``CKAResult.statistic`` can give what they return a jackknife error::

    full, part = blocks(result, "vit-short-seed1"), blocks(result, "vit-data3")
    value, stderr = result.statistic(lambda matrix: same_block(matrix, part, full))

What is a mean over test scenes comes with a 95 % interval instead, in percentage points.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from torch import Tensor, nn

from helpers.images.scenes import Scenes
from helpers.measures.cka_result import CKAResult
from helpers.measures.probes import features, probe_scores
from helpers.measures.structure import Places, apart, between
from helpers.networks.places import OUTPUTS
from helpers.networks.taps import taps_for
from helpers.uncertainty import difference_of_shares, estimate, interval

LEAST = 2  # places of the smaller group of a split
LOW, HIGH = slice(0, 3), slice(-3, None)  # blocks of R28: 0 to 2 and, of eight, 5 to 7


def blocks(result: CKAResult, model: str) -> np.ndarray:
    """Where the outputs of a model's blocks stand in the matrix, in order; (blocks,)."""
    return result.index(model, OUTPUTS)


def same_block(matrix: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """CKA of block i of one network with block i of the other, (blocks,). ``a``, ``b``: where they stand.

    Raises ``ValueError`` for networks of different lengths, whose blocks do not correspond.
    """
    if len(a) != len(b):
        raise ValueError(f"block i has no counterpart: one network has {len(a)} blocks, the other {len(b)}")
    return matrix[a, b]


def curve(result: CKAResult, a: str, b: str) -> pd.DataFrame:
    """CKA of block i of model ``a`` with block i of model ``b``, over depth: a table, one row a block.

    ``depth``: of the block's output, from 1 / blocks to 1; ``CKA``; ``error``, half the width of its 95 % interval.
    """
    value, error = estimate(lambda matrix: same_block(matrix, blocks(result, a), blocks(result, b)), result)
    return pd.DataFrame({"depth": (np.arange(len(value)) + 1) / len(value), "CKA": value, "error": error})


def quarters(count: int) -> np.ndarray:
    """The last block of each quarter of a network of ``count`` blocks, counting from 0; (4,).

    Raises ``ValueError`` where the blocks cannot be dealt to four quarters.
    """
    if count < 4 or count % 4:
        raise ValueError(f"{count} blocks do not make four quarters")
    return np.arange(1, 5) * count // 4 - 1


def data_needed(
    matrix: np.ndarray, fractions: Sequence[np.ndarray], second: np.ndarray, full: np.ndarray
) -> np.ndarray:
    """R24: rank correlation of block number and CKA to all data, and the share of the ceiling at low blocks; (2,).

    ``fractions``: blocks of the models trained on part of the data, the smallest part first. ``second``: of the model
    trained on all data from another seed, with which all are compared. ``full``: of the one from the same seed as the
    fractions; between the two seeds lies the ceiling. The correlation is that of the mean over the fractions. The ratio
    is that of blocks 0 and 1 at the smallest fraction to the same blocks between the seeds.
    """
    curves = np.stack([same_block(matrix, part, second) for part in fractions])  # (fractions, blocks)
    mean = curves.mean(0)
    order = spearmanr(np.arange(len(mean)), mean).statistic if len(np.unique(mean)) > 1 else 0.0
    return np.array([order, curves[0, :2].mean() / same_block(matrix, full, second)[:2].mean()])


def how_far(matrix: np.ndarray, part: np.ndarray, untrained: np.ndarray, full: np.ndarray, second: np.ndarray) -> float:
    """How far part of the data bring a network from an untrained one (0) to one trained on all data (1).

    By its CKA to a network trained on all data from another seed, ``second``, at the ends of the four quarters. Each
    argument: where a network's blocks stand, ``part`` trained on part of the data, ``full`` on all of them.
    """
    ends = quarters(len(second))
    floor, reached, ceiling = (same_block(matrix, one, second)[ends].mean() for one in (untrained, part, full))
    return float((reached - floor) / (ceiling - floor))


def larger_minus_smaller(matrix: np.ndarray, larger: Sequence[np.ndarray], smaller: Sequence[np.ndarray]) -> float:
    """R25: how far the same share of the data brings the larger ViT, minus the smaller; see ``how_far``."""
    return how_far(matrix, *larger) - how_far(matrix, *smaller)


def kept(matrix: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """R28: the lowest CKA before and after fine-tuning of blocks 0 to 2, and the last three minus these; (2,).

    Raises ``ValueError`` for networks of fewer than six blocks, of which the first and last three overlap.
    """
    same = same_block(matrix, before, after)
    if len(same) < 6:
        raise ValueError(f"first and last three of {len(same)} blocks overlap; the network needs six")
    return np.array([same[LOW].min(), same[HIGH].mean() - same[LOW].mean()])


def kinship(matrix: np.ndarray, network: Places, a: Places, b: Places) -> float:
    """R29: the highest CKA of a place of ``network`` to any of ``a`` minus to any of ``b``, mean over its places."""
    return float((between(matrix, network, a).max(1) - between(matrix, network, b).max(1)).mean())


def split(matrix: np.ndarray, network: Places) -> tuple[float, float]:
    """The cut of a network's places into two consecutive groups that sets them apart most: contrast, and its depth.

    Contrast: mean CKA over pairs of places of one group minus that over pairs from different groups that lie as many
    places apart (``structure.apart``). Each group has at least two places. Depth: midway between the last place of the
    one and the first of the other.

    Raises ``ValueError`` for fewer than four places.
    """
    own = between(matrix, network, network)
    count = len(own)
    if count < 2 * LEAST:
        raise ValueError(f"{count} places cannot be split in two groups of at least {LEAST}")
    contrasts = {cut: apart(own, np.arange(count) >= cut) for cut in range(LEAST, count - LEAST + 1)}
    best = max(contrasts, key=contrasts.__getitem__)
    return float(contrasts[best]), float(network.depth[best - 1 : best + 1].mean())


def mixer(matrix: np.ndarray, network: Places, vit: Places, resnet: Places) -> np.ndarray:
    """R29: kinship to the ViT over the ResNet, contrast of the split, and the split's depth; (3,)."""
    return np.array([kinship(matrix, network, vit, resnet), *split(matrix, network)])


def probed(
    model: nn.Module, read: Scenes, test: Scenes, *, shots: int, draws: int = 5, held_out: int = 256, seed: int = 0
) -> dict[float, Tensor]:
    """What probes on the mean token get right, at the outputs of a network's blocks, at most about eight of them.

    Args:
        model: run in eval mode; its modes are restored.
        read: scenes (with labels) that the probes learn from and choose their l2 on.
        test: scenes that they are scored on.
        shots: images a class that a probe learns from.
        draws: R, how often the shots are drawn.
        held_out: at most so many other scenes of ``read`` choose the l2.
        seed: of the first draw.

    Returns:
        depth of the block, from 1 / blocks to 1 → right or wrong, (R, scenes) bool.

    Raises:
        ValueError: as ``probe_scores`` and ``features`` do.
    """
    places = taps_for(model, OUTPUTS)
    every = max(1, len(places) // 8)
    places = places[every - 1 :: every]
    learned, scored = (features(model, part.images, "mean token", places)["mean token"] for part in (read, test))
    hits = {}
    for number, place in enumerate(learned, 1):
        parts = (learned[place], read.label, scored[place], test.label)
        hits[number / len(learned)] = probe_scores(*parts, shots=shots, draws=draws, held_out=held_out, seed=seed)
    return hits


def scores(hits: Mapping[str, Mapping[float, Tensor]]) -> pd.DataFrame:
    """Accuracy of probes over depth with 95 % intervals (``uncertainty.interval``), one row a network and block.

    ``hits``: label of the network, "architecture, training data" → what ``probed`` returns. Returns columns
    ``network``, ``data``, ``depth of the block``, ``probe accuracy (%)``, ``low``, ``high``.
    """
    rows = []
    for label, by_depth in hits.items():
        network, _, data = label.partition(", ")
        for depth, right in by_depth.items():
            low, high = (100 * end for end in interval(right))
            rows.append((network, data, depth, 100 * float(right.float().mean()), low, high))
    return pd.DataFrame(rows, columns=["network", "data", "depth of the block", "probe accuracy (%)", "low", "high"])


def probe_difference(a: Tensor, b: Tensor) -> tuple[float, tuple[float, float]]:
    """R26, R27: accuracy of one probe minus another's, in points, and its 95 % interval.

    ``a``, ``b``: what ``probe_scores`` returns, (R, N), of the same draws and test images, which the bootstrap draws
    anew together for both. Raises ``ValueError`` for scores of different shape.
    """
    if a.shape != b.shape:
        raise ValueError(f"scores of the same draws and images are compared; got {tuple(a.shape)} and {tuple(b.shape)}")
    difference = 100 * (a.float() - b.float())
    return float(difference.mean()), interval(difference)


def accuracy_difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[float, tuple[float, float]]:
    """C7, C8: accuracy on pairs of one card of the zoo minus another's, in points, and its 95 % interval.

    The normal approximation for two independent shares. Both are of the same test scenes, of which the hard ones are
    hard for both, so that the interval is rather too wide. Raises ``ValueError`` where a card has no accuracy, or the
    cards different test scenes.
    """
    for card in (a, b):
        if "accuracy" not in card or "test_scenes" not in card:
            raise ValueError(f"the card of {card.get('name')!r} has no accuracy; train the model with `make zoo`")
    if a["test_scenes"] != b["test_scenes"] or a["corpus"] != b["corpus"]:
        raise ValueError(f"{a['name']!r} and {b['name']!r} were measured on different test scenes")
    of_a, of_b = (card["accuracy"]["all cues"]["pair"] for card in (a, b))
    value, (low, high) = difference_of_shares(of_a, of_b, count=a["test_scenes"])
    return 100 * value, (100 * low, 100 * high)


def repeats(card: Mapping[str, Any]) -> float:
    """How often a model saw each of its training images, on average."""
    return card["recipe"]["images_seen"] / card["recipe"]["distinct_images"]


def curves(cards: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Training curves, one row a point: model, distinct images, images seen, loss (nats, smoothed over steps)."""
    rows = [
        (card["name"], card["recipe"]["distinct_images"], seen, loss) for card in cards for seen, loss in card["curve"]
    ]
    return pd.DataFrame(rows, columns=["model", "distinct images", "images seen", "loss"])
