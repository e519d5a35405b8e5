"""The numbers made of a CKA map, on maps whose structure is known."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from helpers.measures import structure
from helpers.measures.cka import Sums
from helpers.measures.cka_result import CKAResult
from helpers.measures.structure import Places, places

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


def test_largest_difference_is_the_largest_cell():
    names, kinds = ["stem", "layer1.0"], ["stem", "block"]
    a = result_of(np.array([[1, 0.5], [0.5, 1]]), names, kinds)
    b = result_of(np.array([[1, 0.44], [0.44, 1]]), names, kinds)
    value, error = structure.largest_difference(a, b)
    assert value == pytest.approx(0.06) and error == pytest.approx(0)
    with pytest.raises(ValueError, match="different places"):
        structure.largest_difference(a, result_of(np.eye(2), ["stem", "layer2.0"], kinds))


def test_across_a_block_are_the_places_up_to_its_input_and_from_its_output_on():
    own = np.full((9, 9), 0.9)
    own[:5, 6:] = own[6:, :5] = 0.1  # of four blocks number 2 is a wall: its middle is place 5
    matrix = joint(own, np.eye(9), np.zeros((9, 9)))
    assert structure.across_block(matrix, VIT, 2) == pytest.approx(0.1)
    assert structure.across_block(matrix, VIT, 1) > 0.3
    with pytest.raises(ValueError, match="blocks 0 to 3"):
        structure.across_block(matrix, VIT, 4)
