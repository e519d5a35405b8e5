"""Models by name: architecture from timm, weights from ``data/zoo``, a local folder or timm's hub.

Three kinds of model answer to a name:

* the zoo, trained by this book on its own scenes (``ZOO``, and the ``BASELINE`` beside it): weights in
  ``data/zoo/NAME.safetensors``, card with recipe, accuracy and the weights' sha256 in ``data/zoo/NAME.json``;
* a model of a local folder that holds ``cards.json`` and ``weights/``, given as ``folder`` or in the
  environment variable ``VIT_BOOK_WEIGHTS``;
* any other name that timm knows, with weights from timm's hub.

``load(name, pretrained=False)`` gives the untrained twin: the same architecture with seeded random weights.
"""

import difflib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn

from helpers import results
from helpers.files import is_sha256, replacing, sha256
from helpers.networks.catalogue import BASELINE, ZOO, Card, Recipe, build
from helpers.networks.weights import load_into, not_finite

FOLDER = results.ZOO
WEIGHTS_VARIABLE = "VIT_BOOK_WEIGHTS"
_REMEDY = "restore it from version control, or delete it and run `make zoo`"


def names() -> list[str]:
    """The zoo's networks whose weights and card are stored, in the order of the catalogue."""
    return [name for name in ZOO if is_stored(name)]


def is_stored(name: str) -> bool:
    """Whether a model's weights and its card lie in ``FOLDER``; what they hold is looked at when they are loaded."""
    return _weights_file(name).exists() and _card_file(name).exists()


def is_current(card: Card) -> bool:
    """Whether the stored card has the architecture, recipe, corpus and seed that this one has."""
    stored = {**asdict(Card(card.name, card.family, "")), **_stored_card(card.name)}
    stored["recipe"] = {**asdict(Recipe()), **stored["recipe"]}  # what a card does not mention is as it was by default
    wanted = json.loads(json.dumps(asdict(card)))
    return all(stored[key] == value for key, value in wanted.items() if key != "about")


def card(name: str) -> dict:
    """The stored card of a trained model: recipe, accuracies, curve, versions, sha256 of the weights.

    Raises ValueError for a name that is not in the zoo, FileNotFoundError where it is not trained yet,
    OSError for a card that cannot be read.
    """
    if not is_stored(name):
        if name not in (known := _catalogue()):
            raise ValueError(f"{name!r} is not in the zoo; it has {', '.join(known)}{_nearest(name, known)}")
        raise FileNotFoundError(f"{name!r} is not trained yet: no weights or no card in {FOLDER}; run `make zoo`")
    return _stored_card(name)


def save(card: Card, model: nn.Module, measured: dict) -> None:
    """Store a trained model: weights as float16 safetensors, and its card with what was measured on it.

    Raises FloatingPointError for weights that are not finite numbers in half precision; nothing is stored then.
    """
    state = _halved(card, model)
    steps = {str(images): sha256(_step_file(card.name, images)) for images in card.kept}
    with replacing(_weights_file(card.name), _card_file(card.name)) as (weights, about):
        save_file(state, weights)
        stored = {**asdict(card), "sha256": sha256(weights), **({"steps": steps} if steps else {}), **measured}
        about.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def save_step(card: Card, model: nn.Module, images: int) -> None:
    """Store what a model is after so many images, on its way; ``save`` pins it when the model is trained.

    Raises FloatingPointError for weights that are not finite numbers in half precision; nothing is stored then.
    """
    state, file = _halved(card, model), _step_file(card.name, images)
    with replacing(file) as (weights,):
        save_file(state, weights)


def _halved(card: Card, model: nn.Module) -> dict[str, torch.Tensor]:
    state = {key: value.detach().cpu().half().contiguous() for key, value in model.state_dict().items()}
    if broken := not_finite(state):
        raise FloatingPointError(f"{card.name} is not stored: not finite in half precision are {broken}")
    return state


def load(name: str, pretrained: bool = True, folder: str | Path | None = None, seed: int = 0) -> nn.Module:
    """The model ``name`` in eval mode; with ``pretrained=False`` its untrained twin, drawn from ``seed``.

    The weights of the zoo must be those that their card pins, and so must those of a folder if their card has a
    ``sha256``. Names of weights that a wrapper (``module.``, ``_orig_mod.``, ``model.`` …) has made longer are read
    without it, with a warning.

    Raises:
        ValueError: an unknown name (with the nearest known ones); a card that is incomplete, names a file outside
            the folder of weights, or holds a value that cannot be.
        FileNotFoundError: weights that are missing.
        OSError: weights that are corrupt, not those of their card, pickled, of another architecture, or not finite.
        ConnectionError: timm's hub cannot be reached.
    """
    folder = folder or os.environ.get(WEIGHTS_VARIABLE)
    local = _local_cards(Path(folder)) if folder else {}
    model: nn.Module
    if name in _catalogue():
        model = build(_catalogue()[name], None if pretrained else seed)
        if pretrained:
            pinned = card(name).get("sha256")
            if not _is_hash(pinned):
                raise ValueError(f"{_card_file(name)} does not pin its weights: its sha256 is {pinned!r}; {_REMEDY}")
            load_into(model, _weights_file(name), pinned, _REMEDY)
    elif folder and name in local:
        model = _local_model(Path(folder), name, local[name], pretrained, seed)
    elif timm.is_model(name.split(".")[0]):
        model = _hub_model(name, pretrained, seed)
    else:
        near = _nearest(name, [*_catalogue(), *local, *timm.list_models()])
        raise ValueError(f"unknown model {name!r}: not in the zoo, not in a folder of weights, not in timm{near}")
    return model.eval()


def load_step(name: str, images: int) -> nn.Module:
    """The model ``name`` of the zoo as it was after it had seen so many images, in eval mode.

    0 images are its untrained twin, or the end of the model that it started from; as many as its recipe has, itself.

    Raises:
        ValueError: an unknown name, or a number of images after which nothing was kept (with those that were).
        FileNotFoundError: weights that are missing.
        OSError: weights that are corrupt, or not those of their card.
    """
    about = card(name)
    last, kept = about["recipe"]["images_seen"], about.get("steps", {})
    if images == last:
        return load(name)
    if images == 0 and not about.get("start"):
        return load(name, pretrained=False, seed=about["seed"])
    if images == 0:
        return load(about["start"])
    if str(images) not in kept:
        raise ValueError(f"{name!r} was not kept after {images} images, but after {', '.join(['0', *kept, str(last)])}")
    model = build(_catalogue()[name])
    load_into(model, _step_file(name, images), kept[str(images)], _REMEDY)
    return model.eval()


def local_card(name: str, folder: str | Path | None = None) -> dict:
    """What the folder of weights says of a model: source, completeness, training; {} where it has none."""
    folder = folder or os.environ.get(WEIGHTS_VARIABLE)
    return _local_cards(Path(folder)).get(name, {}) if folder else {}


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


def _local_cards(folder: Path) -> dict:
    file = folder / "cards.json"
    if not file.exists():
        raise FileNotFoundError(f"{folder} is no folder of weights: it has no cards.json")
    cards = _read(file, "mend it")
    if not isinstance(cards, dict):
        raise ValueError(f"{file} is to hold a mapping from names to cards, not {str(cards)[:60]}")
    return cards


def _local_model(folder: Path, name: str, card: Any, pretrained: bool, seed: int) -> nn.Module:
    """A model of a folder of weights.

    Of ResNets the card may say how many of the four stages they have kept, without classifier (``kept_stages``), and
    that they halve the image in the first convolution of a stage, as the first ResNets did and timm's do in the second
    (``stride_in_first_conv``).
    """
    file = _checked(card, name, folder)
    if not timm.is_model(card["architecture"]):
        near = _nearest(card["architecture"], timm.list_models())
        raise ValueError(f"timm has no architecture {card['architecture']!r}, as the card of {name!r} has it{near}")
    model: Any = _untrained(card["architecture"], seed)
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
        load_into(model, file, card.get("sha256"), "copy it into the folder again")
    size = model.pretrained_cfg["input_size"]
    model.pretrained_cfg = {"mean": card["mean"], "std": card["std"], "input_size": size}
    return model


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
    epsilon = card.get("bn_eps", 1)
    need(_is_number(epsilon) and epsilon > 0, f"has as bn_eps no number above zero: {epsilon!r}")
    pinned = card.get("sha256", "0" * 64)
    need(_is_hash(pinned), f"has as sha256 not 64 hexadecimal digits but {pinned!r}: correct it, or leave the key out")
    weights = folder / "weights"
    inside = (weights / card["file"]).resolve().is_relative_to(weights.resolve())
    need(inside, f"names a file that does not lie in {weights}: {card['file']!r}; copy it there")
    return weights / card["file"]


def _is_hash(value: Any) -> bool:
    """Whether a value is a sha256, in small letters or capitals."""
    return isinstance(value, str) and is_sha256(value.lower())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _hub_model(name: str, pretrained: bool, seed: int) -> nn.Module:
    if not pretrained:
        return _untrained(name, seed)
    try:
        model = timm.create_model(name, pretrained=True)
    except RuntimeError as error:  # timm: no such tag, or no weights for this architecture
        raise ValueError(f"timm has no weights for {name!r}: {error}") from error
    except Exception as error:  # the hub's client raises many kinds of error where there is no network
        raise ConnectionError(
            f"the weights of {name!r} could not be fetched from timm's hub ({type(error).__name__}: {error}). Without "
            f"a network, put them into a folder with cards.json and weights/, and name it in {WEIGHTS_VARIABLE}"
        ) from error
    if broken := not_finite(dict(model.named_parameters())):
        raise OSError(f"the weights that timm's hub has of {name!r} are not finite: {broken}")
    return model


def _untrained(name: str, seed: int) -> nn.Module:
    """A model of timm with random weights drawn from ``seed``.

    By default the residual branches of timm's ResNets start at zero, so that an untrained one is little
    more than its shortcuts and of no use as a control. Here they start at random.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return timm.create_model(name, zero_init_last=False)
        except TypeError:  # an architecture that has no such option
            torch.manual_seed(seed)
            return timm.create_model(name)


def _catalogue() -> dict[str, Card]:
    return {**ZOO, BASELINE.name: BASELINE}


def _weights_file(name: str) -> Path:
    return FOLDER / f"{name}.safetensors"


def _step_file(name: str, images: int) -> Path:
    return FOLDER / "steps" / f"{name}-{images}.safetensors"


def _card_file(name: str) -> Path:
    return FOLDER / f"{name}.json"


def _stored_card(name: str) -> dict:
    """The card of the zoo. Raises OSError for one that cannot be read or is no mapping."""
    stored = _read(_card_file(name), _REMEDY)
    if not isinstance(stored, dict):
        raise OSError(f"{_card_file(name)} is to hold a mapping, not {str(stored)[:60]}; {_REMEDY}")
    return stored


def _read(file: Path, remedy: str) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise OSError(f"{file} cannot be read ({error}); {remedy}") from error


def _nearest(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names, for a message; "" if none is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""
