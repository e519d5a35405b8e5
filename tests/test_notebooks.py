"""The chapter notebooks as they lie in the repository: their form, and that no result is typed into the prose."""

import json
import re
import symtable
from pathlib import Path

import nbformat
import papermill
import pytest

from helpers import results

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if re.fullmatch(results.CHAPTER, path.stem)]
PAGES = sorted((ROOT / "book").rglob("*.md"))
ALT_LENGTH = 40
HIDDEN = {"hide-cell", "hide-input", "remove-cell", "remove-input"}  # tags of cells whose code is not shown
LINES, IMPORT_LINES = 15, 12  # of code that is shown in one cell, blank lines not counted
NOT_MEASURED = {"Verdicts", "Exercises", "Further reading", "What this chapter measured"}  # sections without questions
EXEMPT = "typed-numbers"  # in a text cell's metadata: why the numbers in it are not a run's

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def read(path: Path):
    return nbformat.read(path, as_version=4)


def test_there_are_notebooks_and_each_is_a_chapter():
    assert NOTEBOOKS == CHAPTERS and CHAPTERS, (
        "notebooks/ holds chapters NN_name.ipynb, or NNb_name.ipynb, and nothing else"
    )


@each_notebook
def test_it_is_a_valid_notebook_with_ids_of_its_own(path):
    raw = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(raw)
    assert (raw["nbformat"], raw["nbformat_minor"]) >= (4, 5)
    ids = [cell.get("id") for cell in raw["cells"]]
    assert all(ids) and len(set(ids)) == len(ids)


@each_notebook
def test_it_holds_no_outputs_and_nothing_of_a_run(path):
    notebook = read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, cell.id
        assert not {"execution", "papermill", "scrolled"} & set(cell.metadata), cell.id
    assert notebook.metadata.kernelspec.name == "python3"
    assert not {"papermill", "widgets"} & set(notebook.metadata)


@each_notebook
def test_no_cell_is_empty_or_installs_or_expects_to_fail(path):
    for cell in read(path).cells:
        assert cell.source.strip(), cell.id
        assert "raises-exception" not in cell.metadata.get("tags", []), cell.id
        if cell.cell_type == "code":
            assert not re.search(r"^\s*[%!]", cell.source, re.MULTILINE), f"{cell.id}: a magic or a shell command"


@each_chapter
def test_its_parameters_are_one_collapsed_cell_before_all_other_code(path):
    code = [cell for cell in read(path).cells if cell.cell_type == "code"]
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == code[:1]
    assert "hide-cell" in tagged[0].metadata.tags
    assert {"images", "seed"} <= set(papermill.inspect_notebook(path))


@each_chapter
def test_it_opens_with_one_title(path):
    cells = read(path).cells
    text = [strip_code(cell.source) for cell in cells if cell.cell_type == "markdown"]
    titles = [line for source in text for line in source.splitlines() if line.startswith("# ")]
    assert len(titles) == 1 and cells[0].source.startswith(titles[0])


@each_chapter
def test_its_first_import_is_from_helpers(path):
    """``helpers`` makes torchvision importable, so it comes before timm and torchvision."""
    imports = [
        line
        for cell in read(path).cells
        if cell.cell_type == "code"
        for line in cell.source.splitlines()
        if re.match(r"(import|from) ", line)
    ]
    assert re.match(r"(import|from) helpers\b", imports[0])


def shown(path: Path) -> list:
    """The code cells that a reader of the page sees, the cell of imports first."""
    code = [cell for cell in read(path).cells if cell.cell_type == "code"]
    return [cell for cell in code if not HIDDEN & set(cell.metadata.get("tags", []))]


def lines_of(cell) -> int:
    return sum(bool(line.strip()) for line in cell.source.splitlines())


@each_chapter
def test_its_first_shown_cell_imports_and_makes_the_chapters_kit(path):
    first = shown(path)[0]
    assert first.source.startswith("from helpers")
    assert f'chapter = Chapter("{path.stem}"' in first.source
    assert lines_of(first) <= IMPORT_LINES, f"{first.id}: import modules, and what few cells need in these cells"


@each_chapter
def test_no_shown_cell_is_longer_than_a_reader_can_take_in(path):
    long = {cell.id: lines_of(cell) for cell in shown(path) if lines_of(cell) > LINES}
    assert not long, f"{long}: split these cells, or move what they compute to a tested room of helpers/"


@each_chapter
def test_numbers_tables_and_claims_go_through_the_chapters_kit(path):
    """No chapter has its own way again to hand over numbers, to store tables or to judge claims."""
    source = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code")
    own = re.findall(r"^\s*def (?:say|store|keep|judge|record|whole)\b", source, re.MULTILINE)
    around = re.findall(r"\bglue\b|\bresults\.write\b|\bclaims\.\w+\(", source)
    assert not own + around, "use chapter.say, chapter.store, chapter.judge, chapter.record, uncertainty.whole"


@each_chapter
def test_recordings_are_read_without_the_programs_that_made_them(path):
    source = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code")
    assert not re.search(
        r"^(?:from helpers\.record(?:_\w+)? import|from helpers import .*\brecord(?:_\w+)?\b(?!ed))",
        source,
        re.MULTILINE,
    ), "read recordings with helpers.recorded"


def figures(path: Path) -> list:
    return [cell for cell in read(path).cells if "mystnb" in cell.metadata]


@each_chapter
def test_each_figure_has_a_name_a_caption_and_an_alternative_text(path):
    for cell in figures(path):
        settings = cell.metadata.mystnb
        figure, image = settings.get("figure", {}), settings.get("image", {})
        alt, caption = image.get("alt", ""), figure.get("caption", "")
        assert re.fullmatch(r"fig-[a-z0-9-]+", figure.get("name", "")), cell.id
        assert caption.strip(), cell.id
        assert len(alt) >= ALT_LENGTH and alt not in caption, cell.id
        assert "hide-input" in cell.metadata.get("tags", []), f"{cell.id}: a plotting cell is tagged hide-input"


def sections(path: Path) -> dict[str, str]:
    """The sections of a chapter by their headings; a cell of code is a line of its own."""
    cells = ("[code]" if cell.cell_type == "code" else cell.source for cell in read(path).cells)
    found = re.split(r"^## (.*)$", "\n\n".join(cells), flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


@pytest.mark.parametrize("path", [path for path in CHAPTERS if path.stem != "00_scenes"], ids=lambda path: path.stem)
def test_each_section_that_measures_has_three_questions_and_their_answers(path):
    """The page on scenes is a data card, which measures no network's insides."""
    for title, text in sections(path).items():
        boxes = re.findall(r"^`{4}\{admonition\} Check yourself\n(.*?)^`{4}$", text, re.MULTILINE | re.DOTALL)
        if "[code]" in text and title not in NOT_MEASURED:
            assert len(boxes) == 1, title
        for box in boxes:
            asked, answers = box.split("```{admonition} Answers\n:class: dropdown\n")
            for part in (asked, answers):
                assert re.findall(r"^(\d)\. \S", part, re.MULTILINE) == ["1", "2", "3"], title


def taken_and_given(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell takes from the cells before it, and those that it gives to the cells after it."""
    whole = symtable.symtable(source, "cell", "exec")
    given = {name.get_name() for name in whole.get_symbols() if name.is_assigned() or name.is_imported()}
    taken, waiting = set(), [whole]
    while waiting:
        table = waiting.pop()
        taken |= {s.get_name() for s in table.get_symbols() if s.is_referenced() and (table is whole or s.is_global())}
        waiting += table.get_children()
    return taken - given, given


def test_the_rule_for_names_of_cells():
    assert taken_and_given("def f(x):\n    return x + y\na = [b for b in c]") == ({"y", "c"}, {"f", "a"})


@each_chapter
def test_no_code_that_is_shown_takes_a_name_from_a_removed_cell(path):
    """Else whoever types it from the page gets a NameError."""
    removed: dict[str, str] = {}
    for cell in read(path).cells:
        if cell.cell_type == "code":
            taken, given = taken_and_given(cell.source)
            if "remove-cell" in cell.metadata.get("tags", []):
                removed |= dict.fromkeys(given, cell.id)
            else:
                assert not {name: removed[name] for name in taken & set(removed)}, cell.id
                removed = {name: where for name, where in removed.items() if name not in given}


def test_figure_names_and_alternative_texts_are_used_once():
    settings = [cell.metadata.mystnb for path in CHAPTERS for cell in figures(path)]
    for values in ([s.figure.name for s in settings], [s.image.alt for s in settings]):
        assert len(set(values)) == len(values)


@each_chapter
def test_each_figure_is_read_in_the_text(path):
    text = " ".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for cell in figures(path):
        name = cell.metadata.mystnb.figure.name
        assert re.search(rf"\{{numref\}}`[^`]*\b{name}\b", text), f"no text refers to {name}"


def test_the_table_of_contents_lists_every_chapter():
    assert set(re.findall(r"notebooks/(\w+)", (ROOT / "book" / "_toc.yml").read_text())) == {p.stem for p in CHAPTERS}


# A decimal number or a percentage in the prose is a result, and a result comes from a run through glue. It may be
# typed where the paragraph cites the work that states it, or where the cell's metadata says why.
DECIMAL = re.compile(r"(?<![\w.,/])\d+(?:\.\d+)?\s?(?:%|per cent|percent)|(?<![\w.,/])\d+\.\d+(?![\w.]*\w)")
NAMED = re.compile(
    r"(?:Python|version|CC BY|[Ss]ection|Chapter|Equation|Appendix|§|[Ff]igures?|Fig\.|Table)\s*[A-Z]?\.?\d+(?:\.\d+)*"
)


def strip_code(text: str) -> str:
    """The prose without fenced code and, line by line, without directive options."""
    text = re.sub(r"^(`{3,}|~{3,})(?:\w+|\{code[^}]*\}[^\n]*)\n.*?^\1\s*$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^:[\w-]+:.*$", "", text, flags=re.MULTILINE)


def typed_numbers(text: str) -> list[str]:
    """The numbers in a text that a run should supply."""
    found = []
    for paragraph in re.split(r"\n\s*\n", strip_code(text)):
        if "{cite" in paragraph:
            continue
        plain = re.sub(r"\{[\w:]+\}`[^`]*`", "", paragraph)  # roles: glue, numref, term
        plain = re.sub(r"`[^`]*`|\]\([^)]*\)|<[^>]*>|https?://\S+", "", plain)
        found += DECIMAL.findall(NAMED.sub("", plain))
    return found


@pytest.mark.parametrize(
    "text, found",
    [
        ("The CKA is 0.83.", ["0.83"]),
        ("It falls to $r = 0.11$ there.", ["0.11"]),
        ("It reaches 75 % of them, or 75% or 12.5 percent.", ["75 %", "75%", "12.5 percent"]),
        ("It is {glue:text}`value:.2f` of 64 in 2,560 images.", []),
        ("{cite:t}`raghu2021` report 0.83.\nAnd 4 %.", []),
        ("{cite:t}`raghu2021` report 0.83.\n\nWe see 0.71.", ["0.71"]),
        ("Set `alpha=0.5`, see Section 2.1 and Figure B.1, on Python 3.11.", []),
        ("```python\nx = 0.5\n```\nand\n\n$$ 10^{-3} $$", []),
        (":::{admonition} Note\n:class: tip\nWe see 0.71.\n:::", ["0.71"]),
    ],
)
def test_the_rule_for_numbers_in_prose(text, found):
    assert typed_numbers(text) == found


@each_chapter
def test_no_result_is_typed_into_a_chapter(path):
    for cell in read(path).cells:
        if cell.cell_type == "markdown" and not cell.metadata.get(EXEMPT):
            assert typed_numbers(cell.source) == [], f"{cell.id}: glue it, cite its source, or say why in {EXEMPT!r}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_no_result_is_typed_into_a_page(path):
    assert typed_numbers(path.read_text(encoding="utf-8")) == []


def test_every_citation_has_its_entry():
    """Keys cited anywhere are in the bibliography. (The site builder says so too, but only after all chapters ran.)"""
    keys = set(re.findall(r"^@\w+\{([\w-]+),", (ROOT / "book" / "references.bib").read_text(), re.MULTILINE))
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    texts += [cell.source for path in CHAPTERS for cell in read(path).cells if cell.cell_type == "markdown"]
    cited = {
        key.strip()
        for text in texts
        for group in re.findall(r"\{cite:\w+\}`([^`]+)`", text)
        for key in group.split(",")
    }
    assert cited <= keys
