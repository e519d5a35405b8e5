"""Errors from tables with one group of images left out at a time: the jackknife, and the bootstrap for ranks."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from helpers.uncertainty import bootstrap, jackknife, quantile


def left_out(groups: np.ndarray, **columns) -> pd.DataFrame:
    """The table that measurements make of the means (G, rows) of G groups: over all of them, and without each."""
    total = len(groups) * groups.mean(0)
    tables = [(-1, groups.mean(0))] + [(g, (total - one) / (len(groups) - 1)) for g, one in enumerate(groups)]
    rows = [pd.DataFrame({"block": range(groups.shape[1]), "x": mean, "left_out": g, **columns}) for g, mean in tables]
    return pd.concat(rows, ignore_index=True)


def order(table: pd.DataFrame) -> float:
    return spearmanr(table["block"], table["x"]).statistic


def test_of_a_mean_both_give_its_standard_error():
    groups = np.random.default_rng(0).normal(5, 2, (400, 1))
    table = left_out(groups)
    value, stderr = jackknife(lambda t: t["x"].iloc[0], table)
    again, (low, high) = bootstrap(lambda t: t["x"].iloc[0], table)
    assert value == again == pytest.approx(groups.mean())
    assert stderr == pytest.approx(groups.std(ddof=1) / 20)
    assert (high - low) / 2 == pytest.approx(1.96 * stderr, rel=0.1) and low < value < high


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


def test_the_bootstraps_interval_covers_the_truth():
    rng, covered = np.random.default_rng(2), 0
    for _ in range(100):
        _, (low, high) = bootstrap(lambda t: t["x"].max(), left_out(rng.normal([0, 3], 1, (16, 2))), times=200)
        covered += low <= 3 <= high
    assert 86 <= covered <= 99  # 95 asked for; with sixteen groups quantiles fall a little short of it


def test_an_interval_holds_its_value():
    groups = np.repeat([[0.0], [1.0]], [1, 15], axis=0) @ np.ones((1, 3))
    table = left_out(groups)
    found = lambda t: float(t["x"].iloc[0] == groups[:, 0].mean())  # noqa: E731  true of the whole, hardly ever of a draw
    value, (low, high) = bootstrap(found, table, times=20, seed=3)
    assert value == high == 1 and low == 0


def test_students_t():
    assert [round(quantile(groups), 3) for groups in (2, 3, 10, 16)] == [12.706, 4.303, 2.262, 2.131]


@pytest.mark.parametrize("measure", [jackknife, bootstrap])
def test_tables_that_do_not_fit(measure):
    table = left_out(np.random.default_rng(0).normal(0, 1, (4, 3)))
    with pytest.raises(ValueError, match="column left_out"):
        measure(order, table.drop(columns="left_out"))
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
