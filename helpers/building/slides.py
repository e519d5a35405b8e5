"""Slides of a chapter from its own figures, in pages that need no network; the figures as files, with their licence.

    python -m helpers.building.slides [CHAPTER …]      # what `make slides` runs

A slide is a figure of the executed chapter beneath the heading that it stands under, with its caption; the first slide
is the chapter's title, and above it stands where the deck comes from. Solutions of exercises are left out. What is made
lies under ``build/slides/``:

    NN_name.html    a deck to be opened in any browser, by reveal.js (MIT, its file is beside this one)
    mathjax/        for formulas in captions
    figures/        each figure as NAME.png
    figures.csv     chapter, name, caption and alternative text of each
    LICENCE.txt     under which they may be used, and how to name them
"""

import argparse
import base64
import html
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import nbformat
import pandas as pd
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from nbformat import NotebookNode

from helpers import files
from helpers.building.execution import BookError, chapters, remove
from helpers.building.solutions import without_solutions
from helpers.files import ROOT

REVEAL = Path(__file__).parent / "reveal"
HEADING = re.compile(r"^(#{1,3}) (.+)$", re.MULTILINE)
FENCED = re.compile(r"^(`{3,}|:{3,}).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)  # code, and boxes beside the text
SOURCE = "How Vision Transformers See"
LICENCE = f"""Figures of "{SOURCE}", by its authors, under the Creative Commons Attribution 4.0 licence:
https://creativecommons.org/licenses/by/4.0/

You may show, copy and change them, also for money, if you name the book and the licence and say what you changed:
"{SOURCE}", CC BY 4.0.
"""
STYLE = """
body { background: #fff; }
.reveal { font: 28px/1.35 system-ui, sans-serif; color: #222; }
.reveal .slides { text-align: left; }
.reveal h1 { font-size: 1.9em; line-height: 1.15; }
.reveal h2 { font-size: 1.2em; margin: 0 0 0.4em; }
.reveal figure { margin: 0; text-align: center; }
.reveal img { max-width: 100%; max-height: 500px; }
.reveal figcaption { font-size: 0.62em; text-align: left; color: #444; margin-top: 0.5em; }
.reveal small { font-size: 0.6em; color: #555; }
"""


@dataclass(frozen=True)
class Slide:
    """A figure: the heading above it, its name, caption and alternative text, and the picture as PNG."""

    heading: str
    name: str
    caption: str
    alt: str
    png: bytes = field(repr=False)


def title(notebook: NotebookNode) -> str:
    """The chapter's title, as its first cell has it."""
    found = HEADING.search(notebook.cells[0].source)
    return found[2] if found else ""


def slides(notebook: NotebookNode) -> Iterator[Slide]:
    """The figures of an executed chapter in order, but those of solutions.

    Raises:
        BookError: a figure has no picture, as in a chapter that was not executed.
    """
    heading = title(notebook)
    for cell in without_solutions(notebook).cells:
        if cell.cell_type == "markdown":
            for found in HEADING.finditer(FENCED.sub("", cell.source)):
                heading = found[2]
        figure = cell.metadata.get("mystnb", {}).get("figure")
        if cell.cell_type == "code" and figure:
            pictures = [out.data["image/png"] for out in cell.outputs if "image/png" in out.get("data", {})]
            if not pictures:
                raise BookError(f"{figure['name']} has no picture: execute the chapters with make book first")
            alt = cell.metadata.mystnb.image.alt
            yield Slide(heading, figure["name"], figure["caption"], alt, base64.b64decode(pictures[-1]))


def words(text: str) -> str:
    """A line of Markdown as HTML; formulas are left to MathJax."""
    reader = MarkdownIt().use(dollarmath_plugin, renderer=lambda content, _: rf"\({html.escape(content)}\)")
    return reader.renderInline(text)


def deck(name: str, shown: list[Slide]) -> str:
    """A page of slides, with pictures, style and script in it."""
    sections = [f"<section><h1>{words(name)}</h1><p><small>{SOURCE}, CC BY 4.0</small></p></section>"]
    for slide in shown:
        picture = (
            f'<img src="data:image/png;base64,{base64.b64encode(slide.png).decode()}" alt="{html.escape(slide.alt)}">'
        )
        caption = f"<figcaption>{words(slide.caption)}</figcaption>"
        sections.append(f"<section><h2>{words(slide.heading)}</h2><figure>{picture}{caption}</figure></section>")
    style, script = ((REVEAL / f"reveal.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    body = "\n".join(sections)
    formulas = '<script defer src="mathjax/tex-chtml.js"></script>' if r"\(" in body else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(name)}</title>
<style>{style}{STYLE}</style>
{formulas}
</head>
<body>
<div class="reveal"><div class="slides">
{body}
</div></div>
<script>{script}</script>
<script>Reveal.initialize({{ hash: true, slideNumber: true, transition: "none", width: 1100, height: 760 }});</script>
</body>
</html>
"""


def make(root: Path = ROOT, names: list[str] | None = None) -> Path:
    """Make the decks of all executed chapters, or of some, and their figures; the folder.

    Raises:
        BookError: no such chapter, or it was not executed.
    """
    known = [path.stem for path in chapters(root)]
    if unknown := sorted(set(names or ()) - set(known)):
        raise BookError(f"no chapter {', '.join(unknown)}; there are {', '.join(known)}")
    out, rows = root / "build" / "slides", []
    remove(out)
    (out / "figures").mkdir(parents=True)
    for name in names or known:
        executed = root / "build" / "executed" / f"{name}.ipynb"
        if not executed.is_file():
            raise BookError(f"{name} was not executed: run make book first")
        notebook = nbformat.read(executed, as_version=4)
        shown = list(slides(notebook))
        files.write(out / f"{name}.html", deck(title(notebook), shown))
        for slide in shown:
            (out / "figures" / f"{slide.name}.png").write_bytes(slide.png)
            rows.append({"chapter": name} | asdict(slide))
    table = pd.DataFrame(rows, columns=["chapter", "name", "caption", "alt"])
    files.write(out / "figures.csv", table.to_csv(index=False))
    files.write(out / "LICENCE.txt", LICENCE)
    shutil.copytree(root / "book" / "_static" / "mathjax", out / "mathjax")
    return out


def main() -> int:
    """The command: makes the decks and prints the folder."""
    parser = argparse.ArgumentParser("python -m helpers.building.slides", description="Slides from chapters' figures.")
    parser.add_argument("chapters", nargs="*", help="names, such as 01_similarity (default: all)")
    try:
        print(make(names=parser.parse_args().chapters))
    except BookError as error:
        print(f"\nNo slides were made. {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
