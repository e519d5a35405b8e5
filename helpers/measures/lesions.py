"""Lesions: what a trained classifier loses when one of its units is silenced, one at a time.

Park & Kim (2022, Figure D.4) remove one convolution, one self-attention or one MLP of a trained network and measure its
accuracy, without training again. A unit here is what a network adds to its residual stream (an attention, an MLP, the
long branch of a residual block) or a part of it (the 3 × 3 convolution of a bottleneck, which some networks have
self-attention in place of). Its output is replaced

* by *zero*, which also takes away what the unit adds to every image alike, so that the network behind it, which always
  had that constant, gets what it never saw; or
* by its *mean* over images, position by position and channel by channel, which takes away only what the unit says of
  *this* image.

How far the two lie apart says how much of a unit is a constant.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from helpers.measures.distributed import Share
from helpers.measures.streams import at_least_two
from helpers.networks.inputs import float64, labelled, normalise
from helpers.networks.places import BRANCH_OUTPUTS, OUTPUTS, stage
from helpers.networks.taps import Tap, capture, evaluating, taps_for
from helpers.uncertainty import GROUPS, delete_one

WAYS = ("zero", "mean")


def units(model: nn.Module, kinds: Iterable[str] = BRANCH_OUTPUTS) -> list[Tap]:
    """What can be silenced in a timm model: the taps of its branches, or of other kinds of output.

    For all but the first argument see ``taps.taps_for``, which also says what is raised for a model that it does not
    know. Raises ``ValueError`` for kinds that are no output, such as the residual stream itself.
    """
    taps = taps_for(model, kinds)
    if inputs := [tap.kind for tap in taps if tap.where == "input"]:
        raise ValueError(f"a unit is silenced at its output, and {inputs[0]!r} is read at an input")
    return taps


def spatial_convolutions(model: nn.Module) -> list[Tap]:
    """The one convolution of each residual block of a bottleneck ResNet that mixes positions, or what stands for it.

    Raises ``ValueError`` as ``units``, and for a network without such blocks.
    """
    taps = [tap for tap in units(model, ["conv"]) if tap.module.endswith(".conv2")]
    bottlenecks = [tap for tap in taps if hasattr(model.get_submodule(tap.module[: -len(".conv2")]), "conv3")]
    if not bottlenecks:
        raise ValueError(f"{type(model).__name__} has no bottlenecks, whose second convolution mixes positions")
    return bottlenecks


@contextmanager
def silenced(model: nn.Module, unit: Tap, value: Tensor | None = None) -> Iterator[nn.Module]:
    """The model with a unit's output replaced by zero, or by ``value`` (1, …), within the context.

    Raises ``ValueError`` for a tap that is no output; from torch, where ``value`` does not fit.
    """
    if unit.where != "output":
        raise ValueError(f"a unit is silenced at its output; {unit.name!r} is read at an input")
    calls = 0

    def begin(module: nn.Module, args: tuple) -> None:
        nonlocal calls
        calls = 0

    def replace(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        nonlocal calls
        calls += 1
        if unit.call is not None and calls - 1 != unit.call:
            return None
        return torch.zeros_like(output) if value is None else value.to(output).expand_as(output).clone()

    handles = [model.register_forward_pre_hook(begin)]
    handles.append(model.get_submodule(unit.module).register_forward_hook(replace))
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def lesions(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    taps: Sequence[Tap] | None = None,
    *,
    groups: int = GROUPS,
) -> pd.DataFrame:
    """The accuracy that a classifier loses when each of its units is silenced, one at a time.

    The blocks before a unit are not computed again: they hand on what they gave for the intact network.

    Args:
        model: a timm classifier that ``taps_for`` knows, or any other with ``taps``; run in eval mode, its modes
            restored.
        batches: batches (images (n, 3, H, W), labels (n,)), which are gone through twice: a list, or a loader that
            gives the same ones again. A mean is over all of their images.
        taps: the units, as ``units(model)`` has them by default.
        groups: of images for the jackknife, at least 2; image i is in group i mod ``groups``.

    Returns:
        a table with a row for each unit and way, once for all images (``left_out`` −1) and once without each group:
        ``unit`` (its tap's name), ``kind``, ``order`` (0 is the first in depth), ``way`` ("zero" or "mean"), ``intact``
        (accuracy with nothing silenced, a share) and ``lost`` (points of accuracy).

    Raises:
        ValueError: fewer than two groups or fewer images than groups, no labels, a model that gives no scores of
            classes, nothing to silence, a model that ``taps_for`` does not know.
    """
    at_least_two(groups)
    taps = units(model) if taps is None else list(taps)
    if not taps:
        raise ValueError("there is no unit to silence")
    with evaluating(model):
        means, intact = _means(model, batches, taps)
        if len(intact) < groups:
            raise ValueError(f"{groups} groups need as many images; got {len(intact)}")
        ways = [(tap, way) for tap in taps for way in WAYS]
        share = Share()
        found = {at: [_right_answers(model, *batch, ways, means)] for at, batch in share.dealt(batches)}
    right = np.concatenate(share.in_order(found), axis=1)  # (units × ways, N)
    group = np.arange(len(intact)) % groups
    rows = [(tap.name, tap.kind, taps.index(tap), way) for tap, way in ways]

    def measure(left_out: int | None) -> dict[str, Any]:
        kept = group != (-1 if left_out is None else left_out)
        whole = intact[kept].mean()
        return {"intact": whole, "lost": 100 * (whole - right[:, kept].mean(1))}

    return delete_one(pd.DataFrame(rows, columns=["unit", "kind", "order", "way"]), measure, range(groups))


def first_minus_last(table: pd.DataFrame, way: str = "zero", kind: str | None = None) -> float:
    """Claim P17: what is lost without a stage's first unit minus without its last, in points, mean over stages.

    ``table``: rows of ``lesions`` of a network with stages for one choice of images; of a ResNet, one unit a block.
    ``kind``: of the units that are compared, all by default ("attn" of a Swin). Raises ``ValueError`` where names of
    units have no stage, a stage has only one, or there are units of several kinds and none is chosen.
    """
    rows = table[table["way"] == way].sort_values("order")
    rows = rows if kind is None else rows[rows["kind"] == kind]
    if rows["kind"].nunique() > 1:
        raise ValueError(f"first and last of one kind are compared; say which of {', '.join(rows['kind'].unique())}")
    stages = rows["unit"].map(stage)
    if rows.empty or (stages < 0).any() or (stages.value_counts() < 2).any():
        raise ValueError("stages with a first and a last unit are needed; give one unit a block of a network of stages")
    lost = rows.groupby(stages.to_numpy())["lost"]
    return float((lost.first() - lost.last()).mean())


def _means(model: nn.Module, batches: Iterable, taps: Sequence[Tap]) -> tuple[dict[str, Tensor], np.ndarray]:
    """Each unit's mean output over all images (1, …), and which images the intact network names rightly (N,)."""
    sums: dict[str, Tensor] = {}
    known: dict[int, list[Tensor]] = {}  # number of a batch → which of its images are named rightly
    share = Share()
    for number, batch in share.dealt(batches):
        images, labels = labelled(batch)
        with capture(model, taps, lambda x: float64(x).sum(0, keepdim=True)) as found:
            known[number] = [_answers(model, images) == labels]
        sums = {name: sums.get(name, 0) + value.cpu() for name, value in found.items()}
    sums, right = share.summed(sums), share.in_order(known)
    if not right:
        raise ValueError("there are no images to measure an accuracy on")
    intact = torch.cat(right).double().numpy()
    return {name: total / len(intact) for name, total in sums.items()}, intact


def _right_answers(model: nn.Module, images: Tensor, labels: Tensor, ways: list, means: dict) -> np.ndarray:
    """Whether each image of a batch is named rightly with each unit silenced in each way: (units × ways, n)."""
    blocks = _blocks(model)
    with capture(model, blocks) as known:
        _answers(model, images)
    outputs = dict(known)
    rows = []
    for unit, way in ways:
        inside = [i for i, block in enumerate(blocks) if f"{unit.module}.".startswith(f"{block.module}.")]
        with ExitStack() as stack:
            for block in blocks[: inside[0] if inside else 0]:
                stack.enter_context(_handing_on(model.get_submodule(block.module), outputs[block.name]))
            stack.enter_context(silenced(model, unit, means[unit.name] if way == "mean" else None))
            rows.append((_answers(model, images) == labels.cpu()).double().numpy())
    return np.stack(rows)


def _blocks(model: nn.Module) -> list[Tap]:
    """The outputs of a network's blocks in the order of depth; none where that order is not known."""
    try:
        return taps_for(model, OUTPUTS)
    except ValueError:
        return []


@contextmanager
def _handing_on(block: nn.Module, output: Tensor) -> Iterator[None]:
    """Within the context a block computes nothing and gives what it is known to give; hooks of its parts are silent."""
    own = block.__dict__.get("forward")
    block.forward = lambda *args, **kwargs: output.clone()
    try:
        yield
    finally:
        if own is None:
            del block.forward
        else:
            block.forward = own


def _answers(model: nn.Module, images: Tensor) -> Tensor:
    """The class with the highest score (n,). Raises ``ValueError`` for a model that gives no such scores."""
    scores = model(normalise(model, images))
    if not isinstance(scores, Tensor) or scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(
            f"{type(model).__name__} gives no scores of classes (n, classes), so it has no accuracy to lose"
        )
    return scores.argmax(1).cpu()
