"""What a network of the zoo was trained to make small, as a function of its weights: loss, penalty, on which images.

Park & Kim (2022) insist that the shape of a loss be measured on the *training* objective: on training images augmented
as in training, with the term of weight decay. On clean images without it the same network has another Hessian.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from helpers.images.scenes import render, split
from helpers.images.symmetries import turned
from helpers.networks import augmentation
from helpers.networks.catalogue import Card
from helpers.networks.inputs import normalise

Weights = Mapping[str, Tensor]  # name of a parameter → its values
Batch = tuple[Tensor, Tensor]  # images (B, 3, H, W) uint8, labels (B,) or shares of classes (B, classes)


def training_batches(card: Card, count: int, size: int = 16, seed: int = 0) -> list[Batch]:
    """Images as a card's network saw them in training: batches of images (size, 3, 64, 64) uint8 and labels (size,).

    They are drawn at random, without replacement, from the scenes that it was trained on; each under one of the eight
    symmetries of a square where its recipe augments. Where it augments strongly, images are changed and mixed with
    each other, and labels are shares (size, classes). Batch b is the same for every number of batches ``count``.

    Raises ValueError for a number or a size below 1, or more images than the network was trained on.
    """
    distinct = card.recipe.distinct_images
    if count < 1 or size < 1 or count * size > distinct:
        raise ValueError(f"{card.name} was trained on {distinct} images; {count} batches of {size} can't be drawn")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(distinct, generator=generator)[: count * size].tolist()
    symmetries = torch.randint(8, (distinct,), generator=generator)
    first, batches = split("train", distinct)[0], []
    for start in range(0, count * size, size):
        chosen = order[start : start + size]
        drawn = render(card.corpus, [first + index for index in chosen])
        images = turned(drawn.images, symmetries[chosen]) if card.recipe.augmented else drawn.images
        if card.recipe.augmented and card.recipe.strong:
            batches.append(augmentation.strong(images, drawn.label, len(card.corpus.classes), seed + start))
        else:
            batches.append((images, drawn.label))
    return batches


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a network, detached from it: name → values."""
    return {name: value.detach() for name, value in model.named_parameters()}


def loss(model: nn.Module, at: Weights, images: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log likelihood (nats) on images (B, 3, H, W), with the weights ``at``.

    ``labels`` (B,), or shares of classes (B, classes), of which it is the cross-entropy.
    """
    logits = functional_call(model, dict(at), (normalise(model, images),))
    return F.cross_entropy(logits.float(), labels.to(logits.device))


def penalty(at: Weights, decay: float) -> Tensor:
    """decay / 2 · Σ ‖w‖², over all weights: its gradient is what weight decay takes from each.

    It adds ``decay`` to every eigenvalue of the Hessian, and changes nothing else. (The zoo's optimisers decay weights
    apart from the gradient, as AdamW does: there is then no loss of which they follow the gradient, and this is the one
    that stands for it in plain gradient descent.)
    """
    return decay / 2 * torch.stack([value.square().sum() for value in at.values()]).sum()


def published_penalty(at: Weights, decay: float) -> Tensor:
    """decay · Σ ‖w_k‖ over the parameters k, norms not squared: the penalty that Park & Kim's published code plots."""
    return decay * torch.stack([value.norm() for value in at.values()]).sum()
