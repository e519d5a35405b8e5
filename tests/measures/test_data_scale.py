"""Statistics of scale: closed forms on matrices whose answer is known, and real networks of the smallest kind."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import t as student

import helpers  # noqa: F401
from helpers.images import scenes
from helpers.measures.data_scale import (
    accuracy_difference,
    blocks,
    curve,
    curves,
    data_needed,
    how_far,
    kept,
    kinship,
    larger_minus_smaller,
    mixer,
    probe_difference,
    probed,
    quarters,
    repeats,
    same_block,
    scores,
    split,
)
from helpers.measures.heatmap import cka_heatmap
from helpers.measures.structure import Places
from helpers.networks import zoo
from helpers.networks.places import OUTPUTS
from helpers.networks.taps import Tap


def network(first, count):
    return Places(np.arange(first, first + count), np.linspace(0, 1, count), np.full(count, -1))


def paired(*diagonals):
    """A matrix in which block i of network 0 has the CKA diagonals[k][i] with block i of network k + 1."""
    count = len(diagonals[0])
    matrix = np.zeros((count * (len(diagonals) + 1),) * 2)
    for k, diagonal in enumerate(diagonals, 1):
        at = np.arange(count)
        matrix[at, k * count + at] = matrix[k * count + at, at] = diagonal
    return matrix, [np.arange(k * count, (k + 1) * count) for k in range(len(diagonals) + 1)]


def test_same_block_reads_the_diagonal():
    matrix, (a, b) = paired([0.9, 0.7, 0.5])
    assert same_block(matrix, a, b).tolist() == same_block(matrix, b, a).tolist() == [0.9, 0.7, 0.5]
    with pytest.raises(ValueError, match="one network has 3 blocks, the other 2"):
        same_block(matrix, a, b[:2])


def test_quarters_end_where_they_should():
    assert quarters(8).tolist() == [1, 3, 5, 7] and quarters(4).tolist() == [0, 1, 2, 3]
    assert quarters(24).tolist() == [5, 11, 17, 23]
    for count in (0, 3, 6):
        with pytest.raises(ValueError, match="four quarters"):
            quarters(count)


def test_data_needed_ranks_the_mean_and_compares_the_low_blocks():
    falling, ceiling = np.array([0.8, 0.7, 0.3, 0.2]), np.array([1.0, 0.9, 0.9, 0.9])
    matrix, (second, full, small, large) = paired(ceiling, falling, falling + 0.1)
    order, low = data_needed(matrix, [small, large], second, full)
    assert order == pytest.approx(-1) and low == pytest.approx(0.75 / 0.95)
    matrix, (second, full, small, large) = paired(ceiling, falling[::-1], falling)
    low = data_needed(matrix, [small, large], second, full)[1]
    assert low == pytest.approx(0.25 / 0.95), "the first is the smallest"
    flat = paired(ceiling, np.full(4, 0.5))
    assert data_needed(flat[0], [flat[1][2]], flat[1][0], flat[1][1])[0] == 0, "no order in a level curve"


def test_how_far_data_bring_a_network_counts_from_its_floor_to_its_ceiling():
    part = np.array([0.0, 0.8, 0.0, 0.6, 0.0, 0.4, 0.0, 0.2])  # 0.5 at the ends of quarters
    large, (second, *of_large) = paired(part, np.full(8, 0.2), np.full(8, 0.8))
    assert how_far(large, *of_large, second) == pytest.approx((0.5 - 0.2) / (0.8 - 0.2))
    small, (small_second, *of_small) = paired(np.array([0.9, 0.8, 0.7, 0.6]), np.full(4, 0.7), np.full(4, 0.9))
    matrix = np.block([[large, np.zeros((32, 16))], [np.zeros((16, 32)), small]])
    smaller = [blocks + 32 for blocks in (*of_small, small_second)]
    assert how_far(matrix, *smaller) == pytest.approx(0.25)
    assert larger_minus_smaller(matrix, (*of_large, second), smaller) == pytest.approx(0.5 - 0.25)
    assert how_far(large, of_large[1], *of_large[1:], second) == 0, "untrained networks have come no way"
    assert how_far(large, of_large[2], *of_large[1:], second) == 1


def test_kept_takes_the_first_and_last_three():
    matrix, (before, after) = paired([0.99, 0.97, 0.98, 0, 0, 0.9, 0.8, 0.7])
    assert kept(matrix, before, after) == pytest.approx([0.97, 0.8 - 0.98])
    with pytest.raises(ValueError, match="needs six"):
        kept(matrix, before[:5], after[:5])


def test_kinship_is_a_difference_of_highest_cka():
    matrix = np.eye(5)
    matrix[0, 2:] = [0.8, 0.1, 0.3]  # network 0, 1; a 2, 3; b 4
    matrix[1, 2:] = [0.2, 0.6, 0.7]
    value = kinship(matrix, network(0, 2), network(2, 2), network(4, 1))
    assert value == pytest.approx(((0.8 - 0.3) + (0.6 - 0.7)) / 2)


@pytest.mark.parametrize("cut", [2, 4, 6])
def test_split_finds_a_planted_cut(cut):
    group = np.arange(8) < cut
    matrix = np.where(group[:, None] == group, 0.9, 0.2)
    np.fill_diagonal(matrix, 1)
    contrast, depth = split(matrix, network(0, 8))
    assert contrast == pytest.approx(0.7) and depth == pytest.approx((cut - 0.5) / 7)


def test_a_map_that_only_fades_with_distance_has_no_split():
    assert split(0.9 ** np.abs(np.subtract.outer(np.arange(9), np.arange(9))), network(0, 9))[0] == pytest.approx(0)


def test_split_needs_two_places_on_either_side():
    matrix = np.ones((6, 6))
    matrix[0, 1:] = matrix[1:, 0] = 0  # one place by itself
    assert split(matrix, network(0, 6))[1] == pytest.approx(1.5 / 5)
    with pytest.raises(ValueError, match="3 places"):
        split(matrix, network(0, 3))


def test_mixer_puts_the_three_together():
    rng = np.random.default_rng(0)
    matrix = rng.random((14, 14))
    matrix += matrix.T
    own, vit, resnet = network(0, 5), network(5, 4), network(9, 5)
    assert mixer(matrix, own, vit, resnet) == pytest.approx([kinship(matrix, own, vit, resnet), *split(matrix, own)])


def test_probe_difference_is_paired():
    hits = torch.rand(5, 200, generator=torch.Generator().manual_seed(0)) < 0.5
    assert probe_difference(hits, hits) == (0, (0, 0)), "the same images, so no difference and no doubt"
    value, (low, high) = probe_difference(torch.ones(5, 200), hits)
    assert value == pytest.approx(100 * (1 - hits.float().mean().item()), abs=1e-3) and low < value < high
    with pytest.raises(ValueError, match=r"\(5, 200\) and \(5, 100\)"):
        probe_difference(hits, hits[:, :100])


def card(pair, name="a", test_scenes=4096, **recipe):
    return {
        "name": name,
        "accuracy": {"all cues": {"pair": pair}},
        "test_scenes": test_scenes,
        "corpus": {"seed": 0},
        "recipe": {"images_seen": 64_000, "distinct_images": 3000, **recipe},
        "curve": [[1280, 3.4], [2560, 3.2]],
    }


def test_accuracy_difference_has_the_textbook_interval():
    value, (low, high) = accuracy_difference(card(0.5), card(0.4))
    reach = 1.959964 * ((0.25 + 0.24) / 4096) ** 0.5 * 100
    assert (value, low, high) == pytest.approx((10, 10 - reach, 10 + reach))
    with pytest.raises(ValueError, match="different test scenes"):
        accuracy_difference(card(0.5), card(0.4, test_scenes=100))
    with pytest.raises(ValueError, match="make zoo"):
        accuracy_difference(card(0.5), {"name": "b"})


def test_repeats_and_curves_read_the_cards():
    assert repeats(card(0.5)) == pytest.approx(64 / 3)
    table = curves([card(0.5), card(0.4, "b", distinct_images=10)])
    wanted = [("a", 3000, 1280, 3.4), ("a", 3000, 2560, 3.2), ("b", 10, 1280, 3.4), ("b", 10, 2560, 3.2)]
    pd.testing.assert_frame_equal(table, pd.DataFrame(wanted, columns=table.columns))


@pytest.mark.parametrize(
    ("name", "middle", "count"),
    [
        ("vit", "blocks.3.resid_post", 8),
        ("vit-small", "blocks.1.resid_post", 4),
        ("mixer", "blocks.3.resid_post", 8),
        ("resnet", "stages.1.blocks.3", 16),
    ],
)
def test_blocks_of_the_zoos_networks(name, middle, count):
    model = zoo.load(name, pretrained=False)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    result = cka_heatmap({"a": model, "b": model}, [images])
    found = result.taps["name"].iloc[blocks(result, "a")].tolist()
    assert len(found) == count and middle in found
    assert same_block(result.matrix, blocks(result, "a"), blocks(result, "b")) == pytest.approx(1, abs=1e-5)


def test_a_curve_is_the_diagonal_with_the_interval_of_students_t():
    rng = np.random.default_rng(0)
    left, right = (torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))) for _ in range(2))
    images = torch.from_numpy(rng.random((40, 3, 8, 8), dtype=np.float32))
    places = [Tap(name, name, "output", OUTPUTS[0]) for name in "01"]
    taps = {"a": places, "b": places}
    models = {"a": left, "b": right}
    result = cka_heatmap(models, images.split(8), taps, preprocess=dict.fromkeys(models, lambda x: x))
    found = curve(result, "a", "b")
    assert found["depth"].tolist() == [0.5, 1]
    np.testing.assert_array_equal(found["CKA"], result.matrix[[0, 1], [2, 3]])
    np.testing.assert_allclose(found["error"], student.ppf(0.975, 4) * result.stderr[[0, 1], [2, 3]])


def test_probes_by_depth_read_what_the_images_show():
    torch.manual_seed(0)
    model = zoo.load("vit-short", pretrained=False).eval()
    read, test = (scenes.render(scenes.Corpus(), scenes.split(which, 120)) for which in ("validation", "test"))
    labels = [part.images.float().mean((1, 2, 3)) for part in (read, test)]  # bright or dark, which all blocks keep
    read.label, test.label = ((label > labels[0].median()).long() for label in labels)
    hits = probed(model, read, test, shots=30, draws=2, held_out=40, seed=1)
    assert list(hits) == [k / 8 for k in range(1, 9)]
    assert all(right.shape == (2, 120) and right.float().mean() > 0.7 for right in hits.values())
    again = probed(model, read, test, shots=30, draws=2, held_out=40, seed=1)
    assert all(torch.equal(hits[depth], again[depth]) for depth in hits)


def test_scores_are_percentages_with_an_interval_around_them():
    right = torch.tensor([[True] * 75 + [False] * 25] * 3)
    table = scores({"ViT, 3 %": {0.5: right, 1.0: ~right}, "untrained": {1.0: torch.ones(1, 100, dtype=torch.bool)}})
    assert table["network"].tolist() == ["ViT", "ViT", "untrained"] and table["data"].tolist() == ["3 %", "3 %", ""]
    assert table["depth of the block"].tolist() == [0.5, 1, 1]
    assert table["probe accuracy (%)"].tolist() == [75, 25, 100] and table["high"].iloc[2] == 100
    reach = 1.96 * 100 * (0.75 * 0.25 / 100) ** 0.5  # binomial
    assert table["low"].iloc[0] == pytest.approx(75 - reach, abs=1.5)
    assert table["high"].iloc[0] == pytest.approx(75 + reach, abs=1.5)
