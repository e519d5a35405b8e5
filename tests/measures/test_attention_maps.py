"""Attention maps of every kind of transformer, and the grids of patches they are over."""

import math

import pytest
import timm
import torch
from timm.layers import DiffAttention
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from helpers.measures.attention import attended_patches, attention_distance, uniform_distance
from helpers.measures.attention_maps import attention_maps, attentions, block_numbers, grid_of
from helpers.measures.head_subsets import head_outputs
from helpers.measures.rollout import rollout_maps
from helpers.networks.taps import capture, taps_named

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
        ("edgenext_xx_small", {"depths": (1, 1, 1, 1)}, "channels"),
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


class Holder(nn.Module):
    """A network inside of another module, which says how its images are normalised."""

    def __init__(self, *bodies: nn.Module):
        super().__init__()
        self.bodies, self.pretrained_cfg = nn.ModuleList(bodies), bodies[0].pretrained_cfg

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [body(x) for body in self.bodies]


@pytest.mark.fault(
    "Measures", "attention maps of a ViT, Swin or PiT inside of another module", "those of the network by itself"
)
@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "pit_ti_224", "swin_tiny_patch4_window7_224"])
def test_a_network_inside_of_another_module_is_read_as_by_itself(name):
    model = made(name)
    alone, held = (attention_distance(one, batched(model, 2), groups=2) for one in (model, Holder(model)))
    assert held["name"].tolist() == [f"bodies.0.{name}" for name in alone["name"]]
    assert held.drop(columns="name").equals(alone.drop(columns="name"))
    if name.startswith("deit"):
        images = batched(model, 2)
        assert torch.equal(rollout_maps(Holder(model), images), rollout_maps(model, images))
        assert attended_patches(Holder(model), images).equals(attended_patches(model, images))
        with pytest.raises(ValueError, match="several networks with attention"):
            rollout_maps(Holder(model, model.__class__(img_size=(48, 80), embed_dim=48, depth=1, num_heads=3)), images)


@pytest.mark.fault("Measures", "attention maps of timm's features_only ViT", "those of the ViT that it holds")
def test_a_network_that_gives_features_is_read_as_the_one_it_holds():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", features_only=True, img_size=64, depth=3)
    model.model.pretrained_cfg = model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    images = [torch.rand(2, 3, 64, 64) for _ in range(2)]
    table = attention_distance(model, images, groups=2)
    assert len(table) == 3 * 3 * 3 and math.isclose(table["uniform"].iloc[0], uniform_distance((4, 4), 16))
    assert rollout_maps(model, images).shape == (4, 3, 4, 4)


@pytest.mark.fault(
    "Measures", "a ViT that pads its images, on 70 × 110 px", "the grid is that of the padded image, 5 × 7"
)
def test_the_grid_of_a_network_that_pads_its_images():
    model = made("vit_tiny_patch16_224", {"img_size": 64, **TINY, "dynamic_img_size": True, "dynamic_img_pad": True})
    images = [torch.rand(2, 3, 70, 110) for _ in range(2)]
    table = attention_distance(model, images, groups=2)
    assert math.isclose(table["uniform"].iloc[0], uniform_distance((5, 7), 16))
    assert rollout_maps(model, images).shape == (4, 2, 5, 7)


@pytest.mark.fault("Measures", "attention of a ViT over a ResNet's map", "distances are in pixels of the image")
def test_patches_of_a_map_are_as_far_apart_as_the_pixels_they_see():
    options = {"img_size": 64, "depth": 1, "num_classes": 0}
    model = made("vit_tiny_r_s16_p8_224", options)  # patches of 8 × 8 on a map of which a step is 4 px
    table = attention_distance(model, [torch.rand(2, 3, 64, 64) for _ in range(2)], groups=2)
    assert math.isclose(table["uniform"].iloc[0], uniform_distance((2, 2), 32))


@pytest.mark.fault("Measures", "attention of a CoaT", "refused: it forms no map")
def test_factored_attention_has_no_map():
    with pytest.raises(ValueError, match="never forms a map over positions"):
        attentions(timm.create_model("coat_lite_tiny"))
