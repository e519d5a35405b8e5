"""The class token's attention: maps are rows of the attention maps, and shares on masks are those counted by hand."""

import pytest
import timm
import torch

from helpers import uncertainty
from helpers.measures.attention_maps import attention_maps
from helpers.measures.class_attention import class_attention, on_object_by_head
from helpers.measures.rollout import share_on
from helpers.networks import zoo
from helpers.networks.inputs import normalise


def pictures(count: int, size: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_maps_are_the_class_tokens_rows_over_patches():
    model = zoo.load("vit", pretrained=False, seed=3)
    images = pictures(5)
    found = class_attention(model, images.split(3), chunk=2)
    heads = model.blocks[0].attn.num_heads
    assert found.shape == (5, 8, heads, 8, 8)
    torch.testing.assert_close(found.sum((3, 4)), torch.ones(5, 8, heads))
    with torch.inference_mode(), attention_maps(model) as maps:
        model(normalise(model, images))
    row = maps["blocks.5.attn"][2, heads - 1, 0, 1:]
    torch.testing.assert_close(found[2, 5, heads - 1].flatten(), row / row.sum())


def test_registers_are_left_out():
    model = timm.create_model("test_vit", img_size=64, patch_size=16, depth=2, reg_tokens=4)
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 64, 64)}
    found = class_attention(model, [pictures(2)])
    assert found.shape == (2, 2, model.blocks[0].attn.num_heads, 4, 4)
    torch.testing.assert_close(found.sum((3, 4)), torch.ones(found.shape[:3]))


def test_shares_of_heads_that_are_known():
    masks = torch.zeros(6, 8, 8, dtype=torch.bool)
    for i, mask in enumerate(masks):
        mask[:4, 4 * (i % 2) : 4 * (i % 2) + 4] = True  # a quarter, in one of two corners
    covered = torch.nn.functional.avg_pool2d(masks.float()[:, None], 4)[:, 0]  # (6, 2, 2)
    flat = torch.full((6, 2, 2), 0.25)
    above = torch.tensor([[0.5, 0.5], [0.0, 0.0]]).expand(6, 2, 2)  # knows where objects are, and not where this one is
    maps = torch.stack([flat, covered, above], dim=1)[:, None]  # one block, three heads
    table = on_object_by_head(maps, masks, groups=3)
    rows = uncertainty.whole(table).set_index("head")
    assert rows["area"].tolist() == [0.25] * 3
    assert rows["ratio"].tolist() == [1, 4, 2] and rows["specific"].tolist() == pytest.approx([1, 2, 1])
    ragged = torch.rand(6, 1, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    ragged = ragged / ragged.sum((3, 4), keepdim=True)
    uneven = torch.rand(6, 8, 8, generator=torch.Generator().manual_seed(2)) > 0.5
    table = on_object_by_head(ragged, uneven, groups=3)
    kept = torch.arange(6) % 3 != 1
    row = table[(table["head"] == 1) & (table["left_out"] == 1)].iloc[0]
    assert row["own"] == pytest.approx(float(share_on(ragged[kept, 0, 1], uneven[kept]).mean()), rel=1e-5)
    mean_map = ragged[kept, 0, 1].mean(0).expand(4, 4, 4)
    assert row["common"] == pytest.approx(float(share_on(mean_map, uneven[kept]).mean()), rel=1e-5)


def test_networks_without_a_class_token_and_wrong_input_are_refused():
    gap = zoo.load("vit-gap", pretrained=False)
    small = {"img_size": 64, "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 1), "window_size": 4}
    swin = timm.create_model("swin_tiny_patch4_window7_224", **small)
    for model in (gap, swin):
        with pytest.raises(ValueError, match="no class token"):
            class_attention(model, [pictures(2)])
    with pytest.raises(ValueError, match="no attention"):
        class_attention(timm.create_model("test_resnet"), [pictures(2)])
    vit = zoo.load("vit", pretrained=False)
    with pytest.raises(ValueError, match="no images were given"):
        class_attention(vit, [])
    with pytest.raises(ValueError, match="chunk is a whole number"):
        class_attention(vit, [pictures(2)], chunk=0)
    maps, masks = torch.rand(4, 1, 1, 2, 2), torch.ones(4, 4, 4, dtype=torch.bool)
    for groups, some, why in (
        (1, masks, "two groups|two jackknife"),
        (5, masks, "5 groups"),
        (2, masks[:3], "mask each"),
    ):
        with pytest.raises(ValueError, match=why):
            on_object_by_head(maps, some, groups)
    with pytest.raises(ValueError, match="do not divide"):
        on_object_by_head(maps, torch.ones(4, 5, 5, dtype=torch.bool), 2)
