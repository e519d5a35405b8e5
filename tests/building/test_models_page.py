"""The page of the models says what the cards say, and what is missing."""

import json
import re
from dataclasses import replace

import pytest
from bs4 import BeautifulSoup
from test_markup import HOSTILE, read, shown

from helpers import results
from helpers.building import models_page
from helpers.claims import registry, scoreboard
from helpers.claims.verdicts import record
from helpers.markup import one_line
from helpers.networks import catalogue, zoo
from helpers.networks.accuracy import CUES

STAGED = {"pit": (6, 3), "swin": (6, 3), "convnext": (8, 4)}  # blocks, stages


def tables(page):
    """Each table of a page, as lists of cells."""
    found = re.findall(r"(?:^\|.*\|\n?)+", page, re.MULTILINE)
    return [[line.strip("| ").split(" | ") for line in table.strip().splitlines()] for table in found]


@pytest.fixture
def recordings(tmp_path):
    about = {"trained_on": "ImageNet", "complete": False, "note": "13 of 16 blocks", "source": "a | b"}
    table = results.pd.DataFrame({"cka": [0.5]})
    notes = {"what": "CKA", "units": {"cka": "1"}, "where": tmp_path}
    results.write("similarity", table, models={"resnet50": about, "vit": {}}, images={"count": 3925}, **notes)
    return tmp_path


def test_the_page_lists_every_stored_model_with_its_numbers():
    page = models_page.models_page()
    assert page.startswith("# The models\n")
    for name in zoo.names():
        card = zoo.card(name)
        assert f"- `{name}`: {card['about']}" in page and card["sha256"][:12] in page
        reached = f"| `{name}` | {100 * card['accuracy']['all cues']['pair']:.1f} |" if "accuracy" in card else ""
        assert reached in page
    assert "| `colours` |" in page and "| chance | 3.1 | 12.5 | 25.0 |" in page


def test_every_table_is_whole():
    for table in tables(models_page.models_page()):
        assert len(table) > 2 and len({len(row) for row in table}) == 1
        assert max(len(row) for row in table) <= 6  # columns, for a phone


@pytest.fixture(scope="module")
def small_page(tmp_path_factory):
    """The page of a zoo of untrained networks: told classes and not, of older cards and of newer, with stages."""
    shares = {"pair": 0.5, "shape": 0.75, "texture": 0.625}
    accuracy = {"accuracy": {cue: shares for cue in ("all cues", *(f"without {cue}" for cue in CUES))}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "FOLDER", tmp_path_factory.mktemp("zoo"))
        for name in ("vit", "vit-small", "vit-small-strong", "vit-small-mae", "vit-small-denoiser", *STAGED):
            card = replace(catalogue.ZOO[name], kept=())
            run = {"seconds": 60, "images_per_second": 500, "device": "cpu", "threads": 1, "precision": "float32"}
            if name in ("vit", "vit-small"):
                del run["precision"]
            zoo.save(card, zoo.build(card), {"run": run, **(accuracy if card.recipe.objective == "labels" else {})})
        return models_page.models_page()


def test_networks_that_were_told_no_class_have_a_line_and_no_accuracy(small_page):
    training, good, lean = tables(small_page)[:3]
    without = {"`vit-small-mae`", "`vit-small-denoiser`"}
    assert {row[0] for row in training[2:]} - {row[0] for row in good[2:]} == without
    assert [row[0] for row in good[2:]] == [row[0] for row in lean[2:]] and good[-1][0] == "chance"
    assert all(f"- {name}: " in small_page for name in without)


def test_precision_is_said_where_it_is_not_bfloat16(small_page):
    listed = small_page.split("###")[0].splitlines()
    lines = {line.split("`")[1]: line for line in listed if line.startswith("- `")}
    said = {name for name, line in lines.items() if line.endswith("; in float32.")}
    assert (
        said
        == {"vit-small-strong", "vit-small-mae", "vit-small-denoiser", *STAGED}
        == set(lines) - {"vit", "vit-small"}
    )


def test_the_size_of_networks_with_stages_is_said(small_page):
    rates = "AdamW at 0.001, Muon at 0.002"
    for name, (blocks, stages) in STAGED.items():
        millions = sum(value.numel() for value in zoo.build(catalogue.ZOO[name]).parameters()) / 1e6
        size = f"{blocks} blocks in {stages} stages, {millions:.1f} million parameters; {rates}; in float32."
        assert f"- `{name}`: {catalogue.ZOO[name].about}; {size}" in small_page
    assert f"8 blocks of width 128 with 8 heads, patches of 8 pixels, 1.6 million parameters; {rates}." in small_page


def test_what_is_not_trained_yet_is_listed(tmp_path, monkeypatch):
    untrained = catalogue.Card("vit-wide", "vit", "twice as wide", {"embed_dim": 256})
    monkeypatch.setitem(zoo.ZOO, "vit-wide", untrained)
    page = models_page.models_page()
    assert "### In the catalogue, not trained yet" in page and "- `vit-wide`: twice as wide" in page
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    assert "No network is trained yet; `make zoo` trains them." in models_page.models_page()


def test_the_models_of_the_recordings_come_from_their_sidecars(recordings):
    page = models_page.models_page(recordings)
    assert "on up to 3,925 photographs" in page
    assert "| `resnet50` | ImageNet | no: 13 of 16 blocks | a \\| b |" in page
    assert "| `vit` | – | yes | timm's hub |" in page
    assert json.loads((recordings / "similarity.json").read_text())["models"]["vit"] == {}


def test_without_recordings_the_page_says_how_to_make_them(tmp_path):
    assert "Nothing is recorded yet" in models_page.models_page(tmp_path)


@pytest.mark.fault("Building the book", "code or markup in the sidecar of a recording", "it is shown as text, not run")
def test_what_a_sidecar_says_is_text(recordings):
    notes = {"what": "CKA", "units": {"cka": "1"}, "where": recordings}
    models = {text: {"trained_on": text, "source": text, "complete": False, "note": text} for text in HOSTILE}
    results.write("hostile", results.pd.DataFrame({"cka": [0.5]}), models=models, **notes)
    page = shown(models_page.models_page(recordings))
    rows = [[read(cell) for cell in row.select("td")] for row in page.select("tr")]
    for text in map(one_line, HOSTILE):
        assert [text, text, f"no: {text}", text] in rows
    assert not page.select("script, img, b, h1 + h1, math, [onerror]")


@pytest.mark.fault(
    "Building the book", "code or markup in the note of a chapter's record", "it is shown as text, not run"
)
def test_what_a_record_says_is_text(tmp_path, monkeypatch):
    monkeypatch.setenv(results.FOLDER_VARIABLE, str(tmp_path))
    note = " ".join(map(one_line, HOSTILE))
    for track in ("scenes", "imagenet"):
        more = {"figure": "fig-within", "chapter": "02_representation", "groups": 16, "note": note}
        record("R3", track, 0.1, 0.01, **more)
    monkeypatch.setattr(scoreboard, "load", lambda: {"R3": registry.load()["R3"]})
    lines = [line for line in scoreboard.scoreboard_page(tmp_path).splitlines() if "fig-within" in line]
    page = shown("\n\n".join(line.replace("{numref}", "") for line in lines))  # a role of Sphinx
    assert read(page).count(note) == 2
    chapter = BeautifulSoup(scoreboard.chapter_verdicts("02_representation")._repr_html_(), "html.parser")
    assert read(chapter).count(note) == 2
    for html in (page, chapter):
        assert not html.select("script, img, b, h1 + h1, math, [onerror]")


def test_a_record_whose_figure_is_no_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(results.FOLDER_VARIABLE, str(tmp_path))
    record("R2", "scenes", 0.1, 0.01, figure="fig-within", chapter="02_representation", groups=16)
    file = tmp_path / "claims" / "02_representation.json"
    file.write_text(file.read_text().replace("fig-within", "fig-x`<script>`"))
    with pytest.raises(ValueError, match="R2 on scenes names no figure"):
        scoreboard.scoreboard_page(tmp_path)


@pytest.mark.parametrize("sidecar", [{"models": ["vit"]}, {"models": {"vit": "x"}}, {"images": {"count": "many"}}])
def test_a_sidecar_of_another_form_is_named(recordings, sidecar):
    file = recordings / "similarity.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | sidecar))
    with pytest.raises(ValueError, match=r"similarity\.json"):
        models_page.models_page(recordings)
