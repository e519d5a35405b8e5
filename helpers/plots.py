"""The look of the book's figures, and one function for each kind of figure: seaborn on tidy pandas tables.

A figure has an opaque, nearly white ground, so that it can be read on a dark page too; colours that the colour-blind
can tell apart; text that is legible where a phone shows the figure 360 pixels wide; and no title, for its caption says
what it is. Every function draws on the axes it is given, or makes a figure, and returns what it drew on.
"""

import re
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

GROUND = "#fcfcfa"
INK = "#222222"
MAP = "viridis"  # perceptually uniform, and legible in grey
WIDTH = 5.6  # inches; small beside the text in it, so that this is still legible on a phone
VERDICT_COLOURS = {"holds": "#00618f", "fails": "#a63c00", "inconclusive": "#f0c75e", "not testable here": "#5c5c5c"}
MODEL_COLOURS = {"ViT": "#0173b2", "ResNet": "#de8f05", "Mixer": "#029e73", "control": "#949494"}


def use_style() -> None:
    """Set the house style for all figures drawn from here on."""
    sns.set_theme(
        context="notebook",
        style="ticks",
        palette="colorblind",
        rc={
            "figure.figsize": (WIDTH, 3.5),
            "figure.dpi": 110,
            "savefig.dpi": 160,
            "figure.facecolor": GROUND,
            "savefig.facecolor": GROUND,
            "axes.facecolor": GROUND,
            "savefig.transparent": False,
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "font.size": 13,
            "axes.labelsize": 13,
            "xtick.labelsize": 12,
            "ytick.labelsize": 12,
            "legend.fontsize": 12,
            "legend.title_fontsize": 12,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "lines.linewidth": 2.2,
            "image.cmap": MAP,
            "svg.hashsalt": "book",
        },
    )


def block_name(place: str) -> str:
    """What a tick says of a place in a network: the number of its block, "3" or "2.1", or "in" for the entrance.

    >>> [block_name(name) for name in ("embed", "blocks.3.resid_mid", "stages.2.blocks.1", "layer3.0", "stem")]
    ['in', '3', '2.1', '3.0', 'in']
    """
    numbers = re.findall(r"\d+", place.rsplit("/", 1)[-1])
    return ".".join(numbers[:2]) if numbers else "in"


def block_ticks(places: Sequence[str], most: int = 7) -> tuple[list[int], list[str]]:
    """Positions and labels of a few ticks on an axis of places: the last place of a block, evenly thinned."""
    names = [block_name(place) for place in places]
    ends = [i for i, name in enumerate(names) if i + 1 == len(names) or names[i + 1] != name]
    kept = ends[:: -(-len(ends) // most)]
    return kept, [names[i] for i in kept]


def cka_heatmap(
    matrix: pd.DataFrame,
    ax: Axes | None = None,
    *,
    x: str = "",
    y: str = "",
    bounds: tuple[Sequence[int], Sequence[int]] | None = None,
    colour_bar: bool = True,
) -> Axes:
    """A map of CKA between all places of two networks, or within one; the entrance at the lower left.

    ``matrix``: CKA, with the places of the one network as index (drawn upwards) and those of the other as columns, as
    ``CKAResult.between(a, b).to_frame()`` gives it. The colours span 0 to 1 in every such figure, so maps can be
    compared; what is below 0 (the unbiased estimator can be) is drawn as 0. Cells are square within one network; a
    map of two networks is drawn square as a whole, each axis spanning the network's depth. ``x``, ``y``: names of the
    networks. ``bounds``: positions in (rows, columns) before which a new stage begins, drawn as thin lines.

    Raises ``ValueError`` if nothing in the matrix is a finite number.
    """
    values = matrix.to_numpy(dtype=float)
    if not np.isfinite(values).any():
        raise ValueError("the CKA map holds no finite number")
    ax = ax or plt.subplots(figsize=(4.8, 4))[1]
    sns.heatmap(
        matrix, ax=ax, vmin=0, vmax=1, cmap=MAP, cbar=colour_bar, xticklabels=False, yticklabels=False,
        cbar_kws={"label": "CKA", "ticks": [0, 0.25, 0.5, 0.75, 1], "fraction": 0.05}, rasterized=True,
    )  # fmt: skip
    ax.set_facecolor("#bbbbbb")  # where a layer is dead, and CKA undefined
    ax.invert_yaxis()
    ax.set_box_aspect(1)
    for axis, places, name in ((ax.xaxis, matrix.columns, x), (ax.yaxis, matrix.index, y)):
        at, labels = block_ticks(list(places))
        axis.set_ticks([i + 0.5 for i in at], labels, rotation=0)
        axis.set_label_text(f"{name} block".strip())
    for rows, draw in zip(bounds or (), (ax.axhline, ax.axvline), strict=False):
        for edge in rows:
            draw(edge, color="white", linewidth=1)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.tick_params(length=3)
    return ax


def cka_heatmaps(
    maps: Mapping[str, pd.DataFrame], *, columns: int = 2, names: Mapping[str, tuple[str, str]] | None = None
) -> Figure:
    """Several maps side by side on one colour scale, each with its key as a heading, and one colour bar.

    ``maps``: heading → matrix as in ``cka_heatmap``. ``names``: heading → (name of the columns' network, name of the
    rows'). ``columns``: maps in a row; two stay legible on a phone.
    """
    rows = -(-len(maps) // columns)
    columns = min(columns, len(maps))
    size = WIDTH / columns
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH + 0.8, rows * size), squeeze=False)
    for ax, (heading, matrix) in zip(axes.flat, maps.items(), strict=False):
        x, y = (names or {}).get(heading, ("", ""))
        cka_heatmap(matrix, ax, x=x, y=y, colour_bar=False)
        ax.set_title(heading, fontsize=13)
    for ax in axes.flat[len(maps) :]:
        ax.set_visible(False)
    drawn = axes.flat[0].collections[0]
    figure.colorbar(drawn, ax=axes, label="CKA", ticks=[0, 0.25, 0.5, 0.75, 1], fraction=0.03, aspect=25)
    return figure


def line_band(
    table: pd.DataFrame,
    ax: Axes | None = None,
    *,
    x: str,
    y: str,
    error: str | tuple[str, str] | None = None,
    hue: str | None = None,
    palette: Mapping[str, str] | None = None,
    markers: bool = True,
) -> Axes:
    """Lines over a tidy table, with a band of error around each.

    ``error``: a column with the half-width of the band, or two with its ends. ``hue``: the column that tells the lines
    apart; each also has its own dash and marker, so that colour is not needed. Labels of the axes are the columns'
    names: rename them to what the reader is to see.
    """
    ax = ax or plt.subplots()[1]
    style = {"style": hue} if hue else {}
    sns.lineplot(
        table, x=x, y=y, hue=hue, palette=palette, markers=markers and hue is not None, markersize=7,
        marker="o" if markers and hue is None else None, errorbar=None, ax=ax, **style,
    )  # fmt: skip
    if error is not None:
        groups = table.groupby(hue, sort=False) if hue else [(None, table)]
        colours = [line.get_color() for line in ax.lines]
        for (_, group), colour in zip(groups, colours, strict=False):
            group = group.sort_values(x)
            if isinstance(error, str):
                low, high = group[y] - group[error], group[y] + group[error]
            else:
                low, high = (group[end] for end in error)
            ax.fill_between(group[x].astype(float), low, high, color=colour, alpha=0.2, linewidth=0)
    if hue:
        ax.legend(title=None)
    return ax


def sorted_heads(table: pd.DataFrame, ax: Axes | None = None, *, uniform: float, y: str = "mean distance (px)") -> Axes:
    """Attention heads of a few blocks, sorted by mean distance, as in Raghu et al. (2021), Figure 3.

    ``table``: one row a head, with columns ``block`` and ``y``. ``uniform``: the distance of an attention that looks
    everywhere alike, drawn as a dashed line.
    """
    ax = ax or plt.subplots()[1]
    rank = table.groupby("block")[y].rank(method="first")
    ranked = table.assign(rank=rank, block="block " + table["block"].astype(str))
    line_band(ranked, ax, x="rank", y=y, hue="block")
    ax.axhline(uniform, color=INK, linestyle="--", linewidth=1.2)
    ax.annotate("uniform attention", (1, uniform), xytext=(0, 4), textcoords="offset points", fontsize=11)
    ax.set(xlabel="head, sorted by distance", ylim=(0, None))
    return ax


def scene_grid(images, labels: Sequence[str] | None = None, *, columns: int = 4, size: float = 1.5) -> Figure:
    """Images in a grid. ``images``: (N, 3, H, W) or (N, H, W, 3), uint8 or float in [0, 1], tensor or array."""
    pictures = np.asarray(images)
    if pictures.ndim != 4 or 3 not in (pictures.shape[1], pictures.shape[3]):
        raise ValueError(f"images are (N, 3, H, W) or (N, H, W, 3); got {pictures.shape}")
    if labels is not None and len(labels) != len(pictures):
        raise ValueError(f"{len(pictures)} images and {len(labels)} labels")
    if pictures.shape[1] == 3:
        pictures = pictures.transpose(0, 2, 3, 1)
    rows = -(-len(pictures) // columns)
    height = size * (1.25 if labels is not None else 1)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size, rows * height), squeeze=False)
    for i, ax in enumerate(axes.flat):
        ax.set_axis_off()
        if i < len(pictures):
            ax.imshow(pictures[i], interpolation="nearest")
            if labels is not None:
                ax.set_title(labels[i], fontsize=12, pad=3)
    return figure
