"""Tables with their provenance: what a chapter draws, it first writes here; the book and the tests read the same files.

A table ``name`` is two files: ``name.csv`` (one observation a row) and ``name.json``, its sidecar: what the table
holds, the unit of each number, models, images, seed, versions of the packages, version and commit of the book, date,
and the sha256 of the CSV, so that a table and a sidecar that do not belong together are noticed.

Chapters write below ``build/own/results``, or into the folder that ``VIT_BOOK_RESULTS`` names. The build sets that, and
keeps what its own chapters wrote in ``build/results``. Measurements on ImageNet-trained models, which not every machine
can repeat, are kept in ``data/recorded``.
"""

import difflib
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from helpers import __version__
from helpers.files import INSTALLED, ROOT, is_sha256, replacing, sha256

BOOK = ROOT / "build" / "results"  # what the build made, and nobody else writes
FOLDER = ROOT / "build" / "own" / "results"
RECORDED = ROOT / "data" / "recorded"
ZOO = ROOT / "data" / "zoo"  # its cards, NAME.json, pin the weights of the book's own models
FOLDER_VARIABLE = "VIT_BOOK_RESULTS"
PACKAGES = ("torch", "torchvision", "timm", "torchmetrics", "numpy", "pandas", "scikit-learn")
CHAPTER = r"\d\d[a-z]?_[a-z0-9_]+"  # a chapter's name: 03_attention, or 03b_receptive_fields beside it
DIGITS = 9  # significant decimal digits: enough to give back a float32 exactly


def folder() -> Path:
    """Where chapters write: the folder named in ``VIT_BOOK_RESULTS``, else ``build/own/results``."""
    return Path(os.environ.get(FOLDER_VARIABLE) or FOLDER)


def write(
    name: str,
    table: pd.DataFrame,
    *,
    what: str,
    units: Mapping[str, str],
    models: Iterable[str] | Mapping[str, Any] = (),
    images: Mapping[str, Any] | None = None,
    seed: int | None = None,
    where: str | Path | None = None,
    **provenance: Any,
) -> Path:
    """Write a table and its sidecar.

    Args:
        name: in lower case, such as ``02_representation/within``; the chapter's name comes first, so that a missing
            table can say which chapter makes it.
        table: one observation a row, its index 0 … N−1.
        what: what the table holds, in one sentence.
        units: the unit of each column of floats, "1" where it has none.
        models: names of zoo models, of which the weights' sha256 is then noted, or a mapping from any model's name to
            what is known of it.
        images: the ``describe()`` of an image set.
        seed: of whatever was drawn at random.
        where: another folder than ``folder()``, for instance ``RECORDED``.
        provenance: anything else that JSON can hold; it is kept as it is. ``code`` is a ``code_version()`` from
            before, for a run that writes several tables of a folder under version control, which the first of them
            changes. ``version``, ``versions`` and ``date`` are those of now unless a table was measured before.

    Returns:
        The path of the CSV.

    Raises:
        ValueError: a name that is no such path, an index that is not 0 … N−1, two columns of one name, a column of
            floats without a unit, a unit for a column that is not there, an empty table, a model without a card in the
            zoo.
        TypeError: provenance that JSON can't hold.
    """
    path = _path(name, where)
    if not len(table):
        raise ValueError(f"table {name!r} has no rows")
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError(f"table {name!r} keeps data in its index, which is not written: call reset_index() first")
    if not table.columns.is_unique:
        raise ValueError(f"table {name!r} has two columns of one name: {list(table.columns)}")
    floats = [column for column in table if pd.api.types.is_float_dtype(table[column])]
    if absent := [column for column in floats if column not in units]:
        raise ValueError(f"table {name!r}: give units={{...}} for the columns {absent} ('1' for a plain number)")
    if strange := [column for column in units if column not in table]:
        raise ValueError(f"table {name!r} has no columns {strange}, for which a unit was given")
    text = table.to_csv(index=False, float_format=f"%.{DIGITS}g", na_rep="NaN", lineterminator="\n")
    content = text.encode()
    sidecar = {
        "what": what,
        "units": dict(units),
        "rows": len(table),
        "text": [column for column in table if all(isinstance(value, str) for value in table[column])],
        "models": _model_notes(models),
        "images": dict(images or {}),
        "seed": seed,
        "version": __version__,
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **provenance,
        "code": provenance.get("code") or code_version(),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    stored = json.dumps(sidecar, indent=1, ensure_ascii=False) + "\n"
    with replacing(path, path.with_suffix(".json")) as (csv, json_):
        csv.write_bytes(content)
        json_.write_bytes(stored.encode())
    return path


def read(name: str, where: str | Path | None = None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A table that a chapter wrote, and its sidecar.

    A column of text comes back as it was written, if the sidecar notes it as ``text``: "007" and "NaN" are no numbers.

    Raises:
        FileNotFoundError: there is no such table; the message says what makes it.
        ValueError: the sidecar cannot be read, or the table is not the one that it describes.
    """
    path = _path(name, where)
    if not path.exists():
        raise FileNotFoundError(_missing(name, path))
    if not path.with_suffix(".json").exists():
        raise FileNotFoundError(f"{path} has no sidecar, so nothing is known of it; {_remedy(name, where)}")
    content, sidecar = path.read_bytes(), mapping(path.with_suffix(".json"), _remedy(name, where))
    if hashlib.sha256(content).hexdigest() != sidecar.get("sha256"):
        raise ValueError(f"{path} and its sidecar are out of step (sha256 differs); {_remedy(name, where)}")
    text = sidecar.get("text", [])  # an older table notes none: what a column holds then tells its type
    numbers = [column for column in pd.read_csv(BytesIO(content), nrows=0) if column not in text]
    table = pd.read_csv(
        BytesIO(content),
        dtype=dict.fromkeys(text, str),
        keep_default_na=False,
        na_values=dict.fromkeys(numbers, ["NaN"]),
    )
    return table, sidecar


def arrays(name: str, where: str | Path | None = None) -> Path:
    """The file of arrays that a recording keeps beside its table, as ``arrays`` in the sidecar pins it.

    ``where``: another folder than ``RECORDED``. Raises as ``read``; ValueError if the file is not the sidecar's own.
    """
    folder = Path(where or RECORDED)
    file, sidecar = folder / f"{name}.safetensors", read(name, folder)[1]
    if not file.exists() or sha256(file) != sidecar.get("arrays"):
        raise ValueError(f"{file} is not the file its sidecar describes; restore it, or run `make record` again")
    return file


def recorded(name: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A table of ``data/recorded``, measured by ``make record``, and its sidecar. Raises as ``read`` does."""
    return read(name, RECORDED)


def names(where: str | Path | None = None) -> list[str]:
    """The tables of a folder, by default the chapters' own."""
    root = Path(where) if where else folder()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.csv"))


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def code_version() -> dict[str, Any]:
    """The commit of the book's own repository, and whether its code is another than that commit's; {} without one.

    The code is another if git says so of a file it tracks, or if ``helpers`` holds a file that it neither tracks nor
    ignores, or if git does not answer. A copy of the book inside another repository has no commit of its own.
    """
    if INSTALLED:  # by pip: a clone that is named beside it may hold another version
        return {}
    top, commit = _git("rev-parse", "--show-toplevel"), _git("rev-parse", "HEAD")
    if not top or not commit or Path(top).resolve() != ROOT:
        return {}
    changed = _git("status", "--porcelain", "--untracked-files=no")
    untracked = _git("ls-files", "--others", "--exclude-standard", "--", "helpers")
    return {"commit": commit, "dirty": changed != "" or untracked != ""}


def _git(*arguments: str) -> str | None:
    """What git says of the repository; None where there is no git or no repository, or where it fails."""
    elsewhere = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # set in a hook, maybe of another repository
    environment = {key: value for key, value in os.environ.items() if key not in elsewhere}
    try:
        ran = subprocess.run(["git", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.strip() if ran.returncode == 0 else None


def mapping(file: Path, remedy: str) -> dict[str, Any]:
    """What a JSON file holds; ValueError, naming the file, where that is no mapping."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, or no text
        raise ValueError(f"{file} cannot be read ({error}); {remedy}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} is to hold a mapping, not {str(found)[:60]}; {remedy}")
    return found


def _model_notes(models: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    """What the sidecar says of each model: for names alone, the hash of the weights in the zoo's card."""
    if isinstance(models, Mapping):
        return dict(models)
    if isinstance(models, str):
        raise ValueError(f"models is a list of names or a mapping, not the string {models!r}")
    return {name: {"source": "zoo", "sha256": _weights_hash(name)} for name in models}


def _weights_hash(name: str) -> str:
    card = ZOO / f"{name}.json"
    if not card.exists():
        near = difflib.get_close_matches(name, [path.stem for path in ZOO.glob("*.json")], n=3, cutoff=0.5)
        hint = f" (there is {', '.join(near)})" if near else ""
        raise ValueError(f"the zoo has no card of {name!r}{hint}; say what is known of it: models={{{name!r}: …}}")
    pinned = mapping(card, "restore it from version control").get("sha256")
    if not is_sha256(pinned):
        raise ValueError(f"{card} does not pin its weights: its sha256 is {pinned!r}; restore it from version control")
    return pinned


def _path(name: str, where: str | Path | None) -> Path:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*(/[a-z0-9][a-z0-9_.-]*)*", name) or name.startswith("claims/"):
        raise ValueError(f"{name!r} is no name for a table: use lower-case letters, digits, '_', '-', '.' and '/'")
    return (Path(where) if where else folder()) / f"{name}.csv"


def _missing(name: str, path: Path) -> str:
    root = path.parents[name.count("/")]
    near = difflib.get_close_matches(name, names(root), n=3, cutoff=0.5)
    hint = f" (there is {', '.join(near)})" if near else ""
    return f"no table {name!r} in {root}{hint}; {_remedy(name, root)}"


def _remedy(name: str, where: str | Path | None) -> str:
    if where and Path(where) == RECORDED:
        return "`make record WEIGHTS=folder IMAGES=folder` makes it"
    chapter = re.match(rf"{CHAPTER}(?=/)", name)
    maker = f"the chapter notebooks/{chapter[0]}.ipynb" if chapter else "one of the chapters"
    return f"{maker} writes it: run that, or `make book`"
