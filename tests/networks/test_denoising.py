"""The denoiser: what it is shown, what it is asked for, and that its encoder alone is stored."""

import math

import pytest
import torch
from test_training import once_and_often, same
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from helpers.networks import training, zoo
from helpers.networks.catalogue import Card, Recipe
from helpers.networks.denoising import Denoiser, noisy

RECIPE = Recipe(images_seen=480, distinct_images=96, batch=16, objective="noise")
VIT = Card("tiny-denoiser", "vit", "a tiny denoiser", {"embed_dim": 32, "depth": 2, "num_heads": 2}, RECIPE)
QUICK = {"test_scenes": 16, "progress": False}


@pytest.fixture
def denoiser():
    torch.manual_seed(0)
    return Denoiser(VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)).eval()


@pytest.fixture
def drawn(monkeypatch):
    """The times and the noise of each loss, as its generator draws them."""
    seen = []
    monkeypatch.setattr("helpers.networks.denoising.noisy", lambda *given: seen.append(given) or noisy(*given))
    return seen


def test_at_no_time_it_is_the_image_and_at_the_end_the_noise():
    images, noise = torch.randn(2, 3, 3, 8, 8)
    at = noisy(images, noise, torch.tensor([0.0, 1.0, 1 / 3]).view(3, 1, 1, 1))
    assert torch.equal(at[0], images[0])
    torch.testing.assert_close(at[1], noise[1])
    torch.testing.assert_close(at[2], math.sqrt(3) / 2 * images[2] + noise[2] / 2)  # cos 30° and sin 30°


def test_unit_variance_is_kept_at_every_time():
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, 5, 3, 64, 64, generator=generator)
    at = noisy(images, noise, torch.linspace(0, 1, 5).view(5, 1, 1, 1))
    assert at.flatten(1).var(1).tolist() == pytest.approx([1] * 5, abs=0.05)  # 12,288 numbers each
    assert noisy(images, images, torch.full((5, 1, 1, 1), 0.5)).var() == pytest.approx(2, abs=0.05)  # not independent


@torch.inference_mode()
def test_whoever_knows_the_noise_has_no_loss_and_who_says_nothing_has_one(denoiser, drawn, monkeypatch):
    """The noise is cut into patches here by hand, in the order of tokens: row by row, colour by colour within."""
    images = torch.randn(64, 3, 32, 32)
    for value in denoiser.noise.parameters():
        nn.init.zeros_(value)
    assert float(denoiser.loss(images, torch.Generator().manual_seed(1))) == pytest.approx(1, abs=0.01)
    ((_, noise, time),) = drawn
    patches = [noise[:, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].flatten(1) for y in range(4) for x in range(4)]
    monkeypatch.setattr(denoiser, "forward", lambda _: torch.stack(patches, 1))
    assert float(denoiser.loss(images, torch.Generator().manual_seed(1))) == 0
    assert float(denoiser.loss(images, torch.Generator().manual_seed(2))) == pytest.approx(2, abs=0.05)  # other noise
    assert time.shape == (64, 1, 1, 1) and 0 <= time.min() < 0.1 and 0.9 < time.max() < 1
    assert len(time.unique()) == 64


@torch.inference_mode()
def test_the_loss_depends_on_images_and_generator_alone(denoiser):
    images = torch.randn(4, 3, 32, 32)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, again, other = (denoiser.loss(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(denoiser.loss(images + 1, torch.Generator().manual_seed(1)), one)


@torch.inference_mode()
def test_each_token_answers_for_its_own_patch(denoiser):
    """The class token answers for none, and with blocks that do nothing a token knows its patch alone."""
    denoiser.encoder.blocks = nn.Sequential()
    images = torch.randn(1, 3, 32, 32)
    before, changed = denoiser(images), images.clone()
    changed[:, :, 8:16, 16:24] += 1  # row 1, column 2 of 4
    assert before.shape == (1, 16, 3 * 64)
    assert ((denoiser(changed) != before).any(-1)).nonzero().tolist() == [[0, 6]]


def test_the_network_is_not_told_the_time(denoiser, drawn):
    """What it is shown is all that it gets: its encoder is a plain ViT, and the loss that of what it was shown."""
    shown = []
    denoiser.register_forward_pre_hook(lambda _, given: shown.append(given))
    denoiser.loss(torch.randn(3, 3, 32, 32), torch.Generator().manual_seed(0))
    ((images, noise, time),), ((given,),) = drawn, shown
    torch.testing.assert_close(given, noisy(images, noise, time))


def test_the_encoder_is_stored_without_accuracies(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    encoder, card = training.train(VIT, tmp_path, **QUICK), zoo.card("tiny-denoiser")
    assert isinstance(encoder, VisionTransformer) and "accuracy" not in card and "test_scenes" not in card
    assert card["recipe"]["objective"] == "noise"
    monkeypatch.setitem(zoo.ZOO, "tiny-denoiser", VIT)
    stored = zoo.load("tiny-denoiser").state_dict()
    assert stored.keys() == zoo.build(VIT).state_dict().keys()  # an encoder, and no map to noise
    assert all(torch.equal(stored[name], value) for name, value in encoder.state_dict().items())


def test_stops_change_nothing(tmp_path, monkeypatch):
    """Encoder, map to noise and optimisers after one run, and after one of several pieces."""
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    kept = once_and_often(VIT, tmp_path, (3, 16, 1))
    assert same(kept[0]["optimisers"], kept[1]["optimisers"]) and same(kept[0]["model"], kept[1]["model"])
    assert kept[0]["curve"][0][1] == pytest.approx(1, abs=0.3) and "noise.weight" in kept[0]["model"]
    start = zoo.build(VIT).state_dict()
    for name in ("pos_embed", "blocks.1.attn.qkv.weight", "norm.weight"):
        assert not torch.equal(kept[0]["model"][f"encoder.{name}"], start[name])
    assert torch.equal(kept[0]["model"]["encoder.head.weight"], start["head.weight"])  # the classifier learns nothing
