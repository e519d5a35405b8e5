"""One recipe for every model of the zoo. ``python -m helpers.training`` (``make zoo``) trains what is missing.

A run can be stopped at any time and goes on where it stopped, to the same weights: the images of step
*s* and their augmentation depend on (seed, *s*) alone, and the learning rate on *s* alone, so weights
and optimiser states are all that has to be kept.

The recipe is that of today's small transformers: cross-entropy, flips and quarter turns, linear
warm-up and cosine decay, gradient clipping, bfloat16 autocast; Muon (Jordan et al. 2024) for the
matrices of the blocks, AdamW for everything else. Muon is here because two cores are: after 60,000
images it took the ViT to 50 % of held-out scenes, where AdamW alone took it to 30 %. A ResNet has no
such matrices (its kernels have four axes), so there AdamW does it all.
"""

import argparse
import math
import time
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

from helpers import scenes, zoo
from helpers.images import normalise
from helpers.scenes import Corpus, render, split
from helpers.zoo import Card, Recipe

WORK = zoo.ROOT / "build" / "zoo"  # rendered scenes and unfinished runs
TEST_SCENES = 4096  # held-out scenes on which a card's accuracies are measured
CURVE_POINTS = 50
CHECKPOINT_SECONDS = 60


def train(card: Card, work: Path = WORK, stop_after: int | None = None, progress: bool = True) -> nn.Module | None:
    """Train the model of a card, from where an earlier run of it stopped, and store it in the zoo's folder.

    ``stop_after`` ends the run after that many steps of this call, with a checkpoint in ``work``, and
    returns None; otherwise returns the trained model. Rendered scenes are kept in ``work`` too.
    """
    recipe = card.recipe
    steps = recipe.images_seen // recipe.batch
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, labels = training_scenes(card.corpus, recipe.distinct_images, work)
    model = zoo.build(card).to(device)
    unfuse_attention(model)
    optimisers = _optimisers(model, recipe)
    checkpoint = work / f"{card.name}-{_fingerprint(card)}.pt"
    step, curve, seconds = 0, [], 0.0
    if checkpoint.exists():
        kept = torch.load(checkpoint, map_location=device, weights_only=True)
        step, curve, seconds = kept["step"], kept["curve"], kept["seconds"]
        model.load_state_dict(kept["model"])
        for optimiser, state in zip(optimisers, kept["optimisers"]):
            optimiser.load_state_dict(state)

    def keep():
        state = {"step": step, "curve": curve, "seconds": seconds, "model": model.state_dict()}
        temporary = checkpoint.with_suffix(".tmp")
        torch.save({**state, "optimisers": [optimiser.state_dict() for optimiser in optimisers]}, temporary)
        temporary.replace(checkpoint)

    model.train()
    last = steps if stop_after is None else min(steps, step + stop_after)
    bar = tqdm(total=steps, initial=step, desc=card.name, unit="step", disable=not progress, mininterval=5)
    smoothed, kept_at, started = (curve[-1][1] if curve else math.log(zoo.CLASSES)), time.monotonic(), time.monotonic()
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
        smoothed += 0.05 * (loss.item() - smoothed)
        if step % max(1, steps // CURVE_POINTS) == 0:
            curve.append([step * recipe.batch, round(smoothed, 4)])
        bar.update()
        bar.set_postfix_str(f"loss {smoothed:.3f}, {bar.format_dict['rate'] or 0:.2f} × {recipe.batch} images/s", refresh=False)
        if time.monotonic() - kept_at > CHECKPOINT_SECONDS:
            seconds, started, kept_at = seconds + time.monotonic() - started, time.monotonic(), time.monotonic()
            keep()
    bar.close()
    seconds += time.monotonic() - started
    if step < steps:
        keep()
        return None
    model = model.cpu().eval()
    for parameter in model.parameters():  # measured as it is stored
        parameter.data = parameter.data.half().float()
    zoo.save(card, model, {"accuracy": measure(model, card.corpus), "curve": curve, "run": _run(seconds, step, recipe, device)})
    checkpoint.unlink(missing_ok=True)
    return model


def measure(model: nn.Module, corpus: Corpus, count: int = TEST_SCENES) -> dict:
    """Accuracies on the test split: of the pair, of the shape and of the texture; as it is and with each cue ablated.

    ``{"all cues": {"pair": …, "shape": …, "texture": …}, "without shape": …, "without texture": …,
    "without palette": …}``. An answer is scored against the scene's label; where a cue is ablated the
    label says nothing about it, so that its score falls to what the other cues give away.
    """
    table = {"all cues": accuracy(model, corpus, count)}
    for cue in ("shape", "texture", "palette"):
        table[f"without {cue}"] = accuracy(model, corpus.without(cue), count)
    return table


@torch.inference_mode()
def accuracy(model: nn.Module, corpus: Corpus, count: int = TEST_SCENES, batch: int = 256) -> dict[str, float]:
    """Share of ``count`` test scenes whose label, label's shape and label's texture the model names."""
    kinds, right = len(corpus.textures), torch.zeros(3)
    indices = split("test", count)
    for start in range(0, count, batch):
        drawn = render(corpus, indices[start : start + batch])
        answer = model(normalise(model, drawn.images)).argmax(1).cpu()
        same = (answer == drawn.label, answer // kinds == drawn.label // kinds, answer % kinds == drawn.label % kinds)
        right += torch.stack([hit.sum() for hit in same])
    return dict(zip(("pair", "shape", "texture"), (right / count).round(decimals=4).tolist()))


def unfuse_attention(model: nn.Module) -> None:
    """Let attention be computed step by step: on a CPU torch's fused kernel is slow backwards (twice the time a step)."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False


def training_scenes(corpus: Corpus, count: int, work: Path = WORK) -> tuple[torch.Tensor, torch.Tensor]:
    """The training split's first ``count`` scenes, (count, 3, 64, 64) uint8 and labels (count,); rendered once, kept in ``work``."""
    work.mkdir(parents=True, exist_ok=True)
    source = Path(scenes.__file__).read_bytes()
    stem = f"scenes-{sha256(source + repr((corpus, count)).encode()).hexdigest()[:16]}"
    files = work / f"{stem}-images.npy", work / f"{stem}-labels.npy"
    if not all(file.exists() for file in files):
        indices = split("train", count)
        parts = [indices[start : start + 1000] for start in range(0, count, 1000)]
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            drawn = list(tqdm(pool.map(_draw, [corpus] * len(parts), parts), total=len(parts), desc="rendering", unit="k scenes"))
        for file, arrays in zip(files, zip(*drawn)):
            temporary = file.with_suffix(".tmp.npy")
            np.save(temporary, np.concatenate(arrays))
            temporary.replace(file)
    images, labels = (torch.from_numpy(np.load(file, mmap_mode="c")) for file in files)
    return images, labels


def _draw(corpus: Corpus, indices: range) -> tuple[np.ndarray, np.ndarray]:
    torch.set_num_threads(1)
    drawn = render(corpus, indices)
    return drawn.images.numpy(), drawn.label.numpy()


def _batch(images: torch.Tensor, labels: torch.Tensor, card: Card, step: int, device: torch.device):
    """The images and labels of a step: drawn at random, each turned and mirrored by one of the square's eight symmetries."""
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


def _run(seconds: float, steps: int, recipe: Recipe, device: torch.device) -> dict:
    rate = round(steps * recipe.batch / seconds) if seconds else None
    threads = torch.get_num_threads()
    versions = {"torch": torch.__version__, "timm": timm.__version__, "numpy": np.__version__}
    return {"seconds": round(seconds), "images_per_second": rate, "device": device.type, "threads": threads, **versions}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the models of the zoo that are missing; resumes where it stopped.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to train (all that are missing by default)")
    wanted = parser.parse_args().names or list(zoo.ZOO)
    unknown = [name for name in wanted if name not in zoo.ZOO]
    if unknown:
        parser.error(f"not in the zoo: {', '.join(unknown)}; it has {', '.join(zoo.ZOO)}")
    for name in wanted:
        if name in zoo.names():
            print(f"{name}: there already")
            continue
        train(zoo.ZOO[name])
        print(f"{name}: {zoo.card(name)['accuracy']['all cues']}", flush=True)


if __name__ == "__main__":
    main()
