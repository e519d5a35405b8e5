"""The house: imports run from the upper departments to the lower ones, and no two rooms import each other."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

HELPERS = Path(__file__).resolve().parents[1] / "helpers"

# From the ground up. A department may import from those on lower lines and from itself; rooms that stand on one line
# do not know of each other. CONTRIBUTING.md draws this list.
FLOORS = [
    ("files", "markup", "uncertainty", "plots", "explorers", "_torchvision"),
    ("results",),
    ("images",),
    ("networks",),
    ("measures",),
    ("claims", "recorded"),
    ("chapter", "recording"),
    ("building", "reporting"),
]
FLOOR = {department: number for number, floor in enumerate(FLOORS) for department in floor}


def rooms() -> dict[str, Path]:
    """Every room by its dotted name below ``helpers``; a package's ``__init__`` has the package's name."""
    found = {}
    for path in HELPERS.rglob("*.py"):
        parts = path.relative_to(HELPERS).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


ROOMS = rooms()


def imported(path: Path) -> set[str]:
    """The rooms that a room imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "helpers"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full, from helpers…"
            if node.module and node.module.split(".")[0] == "helpers":
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    names = {name.removeprefix("helpers").removeprefix(".") for name in found}
    return {name if name in ROOMS else name.rpartition(".")[0] for name in names}


IMPORTS = {room: imported(path) for room, path in ROOMS.items()}


def test_every_department_has_its_floor():
    assert {room.split(".")[0] for room in ROOMS if room} == set(FLOOR)


@pytest.mark.parametrize("room", sorted(set(ROOMS) - {""}))
def test_imports_run_downwards(room):
    department = room.split(".")[0]
    for other in sorted(IMPORTS[room] - {""}):
        below = other.split(".")[0]
        assert below == department or FLOOR[below] < FLOOR[department], f"{room} imports {other}, which is not below it"


def test_no_room_imports_itself_by_a_detour():
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_the_rule_hears_an_arrow_back_up(tmp_path):
    room = tmp_path / "room.py"
    room.write_text(
        "def f():\n    from helpers.building import book\n    import helpers.measures.cka\n", encoding="utf-8"
    )
    assert imported(room) == {"building.book", "measures.cka"}
