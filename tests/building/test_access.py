"""What is mended of the theme's HTML: lists that are none, headers that say nothing, a name outside all landmarks."""

from bs4 import BeautifulSoup

from helpers.building import access

PAGE = """<dl class="py class"><dt class="sig" id="a.B">B(
<dl>
<dd><em class="sig-param">x</em>,</dd>
<dd><em class="sig-param">y</em></dd>
</dl>
)</dt><dd><p>What it is.</p><dl class="field-list"><dt>Args</dt><dd>x</dd></dl></dd></dl>"""


def test_a_signature_is_lines_and_lists_stay_lists():
    made = BeautifulSoup(access.mended(PAGE), "html.parser")
    assert [line.get_text() for line in made.select("dt.sig div.sig-line")] == ["x,", "y"]
    assert not made.select("dt dl, dt dd") and len(made.find_all("dl")) == 2
    assert made.get_text().split() == BeautifulSoup(PAGE, "html.parser").get_text().split()
    assert access.mended("<dl><dt>a</dt><dd>b</dd></dl>") == "<dl><dt>a</dt><dd>b</dd></dl>"


def test_a_header_without_words_is_a_cell():
    table = '<tr><th class="head"><p></p></th><th class="blank" >&nbsp;</th><th></th><th>a</th><thead></thead></tr>'
    assert access.mended(table) == (
        '<tr><td class="head"><p></p></td><td class="blank" >&nbsp;</td><td></td><th>a</th><thead></thead></tr>'
    )


def test_the_books_name_is_a_landmark():
    name = '<div class="sidebar-primary-item">\n<a class="navbar-brand logo" href="a.html"><p>A</p></a>\n</div>'
    made = BeautifulSoup(access.mended(f"<div>{name}<div>b</div></div>"), "html.parser")
    assert made.nav["aria-label"] == "Book" and made.nav.a.get_text() == "A" and made.nav.find_next_sibling("div")


def test_entries_of_a_bibliography_are_items_of_its_list():
    entry = '<div role="list"><div class="citation" id="a" role="doc-biblioentry">A</div></div>'
    (item,) = BeautifulSoup(access.mended(entry), "html.parser").select("[role=list] > *")
    assert item["role"] == "listitem" and item["id"] == "a"


def test_what_folds_the_contents_has_a_name():
    toggle = '<summary><span class="toctree-toggle" role="presentation"><i></i></span></summary>'
    made = BeautifulSoup(access.mended(f"{toggle}<summary>Answers</summary>"), "html.parser")
    assert [fold.get("aria-label") for fold in made.find_all("summary")] == ["Its pages", None]
