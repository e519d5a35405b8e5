"""The page of the models: the cards of the zoo, what is not trained yet, and the ImageNet models of the recordings.

Everything on the page is read from the stored cards and from the sidecars of ``data/recorded``.
"""

import json
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from helpers import results
from helpers.building import families
from helpers.images.scenes import Corpus
from helpers.markup import code, literal
from helpers.networks import zoo
from helpers.networks.accuracy import CUES, TEST_SCENES
from helpers.networks.augmentation import SMOOTHING
from helpers.networks.catalogue import BRIEF, FRESH, MAIN, MASKED, SHORT, STAGED
from helpers.networks.masked import SEEN


def models_page(recorded: Path | None = None) -> str:
    """The page "The models" in MyST markdown. ``recorded``: another folder of recordings than ``data/recorded``."""
    intro = _prose("""
        Two families of models stand behind the measurements of this book. The networks of the *scenes* track were
        trained by the book itself, on images whose causes are known; their weights lie in `data/zoo/`. Those of the
        *ImageNet* track were trained by others on photographs and are taken as they are. This page is made from the
        models' own cards whenever the site is built.""")
    scenes, imagenet = _zoo_sections(), _imagenet_sections(recorded or results.RECORDED)
    return "\n\n".join(["# The models", intro, *scenes, *imagenet, *_family_sections()]) + "\n"


def _zoo_sections() -> list[str]:
    networks = {name: zoo.card(name) for name in zoo.names()}
    if not networks:
        return ["## Trained on scenes", "No network is trained yet; `make zoo` trains them."]
    names = [card.name for card in (*MASKED, *MAIN)]
    main = {name: card for name, card in networks.items() if name in names or card.get("start")}
    others = {name: card for name, card in networks.items() if name not in main}
    baseline = [zoo.BASELINE.name] if zoo.is_stored(zoo.BASELINE.name) else []
    measured = {**networks, **{name: zoo.card(name) for name in baseline}}
    told = {name: card for name, card in measured.items() if "accuracy" in card}  # of the others none is asked for
    corpus = Corpus()
    chance = {"pair": 1 / len(corpus.classes), "shape": 1 / len(corpus.shapes), "texture": 1 / len(corpus.textures)}
    about = _prose(f"""
        The networks name the {len(corpus.classes)} classes of the [corpus](/notebooks/00_scenes.ipynb), pairs of a
        shape and a texture. All were trained in batches of {FRESH.batch} scenes, with linear warm-up and cosine decay,
        weight decay {FRESH.weight_decay:g} and bfloat16 arithmetic, or float32 where that is said below, since some
        processors have no bfloat16 and are tens of times slower with it. The matrices inside blocks are trained by
        Muon {{cite:p}}`jordan2024`, everything else by AdamW. The main networks share {FRESH.distinct_images:,} scenes,
        numbers 0 to {FRESH.distinct_images - 1:,} of the corpus, and see them as they are, in an order of their own.
        Their ViTs begin as masked autoencoders {{cite:p}}`he2022`, which see {SEEN:.0%} of an image's patches, draw the
        others and are told no class; then cross-entropy takes over. These autoencoders are models of their own here.
        The same network from another seed is another training from the first step on.""")
    variants = _prose(f"""
        The networks below are trained on a shorter schedule without that beginning: {SHORT.images_seen:,} images,
        {SHORT.images_seen // SHORT.batch:,} steps, drawn from the first {SHORT.distinct_images:,} scenes and mirrored
        and turned at random. They have the size of `vit` and `resnet`, if nothing else is said, and their ViTs four
        heads a block. Each variant differs in one thing from a control on the same schedule, a ViT from `vit-short`
        or `vit-small` and a ResNet from `resnet-short`, and is compared with that control. Those with fewer scenes see
        the same number of images, the first scenes of the training set again and again. Networks that are built step by
        step have a schedule and a control of their own, `resnet-brief`: {BRIEF.images_seen:,} images of the first
        {BRIEF.distinct_images:,} scenes, so that there is room to gain.""")
    heads = _prose("""
        With another number of heads (`vit-small-heads…`) each keeps the 16 dimensions that it has in `vit-small`, and
        with heads of another width (`vit-small-head-width…`) there are four, as there: all heads of a block together
        may be wider or narrower than a token. `vit-small-patch…` have patches of another size, and so more tokens or
        fewer. A network that was trained in float32 differs from a control in bfloat16 in that as well.""")
    objectives = _prose(f"""
        `vit-small-strong` sees its scenes augmented as photographs are for ViTs {{cite:p}}`touvron2021`. Brightness,
        contrast, saturation and hue change at random, and one scene in four loses a rectangle. Then each is mixed with
        another of its batch, which is laid over it or fills a rectangle of it; labels are mixed in the same shares, and
        {SMOOTHING:.0%} of them go to all classes alike. Two of these are told no class, so they have no accuracies
        below. `vit-small-mae` draws hidden patches, as `vit-mae` does. `vit-small-denoiser` sees a scene mixed with
        normal noise, in shares from the scene alone to noise alone that are drawn anew each time, and says what the
        noise is {{cite:p}}`ho2020`; of the shares it is told nothing.""")
    stages = _prose("""
        Three networks have stages, each on a coarser grid and wider than the one before: PiT {cite:p}`heo2021`, which
        pools its tokens, Swin {cite:p}`liu2021`, which attends in windows, and ConvNeXt {cite:p}`liu2022`, which is
        convolutional. All three are on the recipe of the ViTs, rates included, and not on that of the ResNets, which
        learn four times as fast. Heads of PiT and Swin are as wide as those of `vit-small`.""")
    hours = sum(card["run"]["seconds"] for card in networks.values()) / 3600
    minutes = _prose(f"""
        *Images seen* counts repetitions. `vit-novel` starts from the weights of `vit` and is trained, and measured
        below, on another corpus of shapes and textures. The minutes are those of a clock, on {_machines(networks)}; the
        whole zoo took {hours:.1f} hours of such runs, two at a time. Weights are stored in half precision, and what
        follows was measured with the weights as they are stored.""")
    how_good = _prose(f"""
        Percentage of {TEST_SCENES:,} held-out scenes of which a model names the pair, the shape and the texture. The
        baseline, `colours`, is a linear probe on the histogram of an image's colours, trained on the same scenes: it
        sees no form at all, so its score is what colours alone give away. The last row is guessing.""")
    lean_on = _prose("""
        The same with one cue made to tell nothing, everything else in the scenes being left as it was. Each cell holds
        the percentages for *shape* and for *texture*. A model that leans on a cue loses without it.""")
    good_rows = [(name, *_percent(card["accuracy"]["all cues"])) for name, card in told.items()]
    lean_rows = [(name, *(_two(card["accuracy"][f"without {cue}"]) for cue in CUES)) for name, card in told.items()]
    sections = [
        "## Trained on scenes",
        about,
        "\n".join(_about(name, card, sized=True) for name, card in main.items()),
        *([variants, heads, objectives, stages] if others else []),
        *(["\n".join(_about(name, card) for name, card in others.items())] if others else []),
        _table(
            ("Network", "Images seen", "Seed", "Minutes", "Images/s", "Weights (sha256)"),
            [_training_row(name, card) for name, card in networks.items()],
        ),
        minutes,
        "### How good they are",
        how_good,
        _table(("Model", "Pair", "Shape", "Texture"), [*good_rows, ("chance", *_percent(chance))]),
        "### What they lean on",
        lean_on,
        _table(("Model", *(f"Without {cue}" for cue in CUES)), [*lean_rows, ("chance", *[_two(chance)] * len(CUES))]),
    ]
    if missing := [name for name in zoo.ZOO if name not in networks]:
        listed = "\n".join(f"- {code(name)}: {literal(zoo.ZOO[name].about)}" for name in missing)
        sections += ["### In the catalogue, not trained yet", "`make zoo` trains them.", listed]
    return sections


def _about(name: str, card: dict, sized: bool = False) -> str:
    """A network's line: what it is, its size where it has one of its own, its arithmetic where it is not bfloat16."""
    size = f"; {_size(name)}" if sized or name in [staged.name for staged in STAGED] else ""
    precision = card["run"].get("precision", "bfloat16")  # the first cards do not say it
    return f"- {code(name)}: {literal(card['about'])}{size}{'' if precision == 'bfloat16' else f'; in {precision}'}."


def _training_row(name: str, card: dict) -> tuple[str, ...]:
    run = card["run"]
    seen, minutes = f"{card['recipe']['images_seen']:,}", f"{run['seconds'] / 60:.0f}"
    rate, sha256 = literal(run["images_per_second"]), code(str(card["sha256"])[:12])
    return name, seen, literal(card["seed"]), minutes, rate, sha256


def _size(name: str) -> str:
    """What a network is made of, read off the network itself, and its learning rates."""
    recipe = zoo.ZOO[name].recipe
    model: Any = zoo.build(zoo.ZOO[name])  # its parts differ from one family to another
    parameters = f"{sum(value.numel() for value in model.parameters()) / 1e6:.1f} million parameters"
    rates = f"AdamW at {recipe.learning_rate:g}"
    if zoo.ZOO[name].family != "resnet":
        rates += f", Muon at {recipe.matrix_learning_rate:g}"
    stages = [stage for part in ("stages", "layers", "transformers") for stage in getattr(model, part, [])]
    if stages:
        return f"{sum(len(stage.blocks) for stage in stages)} blocks in {len(stages)} stages, {parameters}; {rates}"
    form = f"{len(model.blocks)} blocks of width {model.embed_dim}"
    if hasattr(model.blocks[0], "attn"):
        form += f" with {model.blocks[0].attn.num_heads} heads"
    patches = model.stem if hasattr(model, "stem") else model.patch_embed
    return f"{form}, patches of {patches.patch_size[0]} pixels, {parameters}; {rates}"


def _machines(cards: dict[str, dict]) -> str:
    """The processors that the networks were trained on, in words."""
    used = {(card["run"]["device"], card["run"]["threads"]) for card in cards.values()}
    words = {f"{threads} CPU thread{'s' * (threads > 1)}" if kind == "cpu" else "a GPU" for kind, threads in used}
    return " or ".join(sorted(words))


def _percent(accuracy: dict[str, float]) -> list[str]:
    return [f"{100 * accuracy[what]:.1f}" for what in ("pair", "shape", "texture")]


def _two(accuracy: dict[str, float]) -> str:
    return f"{100 * accuracy['shape']:.0f} / {100 * accuracy['texture']:.0f}"


def _imagenet_sections(folder: Path) -> list[str]:
    models, images = _recorded_models(folder)
    if not models:
        nothing = _prose("""
            Nothing is recorded yet. Any model that timm knows {cite:p}`wightman2019` can be measured, with weights from
            a folder or from timm's hub: `make record WEIGHTS=folder IMAGES=folder`.""")
        return ["## Trained on ImageNet", nothing]
    about = _prose(f"""
        The recorded measurements, on up to {images:,} photographs, were made with these models, built by timm
        {{cite:p}}`wightman2019`. Neither their weights nor the photographs are part of this book; only the numbers
        are, each file with a note of what it was measured on. Any other model that timm knows can be put in their
        place: `make record WEIGHTS=folder IMAGES=folder MODELS=names`.""")
    rows = [
        (name, literal(note.get("trained_on", "–")), _completeness(note), literal(note.get("source", "timm's hub")))
        for name, note in models.items()
    ]
    return ["## Trained on ImageNet", about, _table(("Model", "Trained on", "Complete", "Weights from"), rows)]


def _family_sections() -> list[str]:
    about = _prose(f"""
        A report (`make report`) takes any network, and not every measure makes sense for every one. Here each measure
        of a report was tried on {len(families.FAMILIES)} kinds of network, built by timm {{cite:p}}`wightman2019`, made
        small by its options, and left with random weights: so the numbers are right, and say nothing of what such
        networks learn. A test measures all of them again, and holds numbers against closed forms and against other ways
        to compute them.""")
    return ["## Which measure applies to which family", about, *families.sections()]


def _recorded_models(folder: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """What the sidecars of the recordings say of models from elsewhere, and the largest number of images in them."""
    models: dict[str, dict[str, Any]] = {}
    images = 0
    for name in results.names(folder):
        sidecar = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        described, count = sidecar.get("models") or {}, (sidecar.get("images") or {}).get("count", 0)
        if not isinstance(described, dict) or not all(isinstance(note, dict) for note in described.values()):
            raise ValueError(f"{folder / name}.json: its models must be a mapping from names to notes")
        if not isinstance(count, int):
            raise ValueError(f"{folder / name}.json: its number of images is {count!r}")
        models.update({model: note for model, note in described.items() if note.get("source") != "zoo"})
        images = max(images, count)
    return models, images


def _completeness(note: dict[str, Any]) -> str:
    return "yes" if note.get("complete", True) else f"no: {literal(note.get('note', 'parts are missing'))}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in markdown, numbers to the right. First column: names of models, or "chance"; others: markdown."""
    rows = list(rows)
    numeric = [all(row[i][:1].isdigit() for row in rows) for i in range(len(head))]
    body = [[first if first == "chance" else code(first, in_table=True), *rest] for first, *rest in rows]
    lines = [head, ["--:" if right else ":--" for right in numeric], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _prose(text: str) -> str:
    return "\n".join(textwrap.wrap(" ".join(text.split()), 118, break_on_hyphens=False, break_long_words=False))
