"""How alike two networks are, place by place, on maps whose numbers are known."""

import numpy as np
import pytest

from helpers.measures.kinship import apart_from, by_objective, likeness, nearer, same_depth, sides
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


def test_likeness_is_of_the_place_at_its_depth_and_of_the_best_place():
    own, other = network(0, 3), network(3, 3)
    matrix = np.zeros((6, 6))
    matrix[:3, 3:] = [[0.1, 0.4, 0.2], [0.9, 0.3, 0.0], [0.0, 0.6, 0.5]]
    assert likeness(matrix, own, other) == pytest.approx([0.3, (0.4 + 0.9 + 0.6) / 3])
    assert likeness(matrix.T, other, own) == pytest.approx([0.3, (0.9 + 0.6 + 0.5) / 3])  # over the other's places


def test_a_network_takes_the_side_of_the_one_that_it_is_more_like():
    own, first, second = network(0, 5), network(5, 9), network(14, 3)
    matrix = np.zeros((17, 17))
    matrix[:5, 5:14], matrix[:5, 14:] = 0.7, 0.4
    assert sides(matrix, own, first, second) == pytest.approx([0.3, 0.3])
    assert sides(matrix, own, second, first) == pytest.approx([-0.3, -0.3])


def test_architecture_says_more_where_the_objective_changes_less():
    own = network(0, 3)
    aims, forms = [network(3, 3), network(6, 3)], [network(9, 4), network(13, 9), network(22, 2)]
    matrix = np.zeros((24, 24))
    for others, numbers in ((aims, (0.9, 0.5)), (forms, (0.6, 0.2, 0.1))):
        for other, number in zip(others, numbers, strict=True):
            matrix[np.ix_(own.index, other.index)] = number
    assert by_objective(matrix, own, aims, forms) == pytest.approx(0.7 - 0.3)
    assert by_objective(matrix, own, forms, aims) == pytest.approx(0.3 - 0.7)


def test_two_of_a_kind_are_apart_from_a_third_and_three_alike_are_not():
    first, second, third = network(0, 4), network(4, 4), network(8, 4)
    matrix = np.full((12, 12), 0.4)
    assert apart_from(matrix, first, second, third) == pytest.approx(0)
    matrix[:4, 4:8], matrix[4:8, 8:] = 0.8, 0.2
    assert apart_from(matrix, first, second, third) == pytest.approx(0.8 - (0.4 + 0.2) / 2)
    rotated = np.arange(4) + 4
    matrix[np.arange(4), rotated] = 0.5  # place by place: what lies beside the diagonal does not count
    assert apart_from(matrix, first, second, third) == pytest.approx(0.5 - 0.3)
