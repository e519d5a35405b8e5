"""Weights of one's own: a folder with ``cards.json`` and ``weights/``, whose cards say what to build and how.

A card names an architecture that timm knows, the file of weights, and the mean and standard deviation of the images
that the model was trained with; ``data/README.md`` lists what else it may say.
"""

import difflib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from helpers.files import is_sha256, sha256
from helpers.networks.weights import load_into, own_state, read_weights

WEIGHTS_VARIABLE = "VIT_BOOK_WEIGHTS"


def local_card(name: str, folder: str | Path | None = None) -> dict:
    """What the folder of weights says of a model: source, completeness, training; {} where it has none."""
    folder = folder or os.environ.get(WEIGHTS_VARIABLE)
    return local_cards(Path(folder)).get(name, {}) if folder else {}


def local_notes(name: str, folder: str | Path | None = None) -> dict:
    """What a result is to note of a folder's model: its card, with the sha256 of its weights instead of their place.

    {} for a model of which the folder has no card. Raises ValueError for a card that is incomplete, OSError for weights
    that cannot be read.
    """
    folder = folder or os.environ.get(WEIGHTS_VARIABLE)
    if not folder or not (card := local_card(name, folder)):
        return {}
    pinned = sha256(_checked(card, name, Path(folder)))
    return {**{key: value for key, value in card.items() if key != "file"}, "sha256": pinned}


def local_cards(folder: Path) -> dict:
    """The cards of a folder, by name. Raises FileNotFoundError without cards.json, ValueError for no mapping."""
    file = folder / "cards.json"
    if not file.exists():
        raise FileNotFoundError(f"{folder} is no folder of weights: it has no cards.json")
    cards = read_json(file, "mend it")
    if not isinstance(cards, dict):
        raise ValueError(f"{file} is to hold a mapping from names to cards, not {str(cards)[:60]}")
    return cards


def local_model(folder: Path, name: str, card: Any, pretrained: bool, seed: int) -> nn.Module:
    """A model of a folder of weights.

    Where its head or its images are not those of timm's architecture, the card says how many classes the head tells
    apart (``num_classes``; 0: no head) and the side in px of the square images (``img_size``).
    Of ResNets the card may say how many of the four stages they have kept, without classifier (``kept_stages``), and
    that they halve the image in the first convolution of a stage, as the first ResNets did and timm's do in the second
    (``stride_in_first_conv``).
    """
    file = _checked(card, name, folder)
    if not timm.is_model(card["architecture"]):
        near = nearest(card["architecture"], timm.list_models())
        raise ValueError(f"timm has no architecture {card['architecture']!r}, as the card of {name!r} has it{near}")
    wanted = {key: card[key] for key in ("num_classes", "img_size") if key in card}
    model: Any = untrained(card["architecture"], seed, **wanted)
    reshaped = [key for key in ("kept_stages", "stride_in_first_conv") if card.get(key)]
    if reshaped and not isinstance(model, timm.models.ResNet):
        raise ValueError(f"the card of {name!r} has {reshaped[0]}, which is for ResNets, not {card['architecture']}")
    kept = card.get("kept_stages", 4)
    if "kept_stages" in card:
        for missing in (*(f"layer{stage}" for stage in range(kept + 1, 5)), "fc"):
            setattr(model, missing, nn.Identity())
    if card.get("stride_in_first_conv"):
        for stage in range(2, kept + 1):  # the first one does not halve
            block = model.get_submodule(f"layer{stage}.0")
            block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    if "bn_eps" in card:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = card["bn_eps"]
    if pretrained:
        remedy = "copy it into the folder again; if its head or images are others, say num_classes or img_size"
        load_into(model, file, card.get("sha256"), remedy)
    model.pretrained_cfg = {**_config(model), "mean": card["mean"], "std": card["std"]}
    if "crop_pct" in card:
        model.pretrained_cfg["crop_pct"] = card["crop_pct"]
    return model


def model_from_file(architecture: str, file: Path, pretrained: bool = True, seed: int = 0) -> nn.Module:
    """A timm architecture with the weights of one file, which tell the number of classes and the size of the images.

    Normalised as timm's own weights of that architecture are. Raises ValueError for an architecture that timm does not
    have, and as ``load_into``.
    """
    if not timm.is_model(architecture):
        raise ValueError(f"timm has no architecture {architecture!r}{nearest(architecture, timm.list_models())}")
    remedy = "give the weights of that architecture"
    model: Any = untrained(architecture, seed)
    state = own_state(model, read_weights(file, None, remedy), file)
    if wanted := _unlike(model, state):
        model = untrained(architecture, seed, **wanted)
    if pretrained:
        load_into(model, file, None, remedy)
    model.pretrained_cfg = _config(model)
    return model.eval()


def _unlike(model: Any, state: dict[str, Tensor]) -> dict[str, int]:
    """In what weights are unlike the model that is to take them: ``num_classes``, ``img_size``."""
    found = {}
    head = model.pretrained_cfg.get("classifier")
    head = head[0] if isinstance(head, (tuple, list)) else head
    kept, own = state.get(f"{head}.weight"), model.state_dict().get(f"{head}.weight")
    if own is not None and kept is None:
        found["num_classes"] = 0
    elif own is not None and kept is not None and len(kept) != len(own):
        found["num_classes"] = len(kept)
    embed: Any = getattr(model, "patch_embed", None)
    places, own_places = state.get("pos_embed"), model.state_dict().get("pos_embed")
    if embed is None or places is None or own_places is None:
        return found
    if places.ndim == 3 and places.shape[1] != own_places.shape[1]:
        patches = places.shape[1] - (own_places.shape[1] - embed.num_patches)
        if math.isqrt(max(patches, 0)) ** 2 == patches:  # a square grid
            found["img_size"] = math.isqrt(patches) * embed.patch_size[0]
    return found


def _config(model: Any) -> dict[str, Any]:
    """What is kept of timm's configuration of a model: how images are made for it."""
    keys = ("mean", "std", "input_size", "fixed_input_size", "crop_pct", "interpolation")
    return {key: model.pretrained_cfg[key] for key in keys if key in model.pretrained_cfg}


def _checked(card: Any, name: str, folder: Path) -> Path:
    """The file of weights that a card of a folder names, once nothing is wrong with the card.

    Raises ValueError that names the model and the key.
    """

    def need(right: bool, message: str) -> None:
        if not right:
            raise ValueError(f"the card of {name!r} in {folder / 'cards.json'} {message}")

    need(isinstance(card, dict), f"is no mapping: {card!r}")
    lacking = [key for key in ("architecture", "file", "mean", "std") if key not in card]
    need(not lacking, f"does not say: {', '.join(lacking)}")
    for key in ("architecture", "file"):
        need(isinstance(card[key], str) and bool(card[key]), f"has as {key} no name: {card[key]!r}")
    for key in ("mean", "std"):
        three = isinstance(card[key], list) and len(card[key]) == 3 and all(map(_is_number, card[key]))
        need(three, f"has as {key} not three finite numbers: {card[key]!r}")
    least = float(torch.tensor(card["std"], dtype=torch.float32).min())  # images are normalised in this precision
    need(least > 0, f"has as std a number that is not above zero: {card['std']!r}")
    need(card.get("kept_stages", 1) in (1, 2, 3, 4), f"keeps {card.get('kept_stages')!r} of a ResNet's 4 stages")
    for key, least in (("num_classes", 0), ("img_size", 1)):
        whole = isinstance(given := card.get(key, 1), int) and not isinstance(given, bool) and given >= least
        need(whole, f"has as {key} no whole number from {least}: {given!r}")
    share = card.get("crop_pct", 1)
    need(_is_number(share) and 0 < share <= 1, f"has as crop_pct no number above 0 and up to 1: {share!r}")
    epsilon = card.get("bn_eps", 1)
    need(_is_number(epsilon) and epsilon > 0, f"has as bn_eps no number above zero: {epsilon!r}")
    pinned = card.get("sha256", "0" * 64)
    need(is_hash(pinned), f"has as sha256 not 64 hexadecimal digits but {pinned!r}: correct it, or leave the key out")
    weights = folder / "weights"
    inside = (weights / card["file"]).resolve().is_relative_to(weights.resolve())
    need(inside, f"names a file that does not lie in {weights}: {card['file']!r}; copy it there")
    return weights / card["file"]


def is_hash(value: Any) -> bool:
    """Whether a value is a sha256, in small letters or capitals."""
    return isinstance(value, str) and is_sha256(value.lower())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def untrained(name: str, seed: int, **wanted: int) -> nn.Module:
    """A model of timm with random weights drawn from ``seed``; ``wanted``: its ``num_classes``, its ``img_size`` in px.

    By default the residual branches of timm's ResNets start at zero, so that an untrained one is little
    more than its shortcuts and of no use as a control. Here they start at random. A network that is made for no size,
    as most convolutional ones are, takes ``img_size`` as the size of the images it is to be shown.
    """
    options: dict[str, Any] = {**wanted, "zero_init_last": False}
    model: Any
    with torch.random.fork_rng(devices=[]):
        for without in ((), ("zero_init_last",), ("img_size",), ("zero_init_last", "img_size")):
            torch.manual_seed(seed)
            try:
                model = timm.create_model(name, **{key: value for key, value in options.items() if key not in without})
                break
            except TypeError:  # an architecture that has no such option
                if len(without) == 2:
                    raise
    if "img_size" in wanted:
        size = (3, wanted["img_size"], wanted["img_size"])
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": size}
    return model


def read_json(file: Path, remedy: str) -> dict:
    """What a file of JSON holds. Raises OSError, with the remedy, for one that cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise OSError(f"{file} cannot be read ({error}); {remedy}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names, for a message; "" if none is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""
