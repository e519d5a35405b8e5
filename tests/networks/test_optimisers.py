"""Which weights learn by which rule, and how fast."""

import pytest
import torch
from torch.optim import _muon

from helpers.networks.architectures import build
from helpers.networks.catalogue import ZOO, Recipe
from helpers.networks.denoising import Denoiser
from helpers.networks.masked import MaskedAutoencoder
from helpers.networks.optimisers import muon_in_float32, newton_schulz, optimisers, schedule, set_rate

COEFFICIENTS = (_muon.DEFAULT_A, _muon.DEFAULT_B, _muon.DEFAULT_C)
WITHOUT_LABELS = {"vit-mae": MaskedAutoencoder, "vit-small-denoiser": Denoiser}


def names(model, group):
    known = {id(value): name for name, value in model.named_parameters()}
    return {known[id(value)] for value in group["params"]}


@pytest.mark.parametrize("name", ["vit", "vit-gap", "mixer", "pit", "swin", "convnext", *WITHOUT_LABELS])
def test_matrices_inside_blocks_go_to_muon_and_every_weight_to_one_rule(name):
    model = WITHOUT_LABELS.get(name, lambda network: network)(build(ZOO[name]))
    adamw, muon = optimisers(model, Recipe())
    inside = names(model, muon.param_groups[0])
    assert all(".blocks." in f".{name}" and model.get_parameter(name).ndim == 2 for name in inside)
    others = [names(model, group) for group in adamw.param_groups]
    assert set.union(inside, *others) == set(dict(model.named_parameters()))
    assert len(inside) + sum(map(len, others)) == len(list(model.parameters()))
    assert any("pixels" in name for name in others[0]) == (name == "vit-mae")
    matrices = {name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and "blocks." in name}
    assert inside == {f"{name}.weight" for name in matrices}  # all linear maps of blocks, and no table of biases


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


# --- orthogonal steps


def matrix(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))


SHAPES = [(24, 24), (12, 40), (40, 12), (1, 7)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_keeps_singular_vectors_and_brings_singular_values_near_one(shape):
    """U f(S / ‖S‖) Vᵀ in double precision, where f is the polynomial of one number, applied as often."""
    given = matrix(*shape)
    found = newton_schulz(given, COEFFICIENTS, _muon.DEFAULT_NS_STEPS, _muon.EPS)
    left, values, right = torch.linalg.svd(given.double(), full_matrices=False)
    wanted = values / values.norm()
    for _ in range(_muon.DEFAULT_NS_STEPS):
        wanted = sum(c * wanted**power for c, power in zip(COEFFICIENTS, (1, 3, 5), strict=True))
    torch.testing.assert_close(found.double(), left @ wanted.diag() @ right, atol=1e-4, rtol=1e-3)
    near = torch.linalg.svdvals(found)[values > 0.05 * values.norm()]
    assert found.dtype == torch.float32 and 0.5 < near.min() and near.max() < 1.3  # "Uniform(0.5, 1.5)", says torch


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_torchs_own_routine_but_for_the_rounding(shape):
    rest = (COEFFICIENTS, _muon.DEFAULT_NS_STEPS, _muon.EPS)
    ours, theirs = newton_schulz(matrix(*shape), *rest), _muon._zeropower_via_newtonschulz(matrix(*shape), *rest)
    assert theirs.dtype == torch.bfloat16 and ours.shape == theirs.shape
    assert float((ours - theirs.float()).norm() / ours.norm()) < 0.03
    assert not newton_schulz(torch.zeros(shape), *rest).any()


def step_of_muon() -> torch.Tensor:
    """What one step of torch's Muon makes of a weight of zeros."""
    weight = torch.nn.Parameter(torch.zeros(12, 40))
    weight.grad = matrix(12, 40)
    torch.optim.Muon([weight], lr=0.5, adjust_lr_fn="match_rms_adamw").step()
    return weight.detach()


def test_muon_steps_in_float32_within_and_as_before_after():
    before, bfloat16 = _muon._zeropower_via_newtonschulz, step_of_muon()
    with pytest.raises(KeyError), muon_in_float32():
        wanted = newton_schulz(matrix(12, 40), COEFFICIENTS, _muon.DEFAULT_NS_STEPS, _muon.EPS)
        torch.testing.assert_close(step_of_muon(), -0.5 * 0.2 * 40**0.5 * wanted)  # its first momentum is the gradient
        assert not torch.equal(step_of_muon(), bfloat16)
        raise KeyError
    assert _muon._zeropower_via_newtonschulz is before and torch.equal(step_of_muon(), bfloat16)
