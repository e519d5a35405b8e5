"""The numbers made of a CKA map, on maps whose structure is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from helpers.measures import structure
from helpers.measures.cka import Sums
from helpers.measures.cka_result import CKAResult
from helpers.measures.structure import Places, places
from helpers.networks.architectures import build
from helpers.networks.catalogue import ZOO
from helpers.networks.places import STREAM, stage
from helpers.networks.taps import capture, taps_for

VIT = Places(np.arange(9), np.arange(9) / 8, np.full(9, -1))
RESNET = Places(np.arange(9, 18), np.arange(9) / 8, np.array([-1, 0, 0, 1, 1, 2, 2, 3, 3]))


def joint(vit: np.ndarray, resnet: np.ndarray, cross: np.ndarray) -> np.ndarray:
    return np.block([[vit, cross], [cross.T, resnet]])


def blocks(within: float, across: float) -> np.ndarray:
    """A map of RESNET's stages: ``within`` inside a stage, ``across`` outside."""
    same = RESNET.stage[:, None] == RESNET.stage[None]
    return np.where(same & (RESNET.stage >= 0)[:, None], within, across) * (1 - np.eye(9)) + np.eye(9)


def aligned(depth_of) -> np.ndarray:
    """A cross map (ViT × ResNet) in which ResNet depth d matches ViT depth depth_of(d) best."""
    return 1 - np.abs(VIT.depth[:, None] - depth_of(RESNET.depth)[None])


def test_a_uniform_vit_and_a_staged_resnet_are_told_apart():
    matrix = joint(np.full((9, 9), 0.8) + 0.2 * np.eye(9), blocks(0.9, 0.1), np.zeros((9, 9)))
    mean, spread = structure.uniformity(matrix, VIT, RESNET)
    pairs = 9 * 8 // 2
    assert mean == pytest.approx(0.8 - (4 * 0.9 + (pairs - 4) * 0.1) / pairs)
    assert spread == pytest.approx(-np.std([0.9] * 4 + [0.1] * (pairs - 4)))
    assert structure.contrast(matrix, RESNET, RESNET) == pytest.approx(0.8)
    assert structure.contrast(matrix, VIT, RESNET) == pytest.approx(0)


def test_a_vit_is_cut_where_the_stages_of_the_resnet_end():
    matrix = joint(blocks(0.9, 0.1), np.eye(9), np.zeros((9, 9)))  # the ViT has the ResNet's stages
    assert structure.contrast(matrix, VIT, RESNET) == pytest.approx(0.8)
    short = Places(RESNET.index[:7], RESNET.depth[:7], RESNET.stage[:7])  # no last stage: later ViT places do not count
    matrix[7, 8] = matrix[8, 7] = -5
    assert structure.contrast(matrix, VIT, short) == pytest.approx(0.8)


def test_a_map_that_only_fades_with_distance_has_no_stages():
    fading = 0.95 ** np.abs(np.subtract.outer(np.arange(9), np.arange(9)))
    matrix = joint(fading, fading, np.zeros((9, 9)))
    for network in (VIT, RESNET):
        assert structure.contrast(matrix, network, RESNET) == pytest.approx(0)


def test_parts_are_told_apart_at_equal_distance_and_every_distance_counts_alike():
    own = np.zeros((5, 5))
    for (i, j), value in {
        (0, 1): 0.9,
        (2, 3): 0.7,
        (3, 4): 0.5,
        (1, 2): 0.2,
        (2, 4): 0.6,
        (0, 2): 0.1,
        (1, 3): 0.3,
    }.items():
        own[i, j] = value
    part = np.array([0, 0, 1, 1, 1])
    near, far = (0.9 + 0.7 + 0.5) / 3 - 0.2, 0.6 - (0.1 + 0.3) / 2
    assert structure.apart(own, part) == pytest.approx((near + far) / 2)
    with pytest.raises(ValueError, match="as far apart"):
        structure.apart(own[:2, :2], np.array([0, 1]))


def test_ends_takes_the_outer_thirds():
    values = np.arange(81.0).reshape(9, 9)
    matrix = joint(values, np.eye(9), np.zeros((9, 9)))
    assert structure.ends(matrix, VIT) == pytest.approx(values[:3, 6:].mean())


def test_corresponding_depths_are_found():
    matrix = joint(np.eye(9), np.eye(9), aligned(lambda depth: depth / 2))
    best = structure.best_depth(matrix, VIT, RESNET)
    assert np.abs(best - RESNET.depth / 2).max() <= 1 / 16 + 1e-9  # half a step of the ViT
    middle, order = structure.half_way(matrix, VIT, RESNET)
    assert middle == pytest.approx(0.25, abs=0.05) and order > 0.95
    mean, share = structure.upper_half(matrix, VIT, RESNET)
    assert 0.25 <= mean <= 0.5 and share == 1
    backwards = joint(np.eye(9), np.eye(9), aligned(lambda depth: 1 - depth))
    assert structure.half_way(backwards, VIT, RESNET)[1] == pytest.approx(
        spearmanr(RESNET.depth, 1 - RESNET.depth).statistic
    )


def test_a_place_that_does_not_vary_matches_nothing():
    cross = aligned(lambda depth: depth)
    cross[5] = np.nan
    matched = structure.best_depth(joint(np.eye(9), np.eye(9), cross), VIT, RESNET)
    assert VIT.depth[5] not in matched and matched[4] == VIT.depth[4]


def test_last_third_compares_late_with_early_places():
    cross = np.full((9, 9), 0.2)
    cross[:6, 3] = 0.7
    assert structure.last_third(joint(np.eye(9), np.eye(9), cross), VIT, RESNET) == pytest.approx(0.2 - 0.7)


def result_of(matrix: np.ndarray, names: list[str], kinds: list[str]) -> CKAResult:
    taps = pd.DataFrame({"model": "m", "name": names, "kind": kinds, "depth": 0.0})
    diagonal = np.ones((2, len(names)))
    sums = Sums(np.stack([matrix, matrix]), diagonal, diagonal, np.ones(2, int), np.full(2, 8))
    everything = np.arange(len(names))
    return CKAResult(sums, taps, everything, everything, 16, 8, 2, 0, "HSIC", "float32")


def test_places_of_networks():
    names = ["stem", "layer1.0.conv1", "layer1.0", "layer1.1", "layer2.0"]
    result = result_of(np.eye(5), names, ["stem", "conv", "block", "block", "block"])
    found = places(result, "m", length=6)
    assert found.index.tolist() == [0, 2, 3, 4] and found.stage.tolist() == [-1, 1, 1, 2]
    np.testing.assert_allclose(found.depth, np.arange(4) / 6)
    with pytest.raises(ValueError, match="more than a complete network"):
        places(result, "m", length=2)
    vit = result_of(
        np.eye(3), ["embed", "blocks.0.resid_mid", "blocks.0.resid_post"], ["embed", "resid_mid", "resid_post"]
    )
    assert places(vit, "m").stage.tolist() == [-1, -1, -1] and places(vit, "m").depth[-1] == 1


@pytest.mark.parametrize("name", ["pit", "swin", "convnext"])
def test_stages_are_those_in_which_a_network_of_the_zoo_changes_its_width(name):
    model = build(ZOO[name], seed=0).eval()
    taps = taps_for(model, STREAM)
    with torch.inference_mode(), capture(model, taps) as found:
        model(torch.rand(1, 3, 64, 64))
    width = [found[tap.name].shape[1 if name == "convnext" else -1] for tap in taps]
    result = result_of(np.eye(len(taps)), [tap.name for tap in taps], [tap.kind for tap in taps])
    assert places(result, "m").stage.tolist() == [-1, *(sorted(set(width)).index(own) for own in width[1:])]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("layer3.0.conv2", 3),
        ("stages.2.blocks.1", 2),
        ("stages.2", 2),
        ("layers.1.blocks.0.attn", 1),
        ("layers_1.blocks.0", 1),
        ("body.transformers.0.blocks.1.resid_mid", 0),
        ("body.blocks.3.resid_post", -1),
        ("embed", -1),
        ("blocks.1.player2.x", -1),
    ],
)
def test_a_name_tells_its_stage(name, number):
    assert stage(name) == number


def test_the_lowest_contrast_is_held_against_the_vit():
    swin = Places(np.arange(18, 27), RESNET.depth, RESNET.stage)
    matrix = np.eye(27)
    matrix[:18, :18] = joint(np.full((9, 9), 0.8) + 0.2 * np.eye(9), blocks(0.9, 0.1), np.zeros((9, 9)))
    matrix[18:, 18:] = blocks(0.5, 0.3)
    for order in ([RESNET, swin], [swin, RESNET]):
        assert structure.lowest_contrast(matrix, order, VIT, RESNET) == pytest.approx(0.2)
    assert structure.lowest_contrast(matrix, [RESNET], VIT, RESNET) == pytest.approx(0.8)
    for staged in ([], [RESNET, VIT]):
        with pytest.raises(ValueError, match="one network with stages or more"):
            structure.lowest_contrast(matrix, staged, VIT, RESNET)


NAMES, KINDS = ["stem", "layer1.0"], ["stem", "block"]


def pair(*cka: float) -> CKAResult:
    """Two places whose CKA in each group of 8 images is one of these."""
    matrices = np.stack([np.array([[1, value], [value, 1]]) for value in cka])
    count, one = len(cka), np.ones((len(cka), 2))
    sums = Sums(matrices, one, one, np.ones(count, int), np.full(count, 8))
    return replace(result_of(np.eye(2), NAMES, KINDS), sums=sums)


def test_largest_difference_is_the_largest_cell_and_leaves_the_same_images_out_of_both():
    value, (low, high) = structure.largest_difference(pair(0.5, 0.6, 0.4), pair(0.44, 0.54, 0.34))
    assert (value, low, high) == pytest.approx((0.06,) * 3), "what the same images do to both is no doubt"
    change = np.array([0.03, -0.05, -0.04])
    value, (low, high) = structure.largest_difference(pair(0.5, 0.5, 0.5), pair(*(0.5 + change)))
    reach = 4.302653 * change.std(ddof=1) / 3**0.5  # the difference is a mean over groups here
    assert value == pytest.approx(0.02) and (low, high) == pytest.approx((0, 0.02 + reach)), "an absolute value"


def test_differences_of_other_places_or_of_other_images_are_refused():
    with pytest.raises(ValueError, match="different places"):
        structure.largest_difference(pair(0.5, 0.5), result_of(np.eye(2), ["stem", "layer2.0"], KINDS))
    for other in (pair(0.5, 0.5, 0.5), pair(0.5)):
        with pytest.raises(ValueError, match="in two groups or more"):
            structure.largest_difference(pair(0.5), other)


def test_results_become_groups_and_groups_are_joined():
    three = structure.grouped([pair(0.5, 0.7), pair(0.4, 0.4), pair(0.1)])
    assert three.sums.images.tolist() == [16, 16, 8] and three.groups == 3 and three.n_images == 40
    np.testing.assert_allclose([three.sums.cross[k, 0, 1] for k in range(3)], [1.2, 0.8, 0.1])
    two = structure.grouped([pair(0.5, 0.7, 0.1)], [[0, 2], [1]])
    assert two.sums.images.tolist() == [16, 8] and two.matrix[0, 1] == pytest.approx(1.3 / 3)
    with pytest.raises(ValueError, match="different places"):
        structure.grouped([pair(0.5), result_of(np.eye(2), ["stem", "layer2.0"], KINDS)])


def test_across_a_block_are_the_places_up_to_its_input_and_from_its_output_on():
    own = np.full((9, 9), 0.9)
    own[:5, 6:] = own[6:, :5] = 0.1  # of four blocks number 2 is a wall: its middle is place 5
    matrix = joint(own, np.eye(9), np.zeros((9, 9)))
    assert structure.across_block(matrix, VIT, 2) == pytest.approx(0.1)
    assert structure.across_block(matrix, VIT, 1) > 0.3
    with pytest.raises(ValueError, match="blocks 0 to 3"):
        structure.across_block(matrix, VIT, 4)


def test_the_part_of_a_result_that_some_places_make_up_gives_the_same_statistics():
    rng = np.random.default_rng(0)
    batches = [gram @ gram.T for gram in rng.normal(size=(3, 20, 40))]
    own = np.stack([np.diag(gram) for gram in batches])
    taps = pd.DataFrame({"model": "m", "name": [f"layer1.{i}" for i in range(20)], "kind": "block", "depth": 0.0})
    sums, every = Sums(np.stack(batches), own, own, np.ones(3, int), np.full(3, 8)), np.arange(20)
    result = CKAResult(sums, taps, every, every, 24, 8, 3, 0, "HSIC", "float32")
    vit = Places(np.array([3, 5, 8, 9]), np.arange(4) / 3, np.full(4, -1))
    resnet = Places(np.array([11, 12, 19]), np.arange(3) / 2, np.array([-1, 0, 0]))
    part, (of_vit, of_resnet) = structure.only(result, vit, resnet)
    assert part.matrix.shape == (7, 7) and part.taps["name"].tolist()[-1] == "layer1.19"
    for way in ("statistic", "bootstrap"):
        there = getattr(result, way)(lambda m: structure.last_third(m, vit, resnet))
        here = getattr(part, way)(lambda m: structure.last_third(m, of_vit, of_resnet))
        np.testing.assert_allclose(np.hstack(here), np.hstack(there), rtol=1e-12)
    np.testing.assert_array_equal(of_resnet.depth, resnet.depth)
