"""Which heads see like a CNN: subsets of the heads of a ViT's first attention beside a ResNet's low layers.

Raghu et al. (2021, Figure 5) take subsets of heads of the first block, from the most local to the most global, and
find that CKA with a ResNet's low layers falls as the subset's mean attention distance grows. How large the subsets are,
and whether a head is read before or after the projection that mixes heads, they do not say. Here all subsets are
taken, before the projection.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import combinations

import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from helpers.attention import attention_maps, attentions, distances, evaluating, grid_of
from helpers.hsic import GROUPS, LEAST, MinibatchCKA, gram_linear, gram_row, row_of_gram
from helpers.images import normalise
from helpers.positions import prefix_tokens
from helpers.taps import Tap, capture, taps_for


def head_outputs(model: nn.Module, name: str) -> Tap:
    """Where the outputs A · v of an attention's heads can be read, side by side, before norm and projection."""
    module = model.get_submodule(name)
    inner = "norm" if isinstance(getattr(module, "norm", None), nn.Module) else "proj"
    return Tap(f"{name}.heads", f"{name}.{inner}", "input")


@torch.inference_mode()
def head_subsets(vit: nn.Module, resnet: nn.Module, batches: Iterable, *, groups: int = GROUPS) -> pd.DataFrame:
    """Subsets of the heads of a ViT's first attention, by distance, and their CKA with a ResNet (Raghu, Figure 5).

    A head's output is A · v at the patch tokens, before the projection; those of a subset are laid side by side. The
    Gram matrix of features side by side is the sum of their Gram matrices, so one Gram matrix a head serves all
    subsets. The CKA is that with each block of the ResNet's first stage, averaged.

    Returns a table of ``subset`` (such as "0 2"), its number of ``heads``, ``distance`` (px, mean of its heads'),
    ``cka``, ``left_out``; all subsets but the empty and the full one. Raises ``ValueError`` for a single head, and as
    ``attention_distance`` does.
    """
    name, device = attentions(vit)[0], next(vit.parameters()).device
    blocks = [tap for tap in taps_for(resnet, ["block"]) if re.match(r"stages\.0\.|layer1\.", tap.name)]
    entrance = _first_stage(resnet)
    heads, prefix = vit.get_submodule(name).num_heads, prefix_tokens(vit)
    subsets = [chosen for k in range(1, heads) for chosen in combinations(range(heads), k)]
    if not subsets:
        raise ValueError(f"{type(vit).__name__} has a single head in {name}: there are no subsets to compare")
    member = torch.tensor([[float(head in chosen) for head in range(heads)] for chosen in subsets], device=device)
    metric = MinibatchCKA(len(subsets), len(blocks), groups).to(device)

    def grams(x: Tensor) -> Tensor:  # (n, prefix + T, heads · d) → (heads, n · n)
        parts = x[:, prefix:].unflatten(-1, (heads, -1)).unbind(2)
        return torch.stack([gram_linear(part - part.mean(0)).flatten() for part in parts])

    def distance(attention: Tensor, size: tuple[int, int]) -> Tensor:
        return distances(attention, grid_of(vit, name, attention.shape[-1], size))[:, 0]

    found: list[list[tuple[int, Tensor]]] = [[] for _ in range(groups)]
    with evaluating(vit), evaluating(resnet), _first_block(vit):
        for number, batch in enumerate(batches):
            images = batch[0] if isinstance(batch, (tuple, list)) else batch
            if len(images) < LEAST:  # a last batch too small for CKA
                continue
            with (
                attention_maps(vit, partial(distance, size=tuple(images.shape[-2:])), [name]) as looked,
                capture(vit, [head_outputs(vit, name)], grams) as out,
                capture(entrance, blocks, gram_row) as low,
            ):
                vit(normalise(vit, images))
                entrance(normalise(resnet, images))
            n = len(images)
            rows = [row_of_gram(gram.view(n, n)) for gram in member @ next(iter(out.values()))]
            metric.update(torch.stack(rows), torch.stack(list(low.values())))
            found[number % groups].append((n, looked[name]))
    if not all(found):
        raise ValueError(f"{groups} groups for the jackknife need as many batches; use smaller ones")
    sums, tables = metric.sums(), []
    for left_out in range(-1, groups):
        parts = [part for group in range(groups) if group != left_out for part in found[group]]
        mean = (sum(n * value for n, value in parts) / sum(n for n, _ in parts)).numpy()
        cka = sums.cka(None if left_out < 0 else left_out).mean(1)
        rows = [(" ".join(map(str, c)), len(c), mean[list(c)].mean(), cka[i]) for i, c in enumerate(subsets)]
        tables.append(pd.DataFrame(rows, columns=["subset", "heads", "distance", "cka"]).assign(left_out=left_out))
    return pd.concat(tables, ignore_index=True)


def order_of_subsets(table: pd.DataFrame) -> float:
    """Claim R11: Spearman's correlation, over subsets, of distance and CKA."""
    return float(spearmanr(table["distance"], table["cka"]).statistic)


def _first_stage(resnet: nn.Module) -> nn.Sequential:
    """A ResNet up to the end of its first stage, under the same names: the rest would be computed for nothing."""
    parts = {
        key: child for key, child in resnet.named_children() if key in ("conv1", "bn1", "act1", "maxpool", "layer1")
    }
    if not hasattr(resnet, "layer1"):
        parts = {"stem": resnet.stem, "stages": nn.Sequential(resnet.stages[0])}
    return nn.Sequential(OrderedDict(parts))


@contextmanager
def _first_block(vit: nn.Module) -> Iterator[None]:
    """A ViT with its first block alone, for as long as the context lasts."""
    blocks = getattr(vit, "blocks", None)
    try:
        if isinstance(blocks, nn.Sequential):
            vit.blocks = blocks[:1]
        yield
    finally:
        if blocks is not None:
            vit.blocks = blocks
