"""Convolutional networks with self-attention in some of their blocks, and with blurs before they subsample.

Park & Kim (2022, Section 4.2, Figures 3, 11 and 12) build their AlterNet from a ResNet by a rule: from the end of the
network backwards, convolutions become self-attention in turn, at the end of a stage, then at the end of the stage
before. ``attend`` does it to one of timm's pre-activation ResNets, block by block. What is exchanged is the 3 × 3
convolution of a bottleneck; norms and 1 × 1 convolutions stay. Nine heads of a quarter of its width have exactly as
many weights as nine taps (4 · 9/4 w² = 9 w²), so that the ResNet is the control of the same size, but for a bias for
each head and each step from a query to a key, which tells attention where things lie. The authors' attention works in
windows of 7 × 7 positions; the maps of the zoo's last two stages, 9 × 9 and 5 × 5, are taken whole.

``blur_before_subsampling`` is their other way to smooth: a mean over 2 × 2 positions before each convolution that
leaves out positions (Appendix B; Park & Kim 2021, *Blurs Behave Like Ensembles*).
"""

from collections.abc import Iterable
from typing import Any

import torch
from timm.models.resnetv2 import PreActBottleneck, ResNetV2
from torch import Tensor, nn
from torch.nn import functional as F

HEADS = 9  # as many as a 3 × 3 kernel has taps


class SelfAttention2d(nn.Module):
    """Multi-head self-attention over all positions of a map, with a learned bias for each head and each step.

    ``width``: channels, a multiple of four; each of the nine heads has a quarter of them. ``size``: rows and columns of
    the map, to which the biases belong.
    """

    def __init__(self, width: int, size: tuple[int, int]) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"a head has a quarter of the width, which is a multiple of four; got {width}")
        inner = HEADS * width // 4
        self.size = size
        self.qkv = nn.Conv2d(width, 3 * inner, 1, bias=False)
        self.proj = nn.Conv2d(inner, width, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(HEADS, 2 * size[0] - 1, 2 * size[1] - 1))
        self.attn_drop = nn.Identity()  # what a map is read at: see helpers.measures.attention_maps
        for layer in (self.qkv, self.proj):
            nn.init.normal_(layer.weight, std=layer.in_channels**-0.5)

    def steps(self) -> Tensor:
        """The bias of each pair of query and key (heads, N, N), N positions row by row: that of the step between."""
        row, column = (torch.arange(side, device=self.bias.device) for side in self.size)
        down = row[None] - row[:, None] + self.size[0] - 1  # (query row, key row)
        right = column[None] - column[:, None] + self.size[1] - 1
        pairs = self.bias[
            :, down[:, None, :, None], right[None, :, None, :]
        ]  # heads, query row, column, key row, column
        return pairs.flatten(3).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) → (B, C, H, W). Raises ``ValueError`` for maps of another size."""
        if tuple(x.shape[2:]) != self.size:
            raise ValueError(f"this attention was made for maps of {self.size}; it got {tuple(x.shape[2:])}")
        q, k, v = self.qkv(x).flatten(2).unflatten(1, (3, HEADS, -1)).unbind(1)  # each (B, heads, C/4, N)
        scores = q.mT @ k * q.shape[2] ** -0.5 + self.steps()
        mixed = self.attn_drop(scores.softmax(-1)) @ v.mT  # (B, heads, N, C/4)
        return self.proj(mixed.mT.flatten(1, 2).unflatten(2, self.size))


class BoxBlur(nn.Module):
    """The mean over 2 × 2 positions; maps keep their size, the first row and column being repeated outside."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) → (B, C, H, W)."""
        return F.avg_pool2d(F.pad(x, (1, 0, 1, 0), mode="replicate"), 2, stride=1)


def attend(model: nn.Module, blocks: Iterable[tuple[int, int]], size: tuple[int, int]) -> None:
    """Turn the 3 × 3 convolution of blocks (stage, block), from 0, of a ResNetV2 into self-attention, in place.

    ``size``: of the images, in px. Raises ``TypeError`` for a network that is not timm's ``ResNetV2`` of bottlenecks,
    ``ValueError`` for a block that is not there, that subsamples, or that attends already.
    """
    stages = _stages(model)
    for stage, number in blocks:
        if not (0 <= stage < len(stages) and 0 <= number < len(stages[stage].blocks)):
            raise ValueError(f"there is no block {number} in a stage {stage}: {[len(s.blocks) for s in stages]} blocks")
        block = stages[stage].blocks[number]
        if not isinstance(block.conv2, nn.Conv2d):
            raise ValueError(f"block {number} of stage {stage} has no 3 × 3 convolution any more")
        if max(block.conv2.stride) > 1:
            raise ValueError(
                f"block {number} of stage {stage} leaves out positions; attention keeps all: take a later one"
            )
        block.conv2 = SelfAttention2d(block.conv2.out_channels, _map_size(model, block.conv2, size))


def blur_before_subsampling(model: nn.Module) -> None:
    """Put a ``BoxBlur`` before each convolution of a ResNetV2's stages that leaves out positions, in place.

    These are the 3 × 3 convolution and the shortcut of each block that opens a stage but the first; the stem, which
    averages over 7 × 7 pixels as it likes, is left alone. Raises ``TypeError`` as ``attend`` does, ``ValueError`` where
    no block of a stage subsamples.
    """
    found = 0
    for stage in _stages(model):
        for block in stage.blocks:
            for part in filter(None, (block, block.downsample)):
                name = "conv2" if part is block else "conv"
                convolution = getattr(part, name)
                if isinstance(convolution, nn.Conv2d) and max(convolution.stride) > 1:
                    setattr(part, name, nn.Sequential(BoxBlur(), convolution))
                    found += 1
    if not found:
        raise ValueError(f"no convolution in a stage of this {type(model).__name__} subsamples without a blur")


def _stages(model: nn.Module) -> Any:
    stages: Any = model.stages if isinstance(model, ResNetV2) else ()
    if not len(stages) or not all(isinstance(block, PreActBottleneck) for stage in stages for block in stage.blocks):
        raise TypeError(f"{type(model).__name__} is not timm's ResNetV2 of pre-activation bottlenecks")
    return stages


@torch.inference_mode()
def _map_size(model: nn.Module, module: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of what a module of a ResNet gives out for images of a size."""
    seen: list[tuple[int, int]] = []
    hook = module.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[2:])))
    try:
        weight = next(model.parameters())
        model(torch.zeros(1, 3, *size, device=weight.device, dtype=weight.dtype))
    finally:
        hook.remove()
    return seen[0]
