"""What tests of several recordings are made of: images of noise, small networks, what is in a folder, and a kill."""

import timm
import torch

from helpers.images.sources import ImageSet

PHOTOGRAPHS = 66  # of two classes; the most that a recording needs is 64


class Killed(BaseException):
    """The process ends here."""


def files(folder):
    """Name → bytes of all files in a folder, hidden ones too."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def noise(count: int) -> ImageSet:
    """Images of two classes, 64 × 64."""

    def get(i: int) -> tuple[torch.Tensor, int]:
        return torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(i)), i % 2

    about = {"source": "noise", "size": 64}
    return ImageSet(count, get, about, [f"{i}.png" for i in range(count)], [i % 2 for i in range(count)])


def pair(patch: int = 16, cut: bool = False, **options) -> dict:
    """A small ViT of another kind, and a ResNet: complete, with 2 × 2 positions in the end, or cut after 4 × 4."""
    torch.manual_seed(0)
    vit = timm.create_model("test_vit", img_size=64, patch_size=patch, depth=2, **options)
    resnet = timm.create_model("test_resnet", zero_init_last=False)
    if cut:
        resnet.layer4 = resnet.fc = torch.nn.Identity()
    for model in (vit, resnet):
        model.eval().pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 64, 64)}
    return {"vit": vit, "resnet": resnet}
