"""What chapters measure on many networks of the zoo, kept in ``data/recorded`` so that a build need not wait for it.

A chapter asks for a measurement by the names of networks and by what it wants of them. What was kept for just these
weights, images and settings is handed out; anything else is measured there and then, so that a chapter with other
parameters computes everything itself. What the chapters ask for by default is kept by

    python -m helpers.recording.beforehand --out data/recorded [chapter …]

which runs the chapters, and measures what is not there yet (``keeping``).
"""

import argparse
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from helpers.files import ROOT
from helpers.images import scenes
from helpers.images.sources import batches, scene_images
from helpers.measures import batch_sizes, data_scale, lesions, localization, structure
from helpers.measures.attention import attention_distance
from helpers.measures.cka import Sums
from helpers.measures.cka_result import CKAResult
from helpers.measures.heatmap import cka_heatmap
from helpers.measures.object_probes import ObjectProbes, probe_object
from helpers.measures.scores import scores
from helpers.measures.skip_ratios import ORDINARY, skip_ratios
from helpers.networks.places import OUTPUTS
from helpers.networks.taps import taps_for
from helpers.recording import store
from helpers.recording.keeping import KEEPING, Arrays, Network, kept

CHAPTERS = (
    "02_representation",
    "04_skip_connections",
    "05_spatial_information",
    "06_data_scale",
    "10_building_with_attention",
)
RATIOS = ["sublayer", "block", "branch", "tokens", "left_out", "ratio"]
LESIONED = {"branches": lesions.units, "convolutions": lesions.spatial_convolutions}
_TABLES = ("classes", "positions", "masks")
_NAMES = ("about", *(field.name for field in fields(Sums)))


def probes(
    network: Network, corpus: scenes.Corpus, learn: int, scored: int, *, shots: int, draws: int = 5, seed: int = 0
) -> dict[float, Tensor]:
    """What ``data_scale.probed`` gives of a network, with ``learn`` validation and ``scored`` test scenes of a corpus.

    Args:
        network: which one.
        corpus: of the scenes.
        learn: scenes that the probes learn from and choose their l2 on.
        scored: scenes that they are scored on.
        shots: images a class that a probe learns from.
        draws: R, how often the shots are drawn.
        seed: of the first draw.

    Returns:
        depth of the block → right or wrong, (R, scenes) bool.

    Raises:
        ValueError: as ``data_scale.probed`` does.
    """
    how = {"shots": shots, "draws": draws, "seed": seed}

    def measure() -> Arrays:
        read, test = _rendered(corpus, "validation", learn), _rendered(corpus, "test", scored)
        found = data_scale.probed(network.load(), read, test, shots=shots, draws=draws, seed=seed)
        return {repr(depth): right.numpy() for depth, right in found.items()}

    asked = {"corpus": repr(corpus), "learn": learn, "scored": scored, **how}
    found = kept("probes", {"network": network}, asked, measure)
    return {
        float(depth): torch.from_numpy(right) for depth, right in sorted(found.items(), key=lambda one: float(one[0]))
    }


def heatmap(
    networks: Mapping[str, Network],
    images: int,
    batch: int,
    kinds: Sequence[str],
    *,
    corpus: scenes.Corpus | None = None,
    shuffle: int | None = None,
) -> CKAResult:
    """What ``cka_heatmap`` gives of networks on the first test scenes of a corpus.

    Args:
        networks: label → which one.
        images: how many scenes.
        batch: scenes a batch.
        kinds: of taps, the same for all.
        corpus: of the scenes; by default the one that the networks were trained on.
        shuffle: seed of the control; none without.

    Returns:
        The result, with a control if there is a seed.

    Raises:
        ValueError: as ``cka_heatmap`` does.
    """
    corpus = corpus or scenes.Corpus()

    def measure() -> Arrays:
        models = {label: network.load() for label, network in networks.items()}
        stream = batches(scene_images(images, corpus=corpus), batch)
        return _to_arrays(cka_heatmap(models, stream, kinds, shuffle=shuffle))

    asked = {"corpus": repr(corpus), "images": images, "batch": batch, "kinds": list(kinds), "shuffle": shuffle}
    return _to_result(kept("heatmap", networks, asked, measure))


def in_batches(
    networks: Mapping[str, Network], images: int, sizes: Sequence[int], kinds: Sequence[str]
) -> list[CKAResult]:
    """CKA of networks on the first test scenes in batches of each of some sizes (``batch_sizes.cka_in_batches``).

    One result a size, whose jackknife groups are the batches of ``sizes[0]``, each shown to the networks at once.
    Raises as ``cka_in_batches``.
    """

    def measure() -> Arrays:
        models = {label: network.load() for label, network in networks.items()}
        parts = [part for part, _ in batches(scene_images(images), sizes[0])]
        by_size = zip(*(batch_sizes.cka_in_batches(models, part, sizes, kinds) for part in parts), strict=True)
        found = {size: _to_arrays(structure.grouped(of_size)) for size, of_size in zip(sizes, by_size, strict=True)}
        return {f"{size}/{name}": array for size, of_size in found.items() for name, array in of_size.items()}

    found = kept("in batches", networks, {"images": images, "sizes": list(sizes), "kinds": list(kinds)}, measure)
    own = [{name: found[f"{size}/{name}"] for name in _NAMES if f"{size}/{name}" in found} for size in sizes]
    return [_to_result(arrays) for arrays in own]


def object_probes(
    network: Network,
    learn: int,
    scored: int,
    depths: Sequence[float],
    read_outs: Sequence[str],
    grid: tuple[int, int],
    patches: Tensor,
    *,
    shots: int,
    draws: int,
    seed: int = 0,
) -> ObjectProbes:
    """What ``probe_object`` gives of a network, with ``learn`` validation and ``scored`` test scenes.

    Args:
        network: which one.
        learn: scenes that the probes learn from.
        scored: scenes that they are scored on.
        depths: of the blocks that are read, each the share of all blocks up to it.
        read_outs: as for ``probe_object``, and so are the others.
        grid: rows and columns of tokens.
        patches: (H, W), the token to whose patch a pixel belongs.
        shots: scenes of each class that few-shot probes learn from.
        draws: of these scenes.
        seed: of the first draw.

    Returns:
        The tables, and what each test scene contributed.

    Raises:
        ValueError: as ``probe_object`` does.
    """
    corpus, how = scenes.Corpus(), {"shots": shots, "draws": draws, "seed": seed}

    def measure() -> Arrays:
        model = network.load()
        blocks = taps_for(model, OUTPUTS)
        places = {depth: blocks[round(depth * len(blocks)) - 1] for depth in depths}
        parts = _rendered(corpus, "validation", learn), _rendered(corpus, "test", scored)
        found = probe_object(model, *parts, places, read_outs, grid, patches, shots=shots, draws=draws, seed=seed)
        tables = {name: _text(getattr(found, name).to_csv(index=False)) for name in _TABLES}
        right = {json.dumps(["right", *key]): value.numpy() for key, value in found.right.items()}
        return tables | right | {json.dumps(["tiles", *key]): value.numpy() for key, value in found.tiles.items()}

    pinned = hashlib.sha256(patches.numpy().tobytes()).hexdigest()
    asked = {"learn": learn, "scored": scored, "depths": list(depths), "read_outs": list(read_outs)}
    asked |= {"grid": list(grid), "patches": pinned, **how}
    found = kept("object probes", {"network": network}, asked, measure)
    tables = {name: _table(found[name]) for name in _TABLES}
    named = {tuple(json.loads(name)): torch.from_numpy(found[name]) for name in found if name not in _TABLES}
    right, tiles = ({key[1:]: value for key, value in named.items() if key[0] == kind} for kind in ("right", "tiles"))
    return ObjectProbes(**tables, right=right, tiles=tiles)


def ratios(network: Network, images: int, batch: int) -> pd.DataFrame:
    """Mean skip ratios of a network on the first test scenes: of ``SkipRatios.table`` the columns ``RATIOS``.

    ``batch``: scenes a batch. Raises as ``skip_ratios`` does.
    """

    def measure() -> Arrays:
        table = skip_ratios(network.load(), batches(scene_images(images), batch)).table()
        return {"table": _text(table.loc[~table["tokens"].isin(ORDINARY.values()), RATIOS].to_csv(index=False))}

    found = kept("skip ratios", {"network": network}, {"images": images, "batch": batch}, measure)
    return _table(found["table"])


def distances(network: Network, images: int, batch: int) -> pd.DataFrame:
    """What ``attention_distance`` gives of a network on the first test scenes, in batches. Raises as that does."""

    def measure() -> Arrays:
        found = attention_distance(network.load(), batches(scene_images(images), batch))
        return {"table": _text(found.to_csv(index=False))}

    return _table(kept("distances", {"network": network}, {"images": images, "batch": batch}, measure)["table"])


def localised(network: Network, images: int, batch: int) -> pd.DataFrame:
    """``localization.table`` of a network's last block on the first test scenes. Raises as ``token_patches`` does."""

    def measure() -> Arrays:
        model, corpus = network.load(), scenes.Corpus()
        found = localization.token_patches(
            model, _rendered(corpus, "test", images).images, taps_for(model, OUTPUTS)[-1:], batch=batch
        )
        return {"table": _text(localization.table(found, [1.0]).to_csv(index=False))}

    return _table(kept("localised", {"network": network}, {"images": images, "batch": batch}, measure)["table"])


def scored(networks: Mapping[str, Network], images: int, batch: int) -> pd.DataFrame:
    """What ``scores`` gives of classifiers on the first test scenes, in batches. Raises as that does.

    A piece each, so that a network more costs its own time alone.
    """
    tables = []
    for label, network in networks.items():

        def measure(network: Network = network) -> Arrays:
            found = scores({"": network.load()}, batches(scene_images(images), batch))
            return {"table": _text(found.drop(columns="network").to_csv(index=False))}

        found = kept("scores", {"network": network}, {"images": images, "batch": batch}, measure)
        tables.append(_table(found["table"]).assign(network=label))
    if not tables:
        raise ValueError("there is no network to score")
    table = pd.concat(tables, ignore_index=True)
    return table[["network", *table.columns.drop("network")]]


def lesioned(network: Network, images: int, batch: int, units: str = "branches") -> pd.DataFrame:
    """What ``lesions`` gives of a network on the first test scenes, in batches, each unit silenced by itself.

    ``units``: its "branches", or its "convolutions", the spatial ones of a ResNet. Raises ValueError for others, and as
    ``lesions`` does.
    """
    if units not in LESIONED:
        raise ValueError(f"units are {' or '.join(LESIONED)}, not {units}")

    def measure() -> Arrays:
        model = network.load()
        found = lesions.lesions(model, list(batches(scene_images(images), batch)), LESIONED[units](model))
        return {"table": _text(found.to_csv(index=False))}

    asked = {"images": images, "batch": batch, "units": units}
    return _table(kept("lesions", {"network": network}, asked, measure)["table"])


@lru_cache(maxsize=2)
def _rendered(corpus: scenes.Corpus, which: str, count: int) -> scenes.Scenes:
    return scenes.render(corpus, scenes.split(which, count))


def _text(text: str) -> np.ndarray:
    """A text as an array of the bytes of its UTF-8."""
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _table(text: np.ndarray) -> pd.DataFrame:
    """The table that was kept as its CSV's ``_text``."""
    return pd.read_csv(BytesIO(text.tobytes()))


def _to_arrays(result: CKAResult) -> Arrays:
    """A CKA result as arrays, its taps and settings as the bytes of a JSON text; of its groups those with batches."""
    about = json.dumps({"taps": result.taps.to_dict("list"), "info": result.info})
    arrays = {"about": _text(about)}
    for prefix, one in (("", result), ("control.", result.control)):
        if one is not None:
            arrays |= {prefix + name: value[one.sums.batches > 0] for name, value in vars(one.sums).items()}
    return arrays


def _to_result(arrays: Arrays) -> CKAResult:
    """The CKA result of ``_to_arrays``."""
    about = json.loads(arrays["about"].tobytes())
    taps = pd.DataFrame(about["taps"])
    sums, control = (
        Sums(**{field.name: arrays[prefix + field.name] for field in fields(Sums)})
        if f"{prefix}cross" in arrays
        else None
        for prefix in ("", "control.")
    )
    assert sums is not None
    everything = np.arange(len(taps))
    made = [CKAResult(one, taps, everything, everything, **about["info"]) for one in (sums, control) if one is not None]
    return made[0] if len(made) == 1 else CKAResult(**{**vars(made[0]), "control": made[1]})


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Keep what chapters measure on many networks of the zoo.")
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER", help=f"all by default: {', '.join(CHAPTERS)}")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to: data/recorded is the book's own")
    given = parser.parse_args(arguments)
    wanted, out = given.chapters or CHAPTERS, given.out.expanduser().resolve()
    if unknown := sorted(set(wanted) - set(CHAPTERS)):
        parser.error(f"not among the chapters that ask for something: {', '.join(unknown)}; {', '.join(CHAPTERS)} do")
    import papermill  # which chapters, that import this room, can do without

    with store.alone(out):
        os.environ[KEEPING] = str(out)
        for chapter in wanted:
            source = ROOT / "notebooks" / f"{chapter}.ipynb"
            papermill.execute_notebook(str(source), None, kernel_name="python3", cwd=str(ROOT), progress_bar=True)


if __name__ == "__main__":
    main()
