"""Start anywhere: chapters opened in Colab, in Binder or in a codespace, where the repository has an address on GitHub.

Colab opens a notebook from GitHub, alone and among packages of its own. So the chapter that it opens begins with a cell
that fetches the book and installs what is missing. This cell stands in copies of the chapters, not in the chapters:
it names the repository that the site was built from, which a fork, or a clone without an address, has not in common
with it; and who has the book already should not have to read past it. The copies are a part of the site, in its folder
``launch``, and the workflow that publishes the site pushes them to a branch of this name, where Colab finds them.

Binder and codespaces begin with the whole repository: ``.binder/`` and ``.devcontainer/`` say what they install.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat import NotebookNode
from sphinx.application import Sphinx

from helpers.building import solutions
from helpers.building.execution import chapters

BRANCH = "launch"  # of the repository, and folder of the site
EXTRA = "chapters"  # of pyproject.toml: what chapters need besides the library's own packages
CELL = """# Only where the book's library is missing, as in Colab: fetch the book, and install what its chapters need.
try:
    import helpers.chapter
except ImportError:
    import os
    import subprocess
    import sys

    book = os.path.abspath("book")
    print("fetching the book and installing what it needs; this takes some minutes")
    if not os.path.isdir(book):
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", "{url}", book], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--editable", book + "[{extra}]"], check=True)
    sys.path.insert(0, book)  # pip's own note of it is read when Python starts
"""


def repository_url(root: Path) -> str | None:
    """The address of a repository on GitHub, or None: of ``_config.yml``, of GitHub's own workflow, or git's origin."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8")) or {}
    set_by_hand = config.get("repository", {}).get("url")
    if not set_by_hand and (name := os.environ.get("GITHUB_REPOSITORY")):
        return f"https://github.com/{name}"
    asked = subprocess.run(["git", "remote", "get-url", "origin"], cwd=root, capture_output=True, text=True)
    address = str(set_by_hand or asked.stdout).strip().rstrip("/").removesuffix(".git")
    for start in ("https://github.com/", "git@github.com:", "ssh://git@github.com/"):
        if address.startswith(start):
            return "https://github.com/" + address.removeprefix(start)
    return None


def first_cell(url: str) -> str:
    """The code by which a chapter that is opened alone gets the book from the address ``url``, where it has to."""
    return CELL.format(url=url, extra=EXTRA)


def standing_alone(notebook: NotebookNode, url: str) -> NotebookNode:
    """A copy of a chapter that begins with the cell; where the copy becomes a page, the cell is left out."""
    copy = nbformat.from_dict(notebook)
    cell = nbformat.v4.new_code_cell(first_cell(url).strip(), id="fetch-the-book", metadata={"tags": ["remove-cell"]})
    copy.cells.insert(0, cell)
    return copy


def offer(root: Path, site: Path, config: dict[str, Any]) -> None:
    """Write the copies of all chapters of a repository into its built site, where the configuration has an address."""
    if not (url := config["repository"]["url"]):
        return
    folder = site / BRANCH
    folder.mkdir()
    for path in chapters(root):
        notebook = nbformat.read(path, as_version=4)
        if solutions.hidden(config):
            notebook = solutions.without_solutions(notebook)
        nbformat.write(standing_alone(notebook, url), folder / path.name)


def lead(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Of the theme's buttons on a chapter's page, lead Colab to the copy, and add one for a codespace."""
    name = app.config.html_theme_options.get("repository_url", "").removeprefix("https://github.com/")
    for group in context.get("header_buttons", []):
        if group.get("label") == "launch-buttons":
            for button in group["buttons"]:
                if button["text"] == "Colab":
                    at = f"{name}/blob/{BRANCH}/{Path(pagename).name}.ipynb"
                    button["url"] = f"https://colab.research.google.com/github/{at}"
            codespace = {"text": "Codespace", "tooltip": "Launch in a codespace", "icon": "fab fa-github"}
            group["buttons"].append({"type": "link", "url": f"https://codespaces.new/{name}", **codespace})


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls: this module is an extension of it, where the repository has an address."""
    app.connect("html-page-context", lead, priority=900)  # after the theme has made its buttons
    return {"parallel_read_safe": True, "parallel_write_safe": True}
