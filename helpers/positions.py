"""An activation as positions: whatever a network's layout, tokens of a grid, and prefix tokens apart from them.

Transformers hand over (n, prefix + h · w, d), convolutional networks maps (n, d, h, w), Swins and a few others
(n, h, w, d). What is asked of one position of a network (which patch does it resemble, what can a probe read from it)
is asked of all of them in the same way once they are (n, h · w, d). ``Centres`` says where in the image each of them
lies.
"""

import math
from dataclasses import dataclass

from timm.models.gcvit import GlobalContextVit
from timm.models.hiera import Hiera
from timm.models.hieradet_sam2 import HieraDet
from timm.models.mambaout import MambaOut
from timm.models.sequencer import Sequencer2d
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr
from timm.models.tiny_vit import TinyVit
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

CHANNELS_LAST = (  # their blocks hand over (n, h, w, d)
    SwinTransformer,
    SwinTransformerV2,
    SwinTransformerV2Cr,
    VisionTransformerSAM,
    MambaOut,
    Sequencer2d,
    GlobalContextVit,
)
UNKNOWN = (Hiera, HieraDet, TinyVit)  # tokens in the order of windows, or layouts that change from stage to stage


@dataclass(frozen=True)
class Positions:
    """``tokens`` (n, h · w, d), row by row from the upper left; ``prefix`` (n, p, d), p may be 0; ``grid`` (h, w)."""

    tokens: Tensor
    prefix: Tensor
    grid: tuple[int, int]


def prefix_tokens(model: nn.Module) -> int:
    """How many tokens stand before the patches: CLS, distillation and register tokens; 0 where there are none."""
    if hasattr(model, "num_prefix_tokens"):
        return model.num_prefix_tokens
    token = getattr(model, "cls_token", None)  # PiT
    return 0 if token is None else token.shape[1]


def has_class_token(model: nn.Module) -> bool:
    """Whether the first of the prefix tokens is a class token (CLS), and not a register."""
    return bool(getattr(model, "has_class_token", getattr(model, "cls_token", None) is not None))


def positions(model: nn.Module, x: Tensor, grid: tuple[int, int] | None = None) -> Positions:
    """The positions of an activation ``x`` of ``model``: of a map (n, d, h, w) or of tokens (n, p + h · w, d).

    ``grid``: average the positions down to this many (rows, columns), as maps of early stages are before they are
    compared with the last; tokens and maps alike.

    ``x``: of networks with channels last (Swin, SAM, …) what a block hands over; a few have the channels first
    elsewhere, as between the stages of SwinTransformerV2Cr or after SAM's neck.

    Raises ``ValueError`` for an activation with no positions left, for tokens that make up no grid, and for networks
    of which the layout is not known (Hiera, TinyVit).
    """
    if isinstance(model, UNKNOWN):
        raise ValueError(
            f"{type(model).__name__}: layout not known, so it cannot be said which token lies where; take a network "
            "whose tokens or maps go row by row (ViT, Swin, ResNet, …)"
        )
    if x.ndim == 4:
        if isinstance(model, CHANNELS_LAST):
            x = x.permute(0, 3, 1, 2)
        have, prefix, cells = tuple(x.shape[2:]), x[:, :0, 0, :0], x
    elif x.ndim == 3:
        number, count = prefix_tokens(model), x.shape[1] - prefix_tokens(model)
        prefix, patches = x[:, :number], x[:, number:]
        have = _grid(model, count)
        cells = patches.transpose(1, 2).unflatten(2, have)
    else:
        raise ValueError(
            f"an activation of shape {tuple(x.shape)} has no positions: maps are (n, d, h, w), tokens (n, p + h·w, d); "
            "read the network before its pooling"
        )
    if grid is not None and tuple(grid) != have:
        if grid[0] > have[0] or grid[1] > have[1]:
            raise ValueError(f"{have[0]} × {have[1]} positions cannot be averaged down to {grid[0]} × {grid[1]}")
        cells, have = adaptive_avg_pool2d(cells, grid), tuple(grid)
    return Positions(cells.flatten(2).transpose(1, 2), prefix, have)


class Centres:
    """Where in the image the positions of each layer have their centre, read off the convolutions of a forward pass.

    A convolution of kernel k, stride s and padding p puts position o's centre on s · o − p + (k − 1) / 2 of its input.
    A network reaches each size of grid first through its main path, so a grid is known by its size. One that
    no convolution has made is taken to divide the image evenly. Used around a forward pass::

        with Centres(model) as centres:
            model(images)
        centres.centre(n=9, position=4, size=64, axis=0)  # the middle one of 9 rows, in an image of 64 pixels
    """

    def __init__(self, model: nn.Module):
        kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.modules.padding._ConstantPadNd)
        self.maps: tuple[dict, dict] = ({}, {})  # rows, columns: size → (step, first), in pixels
        self.modules = [module for module in model.modules() if isinstance(module, kinds)]

    def __enter__(self) -> "Centres":
        self.handles = [module.register_forward_hook(self._read) for module in self.modules]
        return self

    def __exit__(self, *_) -> None:
        for handle in self.handles:
            handle.remove()

    def _read(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        for axis in (0, 1):
            before, after = args[0].shape[2 + axis], output.shape[2 + axis]
            known = self.maps[axis]
            known.setdefault(before, (1.0, 0.5)) if not known else None
            if before not in known or after in known:
                continue
            if isinstance(module, nn.modules.padding._ConstantPadNd):
                kernel, stride, pad = 1, 1, module.padding[2 * (1 - axis)]
            else:
                kernel, stride, pad = (_pair(getattr(module, a))[axis] for a in ("kernel_size", "stride", "padding"))
                if type(module).__name__.endswith("Same"):  # pads as much as it needs, the odd one at the end
                    pad = max((after - 1) * stride + kernel - before, 0) // 2
            step, first = known[before]
            known[after] = (step * stride, first + step * ((kernel - 1) / 2 - pad))

    def centre(self, n: int, position: int, size: int, axis: int) -> float:
        """Centre in pixels of a position of a grid of ``n`` along an axis of an image of ``size``."""
        step, first = self.maps[axis].get(n, (size / n, size / n / 2))
        return first + step * position


def _grid(model: nn.Module, count: int) -> tuple[int, int]:
    """Rows and columns of ``count`` patch tokens: the model's own where they fit, otherwise a square."""
    own = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if own is not None and math.prod(own) == count:
        return tuple(own)
    side = math.isqrt(max(count, 0))
    if not side or side * side != count:
        raise ValueError(f"{count} tokens make up no square grid; {prefix_tokens(model)} prefix tokens were left out")
    return side, side


def _pair(value) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)
