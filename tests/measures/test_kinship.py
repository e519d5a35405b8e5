"""How alike two networks are, place by place, on maps whose numbers are known."""

import numpy as np
import pytest

from helpers.measures.kinship import nearer, same_depth
from helpers.measures.structure import Places


def network(start: int, count: int) -> Places:
    return Places(np.arange(start, start + count), np.arange(count) / (count - 1), np.full(count, -1))


def test_each_place_meets_the_one_nearest_in_depth_and_of_two_as_near_the_lower():
    deep, shallow = network(0, 7), network(7, 3)  # depths 0, 1/6 … 1 and 0, 1/2, 1
    matrix = np.zeros((10, 10))
    matrix[:7, 7:] = 10 * np.arange(7)[:, None] + np.arange(3)
    assert same_depth(matrix, deep, shallow).tolist() == [0, 10, 21, 31, 41, 52, 62]
    thirds, halves = network(0, 4), network(4, 3)
    tie = np.zeros((7, 7))
    tie[:5, 5:] = np.arange(5)[:, None] * 10.0 + np.arange(2)
    assert same_depth(tie, network(0, 5), network(5, 2)).tolist() == [0, 10, 20, 31, 41]  # the middle lies between both
    assert same_depth(np.eye(7), thirds, halves).tolist() == [0, 0, 0, 0]


def test_a_network_is_as_near_as_itself_and_a_nearer_one_is_by_as_much():
    rng = np.random.default_rng(0)
    first, second, other = network(0, 5), network(5, 5), network(10, 4)
    matrix = rng.uniform(0, 0.5, (14, 14))
    assert nearer(matrix, first, first, other) == pytest.approx([0, 0])
    matrix[:5, 10:] = matrix[5:10, 10:] + 0.25  # at every pair of places, whichever is highest
    assert nearer(matrix, first, second, other) == pytest.approx([0.25, 0.25])
    assert nearer(matrix, second, first, other) == pytest.approx([-0.25, -0.25])


def test_what_only_fades_with_distance_in_depth_tells_no_two_networks_apart():
    first, second, other = network(0, 9), network(9, 9), network(18, 13)
    depth = np.concatenate([of.depth for of in (first, second, other)])
    fading = 0.5 ** np.abs(depth[:, None] - depth)
    assert nearer(fading, first, second, other) == pytest.approx([0, 0])
    half = 0.5 ** np.abs(first.depth[:, None] - other.depth).min(1)
    assert same_depth(fading, first, other) == pytest.approx(half)
