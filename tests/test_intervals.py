"""Bars and bands that chapters draw reach as many jackknife errors as Student's t says for their number of groups.

A number typed for Student's t, such as 2.13, is right for sixteen groups at most. ``test_chapters.py`` runs the
chapters, some with other numbers of groups, while the errors they take and the half-widths they draw are noted
(``watch_intervals.py``). Where a series of half-widths is a multiple of errors that were taken, the multiple has to be
``quantile(groups)``.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.uncertainty import quantile

EXACT = 1e-9  # relative; half-widths that were added to values and taken off again have lost a few digits
LEAST = 3  # points of a series, of which chance does not make a multiple of so many errors


def watched(root: Path, folder: Path) -> dict[str, str]:
    """Settings of the environment in which a kernel notes what it draws, in the file ``WATCH_INTERVALS``."""
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    shutil.copy(root / "tests" / "watch_intervals.py", startup)
    return {"IPYTHONDIR": str(folder / "ipython"), "WATCH_INTERVALS": str(folder / "notes.jsonl")}


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
    for note in map(json.loads, file.read_text().splitlines() if file.exists() else []):
        values = np.array(note.get("drawn", note.get("errors")), dtype=float)
        values = values[np.isfinite(values) & (values > 0)]
        if "drawn" in note:
            drawn.append(values)
        else:
            errors.setdefault(note["groups"], []).append(values)
    errors = {groups: np.unique(np.concatenate(parts)) for groups, parts in errors.items()}
    return drawn, {groups: values for groups, values in errors.items() if len(values) > 1}


def multiples(drawn: list[np.ndarray], errors: dict[int, np.ndarray]) -> tuple[int, set[float]]:
    """How many series reach as far as Student's t says, and how many errors others reach that are multiples of them."""
    right = [series for series in drawn if len(series) and is_jackknife(series, errors)]
    others = [series for series in drawn if len(series) >= LEAST and not is_jackknife(series, errors)]
    return len(right), {multiple for series in others if (multiple := typed(series, errors)) is not None}


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
    right, wrong = multiples([quantile(4) * chosen, 2.13 * chosen, others], errors)
    assert right == 1 and list(wrong) == [pytest.approx(2.13)]
