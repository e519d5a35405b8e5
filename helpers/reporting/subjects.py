"""What a report is about: the model, the networks beside it, and an untrained twin of each, with their images."""

import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helpers.files import sha256
from helpers.images.pictures import CROP_SHARE
from helpers.images.scenes import SIZE, Corpus, SceneDataset, split
from helpers.images.sources import ImageSet, folder_images, scene_images
from helpers.networks import local_weights, zoo
from helpers.networks.inputs import image_size, resize_for, resized

NONE = "none"  # in the place of weights: random ones, to look at an architecture alone
PAIR = ("vit_tiny_patch16_224", "resnet50")  # beside which a model stands on photographs, where their weights are had


@dataclass(frozen=True)
class Subject:
    """A network with the images it is measured on.

    ``role``: "model", "reference", or either with " twin" behind it for the same network with random weights.
    ``learn``: the images that probes learn from; None where the images have no labels.
    """

    name: str
    role: str
    network: nn.Module = field(repr=False)
    images: ImageSet = field(repr=False)
    learn: ImageSet | None = field(repr=False)
    card: dict[str, Any] = field(repr=False)

    @property
    def folder(self) -> str:
        """The name of its folder of tables."""
        return re.sub(r"[^\w.-]+", "-", self.name)


def load(name: str, weights: str | None, pretrained: bool = True, seed: int = 0) -> nn.Module:
    """A network by its name.

    Args:
        name: of the zoo, of a folder of weights, of timm, or ``file.py:function``, a function of one's own that is
            called with ``pretrained=…, seed=…`` and returns a network (``networks.adapter``).
        weights: a folder with cards.json, a file of weights of the timm architecture ``name``, "none" for random ones.
        pretrained: False for its untrained twin.
        seed: of random weights.

    Raises:
        ValueError, OSError, ConnectionError: as ``zoo.load`` and ``local_weights.model_from_file``; for a file of
            Python without the function, and for a name or weights that there are not.
    """
    if ".py:" in name:
        return _own(name, pretrained and weights != NONE, seed)
    if weights == NONE:
        return zoo.load(name, False, seed=seed)
    file = Path(weights).expanduser() if weights else None
    if file is None or file.is_dir():
        try:
            return zoo.load(name, pretrained, file, seed)
        except ConnectionError as error:
            raise ConnectionError(f"{error}; or give WEIGHTS=none, to look at the architecture alone") from error
    if not file.exists():
        raise ValueError(f"no file and no folder of weights at {file}; give one, or none for random weights")
    return local_weights.model_from_file(name, file, pretrained, seed)


def subjects(
    name: str,
    beside: Sequence[str] | None,
    weights: str | None,
    folder: str | None,
    limit: int,
    crop: float | None,
    on: torch.device,
) -> list[Subject]:
    """The model, its twin, and each network beside it with its twin.

    Args:
        name: of the model, as for ``load``.
        beside: names of the networks beside it; None for those that are had without a download: on photographs ``PAIR``
            if the folder of weights holds them, otherwise the zoo's ViT and ResNet.
        weights: of the model and, if they are a folder, of the others.
        folder: of photographs; None for scenes.
        limit: number of images at most.
        crop: share of the shorter side of a photograph to keep; None for what each model's configuration says.
        on: the device.

    Raises:
        ValueError: as ``load`` and ``folder_images``; images that are not square, a network named twice.
    """
    names = [name, *(_usual(name, weights, folder) if beside is None else beside)]
    if len(set(names)) < len(names):
        raise ValueError(f"a network is named twice: {', '.join(names)}")
    found = []
    for i, one in enumerate(names):
        own = weights if i == 0 or (weights and Path(weights).expanduser().is_dir()) else None
        own = NONE if weights == NONE and i and one not in zoo.names() else own
        random = own == NONE
        for twin in (False, True):
            network: Any = load(one, own, not twin, seed=int(twin and random))
            network = network.eval().to(on)
            images, learn = _images(network, folder, limit, crop)
            about = _card(one, network, own, twin, random)
            role = ("reference" if i else "model") + (" twin" if twin else "")
            label = _label(one) + (", untrained" if twin else "")
            resize_for(network, (side(network),) * 2)
            found.append(Subject(label, role, network, images, learn, about))
    return found


def side(network: nn.Module) -> int:
    """Side in px of the square images that a network takes, or, if it takes any, of those it was made for.

    Raises ValueError for a network whose images are not square.
    """
    config = getattr(network, "pretrained_cfg", None) or {}
    height, width = image_size(network) or tuple(config.get("input_size", (3, SIZE, SIZE)))[1:]
    if height != width:
        raise ValueError(f"a report needs square images, and {type(network).__name__} takes {height} × {width} px")
    return height


def scenes_at(size: int, count: int, which: str) -> ImageSet:
    """Scenes of a split, resized to ``size`` px where they are not so large by themselves, with their labels."""
    pictures, labels = _rendered(which, count)

    def get(position: int) -> tuple[Tensor, int]:
        picture = pictures[position]
        if size != SIZE:
            large = resized(picture[None].float(), (size, size))[0]
            picture = large.round().clamp(0, 255).to(torch.uint8)
        return picture, labels[position]

    about = {key: value for key, value in scene_images(count, which).describe().items() if key != "count"}
    if size != SIZE:
        about["resized_to"] = size
    names = [f"scene {index}" for index in split(which, count)]
    return ImageSet(count, get, about, names, labels, Corpus().classes)


@cache
def _rendered(which: str, count: int) -> tuple[Tensor, list[int]]:
    """Scenes (count, 3, 64, 64) uint8 of a split, drawn once for all measures, and their labels."""
    drawn = SceneDataset(Corpus(), split(which, count))
    pictures, labels = zip(*(drawn[i] for i in range(count)), strict=True)
    return torch.stack(pictures), [int(label) for label in labels]


def _images(network: nn.Module, folder: str | None, limit: int, crop: float | None) -> tuple[ImageSet, ImageSet | None]:
    """The images to measure a network on, and those that probes learn from, which are others."""
    size = side(network)
    if folder is None:
        return scenes_at(size, limit, "test"), scenes_at(size, limit, "validation")
    config = getattr(network, "pretrained_cfg", None) or {}
    images = _folder(folder, size, limit, crop or config.get("crop_pct") or CROP_SHARE)
    if len(images.classes) < 2:
        return images, None
    return images, _every_second(images, 1)


@cache
def _folder(folder: str, size: int, limit: int, crop: float) -> ImageSet:
    return folder_images(folder, size, limit, crop=crop)


def halves(subject: Subject) -> tuple[ImageSet, ImageSet] | None:
    """Images to score probes on and others to learn from; None without labels. Of a folder every second image each."""
    if subject.learn is None:
        return None
    shared = "every" in subject.learn.describe()
    return (_every_second(subject.images, 0) if shared else subject.images), subject.learn


def _every_second(images: ImageSet, first: int) -> ImageSet:
    """Every second image of a set, from number 0 or 1 on."""
    kept = list(range(first, len(images), 2))
    about = {key: value for key, value in images.describe().items() if key != "count"}
    about["every"] = f"second image, from number {first} of {len(images)}"

    def get(position: int) -> tuple[Tensor, int]:
        return images[kept[position]]

    known: list[Any] = [[values[i] for i in kept] for values in (images.names, images.labels, images.digests)]
    return ImageSet(len(kept), get, about, known[0], known[1], images.classes, known[2])


def _usual(name: str, weights: str | None, folder: str | None) -> list[str]:
    """The networks beside which a model stands unless others are named."""
    if folder and weights and weights != NONE and Path(weights).expanduser().is_dir():
        cards = local_weights.local_cards(Path(weights).expanduser())
        if had := [other for other in PAIR if other in cards and other != name]:
            return had
    pair = ("resnet", "vit")
    return [f"{one}-seed1" if one == name else one for one in pair]


def _own(name: str, pretrained: bool, seed: int) -> nn.Module:
    """What a function of a reader's own file returns."""
    path, _, function = name.rpartition(":")
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise ValueError(f"no file of Python at {file}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is no file of Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make: Callable[..., Any] | None = getattr(module, function, None)
    if not callable(make):
        raise ValueError(f"{file} has no function {function!r}")
    network = make(pretrained=pretrained, seed=seed)
    if not isinstance(network, nn.Module):
        raise ValueError(f"{function} of {file} is to return a network, and returned a {type(network).__name__}")
    return network


def _label(name: str) -> str:
    """What a network is called in tables and figures."""
    return name if ".py:" not in name else f"{Path(name.rpartition(':')[0]).stem} {name.rpartition(':')[2]}"


def _card(name: str, network: nn.Module, weights: str | None, twin: bool, random: bool) -> dict[str, Any]:
    """What is known of a network: its kind, size and weights, for the first table of a report and for sidecars."""
    about: dict[str, Any] = {
        "architecture": type(network).__name__,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "images": f"{side(network)} px",
        "normalisation": {key: list(network.pretrained_cfg[key]) for key in ("mean", "std")},  # type: ignore
    }
    if twin or random:
        return about | {"weights": f"random, drawn from seed {int(twin and random)}"}
    if ".py:" in name:
        file = Path(name.rpartition(":")[0]).expanduser()
        return about | {"weights": f"as {name.rpartition(':')[2]} of {file.name} loads them", "code": sha256(file)}
    if name in zoo.names():
        card = zoo.card(name)
        right = card.get("accuracy", {}).get("all cues", {}).get("pair")
        return about | {"weights": "of this book's zoo, trained on scenes", "sha256": card["sha256"], "accuracy": right}
    if weights and Path(weights).expanduser().is_file():
        file = Path(weights).expanduser()
        return about | {"weights": file.name, "sha256": sha256(file)}
    if notes := local_weights.local_notes(name, weights):
        return about | {"weights": notes.get("source", "a folder of weights"), **notes}
    return about | {"weights": "timm's hub"}
