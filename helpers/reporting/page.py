"""From a report's tables to its page: the notebook that draws them is executed, and written as one file of HTML.

The page holds its figures itself and asks no other host for anything.
"""

import base64
import html
import io
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import papermill
from IPython.display import HTML, Markdown, display
from matplotlib import pyplot as plt
from nbconvert import HTMLExporter

from helpers import files
from helpers.claims.registry import number
from helpers.files import ROOT

NOTEBOOK = Path(__file__).with_name("report.ipynb")
TIMEOUT = 1800  # seconds a cell
STYLE = """
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; font: 1.05rem/1.6 Georgia, serif }
body { color: #222; background: #fcfcfa }
h1, h2, h3, table, figcaption, .note { font-family: system-ui, sans-serif }
h1 { line-height: 1.2 } h2 { margin-top: 2.5rem } figure { margin: 1.5rem 0 } figure img { max-width: 100% }
figcaption, caption { font-size: .9rem; color: #444; text-align: left; line-height: 1.4 }
caption { margin-bottom: .4rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .85rem; line-height: 1.35 }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top }
code { font-size: .9em } a { color: #0b5394 } .anchor-link { display: none }
"""


def build(folder: Path) -> Path:
    """Execute the notebook on the report in a folder, keep it there as ``report.ipynb``, and write ``index.html``.

    Raises ValueError, with the cell's error, where the notebook stops.
    """
    parameters = {"folder": str(folder)}
    try:
        done = papermill.execute_notebook(
            NOTEBOOK, None, parameters, kernel_name="python3", cwd=ROOT, progress_bar=False, execution_timeout=TIMEOUT
        )
    except papermill.PapermillExecutionError as error:
        raise ValueError(f"the page stops at cell {error.cell_index}: {error.ename}: {error.evalue}") from error
    files.write(folder / "report.ipynb", nbformat.writes(done) + "\n")
    body, _ = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True).from_notebook_node(
        done
    )
    title = html.escape(folder.name)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    page = f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>\n'
    files.write(folder / "index.html", page)
    return folder / "index.html"


def prose(*paragraphs: str) -> None:
    """Show paragraphs of Markdown."""
    display(Markdown("\n\n".join(paragraphs)))


def figure(drawn: Any, name: str, caption: str, alt: str) -> None:
    """Show a figure with its caption, and what is to be seen in words for whoever cannot see it."""
    picture = io.BytesIO()
    drawn.savefig(picture, format="png")
    plt.close(drawn)
    source = base64.b64encode(picture.getvalue()).decode()
    image = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{source}">'
    display(HTML(f'<figure id="{name}">{image}<figcaption>{html.escape(caption)}</figcaption></figure>'))


def table(rows: pd.DataFrame, caption: str, digits: int = 2) -> None:
    """Show a table with its caption."""
    text = rows.to_html(index=False, border=0, float_format=lambda x: number(x, digits), na_rep="–")
    text = text.replace(text[: text.index(">") + 1], f"<table><caption>{html.escape(caption)}</caption>", 1)
    display(HTML(f'<div class="scroll">{text}</div>'))
