"""What a network's tokens tell of the object in a scene: its class, where it is, and which patches it covers.

Linear probes (``measures.probes``) read this from single tokens, from their mean and from the class token, at several
depths (Raghu et al. 2021, Section 7). A token knows its own place, so where the object is can be read in two ways: from
what one token holds, or from *which* tokens see the object, their arrangement.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from helpers.images.scenes import SIZE, Scenes
from helpers.measures.probes import features, probe_error, probe_scores
from helpers.measures.ridge import L2S, fit
from helpers.networks.taps import Tap
from helpers.uncertainty import interval

HELD_OUT = 512  # scenes at most by which the penalty of a class probe is chosen
TARGETS = {  # what is read of the object's centre (N, 2), in pixels
    "centre": lambda centre: centre,
    "distance": lambda centre: (centre - SIZE / 2).norm(dim=1, keepdim=True),  # from the middle of the scene
}


@dataclass(frozen=True)
class ObjectProbes:
    """How probes of one network do on N test scenes, as tables by depth with 95 % intervals, and scene by scene.

    ``classes``: accuracy in % by read-out and shots (0: in full). ``positions``: error in pixels by read-out and target
    of ``TARGETS``. ``masks``: share of the variance of the covered share of a patch that a probe of its token explains.
    ``right``: (depth, read-out, shots) → (draws, N), 1 where the class is right; of single tokens their mean.
    ``tiles``: (depth, shots) → the accuracy of each single token, (h, w), from 0 to 1.
    """

    classes: pd.DataFrame
    positions: pd.DataFrame
    masks: pd.DataFrame
    right: dict[tuple[float, str, int], Tensor]
    tiles: dict[tuple[float, int], Tensor]


def probe_object(
    network: nn.Module,
    learn: Scenes,
    test: Scenes,
    places: Mapping[float, Tap],
    read_outs: Sequence[str],
    grid: tuple[int, int],
    patches: Tensor,
    *,
    shots: int = 10,
    draws: int = 5,
    seed: int = 0,
) -> ObjectProbes:
    """Probe one network for the class, the place and the cover of the object.

    Args:
        network: a model for scenes.
        learn: scenes that the probes learn from, on which the network was not trained.
        test: scenes that they are scored on.
        places: depth → the tap that is read there.
        read_outs: "tokens", and of "mean token" and "cls" what there is; "first token", the first of the tokens, is
            added.
        grid: rows and columns of tokens; positions of larger maps are averaged to them.
        patches: (H, W), the token to whose patch a pixel belongs, as in ``token_patches.TokenPatches``.
        shots: scenes of each class that few-shot probes learn from.
        draws: of these scenes.
        seed: of the first draw.

    Returns:
        The tables, and what each test scene contributed.

    Raises:
        ValueError: no "tokens" among the read-outs; and as ``probes.features``, ``probes.probe_scores`` and
            ``probes.probe_error``.
    """
    if "tokens" not in read_outs:
        raise ValueError(f"the cover of patches is read from single tokens: add 'tokens' to {list(read_outs)}")
    x, z = (_features(network, scenes.images, places, read_outs, grid) for scenes in (learn, test))
    classes, errors, masks, right, tiles = [], [], [], {}, {}
    for depth, read_out in product(places, x):
        a, b = x[read_out][depth], z[read_out][depth]
        for few in (shots, 0):
            score = probe_scores(
                a, learn.label, b, test.label, shots=few or None, draws=draws, held_out=HELD_OUT, seed=seed
            ).float()  # (draws, N), or (draws, T, N)
            if score.ndim == 3:
                tiles[depth, few] = score.mean((0, 2)).reshape(grid)
                score = score.mean(1)
            right[depth, read_out, few] = score
            classes.append((depth, read_out, few, *(100 * number for number in _mean(score))))
        for target in TARGETS:
            errors.append((depth, read_out, target, *_mean(position_errors(a, b, learn.centre, test.centre, target))))
    truth = covered_shares(test.mask, patches)
    for depth in places:
        guess = read_cover(x["tokens"][depth], z["tokens"][depth], covered_shares(learn.mask, patches))
        unexplained = (guess - truth).square().mean(0) / (truth - truth.mean()).square().mean()  # (N,)
        masks.append((depth, *_mean(1 - unexplained)))
        away = (centre_of_mass(guess, patches) - test.centre).norm(dim=1)
        errors.append((depth, "arrangement", "centre", *_mean(away)))
    return ObjectProbes(
        pd.DataFrame(classes, columns=["depth", "read-out", "shots", "accuracy (%)", "low", "high"]),
        pd.DataFrame(errors, columns=["depth", "read-out", "target", "error (px)", "low", "high"]),
        pd.DataFrame(masks, columns=["depth", "explained variance", "low", "high"]),
        right,
        tiles,
    )


def of_networks(probed: Mapping[str, ObjectProbes], table: str) -> pd.DataFrame:
    """One of the tables of several networks ("classes", "positions", "masks"), below each other, by ``network``."""
    parts = []
    for label, probes in probed.items():
        rows = getattr(probes, table).copy()
        rows.insert(0, "network", label)
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def position_errors(x: Tensor, z: Tensor, centre: Tensor, test_centre: Tensor, target: str) -> Tensor:
    """Errors of probes of the object's place.

    Args:
        x: features (M, D) or (T, M, D); four fifths are learnt from, and the last fifth chooses the penalty.
        z: features (N, D) or (T, N, D) that the probes are scored on.
        centre: the object's centre in the scenes of ``x``, (M, 2) in pixels.
        test_centre: that in the scenes of ``z``, (N, 2).
        target: what is read of the centre, a key of ``TARGETS``.

    Returns:
        the error (N,) in pixels; single tokens have a probe each, and the mean of their errors is given.

    Raises:
        ValueError: as ``probes.probe_error``.
    """
    cut = len(centre) - len(centre) // 5
    y, test_y = TARGETS[target](centre), TARGETS[target](test_centre)
    error = probe_error(x[..., :cut, :], y[:cut], x[..., cut:, :], y[cut:], z, test_y).score
    return error.mean(0) if error.ndim == 2 else error


def covered_shares(masks: Tensor, patches: Tensor) -> Tensor:
    """How much of each patch the object covers: (T, N), from 0 to 1, of masks (N, H, W) and ``patches`` (H, W)."""
    member = one_hot(patches.flatten()).float()  # (H · W, T)
    return (masks.flatten(1).float() @ member / member.sum(0)).T


def read_cover(x: Tensor, z: Tensor, shares: Tensor) -> Tensor:
    """The covered share of its patch as it is read from each token z (T, N, D), by one probe for all tokens: (T, N).

    Learnt from the first third of the tokens x (T, M, D) and their true ``shares`` (T, M); the next sixth chooses the
    penalty. Raises as ``probes.fit``.
    """

    def squared(scores: Tensor, truth: Tensor) -> Tensor:
        return (scores - truth).square().sum(-1).mean(-1)

    count = x.shape[1]
    learn, choose = (
        (x[:, scenes].flatten(0, 1), shares[:, scenes].reshape(-1, 1))
        for scenes in (slice(0, count // 3), slice(count // 3, count // 2))
    )
    return fit(*learn, *choose, l2s=L2S, loss=squared)(z)[..., 0]


def centre_of_mass(weights: Tensor, patches: Tensor) -> Tensor:
    """Centre (N, 2) of the patches, x and y in pixels, each with its weight (T, N); weights below 0 count as none."""
    member = one_hot(patches.flatten()).float()
    y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in patches.shape), indexing="ij")
    middle = torch.stack([x.flatten(), y.flatten()]) @ member / member.sum(0)  # (2, T)
    weights = weights.clamp(min=1e-6)  # so that where nothing is seen, it is the middle of the image
    return (middle @ weights / weights.sum(0)).T


def _features(
    network: nn.Module, images: Tensor, places: Mapping[float, Tap], read_outs: Sequence[str], grid: tuple[int, int]
) -> dict[str, dict[float, Tensor]]:
    """Read-out → depth → features, half precision to save memory; with the first token of ``grid`` among them."""
    found = features(network, images, read_outs, list(places.values()), grid=grid, dtype=torch.float16)
    by_depth = {name: {depth: at[tap.name] for depth, tap in places.items()} for name, at in found.items()}
    by_depth["first token"] = {depth: tokens[0] for depth, tokens in by_depth["tokens"].items()}
    return by_depth


def _mean(scores: Tensor) -> tuple[float, float, float]:
    """Mean of scores (N,) or (draws, N), and the ends of its 95 % interval."""
    return scores.mean().item(), *interval(scores)
