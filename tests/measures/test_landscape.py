"""Directions, rays and planes around a network's weights, and the way of a training."""

import numpy as np
import pandas as pd
import pytest
import torch
from test_objective import vit
from timm.layers import StdConv2d
from torch import nn

from helpers.measures import landscape, objective
from helpers.measures.hessian import hessian_vector_product
from helpers.networks.unfused import unfused


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return [(images[:4], torch.tensor([0, 1, 2, 1])), (images[4:], torch.tensor([0, 0]))]


@pytest.mark.parametrize("per, axis", [("output", 0), ("input", 1)])
def test_each_filter_has_the_norm_of_the_networks_own(per, axis):
    at = {"conv": torch.randn(4, 3, 2, 2), "line": torch.randn(5, 6), "bias": torch.ones(5)}
    at |= {"pos_embed": torch.ones(1, 4, 3)}
    found = landscape.random_direction(at, 1, per)
    for name in ("conv", "line"):
        if per == "output":
            own, drawn = (x[name].flatten(1).norm(dim=1) for x in (at, found))
        else:
            own, drawn = (x[name].square().sum(0).sqrt() for x in (at, found))
        torch.testing.assert_close(own, drawn)
    assert not found["bias"].any() and not found["pos_embed"].any()
    assert not torch.equal(found["line"], landscape.random_direction(at, 2, per)["line"])
    assert torch.equal(found["line"], landscape.random_direction(at, 1, per)["line"])


def test_a_filter_of_zeros_stays_where_it_is():
    found = landscape.random_direction({"w": torch.zeros(2, 3)}, 0)
    assert not found["w"].any()


def test_another_kind_of_filter_is_refused():
    with pytest.raises(ValueError, match="per output or input; got 'layer'"):
        landscape.random_direction({}, 0, "layer")


def test_rays_start_at_the_network_and_penalties_are_those_of_the_weights_there(batches):
    model = vit()
    found = landscape.rays(model, batches, [-0.5, 0.5], [7, 8], 0.1)
    assert list(found["radius"]) == [-0.5, 0, 0.5] * 2 and list(found["ray"]) == [7] * 3 + [8] * 3
    at = objective.weights(model)
    losses = [float(objective.loss(model, at, *batch)) * len(batch[0]) for batch in batches]
    np.testing.assert_allclose(found.loc[found["radius"] == 0, "loss"], sum(losses) / 6, rtol=1e-5)
    direction = landscape.random_direction(at, 8)
    there = {name: value + 0.5 * direction[name] for name, value in at.items()}
    last = found.iloc[-1]
    assert last["penalty"] == pytest.approx(0.05 * sum(float(w.square().sum()) for w in there.values()), rel=1e-5)
    assert last["published_penalty"] == pytest.approx(0.1 * sum(float(w.norm()) for w in there.values()), rel=1e-5)
    losses = [float(objective.loss(model, there, *batch)) * len(batch[0]) for batch in batches]
    assert last["loss"] == pytest.approx(sum(losses) / 6, rel=1e-5)


def test_near_the_network_the_rise_is_half_the_curvature_times_the_square(batches):
    model, near = vit(), 0.03
    rise = landscape.rises(landscape.rays(model, batches[:1], [-near, near], [5], 0.1)).iloc[0]
    direction = landscape.random_direction(objective.weights(model), 5)
    parameters = dict(model.named_parameters())
    flat = torch.cat([direction[name].flatten() for name in parameters])
    with unfused(model):
        value = objective.loss(model, parameters, *batches[0])
        curvature = float(flat @ hessian_vector_product(value, list(parameters.values()))(flat))
    assert rise["distance"] == near and rise["loss"] == pytest.approx(curvature * near**2 / 2, rel=0.05)
    assert rise["penalty"] == pytest.approx(0.05 * near**2 * float(flat @ flat), rel=0.02)


def test_mean_rises_leave_one_ray_out_at_a_time():
    rows = [(ray, radius, 1 + ray * radius**2) for ray in (2, 4, 9) for radius in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    table = pd.DataFrame(rows, columns=["ray", "radius", "loss"]).assign(penalty=0.0, published_penalty=1.0)
    found = landscape.mean_rises(table).set_index(["left_out", "distance"])["loss"]
    assert found.loc[-1].to_dict() == pytest.approx({0.5: 1.25, 1.0: 5})
    assert found.xs(1.0, level="distance").to_dict() == pytest.approx({-1: 5, 2: 6.5, 4: 5.5, 9: 3})


def test_a_plane_holds_the_rays_of_its_two_directions(batches):
    model, axis = vit(), [-0.4, 0, 0.4]
    found = landscape.plane(model, batches, axis, (5, 6), 0.1, per="input").set_index(["x", "y"])
    across, up = (landscape.rays(model, batches, [-0.4, 0.4], [seed], 0.1, per="input") for seed in (5, 6))
    np.testing.assert_allclose(found["loss"].xs(0.0, level="y"), across["loss"], rtol=1e-5)
    np.testing.assert_allclose(found["loss"].xs(0.0, level="x"), up["loss"], rtol=1e-5)
    assert len(found) == 9 and list(found.index[:4]) == [(-0.4, -0.4), (0.0, -0.4), (0.4, -0.4), (-0.4, 0.0)]


def test_the_length_of_a_weight_standardised_kernel_costs_penalty_and_changes_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(StdConv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "input_size": (3, 8, 8)}
    batch = (torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8), torch.tensor([0, 1, 2, 1]))
    at = objective.weights(model)
    longer = landscape.moved(at, ({**{n: torch.zeros_like(w) for n, w in at.items()}, "0.weight": at["0.weight"]}, 1.0))
    here, there = (landscape.values(model, w, [batch], 0.1) for w in (at, longer))
    assert there["loss"] == pytest.approx(here["loss"], rel=1e-4) and there["penalty"] > 1.5 * here["penalty"]


def test_a_loss_beyond_numbers_is_nan_and_no_batch_is_refused(batches):
    model = vit()
    at = {name: value * torch.inf for name, value in objective.weights(model).items()}
    assert np.isnan(landscape.values(model, at, batches, 0.1)["loss"])
    with pytest.raises(ValueError, match="no batch"):
        landscape.rays(model, [], [0.1], [0], 0.1)


def test_ways_in_polar_coordinates():
    straight = [{"a": torch.tensor([4.0 * s]), "b": torch.tensor([[3.0 * s]])} for s in (1, 0.5, 0.25, 0)]
    found = landscape.polar(straight)
    np.testing.assert_allclose(found["distance"], [1, 0.5, 0.25, 0])
    np.testing.assert_allclose(found["angle"][:3], 0, atol=1e-5)
    assert np.isnan(found["angle"][3])
    bent = [{"a": torch.tensor(point)} for point in ([5.0, 1.0], [1.0, 3.0], [-3.0, 1.0], [1.0, 1.0])]
    found = landscape.polar(bent)
    np.testing.assert_allclose(found["distance"], [1, 0.5, 1, 0])
    np.testing.assert_allclose(found["angle"][:3], [0, 90, 180], atol=1e-5)


@pytest.mark.parametrize(
    "way, message",
    [
        ([{"a": torch.ones(1)}], "two points"),
        ([{"a": torch.ones(1)}, {"b": torch.ones(1)}], "the same weights"),
        ([{"a": torch.ones(1)}] * 2, "ends where it starts"),
    ],
)
def test_what_is_no_way_is_refused(way, message):
    with pytest.raises(ValueError, match=message):
        landscape.polar(way)
