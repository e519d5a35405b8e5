"""What a network was trained to make small: its images, its loss, its penalty."""

from dataclasses import replace

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from helpers.images.scenes import render, split
from helpers.measures import objective
from helpers.networks import augmentation
from helpers.networks.catalogue import ZOO


@pytest.fixture
def card():
    return replace(ZOO["vit-short"], recipe=replace(ZOO["vit-short"].recipe, distinct_images=40))


def test_batches_are_scenes_of_the_training_each_under_a_symmetry(card):
    batches = objective.training_batches(card, 4, 10)
    images = torch.cat([images for images, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    known = render(card.corpus, split("train", 40))
    turned = torch.stack([f(known.images) for f in symmetries()], 1)  # (40, 8, 3, 64, 64)
    same = (images[:, None, None] == turned[None]).flatten(3).all(-1)  # (drawn, scene, symmetry)
    scene = same.any(2).float().argmax(1)
    assert sorted(scene.tolist()) == list(range(40)) and torch.equal(known.label[scene], labels)
    assert same.any(1).sum(0).min() >= 1  # each of the eight is drawn


def symmetries():
    turns = [lambda x, k=k: torch.rot90(x, k, (2, 3)) for k in range(4)]
    return turns + [lambda x, turn=turn: turn(x.flip(3)) for turn in turns]


def test_a_batch_does_not_depend_on_how_many_there_are(card):
    few, many = objective.training_batches(card, 1, 8), objective.training_batches(card, 5, 8)
    assert torch.equal(few[0][0], many[0][0]) and torch.equal(few[0][1], many[0][1])
    other = objective.training_batches(card, 1, 8, seed=1)
    assert not torch.equal(few[0][0], other[0][0])


@pytest.fixture
def strong(card):
    return replace(card, recipe=replace(card.recipe, strong=True))


def test_strongly_augmented_batches_are_those_of_the_recipe_with_shares_for_labels(card, strong):
    """The same scenes under the same symmetries, then changed and mixed; the same whatever the number of batches."""
    plain, few, many = (objective.training_batches(of, n, 8) for of, n in ((card, 2), (strong, 1), (strong, 3)))
    assert torch.equal(few[0][0], many[0][0]) and torch.equal(few[0][1], many[0][1])
    for (clean, labels), (images, shares) in zip(plain, many, strict=False):
        assert images.shape == clean.shape and images.dtype == torch.uint8 and not torch.equal(images, clean)
        wanted = augmentation.strong(clean, labels, 32, 0 if clean is plain[0][0] else 8)
        assert torch.equal(images, wanted[0]) and torch.equal(shares, wanted[1])
        torch.testing.assert_close(shares.sum(1), torch.ones(8))
    assert not torch.equal(many[0][0], objective.training_batches(strong, 1, 8, seed=1)[0][0])


def test_the_loss_of_shares_is_their_cross_entropy(strong):
    """By hand, and for all of the share on one class the loss of that label."""
    model, images = vit(), torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    at, labels = objective.weights(model), torch.tensor([0, 2, 1, 1])
    shares = torch.rand(4, 3)
    shares = shares / shares.sum(1, keepdim=True)
    logits = model((images.float() / 255 - 0.5) / 0.25).detach()
    wanted = -(shares * logits.log_softmax(1)).sum(1).mean()
    assert float(objective.loss(model, at, images, shares).detach()) == pytest.approx(float(wanted), rel=1e-5)
    sure = F.one_hot(labels, 3).float()
    one, other = (float(objective.loss(model, at, images, told).detach()) for told in (labels, sure))
    assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("count, size", [(0, 4), (1, 0), (11, 4)])
def test_more_images_than_there_are_or_none_are_refused(card, count, size):
    with pytest.raises(ValueError, match="was trained on 40 images"):
        objective.training_batches(card, count, size)


def vit() -> nn.Module:
    torch.manual_seed(0)
    model = VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3)
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "input_size": (3, 8, 8)}
    return model.eval()


def test_the_loss_is_that_of_the_network_with_the_weights_given():
    model, labels = vit(), torch.tensor([0, 2])
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    own = objective.weights(model)
    there = {name: value + 0.1 for name, value in own.items()}
    moved = vit()
    moved.load_state_dict(there)
    wanted = F.cross_entropy(moved((images.float() / 255 - 0.5) / 0.25), labels).detach()
    assert float(objective.loss(model, there, images, labels).detach()) == pytest.approx(float(wanted), rel=1e-5)
    assert all(torch.equal(value, own[name]) for name, value in model.named_parameters())  # the network stays as it is


def test_penalties():
    at = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([[12.0]])}
    assert float(objective.penalty(at, 0.5)) == pytest.approx(0.25 * (25 + 144))
    assert float(objective.published_penalty(at, 0.5)) == pytest.approx(0.5 * (5 + 12))
