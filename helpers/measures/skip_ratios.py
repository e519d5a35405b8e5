"""Skip connections: how much each carries beside its branch.

A residual sublayer computes ``z + f(z)``: z goes through the skip connection, f is the long branch. ``skip_ratios``
measures ‖z‖ / ‖f(z)‖ of each token (Raghu et al. 2021, Section 6, Figures 7 and E.1) and what z and f(z) are to
their sum (Figure E.2). In a pre-norm transformer z is the stream before the norm, and a block has two sublayers. In a
ResNet a block is one; where its shortcut has a convolution, z is what comes out of that.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from helpers.measures.streams import at_least_one
from helpers.networks.inputs import normalise, pixels
from helpers.networks.positions import has_class_token, prefix_tokens
from helpers.networks.surgery import SkiplessBlock
from helpers.networks.taps import Tap, capture, evaluating, taps_for
from helpers.uncertainty import GROUPS, delete_one

MEASURES = ("ratio", "cos_skip", "cos_branch", "cos_between")
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

    ``sums``: for each sublayer (groups, 5, positions), sums over images of ``MEASURES`` of each token or position, and
    the number of images in which its branch is not zero, over which they run.
    ``whole``: for each sublayer (groups, kinds of tokens), sums of the ratio of the norms of whole images. ``images``
    (groups,): how many each group has. ``tokens``: kind of tokens → their positions.
    """

    sublayers: list[Sublayer]
    sums: list[Tensor]
    whole: list[Tensor]
    images: Tensor
    tokens: dict[str, slice]

    def table(self) -> pd.DataFrame:
        """Means over images and tokens, once with all images (``left_out`` −1) and once without each group.

        One row a sublayer, kind of ``tokens`` ("all", "CLS", "patches") and group: ``ratio`` ‖z‖ / ‖f(z)‖, a mean of
        the ratios of tokens; cosines of z + f(z) to z (``cos_skip``) and to f(z) (``cos_branch``), of z to f(z)
        (``cos_between``); ``whole``, the ratio of the norms of all tokens of an image taken together; and ``silent``,
        the share of tokens to which the branch gives exactly nothing: they have no ratio and are left out.
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
            total = torch.einsum("g,gmp->mp", kept, sums)  # (5, positions)
            for where, one in zip(self.tokens.values(), (kept @ whole / count).tolist(), strict=True):
                *measured, n = total[:, where].sum(1).tolist()
                silent = 1 - n / (count * total[:, where].shape[1])
                rows.append((*(value / n for value in measured), one, silent))
        return dict(zip((*MEASURES, "whole", "silent"), np.transpose(rows), strict=True))

    def by_token(self) -> pd.DataFrame:
        """The mean ratio of each token or position: sublayer, block, branch, token, ratio."""
        parts = []
        for sublayer, sums in zip(self.sublayers, self.sums, strict=True):
            ratio = (sums[:, 0].sum(0) / sums[:, -1].sum(0)).numpy()
            about = {"sublayer": sublayer.name, "block": sublayer.block, "branch": sublayer.branch}
            parts.append(pd.DataFrame({**about, "token": np.arange(len(ratio)), "ratio": ratio}))
        return pd.concat(parts, ignore_index=True)


@torch.inference_mode()
def skip_ratios(model: nn.Module, loader: Iterable, groups: int = GROUPS) -> SkipRatios:
    """Measure every skip of ``model`` beside its branch, over batches of images (n, 3, H, W).

    Norms are taken of one token (or position of a feature map) of one image, over channels; the ratio of each is then
    averaged over images. That differs from the ratio of the norms of whole images, which the largest tokens decide.
    Batch b, which may be a tuple that begins with the images, is in jackknife group b mod ``groups``. The model is run
    in eval mode, and its modes are restored.

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
    whole = torch.zeros(len(layers), groups, len(tokens), dtype=torch.double)
    images = torch.zeros(groups, dtype=torch.double)
    waiting: dict[str, Tensor] = {}

    def pair(part: str, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """What is measured of a sublayer once both its parts, "skip" and "long", have been read; None before that."""
        waiting[part] = x.clone() if not waiting else x
        if len(waiting) < 2:
            return None
        found = _measure(waiting["skip"], waiting["long"], axis, tokens)
        waiting.clear()
        return found

    skips = capture(model, [layer.skip for layer in layers], lambda x: pair("skip", x))
    longs = capture(model, [layer.long for layer in layers], lambda x: pair("long", x))
    with evaluating(model), skips as skip, longs as long:
        for index, batch in enumerate(loader):
            batch = pixels(batch)
            model(normalise(model, batch))
            group = index % groups
            images[group] += len(batch)
            for i, layer in enumerate(layers):
                each, one = skip[layer.skip.name] or long[layer.long.name]  # at whichever was read last
                if not torch.isfinite(each).all() or not each[-1].any():
                    raise ValueError(f"{layer.name}: the branch is zero or not finite, so it has no ratio")
                if index == 0:
                    sums[i] = torch.zeros(groups, *each.shape, dtype=torch.double)
                sums[i][group] += each
                whole[i, group] += one
        if not images.sum():
            raise ValueError("no images to measure the skips on")
    return SkipRatios(layers, sums, list(whole), images, tokens)


def _measure(z: Tensor, f: Tensor, axis: int, tokens: dict[str, slice]) -> tuple[Tensor, Tensor]:
    """Sums over images of ``MEASURES`` and of counted tokens (5, positions), and of whole images' ratios (kinds,)."""
    zz, ff = (torch.linalg.vector_norm(x, dim=axis).double().square().flatten(1) for x in (z, f))  # (B, positions)
    zf = (z * f).sum(axis).double().flatten(1)
    total = zz + 2 * zf + ff
    cosines = ((zz + zf) / (zz * total).sqrt(), (zf + ff) / (ff * total).sqrt(), zf / (zz * ff).sqrt())
    defined = [torch.where((zz > 0) & (total > 0), cosine, 0.0) for cosine in cosines]  # to a zero vector: 0
    each = torch.stack([torch.where(ff > 0, part, 0.0) for part in ((zz / ff).sqrt(), *defined, torch.ones_like(ff))])
    one = torch.stack([(zz[:, where].sum(1) / ff[:, where].sum(1)).sqrt().sum() for where in tokens.values()])
    return each.sum(1).cpu(), one.cpu()


def right_angle(ratio: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of z + f(z) to z and to f(z) if z and f(z) stood at right angles, from the ratio of their norms."""
    ratio = np.asarray(ratio, dtype=float)
    return ratio / np.sqrt(1 + ratio**2), 1 / np.sqrt(1 + ratio**2)


def median_ratio(table: pd.DataFrame) -> float:
    """Claim R14: the median over sublayers of the mean ratio of all tokens; ``table`` of one ``left_out``."""
    return float(table.loc[table["tokens"] == "all", "ratio"].median())


def class_token_excess(table: pd.DataFrame) -> np.ndarray:
    """Ratio of the class token minus that of the patch tokens, mean of a block's two sublayers: (blocks,)."""
    means = table.groupby(["tokens", "block"])["ratio"].mean()
    return (means["CLS"] - means["patches"]).sort_index().to_numpy()


def halves(table: pd.DataFrame) -> np.ndarray:
    """Claim R15: the mean of ``class_token_excess`` over each half of the blocks, and its changes of sign; (3,)."""
    excess = class_token_excess(table)
    half = len(excess) // 2
    return np.array([excess[:half].mean(), excess[half:].mean(), (np.diff(np.sign(excess)) != 0).sum()])


def late_mlp(table: pd.DataFrame) -> float:
    """Claim R16: the class token's mean ratio in the second half of the blocks, of MLPs minus that of attentions."""
    late = table[(table["tokens"] == "CLS") & (table["block"] >= (table["block"].max() + 1) // 2)]
    means = late.groupby("branch")["ratio"].mean()
    return float(means["MLP"] - means["attention"])
