"""A results folder of a test's own, and a record in it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import results
from helpers.claims import verdicts

CHAPTER = "02_representation"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(results.FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.fixture
def record(folder: Path) -> Callable[..., verdicts.Verdict]:
    """``verdicts.record`` with something for everything that it asks for."""

    def recorded(claim="R2", track="scenes", value=0.1, stderr=0.01, **more):
        given = {"figure": "fig-within", "chapter": CHAPTER} | ({} if stderr is None else {"groups": 16}) | more
        return verdicts.record(claim, track, value, stderr, **given)

    return recorded
