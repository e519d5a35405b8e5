"""Head subsets: outputs of heads, and their CKA with a ResNet against a plain computation."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import timm
import torch

from helpers.measures.attention import attention_distance, attention_maps
from helpers.measures.cka import MinibatchCKA, gram_row, row_of_gram
from helpers.measures.head_subsets import head_outputs, head_subsets, order_of_windows, windows
from helpers.networks.taps import capture, taps_for

CONFIG = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "input_size": (3, 32, 32)}


def pair(heads: int = 3):
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=heads)
    resnet = timm.create_model("resnet18")
    for model in (vit, resnet):
        model.eval().pretrained_cfg = CONFIG
    return vit, resnet


def batches(*sizes: int):
    draw = torch.Generator().manual_seed(1)
    return [torch.rand(n, 3, 32, 32, generator=draw) for n in sizes or (8, 8)]


def side_by_side(vit, resnet, chosen, batches, groups: int = 2, kept=slice(None)) -> MinibatchCKA:
    """CKA of subsets of the heads with the first stage of a ResNet-18, from features of patches laid side by side."""
    low, metric = taps_for(resnet, ["block"])[:2], MinibatchCKA(len(chosen), 2, groups)
    width = vit.embed_dim // vit.blocks[0].attn.num_heads
    for index, images in enumerate(batches):
        if len(images) < 4:
            continue
        with (
            torch.inference_mode(),
            capture(vit, [head_outputs(vit, "blocks.0.attn")]) as out,
            capture(resnet, low, gram_row) as rows,
        ):
            vit(images)
            resnet(images)
        x = out["blocks.0.attn.heads"][:, 1:][:, kept].unflatten(-1, (-1, width)).double()
        own = torch.stack([gram_row(x[:, :, list(c)]) for c in chosen])
        metric.update(own, torch.stack(list(rows.values())).double(), batch_index=index)
    return metric


def test_head_outputs_are_attention_times_values():
    vit, _ = pair()
    images = batches()[0]
    with torch.inference_mode(), attention_maps(vit) as maps, capture(vit, [head_outputs(vit, "blocks.0.attn")]) as out:
        vit(images)
        attn = vit.blocks[0].attn
        tokens = vit.blocks[0].norm1(vit._pos_embed(vit.patch_embed(images)))
        v = attn.qkv(tokens).unflatten(-1, (3, 3, 16))[:, :, 2].transpose(1, 2)
    wanted = (maps["blocks.0.attn"] @ v).transpose(1, 2).flatten(2)
    assert torch.allclose(out["blocks.0.attn.heads"], wanted, atol=1e-5)


def test_subsets_agree_with_features_laid_side_by_side():
    vit, resnet = pair()
    table = head_subsets(vit, resnet, batches(), groups=2)
    assert set(table["subset"]) == {"0", "1", "2", "0 1", "0 2", "1 2"} and len(table) == 6 * 3
    chosen = [c for k in (1, 2) for c in combinations(range(3), k)]
    sums = side_by_side(vit, resnet, chosen, batches()).sums()
    for left_out in (-1, 0, 1):
        wanted = sums.cka(None if left_out < 0 else left_out).mean(1)
        assert np.allclose(table.loc[table["left_out"] == left_out, "cka"], wanted, atol=1e-5)
    whole = table[table["left_out"] == -1]
    distance = attention_distance(vit, batches(), groups=2).query("block == 0 and left_out == -1")["distance"]
    wanted = [distance.to_numpy()[list(c)].mean() for c in chosen]
    assert np.allclose(whole["distance"], wanted, rtol=1e-4)
    assert -1 <= order_of_windows(whole) <= 1
    assert len(vit.blocks) == 2  # only the first was run, and both are back


def test_windows_follow_one_another_in_the_order_of_distances():
    distance, cka = {0: 30.0, 1: 10.0, 2: 40.0, 3: 20.0, 4: 50.0}, {(1, 3): 0.5, (0, 3): 0.7, (0, 2): 0.4, (2, 4): 0.1}
    chosen = [c for k in range(1, 5) for c in combinations(range(5), k)]
    rows = [(" ".join(map(str, c)), len(c), np.mean([distance[h] for h in c]), cka.get(c, 0.9)) for c in chosen]
    table = pd.DataFrame(rows, columns=["subset", "heads", "distance", "cka"]).sample(frac=1, random_state=0)
    found = windows(table)
    assert list(found["subset"]) == ["1 3", "0 3", "0 2", "2 4"]  # two of five; ranks of CKA: 3 4 2 1
    assert order_of_windows(table) == pytest.approx(1 - 6 * (4 + 4 + 1 + 9) / (4 * 15))
    three = table[table["subset"].isin(["0", "1", "2", "0 1", "0 2", "1 2"])]
    assert list(windows(three)["subset"]) == ["1", "0", "2"]  # half of three heads, rounded down, is one


def test_corners_left_out_are_in_neither_distances_nor_outputs():
    vit, resnet = pair()
    kept = [i for i in range(16) if i not in (0, 3, 12, 15)]
    table = head_subsets(vit, resnet, batches(), groups=2, corners=False).query("left_out == -1 and heads == 1")
    found = attention_distance(vit, batches(), groups=2, corners=False).query("block == 0 and left_out == -1")
    assert np.allclose(table["distance"], found["distance"], rtol=1e-4)
    metric = side_by_side(vit, resnet, [(0,), (1,), (2,)], batches(), kept=kept)
    assert np.allclose(table["cka"], metric.sums().cka(None).mean(1), atol=1e-5)


@pytest.mark.parametrize("heads", [12, 16])
def test_many_heads_cost_no_more_than_their_own_gram_matrices(heads, monkeypatch):
    vit, resnet = pair(heads)
    calls = []
    monkeypatch.setattr("helpers.measures.head_subsets.row_of_gram", lambda gram: calls.append(1) or row_of_gram(gram))
    table = head_subsets(vit, resnet, batches(), groups=2)
    assert len(table) == 3 * (2**heads - 2) and len(calls) == 2 * heads
    chosen = [(0,), (0, 5), (1, 4, 7, 10), tuple(range(1, heads))]
    wanted = side_by_side(vit, resnet, chosen, batches()).compute().mean(1)
    whole = table[table["left_out"] == -1].set_index("subset")["cka"]
    assert np.allclose(whole[[" ".join(map(str, c)) for c in chosen]], wanted, atol=1e-5)


def test_a_small_batch_in_between_leaves_groups_of_cka_and_of_distance_aligned():
    vit, resnet = pair()
    sizes = (8, 3, 8, 8, 8)  # groups 0, –, 0, 1, 0 of two
    table = head_subsets(vit, resnet, batches(*sizes), groups=2)
    chosen = [c for k in (1, 2) for c in combinations(range(3), k)]
    sums = side_by_side(vit, resnet, chosen, batches(*sizes)).sums()
    assert list(sums.batches) == [3, 1]
    for left_out in (0, 1):
        part = table[table["left_out"] == left_out]
        assert np.allclose(part["cka"], sums.cka(left_out).mean(1), atol=1e-5)
        kept = [images for i, images in enumerate(batches(*sizes)) if len(images) > 3 and i % 2 != left_out]
        kept = [part for images in kept for part in images.chunk(2)]
        distance = attention_distance(vit, kept, groups=2).query("block == 0 and left_out == -1")["distance"]
        assert np.allclose(part["distance"], [distance.to_numpy()[list(c)].mean() for c in chosen], rtol=1e-4)


def test_resnets_of_the_second_kind_and_convnexts_are_cut_after_their_first_stage_too():
    vit, _ = pair()
    small = {"layers": (1, 1, 1, 1), "channels": (16, 16, 16, 16), "stem_chs": 8}
    for name, options in (("resnetv2_50", small), ("convnext_atto", {})):
        other = timm.create_model(name, **options).eval()
        other.pretrained_cfg = CONFIG
        assert head_subsets(vit, other, batches(), groups=2)["cka"].notna().all()


def test_what_cannot_be_compared_is_refused():
    vit, resnet = pair(heads=1)
    with pytest.raises(ValueError, match="single head"):
        head_subsets(vit, resnet, batches(), groups=2)
    vit, resnet = pair()
    with pytest.raises(ValueError, match="as many batches"):
        head_subsets(vit, resnet, batches(), groups=3)
    with pytest.raises(ValueError, match="1 of fewer than 4 images were left out; use larger batches or more images"):
        head_subsets(vit, resnet, batches(8, 8, 3), groups=3)
    with pytest.raises(ValueError, match="two jackknife groups"):
        head_subsets(vit, resnet, batches(), groups=1)
    with pytest.raises(ValueError, match="24 heads in blocks.0.attn, and 16,777,214 subsets .* at most 16"):
        head_subsets(pair(heads=24)[0], resnet, batches(), groups=2)
    swin = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=24, depths=(2,), num_heads=(3,)).eval()
    with pytest.raises(ValueError, match="attends within windows"):
        head_subsets(swin, resnet, batches(), groups=2)
    with pytest.raises(ValueError, match="has no attention"):
        head_subsets(resnet, resnet, batches(), groups=2)
