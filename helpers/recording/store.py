"""What makes a recording whole: sizes of batches, inputs by which it is known again, and files that appear together.

A recording is measured into a folder of its own, ``.NAME.part`` inside of the folder of recordings. When all of its
files are there this becomes ``.NAME.ready``, in one step, and then they are moved out of it, sidecars last. A run that
is interrupted before that step leaves the recording from before; one that is interrupted after it is completed by the
next, before anything else (``resume``). Between the moves a reader is told that table and sidecar are out of step.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from helpers import files, results
from helpers.measures.cka import LEAST
from helpers.uncertainty import GROUPS

CODE = Path(__file__).resolve().parents[1]


def batch_size(count: int, usual: int) -> int:
    """Images a batch, of ``count`` in all: ``usual``, unless that makes fewer than half as many batches as groups.

    Then as many as make one batch for each of the 16 groups of the jackknife, at least the 4 that HSIC needs.
    """
    return usual if count >= usual * GROUPS // 2 else max(LEAST, count // GROUPS)


def inputs(name: str, networks: Mapping[str, nn.Module], **about: Any) -> str:
    """A sha256 of all that a recording depends on: weights, code, versions, and ``about`` (images, cards …)."""
    found = {
        "recording": name,
        "weights": {label: weights_hash(network) for label, network in networks.items()},
        "code": {file.relative_to(CODE).as_posix(): results.sha256(file) for file in sorted(CODE.rglob("*.py"))},
        "versions": results.versions(),
        **about,
    }
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def is_done(name: str, key: str, out: Path) -> bool:
    """Whether all tables and arrays of a recording are there, whole, and made from the inputs of this ``key``."""
    tables = _tables(name, out)
    try:
        found = [results.read(table, out)[1] for table in tables]
        for table, sidecar in zip(tables, found, strict=True):
            if "arrays" in sidecar:
                results.arrays(table, out)
    except (OSError, ValueError):
        return False
    return bool(found) and all(sidecar["inputs"] == key and sidecar["tables"] == tables for sidecar in found)


def make(name: str, out: Path, measure: Callable[[Path], None]) -> None:
    """Measure into a folder of its own, and put all files of the recording in place when the last is written."""
    part, ready = out / f".{name}.part", out / f".{name}.ready"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        measure(part)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sidecars = sorted(part.glob("*.json"))
    for sidecar in sidecars:  # each says which tables there are, so that one that was lost is noticed
        told = {**json.loads(sidecar.read_text(encoding="utf-8")), "tables": [other.stem for other in sidecars]}
        files.write(sidecar, json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    part.rename(ready)
    _publish(name, ready)


def resume(out: Path) -> None:
    """Complete what an interrupted run was putting in place, and remove what it had measured in part."""
    for ready in sorted(out.glob(".*.ready")):
        _publish(ready.name[1 : -len(".ready")], ready)
    for part in out.glob(".*.part"):
        if part.is_dir():
            shutil.rmtree(part)


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """The folder of recordings for one run alone, by the file ``.lock`` in it. Raises ValueError while another runs."""
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another run is recording to {out}; wait for it, or name another folder") from None
    try:
        yield
    finally:
        lock.release()


def _publish(name: str, ready: Path) -> None:
    """Move the files of a recording that is whole into the folder of recordings, sidecars last."""
    out, sidecar = ready.parent, next(ready.glob("*.json"), None)
    if sidecar is not None:  # moved last, so without one all is done
        new = json.loads(sidecar.read_text(encoding="utf-8"))["tables"]
        for table in set(_tables(name, out)) - set(new):  # of the recording from before, and not of this one
            for ending in (".json", ".csv", ".safetensors"):
                (out / f"{table}{ending}").unlink(missing_ok=True)
    for file in sorted(ready.iterdir(), key=lambda file: (file.suffix == ".json", file.name)):
        file.replace(out / file.name)
    ready.rmdir()


def _tables(name: str, out: Path) -> list[str]:
    """The tables in a folder that belong to a recording, as their sidecars say."""
    found = []
    for sidecar in sorted(out.glob("*.json")):
        try:
            told = json.loads(sidecar.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if isinstance(told, dict) and told.get("recording") == name:
            found.append(sidecar.stem)
    return found


@torch.inference_mode()
def weights_hash(network: nn.Module) -> str:
    """A sha256 of a network's class and of its parameters and buffers."""
    pinned = hashlib.sha256(type(network).__name__.encode())
    for name, value in network.state_dict().items():
        pinned.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        pinned.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return pinned.hexdigest()
