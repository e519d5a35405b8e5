"""Strong augmentation, as recipes for ViTs on ImageNet have it (DeiT, Touvron et al. 2021), by torchvision's own.

Every image gets other brightness, contrast, saturation and hue, and one in four loses a rectangle. Then each image is
mixed with the one before it in the batch, and so are their labels: in half of the batches the two are laid over each
other (mixup), in the others a rectangle of one is put into the other (CutMix).
"""

import torch
from torch import Tensor
from torchvision.transforms import v2

SMOOTHING = 0.1  # share of a label that goes to all classes alike
GREY = 128  # what an erased rectangle is filled with
_EACH = v2.Compose([v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.RandomErasing(p=0.25, value=GREY)])


def strong(images: Tensor, labels: Tensor, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Augmented images (B, 3, H, W) uint8 and targets (B, classes): smoothed shares that add up to 1.

    ``images`` (B, 3, H, W) uint8, ``labels`` (B,). Everything is drawn from ``seed``.
    """
    mix = v2.RandomChoice([v2.MixUp(alpha=0.8, num_classes=classes), v2.CutMix(alpha=1.0, num_classes=classes)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        changed = torch.stack([_EACH(image) for image in images])
        mixed, targets = mix(changed.float(), labels)
    return mixed.round().to(torch.uint8), (1 - SMOOTHING) * targets + SMOOTHING / classes
