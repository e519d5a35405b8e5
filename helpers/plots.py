"""The look of the book's figures, and one function for each kind of figure: seaborn on tidy pandas tables.

A figure has an opaque, nearly white ground, so that it can be read on a dark page too; colours that the colour-blind
can tell apart; text that is legible where a phone shows the figure 360 pixels wide; and no title, for its caption says
what it is. Every function draws on the axes it is given, or makes a figure, and returns what it drew on.
"""

import re
import sys
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

GROUND = "#fcfcfa"
INK = "#222222"
MAP = "viridis"  # perceptually uniform, and legible in grey
WIDTH = 5.6  # inches; small beside the text in it, so that this is still legible on a phone
MODEL_COLOURS = {"ViT": "#0173b2", "ResNet": "#de8f05", "Mixer": "#029e73", "control": "#949494"}


def use_style() -> None:
    """Set the house style for all figures drawn from here on."""
    sns.set_theme(
        context="notebook",
        style="ticks",
        palette="colorblind",
        rc={
            "figure.figsize": (WIDTH, 3.5),
            "figure.dpi": 120,
            "savefig.dpi": 160,
            "figure.facecolor": GROUND,
            "savefig.facecolor": GROUND,
            "axes.facecolor": GROUND,
            "savefig.transparent": False,
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "font.size": 12.5,
            "axes.labelsize": 12.5,
            "xtick.labelsize": 11.5,
            "ytick.labelsize": 11.5,
            "legend.fontsize": 11.5,
            "legend.title_fontsize": 11.5,
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

    _draw_with_twice_the_pixels()


def _draw_with_twice_the_pixels() -> None:
    """In a notebook, figures of twice the pixels in the same space, for screens that show them; elsewhere nothing."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None and hasattr(shell, "kernel"):
        from matplotlib_inline.backend_inline import set_matplotlib_formats
        from matplotlib_inline.config import InlineBackend

        InlineBackend.instance(parent=shell).figure_formats = {"retina"}
        set_matplotlib_formats("retina")


def depth_ticks(places: Sequence[str], most: int = 7) -> tuple[list[float], list[str], list[int], str]:
    """How to mark an axis of places: positions and labels of a few ticks, edges between stages, what is counted.

    In a network of stages (``stages.2.blocks.1``, ``layer3.0``) each stage is marked at its middle, counting from 1; in
    one of blocks (``blocks.7.resid_post``) a block at its last place, counting from 0 as the code does, thinned to at
    most ``most``. "in" is the entrance (embedding or stem), "out" what follows the last stage; each is left out
    where it would overlap with its neighbour.
    """
    numbers = [tuple(map(int, re.findall(r"\d+", place.rsplit("/", 1)[-1]))) for place in places]
    groups = [number[:1] for number in numbers]
    edges = [i for i in range(1, len(groups)) if groups[i] != groups[i - 1]]
    if any(re.search(r"(stages|layers?|transformers)\.?\d", place) for place in places):
        spans = list(zip([0, *edges], [*edges, len(groups)], strict=True))
        stages = sorted({group for group in groups if group})

        def label(first: int) -> str:
            if groups[first]:
                return str(stages.index(groups[first]) + 1)
            return "out" if first else "in"

        marks = [((low + high) / 2, label(low)) for low, high in spans]
        if marks[0][1] == "in" and marks[1][0] - marks[0][0] < 0.06 * len(groups):  # the labels would overlap
            marks = marks[1:]
        if marks[-1][1] == "out" and marks[-1][0] - marks[-2][0] < 0.06 * len(groups):
            marks = marks[:-1]
        return [at for at, _ in marks], [text for _, text in marks], edges, "stage"
    ends = [*(edge - 1 for edge in edges), len(groups) - 1]
    kept = ends[:: -(-len(ends) // most)]
    return [end + 0.5 for end in kept], [str(groups[end][0]) if groups[end] else "in" for end in kept], [], "block"


def heatmap(
    matrix: pd.DataFrame | np.ndarray,
    ax: Axes | None = None,
    *,
    label: str = "",
    limits: tuple[float | None, float | None] = (None, None),
    diverging: bool = False,
    colour_bar: bool = True,
) -> Axes:
    """Any matrix as colours, row 0 at the top, without ticks. Undefined cells are grey.

    Args:
        matrix: numbers (rows, columns).
        ax: what to draw on; by default a new figure.
        label: what the colours mean.
        limits: their ends, by default those of the data.
        diverging: whether the scale of colours has its middle at 0.
        colour_bar: whether there is a bar of colours beside the matrix.

    Returns:
        the axes.
    """
    ax = ax or plt.subplots(figsize=(4.8, 4))[1]
    if diverging and limits == (None, None):
        most = float(np.nanmax(np.abs(np.asarray(matrix, dtype=float))))
        limits = (-most, most)
    sns.heatmap(
        matrix, ax=ax, vmin=limits[0], vmax=limits[1], cbar=colour_bar, cbar_kws={"label": label},
        xticklabels=False, yticklabels=False, cmap="vlag" if diverging else MAP, rasterized=True,
    )  # fmt: skip
    ax.set(facecolor="#bbbbbb", xlabel="", ylabel="")
    ax.tick_params(length=3)
    sns.despine(ax=ax, left=True, bottom=True)
    return ax


def draw_cka(
    matrix: pd.DataFrame,
    ax: Axes | None = None,
    *,
    x: str = "",
    y: str = "",
    stages: bool = True,
    colour_bar: bool = True,
) -> Axes:
    """A map of CKA between all places of two networks, or within one; the entrance at the lower left.

    The colours span 0 to 1 in every such figure, so maps can be compared; what is below 0 (the unbiased estimator can
    be) is drawn as 0. Cells are square within one network; a map of two networks is drawn square as a whole, each axis
    spanning the network's depth.

    Args:
        matrix: CKA, with the places of the one network as index (drawn upwards) and those of the other as columns, as
            ``CKAResult.between(a, b).to_frame()`` gives it.
        ax: what to draw on; by default a new figure.
        x: name of the network of the columns.
        y: name of the network of the rows.
        stages: whether thin lines are drawn where a network's stages meet.
        colour_bar: whether there is a bar of colours beside the map.

    Returns:
        the axes.

    Raises:
        ValueError: if nothing in the matrix is a finite number.
    """
    if not np.isfinite(matrix.to_numpy(dtype=float)).any():
        raise ValueError("the CKA map holds no finite number")
    ax = heatmap(matrix, ax, label="CKA", limits=(0, 1), colour_bar=colour_bar)
    ax.invert_yaxis()
    ax.set_box_aspect(1)
    axes = (ax.xaxis, matrix.columns, x, ax.axvline), (ax.yaxis, matrix.index, y, ax.axhline)
    for axis, places, name, line in axes:
        at, labels, edges, counted = depth_ticks(list(places))
        axis.set_ticks(at, labels, rotation=0)
        axis.set_label_text(f"{name} {counted}".strip())
        for edge in edges if stages else ():
            line(edge, color="white", linewidth=0.8)
    return ax


def cka_heatmaps(
    maps: Mapping[str, pd.DataFrame], *, columns: int = 2, names: Mapping[str, tuple[str, str]] | None = None
) -> Figure:
    """Several maps side by side on one colour scale, each with its key as a heading, and one colour bar.

    ``maps``: heading → matrix as in ``draw_cka``. ``names``: heading → (name of the columns' network, name of the
    rows'). ``columns``: maps in a row; two stay legible on a phone.
    """
    rows = -(-len(maps) // columns)
    columns = min(columns, len(maps))
    size = min(4.0, WIDTH / columns)  # inches
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size + 0.8, rows * size), squeeze=False)
    for ax, (heading, matrix) in zip(axes.flat, maps.items(), strict=False):
        x, y = (names or {}).get(heading, ("", ""))
        draw_cka(matrix, ax, x=x, y=y, colour_bar=False)
        ax.set_title(heading, fontsize=12.5)
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

    Labels of the axes are the columns' names: rename them to what the reader is to see.

    Args:
        table: one row a point.
        ax: what to draw on; by default a new figure.
        x: the column of the horizontal axis.
        y: the column of the vertical axis.
        error: a column with the half-width of the band, or two with its ends; None for no band.
        hue: the column that tells the lines apart; each also has its own dash and marker, so that colour is not needed.
        palette: value of ``hue`` → colour.
        markers: whether the points are marked.

    Returns:
        the axes.
    """
    ax = ax or plt.subplots()[1]
    style, before = {"style": hue} if hue else {}, len(ax.lines)
    sns.lineplot(
        table, x=x, y=y, hue=hue, palette=palette, markers=markers and hue is not None, markersize=7,
        marker="o" if markers and hue is None else None, errorbar=None, ax=ax, **style,
    )  # fmt: skip
    if error is not None:
        numbers = hue and pd.api.types.is_numeric_dtype(table[hue])  # which seaborn draws in their order
        groups = table.groupby(hue, sort=numbers) if hue else [(None, table)]
        colours = [line.get_color() for line in ax.lines[before:]]
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


def scene_grid(
    images: ArrayLike, labels: Sequence[str] | None = None, *, columns: int = 4, size: float = 1.5
) -> Figure:
    """Images in a grid, each ``size`` inches wide, with a label above each where there are ``labels``.

    ``images``: (N, 3, H, W) or (N, H, W, 3), uint8 or float in [0, 1], tensor or array. Raises ``ValueError`` for
    another shape, and for another number of labels than of images.
    """
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
