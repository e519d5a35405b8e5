"""Make ``import torchvision`` work where a CPU build of torch meets a CUDA build of torchvision.

Package registries carry torchvision for Linux as a CUDA build alone. Beside a CPU build of torch its compiled operators
cannot be loaded, and ``import torchvision`` (and so ``import timm``) stops at ``operator torchvision::nms does not
exist``. This book uses none of these operators, so it is enough to declare the schemas of two. Python is told to do so
when torchvision is first imported after ``helpers``; where torchvision imports by itself, nothing is done. Whoever
imports timm before ``helpers`` gets torch's error; ``import helpers`` then still mends the next attempt.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

_declared = None  # torch forgets a library's operators once the library object is gone


class _Loader(SourceFileLoader):
    """Runs torchvision, and once more with its operators declared if their lack is what stopped it."""

    def exec_module(self, module: ModuleType) -> None:
        try:
            super().exec_module(module)
        except RuntimeError as error:
            if "torchvision::nms does not exist" not in str(error):
                raise
            for name in [name for name in sys.modules if name.startswith("torchvision.")]:
                del sys.modules[name]  # left over from the import that stopped half-way
            _declare_operators()
            super().exec_module(module)


class _Finder:
    """Finds torchvision where Python does, and has it run by ``_Loader``."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name) if name == "torchvision" else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def _declare_operators() -> None:
    import torch

    global _declared
    _declared = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        _declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def make_importable() -> None:
    """Have torchvision's missing operators declared when it is imported."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
