"""Measurements on ImageNet-trained models and photographs, kept in ``data/recorded`` (``make record``).

    make record WEIGHTS=folder IMAGES=folder MODELS="a ViT, a ResNet, any others"

``WEIGHTS`` is a folder with ``cards.json`` and ``weights/`` (or nothing, for timm's hub), ``IMAGES`` any folder of
photographs, ``MODELS`` the names of models, by default those of ``MODELS`` below. Each recording is a file of numbers
with a sidecar that says what it was made from; no weight and no image is stored. ``recorded_cka(name)`` gives a
recorded heat-map back, with its errors and controls.
"""

import argparse
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from helpers import record_attention, record_layers, record_spatial, results, zoo
from helpers.cka import CKAResult, MinibatchCKA, cka_heatmap, gram_row
from helpers.hsic import row_of_gram
from helpers.images import ImageSet, batches, folder_images, normalise
from helpers.positions import prefix_tokens
from helpers.structure import STREAM
from helpers.taps import Tap, capture, taps_for
from helpers.tokens import VIEWS, statistics, views

MODELS = ("vit_tiny_patch16_224", "resnet50", "resnet152")
BATCH = 256
CONTROL_IMAGES = 2560  # the paper saw no effect of taking more
LARGE, SMALL = 1024, 128  # batches of claim R30


def recorded_cka(name: str, where: str | Path | None = None) -> tuple[CKAResult, dict[str, Any]]:
    """A recorded CKA heat-map and its sidecar. Raises as ``results.read``; ValueError if the arrays are not its own."""
    _, sidecar = results.read(name, where or results.RECORDED)
    return CKAResult.load(results.arrays(name, where)), sidecar


def similarity(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """CKA within and across all models in one pass, shuffled images as control (Raghu et al. 2021, Figs. 1, 2, B.1)."""
    result = cka_heatmap(networks, batches(images, BATCH), STREAM, shuffle=0, progress=True)
    _write("similarity", result, "CKA between all layers of ImageNet-trained models", images, where, **notes)


def twins(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """The same for the untrained twins of the first two models: what architecture and images alone bring about."""
    images = images.first(CONTROL_IMAGES)
    networks = dict(list(networks.items())[:2])
    result = cka_heatmap(networks, batches(images, BATCH), STREAM, progress=True)
    _write("similarity_untrained", result, "CKA between all layers of the untrained twins", images, where, **notes)


def tokens(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """CKA of parts of the ViT's tokens (``tokens.VIEWS``) with each other and with the ResNet-50; the parts' sizes.

    A ViT without prefix tokens has no part of its own for them.
    """
    images = images.first(CONTROL_IMAGES)
    (vit_name, vit), (resnet_name, resnet) = list(networks.items())[:2]
    taps, blocks = taps_for(vit, STREAM), taps_for(resnet, STREAM)
    prefix, sizes = prefix_tokens(vit), []
    seen = [view for view in VIEWS if prefix or view != "CLS token"]
    metric = MinibatchCKA(len(seen) * len(taps) + len(blocks))

    def parts(x: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        return torch.stack([gram_row(part) for part in views(x, prefix).values()]), statistics(x, prefix)

    with torch.inference_mode(), capture(vit, taps, parts) as vit_out, capture(resnet, blocks, gram_row) as resnet_out:
        for batch, _ in tqdm(batches(images, BATCH), desc="tokens", unit="batch"):
            vit(normalise(vit, batch))
            resnet(normalise(resnet, batch))
            rows = torch.stack([row for row, _ in vit_out.values()], dim=1)  # (views, taps, n²)
            metric.update(torch.cat([rows.flatten(0, 1), torch.stack(list(resnet_out.values()))]))
            sizes += [{"tap": tap.name, **vit_out[tap.name][1]} for tap in taps]
    places = [
        (f"{vit_name}, {view}", tap.name, tap.kind, i / (len(taps) - 1)) for view in seen for i, tap in enumerate(taps)
    ]
    places += [(resnet_name, tap.name, tap.kind, i / (len(blocks) - 1)) for i, tap in enumerate(blocks)]
    _write(
        "token_similarity",
        _result(metric, places, BATCH),
        f"CKA of parts of the tokens of {vit_name}",
        images,
        where,
        **notes,
    )
    table = pd.DataFrame(sizes)
    order = [tap.name for tap in taps]
    table = table.groupby("tap").agg(
        {
            column: "max" if column == "largest_norm" else "median" if column == "top_channel" else "mean"
            for column in table
            if column != "tap"
        }
    )
    table["top_channel"] = table["top_channel"].astype(int)
    units = {
        column: "activation" if column.endswith("norm") else "share" for column in table if column != "top_channel"
    }
    what = f"Norms and variance of the tokens of {vit_name}, means over batches of {BATCH}"
    results.write(
        "token_sizes",
        table.loc[order].reset_index(),
        what=what,
        units=units,
        images=images.describe(),
        where=where,
        **notes,
    )


def batch_sizes(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """CKA of the ViT and the ResNet-50 from the same Gram matrices, in large and in small batches (claim R30).

    A small batch's Gram matrix is a block on the diagonal of a large one's, so one pass serves both.
    """
    images = images.first(CONTROL_IMAGES)
    networks = dict(list(networks.items())[:2])
    taps = {name: taps_for(network, STREAM) for name, network in networks.items()}
    places = [
        (name, tap.name, tap.kind, i / (len(taps[name]) - 1)) for name in taps for i, tap in enumerate(taps[name])
    ]
    sums = {LARGE: MinibatchCKA(len(places)), SMALL: MinibatchCKA(len(places))}
    for batch, _ in tqdm(batches(images, LARGE), desc="batch sizes", unit="batch"):
        grams = torch.stack([gram for name in networks for gram in _large_grams(networks[name], taps[name], batch)])
        for size, metric in sums.items():
            for start in range(0, len(batch), size):
                block = slice(start, start + size)
                metric.update(torch.stack([row_of_gram(gram[block, block]) for gram in grams]))
    for size, metric in sums.items():
        result = _result(metric, places, size)
        what = f"CKA between all layers of {' and '.join(networks)}, in batches of {size}"
        _write(f"similarity_batch{size}", result, what, images, where, **notes)


@torch.inference_mode()
def _large_grams(model: nn.Module, taps: list[Tap], images: torch.Tensor) -> list[torch.Tensor]:
    """Gram matrices (n, n) of a batch too large for one forward pass; activations wait in half precision, centred."""
    kept: dict[str, list[torch.Tensor]] = {tap.name: [] for tap in taps}
    centres: dict[str, torch.Tensor] = {}
    with capture(model, taps, lambda x: x.flatten(1).clone()) as out:
        for chunk in images.split(SMALL):
            model(normalise(model, chunk))
            for name, x in out.items():
                centre = centres.setdefault(name, x.mean(0))
                kept[name].append((x - centre).half())
    grams = []
    for tap in taps:
        x = torch.cat(kept.pop(tap.name))  # (n, p)
        grams.append(sum(part.float() @ part.float().T for part in x.split(65536, dim=1)))
    return grams


RECORDINGS = {
    "similarity": similarity,
    "twins": twins,
    "tokens": tokens,
    "batch_sizes": batch_sizes,
    "attention_distance": record_attention.heads,
    "head_subsets": record_attention.subsets,
    "rollout": record_attention.rollout,
    "attended": record_attention.attended,
    "receptive_fields": record_layers.receptive_fields,
    "skip_ratios": record_layers.skips,
    "token_patches": record_spatial.localisation,
    "token_patches_untrained": record_spatial.localisation_twins,
    "probes": record_spatial.probes,
}
UNTRAINED = ("twins", "token_patches_untrained")  # recordings of networks with random weights


def _result(metric: MinibatchCKA, places: list[tuple], batch: int) -> CKAResult:
    """The sums of a metric as a result; ``places`` are (model, name, kind, depth) of its rows."""
    sums, everything = metric.sums(), np.arange(len(places))
    return CKAResult(
        sums, pd.DataFrame(places, columns=["model", "name", "kind", "depth"]), everything, everything,
        n_images=int(sums.images.sum()), batch=batch, batches=int(sums.batches.sum()), skipped=0,
        estimator="HSIC, unbiased, summed over minibatches", dtype="float32",
    )  # fmt: skip


def _write(name: str, result: CKAResult, what: str, images: ImageSet, where: Path, **notes: Any) -> None:
    where.mkdir(parents=True, exist_ok=True)
    file = result.save(where / f"{name}.safetensors")
    about = {"what": what, "units": {"depth": "share of the model's taps"}, "images": images.describe(), "where": where}
    results.write(name, result.taps, **about, cka=result.info, arrays=results.sha256(file), **notes)


def main() -> None:
    parser = argparse.ArgumentParser(description="Record measurements on ImageNet-trained models in data/recorded.")
    parser.add_argument("--weights", help="folder with cards.json and weights/; timm's hub without it")
    parser.add_argument("--images", required=True, help="folder of photographs")
    parser.add_argument(
        "--train-images", help="folder of photographs, with the same sub-folders, that probes learn from"
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="a ViT first, then a ResNet, then any others")
    parser.add_argument("--only", nargs="+", choices=RECORDINGS, help="recordings to make (all that can be made)")
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--limit", type=int, help="number of images (all by default)")
    parser.add_argument("--out", type=Path, default=results.RECORDED, help="folder to write to (data/recorded)")
    given = parser.parse_args()
    if len(given.models) < 2 and not given.only:
        parser.error("recordings compare models: name a ViT and a ResNet at least, or choose what to record in --only")
    only = given.only or [name for name in RECORDINGS if name != "probes" or given.train_images]
    more = {}
    if "probes" in only:
        if not given.train_images:
            parser.error("probes learn from other images than they are scored on: name their folder in --train-images")
        more["probes"] = {"train": folder_images(given.train_images, given.size, given.limit)}
    images = folder_images(given.images, given.size, given.limit)
    load = partial(zoo.load, folder=given.weights)
    cards = {
        name: {key: value for key, value in zoo.local_card(name, given.weights).items() if key != "file"}
        for name in given.models
    }
    notes = {"models": cards, "recorded": date.today().isoformat(), "code": results.code_version()}
    for name in only:
        loaded = {
            model: load(model, pretrained=name not in UNTRAINED).to(memory_format=torch.channels_last)
            for model in given.models
        }
        RECORDINGS[name](loaded, images, given.out, **more.get(name, {}), **notes)


if __name__ == "__main__":
    main()
