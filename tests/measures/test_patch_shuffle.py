"""Shuffled patches: each is still there once, a ViT without positions cannot tell, and shares are counted right."""

import pytest
import timm
import torch
from torch import nn

from helpers import uncertainty
from helpers.measures import patch_shuffle
from helpers.measures.patch_embedding import cut
from helpers.measures.position_embedding import positions_replaced
from helpers.networks import zoo


def pictures(count: int, size: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_every_patch_is_somewhere_and_each_image_has_its_own_order():
    images = pictures(2)[:1].repeat(3, 1, 1, 1)  # the same picture three times
    shuffled = patch_shuffle.shuffle_patches(images, 16)
    assert shuffled.dtype == torch.uint8 and not torch.equal(shuffled, images)
    before, after = (cut(x, (16, 16)).unflatten(0, (3, 16)).flatten(2).tolist() for x in (images, shuffled))
    assert all(sorted(a) == sorted(b) for a, b in zip(before, after, strict=True))
    assert not torch.equal(shuffled[0], shuffled[1])
    assert torch.equal(patch_shuffle.shuffle_patches(images, 64), images)  # one patch has one place
    later = patch_shuffle.shuffle_patches(images[1:], 16, first=1)
    assert torch.equal(later, shuffled[1:]) and not torch.equal(patch_shuffle.shuffle_patches(images, 16, 1), shuffled)
    with pytest.raises(ValueError, match="whole patches of 20 × 20"):
        patch_shuffle.shuffle_patches(images, 20)


@pytest.mark.parametrize(
    "options", [{"pos_embed": "none"}, {"pos_embed": "none", "class_token": False, "global_pool": "avg"}]
)
def test_a_vit_without_position_embeddings_cannot_notice(options):
    """Claim C10, exactly: its answer is a function of the set of its patches."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=64, patch_size=16, **options)
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 64, 64)}
    images = pictures(8)
    found = uncertainty.whole(patch_shuffle.shuffled_answers(model, [images], (16, 32, 8), groups=2))
    assert patch_shuffle.changed(found, 16) < 1e-5 and patch_shuffle.changed(found, 32) < 1e-5
    assert patch_shuffle.changed(found, 8) > 1e-3  # finer than its own patches
    with_positions = timm.create_model("test_vit", img_size=64, patch_size=16)
    nn.init.normal_(with_positions.pos_embed)
    with_positions.pretrained_cfg = model.pretrained_cfg
    found = uncertainty.whole(patch_shuffle.shuffled_answers(with_positions, [images], (16,), groups=2))
    assert patch_shuffle.changed(found, 16) > 1e-3
    with positions_replaced(with_positions, "mean"):
        found = uncertainty.whole(patch_shuffle.shuffled_answers(with_positions, [images], (16,), groups=2))
    assert patch_shuffle.changed(found, 16) < 1e-5


class Brightest(nn.Module):
    """Logits of four classes: the brightness of each quarter of an image, whatever is in it."""

    pretrained_cfg = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "input_size": (3, 64, 64)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 2).mean(1).flatten(1)


def test_shares_are_those_counted_by_hand_and_groups_are_left_out():
    labels = torch.arange(40) % 4
    images = torch.zeros(40, 3, 64, 64, dtype=torch.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = 200
    batches = [(images[:25], labels[:25]), (images[25:], labels[25:])]
    table = patch_shuffle.shuffled_answers(Brightest(), batches, (32, 64), groups=5)
    model = Brightest()
    moved = patch_shuffle.shuffle_patches(images, 32).float() / 255
    hits = (model(moved).argmax(1) == labels).double()
    found = uncertainty.whole(table).set_index("patch")
    assert found.loc[[0, 64], "accuracy"].tolist() == [1, 1] and found.loc[64, "change"] == 0
    assert found.loc[32, "accuracy"] == pytest.approx(float(hits.mean())) == found.loc[32, "kept"] < 0.6
    left_out = table[(table["patch"] == 32) & (table["left_out"] == 3)]["accuracy"].item()
    assert left_out == pytest.approx(float(hits[torch.arange(40) % 5 != 3].mean()))
    logits = model(images.float() / 255)
    change = float((model(moved) - logits).abs().max() / logits.std())
    assert patch_shuffle.changed(uncertainty.whole(table), 32) == pytest.approx(change, rel=1e-5)
    assert patch_shuffle.lost(uncertainty.whole(table), 32) == pytest.approx(100 * (1 - float(hits.mean())))
    unlabelled = uncertainty.whole(patch_shuffle.shuffled_answers(Brightest(), [images], (32,), groups=5))
    assert unlabelled["accuracy"].isna().all() and unlabelled["kept"].iloc[1] == found.loc[32, "kept"]


def test_modes_are_restored_and_wrong_input_is_refused():
    model = zoo.load("vit", pretrained=False).train()
    patch_shuffle.shuffled_answers(model, [pictures(4)], (8,), groups=2)
    assert model.training
    for batches, sizes, groups, why in (
        ([pictures(4)], (8,), 1, "two jackknife groups"),
        ([pictures(4)], (8,), 5, "5 groups need as many images; got 4"),
        ([pictures(4)], (7,), 2, "whole patches of 7 × 7"),
        ([(pictures(4), torch.zeros(3))], (8,), 2, "4 images has labels of shape"),
        ([], (8,), 2, "got 0"),
    ):
        with pytest.raises(ValueError, match=why):
            patch_shuffle.shuffled_answers(model, batches, sizes, groups=groups)
    model.reset_classifier(0)
    model.head = nn.Unflatten(1, (2, 64))
    with pytest.raises(ValueError, match="no logits"):
        patch_shuffle.shuffled_answers(model, [pictures(4)], (8,), groups=2)
