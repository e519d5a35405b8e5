"""What the theme's pages lack for readers who do not see them, mended in their HTML."""

import re

SIGNATURE = re.compile(r"<dl>\s*(?=<dd><em class=\"sig-param\">)(.*?)</dl>", re.DOTALL)


def mended(page: str) -> str:
    """The HTML of a page in which lists are lists.

    A signature over several lines is written as a list of definitions that has no terms; here it is plain blocks.
    """
    return SIGNATURE.sub(_blocks, page)


def _blocks(found: re.Match[str]) -> str:
    lines = found[1].replace("<dd>", '<div class="sig-line">').replace("</dd>", "</div>")
    return f'<div class="sig-lines">{lines}</div>'
