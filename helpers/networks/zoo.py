"""Models by name: architecture from timm, weights from ``data/zoo``, a local folder or timm's hub.

Three kinds of model answer to a name:

* the zoo, trained by this book on its own scenes (``ZOO``, and the ``BASELINE`` beside it): weights in
  ``data/zoo/NAME.safetensors``, card with recipe, accuracy and the weights' sha256 in ``data/zoo/NAME.json``;
* a model of a local folder that holds ``cards.json`` and ``weights/``, given as ``folder`` or in the
  environment variable ``VIT_BOOK_WEIGHTS``;
* any other name that timm knows, with weights from timm's hub.

``load(name, pretrained=False)`` gives the untrained twin: the same architecture with seeded random weights.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import nn

from helpers import results
from helpers.files import CLONE_VARIABLE, INSTALLED, replacing, sha256
from helpers.networks.architectures import build
from helpers.networks.catalogue import BASELINE, ZOO, Card, Recipe
from helpers.networks.local_weights import (
    WEIGHTS_VARIABLE,
    is_hash,
    local_cards,
    local_model,
    nearest,
    read_json,
    untrained,
)
from helpers.networks.weights import load_into, not_finite

FOLDER = results.ZOO
State = Mapping[str, torch.Tensor]
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
    stored, wanted = (json.loads(json.dumps(about)) for about in (stored, asdict(card)))
    return all(stored[key] == value for key, value in wanted.items() if key != "about")


def card(name: str) -> dict:
    """The stored card of a trained model: recipe, accuracies, curve, versions, sha256 of the weights.

    Raises ValueError for a name that is not in the zoo, FileNotFoundError where it is not trained yet,
    OSError for a card that cannot be read.
    """
    if not is_stored(name):
        if name not in (known := _catalogue()):
            raise ValueError(f"{name!r} is not in the zoo; it has {', '.join(known)}{nearest(name, known)}")
        if INSTALLED:
            raise FileNotFoundError(
                f"no weights of {name!r} in {FOLDER}: the book's own networks come with its repository, not by pip. "
                f"Clone it, and name the clone in the environment variable {CLONE_VARIABLE}"
            )
        raise FileNotFoundError(f"{name!r} is not trained yet: no weights or no card in {FOLDER}; run `make zoo`")
    return _stored_card(name)


def save(card: Card, model: nn.Module, measured: dict, steps: Mapping[int, State] | None = None) -> None:
    """Store a trained model: weights as float16 safetensors, and its card with what was measured on it.

    Args:
        card: the model's.
        model: with its last weights.
        measured: what the card says beside the recipe.
        steps: images seen → ``halved`` weights on the way, for each number in ``card.kept``.

    Raises:
        FloatingPointError: weights that are not finite numbers in half precision.
        ValueError: other steps than the card's. Nothing is stored then, either.
    """
    state, steps = halved(card, model), steps or {}
    if set(steps) != set(card.kept):
        raise ValueError(f"{card.name} is stored with its weights after {card.kept} images; given are {sorted(steps)}")
    on_the_way = [_step_file(card.name, images) for images in card.kept]
    with replacing(*on_the_way, _weights_file(card.name), _card_file(card.name)) as (*parts, weights, about):
        for images, part in zip(card.kept, parts, strict=True):
            save_file(dict(steps[images]), part)
        save_file(state, weights)
        pinned = {str(images): sha256(part) for images, part in zip(card.kept, parts, strict=True)}
        stored = {**asdict(card), "sha256": sha256(weights), **({"steps": pinned} if pinned else {}), **measured}
        about.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def halved(card: Card, model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model as they are stored: in half precision.

    Raises FloatingPointError for weights that are not finite numbers in it.
    """
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
    local = local_cards(Path(folder)) if folder else {}
    model: nn.Module
    if name in _catalogue():
        model = build(_catalogue()[name], None if pretrained else seed)
        if pretrained:
            pinned = card(name).get("sha256")
            if not is_hash(pinned):
                raise ValueError(f"{_card_file(name)} does not pin its weights: its sha256 is {pinned!r}; {_REMEDY}")
            load_into(model, _weights_file(name), pinned, _REMEDY)
    elif folder and name in local:
        model = local_model(Path(folder), name, local[name], pretrained, seed)
    elif timm.is_model(name.split(".")[0]):
        model = _hub_model(name, pretrained, seed)
    else:
        near = nearest(name, [*_catalogue(), *local, *timm.list_models()])
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


def _hub_model(name: str, pretrained: bool, seed: int) -> nn.Module:
    if not pretrained:
        return untrained(name, seed)
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
    stored = read_json(_card_file(name), _REMEDY)
    if not isinstance(stored, dict):
        raise OSError(f"{_card_file(name)} is to hold a mapping, not {str(stored)[:60]}; {_REMEDY}")
    return stored
