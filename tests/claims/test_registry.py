"""The file of claims: its form, and that no criterion has changed without a word."""

import json
import re

import pytest
import yaml

from helpers.claims import registry
from helpers.claims.registry import ClaimsError, Criterion

CHAPTER = "02_representation"
LOCK = "claims_lock.json"


def test_every_claim_of_the_three_papers_and_of_the_book_is_there_once():
    wanted = [("R", 30), ("C", 10), ("P", 21), ("B", 8)]
    assert set(registry.load()) == {f"{letter}{i}" for letter, last in wanted for i in range(1, last + 1)}


def test_what_chapter_2_measures_is_measured_on_both_tracks_where_a_whole_resnet_is_not_needed():
    measured = {claim.id for claim in registry.load().values() if claim.chapter == CHAPTER}
    assert measured == {"R1", "R2", "R3", "R4", "R5", "R6", "R30"}
    for name in measured:
        tracks = ("scenes",) if name in ("R1", "R2", "R5") else ("scenes", "imagenet")
        assert registry.load()[name].status == "measured" and registry.load()[name].tracks == tracks


def test_criteria_have_not_changed_since_they_were_first_measured(root):
    """The lock holds the fingerprint of each claim's statistics and criteria as they were before the first run.

    A change is allowed if the claim says in ``changed`` when, from what, and why; the lock itself never changes.
    """
    locked = json.loads((root / "tests" / LOCK).read_text())
    for claim in registry.load().values():
        if claim.status == "measured" or claim.id in locked:
            now = claim.fingerprint()
            assert claim.id in locked, f'{claim.id} is measured now: add "{claim.id}": "{now}" to {LOCK}'
            same = locked[claim.id] == now
            assert same or claim.changed, f"{claim.id} is tested otherwise: say when, from what and why in `changed`"
            assert not (same and claim.changed), f"{claim.id} has not changed"


def test_checkpoints_that_would_do_exist():
    import timm  # after helpers, above

    known = set(timm.list_models(pretrained=True))
    named = {
        name for claim in registry.load().values() for why in claim.untestable.values() for name in why.checkpoints
    }
    assert named and named <= known


def test_sentences_are_plain():
    for claim in registry.load().values():
        assert claim.sentence.endswith(".") and len(claim.sentence) <= 160, claim.id
        assert not re.search(r"[`$<>*_\[\]|]", claim.sentence), claim.id
        for part in claim.parts:
            assert part.statistic.endswith("."), (claim.id, part.name)


def entry(**changes):
    base = {"id": "X1", "figures": "Figure 1", "sentence": "A.", "statistic": "B.", "criterion": {"less_than": 0}}
    base |= {"tracks": ["scenes"], "untestable": {"imagenet": {"reason": "C."}}, "status": "planned"}
    return {key: value for key, value in (base | changes).items() if value is not None}


def load(tmp_path, *entries):
    section = {"title": "T", "paper": "P", "chapter": "09_x", "claims": list(entries)}
    (tmp_path / "claims.yml").write_text(yaml.safe_dump({"sections": [section]}))
    return registry.load(tmp_path / "claims.yml")


def test_a_small_file_loads(tmp_path):
    several = {"a": {"statistic": "S.", "criterion": {"between": [0, 1]}, "unit": "px", "why": "W."}}
    found = load(tmp_path, entry(), entry(id="X2", statistic=None, criterion=None, parts=several))
    assert found["X1"].parts[0].criterion == Criterion(high=0) and found["X1"].chapter == "09_x"
    assert found["X2"].parts[0].criterion == Criterion(0, 1, closed=True) and found["X2"].parts[0].unit == "px"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sentense": "A."}, "unknown key 'sentense', did you mean 'sentence'"),
        ({"figures": None}, "missing figures"),
        ({"status": "done"}, "status is one of measured, planned"),
        ({"criterion": {"greater_than": "large"}}, "takes a number; got 'large'"),
        ({"criterion": {"greater_than": True}}, "takes a number"),
        ({"criterion": {"less_than": float("inf")}}, "takes a number"),
        ({"criterion": {"between": [1, 0]}}, "two numbers, rising"),
        ({"criterion": {"between": [0, 1, 2]}}, "two numbers, rising"),
        ({"criterion": {"much_greater": 0}}, "one of greater_than: a, less_than: a, between"),
        ({"criterion": {"greater_than": 0, "less_than": 1}}, "one of greater_than"),
        ({"criterion": None}, "takes a statistic, a criterion"),
        ({"parts": {"a": {"statistic": "S.", "criterion": {"less_than": 0}}}}, "either one statistic"),
        ({"tracks": ["scenes", "imagenet"]}, "stands once"),
        ({"untestable": None}, "stands once"),
        ({"untestable": {"imagenet": {"why": "C."}}}, "takes a reason"),
        ({"changed": {"reason": "it failed"}}, "changed takes the date"),
    ],
)
def test_a_malformed_claim_is_named(tmp_path, changes, message):
    with pytest.raises(ClaimsError, match=r"claims.yml, claim X1: .*" + re.escape(message)):
        load(tmp_path, entry(**changes))


def test_a_malformed_file_is_named(tmp_path):
    with pytest.raises(ClaimsError, match="twice"):
        load(tmp_path, entry(), entry())
    for text, message in [
        ("sections: [", "not YAML"),
        ("claims: 3", "a list `sections`"),
        ("sections: [1]", "each section"),
    ]:
        (tmp_path / "claims.yml").write_text(text)
        with pytest.raises(ClaimsError, match=message):
            registry.load(tmp_path / "claims.yml")


def test_a_fingerprint_follows_the_test_not_the_prose(tmp_path):
    first = load(tmp_path, entry())["X1"].fingerprint()
    assert load(tmp_path, entry(sentence="Other.", status="measured"))["X1"].fingerprint() == first
    assert load(tmp_path, entry(criterion={"less_than": 0.1}))["X1"].fingerprint() != first
    assert load(tmp_path, entry(statistic="Other."))["X1"].fingerprint() != first


@pytest.mark.parametrize(
    "criterion, low, high, word",
    [
        (Criterion(low=0), 0.1, 0.2, "holds"),
        (Criterion(low=0), -0.1, 0.2, "inconclusive"),
        (Criterion(low=0), -0.2, -0.1, "fails"),
        (Criterion(low=0), 0.0, 0.0, "fails"),  # 0 is not greater than 0
        (Criterion(high=0), -0.2, -0.1, "holds"),
        (Criterion(high=0), -0.1, 0.1, "inconclusive"),
        (Criterion(high=0), 0.1, 0.2, "fails"),
        (Criterion(0, 1, True), 0.0, 1.0, "holds"),
        (Criterion(0, 1, True), -0.1, 0.5, "inconclusive"),
        (Criterion(0, 1, True), -0.5, 1.5, "inconclusive"),
        (Criterion(0, 1, True), 1.1, 1.5, "fails"),
        (Criterion(1, 1, True), 1.0, 1.0, "holds"),
    ],
)
def test_a_criterion_judges_an_interval(criterion, low, high, word):
    assert criterion.judge(low, high) == word
