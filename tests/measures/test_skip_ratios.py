"""Skip connections: ratios against sums written out by hand."""

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from torch import nn

from helpers.measures.skip_ratios import (
    ORDINARY,
    _measure,
    class_token_excess,
    halves,
    late_mlp,
    median_ratio,
    of_tokens,
    right_angle,
    skip_ratios,
    sublayers,
)
from helpers.networks.taps import Tap, capture
from helpers.uncertainty import jackknife

CONFIG = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


def pictures(count: int = 4, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def make(name: str, **arguments) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **arguments).eval()
    for weight, parameter in model.named_parameters():  # timm starts some branches at zero or nearly
        if parameter.ndim == 1 and parameter.abs().max() < 1e-3 and not weight.endswith("bias"):
            nn.init.normal_(parameter, std=0.5)
    model.pretrained_cfg = CONFIG
    return model


def vit(**options) -> nn.Module:
    torch.manual_seed(0)
    settings = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 4, "num_heads": 3, "num_classes": 4}
    model = timm.models.VisionTransformer(**{**settings, **options}).eval()
    model.pretrained_cfg = CONFIG
    return model


def by_hand(z: torch.Tensor, f: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Ratio and the three cosines of each token (B, T, D), in float64."""
    z, f = z.double(), f.double()
    cosine = torch.nn.functional.cosine_similarity
    return z.norm(dim=-1) / f.norm(dim=-1), cosine(z + f, z, -1), cosine(z + f, f, -1), cosine(z, f, -1)


@torch.inference_mode()
def test_the_ratios_of_a_small_vit_by_hand():
    model, images = vit(), pictures(6)
    found = skip_ratios(model, [images[:4], images[4:]], groups=2)
    table = found.table()
    x = model._pos_embed(model.patch_embed(images))
    for number, block in enumerate(model.blocks):
        for branch, norm, f in (("attention", block.norm1, block.attn), ("MLP", block.norm2, block.mlp)):
            z, added = x, f(norm(x))
            x = z + added
            each = by_hand(z, added)
            rows = table[(table["block"] == number) & (table["branch"] == branch)]
            for left_out, kept in ((-1, slice(None)), (0, slice(4, 6)), (1, slice(0, 4))):
                for kind, where in (("all", slice(None)), ("CLS", slice(0, 1)), ("patches", slice(1, None))):
                    row = rows[(rows["tokens"] == kind) & (rows["left_out"] == left_out)].iloc[0]
                    for name, values in zip(("ratio", "cos_skip", "cos_branch", "cos_between"), each, strict=True):
                        assert row[name] == pytest.approx(values[kept, where].mean().item(), rel=1e-4, abs=1e-5)
                    norms = [part[kept, where].flatten(1).norm(dim=1) for part in (z, added)]
                    assert row["whole"] == pytest.approx((norms[0] / norms[1]).mean().item(), rel=1e-4)
            tokens = found.by_token().query("block == @number and branch == @branch")["ratio"]
            assert np.allclose(tokens, each[0].mean(0), rtol=1e-4)


def test_means_of_tokens_are_those_of_the_table_and_lack_those_left_out():
    found = skip_ratios(vit(depth=2), [pictures()], groups=1)
    about = ["sublayer", "block", "branch", "tokens"]
    table, means = (rows.set_index(about)["ratio"] for rows in (found.table(), of_tokens(found.by_token())))
    np.testing.assert_allclose(means, table[means.index], rtol=1e-6)
    each = found.by_token().set_index(["sublayer", "token"])["ratio"]
    less = of_tokens(found.by_token(), [1, 3]).set_index(about)["ratio"].xs("patches", level="tokens")
    for sublayer, ratio in less.droplevel(["block", "branch"]).items():
        assert ratio == pytest.approx((each[sublayer, 2] + each[sublayer, 4]) / 2)


def test_scaled_branches_divide_the_ratio_and_only_whole_images_follow_one_large_token():
    model = vit(depth=1, init_values=0.5)
    before = skip_ratios(model, [pictures()]).table()
    model.blocks[0].ls1.gamma.data *= 10
    after = skip_ratios(model, [pictures()]).table()
    same = "branch == 'attention' and tokens == 'patches' and left_out == -1"
    a, b = (table.query(same).iloc[0] for table in (before, after))
    assert b["ratio"] == pytest.approx(a["ratio"] / 10, rel=1e-5)
    model.pos_embed.data[0, 3] *= 1e4  # one token becomes massive
    c = skip_ratios(model, [pictures()]).table().query(same).iloc[0]
    assert c["whole"] > 1.5 * c["ratio"]  # of four patches: its ratio over √4, not over 4


ARCHITECTURES = {  # arguments, size, branches of a block, kinds of tokens
    "vit_tiny_patch16_224": ({"img_size": 32, "depth": 2}, 32, 2, 5),
    "deit_tiny_distilled_patch16_224": ({"img_size": 32, "depth": 2}, 32, 2, 5),
    "vit_small_patch14_reg4_dinov2": ({"img_size": 28, "depth": 2, "init_values": 0.3}, 28, 2, 5),
    "vit_medium_patch16_reg4_gap_256": ({"img_size": 32, "depth": 2, "init_values": 0.3}, 32, 2, 4),
    "vit_medium_patch16_rope_reg1_gap_256": ({"img_size": 32, "depth": 2, "init_values": 0.3}, 32, 2, 4),
    "vit_relpos_small_patch16_224": ({"img_size": 32, "depth": 2}, 32, 2, 4),
    "beit_base_patch16_224": ({"img_size": 32, "depth": 2, "init_values": 0.3}, 32, 2, 5),
    "swin_tiny_patch4_window7_224": ({"img_size": 64, "depths": (1, 1, 2, 1)}, 64, 2, 2),
    "pit_ti_224": ({"img_size": 64}, 64, 2, 3),
    "mixer_s32_224": ({"img_size": 64}, 64, 2, 4),
    "resnet18": ({}, 64, 1, 2),
    "seresnet50": ({}, 64, 1, 2),
    "resnetv2_18": ({}, 64, 1, 2),
    "resnetv2_50x1_bit": ({}, 64, 1, 2),
    "convnext_atto": ({}, 64, 1, 2),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_real_architectures_skip_and_branch_add_up_to_the_stream(name):
    arguments, size, count, kinds = ARCHITECTURES[name]
    model, images = make(name, **arguments), pictures(2, size)
    layers = sublayers(model)
    assert len(layers) == count * (layers[-1].block + 1)
    ends = [Tap(f"{layer.name}.end", layer.name.rpartition(".")[0], "output") for layer in layers[count - 1 :: count]]
    taps = [*(layer.skip for layer in layers), *(layer.long for layer in layers), *ends]
    with torch.inference_mode(), capture(model, taps) as out:
        model(images)
    for layer, end in zip(layers[count - 1 :: count], ends, strict=True):
        total = out[layer.skip.name].flatten(1) + out[layer.long.name].flatten(1)
        total = total.relu() if "resnet" in name and "v2" not in name else total  # v1 ends a block with a ReLU
        assert torch.allclose(total, out[end.name].flatten(1), atol=1e-4, rtol=1e-4), layer.name
    found = skip_ratios(model, [images[:1], images[1:]], groups=2)
    table = found.table()
    assert len(found.tokens) == kinds and np.isfinite(table.select_dtypes("number").to_numpy()).all()
    assert len(table) == len(layers) * kinds * 3
    layer = layers[-1]
    z, f = (out[tap.name] for tap in (layer.skip, layer.long))
    if layer.branch == "block":
        z, f = (x.flatten(2).transpose(1, 2) for x in (z, f))
    wanted = [values.mean().item() for values in by_hand(z.flatten(1, -2), f.flatten(1, -2))]
    row = table.query("sublayer == @layer.name and tokens == 'all' and left_out == -1").iloc[0]
    assert row[["ratio", "cos_skip", "cos_branch", "cos_between"]].tolist() == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_the_skip_of_a_block_with_a_convolution_in_its_shortcut_is_what_comes_out_of_it():
    for name, first in (("resnet26", "layer2.0"), ("resnetv2_50", "stages.1.blocks.0")):
        layer = next(layer for layer in sublayers(make(name)) if layer.name == f"{first}.branch")
        assert (layer.skip.module, layer.skip.where) == (f"{first}.downsample", "output")


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="no residual branches that are known"):
        sublayers(make("swinv2_cr_tiny_224", img_size=64, window_size=2))  # post-norm
    with pytest.raises(ValueError, match="no residual branches"):
        sublayers(nn.Sequential(nn.Conv2d(3, 3, 1)))
    with pytest.raises(ValueError, match="no images"):
        skip_ratios(vit(), [])
    with pytest.raises(ValueError, match="groups is a whole number, at least 1; got 0"):
        skip_ratios(vit(), [pictures()], groups=0)
    model = vit()
    nn.init.zeros_(model.blocks[1].mlp.fc2.weight)
    with pytest.raises(ValueError, match="blocks.1.mlp: the branch is zero"):
        skip_ratios(model, [pictures()])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_tokens_to_which_a_branch_gives_nothing_are_left_out_and_counted():
    z, f = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    f[0, 1] = 0
    z[1, 2] = 0
    measured = _measure(z, f, -1)
    each = measured.sum(1)
    assert each[4].tolist() == [5, 4, 5] and each[5].tolist() == [5, 5, 5]
    ratio, *cosines = (part.nan_to_num(posinf=0.0) for part in by_hand(z, f))
    assert torch.allclose(each[0], ratio.sum(0)) and each[0].isfinite().all()
    assert torch.allclose(each[1, [0, 2]], cosines[0].sum(0)[[0, 2]])
    for row, x in zip(measured[6:], (z, f, z + f), strict=True):
        assert torch.allclose(row, x.double().square().sum(-1), rtol=1e-5)


def test_massive_tokens_are_left_out_of_ordinary_ones_at_all_places():
    """One token of two images is made massive by the last branch alone; by hand without it, everywhere."""
    model, images = vit(depth=2, patch_size=8), pictures(6)
    plain = skip_ratios(model, [images], groups=1).table().set_index(["sublayer", "tokens"])
    assert (plain["massive"] == 0).all()
    for kind, ordinary in ORDINARY.items():
        a, b = (plain.xs(name, level="tokens").drop(columns=["block", "branch"]) for name in (kind, ordinary))
        np.testing.assert_allclose(a.to_numpy(), b.to_numpy())

    def enlarge(module, args, output):
        output = output.clone()
        output[[1, 4], 1 + 3] *= 1e4
        return output

    hook = model.blocks[1].mlp.register_forward_hook(enlarge)
    kept = torch.ones(6, 16, dtype=torch.bool)
    kept[[1, 4], 3] = False
    first = sublayers(model)[0]
    with torch.inference_mode(), capture(model, [first.skip, first.long]) as out:
        table = skip_ratios(model, [images], groups=1).table().set_index(["sublayer", "tokens"])
        model(images)
    hook.remove()
    ratio = by_hand(out[first.skip.name], out[first.long.name])[0][:, 1:]
    row = table.loc[first.name, "ordinary patches"]
    assert row["ratio"] == pytest.approx(ratio[kept].mean().item(), rel=1e-5) != pytest.approx(ratio.mean().item())
    assert row["massive"] == pytest.approx(2 / 96) and table.loc[first.name, "patches"]["massive"] == 0
    norms = [(out[tap.name][:, 1:].square().sum(-1) * kept).sum(1).sqrt() for tap in (first.skip, first.long)]
    assert row["whole"] == pytest.approx((norms[0] / norms[1]).mean().item(), rel=1e-5)


def test_modes_are_restored():
    model = vit().train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    skip_ratios(model, [pictures()])
    assert [module.training for module in model.modules()] == modes


def toy(cls: list[float], patches: list[float], mlp: float = 0.0) -> pd.DataFrame:
    rows = []
    for left_out in (-1, 0, 1):
        for block, (c, p) in enumerate(zip(cls, patches, strict=True)):
            for branch in ("attention", "MLP"):
                shift = mlp if branch == "MLP" else -mlp
                kinds = {"CLS": c + shift, "patches": p + shift, "ordinary patches": 1.0}
                kinds |= {"all": (c + p) / 2, "ordinary": c}
                for tokens, ratio in kinds.items():
                    rows.append((f"{block}.{branch}", block, branch, tokens, left_out, ratio))
    return pd.DataFrame(rows, columns=["sublayer", "block", "branch", "tokens", "left_out", "ratio"])


def test_the_statistics_of_the_claims():
    table = toy([5, 6, 2, 1], [1, 2, 4, 6], mlp=0.5)
    part = table[table["left_out"] == -1]
    assert class_token_excess(part).tolist() == [4, 4, -2, -5]
    assert halves(part).tolist() == [4, -3.5, 1]
    assert halves(toy([5, 1, 5, 1], [3] * 4).query("left_out == -1")).tolist() == [0, 0, 3]
    assert class_token_excess(part, "ordinary patches").tolist() == [4, 5, 1, 0]
    assert halves(part, "ordinary patches")[:2].tolist() == [4.5, 0.5]
    assert late_mlp(part) == pytest.approx(1)
    assert median_ratio(part) == pytest.approx(3.25) and median_ratio(part, "ordinary") == pytest.approx(3.5)
    value, stderr = jackknife(halves, table)
    assert value.tolist() == [4, -3.5, 1] and not stderr.any()


def test_right_angles():
    ratio = np.array([0.5, 1.0, 4.0])
    skip, branch = right_angle(ratio)
    assert np.allclose(skip**2 + branch**2, 1) and np.allclose(skip / branch, ratio)
    z, f = torch.eye(2, dtype=torch.double)
    cosines = by_hand(4 * z, f)
    assert [float(c) for c in cosines[1:]] == pytest.approx([skip[2], branch[2], 0])
