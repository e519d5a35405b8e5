"""Vision Transformers whose patches look no further than their neighbours.

In an attention restricted to a window of k × k patches a patch takes from the k × k patches around it, itself
among them (fewer at the border), and from nothing else; prefix tokens, the class token among them, still take
from all. So patches learn of each other from neighbour to neighbour alone, and not by way of the class token (Park &
Kim 2022, Figure 7, whose networks are trained so). ``restrict`` is for good and for training, ``restricted`` for a
while.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def neighbours(grid: tuple[int, int], side: int, prefix: int = 1) -> Tensor:
    """Who takes from whom (N, N) bool, N = ``prefix`` tokens and the patches of a grid, row by row; queries are rows.

    ``side``: of the window, in patches, odd, so that it has a middle. Raises ``ValueError`` for another one.
    """
    if side < 1 or not side % 2:
        raise ValueError(f"a window has an odd number of patches to a side, so that it has a middle; got {side}")
    row, column = (place.flatten() for place in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    apart = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())  # (patches, patches)
    seen = torch.ones(prefix + len(row), prefix + len(row), dtype=torch.bool)
    seen[prefix:, :prefix] = False
    seen[prefix:, prefix:] = apart <= side // 2
    return seen


def restrict(model: nn.Module, side: int) -> list[RemovableHandle]:
    """Restrict every attention of a ViT to windows of ``side`` × ``side`` patches; the weights are left alone.

    Returns the hooks that do it, each of which can be removed. Raises ``TypeError`` for a model that is not timm's
    ``VisionTransformer`` with its own attention, ``ValueError`` for a side that is not odd.
    """
    blocks: Any = getattr(model, "blocks", ())
    if not isinstance(model, VisionTransformer) or not all(type(block.attn) is Attention for block in blocks):
        raise TypeError(f"{type(model).__name__} is not a VisionTransformer with timm's own attention")
    grid: Any = model.patch_embed.grid_size
    look = partial(_look, neighbours(tuple(grid), side, model.num_prefix_tokens))
    return [block.attn.register_forward_pre_hook(look, with_kwargs=True) for block in blocks]


@contextmanager
def restricted(model: nn.Module, side: int) -> Iterator[nn.Module]:
    """The model with restricted attention within the context, and as it was after it; arguments as of ``restrict``."""
    hooks = restrict(model, side)
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


def _look(seen: Tensor, attention: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Hand the window to an attention as its mask. Raises ``ValueError`` for another number of tokens."""
    if args[0].shape[1] != len(seen):
        raise ValueError(f"the window is for {len(seen)} tokens, and this attention has {args[0].shape[1]}")
    return args, {**kwargs, "attn_mask": seen.to(args[0].device)}
