"""CKA between all layers of whole networks: against loops over pairs, and over processes."""

import itertools
import math
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from helpers.measures.cka import gram_row
from helpers.measures.heatmap import CKAResult, cka_heatmap
from helpers.networks.taps import Tap, capture, taps_for, taps_named

CONFIG = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "input_size": (3, 32, 32)}


def make(name: str, seed: int = 0, **arguments) -> nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=3, **arguments).eval()
    for weight, parameter in model.named_parameters():  # timm starts some branches at zero: they would be dead
        if parameter.ndim == 1 and not parameter.any() and not weight.endswith("bias"):
            nn.init.normal_(parameter, std=0.5)
    model.pretrained_cfg = CONFIG
    return model


def vit(seed: int = 0) -> nn.Module:
    return make("vit_tiny_patch16_224", seed, img_size=32, depth=2, embed_dim=48)


def pictures(n: int, size: int = 32, seed: int = 0) -> Tensor:
    """Random images that are not all alike: coarse fields with noise, uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = nn.functional.interpolate(torch.rand(n, 3, 4, 4, generator=generator), size)
    return (200 * coarse + 55 * torch.rand(n, 3, size, size, generator=generator)).byte()


def loader(n: int = 56, batch: int = 16, size: int = 32, **options) -> DataLoader:
    return DataLoader(TensorDataset(pictures(n, size), torch.zeros(n)), batch_size=batch, **options)


@pytest.fixture(scope="module")
def pair() -> dict[str, nn.Module]:
    return {"vit": vit(), "resnet": make("resnet18")}


def read_apart(model: nn.Module, tap: Tap, images: Tensor) -> Tensor:
    """A tap's activation (n, p) in float64, by a hook of this test's own and a forward pass for it alone."""
    seen = []
    module = model.get_submodule(tap.module)
    if tap.where == "input":
        handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0].double().clone()))
    else:
        handle = module.register_forward_hook(lambda module, args, output: seen.append(output.double().clone()))
    mean, std = (torch.tensor(CONFIG[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        model((images / 255 - mean) / std)
    handle.remove()
    return seen[0].flatten(1)


def song(k: Tensor, l: Tensor) -> float:  # noqa: E741
    """Unbiased HSIC of two Gram matrices in its three terms (Song et al. 2012). Float64 only."""
    n, one = len(k), torch.ones(len(k), dtype=torch.float64)
    k, l = (m.double() - m.double().diag().diag() for m in (k, l))  # noqa: E741
    trace = (k @ l).trace()
    middle = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return float((trace + middle - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3)))


def test_heatmap_equals_an_independent_loop_over_pairs(pair):
    kinds = ["embed", "attn", "resid_mid", "resid_post", "stem", "branch", "block"]
    result = cka_heatmap(pair, loader(), kinds)
    places = [(model, tap) for model in pair.values() for tap in taps_for(model, kinds)]
    assert [tap.name for _, tap in places] == list(result.taps["name"])
    hsic = 0
    for images, _ in loader():
        grams = [x @ x.T for x in (read_apart(model, tap, images) for model, tap in places)]
        hsic = hsic + len(images) * np.array([[song(k, l) for l in grams] for k in grams])  # noqa: E741
    expected = hsic / np.sqrt(np.outer(hsic.diagonal(), hsic.diagonal()))
    np.testing.assert_allclose(result.matrix, expected, atol=2e-5)
    assert (result.n_images, result.batch, result.batches, result.skipped) == (56, 16, 4, 0)
    assert (result.dtype, result.models) == ("float32", ["vit", "resnet"]) and "unbiased" in result.estimator
    np.testing.assert_allclose(result.matrix.diagonal(), 1, atol=1e-6)


def test_kinds_may_differ_between_models(pair):
    kinds = {"vit": ["resid_post"], "resnet": taps_named(pair["resnet"], ["layer1.0.conv1", "fc"])}
    result = cka_heatmap(pair, loader(), kinds, batches=1)
    assert result.labels == ["vit/blocks.0.resid_post", "vit/blocks.1.resid_post", "resnet/layer1.0.conv1", "resnet/fc"]


def test_shuffled_control_is_near_zero_and_seeded(pair):
    result = cka_heatmap(pair, loader(256, 32), ["resid_post", "block"], shuffle=0)
    value, stderr = result.between("vit", "resnet").control.statistic(lambda matrix: matrix.mean())
    assert result.between("vit", "resnet").matrix.mean() > 0.2 and abs(value) < 0.05 and abs(value) < 4 * stderr
    own = result.between("vit").control  # also of a layer with itself
    assert np.abs(own.matrix).max() < 0.15 and (own.matrix.diagonal() < 0.15).all()
    same, other = (cka_heatmap(pair, loader(256, 32), ["resid_post", "block"], shuffle=seed) for seed in (0, 1))
    np.testing.assert_array_equal(same.control.matrix, result.control.matrix)
    assert not np.allclose(other.control.matrix, result.control.matrix)
    np.testing.assert_array_equal(other.matrix, result.matrix)
    biased_control = cka_heatmap(pair, loader(), ["resid_post", "block"], shuffle=0, debiased=False).control
    assert biased_control.matrix.mean() > 0.1  # what the biased estimate makes of no relation at all


def test_all_models_see_the_same_images_of_one_pass():
    models = {"a": vit(), "b": vit()}
    result = cka_heatmap(models, loader(shuffle=True), ["resid_post"])
    np.testing.assert_allclose(result.between("a", "b").matrix, result.between("a").matrix, atol=1e-6)

    class Once:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter(loader())

    once = Once()
    assert cka_heatmap(models, once, ["resid_post"]).n_images == 56 and once.passes == 1


def test_order_within_batches_does_not_matter_and_plain_tensors_will_do():
    model = vit()
    images = pictures(48)
    order = torch.cat([torch.randperm(16) + start for start in (0, 16, 32)])
    straight, shuffled = (cka_heatmap({"vit": model}, x.split(16)) for x in (images, images[order]))
    np.testing.assert_allclose(shuffled.matrix, straight.matrix, atol=1e-5)
    np.testing.assert_allclose(shuffled.stderr, straight.stderr, atol=1e-5)


def test_small_last_batches_are_counted_or_skipped_and_said():
    model = {"vit": vit()}
    whole = cka_heatmap(model, loader(52, 16), ["resid_post"])
    assert (whole.n_images, whole.batches, whole.skipped) == (52, 4, 0)
    parts = [cka_heatmap(model, [x], ["resid_post"]).sums for x in pictures(52).split(16)]
    np.testing.assert_allclose(whole.sums.cross.sum(0), sum(part.cross.sum(0) for part in parts), rtol=1e-6)
    weights = [part.images.sum() for part in parts]
    assert weights == [16, 16, 16, 4]
    cut = cka_heatmap(model, pictures(51).split(16), ["resid_post"])
    assert (cut.n_images, cut.batches, cut.skipped) == (48, 3, 3)
    np.testing.assert_array_equal(cut.matrix, cka_heatmap(model, pictures(51)[:48].split(16), ["resid_post"]).matrix)
    with pytest.raises(ValueError, match="no batch of at least 4"):
        cka_heatmap(model, loader(3), ["resid_post"])
    with pytest.raises(ValueError, match="no models"):
        cka_heatmap({}, loader())


def test_only_so_many_batches_are_read():
    def endless():
        for index in itertools.count():
            assert index < 3, "read on"
            yield pictures(8, seed=index)

    assert cka_heatmap({"vit": vit()}, endless(), ["resid_post"], batches=3).n_images == 24


def test_own_preprocessing():
    model = vit()
    half = {"vit": lambda images: images[:, :, ::2, ::2].float()}
    with pytest.raises(ValueError, match="32"):
        cka_heatmap({"vit": model}, loader(size=64))
    small = cka_heatmap({"vit": model}, [pictures(16, 64)], ["resid_post"], preprocess=half)
    plain = cka_heatmap({"vit": model}, [pictures(16, 64)[:, :, ::2, ::2]], ["resid_post"])
    assert not np.allclose(small.matrix, plain.matrix)
    as_it_is = {"vit": lambda images: images}
    plain = cka_heatmap({"vit": model}, [half["vit"](pictures(16, 64))], ["resid_post"], preprocess=as_it_is)
    np.testing.assert_allclose(small.matrix, plain.matrix, atol=1e-6)
    for wrong in ({"preprocess": {"vti": half["vit"]}}, {"kinds": {"vti": ["resid_post"]}}):
        with pytest.raises(ValueError, match=r"for \['vti'\], but the models are vit"):
            cka_heatmap({"vit": model}, [pictures(16)], **wrong)
    with pytest.raises(ValueError, match="vit/blocks.0.resid_post: its first axis is not the 16 images"):
        cka_heatmap({"vit": model}, [pictures(16)], ["resid_post"], preprocess={"vit": lambda x: x[:8].float()})


def test_modes_and_hooks_are_as_before_even_after_an_error():
    model = make("resnet18").train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    in_eval = cka_heatmap({"resnet": make("resnet18")}, loader(), ["block"])
    np.testing.assert_array_equal(cka_heatmap({"resnet": model}, loader(), ["block"]).matrix, in_eval.matrix)
    model.layer4[1].conv2.weight.data[:] = math.nan
    with pytest.raises(ValueError, match=r"resnet/layer4.1: activations are not finite"):
        cka_heatmap({"resnet": model}, loader(), ["block"])
    assert [module.training for module in model.modules()] == modes
    del weights["layer4.1.conv2.weight"]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_dead_layer_is_nan_and_the_others_are_not():
    model = vit()
    model.blocks[1].mlp.fc2.weight.data[:] = 0
    result = cka_heatmap({"vit": model}, loader(), ["mlp", "resid_post"])
    dead = result.labels.index("vit/blocks.1.mlp")
    assert np.isnan(result.matrix[dead]).all() and np.isnan(result.matrix).sum() == 2 * 4 - 1
    assert np.isfinite(result.statistic(np.nanmean)).all()


def test_fused_and_unfused_attention_give_one_heatmap():
    fused, unfused = vit(), vit()
    for block in unfused.blocks:
        block.attn.fused_attn = False
    result = cka_heatmap({"fused": fused, "unfused": unfused}, loader())
    np.testing.assert_allclose(result.between("fused", "unfused").matrix, result.between("fused").matrix, atol=1e-5)


@pytest.mark.fault("Measures", "an untrained deep network (resnet200)", "its CKA is that of float64, not 0 or NaN")
def test_an_untrained_deep_network_whose_activations_grow_from_layer_to_layer():
    torch.manual_seed(0)
    model = timm.create_model("resnet200", num_classes=3, zero_init_last=False).eval()
    model.pretrained_cfg = {**CONFIG, "input_size": (3, 64, 64)}
    taps = taps_for(model)
    result = cka_heatmap({"deep": model}, [pictures(6, 64)], {"deep": taps})
    mean, std = (torch.tensor(CONFIG[key]).view(3, 1, 1) for key in ("mean", "std"))

    def row64(x: Tensor) -> Tensor:
        x = x.double().flatten(1)
        x = x - x.mean(0)
        x = x / x.abs().max()
        gram = x @ x.T
        gram = gram - gram.diag().diag()
        n, one = len(x), torch.ones(len(x), 1, dtype=torch.float64)
        sides = gram @ one @ one.T / (n - 2)
        return (gram - sides - sides.T + gram.sum() / ((n - 1) * (n - 2)) * one @ one.T)[~torch.eye(n, dtype=bool)]

    with torch.inference_mode(), capture(model, taps, row64) as out:
        model((pictures(6, 64) / 255 - mean) / std)
    rows = nn.functional.normalize(torch.stack(list(out.values())), eps=0)
    np.testing.assert_allclose(result.matrix, rows @ rows.T, atol=2e-3)
    assert result.sums.self_x.max() > torch.finfo(torch.float32).max


@pytest.mark.fault("Measures", "images that are there twice in what a heat-map reads", "counted in a warning")
def test_images_that_are_there_twice_are_counted_in_a_warning():
    images = pictures(24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = cka_heatmap({"vit": vit()}, images.split(8), ["resid_post"])
        cka_heatmap({"vit": vit()}, (images / 255).split(8), ["resid_post"], preprocess={"vit": lambda x: x})
    twice = torch.cat([images, images[:5], images[:1]])  # across batches, and one within a batch
    for stream in (twice.split(8), DataLoader(twice, batch_size=8)):
        with pytest.warns(UserWarning, match="6 of 30 images have exactly the pixels of earlier ones") as caught:
            found = cka_heatmap({"vit": vit()}, stream, ["resid_post"])
        assert len(caught) == 1 and caught[0].filename == __file__
        assert found.n_images == 30 and plain.n_images == 24
    with pytest.warns(UserWarning, match="12 of 24 images"):
        halves = torch.cat([images[:12].permute(0, 1, 3, 2)] * 2).bfloat16().permute(0, 1, 3, 2)
        cka_heatmap({"vit": vit()}, [halves], ["resid_post"], preprocess={"vit": lambda x: x.float() / 255})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_halves_for_gram_matrices_of_any_size(dtype, scale):
    def sized(factor: float) -> nn.Module:
        layer = nn.Conv2d(3, 8, 3)
        layer.load_state_dict({"weight": factor * filters, "bias": torch.zeros(8)})
        return nn.Sequential(layer, nn.ReLU())

    filters = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    models = {"plain": sized(1.0), "scaled": sized(scale)}
    taps = dict.fromkeys(models, [Tap("0", "0", "output"), Tap("1", "1", "output")])
    as_it_is = dict.fromkeys(models, lambda x: x / 255)
    half = cka_heatmap(models, [pictures(16)], taps, gram_dtype=dtype, preprocess=as_it_is).matrix
    exact = cka_heatmap(models, [pictures(16)], taps, gram_dtype=torch.float64, preprocess=as_it_is).matrix
    np.testing.assert_allclose(half, exact, atol=1e-2)
    np.testing.assert_allclose(half[:2, 2:].diagonal(), 1, atol=1e-3)


def test_lower_and_higher_precision_of_the_gram_matrices():
    results = {
        dtype: cka_heatmap({"vit": vit()}, loader(), ["resid_mid", "attn"], gram_dtype=dtype)
        for dtype in (torch.float32, torch.float64, torch.bfloat16)
    }
    exact = results[torch.float64].matrix
    np.testing.assert_allclose(results[torch.float32].matrix, exact, atol=2e-5)
    np.testing.assert_allclose(results[torch.bfloat16].matrix, exact, atol=1e-2)
    assert results[torch.bfloat16].dtype == "bfloat16"


FAMILIES = {
    "deit_tiny_distilled_patch16_224": {"img_size": 32, "depth": 2},
    "vit_small_patch14_reg4_dinov2": {"img_size": 28, "depth": 2},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "depths": (1, 1, 1, 1)},
    "pit_ti_224": {"img_size": 64},
    "beit_base_patch16_224": {"img_size": 32, "depth": 1},
    "resnet26": {},
    "resnetv2_18": {},
    "convnext_atto": {},
    "mixer_s32_224": {"img_size": 64},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_goes_through(name):
    size = FAMILIES[name].get("img_size", 64)
    model = make(name, **FAMILIES[name])
    result = cka_heatmap({name: model}, pictures(16, size).split(8), preprocess={name: lambda x: x / 255})
    alive = np.isfinite(result.matrix.diagonal())
    assert alive.mean() > 0.5 and len(alive) == len(taps_for(model))
    np.testing.assert_allclose(result.matrix.diagonal()[alive], 1, atol=1e-6)
    np.testing.assert_allclose(result.matrix, result.matrix.T, atol=1e-6)
    assert np.nanmax(np.abs(result.matrix)) < 1.001


def test_windows_are_not_images():
    model = make("swin_tiny_patch4_window7_224", img_size=64, depths=(1, 1, 1, 1))
    inside = {"swin": taps_named(model, ["layers.0.blocks.0.attn.proj"])}  # (images × windows, …)
    with pytest.raises(ValueError, match="first axis is not the 8 images"):
        cka_heatmap({"swin": model}, [pictures(8, 64)], inside, preprocess={"swin": lambda x: x / 255})


def test_rows_are_all_that_a_tap_keeps():
    model = vit()
    with torch.inference_mode(), capture(model, taps_for(model), gram_row) as rows:
        model(torch.randn(6, 3, 32, 32))
    assert all(row.untyped_storage().nbytes() == 6 * 6 * 4 for row in rows.values())


RANK = """
import sys
import helpers  # before timm
import torch.distributed as dist
from test_heatmap import cka_heatmap, loader, vit
rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
cka_heatmap({"vit": vit()}, loader(), ["resid_mid", "resid_post"], shuffle=1).save(out)
dist.destroy_process_group()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file store of gloo")
def test_two_processes_give_the_result_of_one(root, tmp_path):
    outs = [tmp_path / f"{rank}.safetensors" for rank in range(2)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests" / "measures")]),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), "2", str(tmp_path / "store"), str(out)], cwd=root, env=environment
        )
        for rank, out in enumerate(outs)
    ]
    try:
        assert [process.wait(timeout=900) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    single = cka_heatmap({"vit": vit()}, loader(), ["resid_mid", "resid_post"], shuffle=1)
    for out in outs:
        result = CKAResult.load(out)
        assert result.info == single.info
        for name, value in vars(single.sums).items():
            np.testing.assert_allclose(getattr(result.sums, name), value, rtol=1e-6)
        np.testing.assert_allclose(result.control.matrix, single.control.matrix, atol=1e-6)
        np.testing.assert_allclose(result.stderr, single.stderr, atol=1e-6)


@pytest.mark.fault("Measures", "a string in place of kinds of taps", "refused, with the list that it should be")
@pytest.mark.parametrize("kinds", ["resid_post", {"vit": "resid_post"}])
def test_a_string_is_no_list_of_kinds(kinds):
    with pytest.raises(ValueError, match=r"\['resid_post'\]; got the string"):
        cka_heatmap({"vit": vit()}, [pictures(8)], kinds)
