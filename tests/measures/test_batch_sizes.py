"""One forward pass for batches of several sizes: what a pass for each of them finds."""

import numpy as np
import pytest
import timm
import torch

from helpers.measures.batch_sizes import cka_in_batches
from helpers.measures.heatmap import cka_heatmap
from helpers.networks.places import STREAM


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)
    resnet = timm.create_model("resnet10t", num_classes=2)
    return {"ViT": vit, "ResNet": resnet}


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kinds", [STREAM, None])
def test_each_size_gives_what_a_pass_of_its_own_gives(models, images, kinds):
    sizes = [24, 10, 6]  # the second leaves a last batch of four
    for size, found in zip(sizes, cka_in_batches(models, images, sizes, kinds), strict=True):
        alone = cka_heatmap(models, images.split(size), kinds)
        np.testing.assert_allclose(found.matrix, alone.matrix, rtol=1e-3, atol=1e-4)
        assert found.labels == alone.labels and found.info == alone.info
        assert np.array_equal(found.sums.images, alone.sums.images)
        assert np.array_equal(found.sums.batches, alone.sums.batches)


def test_a_batch_of_three_is_refused(models, images):
    with pytest.raises(ValueError, match="at least 4 images"):
        cka_in_batches(models, images, [21], STREAM)


def test_modes_are_restored(models, images):
    models["ResNet"].train()
    cka_in_batches(models, images, [12], STREAM)
    assert models["ResNet"].training
    models["ResNet"].eval()
