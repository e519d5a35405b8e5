"""The icons of a built site: of the theme's fonts only those that its pages show, and not the script that draws all.

The theme brings a set of icons twice, as a script of 1.5 MB that puts a drawing into the place of each and as fonts
whose characters its style sheet names. The fonts do without the script, and cut down to what is used they weigh little.
"""

import re
from pathlib import Path

from fontTools import subset

SCRIPT = re.compile(r'\s*<script[^>]*\bsrc="[^"]*_static/scripts/fontawesome\.js[^"]*"[^>]*></script>')
FONTS = Path("_static", "vendor", "fontawesome", "webfonts")
SHEETS = Path("_static", "styles")
NAMED = re.compile(r"\bfa-[a-z0-9]+(?:-[a-z0-9]+)*")
RULE = re.compile(r'((?:\.fa-[a-z0-9-]+:before,?)+)\{content:"(\\?[^"]{1,5})"\}')  # the character of an icon's names
DRAWN = re.compile(
    r'(?:--pst-icon-[a-z-]+|content):\s*"(\\f[0-9a-f]{3}|[\uf000-\uf8ff])"'
)  # by style sheets themselves
SOURCE = re.compile(
    r'src:url\(([^)]*/)(fa-[a-z]+-\d+)\.woff2\) format\("woff2"\),url\([^)]*\.ttf\) format\("truetype"\)'
)


def without_script(page: str) -> str:
    """The HTML of a page without the script of the icons."""
    return SCRIPT.sub("", page)


def character(written: str) -> int:
    """The code point of a character as a style sheet writes it: itself, or a backslash and its hexadecimal number."""
    return int(written[1:], 16) if written.startswith("\\") and len(written) > 1 else ord(written[0])


def cut(site: Path) -> None:
    """Cut the fonts of icons of a built site, and the rules of the theme's style sheet, down to the icons in use.

    In use is what a page or a script of the theme names by its class, and what a style sheet draws by itself.

    Raises:
        ValueError: the theme's style sheet names no icon, or no font, in the form that is read here.
    """
    sheet = site / SHEETS / "pydata-sphinx-theme.css"
    if not sheet.is_file():
        return
    pages = [path for path in site.rglob("*.html") if "_static" not in path.relative_to(site).parts]
    scripts = [path for path in (site / "_static" / "scripts").glob("*.js") if path.name != "fontawesome.js"]
    used = {name for path in (*pages, *scripts) for name in NAMED.findall(path.read_text(encoding="utf-8"))}
    text = sheet.read_text(encoding="utf-8")
    if not RULE.search(text) or not SOURCE.search(text):
        raise ValueError(f"{sheet.name} holds no icons in the form that helpers/building/icons.py reads")
    kept: set[int] = set()

    def only_used(rule: re.Match[str]) -> str:
        if not used & set(NAMED.findall(rule[1])):
            return ""
        kept.add(character(rule[2]))
        return rule[0]

    text = RULE.sub(only_used, text)
    sheets = [path for path in (site / "_static").rglob("*.css") if path != sheet]
    for style in (text, *(path.read_text(encoding="utf-8", errors="replace") for path in sheets)):
        kept |= {character(written) for written in DRAWN.findall(style)}
    sheet.write_text(SOURCE.sub(r'src:url(\1\2.woff) format("woff")', text), encoding="utf-8")
    for font in (site / FONTS).glob("*.ttf"):
        keep(font, kept)
    for former in (*(site / FONTS).glob("*.ttf"), *(site / FONTS).glob("*.woff2")):
        former.unlink()
    for script in (site / "_static" / "scripts").glob("fontawesome.js*"):
        script.unlink()


def keep(font: Path, characters: set[int]) -> None:
    """Write a TrueType font with these characters alone beside it, as ``.woff``."""
    options = subset.Options(flavor="woff", hinting=False, layout_features=[], notdef_outline=True)
    loaded = subset.load_font(font, options)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=characters)
    cutter.subset(loaded)
    subset.save_font(loaded, font.with_suffix(".woff"), options)
