"""What the theme's pages lack for readers who do not see them, mended in their HTML."""

import re

EMPTY = re.compile(r"<th\b([^>]*)>((?:\s|&nbsp;|&#160;|\u00a0|<p>|</p>)*)</th>")
LOGO = re.compile(r'<div class="sidebar-primary-item">(\s*<a class="navbar-brand logo".*?</a>\s*)</div>', re.DOTALL)
SUMMARY = re.compile(r'<summary>(?=<span class="toctree-toggle")')
SIGNATURE = re.compile(r"<dl>\s*(?=<dd><em class=\"sig-param\">)(.*?)</dl>", re.DOTALL)


def mended(page: str) -> str:
    """The HTML of a page in which lists are lists, headers of tables say something, and all is within a landmark.

    A signature over several lines is written as a list of definitions that has no terms; here it is plain blocks. A
    header without words is a cell. What folds a part of the table of contents says so. The book's name above it is a
    landmark for itself. Entries of a bibliography are items of its list.
    """
    page = page.replace(' role="doc-biblioentry"', ' role="listitem"')
    page = SUMMARY.sub('<summary aria-label="Its pages">', page)
    page = LOGO.sub(r'<nav class="sidebar-primary-item" aria-label="Book">\1</nav>', page)
    return SIGNATURE.sub(_blocks, EMPTY.sub(r"<td\1>\2</td>", page))


def _blocks(found: re.Match[str]) -> str:
    lines = found[1].replace("<dd>", '<div class="sig-line">').replace("</dd>", "</div>")
    return f'<div class="sig-lines">{lines}</div>'
