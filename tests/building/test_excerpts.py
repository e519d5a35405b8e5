"""The search's excerpts: the words of pages and sections, and in a browser beneath each hit, from files and by http."""

import json
import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from helpers import files
from helpers.building import excerpts, head

PAGE = """<html><body><p>menu</p><article><section id="top"><h1>A page<a class="headerlink">#</a></h1><p>Some
 <em>words</em>.</p><section id="first"><h2>Same</h2></section><section id="second"><h2>Same</h2><p>more</p></section>
</section><script>run()</script><details class="hide"><summary>Show code</summary>x = 1</details></article></body>"""


def test_words_are_those_of_the_article_and_sections_are_found_in_them():
    text, places = excerpts.words(PAGE)
    assert text == "A page Some words. Same Same more x = 1"
    said = {name: text[start:end] for name, (start, end) in places.items()}
    assert said == {"top": "A page Some words. Same Same more", "first": "Same", "second": "Same more"}
    assert excerpts.words("<p>no article</p>") == ("", {})


def test_the_page_of_the_search_alone_loads_them():
    assert excerpts.loaded(PAGE) == PAGE
    page = excerpts.loaded('<script src="../searchindex.js"></script>')
    assert page.index("searchindex.js") < page.index('"../_static/page_words.js"') < page.index("search_excerpts.js")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site of two pages by Sphinx in the book's theme, completed as the book is."""
    source = tmp_path_factory.mktemp("source")
    pages = {
        "index": f"A book\n======\n\n{'Long before. ' * 40}Kernels <b> align & turn.\n\n.. toctree::\n\n   other\n",
        "other": "Other\n=====\n\nNothing here.\n\nOf kernels\n----------\n\nA width is chosen.\n",
    }
    for name, text in pages.items():
        (source / f"{name}.rst").write_text(text)
    static = source / "static"
    static.mkdir()
    for name in ("book.js", excerpts.SCRIPT.name):
        shutil.copy(files.ROOT / "book" / "_static" / name, static)
    (source / "conf.py").write_text(
        "project = 'Book'\nhtml_theme = 'sphinx_book_theme'\nhtml_context = {'default_mode': 'auto'}\n"
        "html_static_path = ['static']\nhtml_js_files = ['book.js']\n"
    )
    built = source / "html"
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-E", source, built], check=True, timeout=600)
    head.complete(built, "Book", "index")
    (built / "favicon.ico").touch()  # a browser asks for it by itself
    return built


@pytest.fixture
def server(site):
    """The address of the site by http."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=site)) as serving:
        Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_what_is_kept_is_what_the_pages_say(site):
    kept = (site / excerpts.WORDS).read_text(encoding="utf-8")
    known = json.loads(kept.removeprefix("Search.pages = ").removesuffix(";\n"))
    text, places = known["other"]
    assert text == "Other Nothing here. Of kernels A width is chosen." and list(places) == ["other", "of-kernels"]
    for name in ("index", "other"):
        assert "page_words" not in (site / f"{name}.html").read_text(encoding="utf-8")


@pytest.mark.browser
@pytest.mark.parametrize("by", ["file", "http"])
def test_a_hit_shows_where_the_word_stands_and_no_page_is_fetched(browser, site, server, by):
    page, asked, wrong = browser.new_page(), [], []
    page.set_default_timeout(120_000)
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    start = site.as_uri() if by == "file" else server
    page.goto(f"{start}/search.html?q=kernels")
    page.wait_for_function("document.querySelector('#search-results').innerText.includes('found')")
    hits = page.locator("#search-results li")
    said = dict(zip(hits.locator("a").all_inner_texts(), hits.locator("p.context").all_inner_texts(), strict=True))
    assert said["Other > Of kernels"] == "Of kernels A width is chosen."
    assert said["Other"] == "Other Nothing here. Of kernels A width is chosen."
    (first,) = (text for text in said.values() if "<b>" in text)
    assert first.startswith("...") and "Kernels <b> align & turn." in first and len(first) < 260
    assert set(page.locator("#search-results .highlighted").all_inner_texts()) == {"kernels", "Kernels"}
    pages = [address for address in asked if ".html" in address]
    assert pages == [f"{start}/search.html?q=kernels"] and wrong == []
    assert all(address.startswith((start, "data:")) for address in asked)
    page.close()
