"""Which weights learn by which rule, and how fast."""

import pytest
import torch

from helpers.networks.architectures import build
from helpers.networks.catalogue import ZOO, Recipe
from helpers.networks.masked import MaskedAutoencoder
from helpers.networks.optimisers import optimisers, schedule, set_rate


def names(model, group):
    known = {id(value): name for name, value in model.named_parameters()}
    return {known[id(value)] for value in group["params"]}


@pytest.mark.parametrize("name", ["vit", "vit-gap", "mixer", "vit-mae"])
def test_matrices_inside_blocks_go_to_muon_and_every_weight_to_one_rule(name):
    model = build(ZOO[name])
    if name == "vit-mae":
        model = MaskedAutoencoder(model)
    adamw, muon = optimisers(model, Recipe())
    inside = names(model, muon.param_groups[0])
    assert all(".blocks." in f".{name}" and model.get_parameter(name).ndim == 2 for name in inside)
    others = [names(model, group) for group in adamw.param_groups]
    assert set.union(inside, *others) == set(dict(model.named_parameters()))
    assert len(inside) + sum(map(len, others)) == len(list(model.parameters()))
    assert any("pixels" in name for name in others[0]) == (name == "vit-mae")


def test_a_resnet_has_no_matrices():
    assert [type(rule) for rule in optimisers(build(ZOO["resnet"]), Recipe())] == [torch.optim.AdamW]


def test_positions_can_be_spared_decay():
    model = MaskedAutoencoder(build(ZOO["vit-mae"]))
    plain, spared = optimisers(model, Recipe()), optimisers(model, Recipe(position_decay=False))
    assert len(plain[0].param_groups) == 1
    (_, group) = spared[0].param_groups
    assert names(model, group) == {"encoder.pos_embed", "encoder.cls_token", "pos_embed", "mask_token"}
    assert group["weight_decay"] == 0 and spared[0].param_groups[0]["weight_decay"] == Recipe().weight_decay


def test_the_rate_rises_and_falls():
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    assert rates[9] == rates[10] == 1 and rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:])[::-1]
    assert rates[55] == pytest.approx(0.5) and 0 < rates[-1] < 0.001
    rules = optimisers(build(ZOO["vit-small"]), Recipe())
    set_rate(rules, 0.5)
    set_rate(rules, 0.25)
    assert [group["lr"] for rule in rules for group in rule.param_groups] == [0.25e-3, 0.5e-3]
