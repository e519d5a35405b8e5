"""The page of the library: every room that a reader may import, from its docstrings, by Sphinx's autodoc."""

from hashlib import sha256
from pathlib import Path

from helpers import files

DEPARTMENTS = {"Images": "images", "Networks": "networks", "Measures": "measures"}  # heading → folder of ``helpers``
ROOMS = ("results", "recorded", "uncertainty", "plots")  # those that stand alone
INTRO = """\
Everything on this page is made from the docstrings of the code when the site is built. A shape such as (n, 3, H, W) is
that of a tensor: n images of three colours, H × W pixels. *Raises* names the errors, whose messages say what to do.
Where pip installed the library it is called `how_vits_see` and not `helpers`.
[Run it, and use your own models](/book/using_your_own.md) shows the functions at work."""


def api_page(helpers: Path) -> str:
    """The page in MyST markdown. ``helpers``: the folder of the library."""
    parts = ["# The library, function by function", INTRO]
    for heading, folder in DEPARTMENTS.items():
        rooms = sorted(path.stem for path in (helpers / folder).glob("[!_]*.py"))
        parts += [f"## {heading}", *(_room(f"helpers.{folder}.{room}") for room in rooms)]
    parts += ["## Tables, intervals, figures", *(_room(f"helpers.{room}") for room in ROOMS)]
    code = sha256("".join(map(files.sha256, sorted(helpers.rglob("*.py")))).encode()).hexdigest()
    parts.append(f"% made from code with the sha256 {code}: with other docstrings the page is another one")
    return "\n\n".join(parts) + "\n"


def _room(name: str) -> str:
    """The heading of a room, and what its own docstrings say; not those of what it imports."""
    directive = f".. automodule:: {name}\n   :members:\n   :ignore-module-all:"
    return f"### {name}\n\n```{{eval-rst}}\n{directive}\n```"
