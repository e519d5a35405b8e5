"""The optimisers of the zoo, and their learning rate: Muon for matrices inside blocks, AdamW for everything else."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import _muon

from helpers.networks.catalogue import Recipe

POSITIONS = ("pos_embed", "cls_token", "mask_token")


def optimisers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon (Jordan et al. 2024) where there are matrices inside transformer blocks.

    With ``recipe.position_decay`` false, position embeddings and tokens that stand for no patch do not decay.
    """
    named = dict(model.named_parameters())
    inside = {name: value for name, value in named.items() if ".blocks." in f".{name}" and name.endswith(".weight")}
    matrices = {name: value for name, value in inside.items() if value.ndim == 2}  # no tables of biases, as Swin's
    others = {name: value for name, value in named.items() if name not in matrices}
    spared = [name for name in others if not recipe.position_decay and name.rsplit(".", 1)[-1] in POSITIONS]
    groups: list[dict] = [{"params": [value for name, value in others.items() if name not in spared]}]
    if spared:
        groups.append({"params": [others[name] for name in spared], "weight_decay": 0.0})
    decay = recipe.weight_decay
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, recipe.learning_rate, weight_decay=decay)]
    if matrices:
        rate, kept = recipe.matrix_learning_rate, list(matrices.values())
        found.append(torch.optim.Muon(kept, rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    for optimiser in found:
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
    return found


@contextmanager
def muon_in_float32() -> Iterator[None]:
    """Within the context torch's Muon makes its steps orthogonal in float32 instead of bfloat16.

    A processor without arithmetic in bfloat16 would spend most of a training on them.
    """
    room: Any = _muon
    before, room._zeropower_via_newtonschulz = room._zeropower_via_newtonschulz, newton_schulz
    try:
        yield
    finally:
        room._zeropower_via_newtonschulz = before


def newton_schulz(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """A matrix (M, N) with its singular values brought close to 1, in float32: what Muon makes of a step.

    With coefficients a, b, c each step takes X to aX + b(XXᵀ)X + c(XXᵀ)²X, from X over its norm (Jordan et al. 2024);
    ``eps`` is the least norm that it divides by.
    """
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x, (a, b, c) = wide / wide.norm().clamp(min=eps), coefficients
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def set_rate(optimisers: list[torch.optim.Optimizer], share: float) -> None:
    """Let every group learn at this share of its peak rate."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["initial_lr"] * share


def schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: linear up to it, then half a cosine down to zero."""
    peak = warmup * steps
    if step < peak:
        return (step + 1) / peak
    return 0.5 * (1 + math.cos(math.pi * (step - peak) / (steps - peak)))
