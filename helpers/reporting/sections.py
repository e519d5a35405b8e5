"""The sections of a report's page: what each measure found, drawn and told, or why there is nothing to tell."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from helpers import plots, uncertainty
from helpers.claims.registry import number
from helpers.measures import figures
from helpers.measures.cka_result import CKAResult
from helpers.measures.figures import as_shown
from helpers.measures.receptive_field import uniform_radius
from helpers.measures.stream_maps import steps
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
        "Centred kernel alignment (CKA) says how alike two layers are as to which images they hold for alike: 1 where "
        "they agree up to rotation and scale, 0 where they have nothing in common. It is taken of the residual stream "
        "at each place of depth."
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
        "how much it looks at each. The dashed line is what an attention has that looks everywhere alike. A head far "
        "below it is local."
    )
    rows, uniform = whole(heads), float(heads["uniform"].iloc[0])
    drawn = _drawn(report, "attention_distance")[0]
    figure(
        drawn, "attention",
        f"Attention distance in {report.name}. Left: heads of the lowest and highest blocks, sorted. Right: mean over "
        "the heads of each block, beside the untrained twin and other networks of an equal grid. Dashed: uniform "
        "attention.",
        "Two panels of lines of attention distance under a dashed line for uniform attention; left one line a block "
        "over its sorted heads, right one line each for the trained and the untrained network over blocks.",
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

    drawn, ends = _drawn(report, "receptive_fields")
    figure(
        drawn, "fields", "Radius of the effective receptive field over depth, as a share of the image's side.",
        f"Lines of the radius over depth. {ends}",
    )  # fmt: skip
    table_, maps = found
    own = whole(table_[table_["kind"].isin(STREAM)])
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
    side = int(report.networks[report.name]["card"]["images"].split()[0])
    uniform = uniform_radius((side, side))
    prose(
        f"After the first place the radius is {first['radius']:.1f} px, at the end {last['radius']:.1f} px, of images "
        f"of {side} px; a position that depended on all pixels alike would have about {uniform:.0f} px. "
        f"The central patch holds {100 * first['share']:.0f} % of the dependence at first and "
        f"{100 * last['share']:.0f} % at the end."
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

    drawn, ends = _drawn(report, "skip_ratios")
    figure(
        drawn, "skips", "Norm of the skip over that of its branch, mean over tokens, over depth. Dotted: as large.",
        f"Lines of the ratio over depth on a logarithmic axis, with a dotted line at one. {ends}",
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
        "rate is the share of inner tokens that resemble their own patch more than any other."
    )

    drawn, ends = _drawn(report, "token_patches")
    figure(
        drawn, "localisation", "Share of inner positions most similar to their own patch. Of networks with stages "
        "only the last one is read.", f"Lines of the hit rate over depth, from 0 to 1. {ends}",
    )  # fmt: skip
    mine = whole(own[own["model"] == report.name])
    first, last = mine.iloc[0], mine.iloc[-1]
    prose(
        f"At `{first['place']}` {100 * first['hit_rate']:.0f} % of the inner positions resemble their own patch most, "
        f"at `{last['place']}` {100 * last['hit_rate']:.0f} %; with the images shuffled {100 * last['shuffled']:.0f} "
        f"%, by guessing {100 * last['chance']:.1f} %. At the end the most similar patch lies "
        f"{last['displacement']:.1f} steps of the grid from a position's own, on average."
    )


def probes(report: Report) -> None:
    """What a linear probe reads, over depth."""
    prose("## What a linear probe can read")
    own = report.table("probes")
    if own is None:
        return _left_out(report, "probes")
    prose(
        "A linear probe learns the classes of the images from a layer's features. How well it does over depth says "
        "where in the network the classes become plain."
    )

    drawn, ends = _drawn(report, "probes")
    figure(
        drawn, "probes",
        "Accuracy of linear probes on the mean of all positions, from 10 images a class; bands: 95 %.",
        f"Lines of accuracy over depth with a band of error around each. {ends}",
    )  # fmt: skip
    scored = own[own["images"] == "all"]
    best = scored.loc[scored.groupby(["read_out", "shots"])["accuracy"].idxmax()]
    columns = {"read_out": "read-out", "shots": "images a class", "place": "best place", "accuracy": "accuracy"}
    top = best.loc[best["accuracy"].idxmax()]
    prose(
        f"The best of all is {100 * top['accuracy']:.1f} %, at `{top['place']}`, from the {top['read_out']} with "
        f"{'all images' if top['shots'] == 'full' else str(top['shots']) + ' images a class'}. Images scored on are "
        f"others than those learnt from: {int(top['n']):,} of them."
    )
    table(best[list(columns)].rename(columns=columns), "The best place for each read-out.")


def frequencies(report: Report) -> None:
    """Which frequencies feature maps hold over depth, and what each kind of sublayer changes."""
    prose("## Which frequencies its maps hold")
    own = report.table("spectra")
    if own is None:
        return _left_out(report, "spectra")
    prose(
        "At each place of the stream the channels are maps over the positions of an image, and have a spectrum. The "
        "number drawn is the logarithm of the amplitude near the highest frequency minus that of the mean: where it "
        "falls, maps grow smoother (Park & Kim 2022, Figures 2a and 8). Where a network opens a stage, the grid "
        "grows coarser and its highest frequency is another, so the line jumps."
    )
    drawn, ends = _drawn(report, "spectra")
    figure(
        drawn, "frequencies", "Logarithm of the amplitude near the highest frequency, relative to that of "
        "frequency zero, mean over channels and images, over depth.", f"Lines of the amplitude over depth. {ends}",
    )  # fmt: skip
    rows = as_shown(own)
    means = _changes(rows, "top")
    first, last = rows.iloc[0], rows.iloc[-1]
    prose(
        " ".join(f"On average {name} changes it by {number(value, 2)}." for name, value in means.items())
        + f" Of the power that is not at frequency zero {100 * first['high']:.0f} % lies above half of the highest "
        f"frequency at `{first['place']}`, {100 * last['high']:.0f} % at `{last['place']}`. A number that falls may "
        "also say that the mean grew, since it is a difference; the table holds both parts."
    )


def variance(report: Report) -> None:
    """How much feature maps vary over positions, over depth."""
    prose("## How much maps vary over an image")
    own = report.table("spectra", file="feature_variance")
    if own is None:
        return _left_out(report, "spectra")
    prose(
        "The variance of a channel over the positions of an image is the power of all its frequencies but zero. Where "
        "it falls, positions grow alike (Park & Kim 2022, Figure 9)."
    )
    drawn, ends = _drawn(report, "feature_variance")
    figure(
        drawn, "variance", "Variance of feature maps over positions, mean over channels and images, relative to "
        "the first place, over depth.", f"Lines of the variance over depth on a logarithmic axis. {ends}",
    )  # fmt: skip
    rows = as_shown(own)
    means = _changes(rows.assign(log=np.log(rows["variance"])), "log")
    most = rows.loc[rows["largest"].idxmax()]
    prose(
        " ".join(f"On average {name} multiplies it by {np.exp(value):.2f}." for name, value in means.items())
        + f" At `{most['place']}` one channel alone has {100 * most['largest']:.0f} % of all of it, the most of any "
        "place: where that share is large, the number is that of few channels."
    )


def _changes(rows: pd.DataFrame, column: str) -> dict[str, float]:
    """Kind of sublayer → what it changes of a column, mean over those that do not open a stage."""
    changed = steps(rows, [column])
    changed = changed[~changed["opens"].astype(bool)]
    names = {"attention": "an attention", "MLP": "an MLP", "block": "a block"}
    means = changed.groupby("after", sort=False)[column].mean()
    return {names.get(str(kind), f"a step of {kind}"): float(value) for kind, value in means.items()}


def _drawn(report: Report, name: str) -> tuple[Figure, str]:
    """The figure of one of the report's results, and in words how each line over depth goes."""
    found = report.result(name)
    assert found is not None  # else the section ends before
    if name not in figures.CURVES:
        return found.plot(), ""
    y, every = figures.points(name, found.table)
    ends = every.groupby("model", sort=False)[y].agg(["first", "last"])
    told = (
        f"That of {network} begins at {number(a, 2)} and ends at {number(z, 2)}." for network, a, z in ends.itertuples()
    )
    return found.plot(), " ".join(told)


def _left_out(report: Report, recording: str) -> None:
    prose(f"This was not measured of `{report.name}`: {report.reason(recording, report.name)}.")
