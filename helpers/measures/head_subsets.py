"""Which heads see like a CNN: subsets of the heads of a ViT's first attention beside a ResNet's low layers.

Raghu et al. (2021, Figure 5) take subsets of heads of the first block, from the most local to the most global, and
find that CKA with a ResNet's low layers falls as the subset's mean attention distance grows. How large the subsets are,
and whether a head is read before or after the projection that mixes heads, they do not say. Here all subsets are
taken, before the projection, and those of one size that follow one another in the order of distances (``windows``) are
compared: CKA grows with the number of heads, whatever these do.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from helpers.measures.attention import distances
from helpers.measures.attention_maps import WINDOWED, Grid, attention_maps, attentions, grid_of
from helpers.measures.cka import LEAST, MinibatchCKA, Sums
from helpers.measures.distributed import Share
from helpers.measures.hsic import gram_linear, gram_row, row_of_gram
from helpers.measures.streams import at_least_two
from helpers.networks.inputs import normalise, pixels
from helpers.networks.positions import prefix_tokens
from helpers.networks.taps import Tap, capture, evaluating, taps_for
from helpers.uncertainty import GROUPS, delete_one

MOST = 16  # heads, of which there are 65,534 subsets


def head_outputs(model: nn.Module, name: str) -> Tap:
    """Where the outputs A · v of an attention's heads can be read, side by side, before norm and projection."""
    module = model.get_submodule(name)
    inner = "norm" if isinstance(getattr(module, "norm", None), nn.Module) else "proj"
    return Tap(f"{name}.heads", f"{name}.{inner}", "input")


@torch.inference_mode()
def head_subsets(
    vit: nn.Module, resnet: nn.Module, batches: Iterable, *, groups: int = GROUPS, corners: bool = True
) -> pd.DataFrame:
    """Subsets of the heads of a ViT's first attention, by distance, and their CKA with a ResNet (Raghu, Figure 5).

    A head's output is A · v at the patch tokens, before the projection; those of a subset are laid side by side. The
    Gram matrix of features side by side is the sum of their Gram matrices, centred or not, so the HSIC of a subset is
    the sum of those of its heads, and only the heads are read from the images. The CKA is that with each block of the
    ResNet's first stage, averaged.

    Args:
        vit: a transformer of 2 to 16 heads that attends to the whole image.
        resnet: a ResNet, or another network of stages.
        batches: batches of images (n, 3, H, W), or tuples that begin with them; batch b is in jackknife group b mod
            ``groups``. Those below 4 images, of which there is no CKA, are left out.
        groups: number of jackknife groups, at least 2.
        corners: whether the ViT's four patches in the corners count, in distances and in the heads' outputs.

    Returns:
        a table of ``subset`` (such as "0 2"), its number of ``heads``, ``distance`` (px, mean of its heads'), ``cka``,
        ``left_out``; all subsets but the empty and the full one.

    Raises:
        ValueError: for a single head and for more than 16, for windows, for a group without a batch, and as
            ``attention_distance`` does.
    """
    at_least_two(groups)
    name = _attention_with_subsets(vit)
    sums, distances_of_heads = _read_heads(vit, resnet, batches, name, groups, corners)
    member = _subsets(_heads(vit, name))
    sums = sums_of_subsets(sums, member.astype(float))

    def measure(left_out: int | None) -> dict[str, np.ndarray]:
        parts = [part for group in range(groups) if group != left_out for part in distances_of_heads[group]]
        total = torch.zeros(member.shape[1], dtype=torch.float64)
        for n, value in parts:
            total = total + n * value
        mean = (total / sum(n for n, _ in parts)).numpy()  # (heads,)
        distance = np.where(member, mean, 0).sum(1) / member.sum(1)
        return {"distance": distance, "cka": sums.cka(left_out).mean(1)}

    names = [" ".join(map(str, np.flatnonzero(heads))) for heads in member]
    about = pd.DataFrame({"subset": names, "heads": member.sum(1)})
    return delete_one(about, measure, range(groups))[["subset", "heads", "distance", "cka", "left_out"]]


def _attention_with_subsets(vit: nn.Module) -> str:
    """The name of a ViT's first attention. Raises ``ValueError`` where its heads have no subsets to compare."""
    kind = type(vit).__name__
    if isinstance(vit, WINDOWED):
        raise ValueError(
            f"{kind} attends within windows, and its heads cannot look farther than these: take a transformer that "
            "attends to the whole image (ViT, DeiT, BEiT, PiT)"
        )
    name = attentions(vit)[0]
    heads = _heads(vit, name)
    if heads == 1:
        raise ValueError(f"{kind} has a single head in {name}: there are no subsets to compare")
    if heads > MOST:
        raise ValueError(
            f"{kind} has {heads} heads in {name}, and {2**heads - 2:,} subsets of them are too many to compare; take "
            f"a transformer of at most {MOST}"
        )
    return name


def _heads(vit: nn.Module, name: str) -> int:
    """How many heads an attention has."""
    attention: Any = vit.get_submodule(name)
    return int(attention.num_heads)


def _subsets(heads: int) -> np.ndarray:
    """Which heads belong to each subset but the empty and the full one, smaller ones first: (S, heads) bool."""
    chosen = [subset for size in range(1, heads) for subset in combinations(range(heads), size)]
    return np.array([[head in subset for head in range(heads)] for subset in chosen])


def _read_heads(
    vit: nn.Module, resnet: nn.Module, batches: Iterable, name: str, groups: int, corners: bool
) -> tuple[Sums, list[list[tuple[int, Tensor]]]]:
    """HSICs of the heads of attention ``name`` and of a ResNet's first stage; distances of the heads, by group.

    The HSICs are those of H heads and M blocks among themselves, (G, H + M, H + M). The distances of each group are one
    pair a batch: the number of its images, and the mean over them (H,). Raises ``ValueError`` for a group without a
    batch.
    """
    heads, prefix = _heads(vit, name), prefix_tokens(vit)
    blocks = [tap for tap in taps_for(resnet, ["block"]) if re.match(r"stages\.0\.|layer1\.", tap.name)]
    entrance = _first_stage(resnet)
    metric = MinibatchCKA(heads + len(blocks), groups=groups).on(next(vit.parameters()).device)

    def grid(tokens: int, size: tuple[int, int]) -> Grid:
        return replace(grid_of(vit, name, tokens, size), corners=corners)

    def rows(x: Tensor, size: tuple[int, int]) -> Tensor:  # (n, prefix + T, heads · d) → (heads, n²)
        kept = grid(x.shape[1], size).kept()
        parts = x[:, prefix:][:, kept].unflatten(-1, (heads, -1)).unbind(2)
        return torch.stack([row_of_gram(gram_linear(part - part.mean(0))) for part in parts])

    def distance(attention: Tensor, size: tuple[int, int]) -> Tensor:
        return distances(attention, grid(attention.shape[-1], size))[:, 0]

    read: dict[int, tuple[int, Tensor]] = {}  # by number of the batch
    short, share = 0, Share()
    with evaluating(vit), evaluating(resnet), _first_block(vit):
        for number, batch in share.dealt(batches, stand_in=False):
            images = pixels(batch)
            if len(images) < LEAST:
                short += 1
                continue
            height, width = images.shape[-2:]
            with (
                attention_maps(vit, partial(distance, size=(height, width)), [name]) as looked,
                capture(vit, [head_outputs(vit, name)], partial(rows, size=(height, width))) as out,
                capture(entrance, blocks, gram_row) as low,
            ):
                vit(normalise(vit, images))
                entrance(normalise(resnet, images))
            metric.update(torch.cat([*out.values(), torch.stack(list(low.values()))]), batch_index=number)
            read[number] = len(images), looked[name]
    read, short = share.summed((read, short))
    found = [[read[number] for number in sorted(read) if number % groups == group] for group in range(groups)]
    if not all(found) and short:
        raise ValueError(
            f"{groups} groups for the jackknife need as many batches, and {short} of fewer than {LEAST} images were "
            "left out; use larger batches or more images"
        )
    if not all(found):
        raise ValueError(f"{groups} groups for the jackknife need as many batches; use smaller ones")
    return metric.sums(), found


def sums_of_subsets(sums: Sums, member: np.ndarray) -> Sums:
    """From HSICs of H heads and M blocks among themselves, (G, H + M, H + M), those of S subsets of heads with blocks.

    ``member`` (S, H): 1 for a subset's heads, 0 for the others. Centred Gram matrices add up, and with them HSICs.
    """
    heads = member.shape[1]
    between, own = sums.cross[:, :heads, heads:], sums.cross[:, :heads, :heads]
    within = np.stack([((member @ part) * member).sum(1) for part in own])  # (G, S)
    return replace(sums, cross=member @ between, self_x=within, self_y=sums.self_y[:, heads:])


def windows(table: pd.DataFrame) -> pd.DataFrame:
    """The subsets that are windows: of the heads, sorted by distance, half (rounded down) that follow one another.

    ``table``: of ``head_subsets``, no group left out. Returns its rows of the windows, the most local one first.
    """
    return table.iloc[_rows_of_windows(table)].reset_index(drop=True)


def _rows_of_windows(table: pd.DataFrame) -> list[int]:
    """Where in a table the windows stand, the most local one first. (In numpy: a bootstrap asks a thousand times.)"""
    subset, distance = table["subset"].to_numpy(), table["distance"].to_numpy()
    single = np.flatnonzero(table["heads"].to_numpy() == 1)
    order = [int(subset[row]) for row in single[distance[single].argsort(kind="stable")]]
    width, row_of = len(order) // 2, {name: row for row, name in enumerate(subset)}
    return [row_of[" ".join(map(str, sorted(order[i : i + width])))] for i in range(len(order) - width + 1)]


def order_of_windows(table: pd.DataFrame) -> float:
    """Claim R11: Spearman's correlation, over windows of heads, of distance and CKA."""
    rows = _rows_of_windows(table)
    return float(spearmanr(table["distance"].to_numpy()[rows], table["cka"].to_numpy()[rows]).statistic)


def _first_stage(resnet: nn.Module) -> nn.Sequential:
    """A ResNet up to the end of its first stage, under the same names: the rest would be computed for nothing."""
    children = dict(resnet.named_children())
    if "layer1" in children:
        names = [name for name in children if name in ("conv1", "bn1", "act1", "maxpool", "layer1")]
        return nn.Sequential(OrderedDict((name, children[name]) for name in names))
    first = nn.Sequential(resnet.get_submodule("stages.0"))
    return nn.Sequential(OrderedDict(stem=children["stem"], stages=first))


@contextmanager
def _first_block(vit: nn.Module) -> Iterator[None]:
    """A ViT with its first block alone, for as long as the context lasts."""
    blocks = getattr(vit, "blocks", None)
    try:
        if isinstance(blocks, nn.Sequential):
            vit.blocks = blocks[:1]
        yield
    finally:
        if blocks is not None:
            vit.blocks = blocks
