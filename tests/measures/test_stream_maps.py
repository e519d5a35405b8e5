"""The stream as maps: which places are read, what a sublayer changes, and how sure a mean of it is."""

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from scipy import stats
from torch import nn

from helpers.measures.stream_maps import (
    about,
    kept_mean,
    mean_interval,
    of_kind,
    rank_interval,
    steps,
    stream_places,
    stream_sums,
)

CONFIG = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "input_size": (3, 64, 64), "fixed_input_size": False}


def make(name: str, **arguments) -> nn.Module:
    torch.manual_seed(0)
    if name == "mixer":
        model = timm.models.MlpMixer(num_classes=3, img_size=64, patch_size=16, embed_dim=16, num_blocks=2)
    elif name == "pit":
        stages = {"base_dims": [8, 8, 8], "depth": [1, 1, 1], "heads": [1, 2, 4], "mlp_ratio": 2}
        model = timm.models.pit.PoolingVisionTransformer(64, 16, 8, "overlap", num_classes=3, **stages)
    else:
        model = timm.create_model(name, num_classes=3, **arguments)
    model.eval()
    model.pretrained_cfg = CONFIG
    return model


def pictures(count: int = 4, size: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def sizes(maps: torch.Tensor) -> dict[str, torch.Tensor]:
    """Shape of the maps beside their sum, both once an image."""
    return {
        "shape": len(maps) * torch.tensor(maps.shape[1:], dtype=torch.double),
        "sum": maps.double().sum((1, 2, 3)).sum(),
    }


ARCHITECTURES = {  # arguments, size → what writes into the stream in a block, blocks that open a stage, grids
    "test_vit": ({"img_size": 64, "depth": 2}, ["attention", "MLP"], [], [4]),
    "mixer": ({}, ["token mixing", "channel mixing"], [], [4]),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 64, "window_size": 2, "embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)},
        ["attention", "MLP"],
        [1, 2, 3],
        [16, 8, 4, 2],
    ),
    "pit": ({}, ["attention", "MLP"], [1, 2], [7, 4, 2]),
    "test_resnet": ({"zero_init_last": False}, ["block"], [0, 1, 2, 3], [16, 8, 4, 2]),
    "test_convnext": ({}, ["block"], [0, 1, 3, 7], [16, 8, 4, 2]),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_places_of_real_architectures(name):
    arguments, kinds, opening, grids = ARCHITECTURES[name]
    model, images = make(name, **arguments), pictures(2)
    places, sums, count = stream_sums(model, [images[:1], images[1:]], sizes, groups=2)
    assert places == stream_places(model) and count.tolist() == [1, 1]
    assert places[0].after == "start" and [place.after for place in places[1:]] == kinds * (places[-1].block + 1)
    assert sorted({place.block for place in places if place.opens}) == opening
    shapes = [tuple(kept_mean(of["shape"], count, None).astype(int)) for of in sums]
    assert list(dict.fromkeys(shape[1:] for shape in shapes)) == [(side, side) for side in grids]
    for before, after, place in zip(shapes, shapes[1:], places[1:], strict=False):
        assert place.opens or before == after, place.tap.name  # inside a stage the map stays what it was
    rows = about(places)
    assert list(rows["place"]) == [place.tap.name for place in places] and not model.training


def test_sums_are_those_of_the_patch_tokens_group_by_group():
    model, images = make("test_vit", img_size=64, depth=2), pictures(5)
    _, sums, count = stream_sums(model, [images[:2], (images[2:4], "labels"), images[4:]], sizes, groups=2)
    with torch.inference_mode():
        x = model._pos_embed(model.patch_embed((images - 0.5) / 0.25))
        after = x + model.blocks[0].attn(model.blocks[0].norm1(x))
        wanted = [part[:, model.num_prefix_tokens :].double().sum((1, 2)) for part in (x, after)]
    for of, value in zip(sums, wanted, strict=False):
        assert of["sum"].tolist() == pytest.approx([float(value[[0, 1, 4]].sum()), float(value[2:4].sum())], rel=1e-4)
        assert kept_mean(of["sum"], count, 0) == pytest.approx(float(value[2:4].mean()), rel=1e-4)
        assert kept_mean(of["sum"], count, None) == pytest.approx(float(value.mean()), rel=1e-4)


@pytest.mark.fault("Measures", "feature maps with too few positions", "refused, with the place and its size")
def test_what_cannot_be_read_is_refused():
    model = make("test_resnet", zero_init_last=False)
    with pytest.raises(ValueError, match=r"layer4.0: 2 × 2 positions, and 3 rows"):
        stream_sums(model, [pictures(1)], sizes, least=3)
    with pytest.raises(ValueError, match="no images"):
        stream_sums(model, [], sizes)
    with pytest.raises(ValueError, match="groups is a whole number"):
        stream_sums(model, [pictures(1)], sizes, groups=0)
    with pytest.raises(ValueError, match="nothing is known about where to read it"):
        stream_places(nn.Sequential(nn.Conv2d(3, 3, 1)))
    with torch.no_grad():
        model.layer2[0].conv1.weight[0] = torch.nan
    with pytest.raises(ValueError, match="layer2.0: its maps hold numbers that are not finite"):
        stream_sums(model, [pictures(1)], lambda maps: {"sum": maps.sum()})
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def toy() -> pd.DataFrame:
    """A ViT of three blocks, the second of which opens a stage; twice, of which one is without a group."""
    after = ["start", *["attention", "MLP"] * 3]
    rows = pd.DataFrame(
        {"block": [-1, 0, 0, 1, 1, 2, 2], "after": after, "opens": [False, False, False, True, *[False] * 3]}
    )
    return pd.concat(
        [
            rows.assign(left_out=-1, value=[1.0, 3, 2, 7, 8, 6, 9]),
            rows.assign(left_out=0, value=[0.0, 1, 2, 3, 4, 5, 6]),
        ],
        ignore_index=True,
    )


def test_steps_are_differences_within_a_table_of_one_left_out():
    found = steps(toy(), ["value"])
    whole = found[found["left_out"] == -1]
    assert whole["value"].tolist() == [2, -1, 5, 1, -2, 3] and len(found) == 12
    assert of_kind(whole, "value", "attention").tolist() == [2, -2]  # the one of block 1 opens a stage
    assert of_kind(whole, "value", "attention", first=2).tolist() == [-2]
    assert of_kind(whole, "value", "MLP").tolist() == [-1, 1, 3]
    assert steps(toy().query("left_out == 0").drop(columns="left_out"), ["value"])["value"].eq(1).all()
    with pytest.raises(ValueError, match="no step after 'block' from block 0 on; there are"):
        of_kind(whole, "value", "block")


def test_the_interval_of_a_mean_over_blocks_is_that_of_a_t_test():
    blocks = np.random.default_rng(0).normal(size=6)
    value, (low, high) = mean_interval(blocks)
    test = stats.ttest_1samp(blocks, 0).confidence_interval()
    assert (value, low, high) == pytest.approx((blocks.mean(), test.low, test.high))
    for wrong in ([1.0], [[1.0, 2.0], [3.0, 4.0]]):
        with pytest.raises(ValueError, match="needs two of them at least"):
            mean_interval(wrong)


def test_ranks_with_depth():
    value, (low, high) = rank_interval(np.arange(8.0))
    assert value == 1 and 0.9 < low < high == 1
    mixed = np.array([3.0, 1, 2, 0, 5, 4, 7, 6])
    value, (low, high) = rank_interval(mixed)
    assert value == pytest.approx(stats.spearmanr(range(8), mixed).statistic)
    assert np.arctanh(value) - np.arctanh(low) == pytest.approx(np.arctanh(high) - np.arctanh(value))
    assert rank_interval(mixed[::-1])[0] == pytest.approx(-value)
    with pytest.raises(ValueError, match="four places"):
        rank_interval([1.0, 2.0, 3.0])


def test_the_interval_of_a_rank_correlation_covers_what_it_should():
    rng, hits = np.random.default_rng(1), []
    truth = 6 / np.pi * np.arcsin(0.5 * np.sqrt(0.5))  # of two normal variables that correlate by the root of a half
    for _ in range(300):
        x = rng.normal(size=20)
        order = np.argsort(x)
        low, high = rank_interval((x + rng.normal(size=20))[order])[1]
        hits.append(low < truth < high)
    assert np.mean(hits) > 0.91
