"""How much feature maps vary over the positions of an image, place by place (Park & Kim 2022, Figures 9 and D.1).

Of each channel of an image the variance over positions is taken, then the mean over channels and images. By Parseval's
theorem it is the power of all frequencies but zero (``fourier``). The authors divide by the number of positions less
one, we by their number: within a network of one grid that changes nothing.

A mean over channels may be that of one channel, and a mean over blocks that of one block: so the median over channels,
the share of the largest one, and logarithms stand beside it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor, nn

from helpers.measures.stream_maps import Place, about, kept_mean, stream_sums
from helpers.networks.inputs import float64
from helpers.uncertainty import GROUPS, delete_one


@dataclass(frozen=True)
class FeatureVariance:
    """Variances over positions (groups, d) and mean squares (groups, d) of each place, summed over images."""

    places: list[Place]
    variances: list[Tensor]
    squares: list[Tensor]
    images: Tensor

    def table(self) -> pd.DataFrame:
        """One row a place and group of images left out (``left_out``, −1 for none): place, block, after, opens.

        And ``variance``, the mean over channels; ``median``, that over channels instead; ``largest``, the share of
        the sum over channels that the largest one has; ``relative``, the variance over the mean square.
        """
        groups = self.images.nonzero().flatten().tolist()
        return delete_one(about(self.places), self._measures, groups if len(groups) > 1 else ())

    def _measures(self, left_out: int | None) -> dict[str, np.ndarray]:
        """The measured columns of ``table`` without a group of images, each (places,)."""
        variances = [kept_mean(sums, self.images, left_out) for sums in self.variances]
        squares = [kept_mean(sums, self.images, left_out).mean() for sums in self.squares]
        means = np.array([each.mean() for each in variances])
        return {
            "variance": means,
            "median": np.array([np.median(each) for each in variances]),
            "largest": np.array([_ratio(each.max(), each.sum()) for each in variances]),
            "relative": np.array([_ratio(mean, square) for mean, square in zip(means, squares, strict=True)]),
        }


def moments(maps: Tensor) -> dict[str, Tensor]:
    """Of maps (n, d, h, w): variance over positions and mean square of each channel (d,), summed over images."""
    flat = float64(maps).flatten(2)
    return {"variance": flat.var(2, correction=0).sum(0), "square": flat.square().mean(2).sum(0)}


def feature_variance(model: nn.Module, loader: Iterable, groups: int = GROUPS) -> FeatureVariance:
    """The variance over positions of the feature maps of a timm model, at each place of its residual stream.

    Prefix tokens (CLS, registers) are left out. Batch b of ``loader``, images (n, 3, H, W) or a tuple that begins with
    them, is in jackknife group b mod ``groups``. Raises ValueError as ``stream_maps.stream_sums``.
    """
    places, sums, images = stream_sums(model, loader, moments, groups)
    return FeatureVariance(places, [of["variance"] for of in sums], [of["square"] for of in sums], images)


def stage_rises(table: pd.DataFrame) -> np.ndarray:
    """Claim P3: the variance at the end of each stage minus that after the block that opens it; (stages,).

    ``table`` of one ``left_out``, of a network that has stages; a ValueError for one that has none.
    """
    rows = table[table["after"] == "block"]
    starts = np.flatnonzero(rows["opens"])
    if not len(starts):
        raise ValueError("no block opens a stage: a rise within stages is that of a ResNet or of another such network")
    ends = np.append(starts[1:], len(rows)) - 1
    variance = rows["variance"].to_numpy()
    return variance[ends] - variance[starts]


def _ratio(part: float, whole: float) -> float:
    """``part / whole``, and 0 where both are 0."""
    return float(part / whole) if whole else 0.0
