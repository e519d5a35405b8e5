"""Measurements on networks of the zoo, kept in one file of arrays with a table of its pieces, and found again.

A piece is known again by what was asked for and by the weights of the networks (``key_of``). What was kept for just
these is handed out; anything else is measured there and then.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file
from torch import nn

from helpers import files, results
from helpers.networks import zoo

VERSION = 1  # of the ways of measuring: to be raised where one changes, so that all is measured again
NAME = "beforehand"
KEEPING = "VIT_BOOK_KEEP"  # the folder to which what was not there is added; without it nothing is written
COMMAND = "python -m helpers.recording.beforehand --out data/recorded"
WHAT = "Measurements on networks of the zoo that chapters ask for: one row an array of a piece"
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Network:
    """A network of the zoo, or its untrained twin drawn from ``seed``; or as it was after so many ``images``."""

    name: str
    pretrained: bool = True
    seed: int = 0
    images: int | None = None

    def load(self) -> nn.Module:
        """The network. Raises as ``zoo.load`` and ``zoo.load_step``."""
        if self.images is not None:
            return zoo.load_step(self.name, self.images)
        return zoo.load(self.name, self.pretrained, seed=self.seed)

    def pinned(self) -> dict[str, Any]:
        """What tells it from other networks without loading it. Raises as ``zoo.card``."""
        card = zoo.card(self.name)
        if not self.pretrained:
            return {"architecture": card["architecture"], "seed": self.seed}
        found = {name: card.get(name) for name in ("architecture", "sha256", "seed", "start")}
        if self.images is None:
            return found
        begun = zoo.card(card["start"])["sha256"] if card.get("start") else None  # it is what 0 images are
        return {**found, "steps": card.get("steps"), "begun": begun}


def kept(
    measure: str, networks: Mapping[str, Network], asked: Mapping[str, Any], fresh: Callable[[], Arrays]
) -> Arrays:
    """The arrays of a piece: those that were kept for these inputs, else what ``fresh`` gives.

    Where ``KEEPING`` names a folder, what was not there is added to it. Raises ValueError for a recording that is
    damaged, and as ``fresh`` does.
    """
    about = {"measure": measure, "networks": {label: asdict(one) for label, one in networks.items()}, **asked}
    key = key_of(about)
    keeping = os.environ.get(KEEPING)
    pieces, arrays = _stored(keeping or results.RECORDED)
    if key in pieces:
        return {name.partition("/")[2]: value for name, value in arrays.items() if name.startswith(f"{key}/")}
    found = fresh()
    if keeping:
        _add(Path(keeping), key, about, found)
    return found


def key_of(about: Mapping[str, Any]) -> str:
    """By what a piece is known again: a hash of what was asked for, of the networks' weights, and of ``VERSION``."""
    weights = {label: Network(**one).pinned() for label, one in about["networks"].items()}
    found = json.dumps([VERSION, about, weights], sort_keys=True)
    return hashlib.sha256(found.encode()).hexdigest()[:16]


def _stored(folder: str | Path) -> tuple[dict[str, Any], Arrays]:
    """The pieces of a folder, by key, and the arrays of all, named ``key/name``; none where nothing is recorded."""
    if not (Path(folder) / f"{NAME}.json").exists():
        return {}, {}
    _, sidecar = results.read(NAME, folder)
    return sidecar["pieces"], _arrays(results.arrays(NAME, folder), sidecar["arrays"])


@lru_cache(maxsize=1)
def _arrays(file: Path, _: str) -> Arrays:
    return load_file(file)


def _add(folder: Path, key: str, about: Mapping[str, Any], found: Arrays) -> None:
    """Put a piece beside those of a folder."""
    code = results.code_version()  # before anything is written, which git would call a change
    pieces, arrays = _stored(folder)
    arrays = arrays | {f"{key}/{name}": np.ascontiguousarray(value) for name, value in found.items()}
    pieces = {**pieces, key: {**about, "code": code}}
    file = folder / f"{NAME}.safetensors"
    with files.replacing(file) as (part,):
        save_file(arrays, part)
    rows = [(*name.split("/", 1), pieces[name[:16]]["measure"], value.size) for name, value in sorted(arrays.items())]
    table = pd.DataFrame(rows, columns=["piece", "array", "measure", "numbers"])
    models = sorted({one["name"] for piece in pieces.values() for one in piece["networks"].values()})
    noted: dict[str, Any] = {"models": models, "arrays": files.sha256(file), "pieces": pieces, "command": COMMAND}
    results.write(NAME, table, what=WHAT, units={}, seed=0, where=folder, code=code, **noted)
