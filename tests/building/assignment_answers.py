"""Plausible wrong answers to the tasks of the assignments: assignment → task → mistake → the code that makes it.

They lie in ``wrong_answers/``, a file an assignment. A line ``#% 2 not centred`` begins one to task 2 and names its
mistake.
"""

import re
from pathlib import Path

FOLDER = Path(__file__).parent / "wrong_answers"


def _read(text: str) -> dict[int, dict[str, str]]:
    found: dict[int, dict[str, str]] = {}
    parts = re.split(r"^#% (\d+) (.+)$", text, flags=re.MULTILINE)
    for number, mistake, code in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        found.setdefault(int(number), {})[mistake] = code.strip("\n")
    return found


WRONG = {path.stem: _read(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.txt"))}
