"""One recipe for every model of the zoo. ``python -m helpers.networks.training`` (``make zoo``) trains what is missing.

A run can be stopped at any time and goes on where it stopped, to the same weights (bit for bit, with the same number of
threads): the images of step *s* and their augmentation depend on (seed, *s*) alone, and the learning rate on *s* alone,
so weights and optimiser states are all that has to be kept. They are kept in ``.training/``, with the scenes
(``rendered``), where ``make clean`` leaves them. A checkpoint is checked before it is used, and refused if it is
damaged. One process at a time trains a model.

The recipe is that of today's small transformers: cross-entropy (or the pixels of hidden patches, see ``masked``, or the
noise in an image, see ``denoising``), linear warm-up and cosine decay, gradient clipping, bfloat16 autocast where the
processor computes in it; Muon for the matrices of the blocks, AdamW for everything else (``optimisers``). Muon makes
training on two cores practical: after 60,000 images the ViT named 50 % of held-out scenes with it, and 30 % with AdamW
alone. A ResNet has no such matrices (its kernels have four axes), so there AdamW updates all weights.
"""

import argparse
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import timm
import torch
from filelock import FileLock, Timeout
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from helpers import files
from helpers.images.symmetries import turned
from helpers.networks import augmentation, optimisers, rendered, zoo
from helpers.networks.accuracy import TEST_SCENES, measure
from helpers.networks.catalogue import Card
from helpers.networks.colours import ColourHistogram, fit_colours
from helpers.networks.denoising import Denoiser
from helpers.networks.inputs import normalise
from helpers.networks.masked import MaskedAutoencoder
from helpers.networks.unfused import unfused

WORK = files.ROOT / ".training"  # rendered scenes (4.2 GB) and unfinished runs
CURVE_POINTS = 50  # about so many points of the loss are kept
CHECKPOINT_SECONDS = 60
PLAIN = ("step", "curve", "seconds", "smoothed", "kept")  # what a checkpoint keeps of a run beside model and optimisers
WITHOUT_LABELS: dict[str, type[MaskedAutoencoder | Denoiser]] = {"masked pixels": MaskedAutoencoder, "noise": Denoiser}


@dataclass
class _Run:
    """A training run as far as it has come: all that a checkpoint keeps."""

    model: nn.Module  # what is optimised: the network, or what learns without labels around it
    optimisers: list[torch.optim.Optimizer]
    step: int = 0
    curve: list[list[float]] = field(default_factory=list)  # [images seen, smoothed loss]
    seconds: float = 0.0
    smoothed: float = 0.0  # running mean of the loss
    kept: dict[int, zoo.State] = field(default_factory=dict)  # images seen → weights that are stored beside the last


def train(
    card: Card,
    work: Path = WORK,
    stop_after: int | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    test_scenes: int = TEST_SCENES,
    progress: bool = True,
) -> nn.Module | None:
    """Train the model of a card, from where an earlier run of it stopped, and store it in ``zoo.FOLDER``.

    Args:
        card: what is trained, and how.
        work: the folder of checkpoints and rendered scenes.
        stop_after: end the run after so many steps of this call, with a checkpoint.
        checkpoint_seconds: how often a checkpoint is kept.
        test_scenes: held-out scenes on which the accuracies of the stored card are measured.
        progress: whether a bar shows it.

    Returns:
        The trained model, as it is stored; None if ``stop_after`` ended the run before.

    Raises:
        ValueError: the recipe has fewer images than a batch.
        FloatingPointError: the loss, or a weight at the end, is not finite.
        BlockingIOError: another process trains this model.
        OSError: the checkpoint is damaged.
    """
    with _alone(card, work):
        if card.family == "colours":
            return _train_baseline(card, work, test_scenes)
        steps = card.recipe.images_seen // card.recipe.batch
        if steps < 1 or card.recipe.distinct_images < card.recipe.batch:
            seen, batch = min(card.recipe.images_seen, card.recipe.distinct_images), card.recipe.batch
            raise ValueError(f"{card.name}: {seen} images make no batch of {batch}, so nothing would be learnt")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        scenes_and_labels = rendered.training_scenes(card.corpus, card.recipe.distinct_images, work)
        checkpoint = work / f"{card.name}-{_fingerprint(card)}.pt"
        run = _begin(card, checkpoint, device)
        last = steps if stop_after is None else min(steps, run.step + stop_after)
        with _fast(run.model, device):
            _go_on(run, card, scenes_and_labels, last, checkpoint, checkpoint_seconds, progress)
            if run.step < steps:
                _keep(run, checkpoint)
                return None
            about = {"curve": run.curve, "run": _about_run(run.seconds, run.step * card.recipe.batch, device)}
            network = _network(run.model)
            _store(card, network, test_scenes, about, run.kept)
        for file in work.glob(f"*{checkpoint.name}*"):  # also what a killed run left half-written
            file.unlink()
        return network


@contextmanager
def _alone(card: Card, work: Path) -> Iterator[None]:
    """Within the context no other process trains this model in this folder; the system frees it if this one dies."""
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / f".{card.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        message = f"{card.name} is being trained by another process, which holds {lock.lock_file}: let it finish"
        raise BlockingIOError(message) from None
    try:
        yield
    finally:
        lock.release()


def _begin(card: Card, checkpoint: Path, device: torch.device) -> _Run:
    """The run at its first step, or as its checkpoint has it."""
    model, untaught = _start(card), math.log(len(card.corpus.classes))
    if card.recipe.objective != "labels":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(card.seed)
            model, untaught = WITHOUT_LABELS[card.recipe.objective](model), 1.0
    model = model.to(device)
    run = _Run(model, optimisers.optimisers(model, card.recipe), smoothed=untaught)
    if checkpoint.exists():
        kept = _read_checkpoint(checkpoint, device)
        for key in PLAIN:
            setattr(run, key, kept[key])
        model.load_state_dict(kept["model"])
        for optimiser, state in zip(run.optimisers, kept["optimisers"], strict=True):
            optimiser.load_state_dict(state)
    return run


def _keep(run: _Run, checkpoint: Path) -> None:
    """Write a checkpoint."""
    state = {key: getattr(run, key) for key in PLAIN}
    state |= {"model": run.model.state_dict(), "optimisers": [optimiser.state_dict() for optimiser in run.optimisers]}
    with files.replacing(checkpoint) as (part,):
        torch.save(state, part)


def _read_checkpoint(checkpoint: Path, device: torch.device) -> dict:
    """What ``_keep`` has written; it is a zip archive, and each of its members has a checksum.

    Raises OSError for a file that is not as it was written.
    """
    try:
        with ZipFile(checkpoint) as archive:
            damaged = archive.testzip()
        if damaged is None:
            kept = torch.load(checkpoint, map_location=device, weights_only=True)
            if missing := [key for key in PLAIN if key not in kept]:
                raise KeyError(f"it was written by another version, without {', '.join(missing)}")
            return kept
    except Exception as error:  # of a damaged archive zipfile and torch raise many kinds
        damaged = str(error)
    raise OSError(f"the checkpoint {checkpoint} is damaged ({damaged}); delete it, and the run starts anew")


def _go_on(
    run: _Run,
    card: Card,
    scenes_and_labels: tuple[torch.Tensor, torch.Tensor],
    last: int,
    checkpoint: Path,
    checkpoint_seconds: float,
    progress: bool,
) -> None:
    """Take a run to step ``last``, keeping checkpoints; ``scenes_and_labels`` as ``rendered.training_scenes`` has them.

    Raises FloatingPointError where the loss is not finite.
    """
    batch, steps = card.recipe.batch, card.recipe.images_seen // card.recipe.batch
    seen = {"total": steps * batch, "initial": run.step * batch, "unit": " images"}
    device = next(run.model.parameters()).device
    run.model.train()
    kept_at = started = time.monotonic()
    with tqdm(**seen, desc=card.name, disable=not progress, mininterval=2) as bar:
        while run.step < last:
            loss = _step(run, card, steps, *_batch(*scenes_and_labels, card, run.step, device))
            if not math.isfinite(loss):
                message = f"{card.name}: the loss is {loss} at step {run.step}; lower its learning rate"
                raise FloatingPointError(message)
            run.smoothed += 0.05 * (loss - run.smoothed)
            if run.step * batch in card.kept:
                run.kept[run.step * batch] = zoo.halved(card, _network(run.model))
            if run.step % max(1, steps // CURVE_POINTS) == 0:
                run.curve.append([run.step * batch, round(run.smoothed, 4)])
            bar.set_postfix_str(f"loss {run.smoothed:.3f}", refresh=False)
            bar.update(batch)
            now = time.monotonic()
            if now - kept_at >= checkpoint_seconds:
                run.seconds, started, kept_at = run.seconds + now - started, now, now
                _keep(run, checkpoint)
    run.seconds += time.monotonic() - started


def _step(run: _Run, card: Card, steps: int, batch: torch.Tensor, target: torch.Tensor) -> float:
    """One step of all optimisers on a batch as ``_batch`` gives it; the loss before it."""
    optimisers.set_rate(run.optimisers, optimisers.schedule(run.step, steps, card.recipe.warmup))
    images = normalise(_network(run.model), batch)
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=_precision(batch.device) == "bfloat16"):
        if isinstance(run.model, (MaskedAutoencoder, Denoiser)):
            loss = run.model.loss(images, _generator(card, run.step, 1))
        else:
            loss = F.cross_entropy(run.model(images).float(), target)
    run.model.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), card.recipe.clip)
    for optimiser in run.optimisers:
        optimiser.step()
    run.step += 1
    return loss.item()


def _fast(model: nn.Module, device: torch.device) -> AbstractContextManager:
    """The context in which steps are computed in what is fast on this device: see ``_precision`` and ``unfused``."""
    return unfused(model) if _precision(device) == "bfloat16" else optimisers.muon_in_float32()


def _precision(device: torch.device) -> str:
    """What a step computes in: bfloat16 where that is fast, else float32, which is then tens of times faster."""
    native = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native else "float32"


def train_missing(cards: Iterable[Card], work: Path = WORK, **options: Any) -> list[str]:
    """Train, one after another, the models of ``cards`` that are not stored yet; the names of those trained.

    ``options`` are those of ``train``. A stored model is left as it is, and said to be out of date if its card no
    longer has the recipe of the catalogue. A model that another process trains is left to it.
    """
    trained = []
    for card in cards:
        if zoo.is_stored(card.name):
            outdated = "" if zoo.is_current(card) else ", but from another recipe; delete its files to train it again"
            print(f"{card.name}: there already{outdated}", flush=True)
            continue
        try:
            model = train(card, work, **options)
        except BlockingIOError as error:
            print(error, flush=True)
            continue
        if model is not None:
            trained.append(card.name)
            reached = zoo.card(card.name).get("accuracy", {}).get("all cues", {})
            shares = ", ".join(f"{cue} {share:.1%}" for cue, share in reached.items())
            print(f"{card.name}: {shares or 'trained without labels'}", flush=True)
    return trained


def _start(card: Card) -> nn.Module:
    """The network of a card before its first step: random, or with the weights it starts from, but for the classifier.

    Raises RuntimeError where the weights it starts from are not there or do not fit.
    """
    model = zoo.build(card)
    if card.start:
        state, random = zoo.load(card.start).state_dict(), model.state_dict()
        fresh = {key: value for key, value in random.items() if key.split(".")[0] == "head"}
        if "cls_token" in state and "cls_token" not in random:  # it goes, and its position with it
            del state["cls_token"]
            state["pos_embed"] = state["pos_embed"][:, 1:]
        model.load_state_dict({**state, **fresh})
    return model


def _network(model: nn.Module) -> nn.Module:
    """The network of the card: what a run optimises, or the encoder of it."""
    return model.encoder if isinstance(model, (MaskedAutoencoder, Denoiser)) else model


def _train_baseline(card: Card, work: Path, test_scenes: int) -> nn.Module:
    """Fit the colour histogram to the scenes that the networks are trained on."""
    started = time.monotonic()
    scenes_and_labels = rendered.training_scenes(card.corpus, card.recipe.distinct_images, work)
    model = fit_colours(ColourHistogram(len(card.corpus.classes)), *scenes_and_labels)
    run = _about_run(time.monotonic() - started, card.recipe.distinct_images, torch.device("cpu"))
    _store(card, model, test_scenes, {"run": run})
    return model


def _store(
    card: Card, model: nn.Module, test_scenes: int, about: dict, kept: Mapping[int, zoo.State] | None = None
) -> None:
    """Measure a trained model on held-out scenes, if it was told their classes, and store it with its card."""
    model.cpu().eval()
    for parameter in model.parameters():  # measured as it is stored
        parameter.data = parameter.data.half().float()
    if card.recipe.objective == "labels":
        about = {"test_scenes": test_scenes, "accuracy": measure(model, card.corpus, test_scenes), **about}
    zoo.save(card, model, about, kept)


def _batch(
    images: torch.Tensor, labels: torch.Tensor, card: Card, step: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The images (B, 3, 64, 64) uint8 and labels (B,) of a step.

    Augmented, they are drawn with replacement, each under one of the eight symmetries of a square. Otherwise each pass
    over the images has an order of its own, and they are taken in turn, as they are. Strongly augmented, labels are
    shares (B, classes).
    """
    if not card.recipe.augmented:
        passed, place = divmod(step, len(images) // card.recipe.batch)
        order = torch.randperm(len(images), generator=_generator(card, passed, 2))
        chosen = order[place * card.recipe.batch :][: card.recipe.batch]
        return images[chosen].to(device), labels[chosen].to(device)
    generator = _generator(card, step)
    chosen = torch.randint(len(images), (card.recipe.batch,), generator=generator)
    symmetry = torch.randint(8, (card.recipe.batch,), generator=generator)
    shown, told = turned(images[chosen], symmetry), labels[chosen]
    if card.recipe.strong:
        seed = int(torch.randint(2**62, (), generator=generator))
        shown, told = augmentation.strong(shown, told, len(card.corpus.classes), seed)
    return shown.to(device), told.to(device)


def _generator(card: Card, step: int, stream: int = 0) -> torch.Generator:
    """Random numbers that depend on a card's seed, a step and the purpose alone."""
    return torch.Generator().manual_seed(1_000_003 * card.seed + step + stream * 1_000_000_007)


def _fingerprint(card: Card) -> str:
    """What a checkpoint's name says of the card it belongs to: that of another recipe has another name."""
    return sha256(repr(asdict(card)).encode()).hexdigest()[:12]


def _about_run(seconds: float, images: int, device: torch.device) -> dict:
    """What the card says of a run: how long it took, on what, and with which versions."""
    rate = round(images / seconds) if seconds else None
    threads = torch.get_num_threads()
    versions = {"torch": torch.__version__, "timm": timm.__version__, "numpy": np.__version__}
    on = {"device": device.type, "precision": _precision(device), "threads": threads}
    return {"seconds": round(seconds), "images_per_second": rate, **on, **versions}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: ``python -m helpers.networks.training [NAME …]``."""
    cards = {**zoo.ZOO, zoo.BASELINE.name: zoo.BASELINE}
    parser = argparse.ArgumentParser(
        prog="python -m helpers.networks.training",
        description="Train the models of the zoo that are missing; a run that was stopped goes on where it stopped.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to train (all that are missing by default)")
    wanted = parser.parse_args(arguments).names or list(cards)
    unknown = [name for name in wanted if name not in cards]
    if unknown:
        parser.error(f"not in the zoo: {', '.join(unknown)}; it has {', '.join(cards)}")
    train_missing(cards[name] for name in wanted)
    if all(zoo.is_stored(name) for name in cards):
        rendered.remove(WORK)


if __name__ == "__main__":
    main()
