"""What pages say of themselves: one viewport, a description in whole words, a title of the page that leads on."""

from bs4 import BeautifulSoup
from PIL import Image

from helpers.building import head, pictures

VIEW = '<meta name="viewport" content="width=device-width, initial-scale=1.0" />'
PAGE = f"""<!doctype html><html><head>
    {VIEW}<meta name="viewport" content="width=device-width, initial-scale=1" />
  <title>A</title>
  <meta name="viewport" content="width=device-width, initial-scale=1"/></head>
<body><p>menu</p><article><section><h1>A</h1><div><p>A note.</p></div>
<p>How <em>networks</em> see
 "edges" &amp; more: {"many words, " * 20}</p><p>Then.</p></section></article></body></html>"""


def test_a_page_has_one_viewport_and_a_description_of_whole_words():
    made = BeautifulSoup(head.with_head(PAGE), "html.parser")
    (view,) = made.find_all("meta", attrs={"name": "viewport"})
    assert view["content"] == "width=device-width, initial-scale=1.0"  # the first of the three
    (said,) = (tag["content"] for tag in made.find_all("meta", attrs={"name": "description"}))
    assert said.startswith('How networks see "edges" & more: many words,') and said.endswith(("words…", "many…"))
    assert 120 < len(said) <= head.LENGTH
    assert made.article == BeautifulSoup(PAGE, "html.parser").article and made.title.get_text() == "A"


SCRIPTS = """<script>window.MathJax = {"options": {"enableMenu": false}}</script>
<script defer="defer" src="../_static/mathjax/tex-chtml.js"></script><script src="../_static/book.js"></script>"""


def test_a_page_asks_for_mathjax_where_it_has_a_formula_and_only_there():
    bare = f'<section class="tex2jax_ignore mathjax_ignore">{SCRIPTS}<code>class="a"</code></section>'
    left = head.without_idle_scripts(bare)
    assert "MathJax" not in left and "tex-chtml" not in left and "book.js" in left
    for formula in ('<span class="math notranslate nohighlight">', '<div class="output math">'):
        assert head.without_idle_scripts(bare + formula) == bare + formula


def test_a_page_asks_for_the_words_of_all_pages_where_it_searches_and_only_there():
    names = ("_static/searchtools.js", "_static/language_data.js?v=1", "searchindex.js")
    search = "".join(f'<script src="../{name}"></script>' for name in names)
    assert head.without_idle_scripts(f"<p>{search}</p>") == "<p></p>"
    searching = f'{search}<div id="search-results"></div>'
    assert head.without_idle_scripts(searching) == searching


def test_a_preview_of_a_page_says_what_the_page_says():
    made = BeautifulSoup(head.with_head(PAGE, "../_static/preview.png"), "html.parser")
    said = {tag["property"]: tag["content"] for tag in made.find_all("meta", attrs={"property": True})}
    (description,) = (tag["content"] for tag in made.find_all("meta", attrs={"name": "description"}))
    assert said["og:title"] == "A" and said["og:description"] == description
    assert said["og:image"] == "../_static/preview.png" and said["og:image:alt"] == pictures.ALT
    assert head.pages_address("https://github.com/Some/book") == "https://some.github.io/book/"
    assert head.pages_address(None) == head.pages_address("https://example.org/some/book") == ""


def test_a_short_paragraph_is_said_whole_and_a_page_without_one_says_nothing():
    assert head.description("<article><section><p>Short, and whole.</p></section></article>") == "Short, and whole."
    bare = f"<head>{VIEW}</head><body><p>menu</p></body>"
    assert head.with_head(bare) == bare and head.with_head("<p>no head</p>") == "<p>no head</p>"


def test_the_first_page_leads_on_and_has_a_title(tmp_path):
    (tmp_path / "_static").mkdir()
    chapter = tmp_path / pictures.PAGE
    chapter.parent.mkdir()
    chapter.write_text(f'<figure id="{pictures.FIGURE}"><img src="a.png"></figure>')
    Image.new("RGB", (60, 30)).save(chapter.with_name("a.png"))
    (tmp_path / "_static" / "demo.html").write_text(PAGE)
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "a.html").write_text(PAGE)
    head.complete(tmp_path, "See & <learn>", "book/a", "https://github.com/some/book")
    first = BeautifulSoup((tmp_path / "index.html").read_text(), "html.parser")
    assert first.title.get_text() == first.a.get_text() == "See & <learn>" and first.a["href"] == "book/a.html"
    assert first.find("meta", attrs={"http-equiv": "refresh"})["content"] == "0; url=book/a.html"
    assert (tmp_path / "_static" / "demo.html").read_text() == PAGE
    assert (tmp_path / "book" / "a.html").read_text() == head.with_head(
        PAGE, "https://some.github.io/book/_static/preview.png"
    )
    assert (tmp_path / pictures.PREVIEW).is_file()
