"""The sections of a report's page: what each measure found, drawn and told, or why there is nothing to tell."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from helpers import plots, uncertainty
from helpers.claims.registry import number
from helpers.measures.cka_result import CKAResult
from helpers.measures.receptive_field import uniform_radius
from helpers.measures.structure import frame, off_diagonal, places
from helpers.networks.places import STREAM
from helpers.reporting.page import figure, prose, table
from helpers.reporting.stored import Report
from helpers.uncertainty import whole


def similarity(report: Report) -> None:
    """CKA within the model and with the networks beside it, beside the same of untrained twins."""
    prose("## Which layers are alike")
    result = report.cka()
    if result is None:
        return _left_out(report, "similarity")
    prose(
        "Centred kernel alignment (CKA) says how alike two layers are as to which images they hold for alike: 1 "
        "where they agree "
        "up to rotation and scale, 0 where they have nothing in common. It is taken of the residual stream at each "
        "place of depth."
    )
    name, twin = report.name, f"{report.name}, untrained"
    maps = {name: frame(result, name)}
    if twin in result.models:
        maps["untrained"] = frame(result, twin)
    beside = [other for other in report.beside() if other in result.models]
    maps |= {f"with {other}": frame(result, other, name) for other in beside}
    axes = {heading: ("model", heading.removeprefix("with ") if "with " in heading else "model") for heading in maps}
    rows = [_pairs(result, one, label) for one, label in ((name, "the model"), (twin, "its untrained twin"))
            if one in result.models]  # fmt: skip
    if result.control is not None:
        rows.append(_pairs(result.control, name, "the model, images shuffled"))
    found = pd.DataFrame(rows)
    own, *others = found.to_dict("records")
    told = f"Two different places of the model have a CKA of {own['mean CKA']:.2f} ± {own['±']:.2f} on average"
    told += "".join(f", {other['of']} has {number(other['mean CKA'], 2)}" for other in others)
    best = {other: frame(result, other, name).to_numpy() for other in beside}
    told += "".join(
        f". With {other} the closest pair of places has {np.nanmax(m):.2f}, the average pair {np.nanmean(m):.2f}"
        for other, m in best.items()
    )
    figure(
        plots.cka_heatmaps(maps, names=axes), "similarity",
        f"CKA between all places of {name}, of its untrained twin, and of {name} with the networks beside it. "
        f"{result.n_images:,} images in batches of {result.batch}.",
        f"{len(maps)} heat-maps of CKA from 0 (dark) to 1 (bright): {', '.join(maps)}. {told}.",
    )  # fmt: skip
    prose(told + ". What an untrained network has as well was not learnt; what is left of shuffled images is "
          "the error of the estimate.")  # fmt: skip
    table(found, "Mean CKA over pairs of two different places, with half a 95 % interval over images.")


def _pairs(result: CKAResult, name: str, label: str) -> dict[str, object]:
    network = places(result, name)
    value, reach = uncertainty.estimate(lambda matrix: off_diagonal(matrix, network).mean(), result)
    return {"of": label, "mean CKA": value, "±": reach}


def attention(report: Report) -> None:
    """Attention distance of all heads, and what falls on prefix tokens."""
    prose("## How far heads look")
    heads = report.table("attention_distance")
    if heads is None:
        return _left_out(report, "attention_distance")
    prose(
        "The attention distance of a head is how far, in pixels, the patches lie that a patch looks at, weighted by "
        "how "
        "much it looks at each. The dashed line is what an attention has that looks everywhere alike. A head far "
        "below it is local."
    )
    rows, uniform = whole(heads), float(heads["uniform"].iloc[0])
    blocks = sorted(rows["block"].unique())
    shown = [*blocks[:2], *blocks[-2:]] if len(blocks) > 4 else blocks
    drawn, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8))
    column = "mean distance (px)"
    plots.sorted_heads(
        rows[rows["block"].isin(shown)].rename(columns={"distance": column}), left, uniform=uniform, y=column
    )
    mean = pd.concat(
        [_by_block(report, one, label) for one, label in (("", "the model"), (", untrained", "untrained"))]
    )
    plots.line_band(mean, right, x="block", y="mean over heads (px)", hue="network")
    right.axhline(uniform, color=plots.INK, linestyle="--", linewidth=1.2)
    for ax in (left, right):
        ax.set(ylim=(0, 1.15 * max(uniform, float(rows["distance"].max()))))
    figure(
        drawn, "attention",
        f"Attention distance in {report.name}. Left: heads of the lowest and highest blocks, sorted. Right: mean "
        "over the "
        "heads of each block, beside the untrained twin. Dashed: uniform attention.",
        "Two panels of lines of attention distance under a dashed line for uniform attention; left one line a block "
        "over "
        "its sorted heads, right one line each for the trained and the untrained network over blocks.",
    )  # fmt: skip
    near, far = rows.loc[rows["distance"].idxmin()], rows.loc[rows["distance"].idxmax()]
    local = int((rows["distance"] < 0.5 * rows["uniform"]).sum())
    told = f"Of {len(rows)} heads {local} look less than half as far as uniform attention, which has {uniform:.0f} px. "
    told += f"The nearest is head {near['head']} of block {near['block']} with {near['distance']:.1f} px, the farthest "
    told += f"head {far['head']} of block {far['block']} with {far['distance']:.1f} px."
    if rows["windowed"].any():
        told += " Its attention is confined to windows, so a short distance says nothing of what was learnt."
    prefix = rows.groupby("block")["prefix"].mean()
    if prefix.max() > 0:
        told += f" Prefix tokens (the class token, registers) take {100 * prefix.mean():.0f} % of the patches' "
        told += "attention on "
        told += (
            f"average, most in block {prefix.idxmax()} ({100 * prefix.max():.0f} %). That share has no place in the "
        )
        told += "image; distances are taken of the rest."
    prose(told)
    by_block = rows.groupby("block").agg(
        nearest=("distance", "min"), mean=("distance", "mean"), farthest=("distance", "max"), prefix=("prefix", "mean")
    )
    table(by_block.reset_index(), "By block: distance of the nearest head, mean, farthest (px); mass on prefix tokens.")


def _by_block(report: Report, suffix: str, label: str) -> pd.DataFrame:
    heads = report.table("attention_distance", report.name + suffix)
    if heads is None:
        return pd.DataFrame(columns=["block", "mean over heads (px)", "network"])
    mean = whole(heads).groupby("block")["distance"].mean().rename("mean over heads (px)").reset_index()
    return mean.assign(network=label)


def fields(report: Report) -> None:
    """Effective receptive fields over depth."""
    prose("## How far a position sees")
    found = report.fields()
    if found is None:
        return _left_out(report, "receptive_fields")
    prose(
        "The effective receptive field of a position is how strongly it depends on each pixel of the image. Its radius "
        "is that of the disc that holds half of this. It covers all layers below, attention or not."
    )
    rows = {name: report.table("receptive_fields", name) for name in _compared(report)}
    stream = {name: whole(one[one["kind"].isin(STREAM)]) for name, one in rows.items() if one is not None}
    sides = {name: int(report.networks[name]["card"]["images"].split()[0]) for name in stream}
    lines = pd.concat(
        [
            pd.DataFrame({"depth": one["depth"], "radius (share of the image's side)": one["radius"] / sides[name],
                          "network": name})
            for name, one in stream.items()
        ]
    )  # fmt: skip
    ax = plots.line_band(lines, x="depth", y="radius (share of the image's side)", hue="network", markers=False)
    ax.set(ylim=(0, None))
    _legend_above(ax)
    figure(
        ax.figure, "fields", "Radius of the effective receptive field over depth, as a share of the image's side.",
        "Lines of the radius over depth. " + " ".join(_ends(name, one["radius"] / sides[name]) for name, one in
                                                       stream.items()),
    )  # fmt: skip
    table_, maps = found
    own = stream[report.name]
    at = np.unique(np.linspace(0, len(own) - 1, 4).round().astype(int))
    names = own["name"].iloc[at].tolist()
    order = whole(table_)["name"].tolist()
    drawn, axes = plt.subplots(1, len(names), figsize=(9, 2.6), squeeze=False)
    for ax, name in zip(axes.flat, names, strict=True):
        plots.heatmap(maps[order.index(name)].numpy() ** 0.5, ax, colour_bar=False)
        ax.set_title(name, fontsize=9)
    figure(
        drawn, "maps", f"Receptive fields of the middle position at {len(names)} places of {report.name}, from low to "
        "high; brightness is the square root of dependence, each map by itself.",
        f"{len(names)} square maps, from the lowest place to the highest, bright where the middle position depends on "
        "a pixel.",
    )  # fmt: skip
    first, last = own.iloc[min(1, len(own) - 1)], own.iloc[-1]
    uniform = uniform_radius((sides[report.name],) * 2)
    prose(
        f"After the first place the radius is {first['radius']:.1f} px, at the end {last['radius']:.1f} px, of "
        "images of "
        f"{sides[report.name]} px; a position that depended on all pixels alike would have about {uniform:.0f} px. The "
        f"central patch holds {100 * first['share']:.0f} % of the dependence at first and {100 * last['share']:.0f} "
        "% at the end."
    )


def skips(report: Report) -> None:
    """What skips carry beside their branches."""
    prose("## What the skip connections carry")
    own = report.table("skip_ratios")
    if own is None:
        return _left_out(report, "skip_ratios")
    prose(
        "A residual block adds what its branch computes to what it was given. The ratio of the two norms says how much "
        "of a token comes by the skip: far above 1, the branch only retouches; near or below 1, it rewrites."
    )
    rows = []
    for name in _compared(report):
        one = report.table("skip_ratios", name)
        if one is not None:
            one = whole(one[one["tokens"] == "all"])
            place = np.linspace(0, 1, len(one))
            rows.append(pd.DataFrame({"depth": place, "ratio, skip over branch": one["ratio"], "network": name}))
    ax = plots.line_band(pd.concat(rows), x="depth", y="ratio, skip over branch", hue="network", markers=False)
    ax.set(yscale="log")
    ax.axhline(1, color=plots.INK, linestyle=":", linewidth=1.2)
    _legend_above(ax)
    figure(
        ax.figure, "skips", "Norm of the skip over that of its branch, mean over tokens, over depth. Dotted: as large.",
        "Lines of the ratio over depth on a logarithmic axis, with a dotted line at one. "
        + " ".join(_ends(one["network"].iloc[0], one["ratio, skip over branch"]) for one in rows),
    )  # fmt: skip
    means = whole(own[own["tokens"] == "all"])
    low, high = means.loc[means["ratio"].idxmin()], means.loc[means["ratio"].idxmax()]
    told = f"The median over sublayers is {means['ratio'].median():.2f}. The branch counts most at `{low['sublayer']}` "
    told += f"({low['ratio']:.2f}) and least at `{high['sublayer']}` ({high['ratio']:.1f})."
    if "CLS" in set(own["tokens"]):
        kinds = whole(own).groupby("tokens")["ratio"].median()
        told += f" For the class token the median is {kinds['CLS']:.2f}, for patches {kinds['patches']:.2f}."
    prose(told)


def localisation(report: Report) -> None:
    """Which patch a token resembles."""
    prose("## Where a token comes from")
    own = report.table("token_patches")
    if own is None:
        return _left_out(report, "token_patches")
    prose(
        "If images that agree in one patch also agree in one token, the token still resembles this patch. The hit "
        "rate is the "
        "share of inner tokens that resemble their own patch more than any other."
    )
    rows = []
    for name in _compared(report):
        one = report.table("token_patches", name)
        if one is not None:
            one = whole(one[one["model"] == name])
            rows.append(one.rename(columns={"hit_rate": "hit rate"})[["depth", "hit rate"]].assign(network=name))
    ax = plots.line_band(pd.concat(rows), x="depth", y="hit rate", hue="network")
    ax.set(ylim=(0, 1.03))
    _legend_above(ax)
    figure(
        ax.figure, "localisation", "Share of inner positions most similar to their own patch. Of networks with stages "
        "only the last one is read.", "Lines of the hit rate over depth, from 0 to 1. "
        + " ".join(_ends(one["network"].iloc[0], one["hit rate"]) for one in rows),
    )  # fmt: skip
    mine = whole(own[own["model"] == report.name])
    first, last = mine.iloc[0], mine.iloc[-1]
    prose(
        f"At `{first['place']}` {100 * first['hit_rate']:.0f} % of the inner positions resemble their own patch "
        "most, at "
        f"`{last['place']}` {100 * last['hit_rate']:.0f} %; with the images shuffled {100 * last['shuffled']:.0f} "
        "%, by "
        f"guessing {100 * last['chance']:.1f} %. At the end the most similar patch lies {last['displacement']:.1f} "
        "steps "
        "of the grid from a position's own, on average."
    )


def probes(report: Report) -> None:
    """What a linear probe reads, over depth."""
    prose("## What a linear probe can read")
    own = report.table("probes")
    if own is None:
        return _left_out(report, "probes")
    prose(
        "A linear probe learns the classes of the images from a layer's features. How well it does over depth says "
        "where "
        "in the network the classes become plain."
    )
    parts = []
    for name in _compared(report):
        one = report.table("probes", name)
        if one is not None:
            one = one[(one["images"] == "all") & (one["read_out"] == "mean token") & (one["shots"] != "full")]
            parts.append(one.assign(network=name))
    lines = pd.concat(parts).rename(columns={"accuracy": "accuracy, 10 images a class"})
    ax = plots.line_band(
        lines, x="depth", y="accuracy, 10 images a class", hue="network", error=("low", "high"), markers=False
    )
    _legend_above(ax)
    figure(
        ax.figure, "probes",
        "Accuracy of linear probes on the mean of all positions, from 10 images a class; bands: 95 %.",
        "Lines of accuracy over depth with a band of error around each. "
        + " ".join(_ends(one["network"].iloc[0], one["accuracy"]) for one in parts),
    )  # fmt: skip
    scored = own[own["images"] == "all"]
    best = scored.loc[scored.groupby(["read_out", "shots"])["accuracy"].idxmax()]
    columns = {"read_out": "read-out", "shots": "images a class", "place": "best place", "accuracy": "accuracy"}
    top = best.loc[best["accuracy"].idxmax()]
    prose(
        f"The best of all is {100 * top['accuracy']:.1f} %, at `{top['place']}`, from the {top['read_out']} with "
        f"{'all images' if top['shots'] == 'full' else str(top['shots']) + ' images a class'}. Images scored on are "
        "others than "
        f"those learnt from: {int(top['n']):,} of them."
    )
    table(best[list(columns)].rename(columns=columns), "The best place for each read-out.")


def _legend_above(ax: Axes) -> None:
    """Put the names of the lines above the axes, where no line runs."""
    sns.move_legend(ax, "lower center", bbox_to_anchor=(0.5, 1), ncols=2, title=None)


def _ends(name: str, values: pd.Series) -> str:
    """How a line goes from the lowest to the highest place, in words."""
    return f"That of {name} begins at {values.iloc[0]:.2f} and ends at {values.iloc[-1]:.2f}."


def _compared(report: Report) -> list[str]:
    """The model, its twin and the networks beside it."""
    return [name for name, about in report.networks.items() if about["role"] != "reference twin"]


def _left_out(report: Report, recording: str) -> None:
    prose(f"This was not measured of `{report.name}`: {report.reason(recording, report.name)}.")
