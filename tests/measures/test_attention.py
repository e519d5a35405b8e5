"""Where heads look: distances, spreads and corners whose values are known, and those of networks."""

import math
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch
from test_attention_maps import MODELS, batched, made, pictures

from helpers.measures.attention import (
    Grid,
    attended_patches,
    attention_distance,
    attention_maps,
    attentions,
    corners,
    distances,
    growth,
    largest,
    nearest_distance,
    patches_attended,
    smallest,
    uniform_distance,
)
from helpers.networks.inputs import normalise
from helpers.networks.taps import capture, taps_named
from helpers.uncertainty import jackknife


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


def test_corners_that_do_not_count_are_neither_queries_nor_keys():
    shape, prefix = (4, 5), 1
    draw = torch.Generator().manual_seed(0)
    attention = torch.rand(2, 3, 21, 21, generator=draw).softmax(-1)
    grid = Grid(shape, (16, 8), prefix, corners=False)
    kept = [i for i in range(20) if i not in (0, 4, 15, 19)]
    assert grid.kept() == kept
    places = [(16 * (i // 5), 8 * (i % 5)) for i in kept]
    far = torch.tensor([[math.dist(a, b) for b in places] for a in places])
    tokens = [1 + i for i in kept]
    rows = attention[..., tokens, :][..., tokens]
    wanted = ((rows * far).sum(-1) / rows.sum(-1)).mean((0, 2))
    found = distances(attention, grid)
    assert torch.allclose(found[:, 0].float(), wanted, rtol=1e-5)
    assert torch.allclose(found[:, 1].float(), (rows * far).sum(-1).mean((0, 2)), rtol=1e-5)
    assert torch.allclose(found[:, 2].float(), attention[..., tokens, 0].mean((0, 2)), rtol=1e-5)
    assert grid.uniform() == pytest.approx(float(far.mean()))


def test_a_sink_in_the_corners_makes_a_head_global_until_it_is_left_out():
    grid = Grid((6, 6), (8, 8), 0)
    sinks = torch.zeros(36)
    sinks[[0, 5, 30, 35]] = 0.25
    attention = 0.9 * sinks + 0.1 * torch.eye(36)  # all look at the corners, and a little at themselves
    assert float(distances(attention[None, None], grid)[0, 0]) > grid.uniform()
    assert float(distances(attention[None, None], replace(grid, corners=False))[0, 0]) == 0


def test_corners_cannot_be_left_out_where_there_are_none():
    with pytest.raises(ValueError, match="2 × 5 patches is too small"):
        Grid((2, 5), (8, 8), 0, corners=False).kept()
    model = made("swin_tiny_patch4_window7_224")
    with pytest.raises(ValueError, match="windows lie all over the image"):
        attention_distance(model, batched(model, 2), groups=2, corners=False)


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
