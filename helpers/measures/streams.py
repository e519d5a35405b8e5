"""The images of a measure as a stream of batches: what is taken for one, and which images it has seen before."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from helpers.images.sources import ImageSet, batches
from helpers.networks.inputs import pixels


def at_least_one(**numbers: int) -> None:
    """Raise ``ValueError`` for the first of some numbers, given by their names, that is below 1."""
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} is a whole number, at least 1; got {value}")


def at_least_two(groups: int) -> None:
    """Raise ``ValueError`` for fewer groups of images than a jackknife error needs."""
    if groups < 2:
        raise ValueError(f"an error needs two jackknife groups or more; got {groups}")


def in_batches(images: ImageSet | Tensor | Sequence, batch: int) -> Iterable:
    """Batches of at most ``batch`` images: of an ``ImageSet``, a tensor (N, 3, H, W), or a tuple that begins with one.

    Raises ``ValueError`` and ``TypeError`` as ``inputs.pixels`` does for other images, and for a batch below 1.
    """
    at_least_one(batch=batch)
    return batches(images, batch) if isinstance(images, Dataset) else pixels(images).split(batch)


def counted(batches: Iterable) -> Iterator[tuple[int, Any]]:
    """Each batch with the number of its first image, from 0."""
    first = 0
    for batch in batches:
        yield first, batch
        first += len(pixels(batch))


def hashes(images: Tensor) -> list[int]:
    """A hash of each image's pixels, of 64 bits; two images have the same one where these are equal, on any machine."""
    rows = images.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy()
    return [int.from_bytes(blake2b(row, digest_size=8).digest(), "little") for row in rows]


def warn_of_repeated(count: int, images: int, stacklevel: int) -> None:
    """Warn of ``count`` images, of so many, that have the pixels of others, ``stacklevel`` calls above this one."""
    if count:
        warnings.warn(
            f"{count} of {images} images have exactly the pixels of earlier ones, and CKA is not that of different "
            "images: leave the copies out",
            stacklevel=stacklevel + 1,
        )
