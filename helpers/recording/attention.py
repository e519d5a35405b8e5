"""Recordings of attention in ImageNet-trained models: distances of heads, head subsets, rollout.

``helpers.recording.record`` makes them with the others (``make record``). The first network is a ViT, the second a
ResNet.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn
from tqdm import tqdm

from helpers import results
from helpers.images.sources import ImageSet, batches
from helpers.measures.attention import attended_patches, attention_distance
from helpers.measures.head_subsets import head_subsets
from helpers.measures.rollout import rollout_maps
from helpers.uncertainty import GROUPS

HEAD_IMAGES = 1600
TWIN_IMAGES = 1024
SUBSET_IMAGES = 2560  # in batches of 160
ROLLOUT_IMAGES = 1024


def attempt_heads(networks: dict[str, nn.Module], few: Tensor) -> None:
    """The distances of heads on a few images (4, 3, H, W). Raises ValueError for a network without heads to measure."""
    attention_distance(_first(networks)[1], few.split(2), groups=2)


def attempt_subsets(networks: dict[str, nn.Module], few: Tensor) -> None:
    """Subsets of heads. Raises ValueError for networks of which there are none, or fewer than two networks."""
    if len(networks) < 2:
        raise ValueError("a ResNet is needed beside the ViT")
    vit, resnet = list(networks.values())[:2]
    head_subsets(vit, resnet, [few, few], groups=2)


def attempt_rollout(networks: dict[str, nn.Module], few: Tensor) -> None:
    """Rollout. Raises ValueError for networks that have none."""
    rollout_maps(_first(networks)[1], [few])


def attempt_attended(networks: dict[str, nn.Module], few: Tensor) -> None:
    """Attended patches. Raises ValueError for networks that have none."""
    attended_patches(_first(networks)[1], [few])


def heads(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """Attention distance and prefix mass of every head of the ViT (Raghu et al. 2021, Figure 3).

    Once with all patches and, unless it attends within windows, once without those in the corners, in which massive
    tokens stand.
    """
    table = _heads("attention_distance", networks, images, where, **notes)
    if not table["windowed"].any():
        _heads("attention_distance_without_corners", networks, images, where, corners=False, **notes)


def heads_twins(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """The same, with all patches, of the ViT's untrained twin."""
    _heads("attention_distance_untrained", networks, images.first(TWIN_IMAGES), where, **notes)


def _heads(
    title: str, networks: dict[str, nn.Module], images: ImageSet, where: Path, *, corners: bool = True, **notes: Any
) -> pd.DataFrame:
    images = images.first(HEAD_IMAGES)
    name, vit = _first(networks)
    loader = _groups(images, title.replace("_", " "))
    table = attention_distance(vit, loader, groups=GROUPS, corners=corners).assign(model=name)
    units = {"distance": "px", "plain": "px", "prefix": "share of attention", "uniform": "px"}
    what = f"Attention distance of the heads of {name}, by group of images left out; plain: not renormalised"
    about: dict[str, Any] = {"images": images.describe(), "groups": GROUPS, "corners": corners, "where": where}
    results.write(title, table, what=what, units=units, **about, **notes)
    return table


def subsets(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """Subsets of the first heads of the ViT, and their CKA with the ResNet's first stage (Raghu et al., Figure 5).

    Once with all patches and once without those in the corners.
    """
    _subsets("head_subsets", networks, images, where, **notes)
    _subsets("head_subsets_without_corners", networks, images, where, corners=False, **notes)


def subsets_twins(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """The same, with all patches, of the untrained twins."""
    _subsets("head_subsets_untrained", networks, images, where, **notes)


def _subsets(
    title: str, networks: dict[str, nn.Module], images: ImageSet, where: Path, *, corners: bool = True, **notes: Any
) -> None:
    images = images.first(SUBSET_IMAGES)
    (name, vit), (other, resnet) = list(networks.items())[:2]
    loader = _groups(images, title.replace("_", " "))
    table = head_subsets(vit, resnet, loader, groups=GROUPS, corners=corners).assign(model=name, resnet=other)
    about: dict[str, Any] = {"images": images.describe(), "groups": GROUPS, "corners": corners, "where": where}
    about["batch"] = len(images) // GROUPS
    what = f"Subsets of the heads of block 0 of {name}: distance, and CKA with the first stage of {other}"
    results.write(title, table, what=what, units={"distance": "px", "cka": "CKA"}, **about, **notes)


def rollout(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """The mean rollout map over images after each block of the ViT; no map of a single image is kept."""
    images = images.first(ROLLOUT_IMAGES)
    name, vit = _first(networks)
    maps = rollout_maps(vit, _groups(images, "rollout"))  # (images, blocks, rows, columns)
    mean, spread = maps.mean(0), maps.std(0)
    rows = [
        (block, row, column, float(mean[block, row, column]), float(spread[block, row, column]))
        for block in range(mean.shape[0])
        for row in range(mean.shape[1])
        for column in range(mean.shape[2])
    ]
    table = pd.DataFrame(rows, columns=["block", "row", "column", "mass", "spread"]).assign(model=name)
    about: dict[str, Any] = {"images": images.describe(), "where": where}
    what = f"Rollout of {name} over patches after each block: mean over images, and deviation between them"
    results.write("rollout", table, what=what, units=dict.fromkeys(("mass", "spread"), "share"), **about, **notes)


def attended(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """Which patches take the attention of the others, by block of the ViT."""
    images = images.first(ROLLOUT_IMAGES)
    name, vit = _first(networks)
    table = attended_patches(vit, _groups(images, "attended patches")).assign(model=name)
    what = f"Share of the attention between patches of {name} that falls on each patch, and the norm of its token"
    about: dict[str, Any] = {"images": images.describe(), "where": where}
    results.write("attended", table, what=what, units={"share": "1", "norm": "activation"}, **about, **notes)


def _first(networks: dict[str, nn.Module]) -> tuple[str, nn.Module]:
    """The ViT, which is named first."""
    return next(iter(networks.items()))


def _groups(images: ImageSet, what: str) -> tqdm:
    """The images in as many batches as the jackknife has groups, or one more."""
    return tqdm(batches(images, max(1, len(images) // GROUPS)), desc=what, unit="batch")
