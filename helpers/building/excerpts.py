"""The words of a built site's pages in one script, from which its search cuts an excerpt of each page that it finds.

Sphinx's own search fetches every page that it found, which a browser refuses where the site is opened as files, and
which over a network costs megabytes for two lines. The page of the search alone loads the script.
"""

import json
import re
from pathlib import Path

from bs4 import BeautifulSoup

WORDS = Path("_static", "page_words.js")
SCRIPT = Path("_static", "search_excerpts.js")  # of book/: it shows the excerpts
INDEX = re.compile(r'<script[^>]*\bsrc="([^"]*)searchindex\.js[^"]*"[^>]*></script>')
SILENT = ".headerlink, script, style, details.hide > summary"  # what is no word of a page
BLOCKS = "h1, h2, h3, h4, h5, h6, p, li, dt, dd, th, td, pre, summary, figcaption"  # words end with them


def words(page: str) -> tuple[str, dict[str, list[int]]]:
    """The words of a page's article on one line; and where in it each section, by its id, begins and ends.

    Nothing for a page without an article.
    """
    article = BeautifulSoup(page, "html.parser").select_one("article")
    if article is None:
        return "", {}
    for silent in article.select(SILENT):
        silent.extract()
    for block in article.select(BLOCKS):
        block.append(" ")
    text, start = " ".join(article.get_text().split()), 0
    places: dict[str, list[int]] = {}
    for section in article.select("section[id]"):
        own = " ".join(section.get_text().split())
        start = text.index(own, start)  # a section stands within the one before it, or after it
        places[str(section["id"])] = [start, start + len(own)]
    return text, places


def write(site: Path) -> None:
    """Write ``WORDS`` of a built site: by each page's path without suffix, what ``words`` gives."""
    known = {}
    for page in sorted(site.rglob("*.html")):
        path = page.relative_to(site)
        if "_static" not in path.parts:
            known[path.with_suffix("").as_posix()] = words(page.read_text(encoding="utf-8"))
    data = json.dumps(known, ensure_ascii=False, separators=(",", ":"))
    (site / WORDS).write_text(f"Search.pages = {data};\n", encoding="utf-8")


def loaded(page: str) -> str:
    """The HTML of the page of the search, which after its index loads the words and what shows them; others as is."""

    def followed(index: re.Match[str]) -> str:
        scripts = (f'\n  <script src="{index[1]}{path.as_posix()}"></script>' for path in (WORDS, SCRIPT))
        return index[0] + "".join(scripts)

    return INDEX.sub(followed, page)
