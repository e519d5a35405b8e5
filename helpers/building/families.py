"""Which measure applies to which family of networks: every measure of a report, on tiny networks with random weights.

    python -m helpers.building.families      # measures all and writes data/families.csv

Each family is built by timm, made small by timm's own options, and put through the whole battery on a few scenes. Where
a measure makes sense its number is kept; where it makes none, the sentence with which it refuses. The numbers are those
of random weights and say nothing of what is learnt. ``tests/building/test_families.py`` measures all of it again, and
holds numbers against closed forms and other ways to compute them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from torch import Tensor, nn

from helpers import files
from helpers.files import ROOT
from helpers.images.sources import scene_images
from helpers.markup import literal
from helpers.measures.attention import attention_distance
from helpers.measures.class_attention import class_attention
from helpers.measures.feature_variance import feature_variance
from helpers.measures.fourier import spectra
from helpers.measures.heatmap import cka_heatmap
from helpers.measures.localization import hit_rate
from helpers.measures.probes import features
from helpers.measures.receptive_field import effective_receptive_fields
from helpers.measures.rollout import rollout_maps
from helpers.measures.skip_ratios import skip_ratios
from helpers.measures.token_patches import token_patches
from helpers.networks.inputs import resized
from helpers.networks.places import OUTPUTS, STREAM
from helpers.networks.taps import taps_for
from helpers.uncertainty import whole

FILE = ROOT / "data" / "families.csv"
COUNT, BATCH = 16, 8
REFUSALS = (ValueError, TypeError)  # what a measure raises that does not apply; anything else is a fault of ours


@dataclass(frozen=True)
class Family:
    """A kind of network. ``timm``: a name that timm knows; ``options`` make it small; ``size``: of its images, px."""

    timm: str
    options: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = (64, 64)


_VIT = {"img_size": 64, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
_LARGE = (96, 96)  # so that the last stage has 3 × 3 positions
FAMILIES = {
    "ViT": Family("vit_tiny_patch16_224", _VIT),
    "ViT, deeper and wider": Family("vit_large_patch16_224", {**_VIT, "embed_dim": 48, "depth": 4, "num_heads": 4}),
    "ViT without class token": Family("vit_tiny_patch16_224", {**_VIT, "class_token": False, "global_pool": "avg"}),
    "ViT with registers": Family("vit_tiny_patch16_224", {**_VIT, "reg_tokens": 4}),
    "ViT with LayerScale and qk-norm": Family("vit_tiny_patch16_224", {**_VIT, "init_values": 0.1, "qk_norm": True}),
    "ViT, images not square": Family("vit_tiny_patch16_224", {**_VIT, "img_size": (48, 80)}, (48, 80)),
    "ViT, size of images free": Family("vit_tiny_patch16_224", {**_VIT, "dynamic_img_size": True}, (48, 80)),
    "DeiT, distilled": Family("deit_tiny_distilled_patch16_224", _VIT),
    "DeiT III": Family("deit3_small_patch16_224", _VIT),
    "BEiT": Family("beit_base_patch16_224", _VIT),
    "EVA-02": Family("eva02_tiny_patch14_224", _VIT),
    "DINOv2 with registers": Family("vit_small_patch14_reg4_dinov2", _VIT),
    "SigLIP": Family("vit_base_patch16_siglip_224", _VIT),
    "CaiT": Family("cait_xxs24_224", _VIT),
    "Swin": Family(
        "swin_tiny_patch4_window7_224",
        {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (1, 2)},
    ),
    "PiT": Family("pit_ti_224", {"img_size": 96, "depth": (1, 1, 1)}, _LARGE),
    "CoAtNet": Family(
        "coatnet_nano_rw_224", {"img_size": 96, "depths": (1, 1, 1, 1), "embed_dim": (32, 32, 64, 64)}, _LARGE
    ),
    "MLP-Mixer": Family("mixer_s16_224", {"img_size": 64}),
    "ResMLP": Family("resmlp_12_224", {"img_size": 64}),
    "ConvNeXt": Family("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (16, 32, 48, 64)}, _LARGE),
    "ResNet": Family("resnet18", {"layers": (1, 1, 1, 2)}, _LARGE),
    "ResNetV2-BiT": Family("resnetv2_50x1_bit", size=_LARGE),
    "RegNet": Family("regnetx_002", size=_LARGE),
    "EfficientNet": Family("efficientnet_b0", size=_LARGE),
    "DenseNet": Family("densenet121", {"growth_rate": 8, "block_config": (2, 2, 2, 2)}, _LARGE),
    "MobileNetV3": Family("mobilenetv3_small_050", size=_LARGE),
}


def build(family: Family) -> nn.Module:
    """The network of a family in eval mode, with weights from seed 0, none of its branches next to nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: Any = timm.create_model(family.timm, num_classes=8, **family.options).eval()
        for name, parameter in network.named_parameters():  # timm starts some branches at zero or nearly
            if parameter.ndim == 1 and parameter.abs().max() < 1e-3 and not name.endswith("bias"):
                nn.init.normal_(parameter, std=0.5)
            elif parameter.ndim in (2, 3) and parameter.std() < 0.03:  # timm's 0.02, made for wide networks
                parameter.data.mul_(6)
    network.pretrained_cfg = {**network.pretrained_cfg, "input_size": (3, *family.size), "fixed_input_size": False}
    return network


@cache
def pictures(size: tuple[int, int]) -> Tensor:
    """The first test scenes, (16, 3, *size) uint8."""
    scenes = scene_images(COUNT)
    images = torch.stack([scenes[i][0] for i in range(COUNT)])
    return images if size == images.shape[2:] else resized(images.float(), size).round().clamp(0, 255).to(torch.uint8)


def _cka(network: nn.Module, images: Tensor) -> float:
    matrix = cka_heatmap({"": network}, images.split(BATCH), STREAM).matrix
    return float(matrix[~np.eye(len(matrix), dtype=bool)].mean())


def _skips(network: nn.Module, images: Tensor) -> float:
    table = whole(skip_ratios(network, images.split(BATCH), 2).table())
    return float(table[table["tokens"] == "all"]["ratio"].median())


def _radius(network: nn.Module, images: Tensor) -> float:
    found = effective_receptive_fields(network, images[:2], taps_for(network, STREAM), channels=4, groups=2)
    return float(whole(found.table(8))["radius"].iloc[-1])


def _hits(network: nn.Module, images: Tensor) -> float:
    (found,) = token_patches(network, images, taps_for(network, OUTPUTS)[-1:], batch=COUNT).values()
    return found.statistic(hit_rate)[0]


def _features(network: nn.Module, images: Tensor) -> float:
    (found,) = features(network, images, places=taps_for(network, OUTPUTS)[-1:])["mean token"].values()
    return found.shape[1]


def _largest(maps: Tensor) -> float:
    """The largest share that a patch has of a map of the last block, mean over images (and heads)."""
    return float(maps[:, -1].flatten(-2).amax(-1).mean())


MEASURES: dict[str, tuple[str, Callable[[nn.Module, Tensor], float]]] = {
    "CKA": ("mean over pairs of places", _cka),
    "Attention distance": (
        "mean over heads, px",
        lambda network, images: whole(attention_distance(network, images.split(BATCH), groups=2))["distance"].mean(),
    ),
    "Skip ratio": ("median over sublayers", _skips),
    "Receptive field": ("radius at the last place, px", _radius),
    "Localisation": ("hit rate of the last block", _hits),
    "Probes": ("features of the last block", _features),
    "Spectra": (
        "share of power above half of the highest frequency, last place",
        lambda network, images: whole(spectra(network, images.split(BATCH), 2).table())["high"].iloc[-1],
    ),
    "Variance": (
        "over positions, share of the mean square, last place",
        lambda network, images: whole(feature_variance(network, images.split(BATCH), 2).table())["relative"].iloc[-1],
    ),
    "Rollout": ("largest share of a patch", lambda network, images: _largest(rollout_maps(network, [images]))),
    "Class token": (
        "largest share of a patch, last block",
        lambda network, images: _largest(class_attention(network, [images])),
    ),
}


def battery(name: str) -> pd.DataFrame:
    """Every measure of a family: ``family``, ``measure``, and ``value`` or ``reason``.

    Raises ArithmeticError where a measure gives what is no number, and whatever is no refusal.
    """
    family = FAMILIES[name]
    network, images = build(family), pictures(family.size)
    rows = []
    for measure, (_, ask) in MEASURES.items():
        value, reason = np.nan, ""
        try:
            value = float(ask(network, images))
        except REFUSALS as error:
            reason = " ".join(str(error).split())
        if not reason and not np.isfinite(value):
            raise ArithmeticError(f"{measure} of {name} is {value}, which is neither a number nor a reason")
        rows.append((name, measure, value, reason))
    return pd.DataFrame(rows, columns=["family", "measure", "value", "reason"])


def write() -> None:
    """Measure all families and keep the table."""
    table = pd.concat([battery(name) for name in FAMILIES], ignore_index=True)
    files.write(FILE, table.to_csv(index=False, float_format="%.4g", lineterminator="\n"))


def stored() -> pd.DataFrame:
    """The table as it is kept."""
    return pd.read_csv(FILE, keep_default_na=False, na_values={"value": [""]}, dtype={"reason": str})


def sections() -> list[str]:
    """What the page of the models says of families: two tables of numbers, and the reasons of what is missing."""
    table = stored()
    letters = {why: _letter(i) for i, why in enumerate(dict.fromkeys(table["reason"][table["reason"] != ""]))}
    cells = {
        (row.family, row.measure): f"({letters[row.reason]})" if row.reason else _number(row.value)
        for row in table.itertuples()
    }
    names = list(MEASURES)
    half = len(names) // 2
    parts = []
    for columns in (names[:half], names[half:]):
        body = [[family, *(cells[family, measure] for measure in columns)] for family in FAMILIES]
        lines = [["Family", *columns], [":--", *["--:"] * len(columns)], *body]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        parts.append("; ".join(f"{measure}: {MEASURES[measure][0]}" for measure in columns) + ".")
    reasons = "\n".join(f"- ({letter}) {literal(why)}" for why, letter in letters.items())
    return [*parts, "A letter stands where a measure does not apply, and for the words with which it says so:", reasons]


def _letter(number: int) -> str:
    """a, b, … z, aa, ab, …"""
    first, second = divmod(number, 26)
    return ("" if not first else chr(96 + first)) + chr(97 + second)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.2f}"


if __name__ == "__main__":
    write()
