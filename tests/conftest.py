"""What all tests share: one torch thread, torchvision made importable first, the browser if there is one.

A test of a bad input or of a fault says so, and becomes a line of the page *What goes wrong, and what happens then*
(``helpers.building.faults``), under the area's heading. Three literal strings; a second marker is a second line:

    @pytest.mark.fault("Images", "a 16-bit grey PNG", "its full range is read, not clipped at 255")
    def test_sixteen_bits(...):

    @pytest.mark.parametrize("name", [
        pytest.param("x.gif", marks=pytest.mark.fault("Images", "a GIF", "it is read as its first frame")), ...

Areas: Building the book, Claims and results, Images, Models, Measures, Recording, Training.
"""

import os

for library in ("OMP", "MKL", "OPENBLAS"):  # before torch is imported: the tests run side by side
    os.environ[f"{library}_NUM_THREADS"] = "1"

import shutil  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

import helpers  # noqa: E402, F401  (before any test imports timm or torchvision)

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
BROWSER_REQUIRED = os.environ.get("REQUIRE_BROWSER") == "1"


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


def pytest_collection_modifyitems(items):
    for item in items:
        for mark in item.iter_markers("fault"):
            if len(mark.args) != 3 or not all(isinstance(text, str) and text.strip() for text in mark.args):
                raise pytest.UsageError(f"{item.nodeid}: fault takes three texts: area, what goes in, what happens")
    if BROWSER or BROWSER_REQUIRED:
        return
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.skip(reason="no Chromium or Chrome on this machine"))


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium, driven by playwright."""
    if not BROWSER:
        pytest.fail("the browser tests are required here (REQUIRE_BROWSER=1), and there is no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def pytest_terminal_summary(terminalreporter):
    if not BROWSER and not BROWSER_REQUIRED:
        terminalreporter.write_line(
            "The tests of the site in a browser were LEFT OUT: install Chromium or Chrome to run them.", yellow=True
        )
