"""A network that timm does not know, handed to the measures by an adapter: where its tokens, maps and branches are."""

import pytest
import torch
from torch import nn

from helpers.measures.attention import attention_distance, uniform_distance
from helpers.measures.attention_maps import attention_maps
from helpers.measures.heatmap import cka_heatmap
from helpers.measures.localization import token_patches
from helpers.measures.receptive_field import effective_receptive_fields
from helpers.measures.skip_ratios import skip_ratios
from helpers.networks.adapter import Adapter
from helpers.networks.inputs import normalise
from helpers.networks.places import STREAM
from helpers.networks.positions import has_class_token, prefix_tokens, token_grid
from helpers.networks.taps import taps_for

WIDTH, PATCH, SIZE = 16, 8, 32
NORMAL = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


class Mine(nn.Module):
    """A ViT of torch's own layers."""

    def __init__(self, **layer):
        super().__init__()
        self.cut = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.first = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.places = nn.Parameter(torch.randn(1, 1 + (SIZE // PATCH) ** 2, WIDTH))
        layer = {"batch_first": True, "norm_first": True, "dropout": 0.0, **layer}
        one = nn.TransformerEncoderLayer(WIDTH, 2, 32, **layer)
        self.encoder = nn.TransformerEncoder(one, 3, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        x = self.cut(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.encoder(x)[:, 0])


@pytest.fixture
def mine():
    torch.manual_seed(0)
    network = Mine()
    return Adapter(network, network.encoder.layers, size=SIZE, patch=PATCH, prefix=1, **NORMAL).eval()


def images(count=32):
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_it_computes_what_the_network_does_and_says_where_its_tokens_are(mine):
    x = normalise(mine, images(2))
    assert torch.equal(mine(x), mine.network(x)) and mine(x).shape == (2, 5)
    assert (prefix_tokens(mine), has_class_token(mine), token_grid(mine)) == (1, True, (4, 4))
    kinds = [tap.kind for tap in taps_for(mine, STREAM)]
    assert kinds == ["embed", *["resid_mid", "resid_post"] * 3]


def test_the_stream_is_the_sum_of_its_branches(mine):
    from helpers.networks.taps import capture

    with torch.inference_mode(), capture(mine, taps_for(mine)) as read:
        mine(normalise(mine, images(2)))
    before = read["embed"]
    for block in range(3):
        middle, after = (read[f"blocks.{block}.{name}"] for name in ("resid_mid", "resid_post"))
        assert torch.allclose(before + read[f"blocks.{block}.attn"], middle, atol=1e-5)
        assert torch.allclose(middle + read[f"blocks.{block}.mlp"], after, atol=1e-5)
        before = after


def test_the_maps_of_torchs_own_attention_are_those_of_the_formula(mine):
    x = normalise(mine, images(2))
    with torch.inference_mode():
        plain = mine(x)
        with attention_maps(mine) as maps:
            assert torch.allclose(mine(x), plain, atol=1e-5)
    layer = mine.blocks[0]
    with torch.inference_mode():
        tokens = mine.network.cut(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([mine.network.first.expand(2, -1, -1), tokens], 1) + mine.network.places
        q, k, _ = nn.functional.linear(
            layer.norm1(tokens), layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias
        ).split(WIDTH, -1)
        q, k = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in (q, k))
        expected = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
    assert list(maps) == [f"blocks.{i}.self_attn" for i in range(3)]
    assert torch.allclose(maps["blocks.0.self_attn"], expected, atol=1e-5)
    assert not any(hasattr(block.self_attn, "attn_drop") for block in mine.blocks)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in mine.modules())


def test_every_measure_finds_its_way(mine):
    parts = images().split(2)
    heads = attention_distance(mine, parts)
    assert heads.groupby("left_out").size().unique().tolist() == [3 * 2]
    assert heads["uniform"].iloc[0] == pytest.approx(uniform_distance((4, 4), PATCH))
    assert 0 < heads["distance"].min() and heads["distance"].max() < 1.5 * heads["uniform"].iloc[0]
    assert cka_heatmap({"mine": mine}, images().split(8), STREAM).matrix.shape == (7, 7)
    assert set(skip_ratios(mine, parts).table()["branch"]) == {"attention", "MLP"}
    assert {at.grid for at in token_patches(mine, images(), batch=8).values()} == {(4, 4)}
    fields = effective_receptive_fields(mine, images(16), channels=1)
    assert fields.places["row"].unique().tolist() == [20.0]  # row 2 of 4, patches of 8 px


def test_images_need_not_be_square(mine):
    wide = Adapter(mine.network, mine.network.encoder.layers, size=(16, 64), patch=PATCH, prefix=1, **NORMAL).eval()
    assert token_grid(wide) == (2, 8)
    pictures = images(4).reshape(4, 3, 16, 64)
    heads = attention_distance(wide, pictures.split(1), groups=2)
    assert heads["uniform"].iloc[0] == pytest.approx(uniform_distance((2, 8), PATCH))
    with pytest.raises(ValueError, match=r"\(3, 16, 64\) and was given \(3, 32, 32\)"):
        normalise(wide, images(1))


def test_a_network_of_maps_needs_no_grid():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(2)]
    network = nn.Sequential(nn.Conv2d(3, 4, 4, 4), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    adapted = Adapter(network, blocks, size=SIZE, **NORMAL)
    assert [tap.kind for tap in taps_for(adapted)] == ["block"] * 2
    assert prefix_tokens(adapted) == 0 and token_grid(adapted) is None
    assert {at.grid for at in token_patches(adapted, images(), batch=8).values()} == {(8, 8)}
    with pytest.raises(ValueError, match="Adapter has no attention"), attention_maps(adapted):
        pass
    with pytest.raises(ValueError, match="no residual branches that are known"):
        skip_ratios(adapted, images().split(2))


def test_what_does_not_fit_is_refused():
    network = Mine()
    for blocks in ([], [nn.Linear(2, 2)]):
        with pytest.raises(ValueError, match="blocks are modules of Mine, one or more"):
            Adapter(network, blocks, size=SIZE, **NORMAL)
    with pytest.raises(ValueError, match="patches of 7 px do not divide images of 32 × 32 px"):
        Adapter(network, network.encoder.layers, size=SIZE, patch=7, **NORMAL)
