"""What would become of a claim if its statistic were taken otherwise: in words, for the note beside a verdict.

The verdict itself is on the statistic that ``book/claims.yml`` names. Where a choice decides it, such as whether a few
massive tokens count, the note says what another choice would give.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from helpers import uncertainty
from helpers.claims.registry import FAILS, HOLDS, INCONCLUSIVE, load, number

WOULD = {HOLDS: "it would hold", FAILS: "it would fail", INCONCLUSIVE: "it would be inconclusive"}


def otherwise(claim: str, statistic: Callable[..., Any], *tables: pd.DataFrame, jumps: bool = False) -> str:
    """Another statistic's numbers, with 95 % intervals over images, and what the claim would be by its criteria.

    Args:
        claim: its id in ``book/claims.yml``.
        statistic: function of the tables to a number for each part of the claim.
        tables: with a column ``left_out``, all of the same images; or none of them with it, where only means were kept.
        jumps: as for ``Chapter.judge``: whether the interval is a bootstrap's.

    Returns:
        such as "first 0.41 (0.38 to 0.44), second 0.32 (0.28 to 0.36): it would fail"; of means without intervals.

    Raises:
        KeyError: an unknown claim.
        ValueError: not a number for each part, and as ``uncertainty.jackknife``.
    """
    parts = load()[claim].parts
    if means := all("left_out" not in table for table in tables):
        value = np.atleast_1d(statistic(*tables))
        ends = np.stack([value, value], -1)
    elif jumps:
        value, ends = uncertainty.bootstrap(statistic, *tables)
    else:
        value, reach = uncertainty.estimate(statistic, *tables)
        ends = np.stack([value - reach, value + reach], -1)
    values, ends = np.atleast_1d(value), np.atleast_2d(ends)
    said, words = [], set()
    for part, single, (low, high) in zip(parts, values, ends, strict=True):
        name = "" if part.name == "value" else f"{part.name} "
        unit = f" {part.unit}" if part.unit else ""
        reach = "" if means else f" ({number(low, 2)} to {number(high, 2)})"
        said.append(f"{name}{number(single, 2)}{reach}{unit}")
        words.add(part.criterion.judge(low, high))
    word = FAILS if FAILS in words else HOLDS if words == {HOLDS} else INCONCLUSIVE
    return f"{', '.join(said)}: {WOULD[word]}"
