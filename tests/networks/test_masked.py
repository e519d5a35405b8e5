"""The masked autoencoder: what it sees, what it is asked for, and that its encoder alone is stored."""

from dataclasses import replace

import pytest
import torch
from test_training import once_and_often, same
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from helpers.networks import training, zoo
from helpers.networks.catalogue import Card, Recipe
from helpers.networks.masked import SEEN, MaskedAutoencoder, choose

RECIPE = Recipe(
    images_seen=480, distinct_images=96, batch=16, objective="masked pixels", augmented=False, position_decay=False
)
VIT = Card("tiny-mae", "vit", "a tiny autoencoder", {"embed_dim": 32, "depth": 2, "num_heads": 2}, RECIPE)
QUICK = {"test_scenes": 16, "progress": False}


@pytest.fixture
def autoencoder():
    torch.manual_seed(0)
    return MaskedAutoencoder(VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)).eval()


def test_a_quarter_of_the_patches_is_seen_and_each_once():
    seen, unseen = choose(5, 64, torch.Generator().manual_seed(0))
    assert seen.shape == (5, 64 * SEEN) and unseen.shape == (5, 64 - 64 * SEEN)
    assert torch.cat([seen, unseen], 1).sort(1).values.equal(torch.arange(64).expand(5, -1))
    assert not seen[0].sort().values.equal(seen[1].sort().values)


@torch.inference_mode()
def test_what_is_not_seen_changes_nothing(autoencoder):
    """Pixels of unseen patches cannot reach a prediction, and those of a seen one do."""
    images, seen = torch.randn(2, 3, 32, 32), torch.tensor([[0, 5, 7, 10]]).expand(2, -1)
    before = autoencoder(images, seen)
    hidden, shown = images.clone(), images.clone()
    hidden[:, :, 0:8, 8:16] += 1  # patch 1
    shown[:, :, 8:16, 8:16] += 1  # patch 5
    assert before.shape == (2, 16, 192)
    assert torch.equal(autoencoder(hidden, seen), before)
    assert not torch.allclose(autoencoder(shown, seen), before)


@torch.inference_mode()
def test_the_order_in_which_patches_are_seen_changes_nothing(autoencoder):
    images = torch.randn(2, 3, 32, 32)
    one, other = (torch.tensor([order]).expand(2, -1) for order in ([0, 5, 7, 10], [7, 0, 10, 5]))
    torch.testing.assert_close(autoencoder(images, one), autoencoder(images, other))


@torch.inference_mode()
def test_the_loss_is_that_of_the_normalised_pixels_of_unseen_patches(autoencoder, monkeypatch):
    """By hand, patch by patch; a decoder that knows the answer has none."""
    images, generator = torch.randn(3, 3, 32, 32), torch.Generator().manual_seed(1)
    seen, unseen = choose(3, 16, torch.Generator().manual_seed(1))
    predicted, squares = autoencoder(images, seen), []
    for i in range(3):
        for patch in unseen[i].tolist():
            y, x = divmod(patch, 4)
            wanted = images[i, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].flatten()
            wanted = (wanted - wanted.mean()) / (wanted.var() + 1e-3).sqrt()
            squares.append((predicted[i, patch] - wanted).square().mean())
    torch.testing.assert_close(autoencoder.loss(images, generator), torch.stack(squares).mean())

    answers = F.unfold(images, 8, stride=8).transpose(1, 2)
    answers = F.layer_norm(answers, (192,), eps=0) * (191 / 192) ** 0.5
    monkeypatch.setattr(autoencoder, "forward", lambda *_: answers)
    assert autoencoder.loss(images, generator) < 1e-5


def test_the_encoder_is_stored_without_accuracies_and_a_supervised_run_starts_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    encoder = training.train(VIT, tmp_path, **QUICK)
    assert isinstance(encoder, VisionTransformer) and "accuracy" not in zoo.card("tiny-mae")
    gap = {**VIT.architecture, "global_pool": "avg", "class_token": False, "fc_norm": False}
    monkeypatch.setitem(zoo.ZOO, "tiny-mae", VIT)
    tuned = training._start(replace(VIT, name="tuned", architecture=gap, start="tiny-mae", seed=3)).state_dict()
    stored = zoo.load("tiny-mae").state_dict()
    assert torch.equal(tuned["pos_embed"], stored["pos_embed"][:, 1:])  # the CLS token's place goes with it
    assert torch.equal(tuned["blocks.1.mlp.fc1.weight"], stored["blocks.1.mlp.fc1.weight"])
    assert not torch.equal(tuned["head.weight"], stored["head.weight"])


def test_stops_change_nothing(tmp_path, monkeypatch):
    """Encoder, decoder and optimisers after one run, and after one of several pieces."""
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    kept = once_and_often(VIT, tmp_path, (3, 16, 1))
    assert same(kept[0]["optimisers"], kept[1]["optimisers"])
    kept = [one["model"] for one in kept]
    assert all(torch.equal(kept[0][key], kept[1][key]) for key in kept[0]) and "mask_token" in kept[0]
    random = MaskedAutoencoder(zoo.build(VIT)).state_dict()
    assert all(not torch.equal(kept[0][key], random[key]) for key in ("mask_token", "encoder.pos_embed"))
