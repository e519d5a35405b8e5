"""Icons: the script is gone, the fonts hold what pages, scripts and style sheets show, and little else."""

import pytest
from fontTools.ttLib import TTFont

from helpers.building import icons

PAGE = """<head>
  <!-- custom icons -->
  <script defer src="../_static/scripts/fontawesome.js?digest=1"></script>
  <script defer src="../_static/scripts/bootstrap.js"></script></head>
<body><i class="fa-solid fa-bars"></i></body>"""


@pytest.fixture
def site(tmp_path):
    """A page with one icon beside the theme's own files."""
    theme = pytest.importorskip("pydata_sphinx_theme")
    own = icons.Path(theme.__file__).parent / "theme" / "pydata_sphinx_theme" / "static"
    for folder in ("styles", "scripts", "vendor/fontawesome/webfonts"):
        (tmp_path / "_static" / folder).mkdir(parents=True)
        for path in (own / folder).iterdir():
            (tmp_path / "_static" / folder / path.name).write_bytes(path.read_bytes())
    (tmp_path / "page.html").write_text(PAGE)
    return tmp_path


def characters(site):
    with TTFont(site / icons.FONTS / "fa-solid-900.woff") as font:
        return set(font.getBestCmap())


def test_a_page_asks_for_no_script_of_icons():
    left = icons.without_script(PAGE)
    assert "fontawesome" not in left and "bootstrap.js" in left and 'class="fa-solid fa-bars"' in left


def test_fonts_hold_what_is_shown_and_little_else(site):
    icons.cut(site)
    sheet = (site / icons.SHEETS / "pydata-sphinx-theme.css").read_text()
    assert {0xF0C9, 0xF00D} <= characters(site)  # the page's bars, and the cross that the theme's script puts in
    assert 0xF0F3 in characters(site)  # the bell that the theme's style sheet draws beside an admonition
    assert 0xF1B9 not in characters(site) and ".fa-car:before" not in sheet  # which nothing shows
    assert ".fa-bars:before" in sheet and "woff2" not in sheet and "@font-face" in sheet
    weights = {path.name: path.stat().st_size for path in (site / icons.FONTS).iterdir()}
    assert all(name.endswith(".woff") for name in weights) and weights["fa-solid-900.woff"] < 20_000
    assert not (site / "_static" / "scripts" / "fontawesome.js").exists()


def test_icons_are_cut_anew_as_pages_show_more(site):
    (site / "other.html").write_text('<i class="fas fa-car"></i>')
    icons.cut(site)
    assert 0xF1B9 in characters(site)


def test_a_style_sheet_of_another_form_is_refused(site):
    (site / icons.SHEETS / "pydata-sphinx-theme.css").write_text(".fa-bars::before{content:var(--fa)}")
    with pytest.raises(ValueError, match="no icons in the form"):
        icons.cut(site)
