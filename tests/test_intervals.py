"""Bars and bands that chapters draw reach as many jackknife errors as Student's t says for their number of groups.

A number typed for Student's t, such as 2.13, is right for sixteen groups alone. A chapter is run with other numbers of
groups while the errors it takes and the half-widths it draws are noted (``watch_intervals.py``). Where a series of
half-widths is a multiple of errors that were taken, the multiple has to be ``quantile(groups)``.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import papermill
import pytest
from test_chapters import SMALL

from helpers.uncertainty import quantile

EXACT = 1e-9  # relative; half-widths that were added to values and taken off again have lost a few digits
LEAST = 3  # points of a series, of which chance does not make a multiple of so many errors


def is_jackknife(drawn: np.ndarray, errors: dict[int, np.ndarray]) -> bool:
    """Whether half-widths (N,) are errors of one number of groups times Student's t; ``errors``: groups → errors."""
    return any(_all_among(drawn / quantile(groups), among) for groups, among in errors.items())


def typed(drawn: np.ndarray, errors: dict[int, np.ndarray]) -> float | None:
    """How many errors of one number of groups half-widths (N,) are; None where they are no multiple of errors."""
    for among in errors.values():
        for multiple in drawn[0] / among:
            if 0.5 < multiple < 15 and _all_among(drawn / multiple, among):
                return float(multiple)
    return None


def _all_among(values: np.ndarray, errors: np.ndarray) -> bool:
    """Whether each of the values is one of the errors, which are sorted."""
    at = np.searchsorted(errors, values).clip(1, len(errors) - 1)
    nearest = np.minimum(np.abs(errors[at] - values), np.abs(errors[at - 1] - values))
    return bool((nearest <= EXACT * values).all())


def read(file: Path) -> tuple[list[np.ndarray], dict[int, np.ndarray]]:
    """The series of half-widths that were drawn, zeros left out, and the sorted errors by number of groups."""
    drawn, errors = [], {}
    for note in map(json.loads, file.read_text().splitlines()):
        values = np.array(note.get("drawn", note.get("errors")), dtype=float)
        values = values[np.isfinite(values) & (values > 0)]
        if "drawn" in note:
            drawn.append(values)
        else:
            errors.setdefault(note["groups"], []).append(values)
    errors = {groups: np.unique(np.concatenate(parts)) for groups, parts in errors.items()}
    return drawn, {groups: values for groups, values in errors.items() if len(values) > 1}


def test_what_is_drawn_of_errors_is_told_from_other_intervals():
    rng = np.random.default_rng(0)
    errors = {groups: np.sort(rng.uniform(0.01, 0.1, 500)) for groups in (4, 16)}
    chosen = errors[4][[3, 77, 401, 8]]
    middle = rng.uniform(0, 1, 4)
    band = ((middle + quantile(4) * chosen) - (middle - quantile(4) * chosen)) / 2
    assert is_jackknife(quantile(4) * chosen, errors) and is_jackknife(band, errors)
    for multiple in (2.13, quantile(16), 2.0, 1.0):
        assert not is_jackknife(multiple * chosen, errors)
        assert typed(multiple * chosen, errors) == pytest.approx(multiple)
    others = rng.uniform(0.01, 0.1, 4)
    assert not is_jackknife(others, errors) and typed(others, errors) is None


def test_a_chapter_with_other_numbers_of_groups_draws_what_students_t_says(root, tmp_path, monkeypatch):
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    shutil.copy(root / "tests" / "watch_intervals.py", startup)
    notes = tmp_path / "notes.jsonl"
    for name, value in {
        "IPYTHONDIR": tmp_path / "ipython",
        "WATCH_INTERVALS": notes,
        "VIT_BOOK_RESULTS": tmp_path,
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    chapter = "04_skip_connections"
    fewer = {**SMALL[chapter], "images": 10}  # ten batches of one image for skip ratios, fewer for CKA
    papermill.execute_notebook(
        str(root / "notebooks" / f"{chapter}.ipynb"),
        None,
        fewer,
        kernel_name="python3",
        cwd=root,
        progress_bar=False,
        execution_timeout=600,
    )
    drawn, errors = read(notes)
    assert len(set(errors) - {16}) >= 2, f"the chapter took errors over {sorted(errors)} groups"
    right = [series for series in drawn if len(series) and is_jackknife(series, errors)]
    others = [series for series in drawn if len(series) >= LEAST and not is_jackknife(series, errors)]
    assert len(right) >= 10
    wrong = {multiple for series in others if (multiple := typed(series, errors)) is not None}
    assert not wrong, (
        f"{chapter} draws {sorted(wrong)} jackknife errors to either side; use uncertainty.quantile(groups)"
    )
