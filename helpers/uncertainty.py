"""How sure a number is: intervals over images, by the jackknife or the bootstrap, of means, of shares, over trainings.

A measure deals its images to groups and takes its numbers once from all images and once without each group
(``delete_one``). Such a table has a column ``left_out``: −1 where every image counted, otherwise the number of the
group that did not. ``jackknife(fn, *tables)`` gives ``fn`` of the complete tables and its standard error; a 95 %
interval reaches ``quantile(groups)`` errors to either side, and ``estimate`` gives the value with that half-width. For
numbers that jump, such as ranks, ``bootstrap`` gives an interval instead. ``interval`` and ``difference_of_shares``
are for means over images that were not grouped. All of these say how a number would come out on other images; how it
would come out in another training, ``over_trainings`` says.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

GROUPS = 16  # that the images of a measurement are dealt to: batch b, or image b, is in group b mod 16


def delete_one(
    rows: pd.DataFrame, measure: Callable[[int | None], Mapping[str, Any]], groups: Iterable[int]
) -> pd.DataFrame:
    """What is measured on all images and on all but each group of them, below each other, as ``jackknife`` takes it.

    ``rows``: what each row is about, the same for every group. ``measure``: the group to leave out, or None for none →
    the measured columns, each a number or one value a row. Returns the columns of ``rows``, ``left_out`` and these.
    """
    tables = [rows.assign(left_out=-1, **measure(None))]
    tables += [rows.assign(left_out=int(group), **measure(int(group))) for group in groups]
    return pd.concat(tables, ignore_index=True)


def whole(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table with ``left_out`` for which every image counted, numbered from 0."""
    return table[table["left_out"] == -1].reset_index(drop=True)


def groups(table: pd.DataFrame) -> int:
    """How many groups of images a table with ``left_out`` leaves out, one at a time."""
    return int(table.loc[table["left_out"] != -1, "left_out"].nunique())


def jackknife(fn: Callable[..., Any], *tables: pd.DataFrame) -> tuple[Any, Any]:
    """``fn`` of the complete tables, and its standard error by the delete-one-group jackknife (Efron & Stein 1981).

    The groups are taken as equal in size. With several tables the same group is left out of all, as is right where
    they were made from the same images. ``fn`` may return a number or an array. Raises ValueError where a table has
    no column ``left_out``, where the tables leave out different groups, or fewer than two.
    """
    complete, without = _split(tables)
    value = np.asarray(fn(*complete), dtype=float)
    left_out = np.stack([np.asarray(fn(*parts), dtype=float) for parts in without])
    stderr = np.sqrt((len(left_out) - 1) * ((left_out - left_out.mean(0)) ** 2).mean(0))
    return (value, stderr) if value.ndim else (float(value), float(stderr))


def weighted_jackknife(value: np.ndarray, left_out: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Standard error (…) of a value (…) by the jackknife for groups of unequal size (Busing et al. 1999).

    ``left_out`` (G, …): the value without each group. ``shares`` (G,): what share of all observations each group
    holds. Where they are equal this is the ordinary jackknife.
    """
    shares = np.reshape(shares, (-1, *[1] * np.ndim(value)))
    estimate = len(left_out) * value - ((1 - shares) * left_out).sum(0)
    pseudo = value / shares - (1 / shares - 1) * left_out
    return np.sqrt(((pseudo - estimate) ** 2 / (1 / shares - 1)).mean(0))


def bootstrap(fn: Callable[..., Any], *tables: pd.DataFrame, times: int = 1000, seed: int = 0) -> tuple[Any, Any]:
    """``fn`` of the complete tables, and its 95 % interval, by a bootstrap over the groups.

    For numbers that jump, such as ranks, counts and places of a maximum: leaving one group out often changes none of
    them, so that their jackknife error is zero. What each group would give by itself follows from the tables,
    G · complete − (G − 1) · without it, exactly where a column is a mean over images and to first order elsewhere.
    Groups are drawn as by ``bootstrap_groups``, the same ones for all tables, and these are averaged. Whole numbers and
    text are taken from the complete table. ``fn`` may return a number or an array of K; the interval is (low, high) or
    (K, 2). Raises ValueError as ``jackknife`` does, and where rows of a table do not correspond.
    """
    complete, without = _split(tables)
    count, columns, values = len(without), [], []
    for k, table in enumerate(complete):
        names = list(table.select_dtypes("float"))
        rest = table.drop(columns=[*names, "left_out"])
        if any(not rest.equals(parts[k].drop(columns=[*names, "left_out"])) for parts in without):
            raise ValueError("the rows of a table are not the same ones, in the same order, for every group left out")
        left_out = np.stack([parts[k][names].to_numpy() for parts in without])  # (G, rows, columns)
        columns.append(names)
        values.append(count * table[names].to_numpy() - (count - 1) * left_out)

    def of_drawn(drawn: np.ndarray) -> Any:
        parts = [
            table.assign(**dict(zip(names, value[drawn].mean(0).T, strict=True)))
            for table, names, value in zip(complete, columns, values, strict=True)
        ]
        return fn(*parts)

    return bootstrap_groups(fn(*complete), of_drawn, count, times, seed)


def bootstrap_groups(
    value: Any, of_drawn: Callable[[np.ndarray], Any], groups: int, times: int = 1000, seed: int = 0
) -> tuple[Any, Any]:
    """A value and its 95 % interval, by drawing groups of images with replacement (Efron & Tibshirani 1993).

    The quantiles are not the 2.5 and 97.5 % of the plain percentile interval, which of sixteen groups covers a mean
    in 91 % of cases: draws of few groups spread too little, and a normal quantile is too small for them. They are
    expanded so that the interval of a mean is that of Student's t (Hesterberg 2015, "What teachers should know about
    the bootstrap"): of sixteen groups the 1.4 and 98.6 %. Correcting for bias and skew (BCa) was tried as well,
    and gains nothing for so few groups.

    Args:
        value: the number, or the array (K,), that all groups give.
        of_drawn: the numbers of the drawn groups (groups,), some of them repeated → the value that these give.
        groups: how many there are, and are drawn each time.
        times: how often they are drawn.
        seed: of the draws.

    Returns:
        the value, and its interval (low, high) or (K, 2), between two quantiles of the draws, and wider where the value
        itself lies outside of these.
    """
    rng = np.random.default_rng(seed)
    tail = float(stats.norm.sf(quantile(groups) * math.sqrt(groups / (groups - 1))))
    draws = [np.asarray(of_drawn(rng.integers(groups, size=groups)), dtype=float) for _ in range(times)]
    low, high = np.quantile(np.stack(draws), [tail, 1 - tail], axis=0)
    value = np.asarray(value, dtype=float)
    ends = np.stack([np.minimum(low, value), np.maximum(high, value)], -1)
    return (value, ends) if value.ndim else (float(value), tuple(map(float, ends)))


def interval(scores: ArrayLike, seed: int = 0, times: int = 2000) -> tuple[float, float]:
    """95 % interval of the mean of scores (R, N), from a bootstrap over the R draws of shots and the N images.

    Both are drawn anew, independently of each other; (N,) stands for a single fit. For the difference of two probes
    that were scored on the same images, hand over the difference of their scores. Raises ValueError without scores.
    """
    scores = np.atleast_2d(np.asarray(scores, dtype=float))
    if not scores.size:
        raise ValueError("there are no scores, so their mean has no interval")
    rows, columns = (_resampled(size, seed + axis, times) for axis, size in enumerate(scores.shape))
    means = ((rows @ scores) * columns).sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


@lru_cache(maxsize=4)
def _resampled(size: int, seed: int, times: int) -> np.ndarray:
    """Weights (times, size) of bootstrap samples: how often each unit is drawn, over their number."""
    return np.random.default_rng(seed).multinomial(size, [1 / size] * size, times) / size


def difference_of_shares(a: float, b: float, count: int) -> tuple[float, tuple[float, float]]:
    """Share ``a`` minus share ``b`` and its 95 % interval, by the normal approximation for independent shares.

    Each is the share of ``count`` trials, from 0 to 1.
    """
    shares = np.array([a, b])
    reach = stats.norm.ppf(0.975) * math.sqrt((shares * (1 - shares)).sum() / count)
    value = shares[0] - shares[1]
    return float(value), (float(value - reach), float(value + reach))


def over_trainings(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Mean of a number over K trainings from different seeds, and its 95 % interval for another training's like.

    The interval is that of a mean of K independent normal values, ± t s / √K with Student's t for K − 1 degrees of
    freedom: 2.5 standard deviations for three trainings, 9 for two. It covers what differs from training to
    training, not what all of them share, the images. A single training has no spread: both ends are NaN. Raises
    ``ValueError`` for no value.
    """
    if not len(values):
        raise ValueError("there is no training to take a mean over")
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, (math.nan, math.nan)
    reach = quantile(len(values)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, (mean - reach, mean + reach)


def quantile(groups: int) -> float:
    """How many jackknife errors a 95 % interval reaches to either side, by Student's t with groups − 1 degrees."""
    return float(stats.t.ppf(0.975, groups - 1))


def half_width(stderr: Any, groups: int) -> Any:
    """Half the width of the 95 % interval of a number, or of an array, whose jackknife error over ``groups`` this is.

    It is the height of an error bar to one side, or of a band. NaN where the error is.
    """
    return quantile(groups) * stderr


class Grouped(Protocol):
    """What holds one matrix for each way of leaving out a group of images, such as a ``CKAResult``."""

    @property
    def groups(self) -> int: ...

    def statistic(self, fn: Callable[[np.ndarray], Any]) -> tuple[Any, Any]: ...


def estimate(fn: Callable[..., Any], *measured: pd.DataFrame | Grouped) -> tuple[Any, Any]:
    """``fn`` of what was measured, and half the width of its 95 % interval over groups of images: a number or an array.

    ``measured``: one or several tables with ``left_out``, as ``jackknife`` takes them, or one CKA result, of whose
    matrix ``fn`` is a function. Raises ValueError as ``jackknife`` does, and for several CKA results.
    """
    tables = [table for table in measured if isinstance(table, pd.DataFrame)]
    results = [result for result in measured if not isinstance(result, pd.DataFrame)]
    if len(results) == 1 and not tables:
        value, stderr = results[0].statistic(fn)
        return value, half_width(stderr, results[0].groups)
    if results or not tables:
        raise ValueError(f"an estimate is of tables, or of one CKA result; got {len(tables)} and {len(results)}")
    value, stderr = jackknife(fn, *tables)
    return value, half_width(stderr, groups(tables[0]))


def _split(tables: tuple[pd.DataFrame, ...]) -> tuple[list[pd.DataFrame], list[list[pd.DataFrame]]]:
    """The complete tables, and for each group the tables without it."""
    if any("left_out" not in table or -1 not in table["left_out"].to_numpy() for table in tables):
        raise ValueError(
            "a table for the jackknife says in a column left_out which group of images it leaves out, −1 for none: "
            "give the whole table, with the rows of all images"
        )
    groups = [sorted(set(table["left_out"]) - {-1}) for table in tables]
    if any(other != groups[0] for other in groups) or len(groups[0]) < 2:
        raise ValueError(f"the tables need the same groups, two or more; they leave out {groups}")
    parts = [dict(tuple(table.groupby("left_out"))) for table in tables]
    complete, *without = ([part[group].reset_index(drop=True) for part in parts] for group in (-1, *groups[0]))
    return complete, without
