"""What the reader sees of verdicts: the end of a chapter, and the scoreboard."""

import json
import re
from html import unescape
from itertools import product

import pytest
import yaml

from helpers.claims import registry, scoreboard, verdicts
from helpers.markup import literal

CHAPTER = "02_representation"


def record_all(record, figure="fig-within"):
    for claim in registry.load().values():
        if claim.chapter == CHAPTER:
            for track in claim.tracks:
                count = len(claim.parts)
                value, stderr = ([0.3] * count, [0.01] * count) if count > 1 else (0.3, 0.01)
                record(claim.id, track, value, stderr, figure=figure, note="It's < half & more.")


def test_a_chapter_ends_with_all_of_its_claims(record):
    with pytest.raises(ValueError, match="has not recorded R1 on scenes"):
        scoreboard.chapter_verdicts(CHAPTER)
    with pytest.raises(ValueError, match="no measured claim"):
        scoreboard.chapter_verdicts("99_nothing")
    record_all(record)
    shown = scoreboard.chapter_verdicts(CHAPTER)
    html = shown._repr_html_()
    for name in ("R1", "R6", "R30"):
        assert f'href="../book/scoreboard.html#claim-{name.lower()}"' in html and f"{name} on scenes" in repr(shown)
    assert html.count('href="#fig-within"') == 11 and "It’s &lt; half &amp; more." in html
    assert html.count("<div") == html.count("</div>") and html.count("<span") == html.count("</span>")


def test_the_scoreboard_shows_every_claim_and_every_verdict(folder, record):
    record_all(record)
    page = scoreboard.scoreboard_page(folder)
    assert page == scoreboard.scoreboard_page(folder)
    for name in registry.load():
        assert page.count(f"(claim-{name.lower()})=\n") == 1 and f"{name} · " in page
    words = ["✓ holds for these networks", "✗ fails for these networks", "– not testable here"]
    assert all(word in page for word in words) and "? inconclusive" not in page and "… planned" not in page
    assert ("… planned" in page) == any(claim.status == "planned" for claim in registry.load().values())
    assert "{numref}`fig-within`" in page and "[](/notebooks/02_representation.ipynb)" in page
    assert "`vit_large_patch16_224.augreg_in21k`" in page and "It's \\< half" in page
    assert page.count("::::{card}") == len(registry.load()) == page.count("\n::::\n")


def test_cards_say_what_the_lists_of_the_page_choose_among(folder, record):
    record_all(record)
    page = scoreboard.scoreboard_page(folder)
    options = json.loads(unescape(re.search(r'data-options="([^"]*)"', page)[1]))
    cards = [set(line.split()[2:]) for line in page.splitlines() if line.startswith(":class-card: claim ")]
    assert len(cards) == len(registry.load())
    found = verdicts.verdicts(folder)
    words, chapters = dict(options["verdicts"]), dict(options["chapters"])
    for claim, classes in zip(registry.load().values(), cards, strict=True):
        assert sum(f"of-{chapter}" in classes for chapter in chapters) == 1
        for track, _ in options["tracks"]:
            (word,) = (word for word in words if f"{track}-{word}" in classes)
            assert words[word] == scoreboard.status(claim, track, found)


def test_the_first_page_has_a_tile_for_every_claim_and_track(folder, record):
    record_all(record)
    page, found = scoreboard.found_page(folder), verdicts.verdicts(folder)
    tiles = re.findall(r'href="scoreboard.html#claim-([a-z0-9]+)" title="[A-Z0-9]+, (\w+): ([^.]+)\. ', page)
    names = {name: track for track, name in registry.TRACKS.items()}
    claims = {name.lower(): claim for name, claim in registry.load().items()}
    assert sorted((name, names[track]) for name, track, _ in tiles) == sorted(product(claims, registry.TRACKS))
    for name, track, word in tiles:
        assert word == scoreboard.status(claims[name], names[track], found)
    assert f"| [](/notebooks/{CHAPTER}.ipynb) |" in page and page.count("\n| ") > 8


def test_a_control_that_passes_is_told_of_wherever_the_verdict_stands(folder, record):
    record_all(record)
    twin = {"untrained twin": {"value": 0.2, "stderr": 0.01, "groups": 16}}
    record("R2", value=0.3, n=2560, units="networks", controls=twin)
    said = "A control passes too (untrained twin). Controls: untrained twin 0.200 (0.179 to 0.221): holds."
    page = scoreboard.scoreboard_page(folder)
    assert "≈ holds, and says nothing" in page and literal(said) in page
    assert "n = 2,560 networks" in page and "). A control passes" in page
    html = scoreboard.chapter_verdicts(CHAPTER)._repr_html_()
    assert "≈ holds, and says nothing" in html and f". {said}" in html
    record("R2", value=-0.3, controls=twin)
    page = scoreboard.scoreboard_page(folder)
    assert "A control passes" not in page and literal("Controls: untrained twin 0.200") in page


def test_other_trainings_are_told_of_wherever_the_verdict_stands(folder, record):
    record_all(record)
    seeds = {f"seed {k}": {"value": 0.3 + k / 100, "stderr": 0.01, "groups": 16} for k in (1, 2)}
    record("R2", value=0.3, n=2560, seeds=seeds)
    said = "Other trainings: seed 1 0.310 (0.289 to 0.331): holds; seed 2 0.320 (0.299 to 0.341): holds."
    page, html = scoreboard.scoreboard_page(folder), scoreboard.chapter_verdicts(CHAPTER)._repr_html_()
    assert literal(said) in page and "n = 3 trainings, 2,560 images" in page and said in html
    assert "✓ holds</span>" in page and "✓ holds</span>" in html and "over 3 trainings" in html


def test_the_scoreboard_says_what_a_build_has_not_measured(folder):
    page = scoreboard.scoreboard_page(folder)
    assert "not in this build" in page and "{numref}" not in page


def test_the_scoreboard_tells_of_a_changed_criterion_and_of_a_planned_claim(folder, tmp_path, monkeypatch):
    changed = {"date": "2031-01-01", "was": "> 0.5", "reason": "The unit was wrong."}
    claim = {"id": "X1", "figures": "Figure 1", "sentence": "A.", "statistic": "B.", "criterion": {"less_than": 0}}
    claim |= {
        "tracks": ["scenes"],
        "untestable": {"imagenet": {"reason": "C."}},
        "status": "planned",
        "changed": changed,
    }
    section = {"title": "T", "paper": "P", "chapter": "09_x", "claims": [claim]}
    (tmp_path / "claims.yml").write_text(yaml.safe_dump({"sections": [section]}))
    monkeypatch.setattr(scoreboard, "load", lambda: registry.load(tmp_path / "claims.yml"))
    page = scoreboard.scoreboard_page(folder)
    assert "Changed after it had been measured" in page and "The unit was wrong." in page and "2031-01-01" in page
    assert "… planned" in page


def test_a_verdict_is_legible_without_its_colour_and_against_it():
    """Each has its own symbol or word, and a contrast of 4.5 at least (WCAG AA)."""

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for word, (symbol, *colours) in scoreboard.BADGES.items():
        dark, light = sorted(map(luminance, colours))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, word
        assert f"{symbol} {word}" in scoreboard.badge(word)
