"""The networks with stages: how many blocks on which grids, and what measures find of their places.

That every card of the catalogue is built as it says, ``test_zoo`` tests.
"""

import pytest
import torch
from torch import nn

from helpers.measures.attention_maps import attention_maps
from helpers.networks.architectures import SCENES_CONFIG, build
from helpers.networks.catalogue import STAGED, ZOO
from helpers.networks.geometry import Centres
from helpers.networks.positions import has_class_token, positions, prefix_tokens, token_grid
from helpers.networks.taps import capture, taps_for

GRIDS = {"pit": (15, 8, 4), "swin": (16, 8, 4), "convnext": (16, 8, 4, 2)}  # of stages, two blocks each
WIDTHS = {"pit": (32, 64, 128), "swin": (32, 64, 128), "convnext": (16, 32, 64, 128)}
HEADS = (2, 4, 8)  # of stages, 16 dimensions each
BLOCK = {"pit": "transformers.{}.blocks.{}", "swin": "layers.{}.blocks.{}", "convnext": "stages.{}.blocks.{}"}
TAPPED = {
    "transformer": ("norm1", "attn", "resid_mid", "norm2", "mlp_hidden", "mlp", "resid_post"),
    "convnext": ("conv_dw", "norm", "mlp_hidden", "branch", ""),
}


def images(count: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_each_comes_twice_from_two_seeds():
    assert [card.name for card in STAGED] == [name + end for name in GRIDS for end in ("", "-seed1")]


@torch.inference_mode()
@pytest.mark.parametrize("family", GRIDS)
def test_streams_have_the_widths_and_grids_of_their_stages(family):
    model = build(ZOO[family]).eval()
    streams = taps_for(model, ["resid_post", "block"])
    with capture(model, streams) as out:
        assert model(images(2)).shape == (2, 32)
    expected = [BLOCK[family].format(stage, block) for stage in range(len(GRIDS[family])) for block in (0, 1)]
    assert [tap.module for tap in streams] == expected
    for i, tap in enumerate(streams):
        at = positions(model, out[tap.name], size=(64, 64), tap=tap)
        assert at.grid == (GRIDS[family][i // 2],) * 2 and at.tokens.shape[-1] == WIDTHS[family][i // 2]
        assert at.prefix.shape[1] == prefix_tokens(model) == (family == "pit")
    assert has_class_token(model) == (family == "pit")
    first = None if family == "convnext" else (GRIDS[family][0],) * 2
    assert token_grid(model, (64, 64)) == first  # a ConvNeXt cuts no patches


@pytest.mark.parametrize("family", GRIDS)
def test_places_come_in_the_order_in_which_a_forward_pass_reaches_them(family):
    """From the stem or embedding on, with the same places in every block; and the order is that of the hooks."""
    model = build(ZOO[family]).eval()
    taps = taps_for(model)
    parts = TAPPED["convnext" if family == "convnext" else "transformer"]
    blocks = [BLOCK[family].format(stage, block) for stage in range(len(GRIDS[family])) for block in (0, 1)]
    inside = [f"{block}.{part}".rstrip(".") for block in blocks for part in parts]
    assert [tap.name for tap in taps] == [
        "stem" if family == "convnext" else "embed",
        *inside,
        *([] if family == "convnext" else ["norm"]),
    ]
    reached = []
    with torch.inference_mode(), capture(model, taps, lambda x, tap: reached.append(tap.name), with_tap=True):
        model(images())
    assert reached == [tap.name for tap in taps]


@pytest.mark.parametrize("family", ["pit", "swin"])
def test_heads_have_sixteen_dimensions_as_the_small_vits(family):
    model = build(ZOO[family])
    attention = [part for name, part in model.named_modules() if name.endswith(".attn")]
    assert [part.num_heads for part in attention] == [heads for heads in HEADS for _ in range(2)]
    assert {part.qkv.out_features // (3 * part.num_heads) for part in attention} == {16}
    assert build(ZOO["vit-small"]).blocks[0].attn.head_dim == 16


@torch.inference_mode()
def test_windows_are_shifted_until_one_is_the_whole_grid():
    model = build(ZOO["swin"]).eval()
    blocks = [block for stage in model.layers for block in stage.blocks]
    assert [tuple(block.window_size) for block in blocks] == [(4, 4)] * 6
    assert [tuple(block.shift_size) for block in blocks] == [(0, 0), (2, 2), (0, 0), (2, 2), (0, 0), (0, 0)]
    with attention_maps(model) as maps:
        model(images())
    assert [tuple(one.shape) for one in maps.values()] == [
        (windows, heads, 16, 16) for windows, heads in zip((16, 4, 1), HEADS, strict=True) for _ in range(2)
    ]


def test_a_convnext_has_large_kernels_no_layer_scale_and_no_batch_norm():
    model = build(ZOO["convnext"])
    blocks = [block for stage in model.stages for block in stage.blocks]
    assert {block.conv_dw.kernel_size for block in blocks} == {(7, 7)} and {block.gamma for block in blocks} == {None}
    assert all(block.conv_dw.groups == block.conv_dw.in_channels for block in blocks)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in model.modules())


@pytest.mark.parametrize("family", GRIDS)
def test_nothing_is_dropped_at_random(family):
    model = build(ZOO[family]).train()
    x = images(2)
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("family", GRIDS)
def test_a_seed_decides_the_weights(family):
    first, same, other = (build(ZOO[family], seed).state_dict() for seed in (None, 0, 1))
    again = build(ZOO[f"{family}-seed1"]).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert all(torch.equal(value, other[name]) for name, value in again.items())
    matrices = [name for name, value in first.items() if value.ndim > 1 and value.is_floating_point()]
    assert len(matrices) > 20
    drawn = [name for name in matrices if first[name].any() and "mask" not in name]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)
    assert build(ZOO[family]).pretrained_cfg == SCENES_CONFIG


@pytest.mark.parametrize("family", GRIDS)
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_centre_of_a_token_is_where_gradients_say(family, stage):
    """What a token is made of when blocks do nothing: the middle of the pixels on which it depends."""
    model = build(ZOO[family]).eval()
    stages = {"pit": "transformers", "swin": "layers", "convnext": "stages"}[family]
    for part in getattr(model, stages):
        part.blocks = nn.Sequential(*(nn.Identity() for _ in part.blocks))
    side, x = GRIDS[family][stage], images().requires_grad_()
    token = side // 2 - 1, side // 2
    with Centres(model) as centres:
        seen = []
        handle = getattr(model, stages)[stage].register_forward_hook(lambda *given: seen.append(given[2]))
        model(x)
        handle.remove()
    out = seen[0][0] if isinstance(seen[0], tuple) else seen[0]  # PiT's stages hand on tokens and the class token
    cells = out if family == "swin" else out.movedim(1, -1)
    pixels = torch.autograd.grad(cells[0, token[0], token[1]].abs().sum(), x)[0].abs().sum((0, 1))
    for axis in (0, 1):
        inside = pixels.sum(1 - axis).nonzero().flatten()
        middle = (int(inside[0]) + int(inside[-1]) + 1) / 2
        assert centres.centre(side, token[axis], 64, axis) == middle
