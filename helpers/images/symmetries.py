"""The eight symmetries of a square, by which a training shows the same scene in other ways."""

import torch
from torch import Tensor


def turned(images: Tensor, symmetry: Tensor) -> Tensor:
    """Images (B, C, S, S), each under the symmetry of a square that a number (B,) from 0 to 7 stands for; 0 is none."""
    for bit, turn in ((1, lambda x: x.flip(3)), (2, lambda x: x.flip(2)), (4, lambda x: x.transpose(2, 3))):
        images = torch.where((symmetry & bit).bool()[:, None, None, None], turn(images), images)
    return images
