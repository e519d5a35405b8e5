"""The file of claims, the verdicts, and the pages made of them."""

import itertools
import json
import re

import pytest
import yaml

from helpers import results
from helpers.claims import registry
from helpers.claims import scoreboard as claims
from helpers.claims.registry import ClaimsError, Criterion

CHAPTER = "02_representation"
LOCK = "claims_lock.json"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(results.FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


def record(claim="R2", track="scenes", value=0.1, stderr=0.01, **more):
    given = {"figure": "fig-within", "chapter": CHAPTER} | ({} if stderr is None else {"groups": 16}) | more
    return claims.record(claim, track, value, stderr, **given)


# The file


def test_every_claim_of_the_three_papers_is_there_once():
    wanted = [("R", 30), ("C", 10), ("P", 21)]
    assert set(claims.load()) == {f"{letter}{i}" for letter, last in wanted for i in range(1, last + 1)}


def test_what_chapter_2_measures_is_measured_on_both_tracks():
    measured = {claim.id for claim in claims.load().values() if claim.chapter == CHAPTER}
    assert measured == {"R1", "R2", "R3", "R4", "R5", "R6", "R30"}
    for name in measured:
        assert claims.load()[name].status == "measured" and claims.load()[name].tracks == ("scenes", "imagenet")


def test_criteria_have_not_changed_since_they_were_first_measured(root):
    """The lock holds the fingerprint of each claim's statistics and criteria as they were before the first run.

    A change is allowed if the claim says in ``changed`` when, from what, and why; the lock itself never changes.
    """
    locked = json.loads((root / "tests" / LOCK).read_text())
    for claim in claims.load().values():
        if claim.status == "measured":
            now = claim.fingerprint()
            assert claim.id in locked, f'{claim.id} is measured now: add "{claim.id}": "{now}" to {LOCK}'
            same = locked[claim.id] == now
            assert same or claim.changed, f"{claim.id} is tested otherwise: say when, from what and why in `changed`"
            assert not (same and claim.changed), f"{claim.id} has not changed"


def test_checkpoints_that_would_do_exist():
    import timm  # after helpers, above

    known = set(timm.list_models(pretrained=True))
    named = {name for claim in claims.load().values() for why in claim.untestable.values() for name in why.checkpoints}
    assert named and named <= known


def test_sentences_are_plain():
    for claim in claims.load().values():
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
    return claims.load(tmp_path / "claims.yml")


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
            claims.load(tmp_path / "claims.yml")


def test_a_fingerprint_follows_the_test_not_the_prose(tmp_path):
    first = load(tmp_path, entry())["X1"].fingerprint()
    assert load(tmp_path, entry(sentence="Other.", status="measured"))["X1"].fingerprint() == first
    assert load(tmp_path, entry(criterion={"less_than": 0.1}))["X1"].fingerprint() != first
    assert load(tmp_path, entry(statistic="Other."))["X1"].fingerprint() != first


# Verdicts


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


@pytest.mark.parametrize(
    "value, word", [(0.1, "holds"), (0.01, "inconclusive"), (-0.01, "inconclusive"), (-0.1, "fails")]
)
def test_a_claim_is_driven_to_each_verdict(folder, value, word):
    assert record("R2", value=value, stderr=0.01).word == word


@pytest.mark.parametrize(
    "mean, spread", list(itertools.product([(0.1, "holds"), (0.01, "inconclusive"), (-0.1, "fails")], repeat=2))
)
def test_a_claim_of_two_parts_holds_if_both_do_and_fails_if_one_does(folder, mean, spread):
    """R1 asks for mean > 0 and spread < 0."""
    words = {mean[1], spread[1]}
    word = "fails" if "fails" in words else "holds" if words == {"holds"} else "inconclusive"
    verdict = record("R1", value={"mean": mean[0], "spread": -spread[0]}, stderr={"mean": 0.01, "spread": 0.01})
    assert verdict.word == word and [part.word for part in verdict.parts] == [mean[1], spread[1]]


def test_a_jackknife_error_becomes_an_interval_by_students_t(folder):
    (part,) = record("R2", value=0.5, stderr=0.1).parts
    assert (part.low, part.high) == pytest.approx((0.5 - 0.21314495, 0.5 + 0.21314495))  # t, 15 degrees of freedom
    (part,) = record("R2", value=0.5, stderr=0.1, groups=10).parts
    assert part.high == pytest.approx(0.5 + 0.22621572)  # 9 degrees of freedom
    (part,) = record("R2", value=0.5, stderr=None, interval=(0.2, 0.6)).parts
    assert (part.low, part.high) == (0.2, 0.6)


def test_parts_come_by_name_or_in_their_order(folder):
    import numpy as np

    named = record("R1", value={"spread": -0.2, "mean": 0.1}, stderr={"mean": 0.01, "spread": 0.02})
    ordered = record("R1", value=np.array([0.1, -0.2]), stderr=np.array([0.01, 0.02]))
    assert named.parts == ordered.parts
    intervals = record("R1", value=[0.1, -0.2], stderr=None, interval=[(0.05, 0.15), (-0.3, -0.1)])
    assert [(part.low, part.high) for part in intervals.parts] == [(0.05, 0.15), (-0.3, -0.1)]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"claim": "R31"}, "no claim 'R31'.*did you mean .*R30"),
        ({"track": "photos"}, "unknown track"),
        ({"chapter": "03_attention"}, "assigned to chapter 02_representation"),
        ({"figure": "within"}, "figure is the name"),
        ({"stderr": None}, "give the uncertainty"),
        ({"groups": None}, "over how many groups"),
        ({"interval": (0, 1)}, "give the uncertainty"),
        ({"value": float("nan")}, "not a finite interval"),
        ({"stderr": float("inf")}, "not a finite interval"),
        ({"stderr": None, "interval": (1, 0)}, "not a finite interval"),
        ({"claim": "R1"}, "needed for the parts mean, spread"),
        ({"claim": "R1", "value": [1, 2, 3], "stderr": [1, 2, 3]}, "needed for the parts mean, spread"),
        ({"claim": "C1", "chapter": "07_inspection"}, "C1 is planned"),
        (
            {"claim": "R20", "track": "imagenet", "chapter": "05_spatial_information"},
            "cannot be tested on imagenet: It needs",
        ),
    ],
)
def test_what_cannot_be_recorded(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        record(**changes)
    assert not list(folder.rglob("*.json"))


def test_a_chapter_replaces_its_own_records_only(folder):
    other = folder / "claims" / "03_attention.json"
    other.parent.mkdir()
    other.write_text("{}")
    record("R2", value=0.1)
    record("R2", "imagenet", value=0.2)
    record("R3", value=0.1)
    record("R2", value=-0.1)
    found = claims.verdicts()
    assert {key: verdict.word for key, verdict in found.items()} == {
        ("R2", "scenes"): "fails",
        ("R2", "imagenet"): "holds",
        ("R3", "scenes"): "holds",
    }
    assert other.read_text() == "{}"
    assert [path.name for path in folder.rglob("*") if path.name.startswith(".")] == []
    assert ("R1", "scenes") in claims.unrecorded() and ("R2", "scenes") not in claims.unrecorded()


def test_records_are_judged_by_the_claims_as_they_are_now(folder, tmp_path, monkeypatch):
    record("R2", value=0.1)
    stored = folder / "claims" / f"{CHAPTER}.json"
    stored.write_text(stored.read_text().replace('"verdict": "holds"', '"verdict": "fails"'))
    assert claims.verdicts()["R2", "scenes"].word == "holds"
    stored.write_text(stored.read_text().replace("R2", "R7"))
    with pytest.raises(ValueError, match="R7 on scenes.*run the chapter again"):
        claims.verdicts()


# What the reader sees


def test_numbers_are_shown_as_far_as_they_are_known(folder):
    assert str(record("R2", value=0.31234, stderr=0.01).parts[0]) == "0.312 (0.291 to 0.334)"
    assert str(record("R2", value=-0.31234, stderr=0.1).parts[0]) == "−0.31 (−0.53 to −0.10)"
    assert str(record("R2", value=0.75, stderr=0.0).parts[0]) == "0.750 (0.750 to 0.750)"
    assert registry.number(-0.04, 1) == "0.0" and registry.number(1024) == "1024"
    assert str(record("R6", value=-0.3, stderr=0.01)).startswith(
        "R6 on scenes: holds. −0.300 (−0.321 to −0.279), asked for <\N{NO-BREAK SPACE}0"
    )


def record_all(figure="fig-within"):
    for claim in claims.load().values():
        if claim.chapter == CHAPTER:
            for track in claim.tracks:
                count = len(claim.parts)
                value, stderr = ([0.3] * count, [0.01] * count) if count > 1 else (0.3, 0.01)
                record(claim.id, track, value, stderr, figure=figure, note="It's < half & more.")


def test_a_chapter_ends_with_all_of_its_claims(folder):
    with pytest.raises(ValueError, match="has not recorded R1 on scenes"):
        claims.chapter_verdicts(CHAPTER)
    with pytest.raises(ValueError, match="no measured claim"):
        claims.chapter_verdicts("99_nothing")
    record_all()
    shown = claims.chapter_verdicts(CHAPTER)
    html = shown._repr_html_()
    for name in ("R1", "R6", "R30"):
        assert f'href="../book/scoreboard.html#claim-{name.lower()}"' in html and f"{name} on scenes" in repr(shown)
    assert html.count('href="#fig-within"') == 14 and "It’s &lt; half &amp; more." in html
    assert html.count("<div") == html.count("</div>") and html.count("<span") == html.count("</span>")


def test_the_scoreboard_shows_every_claim_and_every_verdict(folder):
    record_all()
    page = claims.scoreboard_page(folder)
    assert page == claims.scoreboard_page(folder)
    for name in claims.load():
        assert page.count(f"(claim-{name.lower()})=\n") == 1 and f"{name} · " in page
    words = ["✓ holds", "✗ fails", "– not testable here", "… planned"]
    assert all(word in page for word in words) and "? inconclusive" not in page
    assert "{numref}`fig-within`" in page and "[](/notebooks/02_representation.ipynb)" in page
    assert "`vit_large_patch16_224.augreg_in21k`" in page and "It's \\< half" in page
    assert page.count("::::{card}") == len(claims.load()) == page.count("\n::::\n")


def test_the_scoreboard_says_what_a_build_has_not_measured(folder):
    page = claims.scoreboard_page(folder)
    assert "not in this build" in page and "{numref}" not in page


def test_the_scoreboard_tells_of_a_changed_criterion(folder, tmp_path, monkeypatch):
    changed = {"date": "2031-01-01", "was": "> 0.5", "reason": "The unit was wrong."}
    load(tmp_path, entry(changed=changed))
    monkeypatch.setattr(claims, "load", lambda: registry.load(tmp_path / "claims.yml"))
    page = claims.scoreboard_page(folder)
    assert "Changed after it had been measured" in page and "The unit was wrong." in page and "2031-01-01" in page


def test_a_verdict_is_legible_without_its_colour_and_against_it():
    """Each has its own symbol or word, and a contrast of 4.5 at least (WCAG AA)."""

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for word, (symbol, *colours) in claims.BADGES.items():
        dark, light = sorted(map(luminance, colours))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, word
        assert f"{symbol} {word}" in claims.badge(word)
