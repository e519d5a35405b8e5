"""What the class token looks at: its attention to the patches, head by head, and how much of it falls on the object.

Rollout (``helpers.measures.rollout``) multiplies attention through all blocks and averages over heads first. Here
nothing is multiplied: of every block and head the row of the class token, over the patches. It says where this head
reads, at this block, not what of it matters to the answer.
"""

from collections.abc import Iterable
from functools import partial

import numpy as np
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


@torch.inference_mode()
def class_attention(model: nn.Module, batches: Iterable, *, chunk: int = CHUNK) -> Tensor:
    """Attention of the class token over the patches, (images, blocks, heads, rows, columns); each map sums to one.

    What falls on prefix tokens, the class token itself among them, is left out and the rest divided by its sum.
    Raises ``ValueError`` as ``attention_maps`` does, for networks without a class token, with windows, stages, or
    several attentions in a block, without images, and for a chunk below 1.
    """
    at_least_one(chunk=chunk)
    names, share = attentions(model), Share()
    parts: dict[int, list[Tensor]] = {}  # by number of the batch
    one_a_block(model, names)
    network, _ = network_of(model, names[0])
    if isinstance(network, WINDOWED) or not has_class_token(network):
        raise ValueError(f"{type(model).__name__} has no class token whose attention could be shown")
    with evaluating(model), attention_maps(model, partial(torch.select, dim=2, index=0)) as rows:
        for number, batch in share.dealt(batches):
            for part in pixels(batch).split(chunk):
                model(normalise(model, part))
                if len({row.shape for row in rows.values()}) > 1:
                    raise ValueError(f"{type(model).__name__} has stages or blocks with different numbers of heads")
                found = torch.stack([rows[name] for name in names], dim=1)  # (B, blocks, heads, N)
                height, width = part.shape[-2:]
                grid = grid_of(model, names[0], found.shape[-1], (height, width))
                on_patches = found[..., grid.prefix :]
                shares = (on_patches / on_patches.sum(-1, keepdim=True)).unflatten(-1, grid.shape)
                parts.setdefault(number, []).append(shares.cpu())
        every = share.in_order(parts)
        if not every:
            raise ValueError("no images were given, so there is no attention to look at; give a batch or more")
    return torch.cat(every)


def on_object_by_head(maps: Tensor, masks: Tensor, groups: int = GROUPS) -> pd.DataFrame:
    """How much of each head's map falls on the object: maps (B, blocks, heads, rows, columns), masks (B, H, W) bool.

    A patch that the mask covers in part counts in part. Returns a table of means over images, all (``left_out`` −1)
    and without each group of them (image i is in group i mod ``groups``): ``block``, ``head``; ``own``, the share of
    the image's own map on its mask; ``common``, that of the mean map of all these images; ``area``, the mask's
    share of the image; ``ratio``, own over area, 1 where a head does not care; ``specific``, own over common, 1 where
    it knows where objects lie and not where this one does. Raises ``ValueError`` for fewer than two groups, fewer
    images than groups, and masks whose pixels do not divide into the patches.
    """
    at_least_two(groups)
    if groups > len(maps) or len(maps) != len(masks):
        raise ValueError(f"{groups} groups need as many images, and a mask each; got {len(maps)} and {len(masks)}")
    shape = (maps.shape[3], maps.shape[4])
    if any(big % small for big, small in zip(masks.shape[1:], shape, strict=True)):
        raise ValueError(f"masks of {tuple(masks.shape[1:])} pixels do not divide into {shape} patches")
    covered = adaptive_avg_pool2d(masks.float()[:, None], shape)[:, 0].double()  # (B, rows, columns)
    maps = maps.double()
    own, area = torch.einsum("bkhrc,brc->bkh", maps, covered), masks.double().mean((1, 2))
    group = torch.arange(len(maps)) % groups

    def measure(left_out: int | None) -> dict[str, np.ndarray]:
        kept = group != (-1 if left_out is None else left_out)
        common = torch.einsum("khrc,rc->kh", maps[kept].mean(0), covered[kept].mean(0)).flatten()
        share, of_image = own[kept].mean(0).flatten(), float(area[kept].mean())
        columns = {"own": share, "common": common, "area": torch.full_like(share, of_image)}
        return {name: value.numpy() for name, value in columns.items()} | {
            "ratio": (share / of_image).numpy(),
            "specific": (share / common).numpy(),
        }

    blocks, heads = maps.shape[1:3]
    rows = pd.DataFrame([(b, h) for b in range(blocks) for h in range(heads)], columns=["block", "head"])
    return delete_one(rows, measure, range(groups))
