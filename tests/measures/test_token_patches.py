"""Token-to-patch CKA, against CKA of single tokens and patches, on real networks."""

import numpy as np
import pytest
import torch
from test_localization import IMAGES
from test_probes import NETWORKS, network

from helpers.images.sources import scene_images
from helpers.measures import localization
from helpers.measures.cka import cka, gram_row
from helpers.measures.localization import (
    PixelTokens,
    token_patches,
)
from helpers.measures.token_patches import token_rows
from helpers.networks import zoo
from helpers.networks.geometry import Centres
from helpers.networks.inputs import normalise
from helpers.networks.places import OUTPUTS
from helpers.networks.positions import positions
from helpers.networks.taps import capture, taps_for, taps_named


def test_it_is_cka_of_a_token_and_a_patch():
    """Against ``hsic.cka`` of two arrays that are cut out by hand, one batch; and against sums over two."""
    model = zoo.load("vit", pretrained=False)
    places = taps_for(model, ["resid_post"])[3:4]
    found = token_patches(model, IMAGES, places, batch=64)[places[0].name]
    with torch.inference_mode(), capture(model, places) as out:
        model(normalise(model, IMAGES))
    x = out[places[0].name][:, 1:]
    pixels = IMAGES.float()
    for t, s in [(0, 0), (9, 63), (27, 28), (63, 5)]:
        row, column = divmod(s, 8)
        patch = pixels[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        assert found.matrix[t, s] == pytest.approx(cka(x[:, t].double(), patch.double()), abs=1e-5)
    halves = token_patches(model, IMAGES, places, batch=32)[places[0].name]
    a, b = (gram_row(x[i : i + 32, 9].double()) for i in (0, 32))
    c, d = (gram_row(pixels[i : i + 32, :, 8:16, 8:16].double()) for i in (0, 32))
    expected = (a @ c + b @ d) / ((a @ a + b @ b) * (c @ c + d @ d)).sqrt()
    assert halves.matrix[9, 9] == pytest.approx(float(expected), abs=1e-5)
    assert halves.sums.batches.sum() == 2 and halves.sums.images.sum() == 64


class Enlarged(PixelTokens):
    """Tokens that are pixels, of which one is massive in every other image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.cut(images).mT.clone()
        x[::2, 9] *= 1000
        return self.tokens(x)


def test_clipped_tokens_are_the_tokens_where_none_is_massive_and_those_of_a_norm_where_one_is():
    whole, enlarged = PixelTokens(8), Enlarged(8)
    plain, changed, clipped = (
        token_patches(model, IMAGES, taps_named(model, ["tokens"]), batch=64, clip=clip)["tokens"].matrix
        for model, clip in ((whole, False), (enlarged, False), (enlarged, True))
    )
    others = np.arange(64) != 9
    np.testing.assert_allclose(changed[others], plain[others], atol=1e-6)
    np.testing.assert_allclose(clipped[others], plain[others], atol=1e-6)
    assert changed[9, 9] < 0.1 and clipped[9, 9] > changed[9, 9] + 0.1
    x = PixelTokens(8)(IMAGES.float() / 255)
    by_hand = x[:, 9].clone()
    by_hand[::2] *= Enlarged(8)(IMAGES.float() / 255).norm(dim=-1).median() / by_hand[::2].norm(dim=-1, keepdim=True)
    assert clipped[9, 9] == pytest.approx(cka(by_hand.double(), x[:, 9].double()), abs=1e-4)


def test_the_mode_of_the_network_does_not_matter_and_is_put_back():
    model, images = network("resnet10t")
    places = taps_for(model, ["block"])[-1:]
    wanted, state = token_patches(model, images, places), {k: v.clone() for k, v in model.state_dict().items()}
    found = token_patches(model.train(), images, places)
    np.testing.assert_allclose(*(one[places[0].name].matrix for one in (found, wanted)), atol=1e-6)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_rows_of_all_tokens_equal_those_of_one_after_another():
    x = 50 + torch.randn(20, 6, 9, dtype=torch.float64)
    x[:, 3] = 7.3  # the same for all images
    rows = token_rows(x)
    for t in (0, 1, 2, 4, 5):
        torch.testing.assert_close(rows[t], gram_row(x[:, t]))
    assert not rows[3].any()


def test_errors_are_the_jackknifes():
    model = PixelTokens(16)
    found = token_patches(model, IMAGES, taps_named(model, ["tokens"]), batch=16)["tokens"]
    value, stderr = found.statistic(lambda matrix, grid: matrix[0, 1])
    left = [found.sums.cka(without=g)[0, 1] for g in range(4)]
    assert stderr == pytest.approx(np.sqrt(3 / 4 * np.sum((left - np.mean(left)) ** 2))) and value == found.matrix[0, 1]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network(name):
    model, images = network(name)
    place = taps_for(model, OUTPUTS)[-1:]
    found = token_patches(model, images, place)[place[0].name]
    count = NETWORKS[name][1] or len(found.matrix)
    assert found.matrix.shape == (count, count) and np.isfinite(found.matrix).all()
    sizes = found.patches.flatten().bincount()
    assert len(sizes) == count and sizes.sum() == images.shape[-1] ** 2
    if name.startswith(("vit", "deit", "beit", "swin", "mixer")):
        assert len(sizes.unique()) == 1  # a patch each


def test_own_patches_of_the_zoos_resnet():
    """5 × 5 positions whose centres lie 16 pixels apart; the first and the last just outside of the image."""
    model = zoo.load("resnet", pretrained=False)
    found = token_patches(model, IMAGES[:8], taps_for(model, ["block"])[-1:])
    (place,) = found.values()
    assert place.grid == (5, 5)
    assert (place.patches[:, 0] // 5).bincount().tolist() == [7, 16, 16, 16, 9]
    assert (place.patches[0] % 5).bincount().tolist() == [7, 16, 16, 16, 9]


def test_a_position_depends_most_on_the_middle_of_its_own_patch():
    """Independent of the arithmetic of strides: the centre of mass of a position's gradient lies there."""
    model = zoo.load("resnet", pretrained=False)
    place = taps_for(model, ["block"])[8:9]  # 9 × 9 positions
    x = torch.rand(4, 3, 64, 64).requires_grad_()
    with Centres(model) as centres, capture(model, place, lambda x: positions(model, x)) as out:
        model((x - 0.5) / 0.25)
    at = out[place[0].name]
    field = torch.autograd.grad(at.tokens[:, 4 * 9 + 3].sum(), x)[0].abs().sum((0, 1))
    row, column = ((field.sum(1 - axis) * (torch.arange(64) + 0.5)).sum() / field.sum() for axis in (0, 1))
    patches = localization.own_patches(centres, at.grid, (64, 64))
    assert abs(row - centres.centre(9, 4, 64, 0)) < 4 and abs(column - centres.centre(9, 3, 64, 1)) < 4  # half a step
    assert patches[int(row), int(column)] == 4 * 9 + 3


def test_an_image_set_gives_what_a_tensor_gives():
    model = PixelTokens(16)
    places = taps_named(model, ["tokens"])
    data = scene_images(10)
    pictures = torch.stack([data[i][0] for i in range(10)])
    one, other = (token_patches(model, images, places, batch=4)["tokens"] for images in (data, pictures))
    np.testing.assert_array_equal(one.matrix, other.matrix)
    assert one.sums.images.sum() == 8  # the last batch, of two, is too small


def test_bad_input_is_refused():
    model = zoo.load("vit", pretrained=False)
    with pytest.raises(ValueError, match="at least 4 images"):
        token_patches(model, IMAGES[:3])
    with pytest.raises(ValueError, match="no positions"):
        token_patches(model, IMAGES[:4], taps_named(model, ["head"]))
    with pytest.raises(ValueError, match="one gets none"):
        localization.own_patches(Centres(model), (65, 8), (64, 64))
    broken = zoo.load("vit", pretrained=False)
    broken.blocks[0].mlp.fc2.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="blocks.0: activations|blocks.0.resid_post: activations"):
        token_patches(broken, IMAGES[:4])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in broken.modules())
