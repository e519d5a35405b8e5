"""Heads of any width: with the usual one a ViT is the ViT, and others change their weights and nothing else."""

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from helpers.measures.attention_maps import attention_maps
from helpers.networks import encodings
from helpers.networks.heads import of_width
from helpers.networks.windows import restrict

DEPTH, WIDTH = 2, 24


def vit(heads: int = 3, **options) -> VisionTransformer:
    torch.manual_seed(0)
    size = {"img_size": 16, "patch_size": 4, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": heads, "num_classes": 5}
    return VisionTransformer(**{**size, **options}).eval()


def count(model: nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


@torch.inference_mode()
def test_with_the_usual_width_and_the_same_weights_it_is_the_vit():
    plain, other = vit(), of_width(vit(), WIDTH // 3).eval()
    images = torch.randn(4, 3, 16, 16)
    assert not torch.equal(plain(images), other(images))  # drawn anew
    other.load_state_dict(plain.state_dict())
    torch.testing.assert_close(other(images), plain(images))


@torch.inference_mode()
@pytest.mark.parametrize("width", [5, 16])
def test_a_block_computes_softmax_attention_of_that_width(width):
    """By hand, head by head: scores over the root of the head's own width."""
    model = of_width(vit(), width).eval()
    attention, x = model.blocks[1].attn, torch.randn(2, 17, WIDTH)
    for value in attention.parameters():
        nn.init.normal_(value, std=0.3)
    assert attention.qkv.weight.shape == (3 * 3 * width, WIDTH) and attention.proj.weight.shape == (WIDTH, 3 * width)
    query, key, value = (x @ attention.qkv.weight.T + attention.qkv.bias).split(3 * width, dim=-1)
    heads = []
    for part in (slice(width * h, width * (h + 1)) for h in range(3)):
        scores = query[..., part] @ key[..., part].transpose(1, 2) / width**0.5
        heads.append(scores.softmax(-1) @ value[..., part])
    wanted = torch.cat(heads, -1) @ attention.proj.weight.T + attention.proj.bias
    torch.testing.assert_close(attention(x), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("heads, width", [(1, 8), (3, 16), (3, 5), (8, 8)])
def test_parameters_are_those_of_the_heads_alone(heads, width):
    """4 · h · w · D weights and 3 · h · w biases a block, against 4 · D² and 3 · D; nothing else changes."""
    model, plain = of_width(vit(heads), width), vit(heads)
    inner = heads * width
    assert count(model) - count(plain) == DEPTH * (4 * WIDTH * (inner - WIDTH) + 3 * (inner - WIDTH))
    assert {block.attn.num_heads for block in model.blocks} == {heads}
    others = {name: value for name, value in plain.state_dict().items() if ".attn." not in name}
    assert others.keys() == {name for name in model.state_dict() if ".attn." not in name}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in others.items())


def test_weights_are_drawn_as_timm_draws_them():
    torch.manual_seed(1)
    model = of_width(vit(4), 64)
    weights = torch.cat([block.attn.qkv.weight.detach().flatten() for block in model.blocks])
    assert float(weights.std()) == pytest.approx(0.02, rel=0.02) and abs(float(weights.mean())) < 5e-4
    assert all(not value.any() for name, value in model.named_parameters() if ".attn." in name and "bias" in name)
    assert of_width(vit(qkv_bias=False), 4).blocks[0].attn.qkv.bias is None


def test_maps_of_such_heads_are_read():
    model = of_width(vit(2), 7).eval()
    with torch.inference_mode(), attention_maps(model) as maps:
        model(torch.randn(3, 3, 16, 16))
    assert [tuple(one.shape) for one in maps.values()] == [(3, 2, 17, 17)] * DEPTH
    torch.testing.assert_close(maps["blocks.0.attn"].sum(-1), torch.ones(3, 2, 17))


def test_what_has_no_such_heads_is_refused():
    relative = encodings.vit("relative", img_size=16, patch_size=4, embed_dim=WIDTH, depth=1, num_heads=3)
    for model in (timm.create_model("test_convnext"), relative, restrict(vit(), 3), nn.Linear(2, 2)):
        with pytest.raises(TypeError, match=f"{type(model).__name__} is not a VisionTransformer with timm's own"):
            of_width(model, 8)
    with pytest.raises(ValueError, match="at least one dimension; got 0"):
        of_width(vit(), 0)
