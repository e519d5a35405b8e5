"""Fourier analysis of feature maps: how much of each frequency a channel holds over the positions of an image.

Park & Kim (2022, Figures 2a, 8 and D.2) take the logarithm of the amplitude at the places of a half-diagonal of the
two-dimensional spectrum, average it over channels and images, and subtract what stands at frequency zero. ``spectra``
gives that number, and beside it what it leaves out::

    top        the authors' number, at the last place of their half-diagonal: on an even grid of N rows it lies at
               (N − 2) / N of π and not at π
    nyquist    the same at the highest frequency that the grid has
    log_top, log_dc    the two terms of ``top``: a change of the mean alone moves the second, and so the difference
    power_top  half the logarithm of mean powers, where ``top`` has means of logarithms
    ac         share of the power that is not at frequency zero
    high       share of that power at frequencies above π / 2, in rows or in columns

Frequencies are in units of π radians a position, so that 1 is one period in two positions, and 2 k / N that of k
periods in N. Amplitudes are of the plain sum over positions, without a factor.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from helpers.measures.stream_maps import Place, about, kept_mean, stream_sums
from helpers.networks.inputs import float64, pixels
from helpers.uncertainty import GROUPS, delete_one

EPSILON = 1e-6  # added to amplitudes before the logarithm, as the authors do: a channel may be zero everywhere
LEAST = 3  # rows and columns of a map that has a frequency between zero and the highest


@dataclass(frozen=True)
class Spectra:
    """Spectra at the places of a network's stream, summed over images and averaged over channels.

    ``logs``, ``powers``: for each place (groups, h, w), logarithms of amplitudes and squared amplitudes, frequency zero
    first. ``images`` (groups,): how many each group has.
    """

    places: list[Place]
    logs: list[Tensor]
    powers: list[Tensor]
    images: Tensor

    def table(self) -> pd.DataFrame:
        """One row a place and group of images left out (``left_out``, −1 for none): place, block, after, opens.

        And the measures of the module's list, with ``rows`` and ``columns`` of the maps and ``top_frequency`` in π.
        """
        rows = about(self.places).assign(
            rows=[log.shape[1] for log in self.logs],
            columns=[log.shape[2] for log in self.logs],
            top_frequency=[2 * ((log.shape[1] - 1) // 2) / log.shape[1] for log in self.logs],
        )
        groups = self.images.nonzero().flatten().tolist()
        return delete_one(rows, self._measures, groups if len(groups) > 1 else ())

    def _measures(self, left_out: int | None) -> dict[str, np.ndarray]:
        """The measured columns of ``table`` without a group of images, each (places,)."""
        rows = [
            _summary(*(kept_mean(sums, self.images, left_out) for sums in pair))
            for pair in zip(self.logs, self.powers, strict=True)
        ]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def curve(self, place: str, rings: bool = False) -> pd.DataFrame:
        """Relative log amplitude over frequency at a place: ``frequency`` (π) from 0, ``amplitude`` (0 at 0).

        Along the diagonal, Nyquist included where the grid has it; or with ``rings`` averaged over all places of the
        spectrum that lie as far from zero, rounded to whole periods. Raises ValueError for an unknown place and for
        maps that are not square, of which the diagonal has no single frequency.
        """
        names = [at.tap.name for at in self.places]
        if place not in names:
            raise ValueError(f"no place {place!r}; there are {', '.join(names)}")
        log = kept_mean(self.logs[names.index(place)], self.images, None)
        if log.shape[0] != log.shape[1]:
            raise ValueError(
                f"{place}: a curve over frequency is of square maps, and these are {log.shape}; use table()"
            )
        side = len(log)
        periods = np.arange(side // 2 + 1)
        if rings:
            k = np.minimum(np.arange(side), side - np.arange(side))
            radius = np.rint(np.hypot(k[:, None], k[None, :])).astype(int)
            values = np.array([log[radius == period].mean() for period in periods])
        else:
            values = log[periods, periods]
        return pd.DataFrame({"frequency": 2 * periods / side, "amplitude": values - log[0, 0]})


def frequencies(shape: tuple[int, ...]) -> np.ndarray:
    """The frequency of each place of the spectrum of maps (h, w): the larger one of its two, in π, from 0 to 1."""
    rows, columns = (2 * np.abs(np.fft.fftfreq(side)) for side in shape)
    return np.maximum(rows[:, None], columns[None, :])


def amplitudes(maps: Tensor) -> dict[str, Tensor]:
    """Of maps (n, d, h, w): log amplitudes and powers (h, w), averaged over channels and summed over images."""
    amplitude = torch.fft.rfft2(maps).abs()  # half of the spectrum; that of real maps is its own mirror image
    rows, columns = maps.shape[2:]
    mirrored = -torch.arange(rows) % rows

    def averaged(half: Tensor) -> Tensor:
        mean = half.mean(1).sum(0)
        return torch.cat([mean, mean[mirrored][:, 1 : (columns + 1) // 2].flip(1)], 1)

    return {"log": averaged((amplitude + EPSILON).log()), "power": averaged(amplitude.square())}


def summary(maps: Tensor) -> dict[str, float]:
    """The measures of the module's list of maps (n, d, h, w), together. Raises ValueError for other shapes."""
    if maps.ndim != 4 or not len(maps) or min(maps.shape[2:]) < LEAST:
        raise ValueError(f"maps are (n, d, h, w), of {LEAST} rows and columns at least; got {tuple(maps.shape)}")
    found = amplitudes(float64(maps))
    return _summary(*((found[name] / len(maps)).cpu().numpy() for name in ("log", "power")))


def _summary(log: np.ndarray, power: np.ndarray) -> dict[str, float]:
    """The measures of a mean log amplitude (h, w) and a mean power (h, w)."""
    rows, columns = log.shape
    top, last = ((rows - 1) // 2, (columns - 1) // 2), (rows // 2, columns // 2)
    total = power.sum()
    ac = total - power[0, 0]
    high = power[frequencies(log.shape) > 0.5].sum()
    return {
        "top": float(log[top] - log[0, 0]),
        "nyquist": float(log[last] - log[0, 0]),
        "log_top": float(log[top]),
        "log_dc": float(log[0, 0]),
        "power_top": 0.5 * float(np.log((power[top] + EPSILON**2) / (power[0, 0] + EPSILON**2))),
        "ac": float(ac / total) if total > 0 else 0.0,
        "high": float(high / ac) if ac > 0 else 0.0,
    }


def spectra(model: nn.Module, loader: Iterable, groups: int = GROUPS) -> Spectra:
    """The spectra of the feature maps of a timm model at each place of its residual stream.

    Prefix tokens (CLS, registers) lie at no position and are left out. Batch b of ``loader``, images (n, 3, H, W) or a
    tuple that begins with them, is in jackknife group b mod ``groups``.

    Raises ValueError as ``stream_maps.stream_sums``, and for maps of fewer than three rows or columns.
    """
    places, sums, images = stream_sums(model, loader, amplitudes, groups, LEAST)
    return Spectra(places, [of["log"] for of in sums], [of["power"] for of in sums], images)


def shuffled_pixels(loader: Iterable, seed: int = 0) -> Iterator[Tensor]:
    """A control: the same batches with the pixels of each image in an order of its own, colours kept together.

    The histogram of colours stays; all that neighbours had in common goes, and with it the spectrum of an image, which
    becomes flat but for frequency zero.
    """
    generator = torch.Generator().manual_seed(seed)
    for batch in loader:
        images = pixels(batch)
        flat = images.flatten(2)
        order = torch.stack([torch.randperm(flat.shape[2], generator=generator) for _ in flat]).to(flat.device)
        yield flat.gather(2, order[:, None].expand_as(flat)).view_as(images)
