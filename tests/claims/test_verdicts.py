"""Verdicts: what an interval and a criterion make of a claim, and the files that keep them."""

import itertools
from dataclasses import replace

import pytest

from helpers.claims import registry, verdicts
from helpers.claims.judgement import FAILS_HERE as FAILS
from helpers.claims.judgement import HOLDS_HERE as HOLDS

CHAPTER = "02_representation"


@pytest.mark.parametrize("value, word", [(0.1, HOLDS), (0.01, "inconclusive"), (-0.01, "inconclusive"), (-0.1, FAILS)])
def test_a_claim_is_driven_to_each_verdict_that_one_training_can_give(record, value, word):
    assert record("R2", value=value, stderr=0.01).word == word


def others(*values, stderr=0.01):
    return {f"seed {k}": {"value": value, "stderr": stderr, "groups": 16} for k, value in enumerate(values, 1)}


@pytest.mark.parametrize(
    "value, seeds, word",
    [
        (0.30, (0.31, 0.29), "holds"),  # 0.3 ± 4.303 · 0.01 / √3
        (0.30, (0.60, 0.10), HOLDS),  # each by itself, but 0.33 ± 0.63
        (0.30, (0.31, 0.01), "inconclusive"),  # one of them by itself is
        (0.30, (0.31, -0.3), "inconclusive"),
        (0.30, (0.31,), "holds"),  # 0.305 ± 12.706 · 0.007 / √2
        (0.30, (0.40,), HOLDS),  # 0.35 ± 0.64
        (0.30, (0.30, 0.30), HOLDS),  # of equal values the spread is not known
        (-0.3, (-0.31, -0.29), "fails"),
        (-0.3, (-0.60, -0.10), FAILS),
        (-0.3, (), FAILS),
    ],
)
def test_the_unit_of_a_claim_is_a_training(folder, record, value, seeds, word):
    verdict = record("R2", value=value, seeds=others(*seeds))
    assert verdict.word == word == verdicts.verdicts(folder)["R2", "scenes"].word
    assert verdict.trainings == 1 + len(seeds)


def test_the_interval_over_trainings_stands_beside_that_over_images(record):
    verdict = record("R2", value=0.3, seeds=others(0.4, 0.2), n=2560)
    reach = 4.302653 * 0.1 / 3**0.5
    assert (verdict.over[0].low, verdict.over[0].high) == pytest.approx((0.3 - reach, 0.3 + reach))
    assert verdict.numbers().startswith("0.300 (0.279 to 0.321) over images, 0.30 (0.05 to 0.55) over 3 trainings, ask")
    assert verdict.count() == "3 trainings, 2,560 images"
    assert str(verdict.seeds[0]) == "seed 1 0.400 (0.379 to 0.421): holds"
    alone = record("R2", value=0.3, n=2560)
    assert alone.count() == "1 training, 2,560 images" and "training" not in alone.numbers()
    assert record("R2", value=0.3, n=9, units="networks").count() == "9 networks"
    assert record("R2", value=0.3, n=6, units="blocks").count() == "1 training, 6 blocks"
    equal = record("R2", value=0.3, seeds=others(0.3))
    assert equal.over == (None,) and "the same in each over 2 trainings" in equal.numbers()


@pytest.mark.parametrize(
    "value, interval, said",
    [
        (3.0, (3.0, 3.0), "3 (the same on whatever images are drawn)"),
        (0.99999, (0.999985, 0.999995), "1.0000 (the same in all digits on whatever images are drawn)"),
        (3.0, (2.0, 4.0), "3.0 (2.0 to 4.0)"),
        (0.99999, (0.9999, 1.0), "1.0000 (0.9999 to 1.0000)"),
    ],
)
def test_no_interval_is_printed_without_width(record, value, interval, said):
    verdict = record("R2", value=value, stderr=None, interval=interval)
    assert verdict.numbers().startswith(f"{said}, asked for")


def test_of_several_parts_every_training_has_to_meet_all_and_a_single_one_is_missed_by_all(record):
    """R1 asks for mean > 0 and spread < 0."""

    def of(mean, spread):
        ends = [(mean - 0.01, mean + 0.01), (spread - 0.01, spread + 0.01)]
        return {"value": [mean, spread], "interval": ends}

    def word(first, *rest):
        given = {"value": first, "stderr": [0.01 / 2.2] * 2}
        return record("R1", **given, seeds={f"seed {k}": of(*pair) for k, pair in enumerate(rest)}).word

    assert word([0.3, -0.3], (0.31, -0.31), (0.29, -0.29)) == "holds"
    assert word([0.3, -0.3], (0.31, -0.31), (0.29, -0.05)) == HOLDS  # the spread's interval reaches beyond zero
    assert word([0.3, -0.3], (0.31, 0.3), (0.29, -0.3)) == "inconclusive"
    assert word([0.3, 0.3], (0.31, 0.31), (0.29, 0.29)) == "fails"
    assert word([0.3, 0.3], (-0.31, -0.31), (0.29, 0.3)) == FAILS  # each fails, by one part or another


def test_what_another_training_lacks_is_named(folder, record):
    with pytest.raises(ValueError, match="R2, 'seed 1': give the uncertainty"):
        record("R2", seeds={"seed 1": {"value": 0.1}})
    with pytest.raises(ValueError, match="R1: value is needed for the parts mean, spread"):
        record("R1", value=[0.1, -0.1], stderr=[0.01, 0.01], seeds=others(0.1))
    assert not list(folder.rglob("*.json"))


@pytest.mark.parametrize(
    "mean, spread", list(itertools.product([(0.1, "holds"), (0.01, "inconclusive"), (-0.1, "fails")], repeat=2))
)
def test_a_claim_of_two_parts_holds_if_both_do_and_fails_if_one_does(record, mean, spread):
    """R1 asks for mean > 0 and spread < 0."""
    words = {mean[1], spread[1]}
    word = FAILS if "fails" in words else HOLDS if words == {"holds"} else "inconclusive"
    verdict = record("R1", value={"mean": mean[0], "spread": -spread[0]}, stderr={"mean": 0.01, "spread": 0.01})
    assert verdict.word == word and [part.word for part in verdict.parts] == [mean[1], spread[1]]


def test_a_jackknife_error_becomes_an_interval_by_students_t(record):
    (part,) = record("R2", value=0.5, stderr=0.1).parts
    assert (part.low, part.high) == pytest.approx((0.5 - 0.21314495, 0.5 + 0.21314495))  # t, 15 degrees of freedom
    (part,) = record("R2", value=0.5, stderr=0.1, groups=10).parts
    assert part.high == pytest.approx(0.5 + 0.22621572)  # 9 degrees of freedom
    (part,) = record("R2", value=0.5, stderr=None, interval=(0.2, 0.6)).parts
    assert (part.low, part.high) == (0.2, 0.6)


def test_parts_come_by_name_or_in_their_order(record):
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
        (
            {"claim": "R20", "track": "imagenet", "chapter": "05_spatial_information"},
            "cannot be tested on imagenet: It needs",
        ),
    ],
)
def test_what_cannot_be_recorded(folder, record, changes, message):
    with pytest.raises(ValueError, match=message):
        record(**changes)
    assert not list(folder.rglob("*.json"))


def test_a_claim_that_is_only_planned_is_not_recorded(record, monkeypatch):
    planned = {"R2": replace(registry.load()["R2"], status="planned")}
    monkeypatch.setattr(verdicts, "load", lambda: planned)
    with pytest.raises(ValueError, match="R2 is planned in book/claims.yml: set its status"):
        record("R2")


def test_a_chapter_replaces_its_own_records_only(folder, record):
    other = folder / "claims" / "03_attention.json"
    other.parent.mkdir()
    other.write_text("{}")
    record("R3", value=0.1)
    record("R3", "imagenet", value=0.2)
    record("R2", value=0.1)
    record("R3", value=-0.1)
    found = verdicts.verdicts()
    assert {key: verdict.word for key, verdict in found.items()} == {
        ("R3", "scenes"): FAILS,
        ("R3", "imagenet"): HOLDS,
        ("R2", "scenes"): HOLDS,
    }
    assert other.read_text() == "{}"
    assert [path.name for path in folder.rglob("*") if path.name.startswith(".")] == []
    assert ("R1", "scenes") in verdicts.unrecorded() and ("R2", "scenes") not in verdicts.unrecorded()


def test_records_are_judged_by_the_claims_as_they_are_now(folder, record):
    record("R2", value=0.1)
    stored = folder / "claims" / f"{CHAPTER}.json"
    stored.write_text(stored.read_text().replace(f'"verdict": "{HOLDS}"', '"verdict": "fails"'))
    assert verdicts.verdicts()["R2", "scenes"].word == HOLDS
    stored.write_text(stored.read_text().replace("R2", "R7"))
    with pytest.raises(ValueError, match="R7 on scenes.*run the chapter again"):
        verdicts.verdicts()


DAMAGED = {
    "empty": b"",
    "cut off": b'{"R2": {"scenes"',
    "a list": b"[]",
    "null": b"null",
    "not UTF-8": b'{"R2": "\xff\xfe"}',
    "nested too deep": b"[" * 100_000,
    "a claim without tracks": b'{"R2": null}',
    "a track without an entry": b'{"R2": {"scenes": 0.1}}',
}


@pytest.mark.fault(
    "Claims and results",
    "a record of claims that is empty, damaged or of another form",
    "it is named in one line; what its chapter records by hand replaces it",
)
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_record_is_named_and_recording_heals_it(folder, record, damage):
    stored = folder / "claims" / f"{CHAPTER}.json"
    stored.parent.mkdir()
    stored.write_bytes(DAMAGED[damage])
    with pytest.raises(ValueError, match=rf"{CHAPTER}\.json .*run the chapter {CHAPTER} again") as refused:
        verdicts.verdicts()
    assert "\n" not in str(refused.value)
    record("R2", value=0.1)
    assert {key: verdict.word for key, verdict in verdicts.verdicts().items()} == {("R2", "scenes"): HOLDS}


@pytest.mark.fault(
    "Claims and results",
    "a record of claims that is empty, damaged or of another form",
    "it is named in one line; what its chapter records by hand replaces it",
)
@pytest.mark.parametrize("entry", ["{}", '{"parts": []}', '{"parts": {"value": {"value": 1, "low": "0", "high": 2}}}'])
def test_a_record_that_lacks_something_is_named(folder, record, entry):
    record("R3", value=0.1)
    stored = folder / "claims" / f"{CHAPTER}.json"
    stored.write_text(stored.read_text().replace("{", f'{{"R2": {{"scenes": {entry}}},', 1))
    with pytest.raises(ValueError, match=f"{CHAPTER}.json keeps R2 on scenes incompletely.*run the chapter again"):
        verdicts.verdicts()
    record("R2", value=0.1)
    assert set(verdicts.verdicts()) == {("R2", "scenes"), ("R3", "scenes")}


def test_numbers_are_shown_as_far_as_they_are_known(record):
    assert str(record("R2", value=0.31234, stderr=0.01).parts[0]) == "0.312 (0.291 to 0.334)"
    assert str(record("R2", value=-0.31234, stderr=0.1).parts[0]) == "−0.31 (−0.53 to −0.10)"
    assert str(record("R2", value=0.75, stderr=0.0).parts[0]) == "0.750 (the same on whatever images are drawn)"
    assert registry.number(-0.04, 1) == "0.0" and registry.number(1024) == "1024"
    assert str(record("R6", value=-0.3, stderr=0.01)).startswith(
        "R6 on scenes: holds for these networks. −0.300 (−0.321 to −0.279), asked for <\N{NO-BREAK SPACE}0"
    )


@pytest.mark.parametrize(
    "value, control, word",
    [
        (0.1, 0.1, "holds, and says nothing"),
        (0.1, -0.1, HOLDS),
        (0.1, 0.01, HOLDS),  # a control that may or may not meet the criterion does not pass
        (-0.1, 0.1, FAILS),
        (0.01, 0.1, "inconclusive"),
    ],
)
def test_a_control_that_passes_takes_the_meaning_from_a_claim_that_holds(folder, record, value, control, word):
    controls = {"untrained twin": {"value": control, "stderr": 0.01, "groups": 16}}
    verdict = record("R2", value=value, controls=controls)
    assert verdict.word == word == verdicts.verdicts(folder)["R2", "scenes"].word
    assert verdict.passed_by == (["untrained twin"] if control == 0.1 else [])


def test_one_control_of_several_is_enough_and_all_parts_have_to_pass(record):
    def of(mean, spread):
        return {"value": [mean, spread], "interval": [(mean - 0.01, mean + 0.01), (spread - 0.01, spread + 0.01)]}

    given = {"value": [0.2, -0.2], "stderr": [0.01, 0.01]}
    half = record("R1", **given, controls={"second seed": of(0.2, 0.2), "untrained": of(-0.2, -0.2)})
    assert half.word == HOLDS and [control.word for control in half.controls] == ["fails", "fails"]
    whole = record("R1", **given, controls={"second seed": of(0.2, 0.2), "untrained": of(0.2, -0.2)})
    assert whole.word == "holds, and says nothing" and whole.passed_by == ["untrained"]
    assert str(whole.controls[1]) == "untrained mean 0.200 (0.190 to 0.210), spread −0.200 (−0.210 to −0.190): holds"


def test_a_control_without_its_uncertainty_is_named(folder, record):
    with pytest.raises(ValueError, match="R2, 'untrained': give the uncertainty"):
        record("R2", controls={"untrained": {"value": 0.1}})
    with pytest.raises(ValueError, match="R2: n counts one of images, blocks, seeds, networks; got 'pixels'"):
        record("R2", units="pixels")
    assert not list(folder.rglob("*.json"))
