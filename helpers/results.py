"""Tables with their provenance: what a chapter draws, it first writes here; the book and the tests read the same files.

A table ``name`` is two files: ``name.csv`` (one observation a row) and ``name.json``, its sidecar: what the table
holds, the unit of each number, models, images, seed, versions of the packages, version of the code, date, and the
sha256 of the CSV, so that a table and a sidecar that do not belong together are noticed.

Chapters write below ``build/results`` (or the folder named in ``VIT_BOOK_RESULTS``); measurements on ImageNet-trained
models, which not every machine can repeat, are kept in ``data/recorded``.
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
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "results"
RECORDED = ROOT / "data" / "recorded"
FOLDER_VARIABLE = "VIT_BOOK_RESULTS"
PACKAGES = ("torch", "torchvision", "timm", "torchmetrics", "numpy", "pandas", "scikit-learn")
DIGITS = 9  # significant decimal digits: enough to give back a float32 exactly


def folder() -> Path:
    """Where chapters write: the folder named in ``VIT_BOOK_RESULTS``, else ``build/results``."""
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
    """Write a table and its sidecar; the path of the CSV.

    ``name``: lower case, such as ``02_representation/within`` (the chapter's name first, so that a missing table can
    say which chapter makes it). ``what``: one sentence. ``units``: the unit of each column of floats, "1" where it
    has none. ``models``: names of zoo models, whose weights' sha256 is looked up, or a mapping from any model's name
    to what is known of it. ``images``: the ``describe()`` of an image set. ``where``: another folder than
    ``folder()``, for instance ``RECORDED``. Anything else that can be written as JSON is kept as it is.
    ``code``: a ``code_version()`` from before, for a run that writes several tables of a folder under version control,
    which with the first of them is changed.

    Raises:
        ValueError: a name that is no such path, an index that is not 0 … N−1, a column of floats without a unit,
            a unit for a column that is not there, an empty table.
        TypeError: provenance that JSON can't hold.
    """
    path = _path(name, where)
    if not len(table):
        raise ValueError(f"table {name!r} has no rows")
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError(f"table {name!r} keeps data in its index, which is not written: call reset_index() first")
    floats = [column for column in table if pd.api.types.is_float_dtype(table[column])]
    if absent := [column for column in floats if column not in units]:
        raise ValueError(f"table {name!r}: give units={{...}} for the columns {absent} ('1' for a plain number)")
    if strange := [column for column in units if column not in table]:
        raise ValueError(f"table {name!r} has no columns {strange}, for which a unit was given")
    text = table.to_csv(index=False, float_format=f"%.{DIGITS}g", na_rep="NaN", lineterminator="\n")
    sidecar = {
        "what": what,
        "units": dict(units),
        "rows": len(table),
        "models": _model_notes(models),
        "images": dict(images or {}),
        "seed": seed,
        **provenance,
        "versions": versions(),
        "code": provenance.get("code") or code_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "sha256": _sha256(text),
    }
    stored = json.dumps(sidecar, indent=1, ensure_ascii=False) + "\n"
    _replace(path, text)
    _replace(path.with_suffix(".json"), stored)
    return path


def read(name: str, where: str | Path | None = None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A table that a chapter wrote, and its sidecar.

    Raises:
        FileNotFoundError: there is no such table; the message says what makes it.
        ValueError: the table is not the one its sidecar describes.
    """
    path = _path(name, where)
    if not path.exists():
        raise FileNotFoundError(_missing(name, path))
    if not path.with_suffix(".json").exists():
        raise FileNotFoundError(f"{path} has no sidecar, so nothing is known of it; {_remedy(name, where)}")
    text = path.read_bytes().decode()
    sidecar = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    if _sha256(text) != sidecar.get("sha256"):
        raise ValueError(f"{path} and its sidecar are out of step (sha256 differs); {_remedy(name, where)}")
    table = pd.read_csv(StringIO(text), keep_default_na=False, na_values=["NaN"])
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


def sha256(file: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal digits."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


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
    """The repository's commit, and whether files it tracks had been changed; {} outside a repository."""
    commit = _git("rev-parse", "HEAD")
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))} if commit else {}


def _git(*arguments: str) -> str | None:
    try:
        ran = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.strip() if ran.returncode == 0 else None


def _model_notes(models: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    """What the sidecar says of each model: for names alone, the hash of the weights in the zoo's card."""
    if isinstance(models, Mapping):
        return dict(models)
    if isinstance(models, str):
        raise ValueError(f"models is a list of names or a mapping, not the string {models!r}")
    names = list(models)
    if not names:
        return {}
    from helpers import zoo  # here, so that reading a table needs no torch

    return {name: {"source": "zoo", "sha256": zoo.card(name)["sha256"]} for name in names}


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
    chapter = re.match(r"\d\d_[a-z0-9_]+(?=/)", name)
    maker = f"the chapter notebooks/{chapter[0]}.ipynb" if chapter else "one of the chapters"
    return f"{maker} writes it: run that, or `make book`"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _replace(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(text.encode())
    part.replace(path)
