"""CKA between single tokens of a network and single patches of the input, over minibatches.

One token, over n images, is a representation of these images; so are the raw pixels of one patch. Their CKA says
whether images that agree in that patch agree in that token (Raghu et al. 2021, Section 7, Figures 9, 10 and D.1 to
D.3). All tokens of a place against all patches make a matrix, and a row of it, laid out as the grid, a map. For each
batch every token and every patch becomes a row of n² numbers, its centred Gram matrix, so that one matrix product gives
the HSICs of all pairs; they are summed over batches as in ``helpers.measures.heatmap``.

The image is cut into one patch for each position of the place that is read: a position's *own patch* are the pixels
that lie nearer to its centre in the image than to any other position's. For a ViT these are the patches its tokens
began as. A convolution's positions have their centres where kernels, strides and padding put them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from helpers.images.sources import ImageSet
from helpers.measures.cka import LEAST, Sums
from helpers.measures.distributed import Share, gathered
from helpers.measures.hsic import gram_row, inner_products
from helpers.measures.massive_tokens import clipped
from helpers.measures.streams import hashes, in_batches, warn_of_repeated
from helpers.networks.geometry import Centres
from helpers.networks.inputs import normalise, pixels
from helpers.networks.places import OUTPUTS
from helpers.networks.positions import positions
from helpers.networks.taps import Tap, capture, evaluating, taps_for
from helpers.uncertainty import GROUPS


@dataclass(frozen=True)
class TokenPatches:
    """CKA of the T positions of one place with the patches of the input that are their own, T as well.

    ``grid``: rows and columns of positions. ``patches`` (H, W): the position to whose patch a pixel belongs.
    ``control``: the same with the images shuffled on the side of the patches.
    """

    sums: Sums
    grid: tuple[int, int]
    patches: Tensor
    control: "TokenPatches | None" = None

    @property
    def matrix(self) -> np.ndarray:
        """CKA (T, T): positions by patches, both row by row from the upper left."""
        return self.sums.cka()

    def statistic(self, fn: Callable[[np.ndarray, tuple[int, int]], Any]) -> tuple[Any, Any]:
        """``fn(matrix, grid)``, such as ``hit_rate``, and its jackknife standard error over groups of batches."""
        return self.sums.statistic(lambda matrix: fn(matrix, self.grid))

    def map(self, row: int, column: int) -> np.ndarray:
        """The map (h, w) of one position."""
        return self.matrix[row * self.grid[1] + column].reshape(self.grid)


@torch.inference_mode()
def token_patches(
    model: nn.Module,
    images: ImageSet | Tensor,
    places: Sequence[Tap] | None = None,
    *,
    batch: int = 256,
    shuffle: int | None = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    clip: bool = False,
    progress: bool = False,
) -> dict[str, TokenPatches]:
    """Token-to-patch CKA of several places of a network, in one pass. Prefix tokens are left out.

    The memory that is needed grows with T n², for T positions and n images a batch, not with the number of images.

    Args:
        model: run in eval mode; its modes are restored.
        images: an ``ImageSet`` or a tensor (N, 3, H, W) uint8. Batch b is in jackknife group b mod 16.
        places: taps, by default the output of each block.
        batch: images that are read at a time; a last batch below 4 images is left out.
        shuffle: a seed for the control, in which images are shuffled on the side of the patches; None for no control.
        preprocess: a function of a batch of images, in place of ``images.normalise``.
        clip: scale massive tokens down to the median norm first (``massive_tokens.clipped``).
        progress: show a bar.

    Returns:
        the place's name → its ``TokenPatches``. Where images have the pixels of earlier ones, a warning says how many.

    Raises:
        TypeError: for images that are neither, such as a dict.
        ValueError: for places without positions, more positions than pixels can be told apart, no batch of 4 images,
            activations that are not finite.
    """
    if batch < LEAST:
        raise ValueError(f"CKA needs a batch of at least {LEAST} images; got batch={batch}")
    places = taps_for(model, OUTPUTS) if places is None else list(places)
    loader = in_batches(images, batch)
    share = Share()
    seen: set[int] = set()
    counts = np.zeros((2, GROUPS), dtype=np.int64)  # batches, images
    kept: dict[str, dict[str, np.ndarray]] = {}  # place → name of a sum → by group
    grids: dict[str, tuple[int, int]] = {}
    with evaluating(model), Centres(model) as centres:
        own = cache(partial(own_patches, centres))  # grid, size → the patch of each pixel
        for index, part in share.dealt(tqdm(loader, desc="tokens and patches", unit="batch", disable=not progress)):
            part = pixels(part)
            if len(part) < LEAST:
                if not index:
                    raise ValueError(f"CKA needs a batch of at least {LEAST} images; got {len(part)}")
                continue
            seen.update(hashes(part))
            size = tuple(part.shape[-2:])
            x = normalise(model, part) if preprocess is None else preprocess(part)
            height, width = x.shape[-2:]
            order = None if shuffle is None else _permutation(len(part), shuffle, index)
            compare = _comparison(model, part, (height, width), own, order, clip)
            with capture(model, places, compare, with_tap=True) as out:
                model(x)
            counts[:, index % GROUPS] += 1, len(part)
            for place, (grid, found) in out.items():
                if not found["self_x"].isfinite().all():
                    raise ValueError(f"{place}: activations are not finite")
                sums = kept.setdefault(place, {name: np.zeros((GROUPS, *v.shape)) for name, v in found.items()})
                grids[place] = grid
                for name, value in found.items():
                    sums[name][index % GROUPS] += value.numpy()
    kept, counts = share.summed((kept, counts))
    at = {place: (grid, own(grid, size)) for place, grid in grids.items()}
    at = next(filter(None, gathered(at)), at)  # of a process whose only batch was not below 4 images
    seen = seen.union(*gathered(seen))
    warn_of_repeated(int(counts[1].sum()) - len(seen), int(counts[1].sum()), stacklevel=3)  # inference_mode is one
    return {place: _with_control(sums, counts, *at[place]) for place, sums in kept.items()}


def _comparison(
    model: nn.Module,
    images: Tensor,
    seen: tuple[int, int],
    own: Callable[..., Tensor],
    order: Tensor | None,
    clip: bool,
) -> Callable[[Tensor, Tap], tuple[tuple[int, int], dict[str, Tensor]]]:
    """The function of an activation that gives its grid, and HSICs of its positions with the patches of ``images``.

    ``seen``: height and width of what the model is given. ``own``: grid and size of the images → the position to whose
    patch each pixel belongs, (H, W). The patches' rows are made once for each grid, when it is first met.
    """
    size = tuple(images.shape[-2:])
    rows: dict[tuple[int, int], Tensor] = {}

    def compare(x: Tensor, tap: Tap) -> tuple[tuple[int, int], dict[str, Tensor]]:
        at = positions(model, x, size=seen, tap=tap)
        tokens = token_rows(clipped(at.tokens) if clip else at.tokens)
        if at.grid not in rows:
            rows[at.grid] = patch_rows(images, own(at.grid, size)).to(tokens)
        return at.grid, _hsics(tokens, rows[at.grid], order)

    return compare


def _hsics(tokens: Tensor, patches: Tensor, order: Tensor | None) -> dict[str, Tensor]:
    """HSICs of rows (T, n²) with rows (S, n²), and of each with itself; "shuffled": with images in ``order`` (n,)."""
    found = dict(zip(("cross", "self_x", "self_y"), inner_products(tokens, patches), strict=True))
    if order is not None:
        n = len(order)
        found["shuffled"] = inner_products(tokens.view(-1, n, n)[:, order][:, :, order].flatten(1), patches)[0]
    return {name: value.cpu() for name, value in found.items()}


def _permutation(count: int, seed: int, batch: int) -> Tensor:
    """An order of ``count`` images, another one for each batch: (count,)."""
    return torch.from_numpy(np.random.default_rng((seed, batch)).permutation(count))


def _with_control(
    sums: Mapping[str, np.ndarray], counts: np.ndarray, grid: tuple[int, int], patches: Tensor
) -> TokenPatches:
    """The result of one place, with a control where there are shuffled sums. ``counts`` (2, G): batches, images."""
    cross, self_x, self_y = (sums[name] for name in ("cross", "self_x", "self_y"))
    found = TokenPatches(Sums(cross, self_x, self_y, *counts), grid, patches)
    if "shuffled" not in sums:
        return found
    return replace(found, control=replace(found, sums=replace(found.sums, cross=sums["shuffled"])))


def token_rows(tokens: Tensor) -> Tensor:
    """Tokens (n, T, d) → (T, n²): of each token what ``gram_row`` gives, all at once."""
    n = len(tokens)
    x = tokens.float() if tokens.dtype in (torch.float16, torch.bfloat16) else tokens
    x = (x - x[:1]).transpose(0, 1)  # a token that is the same for all images becomes exactly zero
    x = x - x.mean(1, keepdim=True)
    gram = x @ x.mT  # (T, n, n)
    gram.diagonal(dim1=1, dim2=2).zero_()
    mean = gram.sum(2) / (n - 2)
    mean -= mean.sum(1, keepdim=True) / (2 * (n - 1))
    gram -= mean[:, :, None]
    gram -= mean[:, None]
    gram.diagonal(dim1=1, dim2=2).zero_()
    return gram.flatten(1) / (n * (n - 3)) ** 0.5


def patch_rows(images: Tensor, patches: Tensor) -> Tensor:
    """Images (n, 3, H, W), cut as ``patches`` (H, W) says → (S, n²), the centred Gram matrix of each patch's pixels."""
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    return torch.stack([gram_row(pixels[:, :, patches == s]) for s in range(int(patches.max()) + 1)])


def own_patches(centres: Centres, grid: tuple[int, int], size: Sequence[int]) -> Tensor:
    """To which position's patch each pixel belongs: (H, W) whole numbers; where two are as near, to the first.

    Raises ``ValueError`` where a position is left without a pixel.
    """
    nearest = []
    for axis in (0, 1):
        at = torch.tensor([centres.centre(grid[axis], i, size[axis], axis) for i in range(grid[axis])])
        pixel = torch.arange(size[axis]) + 0.5
        nearest.append((pixel[:, None] - at[None]).abs().argmin(1))
        if len(nearest[-1].unique()) < grid[axis]:
            raise ValueError(
                f"{grid[axis]} positions share {size[axis]} pixels, and one gets none; average them down, or take "
                "a later place"
            )
    return nearest[0][:, None] * grid[1] + nearest[1][None]


class PixelTokens(nn.Module):
    """A network whose tokens are the pixels of their patches: the upper bound, and what neighbours share by themselves.

    Images (n, 3, H, W) → (n, T, 3 · patch²) as the output of the module ``tokens``.
    """

    pretrained_cfg = {"mean": (0.0,) * 3, "std": (1.0,) * 3}

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.cut, self.tokens = nn.Unfold(patch, stride=patch), nn.Identity()
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)  # a model has a device

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(self.cut(images).mT)
