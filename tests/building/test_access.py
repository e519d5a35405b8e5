"""What is mended of the theme's HTML: a signature over several lines is no list of definitions."""

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
