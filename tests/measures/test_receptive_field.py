"""Effective receptive fields, of networks whose fields are known."""

import math

import pandas as pd
import pytest
import timm
import torch
from torch import nn

from helpers.measures.receptive_field import (
    central_share,
    early_radius,
    effective_receptive_fields,
    half_mass_radius,
    kept_by_skip,
    largest_step,
    uniform_radius,
)
from helpers.networks.inputs import normalise
from helpers.networks.taps import capture, taps_for, taps_named

CONFIG = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


def of(model: nn.Module, images: torch.Tensor, taps: list | None = None, **options):
    model.pretrained_cfg = getattr(model, "pretrained_cfg", None) or CONFIG
    return effective_receptive_fields(model, images, taps, **{"groups": 2, **options})


def pictures(count: int = 4, size: int = 33) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def box(field: torch.Tensor) -> tuple[int, int, int, int]:
    """First and last row and column with any mass."""
    rows, columns = field.sum(1).nonzero().flatten(), field.sum(0).nonzero().flatten()
    return rows[0].item(), rows[-1].item(), columns[0].item(), columns[-1].item()


@pytest.mark.parametrize("k", [3, 5])
def test_a_convolution_sees_k_by_k_and_two_of_them_2k_minus_1(k):
    model = nn.Sequential(*(nn.Conv2d(3, 3, k, padding=k // 2) for _ in range(2)))
    found = of(model, pictures(), taps_named(model, ["0", "1"]))
    for field, side in zip(found.mean(), (k, 2 * k - 1), strict=True):
        assert box(field) == (16 - side // 2, 16 + side // 2) * 2
    assert list(found.places["row"]) == list(found.places["column"]) == [16.5, 16.5]


def test_a_linear_convolution_has_its_own_weights_as_its_field():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    found = of(model, pictures(), taps_named(model, ["0"])).mean()[0, 15:18, 15:18]
    wanted = (
        model[0].weight.abs().mean(0).sum(0) / CONFIG["std"][0]
    )  # mean over channels, sum over RGB, per pixel value
    assert torch.allclose(found, wanted, rtol=1e-5)


def test_signs_of_channels_do_not_cancel():
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False))
    model[0].weight.data[1] = -model[0].weight.data[0]  # summed over channels first, the gradient would be zero
    assert of(model, pictures(), taps_named(model, ["0"])).mean()[0, 16, 16] > 0


def test_an_average_sees_everything_alike():
    model = nn.Sequential(nn.AvgPool2d(33), nn.Conv2d(3, 5, 1))
    field = of(model, pictures(), taps_named(model, ["1"])).mean()[0]
    assert torch.allclose(field, field.mean().expand_as(field))
    assert half_mass_radius(field, (16.5, 16.5)) == pytest.approx(33 / math.sqrt(2 * math.pi), rel=0.03)
    assert uniform_radius((33, 33)) == pytest.approx(half_mass_radius(field, (16.5, 16.5)))


def vit(**options) -> nn.Module:
    torch.manual_seed(0)
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 4}
    model = timm.models.VisionTransformer(**{**settings, **options})
    model.pretrained_cfg = CONFIG
    return model


def test_a_network_without_attention_sees_its_own_patch_and_nothing_else():
    model = vit()
    for block in model.blocks:
        nn.init.zeros_(block.attn.proj.weight)
    taps = taps_for(model, ["embed", "resid_mid", "resid_post", "mlp"])
    found = of(model, pictures(size=32), taps, channels=3)
    for field, centre in zip(found.mean(), found.places[["row", "column"]].to_numpy(), strict=True):
        assert box(field) == (16, 23, 16, 23)  # of 4 × 4 patches the third, number 4 // 2
        assert tuple(centre) == (20, 20)
        assert central_share(field, (20, 20), 8) == pytest.approx(1)
    assert found.table(8)["share"].tolist() == pytest.approx([1] * len(taps) * 3)
    assert found.places.query("kind != 'mlp'")["depth"].tolist() == [i / 6 for i in range(7)]
    assert found.places.query("kind == 'mlp'")["depth"].tolist() == [2 / 6, 4 / 6, 1]  # that of the sum it enters


@pytest.mark.parametrize("groups", [1, 3])
def test_it_equals_separate_backward_passes_for_each_channel_and_image(groups):
    model, images = vit(embed_dim=12).eval(), pictures(3, 32)
    taps = taps_for(model, ["embed", "attn", "resid_mid", "resid_post"])
    found = of(model, images, taps, groups=groups, batch=2)
    for place, tap in enumerate(taps):
        total = torch.zeros(32, 32)
        for image in images:
            for channel in range(12):
                x = image[None].clone().requires_grad_()
                with capture(model, [tap]) as out:
                    model(normalise(model, x))
                out[tap.name][0, 1 + 2 * 4 + 2, channel].backward()
                total += x.grad[0].abs().sum(0) / 12 / 3
        assert torch.allclose(found.mean()[place], total, atol=1e-6, rtol=1e-4), tap.name
    if groups == 3:
        alone = of(model, images[:1], taps, groups=1).mean()
        assert torch.allclose(found.maps[0], alone, atol=1e-6, rtol=1e-4)
        kept = of(model, images[1:], taps, groups=1).mean()
        assert torch.allclose(found.mean(without=0), kept, atol=1e-6, rtol=1e-4)


def test_drawn_channels_estimate_all_without_bias():
    model, images = vit(embed_dim=12).eval(), pictures(2, 32)
    taps = taps_for(model, ["resid_mid"])[1:2]
    everything = of(model, images, taps).mean().sum()
    draws = torch.stack([of(model, images, taps, channels=4, seed=seed).mean().sum() for seed in range(60)])
    assert abs(draws.mean() - everything) < 4 * draws.std() / math.sqrt(60)
    assert torch.allclose(of(model, images, taps, channels=4).maps, of(model, images, taps, channels=4, batch=1).maps)
    assert torch.allclose(of(model, images, taps, channels=99).mean().sum(), everything)  # more than there are: all


def test_parameters_modes_and_hooks_are_as_before_even_after_an_error():
    model = vit().train()
    model.blocks[0].eval()
    model.head.weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    of(model, pictures(2, 32), channels=1)
    with pytest.raises(ValueError, match="has no positions"):
        of(model, pictures(2, 32), taps_named(model, ["head"]))
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == [
        parameter is not model.head.weight for parameter in model.parameters()
    ]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


ARCHITECTURES = {  # the smallest of each kind: arguments, size, centre of the last place
    "vit_tiny_patch16_224": ({"img_size": 64, "depth": 1}, 64, 40),
    "deit_tiny_distilled_patch16_224": ({"img_size": 64, "depth": 1}, 64, 40),
    "vit_small_patch14_reg4_dinov2": ({"img_size": 42, "depth": 1}, 42, 21),
    "beit_base_patch16_224": ({"img_size": 64, "depth": 1}, 64, 40),
    "swin_tiny_patch4_window7_224": ({"img_size": 64, "depths": (1, 1, 1, 1)}, 64, 48),  # channels last; 2 × 2
    "pit_ti_224": ({"img_size": 64}, 64, None),
    "mixer_s32_224": ({"img_size": 64}, 64, 48),
    "resnet18": ({}, 64, 32.5),
    "resnetv2_18": ({}, 64, 32.5),
    "resnetv2_50x1_bit": ({}, 64, 32.5),
    "convnext_atto": ({}, 64, 48),  # patches of 4, then of 2: cells that divide the image
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_real_architectures(name):
    arguments, size, centre = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **arguments)
    model.pretrained_cfg = CONFIG
    kinds = ["embed", "stem", "resid_mid", "resid_post", "block"]
    taps = taps_for(model, kinds)
    taps = [taps[0], taps[-1]]
    found = of(model, pictures(2, size), taps, channels=4)
    first, last = found.mean()
    assert torch.isfinite(found.maps).all() and first.sum() > 0 and last.sum() > 0
    assert (first > 0).sum() <= (last > 0).sum()
    row = found.places["row"].iloc[-1]
    assert row == found.places["column"].iloc[-1]
    if centre is not None:
        assert row == centre
    assert found.places["depth"].tolist() == [0, 1]


@pytest.mark.parametrize("pad", [0, 1])
def test_the_centre_is_where_the_field_of_a_padded_network_is(pad):
    """A symmetric kernel's field is symmetric around the position's centre: that of a strided, padded chain."""
    layers = [nn.Conv2d(3, 2, 7, 2, 3), nn.ConstantPad2d(pad, 0.0), nn.Conv2d(2, 2, 3, 2, 1), nn.Conv2d(2, 2, 1, 2)]
    model = nn.Sequential(*layers)
    for layer in model:
        if hasattr(layer, "weight"):
            nn.init.ones_(layer.weight)
    found = of(model, pictures(2, 64), taps_named(model, ["0", "2", "3"]))
    for field, row in zip(found.mean(), found.places["row"], strict=True):
        pixels = torch.arange(64) + 0.5
        assert (field.sum(1) * pixels).sum() / field.sum() == pytest.approx(row, abs=1e-3)


def test_radius_and_share_of_known_maps():
    point = torch.zeros(9, 9)
    point[4, 4] = 2
    assert half_mass_radius(point, (4.5, 4.5)) == 0
    assert 2.8 < half_mass_radius(point, (4.5, 7.5)) < 3  # half-way between the ring before and that of the point
    assert central_share(point, (4.5, 4.5), 1) == 1 and central_share(point, (4.5, 7.5), 3) == 0
    flat = torch.ones(8, 8)
    assert central_share(flat, (4, 4), 4) == pytest.approx(0.25)
    assert central_share(flat, (3.5, 4.5), 4) == pytest.approx(0.25)  # pixels on the rim count in part
    assert central_share(flat, (0, 4), 4) == pytest.approx(0.125)  # what lies outside the image holds nothing


def toy(radii, shares=None, kinds=None, left_out=-1) -> pd.DataFrame:
    n = len(radii)
    return pd.DataFrame(
        {
            "name": [f"p{i}" for i in range(n)],
            "kind": kinds or ["block"] * n,
            "depth": [i / (n - 1) for i in range(n)],
            "radius": radii,
            "share": shares or [1.0] * n,
            "left_out": left_out,
        }
    )


def test_the_statistics_of_the_claims():
    even = toy([1.0 * i for i in range(11)])
    assert early_radius(even) == 1 and largest_step(even, 1) == pytest.approx(0.1)
    assert largest_step(even, 0.8) == pytest.approx(1 / 8)
    sudden = toy([0.0] * 5 + [6.0] * 6)
    assert largest_step(sudden, 1) == pytest.approx(1)
    kinds = ["block", "branch", "block", "branch", "block"]
    table = toy([1] * 5, [0.5, 0.1, 0.4, 0.2, 0.4], kinds)
    assert kept_by_skip(table, "branch", ["p2", "p4"]) == pytest.approx((4 + 2) / 2)
    for places, why in ((["p2", "p0"], "no residual branch of kind 'branch' before p0"), ([], "nor a sum")):
        with pytest.raises(ValueError, match=why):
            kept_by_skip(table, "branch", places)


def test_depth_runs_along_the_complete_network():
    model = timm.create_model("test_resnet", zero_init_last=False)
    taps = taps_for(model, ["stem", "block"])
    found = of(model, pictures(2, 64), taps, length=16).places
    assert list(found["depth"]) == [i / 16 for i in range(len(taps))]
    with pytest.raises(ValueError, match=f"{len(taps) - 1} places after the first are read, more than the 2"):
        of(model, pictures(2, 64), taps, length=2)


def test_bad_input_is_named():
    model = vit()
    with pytest.raises(ValueError, match="at least 16 images"):
        effective_receptive_fields(model, pictures(4, 32))
    with pytest.raises(ValueError, match="channels"):
        of(model, pictures(2, 32), channels=0)
    with pytest.raises(ValueError, match="has no positions"):
        of(model, pictures(2, 32), taps_named(model, ["head"]))
    dead = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
    nn.init.constant_(dead[0].bias, -1e6)
    with pytest.raises(ValueError, match="of 1 are zero"):
        of(dead, pictures(2), taps_named(dead, ["1"]))


@pytest.mark.fault("Measures", "receptive fields of a network that torch.compile made", "those of the network itself")
def test_a_compiled_network_is_measured_as_it_was_before():
    model, images = vit(), pictures(2, 32)
    wanted = of(model, images, channels=2)
    for compiled in (torch.compile(model), nn.Sequential(torch.compile(model))):
        compiled.pretrained_cfg = CONFIG
        found = of(compiled, images, channels=2)
        assert torch.equal(found.maps, wanted.maps)
        assert found.places.drop(columns="name").equals(wanted.places.drop(columns="name"))


class WithoutGradient(nn.Sequential):
    """Layers that forget how they came to their result."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return super().forward(x)


@pytest.mark.fault("Measures", "receptive fields of a network that switches gradients off", "refused, with the place")
def test_a_network_without_gradients_is_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), WithoutGradient(nn.Conv2d(4, 4, 3)))
    with pytest.raises(ValueError, match="^1: the forward pass keeps no gradient"):
        of(model, pictures(), taps_named(model, ["0", "1"]))
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.fault("Measures", "images of receptive fields in a dict or a list, or a path", "refused, with the remedy")
def test_images_that_are_no_batch_are_named():
    model, images = vit(), pictures(2, 32)
    assert torch.equal(of(model, (images, [0, 1]), channels=1).maps, of(model, images, channels=1).maps)
    for wrong, error, message in (
        ({"image": images}, TypeError, r"batch\['image'\]"),
        (list(images), ValueError, "four axes"),
        ("photos", TypeError, "folder_images"),
    ):
        with pytest.raises(error, match=message):
            of(model, wrong)
    for option in ("groups", "batch"):
        with pytest.raises(ValueError, match=f"{option} is a whole number, at least 1; got 0"):
            of(model, images, **{option: 0})
