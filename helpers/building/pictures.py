"""The pictures of a built site: in fewer bytes, dark in the dark, and one that stands for the book in previews.

The README shows the same figure, of an earlier run. This command renews it from the built site:

    python -m helpers.building.pictures
"""

import io
import re
import sys
from pathlib import Path

import numpy as np
from bs4 import BeautifulSoup
from PIL import Image, ImageColor, ImageDraw, ImageFont

from helpers.files import ROOT

SEEN = 2.0  # of 255: as root mean square, what a picture may change by, and nobody sees it
SAME = 8.0  # of 255: by how much a figure of the same networks may differ on another machine, with other fonts
HEAVY = 1_000_000  # bytes: what weighs more has half the pixels, and the same place on the page
PAGE, FIGURE = Path("notebooks", "02_representation.html"), "fig-representation-within"  # what the preview shows
README = ROOT / "book" / "_static" / "within.png"  # the same figure of an earlier run, in the README
PREVIEW = Path("_static", "preview.png")
SIZE = 1200, 630  # px: what services that show previews ask for
ALT = "Two heat-maps of CKA between all layers of a network, on the left of a ViT, on the right of a ResNet."
GROUND, INK = "#fcfcfa", "#222222"
LEAST_GROUND, MOST_COLOUR = 0.5, 0.1  # shares of a drawing's pixels
SOURCE = re.compile(r'<img (?=[^>]*\bsrc="[^"]*_images/([^"/]+\.png)")')


def lighter(png: bytes) -> bytes:
    """A picture in as many colours as it needs, at most 256, if nobody sees the difference; otherwise as it is.

    Figures have a ground, lines and a scale of colours, so that few bytes hold them at twice the pixels.
    """
    with Image.open(io.BytesIO(png)) as opened:
        if opened.convert("RGBA").getchannel("A").getextrema() != (255, 255):
            return png
        drawn = opened.convert("RGB")
        resolution = {"dpi": opened.info["dpi"]} if "dpi" in opened.info else {}
    few = drawn.quantize(256, dither=Image.Dither.NONE)
    apart = np.asarray(few.convert("RGB"), np.float32) - np.asarray(drawn, np.float32)
    written = io.BytesIO()
    few.save(written, format="png", optimize=True, **resolution)
    same = float(np.sqrt((apart**2).mean())) <= SEEN
    return written.getvalue() if same and len(written.getvalue()) < len(png) else png


def is_drawing(png: bytes) -> bool:
    """Whether a picture is lines and bars on the light ground, and not colours that mean a number, nor a photograph.

    Such a picture can be shown with its lightness turned over.
    """
    with Image.open(io.BytesIO(png)) as opened:
        drawn = np.asarray(opened.convert("RGB").reduce(2), int)
    ground = np.abs(drawn - ImageColor.getrgb(GROUND)).max(axis=2) <= 6
    coloured = drawn.max(axis=2) - drawn.min(axis=2) > 60
    return bool(ground.mean() >= LEAST_GROUND and coloured.mean() <= MOST_COLOUR)


def drawings(site: Path) -> set[str]:
    """The names of the drawings among the figures of a built site."""
    return {path.name for path in (site / "_images").glob("*.png") if is_drawing(path.read_bytes())}


def marked(page: str, drawings: set[str]) -> str:
    """The HTML of a page whose drawings say that they are: the style sheet turns them over in the dark."""
    return SOURCE.sub(lambda found: "<img data-drawing " if found[1] in drawings else found[0], page)


def halved(png: bytes) -> bytes:
    """A picture with half the pixels to a side."""
    with Image.open(io.BytesIO(png)) as opened:
        written = io.BytesIO()
        opened.reduce(2).save(written, format="png", optimize=True)
    return written.getvalue()


def lighten(site: Path) -> None:
    """Write the figures of a built site in fewer bytes: grids of many photographs are too heavy at twice the pixels."""
    for path in (site / "_images").glob("*.png"):
        picture = lighter(path.read_bytes())
        path.write_bytes(lighter(halved(picture)) if len(picture) > HEAVY else picture)


def shown(site: Path) -> Path | None:
    """The file of the figure that stands for the book, as the site's own page shows it; None if it has no such page."""
    if not (site / PAGE).is_file():
        return None
    image = BeautifulSoup((site / PAGE).read_text(encoding="utf-8"), "html.parser").select_one(f"#{FIGURE} img")
    return (site / PAGE).parent / str(image["src"]) if image else None


def preview(site: Path, title: str) -> bool:
    """Draw ``_static/preview.png``: the book's title over a figure of its own. Whether the site has that figure."""
    found = shown(site)
    if found is None:
        return False
    sheet = Image.new("RGB", SIZE, GROUND)
    with Image.open(found) as figure:
        width = SIZE[0] - 120
        drawn = figure.convert("RGB").resize((width, width * figure.height // figure.width), Image.Resampling.LANCZOS)
    sheet.paste(drawn, (60, SIZE[1] - drawn.height - 20))
    ImageDraw.Draw(sheet).text((SIZE[0] / 2, 62), title, fill=INK, font=ImageFont.load_default(62), anchor="mm")
    (site / PREVIEW).write_bytes(_as_png(sheet))
    return True


def _as_png(picture: Image.Image) -> bytes:
    written = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(written, format="png", optimize=True)
    return written.getvalue()


def apart(one: Path, other: Path) -> float:
    """By how much two pictures differ, as root mean square of 255 of their colours at 300 × 135 px."""
    small = []
    for path in (one, other):
        with Image.open(path) as picture:
            small.append(np.asarray(picture.convert("RGB").resize((300, 135), Image.Resampling.BOX), float))
    return float(np.sqrt(((small[0] - small[1]) ** 2).mean()))


def main() -> int:
    """The command: renews the README's picture from the built site."""
    found = shown(ROOT / "build" / "site")
    if found is None:
        print(f"There is no {PAGE} with {FIGURE} in build/site: run make book first.", file=sys.stderr)
        return 1
    README.write_bytes(found.read_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
