"""Heads of another width than the tokens' width over their number.

Usually h heads share the width D of a token, D / h dimensions each, so that more heads are narrower ones. Here each
head has a width of its own, and number and width can be changed one at a time (Park & Kim 2022, Figures C.5 and C.6).
"""

from typing import Any

from timm.models.vision_transformer import Attention, VisionTransformer, init_weights_vit_timm
from torch import nn


def of_width(model: nn.Module, width: int) -> nn.Module:
    """Give every head of an untrained ViT so many dimensions, in place, with weights drawn anew. Returns the model.

    Queries, keys and values of h heads are h · ``width`` wide, and the projection takes them back to the tokens' width.

    Raises ``TypeError`` for a model that is not timm's ``VisionTransformer`` with its own attention, ``ValueError`` for
    a width below 1.
    """
    blocks: Any = getattr(model, "blocks", ())
    if not isinstance(model, VisionTransformer) or not all(type(block.attn) is Attention for block in blocks):
        raise TypeError(f"{type(model).__name__} is not a VisionTransformer with timm's own attention")
    if width < 1:
        raise ValueError(f"a head has at least one dimension; got {width}")
    for block in blocks:
        heads, bias = block.attn.num_heads, block.attn.qkv.bias is not None
        block.attn = Attention(model.embed_dim, heads, attn_head_dim=width, qkv_bias=bias)
        block.attn.apply(init_weights_vit_timm)
    return model
