"""ViTs that are told in other ways where their patches lie: learned vectors, sines, relative places, nothing.

Without a position encoding a ViT is a function of the *set* of its patches. The ViT paper compares no encoding with
learned ones of one and of two dimensions and with relative ones (Dosovitskiy et al. 2021, Appendix D.4, Table 8). Fixed
sines are those of Vaswani et al. (2017), along the sequence of patches, or half of the width for the row and half for
the column. Relative places enter attention instead of tokens: a bias for each head and each step from a query to
a key, shared by all blocks.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

LONGEST = 10_000.0  # the slowest sine takes this many steps for a radian


def sines(places: Tensor, width: int) -> Tensor:
    """Sine-cosine encoding of places (T,), any numbers: (T, width), sines first (Vaswani et al. 2017, Section 3.5).

    Raises ``ValueError`` for an odd width.
    """
    if width % 2 or width < 2:
        raise ValueError(f"sines and cosines come in pairs, so the width is even; got {width}")
    rates = LONGEST ** -(torch.arange(width // 2, dtype=torch.double) * 2 / width)
    angles = places.double()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def sines_1d(grid: tuple[int, int], width: int) -> Tensor:
    """The encoding of patches by their number, row by row, (rows, columns, width): it knows nothing of columns."""
    return sines(torch.arange(grid[0] * grid[1]), width).unflatten(0, grid)


def sines_2d(grid: tuple[int, int], width: int) -> Tensor:
    """The encoding of patches by row and column, half of the width each: (rows, columns, width).

    Raises ``ValueError`` for a width that is no multiple of four.
    """
    if width % 4:
        raise ValueError(f"row and column have half of the width each, in pairs: a multiple of four; got {width}")
    row, column = (sines(torch.arange(side), width // 2) for side in grid)
    rows, columns = grid
    return torch.cat([row[:, None].expand(-1, columns, -1), column[None].expand(rows, -1, -1)], dim=2)


SINES: dict[str, Callable[[tuple[int, int], int], Tensor]] = {"sines-1d": sines_1d, "sines-2d": sines_2d}
ENCODINGS = ("learned", "none", *SINES, "relative")


def vit(encoding: str, **network: Any) -> nn.Module:
    """timm's ``VisionTransformer`` of the arguments ``network``, with one of ``ENCODINGS``.

    Sines are a parameter that is not trained, so that weights keep it; the class token gets none of them. Raises
    ``ValueError`` for another encoding.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"unknown position encoding {encoding!r}; known: {', '.join(ENCODINGS)}")
    if encoding == "none":
        return VisionTransformer(pos_embed="none", **network)
    if encoding == "relative":
        like = {"class_token": True, "global_pool": "token", "init_values": None}  # as a VisionTransformer has them
        return VisionTransformerRelPos(rel_pos_type="bias", shared_rel_pos=True, weight_init="", **{**like, **network})
    model = VisionTransformer(**network)
    if encoding in SINES:
        grid: Any = model.patch_embed.grid_size
        known = SINES[encoding](tuple(grid), model.embed_dim)
        patches = known.flatten(0, 1)
        zeros = torch.zeros(model.num_prefix_tokens, model.embed_dim)
        model.pos_embed = nn.Parameter(torch.cat([zeros, patches])[None], requires_grad=False)
    return model
