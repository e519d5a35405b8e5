"""The untrained network of each card of the zoo, built from timm's own parts and drawn from a seed.

All take images of 64 × 64 pixels. ViT, Mixer, PiT, Swin and ConvNeXt are trained by the same recipe; a ResNet learns
four times as fast.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers import GroupNormAct, StdConv2d
from timm.models.convnext import ConvNeXt
from timm.models.mlp_mixer import MlpMixer
from timm.models.pit import PoolingVisionTransformer
from timm.models.resnetv2 import ResNetV2
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from helpers.images.scenes import SIZE
from helpers.networks import encodings, heads
from helpers.networks.alternet import attend, blur_before_subsampling
from helpers.networks.catalogue import Card
from helpers.networks.colours import ColourHistogram
from helpers.networks.surgery import remove_skip
from helpers.networks.windows import restrict

SCENES_CONFIG = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "input_size": (3, SIZE, SIZE)}


def build(card: Card, seed: int | None = None) -> nn.Module:
    """The untrained network of a card, its weights drawn from ``seed`` (the card's own by default).

    Raises ValueError for a card of an unknown family.
    """
    if card.family not in FAMILIES:
        raise ValueError(f"unknown family {card.family!r} of model {card.name!r}; known: {', '.join(FAMILIES)}")
    model: Any
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(card.seed if seed is None else seed)
        model = FAMILIES[card.family](card, num_classes=len(card.corpus.classes))
        if card.position_std is not None:
            nn.init.normal_(model.pos_embed, std=card.position_std)
    if card.family == "colours":
        return model
    if card.without_skip:
        remove_skip(model, *card.without_skip)
    if card.window:
        restrict(model, card.window)
    if card.blurred:
        blur_before_subsampling(model)
    model.pretrained_cfg = dict(SCENES_CONFIG)
    return model


def _vit(card: Card, **network: Any) -> nn.Module:
    """8 × 8 tokens of 8 × 8 pixels; ``head_width`` in an architecture is that of each head."""
    network |= {"img_size": SIZE, "patch_size": 8, "embed_dim": 128, "depth": 8, "num_heads": 4, **card.architecture}
    width = network.pop("head_width", None)
    model = encodings.vit(card.encoding, **network)
    return heads.of_width(model, width) if width else model


def _resnet(card: Card, **network: Any) -> nn.Module:
    """4 stages of 4 bottleneck blocks, on 34², 17², 9² and 5² positions."""
    network |= {"layers": (4, 4, 4, 4), "channels": (32, 64, 128, 256), "zero_init_last": False}
    network |= {"stem_type": "fixed", "conv_layer": StdConv2d, "norm_layer": partial(GroupNormAct, num_groups=8)}
    model: Any = ResNetV2(**{**network, **card.architecture})
    model.stem.pool = nn.Identity()  # on images of 64 pixels a second halving would leave 2 × 2 positions
    attend(model, card.attention, (SIZE, SIZE))
    return model


def _mixer(card: Card, **network: Any) -> nn.Module:
    """The ViT's patches, width and depth; token mixing as wide as half of it."""
    network |= {"img_size": SIZE, "patch_size": 8, "embed_dim": 128, "num_blocks": 8}
    return MlpMixer(**{**network, **card.architecture})


def _pit(card: Card, **network: Any) -> nn.Module:
    """Patches of 8 × 8 pixels that overlap by half: 15², then 8², then 4² tokens, two blocks each (Heo et al. 2021)."""
    network |= {"img_size": SIZE, "patch_size": 8, "stride": 4, "base_dims": (16,) * 3}
    return PoolingVisionTransformer(**{**network, "depth": (2, 2, 2), "heads": (2, 4, 8), **card.architecture})


def _swin(card: Card, **network: Any) -> nn.Module:
    """Windows of 4 × 4 on 16², 8² and 4² tokens, two blocks each (Liu et al. 2021).

    They are shifted by two tokens in every other block; in the last stage one window is the whole grid.
    """
    network |= {"img_size": SIZE, "patch_size": 4, "window_size": 4, "embed_dim": 32, "drop_path_rate": 0.0}
    return SwinTransformer(**{**network, "depths": (2, 2, 2), "num_heads": (2, 4, 8), **card.architecture})


def _convnext(card: Card, **network: Any) -> nn.Module:
    """Two blocks each on 16², 8², 4² and 2² positions, without layer scale (Liu et al. 2022)."""
    network |= {"patch_size": 4, "depths": (2, 2, 2, 2), "dims": (16, 32, 64, 128), "ls_init_value": None}
    return ConvNeXt(**{**network, **card.architecture})


def _colours(card: Card, num_classes: int) -> nn.Module:
    return ColourHistogram(num_classes)


FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "vit": _vit,
    "resnet": _resnet,
    "mixer": _mixer,
    "pit": _pit,
    "swin": _swin,
    "convnext": _convnext,
    "colours": _colours,
}
