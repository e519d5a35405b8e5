"""The optimisers of the zoo, and their learning rate: Muon for matrices inside blocks, AdamW for everything else."""

import math

import torch
from torch import nn

from helpers.networks.catalogue import Recipe

POSITIONS = ("pos_embed", "cls_token", "mask_token")


def optimisers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon (Jordan et al. 2024) where there are matrices inside transformer blocks.

    With ``recipe.position_decay`` false, position embeddings and tokens that stand for no patch do not decay.
    """
    named = dict(model.named_parameters())
    matrices = {name: value for name, value in named.items() if value.ndim == 2 and ".blocks." in f".{name}"}
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
