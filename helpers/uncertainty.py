"""The standard error of any number made from a table that was made once with all images and once without each group.

Such a table has a column ``left_out``: −1 where every image counted, otherwise the number of the group of images that
did not. ``jackknife(fn, *tables)`` gives ``fn`` of the complete tables and its error. For numbers that jump, such as
ranks, ``bootstrap`` gives an interval instead.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats


def jackknife(fn: Callable[..., Any], *tables: pd.DataFrame) -> tuple[Any, Any]:
    """``fn`` of the complete tables, and its standard error by the delete-one-group jackknife (Efron & Stein 1981).

    The groups are taken as equal in size. With several tables the same group is left out of all, as is right where
    they were made from the same images. ``fn`` may return a number or an array. Raises ValueError where a table has
    no column ``left_out``, where the tables leave out different groups, or fewer than two.
    """
    complete, without = _split(tables)
    value = np.asarray(fn(*complete), dtype=float)
    kept = np.stack([np.asarray(fn(*parts), dtype=float) for parts in without])
    stderr = np.sqrt((len(kept) - 1) * ((kept - kept.mean(0)) ** 2).mean(0))
    return (value, stderr) if value.ndim else (float(value), float(stderr))


def bootstrap(fn: Callable[..., Any], *tables: pd.DataFrame, times: int = 1000, seed: int = 0) -> tuple[Any, Any]:
    """``fn`` of the complete tables, and its 95 % interval, by a bootstrap over the groups.

    For numbers that jump, such as ranks, counts and places of a maximum: leaving one group out often changes none of
    them, so that their jackknife error is zero. What each group would give by itself follows from the tables,
    G · complete − (G − 1) · without it, exactly where a column is a mean over images and to first order elsewhere.
    Groups are drawn with replacement, the same ones for all tables, and these are averaged; the interval goes from the
    2.5 % to the 97.5 % quantile (Efron & Tibshirani 1993), and as far as the value itself. Whole numbers and text are
    taken from the complete table. ``fn`` may return a number or an array of K; the interval is (low, high) or (K, 2).
    Raises ValueError as ``jackknife`` does, and where rows of a table do not correspond.
    """
    complete, without = _split(tables)
    groups, columns, values = len(without), [], []
    for k, table in enumerate(complete):
        names = list(table.select_dtypes("float"))
        rest = table.drop(columns=[*names, "left_out"])
        if any(not rest.equals(parts[k].drop(columns=[*names, "left_out"])) for parts in without):
            raise ValueError("the rows of a table are not the same ones, in the same order, for every group left out")
        left_out = np.stack([parts[k][names].to_numpy() for parts in without])  # (G, rows, columns)
        columns.append(names)
        values.append(groups * table[names].to_numpy() - (groups - 1) * left_out)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(times):
        drawn = rng.integers(groups, size=groups)
        parts = [
            table.assign(**dict(zip(names, value[drawn].mean(0).T, strict=True)))
            for table, names, value in zip(complete, columns, values, strict=True)
        ]
        draws.append(np.asarray(fn(*parts), dtype=float))
    return percentiles(np.asarray(fn(*complete), dtype=float), np.stack(draws))


def percentiles(value: np.ndarray, draws: np.ndarray) -> tuple[Any, Any]:
    """A value, () or (K,), and the 95 % interval of its draws (times, …), widened to hold it: (low, high) or (K, 2)."""
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    ends = np.stack([np.minimum(low, value), np.maximum(high, value)], -1)
    return (value, ends) if value.ndim else (float(value), tuple(map(float, ends)))


def whole(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table with ``left_out`` for which every image counted, numbered from 0."""
    return table[table["left_out"] == -1].reset_index(drop=True)


def groups(table: pd.DataFrame) -> int:
    """How many groups of images a table with ``left_out`` leaves out, one at a time."""
    return int(table.loc[table["left_out"] != -1, "left_out"].nunique())


def quantile(groups: int) -> float:
    """How many jackknife errors a 95 % interval reaches to either side, by Student's t with groups − 1 degrees."""
    return float(stats.t.ppf(0.975, groups - 1))


def _split(tables: tuple[pd.DataFrame, ...]) -> tuple[list[pd.DataFrame], list[list[pd.DataFrame]]]:
    """The complete tables, and for each group the tables without it."""
    if any("left_out" not in table for table in tables):
        raise ValueError("a table for the jackknife says in a column left_out which group of images it leaves out")
    groups = [sorted(set(table["left_out"]) - {-1}) for table in tables]
    if any(other != groups[0] for other in groups) or len(groups[0]) < 2:
        raise ValueError(f"the tables need the same groups, two or more; they leave out {groups}")
    parts = [dict(tuple(table.groupby("left_out"))) for table in tables]
    complete, *without = ([part[group].reset_index(drop=True) for part in parts] for group in (-1, *groups[0]))
    return complete, without
