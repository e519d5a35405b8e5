"""The filters by which a transformer turns patches of pixels into tokens, and their principal components.

A patch embedding is one linear map from the pixels of a patch to a token: D filters, each a small colour picture. Their
principal components are the pictures that all filters are mixtures of (Dosovitskiy et al. 2021, Figure 7, left, which
shows the first 28). Two things have to be said with them. The mean filter is subtracted here. The sign of a component
has no meaning; here the entry that is largest in magnitude is positive.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from helpers.measures.streams import at_least_one
from helpers.networks.inputs import pixels

SHOWN = 28  # components in the paper's figure


@dataclass(frozen=True)
class Components:
    """``pictures`` (K, C, h, w) of unit norm, largest variance first; ``shares`` (K,), each one's of the variance."""

    pictures: Tensor
    shares: Tensor

    @property
    def variation(self) -> Tensor:
        """Total variation of each component, (K,)."""
        return total_variation(self.pictures)


def embedding_filters(model: nn.Module) -> Tensor:
    """The filters of a model's patch embedding, (D, 3, h, w) in float32.

    Of timm's transformers whose ``patch_embed``, and of its Mixers whose ``stem``, is one convolution of the pixels.
    Raises ``ValueError`` for models without patches, and where other layers come before the projection (a
    convolutional stem, a hybrid): what it projects is no picture then.
    """
    embed: Any = getattr(model, "patch_embed", getattr(model, "stem", None))
    kind, projection = type(model).__name__, getattr(embed, "proj", getattr(embed, "conv", None))
    if embed is None or projection is None:
        raise ValueError(f"{kind} has no patch embedding: this measure is for networks that cut images into patches")
    if getattr(embed, "backbone", None) is not None or not isinstance(projection, nn.Conv2d):
        raise ValueError(
            f"{kind} embeds patches by more than one layer ({type(embed).__name__}): its filters are no pictures; "
            "take a network whose patch embedding is one convolution of the pixels"
        )
    filters = projection.weight.detach().float().cpu()
    if filters.shape[1] != 3:
        raise ValueError(f"{kind} has filters of {filters.shape[1]} channels, not of the 3 colours of an image")
    return filters.clone()


def cut(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The patches of images (B, C, H, W), row by row, image after image: (B · T, C, h, w) for ``size`` (h, w).

    Raises ``ValueError`` where images cannot be cut into whole patches.
    """
    high, wide = size
    at_least_one(height=high, width=wide)
    if images.ndim != 4 or images.shape[2] % high or images.shape[3] % wide:
        raise ValueError(f"images of shape {tuple(images.shape)} cannot be cut into whole patches of {high} × {wide}")
    tiles = images.unfold(2, high, high).unfold(3, wide, wide)  # (B, C, rows, columns, h, w)
    return tiles.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


def components(pictures: Tensor, count: int = SHOWN) -> Components:
    """The first ``count`` principal components of pictures (N, C, h, w), their mean picture subtracted.

    Computed in float64. Raises ``ValueError`` for another shape, for more components than N − 1 pictures or C · h · w
    pixels can have, and for pictures that are all alike or not finite.
    """
    if pictures.ndim != 4:
        raise ValueError(f"pictures are (N, C, h, w); got {tuple(pictures.shape)}")
    size = pictures.shape[1:].numel()
    if not 0 < count <= min(len(pictures) - 1, size):
        raise ValueError(f"{len(pictures)} pictures of {size} numbers have no {count} principal components")
    x = _centred(pictures)
    if len(x) > x.shape[1]:
        x = torch.linalg.qr(x, mode="r").R  # the same components, of as many rows as there are pixels
    _, deviations, directions = torch.linalg.svd(x, full_matrices=False)
    directions = directions[:count]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    shares = deviations.square() / deviations.square().sum()
    return Components((directions * largest.sign()).view(count, *pictures.shape[1:]), shares[:count])


def _centred(pictures: Tensor) -> Tensor:
    """Pictures as rows, without their mean: (N, C · h · w). Raises ``ValueError`` where nothing can be said of them."""
    x = pictures.detach().cpu().double().flatten(1)
    x = x - x.mean(0)
    if not x.isfinite().all() or not x.any():
        raise ValueError("pictures that are all alike, or hold numbers that are not finite, have no components")
    return x


def filter_components(model: nn.Module, count: int = SHOWN) -> Components:
    """The first principal components of a model's patch embedding. Raises as its two parts do."""
    return components(embedding_filters(model), count)


def patch_components(images: Tensor, size: tuple[int, int], count: int = SHOWN) -> Components:
    """The first principal components of the patches of ``size`` (h, w) of images (B, 3, H, W), uint8 or float.

    What any smooth basis owes to the images and not to learning. Raises as ``cut`` and ``components``.
    """
    return components(cut(pixels(images).float(), size), count)


def total_variation(pictures: Tensor) -> Tensor:
    """Sum of absolute differences between neighbouring pixels of pictures (N, C, h, w) brought to unit norm: (N,).

    Differences to the right and downwards, within a colour; the smaller, the smoother. NaN for an empty picture.
    """
    x = pictures.cpu().double()
    x = x / x.flatten(1).norm(dim=1)[:, None, None, None]
    return x.diff(dim=2).abs().sum((1, 2, 3)) + x.diff(dim=3).abs().sum((1, 2, 3))


def overlap(a: Components, b: Components) -> float:
    """How much two sets of K components span the same pictures: mean squared cosine of their principal angles.

    1 for the same space, and about K over the number of pixels for spaces that have nothing to do with each other.
    Raises ``ValueError`` for different numbers or sizes of pictures.
    """
    if a.pictures.shape != b.pictures.shape:
        raise ValueError(f"components of {tuple(a.pictures.shape)} and {tuple(b.pictures.shape)} have no overlap")
    x, y = (part.pictures.double().flatten(1) for part in (a, b))
    return float((x @ y.T).square().sum() / len(x))


def share_within(pictures: Tensor, space: Components) -> float:
    """How much of the variance of pictures (N, C, h, w) lies in the span of components, between 0 and 1.

    About K over the number of pixels for components that have nothing to do with the pictures. Raises ``ValueError``
    for pictures of another size, or that are all alike or not finite.
    """
    if pictures.shape[1:] != space.pictures.shape[1:]:
        raise ValueError(f"pictures of {tuple(pictures.shape[1:])}, components of {tuple(space.pictures.shape[1:])}")
    x = _centred(pictures)
    return float((x @ space.pictures.double().flatten(1).T).square().sum() / x.square().sum())


def few_and_smooth(trained: Components, untrained: Components) -> tuple[float, float]:
    """Claim C2: the share of variance in the components, and their mean total variation over an untrained model's."""
    return float(trained.shares.sum()), float(trained.variation.mean() / untrained.variation.mean())
