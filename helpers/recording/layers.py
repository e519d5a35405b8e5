"""Recordings of what happens layer by layer in ImageNet-trained models: receptive fields and skip connections.

``helpers.recording.record`` makes them with the others (``make record``).
"""

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from tqdm import tqdm

from helpers import files, results
from helpers.images.sources import ImageSet, batches
from helpers.measures.massive_tokens import cut
from helpers.measures.probes import features
from helpers.measures.receptive_field import effective_receptive_fields
from helpers.measures.skip_ratios import MEASURES, skip_ratios
from helpers.networks.places import BRANCH_OUTPUTS, LENGTH, STREAM
from helpers.networks.taps import taps_for
from helpers.uncertainty import GROUPS

FIELD_IMAGES = 32  # as in the paper
FIELD_CHANNELS = 8  # drawn at random for each image, place and map
MANY_FIELDS = 256  # images where a claim needs a short interval, with one channel each
FIELD_SIZE = 56  # side of a stored map
SKIP_IMAGES = 1024
EVERY = 4  # of a very deep network only every fourth block is read
MANY_BLOCKS = 40


def attempt_fields(networks: dict[str, nn.Module], few: Tensor) -> None:
    """The positions of all places on a few images (4, 3, H, W). Raises ValueError where there are none."""
    for network in networks.values():
        features(network, few, places=taps_for(network, [*STREAM, *BRANCH_OUTPUTS]))


def attempt_skips(networks: dict[str, nn.Module], few: Tensor) -> None:
    """Skip ratios on a few images (4, 3, H, W). Raises ValueError for networks of which the skips are not known."""
    for network in networks.values():
        skip_ratios(network, [few], 1)


def receptive_fields(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """Effective receptive fields of each place and branch (Raghu et al. 2021, Figures 6 and C.1 to C.4).

    Depth runs along the complete network, of which every block counts, read or not.
    """
    images = images.first(FIELD_IMAGES)
    pictures = torch.stack([images[i][0] for i in range(len(images))])
    patch = next(filter(None, map(_patch, networks.values())), 16)
    tables: list[pd.DataFrame] = []
    arrays: dict[str, Tensor] = {}
    for name, network in networks.items():
        blocks = [] if _patch(network) else taps_for(network, ["stem", "block"])
        taps = [*blocks[:1], *blocks[EVERY::EVERY]] if len(blocks) > MANY_BLOCKS else None
        length = LENGTH.get(name)  # None: as many as there are
        fields = effective_receptive_fields(
            network, pictures, taps, channels=FIELD_CHANNELS, length=length, progress=True
        )
        if taps:
            fields.places["depth"] = [blocks.index(tap) / (length or len(blocks) - 1) for tap in taps]
        tables.append(fields.table(patch).assign(model=name))
        small = adaptive_avg_pool2d(fields.mean(), FIELD_SIZE)
        arrays[name] = (small / small.mean((1, 2), keepdim=True)).half().contiguous()
    file = where / "receptive_fields.safetensors"
    with files.replacing(file) as (part,):
        save_file(arrays, part)
    units = {"depth": "share of the complete network's places", "share": "1"}
    units |= dict.fromkeys(("radius", "row", "column"), "px")
    about: dict[str, Any] = {"images": images.describe(), "groups": GROUPS, "channels": FIELD_CHANNELS}
    about |= {"patch": patch, "seed": 0, "arrays": files.sha256(file), "where": where}
    what = "Effective receptive fields: radius of half the mass and share of the central patch, by group left out"
    results.write("receptive_fields", pd.concat(tables, ignore_index=True), what=what, units=units, **about, **notes)


def many_fields(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """Radii of the residual stream of the first two networks over more images, for claims about their differences.

    Of a transformer once more where no gradient passes through the patches in the corners ("without corners"), in which
    massive tokens stand (``measures.massive_tokens``).
    """
    images = images.first(MANY_FIELDS)
    pictures = torch.stack([images[i][0] for i in range(len(images))])
    tables: list[pd.DataFrame] = []
    for name, network in list(networks.items())[:2]:
        patch, taps = _patch(network), taps_for(network, STREAM)
        about_them: dict[str, Any] = {"channels": 1, "length": LENGTH.get(name), "progress": True}
        look = partial(effective_receptive_fields, network, pictures, taps, **about_them)
        found = {"all": look()}
        if patch and isinstance(getattr(network, "blocks", None), nn.Sequential):
            rows, columns = (side // patch for side in pictures.shape[-2:])
            with cut(network, (0, columns - 1, (rows - 1) * columns, rows * columns - 1)):
                found["without corners"] = look()
        tables += [at.table(patch or 16).assign(model=name, tokens=tokens) for tokens, at in found.items()]
    units = {"depth": "share of the complete network's places", "share": "1"}
    units |= dict.fromkeys(("radius", "row", "column"), "px")
    about: dict[str, Any] = {"images": images.describe(), "groups": GROUPS, "channels": 1, "seed": 0, "where": where}
    what = "Effective receptive fields over many images: radius of half the mass, by group left out"
    table = pd.concat(tables, ignore_index=True)
    results.write("receptive_fields_many", table, what=what, units=units, **about, **notes)


def skips(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """Skip ratios of every residual sublayer, and of each token of a ViT (Raghu et al. 2021, Figures 7, E.1, E.2)."""
    _skips("skip_ratios", networks, images, where, **notes)


def skips_twins(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """The same for the untrained twins of the first two networks, without the numbers of each token."""
    _skips("skip_ratios_untrained", dict(list(networks.items())[:2]), images, where, **notes)


def _skips(title: str, networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    images = images.first(SKIP_IMAGES)
    size = max(1, len(images) // GROUPS)  # a batch for each group of the jackknife
    tables: list[pd.DataFrame] = []
    tokens: list[pd.DataFrame] = []
    for name, network in networks.items():
        loader = batches(images, size)
        found = skip_ratios(network, tqdm(loader, desc=f"skip ratios, {name}", unit="batch"))
        tables.append(found.table().assign(model=name))
        if "CLS" in found.tokens and title == "skip_ratios":
            tokens.append(found.by_token().assign(model=name))
    about: dict[str, Any] = {"images": images.describe(), "groups": GROUPS, "where": where, **notes}
    what = "Norm of the skip over that of the branch, and cosines to their sum, by sublayer and group left out"
    units = dict.fromkeys((*MEASURES, "whole", "silent", "massive"), "1")
    results.write(title, pd.concat(tables, ignore_index=True), what=what, units=units, **about)
    if tokens:
        table = pd.concat(tokens, ignore_index=True)
        results.write("skip_tokens", table, what="The same ratio for each token", units={"ratio": "1"}, **about)


def _patch(network: Any) -> int | None:
    """Side in px of the patches that a network cuts images into; None of one that does not."""
    embed = getattr(network, "patch_embed", None)
    return None if embed is None else embed.patch_size[0]
