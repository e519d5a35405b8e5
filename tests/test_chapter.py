"""The kit of a chapter: numbers for the prose, tables with their provenance, claims judged with the right intervals."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import chapter as kit
from helpers import results, uncertainty
from helpers.chapter import Chapter
from helpers.claims import registry
from helpers.images.sources import scene_images
from helpers.measures.cka import Sums
from helpers.measures.heatmap import CKAResult
from helpers.networks import zoo

T1, T2 = 12.706205, 4.302653  # Student's t, 97.5 %, with one and with two degrees of freedom


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(results.FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.fixture
def said(monkeypatch):
    """What was handed to the prose: name → number."""
    numbers = {}
    monkeypatch.setattr(kit, "glue", lambda name, number, display: numbers.update({name: number}))
    return numbers


@pytest.fixture
def chapter(folder, said):
    return Chapter("03_attention", ["vit", "resnet"], scene_images(32), seed=3)


@pytest.fixture
def table():
    """A mean over images, 2 in all, that three groups of images move to 1, 2 and 3 when they are left out."""
    return pd.DataFrame({"block": 0, "x": [2.0, 1, 2, 3], "left_out": [-1, 0, 1, 2]})


@pytest.fixture
def cka():
    """CKA of two layers: ½ from both groups of batches, ¾ without the first and ¼ without the second."""
    cross = np.array([[[1, 0.25], [0.25, 1]], [[1, 0.75], [0.75, 1]]])
    sums = Sums(cross, np.ones((2, 2)), np.ones((2, 2)), np.ones(2, int), np.full(2, 8))
    taps = pd.DataFrame({"model": "vit", "name": ["a", "b"], "kind": "block", "depth": [0.0, 1.0]})
    both = np.arange(2)
    return CKAResult(sums, taps, both, both, 16, batch=8, batches=2, skipped=0, estimator="unbiased", dtype="float32")


def mean(table):
    return table["x"].iloc[0]


def recorded(folder, claim, track="scenes", chapter="03_attention"):
    return json.loads((folder / "claims" / f"{chapter}.json").read_text())[claim][track]


# The prose


def test_numbers_reach_the_prose_as_floats_by_names_with_hyphens(chapter, said):
    chapter.say(spread_first=torch.tensor(0.5), images=np.int64(32), **{"twin-mean": 2})
    assert said == {"spread-first": 0.5, "images": 32.0, "twin-mean": 2.0}
    assert all(type(number) is float for number in said.values())


@pytest.mark.parametrize("wrong", ["many", None, np.arange(2), {"a": 1}])
def test_what_is_no_number_is_not_said(chapter, said, wrong):
    with pytest.raises(TypeError, match=r"say\(spread=…\) takes a single number"):
        chapter.say(spread=wrong)
    assert not said


# Tables


def test_a_table_is_stored_with_what_all_the_chapters_results_share(chapter, folder):
    rows = pd.DataFrame({"head": [0, 1], "distance": [8.5, 30.25], "share": np.array([0.25, 1], np.float32)})
    chapter.store("heads", "Attention distance of all heads", rows, units={"distance": "px"})
    assert (folder / "03_attention" / "heads.csv").exists()
    again, sidecar = results.read("03_attention/heads")
    pd.testing.assert_frame_equal(again, rows, check_dtype=False)
    assert sidecar["what"] == "Attention distance of all heads"
    assert sidecar["units"] == {"distance": "px", "share": "1"}
    assert sidecar["models"]["resnet"] == {"source": "zoo", "sha256": zoo.card("resnet")["sha256"]}
    assert list(sidecar["models"]) == ["vit", "resnet"]
    assert (sidecar["images"], sidecar["seed"]) == (scene_images(32).describe(), 3)


def test_a_table_may_have_models_and_images_of_its_own_or_none(chapter, table):
    chapter.store("other", "A mean", table, models={"resnet50": {"source": "a folder"}}, images={"count": 5})
    sidecar = results.read("03_attention/other")[1]
    assert (sidecar["models"], sidecar["images"]) == ({"resnet50": {"source": "a folder"}}, {"count": 5})
    chapter.store("none", "A mean", table, models=(), images={})
    sidecar = results.read("03_attention/none")[1]
    assert (sidecar["models"], sidecar["images"], sidecar["seed"]) == ({}, {}, 3)


def test_models_given_as_an_iterator_stand_beside_every_table(folder, said, table):
    chapter = Chapter("03_attention", iter(["vit"]))
    for name in ("one", "two"):
        chapter.store(name, "A mean", table)
        assert list(results.read(f"03_attention/{name}")[1]["models"]) == ["vit"]


def test_a_unit_for_a_column_that_is_not_there_is_refused(chapter, table):
    with pytest.raises(ValueError, match=r"no columns \['distance'\]"):
        chapter.store("heads", "A mean", table, units={"distance": "px"})


# Claims


def test_a_statistic_of_tables_has_the_interval_of_its_number_of_groups(chapter, folder, said, table, capsys):
    chapter.judge("R8", "scenes", mean, table, figure="fig-a", n=30, note="A toy.")
    found = recorded(folder, "R8")
    part = found["parts"]["value"]
    reach = T2 * (2 * 2 / 3) ** 0.5  # (G − 1) times the mean squared deviation of 1, 2, 3
    assert part["value"] == 2
    assert [part["low"], part["high"]] == pytest.approx([2 - reach, 2 + reach])
    assert (found["figure"], found["n"], found["note"]) == ("fig-a", 30, "A toy.")
    assert said == {"scenes-r8": 2.0}
    assert capsys.readouterr().out.startswith("R8 on scenes: ")


def test_of_several_tables_the_same_group_is_left_out_and_each_part_is_said_by_its_name(chapter, folder, said, table):
    double = table.assign(x=2 * table["x"])
    chapter.judge("R7", "imagenet", lambda a, b: [mean(b) - mean(a), mean(a)], table, double, figure="fig-a", n=30)
    parts = recorded(folder, "R7", "imagenet")["parts"]
    reach = T2 * (4 / 3) ** 0.5
    for name in ("nearest", "farthest"):
        assert [parts[name]["low"], parts[name]["high"]] == pytest.approx([2 - reach, 2 + reach])
    assert said == {"imagenet-r7-nearest": 2.0, "imagenet-r7-farthest": 2.0}


def test_a_statistic_that_jumps_gets_the_interval_of_the_bootstrap(chapter, folder, table):
    chapter.judge("C4", "scenes", mean, table, figure="fig-a", n=30, jumps=True)
    part = recorded(folder, "C4")["parts"]["value"]
    _, (low, high) = uncertainty.bootstrap(mean, table)
    assert (part["value"], part["low"], part["high"]) == (2, low, high)
    # a group alone gives 3 · 2 − 2 · (1, 2 or 3), that is 4, 2 or 0, and thrice the same group is drawn often enough
    assert (low, high) == (0, 4)


def test_a_statistic_of_cka_takes_images_and_groups_from_the_result(folder, said, cka):
    chapter = Chapter("02_representation")
    chapter.judge("R2", "scenes", lambda matrix: matrix[0, 1], cka, figure="fig-a")
    found = recorded(folder, "R2", chapter="02_representation")
    part = found["parts"]["value"]
    assert part["value"] == 0.5 and found["n"] == 16
    assert [part["low"], part["high"]] == pytest.approx([0.5 - T1 / 4, 0.5 + T1 / 4])
    chapter.judge("R4", "scenes", lambda matrix: matrix[0], cka, figure="fig-a", jumps=True)
    parts = recorded(folder, "R4", chapter="02_representation")["parts"]
    assert parts["order"] == {"value": 0.5, "low": 0.25, "high": 0.75}  # either group twice, or both
    assert parts["depth"] == {"value": 1, "low": 1, "high": 1}


def test_a_number_with_a_known_interval_is_recorded_and_said(chapter, folder, said):
    chapter.record("R10", "scenes", 0.5, interval=(0.25, 0.75), figure="fig-a", n=9, note="One training.")
    found = recorded(folder, "R10")
    assert found["parts"] == {"value": {"value": 0.5, "low": 0.25, "high": 0.75}}
    assert (found["n"], found["note"], said) == (9, "One training.", {"scenes-r10": 0.5})


def test_the_last_cell_shows_all_claims_of_the_chapter_or_says_which_is_missing(folder, said):
    chapter = Chapter("04_skip_connections")
    mine = [claim for claim in registry.load().values() if claim.chapter == chapter.name and claim.status == "measured"]
    with pytest.raises(ValueError, match=f"has not recorded {mine[0].id} on scenes"):
        chapter.verdicts()
    for claim in mine:
        for track in claim.tracks:
            numbers = {part.name: 0.0 for part in claim.parts}
            ends = dict.fromkeys(numbers, (-1.0, 1.0))
            chapter.record(claim.id, track, numbers, interval=ends, figure="fig-a")
    assert [line.split()[0] for line in repr(chapter.verdicts()).splitlines()] == [c.id for c in mine for _ in c.tracks]


# What is refused


@pytest.mark.parametrize(
    "name", ["attention", "3_attention", "03_Attention", "notebooks/03_attention", "03B_x", "03_x.ipynb"]
)
def test_a_chapter_is_called_as_its_notebook(name):
    with pytest.raises(ValueError, match="name of its notebook"):
        Chapter(name)


def test_a_chapter_may_stand_beside_another_with_its_number(folder):
    assert Chapter("03b_receptive_fields").name == "03b_receptive_fields"
    with pytest.raises(FileNotFoundError, match="the chapter notebooks/03b_receptive_fields.ipynb writes it"):
        results.read("03b_receptive_fields/radii")


def test_models_and_images_are_refused_before_anything_is_measured(chapter, table):
    with pytest.raises(TypeError, match="not the string 'vit'"):
        Chapter("03_attention", "vit")
    with pytest.raises(TypeError, match="ImageSet or the description of one; got a int"):
        Chapter("03_attention", ["vit"], 1024)
    with pytest.raises(TypeError, match="not the string 'vit'"):
        chapter.store("heads", "A mean", table, models="vit")


def test_a_claim_is_judged_by_tables_or_by_one_cka_result(chapter, said, table, cka):
    for wrong, what in (((), "nothing"), ((cka, cka), "CKAResult, CKAResult"), ((table, cka), "DataFrame, CKAResult")):
        with pytest.raises(TypeError, match=f"R8 is judged by .* got {what}"):
            chapter.judge("R8", "scenes", mean, *wrong, figure="fig-a", n=30)
    with pytest.raises(TypeError, match="R8: say how many images"):
        chapter.judge("R8", "scenes", mean, table, figure="fig-a")
    assert not said


def test_a_claim_of_another_chapter_is_refused(chapter, said, table):
    with pytest.raises(ValueError, match="R14 is assigned to chapter 04_skip_connections"):
        chapter.judge("R14", "scenes", mean, table, figure="fig-a", n=30)
    assert not said


# Controls


def test_a_control_is_the_same_statistic_of_other_tables_or_at_other_places(chapter, folder, table, cka):
    farther = table.assign(x=table["x"] + 40)
    about = {"figure": "fig-attention-heads", "n": 32}
    controls = {"untrained": [farther], "doubled": [lambda t: 2 * mean(t), table]}
    chapter.judge("R8", "scenes", mean, table, **about, controls=controls)
    found = recorded(folder, "R8")["controls"]
    assert [found[name]["value"]["value"] for name in ("untrained", "doubled")] == [42, 4]
    own = recorded(folder, "R8")["parts"]["value"]
    width = own["high"] - own["low"]
    for name, factor in (("untrained", 1), ("doubled", 2)):
        assert found[name]["value"]["high"] - found[name]["value"]["low"] == pytest.approx(factor * width)

    second = Chapter("02_representation")
    other = {"diagonal": [lambda m: m[0, 0], cka], "itself": [cka]}
    second.judge("R2", "scenes", lambda m: m[0, 1], cka, figure="fig-within", controls=other)
    found = recorded(folder, "R2", chapter="02_representation")["controls"]
    assert found["diagonal"]["value"]["value"] == 1 and found["itself"]["value"]["value"] == 0.5


def test_no_others_no_word_of_them(chapter, folder, table):
    chapter.judge("R8", "scenes", mean, table, figure="fig-attention-heads", n=32)
    assert not {"controls", "seeds"} & set(recorded(folder, "R8"))


def test_other_trainings_are_measured_as_controls_are_and_their_interval_is_said(chapter, folder, said, table, cka):
    about = {"figure": "fig-attention-heads", "n": 32}
    seeds = {"seed 1": [table.assign(x=table["x"] + 0.5)], "seed 2": [lambda t: mean(t) - 0.5, table]}
    chapter.judge("R8", "scenes", mean, table, **about, seeds=seeds)
    found = recorded(folder, "R8")
    assert [found["seeds"][name]["value"]["value"] for name in seeds] == [2.5, 1.5] and "controls" not in found
    reach = T2 * 0.5 / 3**0.5
    assert said == pytest.approx(
        {"scenes-r8": 2, "scenes-r8-trainings": 2, "scenes-r8-least": 2 - reach, "scenes-r8-most": 2 + reach}
    )
    second = Chapter("02_representation")
    again = {"seed 1": [lambda m: m[0, 0] / 4, cka]}
    second.judge("R2", "scenes", lambda m: m[0, 1], cka, figure="fig-within", seeds=again)
    assert said["scenes-r2-trainings"] == (0.5 + 0.25) / 2
