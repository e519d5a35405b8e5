"""Taps: what they read is what the network computes, whatever the architecture; and nothing stays behind."""

from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from helpers.networks.taps import KINDS, Tap, capture, taps_for, taps_named

TRANSFORMERS = {  # name: (arguments, size): all kinds of prefix tokens, position embeddings, norms and MLPs
    "vit_tiny_patch16_224": ({"img_size": 32, "depth": 2}, 32),
    "deit_tiny_distilled_patch16_224": ({"img_size": 32, "depth": 2}, 32),  # two prefix tokens
    "vit_small_patch14_reg4_dinov2": ({"img_size": 28, "depth": 2, "init_values": 0.3}, 28),  # registers, LayerScale
    "vit_base_patch16_clip_224": ({"img_size": 32, "depth": 2}, 32),  # a norm before the blocks
    "vit_relpos_small_patch16_224": ({"img_size": 32, "depth": 2}, 32),  # no prefix token, no final norm on tokens
    "beit_base_patch16_224": ({"img_size": 32, "depth": 2, "init_values": 0.3}, 32),  # gammas instead of LayerScale
    "eva02_tiny_patch14_224": ({"img_size": 28, "depth": 2}, 28),  # gated MLP
    "swin_tiny_patch4_window7_224": ({"img_size": 64, "depths": (1, 1, 2, 1)}, 64),  # (B, H, W, C)
    "pit_ti_224": ({"img_size": 64}, 64),  # stages hand on tuples
    "mixer_s32_224": ({"img_size": 64}, 64),  # one drop path called twice
}
RESNETS = ("resnet18", "resnet26", "seresnet50")  # these end a block with a ReLU
PREACTIVATION = ("resnetv2_18", "resnetv2_50", "resnetv2_50x1_bit", "convnext_atto")


def make(name: str, seed: int = 0, **arguments) -> nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=3, **arguments).eval()
    for weight, parameter in model.named_parameters():  # timm starts some branches at zero or nearly
        if parameter.ndim == 1 and parameter.abs().max() < 1e-3 and not weight.endswith("bias"):
            nn.init.normal_(parameter, std=0.5)
    return model


def run(model: nn.Module, taps: list[Tap], size: int = 32, fn=None) -> dict:
    torch.manual_seed(1)
    with torch.inference_mode(), capture(model, taps, fn) as out:
        model(torch.randn(3, 3, size, size))
    return dict(out)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 2e-5) -> bool:
    return torch.allclose(a.flatten(1), b.flatten(1), atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_residual_stream_of_transformers_adds_up(name):
    arguments, size = TRANSFORMERS[name]
    model = make(name, **arguments)
    taps = taps_for(model)
    blocks = [tap.module for tap in taps if tap.kind == "resid_post"]
    out = run(model, [*taps, *(Tap(f"{block}.in", block, "input") for block in blocks)], size)
    assert list(out)[: len(taps)] == [tap.name for tap in taps]
    assert close(out["embed"], out[f"{blocks[0]}.in"])
    mixer = "mixer" in name
    for block in blocks:
        branches = ("token_mix", "channel_mix") if mixer else ("attn", "mlp")
        first, second = (out[f"{block}.{branch}"] for branch in branches)
        assert first.abs().max() > 1e-3 and second.abs().max() > 1e-3  # or the sums below say nothing
        assert close(out[f"{block}.resid_mid"], out[f"{block}.in"].flatten(1) + first.flatten(1))
        assert close(out[f"{block}.resid_post"], out[f"{block}.resid_mid"].flatten(1) + second.flatten(1))
    for before, block in zip(blocks, blocks[1:], strict=False):
        if before.rsplit(".", 1)[0] == block.rsplit(".", 1)[0]:  # same stage
            assert close(out[f"{before}.resid_post"], out[f"{block}.in"])
    assert {tap.kind for tap in taps} == (
        {"embed", "norm", "token_mix", "resid_mid", "mlp_hidden", "channel_mix", "resid_post"}
        if mixer
        else {"embed", "norm", "attn", "resid_mid", "mlp_hidden", "mlp", "resid_post"}
    )
    per_block = [tap.name.removeprefix(blocks[-1] + ".") for tap in taps if tap.name.startswith(blocks[-1] + ".")]
    middle = ["token_mix" if mixer else "attn", "resid_mid", "norm2", "mlp_hidden", "channel_mix" if mixer else "mlp"]
    assert per_block == ["norm1", *middle, "resid_post"]


def test_embedding_is_taken_after_the_norm_before_the_blocks():
    model = make("vit_base_patch16_clip_224", img_size=32, depth=1)
    out = run(model, [*taps_for(model, {"embed"}), *taps_named(model, ["norm_pre", "pos_drop"])])
    assert close(out["embed"], out["norm_pre"]) and not close(out["embed"], out["pos_drop"], 1e-2)


def test_mlp_hidden_is_what_the_last_layer_reads():
    for name, arguments, size in (("vit_tiny_patch16_224", {"img_size": 32}, 32), ("convnext_atto", {}, 64)):
        model = make(name, **arguments)
        tap = taps_for(model, {"mlp_hidden"})[0]
        out = run(model, [tap, Tap("read", tap.module.replace(".act", ".fc2"), "input")], size)
        assert close(out[tap.name], out["read"])


@pytest.mark.parametrize("name", RESNETS + PREACTIVATION)
def test_residual_blocks_of_convolutional_networks_add_up(name):
    model = make(name)
    taps = taps_for(model)
    blocks = [tap.module for tap in taps if tap.kind == "block"]
    names = dict(model.named_modules())
    shortcuts = [block for block in blocks if isinstance(getattr(names[block], "downsample", None), nn.Module)]
    extra = [Tap(f"{block}.in", block, "input") for block in blocks]
    extra += [Tap(f"{block}.short", f"{block}.downsample") for block in shortcuts]
    out = run(model, [*taps, *extra], 64)
    for block in blocks:
        total = out[f"{block}.branch"] + out[f"{block}.short" if block in shortcuts else f"{block}.in"]
        assert close(out[block], total.relu() if name in RESNETS else total, 1e-4), block
        assert not close(out[block], out[f"{block}.branch"], 1e-3)
    kinds = [tap.kind for tap in taps]
    assert {"stem", "conv", "norm", "branch", "block"} <= set(kinds) and kinds.index("stem") < kinds.index("block")


def test_resnets_without_their_last_stage():
    model = make("resnet26")
    model.layer4, model.fc = nn.Identity(), nn.Identity()
    taps = taps_for(model, {"stem", "block"})
    assert [tap.name for tap in taps] == ["stem", *(f"layer{s}.{b}" for s in (1, 2, 3) for b in (0, 1))]
    assert run(model, taps, 64)["stem"].shape == (3, 64, 16, 16)


def test_models_of_the_zoo():
    from helpers.networks import zoo

    for name, post in (("vit", True), ("vit-gap", True), ("resnet", False)):
        model = zoo.load(name, pretrained=False)
        size = model.pretrained_cfg["input_size"][-1]
        taps = taps_for(model, {"resid_post"} if post else {"block"})
        assert len(taps) == (8 if post else 16)
        out = run(model, taps_for(model), size)
        assert all(value.isfinite().all() for value in out.values())


@pytest.mark.parametrize("name, options", [("regnetx_002", {}), ("densenet121", {"block_config": (2, 2, 2, 2)})])
def test_other_models_are_read_at_the_stages_that_timm_names(name, options):
    model = make(name, **options)
    taps = taps_for(model)
    out = run(model, taps, 64)
    assert [tap.kind for tap in taps] == ["block"] * 5
    for x, about in zip(out.values(), model.feature_info, strict=True):
        assert x.shape[1:] == (about["num_chs"], 64 // about["reduction"], 64 // about["reduction"])


def test_other_models_give_their_block_outputs_or_a_clear_error():
    model = make("swinv2_tiny_window8_256", img_size=64)  # post-norm: the input of norm2 is not the residual stream
    assert {tap.kind for tap in taps_for(model)} == {"block"} and len(run(model, taps_for(model), 64)) == 12
    model = make("efficientnet_lite0")
    assert [tap.name for tap in taps_for(model)][:3] == ["blocks.0.0", "blocks.1.0", "blocks.1.1"]
    with pytest.raises(ValueError, match=r"Sequential: nothing is known.*taps_named"):
        taps_for(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))


def test_parallel_blocks_give_their_outputs_only():
    model = make("vit_small_patch16_18x2_224", img_size=32, depth=2)
    assert {tap.kind for tap in taps_for(model)} == {"block"}


@pytest.mark.parametrize("fn", [None, lambda x: x, lambda x: x.flatten(1), lambda x: x[:, :2]])
def test_in_place_operations_cannot_change_what_was_read(fn):
    model = make("resnet26")
    assert model.layer1[0].act1.inplace  # and the block adds its shortcut in place to what bn3 returned
    taps = taps_for(model)
    cloned = {}
    handles = [
        model.get_submodule(tap.module).register_forward_hook(
            lambda module, args, output, name=tap.name: cloned.__setitem__(name, output.clone())
        )
        for tap in taps
    ]
    out = run(model, taps, 64, fn)
    for handle in handles:
        handle.remove()
    for tap in taps:
        assert torch.equal(out[tap.name], cloned[tap.name] if fn is None else fn(cloned[tap.name])), tap.name
    if fn is None:
        assert not torch.equal(out["bn1"], out["act1"])
        assert (out["layer1.0.branch"] < 0).any() and (out["layer1.0"] >= 0).all()


def test_what_the_function_returns_is_all_that_is_kept():
    model = make("vit_tiny_patch16_224", img_size=32, depth=1)
    out = run(model, taps_for(model), fn=lambda x: x[:, 0, :5])
    assert all(value.untyped_storage().nbytes() == value.numel() * 4 for value in out.values())


def test_labels_follow_the_taps_and_not_the_order_of_execution():
    model = make("vit_tiny_patch16_224", img_size=32, depth=2)
    names = ["blocks.1", "blocks.0", "blocks.0.attn", "", "blocks.0.attn.qkv"]  # parents before children
    out = run(model, taps_named(model, names))
    assert list(out) == names
    assert out["blocks.0.attn.qkv"].shape[-1] == 3 * 192 and out[""].shape == (3, 3)
    single = {name: run(model, taps_named(model, [name]))[name] for name in names}
    assert all(torch.equal(out[name], single[name]) for name in names)
    post = run(model, taps_for(model, {"resid_post"}))
    assert torch.equal(out["blocks.0"], post["blocks.0.resid_post"])


def test_capturing_changes_nothing_and_fused_attention_reads_like_unfused():
    model = make("vit_tiny_patch16_224", img_size=32, depth=2)
    images = torch.randn(3, 3, 32, 32)
    taps = taps_for(model)
    with torch.inference_mode():
        bare = model(images)
        with capture(model, taps) as fused:
            assert torch.equal(model(images), bare)
        for block in model.blocks:
            assert block.attn.fused_attn
            block.attn.fused_attn = False
        with capture(model, taps) as unfused:
            model(images)
    assert all(close(fused[tap.name], unfused[tap.name]) for tap in taps)


def test_gradients_reach_the_input_through_what_was_read():
    model = make("resnet18")
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    with capture(model, taps_named(model, ["layer1.0"])) as out:
        model(images)
    (gradient,) = torch.autograd.grad(out["layer1.0"].sum(), images)
    assert gradient.abs().sum() > 0


def test_each_forward_pass_fills_the_dictionary_anew():
    model = make("vit_tiny_patch16_224", img_size=32, depth=1)
    with torch.inference_mode(), capture(model, taps_for(model, {"embed"})) as out:
        model(torch.zeros(2, 3, 32, 32))
        first = out["embed"]
        model(torch.ones(5, 3, 32, 32))
        assert out["embed"].shape[0] == 5 and first.shape[0] == 2
        with pytest.raises(AssertionError):
            model(torch.zeros(2, 3, 48, 48))
        assert not out  # rather than what an earlier pass left
        model(torch.zeros(1, 3, 32, 32))
    assert out["embed"].shape[0] == 1 and hooks(model) == 0


def test_a_tap_that_fires_twice_or_never_is_named():
    mixer = make("mixer_s32_224", img_size=64)
    with pytest.raises(RuntimeError, match=r"'blocks.1.drop_path' fired twice.*call="):
        run(mixer, taps_named(mixer, ["blocks.1.drop_path"]), 64)
    with pytest.raises(RuntimeError, match="never fired: third"):
        run(mixer, [Tap("third", "blocks.1.drop_path", call=2)], 64)
    vit = make("vit_tiny_patch16_224", img_size=32, depth=1)
    with pytest.raises(RuntimeError, match=r"never fired: blocks.0.attn.attn_drop"):  # fused attention skips it
        run(vit, taps_named(vit, ["blocks.0.attn.attn_drop", "blocks.0"]))
    with pytest.raises(RuntimeError, match="never fired: embed"), capture(vit, taps_for(vit, {"embed"})):
        pass
    with pytest.raises(RuntimeError, match="'embed' fired outside"), capture(vit, taps_for(vit, {"embed"})):
        vit.forward_features(torch.zeros(1, 3, 32, 32))
    assert hooks(mixer) == hooks(vit) == 0


def test_hooks_are_removed_after_any_exception():
    model = make("vit_tiny_patch16_224", img_size=32, depth=1)
    taps = taps_for(model)
    images = torch.zeros(2, 3, 32, 32)

    def fail(x):
        raise ArithmeticError("in the function")

    with pytest.raises(ArithmeticError, match="in the function"), capture(model, taps, fail):
        model(images)
    assert hooks(model) == 0
    with pytest.raises(KeyError, match="in the body"), capture(model, taps):
        model(images)
        assert hooks(model) > len(taps)
        raise KeyError("in the body")
    assert hooks(model) == 0
    with pytest.raises(AssertionError), capture(model, taps):  # in the forward pass
        model(images[:, :, :20])
    assert hooks(model) == 0
    with pytest.raises(ValueError), capture(model, [*taps, Tap("x", "no.such.module")]):
        pass
    assert hooks(model) == 0


def test_a_module_that_does_not_return_a_tensor_is_a_clear_error():
    model = make("pit_ti_224", img_size=64)
    with pytest.raises(TypeError, match=r"'transformers.1'.*output.*tuple, not a tensor; tap a module inside"):
        run(model, taps_named(model, ["transformers.1"]), 64)
    with pytest.raises(TypeError, match=r"'transformers.1.input'.*input.*tuple"):
        run(model, taps_named(model, ["transformers.1"], where="input"), 64)
    assert hooks(model) == 0


def test_wrong_names_and_kinds_are_clear_errors():
    model = make("vit_tiny_patch16_224", img_size=32, depth=2)
    with pytest.raises(ValueError, match=r"no module 'block.1.attn'.*nearest: .*blocks.1.attn"):
        taps_named(model, ["block.1.attn"])
    with pytest.raises(ValueError, match=r"unknown kind.*resid_pos.*nearest: resid_post"):
        taps_for(model, {"resid_pos"})
    with pytest.raises(ValueError, match=r"no tap of kind \['stem'\]; it has embed, norm"):
        taps_for(model, {"stem"})
    with pytest.raises(ValueError, match="share a label: .*'a'"), capture(model, [Tap("a", "norm"), Tap("a", "head")]):
        pass
    with pytest.raises(ValueError, match="where is"):
        Tap("a", "norm", "outside")
    with pytest.raises(ValueError, match="unknown kind"):
        Tap("a", "norm", "output", "layer")


def test_kinds_are_chosen_in_the_order_of_depth():
    model = make("vit_tiny_patch16_224", img_size=32)
    assert len(taps_for(model)) == 1 + 12 * 7 + 1
    names = [tap.name for tap in taps_for(model, ["resid_post", "embed", "resid_mid", "stem"])]
    assert names == ["embed", *(f"blocks.{i}.{part}" for i in range(12) for part in ("resid_mid", "resid_post"))]
    assert {tap.kind for tap in taps_for(model)} <= set(KINDS)


@pytest.mark.parametrize("name", ["test_vit", "mixer_s32_224", "test_convnext", "swin_tiny_patch4_window7_224"])
def test_a_network_inside_another_module_has_the_same_taps(name):
    """Also its embedding or stem and its final norm; two networks have their own each."""
    one, two = timm.create_model(name), timm.create_model(name)
    bare, found = taps_for(one), taps_for(nn.ModuleDict({"one": one, "two": two}))
    for part in ("one", "two"):
        own = [tap for tap in found if tap.name.startswith(f"{part}.")]
        wanted = [replace(tap, name=f"{part}.{tap.name}", module=f"{part}.{tap.module}") for tap in bare]
        assert own == wanted
    assert len(found) == 2 * len(bare)
