"""Attention in a ResNet: against torch's own, the direction of its biases, sizes, and what is refused."""

import pytest
import torch
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from helpers.measures.attention_maps import attention_maps
from helpers.networks.alternet import HEADS, BoxBlur, SelfAttention2d, attend, blur_before_subsampling
from helpers.networks.architectures import build
from helpers.networks.catalogue import ZOO
from helpers.networks.taps import taps_for

SIZE = (64, 64)


@pytest.fixture
def resnet():
    torch.manual_seed(0)
    return build(ZOO["resnet-brief"]).eval()


def weights(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_it_is_the_attention_of_torch_on_the_positions_as_tokens():
    torch.manual_seed(1)
    layer, x = SelfAttention2d(16, (3, 5)), torch.randn(2, 16, 3, 5)
    nn.init.normal_(layer.bias)
    tokens = x.flatten(2).mT  # (B, N, C)
    parts = F.linear(tokens, layer.qkv.weight[:, :, 0, 0]).unflatten(2, (3, HEADS, 4))
    q, k, v = parts.permute(2, 0, 3, 1, 4)  # each (B, heads, N, 4)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=layer.steps())  # (B, heads, N, 4)
    wanted = F.linear(mixed.transpose(1, 2).flatten(2), layer.proj.weight[:, :, 0, 0]).mT.unflatten(2, (3, 5))
    torch.testing.assert_close(layer(x), wanted)


def test_a_bias_belongs_to_the_step_from_query_to_key():
    layer = SelfAttention2d(8, (3, 4))
    layer.bias.data = torch.arange(5 * 7.0).reshape(1, 5, 7).expand(HEADS, -1, -1).clone()
    pairs = layer.steps()[0].unflatten(0, (3, 4)).unflatten(2, (3, 4))
    for query in ((0, 0), (1, 3), (2, 1)):
        for key in ((0, 0), (2, 3), (1, 2)):
            down, right = key[0] - query[0], key[1] - query[1]
            assert pairs[query][key] == layer.bias[0, down + 2, right + 3]


def test_a_head_can_look_at_the_neighbour_to_the_right_alone():
    """With the weights of a step alone, attention is a convolution: it shifts its map by that step."""
    layer, x = SelfAttention2d(4, (4, 4)), torch.randn(1, 4, 4, 4)
    nn.init.zeros_(layer.qkv.weight[: 2 * HEADS])  # no queries and no keys
    nn.init.constant_(layer.qkv.weight[2 * HEADS :], 0)
    layer.qkv.weight.data[2 * HEADS, 2] = 1  # the value of head 0 is channel 2
    layer.bias.data[:, 3, 4] = 50  # no step down, one to the right
    nn.init.zeros_(layer.proj.weight)
    layer.proj.weight.data[1, 0] = 1
    torch.testing.assert_close(layer(x)[0, 1, :, :3], x[0, 2, :, 1:])


def test_attention_has_the_weights_of_the_convolution_it_stands_for(resnet):
    before, convolution = weights(resnet), resnet.stages[3].blocks[3].conv2
    size = weights(convolution)
    attend(resnet, [(3, 3)], SIZE)
    attention = resnet.stages[3].blocks[3].conv2
    assert attention.size == (5, 5) and weights(attention) - attention.bias.numel() == size
    assert weights(resnet) == before + attention.bias.numel()


def test_only_the_blocks_asked_for_attend_and_their_maps_can_be_read():
    model = build(ZOO["alternet-end34"]).eval()
    attending = [name for name, module in model.named_modules() if isinstance(module, SelfAttention2d)]
    assert attending == ["stages.2.blocks.3.conv2", "stages.3.blocks.3.conv2"]
    with torch.inference_mode(), attention_maps(model) as maps:
        model(torch.randn(2, 3, *SIZE))
    assert [tuple(one.shape) for one in maps.values()] == [(2, HEADS, 81, 81), (2, HEADS, 25, 25)]
    assert "stages.3.blocks.3.conv2" in [tap.name for tap in taps_for(model, ["conv"])]


def test_other_weights_are_those_of_the_control_of_the_same_seed():
    for name in ("alternet-end4-seed1", "resnet-blurred-seed1"):
        changed, control = build(ZOO[name]).state_dict(), build(ZOO["resnet-brief-seed1"]).state_dict()
        shared = [key for key in control if key in changed and changed[key].shape == control[key].shape]
        assert len(shared) > 100 and all(torch.equal(changed[key], control[key]) for key in shared)


def test_what_cannot_attend_is_refused(resnet):
    with pytest.raises(ValueError, match="leaves out positions.*take a later one"):
        attend(resnet, [(3, 0)], SIZE)
    with pytest.raises(ValueError, match="no block 4 in a stage 3"):
        attend(resnet, [(3, 4)], SIZE)
    with pytest.raises(ValueError, match="no 3 × 3 convolution any more"):
        attend(resnet, [(3, 2), (3, 2)], SIZE)
    vit = VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=1)
    basic = ResNetV2(layers=(1, 1), channels=(8, 8), basic=True, norm_layer=lambda n, **_: nn.BatchNorm2d(n))
    for other in (vit, basic):
        with pytest.raises(TypeError, match="not timm's ResNetV2 of pre-activation bottlenecks"):
            attend(other, [(0, 0)], SIZE)
        with pytest.raises(TypeError, match="not timm's ResNetV2"):
            blur_before_subsampling(other)
    with pytest.raises(ValueError, match=r"made for maps of \(5, 5\)"):
        SelfAttention2d(8, (5, 5))(torch.zeros(1, 8, 4, 5))
    with pytest.raises(ValueError, match="multiple of four; got 6"):
        SelfAttention2d(6, (5, 5))


def test_a_blur_is_the_mean_of_four_and_keeps_what_is_constant():
    x = torch.randn(2, 3, 5, 6)
    blurred = BoxBlur()(x)
    assert blurred.shape == x.shape
    torch.testing.assert_close(blurred[..., 3, 4], x[..., 2:4, 3:5].mean((-1, -2)))
    torch.testing.assert_close(BoxBlur()(torch.full((1, 1, 4, 4), 7.0)), torch.full((1, 1, 4, 4), 7.0))


def test_a_blur_takes_the_highest_frequency_out_before_it_can_alias():
    """A checkerboard has frequency π both ways: sampled at every second place it looks like a constant."""
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    board = (-1.0) ** (rows + columns)[None, None]
    assert board[..., ::2, ::2].unique().tolist() == [1.0]
    assert BoxBlur()(board)[..., 1:, 1:].abs().max() == 0


def test_there_is_a_blur_before_each_convolution_that_subsamples(resnet):
    blur_before_subsampling(resnet)
    blurs = [name for name, module in resnet.named_modules() if isinstance(module, BoxBlur)]
    assert blurs == [
        f"stages.{stage}.blocks.0.{part}.0" for stage in (1, 2, 3) for part in ("downsample.conv", "conv2")
    ]
    with pytest.raises(ValueError, match="subsamples without a blur"):
        blur_before_subsampling(resnet)
