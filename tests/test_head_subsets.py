"""Head subsets: outputs of heads, and their CKA with a ResNet against a plain computation."""

from itertools import combinations

import numpy as np
import pytest
import timm
import torch

from helpers.attention import attention_distance, attention_maps
from helpers.cka import MinibatchCKA, gram_row
from helpers.head_subsets import head_outputs, head_subsets, order_of_subsets
from helpers.taps import capture, taps_for

CONFIG = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "input_size": (3, 32, 32)}


def pair(heads: int = 3):
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=heads)
    resnet = timm.create_model("resnet18")
    for model in (vit, resnet):
        model.eval().pretrained_cfg = CONFIG
    return vit, resnet


def batches(count: int = 2):
    draw = torch.Generator().manual_seed(1)
    return [torch.rand(8, 3, 32, 32, generator=draw) for _ in range(count)]


def test_head_outputs_are_attention_times_values():
    vit, _ = pair()
    images = batches(1)[0]
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
    low, chosen = taps_for(resnet, ["block"])[:2], [c for k in (1, 2) for c in combinations(range(3), k)]
    metric = MinibatchCKA(6, 2, 2)
    for images in batches():
        with (
            torch.inference_mode(),
            capture(vit, [head_outputs(vit, "blocks.0.attn")]) as out,
            capture(resnet, low, gram_row) as rows,
        ):
            vit(images)
            resnet(images)
        x = out["blocks.0.attn.heads"][:, 1:].unflatten(-1, (3, 16))
        metric.update(torch.stack([gram_row(x[:, :, list(c)]) for c in chosen]), torch.stack(list(rows.values())))
    whole = table[table["left_out"] == -1]
    assert np.allclose(whole["cka"], metric.compute().mean(1), atol=1e-4)
    distance = attention_distance(vit, batches(), groups=2).query("block == 0 and left_out == -1")["distance"]
    wanted = [distance.to_numpy()[list(c)].mean() for c in chosen]
    assert np.allclose(whole["distance"], wanted, rtol=1e-4)
    assert -1 <= order_of_subsets(whole) <= 1
    assert len(vit.blocks) == 2  # only the first was run, and both are back


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
    with pytest.raises(ValueError, match="has no attention"):
        head_subsets(resnet, resnet, batches(), groups=2)
