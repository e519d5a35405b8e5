"""Reading the attention maps of transformers, timm's and torch's own, and the grid of patches that an attention sees.

A head's attention map A (N, N) says how much each token (row) takes from each token (column); rows sum to one. timm
computes attention in one fused operation that never forms A. ``attention_maps`` switches that off, reduces every map
inside a hook, and switches it on again. (timm's own ``AttentionExtract`` with hooks returns an empty dictionary, and no
error, while attention is fused.)
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import DiffAttention
from timm.models.coat import FactorAttnConvRelPosEnc
from timm.models.edgenext import CrossCovarianceAttn
from timm.models.pit import PoolingVisionTransformer
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.xcit import XCA
from torch import Tensor, nn

from helpers.networks.positions import prefix_tokens, token_grid
from helpers.networks.taps import Tap, capture
from helpers.networks.unfused import unfused

WINDOWED = (SwinTransformer, SwinTransformerV2)
OVER_CHANNELS = "attends over channels, not over positions: there is no distance in that"
WITHOUT_MAPS = {  # attention → why there is no map of it
    XCA: OVER_CHANNELS,  # of XCiT
    CrossCovarianceAttn: OVER_CHANNELS,  # of EdgeNeXt
    DiffAttention: "weighs by the difference of two maps, which is negative in part: no map",
    FactorAttnConvRelPosEnc: "multiplies keys by values before queries come in: it never forms a map over positions",
}


@contextmanager
def attention_maps(
    model: nn.Module, fn: Callable[[Tensor], Any] | None = None, names: Iterable[str] | None = None
) -> Iterator[dict[str, Any]]:
    """``fn`` of the attention map A (B, heads, N, N) of every attention of a timm model, in the order of depth::

        with attention_maps(model, fn=lambda A: A.mean((0, 1))) as maps:
            model(images)
        maps["blocks.3.attn"]

    ``fn`` runs inside the hook, so that no more than one map is held; without it the maps are kept. ``names``: of
    the attentions, all by default. B counts windows, not images, where attention is windowed (Swin). The
    dictionary is filled anew by each forward pass. Hooks and fused attention are put back in every case.

    Raises ``ValueError`` for a model without attention, for one of which some attention forms no map that can be read,
    and for maps that are not a distribution over positions: attention over channels (XCiT) or by factors
    (CoaT), rows that do not sum to one (the talking heads of CaiT), differences of two maps (differential attention),
    maps that are not square.
    """
    modules = dict(model.named_modules())
    found = attentions(model, names)
    taps = [Tap(name, f"{name}.attn_drop", "input") for name in found]

    def reduce(attention: Tensor) -> Any:
        if attention.ndim != 4 or attention.shape[-1] != attention.shape[-2]:
            raise ValueError(
                f"{type(model).__name__}: an attention map is (B, heads, N, N); this one is {tuple(attention.shape)}"
            )
        total = attention[:1].sum(-1)
        if not torch.allclose(total, torch.ones_like(total), atol=1e-2 if attention.dtype.itemsize < 4 else 1e-4):
            raise ValueError(
                f"{type(model).__name__}: rows of its attention maps do not sum to one (from {total.min():.2f} to "
                f"{total.max():.2f}), so they are no weights; heads are mixed after the softmax"
            )
        return attention if fn is None else fn(attention)

    with unfused(model), ExitStack() as stack:
        for name in found:
            if isinstance(modules[name], nn.MultiheadAttention):
                stack.enter_context(_with_map(modules[name]))
        yield stack.enter_context(capture(model, taps, reduce))


@contextmanager
def _with_map(attention: nn.MultiheadAttention) -> Iterator[None]:
    """torch's own attention made to form the map of each head, and to hand it to a module ``attn_drop`` of its own."""

    def ask(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args[:4], {**kwargs, "need_weights": True, "average_attn_weights": False}

    def hand_over(module: Any, args: tuple, output: tuple[Tensor, Tensor]) -> tuple[Tensor, None]:
        module.attn_drop(output[1])
        return output[0], None  # as without need_weights

    attention.attn_drop = nn.Identity()
    handles = [attention.register_forward_pre_hook(ask, with_kwargs=True), attention.register_forward_hook(hand_over)]
    try:
        yield
    finally:
        del attention.attn_drop
        for handle in handles:
            handle.remove()


def attentions(model: nn.Module, names: Iterable[str] | None = None) -> list[str]:
    """Names of a model's attention modules in the order of depth, or ``names`` if they are such.

    Raises ``ValueError`` as ``attention_maps`` does for a model, and for a name that is none of its attentions.
    """
    kind, modules = type(model).__name__, dict(model.named_modules())
    found = [
        name
        for name, module in modules.items()
        if re.search(r"Attn|Attention|XCA", type(module).__name__) and "Pool" not in type(module).__name__
    ]
    found = [name for name in found if not any(other.startswith(name + ".") for other in found)]
    if not found:
        raise ValueError(f"{kind} has no attention: attention maps are those of transformers (ViT, Swin, PiT, …)")
    for mapless, why in WITHOUT_MAPS.items():
        if without := [name for name in found if isinstance(modules[name], mapless)]:
            raise ValueError(f"{kind}: {without[0]} {why}")
    own = {name for name in found if isinstance(modules[name], nn.MultiheadAttention)}  # torch's own
    if closed := [
        n for n in found if n not in own and not isinstance(getattr(modules[n], "attn_drop", None), nn.Module)
    ]:
        what = f"{len(closed)} of {len(found)} attention modules ({closed[0]} is a {type(modules[closed[0]]).__name__})"
        raise ValueError(f"{kind}: {what} have no attn_drop after their softmax, where maps are read")
    wanted = found if names is None else list(names)
    if strange := [name for name in wanted if name not in found]:
        raise ValueError(f"{kind} has no attention {strange[0]!r}; it has {', '.join(found)}")
    return wanted


def block_numbers(names: Iterable[str]) -> list[int]:
    """The number, from 0, of the block that each attention is in; attentions side by side in one block share it."""
    blocks = [re.sub(r"(blocks\.\d+)\..*", r"\1", name) for name in names]
    order = list(dict.fromkeys(blocks))
    return [order.index(block) for block in blocks]


def one_a_block(model: nn.Module, names: Iterable[str]) -> None:
    """Raise ``ValueError`` where attentions are not one after another: side by side in a block, or of two networks."""
    names = list(names)
    if len({network_of(model, name)[0] for name in names}) > 1:
        raise ValueError(f"{type(model).__name__} holds several networks with attention: give one of them alone")
    numbers = block_numbers(names)
    if len(set(numbers)) < len(numbers):
        raise ValueError(
            f"{type(model).__name__} has {len(numbers)} attentions side by side in {len(set(numbers))} blocks, and "
            "this measure needs one map a block: take a network with one attention in each"
        )


def network_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The network that a module of ``model`` belongs to, which may be part of the model, and the module's name in it.

    It is the innermost one around the module that cuts images into patches; the model itself where there is none.
    """
    parts = name.split(".")
    for depth in range(len(parts), -1, -1):
        around = model.get_submodule(".".join(parts[:depth]))
        if hasattr(around, "patch_embed"):
            return around, ".".join(parts[depth:])
    return model, name


@dataclass(frozen=True)
class Grid:
    """The patches an attention sees: ``shape`` (rows, columns), ``step`` between them in px, ``prefix`` tokens first.

    ``windowed``: the shape is that of a window, and what lies outside it cannot be looked at. ``corners``: whether the
    four patches in the corners count, as what looks and as what is looked at.
    """

    shape: tuple[int, int]
    step: tuple[float, float]
    prefix: int
    windowed: bool = False
    corners: bool = True

    def kept(self) -> list[int]:
        """The numbers of the patches that count, row by row from the upper left, from 0.

        Raises ``ValueError`` where corners are left out of windows, which have no place of their own, or of a grid
        that is too small.
        """
        if self.windowed and not self.corners:
            raise ValueError("windows lie all over the image, and their corners with them: corners cannot be left out")
        out = () if self.corners else corner_patches(self.shape)
        return [patch for patch in range(math.prod(self.shape)) if patch not in out]

    def distances(self) -> Tensor:
        """Distance between any two patches in pixels, (h · w, h · w), row by row from the upper left."""
        rows, columns = (torch.arange(n) * float(step) for n, step in zip(self.shape, self.step, strict=True))
        places = torch.cartesian_prod(rows, columns)
        return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")

    def uniform(self) -> float:
        """The distance of an attention that looks everywhere alike, in pixels, over the patches that count."""
        kept = self.kept()
        return float(self.distances().double()[kept][:, kept].mean())

    def nearest(self) -> float:
        """The distance, in pixels, of an attention to the 3 × 3 patches around each patch alike.

        The patch itself is one of them; at the rim of the image there are fewer.
        """
        places = torch.cartesian_prod(*(torch.arange(n) for n in self.shape))
        near = (places[:, None] - places).abs().amax(-1) <= 1  # (h · w, h · w)
        far = self.distances().double()
        return float(((far * near).sum(1) / near.sum(1)).mean())


def corner_patches(shape: tuple[int, int]) -> tuple[int, ...]:
    """The numbers of the four corner patches of a grid (rows, columns), row by row from the upper left, from 0.

    Raises ``ValueError`` for a grid with fewer than three rows or columns, of which they are too large a part.
    """
    rows, columns = shape
    if min(shape) < 3:
        raise ValueError(
            f"a grid of {rows} × {columns} patches is too small to leave its corners out; give three each way"
        )
    return 0, columns - 1, (rows - 1) * columns, rows * columns - 1


def grid_of(model: nn.Module, name: str, tokens: int, size: tuple[int, int]) -> Grid:
    """The grid that the attention ``name`` of ``model`` sees, given its number of tokens and the image's size in px.

    Plain transformers (one grid from end to end, any prefix tokens), PiT (a grid a stage), Swin (windows), each by
    itself or as part of another module. Raises ``ValueError`` for other models and where tokens and grid do not fit.
    """
    network, inside = network_of(model, name)
    embed: Any = getattr(network, "patch_embed", None)
    prefix = prefix_tokens(network)
    found = re.search(r"(?:layers|transformers)\.(\d+)", inside)
    stage = int(found[1]) if found else 0
    if isinstance(network, WINDOWED):
        attention: Any = model.get_submodule(name)
        high, wide = embed.patch_size
        grid = Grid(tuple(attention.window_size), (high * 2**stage, wide * 2**stage), 0, windowed=True)
    elif isinstance(network, PoolingVisionTransformer):
        (rows, columns), (high, wide) = embed.grid_size, embed.conv.stride
        for _ in range(stage):  # each stage begins with a 3 × 3 convolution of stride 2
            rows, columns, high, wide = -(-rows // 2), -(-columns // 2), 2 * high, 2 * wide
        grid = Grid((rows, columns), (high, wide), prefix)
    elif inside.startswith("blocks.") and (shape := token_grid(network, size)) is not None:
        grid = Grid(shape, embed.feat_ratio(as_scalar=False), prefix)
    else:
        raise ValueError(f"{type(model).__name__}: it is not known where in the image the tokens of {name} lie")
    if math.prod(grid.shape) + grid.prefix != tokens:
        raise ValueError(
            f"{type(model).__name__}: {name} has {tokens} tokens, not {grid.shape[0]} × {grid.shape[1]} patches and "
            f"{grid.prefix} prefix tokens"
        )
    return grid
