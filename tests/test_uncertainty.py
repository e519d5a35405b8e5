"""The jackknife and the bootstrap over groups of images, and intervals of means and of shares."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm, spearmanr
from scipy.stats import t as student

from helpers.measures.cka import Sums
from helpers.measures.cka import bootstrap as bootstrap_of_sums
from helpers.uncertainty import (
    bootstrap,
    bootstrap_groups,
    delete_one,
    difference_of_shares,
    estimate,
    groups,
    half_width,
    interval,
    jackknife,
    over_trainings,
    quantile,
    weighted_jackknife,
    whole,
)


def left_out(means: np.ndarray, **columns) -> pd.DataFrame:
    """The table that measurements make of the means (G, rows) of G groups: over all of them, and without each."""

    def mean_without(group: int | None) -> dict[str, np.ndarray]:
        return {"x": (means if group is None else np.delete(means, group, axis=0)).mean(0)}

    return delete_one(pd.DataFrame({"block": range(means.shape[1]), **columns}), mean_without, range(len(means)))


def order(table: pd.DataFrame) -> float:
    return spearmanr(table["block"], table["x"]).statistic


def test_a_table_has_all_images_first_and_then_each_group_left_out():
    rows = pd.DataFrame({"head": [0, 1], "name": ["a", "b"]})
    table = delete_one(rows, lambda group: {"x": [group is None, group], "y": 0.5}, np.array([2, 5]))
    assert list(table.columns) == ["head", "name", "left_out", "x", "y"] and list(table.index) == list(range(6))
    assert table["left_out"].tolist() == [-1, -1, 2, 2, 5, 5] and table["x"].tolist() == [
        True,
        None,
        False,
        2,
        False,
        5,
    ]
    assert table["head"].tolist() == [0, 1] * 3 and (table["y"] == 0.5).all()
    assert whole(table)["head"].tolist() == [0, 1] and list(whole(table[::-1]).index) == [0, 1]
    assert groups(table) == 2 and groups(table[table["left_out"] != -1]) == 2 and groups(whole(table)) == 0


def test_of_a_mean_both_give_its_standard_error():
    groups = np.random.default_rng(0).normal(5, 2, (400, 1))
    table = left_out(groups)
    value, stderr = jackknife(lambda t: t["x"].iloc[0], table)
    again, (low, high) = bootstrap(lambda t: t["x"].iloc[0], table)
    assert value == again == pytest.approx(groups.mean())
    assert stderr == pytest.approx(groups.std(ddof=1) / 20)
    assert (high - low) / 2 == pytest.approx(1.96 * stderr, rel=0.15) and low < value < high


def test_a_rank_that_no_single_group_can_change_still_has_an_interval():
    rng = np.random.default_rng(3)
    groups = np.arange(6) / 2 + rng.normal(0, 1.2, (16, 6))  # means nearly in order, groups that often are not
    table = left_out(groups, head=0)
    value, stderr = jackknife(order, table)
    assert stderr == 0
    again, (low, high) = bootstrap(order, table)
    assert again == value and low < value <= high
    assert bootstrap(order, table) == bootstrap(order, table)


def test_both_take_the_same_groups_of_all_tables():
    groups = np.random.default_rng(1).normal(0, 1, (16, 3))
    first, second = left_out(groups), left_out(groups + 0.25)
    value, ends = bootstrap(lambda a, b: b["x"].to_numpy() - a["x"].to_numpy(), first, second)
    np.testing.assert_allclose(value, 0.25)
    np.testing.assert_allclose(ends, np.full((3, 2), 0.25))
    value, stderr = jackknife(lambda a, b: [b["x"][0] - a["x"][0], a["x"][0]], first, second)
    assert value[0] == pytest.approx(0.25) and stderr[0] == pytest.approx(0, abs=1e-12)
    assert stderr[1] == pytest.approx(groups[:, 0].std(ddof=1) / 4)


@pytest.mark.parametrize("groups", [8, 16])
def test_the_bootstraps_interval_covers_the_truth_as_often_as_students_t(groups):
    """Of a mean, and of a maximum that is one, over few groups; the plain percentile interval covers 87 and 91 %."""
    rng = np.random.default_rng(2)
    ends = [
        bootstrap_groups(means.mean(0).max(), lambda drawn, m=means: m[drawn].mean(0).max(), groups, times=400)[1]
        for means in rng.normal([0, 3], 1, (600, groups, 2))
    ]
    assert 0.93 <= np.mean([low <= 3 <= high for low, high in ends]) <= 0.975


def test_of_few_groups_the_bootstraps_interval_of_a_mean_is_students():
    means = np.random.default_rng(9).normal(0, 1, 16)
    _, (low, high) = bootstrap_groups(means.mean(), lambda drawn: means[drawn].mean(), 16, times=20_000)
    assert (low, high) == pytest.approx(student.interval(0.95, 15, means.mean(), means.std(ddof=1) / 4), abs=0.05)


def test_an_interval_holds_its_value():
    groups = np.repeat([[0.0], [1.0]], [1, 15], axis=0) @ np.ones((1, 3))
    table = left_out(groups)
    found = lambda t: float(t["x"].iloc[0] == groups[:, 0].mean())  # noqa: E731  true of the whole, hardly ever of a draw
    value, (low, high) = bootstrap(found, table, times=20, seed=3)
    assert value == high == 1 and low == 0


def test_of_equal_groups_the_weighted_jackknife_is_the_ordinary_one():
    means = np.random.default_rng(4).normal(0, 1, (7, 5))
    table = left_out(means)
    statistic = lambda t: np.exp(t["x"].to_numpy())  # noqa: E731  not linear in the means
    value, stderr = jackknife(statistic, table)
    without = np.stack([statistic(part) for group, part in table.groupby("left_out") if group >= 0])
    np.testing.assert_allclose(weighted_jackknife(value, without, np.full(7, 1 / 7)), stderr)
    single = weighted_jackknife(value[0], without[:, 0], np.full(7, 1 / 7))
    assert single.shape == () and single == pytest.approx(stderr[0])


def test_of_a_weighted_mean_the_jackknife_weighs_each_groups_own_deviation():
    rng = np.random.default_rng(5)
    shares, means = rng.dirichlet(np.full(6, 4.0)), rng.normal(0, 1, 6)
    value = shares @ means
    without = (value - shares * means) / (1 - shares)
    wanted = np.sqrt(np.mean((means - value) ** 2 * shares / (1 - shares)))  # the pseudo-values are the groups' means
    assert weighted_jackknife(value, without, shares) == pytest.approx(wanted)


def test_the_weighted_jackknife_sees_the_spread_of_repeated_draws():
    rng, counts = np.random.default_rng(6), np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    shares = counts / counts.sum()
    values, errors = [], []
    for _ in range(500):
        means = rng.normal(0, 1 / np.sqrt(counts))  # of as many observations as each group has
        values.append(shares @ means)
        errors.append(weighted_jackknife(values[-1], (values[-1] - shares * means) / (1 - shares), shares))
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(1 / np.sqrt(counts.sum()), rel=0.05)
    assert np.std(values) == pytest.approx(1 / np.sqrt(counts.sum()), rel=0.1)


def test_groups_are_drawn_with_replacement_and_all_are_drawn_alike():
    seen = []
    value, (low, high) = bootstrap_groups(
        0.0, lambda drawn: seen.append(drawn) or float(drawn[0]), 8, times=4000, seed=1
    )
    drawn = np.stack(seen)
    assert drawn.shape == (4000, 8) and set(drawn.ravel()) == set(range(8))
    assert np.bincount(drawn.ravel()) / drawn.size == pytest.approx(np.full(8, 1 / 8), abs=0.01)
    never = np.mean([0 not in row for row in drawn])
    assert never == pytest.approx((7 / 8) ** 8, abs=0.03)
    assert (value, low, high) == (0, 0, 7)


def test_tables_and_sums_of_the_same_groups_have_the_same_bootstrap():
    means = np.random.default_rng(7).uniform(0.2, 0.8, (16, 1))
    ones = np.ones((16, 1))
    sums = Sums(means[:, :, None], ones, ones, np.ones(16, dtype=int), np.full(16, 8))
    of_sums = bootstrap_of_sums(lambda matrix: matrix[0, 0], sums, times=300, seed=2)
    of_table = bootstrap(lambda t: t["x"].iloc[0], left_out(means), times=300, seed=2)
    np.testing.assert_allclose(np.hstack(of_sums), np.hstack(of_table))


def test_the_interval_of_a_mean_covers_what_a_binomial_gives():
    hits = (torch.rand(1000, generator=torch.Generator().manual_seed(0)) < 0.7).float()
    low, high = interval(hits)
    assert high - low == pytest.approx(2 * 1.96 * (0.7 * 0.3 / 1000) ** 0.5, rel=0.1)
    draws = (
        hits[None] + torch.tensor([-0.2, -0.1, 0.0, 0.1, 0.2])[:, None]
    )  # what the draw of shots adds is counted too
    assert np.diff(interval(draws)) > 3 * (high - low)
    assert interval(torch.zeros(3, 50)) == (0, 0)


def test_the_difference_of_two_shares_is_covered_as_often_as_asked():
    value, (low, high) = difference_of_shares(0.6, 0.5, 400)
    reach = norm.ppf(0.975) * np.sqrt((0.24 + 0.25) / 400)
    assert (value, low, high) == pytest.approx((0.1, 0.1 - reach, 0.1 + reach))
    draws = np.random.default_rng(8).binomial(400, [0.6, 0.5], (1000, 2)) / 400
    ends = [difference_of_shares(*pair, 400)[1] for pair in draws]
    assert 0.93 < np.mean([low <= 0.1 <= high for low, high in ends]) < 0.97


def test_students_t():
    assert [round(quantile(groups), 3) for groups in (2, 3, 10, 16)] == [12.706, 4.303, 2.262, 2.131]


def test_over_trainings_the_interval_is_that_of_a_mean_of_few():
    for values in ([1.0, 2.0], [0.3, 0.1, 0.5]):
        mean, ends = over_trainings(values)
        spread = np.std(values, ddof=1) / np.sqrt(len(values))
        assert mean == np.mean(values) and ends == pytest.approx(student.interval(0.95, len(values) - 1, mean, spread))
    mean, ends = over_trainings([0.5])
    assert mean == 0.5 and np.isnan(ends).all()
    with pytest.raises(ValueError, match="no training"):
        over_trainings([])


def test_the_interval_over_three_trainings_covers_the_truth_as_often_as_asked():
    draws = np.random.default_rng(10).normal(2, 1, (2000, 3))
    covered = [low <= 2 <= high for _, (low, high) in map(over_trainings, draws)]
    assert 0.935 < np.mean(covered) < 0.965


def test_no_scores_have_no_interval():
    for empty in ([], np.ones((2, 0))):
        with pytest.raises(ValueError, match="no scores"):
            interval(empty)


@pytest.mark.parametrize("measure", [jackknife, bootstrap])
def test_tables_that_do_not_fit(measure):
    table = left_out(np.random.default_rng(0).normal(0, 1, (4, 3)))
    with pytest.raises(ValueError, match="column left_out"):
        measure(order, table.drop(columns="left_out"))
    with pytest.raises(ValueError, match="give the whole table"):
        measure(order, table[table["left_out"] != -1])
    with pytest.raises(ValueError, match="same groups"):
        measure(lambda a, b: order(a), table, table[table["left_out"] < 3])
    with pytest.raises(ValueError, match="two or more"):
        measure(order, table[table["left_out"] < 1])


def test_the_bootstrap_needs_the_same_rows_for_every_group():
    table = left_out(np.random.default_rng(0).normal(0, 1, (4, 3)))
    swapped = table.copy()
    swapped.loc[swapped["left_out"] == 2, "block"] = [2, 1, 0]
    with pytest.raises(ValueError, match="not the same ones"):
        bootstrap(order, swapped)


def test_half_a_95_percent_interval_by_the_table_of_students_t():
    assert half_width(1.0, 16) == pytest.approx(2.131, abs=5e-4) and half_width(2.0, 4) == pytest.approx(
        6.365, abs=1e-3
    )
    np.testing.assert_allclose(half_width(np.array([1.0, 0, np.nan]), 3), [4.303, 0, np.nan], atol=1e-3)


def test_an_estimate_of_a_mean_is_its_textbook_interval():
    means = np.random.default_rng(3).normal(5, 2, (9, 2))
    value, half = estimate(lambda t: t["x"].to_numpy(), left_out(means))
    low, high = student.interval(0.95, 8, means.mean(0), means.std(0, ddof=1) / 3)
    np.testing.assert_allclose(value - half, low)
    np.testing.assert_allclose(value + half, high)
    both = estimate(lambda a, b: a["x"].mean() - b["x"].mean(), left_out(means), left_out(means + 1))
    assert both == (pytest.approx(-1), pytest.approx(0, abs=1e-12))


def test_an_estimate_of_a_cka_matrix_counts_the_groups_that_have_data():
    class Result:
        groups = 5

        def statistic(self, fn):
            return fn(np.array([[0.25, 0.5]])), 0.1

    assert estimate(lambda matrix: matrix[0, 1], Result()) == (0.5, pytest.approx(0.1 * student.ppf(0.975, 4)))
    with pytest.raises(ValueError, match="tables, or of one CKA result; got 0 and 2"):
        estimate(np.mean, Result(), Result())
    with pytest.raises(ValueError, match="got 1 and 1"):
        estimate(np.mean, left_out(np.ones((3, 1))), Result())
