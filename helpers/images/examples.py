"""Two photographs that come with scikit-learn, for figures that have to show a photograph.

A temple in China and a flower, by danielbuechele and vultilion, under CC BY 2.0
(``sklearn.datasets.load_sample_images``). They belong to no set that anything is measured on.
"""

from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from helpers.images.pictures import square

EXAMPLES = ("china", "flower")
CREDIT = "Photographs: danielbuechele and vultilion, CC BY 2.0."


def example_photographs(size: int = 224) -> Tensor:
    """The two, resized and cropped to a square as all photographs are: (2, 3, size, size) uint8, as ``EXAMPLES``."""
    found = load_sample_images()
    by_name = {Path(file).stem: Image.fromarray(of) for file, of in zip(found.filenames, found.images, strict=True)}
    return torch.stack([pil_to_tensor(square(by_name[name], size)) for name in EXAMPLES])
