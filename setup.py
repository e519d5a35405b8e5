"""The wheel carries the library as ``how_vits_see``: in a stranger's environment ``helpers`` may be somebody else's.

Everything else about the package stands in ``pyproject.toml``. A clone, and an editable install of one, keep the name
of the folder, ``helpers``. A wheel leaves out ``building``, which makes the book from a clone; the claims come along.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NAME = "how_vits_see"
MODULE = re.compile(r"\bhelpers(?=\.[a-z_])|(?<=from )helpers\b|(?<=import )helpers\b|(?<=``)helpers(?=``)")


class Renamed(build_py):
    """Modules are copied by setuptools, and then called ``how_vits_see``: folder and imports."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        made, named = Path(self.build_lib, "helpers"), Path(self.build_lib, NAME)
        shutil.rmtree(named, ignore_errors=True)
        made.rename(named)
        shutil.rmtree(named / "building")
        shutil.copy(Path("book", "claims.yml"), named / "claims")
        for file in [*named.rglob("*.py"), *named.rglob("*.ipynb")]:
            file.write_text(MODULE.sub(NAME, file.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")


class Named(bdist_wheel):
    """The wheel's ``top_level.txt`` says what it holds, and not the name of the folder; an editable one's stays."""

    def write_wheelfile(self, wheelfile_base: str, *args: Any, **options: Any) -> None:
        super().write_wheelfile(wheelfile_base, *args, **options)
        if Path(wheelfile_base).with_name(NAME).is_dir():
            Path(wheelfile_base, "top_level.txt").write_text(f"{NAME}\n", encoding="utf-8", newline="\n")


setup(cmdclass={"build_py": Renamed, "bdist_wheel": Named})
