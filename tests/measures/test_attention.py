"""Attention maps of every kind of transformer; distances, subsets of heads and rollouts whose values are known."""

import math
from functools import partial

import pandas as pd
import pytest
import timm
import torch
from timm.layers import DiffAttention
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from helpers.measures.attention import (
    Grid,
    attended_patches,
    attention_distance,
    attention_maps,
    attentions,
    block_numbers,
    corners,
    distances,
    grid_of,
    growth,
    largest,
    nearest_distance,
    patches_attended,
    smallest,
    uniform_distance,
)
from helpers.measures.head_subsets import head_outputs
from helpers.networks.inputs import normalise
from helpers.networks.taps import capture, taps_named
from helpers.uncertainty import jackknife

TINY = {"depth": 2, "num_classes": 0}
MODELS = {  # name → options, prefix tokens, grids of all attentions, windowed
    "vit_tiny_patch16_224": ({"img_size": 64, **TINY}, 1, [(4, 4)] * 2, False),
    "deit_tiny_distilled_patch16_224": ({"img_size": (48, 80), **TINY}, 2, [(3, 5)] * 2, False),
    "vit_small_patch14_reg4_dinov2": ({"img_size": 56, **TINY}, 5, [(4, 4)] * 2, False),
    "vit_relpos_small_patch16_224": ({"img_size": 64, **TINY}, 0, [(4, 4)] * 2, False),
    "beit_base_patch16_224": ({"img_size": 64, "embed_dim": 48, "num_heads": 3, **TINY}, 1, [(4, 4)] * 2, False),
    "eva02_tiny_patch14_224": ({"img_size": 56, **TINY}, 1, [(4, 4)] * 2, False),
    "pit_ti_224": ({"img_size": 64, "depth": (1, 1, 1)}, 1, [(7, 7), (4, 4), (2, 2)], False),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 112, "embed_dim": 24, "depths": (2, 1), "num_heads": (1, 2)}, 0, [(7, 7)] * 3, True,
    ),
}  # fmt: skip


def made(name: str, options: dict | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, **(MODELS[name][0] if options is None else options)).eval()
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or (64, 64)
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "input_size": (3, *size)}
    return model


def pictures(model: nn.Module, count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(seed))


def batched(model: nn.Module, groups: int = 4, size: int = 3) -> list[torch.Tensor]:
    return [pictures(model, size, seed) for seed in range(groups)]


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_maps_of_every_attention_are_distributions_and_nothing_is_changed(name):
    model, (_, prefix, grids, windowed) = made(name), MODELS[name]
    images = pictures(model)
    before = model(images)
    fused = {key: module.fused_attn for key, module in model.named_modules() if hasattr(module, "fused_attn")}
    with attention_maps(model) as maps:
        unfused = model(images)
    assert list(maps) == attentions(model) and len(maps) == len(grids)
    for (key, attention), shape in zip(maps.items(), grids, strict=True):
        assert torch.allclose(attention.sum(-1), torch.ones(()), atol=1e-5)
        grid = grid_of(model, key, attention.shape[-1], tuple(images.shape[-2:]))
        assert (grid.shape, grid.prefix, grid.windowed) == (shape, prefix, windowed)
    assert torch.allclose(before, unfused, atol=1e-4) and torch.equal(before, model(images))
    assert fused == {key: module.fused_attn for key, module in model.named_modules() if hasattr(module, "fused_attn")}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@torch.inference_mode()
def test_attention_times_values_is_what_the_fused_operation_gives():
    model = made("vit_tiny_patch16_224")
    module, images = model.blocks[1].attn, pictures(model)
    with capture(model, [head_outputs(model, "blocks.1.attn"), *taps_named(model, ["blocks.1.attn.qkv"])]) as out:
        assert module.fused_attn
        model(images)
    with attention_maps(model) as maps:
        model(images)
    values = out["blocks.1.attn.qkv"].unflatten(-1, (3, module.num_heads, -1))[:, :, 2].transpose(1, 2)
    wanted = (maps["blocks.1.attn"] @ values).transpose(1, 2).flatten(2)
    assert torch.allclose(out["blocks.1.attn.heads"], wanted, atol=1e-5)


def test_fused_attention_and_hooks_are_put_back_after_an_error():
    model = made("vit_tiny_patch16_224")
    with pytest.raises(KeyError), attention_maps(model):
        raise KeyError
    assert all(block.attn.fused_attn and not block.attn.attn_drop._forward_pre_hooks for block in model.blocks)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {}, "no attention"),
        ("resnetv2_50", {"layers": (1, 1, 1, 1)}, "no attention"),
        ("convnext_atto", {}, "no attention"),
        ("mixer_s32_224", {}, "no attention"),
        ("xcit_nano_12_p16_224", {"depth": 1}, "channels"),
        ("cait_xxs24_224", {"depth": 1}, "sum to one"),
    ],
)
def test_models_without_maps_over_positions_say_so(name, options, message):
    model = timm.create_model(name, **options).eval()
    with pytest.raises(ValueError, match=message), torch.inference_mode(), attention_maps(model):
        model(torch.zeros(1, 3, 224, 224))


@pytest.mark.fault("Measures", "differential attention", "refused: its weights are not the maps that can be read")
def test_weights_that_are_differences_of_maps_are_refused():
    model = VisionTransformer(img_size=32, depth=1, embed_dim=32, num_heads=2, attn_layer=DiffAttention)
    with pytest.raises(ValueError, match="blocks.0.attn weighs by the difference of two maps"):
        attentions(model)


@pytest.mark.fault(
    "Measures", "a ViT with two attentions side by side in each block", "heads have the number of their block"
)
def test_attentions_side_by_side_are_in_one_block():
    model = made("vit_small_patch16_18x2_224", {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3})
    images = torch.rand(2, 3, 32, 32)
    table = attention_distance(model, images.split(1), groups=2)
    assert table[table["left_out"] < 0].groupby("block")["name"].nunique().to_dict() == {0: 2, 1: 2}
    assert block_numbers(["layers.0.blocks.0.attn", "layers.0.blocks.1.attn", "layers.1.blocks.0.attn"]) == [0, 1, 2]
    with pytest.raises(ValueError, match="4 attentions side by side in 2 blocks"):
        attended_patches(model, [images])


def test_an_attention_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="blocks.9.attn.*blocks.0.attn"):
        attentions(made("vit_tiny_patch16_224"), ["blocks.9.attn"])


@pytest.mark.parametrize(("shape", "step"), [((14, 14), (16, 16)), ((7, 7), (32, 32)), ((2, 5), (8, 4))])
def test_uniform_attention_has_the_mean_distance_of_two_places(shape, step):
    places = [(step[0] * row, step[1] * column) for row in range(shape[0]) for column in range(shape[1])]
    wanted = sum(math.dist(a, b) for a in places for b in places) / len(places) ** 2
    assert math.isclose(uniform_distance(shape, step), wanted, rel_tol=1e-5)
    grid = Grid(shape, step, 0)
    flat = torch.full((2, 3, len(places), len(places)), 1 / len(places))
    assert torch.allclose(distances(flat, grid), torch.tensor([wanted, wanted, 0.0]).double(), rtol=1e-4, atol=1e-5)


def test_the_values_that_the_book_quotes():
    assert round(uniform_distance((14, 14), 16), 1) == 116.5 and round(uniform_distance((7, 7), 32), 1) == 115.5


def test_looking_at_oneself_has_no_distance_and_one_step_to_the_right_one_patch():
    grid, one = Grid((1, 4), (8, 8), 0), torch.eye(4)
    step = torch.roll(one, 1, 1)  # patch 3 looks at patch 0
    found = distances(torch.stack([one, step])[None], grid)
    assert found[0, 0] == 0 and found[1, 0] == (8 + 8 + 8 + 24) / 4


@pytest.mark.parametrize("prefix", [1, 2, 5])
def test_mass_on_prefix_tokens_lowers_the_distance_only_without_renormalisation(prefix):
    patches, grid = 16, Grid((4, 4), (16, 16), prefix)
    attention = torch.full((1, 1, prefix + patches, prefix + patches), 0.5 / patches)
    attention[..., :prefix] = 0.5 / prefix
    distance, plain, mass = distances(attention, grid)[0].tolist()
    assert math.isclose(distance, grid.uniform(), rel_tol=1e-5)
    assert math.isclose(plain, grid.uniform() / 2, rel_tol=1e-5) and math.isclose(mass, 0.5, rel_tol=1e-5)


def test_a_query_that_looks_at_prefix_tokens_alone_has_no_distance():
    attention = torch.zeros(1, 1, 3, 3)
    attention[0, 0, :2, 0] = 1  # the class token and patch 0 look at the class token
    attention[0, 0, 2, 1] = 1  # patch 1 at patch 0
    assert distances(attention, Grid((1, 2), (8, 8), 1))[0].tolist() == [8, 4, 0.5]


@pytest.mark.parametrize("name", MODELS)
def test_the_distances_of_an_untrained_network_are_near_uniform(name):
    model = made(name)
    table = attention_distance(model, batched(model, 2), groups=2)
    assert len(table) == 3 * sum(module.num_heads for key, module in model.named_modules() if key in attentions(model))
    assert (table["distance"] / table["uniform"]).between(0.7, 1.3).all()
    assert (table["plain"] <= table["distance"] + 1e-4).all() and table["prefix"].between(-1e-5, 1).all()


def test_what_is_left_out_is_left_out_and_chunks_do_not_matter():
    model = made("vit_tiny_patch16_224")
    images = batched(model)
    table = attention_distance(model, images, groups=4, chunk=2)
    rest = attention_distance(model, [images[0], images[2], images[3]], groups=3)
    left, rest = table[table["left_out"] == 1], rest[rest["left_out"] == -1]
    assert torch.allclose(*(torch.tensor(part[["distance", "plain", "prefix"]].to_numpy()) for part in (left, rest)))
    value, stderr = jackknife(lambda rows: smallest(rows, [0, 1]), table)
    assert 0 < value <= largest(table[table["left_out"] == -1], [0, 1]) and stderr > 0
    assert abs(growth(table[table["left_out"] == -1])) == pytest.approx(1)  # two blocks
    with pytest.raises(ValueError, match="groups"):
        attention_distance(model, images, groups=5)


def test_training_mode_is_put_back_and_not_used():
    model = made("vit_tiny_patch16_224", {**MODELS["vit_tiny_patch16_224"][0], "attn_drop_rate": 0.5})
    images = batched(model, 2)
    wanted = attention_distance(model, images, groups=2)
    model.train()
    assert attention_distance(model, images, groups=2).equals(wanted) and model.blocks[0].training


def test_the_function_is_called_inside_the_hook_for_the_attentions_that_are_named():
    model = made("vit_tiny_patch16_224")
    with torch.inference_mode(), attention_maps(model, lambda A: tuple(A.shape), ["blocks.1.attn"]) as maps:
        model(pictures(model))
    assert maps == {"blocks.1.attn": (4, 3, 17, 17)}


def test_attentions_without_a_place_for_hooks_and_tokens_without_a_known_place_are_refused():
    with pytest.raises(ValueError, match="no attn_drop"):
        attentions(timm.create_model("mvitv2_tiny"))
    model = timm.create_model("visformer_tiny", img_size=64).eval()
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "input_size": (3, 64, 64)}
    with pytest.raises(ValueError, match="not known where"):
        attention_distance(model, batched(model, 2), groups=2)
    with pytest.raises(ValueError, match="two jackknife groups"):
        attention_distance(model, batched(model, 2), groups=1)


def test_the_grid_follows_the_image_where_the_model_does():
    model = made("vit_tiny_patch16_224", {"img_size": 64, **TINY, "dynamic_img_size": True})
    model.pretrained_cfg["input_size"] = (3, 32, 96)
    table = attention_distance(model, batched(model, 2), groups=2)
    assert math.isclose(table["uniform"].iloc[0], uniform_distance((2, 6), 16))


@pytest.mark.parametrize("name", ["vit_small_patch14_reg4_dinov2", "deit_tiny_distilled_patch16_224"])
@torch.inference_mode()
def test_the_patches_that_are_looked_at(name):
    model = made(name)
    images = batched(model, 2)
    table = attended_patches(model, images, chunk=2)
    with attention_maps(model) as maps, capture(model, taps_named(model, ["blocks.0"])) as out:
        model(normalise(model, torch.cat(images)))
    prefix, grid = MODELS[name][1], MODELS[name][2][0]
    for block, A in enumerate(maps.values()):
        A = A[..., prefix:, prefix:]
        wanted = (A / A.sum(-1, keepdim=True)).mean((0, 1, 2)).view(grid)
        found = table[table["block"] == block].pivot(index="row", columns="column", values="share")
        assert torch.allclose(torch.tensor(found.to_numpy()).float(), wanted, atol=1e-6)
    norm = torch.tensor(table[table["block"] == 1]["norm"].to_numpy()).float()
    assert torch.allclose(norm, out["blocks.0"][:, prefix:].norm(dim=-1).mean(0), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "message"), [("swin_tiny_patch4_window7_224", "windows"), ("pit_ti_224", "4 to 49 patches.*one grid")]
)
def test_patches_that_are_looked_at_need_one_grid(name, message):
    model = made(name)
    with pytest.raises(ValueError, match=message):
        attended_patches(model, batched(model, 2))


def test_the_nearest_nine_patches_are_as_far_as_counting_says():
    inside = (4 + 4 * math.sqrt(2)) / 9  # of a patch that has all eight neighbours, in patches
    edge, corner = (3 + 2 * math.sqrt(2)) / 6, (2 + math.sqrt(2)) / 4
    assert nearest_distance((4, 4), 16) == pytest.approx(16 * (4 * inside + 8 * edge + 4 * corner) / 16)
    assert nearest_distance((1, 3), (10, 5)) == pytest.approx((2.5 + 10 / 3 + 2.5) / 3)
    assert nearest_distance((1, 1), 16) == 0
    assert nearest_distance((2, 2), 8) == pytest.approx(uniform_distance((2, 2), 8))
    assert nearest_distance((14, 14), 16) == pytest.approx(16.7, abs=0.01)


def test_patches_attended_counts_equal_weights_and_leaves_the_prefix_out():
    attention = torch.zeros(2, 3, 6, 6)  # one CLS token and five patches
    attention[..., 0] = 0.5
    attention[:, 0, :, 3] = 0.5  # one patch
    attention[:, 1, :, 1:5] = 0.125  # four of them
    attention[:, 2, :, 1:] = 0.1  # all
    torch.testing.assert_close(patches_attended(attention, 1), torch.tensor([1.0, 4, 5]))
    assert patches_attended(attention, 0)[2] < 6  # with the token that has half of the attention, it is no even one
    model = made("vit_tiny_patch16_224")
    with torch.inference_mode(), attention_maps(model, partial(patches_attended, prefix=1)) as found:
        model(normalise(model, pictures(model)))
    assert all(heads.shape == (3,) and (1 < heads).all() and (heads <= 16.001).all() for heads in found.values())


def test_corners_are_four_patches_of_a_grid_of_any_shape():
    places = [(block, row, column) for block in (0, 1) for row in range(3) for column in range(4)]
    table = pd.DataFrame(places, columns=["block", "row", "column"])
    table["share"], table["norm"] = 1 / 12, 2.0
    at_corner = table["row"].isin([0, 2]) & table["column"].isin([0, 3])
    table.loc[(table["block"] == 1) & at_corner, ["share", "norm"]] = 0.2, 7.0
    found = corners(table.sample(frac=1, random_state=0))
    assert found["block"].tolist() == [0, 1] and found["share"].tolist() == pytest.approx([1 / 3, 0.8])
    assert found["norm in corners"].tolist() == [2, 7] and found["norm elsewhere"].tolist() == [2, 2]
