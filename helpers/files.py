"""Files: where the repository lies, the hash of a file, and files that are there whole or not at all.

``ROOT`` is the repository. A library that pip has installed lies in none: there it is the clone that the environment
variable ``VIT_BOOK_CLONE`` names, with the networks of the zoo, and without it the working folder.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

CLONE_VARIABLE = "VIT_BOOK_CLONE"
_HOME = Path(__file__).resolve().parent.parent
INSTALLED = not (_HOME / "pyproject.toml").exists()  # by pip, as how_vits_see, without the folders of the repository


def _root() -> Path:
    named = os.environ.get(CLONE_VARIABLE)
    if not INSTALLED:
        return _HOME
    return Path(named).expanduser().resolve() if named else Path.cwd()


ROOT = _root()


def sha256(file: str | Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write(path: str | Path, content: str | bytes) -> None:
    """Write a file whole or not at all: text as UTF-8 with line ends as they are, bytes as they are.

    Folders that are missing are made. Raises as ``replacing`` does.
    """
    with replacing(path) as (part,):
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def is_sha256(value: object) -> TypeGuard[str]:
    """Whether a value, say from a file that others wrote, is a sha256 in 64 lower-case hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


@contextmanager
def replacing(*paths: str | Path) -> Iterator[tuple[Path, ...]]:
    """As many paths to write to instead of ``paths``, to which they are moved when the context ends without an error.

    So a reader never meets half a file, and of a writer that failed or was interrupted the files from before stay.
    Of several files each is whole, and they are moved one right after another, in the order given. Folders that are
    missing are made.

    Raises:
        FileNotFoundError: within the context one of them was not written; none is moved.
    """
    targets = [Path(path) for path in paths]
    parts = tuple(target.with_name(f".{target.name}.{os.getpid()}.part") for target in targets)
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield parts
        for part, target in zip(parts, targets, strict=True):
            if not part.exists():
                raise FileNotFoundError(f"{target} is left as it was, because nothing was written to {part}")
        for part, target in zip(parts, targets, strict=True):
            part.replace(target)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
