"""The heads of a built site's pages: what a page says of itself, and no script that it does not need.

A page describes itself to browsers, search engines and whoever shows a preview of a link to it.
"""

import html
import re
from pathlib import Path

from bs4 import BeautifulSoup

from helpers.building import access, excerpts, icons, pictures

TITLE = re.compile(r"<title>(.*?)</title>", re.DOTALL)  # as HTML
FORMULA = re.compile(r'class="(?:[^"]*\s)?math(?:\s[^"]*)?"')
MATHJAX = re.compile(
    r'\s*<script[^>]*\bsrc="[^"]*/mathjax/[^"]*"[^>]*></script>|\s*<script>\s*window\.MathJax\s*=.*?</script>',
    re.DOTALL,
)
SEARCH = re.compile(r'\s*<script[^>]*\bsrc="[^"]*\b(?:searchtools|language_data|searchindex)\.js[^"]*"[^>]*></script>')
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


def with_head(page: str, picture: str = "") -> str:
    """The HTML of a page with the first of its viewports alone, a description, and what a preview of it shows.

    ``picture``: the address of the preview's picture, if there is one.
    """
    tags = VIEWPORT.findall(page)
    if not tags:
        return page
    said, title = html.escape(description(page)), TITLE.search(page)
    meta = f'\n    <meta name="description" content="{said}">' if said else ""
    shown = {"og:type": "article", "og:title": title[1].strip() if title else "", "og:description": said}
    if picture:
        shown |= {"og:image": html.escape(picture), "og:image:alt": pictures.ALT, "twitter:card": "summary_large_image"}
        for name, text in shown.items():
            key = "property" if name.startswith("og:") else "name"
            meta += f'\n    <meta {key}="{name}" content="{text}">' if text else ""
    start, *rest = VIEWPORT.split(page)
    return start + tags[0] + meta + "".join(rest)


def without_idle_scripts(page: str) -> str:
    """The HTML of a page without scripts that do nothing on it.

    They are that of icons, the search's where nothing is searched, and MathJax where there is no formula.
    """
    page = icons.without_script(page)
    page = page if 'id="search-results"' in page else SEARCH.sub("", page)
    return page if FORMULA.search(page) else MATHJAX.sub("", page)


def pages_address(repository: str | None) -> str:
    """Where GitHub serves the site of a repository whose address is known; nothing where it is not."""
    found = re.fullmatch(r"https://github\.com/([^/]+)/([^/]+)", repository or "")
    return f"https://{found[1].lower()}.github.io/{found[2]}/" if found else ""


def forwarding(title: str, address: str) -> str:
    """A page that leads on to another at once, and says so where a browser does not follow."""
    title, address = html.escape(title), html.escape(address)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta http-equiv="refresh" content="0; url={address}">\n</head>\n'
        f'<body><p><a href="{address}">{title}</a></p></body>\n</html>\n'
    )


def complete(site: Path, title: str, first: str, repository: str | None = None) -> None:
    """Complete a built site: heads, icons, pictures, what the search shows, and an ``index.html`` that leads on.

    Args:
        site: the folder with the site's HTML.
        title: the book's title.
        first: the page to which ``index.html`` leads, without suffix.
        repository: the address of the book's repository, where it is known: a preview's picture needs a whole address.
    """
    pictures.lighten(site)
    drawings = pictures.drawings(site)
    excerpts.write(site)
    preview, public = pictures.preview(site, title), pages_address(repository)
    for page in site.rglob("*.html"):
        path = page.relative_to(site)
        if "_static" not in path.parts:
            start = public or "../" * (len(path.parts) - 1)
            picture = start + pictures.PREVIEW.as_posix() if preview else ""
            text = excerpts.loaded(access.mended(without_idle_scripts(page.read_text(encoding="utf-8"))))
            text = pictures.marked(text, drawings)
            page.write_text(with_head(text, picture), encoding="utf-8")
    icons.cut(site)
    (site / "index.html").write_text(forwarding(title, f"{first}.html"), encoding="utf-8")
