"""Variance of feature maps over positions: closed forms, scale and shift, and one channel that decides a mean."""

import numpy as np
import pytest
import timm
import torch

from helpers.measures.feature_variance import FeatureVariance, feature_variance, moments, stage_rises
from helpers.measures.stream_maps import Place
from helpers.networks.taps import Tap

CONFIG = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "input_size": (3, 64, 64), "fixed_input_size": False}


def row(maps: torch.Tensor):
    found = {name: value[None] for name, value in moments(maps).items()}
    place = Place(Tap("place", "place"), 0, "block", False)
    count = torch.tensor([len(maps)], dtype=torch.double)
    return FeatureVariance([place], [found["variance"]], [found["square"]], count).table().iloc[0]


def test_closed_forms():
    turn = 2 * np.pi * torch.arange(8, dtype=torch.double) / 8
    wave = 3 * torch.cos(turn)[None, None, :, None].expand(2, 1, 8, 8)
    assert row(wave)["variance"] == pytest.approx(4.5) and row(wave + 1)["relative"] == pytest.approx(4.5 / 5.5)
    assert row(torch.full((2, 3, 4, 4), 7.0))[["variance", "relative", "largest"]].tolist() == [0, 0, 0]
    assert row(torch.zeros(2, 3, 4, 4))["relative"] == 0


def test_it_is_numpys_variance_of_each_channel():
    maps = torch.randn(4, 6, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    each = maps.flatten(2).numpy().var(2).mean(0)
    found = row(maps)
    assert found["variance"] == pytest.approx(each.mean()) and found["median"] == pytest.approx(np.median(each))
    assert found["largest"] == pytest.approx(each.max() / each.sum())
    order = torch.randperm(35)
    shuffled = maps.flatten(2)[..., order].view_as(maps)
    np.testing.assert_allclose(row(shuffled)["variance"], found["variance"])
    np.testing.assert_allclose(row(2 * maps + 5)["variance"], 4 * found["variance"])


def test_a_massive_channel_is_the_mean_and_not_the_median():
    maps = torch.randn(4, 9, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    before = row(maps)
    maps[:, 3] *= 100
    after = row(maps)
    assert after["variance"] > 500 * before["variance"] and after["largest"] > 0.99
    assert after["median"] == pytest.approx(before["median"], rel=0.1)


def test_stages_of_a_real_resnet():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3, layers=(2, 2, 1, 3), zero_init_last=False).eval()
    model.pretrained_cfg = CONFIG
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    table = feature_variance(model, [images[:2], images[2:]], groups=2).table()
    whole = table[table["left_out"] == -1].set_index("place")["variance"]
    rises = stage_rises(table[table["left_out"] == -1])
    ends = [("layer1.0", "layer1.1"), ("layer2.0", "layer2.1"), ("layer3.0", "layer3.0"), ("layer4.0", "layer4.2")]
    np.testing.assert_allclose(rises, [whole[end] - whole[start] for start, end in ends])
    assert rises[2] == 0 and set(table["left_out"]) == {-1, 0, 1}


def test_a_rise_within_stages_is_refused_of_a_network_without_any():
    model = timm.create_model("test_vit", img_size=64, depth=2, num_classes=3).eval()
    model.pretrained_cfg = CONFIG
    table = feature_variance(model, [torch.rand(2, 3, 64, 64)], groups=1).table()
    with pytest.raises(ValueError, match="no block opens a stage"):
        stage_rises(table)
