"""Effective receptive fields: which pixels of an image a position of a network depends on, and how much.

The effective receptive field of a place is the absolute gradient of one middle position of its feature map F with
respect to the image x, averaged over channels c and images (Luo et al. 2016; Raghu et al. 2021, Figures 6 and C.1 to
C.4)::

    mean over images, mean over c of |∂F[c, middle] / ∂x|        summed over red, green and blue

The absolute value is taken of each channel of each image. To sum over channels first, as is often seen, lets signs
cancel: that is the gradient of a sum, another quantity. To spare backward passes some channels of each image may be
drawn at random: the mean over them estimates the mean over all without bias, and as the draw differs from image to
image, an error estimated over images covers it.

The middle position is number H // 2 of the rows and W // 2 of the columns. In a grid of even size it lies half a step
below and to the right of the image's middle, so distances are counted from the position's own centre in the image.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from helpers.measures.distributed import Share
from helpers.measures.streams import at_least_one
from helpers.networks.geometry import Centres
from helpers.networks.inputs import normalise, pixels
from helpers.networks.places import BRANCH_OUTPUTS, STREAM
from helpers.networks.positions import positions
from helpers.networks.taps import Tap, capture, evaluating, taps_for
from helpers.uncertainty import GROUPS, delete_one


@dataclass(frozen=True)
class ReceptiveFields:
    """Effective receptive fields of some places of a network.

    ``maps`` (groups, places, H, W): mean absolute gradient over each group's images, of which there are ``counts``
    (groups,). ``places``: a table of name, kind, depth (of a branch: that of the sum it enters), and ``row`` and
    ``column``, the centre in the image of the position that was read, in pixels from its upper left corner.
    """

    maps: Tensor
    counts: Tensor
    places: pd.DataFrame

    def mean(self, without: int | None = None) -> Tensor:
        """The maps (places, H, W) over all images, or without those of a group."""
        counts = self.counts.clone()
        if without is not None:
            counts[without] = 0
        return torch.einsum("g,gphw->phw", counts / counts.sum(), self.maps)

    def table(self, patch: int) -> pd.DataFrame:
        """``radius`` and ``share`` of each place, once with all images (``left_out`` −1) and without each group.

        ``radius``: that of the disc that holds half of the mass, in pixels. ``share``: of the mass in the square of
        ``patch`` × ``patch`` pixels around the centre, from 0 to 1.
        """
        centres = list(zip(self.places["row"], self.places["column"], strict=True))

        def measure(left_out: int | None) -> dict[str, list[float]]:
            fields = list(zip(self.mean(left_out), centres, strict=True))
            radius = [half_mass_radius(field, centre) for field, centre in fields]
            return {"radius": radius, "share": [central_share(field, centre, patch) for field, centre in fields]}

        return delete_one(self.places, measure, range(len(self.counts)))


def effective_receptive_fields(
    model: nn.Module,
    images: Tensor,
    taps: list[Tap] | None = None,
    *,
    channels: int | None = None,
    groups: int = GROUPS,
    length: int | None = None,
    batch: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> ReceptiveFields:
    """Effective receptive fields of places of a network; gradients with respect to pixel values in [0, 1].

    One forward pass a batch, one backward pass a batch, place and channel.

    Args:
        model: run in eval mode, and as it was before ``torch.compile``; its modes and its parameters' ``requires_grad``
            are restored.
        images: (N, 3, H, W), uint8 or float in [0, 1], or a tuple that begins with them.
        taps: places to read; the residual stream and the branches by default.
        channels: how many to draw for each image and place, without repetition; all by default.
        groups: of images, for errors; image i is in group i mod ``groups``.
        length: number of the complete network's places after the first, where some are missing.
        batch: images that are read at a time. It changes nothing but memory: in eval mode images are independent.
        seed: of the channels that are drawn.
        progress: show a bar that counts places, batch by batch.

    Returns:
        the maps of all places by group.

    Raises:
        TypeError: for images that are no tensor, such as a dict.
        ValueError: for images that are no batch or fewer than groups, for channels, groups or a batch below 1, for a
            length below the number of places that are read, for an activation that is neither a feature map nor a grid
            of tokens, and for gradients that are zero or not finite, or that the forward pass does not keep.
    """
    images = pixels(images)
    at_least_one(groups=groups, batch=batch)
    if groups > len(images):
        raise ValueError(f"at least {groups} images are needed for {groups} groups; got {len(images)}")
    if channels is not None and channels < 1:
        raise ValueError(f"channels is a number of channels, at least 1, or None for all; got {channels}")
    taps = taps_for(model, [*STREAM, *BRANCH_OUTPUTS]) if taps is None else taps
    last = sum(tap.kind in STREAM for tap in taps) - 1
    if length is not None and length < last:
        raise ValueError(f"{last} places after the first are read, more than the {length} that length says there are")
    with evaluating(model), _frozen(model), torch.compiler.set_stance("force_eager"):
        places, widths = _places(model, images[:1], taps, max(length or last, 1))
        draw = torch.Generator().manual_seed(seed)
        drawn = [torch.rand(len(images), width, generator=draw).argsort(1)[:, :channels] for width in widths]
        total = len(taps) * -(-len(images) // batch)
        with tqdm(total=total, desc="receptive fields", unit="place", disable=not progress) as bar:
            sums = _summed_gradients(model, images, taps, drawn, groups, batch, bar)
    mass = sums.sum((0, 2, 3))
    if bad := [tap.name for tap, m in zip(taps, mass.tolist(), strict=True) if not (np.isfinite(m) and m > 0)]:
        raise ValueError(f"the gradients of {', '.join(bad)} are zero or not finite, so there is no receptive field")
    counts = torch.bincount(torch.arange(len(images)) % groups, minlength=groups).float()
    return ReceptiveFields(sums / counts[:, None, None, None], counts, places)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of the model asks for a gradient; afterwards each as it was."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.requires_grad_(False)
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)


def _places(model: nn.Module, image: Tensor, taps: list[Tap], length: int) -> tuple[pd.DataFrame, list[int]]:
    """The table of places of ``ReceptiveFields``, and how many channels each has. ``image`` (1, 3, H, W)."""
    height, width = image.shape[-2:]
    look = partial(_middle, model, (height, width))
    with torch.inference_mode(), capture(model, taps, look, with_tap=True) as read, Centres(model) as centres:
        model(normalise(model, image))
    rows, widths, reached = [], [], 0
    for tap, (middle, grid) in zip(taps, read.values(), strict=True):
        centre = [centres.centre(n, n // 2, image.shape[2 + axis], axis) for axis, n in enumerate(grid)]
        rows.append((tap.name, tap.kind, reached / length, *centre))
        widths.append(middle.shape[1])
        reached += tap.kind in STREAM
    return pd.DataFrame(rows, columns=["name", "kind", "depth", "row", "column"]), widths


def _summed_gradients(
    model: nn.Module, images: Tensor, taps: list[Tap], drawn: list[Tensor], groups: int, batch: int, bar: tqdm
) -> Tensor:
    """Absolute gradients, mean over channels and summed over colours and each group's images: (groups, places, H, W).

    ``drawn``: for each place the channels of each image, (N, channels).
    """
    height, width = images.shape[-2:]
    sums, share = torch.zeros(groups, len(taps), height, width), Share()
    for _, start in share.dealt(range(0, len(images), batch)):
        x = images[start : start + batch]
        x = x.float() / 255 if x.dtype == torch.uint8 else x.float().clone()
        with torch.enable_grad(), capture(model, taps, partial(_middle, model, (height, width)), with_tap=True) as out:
            model(normalise(model, x.requires_grad_()))
        group = torch.arange(start, start + len(x)) % groups
        if without := [name for name, (middle, _) in out.items() if not middle.requires_grad]:
            raise ValueError(
                f"{', '.join(without)}: the forward pass keeps no gradient with respect to the image, as under "
                "torch.no_grad, torch.inference_mode or after detach(); let the network, and the call, keep it"
            )
        for place, (middle, _) in enumerate(out.values()):  # (B, C)
            own = drawn[place][start : start + batch].to(middle.device)  # (B, channels)
            for channel in own.T:
                chosen = middle.gather(1, channel[:, None]).sum()  # of each image a channel of its own
                gradient = torch.autograd.grad(chosen, x, retain_graph=True)[0]  # (B, 3, H, W)
                sums[:, place].index_add_(0, group, gradient.abs().sum(1).cpu() / own.shape[1])
            bar.update()
    return share.summed(sums)


def half_mass_radius(field: Tensor, centre: tuple[float, float]) -> float:
    """Radius in pixels of the disc around ``centre`` (row, column) that holds half of the mass of a map (H, W).

    A pixel belongs to the disc when its centre does; between the distances of pixels the mass is interpolated.
    """
    row, column = (torch.arange(n) + 0.5 - c for n, c in zip(field.shape, centre, strict=True))
    distance = (row[:, None] ** 2 + column[None] ** 2).sqrt().flatten().double()
    rings, ring = torch.unique(distance.round(decimals=6), return_inverse=True)
    mass = torch.zeros(len(rings), dtype=torch.double).index_add_(0, ring, field.flatten().cpu().double()).cumsum(0)
    return float(np.interp(0.5 * float(mass[-1]), [0.0, *mass.tolist()], [0.0, *rings.tolist()]))


def central_share(field: Tensor, centre: tuple[float, float], side: int) -> float:
    """Share of the mass of a map (H, W) in a square of ``side`` pixels around ``centre``, whose rim cuts pixels."""
    inside = []
    for n, c in zip(field.shape, centre, strict=True):
        pixel = torch.arange(n, dtype=torch.double)
        inside.append((torch.clamp(pixel + 1, max=c + side / 2) - torch.clamp(pixel, min=c - side / 2)).clamp(min=0))
    field = field.cpu().double()
    return float((inside[0] @ field @ inside[1]) / field.sum())


def uniform_radius(size: tuple[int, int], centre: tuple[float, float] | None = None) -> float:
    """The radius of a position that depends on all pixels of an image alike."""
    return half_mass_radius(torch.ones(size), centre or (size[0] / 2, size[1] / 2))


def early_radius(table: pd.DataFrame, depth: float = 0.1) -> float:
    """Claim R12: radius at the place nearest to ``depth``; ``table`` of one network, no group left out."""
    stream = table[table["kind"].isin(STREAM)]
    return float(stream.loc[(stream["depth"] - depth).abs().idxmin(), "radius"])


def largest_step(table: pd.DataFrame, until: float) -> float:
    """Claim R12: the largest share of the radius's growth in a step of depth 0.1, from 0 to at most ``until``."""
    stream = table[table["kind"].isin(STREAM)]
    depths = np.arange(0, until + 1e-9, 0.1)
    radius = np.interp(depths, stream["depth"], stream["radius"])
    return float(np.diff(radius).max() / (radius[-1] - radius[0]))


def kept_by_skip(table: pd.DataFrame, branch: str, places: list[str]) -> float:
    """Claim R13: share after the sum over share of the branch before it, averaged over ``places`` (names of sums).

    ``branch``: the kind of the branches that enter them. Raises ValueError without places, and where the table has no
    such branch before one of them.
    """
    position = {name: i for i, name in enumerate(table["name"])}
    share, kind = table["share"].to_numpy(), table["kind"].to_numpy()
    before = [max((i for i in range(position[name]) if kind[i] == branch), default=-1) for name in places]
    if not before or min(before) < 0:
        where = f" before {places[before.index(-1)]}" if before else ", nor a sum that one enters"
        raise ValueError(f"the network has no residual branch of kind {branch!r}{where} whose output was measured")
    return float(np.mean([share[position[name]] / share[i] for name, i in zip(places, before, strict=True)]))


def _middle(model: nn.Module, size: tuple[int, int], x: Tensor, tap: Tap) -> tuple[Tensor, tuple[int, int]]:
    """The middle position of an activation ``x`` of images of ``size``, (B, channels); its grid's rows and columns."""
    found = positions(model, x, size=size, tap=tap)
    height, width = found.grid
    return found.tokens[:, height // 2 * width + width // 2], found.grid
