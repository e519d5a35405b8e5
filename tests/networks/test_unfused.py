"""Attention that is computed step by step for a while."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from helpers.networks.unfused import unfused


def test_attention_is_unfused_within_and_as_before_after():
    torch.manual_seed(0)
    model = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3)
    first, second = (block.attn for block in model.blocks)
    first.fused_attn, second.fused_attn = True, False
    with pytest.raises(KeyError), unfused(model):
        assert first.fused_attn is False and second.fused_attn is False
        raise KeyError
    assert first.fused_attn is True and second.fused_attn is False
