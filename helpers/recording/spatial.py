"""Recordings of spatial information: which patch a token resembles, and what a linear probe reads from it."""

from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save_file
from torch import nn

from helpers import files, results
from helpers.images.sources import ImageSet
from helpers.measures.localization import PixelTokens, table, token_patches
from helpers.measures.probes import features, probe_scores
from helpers.networks.inputs import normalise
from helpers.networks.places import LENGTH, OUTPUTS
from helpers.networks.positions import has_class_token, positions
from helpers.networks.taps import Tap, capture, evaluating, taps_for, taps_named
from helpers.recording.store import batch_size
from helpers.uncertainty import interval

BATCH = 160  # 2,560 images make sixteen groups for the jackknife
IMAGES = 2560
PATCH = 16  # of the control: pixels against themselves
MANY = 6  # blocks at most of a ResNet's last stage
SHOTS, DRAWS = 10, 10
TRUE = "ILSVRC2012_val_"  # how files are named that were not in ImageNet's training set


def attempt_localisation(networks: dict[str, nn.Module], few: torch.Tensor) -> None:
    """Token-to-patch CKA of each network's last block on a few images (4, 3, H, W). Raises ValueError without one."""
    for label, network in networks.items():
        token_patches(network, few, _blocks(label, network)[0][-1:], batch=len(few))


def attempt_probes(networks: dict[str, nn.Module], few: torch.Tensor) -> None:
    """The features of the first two networks. Raises ValueError for networks without positions to read."""
    for label, network in list(networks.items())[:2]:
        features(network, few, ["mean token"], _blocks(label, network)[0][-1:])


def lacking(train: ImageSet) -> str:
    """What probes lack that learn from ``train``; "" if nothing."""
    counts = np.bincount(train.labels, minlength=len(train.classes))
    names = train.classes or range(len(counts))
    if len(counts) < 2:
        return "the images to learn from are of one class; sort them into a sub-folder for each class"
    few = [str(name) for name, count in zip(names, counts, strict=True) if count <= SHOTS]
    if few:
        return f"more than {SHOTS} images of each class are needed to learn from; there are fewer of {', '.join(few)}"
    return ""


def localisation(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """Token-to-patch CKA (Raghu et al. 2021, Figs. 9, D.1 to D.3): blocks of a ViT, of ResNets the last stage.

    The pixels of the patches, compared with themselves, stand in the table as one more model.
    """
    _localise("token_patches", {**networks, "pixels": PixelTokens(PATCH)}, images, where, **notes)


def localisation_twins(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """The same for the untrained twins of the first two models."""
    _localise("token_patches_untrained", dict(list(networks.items())[:2]), images, where, **notes)


def localisation_clipped(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """The last block of the first model, as it is and with massive tokens scaled down, beside the patches' pixels."""
    label, network = next(iter(networks.items()))
    places, depths = _blocks(label, network)
    pixels = PixelTokens(PATCH)
    asked = {
        label: (network, places[-1:], depths[-1:], False),
        f"{label}, clipped": (network, places[-1:], depths[-1:], True),
        "pixels": (pixels, *_blocks("pixels", pixels), False),
    }
    images = images.first(IMAGES)
    size = batch_size(len(images), BATCH)
    tables: list[pd.DataFrame] = []
    maps: dict[str, np.ndarray] = {}
    for name, (model, at, depth, clip) in asked.items():
        found = token_patches(model, images, at, batch=size, shuffle=0, clip=clip, progress=True)
        tables.append(table(found, depth, model=name))
        maps |= {f"{name}/{place}": one.matrix.astype(np.float16) for place, one in found.items()}
    what = "Which patch a token of the last block resembles, with massive tokens as they are and scaled down"
    rows = pd.concat(tables, ignore_index=True)
    _write("token_patches_clipped", rows, maps, what, images, where, batch=size, **notes)


def _localise(name: str, networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    images = images.first(IMAGES)
    tables: list[pd.DataFrame] = []
    maps: dict[str, np.ndarray] = {}
    size = batch_size(len(images), BATCH)
    for label, network in networks.items():
        places, depths = _blocks(label, network)
        stages = [place.module.rpartition(".")[0] for place in places]
        last = np.flatnonzero([stage == stages[-1] for stage in stages])  # all blocks of a ViT
        if not hasattr(network, "patch_embed"):
            last = last[np.unique(np.linspace(0, len(last) - 1, MANY).round().astype(int))]
        found = token_patches(network, images, [places[i] for i in last], batch=size, shuffle=0, progress=True)
        tables.append(table(found, [depths[i] for i in last], model=label))
        maps |= {f"{label}/{place}": at.matrix.astype(np.float16) for place, at in found.items()}
    what = "Which patch of the input a token resembles, with all images and without each group of them"
    _write(name, pd.concat(tables, ignore_index=True), maps, what, images, where, batch=size, **notes)


def probes(networks: dict[str, nn.Module], images: ImageSet, where: Path, train: ImageSet, **notes: Any) -> None:
    """Ridge probes over depth (Fig. 11), of the ViT and the ResNet-50: learnt on ``train``, scored on ``images``.

    Single tokens are taken from the coarsest grid of positions among the places read, to which finer ones are averaged.
    Scored on all images, and apart on those that were in no training set of ImageNet ("true validation"); and once more
    learnt from and scored on such images alone ("true only").
    """
    (y, true), (test_y, test_true) = (_labels(data) for data in (train, images))
    rows, kept = [], {"true validation": test_true.numpy()}
    enough = bool((torch.bincount(y[true], minlength=int(y.max()) + 1) > SHOTS).all())  # to learn from these alone
    networks = dict(list(networks.items())[:2])
    grid = _coarsest(networks, images[0][0])
    some = [int(grid[1] * row + column) for row in _spread(grid[0]) for column in _spread(grid[1])]
    read: dict[str, Any] = {"grid": grid, "which": some, "batch": BATCH, "dtype": torch.float16, "progress": True}
    for label, network in networks.items():
        places, depths = _blocks(label, network)
        reads = ["mean token", "tokens", *(["cls"] if has_class_token(network) else [])]
        x, test_x = (features(network, data, reads, places, **read) for data in (train, images))
        for name, place, shots in product(reads, range(len(places)), (SHOTS, None)):
            at = places[place].name
            a, b = x[name][at], test_x[name][at]
            hits = probe_scores(a, y, b, test_y, shots=shots, draws=DRAWS).float()
            hits = hits.mean(1) if name == "tokens" else hits  # (R, N)
            sets = {"all": hits}
            if enough and test_true.any():
                learn, score = (a[..., true, :], y[true]), (b[..., test_true, :], test_y[test_true])
                only = probe_scores(*learn, *score, shots=shots, draws=DRAWS).float()
                sets |= {"true validation": hits[:, test_true], "true only": only.mean(1) if name == "tokens" else only}
            for scored, part in sets.items():
                low, high = interval(part)
                about = {"model": label, "place": at, "depth": depths[place], "read_out": name}
                about |= {"shots": str(shots or "full"), "images": scored, "n": part.shape[1]}
                rows.append({**about, "accuracy": float(part.mean()), "low": low, "high": high})
            kept[f"{label}/{at}/{name}/{shots or 'full'}"] = hits.numpy().astype(np.float16)
    what = f"Accuracy of ridge probes over depth, learnt from {SHOTS} images a class ({DRAWS} draws) and from all"
    about = {
        "train": train.describe(),
        "grid": grid,
        "single_tokens": some,
        "true_validation": [int(true.sum()), int(test_true.sum())],
    }
    _write("probes", pd.DataFrame(rows), kept, what, images, where, **about, **notes)


def _spread(count: int) -> np.ndarray:
    """Four of ``count`` rows, spread over them evenly without the rim; fewer where there are no four inside."""
    return np.unique(np.linspace(1, count - 2, 4).round().astype(int).clip(0, count - 1))


@torch.inference_mode()
def _coarsest(networks: dict[str, nn.Module], image: torch.Tensor) -> tuple[int, int]:
    """Rows and columns of the coarsest grid of positions among the blocks of all networks, of an image (3, H, W)."""
    grids: list[tuple[int, int]] = []
    size = (image.shape[-2], image.shape[-1])
    for label, network in networks.items():
        with (
            evaluating(network),
            capture(network, _blocks(label, network)[0], partial(_grid, network, size), with_tap=True) as out,
        ):
            network(normalise(network, image[None]))
        grids += out.values()
    return min(rows for rows, _ in grids), min(columns for _, columns in grids)


def _grid(network: nn.Module, size: tuple[int, int], x: torch.Tensor, tap: Tap) -> tuple[int, int]:
    """Rows and columns of the positions of an activation."""
    return positions(network, x, size=size, tap=tap).grid


def _labels(images: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (N,) of a set, and which of its files are true validation images of ImageNet."""
    return torch.tensor(images.labels), torch.tensor([name.startswith(TRUE) for name in images.names])


def _blocks(label: str, network: nn.Module) -> tuple[list, list[float]]:
    """A network's blocks and their depths, along the complete network."""
    if isinstance(network, PixelTokens):
        return taps_named(network, ["tokens"]), [0.0]
    places = taps_for(network, OUTPUTS)
    length = LENGTH.get(label, len(places))
    return places, [(i + 1) / length for i in range(len(places))]


def _write(
    name: str, rows: pd.DataFrame, arrays: dict[str, np.ndarray], what: str, images: ImageSet, where: Path, **notes: Any
) -> None:
    """Write a table with its arrays; the arguments are those of ``results.write``."""
    file = where / f"{name}.safetensors"
    with files.replacing(file) as (part,):
        save_file(arrays, part)
    units = {column: "patches" if column == "displacement" else "1" for column in rows.select_dtypes("float")}
    about: dict[str, Any] = {"images": images.describe(), "arrays": files.sha256(file), "where": where}
    results.write(name, rows, what=what, units=units, **about, **notes)
