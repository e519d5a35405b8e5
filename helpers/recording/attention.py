"""Recordings of attention in ImageNet-trained models: distances of heads, head subsets, rollout, ways past corners.

``helpers.recording.record`` makes them with the others (``make record``). The first network is a ViT, the second a
ResNet.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from helpers import results
from helpers.images.sources import ImageSet, batches
from helpers.measures.attention import attended_patches, attention_distance
from helpers.measures.attention_maps import corner_patches
from helpers.measures.head_subsets import head_subsets
from helpers.measures.massive_tokens import cut
from helpers.measures.receptive_field import effective_receptive_fields
from helpers.measures.rollout import rollout_maps
from helpers.networks.places import STREAM
from helpers.networks.positions import token_grid
from helpers.networks.taps import taps_for
from helpers.uncertainty import GROUPS

HEAD_IMAGES = 1600
FEWER_IMAGES = 1024
TWIN_IMAGES = 320
SUBSET_IMAGES = 2560  # in batches of 160
ROLLOUT_IMAGES = 1024
FIELD_IMAGES = 64  # with one channel each


def attempt_heads(networks: dict[str, nn.Module], few: Tensor) -> None:
    """The distances of heads on a few images (4, 3, H, W). Raises ValueError for a network without heads to measure."""
    attention_distance(_first(networks)[1], few.split(2), groups=2)


def attempt_corners(networks: dict[str, nn.Module], few: Tensor) -> None:
    """Distances without corner patches. Raises ValueError for windows and for a grid that is too small."""
    attention_distance(_first(networks)[1], few.split(2), groups=2, corners=False)


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
    """Attention distance and prefix mass of every head of the ViT (Raghu et al. 2021, Figure 3)."""
    _heads("attention_distance", networks, images, where, **notes)


def heads_without_corners(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """The same without the patches in the corners, in which massive tokens stand."""
    images = images.first(FEWER_IMAGES)
    _heads("attention_distance_without_corners", networks, images, where, corners=False, **notes)


def heads_twins(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """The same, with all patches, of the ViT's untrained twin."""
    _heads("attention_distance_untrained", networks, images.first(TWIN_IMAGES), where, **notes)


def _heads(
    title: str, networks: dict[str, nn.Module], images: ImageSet, where: Path, *, corners: bool = True, **notes: Any
) -> None:
    images = images.first(HEAD_IMAGES)
    name, vit = _first(networks)
    loader = _groups(images, title.replace("_", " "))
    table = attention_distance(vit, loader, groups=GROUPS, corners=corners).assign(model=name)
    units = {"distance": "px", "plain": "px", "prefix": "share of attention", "uniform": "px"}
    what = f"Attention distance of the heads of {name}, by group of images left out; plain: not renormalised"
    about: dict[str, Any] = {"images": images.describe(), "groups": GROUPS, "corners": corners, "where": where}
    results.write(title, table, what=what, units=units, **about, **notes)


def subsets(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """Subsets of the first heads of the ViT, and their CKA with the ResNet's first stage (Raghu et al., Figure 5)."""
    _subsets("head_subsets", networks, images, where, **notes)


def subsets_without_corners(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """The same without the patches in the corners."""
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


def attempt_fields(networks: dict[str, nn.Module], few: Tensor) -> None:
    """The way past the corners. Raises ValueError for a network that is no plain transformer, or too small a grid."""
    with cut(_first(networks)[1], _corners(_first(networks)[1], few)):
        pass


def fields_without_corners(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """Receptive fields of the ViT's stream and attentions where no gradient passes through the corner patches."""
    images = images.first(FIELD_IMAGES)
    pictures = torch.stack([images[i][0] for i in range(len(images))])
    name, vit = _first(networks)
    with cut(vit, _corners(vit, pictures)):
        taps = taps_for(vit, [*STREAM, "attn"])
        fields = effective_receptive_fields(vit, pictures, taps, channels=1, progress=True)
    embedding: Any = vit.get_submodule("patch_embed")
    patch = int(embedding.patch_size[0])
    table = fields.table(patch).assign(model=name)
    units = {"depth": "share of the network's places", "share": "1"} | dict.fromkeys(("radius", "row", "column"), "px")
    about: dict[str, Any] = {"images": images.describe(), "groups": GROUPS, "channels": 1, "patch": patch, "seed": 0}
    what = f"Effective receptive fields of {name} with the ways through the four corner patches cut"
    results.write("receptive_fields_without_corners", table, what=what, units=units, where=where, **about, **notes)


def _corners(vit: nn.Module, pictures: Tensor) -> tuple[int, ...]:
    """The numbers of the corner patches. Raises ValueError for a network without one grid of patches."""
    height, width = pictures.shape[-2:]
    if (grid := token_grid(vit, (height, width))) is None:
        raise ValueError(f"{type(vit).__name__} is no plain transformer: it has no grid of patches with corners")
    return corner_patches(grid)


def _first(networks: dict[str, nn.Module]) -> tuple[str, nn.Module]:
    """The ViT, which is named first."""
    return next(iter(networks.items()))


def _groups(images: ImageSet, what: str) -> tqdm:
    """The images in as many batches as the jackknife has groups, or one more."""
    return tqdm(batches(images, max(1, len(images) // GROUPS)), desc=what, unit="batch")
