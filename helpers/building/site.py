"""Check a built site: pages, figures, links; that reading it asks nothing of another host, and runs nothing foreign."""

import json
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from bs4 import BeautifulSoup, Tag

ALT_LENGTH = 40  # characters; less does not describe a figure
LOADS = {  # elements by which a page makes the browser fetch something, and the attribute that says what
    "script": "src",
    "img": "src",
    "source": "src",
    "iframe": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
}
FETCHED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "preconnect", "dns-prefetch", "manifest"}
EMBEDS = ("iframe", "frame", "object", "embed", "applet", "base", "portal")  # elements that no page of this book needs
RUNNING = ("javascript:", "vbscript:", "data:text/html")  # addresses that run scripts
SETTINGS = ("DOCUMENTATION_OPTIONS.pagename", "window.MathJax")  # what scripts of the theme set on each page
CSS_ADDRESS = re.compile(r"""(?:url\(\s*|@import\s+)["']?([^"')\s]+)""")


@cache
def parse(page: Path) -> BeautifulSoup:
    """The elements of a page; each attribute is one string."""
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser", multi_valued_attributes=None)


def attribute(tag: Tag, name: str) -> str:
    """What an attribute of an element says; nothing where it is missing."""
    return str(tag.get(name) or "")


@cache
def anchors(page: Path) -> frozenset[str]:
    """Every name on a page that a link can lead to."""
    return frozenset(attribute(tag, "id") or attribute(tag, "name") for tag in parse(page).select("[id], a[name]"))


def is_remote(address: str) -> bool:
    """Whether fetching an address, as a page or style sheet writes it, leaves the site."""
    return bool(urlsplit(address).netloc) or urlsplit(address).scheme in ("http", "https", "ws", "wss", "ftp")


def figure_faults(page: Path) -> list[str]:
    """Images without an alternative text of their own: none, too short, a file's name, or the caption again."""
    found = []
    for image in parse(page).select("article img"):
        alt = " ".join(attribute(image, "alt").split())
        figure = image.find_parent("figure")
        caption = figure.find("figcaption") if figure else None
        words = " ".join(caption.get_text(" ").removesuffix("#").split()) if caption else ""
        if len(alt) < ALT_LENGTH or alt == image.get("src") or re.fullmatch(r"\S+\.(png|svg|jpe?g)", alt):
            found.append(f"image {image.get('src')} has no alternative text of {ALT_LENGTH} characters: {alt!r}")
        elif alt in words:
            found.append(f"image {image.get('src')}: its alternative text only repeats its caption")
    return found


def link_faults(site: Path, page: Path) -> list[str]:
    """Links within the site that lead nowhere, and things loaded from the site that are not there."""
    found = []
    for tag, name in [("a", "href"), ("link", "href"), *LOADS.items()]:
        for element in parse(page).find_all(tag, attrs={name: True}):
            written = attribute(element, name)
            address, fragment = urldefrag(written)
            if is_remote(address) or urlsplit(address).scheme:
                continue
            path = unquote(urlsplit(address).path)
            target = (page.parent / path).resolve() if path else page
            if target.is_dir():
                target = target / "index.html"
            if not target.is_file() or not target.is_relative_to(site.resolve()):
                found.append(f"<{tag}> leads to {written}, which is not there")
            elif fragment and target.suffix == ".html" and unquote(fragment) not in anchors(target):
                found.append(f"<{tag}> leads to {written}: no such place on that page")
    return found


def request_faults(page: Path) -> list[str]:
    """What a browser would fetch from another host to show a page."""
    loaded = [attribute(tag, name) for kind, name in LOADS.items() for tag in parse(page).select(f"{kind}[{name}]")]
    for tag in parse(page).select("[srcset]"):
        loaded += [part.split()[0] for part in attribute(tag, "srcset").split(",") if part.split()]
    links = parse(page).select("link[href]")
    loaded += [attribute(tag, "href") for tag in links if FETCHED_LINKS & set(attribute(tag, "rel").split())]
    styles = [tag.get_text() for tag in parse(page).find_all("style")]
    styles += [attribute(tag, "style") for tag in parse(page).select("[style]")]
    loaded += [address for text in styles for address in CSS_ADDRESS.findall(text)]
    return [f"asks another host for {address}" for address in loaded if is_remote(address)]


def is_setting(script: str) -> bool:
    """Whether a script does no more than to give one of the two ``SETTINGS`` a value in JSON or a plain string."""
    name, _, value = script.strip().rstrip(";").partition("=")
    value = re.sub(r"^'([^'\\\n]*)'$", r'"\1"', value.strip())
    try:
        json.loads(value)
    except ValueError:
        return False
    return name.strip() in SETTINGS


def is_own_file(address: str) -> bool:
    """Whether the file of a script is where the site keeps its own: in ``_static``, or the index of the search."""
    return bool(re.match(r"(\.\./)*(_static/|searchindex\.js$)", urlsplit(address).path))


def theme_scripts(site: Path) -> frozenset[str]:
    """The scripts that the theme writes into its pages: those of the page of the search, which shows nothing else."""
    page = site / "search.html"
    scripts = parse(page).find_all("script") if page.is_file() else []
    return frozenset(script.get_text().strip() for script in scripts)


def markup_faults(site: Path, page: Path) -> list[str]:
    """Markup by which text of others could make a reader's browser run or show what is not the book's own.

    That is a script but the theme's, or any within the text; an attribute that runs one; a frame or an embedded
    object; a page that leads on by itself, but for the site's first one.
    """
    found = []
    for script in parse(page).find_all("script"):
        address, text = attribute(script, "src"), script.get_text().strip()
        if address and is_remote(address):
            continue  # request_faults says so
        own = is_own_file(address) if address else text in theme_scripts(site) or is_setting(text)
        if script.find_parent("article") or not own:
            found.append(f"has a script that is not the theme's: {(address or text)[:80]}")
    found += [f"has an <{tag.name}>, which no page needs" for tag in parse(page).find_all(EMBEDS)]
    for tag in parse(page).find_all(True):
        for name in tag.attrs:
            value = attribute(tag, name)
            address = re.sub(r"[\x00-\x20]", "", value).lower()
            if name.startswith("on") or name == "srcdoc" or address.startswith(RUNNING):
                found.append(f"<{tag.name}> runs a script by its attribute {name}: {value[:80]}")
    if page != site / "index.html":
        refresh = parse(page).find_all("meta", attrs={"http-equiv": re.compile("^refresh$", re.IGNORECASE)})
        found += [f"leads on by itself: {tag.get('content')}" for tag in refresh]
    return found


def error_faults(page: Path) -> list[str]:
    """Cells that show an error."""
    wrong = parse(page).select("div.traceback, span.papermill-error-cell, #papermill-error-cell")
    return ["shows a cell that failed"] if wrong else []


def faults(site: Path, documents: list[str]) -> list[str]:
    """Everything wrong with a built site, a line each; nothing if it can be published.

    Args:
        site: the folder with the site's HTML.
        documents: the pages that must be there, as paths without suffix.
    """
    parse.cache_clear()
    anchors.cache_clear()
    site = site.resolve()
    described: dict[str, str] = {}
    found = [f"{name}: the page is missing" for name in documents if not (site / f"{name}.html").is_file()]
    for page in sorted(site.rglob("*.html")):
        name = page.relative_to(site).as_posix()
        if name.startswith("_static/"):
            continue
        wrong = figure_faults(page) + link_faults(site, page) + request_faults(page) + error_faults(page)
        wrong += markup_faults(site, page)
        found += [f"{name}: {fault}" for fault in wrong]
        for image in parse(page).select("article img"):
            source = attribute(image, "src")
            other = described.setdefault(attribute(image, "alt"), source)
            if other != source:
                found.append(f"{name}: image {source} has the alternative text of {other}")
    for sheet in sorted(site.rglob("*.css")):
        for address in CSS_ADDRESS.findall(sheet.read_text(encoding="utf-8", errors="replace")):
            if is_remote(address):
                found.append(f"{sheet.relative_to(site).as_posix()}: asks another host for {address}")
    return found
