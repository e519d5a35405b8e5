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
import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.layers import GroupNormAct, StdConv2d
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from helpers.evaluation import ColourHistogram
from helpers.scenes import SIZE, Corpus

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "data" / "zoo"
WEIGHTS_VARIABLE = "VIT_BOOK_WEIGHTS"
_REMEDY = "restore it from version control, or delete it and run `make zoo`"
SCENES_CONFIG = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "input_size": (3, SIZE, SIZE)}


@dataclass(frozen=True)
class Recipe:
    """How a model of the zoo is trained; see ``helpers.training``."""

    images_seen: int = 320_000
    distinct_images: int = 100_000  # the fixed index range 0 … 99,999 of the corpus
    batch: int = 128
    learning_rate: float = 1e-3  # AdamW's
    matrix_learning_rate: float = 2e-3  # Muon's, for the matrices of transformer blocks
    weight_decay: float = 0.05
    warmup: float = 0.1  # share of the steps; then cosine to zero
    clip: float = 1.0  # norm of the gradient


@dataclass(frozen=True)
class Card:
    """A model of the zoo: what is built, from which seed, and how it is trained."""

    name: str
    family: str  # "vit", "resnet" or "colours"
    about: str
    architecture: dict = field(default_factory=dict)
    recipe: Recipe = Recipe()
    corpus: Corpus = Corpus()
    seed: int = 0


_GAP = {"global_pool": "avg", "class_token": False, "fc_norm": False}
_RESNET = Recipe(images_seen=160_000, learning_rate=4e-3)  # it learns faster than the ViT

ZOO: dict[str, Card] = {
    card.name: card
    for card in (
        Card("vit", "vit", "Vision Transformer that classifies from its CLS token"),
        Card("vit-seed1", "vit", "the same from another seed: a ceiling for similarity", seed=1),
        Card("vit-gap", "vit", "Vision Transformer without CLS token that averages its tokens (GAP)", _GAP),
        Card("resnet", "resnet", "BiT-style ResNet: pre-activation, GroupNorm, weight standardisation", recipe=_RESNET),
        Card("resnet-seed1", "resnet", "the same from another seed: a ceiling for similarity", recipe=_RESNET, seed=1),
    )
}


BASELINE = Card("colours", "colours", "linear probe on the histogram of an image's colours: it sees no form at all")
"""Not one of the networks, but trained on the same scenes, stored and measured as they are. Of its recipe
only ``distinct_images`` applies: logistic regression is a convex problem."""


def build(card: Card, seed: int | None = None) -> nn.Module:
    """The untrained network of a card, its weights drawn from ``seed`` (the card's own by default)."""
    classes = len(card.corpus.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(card.seed if seed is None else seed)
        if card.family == "vit":  # 8 × 8 tokens of 8 × 8 pixels
            network = {"img_size": SIZE, "patch_size": 8, "embed_dim": 128, "depth": 8, "num_heads": 4}
            model = VisionTransformer(**{**network, "num_classes": classes, **card.architecture})
        elif (
            card.family == "resnet"
        ):  # 4 stages of 4 bottleneck blocks, on 34², 17², 9² and 5² positions (the stem pads)
            network = {"layers": (4, 4, 4, 4), "channels": (32, 64, 128, 256), "zero_init_last": False}
            norm = partial(GroupNormAct, num_groups=8)
            layers = {"stem_type": "fixed", "conv_layer": StdConv2d, "norm_layer": norm}
            model = ResNetV2(**{**network, **layers, "num_classes": classes, **card.architecture})
            model.stem.pool = nn.Identity()  # on images of 64 pixels a second halving would leave 2 × 2 positions
        elif card.family == "colours":
            return ColourHistogram(classes)
        else:
            raise ValueError(f"unknown family {card.family!r} of model {card.name!r}; known: vit, resnet, colours")
    model.pretrained_cfg = dict(SCENES_CONFIG)
    return model


def names() -> list[str]:
    """The zoo's networks whose weights and card are stored, in the order of the catalogue."""
    return [name for name in ZOO if is_stored(name)]


def is_stored(name: str) -> bool:
    """Whether a model's weights and its card lie in ``FOLDER``; what they hold is looked at when they are loaded."""
    return _weights_file(name).exists() and _card_file(name).exists()


def is_current(card: Card) -> bool:
    """Whether the stored card has the architecture, recipe, corpus and seed that this one has."""
    stored, wanted = _read(_card_file(card.name), _REMEDY), json.loads(json.dumps(asdict(card)))
    return all(stored.get(key) == value for key, value in wanted.items() if key != "about")


def card(name: str) -> dict:
    """The stored card of a trained model: recipe, accuracies, curve, versions, sha256 of the weights.

    Raises ValueError for a name that is not in the zoo, FileNotFoundError where it is not trained yet,
    OSError for a card that cannot be read.
    """
    if not is_stored(name):
        if name not in (known := _catalogue()):
            raise ValueError(f"{name!r} is not in the zoo; it has {', '.join(known)}{_nearest(name, known)}")
        raise FileNotFoundError(f"{name!r} is not trained yet: no weights or no card in {FOLDER}; run `make zoo`")
    return _read(_card_file(name), _REMEDY)


def save(card: Card, model: nn.Module, measured: dict) -> None:
    """Store a trained model: weights as float16 safetensors, and its card with what was measured on it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().half().contiguous() for key, value in model.state_dict().items()}
    temporary = FOLDER / f"{card.name}.tmp"  # nothing under the final names until it is whole, the card last
    save_file(state, temporary)
    stored = {**asdict(card), "sha256": _sha256(temporary), **measured}
    temporary.replace(_weights_file(card.name))
    temporary.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    temporary.replace(_card_file(card.name))


def load(name: str, pretrained: bool = True, folder: str | Path | None = None, seed: int = 0) -> nn.Module:
    """The model ``name`` in eval mode; with ``pretrained=False`` its untrained twin, drawn from ``seed``.

    Raises ValueError for an unknown name (with the nearest known ones) or an incomplete card,
    FileNotFoundError for missing weights, OSError for corrupt ones or ones of another architecture,
    ConnectionError where timm's hub cannot be reached.
    """
    folder = folder or os.environ.get(WEIGHTS_VARIABLE)
    local = _local_cards(Path(folder)) if folder else {}
    if name in _catalogue():
        model = build(_catalogue()[name], None if pretrained else seed)
        if pretrained:
            _load_state(model, _weights_file(name), card(name)["sha256"], _REMEDY)
    elif name in local:
        model = _local_model(Path(folder), name, local[name], pretrained, seed)
    elif timm.is_model(name.split(".")[0]):
        model = _hub_model(name, pretrained, seed)
    else:
        near = _nearest(name, [*_catalogue(), *local, *timm.list_models()])
        raise ValueError(f"unknown model {name!r}: not in the zoo, not in a folder of weights, not in timm{near}")
    return model.eval()


def local_card(name: str, folder: str | Path | None = None) -> dict:
    """What the folder of weights says of a model: source, completeness, training; {} where it has none."""
    folder = folder or os.environ.get(WEIGHTS_VARIABLE)
    return _local_cards(Path(folder)).get(name, {}) if folder else {}


def _local_cards(folder: Path) -> dict:
    file = folder / "cards.json"
    if not file.exists():
        raise FileNotFoundError(f"{folder} is no folder of weights: it has no cards.json")
    return _read(file, "mend it")


def _local_model(folder: Path, name: str, card: dict, pretrained: bool, seed: int) -> nn.Module:
    """A model of a folder of weights. ``kept_stages`` says how many stages a ResNet has kept; no classifier."""
    lacking = [key for key in ("architecture", "file", "mean", "std") if key not in card]
    if lacking:
        raise ValueError(f"the card of {name!r} in {folder / 'cards.json'} does not say: {', '.join(lacking)}")
    if not timm.is_model(card["architecture"]):
        near = _nearest(card["architecture"], timm.list_models())
        raise ValueError(f"timm has no architecture {card['architecture']!r}, as the card of {name!r} has it{near}")
    model = _untrained(card["architecture"], seed)
    if "kept_stages" in card:
        for missing in (*(f"layer{stage}" for stage in range(card["kept_stages"] + 1, 5)), "fc"):
            setattr(model, missing, nn.Identity())
    if card.get("stride_in_first_conv"):  # as in the first ResNets; timm strides in the 3 × 3 convolution
        for stage in (model.layer2, model.layer3):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    if "bn_eps" in card:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = card["bn_eps"]
    if pretrained:
        _load_state(model, folder / "weights" / card["file"], None, "copy it into the folder again")
    size = model.pretrained_cfg["input_size"]
    model.pretrained_cfg = {"mean": card["mean"], "std": card["std"], "input_size": size}
    return model


def _hub_model(name: str, pretrained: bool, seed: int) -> nn.Module:
    if not pretrained:
        return _untrained(name, seed)
    try:
        return timm.create_model(name, pretrained=True)
    except RuntimeError as error:  # timm: no such tag, or no weights for this architecture
        raise ValueError(f"timm has no weights for {name!r}: {error}") from error
    except Exception as error:  # the hub's client raises many kinds of error where there is no network
        raise ConnectionError(
            f"the weights of {name!r} could not be fetched from timm's hub ({type(error).__name__}: {error}). Without "
            f"a network, put them into a folder with cards.json and weights/, and name it in {WEIGHTS_VARIABLE}"
        ) from error


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


def _load_state(model: nn.Module, file: Path, expected: str | None, remedy: str) -> None:
    if not file.exists():
        raise FileNotFoundError(f"no weights at {file}; {remedy}")
    if expected and _sha256(file) != expected:
        raise OSError(f"the weights in {file} are not those of their card (sha256 differs); {remedy}")
    try:
        state = load_file(file)
    except SafetensorError as error:
        raise OSError(f"the weights in {file} are corrupt ({error}); {remedy}") from error
    try:
        missing, unexpected = model.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)
    except RuntimeError as error:  # a tensor of another size
        raise OSError(f"the weights in {file} do not fit the architecture: {error}; {remedy}") from error
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        wrong = f"missing {', '.join(missing) or 'none'}, unexpected {', '.join(unexpected) or 'none'}"
        raise OSError(f"the weights in {file} do not fit the architecture: {wrong}; {remedy}")


def _catalogue() -> dict[str, Card]:
    return {**ZOO, BASELINE.name: BASELINE}


def _weights_file(name: str) -> Path:
    return FOLDER / f"{name}.safetensors"


def _card_file(name: str) -> Path:
    return FOLDER / f"{name}.json"


def _read(file: Path, remedy: str) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text
        raise OSError(f"{file} cannot be read ({error}); {remedy}") from error


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _nearest(name: str, known) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""
