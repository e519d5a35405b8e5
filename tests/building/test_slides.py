"""Slides from a chapter's own figures: one for each, under its heading, without another host; figures as files."""

import base64
import io

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from helpers.building import execution, site, slides
from helpers.building.execution import BookError


def picture(colour):
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(stream, "PNG")
    return stream.getvalue()


RED, BLUE = picture("red"), picture("blue")


def figure(name, caption, *pngs):
    cell = new_code_cell("draw()", metadata={"tags": ["hide-input"]})
    cell.metadata["mystnb"] = {"figure": {"name": name, "caption": caption}, "image": {"alt": f'What "{name}" shows.'}}
    encoded = [base64.b64encode(png).decode() for png in pngs]
    cell.outputs = [new_output("display_data", {"image/png": one}) for one in encoded]
    return cell


def chapter():
    fence = "```\n"
    return new_notebook(
        cells=[
            new_markdown_cell("# A chapter\n\nText."),
            figure("fig-first", "The *first*, of $n < 3$ images.", RED),
            new_markdown_cell(f"## A question\n\nText.\n\n### A part & more\n\n{fence}python\n# no heading\n{fence}"),
            new_code_cell("1", outputs=[new_output("execute_result", {"text/plain": "1"})]),
            figure("fig-second", "The second.", RED, BLUE),
            new_markdown_cell(f"## Exercises\n\n{fence[:3]}{{solution-start}} ex\n{fence}"),
            figure("fig-solution", "Not yet.", RED),
            new_markdown_cell(f"{fence[:3]}{{solution-end}}\n{fence}"),
        ]
    )


def test_a_slide_is_a_figure_under_the_heading_that_it_stands_under():
    found = list(slides.slides(chapter()))
    assert [(one.heading, one.name) for one in found] == [("A chapter", "fig-first"), ("A part & more", "fig-second")]
    assert [one.png for one in found] == [RED, BLUE]  # the last picture of a cell


def test_the_deck_has_title_figures_captions_and_alternative_texts():
    page = BeautifulSoup(slides.deck("A chapter", list(slides.slides(chapter()))), "html.parser")
    sections = page.select(".slides > section")
    assert [one.select_one("h1, h2").get_text() for one in sections] == ["A chapter", "A chapter", "A part & more"]
    assert [one["alt"] for one in page.select("section img")] == ['What "fig-first" shows.', 'What "fig-second" shows.']
    assert sections[1].figcaption.get_text() == r"The first, of \(n < 3\) images."
    assert "CC BY" in sections[0].get_text()


@pytest.fixture
def made(tmp_path, root):
    for name in ("notebooks", "build/executed"):
        (tmp_path / name).mkdir(parents=True)
        nbformat.write(chapter(), tmp_path / name / "01_one.ipynb")
    (tmp_path / "book" / "_static").mkdir(parents=True)
    (tmp_path / "book" / "_static" / "mathjax").symlink_to(root / "book" / "_static" / "mathjax")
    return slides.make(tmp_path)


def test_decks_ask_no_other_host_and_figures_are_files_with_their_licence(made):
    page = made / "01_one.html"
    assert site.request_faults(page) == [] and site.link_faults(made, page) == []
    assert (made / "figures" / "fig-second.png").read_bytes() == BLUE
    table = pd.read_csv(made / "figures.csv")
    assert list(table["name"]) == ["fig-first", "fig-second"] and list(table["chapter"]) == ["01_one"] * 2
    assert "creativecommons.org/licenses/by/4.0" in (made / "LICENCE.txt").read_text()


@pytest.mark.browser
def test_a_browser_turns_the_slides(made, browser):
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{(made / '01_one.html').as_uri()}#/1")
    page.wait_for_function("Reveal.isReady()")
    assert page.evaluate("Reveal.getTotalSlides()") == 3
    page.wait_for_selector("mjx-container")  # the caption's formula
    page.keyboard.press("ArrowRight")
    assert page.locator("section.present h2").inner_text() == "A part & more"
    page.close()


def test_what_was_not_executed_is_named(tmp_path):
    (tmp_path / "notebooks").mkdir()
    bare = chapter()
    bare.cells[1].outputs = []
    nbformat.write(bare, tmp_path / "notebooks" / "01_one.ipynb")
    with pytest.raises(BookError, match="01_one was not executed: run make book first"):
        slides.make(tmp_path)
    with pytest.raises(BookError, match="no chapter 02_two; there are 01_one"):
        slides.make(tmp_path, ["02_two"])
    with pytest.raises(BookError, match="fig-first has no picture"):
        list(slides.slides(bare))


def test_every_figure_of_the_chapters_gets_a_slide(root):
    """Also those of chapters that were not executed here: with a picture put in for each."""
    for path in execution.chapters(root):
        notebook, names = nbformat.read(path, as_version=4), []
        for cell in notebook.cells:
            if "mystnb" in cell.metadata:
                names.append(cell.metadata.mystnb.figure.name)
                cell.outputs = [new_output("display_data", {"image/png": base64.b64encode(RED).decode()})]
        found = list(slides.slides(notebook))
        assert [one.name for one in found] == names
        assert all(one.heading and not one.heading.startswith("#") for one in found)
