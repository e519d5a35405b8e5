"""Linear probes in closed form: what a linear map can read from a network's features.

A probe is ridge regression (``ridge.fit``) to targets of −1 and +1, one column a class, as Dosovitskiy et al. (2021)
and Raghu et al. (2021, Section 7) use it, or to numbers, such as an object's position. The penalty l2 is chosen on
held-out images, never on those that the probe is scored on.

Everything is batched: features may be (N, D), or (T, N, D) for T tokens with a probe of its own each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from tqdm import tqdm

from helpers.images.sources import ImageSet
from helpers.measures.distributed import Share
from helpers.measures.ridge import L2S, Probe, all_finite, fit
from helpers.measures.streams import at_least_one, in_batches
from helpers.networks.inputs import normalise, pixels
from helpers.networks.places import OUTPUTS
from helpers.networks.positions import has_class_token, positions
from helpers.networks.taps import Tap, capture, evaluating, taps_for

READ_OUTS = ("cls", "first token", "mean token", "tokens")
CHUNK = 2**24  # numbers of a (T, N, D) that are standardised at once: 64 MB


@dataclass(frozen=True)
class Probed:
    """How a probe did on the test images: ``score`` (…, N) of each, their mean ``value`` (…), the chosen ``l2`` (…).

    The score of an image is 1 or 0, right or wrong, for a class; the Euclidean distance to the truth for a regression.
    """

    score: Tensor
    l2: Tensor

    @property
    def value(self) -> Tensor:
        """Mean over the test images: accuracy, or error, of each probe."""
        return self.score.float().mean(-1)


def probe_accuracy(
    train_x: Tensor,
    train_y: Tensor,
    valid_x: Tensor,
    valid_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    l2s: Sequence[float] = L2S,
) -> Probed:
    """Accuracy of class probes, one for each token where features are (T, N, D).

    Args:
        train_x: features (N, D) or (T, N, D) to learn from.
        train_y: their labels (N,), whole numbers of 0 … C − 1.
        valid_x: features (V, D) or (T, V, D) to choose the l2 on; each probe takes that with the fewest errors.
        valid_y: their labels (V,).
        test_x: features (M, D) or (T, M, D) to be scored on.
        test_y: their labels (M,), which have no part in the choice.
        l2s: to choose from.

    Returns:
        whether each test image was labelled rightly, (M,) or (T, M), and the chosen l2.

    Raises:
        ValueError: for labels that are no such numbers or not one an image, for a class without a training image,
            for features that are not finite or never change.
    """
    named = {"training": train_y, "validation": valid_y, "test": test_y}
    for name, labels in named.items():
        _check_labels(name, labels)
    classes = int(train_y.max()) + 1
    for name, labels in named.items():
        if labels.max() >= classes:
            span = f"{int(labels.min())} to {int(labels.max())}"
            raise ValueError(f"the {name} labels go from {span}, the probe knows 0 to {classes - 1}")
    if (unseen := torch.bincount(train_y, minlength=classes) == 0).any():
        raise ValueError(f"no training image of class {unseen.nonzero().flatten().tolist()}")
    targets = 2.0 * one_hot(train_y, classes) - 1  # (N, C)

    def errors(scores: Tensor, labels: Tensor) -> Tensor:
        return (scores.argmax(-1) != labels).float().mean(-1)

    def score(probe: Probe, x: Tensor) -> Tensor:
        return probe(x).argmax(-1) == test_y

    return _each(train_x, targets, valid_x, valid_y, test_x, test_y, l2s, errors, score)


def probe_error(
    train_x: Tensor,
    train_y: Tensor,
    valid_x: Tensor,
    valid_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    l2s: Sequence[float] = L2S,
) -> Probed:
    """Distance to the truth of regression probes, one for each token where features are (T, N, D).

    Args:
        train_x: features (N, D) or (T, N, D) to learn from.
        train_y: their targets (N, K), such as x and y in pixels.
        valid_x: features (V, D) or (T, V, D) to choose the l2 on; each probe takes that with the least squared error.
        valid_y: their targets (V, K).
        test_x: features (M, D) or (T, M, D) to be scored on.
        test_y: their targets (M, K), which have no part in the choice.
        l2s: to choose from.

    Returns:
        the Euclidean distance of each test image's prediction to its target, (M,) or (T, M), and the chosen l2.

    Raises:
        ValueError: for targets that are not one an image, for features that are not finite or never change.
    """

    def squared(scores: Tensor, truth: Tensor) -> Tensor:
        return (scores - truth).square().sum(-1).mean(-1)

    def score(probe: Probe, x: Tensor) -> Tensor:
        return (probe(x) - test_y).norm(dim=-1)

    return _each(train_x, train_y, valid_x, valid_y, test_x, test_y, l2s, squared, score)


def _each(
    train_x: Tensor,
    train_y: Tensor,
    valid_x: Tensor,
    valid_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    l2s: Sequence[float],
    loss: Callable[[Tensor, Tensor], Tensor],
    score: Callable[[Probe, Tensor], Tensor],
) -> Probed:
    """Fit and score; (T, N, D) in parts of as many tokens as ``CHUNK`` allows."""
    for name, x, y in (("training", train_x, train_y), ("validation", valid_x, valid_y), ("test", test_x, test_y)):
        if x.ndim not in (2, 3) or x.shape[:-2] != train_x.shape[:-2] or x.shape[-1] != train_x.shape[-1]:
            raise ValueError(f"features are (N, D) or (T, N, D) alike; the {name} features are {tuple(x.shape)}")
        _check_count(name, x, y)
        if not all_finite(x):
            raise ValueError(f"the {name} features hold NaN or infinite values; look at what the network was given")
    if train_x.ndim == 2:
        probe = fit(train_x, train_y, valid_x, valid_y, l2s, loss)
        return Probed(score(probe, test_x), probe.l2)
    size = max(1, CHUNK // max(x[0].numel() for x in (train_x, valid_x, test_x)))
    scores, chosen = [], []
    for x, valid, test in zip(*(x.split(size) for x in (train_x, valid_x, test_x)), strict=True):
        probe = fit(x, train_y, valid, valid_y, l2s, loss)
        scores.append(score(probe, test))
        chosen.append(probe.l2)
    return Probed(torch.cat(scores), torch.cat(chosen))


def _check_labels(name: str, labels: Tensor) -> None:
    """Raise ``ValueError`` for labels that are not one whole number, 0 or more, an image."""
    if labels.ndim != 1 or labels.is_floating_point() or not len(labels):
        raise ValueError(f"the {name} labels are one whole number an image; got {tuple(labels.shape)} {labels.dtype}")
    if labels.min() < 0:
        raise ValueError(f"the {name} labels are numbers of classes, from 0; got {int(labels.min())}")


def _check_count(name: str, x: Tensor, y: Tensor) -> None:
    """Raise ``ValueError`` where features (…, N, D) and labels or targets (N, …) are not of as many images."""
    if x.shape[-2] != len(y):
        raise ValueError(f"the {name} features are those of {x.shape[-2]} images, and there are labels of {len(y)}")


def few_shot(labels: Tensor, shots: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw ``shots`` images of each class: their indices, in the order of the classes, and the indices of the rest.

    Raises ``ValueError`` for a class that has fewer, and for labels that are not whole numbers from 0.
    """
    _check_labels("training", labels)
    if shots < 1:
        raise ValueError(f"shots is a number of images a class, at least 1; got {shots}")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    counts = torch.bincount(labels)
    if (short := counts < shots).any():
        which = short.nonzero().flatten().tolist()
        raise ValueError(f"{shots} images of each class are asked for; class {which} has {counts[short].tolist()}")
    chosen = torch.cat([order[labels[order] == label][:shots] for label in range(len(counts))])
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[chosen] = False
    return chosen, rest.nonzero().flatten()


def probe_scores(
    x: Tensor,
    y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    shots: int | None = 10,
    draws: int = 5,
    held_out: int = 1024,
    seed: int = 0,
    l2s: Sequence[float] = L2S,
) -> Tensor:
    """Which test images class probes get right, for several draws of the images they learn from.

    ``uncertainty.interval`` gives the mean its interval.

    Args:
        x: features (N, D) or (T, N, D) to learn from and to choose the l2 on.
        y: their labels (N,), whole numbers of 0 … C − 1.
        test_x: features (M, D) or (T, M, D) to be scored on.
        test_y: their labels (M,).
        shots: images a class that a probe learns from; None for all.
        draws: R, how often the shots are drawn; without shots R = 1.
        held_out: at most so many other images of ``x``, with their labels, choose the l2, so that a probe of ten shots
            has been told more than ten labels a class; without shots at most a fifth, taken out first.
        seed: of the first draw; the next ones follow.
        l2s: to choose from.

    Returns:
        right or wrong, (R, M) or (R, T, M) bool.

    Raises:
        ValueError: as ``few_shot`` and ``probe_accuracy`` do, where no image is left to choose the l2 on, and for
            draws below 1.
    """
    at_least_one(draws=draws)
    _check_labels("training", y)
    _check_count("training", x, y)
    found = []
    for draw in range(seed, seed + (1 if shots is None else draws)):
        chosen, rest = (None, torch.arange(len(y))) if shots is None else few_shot(y, shots, draw)
        rest = rest[torch.from_numpy(np.random.default_rng((draw, 1)).permutation(len(rest)))]
        cut = min(held_out, len(rest) // 5) if shots is None else held_out
        valid, chosen = rest[:cut], rest[cut:] if chosen is None else chosen
        if not len(valid):
            raise ValueError(f"of {len(y)} images none is left to choose l2 by; give more images, or fewer shots")
        parts = (x[..., chosen, :], y[chosen], x[..., valid, :], y[valid])
        found.append(probe_accuracy(*parts, test_x, test_y, l2s).score)
    return torch.stack(found)


@torch.inference_mode()
def features(
    model: nn.Module,
    images: ImageSet | Tensor,
    read_outs: Sequence[str] = ("mean token",),
    places: Sequence[Tap] | None = None,
    *,
    grid: tuple[int, int] | None = None,
    which: Sequence[int] | None = None,
    batch: int = 256,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> dict[str, dict[str, Tensor]]:
    """Read-outs of all images at several places of a network, in one pass. Activations are reduced inside the hook.

    Args:
        model: run in eval mode; its modes are restored.
        images: an ``ImageSet``, or a tensor (N, 3, H, W) uint8.
        read_outs: one or several of "cls" (the class token), "first token" (the patch at the upper left), "mean token"
            (the mean over patches, or over the positions of a map), "tokens" (all T patches or positions).
        places: taps; by default each block's output.
        grid: for "tokens", average the positions down to so many rows and columns, such as those of a ResNet's last
            stage. (The paper also splits early maps into patches, to little effect; here they are only averaged.)
        which: for "tokens", the numbers of the tokens or positions to keep; all by default.
        batch: images that are read at a time.
        dtype: of the features that are kept; float16 halves what "tokens" take.
        progress: show a bar.

    Returns:
        read-out → name of the place → features, (N, D), or (T, N, D) of "tokens".

    Raises:
        TypeError: for images that are neither, such as a dict.
        ValueError: for an unknown read-out, "cls" of a model without such a token, a batch below 1, and features that
            are not finite.
    """
    read_outs = [read_outs] if isinstance(read_outs, str) else list(read_outs)
    if unknown := sorted(set(read_outs) - set(READ_OUTS)):
        raise ValueError(f"unknown read-out {unknown}; there are {', '.join(READ_OUTS)}")
    places = taps_for(model, OUTPUTS) if places is None else list(places)
    chosen = slice(None) if which is None else list(which)

    def reduce(x: Tensor, tap: Tap) -> dict[str, Tensor]:
        at = positions(model, x, size=size, tap=tap)
        if "cls" in read_outs and not (has_class_token(model, tap) and at.prefix.shape[1]):
            raise ValueError(f"{type(model).__name__} has no CLS token here; read its mean token")
        coarse = positions(model, x, grid, size=size, tap=tap) if grid and "tokens" in read_outs else at
        parts = {
            "cls": lambda: at.prefix[:, 0],
            "first token": lambda: at.tokens[:, 0],
            "mean token": lambda: at.tokens.mean(1),
            "tokens": lambda: coarse.tokens.transpose(0, 1)[chosen],
        }
        return {name: parts[name]().to(dtype, copy=True) for name in read_outs}

    kept: dict[str, dict[str, dict[int, list[Tensor]]]]
    kept = {name: {tap.name: {} for tap in places} for name in read_outs}  # by number of the batch
    loader, share = in_batches(images, batch), Share()
    with evaluating(model), capture(model, places, reduce, with_tap=True) as out:
        for number, part in share.dealt(tqdm(loader, desc="features", unit="batch", disable=not progress)):
            part = normalise(model, pixels(part))
            height, width = part.shape[-2:]
            size = (height, width)
            model(part)
            for place, found in out.items():
                for name, x in found.items():
                    if not all_finite(x):
                        raise ValueError(f"{place}, {name}: features are not finite, or too large for {dtype}")
                    kept[name][place][number] = [x.cpu()]
    return {
        name: {place: torch.cat(share.in_order(parts), -2) for place, parts in found.items()}
        for name, found in kept.items()
    }
