"""What a page says of itself to browsers and search engines: a description, one viewport, the first page's title."""

import html
import re
from pathlib import Path

from bs4 import BeautifulSoup

VIEWPORT = re.compile(r'\s*<meta name="viewport"[^>]*>')
LENGTH = 160  # characters of a description, about what search engines show


def description(page: str) -> str:
    """The first paragraph of a page's text, as plain words; cut before the word that would make it too long.

    Nothing for a page without a paragraph.
    """
    first = BeautifulSoup(page, "html.parser").select_one("article section > p")
    words = " ".join(first.get_text().split()) if first else ""
    if len(words) <= LENGTH:
        return words
    return words[: LENGTH - 1].rsplit(" ", 1)[0].rstrip(",;:–") + "…"


def with_head(page: str) -> str:
    """The HTML of a page with the first of its viewports alone, and with a description."""
    tags = VIEWPORT.findall(page)
    if not tags:
        return page
    said = description(page)
    meta = f'\n    <meta name="description" content="{html.escape(said)}">' if said else ""
    start, *rest = VIEWPORT.split(page)
    return start + tags[0] + meta + "".join(rest)


def forwarding(title: str, address: str) -> str:
    """A page that leads on to another at once, and says so where a browser does not follow."""
    title, address = html.escape(title), html.escape(address)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta http-equiv="refresh" content="0; url={address}">\n</head>\n'
        f'<body><p><a href="{address}">{title}</a></p></body>\n</html>\n'
    )


def complete(site: Path, title: str, first: str) -> None:
    """Complete the heads of all pages of a built site, and make its ``index.html`` lead to the page ``first``."""
    for page in site.rglob("*.html"):
        if "_static" not in page.relative_to(site).parts:
            page.write_text(with_head(page.read_text(encoding="utf-8")), encoding="utf-8")
    (site / "index.html").write_text(forwarding(title, f"{first}.html"), encoding="utf-8")
