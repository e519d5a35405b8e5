"""Networks without a skip connection.

A pre-norm transformer block computes ``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``. ``remove_skip`` makes the
first or the second sum, or both, into the branch alone. Raghu et al. (2021, Section 6, Figure 8) *train* networks so
built; ``without_skip`` takes the skip from a network that was trained with it, which is another experiment.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from timm.models.vision_transformer import Block
from torch import Tensor, nn

BRANCHES = ("attn", "mlp", "both")


class SkiplessBlock(Block):
    """timm's pre-norm block without the skip around attention, around the MLP, or around either."""

    without: str

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens (B, T, D) → tokens (B, T, D)."""
        attended = self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)))
        x = attended if self.without in ("attn", "both") else x + attended
        hidden = self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return hidden if self.without in ("mlp", "both") else x + hidden


def remove_skip(model: nn.Module, block: int, branch: str) -> None:
    """Take from block ``block`` (from 0) of a ViT the skip around its "attn", its "mlp" or "both", in place.

    The weights are left alone. Raises ValueError for a block that is not there or another branch, TypeError for a
    network whose blocks are not timm's pre-norm ViT blocks.
    """
    blocks: Any = getattr(model, "blocks", None)
    if branch not in BRANCHES:
        raise ValueError(f"a skip goes around {', '.join(BRANCHES)}; got {branch!r}")
    if blocks is None or type(blocks[0]) not in (Block, SkiplessBlock):
        raise TypeError(f"{type(model).__name__} is not made of timm's pre-norm ViT blocks, whose skips can be removed")
    if not 0 <= block < len(blocks):
        raise ValueError(f"there is no block {block}: {type(model).__name__} has blocks 0 to {len(blocks) - 1}")
    blocks[block].__class__ = SkiplessBlock
    blocks[block].without = branch


@contextmanager
def without_skip(model: nn.Module, block: int, branch: str) -> Iterator[nn.Module]:
    """The model without a skip within the context, and as it was after it; arguments and errors of ``remove_skip``.

    Raises ValueError too if the block lacks a skip already.
    """
    blocks: Any = getattr(model, "blocks", ())
    if 0 <= block < len(blocks) and isinstance(blocks[block], SkiplessBlock):
        raise ValueError(f"block {block} was built without a skip")
    remove_skip(model, block, branch)
    try:
        yield model
    finally:
        restored = model.get_submodule(f"blocks.{block}")
        restored.__class__ = Block
        del restored.without
