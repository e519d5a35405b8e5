"""Recordings of CKA: within and across networks, of their untrained twins, of parts of tokens, in batches of two sizes.

``helpers.recording.record`` makes them with the others (``make record``).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from helpers import files, results
from helpers.images.sources import ImageSet, batches
from helpers.measures.cka import LEAST, MinibatchCKA, gram_row, row_of_gram
from helpers.measures.cka_result import SUMMED
from helpers.measures.distributed import Share, meet
from helpers.measures.heatmap import CKAResult, cka_heatmap
from helpers.measures.massive_tokens import VIEWS, statistics, views
from helpers.networks.inputs import float64, normalise
from helpers.networks.places import STREAM
from helpers.networks.positions import prefix_tokens
from helpers.networks.taps import Tap, capture, taps_for
from helpers.recording.store import batch_size

BATCH = 256
CONTROL_IMAGES = 2560  # the paper saw no effect of taking more
LARGE, SMALL = 1024, 128  # batches of claim R30
RATIO = LARGE // SMALL
CHUNK = 128  # images of one forward pass, of a batch too large for one


def attempt(networks: dict[str, nn.Module], few: Tensor) -> None:
    """The heat-map of a few images (4, 3, H, W). Raises ValueError for networks that cannot be read."""
    cka_heatmap(networks, [few], STREAM)


def attempt_tokens(networks: dict[str, nn.Module], few: Tensor) -> None:
    """The parts of the first network's tokens. Raises ValueError for networks without tokens, and as ``attempt``."""
    vit = next(iter(networks.values()))
    with torch.inference_mode(), capture(vit, taps_for(vit, STREAM), lambda x: views(x, prefix_tokens(vit))):
        vit(normalise(vit, few))
    attempt(dict(list(networks.items())[:2]), few)


def similarity(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """CKA within and across all models in one pass, shuffled images as control (Raghu et al. 2021, Figs. 1, 2, B.1)."""
    loader = batches(images, batch_size(len(images), BATCH))
    result = cka_heatmap(networks, loader, STREAM, shuffle=0, progress=True)
    _write("similarity", result, "CKA between all layers of ImageNet-trained models", images, where, **notes)


def twins(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """The same for the untrained twins of the first two models: what architecture and images alone bring about."""
    images = images.first(CONTROL_IMAGES)
    networks = dict(list(networks.items())[:2])
    result = cka_heatmap(networks, batches(images, batch_size(len(images), BATCH)), STREAM, progress=True)
    _write("similarity_untrained", result, "CKA between all layers of the untrained twins", images, where, **notes)


def tokens(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """CKA of parts of the ViT's tokens (``massive_tokens.VIEWS``) with each other and with the ResNet's layers.

    The sizes of the parts are another table. A ViT without prefix tokens has no part of its own for them.
    """
    images = images.first(CONTROL_IMAGES)
    size = batch_size(len(images), BATCH)
    (vit_name, vit), (resnet_name, resnet) = list(networks.items())[:2]
    taps, blocks = taps_for(vit, STREAM), taps_for(resnet, STREAM)
    prefix, share = prefix_tokens(vit), Share()
    sizes: dict[int, list[dict[str, Any]]] = {}  # by number of the batch
    seen = [view for view in VIEWS if prefix or view != "CLS token"]
    device = next(vit.parameters()).device
    metric = MinibatchCKA(len(seen) * len(taps) + len(blocks)).on(device)

    def parts(x: Tensor) -> tuple[Tensor, dict[str, float]]:
        return torch.stack([gram_row(part) for part in views(x, prefix).values()]), statistics(x, prefix)

    with torch.inference_mode(), capture(vit, taps, parts) as vit_out, capture(resnet, blocks, gram_row) as resnet_out:
        for number, (batch, _) in share.dealt(tqdm(batches(images, size), desc="tokens", unit="batch"), stand_in=False):
            if len(batch) < LEAST:
                continue
            vit(normalise(vit, batch))
            resnet(normalise(resnet, batch))
            rows = torch.stack([row for row, _ in vit_out.values()], dim=1)  # (views, taps, n²)
            metric.update(torch.cat([rows.flatten(0, 1), torch.stack(list(resnet_out.values()))]), batch_index=number)
            sizes[number] = [{"tap": tap.name, **vit_out[tap.name][1]} for tap in taps]
    of_batches = share.in_order(sizes)
    places = [
        (f"{vit_name}, {view}", tap.name, tap.kind, i / (len(taps) - 1)) for view in seen for i, tap in enumerate(taps)
    ]
    places += [(resnet_name, tap.name, tap.kind, i / (len(blocks) - 1)) for i, tap in enumerate(blocks)]
    result = _result(metric, places, size, len(images))
    _write("token_similarity", result, f"CKA of parts of the tokens of {vit_name}", images, where, **notes)
    table = pd.DataFrame(of_batches)
    over_batches = dict.fromkeys(table.columns.drop("tap"), "mean") | {"largest_norm": "max", "top_channel": "median"}
    table = table.groupby("tap").agg(over_batches).loc[[tap.name for tap in taps]].reset_index()
    table["top_channel"] = table["top_channel"].astype(int)
    floats = list(table.select_dtypes("float"))
    units = {column: "activation" if column.endswith("norm") else "share" for column in floats}
    what = f"Norms and variance of the tokens of {vit_name}, means over batches of {size}"
    results.write("token_sizes", table, what=what, units=units, images=images.describe(), where=where, **notes)


def batch_sizes(networks: dict[str, nn.Module], images: ImageSet, where: Path, **notes: Any) -> None:
    """CKA of the ViT and the ResNet-50 from the same Gram matrices, in large and in small batches (claim R30).

    A small batch's Gram matrix is a block on the diagonal of a large one's, so one pass serves both.
    """
    large, small = large_and_small(min(len(images), CONTROL_IMAGES))
    images = images.first(min(len(images), CONTROL_IMAGES) // small * small)
    networks = dict(list(networks.items())[:2])
    taps = {name: taps_for(network, STREAM) for name, network in networks.items()}
    places = [
        (name, tap.name, tap.kind, i / (len(taps[name]) - 1)) for name in taps for i, tap in enumerate(taps[name])
    ]
    device = next(next(iter(networks.values())).parameters()).device
    sums = {size: MinibatchCKA(len(places)).on(device) for size in (large, small)}
    bar = tqdm(batches(images, large), desc="batch sizes", unit="batch")
    for number, (batch, _) in Share().dealt(bar, stand_in=False):
        grams = torch.stack([gram for name in networks for gram in _large_grams(networks[name], taps[name], batch)])
        for size, metric in sums.items():
            for start in range(0, len(batch), size):
                block, at = slice(start, start + size), (number * large + start) // size
                metric.update(torch.stack([row_of_gram(gram[block, block]) for gram in grams]), batch_index=at)
    meet()
    for size, metric in sums.items():
        result = _result(metric, places, size, len(images))
        what = f"CKA between all layers of {' and '.join(networks)}, in batches of {size}"
        _write(f"similarity_batch{size}", result, what, images, where, **notes)


def large_and_small(count: int) -> tuple[int, int]:
    """The two sizes of batches to compare on ``count`` images: those of claim R30, or a third and a 24th of them."""
    if count >= 2 * LARGE:
        return LARGE, SMALL
    small = max(count // 3 // RATIO, LEAST)
    return RATIO * small, small


@torch.inference_mode()
def _large_grams(model: nn.Module, taps: list[Tap], images: Tensor) -> list[Tensor]:
    """Gram matrices (n, n), float64, of a batch too large for one forward pass.

    The activations wait in half precision: centred, and each image's scaled by a power of two to a largest value of
    1, which costs no digit and can be as large or as small as float32 is. Raises ValueError, naming the tap, for
    activations that are not finite.
    """
    kept: dict[str, list[Tensor]] = {tap.name: [] for tap in taps}
    powers: dict[str, list[Tensor]] = {tap.name: [] for tap in taps}
    centres: dict[str, Tensor] = {}
    with capture(model, taps, lambda x: x.flatten(1).float().clone()) as out:
        for chunk in images.split(CHUNK):
            model(normalise(model, chunk))
            for name, x in out.items():
                centred = x - centres.setdefault(name, x.mean(0))
                if not centred.isfinite().all():
                    raise ValueError(f"{name}: activations are not finite, or too large for float32")
                power = torch.frexp(centred.abs().amax(1)).exponent.clamp(-126, 128)  # (chunk,)
                kept[name].append((centred * torch.exp2(-power.float())[:, None]).half())
                powers[name].append(power)
    grams = []
    for tap in taps:
        x, scale = torch.cat(kept.pop(tap.name)), torch.exp2(float64(torch.cat(powers[tap.name])))  # (n, p), (n,)
        gram = sum(part.float() @ part.float().T for part in x.split(65536, dim=1))
        grams.append(float64(gram) * scale[:, None] * scale)
    return grams


def _result(metric: MinibatchCKA, places: list[tuple], batch: int, images: int) -> CKAResult:
    """The sums of a metric over ``images`` as a result; ``places`` are (model, name, kind, depth) of its rows."""
    sums, everything = metric.sums(), np.arange(len(places))
    used = int(sums.images.sum())
    return CKAResult(
        sums, pd.DataFrame(places, columns=["model", "name", "kind", "depth"]), everything, everything,
        n_images=used, batch=batch, batches=int(sums.batches.sum()), skipped=images - used,
        estimator=f"HSIC, unbiased, {SUMMED}", dtype="float32",
    )  # fmt: skip


def _write(name: str, result: CKAResult, what: str, images: ImageSet, where: Path, **notes: Any) -> None:
    """Write a heat-map with its sums; the arguments are those of ``results.write``."""
    where.mkdir(parents=True, exist_ok=True)
    file = result.save(where / f"{name}.safetensors")
    about: dict[str, Any] = {"images": images.describe(), "cka": result.info, "arrays": files.sha256(file)}
    units = {"depth": "share of the model's taps"}
    results.write(name, result.taps, what=what, units=units, where=where, **about, **notes)
