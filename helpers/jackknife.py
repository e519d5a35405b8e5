"""The standard error of any number made from a table that was made once with all images and once without each group.

Such a table has a column ``left_out``: −1 where every image counted, otherwise the number of the group of images that
did not. ``jackknife(fn, *tables)`` gives ``fn`` of the complete tables and its error.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd


def jackknife(fn: Callable[..., Any], *tables: pd.DataFrame) -> tuple[Any, Any]:
    """``fn`` of the complete tables, and its standard error by the delete-one-group jackknife (Efron & Stein 1981).

    The groups are taken as equal in size. With several tables the same group is left out of all, as is right where
    they were made from the same images. ``fn`` may return a number or an array. Raises ValueError where a table has
    no column ``left_out``, where the tables leave out different groups, or fewer than two.
    """
    if any("left_out" not in table for table in tables):
        raise ValueError("a table for the jackknife says in a column left_out which group of images it leaves out")
    groups = [sorted(set(table["left_out"]) - {-1}) for table in tables]
    if any(other != groups[0] for other in groups) or len(groups[0]) < 2:
        raise ValueError(f"the tables need the same groups, two or more; they leave out {groups}")
    parts = [dict(tuple(table.groupby("left_out"))) for table in tables]
    value, *left_out = (
        np.asarray(fn(*(part[group].reset_index(drop=True) for part in parts)), dtype=float)
        for group in (-1, *groups[0])
    )
    kept = np.stack(left_out)
    stderr = np.sqrt((len(kept) - 1) * ((kept - kept.mean(0)) ** 2).mean(0))
    return (value, stderr) if value.ndim else (float(value), float(stderr))
