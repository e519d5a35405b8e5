"""One recipe for every model of the zoo. ``python -m helpers.training`` (``make zoo``) trains what is missing.

A run can be stopped at any time and goes on where it stopped, to the same weights (bit for bit, with the
same number of threads): the images of step *s* and their augmentation depend on (seed, *s*) alone, and
the learning rate on *s* alone, so weights and optimiser states are all that has to be kept. They are
kept in ``.training/``, with the rendered scenes, where ``make clean`` leaves them.

The recipe is that of today's small transformers: cross-entropy, flips and quarter turns, linear
warm-up and cosine decay, gradient clipping, bfloat16 autocast; Muon (Jordan et al. 2024) for the
matrices of the blocks, AdamW for everything else. Muon is here because two cores are: after 60,000
images it took the ViT to 50 % of held-out scenes, where AdamW alone took it to 30 %. A ResNet has no
such matrices (its kernels have four axes), so there AdamW does it all.
"""

import argparse
import math
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from helpers import files, motifs, scenes, zoo
from helpers.accuracy import TEST_SCENES, measure
from helpers.catalogue import Card, Recipe
from helpers.colours import fit_colours
from helpers.images import normalise
from helpers.scenes import Corpus, render, split

WORK = files.ROOT / ".training"  # rendered scenes (1.2 GB) and unfinished runs
CURVE_POINTS = 50
CHECKPOINT_SECONDS = 60


def train(
    card: Card,
    work: Path = WORK,
    stop_after: int | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    test_scenes: int = TEST_SCENES,
    progress: bool = True,
) -> nn.Module | None:
    """Train the model of a card, from where an earlier run of it stopped, and store it in ``zoo.FOLDER``.

    Checkpoints and rendered scenes are kept in ``work``. ``stop_after`` ends the run after that many
    steps of this call, with a checkpoint, and returns None; otherwise returns the trained model.
    Raises FloatingPointError where the loss is no longer finite.
    """
    if card.family == "colours":
        return _train_baseline(card, work, test_scenes)
    recipe = card.recipe
    steps = recipe.images_seen // recipe.batch
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, labels = training_scenes(card.corpus, recipe.distinct_images, work)
    model = _start(card).to(device)
    unfuse_attention(model)
    optimisers = _optimisers(model, recipe)
    checkpoint = work / f"{card.name}-{_fingerprint(card)}.pt"
    step, curve, seconds, smoothed = 0, [], 0.0, math.log(len(card.corpus.classes))
    if checkpoint.exists():
        kept = torch.load(checkpoint, map_location=device, weights_only=True)
        step, curve, seconds, smoothed = (kept[key] for key in ("step", "curve", "seconds", "smoothed"))
        model.load_state_dict(kept["model"])
        for optimiser, state in zip(optimisers, kept["optimisers"], strict=True):
            optimiser.load_state_dict(state)

    def keep():
        state = {"step": step, "curve": curve, "seconds": seconds, "smoothed": smoothed, "model": model.state_dict()}
        temporary = checkpoint.with_suffix(".tmp")
        torch.save({**state, "optimisers": [optimiser.state_dict() for optimiser in optimisers]}, temporary)
        temporary.replace(checkpoint)

    model.train()
    last = steps if stop_after is None else min(steps, step + stop_after)
    seen = {"total": steps * recipe.batch, "initial": step * recipe.batch, "unit": " images"}
    bar = tqdm(**seen, desc=card.name, disable=not progress, mininterval=2)
    kept_at = started = time.monotonic()
    while step < last:
        batch, target = _batch(images, labels, card, step, device)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * _schedule(step, steps, recipe.warmup)
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(model(normalise(model, batch)).float(), target)
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for optimiser in optimisers:
            optimiser.step()
        step += 1
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"{card.name}: the loss is {loss.item()} at step {step}; lower its learning rate")
        smoothed += 0.05 * (loss.item() - smoothed)
        if step % max(1, steps // CURVE_POINTS) == 0:
            curve.append([step * recipe.batch, round(smoothed, 4)])
        bar.set_postfix_str(f"loss {smoothed:.3f}", refresh=False)
        bar.update(recipe.batch)
        now = time.monotonic()
        if now - kept_at >= checkpoint_seconds:
            seconds, started, kept_at = seconds + now - started, now, now
            keep()
    bar.close()
    seconds += time.monotonic() - started
    if step < steps:
        keep()
        return None
    _store(card, model, test_scenes, {"curve": curve, "run": _run(seconds, step * recipe.batch, device)})
    checkpoint.unlink(missing_ok=True)
    return model


def train_missing(cards: Iterable[Card], work: Path = WORK, **options) -> list[str]:
    """Train, one after another, the models of ``cards`` that are not stored yet; the names of those trained.

    ``options`` are those of ``train``. A stored model is left as it is, and said to be out of date if its
    card no longer has the recipe of the catalogue.
    """
    trained = []
    for card in cards:
        if zoo.is_stored(card.name):
            outdated = "" if zoo.is_current(card) else ", but from another recipe; delete its files to train it again"
            print(f"{card.name}: there already{outdated}", flush=True)
        elif train(card, work, **options) is not None:
            trained.append(card.name)
            reached = zoo.card(card.name)["accuracy"]["all cues"]
            print(f"{card.name}: {', '.join(f'{cue} {share:.1%}' for cue, share in reached.items())}", flush=True)
    return trained


def _start(card: Card) -> nn.Module:
    """The network of a card before its first step: random, or with the weights it starts from, but for the classifier.

    Raises RuntimeError where the weights it starts from are not there or do not fit.
    """
    model = zoo.build(card)
    if card.start:
        state = zoo.load(card.start).state_dict()
        fresh = {key: value for key, value in model.state_dict().items() if key.split(".")[0] == "head"}
        model.load_state_dict({**state, **fresh})
    return model


def _train_baseline(card: Card, work: Path, test_scenes: int) -> nn.Module:
    """Fit the colour histogram to the scenes that the networks are trained on."""
    started = time.monotonic()
    model = fit_colours(zoo.build(card), *training_scenes(card.corpus, card.recipe.distinct_images, work))
    run = _run(time.monotonic() - started, card.recipe.distinct_images, torch.device("cpu"))
    _store(card, model, test_scenes, {"run": run})
    return model


def _store(card: Card, model: nn.Module, test_scenes: int, about: dict) -> None:
    model.cpu().eval()
    for parameter in model.parameters():  # measured as it is stored
        parameter.data = parameter.data.half().float()
    zoo.save(card, model, {"test_scenes": test_scenes, "accuracy": measure(model, card.corpus, test_scenes), **about})


def unfuse_attention(model: nn.Module) -> None:
    """Let attention be computed step by step: on a CPU torch's fused kernel doubles the time of a training step."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False


def training_scenes(corpus: Corpus, count: int, work: Path = WORK) -> tuple[torch.Tensor, torch.Tensor]:
    """The first ``count`` training scenes: images (count, 3, 64, 64) uint8, labels (count,); kept in ``work``."""
    work.mkdir(parents=True, exist_ok=True)
    source = b"".join(Path(room.__file__).read_bytes() for room in (motifs, scenes))
    stem = f"scenes-{sha256(source + repr((corpus, count)).encode()).hexdigest()[:16]}"
    files = work / f"{stem}-images.npy", work / f"{stem}-labels.npy"
    if not all(file.exists() for file in files):
        indices = split("train", count)
        parts = [indices[start : start + 1000] for start in range(0, count, 1000)]
        if len(parts) == 1:
            drawn = [_draw(corpus, indices)]
        else:
            with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
                drawing = pool.map(_draw, [corpus] * len(parts), parts)
                drawn = list(tqdm(drawing, total=len(parts), desc="rendering", unit="k scenes"))
        for file, arrays in zip(files, zip(*drawn, strict=True), strict=True):
            temporary = file.with_suffix(f".{os.getpid()}.tmp.npy")  # another process may render the same
            np.save(temporary, np.concatenate(arrays))
            temporary.replace(file)
    images, labels = (torch.from_numpy(np.load(file, mmap_mode="c")) for file in files)
    return images, labels


def _draw(corpus: Corpus, indices: range) -> tuple[np.ndarray, np.ndarray]:
    drawn = render(corpus, indices)
    return drawn.images.numpy(), drawn.label.numpy()


def _batch(images: torch.Tensor, labels: torch.Tensor, card: Card, step: int, device: torch.device):
    """The images and labels of a step, chosen at random, each under one of the eight symmetries of a square."""
    generator = torch.Generator().manual_seed(1_000_003 * card.seed + step)
    chosen = torch.randint(len(images), (card.recipe.batch,), generator=generator)
    symmetry = torch.randint(8, (card.recipe.batch,), generator=generator).to(device)
    batch = images[chosen].to(device)  # (B, 3, 64, 64)
    for bit, turned in ((1, lambda x: x.flip(3)), (2, lambda x: x.flip(2)), (4, lambda x: x.transpose(2, 3))):
        batch = torch.where((symmetry & bit).bool()[:, None, None, None], turned(batch), batch)
    return batch, labels[chosen].to(device)


def _optimisers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    matrices = [value for name, value in model.named_parameters() if value.ndim == 2 and name.startswith("blocks.")]
    inside = {id(value) for value in matrices}
    others = [value for value in model.parameters() if id(value) not in inside]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, recipe.learning_rate, weight_decay=recipe.weight_decay)
    ]
    if matrices:
        rate, decay = recipe.matrix_learning_rate, recipe.weight_decay
        optimisers.append(torch.optim.Muon(matrices, rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
    return optimisers


def _schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: linear up to it, then half a cosine down to zero."""
    peak = warmup * steps
    if step < peak:
        return (step + 1) / peak
    return 0.5 * (1 + math.cos(math.pi * (step - peak) / (steps - peak)))


def _fingerprint(card: Card) -> str:
    return sha256(repr(asdict(card)).encode()).hexdigest()[:12]


def _run(seconds: float, images: int, device: torch.device) -> dict:
    rate = round(images / seconds) if seconds else None
    threads = torch.get_num_threads()
    versions = {"torch": torch.__version__, "timm": timm.__version__, "numpy": np.__version__}
    return {"seconds": round(seconds), "images_per_second": rate, "device": device.type, "threads": threads, **versions}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: ``python -m helpers.training [NAME …]``."""
    cards = {**zoo.ZOO, zoo.BASELINE.name: zoo.BASELINE}
    parser = argparse.ArgumentParser(
        prog="python -m helpers.training",
        description="Train the models of the zoo that are missing; a run that was stopped goes on where it stopped.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to train (all that are missing by default)")
    wanted = parser.parse_args(arguments).names or list(cards)
    unknown = [name for name in wanted if name not in cards]
    if unknown:
        parser.error(f"not in the zoo: {', '.join(unknown)}; it has {', '.join(cards)}")
    train_missing(cards[name] for name in wanted)
    if all(zoo.is_stored(name) for name in cards):
        for file in WORK.glob("scenes-*.npy"):
            file.unlink()


if __name__ == "__main__":
    main()
