"""Where the heads of a transformer look: attention maps, and how far a head looks on average.

A head's attention map A (N, N) says how much each token (row) takes from each token (column); rows sum to one. timm
computes attention in one fused operation that never forms A. ``attention_maps`` switches that off, reduces every map
inside a hook, and switches it on again. (timm's own ``AttentionExtract`` with hooks returns an empty dictionary, and no
error, while attention is fused.)

The attention distance of a head is the distance in the image between a query patch and the patches it looks at,
weighted by A, averaged over query patches and images (Dosovitskiy et al. 2021, Figures 7 and 11; Raghu et al. 2021,
Figures 3 to 5, C.5, C.6). It has nothing to do with products of queries with queries, as is sometimes read. What falls
on prefix tokens (CLS, registers) has no place in the image. Much code leaves these columns out and goes on with rows
that no longer sum to one: half of the mass on CLS then halves the distance. Here a row is divided by its mass on
patches first, the other number is kept beside it, and so is the mass on the prefix.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from timm.layers import DiffAttention
from timm.models.pit import PoolingVisionTransformer
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.xcit import XCA
from torch import Tensor, nn

from helpers.networks.inputs import normalise, pixels
from helpers.networks.positions import prefix_tokens
from helpers.networks.taps import Tap, capture, evaluating
from helpers.uncertainty import GROUPS, delete_one

WINDOWED = (SwinTransformer, SwinTransformerV2)
CHUNK = 64  # images whose maps of one layer are held at a time
COLUMNS = ["head", "distance", "plain", "prefix", "name", "block", "uniform", "windowed", "left_out"]


@contextmanager
def attention_maps(
    model: nn.Module, fn: Callable[[Tensor], Any] | None = None, names: Iterable[str] | None = None
) -> Iterator[dict[str, Any]]:
    """``fn`` of the attention map A (B, heads, N, N) of every attention of a timm model, in the order of depth::

        with attention_maps(model, fn=lambda A: A.mean((0, 1))) as maps:
            model(images)
        maps["blocks.3.attn"]

    ``fn`` runs inside the hook, so that no more than one map is held; without it the maps are kept. ``names``: of
    the attentions, all by default. B counts windows, not images, where attention is windowed (Swin). The
    dictionary is filled anew by each forward pass. Hooks and fused attention are put back in every case.

    Raises ``ValueError`` for a model without attention, for one of which some attention forms no map that can be read,
    and for maps that are not a distribution over positions: attention over channels (XCiT), rows that do not sum to
    one (the talking heads of CaiT), differences of two maps (differential attention), maps that are not square.
    """
    modules = dict(model.named_modules())
    taps = [Tap(name, f"{name}.attn_drop", "input") for name in attentions(model, names)]
    fused = {module: module.fused_attn for module in modules.values() if hasattr(module, "fused_attn")}

    def reduce(attention: Tensor) -> Any:
        if attention.ndim != 4 or attention.shape[-1] != attention.shape[-2]:
            raise ValueError(
                f"{type(model).__name__}: an attention map is (B, heads, N, N); this one is {tuple(attention.shape)}"
            )
        total = attention[:1].sum(-1)
        if not torch.allclose(total, torch.ones_like(total), atol=1e-2 if attention.dtype.itemsize < 4 else 1e-4):
            raise ValueError(
                f"{type(model).__name__}: rows of its attention maps do not sum to one (from {total.min():.2f} to "
                f"{total.max():.2f}), so they are no weights; heads are mixed after the softmax"
            )
        return attention if fn is None else fn(attention)

    try:
        for module in fused:
            module.fused_attn = False
        with capture(model, taps, reduce) as maps:
            yield maps
    finally:
        for module, was in fused.items():
            module.fused_attn = was


def attentions(model: nn.Module, names: Iterable[str] | None = None) -> list[str]:
    """Names of a model's attention modules in the order of depth, or ``names`` if they are such.

    Raises ``ValueError`` as ``attention_maps`` does for a model, and for a name that is none of its attentions.
    """
    kind, modules = type(model).__name__, dict(model.named_modules())
    found = [
        name
        for name, module in modules.items()
        if re.search(r"Attn|Attention|XCA", type(module).__name__) and "Pool" not in type(module).__name__
    ]
    found = [name for name in found if not any(other.startswith(name + ".") for other in found)]
    if not found:
        raise ValueError(f"{kind} has no attention: attention maps are those of transformers (ViT, Swin, PiT, …)")
    if over := [name for name in found if isinstance(modules[name], XCA)]:
        raise ValueError(f"{kind}: {over[0]} attends over channels, not over positions: there is no distance in that")
    if split := [name for name in found if isinstance(modules[name], DiffAttention)]:
        raise ValueError(f"{kind}: {split[0]} weighs by the difference of two maps, which is negative in part: no map")
    if closed := [name for name in found if not isinstance(getattr(modules[name], "attn_drop", None), nn.Module)]:
        what = f"{len(closed)} of {len(found)} attention modules ({closed[0]} is a {type(modules[closed[0]]).__name__})"
        raise ValueError(f"{kind}: {what} have no attn_drop after their softmax, where maps are read")
    wanted = found if names is None else list(names)
    if strange := [name for name in wanted if name not in found]:
        raise ValueError(f"{kind} has no attention {strange[0]!r}; it has {', '.join(found)}")
    return wanted


def block_numbers(names: Iterable[str]) -> list[int]:
    """The number, from 0, of the block that each attention is in; attentions side by side in one block share it."""
    blocks = [re.sub(r"(blocks\.\d+)\..*", r"\1", name) for name in names]
    order = list(dict.fromkeys(blocks))
    return [order.index(block) for block in blocks]


def one_a_block(model: nn.Module, names: Iterable[str]) -> None:
    """Raise ``ValueError`` where a block has several attentions side by side, of which each has its own map."""
    numbers = block_numbers(names)
    if len(set(numbers)) < len(numbers):
        raise ValueError(
            f"{type(model).__name__} has {len(numbers)} attentions side by side in {len(set(numbers))} blocks, and "
            "this measure needs one map a block: take a network with one attention in each"
        )


@dataclass(frozen=True)
class Grid:
    """The patches an attention sees: ``shape`` (rows, columns), ``step`` between them in px, ``prefix`` tokens first.

    ``windowed``: the shape is that of a window, and what lies outside it cannot be looked at.
    """

    shape: tuple[int, int]
    step: tuple[float, float]
    prefix: int
    windowed: bool = False

    def distances(self) -> Tensor:
        """Distance between any two patches in pixels, (h · w, h · w), row by row from the upper left."""
        rows, columns = (torch.arange(n) * float(step) for n, step in zip(self.shape, self.step, strict=True))
        places = torch.cartesian_prod(rows, columns)
        return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")

    def uniform(self) -> float:
        """The distance of an attention that looks everywhere alike, in pixels."""
        return float(self.distances().double().mean())

    def nearest(self) -> float:
        """The distance, in pixels, of an attention to the 3 × 3 patches around each patch alike.

        The patch itself is one of them; at the rim of the image there are fewer.
        """
        places = torch.cartesian_prod(*(torch.arange(n) for n in self.shape))
        near = (places[:, None] - places).abs().amax(-1) <= 1  # (h · w, h · w)
        far = self.distances().double()
        return float(((far * near).sum(1) / near.sum(1)).mean())


def uniform_distance(grid: tuple[int, int], patch: float | tuple[float, float]) -> float:
    """Attention distance, px, of uniform attention on a grid (rows, columns) of patches of ``patch`` pixels.

    The mean distance of two places of the grid, a place and itself among them: 116.5 px for 14 × 14 patches of 16.
    """
    return Grid(grid, patch if isinstance(patch, tuple) else (patch, patch), 0).uniform()


def nearest_distance(grid: tuple[int, int], patch: float | tuple[float, float]) -> float:
    """Attention distance, px, of a head that looks at the 3 × 3 patches around each patch alike, itself among them.

    16.7 px for 14 × 14 patches of 16. Arguments as for ``uniform_distance``.
    """
    return Grid(grid, patch if isinstance(patch, tuple) else (patch, patch), 0).nearest()


def grid_of(model: nn.Module, name: str, tokens: int, size: tuple[int, int]) -> Grid:
    """The grid that the attention ``name`` of ``model`` sees, given its number of tokens and the image's size in px.

    Plain transformers (one grid from end to end, any prefix tokens), PiT (a grid a stage), Swin (windows). Raises
    ``ValueError`` for other models and where tokens and grid do not fit.
    """
    embed, prefix = getattr(model, "patch_embed", None), prefix_tokens(model)
    stage = re.search(r"(?:layers|transformers)\.(\d+)", name)
    if isinstance(model, WINDOWED):
        step = tuple(side * 2 ** int(stage[1]) for side in embed.patch_size)
        grid = Grid(tuple(model.get_submodule(name).window_size), step, 0, windowed=True)
    elif isinstance(model, PoolingVisionTransformer):
        shape, step = embed.grid_size, embed.conv.stride
        for _ in range(int(stage[1])):  # each stage begins with a 3 × 3 convolution of stride 2
            shape, step = tuple(-(-n // 2) for n in shape), tuple(2 * s for s in step)
        grid = Grid(shape, step, prefix)
    elif hasattr(embed, "patch_size") and name.startswith("blocks."):
        step = embed.patch_size
        grid = Grid(tuple(n // s for n, s in zip(size, step, strict=True)), step, prefix)
    else:
        raise ValueError(f"{type(model).__name__}: it is not known where in the image the tokens of {name} lie")
    if math.prod(grid.shape) + grid.prefix != tokens:
        raise ValueError(
            f"{type(model).__name__}: {name} has {tokens} tokens, not {grid.shape[0]} × {grid.shape[1]} patches and "
            f"{grid.prefix} prefix tokens"
        )
    return grid


def distances(attention: Tensor, grid: Grid) -> Tensor:
    """Of maps (B, heads, N, N) for each head: distance, px; the same without renormalisation; prefix mass. (heads, 3).

    Means over the images and query patches. A query that gives all it has to prefix tokens has no distance and is
    left out of the first.
    """
    far = torch.zeros(attention.shape[-1], attention.shape[-1], device=attention.device, dtype=attention.dtype)
    far[grid.prefix :, grid.prefix :] = grid.distances().to(far)
    plain = (attention * far).sum(-1)[..., grid.prefix :]
    mass = attention[..., grid.prefix :, grid.prefix :].sum(-1)
    means = [(plain / mass.where(mass > 0, torch.nan)).nanmean((0, 2)), plain.mean((0, 2)), 1 - mass.mean((0, 2))]
    return torch.stack(means, dim=1).double().cpu()


def patches_attended(attention: Tensor, prefix: int) -> Tensor:
    """How many patches a query spreads its attention over, mean over images and query patches: (heads,).

    ``attention``: maps (B, heads, N, N), whose first ``prefix`` tokens are no patches. The number is the exponential
    of the entropy of a row, divided by its mass on patches first: 1 where a query looks at one patch, their number
    where it looks at all alike. For ``attention_maps(model, partial(patches_attended, prefix=prefix_tokens(model)))``.
    """
    patches = attention[..., prefix:, prefix:]
    patches = patches / patches.sum(-1, keepdim=True)
    return torch.special.entr(patches).sum(-1).exp().mean((0, 2))


@torch.inference_mode()
def attention_distance(
    model: nn.Module,
    batches: Iterable,
    names: Iterable[str] | None = None,
    *,
    groups: int = GROUPS,
    chunk: int = CHUNK,
) -> pd.DataFrame:
    """Attention distance of every head (Raghu et al. 2021, Figure 3), with what its errors need.

    Args:
        model: a transformer of timm's; run in eval mode, its modes restored.
        batches: batches of images (n, 3, H, W), or tuples that begin with them; batch b is in group b mod ``groups``.
        names: of attention modules, all by default.
        groups: number of jackknife groups, at least 2.
        chunk: images whose maps are held at a time.

    Returns:
        a table with one row a head, once for all images (``left_out`` −1) and once without each group: ``name`` and
        ``block`` (number, from 0) of the attention, ``head``; ``distance`` and ``plain`` (px), with and without
        renormalisation over patches; ``prefix``, the share of patches' attention that falls on prefix tokens;
        ``uniform`` (px), the distance of uniform attention, within a window where ``windowed``. A windowed head is
        bounded by its window and should not be called local beside heads that could look anywhere.

    Raises:
        ValueError: as ``attention_maps`` and ``grid_of`` do, and for fewer than two groups or fewer batches than
            groups.
    """
    if groups < 2:
        raise ValueError(f"an error needs two jackknife groups or more; got {groups}")
    names = attentions(model, names)
    sums: dict[str, list[Any]] = {name: [0] * groups for name in names}
    counts, grids, number = [0] * groups, {}, -1
    with evaluating(model), ExitStack() as stack:
        for number, batch in enumerate(batches):
            images = pixels(batch)
            if not grids:
                with attention_maps(model, lambda A: A.shape[-1], names) as tokens:
                    model(normalise(model, images[:1]))
                grids = {name: grid_of(model, name, n, tuple(images.shape[-2:])) for name, n in tokens.items()}
                alike = {grid: [name for name in names if grids[name] == grid] for grid in grids.values()}
                found = [
                    stack.enter_context(attention_maps(model, partial(distances, grid=grid), own))
                    for grid, own in alike.items()
                ]
            for part in images.split(chunk):
                model(normalise(model, part))
                for name, value in (item for maps in found for item in maps.items()):
                    sums[name][number % groups] += len(part) * value
            counts[number % groups] += len(images)
        if number + 1 < groups:
            raise ValueError(f"{groups} jackknife groups need as many batches; got {number + 1}: use smaller ones")

    def means(left_out: int | None) -> dict[str, np.ndarray]:
        kept = [group for group in range(groups) if group != left_out]
        total = sum(counts[group] for group in kept)
        values = np.concatenate([(sum(sums[name][group] for group in kept) / total).numpy() for name in names])
        return dict(zip(("distance", "plain", "prefix"), values.T, strict=True))  # each (heads of all attentions,)

    rows = [
        (head, grids[name].uniform(), grids[name].windowed, name, block)
        for block, name in zip(block_numbers(names), names, strict=True)
        for head in range(len(sums[name][0]))
    ]
    heads = pd.DataFrame(rows, columns=["head", "uniform", "windowed", "name", "block"])
    return delete_one(heads, means, range(groups))[COLUMNS]


@torch.inference_mode()
def attended_patches(model: nn.Module, batches: Iterable, *, chunk: int = CHUNK) -> pd.DataFrame:
    """Where patches look, wherever they are, and how large the tokens are that are looked at (Darcet et al. 2024).

    Returns a table of ``block``, ``row``, ``column``; ``share`` of the attention between patches that falls on this
    patch, the rows divided by their mass on patches, mean over images, heads and queries; ``norm`` of its token on
    entering the block, mean over images. Raises ``ValueError`` as ``attention_maps`` and ``grid_of``, for windows,
    and for blocks that see different grids.
    """
    names, prefix, total, images = attentions(model), prefix_tokens(model), 0, 0
    one_a_block(model, names)
    if isinstance(model, WINDOWED):
        raise ValueError(f"{type(model).__name__} attends within windows, which have no places of their own")
    taps = [Tap(name, name.rsplit(".", 1)[0], "input") for name in names]

    def received(attention: Tensor) -> Tensor:
        patches = attention[..., prefix:, prefix:]
        return (patches / patches.sum(-1, keepdim=True)).mean((1, 2)).sum(0).double().cpu()

    def norms(x: Tensor) -> Tensor:
        return x[:, prefix:].norm(dim=-1).sum(0).double().cpu()

    with evaluating(model), attention_maps(model, received) as looked, capture(model, taps, norms) as entered:
        for batch in batches:
            for part in pixels(batch).split(chunk):
                model(normalise(model, part))
                if len(counts := {looked[name].numel() for name in names}) > 1:
                    raise ValueError(
                        f"{type(model).__name__} has blocks of {min(counts)} to {max(counts)} patches, and this "
                        "measure needs one grid for all blocks: take a network without stages"
                    )
                found = [torch.stack([looked[name], entered[name]]) for name in names]
                total, images = total + torch.stack(found, dim=1), images + len(part)
    grid = grid_of(model, names[0], total.shape[-1] + prefix, tuple(part.shape[-2:]))
    share, norm = (total / images).unflatten(-1, grid.shape).numpy()
    values = [(*at, share[at], norm[at]) for at in np.ndindex(share.shape)]
    return pd.DataFrame(values, columns=["block", "row", "column", "share", "norm"])


def corners(table: pd.DataFrame) -> pd.DataFrame:
    """How much of the attention between patches falls on the four corner patches, and how large their tokens are.

    ``table``: what ``attended_patches`` returns. Returns one row a block: ``block``; ``share`` of attention on the
    four corners; ``norm in corners`` and ``norm elsewhere``, means over patches.
    """
    at_rim = [table[axis].isin([0, table[axis].max()]) for axis in ("row", "column")]
    corner = at_rim[0] & at_rim[1]
    inside, outside = table[corner].groupby("block"), table[~corner].groupby("block")
    columns = {
        "share": inside["share"].sum(),
        "norm in corners": inside["norm"].mean(),
        "norm elsewhere": outside["norm"].mean(),
    }
    return pd.DataFrame(columns).reset_index()


def smallest(table: pd.DataFrame, blocks: Iterable[int]) -> float:
    """Claims R7 to R10 and C3: the smallest distance of a head in some blocks, over uniform."""
    rows = table[table["block"].isin(list(blocks))]
    return float((rows["distance"] / rows["uniform"]).min())


def largest(table: pd.DataFrame, blocks: Iterable[int]) -> float:
    """Claims R7 and C3: the largest distance of a head in some blocks, over uniform."""
    rows = table[table["block"].isin(list(blocks))]
    return float((rows["distance"] / rows["uniform"]).max())


def growth(table: pd.DataFrame) -> float:
    """Claim C4: Spearman's correlation of a block's number with the mean distance of its heads."""
    mean = table.groupby("block")["distance"].mean()
    return float(spearmanr(mean.index, mean).statistic)
