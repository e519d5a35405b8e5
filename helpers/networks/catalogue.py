"""The catalogue of the zoo: what each of the book's own networks is made of, and how it is trained.

A ``Card`` says all that training needs; ``architectures.build`` makes its untrained network. Two recipes are in use.
The main models see fresh scenes, each once a pass and as it is. The ViTs among them begin as masked autoencoders, which
are stored as models of their own (``MASKED``): no other recipe that was tried gave local heads (``data/README.md``).
The variants differ in one thing (a skip connection, the amount of data, the size, the heads, the patches, the
objective, the architecture) from controls that share their shorter recipe (``SHORT``), without pre-training, and have a
second seed.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from helpers.images.scenes import NOVEL, Corpus


@dataclass(frozen=True)
class Recipe:
    """How a model of the zoo is trained; see ``helpers.networks.training``."""

    images_seen: int = 320_000
    distinct_images: int = 100_000  # the fixed index range 0 … 99,999 of the corpus
    batch: int = 128
    learning_rate: float = 1e-3  # AdamW's
    matrix_learning_rate: float = 2e-3  # Muon's, for the matrices of transformer blocks
    weight_decay: float = 0.05
    position_decay: bool = True  # whether position embeddings and the CLS token decay as well
    augmented: bool = True  # draws with replacement, under the square's symmetries; else one pass after another, as is
    strong: bool = False  # whether images are recoloured, erased and mixed as well: see helpers.networks.augmentation
    objective: str = "labels"  # or "masked pixels" or "noise": see helpers.networks.masked and .denoising
    warmup: float = 0.1  # share of the steps; then cosine to zero
    clip: float = 1.0  # norm of the gradient


@dataclass(frozen=True)
class Card:
    """A model of the zoo: what is built, from which seed, and how it is trained."""

    name: str
    family: str  # "vit", "resnet", "mixer", "pit", "swin", "convnext" or "colours": see helpers.networks.architectures
    about: str
    architecture: dict = field(default_factory=dict)
    recipe: Recipe = Recipe()
    corpus: Corpus = Corpus()
    seed: int = 0
    without_skip: tuple[int, str] | None = None  # a block and a branch of it: see helpers.networks.surgery
    attention: tuple[tuple[int, int], ...] = ()  # stages and blocks of a ResNet that attend: helpers.networks.alternet
    blurred: bool = False  # whether a ResNet blurs before it subsamples: see helpers.networks.alternet
    encoding: str = "learned"  # how a ViT is told where its patches lie: see helpers.networks.encodings
    window: int | None = None  # side of what a patch of a ViT sees, in patches: see helpers.networks.windows
    start: str | None = None  # the stored model whose weights it starts from, its classifier apart
    position_std: float | None = None  # deviation of the position embeddings at the start; None: timm's, 0.02
    kept: tuple[int, ...] = ()  # after so many images seen the weights are stored as well: see zoo.load_step


_GAP = {"global_pool": "avg", "class_token": False, "fc_norm": False}
SHORT = Recipe(images_seen=160_000)  # 1,250 steps, whatever the network and however few distinct images
FRESH = Recipe(images_seen=240_000, distinct_images=240_000, augmented=False, position_decay=False)
_MASKED = replace(FRESH, images_seen=480_000, objective="masked pixels")
_HEADS = {"num_heads": 8}  # of 16 dimensions
_SEEDS = (0, 1, 2)


def _seeded(card: Card, seed: int) -> Card:
    """The card of another training: another seed, from the start of that seed; only the first one's steps are kept."""
    if not seed:
        return card
    name, about = f"{card.name}-seed{seed}", f"{card.name} from another seed: a ceiling for similarity"
    start = f"{card.start}-seed{seed}" if card.start else None
    return replace(card, name=name, about=about, seed=seed, start=start, kept=())


_MAE = Card(
    "vit-mae",
    "vit",
    "masked autoencoder: a ViT that filled in hidden patches and was never told a class",
    _HEADS,
    _MASKED,
    position_std=0.3,
    kept=(32_000, 128_000),
)
_VIT = replace(
    _MAE,
    name="vit",
    about="Vision Transformer that classifies from its CLS token; it starts as vit-mae",
    recipe=FRESH,
    start="vit-mae",
    kept=(16_000, 64_000, 128_000),
)
_VIT_GAP = replace(
    _VIT,
    name="vit-gap",
    about="Vision Transformer without CLS token that averages its tokens (GAP); it starts as vit-mae",
    architecture={**_HEADS, **_GAP},
    kept=(),
)
_RESNET = Card(
    "resnet",
    "resnet",
    "BiT-style ResNet: pre-activation, GroupNorm, weight standardisation",
    recipe=replace(FRESH, images_seen=160_000, learning_rate=4e-3),
    kept=(2_560, 6_400, 16_000, 32_000, 64_000, 128_000),
)

MASKED = tuple(_seeded(_MAE, seed) for seed in _SEEDS)
MAIN = (
    *(_seeded(_VIT, seed) for seed in _SEEDS),
    *(_seeded(_VIT_GAP, seed) for seed in _SEEDS[:2]),
    *(_seeded(_RESNET, seed) for seed in _SEEDS),
)

_RESNET_SHORT = replace(SHORT, learning_rate=4e-3)
_WARM: dict = {"kept": (16_000,)}  # the end of warm-up
_SMALL = {"embed_dim": 64, "depth": 4, "num_heads": 4}
_CONTROLS = (
    Card("vit-short", "vit", "a ViT of the same size on the short schedule: the control of its variants", recipe=SHORT),
    Card("vit-short-seed1", "vit", "the control from another seed", recipe=SHORT, seed=1),
    Card("vit-small", "vit", "a smaller ViT (half the width, half the depth) on that schedule", _SMALL, SHORT, **_WARM),
    Card("vit-small-seed1", "vit", "the same from another seed", _SMALL, SHORT, seed=1, **_WARM),
    Card("mixer", "mixer", "MLP-Mixer of the ViT's width and depth on that schedule", recipe=SHORT),
    Card("resnet-short", "resnet", "the ResNet on the short schedule", recipe=_RESNET_SHORT),
    Card("resnet-short-seed1", "resnet", "the same from another seed", recipe=_RESNET_SHORT, seed=1),
)

SKIPLESS = tuple(
    Card(
        f"vit-without-{branch}-skip-{block}",
        "vit",
        f"trained without the skip around {around} of block {block}",
        recipe=SHORT,
        without_skip=(block, branch),
    )
    for block in (1, 4, 6)
    for branch, around in (("attn", "attn"), ("mlp", "mlp"), ("both", "attention and MLP"))
)

FRACTIONS = (3, 10, 30)  # per cent of the controls' distinct images: the first ones of their index range
SCARCE = tuple(
    replace(
        control,
        name=f"{control.name.removesuffix('-short')}-data{per_cent}",
        about=f"{control.name} with {per_cent} % of the training images",
        recipe=replace(control.recipe, distinct_images=SHORT.distinct_images * per_cent // 100),
        kept=(),
    )
    for control in _CONTROLS
    if control.name in ("vit-short", "resnet-short", "vit-small")
    for per_cent in FRACTIONS
)

# Networks built step by step, where there is room to gain: the ResNet on a tenth of the scenes, for 500 steps. Their
# control, resnet-brief, is also the network of the same size: nine heads have as many weights as nine taps.
BRIEF = replace(_RESNET_SHORT, images_seen=64_000, distinct_images=10_000)


def _brief(name: str, about: str, **change: Any) -> tuple[Card, ...]:
    """Three trainings of the ResNet with one thing changed."""
    return tuple(_seeded(Card(name, "resnet", about, recipe=BRIEF, **change), seed) for seed in _SEEDS)


def _windowed(side: int) -> tuple[Card, ...]:
    """Two trainings of the small ViT whose patches see the patches around them."""
    about = f"attention to the {side} × {side} patches around"
    card = Card(f"vit-small-window{side}", "vit", about, _SMALL, SHORT, window=side)
    return tuple(_seeded(card, seed) for seed in _SEEDS[:2])


BUILT = (
    *_brief("resnet-brief", "the ResNet on few images and few steps: the control of AlterNets"),
    *_brief("alternet-end4", "attention at the end of the last stage", attention=((3, 3),)),
    *_brief("alternet-start4", "attention at the start of the last stage", attention=((3, 1),)),
    *_brief("alternet-end34", "attention at the end of the last two", attention=((2, 3), (3, 3))),
    *_brief("alternet-end234", "attention at the end of the last three", attention=((1, 3), (2, 3), (3, 3))),
    *_brief("resnet-blurred", "a 2 × 2 box blur before each subsampling", blurred=True),
    *_windowed(3),
    *_windowed(5),
)

# The small ViT with other position encodings than the learned one that it has.
POSITIONS = tuple(
    _seeded(Card(f"vit-small-{kind}", "vit", f"the small ViT with {about}", _SMALL, SHORT, encoding=kind), seed)
    for kind, about in (
        ("none", "no position encoding"),
        ("sines-1d", "fixed sines of the patch's number as its position encoding"),
        ("sines-2d", "fixed sines of the patch's row and column as its position encoding"),
        ("relative", "a bias in attention for each relative place as its position encoding"),
    )
    for seed in _SEEDS[:2]
)


def _small(what: str, about: str, architecture: dict | None = None, recipe: Recipe = SHORT) -> tuple[Card, ...]:
    """Two trainings of the small ViT with one thing changed."""
    card = Card(f"vit-small-{what}", "vit", f"the small ViT {about}", {**_SMALL, **(architecture or {})}, recipe)
    return tuple(_seeded(card, seed) for seed in _SEEDS[:2])


# Heads of 16 dimensions, as many as are named, and four heads of so many dimensions; with four of 16 it is vit-small.
HEADS = (
    *(card for n in (1, 2, 8) for card in _small(f"heads{n}", f"with heads: {n}", {"num_heads": n, "head_width": 16})),
    *(card for w in (8, 32) for card in _small(f"head-width{w}", f"with heads of {w} dimensions", {"head_width": w})),
)
PATCHES = tuple(card for p in (4, 16) for card in _small(f"patch{p}", f"with patches of {p} pixels", {"patch_size": p}))
STRONG = _small("strong", "trained on recoloured, erased and mixed images", recipe=replace(SHORT, strong=True))
OBJECTIVES = (  # told no class
    *_small("mae", "as a masked autoencoder", recipe=replace(SHORT, objective="masked pixels")),
    *_small("denoiser", "trained to find the noise in an image", recipe=replace(SHORT, objective="noise")),
)
# Networks with stages, with heads as wide as the small ViT's.
_STAGED = (
    Card("pit", "pit", "a ViT whose grid of tokens is pooled twice (PiT)", recipe=SHORT),
    Card("swin", "swin", "attention in windows that are shifted, in three stages (Swin)", recipe=SHORT),
    Card("convnext", "convnext", "depthwise convolutions of 7 × 7 and MLPs, in four stages (ConvNeXt)", recipe=SHORT),
)
STAGED = tuple(replace(_seeded(card, seed), **_WARM) for card in _STAGED for seed in _SEEDS[:2])

_TUNED = replace(
    _VIT,
    name="vit-novel",
    about="the ViT fine-tuned to shapes and textures that it was not trained on",
    recipe=replace(FRESH, images_seen=25_600, distinct_images=25_600, learning_rate=3e-4, matrix_learning_rate=3e-4),
    corpus=NOVEL,
    start="vit",
    kept=(),
)

_CARDS = (
    *MASKED,
    *MAIN,
    *_CONTROLS,
    *SKIPLESS,
    *SCARCE,
    *BUILT,
    *POSITIONS,
    *HEADS,
    *PATCHES,
    *STRONG,
    *OBJECTIVES,
    *STAGED,
    _TUNED,
)
ZOO: dict[str, Card] = {card.name: card for card in _CARDS}


BASELINE = Card("colours", "colours", "linear probe on the histogram of an image's colours: it sees no form at all")
"""Not one of the networks, but trained on the same scenes, stored and measured as they are. Of its recipe
only ``distinct_images`` applies: logistic regression is a convex problem."""
