"""An activation as positions: whatever a network's layout, tokens of a grid, and prefix tokens apart from them.

Transformers hand over (n, prefix + h · w, d), convolutional networks maps (n, d, h, w), Swins and a few others
(n, h, w, d). What is asked of one position of a network (which patch does it resemble, what can a probe read from it)
is asked of all of them in the same way once they are (n, h · w, d). Where in the image each of them lies,
``geometry.Centres`` says.

The network may be part of another module. Which network an activation belongs to, and whether its channels come last,
is found from the module that was tapped; without a tap, from the networks inside of the model.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from timm.models.gcvit import GlobalContextVit
from timm.models.hiera import Hiera
from timm.models.hieradet_sam2 import HieraDet
from timm.models.mambaout import MambaOut
from timm.models.nest import Nest
from timm.models.sequencer import Sequencer2d
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr
from timm.models.tiny_vit import TinyVit, TinyVitBlock
from timm.models.vision_transformer_sam import VisionTransformerSAM
from timm.models.volo import VOLO
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from helpers.networks.geometry import Centres
from helpers.networks.taps import Tap

__all__ = ["CHANNELS_LAST", "Centres", "Positions", "has_class_token", "positions", "prefix_tokens", "token_grid"]

CHANNELS_LAST = (  # their blocks hand over (n, h, w, d)
    SwinTransformer,
    SwinTransformerV2,
    SwinTransformerV2Cr,
    VisionTransformerSAM,
    MambaOut,
    Sequencer2d,
    GlobalContextVit,
    VOLO,
)
UNKNOWN = (Hiera, HieraDet, Nest)  # tokens in the order of windows, or layouts that change between stages


@dataclass(frozen=True)
class Positions:
    """``tokens`` (n, h · w, d), row by row from the upper left; ``prefix`` (n, p, d), p may be 0; ``grid`` (h, w)."""

    tokens: Tensor
    prefix: Tensor
    grid: tuple[int, int]


def prefix_tokens(model: nn.Module, tap: Tap | None = None) -> int:
    """How many tokens stand before the patches: CLS, distillation and register tokens; 0 where there are none.

    ``tap``: where the tokens are read, of which a model that holds several networks must be told. Raises ValueError
    where it holds networks with different numbers of them and there is no tap.
    """
    return _agreed(model, tap, _is_network, _prefix_of, "numbers of prefix tokens") or 0


def has_class_token(model: nn.Module, tap: Tap | None = None) -> bool:
    """Whether the first of the prefix tokens is a class token (CLS), and not a register. As ``prefix_tokens``."""
    return bool(_agreed(model, tap, _is_network, _class_token_of, "kinds of prefix tokens"))


def token_grid(model: nn.Module, size: tuple[int, int] | None = None, tap: Tap | None = None) -> tuple[int, int] | None:
    """Rows and columns of the patches into which a model cuts images of ``size`` (H, W) px; None without patches.

    A model made for one size has one grid. One that takes any (``dynamic_img_size``) has the grid of the images it is
    given: without ``size`` there is a ValueError.
    """

    def grid(network: nn.Module) -> tuple[int, int]:
        embed: Any = _embedding(network)
        if embed.grid_size is not None and getattr(embed, "strict_img_size", True):
            rows, columns = embed.grid_size
            return rows, columns
        if size is None:
            raise ValueError(
                f"{type(network).__name__} takes images of any size, so its tokens alone do not say where they lie: "
                "say how large the images are, size=(H, W)"
            )
        rows, columns = embed.dynamic_feat_size(size)
        return rows, columns

    return _agreed(model, tap, lambda network: _embedding(network) is not None, grid, "grids of patches")


def positions(
    model: nn.Module,
    x: Tensor,
    grid: tuple[int, int] | None = None,
    *,
    size: tuple[int, int] | None = None,
    tap: Tap | None = None,
) -> Positions:
    """The positions of an activation: of a map (n, d, h, w) or (n, h, w, d), or of tokens (n, p + h · w, d).

    Args:
        model: the network, or a module that holds it.
        x: the activation. Of networks with channels last (Swin, SAM, …) and without ``tap``, what a block hands over.
        grid: average the positions down to this many (rows, columns), as maps of early stages are before they are
            compared with the last; tokens and maps alike.
        size: height and width in px of the images; needed for tokens of a model that takes images of any size, and
            for tokens of images that are not square where the network does not say into how many patches it cuts them.
        tap: where ``x`` was read; needed where a model holds several networks, and for what is not a block's output.

    Returns:
        its positions row by row, its prefix tokens, and rows and columns of the grid.

    Raises:
        ValueError: an activation with no positions left, tokens that make up no grid or of which the grid is not
            known, and networks of which the layout is not known (Hiera, Nest; TinyVit without a tap, and within its
            blocks, which hand over maps).
    """
    for part in model.modules() if tap is None else _around(model, tap):
        if isinstance(part, UNKNOWN):
            raise ValueError(
                f"{type(part).__name__}: layout not known, so it cannot be said which token lies where; take a network "
                "whose tokens or maps go row by row (ViT, Swin, ResNet, …)"
            )
        if isinstance(part, TinyVit) and (tap is None or x.ndim != 4):
            raise ValueError(
                "TinyVit: layout not known; its first stage hands over (n, d, h, w), the blocks of the others "
                "(n, h, w, d), so say by a tap which block it is"
            )
    if x.ndim == 4:
        if _channels_last(model, tap):
            x = x.permute(0, 3, 1, 2)
        have, prefix, cells = (x.shape[2], x.shape[3]), x[:, :0, 0, :0], x
    elif x.ndim == 3:
        number, have = _tokens(model, x.shape[1], size, tap)
        prefix = x[:, :number]
        cells = x[:, number:].transpose(1, 2).unflatten(2, have)
    else:
        raise ValueError(
            f"an activation of shape {tuple(x.shape)} has no positions: maps are (n, d, h, w), tokens (n, p + h·w, d); "
            "read the network before its pooling"
        )
    if grid is not None and tuple(grid) != have:
        if grid[0] > have[0] or grid[1] > have[1]:
            raise ValueError(f"{have[0]} × {have[1]} positions cannot be averaged down to {grid[0]} × {grid[1]}")
        cells, have = adaptive_avg_pool2d(cells, grid), (grid[0], grid[1])
    return Positions(cells.flatten(2).transpose(1, 2), prefix, have)


def _tokens(model: nn.Module, count: int, size: tuple[int, int] | None, tap: Tap | None) -> tuple[int, tuple[int, int]]:
    """Of ``count`` tokens: how many are prefix tokens, and rows and columns of the others.

    The grid is that of the patch embedding, or this halved as often as stages halve it (Swin, PiT). A network that has
    no such embedding is taken to cut the image into squares.
    """
    number, own = prefix_tokens(model, tap), token_grid(model, size, tap)
    if own is not None:
        for shape in _halvings(own):
            if count == number + math.prod(shape):
                return number, shape
        if count == math.prod(own):  # before a class token joins the patches, in CaiT's blocks too
            return 0, own
        raise ValueError(
            f"{count} tokens are not the {own[0]} × {own[1]} patches of {type(model).__name__} with {number} prefix "
            "tokens or none, nor these halved, and no square grid is guessed; read the network where it has all tokens"
        )
    ratio = 1.0 if size is None else size[0] / size[1]
    for prefix in dict.fromkeys((number, 0)):  # as above (XCiT)
        rows = round(math.sqrt(max(count - prefix, 0) * ratio))
        columns = (count - prefix) // max(rows, 1)
        if rows and rows * columns == count - prefix and math.isclose(rows, columns * ratio):
            return prefix, (rows, columns)
    kind = "square grid" if size is None or size[0] == size[1] else f"grid of squares on {size[0]} × {size[1]} px"
    raise ValueError(f"{count} tokens make up no {kind}, with {number} prefix tokens or none")


def _halvings(grid: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """A grid, and what a stride of 2 makes of it again and again; an odd side keeps its last row."""
    yield grid
    while max(grid) > 1:
        grid = (grid[0] + 1) // 2, (grid[1] + 1) // 2
        yield grid


def _around(model: nn.Module, tap: Tap) -> list[nn.Module]:
    """The tapped module and the modules that hold it, from the inside outwards; the last is the model."""
    names = tap.module.split(".") if tap.module else []
    return [model.get_submodule(".".join(names[:depth])) for depth in range(len(names), -1, -1)]


def _agreed(
    model: nn.Module,
    tap: Tap | None,
    is_one: Callable[[nn.Module], bool],
    value: Callable[[nn.Module], Any],
    what: str,
) -> Any:
    """``value`` of the network around the tap, or of the outermost networks inside of the model; None without one.

    Raises ValueError where there are several with different values.
    """
    for part in _around(model, tap) if tap else (model,):
        if is_one(part):
            return value(part)
    found: dict[str, Any] = {}
    for name, part in model.named_modules():
        if is_one(part) and not any(name.startswith(f"{other}.") for other in found):
            found[name] = value(part)
    if len(set(found.values())) > 1:
        raise ValueError(
            f"{type(model).__name__} holds networks with different {what} ({', '.join(found)}): say which by a tap "
            "inside of it, or give that network alone"
        )
    return next(iter(found.values()), None)


def _is_network(part: nn.Module) -> bool:
    """Whether a module is a network of tokens, and not a part of one: some attentions count prefix tokens too."""
    if hasattr(part, "num_prefix_tokens") and hasattr(part, "blocks"):
        return True
    return isinstance(getattr(part, "cls_token", None), Tensor) or _embedding(part) is not None


def _prefix_of(network: Any) -> int:
    """Number of prefix tokens of a network of tokens."""
    if hasattr(network, "num_prefix_tokens"):
        return network.num_prefix_tokens
    token: Tensor | None = getattr(network, "cls_token", None)  # PiT; a Mixer has none
    return 0 if token is None else token.shape[1]


def _class_token_of(network: nn.Module) -> bool:
    """Whether a network of tokens has a class token."""
    return bool(getattr(network, "has_class_token", getattr(network, "cls_token", None) is not None))


def _embedding(network: nn.Module) -> nn.Module | None:
    """What cuts images into patches of one grid: a transformer's ``patch_embed``, a Mixer's ``stem``."""
    for name in ("patch_embed", "stem"):
        embed = getattr(network, name, None)
        if getattr(embed, "grid_size", None) is not None or hasattr(embed, "dynamic_feat_size"):
            return embed
    return None


def _channels_last(model: nn.Module, tap: Tap | None) -> bool:
    """Whether an activation with four axes is (n, h, w, d): as the tapped module, or the one around it, makes it."""
    homes = {network.__module__ for network in CHANNELS_LAST}
    if tap is None:
        return any(type(part).__module__ in homes for part in model.modules())
    for part in _around(model, tap):
        while isinstance(part, nn.Sequential) and len(part):
            part = part[-1 if tap.where == "output" else 0]
        if (last := _leaf_channels_last(getattr(part, "fc1", part))) is not None:
            return last
        if isinstance(part, TinyVitBlock) or type(part).__module__ in homes:
            return True
    return False


def _leaf_channels_last(module: nn.Module) -> bool | None:
    """Whether a layer works on the last axis; None for one that can have its channels anywhere."""
    if isinstance(module, (nn.Conv2d, nn.GroupNorm)) or type(module).__name__.endswith(("2d", "2dAct")):
        return False
    return True if isinstance(module, (nn.Linear, nn.LayerNorm, nn.RMSNorm)) else None
