"""Which tokens and channels make up a transformer's representation, and what CKA becomes without them.

CKA weighs every direction by its variance, so a few tokens of very large norm, or one channel, can decide
it alone while the rest of the representation goes on as before (Nguyen, Raghu & Kornblith 2022 for images;
Darcet et al. 2024 and Sun et al. 2024 for tokens). ``views`` takes a representation apart so that the same
CKA can be asked of each part; ``statistics`` says how large the parts are. ``cut`` takes tokens out of the way of
gradients.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from helpers.networks.positions import prefix_tokens

MASSIVE = 5.0  # a token is massive when its norm is more than this many times the median norm of its layer's patches

VIEWS = {
    "all tokens": "every token, as the layer gives it",
    "CLS token": "the prefix tokens alone",
    "patch tokens": "the patch tokens alone",
    "mean patch": "the mean of the patch tokens",
    "clipped tokens": "patch tokens; massive ones scaled down to the median norm, their direction kept",
    "without top channel": "patch tokens without the one channel that varies most",
}


def views(x: Tensor, prefix: int) -> dict[str, Tensor]:
    """The parts ``VIEWS`` of tokens x (n, prefix + T, d), each (n, …); no "CLS token" where there is no prefix.

    Raises ``ValueError`` for another shape, and where no patch is left beside the prefix.
    """
    if x.ndim != 3 or not 0 <= prefix < x.shape[1]:
        raise ValueError(
            f"tokens have shape (n, prefix + patches, d); got {tuple(x.shape)} with {prefix} prefix tokens"
        )
    patches = x[:, prefix:]  # (n, T, d)
    parts = {"all tokens": x, "CLS token": x[:, :prefix], "patch tokens": patches, "mean patch": patches.mean(1)}
    parts["clipped tokens"] = clipped(patches)
    top = _channel_energy(patches).argmax()
    parts["without top channel"] = torch.cat([patches[..., :top], patches[..., top + 1 :]], dim=-1)
    return parts if prefix else {name: part for name, part in parts.items() if name != "CLS token"}


def clipped(patches: Tensor) -> Tensor:
    """Patch tokens (n, T, d), of which the massive ones are scaled down to the median norm; their direction stays."""
    norms = patches.norm(dim=-1, keepdim=True)  # (n, T, 1)
    median = norms.median()
    return torch.where(norms > MASSIVE * median, patches * (median / norms), patches)


def statistics(x: Tensor, prefix: int) -> dict[str, float]:
    """How norms and variance are spread in tokens x (n, prefix + T, d).

    Norms in the units of the activations: ``cls_norm`` (mean over images), ``median_norm`` and ``largest_norm`` of
    the patch tokens. Shares from 0 to 1: ``massive_share`` of the patch tokens that are massive,
    ``massive_images`` of the images that have one, ``massive_variance`` of the variance over images that massive
    tokens carry, ``top_channel_variance`` that the most varying channel carries; ``top_channel`` is its number.
    """
    patches = x[:, prefix:]
    norms = patches.norm(dim=-1)  # (n, T)
    massive = norms > MASSIVE * norms.median()
    energy = (patches - patches.mean(0)).square().sum(-1)  # (n, T)
    channels = _channel_energy(patches)
    return {
        "cls_norm": float(x[:, :prefix].norm(dim=-1).mean()) if prefix else float("nan"),
        "median_norm": float(norms.median()),
        "largest_norm": float(norms.max()),
        "massive_share": float(massive.float().mean()),
        "massive_images": float(massive.any(1).float().mean()),
        "massive_variance": float(energy[massive].sum() / energy.sum()),
        "top_channel_variance": float(channels.max() / channels.sum()),
        "top_channel": int(channels.argmax()),
    }


@contextmanager
def cut(model: nn.Module, patches: Iterable[int]) -> Iterator[None]:
    """A transformer of which no gradient passes through some patch tokens, for as long as the context lasts.

    What it computes stays the same. At the entrance of each block these tokens are detached, so that a receptive field
    is left with the ways that lead through other tokens. ``patches``: their numbers, row by row from the upper left.
    Raises ``ValueError`` for a model without ``blocks`` of tokens, and ``IndexError``, in its forward pass, for patches
    that it does not have.
    """
    blocks: Any = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Sequential) or not hasattr(model, "patch_embed"):
        raise ValueError(f"{type(model).__name__} is no plain transformer: its tokens are not known block by block")
    tokens = [prefix_tokens(model) + patch for patch in patches]

    def detached(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0].clone()  # (B, N, d)
        x[:, tokens] = args[0][:, tokens].detach()
        return x, *args[1:]

    hooks = [block.register_forward_pre_hook(detached) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _channel_energy(patches: Tensor) -> Tensor:
    """Variance over images of each channel, summed over positions: (n, T, d) → (d,), up to a factor."""
    return (patches - patches.mean(0)).square().sum((0, 1))
