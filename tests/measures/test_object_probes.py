"""What is read of the object in a scene, from tokens that hold it and from a network, as by the probes alone."""

import numpy as np
import pytest
import torch

from helpers.images.scenes import SIZE, Corpus, render, split
from helpers.measures import object_probes, probes
from helpers.measures.object_probes import centre_of_mass, covered_shares, position_errors, probe_object, read_cover
from helpers.networks import zoo
from helpers.networks.places import OUTPUTS
from helpers.networks.taps import taps_for
from helpers.uncertainty import interval

PATCHES = torch.arange(64)[:, None] // 8 * 8 + torch.arange(64) // 8  # 8 × 8 patches of 8 × 8 pixels


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def learn():
    return render(Corpus(), split("validation", 240))


@pytest.fixture(scope="module")
def test():
    return render(Corpus(), split("test", 48))


def test_the_share_of_a_patch_that_a_mask_covers():
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, 4:16, 0:8] = True  # half of the first patch of the first row, all of the first one of the second
    shares = covered_shares(mask, PATCHES)
    assert shares.shape == (64, 1)
    assert shares[0] == 0.5 and shares[8] == 1 and shares.sum() == 1.5


def test_shares_of_unequal_patches_are_of_each_patchs_own_area():
    patches = torch.tensor([[0, 0, 0, 1]])
    assert covered_shares(torch.tensor([[[True, False, False, True]]]), patches).flatten().tolist() == pytest.approx(
        [1 / 3, 1]
    )


def test_the_centre_of_mass_in_pixels():
    weights = torch.zeros(64, 3)
    weights[9, 0] = 5  # one patch: its middle, x and y
    weights[0, 1] = weights[7, 1] = 1  # the upper corners: half way between them
    weights[3, 2] = -1  # nothing is seen: the middle of the image
    np.testing.assert_allclose(centre_of_mass(weights, PATCHES), [[12, 12], [32, 4], [32, 32]], atol=1e-3)


def test_the_arrangement_of_covered_patches_says_where_the_object_is(test):
    away = centre_of_mass(covered_shares(test.mask, PATCHES), PATCHES) - test.centre
    assert away.norm(dim=1).median() < 4  # less than half a patch, though objects are cut off and occluded


def test_a_token_that_holds_its_cover_is_read_by_one_probe_for_all(learn, test):
    shares, asked = (covered_shares(scenes.mask, PATCHES) for scenes in (learn, test))
    x, z = (torch.stack([2 * s + 1, noise(*s.shape)], -1) for s in (shares, asked))
    torch.testing.assert_close(read_cover(x, z, shares), asked, atol=0.02, rtol=0)


def test_the_probe_of_the_cover_learns_from_the_first_half_alone(learn):
    shares = covered_shares(learn.mask, PATCHES)
    x = torch.stack([shares, noise(*shares.shape)], -1)
    changed, wrong = x.clone(), shares.clone()
    half = x.shape[1] // 2
    changed[:, half:], wrong[:, half:] = 7, 7
    torch.testing.assert_close(read_cover(changed, x, wrong), read_cover(x, x, shares))


@pytest.mark.parametrize("target, width", [("centre", 2), ("distance", 1)])
def test_positions_are_read_from_features_that_hold_them(learn, test, target, width):
    def held(scenes):
        at = scenes.centre if target == "centre" else (scenes.centre - SIZE / 2).norm(dim=1, keepdim=True)
        assert at.shape[1] == width
        return torch.cat([at, noise(len(at), 3)], 1)

    error = position_errors(held(learn), held(test), learn.centre, test.centre, target)
    assert error.shape == (48,) and error.max() < 0.1
    blind = position_errors(noise(240, 3), noise(48, 3), learn.centre, test.centre, target)
    assert blind.mean() > 20 * error.mean()
    both = torch.stack([held(test), noise(48, 5, seed=1)[:, : width + 3]])
    tokens = torch.stack([held(learn), noise(240, 5, seed=2)[:, : width + 3]])
    mixed = position_errors(tokens, both, learn.centre, test.centre, target)
    assert mixed.shape == (48,) and error.mean() < mixed.mean() < blind.mean()


@pytest.fixture(scope="module")
def probed(learn, test):
    vit = zoo.load("vit-small", pretrained=False, seed=0)
    taps = taps_for(vit, OUTPUTS)
    places = {0.5: taps[1], 1.0: taps[-1]}
    how = {"shots": 2, "draws": 2, "seed": 3}
    return vit, places, probe_object(vit, learn, test, places, ["tokens", "cls"], (8, 8), PATCHES, **how)


def test_the_tables_of_a_network_hold_what_the_probes_say(learn, test, probed):
    vit, places, found = probed
    assert list(found.classes.columns) == ["depth", "read-out", "shots", "accuracy (%)", "low", "high"]
    assert len(found.classes) == 2 * 3 * 2 and len(found.positions) == 2 * (3 * 2 + 1) and len(found.masks) == 2
    last = places[1.0]
    x, z = (probes.features(vit, s.images, ["cls", "tokens"], [last], dtype=torch.float16) for s in (learn, test))
    a, b = x["cls"][last.name], z["cls"][last.name]
    how = {"shots": 2, "draws": 2, "held_out": 512, "seed": 3}
    score = probes.probe_scores(a, learn.label, b, test.label, **how).float()
    torch.testing.assert_close(found.right[1.0, "cls", 2], score)
    row = found.classes[found.classes["read-out"] == "cls"].query("depth == 1 and shots == 2").iloc[0]
    assert row["accuracy (%)"] == pytest.approx(100 * score.mean().item())
    assert (row["low"], row["high"]) == pytest.approx([100 * end for end in interval(score)])
    full = probes.probe_scores(a, learn.label, b, test.label, shots=None, held_out=512, seed=3).float()
    torch.testing.assert_close(found.right[1.0, "cls", 0], full)


def test_single_tokens_have_a_tile_each_and_the_first_is_the_upper_left(probed):
    found = probed[2]
    assert found.tiles[0.5, 2].shape == (8, 8)
    assert found.tiles[0.5, 2].mean() == pytest.approx(found.right[0.5, "tokens", 2].mean().item())
    assert found.tiles[0.5, 2][0, 0] == pytest.approx(found.right[0.5, "first token", 2].mean().item())


def test_tables_of_several_networks_stand_below_each_other(probed):
    both = object_probes.of_networks({"one": probed[2], "two": probed[2]}, "masks")
    assert list(both["network"]) == ["one", "one", "two", "two"] and both.columns[0] == "network"
    assert "network" not in probed[2].masks


def test_single_tokens_are_needed(learn, test, probed):
    with pytest.raises(ValueError, match="add 'tokens'"):
        probe_object(probed[0], learn, test, probed[1], ["cls"], (8, 8), PATCHES)
