"""Skip connections: how much each carries beside its branch.

A residual sublayer computes ``z + f(z)``: z goes through the skip connection, f is the long branch. ``skip_ratios``
measures ‖z‖ / ‖f(z)‖ of each token (Raghu et al. 2021, Section 6, Figures 7 and E.1) and what z and f(z) are to
their sum (Figure E.2). In a pre-norm transformer z is the stream before the norm, and a block has two sublayers. In a
ResNet a block is one; where its shortcut has a convolution, z is what comes out of that.

A few tokens of very large norm pass through a trained transformer unchanged (``massive_tokens``), and can decide a mean
of ratios alone. So of a transformer that keeps its tokens the means are taken once more without them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from helpers.measures.distributed import Share
from helpers.measures.massive_tokens import MASSIVE
from helpers.measures.streams import at_least_one
from helpers.networks.inputs import float64, normalise, pixels
from helpers.networks.positions import has_class_token, prefix_tokens
from helpers.networks.surgery import SkiplessBlock
from helpers.networks.taps import Tap, capture, evaluating, taps_for
from helpers.uncertainty import GROUPS, delete_one

MEASURES = ("ratio", "cos_skip", "cos_branch", "cos_between")
ORDINARY = {"all": "ordinary", "patches": "ordinary patches"}  # kind of tokens → the same without massive ones
LONG_BRANCHES = {
    "attn": "attention",
    "mlp": "MLP",
    "token_mix": "token mixing",
    "channel_mix": "channel mixing",
    "branch": "block",
}


@dataclass(frozen=True)
class Sublayer:
    """One sum z + f(z): ``name`` is that of the tap of f(z), ``branch`` one of the values of ``LONG_BRANCHES``."""

    name: str
    block: int
    branch: str
    skip: Tap
    long: Tap


def sublayers(model: nn.Module) -> list[Sublayer]:
    """The residual sublayers of a timm model in order, without those whose skip was removed.

    Raises ValueError for a network of which the branches are not known.
    """
    try:
        taps = taps_for(model, LONG_BRANCHES)
    except ValueError as error:
        raise ValueError(f"{type(model).__name__} has no residual branches that are known: {error}") from None
    found, blocks = [], []
    for tap in taps:
        name = tap.name.rpartition(".")[0]
        block = model.get_submodule(name)
        if name not in blocks:
            blocks.append(name)
        if isinstance(block, SkiplessBlock) and block.without in (tap.kind, "both"):
            continue
        skip = Tap(f"{tap.name}.skip", f"{name}.norm2" if tap.kind in ("mlp", "channel_mix") else name, "input")
        for shortcut in ("downsample", "shortcut"):
            if tap.kind == "branch" and not isinstance(getattr(block, shortcut, None), (type(None), nn.Identity)):
                skip = Tap(f"{tap.name}.skip", f"{name}.{shortcut}")
        found.append(Sublayer(tap.name, len(blocks) - 1, LONG_BRANCHES[tap.kind], skip, tap))
    return found


@dataclass(frozen=True)
class SkipRatios:
    """Skip ratios and cosines of a network, summed over images.

    ``sums``: for each sublayer (groups, 2, 6, positions), sums over images of ``MEASURES`` of each token or position,
    the number of images in which its branch is not zero, over which they run, and the number of all; of all tokens,
    and of those that are not massive. ``whole``: for each sublayer (groups, kinds of tokens), sums of the ratio of the
    norms of whole images. ``images`` (groups,): how many each group has. ``tokens``: kind of tokens → their positions.
    """

    sublayers: list[Sublayer]
    sums: list[Tensor]
    whole: list[Tensor]
    images: Tensor
    tokens: dict[str, slice]

    def table(self) -> pd.DataFrame:
        """Means over images and tokens, once with all images (``left_out`` −1) and once without each group.

        One row a sublayer, kind of ``tokens`` ("all", "CLS", "patches"; without massive ones "ordinary" and "ordinary
        patches") and group: ``ratio`` ‖z‖ / ‖f(z)‖, a mean of the ratios of tokens; cosines of z + f(z) to z
        (``cos_skip``) and to f(z) (``cos_branch``), of z to f(z) (``cos_between``); ``whole``, the ratio of the norms
        of all tokens of an image taken together; ``silent``, the share of tokens to which the branch gives exactly
        nothing: they have no ratio and are left out; ``massive``, the share that is left out for its norm.
        """
        rows = [
            (sublayer.name, sublayer.block, sublayer.branch, kind)
            for sublayer in self.sublayers
            for kind in self.tokens
        ]
        groups = self.images.nonzero().flatten().tolist()
        about = pd.DataFrame(rows, columns=["sublayer", "block", "branch", "tokens"])
        return delete_one(about, self._means, groups if len(groups) > 1 else ())

    def _means(self, left_out: int | None) -> dict[str, np.ndarray]:
        """The measured columns of ``table`` without a group of images, each (sublayers · kinds of tokens,)."""
        kept = torch.ones(len(self.images), dtype=torch.double)
        if left_out is not None:
            kept[left_out] = 0
        count, rows = float((kept * self.images).sum()), []
        for sums, whole in zip(self.sums, self.whole, strict=True):
            total = torch.einsum("g,gkmp->kmp", kept, sums)  # (2, 6, positions)
            for (kind, where), one in zip(self.tokens.items(), (kept @ whole / count).tolist(), strict=True):
                part = total[int(kind in ORDINARY.values())][:, where]
                *measured, n, tokens = part.sum(1).tolist()
                massive = 1 - tokens / (count * part.shape[1])
                rows.append((*(value / n for value in measured), one, 1 - n / tokens, massive))
        return dict(zip((*MEASURES, "whole", "silent", "massive"), np.transpose(rows), strict=True))

    def by_token(self) -> pd.DataFrame:
        """The mean ratio of each token or position: sublayer, block, branch, token, ratio."""
        parts = []
        for sublayer, sums in zip(self.sublayers, self.sums, strict=True):
            ratio = (sums[:, 0, 0].sum(0) / sums[:, 0, 4].sum(0)).numpy()
            about = {"sublayer": sublayer.name, "block": sublayer.block, "branch": sublayer.branch}
            parts.append(pd.DataFrame({**about, "token": np.arange(len(ratio)), "ratio": ratio}))
        return pd.concat(parts, ignore_index=True)


@torch.inference_mode()
def skip_ratios(model: nn.Module, loader: Iterable, groups: int = GROUPS) -> SkipRatios:
    """Measure every skip of ``model`` beside its branch, over batches of images (n, 3, H, W).

    Norms are taken of one token (or position of a feature map) of one image, over channels; the ratio of each is then
    averaged over images. That differs from the ratio of the norms of whole images, which the largest tokens decide. A
    patch token of an image is *massive* where its norm is more than ``MASSIVE`` times the median of the patch tokens of
    its batch, at one place of the stream or more; it is then left out at all of them. (Feature maps, and transformers
    whose grid changes on the way, have no such kinds.) Batch b, which may be a tuple that begins with the images, is in
    jackknife group b mod ``groups``. The model is run in eval mode, and its modes are restored.

    Raises ValueError for a network of which the branches are not known, for no images or groups, and, naming the
    sublayer, for numbers that are not finite and for a branch that gives exactly nothing to any token.
    """
    at_least_one(groups=groups)
    layers = sublayers(model)
    axis = -1 if layers[0].branch != "block" else 1  # of the channels
    prefix = prefix_tokens(model)
    tokens = {"all": slice(None), "CLS": slice(0, 1), "patches": slice(prefix, None)}
    if not (prefix and has_class_token(model)):
        tokens.pop("CLS")
    sums: list = [0.0] * len(layers)
    whole: list = [0.0] * len(layers)
    images = torch.zeros(groups, dtype=torch.double)
    waiting: dict[str, Tensor] = {}
    share = Share()

    def pair(part: str, x: Tensor) -> Tensor | None:
        """What is measured of a sublayer once both its parts, "skip" and "long", have been read; None before that."""
        waiting[part] = x.clone() if not waiting else x
        if len(waiting) < 2:
            return None
        found = _measure(waiting["skip"], waiting["long"], axis)
        waiting.clear()
        return found

    skips = capture(model, [layer.skip for layer in layers], lambda x: pair("skip", x))
    longs = capture(model, [layer.long for layer in layers], lambda x: pair("long", x))
    with evaluating(model), skips as skip, longs as long:
        for index, batch in share.dealt(loader):
            batch = pixels(batch)
            model(normalise(model, batch))
            group = index % groups
            images[group] += len(batch)
            each = [_either(skip[layer.skip.name], long[layer.long.name]) for layer in layers]  # (9, B, positions)
            kept = _ordinary(each, prefix) if axis == -1 and len({x.shape[-1] for x in each}) == 1 else None
            if kept is not None:
                tokens |= {ORDINARY[kind]: tokens[kind] for kind in ORDINARY}
            for i, (layer, x) in enumerate(zip(layers, each, strict=True)):
                if not torch.isfinite(x).all() or not x[4].any():
                    raise ValueError(f"{layer.name}: the branch is zero or not finite, so it has no ratio")
                if not isinstance(sums[i], Tensor):
                    sums[i] = torch.zeros(groups, 2, 6, x.shape[-1], dtype=torch.double)
                    whole[i] = torch.zeros(groups, len(tokens), dtype=torch.double)
                every = torch.ones_like(x[0]) if kept is None else kept
                sums[i][group] += torch.stack([x[:6].sum(1), (x[:6] * every).sum(1)]).cpu()
                for k, (kind, where) in enumerate(tokens.items()):
                    weight = every[:, where] if kind in ORDINARY.values() else 1.0
                    zz, ff = ((weight * square[:, where]).sum(1) for square in x[6:8])  # (B,)
                    whole[i][group, k] += (zz / ff).sqrt().sum().cpu()
        sums, whole, images = share.summed((sums, whole, images))
        if not images.sum():
            raise ValueError("no images to measure the skips on")
    return SkipRatios(layers, sums, whole, images, tokens)


def _either(*read: Tensor | None) -> Tensor:
    """What was measured of a sublayer, at whichever of its parts was read last."""
    return next(found for found in read if found is not None)


def _measure(z: Tensor, f: Tensor, axis: int) -> Tensor:
    """Of each token of each image (9, B, positions): ``MEASURES``, whether its branch is not zero, 1, and ‖z‖², ‖f‖²,
    ‖z + f‖²."""
    zz, ff = (float64(torch.linalg.vector_norm(x, dim=axis)).square().flatten(1) for x in (z, f))  # (B, positions)
    zf = float64((z * f).sum(axis)).flatten(1)
    total = zz + 2 * zf + ff
    cosines = ((zz + zf) / (zz * total).sqrt(), (zf + ff) / (ff * total).sqrt(), zf / (zz * ff).sqrt())
    defined = [torch.where((zz > 0) & (total > 0), cosine, 0.0) for cosine in cosines]  # to a zero vector: 0
    one = torch.ones_like(ff)
    measured = [torch.where(ff > 0, part, 0.0) for part in ((zz / ff).sqrt(), *defined, one)]
    return torch.stack([*measured, one, zz, ff, total])


def _ordinary(each: list[Tensor], prefix: int) -> Tensor:
    """Which tokens are massive nowhere in the stream: (B, positions), 1 for these and for the prefix, else 0."""
    stream = torch.stack([part for x in each for part in (x[6], x[8])]).clamp(min=0).sqrt()  # (places, B, positions)
    median = stream[..., prefix:].flatten(1).median(1).values[:, None, None]
    massive = (stream > MASSIVE * median).any(0)
    massive[:, :prefix] = False
    return (~massive).double()


def of_tokens(by_token: pd.DataFrame, without: Iterable[int] = ()) -> pd.DataFrame:
    """Mean ratios of "all", "CLS" and "patches", as in ``SkipRatios.table``, of which some tokens are left out.

    Args:
        by_token: what ``SkipRatios.by_token`` gives of a transformer whose first token is the class token.
        without: numbers of tokens, from 0, such as those that are massive in nearly every image.

    Returns:
        one row a sublayer and kind: sublayer, block, branch, ratio, tokens.
    """
    kept = by_token[~by_token["token"].isin(list(without))]
    kinds = {"all": kept, "CLS": kept[kept["token"] == 0], "patches": kept[kept["token"] > 0]}
    about = ["sublayer", "block", "branch"]
    parts = [
        rows.groupby(about, sort=False, as_index=False)["ratio"].mean().assign(tokens=kind)
        for kind, rows in kinds.items()
    ]
    return pd.concat(parts, ignore_index=True)


def right_angle(ratio: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of z + f(z) to z and to f(z) if z and f(z) stood at right angles, from the ratio of their norms."""
    ratio = np.asarray(ratio, dtype=float)
    return ratio / np.sqrt(1 + ratio**2), 1 / np.sqrt(1 + ratio**2)


def median_ratio(table: pd.DataFrame, tokens: str = "all") -> float:
    """Claim R14: the median over sublayers of the mean ratio of tokens of a kind; ``table`` of one ``left_out``."""
    return float(table.loc[table["tokens"] == tokens, "ratio"].median())


def class_token_excess(table: pd.DataFrame, patches: str = "patches") -> np.ndarray:
    """Ratio of the class token minus that of the patch tokens, mean of a block's two sublayers: (blocks,).

    ``patches``: which ones, "patches" or "ordinary patches".
    """
    ratio, block, tokens = (table[name].to_numpy() for name in ("ratio", "block", "tokens"))

    def means(kind: str) -> np.ndarray:
        _, at = np.unique(block[tokens == kind], return_inverse=True)
        return np.bincount(at, ratio[tokens == kind]) / np.bincount(at)

    return means("CLS") - means(patches)


def halves(table: pd.DataFrame, patches: str = "patches") -> np.ndarray:
    """Claim R15: the mean of ``class_token_excess`` over each half of the blocks, and its changes of sign; (3,)."""
    excess = class_token_excess(table, patches)
    half = len(excess) // 2
    return np.array([excess[:half].mean(), excess[half:].mean(), (np.diff(np.sign(excess)) != 0).sum()])


def late_mlp(table: pd.DataFrame) -> float:
    """Claim R16: the class token's mean ratio in the second half of the blocks, of MLPs minus that of attentions."""
    late = table[(table["tokens"] == "CLS") & (table["block"] >= (table["block"].max() + 1) // 2)]
    means = late.groupby("branch")["ratio"].mean()
    return float(means["MLP"] - means["attention"])
