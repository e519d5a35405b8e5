"""A network that timm does not know, wrapped so that every measure finds its way in it.

The measures ask four things of a network of tokens: which modules are its blocks, into how many patches it cuts an
image (the grid), how many tokens stand before these (the prefix), and how its images are made. timm's models say so
themselves; an ``Adapter`` says it for any other::

    class Mine(nn.Module): ...

    def network(pretrained=True, seed=0):
        torch.manual_seed(seed)
        mine = Mine()
        if pretrained:
            mine.load_state_dict(torch.load("mine.pth", weights_only=True))
        return Adapter(mine, mine.encoder.layers, size=96, patch=12, prefix=1, mean=(0.5,) * 3, std=(0.5,) * 3)

Blocks take and return tokens (n, prefix + h · w, d), patches row by row from the upper left, or maps (n, d, h, w). Of
timm's blocks and of torch's own (``nn.TransformerEncoderLayer(batch_first=True, norm_first=True)``) also the branches
and the stream between them are known, and of ``nn.MultiheadAttention`` the attention maps; of others only their output.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn


class Adapter(nn.Module):
    """A network, and what the measures have to know of it.

    Args:
        network: takes images (n, 3, H, W), normalised.
        blocks: its blocks, modules of the network, in the order in which it calls them.
        size: height and width in px of the images, or one number for both.
        mean: of red, green and blue, of pixels in [0, 1], as the network was trained.
        std: their standard deviations.
        patch: side in px of the patches of a network of tokens; None for maps, which need no grid.
        prefix: how many tokens stand before the patches.
        class_token: whether the first of these is a class token; by default it is, if there is one.

    Raises:
        ValueError: no blocks, blocks that are no part of the network, or a size that patches do not divide.
    """

    def __init__(
        self,
        network: nn.Module,
        blocks: Iterable[nn.Module],
        *,
        size: int | tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        patch: int | None = None,
        prefix: int = 0,
        class_token: bool | None = None,
    ):
        super().__init__()
        blocks = list(blocks)
        parts = {id(part) for part in network.modules()}
        if not blocks or any(id(block) not in parts for block in blocks):
            raise ValueError(
                f"blocks are modules of {type(network).__name__}, one or more, such as mine.encoder.layers"
            )
        height, width = (size, size) if isinstance(size, int) else size
        self.blocks = nn.ModuleList(blocks)  # before the network: so "blocks.0" is their name
        if patch is not None:
            if height % patch or width % patch:
                raise ValueError(f"patches of {patch} px do not divide images of {height} × {width} px")
            self.patch_embed = _Patches((height, width), patch)
            self.num_prefix_tokens = prefix
            self.has_class_token = bool(prefix) if class_token is None else class_token
        self.network = network
        self.pretrained_cfg: dict[str, Any] = {
            "mean": tuple(mean), "std": tuple(std), "input_size": (3, height, width), "fixed_input_size": True,
        }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """What the network makes of images (n, 3, H, W)."""
        return self.network(x)


class _Patches(nn.Module):
    """How images are cut into patches, in the words of timm's ``PatchEmbed``; it computes nothing."""

    strict_img_size = True

    def __init__(self, size: tuple[int, int], patch: int):
        super().__init__()
        self.img_size, self.patch_size = size, (patch, patch)
        self.grid_size = (size[0] // patch, size[1] // patch)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels from one patch to the next: one number, or of rows and columns."""
        return self.patch_size[0] if as_scalar else self.patch_size
