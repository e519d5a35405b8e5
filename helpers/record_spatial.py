"""Recordings of spatial information: which patch a token resembles, and what a linear probe reads from it."""

import hashlib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from helpers import results
from helpers.images import ImageSet
from helpers.localization import PixelTokens, table, token_patches
from helpers.positions import prefix_tokens
from helpers.probes import OUTPUTS, features, interval, probe_scores
from helpers.taps import taps_for, taps_named

BATCH = 160  # 2,560 images make sixteen groups for the jackknife
IMAGES = 2560
LENGTH = {"resnet50": 16, "resnet152": 50}  # residual blocks of networks that may lack their last ones
PATCH = 16  # of the control: pixels against themselves
MANY = 6  # blocks at most of a ResNet's last stage
GRID = 14  # rows of positions from which single ones are taken for probes
SHOTS, DRAWS = 10, 10
TRUE = "ILSVRC2012_val_"  # how files are named that were not in ImageNet's training set


def recorded_arrays(name: str, where: str | Path | None = None) -> dict[str, np.ndarray]:
    """The arrays of a recording. Raises as ``results.read``; ValueError if they are not those of its sidecar."""
    sidecar = results.read(name, where or results.RECORDED)[1]
    file = Path(where or results.RECORDED) / f"{name}.safetensors"
    if _sha256(file) != sidecar["arrays"]:
        raise ValueError(f"{file} is not the file its sidecar describes; restore it, or run `make record` again")
    return load_file(file)


def localisation(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """Token-to-patch CKA (Raghu et al. 2021, Figs. 9, D.1 to D.3): blocks of a ViT, of ResNets the last stage.

    The pixels of the patches, compared with themselves, stand in the table as one more model.
    """
    _localise("token_patches", {**networks, "pixels": PixelTokens(PATCH)}, images, where, **notes)


def localisation_twins(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """The same for the untrained twins of the first two models."""
    _localise("token_patches_untrained", dict(list(networks.items())[:2]), images, where, **notes)


def _localise(name: str, networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    images, tables, maps = images.first(IMAGES), [], {}
    for label, network in networks.items():
        places, depths = _blocks(label, network)
        stages = [place.module.rpartition(".")[0] for place in places]
        last = np.flatnonzero([stage == stages[-1] for stage in stages])  # all blocks of a ViT
        if not hasattr(network, "patch_embed"):
            last = last[np.unique(np.linspace(0, len(last) - 1, MANY).round().astype(int))]
        found = token_patches(network, images, [places[i] for i in last], batch=BATCH, shuffle=0, progress=True)
        tables.append(table(found, [depths[i] for i in last], model=label))
        maps |= {f"{label}/{place}": at.matrix.astype(np.float16) for place, at in found.items()}
    what = "Which patch of the input a token resembles, with all images and without each group of them"
    _write(name, pd.concat(tables, ignore_index=True), maps, what, images, where, batch=BATCH, **notes)


def probes(networks: dict[str, nn.Module], images: ImageSet, where: Path, train: ImageSet, **notes: Any) -> None:
    """Ridge probes over depth (Fig. 11), of the ViT and the ResNet-50: learnt on ``train``, scored on ``images``.

    Scored on all images, and apart on those that were in no training set of ImageNet ("true validation"); and once more
    learnt from and scored on such images alone ("true only").
    """
    (y, old), (test_y, new) = (_labels(data) for data in (train, images))
    rows, kept = [], {"true validation": new.numpy()}
    some = [int(GRID * row + column) for row in _spread(GRID) for column in _spread(GRID)]
    read = {"grid": (GRID, GRID), "which": some, "batch": BATCH, "dtype": torch.float16, "progress": True}
    for label, network in list(networks.items())[:2]:
        places, depths = _blocks(label, network)
        reads = ["mean token", "tokens", *(["cls"] if prefix_tokens(network) else [])]
        x, test_x = (features(network, data, reads, places, **read) for data in (train, images))
        for name, place, shots in product(reads, range(len(places)), (SHOTS, None)):
            at, few = places[place].name, {"shots": shots, "draws": DRAWS}
            a, b = x[name][at], test_x[name][at]
            hits = probe_scores(a, y, b, test_y, **few).float()
            hits = hits.mean(1) if name == "tokens" else hits  # (R, N)
            sets = {"all": hits}
            if old.any() and new.any():
                only = probe_scores(a[..., old, :], y[old], b[..., new, :], test_y[new], **few).float()
                sets |= {"true validation": hits[:, new], "true only": only.mean(1) if name == "tokens" else only}
            for scored, part in sets.items():
                low, high = interval(part)
                about = {"model": label, "place": at, "depth": depths[place], "read_out": name}
                about |= {"shots": str(shots or "full"), "images": scored, "n": part.shape[1]}
                rows.append({**about, "accuracy": float(part.mean()), "low": low, "high": high})
            kept[f"{label}/{at}/{name}/{shots or 'full'}"] = hits.numpy().astype(np.float16)
    what = f"Accuracy of ridge probes over depth, learnt from {SHOTS} images a class ({DRAWS} draws) and from all"
    about = {"train": train.describe(), "single_tokens": some, "true_validation": [int(old.sum()), int(new.sum())]}
    _write("probes", pd.DataFrame(rows), kept, what, images, where, **about, **notes)


def _spread(count: int) -> np.ndarray:
    """Four of ``count`` rows, spread over them evenly without the rim."""
    return np.linspace(1, count - 2, 4).round().astype(int)


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
    where.mkdir(parents=True, exist_ok=True)
    file = where / f"{name}.safetensors"
    save_file(arrays, file)
    units = {column: "patches" if column == "displacement" else "1" for column in rows.select_dtypes("float")}
    results.write(
        name, rows, what=what, units=units, images=images.describe(), where=where, arrays=_sha256(file), **notes
    )


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
