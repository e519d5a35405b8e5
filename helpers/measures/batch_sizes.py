"""CKA of the same images in batches of several sizes, for the comparison of claim R30, from one forward pass.

The Gram matrix of a batch holds that of every smaller batch within it as a block on its diagonal. So the images are
shown to the networks once, all together, and each size cuts its batches out of the same matrices.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from helpers.measures.cka import LEAST, MinibatchCKA, row_of_gram
from helpers.measures.cka_result import CKAResult
from helpers.measures.distributed import Share, meet
from helpers.measures.heatmap import cka_heatmap
from helpers.measures.hsic import gram_linear
from helpers.networks.inputs import normalise
from helpers.networks.taps import capture, evaluating, taps_for


@torch.inference_mode()
def cka_in_batches(
    models: Mapping[str, nn.Module], images: Tensor, sizes: Sequence[int], kinds: Iterable[str] | None = None
) -> list[CKAResult]:
    """What ``cka_heatmap`` finds between all taps of all models, in batches of each of some sizes.

    Args:
        models: label → network; run in eval mode, its modes restored.
        images: (N, 3, H, W), shown to each network at once, by each process of a distributed run. The memory that is
            needed grows with N².
        sizes: numbers of images a batch; a last batch that is smaller counts by its images.
        kinds: of taps; all by default.

    Returns:
        one result for each size, in their order.

    Raises:
        ValueError: as ``cka_heatmap`` does, and where a batch has fewer than 4 images.
    """
    kinds = None if kinds is None else list(kinds)
    about = cka_heatmap(models, [images[:LEAST]], kinds)  # the table of taps, and how HSIC is computed

    def centred_gram(x: Tensor) -> Tensor:
        return gram_linear(x.flatten(1) - x.flatten(1).mean(0))  # without the mean, which would cost digits

    grams: list[Tensor] = []  # each (N, N)
    for model in models.values():
        with evaluating(model), capture(model, taps_for(model, kinds), centred_gram) as out:
            model(normalise(model, images))
        grams += out.values()
    results = []
    for size in sizes:
        metric, parts = MinibatchCKA(len(grams)).on(grams[0].device), torch.arange(len(images)).split(size)
        for number, part in Share().dealt(parts, stand_in=False):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            metric.update(torch.stack([row_of_gram(gram[rows, rows]) for gram in grams]), batch_index=number)
        meet()
        sums, batch = metric.sums(), len(parts[0])
        results.append(replace(about, sums=sums, n_images=len(images), batch=batch, batches=len(parts)))
    return results
