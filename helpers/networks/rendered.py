"""The scenes that networks are trained on: rendered once, kept on disk, and checked before they are used.

A scene depends on its corpus, its index and the code that draws it, so the name of a file holds a hash of all three.
"""

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from helpers import files, images
from helpers.images.scenes import Corpus, render, split

ROOMS = [Path(images.__file__).with_name(room) for room in ("motifs.py", "scenes.py")]  # the code that draws


def training_scenes(corpus: Corpus, count: int, work: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The first ``count`` training scenes: images (count, 3, 64, 64) uint8, labels (count,).

    They are kept in ``work`` with their sha256, and rendered again where a file is missing or another than it was.
    """
    source = b"".join(room.read_bytes() for room in ROOMS)
    stem = f"scenes-{sha256(source + repr((corpus, count)).encode()).hexdigest()[:16]}"
    arrays, sums = (work / f"{stem}-images.npy", work / f"{stem}-labels.npy"), work / f"{stem}.sha256"
    if not (sums.exists() and all(file.exists() for file in arrays) and sums.read_bytes() == _sums(arrays).encode()):
        drawn = _render(corpus, count)
        with files.replacing(*arrays, sums) as (*parts, sums_part):  # another process may render the same
            for part, array in zip(parts, drawn, strict=True):
                with part.open("wb") as stream:
                    np.save(stream, array)
            sums_part.write_text(_sums(parts))
    images, labels = (torch.from_numpy(np.load(file, mmap_mode="c")) for file in arrays)
    return images, labels


def remove(work: Path) -> None:
    """Delete the rendered scenes of a folder, and what a killed run left half-written of them."""
    for file in work.glob("*scenes-*"):
        file.unlink()


def _sums(arrays: Iterable[Path]) -> str:
    """The sha256 of each file, a line each."""
    return "\n".join(files.sha256(file) for file in arrays)


def _render(corpus: Corpus, count: int) -> list[np.ndarray]:
    """Images and labels of the first ``count`` training scenes, drawn by as many processes as there are cores."""
    indices = split("train", count)
    parts = [indices[start : start + 1000] for start in range(0, count, 1000)]
    if len(parts) == 1:
        return list(_draw(corpus, indices))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        drawing = pool.map(_draw, [corpus] * len(parts), parts)
        drawn = list(tqdm(drawing, total=len(parts), desc="rendering", unit="k scenes"))
    return [np.concatenate(pieces) for pieces in zip(*drawn, strict=True)]


def _draw(corpus: Corpus, indices: range) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 64, 64) uint8 and labels (N,) of N scenes; processes are sent this."""
    drawn = render(corpus, indices)
    return drawn.images.numpy(), drawn.label.numpy()
