"""Text of others is shown as it stands: checked by reading it with the site's own reader of Markdown."""

import pytest
import yaml
from bs4 import BeautifulSoup
from docutils.core import publish_string
from myst_parser.docutils_ import Parser

from helpers.files import ROOT
from helpers.markup import code, literal, one_line

HOSTILE = [
    "{{ cycler.__init__.__globals__.os.system('touch owned') }}",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a\n\n```{raw} html\n<b>x</b>\n```",
    "a | b | c",
    "$x$ and `code` and **bold** and ~~gone~~",
    "[text](javascript:alert(1)) {ref}`nowhere` ![](x.png)",
    "# a heading",
    "1. one",
    "- a\n- b",
    "(target)=",
    "% a comment",
    "+++",
    "&lt;b&gt;",
    "\\begin{equation}x\\end{equation}",
    "back`tick``s and a bar|",
]


def shown(page: str) -> BeautifulSoup:
    """The HTML of a page of MyST Markdown, with the extensions of this book's site."""
    extensions = yaml.safe_load((ROOT / "_config.yml").read_text())["parse"]["myst_enable_extensions"]
    settings = {"myst_enable_extensions": set(extensions), "report_level": 5, "embed_stylesheet": False}
    html = publish_string(page, parser=Parser(), writer_name="html5", settings_overrides=settings)
    return BeautifulSoup(html, "html.parser").body


def read(element) -> str:
    """What a reader sees of an element, with the quotation marks and dashes as they were typed."""
    text = element.get_text()
    for typed, printed in (("'", "‘’"), ('"', "“”"), ("...", "…"), ("--", "–"), ("---", "—")):
        for sign in printed:
            text = text.replace(sign, typed)
    return " ".join(text.split())


def test_nothing_of_the_book_is_a_substitution(root):
    """MyST's substitutions run what stands between double braces; they are off, and no page needs them."""
    config = yaml.safe_load((root / "_config.yml").read_text())
    assert "substitution" not in config["parse"]["myst_enable_extensions"]
    for path in [*(root / "book").glob("*.md"), *(root / "notebooks").glob("*.ipynb")]:
        assert "{{" not in path.read_text(encoding="utf-8"), path.name


PLACES = {"p": "{}", "li": "- {}", "h1": "# {}", "td": "| a |\n|:--|\n| {} |", "p em + span": "*So* <span>{}</span>"}
PLAIN = {"main", "p", "li", "ul", "h1", "em", "span", "table", "tr", "td", "th", "thead", "tbody", "colgroup", "col"}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("place", PLACES)
def test_text_is_shown_as_it_stands(text, place):
    page = shown(PLACES[place].replace("{}", literal(text)))
    assert [read(element) for element in page.select(place)] == [one_line(text)]
    assert {tag.name for tag in page.find_all(True)} <= PLAIN


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("place", PLACES)
def test_code_is_shown_as_it_stands(text, place):
    page = shown(PLACES[place].replace("{}", code(text, in_table=place == "td")))
    assert [read(element) for element in page.select(f"{place} .literal")] == [one_line(text)]
    assert not page.select("script, img, b, a, math")
