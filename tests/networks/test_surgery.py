"""Networks without a skip against their forward pass written out."""

import copy

import pytest
import timm
import torch
from timm.models.vision_transformer import Block
from torch import nn

from helpers.measures.skip_ratios import skip_ratios, sublayers
from helpers.networks.architectures import build
from helpers.networks.catalogue import ZOO
from helpers.networks.surgery import BRANCHES, remove_skip, without_skip


def pictures(count: int = 4, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def vit() -> nn.Module:
    torch.manual_seed(0)
    settings = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 4, "num_heads": 3, "num_classes": 4}
    model = timm.models.VisionTransformer(**settings).eval()
    model.pretrained_cfg = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    return model


def forward_without(model: nn.Module, images: torch.Tensor, number: int, branch: str) -> torch.Tensor:
    """A small ViT's tokens, one block without a skip, written out."""
    x = model._pos_embed(model.patch_embed(images))
    for i, block in enumerate(model.blocks):
        f = block.attn(block.norm1(x))
        x = f if i == number and branch in ("attn", "both") else x + f
        f = block.mlp(block.norm2(x))
        x = f if i == number and branch in ("mlp", "both") else x + f
    return model.head(model.norm(x)[:, 0])


@torch.inference_mode()
@pytest.mark.parametrize("branch", BRANCHES)
def test_a_block_without_skip_equals_its_forward_written_out(branch):
    model, images = vit(), pictures()
    whole = model(images)
    wanted = forward_without(model, images, 2, branch)
    assert not torch.allclose(whole, wanted, atol=1e-3)
    with without_skip(model, 2, branch) as changed:
        assert changed is model and torch.allclose(model(images), wanted, atol=1e-5)
        apart = copy.deepcopy(model)
        left = {"attn": ["MLP"], "mlp": ["attention"], "both": []}[branch]
        assert [layer.branch for layer in sublayers(model) if layer.block == 2] == left
        assert len(skip_ratios(model, [images]).sublayers) == 6 + len(left)
    assert torch.equal(model(images), whole) and type(model.blocks[2]) is Block
    assert torch.allclose(apart(images), wanted, atol=1e-5)  # a copy is as it was when it was made
    with pytest.raises(RuntimeError, match="on purpose"), without_skip(model, 2, branch):
        raise RuntimeError("on purpose")
    assert torch.equal(model(images), whole)


@torch.inference_mode()
@pytest.mark.parametrize("branch", BRANCHES)
def test_the_networks_built_without_a_skip_have_none(branch):
    card = ZOO[f"vit-without-{branch}-skip-4"]
    model, images = build(card).eval(), pictures(2, 64)
    assert torch.allclose(model(images), forward_without(model, images, 4, branch), atol=1e-5)
    with pytest.raises(ValueError, match="built without a skip"), without_skip(model, 4, branch):
        pass
    assert torch.equal(copy.deepcopy(model)(images), model(images))


def test_skips_that_cannot_be_removed():
    with pytest.raises(ValueError, match="a skip goes around attn, mlp, both"):
        remove_skip(vit(), 0, "conv")
    with pytest.raises(ValueError, match="no block 4"):
        remove_skip(vit(), 4, "attn")
    with pytest.raises(TypeError, match="pre-norm"):
        remove_skip(timm.create_model("resnet18"), 0, "both")
