"""Attention computed step by step, where torch's fused kernel is in the way.

The kernel never forms an attention map, so that none can be read; it has no second derivative, neither by double
backward nor by forward mode; and on a CPU that computes in bfloat16 it doubles the time of a training step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def unfused(model: nn.Module) -> Iterator[nn.Module]:
    """The network with its attention computed step by step, and as it was afterwards."""
    modules: list[Any] = [module for module in model.modules() if hasattr(module, "fused_attn")]
    before = [module.fused_attn for module in modules]
    for module in modules:
        module.fused_attn = False
    try:
        yield model
    finally:
        for module, fused in zip(modules, before, strict=True):
            module.fused_attn = fused
