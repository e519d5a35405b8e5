"""What verdicts rest on besides the claims themselves does not change without a word: recipes, words, the estimator.

``claims_lock.json`` holds all of these as they were when they were first measured, and never changes. A change is an
entry under ``changes`` in ``book/claims.yml``, with date, what was before, the reason, and what it is now.
"""

import datetime
import hashlib
import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from helpers import uncertainty
from helpers.claims import registry
from helpers.measures.cka import MinibatchCKA, bootstrap, gram_row
from helpers.networks.catalogue import BASELINE, ZOO

LOCKED = json.loads((registry.ROOT / "tests" / "claims_lock.json").read_text())
CLAIMS = yaml.safe_load(registry.FILE.read_text())


def recipes() -> str:
    """A hash of all that is trained, and how: every card but for its words about itself."""
    cards = {card.name: {**asdict(card), "about": ""} for card in (*ZOO.values(), BASELINE)}
    return hashlib.sha256(json.dumps(cards, sort_keys=True).encode()).hexdigest()[:12]


def words() -> str:
    """A hash of the words with one meaning throughout, whatever their line breaks."""
    plain = {word: " ".join(meaning.split()) for word, meaning in CLAIMS["words"].items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def estimator() -> list[float]:
    """CKA of two layers, its standard error and the ends of three kinds of intervals, on data that never change."""
    generator = torch.Generator().manual_seed(0)
    metric = MinibatchCKA(2)
    for size in (40, 40, 40, 40, 20):  # the last batch is smaller
        x = torch.randn(size, 3, generator=generator, dtype=torch.float64)
        y = x + torch.randn(size, 3, generator=generator, dtype=torch.float64)
        metric.update(torch.stack([gram_row(x), gram_row(y)]))
    sums = metric.sums()
    value, error = sums.statistic(lambda matrix: matrix[0, 1])
    _, of_sums = bootstrap(lambda matrix: matrix[0, 1], sums, times=200)
    groups = np.random.default_rng(0).normal(0, 1, (16, 1))
    left_out = {"left_out": [-1, *range(16)], "x": [groups.mean(), *((groups.sum() - groups[:, 0]) / 15)]}
    _, of_table = uncertainty.bootstrap(lambda table: table["x"].iloc[0], pd.DataFrame(left_out), times=200)
    scores = uncertainty.interval(np.random.default_rng(1).normal(0, 1, (5, 50)), times=200)
    return [round(float(number), 6) for number in (value, error, *of_sums, *of_table, *scores)]


@pytest.mark.parametrize("of", [recipes, words, estimator])
def test_what_verdicts_rest_on_is_as_it_was_or_says_since_when_and_why_not(of):
    changes = [change for change in CLAIMS["changes"] if change["of"] == of.__name__]
    last, now = [LOCKED[of.__name__], *(change["now"] for change in changes)][-1], of()
    same = now == (pytest.approx(last, abs=2e-6) if isinstance(last, list) else last)
    assert same, f"of: {of.__name__} has changed; enter date, was, reason and now: {now} under changes in claims.yml"


def test_every_change_says_when_from_what_and_why():
    for change in CLAIMS["changes"]:
        assert set(change) == {"of", "date", "was", "reason", "now"} and change["of"] in LOCKED, change
        assert isinstance(change["date"], datetime.date) and change["was"].strip() and change["reason"].strip()


def test_a_hash_follows_what_is_trained_not_what_is_said_of_it(monkeypatch):
    from dataclasses import replace

    name, card = next(iter(ZOO.items()))
    before = recipes()
    monkeypatch.setitem(ZOO, name, replace(card, about="other words"))
    assert recipes() == before
    monkeypatch.setitem(ZOO, name, replace(card, recipe=replace(card.recipe, images_seen=64)))
    assert recipes() != before
