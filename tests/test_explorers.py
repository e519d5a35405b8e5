"""Figures that answer: what they pack is what they were given, and in a browser a cell says what the table holds."""

import base64
import json
import re
import zlib
from html import unescape

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import explorers, files
from helpers.measures import attention


def maps(rows=3, columns=4):
    values = np.random.default_rng(0).uniform(-0.05, 1, (rows, columns))
    names = [f"r{i}" for i in range(rows)], [f"c{j}" for j in range(columns)]
    return pd.DataFrame(values, *names), values / 50


@pytest.fixture
def explorer():
    square = np.array([[1, 0.8, 0.3], [0.8, 1, 0.4], [0.3, 0.4, 1]])
    own = pd.DataFrame(square, list("abc"), list("abc")), square / 50
    return explorers.heat_maps(
        "CKA <of> two", {"one": maps(), "itself": own}, {"one": ("X", "Y"), "itself": ("X", "X")}
    )


def test_numbers_come_back_to_a_ten_thousandth():
    numbers = np.array([[0.12345, -0.0021], [1.0, np.nan]])
    low, high = np.frombuffer(zlib.decompress(base64.b64decode(explorers.packed(numbers))), np.uint8).reshape(2, -1)
    back = np.stack([low, high], axis=1).view("<i2").ravel() / explorers.STEPS
    np.testing.assert_allclose(back[:3], numbers.ravel()[:3], atol=0.5 / explorers.STEPS)
    assert back[3] == -3.2768
    with pytest.raises(ValueError, match="16 bits hold numbers up to 3.2767"):
        explorers.packed(np.array([4.0]))


def test_the_markup_holds_the_numbers_and_nothing_that_runs(explorer):
    text = explorer._repr_html_()
    assert "<script" not in text and 'aria-label="CKA &lt;of&gt; two"' in text
    data = json.loads(unescape(re.search(r'data-explorer="([^"]*)"', text)[1]))
    assert [view["heading"] for view in data["views"]] == ["one", "itself"]
    assert data["views"][0]["rows"] == ["r0", "r1", "r2"] and len(data["colours"]) == explorers.COLOURS
    assert "answers a pointer" in repr(explorer)


def test_errors_of_another_shape_are_refused():
    matrix, errors = maps()
    with pytest.raises(ValueError, match=r"one: a matrix of \(3, 4\) and errors of \(4, 3\)"):
        explorers.heat_maps("CKA", {"one": (matrix, errors.T)}, {"one": ("", "")})


@pytest.mark.browser
def test_a_browser_says_of_a_cell_what_the_table_holds(browser, explorer, tmp_path):
    """By pointer and by keyboard: the number, its error, and the best match of the row."""
    script = (files.ROOT / "book" / "_static" / "explorers.js").read_text(encoding="utf-8")
    page_file = tmp_path / "page.html"
    page_file.write_text(f"<!doctype html><meta charset=utf-8>{explorer._repr_html_()}<script>{script}</script>")
    matrix, errors = maps()
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(page_file.as_uri())
    words, canvas = page.locator(".explorer-words"), page.locator("canvas")
    assert "Point at a cell" in words.inner_text()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 2.5 / 4, box["y"] + box["height"] * 0.5 / 3)  # r2 is on top
    best = matrix.loc["r2"].idxmax()
    wanted = f"Y r2 with X c2: CKA {matrix.loc['r2', 'c2']:.3f} ± {errors[2, 2]:.3f} (standard error). "
    assert words.inner_text().startswith(wanted.replace("-", "−"))
    assert words.inner_text().endswith(f"Best match of this row: {best}, {matrix.loc['r2', best]:.3f}.")
    page.get_by_role("button", name="itself").click()
    assert page.get_by_role("button", name="itself").get_attribute("aria-pressed") == "true"
    canvas.focus()
    for key in ("ArrowUp", "ArrowRight", "ArrowUp"):  # the first chooses the cell at the lower left
        page.keyboard.press(key)
    said = words.inner_text()
    assert said.startswith("X b with X b: CKA 1.000 ± 0.020")
    assert said.endswith("Best match of this row, itself apart: a, 0.800.")


SIDE, PATCH = 3, 8


def weights():
    """Maps (2 pictures, 2 heads, 9, 9) whose rows sum to one."""
    drawn = np.random.default_rng(1).uniform(0, 1, (2, 2, SIDE**2, SIDE**2)) ** 3
    return drawn / drawn.sum(-1, keepdims=True)


def token_maps(maps, pictures=2, **how):
    pictures = [np.full((6, 6, 3), shade) for shade in np.linspace(0, 1, pictures)]
    choices = {"Picture": ["a", "b"], "Head": ["0", "1"]}
    return explorers.token_maps("Attention", maps, choices, pictures, (SIDE, SIDE), PATCH, **how)


def test_maps_that_are_not_those_of_the_choices_are_refused():
    with pytest.raises(ValueError, match=r"maps of \(2, 2, 9, 8\) and 2 pictures, .* ask for \(2, 2, 9, 9\) and 2"):
        token_maps(weights()[..., :-1])
    with pytest.raises(ValueError, match="and 3 pictures"):
        token_maps(weights(), pictures=3)


@pytest.mark.browser
def test_a_browser_says_of_a_patch_where_it_looks_and_how_far(browser, tmp_path):
    """By pointer, by sliders and by keyboard; distances agree with those of the measure."""
    script = (files.ROOT / "book" / "_static" / "explorers.js").read_text(encoding="utf-8")
    maps = weights()
    text = token_maps(maps, distance=True)._repr_html_()
    page_file = tmp_path / "page.html"
    page_file.write_text(f"<!doctype html><meta charset=utf-8>{text}<script>{script}</script>")
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(page_file.as_uri())
    words, canvas, head = (
        page.locator(".explorer-words"),
        page.locator("canvas"),
        page.get_by_role("slider", name="Head"),
    )
    box = canvas.bounding_box()
    head.press("ArrowRight")
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.5)  # the picture: row 1, column 2
    grid = attention.Grid((SIDE, SIDE), (PATCH, PATCH), prefix=0)
    shown, best = maps[0, 1, 5], maps[0, 1, 5].argmax()
    said = words.inner_text()
    assert f"from the patch in row 1, column 2 (counted from 0): most, {shown[best]:.3f}," in said
    assert f"to row {best // SIDE}, column {best % SIDE}." in said
    mean = attention.distances(torch.from_numpy(maps[0, 1])[None, None].float(), grid)[0, 0]
    own = (shown * grid.distances().numpy()[5]).sum()
    uniform = attention.uniform_distance((SIDE, SIDE), PATCH)
    numbers = f"this patch {own:.1f} px, over all patches of this picture {mean:.1f} px; "
    assert numbers in said and said.endswith(f"alike would give {uniform:.1f} px.")
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.9)  # the map: row 2, column 0
    assert f"To row 2, column 0: {shown[6]:.3f}." in words.inner_text()
    canvas.focus()
    page.keyboard.press("Shift+ArrowUp")
    assert f"To row 1, column 0: {shown[3]:.3f}." in words.inner_text()
    page.keyboard.press("ArrowLeft")
    assert "from the patch in row 1, column 1" in words.inner_text() and "To row" not in words.inner_text()
    page.get_by_role("slider", name="Picture").press("ArrowRight")
    assert f"most, {maps[1, 1, 4].max():.3f}," in words.inner_text()


def fields():
    """Maps (3 places, 6, 4) of one network and (2, 6, 4) of another, with their tables."""
    made = np.random.default_rng(2).uniform(0, 3, (3, 6, 4))
    places = pd.DataFrame({"name": ["in", "middle", "out"], "depth": [0, 0.5, 1.0], "row": 3.0, "column": 2.0})
    places["radius"] = [0.51, 1.26, 2.04]
    return {"ViT": made, "ResNet": made[:2] / 7}, {"ViT": places, "ResNet": places[:2]}


def test_fields_without_their_places_are_refused():
    maps, places = fields()
    with pytest.raises(ValueError, match="ViT: 3 maps and 2 places"):
        explorers.field_maps("Field", maps, {**places, "ViT": places["ResNet"]})
    for wrong in (maps["ViT"] - 3, maps["ViT"] * np.array([1, 0, 1])[:, None, None]):
        with pytest.raises(ValueError, match="ViT: a map is negative somewhere, or positive nowhere"):
            explorers.field_maps("Field", {"ViT": wrong}, places)


@pytest.mark.browser
def test_a_browser_says_of_a_place_how_far_it_sees(browser, tmp_path):
    """By slider, by pointer and by keyboard."""
    script = (files.ROOT / "book" / "_static" / "explorers.js").read_text(encoding="utf-8")
    maps, places = fields()
    text = explorers.field_maps("Field", maps, places)._repr_html_()
    page_file = tmp_path / "page.html"
    page_file.write_text(f"<!doctype html><meta charset=utf-8>{text}<script>{script}</script>")
    page = browser.new_page(viewport={"width": 390, "height": 1000})
    page.goto(page_file.as_uri())
    words, canvas, place = page.locator(".explorer-words"), page.locator("canvas"), page.get_by_role("slider")
    assert words.inner_text().startswith("Field of ViT, in (depth 0.00): half of its mass lies within 0.5 px")
    place.press("ArrowRight")
    assert "ViT, middle (depth 0.50): half of its mass lies within 1.3 px" in words.inner_text()
    assert place.get_attribute("aria-valuetext") == "middle, depth 0.50"
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 3.5 / 4, box["y"] + box["height"] * 1.5 / 6)
    value = maps["ViT"][1, 1, 3] / maps["ViT"][1].max()
    assert words.inner_text().endswith(f"In row 1, column 3: {value:.3f} of the largest value.")
    page.get_by_role("button", name="ResNet").click()
    assert words.inner_text().startswith("Field of ResNet, in") and "In row" not in words.inner_text()
    place.press("End")
    assert "ResNet, middle" in words.inner_text()
    canvas.focus()
    for key in ("ArrowUp", "ArrowUp", "ArrowRight"):  # the first reads the centre
        page.keyboard.press(key)
    value = maps["ViT"][1, 2, 3] / maps["ViT"][1].max()
    assert words.inner_text().endswith(f"In row 2, column 3: {value:.3f} of the largest value.")
    drawn = "c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; return new Set(d).size; }"
    assert canvas.evaluate(drawn) > 10
