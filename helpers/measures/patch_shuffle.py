"""Images whose patches are dealt to other places, and what a network makes of them.

A transformer without position embeddings takes its tokens as a set: it cannot notice that patches have changed places,
as long as they are the patches that it cuts itself. One with position embeddings can, and so can a convolutional
network. How much either loses says how much of its answer rests on where things are (Dosovitskiy et al. 2021, Table 8,
asks the same by training without position embeddings). Patches keep their pixels, so what is lost with larger
patches is the arrangement of larger parts.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from helpers.measures.distributed import Share
from helpers.measures.patch_embedding import cut
from helpers.measures.streams import at_least_two, counted
from helpers.networks.inputs import normalise, pixels
from helpers.networks.taps import evaluating
from helpers.uncertainty import GROUPS, delete_one


def shuffle_patches(images: Tensor, size: int, seed: int = 0, first: int = 0) -> Tensor:
    """Images (B, C, H, W) with their patches of ``size`` × ``size`` pixels in another order, drawn for each image.

    ``seed``: of the orders. ``first``: the number of the first image, so that an image's order does not depend on the
    batch it is in. Raises ``ValueError`` where images cannot be cut into whole patches.
    """
    patches = cut(images, (size, size)).unflatten(0, (len(images), -1))  # (B, T, C, size, size)
    shuffled = torch.stack([one[_order(seed, first + i, len(one))] for i, one in enumerate(patches)])
    rows, columns = (n // size for n in images.shape[2:])
    tiles = shuffled.unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2, 5)  # (B, C, rows, size, columns, size)
    return tiles.reshape(images.shape)


@torch.inference_mode()
def shuffled_answers(
    model: nn.Module, batches: Iterable, sizes: Sequence[int], *, seed: int = 0, groups: int = GROUPS
) -> pd.DataFrame:
    """What a classifier answers to images with their patches shuffled.

    Args:
        model: a classifier of any kind; run in eval mode, its modes restored.
        batches: batches (images (n, 3, H, W), labels (n,)), or images alone where there are no labels.
        sizes: of patches, in px; each divides the image.
        seed: of the orders.
        groups: of images for the jackknife, at least 2; image i is in group i mod ``groups``.

    Returns:
        a table with a row for each size, 0 for images as they are, once for all images (``left_out`` −1) and once
        without each group: ``patch`` (px); ``accuracy``, NaN without labels; ``kept``, the share of images whose
        answer is that to the image as it is; ``change``, the largest difference of any logit of any image to the same
        without shuffling, over the standard deviation of all logits.

    Raises:
        ValueError: fewer than two groups, fewer images than groups, sizes that do not divide the images, a model
            that gives no logits (n, classes), another number of labels than of images.
    """
    at_least_two(groups)
    sizes, share = [0, *sizes], Share()
    found: dict[int, list[tuple[Tensor, Tensor]]] = {}  # number of a batch → its logits (n, sizes, classes) and labels
    with evaluating(model):
        for number, (first, batch) in share.dealt(counted(batches)):
            images = pixels(batch)
            shown = (shuffle_patches(images, size, seed, first) if size else images for size in sizes)
            logits = torch.stack([_logits(model, one) for one in shown], 1).double()
            found[number] = [(logits, _labels(batch, len(images)))]
    parts = share.in_order(found)
    count = sum(len(labels) for _, labels in parts)
    if count < groups:
        raise ValueError(f"{groups} groups need as many images; got {count}")
    logits, truth = (torch.cat(each) for each in zip(*parts, strict=True))
    plain, group = logits[:, 0], np.arange(count) % groups
    right, kept, moved = [], [], []
    for values in logits.unbind(1):
        answer = values.argmax(1)
        right.append(torch.where(truth < 0, torch.nan, (answer == truth).double()).numpy())
        kept.append((answer == plain.argmax(1)).double().numpy())
        moved.append((values - plain).abs().amax(1).numpy())
    per_image = np.stack([right, kept, moved])  # (3, sizes, N)

    def measure(left_out: int | None) -> dict[str, np.ndarray]:
        chosen = group != (-1 if left_out is None else left_out)
        accuracy, same = per_image[:2][:, :, chosen].mean(2)
        spread = float(plain[torch.from_numpy(chosen)].std())
        return {"accuracy": accuracy, "kept": same, "change": per_image[2][:, chosen].max(1) / spread}

    return delete_one(pd.DataFrame({"patch": sizes}), measure, range(groups))


def lost(table: pd.DataFrame, patch: int) -> float:
    """Claim C10, with: accuracy on images minus accuracy on the same with patches of ``patch`` px shuffled, in points.

    ``table``: rows of ``shuffled_answers`` for one choice of images. Raises ``KeyError`` for a size that is not there.
    """
    accuracy = table.set_index("patch")["accuracy"]
    return float(100 * (accuracy[0] - accuracy[patch]))


def changed(table: pd.DataFrame, patch: int) -> float:
    """Claim C10, without: the largest difference of a logit under shuffling, over the logits' standard deviation."""
    return float(table.set_index("patch")["change"][patch])


def _order(seed: int, number: int, count: int) -> Tensor:
    """The order of ``count`` patches of an image."""
    return torch.from_numpy(np.random.default_rng((seed, number)).permutation(count))


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    found = model(normalise(model, images))
    if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[1] < 2:
        raise ValueError(f"{type(model).__name__} gives no logits (n, classes), so it has no answers to compare")
    return found.cpu()


def _labels(batch: object, count: int) -> Tensor:
    """The labels of a batch, −1 where it has none."""
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        return torch.full((count,), -1)
    labels = torch.as_tensor(batch[1]).cpu()
    if labels.shape != (count,):
        raise ValueError(f"a batch of {count} images has labels of shape {tuple(labels.shape)}; one a image is needed")
    return labels
