"""Recordings of the inside of a ViT: its patch embedding, its positions, its class token, and shuffled patches.

``helpers.recording.record`` makes them with the others (``make record``). The first network is a ViT. What is kept of
a patch embedding are principal components, from which its filters cannot be put together again; of
photographs no more than components of very many patches.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from helpers import files, results
from helpers.images.examples import CREDIT, EXAMPLES, example_photographs
from helpers.images.sources import ImageSet, batches
from helpers.measures import position_embedding
from helpers.measures.class_attention import class_attention
from helpers.measures.patch_embedding import Components, components, cut, embedding_filters, filter_components, overlap
from helpers.measures.patch_shuffle import shuffled_answers
from helpers.measures.rollout import rollout_maps
from helpers.networks.inputs import image_size
from helpers.uncertainty import GROUPS

PATCH_IMAGES = 256  # of whose patches components are taken
CLASS_IMAGES = 1024
SHUFFLE_IMAGES = 512


def attempt_filters(networks: dict[str, nn.Module], few: Tensor) -> None:
    """The components of the first network's filters. Raises ValueError where filters are no pictures."""
    filters = embedding_filters(_first(networks)[1])
    components(filters)
    cut(few, _size(filters))


def attempt_positions(networks: dict[str, nn.Module], few: Tensor) -> None:
    """Its position embeddings. Raises ValueError for a network without, and for too small a grid."""
    embeddings = position_embedding.position_embeddings(_first(networks)[1])
    rows, columns, _ = embeddings.shape
    position_embedding.row_and_column(position_embedding.cosines(embeddings), (rows, columns))


def attempt_class(networks: dict[str, nn.Module], few: Tensor) -> None:
    """Its class token's attention. Raises ValueError for a network without a class token."""
    class_attention(_first(networks)[1], [few])


def attempt_shuffled(networks: dict[str, nn.Module], few: Tensor) -> None:
    """Its answers to shuffled patches. Raises ValueError for a network without answers, or whose patches do not fit."""
    vit = _first(networks)[1]
    shuffled_answers(vit, [few], _sizes(vit, few.shape[-1]), groups=2)


def patch_filters(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """Principal components of the ViT's patch embedding and of the patches of photographs (Figure 7, left)."""
    name, vit = _first(networks)
    images, filters = images.first(PATCH_IMAGES), embedding_filters(vit)
    pictures = torch.cat([pixels for pixels, _ in batches(images, 64)])
    found = {"filters": components(filters), "photographs": components(cut(pictures.float(), _size(filters)))}
    shared = overlap(found["filters"], found["photographs"])
    what = f"Principal components of the patch embedding of {name}, and of the patches of photographs"
    _write_components("patch_filters", what, found, where, images=images.describe(), overlap=shared, **notes)


def patch_filters_untrained(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """The same of the ViT's untrained twin, which needs no photographs."""
    name, vit = _first(networks)
    what = f"Principal components of the patch embedding of {name} with random weights"
    found = {"filters": filter_components(vit)}
    _write_components("patch_filters_untrained", what, found, where, images=images.first(1).describe(), **notes)


def positions(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """Cosines of the ViT's position embeddings, all pairs of patches (Dosovitskiy et al. 2021, Figures 7 and 10)."""
    name, vit = _first(networks)
    embeddings = position_embedding.position_embeddings(vit)
    grid = (embeddings.shape[0], embeddings.shape[1])
    cosine = position_embedding.cosines(embeddings)
    rows = [
        (distance, kind, len(pairs[0]), float(cosine[pairs].mean()))
        for distance, *both in position_embedding.equal_distances(grid)
        for kind, pairs in zip(("one row or column", "other"), both, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["distance", "kind", "pairs", "cosine"]).assign(model=name)
    about: dict[str, Any] = {"images": images.first(1).describe(), "grid": grid, "where": where}
    about["arrays"] = _save(where / "position_cosines.safetensors", {"cosine": torch.from_numpy(cosine).float()})
    what = f"Cosines of the position embeddings of {name}: means over pairs of one distance; all pairs in the arrays"
    results.write("position_cosines", table, what=what, units={"cosine": "1"}, **about, **notes)


def class_token(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """What the class token of the ViT attends to: the mean over photographs, and two photographs of scikit-learn."""
    name, vit = _first(networks)
    images = images.first(CLASS_IMAGES)
    mean, spread, count = torch.zeros(()), torch.zeros(()), 0
    for pixels, _ in tqdm(batches(images, 64), desc="class token", unit="batch"):
        maps = class_attention(vit, [pixels]).double()  # (B, blocks, heads, rows, columns)
        mean, count = mean + maps.sum(0), count + len(maps)
        spread = spread + torch.special.entr(maps).sum((3, 4)).exp().sum(0)
    mean, spread = mean / count, spread / count
    most = mean.flatten(2).amax(2)
    rows = [
        (block, head, float(spread[block, head]), float(most[block, head]))
        for block in range(spread.shape[0])
        for head in range(spread.shape[1])
    ]
    table = pd.DataFrame(rows, columns=["block", "head", "patches", "most"]).assign(model=name)
    shown = example_photographs(images.describe()["size"])
    arrays = {"mean": mean.half(), "examples": class_attention(vit, [shown]).half()}
    arrays["rollout"] = rollout_maps(vit, [shown]).half()
    about: dict[str, Any] = {"images": images.describe(), "examples": EXAMPLES, "credit": CREDIT, "where": where}
    about["arrays"] = _save(where / "class_attention.safetensors", arrays)
    what = f"Attention of the class token of {name}: over how many patches it spreads, mean over photographs"
    units = {"patches": "patches", "most": "share"}
    results.write("class_attention", table, what=what, units=units, **about, **notes)


def shuffled(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """How often the ViT keeps its answer when the patches of a photograph are dealt to other places."""
    name, vit = _first(networks)
    images = images.first(SHUFFLE_IMAGES)
    size = image_size(vit) or (images.describe()["size"],)
    stream = tqdm(batches(images, 64), desc="shuffled patches", unit="batch")
    unlabelled = (pixels for pixels, _ in stream)  # labels are those of folders, not of what the network was taught
    table = shuffled_answers(vit, unlabelled, _sizes(vit, size[0])).drop(columns="accuracy").assign(model=name)
    about: dict[str, Any] = {"images": images.describe(), "groups": GROUPS, "where": where}
    what = f"Share of photographs to which {name} gives the same answer after shuffling patches of so many pixels"
    units = {"kept": "share", "change": "deviations of a logit"}
    results.write("patch_shuffle", table, what=what, units=units, **about, **notes)


def _first(networks: dict[str, nn.Module]) -> tuple[str, nn.Module]:
    """The ViT, which is named first."""
    return next(iter(networks.items()))


def _size(filters: Tensor) -> tuple[int, int]:
    return filters.shape[2], filters.shape[3]


def _sizes(model: nn.Module, side: int) -> list[int]:
    """Sizes of patches to shuffle: the model's own, and multiples of it that cut the image into four parts or more."""
    size = _size(embedding_filters(model))[0]
    number = side // size
    return [size * times for times in range(1, number // 2 + 1) if number % times == 0]


def _write_components(name: str, what: str, found: dict[str, Components], where: Path, **about: Any) -> None:
    """A table of shares and variations of each component, and the components themselves as arrays."""
    rows = [
        (of, number, float(share), float(variation))
        for of, part in found.items()
        for number, (share, variation) in enumerate(zip(part.shares, part.variation, strict=True))
    ]
    table = pd.DataFrame(rows, columns=["of", "component", "share", "variation"])
    arrays = _save(where / f"{name}.safetensors", {of: part.pictures.half() for of, part in found.items()})
    units = {"share": "share of variance", "variation": "total variation at unit norm"}
    results.write(name, table, what=what, units=units, arrays=arrays, where=where, **about)


def _save(file: Path, arrays: dict[str, Tensor]) -> str:
    """Write arrays to a file and return its sha256, which the sidecar pins."""
    with files.replacing(file) as (part,):
        save_file({name: array.contiguous() for name, array in arrays.items()}, part)
    return files.sha256(file)
