"""The pages' own scripts: figures open at their full size, by a tap, a button or the keyboard; paper folds nothing."""

import base64
import io

import pytest
from PIL import Image

from helpers import files

STATIC = files.ROOT / "book" / "_static"


@pytest.fixture
def page(browser, tmp_path):
    """A phone with two figures: one of 1000 px, of twice the pixels, and one of 200 px."""

    def figure(width, height, size, name):
        written = io.BytesIO()
        Image.new("RGB", (width, height), "#0173b2").save(written, format="png")
        source = f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
        caption = f'<figcaption><span class="caption-number">Fig. {name} </span></figcaption>'
        return f'<figure><img alt="Picture {name}" src="{source}" {size}>{caption}</figure>'

    wide, narrow = figure(2000, 600, 'style="width: 1000px; height: 300px"', "1"), figure(200, 100, "", "2")
    style, script = ((STATIC / name).read_text(encoding="utf-8") for name in ("book.css", "pictures.js"))
    (tmp_path / "page.html").write_text(
        f"<!doctype html><meta charset=utf-8><style>{style}</style><script>{script}</script>"
        f'<article class="bd-article">{wide}{narrow}</article>',
        encoding="utf-8",
    )
    opened = browser.new_page(viewport={"width": 390, "height": 700}, has_touch=True)
    opened.goto((tmp_path / "page.html").as_uri())
    opened.locator("button.enlarge:visible").wait_for()
    yield opened
    opened.close()


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_drawing_that_is_opened_is_as_dark_as_on_the_page_and_a_map_is_not(page, theme):
    page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    button, dialog = page.get_by_role("button", name="Full size: Fig. 1"), page.locator("dialog.picture")
    for is_drawing in (False, True):
        page.evaluate(
            f"document.querySelector('figure img').toggleAttribute('data-drawing', {str(is_drawing).lower()})"
        )
        on_the_page, opened = (
            f"getComputedStyle(document.querySelector('{of} img')).filter" for of in ("figure", "dialog")
        )
        button.click()
        assert page.evaluate(opened) == page.evaluate(on_the_page)
        assert (page.evaluate(opened) != "none") == (theme == "dark" and is_drawing)
        dialog.get_by_role("button", name="Close").click()


FOCUSED = "button => button === document.activeElement"


@pytest.mark.browser
def test_only_a_figure_that_is_shown_smaller_has_a_button(page):
    assert page.locator("button.enlarge:visible").count() == 1
    shown = page.get_by_alt_text("Picture 1").bounding_box()
    assert shown["width"] <= 390 and shown["height"] < 160  # as wide as the page, and not drawn out
    assert page.get_by_role("button", name="Full size: Fig. 1").is_visible()
    page.set_viewport_size({"width": 1300, "height": 700})
    page.wait_for_function("!document.querySelector('button.enlarge:not([hidden])')")


@pytest.mark.browser
def test_a_figure_opens_and_closes_by_keyboard(page):
    button, dialog = page.get_by_role("button", name="Full size: Fig. 1"), page.locator("dialog.picture")
    assert not dialog.is_visible()
    button.focus()
    page.keyboard.press("Enter")
    assert dialog.get_by_alt_text("Picture 1").bounding_box()["width"] == 1000
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert dialog.get_by_role("button", name="Close").evaluate(FOCUSED)
    page.keyboard.press("Escape")
    assert not dialog.is_visible() and button.evaluate(FOCUSED)


@pytest.mark.browser
def test_a_figure_opens_and_closes_by_a_tap(page):
    button, dialog = page.get_by_role("button", name="Full size: Fig. 1"), page.locator("dialog.picture")
    page.locator("article").get_by_alt_text("Picture 1").tap()
    assert dialog.is_visible()
    dialog.get_by_alt_text("Picture 1").tap(position={"x": 40, "y": 40})
    assert not dialog.is_visible() and button.evaluate(FOCUSED)
    page.locator("article").get_by_alt_text("Picture 2").tap()
    assert not dialog.is_visible()  # it is at its full size already


@pytest.mark.browser
def test_what_is_folded_is_printed(browser, tmp_path):
    script = (STATIC / "book.js").read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(
        f"<!doctype html><script>const DOCUMENTATION_OPTIONS = {{}};</script><script>{script}</script>"
        "<details><summary>a</summary>A</details><details open><summary>b</summary>B</details>"
    )
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    unfolded = "[...document.querySelectorAll('details')].map(d => d.open)"
    assert page.evaluate(unfolded) == [False, True]
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(unfolded) == [True, True]
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(unfolded) == [False, True]
    page.close()


@pytest.mark.browser
def test_a_formula_wider_than_the_page_is_reached_by_keyboard(browser, tmp_path):
    script = (STATIC / "book.js").read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(
        f"<!doctype html><script>const DOCUMENTATION_OPTIONS = {{}};</script><script>{script}</script>"
        '<article><div class="math" style="overflow-x: auto"><div style="width: 600px">a</div></div></article>'
    )
    page = browser.new_page(viewport={"width": 390, "height": 700})
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_function("document.querySelector('.math').tabIndex === 0")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "math"
    page.set_viewport_size({"width": 900, "height": 700})
    page.wait_for_function("document.querySelector('.math').tabIndex === -1")
    page.close()
