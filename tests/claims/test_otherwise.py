"""What would become of a claim: numbers, intervals and the word, of tables whose jackknife is known."""

import pandas as pd
import pytest

from helpers.claims.otherwise import otherwise
from helpers.uncertainty import quantile

TABLE = pd.DataFrame({"left_out": [-1, 0, 1, 2, 3], "x": [2.0, 1.9, 2.1, 1.8, 2.2]})


def of(*values):
    return lambda table: [value * table["x"].iloc[0] for value in values]


def test_it_gives_each_part_its_interval_and_the_word_for_all():
    reach = quantile(4) * (3 / 4 * (2 * 0.1**2 + 2 * 0.2**2)) ** 0.5
    assert otherwise("R15", of(1, -1, 0.5), TABLE).endswith(": it would be inconclusive")  # turns 0.5 … 1.5
    failing = otherwise("R15", of(1, 1, 0.5), TABLE)
    assert failing.startswith(f"first 2.00 ({2 - reach:.2f} to {2 + reach:.2f}), second") and "would fail" in failing
    single = otherwise("R14", lambda table: table["x"].iloc[0], TABLE)
    assert single == f"2.00 ({2 - reach:.2f} to {2 + reach:.2f}): it would hold"


def test_a_bootstrap_keeps_whole_numbers():
    said = otherwise("R15", lambda table: [1.0, -table["x"].iloc[0], 1], TABLE, jumps=True)
    assert "turns 1.00 (1.00 to 1.00)" in said and "second −2.00 (−2." in said and said.endswith("it would hold")


def test_means_alone_have_no_interval():
    assert otherwise("R15", of(1, 0.5, 3), TABLE[["x"]]) == "first 2.00, second 1.00, turns 6.00: it would fail"


def test_a_number_for_each_part_is_needed():
    with pytest.raises(ValueError, match="R15: value is needed for the parts"):
        otherwise("R15", of(1, 2), TABLE)
    with pytest.raises(KeyError):
        otherwise("R99", of(1), TABLE)
