"""Attention rollout: where the class token's information comes from, if attention alone moved it.

A block adds what attention brings to what a token was (the skip), so a token after the block is taken to be half
itself and half the attention-weighted mean of all tokens. Multiplied through the blocks this gives, for every token at
the end, weights over the tokens at the entrance (Abnar & Zuidema 2020; Dosovitskiy et al. 2021, Figures 6 and 14)::

    R = Â_L · … · Â_2 · Â_1        Â = A averaged over heads, plus the identity, each row divided by its sum

It leaves out values, projections, MLPs and norms, so it is a picture of the wiring, not of what flows. The rows must be
divided with ``keepdim``: a widely used script does without it, so that columns are divided by other rows' sums and
rows no longer sum to one.
"""

from collections.abc import Iterable
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from helpers.measures.attention import CHUNK
from helpers.measures.attention_maps import WINDOWED, attention_maps, attentions, grid_of, network_of, one_a_block
from helpers.measures.distributed import Share
from helpers.measures.streams import at_least_one, at_least_two
from helpers.networks.inputs import normalise, pixels
from helpers.networks.positions import has_class_token
from helpers.networks.taps import evaluating
from helpers.uncertainty import GROUPS, delete_one


def attention_rollout(maps: Iterable[Tensor]) -> list[Tensor]:
    """Rollout after each block, first block first: each (B, N, N), rows over tokens at the entrance, summing to one.

    ``maps``: of each block in order, (B, N, N) averaged over heads, or (B, heads, N, N). Raises ``ValueError`` where
    blocks have different numbers of tokens.
    """
    rolled: list[Tensor] = []
    for attention in maps:
        attention = attention.mean(1) if attention.ndim == 4 else attention  # (B, N, N)
        if rolled and rolled[-1].shape != attention.shape:
            raise ValueError(
                f"rollout multiplies maps of the same tokens in all blocks; these have {rolled[-1].shape[-1]} and "
                f"{attention.shape[-1]}: a network with windows or stages has no rollout"
            )
        mixed = attention + torch.eye(attention.shape[-1], device=attention.device, dtype=attention.dtype)
        mixed = mixed / mixed.sum(-1, keepdim=True)
        rolled.append(mixed @ rolled[-1] if rolled else mixed)
    return rolled


@torch.inference_mode()
def rollout_maps(model: nn.Module, batches: Iterable, *, chunk: int = CHUNK) -> Tensor:
    """Rollout over the patches after each block, (images, blocks, rows, columns); each map sums to one.

    The row of the class token where there is one, the mean over the rows of patches otherwise; what falls on prefix
    tokens is left out and the rest divided by its sum. Raises ``ValueError`` as ``attention_maps`` does, for networks
    with windows, stages, or several attentions in a block, without images, and for a chunk below 1.
    """
    names, share = attentions(model), Share()
    parts: dict[int, list[Tensor]] = {}  # by number of the batch
    at_least_one(chunk=chunk)
    one_a_block(model, names)
    network, _ = network_of(model, names[0])
    if isinstance(network, WINDOWED):
        raise ValueError(f"{type(model).__name__} attends within windows: it has no rollout")
    first = has_class_token(network)
    with evaluating(model), attention_maps(model, partial(torch.mean, dim=1)) as maps:
        for number, batch in share.dealt(batches):
            images = pixels(batch)
            for part in images.split(chunk):
                model(normalise(model, part))
                rolled = attention_rollout(maps[name] for name in names)
                height, width = part.shape[-2:]
                grid = grid_of(model, names[0], rolled[0].shape[-1], (height, width))
                queries = [r[:, 0] if first else r[:, grid.prefix :].mean(1) for r in rolled]
                rows = torch.stack(queries, dim=1)[..., grid.prefix :]  # (B, blocks, patches)
                shares = (rows / rows.sum(-1, keepdim=True)).unflatten(-1, grid.shape)
                parts.setdefault(number, []).append(shares.cpu())
        found = share.in_order(parts)
        if not found:
            raise ValueError("no images were given, so there is no rollout; give a batch or more")
    return torch.cat(found)


def centred_gaussian(shape: tuple[int, int], width: float = 0.25) -> Tensor:
    """A map (rows, columns) that knows only where the middle is: a Gaussian, its deviation ``width`` of each side."""
    rows, columns = ((torch.arange(n) + 0.5) / n - 0.5 for n in shape)
    weight = torch.exp(-(rows[:, None] ** 2 + columns[None] ** 2) / (2 * width**2))
    return weight / weight.sum()


def share_on(maps: Tensor, masks: Tensor) -> Tensor:
    """The share of each map's mass on a mask, (B,): maps (B, rows, columns) of sum one, masks (B, H, W) bool.

    A patch that the mask covers in part counts in part. The number of pixels must be a multiple of that of patches.
    """
    if any(big % small for big, small in zip(masks.shape[1:], maps.shape[1:], strict=True)):
        raise ValueError(f"masks of {tuple(masks.shape[1:])} pixels do not divide into {tuple(maps.shape[1:])} patches")
    rows, columns = maps.shape[1:]
    covered = adaptive_avg_pool2d(masks.float()[:, None], (rows, columns))[:, 0]
    return (maps * covered).sum((1, 2))


def on_object(maps: Tensor, masks: Tensor, groups: int = GROUPS) -> pd.DataFrame:
    """Claim C9: how much of rollout maps (B, rows, columns) falls on the object, masks (B, H, W).

    Returns a table of means over images, all (``left_out`` −1) and without each group of them (image i is in group
    i mod ``groups``): ``own``, the share of the image's own map; ``common``, that of the mean map of all these images;
    ``gaussian``, that of a map which knows where the middle is; ``area``, the mask's share of the image.
    """
    at_least_two(groups)
    if groups > len(maps):
        raise ValueError(f"{groups} groups need as many images; got {len(maps)}")
    group = torch.arange(len(maps)) % groups
    own, area = share_on(maps, masks), masks.float().mean((1, 2))
    rows, columns = maps.shape[1:]
    gaussian = share_on(centred_gaussian((rows, columns)).expand_as(maps), masks)

    def measure(left_out: int | None) -> dict[str, float]:
        kept = group != (-1 if left_out is None else left_out)
        common = share_on(maps[kept].mean(0).expand_as(maps[kept]), masks[kept])
        shares = {"own": own[kept], "common": common, "gaussian": gaussian[kept], "area": area[kept]}
        return {name: float(values.mean()) for name, values in shares.items()}

    return delete_one(pd.DataFrame(index=[0]), measure, range(groups))
