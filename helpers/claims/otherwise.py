"""What would become of a claim if its statistic were taken otherwise: in words, for the note beside a verdict.

The verdict itself is on the statistic that ``book/claims.yml`` names. Where a choice decides it, such as whether a few
massive tokens count, the note says what another choice would give.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from helpers.claims.judgement import label, together
from helpers.claims.registry import FAILS, HOLDS, INCONCLUSIVE, load, number
from helpers.claims.verdicts import estimated, numbers

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
        ValueError: not a finite number for each part, and as ``uncertainty.jackknife``.
    """
    asked = load()[claim]
    if means := all("left_out" not in table for table in tables):
        single = np.asarray(statistic(*tables))
        given = {"value": single, "interval": np.stack([single, single], -1)}
    else:
        given = estimated(statistic, tables, jumps)
    found, said, words = numbers(asked, given), [], []
    for part in asked.parts:
        value, low, high = (found[part.name][key] for key in ("value", "low", "high"))
        reach = "" if means else f" ({number(low, 2)} to {number(high, 2)})"
        said.append(f"{label(part)}{number(value, 2)}{reach}" + (f" {part.unit}" if part.unit else ""))
        words.append(part.criterion.judge(low, high))
    return f"{', '.join(said)}: {WOULD[together(words)]}"
