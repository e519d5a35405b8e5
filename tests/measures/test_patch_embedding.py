"""Principal components of patch embeddings: known bases are found again, signs and centring as stated, refusals."""

import numpy as np
import pytest
import timm
import torch
from sklearn.decomposition import PCA

from helpers.measures import patch_embedding
from helpers.networks import zoo


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_components_and_shares_are_those_of_scikit_learn():
    for count in (40, 400):  # fewer pictures than pixels, and more
        pictures = torch.randn(count, 3, 4, 5, generator=generator()) + 2
        ours = patch_embedding.components(pictures, 7)
        theirs = PCA(7, svd_solver="full").fit(pictures.flatten(1).double().numpy())
        signs = (ours.pictures.flatten(1).numpy() * theirs.components_).sum(1)
        np.testing.assert_allclose(np.abs(signs), 1, atol=1e-8)
        np.testing.assert_allclose(ours.shares, theirs.explained_variance_ratio_, atol=1e-10)
        peak = ours.pictures.flatten(1)
        assert (peak.gather(1, peak.abs().argmax(1, keepdim=True)) > 0).all()


def test_a_mean_filter_is_no_component_and_a_basis_is_found_again():
    basis = torch.linalg.qr(torch.randn(48, 3, generator=generator(1)))[0].T  # three pictures of 3 × 4 × 4
    mixed = torch.randn(60, 3, generator=generator(2)) @ basis + 5 * torch.randn(48, generator=generator(3))
    found = patch_embedding.components(mixed.view(60, 3, 4, 4), 5)
    assert float(found.shares[:3].sum()) == pytest.approx(1, abs=1e-8)
    span = found.pictures[:3].flatten(1)
    np.testing.assert_allclose((span @ basis.double().T @ basis.double()), span, atol=1e-6)


def test_total_variation_of_pictures_that_are_known():
    flat = torch.ones(1, 3, 4, 4)
    edge = torch.zeros(1, 1, 4, 4)
    edge[..., 2:] = 1  # one step of one in each of four rows; norm √8
    board = (torch.arange(4)[:, None] + torch.arange(4)).remainder(2).mul(2).sub(1).float()[None, None]  # ±1; norm 4
    assert float(patch_embedding.total_variation(flat)) == 0
    assert float(patch_embedding.total_variation(5 * edge)) == pytest.approx(4 / 8**0.5)
    assert float(patch_embedding.total_variation(board)) == pytest.approx(24 * 2 / 4)


def test_cut_puts_patches_where_they_were():
    images = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    patches = patch_embedding.cut(images, (2, 3))
    assert patches.shape == (8, 3, 2, 3)
    assert torch.equal(patches[1], images[0, :, :2, 3:]) and torch.equal(patches[6], images[1, :, 2:, :3])
    with pytest.raises(ValueError, match="whole patches of 3 × 3"):
        patch_embedding.cut(images, (3, 3))
    with pytest.raises(ValueError, match="height is a whole number, at least 1"):
        patch_embedding.cut(images, (0, 3))


def test_overlap_is_one_for_one_space_and_by_chance_k_over_d():
    space = patch_embedding.components(torch.randn(200, 3, 4, 4, generator=generator()), 12)
    mix = torch.linalg.qr(torch.randn(12, 12, generator=generator(1), dtype=torch.double))[0]
    turned = patch_embedding.Components((mix @ space.pictures.flatten(1)).view_as(space.pictures), space.shares)
    other = patch_embedding.components(torch.randn(200, 3, 4, 4, generator=generator(2)), 12)
    assert patch_embedding.overlap(space, turned) == pytest.approx(1)
    assert patch_embedding.overlap(space, other) == pytest.approx(12 / 48, abs=0.08)
    with pytest.raises(ValueError, match="no overlap"):
        patch_embedding.overlap(space, patch_embedding.components(torch.randn(9, 3, 2, 2), 4))


def test_the_share_within_is_what_a_projection_keeps_and_by_chance_k_over_d():
    pictures = torch.randn(300, 3, 4, 4, generator=generator()) * torch.linspace(0.1, 3, 4) + 7
    first = patch_embedding.components(pictures, 12)
    assert patch_embedding.share_within(pictures, first) == pytest.approx(float(first.shares.sum()), abs=1e-10)
    rest = patch_embedding.components(pictures, 48)
    rest = patch_embedding.Components(rest.pictures[12:], rest.shares[12:])
    assert patch_embedding.share_within(pictures, rest) == pytest.approx(1 - float(first.shares.sum()), abs=1e-10)
    white, other = (torch.randn(4000, 3, 4, 4, generator=generator(seed)) for seed in (1, 2))
    drawn = patch_embedding.components(other, 12)
    assert patch_embedding.share_within(white, drawn) == pytest.approx(12 / 48, abs=0.02)
    with pytest.raises(ValueError, match="components of"):
        patch_embedding.share_within(torch.randn(9, 3, 2, 2), first)
    with pytest.raises(ValueError, match="all alike"):
        patch_embedding.share_within(torch.ones(9, 3, 4, 4), first)


def test_smooth_filters_meet_the_claim_and_random_ones_do_not():
    x = torch.linspace(0, 1, 8)
    waves = [torch.cos(torch.pi * (a * x[:, None] + b * x)) for a in range(3) for b in range(3)]
    smooth = torch.randn(100, 9, generator=generator()) @ torch.stack(waves).flatten(1)
    smooth = smooth[:, None].repeat(1, 3, 1).view(100, 3, 8, 8)
    drawn = [torch.randn(100, 3, 8, 8, generator=generator(seed)) for seed in (1, 2)]
    filters = smooth + 0.01 * drawn[0]
    trained, untrained, twin = (patch_embedding.components(one, 9) for one in (filters, *drawn))
    share, ratio = patch_embedding.few_and_smooth(trained, untrained)
    assert share > 0.99 and ratio < 0.8
    share, ratio = patch_embedding.few_and_smooth(twin, untrained)
    assert share < 0.6 and ratio == pytest.approx(1, abs=0.02)


def test_models_of_timm_are_read_or_refused():
    swin = {"img_size": 64, "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 1), "window_size": 4}
    models = (
        (timm.create_model("test_vit", depth=1), 16),
        (timm.create_model("swin_tiny_patch4_window7_224", **swin), 4),
        (zoo.load("mixer", pretrained=False), 8),
    )
    for model, size in models:
        filters = patch_embedding.embedding_filters(model)
        assert filters.shape[1:] == (3, size, size)
        image = torch.rand(1, 3, *(model.patch_embed if hasattr(model, "patch_embed") else model.stem).img_size)
        embed = model.patch_embed if hasattr(model, "patch_embed") else model.stem
        token = torch.nn.functional.conv2d(image, filters, embed.proj.bias, stride=size)  # norms of Swin come after it
        assert torch.allclose(token, embed.proj(image), atol=1e-5)
    for name, why in {
        "test_resnet": "no patch embedding",
        "vit_tiny_r_s16_p8_224": "by more than one layer",
        "xcit_nano_12_p16_224": "no patch embedding|more than one layer",
    }.items():
        with torch.device("meta"):  # no weights are needed to refuse it
            model = timm.create_model(name)
        with pytest.raises(ValueError, match=why):
            patch_embedding.embedding_filters(model)


def test_filters_are_a_copy():
    model = zoo.load("vit", pretrained=False)
    patch_embedding.embedding_filters(model).zero_()
    assert model.patch_embed.proj.weight.any()


@pytest.mark.parametrize(
    ("pictures", "count", "why"),
    [
        (torch.rand(5, 3, 4, 4), 5, "5 pictures of 48 numbers have no 5"),
        (torch.rand(5, 3, 4, 4), 0, "have no 0"),
        (torch.rand(60, 3, 2, 2), 13, "have no 13"),
        (torch.ones(9, 3, 4, 4), 2, "all alike"),
        (torch.full((9, 3, 4, 4), torch.nan), 2, "not finite"),
        (torch.rand(9, 48), 2, r"\(N, C, h, w\)"),
    ],
)
def test_what_has_no_components_is_refused(pictures, count, why):
    with pytest.raises(ValueError, match=why):
        patch_embedding.components(pictures, count)


def test_pictures_have_one_component_less_than_there_are_of_them():
    found = patch_embedding.components(torch.rand(5, 3, 4, 4, generator=generator()), 4)
    assert float(found.shares.sum()) == pytest.approx(1) and float(found.shares.min()) > 0.01


def test_patches_of_images_have_components_too():
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=generator())
    images[:, :, :, :4] = images[:, :, :, 4:8]
    found = patch_embedding.patch_components(images, (8, 8), 10)
    by_hand = patch_embedding.components(patch_embedding.cut(images.double(), (8, 8)), 10)
    np.testing.assert_allclose(found.pictures, by_hand.pictures, atol=1e-9)
    assert found.variation.shape == (10,)
