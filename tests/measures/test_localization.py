"""Numbers of matrices of token-to-patch CKA: closed forms, and a network whose tokens are patches."""

import numpy as np
import pytest

from helpers.images import scenes
from helpers.measures import localization
from helpers.measures.localization import (
    PixelTokens,
    border_confusion,
    chance,
    displacement,
    distances,
    hit_rate,
    hits,
    matched_confusion,
    own_similarity,
    relative_confusion,
    rim,
    token_patches,
)
from helpers.networks.taps import taps_named
from helpers.uncertainty import jackknife

IMAGES = scenes.render(scenes.Corpus(), range(64)).images


def test_pixels_are_found_in_their_own_patch():
    model = PixelTokens(8)
    found = token_patches(model, IMAGES, taps_named(model, ["tokens"]), batch=32, shuffle=0)["tokens"]
    assert found.grid == (8, 8) and found.matrix.shape == (64, 64)
    np.testing.assert_allclose(np.diag(found.matrix), 1, atol=1e-5)
    assert found.statistic(hit_rate)[0] == 1 and found.statistic(displacement)[0] == 0
    assert found.statistic(relative_confusion)[0] == pytest.approx(found.statistic(border_confusion)[0], abs=1e-5)
    assert found.control.statistic(hit_rate)[0] < 0.15 and abs(found.control.matrix.mean()) < 0.02
    assert found.map(2, 3).argmax() == 2 * 8 + 3


def test_a_token_that_does_not_vary_hits_nothing():
    matrix = np.eye(9)
    matrix[4] = np.nan
    assert hits(matrix).sum() == 8 and hit_rate(matrix, (3, 3)) == 0


def test_numbers_of_maps_that_are_known():
    grid = (5, 6)
    inside = ~rim(grid)
    assert inside.sum() == 3 * 4 and chance(grid) == 1 / 30
    eye = np.eye(30)
    assert hit_rate(eye, grid) == 1 and displacement(eye, grid) == 0 and border_confusion(eye, grid) == 0
    assert own_similarity(eye, grid) == 1 and own_similarity(np.roll(eye, 1, axis=1), grid) == 0
    shifted = np.roll(eye, 1, axis=1)  # each finds its right neighbour's patch
    assert hit_rate(shifted, grid) == 0 and displacement(shifted, grid) == 1
    half = eye.copy()
    half[np.flatnonzero(inside)[:6]] = shifted[np.flatnonzero(inside)[:6]]
    assert hit_rate(half, grid) == 0.5
    edges = np.where(rim(grid)[None], 0.3, 0.1) * np.ones((30, 1))
    assert border_confusion(edges, grid) == pytest.approx(0.2) == matched_confusion(edges, grid)
    assert relative_confusion(edges, grid) == pytest.approx(0.2 / 0.3)
    assert relative_confusion(edges / 9, grid) == pytest.approx(0.2 / 0.3)  # no matter how little is kept
    fading = np.exp(-distances(grid))  # depends on distance alone, and the rim is farther away on average
    assert border_confusion(fading, grid) < 0 and matched_confusion(fading, grid) == pytest.approx(0)
    with pytest.raises(ValueError, match="no interior"):
        hit_rate(np.eye(4), (2, 2))


def test_a_table_for_the_jackknife():
    model = PixelTokens(16)
    found = token_patches(model, IMAGES, taps_named(model, ["tokens"]), batch=16, shuffle=0)
    table = localization.table(found, [0.5], model="pixels")
    assert table["left_out"].tolist() == [-1, 0, 1, 2, 3] and (table["hit_rate"] == 1).all()
    value, stderr = jackknife(lambda t: t["matched_confusion"].iloc[0], table)
    expected = found["tokens"].statistic(matched_confusion)
    assert (value, stderr) == pytest.approx(expected) and (table["shuffled"] < 1).all()
