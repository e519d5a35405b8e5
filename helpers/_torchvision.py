"""Make ``import torchvision`` work where a CPU build of torch meets a CUDA build of torchvision.

Package registries carry torchvision for Linux as a CUDA build alone. Beside a CPU build of torch its
compiled operators cannot be loaded, and ``import torchvision`` (and so ``import timm``) stops at
``operator torchvision::nms does not exist``. This book uses none of these operators, so it is enough
to declare their two schemas. Where torchvision imports by itself, nothing is done.
"""

import sys

import torch

_declared = None  # torch forgets a library's operators once the library object is gone


def make_importable() -> None:
    """Import torchvision, declaring its missing operators first where that is what stops it."""
    global _declared
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # left over from the import that stopped half-way
        _declared = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            _declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
