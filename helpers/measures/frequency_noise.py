"""Noise in one band of frequencies at a time, and what it costs a classifier.

The analysis is that of Park & Kim (2022, Figure 2b), after Yin et al. (2019). White noise is cut to a band by its
Fourier transform and scaled to one strength. The authors scale the white noise and not what is left of it, so that
their high bands hold several times the energy of their low ones; here the root mean square over an image's pixels is
exactly the same in every band and for every image. A place of the spectrum is in the band of the larger one of its
frequencies along rows and columns. Frequency zero is in none: noise changes no image's mean.

Pixels count from 0 to 1. What noise makes of them is not clipped to that range, since clipping would spread a band's
energy over all bands; so strong noise shows a network values that no picture has.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn

from helpers.measures.distributed import Share
from helpers.measures.fourier import frequencies
from helpers.measures.streams import at_least_one, counted
from helpers.networks.inputs import normalise, pixels
from helpers.networks.taps import evaluating

BANDS = 10
STRENGTHS = (0.05, 0.15, 0.45, 1.35)  # root mean squares, in units of the range of a pixel


@dataclass(frozen=True)
class UnderNoise:
    """What a classifier answers: ``clean`` (n,) without noise, ``noisy`` (strengths, bands, n) with it.

    ``labels`` (n,) what it should answer, or None, where its own answer without noise is taken for that.
    """

    clean: Tensor
    noisy: Tensor
    labels: Tensor | None
    strengths: tuple[float, ...]

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The answers as arrays to be stored: ``name/clean``, ``name/noisy`` and, if there are any, ``name/labels``."""
        found = {"clean": self.clean, "noisy": self.noisy} | ({} if self.labels is None else {"labels": self.labels})
        return {f"{name}/{part}": of.numpy().astype(np.int16) for part, of in found.items()}

    @classmethod
    def stored(cls, arrays: Mapping[str, np.ndarray], name: str, strengths: Sequence[float]) -> "UnderNoise":
        """What ``arrays(name)`` has kept. Raises ValueError where there is nothing under this name."""
        if f"{name}/noisy" not in arrays:
            have = sorted({key.rpartition("/")[0] for key in arrays})
            raise ValueError(f"no answers of {name!r} are stored; there are those of {', '.join(have)}")
        clean, noisy = (torch.from_numpy(arrays[f"{name}/{part}"]).long() for part in ("clean", "noisy"))
        labels = arrays.get(f"{name}/labels")
        return cls(clean, noisy, None if labels is None else torch.from_numpy(labels).long(), tuple(strengths))

    @property
    def truth(self) -> Tensor:
        """What counts as right (n,)."""
        return self.clean if self.labels is None else self.labels

    def right(self) -> Tensor:
        """Whether each image is named rightly, of those that noise can cost: (n,) without noise."""
        return self.clean == self.truth

    def lost(self) -> Tensor:
        """By how much less each image is right under noise: (strengths, bands, n), 1, 0, or −1 where noise helps."""
        return self.right().double() - (self.noisy == self.truth).double()

    def table(self) -> pd.DataFrame:
        """One row a strength and band: ``strength``, ``low`` and ``high`` edge (π), ``accuracy`` (share), ``lost``.

        ``lost`` in points, with ``error``, half its 95 % interval over images.
        """
        return _table(self.lost(), self.strengths).assign(
            accuracy=(self.noisy == self.truth).double().mean(2).flatten().numpy()
        )


def band_of(shape: tuple[int, int], bands: int = BANDS) -> Tensor:
    """The band 0 … ``bands`` − 1 of each place of the spectrum of images (h, w); −1 at frequency zero: (h, w).

    Band b holds frequencies above b / ``bands`` of π up to (b + 1) / ``bands``. Raises ValueError for images so small
    that a band is empty.
    """
    at_least_one(bands=bands)
    number = np.ceil(frequencies(shape) * bands - 1e-9).astype(int) - 1
    if len(np.unique(number)) < bands + 1:
        raise ValueError(f"images of {shape[0]} × {shape[1]} px have no frequency in some of {bands} bands; take fewer")
    return torch.from_numpy(number)


def band_noise(count: int, shape: tuple[int, int], bands: int = BANDS, *, seed: int = 0, first: int = 0) -> Tensor:
    """Noise for ``count`` images of ``shape`` (h, w) in each band: (bands, count, 3, h, w), of root mean square 1.

    Gaussian, independent between colours, with mean 0. That of image i depends on ``seed`` and ``first`` + i alone, and
    all bands are cut out of the same white noise.
    """
    band = band_of(shape, bands)
    draws = [np.random.default_rng((seed, first + i)).standard_normal((3, *shape), np.float32) for i in range(count)]
    white = torch.from_numpy(np.stack(draws))
    spectrum = torch.fft.fft2(white)
    noise = torch.stack([torch.fft.ifft2(spectrum * (band == b)).real for b in range(bands)])
    return noise / noise.square().mean((2, 3, 4), keepdim=True).sqrt()


@torch.inference_mode()
def answers_under_noise(
    model: nn.Module,
    loader: Iterable,
    strengths: Sequence[float] = STRENGTHS,
    bands: int = BANDS,
    seed: int = 0,
) -> UnderNoise:
    """What a classifier answers to images with noise of each strength in each band, and without.

    Args:
        model: any timm model with a classifier, run in eval mode; its modes are restored.
        loader: batches of images (n, 3, H, W), or of (images, labels).
        strengths: root mean squares of the noise, in units of the range of a pixel.
        bands: of equal width, from 0 to π.
        seed: of the noise, which is the same for every model, whatever the batches.

    Returns:
        the answers.

    Raises:
        ValueError: no images; strengths that are not positive numbers; images too small for the bands; a model that
            gives no scores of classes, for instance since it lacks its last layers.
    """
    if not len(strengths) or not all(np.isfinite(s) and s > 0 for s in strengths):
        raise ValueError(f"strengths are root mean squares above 0, one or more; got {list(strengths)}")
    found: dict[int, list[tuple[Tensor, ...]]] = {}  # number of a batch → its answers, and its labels if it has any
    share = Share()
    with evaluating(model):
        for number, (seen, batch) in share.dealt(counted(loader)):
            images = pixels(batch)
            x = normalise(model, images)
            ends = [normalise(model, torch.full_like(images[:1], end, dtype=torch.float)) for end in (0, 1)]
            gain = ends[1] - ends[0]  # of the model's input for a pixel from 0 to 1
            noise = band_noise(len(images), (images.shape[2], images.shape[3]), bands, seed=seed, first=seen)
            noise = noise.to(x) * gain
            clean = _answers(model, x)
            answers = [[_answers(model, x + strength * of) for of in noise] for strength in strengths]
            noisy = torch.stack([torch.stack(row) for row in answers])
            labels = [torch.as_tensor(batch[1]).cpu()] if isinstance(batch, (tuple, list)) and len(batch) > 1 else []
            found[number] = [(clean, noisy, *labels)]
    parts = share.in_order(found)
    if not parts:
        raise ValueError("no images to put noise on")
    clean, noisy, *truth = (torch.cat(each, -1) for each in zip(*parts, strict=True))
    return UnderNoise(clean, noisy, truth[0] if truth else None, tuple(strengths))


def _answers(model: nn.Module, x: Tensor) -> Tensor:
    """The class with the highest score (n,). Raises ValueError for a model that gives no such scores."""
    scores = model(x)
    classes = getattr(model, "num_classes", None)
    if (
        not isinstance(scores, Tensor)
        or scores.ndim != 2
        or scores.shape[1] < 2
        or classes not in (None, scores.shape[1])
    ):
        raise ValueError(
            f"{type(model).__name__} gives no scores of classes (n, {classes or 'classes'}); noise costs accuracy, so "
            "take a network with its classifier"
        )
    return scores.argmax(1).cpu()


def paired(first: UnderNoise, second: UnderNoise) -> Tensor:
    """What noise costs the second network more than the first, over the images that both name rightly without it.

    (strengths, bands, kept images), 1, 0 or −1. Raises ValueError for answers to other images or noise, and where no
    image is named rightly by both.
    """
    if first.noisy.shape != second.noisy.shape or first.strengths != second.strengths:
        raise ValueError("the two networks were not shown the same images with the same noise")
    if first.labels is not None and second.labels is not None and not torch.equal(first.labels, second.labels):
        raise ValueError("the two networks were not shown the same images with the same noise")
    both = first.right() & second.right()
    if not both.any():
        raise ValueError("no image is named rightly by both networks without noise")
    return (second.lost() - first.lost())[..., both]


def paired_table(first: UnderNoise, second: UnderNoise) -> pd.DataFrame:
    """``paired`` by strength and band, in points, as ``UnderNoise.table``."""
    return _table(paired(first, second), first.strengths)


def over_strengths(first: UnderNoise, second: UnderNoise, band: int) -> tuple[float, tuple[float, float]]:
    """Claim P5: ``paired`` in one band, averaged over strengths and images, in points; its 95 % interval over images.

    Raises ValueError as ``paired``.
    """
    each = 100 * paired(first, second)[:, band].mean(0).numpy()
    reach = stats.norm.ppf(0.975) * float(stats.sem(each))
    value = float(each.mean())
    return value, (value - reach, value + reach)


def _table(lost: Tensor, strengths: Sequence[float]) -> pd.DataFrame:
    """Means over images of (strengths, bands, n), in points, with half their 95 % intervals."""
    bands, count = lost.shape[1], lost.shape[2]
    error = stats.norm.ppf(0.975) * lost.std(2, correction=0) / np.sqrt(count)
    rows = [(s, b, b / bands, (b + 1) / bands) for s in strengths for b in range(bands)]
    return pd.DataFrame(rows, columns=["strength", "band", "low", "high"]).assign(
        lost=100 * lost.mean(2).flatten().numpy(), error=100 * error.flatten().numpy()
    )
