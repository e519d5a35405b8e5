"""The residual stream as maps over positions, read place by place, and how it changes from one place to the next.

Park & Kim (2022) follow feature maps through a network: after each attention and each MLP of a ViT, after each block of
a ResNet. ``stream_sums`` reads them there, ``steps`` takes the difference that each sublayer makes, and
``mean_interval`` says how sure a mean over sublayers is. The sublayers are the units, and then the trainings: over
images alone the same sublayers of the same network would be measured again.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy import stats
from torch import Tensor, nn

from helpers.measures.distributed import Share
from helpers.measures.streams import at_least_one
from helpers.networks.inputs import normalise, pixels
from helpers.networks.places import STREAM
from helpers.networks.positions import positions
from helpers.networks.taps import Tap, capture, evaluating, taps_for
from helpers.uncertainty import GROUPS, half_width

START = "start"
MIXERS = {"attn": "attention", "token_mix": "token mixing"}  # kind of tap of the first branch → what comes after it
SECONDS = {"mlp": "MLP", "channel_mix": "channel mixing"}
STAGE = re.compile(r"(.*\b(?:stages|layers?|transformers)[._]?\d+)")


@dataclass(frozen=True)
class Place:
    """A place of the stream. ``after``: what wrote into it last, "start" for the embedding or stem, else "attention",
    "MLP", "token mixing", "channel mixing" or "block". ``opens``: whether a new stage begins between the place before
    and this one, so that the two maps differ in size or in channels."""

    tap: Tap
    block: int
    after: str
    opens: bool


def stream_places(model: nn.Module) -> list[Place]:
    """The places of the residual stream of a timm model, in order. Raises ValueError as ``taps_for`` does."""
    taps = taps_for(model, STREAM)
    first = {tap.name.rpartition(".")[0]: MIXERS[tap.kind] for tap in taps_for(model) if tap.kind in MIXERS}
    second = {tap.name.rpartition(".")[0]: SECONDS[tap.kind] for tap in taps_for(model) if tap.kind in SECONDS}
    found: list[Place] = []
    blocks: list[str] = []
    stage = ""
    for tap in taps:
        if tap.kind in ("embed", "stem"):
            found.append(Place(tap, -1, START, False))
            continue
        name = tap.name if tap.kind == "block" else tap.name.rpartition(".")[0]
        new = name not in blocks
        if new:
            blocks.append(name)
        match = STAGE.match(name)
        now = match[1] if match else ""
        opens = new and now != stage and (tap.kind == "block" or stage != "")
        stage = now
        after = {"resid_mid": first, "resid_post": second}.get(tap.kind, {}).get(name, "block")
        found.append(Place(tap, len(blocks) - 1, after, opens))
    return found


@torch.inference_mode()
def stream_sums(
    model: nn.Module,
    loader: Iterable,
    measure: Callable[[Tensor], dict[str, Tensor]],
    groups: int = GROUPS,
    least: int = 2,
) -> tuple[list[Place], list[dict[str, Tensor]], Tensor]:
    """What is measured of the maps at every place of the stream, summed over images, by jackknife group.

    Args:
        model: a timm model, run in eval mode; its modes are restored.
        loader: batches of images (n, 3, H, W), or tuples that begin with them; batch b is in group b mod ``groups``.
        measure: the maps (n, d, h, w) of a place, prefix tokens left out → name → the sum over the n images.
        groups: of images, for the jackknife.
        least: rows and columns that a map must have.

    Returns:
        the places; of each place, by name, the sums (groups, …) in float64; images in each group (groups,).

    Raises:
        ValueError: a network of which the stream or the layout of tokens is not known; no images or groups; and, naming
            the place, maps with too few positions or with numbers that are not finite.
    """
    at_least_one(groups=groups)
    places = stream_places(model)
    sums: list[dict[str, Tensor]] = [{} for _ in places]
    images = torch.zeros(groups, dtype=torch.double)
    size = (0, 0)
    share = Share()

    def read(x: Tensor, tap: Tap) -> dict[str, Tensor]:
        found = positions(model, x, size=size, tap=tap)
        if min(found.grid) < least:
            rows, columns = found.grid
            raise ValueError(
                f"{tap.name}: {rows} × {columns} positions, and {least} rows and columns are needed; take larger images"
            )
        return measure(found.tokens.float().transpose(1, 2).unflatten(2, found.grid))

    taps = [place.tap for place in places]
    with evaluating(model), capture(model, taps, read, with_tap=True) as out:
        for index, batch in share.dealt(loader):
            batch = pixels(batch)
            size = (batch.shape[2], batch.shape[3])
            model(normalise(model, batch))
            images[index % groups] += len(batch)
            for place, total in zip(places, sums, strict=True):
                for name, value in out[place.tap.name].items():
                    if not torch.isfinite(value).all():
                        raise ValueError(f"{place.tap.name}: its maps hold numbers that are not finite")
                    if name not in total:
                        total[name] = torch.zeros(groups, *value.shape, dtype=torch.double)
                    total[name][index % groups] += value.cpu().double()
        sums, images = share.summed((sums, images))
        if not images.sum():
            raise ValueError("no images to read the feature maps of")
    return places, sums, images


def kept_mean(sums: Tensor, images: Tensor, left_out: int | None) -> np.ndarray:
    """The mean over images of sums (groups, …) of which one group is left out, or none: (…)."""
    kept = torch.ones(len(images), dtype=torch.double)
    if left_out is not None:
        kept[left_out] = 0
    return (torch.tensordot(kept, sums, 1) / (kept @ images)).numpy()


def about(places: Iterable[Place]) -> pd.DataFrame:
    """A row for each place: place, block, after, opens."""
    rows = [(place.tap.name, place.block, place.after, place.opens) for place in places]
    return pd.DataFrame(rows, columns=["place", "block", "after", "opens"])


def steps(table: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """What each sublayer changes: of ``columns``, the value at its place minus that at the place before.

    ``table``: the places of one network in order, for each ``left_out`` (where there is one). The first place, which
    has none before it, is left out.
    """
    columns = list(columns)
    outer = table.groupby("left_out", sort=False) if "left_out" in table else [(None, table)]
    parts = [part.assign(**{name: part[name].diff() for name in columns}).iloc[1:] for _, part in outer]
    return pd.concat(parts, ignore_index=True)


def of_kind(table: pd.DataFrame, column: str, after: str, first: int = 0) -> np.ndarray:
    """A column of the ``steps`` of one kind, from block ``first`` on, without those that open a stage: (blocks,).

    Raises ValueError where there are none.
    """
    rows = table[(table["after"] == after) & (table["block"] >= first) & ~table["opens"].astype(bool)]
    if not len(rows):
        raise ValueError(f"no step after {after!r} from block {first} on; there are {sorted(set(table['after']))}")
    return rows[column].to_numpy()


def mean_interval(values: ArrayLike) -> tuple[float, tuple[float, float]]:
    """The mean of values (units,), one of each sublayer, block or stage, and its 95 % interval by Student's t.

    It says how the mean would come out over other sublayers of the kind. Raises ValueError for fewer than two.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"an interval over units needs two of them at least; got values of shape {values.shape}")
    value, reach = float(values.mean()), float(half_width(stats.sem(values), len(values)))
    return value, (value - reach, value + reach)


def rank_interval(values: ArrayLike) -> tuple[float, tuple[float, float]]:
    """Spearman's correlation of values (places,) with their order, and its 95 % interval by Fisher's z.

    With the error of Bonett & Wright (2000), which takes places as independent, though each holds what came before it.
    Raises ValueError for fewer than four places.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 4:
        raise ValueError(f"a rank correlation with depth needs four places at least; got values of {values.shape}")
    found = float(stats.spearmanr(np.arange(len(values)), values).statistic)
    z = np.arctanh(np.clip(found, -1 + 1e-3, 1 - 1e-3))  # a perfect order has no finite z
    reach = stats.norm.ppf(0.975) * np.sqrt((1 + found**2 / 2) / (len(values) - 3))
    low, high = float(np.tanh(z - reach)), float(np.tanh(z + reach))
    return found, (min(low, found), max(high, found))
