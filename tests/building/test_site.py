"""The site: that the check before publishing finds each kind of fault, and the built site itself, in a browser."""

import io
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from PIL import Image

from helpers.building import book, pictures
from helpers.building.site import attribute, faults, parse
from helpers.claims import registry, scoreboard, verdicts

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "site"
PAGES = book.documents(ROOT)
DARK = [PAGES[0], *(f"book/{name}" for name in ("scoreboard", "models", "api", "course/index"))]
DARK += [f"notebooks/{name}" for name in ("01_similarity", "03b_receptive_fields")]
PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1360, "height": 900}
TIMEOUT = 120_000  # ms; a machine that is busy with something else is slow, not wrong

GOOD = """<html><head><link rel="stylesheet" href="_static/style.css"><script src="_static/a.js"></script></head><body>
<article id="top"><a href="#top">up</a> <a href="other.html#place">on</a> <a href="https://example.org">out</a>
<figure><img src="_static/a.png" alt="A picture of a long straight line that rises to the right."/>
<figcaption>A line.</figcaption></figure></article></body></html>"""


@pytest.fixture
def page(tmp_path):
    """Writes a small site whose page ``index`` has this HTML, and returns what is wrong with it."""

    def check(html: str, css: str = "body { background: url(a.png) }") -> list[str]:
        (tmp_path / "_static").mkdir(exist_ok=True)
        for name in ("a.js", "a.png"):
            (tmp_path / "_static" / name).touch()
        (tmp_path / "_static" / "style.css").write_text(css)
        (tmp_path / "other.html").write_text('<article><p id="place">here</p></article>')
        (tmp_path / "index.html").write_text(html)
        return faults(tmp_path, ["index", "other"])

    return check


def test_the_check_passes_a_good_page(page):
    assert page(GOOD) == []


@pytest.mark.parametrize(
    "right, wrong, said",
    [
        ('alt="A picture of a long straight line that rises to the right."', "", "no alternative text"),
        ("A picture of a long straight line that rises to the right.", "A line", "no alternative text"),
        (
            "A picture of a long straight line that rises to the right.",
            "_images/" + 40 * "x" + ".png",
            "no alternative",
        ),
        ("A line.", "A picture of a long straight line that rises to the right.", "only repeats its caption"),
        ("</article>", GOOD[GOOD.index("<img") : GOOD.index("/>")].replace("a.png", "a.js") + "></article>", "text of"),
        ("other.html#place", "gone.html", "not there"),
        ("other.html#place", "other.html#nowhere", "no such place"),
        ("#top", "#bottom", "no such place"),
        ("_static/a.js", "_static/b.js", "not there"),
        ("_static/a.js", "https://example.org/a.js", "asks another host"),
        ("_static/a.js", "//example.org/a.js", "asks another host"),
        ("_static/style.css", "https://example.org/style.css", "asks another host"),
        ("_static/a.png", "https://example.org/a.png", "asks another host"),
        ("</article>", '</article><img alt="" srcset="https://example.org/a.png 2x">', "asks another host"),
        ("<body>", "<body><style>@import 'https://example.org/x.css';</style>", "asks another host"),
        (
            "<article",
            '<article class="x"><div class="output traceback">Error</div></article><article',
            "cell that failed",
        ),
    ],
)
def test_the_check_finds(page, right, wrong, said):
    found = page(GOOD.replace(right, wrong, 1))
    assert len(found) == 1 and said in found[0] and found[0].startswith("index.html")


@pytest.mark.fault(
    "Building the book", "a script, a frame or an attribute that runs one, in a page", "it is not published"
)
@pytest.mark.parametrize(
    "right, wrong, said",
    [
        ("up</a>", "up</a><script>alert(1)</script>", "script that is not the theme's: alert(1)"),
        ("up</a>", "up</a><script>window.MathJax = {}</script>", "script that is not"),  # within the text, no setting
        ("up</a>", '<SCRIPT SRC="_static/a.js"></SCRIPT></a>', "script that is not"),
        ("<body>", "<body><script>alert(1)</script>", "script that is not"),
        ("<body>", "<body><script>location = 'javascript:alert(1)'</script>", "script that is not"),
        ("<body>", "<body><script>window.MathJax = {}; alert(1)</script>", "script that is not"),
        ("_static/a.js", "other.html", "script that is not"),
        ("up</a>", 'up</a><iframe src="other.html"></iframe>', "<iframe>, which no page needs"),
        ("up</a>", 'up</a><object data="other.html"></object>', "<object>"),
        ("up</a>", 'up</a><embed src="other.html">', "<embed>"),
        ("<head>", '<head><base href="other.html">', "<base>"),
        ("up</a>", '<b OnClick="alert(1)">up</b></a>', "<b> runs a script by its attribute onclick"),
        ('href="https://example.org"', 'href=" java\nscript:alert(1)"', "<a> runs a script by its attribute href"),
        ("<svg", "<svg onload=alert(1)", "runs a script by its attribute onload"),
    ],
)
def test_the_check_finds_markup_that_is_not_the_books(page, right, wrong, said):
    html = GOOD.replace("</figcaption>", "</figcaption><svg></svg>")
    assert page(html) == []
    (found,) = page(html.replace(right, wrong, 1))
    assert said in found and found.startswith("index.html")


def test_the_themes_own_scripts_are_no_fault(page, tmp_path):
    own = "<script>document.documentElement.dataset.mode = 'auto'</script>"
    settings = "<script>DOCUMENTATION_OPTIONS.pagename = 'a/b';</script><script>window.MathJax = {\"a\": 1}</script>"
    assert len(page(GOOD.replace("<body>", f"<body>{own}{settings}"))) == 1
    (tmp_path / "search.html").write_text(own)
    assert page(GOOD.replace("<body>", f"<body>{own}{settings}")) == []


def test_only_the_first_page_leads_on(page, tmp_path):
    leading = GOOD.replace("<head>", '<head><meta http-equiv="Refresh" content="0; url=other.html">')
    assert page(leading) == []
    (tmp_path / "third.html").write_text(leading)
    assert faults(tmp_path, ["index"]) == ["third.html: leads on by itself: 0; url=other.html"] + [
        fault for fault in faults(tmp_path, ["index"]) if "alternative text of" in fault
    ]


def test_the_check_finds_missing_pages_and_fonts_of_other_hosts(page, tmp_path):
    (found,) = page(GOOD, css="@font-face { src: url('https://example.org/font.woff2') }")
    assert found == "_static/style.css: asks another host for https://example.org/font.woff2"
    (found,) = faults(tmp_path / "_static", ["index"])[:1]
    assert found == "index: the page is missing"


# --- the built site --------------------------------------------------------------------------------------

each_page = pytest.mark.parametrize("name", PAGES)


@pytest.fixture(scope="module")
def site() -> Path:
    if not (SITE / "index.html").exists():
        pytest.fail("there is no site to test: run `make book` first")
    return SITE


def test_the_site_has_no_faults(site):
    assert faults(site, PAGES) == []


def test_no_chapter_shows_a_warning(site):
    shown = [path.name for path in (site / "notebooks").glob("*.html") if 'class="output stderr' in path.read_text()]
    assert shown == []


def test_every_figure_stands_on_an_opaque_ground(site):
    for path in (site / "_images").glob("*.png"):
        with Image.open(path) as image:
            assert image.convert("RGBA").getchannel("A").getextrema() == (255, 255), path.name


def test_what_is_said_of_a_drawing_is_true_in_the_dark(site):
    """There its lightness is turned over, so no caption and no alternative text may go by it."""
    lightness = re.compile(r"\b(?:black|white(?! noise)|(?:dark|bright|light)(?:er|est)?|pale|faint)\b", re.IGNORECASE)
    for path in (site / "notebooks").glob("*.html"):
        for picture in BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser").select(
            "figure img[data-drawing]"
        ):
            said = f"{picture['alt']} {picture.find_parent('figure').figcaption.get_text(' ')}"
            assert not lightness.findall(said), f"{path.name}: {said}"


def test_the_picture_of_the_readme_is_that_of_the_site(site):
    figure = pictures.shown(site)
    assert figure is not None and pictures.apart(figure, pictures.README) < pictures.SAME, (
        "book/_static/within.png is of an earlier run: python -m helpers.building.pictures renews it"
    )


@pytest.fixture
def visit(browser, site):
    """Opens a page of the site as a file; what it asked for, and what went wrong, is on the page object."""
    contexts = []

    def open_page(name: str, viewport: dict = DESKTOP, scheme: str = "light", query: str = ""):
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        context.set_default_timeout(TIMEOUT)
        contexts.append(context)
        page = context.new_page()
        page.wrong, page.left, page.asked = [], [], []
        page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("requestfailed", lambda request: page.wrong.append(f"failed: {request.url}"))
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("request", lambda request: None if request.url.startswith(LOCAL) else page.left.append(request.url))
        page.goto((site / f"{name}.html").as_uri() + query)
        page.wait_for_function("window.MathJax === undefined || window.MathJax.startup?.promise !== undefined")
        page.evaluate("window.MathJax?.startup?.promise")
        page.evaluate("document.fonts.ready.then(() => true)")
        return page

    yield open_page
    for context in contexts:
        context.close()


LOCAL = ("file:", "data:", "blob:")
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


CONTRAST = """() => {
  const luminance = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number)
      .map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = luminance(getComputedStyle(document.body).backgroundColor);
  return ['p', 'h1', 'a.reference'].map(s => document.querySelector('article ' + s)).filter(e => e).map(e => {
    const text = luminance(getComputedStyle(e).color);
    return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
  }).concat(ground);
}"""


def assert_no_errors(page) -> None:
    assert page.wrong == [], "errors"
    assert page.left == [], "requests to other hosts"
    assert page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)") == []


def assert_math_is_rendered(page) -> None:
    """By MathJax, in its own fonts, with what a screen reader reads."""
    written, drawn = page.locator("article .math").count(), page.locator("article .math mjx-container").count()
    assert drawn >= written and page.locator("mjx-merror").count() == 0
    assert page.locator("article mjx-assistive-mml").count() == drawn
    fonts = page.evaluate("[...document.fonts].map(f => [f.family, f.status])")
    assert not [family for family, status in fonts if status == "error"]
    if written:
        assert [family for family, status in fonts if "MJX" in family and status == "loaded"]


def assert_it_is_legible(page, dark: bool) -> None:
    *contrasts, ground = page.evaluate(CONTRAST)
    assert min(contrasts) >= 4.5  # WCAG 2, level AA
    assert (ground < 0.1) == dark
    styles = page.evaluate(
        "[...document.querySelectorAll('article .cell_output img')].map(i => [i, getComputedStyle(i)])"
        ".map(([i, s]) => [i.hasAttribute('data-drawing'), s.filter, s.backgroundColor])"
    )
    for is_drawing, *style in styles:  # others stay as they were drawn
        assert style == ["invert(0.93) hue-rotate(180deg)" if dark and is_drawing else "none", "rgb(255, 255, 255)"]


@pytest.mark.browser
@each_page
def test_a_page_on_a_desk(visit, name):
    page = visit(name)
    assert_no_errors(page)
    assert_math_is_rendered(page)
    assert_it_is_legible(page, dark=False)


@pytest.mark.browser
@each_page
def test_a_page_on_a_phone_in_the_dark(visit, name):
    page = visit(name, PHONE, "dark")
    assert_no_errors(page)
    assert page.evaluate(WIDER) <= 0, page.evaluate(
        "[...document.querySelectorAll('article *')].filter(e => e.getBoundingClientRect().right > innerWidth)"
        ".slice(0, 5).map(e => e.outerHTML.slice(0, 120))"
    )
    assert page.evaluate("parseFloat(getComputedStyle(document.querySelector('article p')).fontSize)") >= 15
    assert_it_is_legible(page, dark=True)


@pytest.mark.browser
def test_the_reader_can_switch_to_the_dark(visit):
    page = visit(PAGES[0])
    for _ in range(3):  # light, dark, system
        if page.evaluate("document.documentElement.dataset.theme") == "dark":
            break
        page.locator("button.theme-switch-button").last.click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_drawings_are_dark_in_the_dark(visit, scheme):
    """The most frequent colour of lines is then nearly that of the page; that of heat-maps stays as it was drawn."""
    page = visit("notebooks/03_attention", scheme=scheme)
    shown = {}
    for name in ("fig-attention-depth", "fig-attention-maps"):
        picture = page.locator(f"#{name} img")
        picture.scroll_into_view_if_needed()
        seen = Image.open(io.BytesIO(picture.screenshot())).convert("RGB").resize((400, 300))
        (_, ground), *_ = sorted(seen.getcolors(120_000), reverse=True)
        shown[name] = sum(ground) / 3
    assert (shown["fig-attention-depth"] < 40) == (scheme == "dark") and shown["fig-attention-maps"] > 240


@pytest.mark.browser
def test_the_scoreboard_is_filtered_by_verdict_track_and_chapter(visit):
    """What is left is what the book's claims and their words say, told again where it is counted."""
    page = visit("book/scoreboard")
    claims, found = registry.load().values(), verdicts.verdicts()
    said, shown = page.locator(".scoreboard-filter [role=status]"), page.locator(".claim:visible")
    assert said.inner_text() == f"{len(claims)} of {len(claims)} claims" and shown.count() == len(claims)
    page.get_by_label("Verdict").select_option("not testable here")
    page.get_by_label("Track").select_option("ImageNet")
    wanted = [c.id for c in claims if scoreboard.status(c, "imagenet", found) == scoreboard.UNTESTABLE]
    assert 0 < len(wanted) < len(claims) and said.inner_text() == f"{len(wanted)} of {len(claims)} claims"
    assert shown.evaluate_all("cards => cards.map(c => c.id)") == [f"claim-{name.lower()}" for name in wanted]
    page.get_by_label("Chapter").select_option("02")
    assert shown.count() == sum(c.chapter.startswith("02") and c.id in wanted for c in claims)
    headings = page.locator("article section section section:visible").count()
    assert headings == len({c.chapter for c in claims if c.chapter.startswith("02") and c.id in wanted})
    page.evaluate("location.hash = 'claim-r13'")  # a link to a claim that is hidden
    page.locator("#claim-r13").wait_for(state="visible")
    assert said.inner_text() == f"{len(claims)} of {len(claims)} claims"


@pytest.mark.browser
def test_the_scoreboard_is_sorted_and_put_back(visit):
    page = visit("book/scoreboard")
    claims, found = list(registry.load().values()), verdicts.verdicts(ROOT / "build" / "results")
    shown, headings = page.locator(".claim:visible"), page.locator("article section section:visible")
    ids, before = "cards => cards.map(c => c.id)", headings.count()
    written = shown.evaluate_all(ids)
    page.get_by_label("Order").select_option("verdict on ImageNet")
    order = list(scoreboard.BADGES)
    words = {f"claim-{c.id.lower()}": order.index(scoreboard.status(c, "imagenet", found)) for c in claims}
    listed = [words[name] for name in shown.evaluate_all(ids)]
    assert listed == sorted(words.values()) and headings.count() < before
    page.get_by_label("Order").select_option("chapter")
    chapters = {f"claim-{c.id.lower()}": c.chapter for c in claims}
    assert [chapters[name] for name in shown.evaluate_all(ids)] == sorted(chapters.values())
    page.get_by_label("Verdict").select_option("not testable here")
    assert 0 < shown.count() < len(claims)
    page.get_by_label("Verdict").select_option("any")
    page.get_by_label("Order").select_option("the papers’")
    assert shown.evaluate_all(ids) == written and headings.count() == before


@pytest.mark.browser
@each_page
def test_axe_finds_nothing_critical_or_serious(visit, name):
    assert_axe_is_content(visit(name))


@pytest.mark.browser
@pytest.mark.parametrize("name", DARK)
def test_axe_finds_nothing_critical_or_serious_on_a_phone_in_the_dark(visit, name):
    assert_axe_is_content(visit(name, PHONE, "dark"))


def assert_axe_is_content(page) -> None:
    """With all rules of axe-core."""
    found = Axe().run(page).response["violations"]
    grave = [fault for fault in found if fault["impact"] in ("critical", "serious")]
    assert not grave, "\n".join(
        f"{fault['id']} ({fault['impact']}): {node['html'][:160]}" for fault in grave for node in fault["nodes"][:3]
    )


@pytest.mark.browser
def test_a_page_asks_for_no_more_than_it_needs(visit):
    """Without formulas no MathJax, and icons, which are still there, without a script of theirs."""
    page = visit(PAGES[0])
    files = {unquote(urlsplit(address).path) for address in page.asked if address.startswith("file:")}
    assert not [name for name in files if "mathjax" in name or "fontawesome.js" in name]
    assert 100_000 < sum(Path(name).stat().st_size for name in files) < 1_000_000
    icons = page.evaluate(
        "[...document.querySelectorAll('i[class*=fa-]')].map(i => getComputedStyle(i, '::before'))"
        ".map(s => [s.content, s.fontFamily, s.fontWeight])"
    )
    assert icons and all(content.strip('"') and "Font Awesome" in family for content, family, _ in icons)
    assert page.evaluate("[...document.fonts].some(f => f.family.includes('Awesome') && f.status === 'loaded')")


@pytest.mark.parametrize("name", PAGES)
def test_no_page_weighs_more_than_two_megabytes(site, name):
    """A page's own: its text and its pictures."""
    page = site / f"{name}.html"
    pictures = {attribute(image, "src") for image in parse(page).select("article img[src]")}
    files = [page, *((page.parent / unquote(source)) for source in pictures if not source.startswith("data:"))]
    assert sum(path.stat().st_size for path in files) < 2_000_000


@pytest.mark.browser
def test_the_search_finds_cka_in_a_chapter(visit):
    page = visit("search", query="?q=CKA")
    page.wait_for_selector("#search-results li a")
    page.wait_for_function("Search.status.innerText.includes('found')")  # excerpts may say "found" as well
    links = page.evaluate("[...document.querySelectorAll('#search-results li a')].map(a => a.href)")
    assert any("/notebooks/" in link for link in links)
    pages = page.locator("#search-results li:not(:has(> span))").count()  # not the library's entries, which have none
    excerpts = page.locator("#search-results p.context").all_inner_texts()
    assert len(excerpts) >= 0.8 * pages >= 10 and sum("cka" in text.lower() for text in excerpts) >= 0.8 * len(excerpts)
    assert page.wrong == [] and page.left == []
    page.goto(links[0])
    assert page.locator("article h1").count() == 1


@pytest.mark.browser
def test_the_menu_opens_on_a_phone(visit):
    page = visit(PAGES[0], PHONE)
    page.locator("button.primary-toggle:visible").click()
    page.locator(".bd-sidebar-primary a:visible, dialog a:visible", has_text="Glossary").first.click()
    assert page.locator("article h1").inner_text().startswith("Glossary")
