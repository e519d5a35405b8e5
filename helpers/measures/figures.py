"""The usual figure of each measure, drawn from its table: what a report shows, and what ``Result.plot`` draws.

A table is what a measure gives of one network, or of several below each other with a column ``model`` that names them.
Most figures are lines of one number over the depth of the network, which ``points`` takes out of a table; of attention
distances the heads are drawn too.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from helpers import plots
from helpers.networks.places import STREAM
from helpers.uncertainty import whole


@dataclass(frozen=True)
class Curve:
    """A number over depth. ``read``: the table of one network → its points, in order, with the column of the number.

    ``error``: two columns with the ends of a band. ``axes``: what ``Axes.set`` is told. ``level``: of a dotted line.
    """

    read: Callable[[pd.DataFrame], tuple[str, pd.DataFrame]]
    error: tuple[str, str] | None = None
    markers: bool = False
    axes: dict[str, Any] = field(default_factory=dict)
    level: float | None = None


def as_shown(table: pd.DataFrame) -> pd.DataFrame:
    """Of the table of one network's maps (spectra, variance) the rows of all images as they are, with their depth."""
    rows = whole(table[table["images"] == "as they are"] if "images" in table else table)
    return _numbered(rows)


def _numbered(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(depth=np.linspace(0, 1, len(rows)))


def _radius(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    rows = whole(table[table["kind"].isin(STREAM)])
    if "side" not in rows:
        return "radius (px)", rows.assign(**{"radius (px)": rows["radius"]})
    share = "radius (share of the image's side)"
    return share, rows.assign(**{share: rows["radius"] / rows["side"]})


def _ratio(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    rows = _numbered(whole(table[table["tokens"] == "all"]))
    return "ratio, skip over branch", rows.assign(**{"ratio, skip over branch": rows["ratio"]})


def _hits(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    rows = whole(table)
    return "hit rate", rows.assign(**{"hit rate": rows["hit_rate"]})


def _few_shots(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    mean = (table["images"] == "all") & (table["read_out"] == "mean token")
    rows = table[mean & (table["shots"].astype(str) != "full")]
    name = f"accuracy, {rows['shots'].iloc[0]} images a class"
    return name, rows.assign(**{name: rows["accuracy"]})


def _amplitude(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    rows = as_shown(table)
    return "relative log amplitude", rows.assign(**{"relative log amplitude": rows["top"]})


def _variance(table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    rows, name = as_shown(table), "variance, relative to the first place"
    return name, rows.assign(**{name: rows["variance"] / rows["variance"].iloc[0]})


CURVES = {
    "receptive_fields": Curve(_radius, axes={"ylim": (0, None)}),
    "skip_ratios": Curve(_ratio, axes={"yscale": "log"}, level=1),
    "token_patches": Curve(_hits, markers=True, axes={"ylim": (0, 1.03)}),
    "probes": Curve(_few_shots, error=("low", "high")),
    "spectra": Curve(_amplitude),
    "feature_variance": Curve(_variance, axes={"yscale": "log"}),
}
NAMES = ("attention_distance", *CURVES)  # of the measures that have a figure here


def draw(name: str, table: pd.DataFrame) -> Figure:
    """The usual figure of the measure ``name``, one of ``NAMES``, from its table.

    Networks are told apart by the column ``model``; without it the table is that of one. Raises ValueError for a
    measure that has no figure here, and for a table that lacks columns of the measure.
    """
    if name not in NAMES:
        raise ValueError(
            f"{name!r} has no usual figure; there is one of {', '.join(NAMES)}. The functions of helpers.plots draw "
            "any table"
        )
    try:
        return _heads(_of_networks(table)) if name not in CURVES else _curve(name, table)
    except KeyError as error:
        raise ValueError(f"this is no table of {name}: it has no column {error}") from error


def points(name: str, table: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """What the figure of a measure over depth draws: the name of its number, and ``model``, ``depth`` and that number.

    ``name``: one of ``CURVES``. The control of pixels in a table of localisation is no network, and left out.
    """
    table = _of_networks(table)
    networks = {
        network: CURVES[name].read(rows)
        for network, rows in table.groupby("model", sort=False)
        if name != "token_patches" or network != "pixels"
    }
    y = next(iter(networks.values()))[0]
    every = pd.concat([rows.assign(model=network) for network, (_, rows) in networks.items()], ignore_index=True)
    return y, every[["model", "depth", y, *(CURVES[name].error or ())]]


def _of_networks(table: pd.DataFrame) -> pd.DataFrame:
    return table if "model" in table else table.assign(model="network")


def _curve(name: str, table: pd.DataFrame) -> Figure:
    """Lines of a measure's number over depth, the networks' names above them, where no line runs."""
    curve, (y, every) = CURVES[name], points(name, table)
    several = every["model"].nunique() > 1
    hue = "model" if several else None
    ax = plots.line_band(every, x="depth", y=y, hue=hue, error=curve.error, markers=curve.markers)
    if several:
        sns.move_legend(ax, "lower center", bbox_to_anchor=(0.5, 1), ncols=2, title=None)
    ax.set(**curve.axes)
    if curve.level is not None:
        ax.axhline(curve.level, color=plots.INK, linestyle=":", linewidth=1.2)
    drawn = ax.figure
    assert isinstance(drawn, Figure)
    return drawn


def _heads(table: pd.DataFrame) -> Figure:
    """Left the heads of the first network's lowest and highest blocks, sorted; right the mean over heads by block.

    On the right stand, beside the first network, those of which a uniform attention reaches as far: pixels of images
    of another size are other pixels.
    """
    table = whole(table)
    first = table[table["model"] == table["model"].iloc[0]]
    uniform = float(first["uniform"].iloc[0])
    alike = table.groupby("model")["uniform"].transform("first") == uniform
    table = table[alike]
    blocks = sorted(first["block"].unique())
    shown = [*blocks[:2], *blocks[-2:]] if len(blocks) > 4 else blocks
    drawn, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8))
    y = "mean distance (px)"
    plots.sorted_heads(first[first["block"].isin(shown)].rename(columns={"distance": y}), left, uniform=uniform, y=y)
    y = "mean over heads (px)"
    mean = table.groupby(["model", "block"], sort=False)["distance"].mean().rename(y).reset_index()
    hue = "model" if mean["model"].nunique() > 1 else None
    plots.line_band(mean, right, x="block", y=y, hue=hue)
    right.axhline(uniform, color=plots.INK, linestyle="--", linewidth=1.2)
    for ax in (left, right):
        ax.set(ylim=(0, 1.15 * max(uniform, float(first["distance"].max()), float(mean[y].max()))))
    return drawn
