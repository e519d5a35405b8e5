"""The page of the models says what the cards say, and what is missing."""

import json
import re

import pytest

from helpers import cards, catalogue, results, zoo


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
    page = cards.cards_page()
    assert page.startswith("# The models\n")
    for name in zoo.names():
        card = zoo.card(name)
        assert f"- `{name}`: {card['about']}" in page and card["sha256"][:12] in page
        assert f"| `{name}` | {100 * card['accuracy']['all cues']['pair']:.1f} |" in page
    assert "| `colours` |" in page and "| chance | 3.1 | 12.5 | 25.0 |" in page


def test_every_table_is_whole():
    for table in tables(cards.cards_page()):
        assert len(table) > 2 and len({len(row) for row in table}) == 1
        assert max(len(row) for row in table) <= 6  # columns, for a phone


def test_what_is_not_trained_yet_is_listed(tmp_path, monkeypatch):
    untrained = catalogue.Card("vit-wide", "vit", "twice as wide", {"embed_dim": 256})
    monkeypatch.setitem(zoo.ZOO, "vit-wide", untrained)
    page = cards.cards_page()
    assert "### In the catalogue, not trained yet" in page and "- `vit-wide`: twice as wide" in page
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    assert "No network is trained yet; `make zoo` trains them." in cards.cards_page()


def test_the_models_of_the_recordings_come_from_their_sidecars(recordings):
    page = cards.cards_page(recordings)
    assert "on up to 3,925 photographs" in page
    assert "| `resnet50` | ImageNet | no: 13 of 16 blocks | a \\| b |" in page
    assert "| `vit` | – | yes | timm's hub |" in page
    assert json.loads((recordings / "similarity.json").read_text())["models"]["vit"] == {}


def test_without_recordings_the_page_says_how_to_make_them(tmp_path):
    assert "Nothing is recorded yet" in cards.cards_page(tmp_path)
