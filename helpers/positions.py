"""An activation as positions: whatever a network's layout, tokens of a grid, and prefix tokens apart from them.

Transformers hand over (n, prefix + h · w, d), convolutional networks maps (n, d, h, w), Swins maps (n, h, w, d). What
is asked of one position of a network (which patch does it resemble, what can a probe read from it) is asked of all of
them in the same way once they are (n, h · w, d).
"""

import math
from dataclasses import dataclass

from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d


@dataclass(frozen=True)
class Positions:
    """``tokens`` (n, h · w, d), row by row from the upper left; ``prefix`` (n, p, d), p may be 0; ``grid`` (h, w)."""

    tokens: Tensor
    prefix: Tensor
    grid: tuple[int, int]


def prefix_tokens(model: nn.Module) -> int:
    """How many tokens stand before the patches: CLS, distillation and register tokens; 0 where there are none."""
    if hasattr(model, "num_prefix_tokens"):
        return model.num_prefix_tokens
    token = getattr(model, "cls_token", None)  # PiT
    return 0 if token is None else token.shape[1]


def positions(model: nn.Module, x: Tensor, grid: tuple[int, int] | None = None) -> Positions:
    """The positions of an activation ``x`` of ``model``: of a map (n, d, h, w) or of tokens (n, p + h · w, d).

    ``grid``: average the positions down to this many (rows, columns), as maps of early stages are before they are
    compared with the last; tokens and maps alike.

    Raises ``ValueError`` for an activation with no positions left, and for tokens that make up no grid.
    """
    if x.ndim == 4:
        if isinstance(model, (SwinTransformer, SwinTransformerV2)):
            x = x.permute(0, 3, 1, 2)
        have, prefix, cells = tuple(x.shape[2:]), x[:, :0, 0, :0], x
    elif x.ndim == 3:
        number, count = prefix_tokens(model), x.shape[1] - prefix_tokens(model)
        prefix, patches = x[:, :number], x[:, number:]
        have = _grid(model, count)
        cells = patches.transpose(1, 2).unflatten(2, have)
    else:
        raise ValueError(
            f"an activation of shape {tuple(x.shape)} has no positions: maps are (n, d, h, w), tokens (n, p + h·w, d); "
            "read the network before its pooling"
        )
    if grid is not None and tuple(grid) != have:
        if grid[0] > have[0] or grid[1] > have[1]:
            raise ValueError(f"{have[0]} × {have[1]} positions cannot be averaged down to {grid[0]} × {grid[1]}")
        cells, have = adaptive_avg_pool2d(cells, grid), tuple(grid)
    return Positions(cells.flatten(2).transpose(1, 2), prefix, have)


def _grid(model: nn.Module, count: int) -> tuple[int, int]:
    """Rows and columns of ``count`` patch tokens: the model's own where they fit, otherwise a square."""
    own = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if own is not None and math.prod(own) == count:
        return tuple(own)
    side = math.isqrt(max(count, 0))
    if not side or side * side != count:
        raise ValueError(f"{count} tokens make up no square grid; {prefix_tokens(model)} prefix tokens were left out")
    return side, side
