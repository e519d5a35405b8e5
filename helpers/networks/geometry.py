"""Where in the image the positions of a convolutional network lie: kernels, strides and padding of a forward pass."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

KNOWN = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.ConstantPad2d, nn.ZeroPad2d)
EVEN = 8  # from so many rows on, whether they lie evenly can be told from those that the rim leaves alone


class Centres:
    """Where in the image the positions of each layer have their centre, read off the layers of a forward pass.

    A convolution or pooling of kernel k, dilation d, stride s and padding p puts position o's centre on
    s · o − p + d (k − 1) / 2 of its input. Of any other layer that changes the size of a map (blur pooling, space to
    depth), it is the middle of those inputs on which the position depends, by the layer's own gradients. A network
    reaches each size of grid first through its main path, so a grid is known by its size; where another convolution or
    pooling leads from the same map to a grid of that size, the middle is that of the inputs of both. A grid that no
    layer has made is taken to divide the image evenly. Used around a forward pass::

        with Centres(model) as centres:
            model(images)
        centres.centre(n=9, position=4, size=64, axis=0)  # the middle one of 9 rows, in an image of 64 pixels
    """

    def __init__(self, model: nn.Module):
        self.image: list[int | None] = [None, None]  # height and width of what the first layer is given
        self.made: tuple[dict[int, _Made], dict[int, _Made]] = ({}, {})  # rows, columns: size → how it is made
        self.lost: tuple[set, set] = (set(), set())  # sizes of maps that something between the layers has made
        self.modules = [module for module in model.modules() if isinstance(module, KNOWN) or _is_leaf(module)]

    def __enter__(self) -> "Centres":
        self.handles = [module.register_forward_hook(self._read) for module in self.modules]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _read(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        if any(not isinstance(x, Tensor) or x.ndim != 4 for x in (*args[:1], output)):
            return
        for axis in (0, 1):
            before, after = args[0].shape[2 + axis], output.shape[2 + axis]
            made = self.made[axis]
            if self.image[axis] is None:
                self.image[axis] = before
            known = before == self.image[axis] or before in made
            if not known and isinstance(module, KNOWN):
                self.lost[axis].update((before, after))
            if not known or after == self.image[axis]:
                continue
            if isinstance(module, KNOWN):
                way = _rule(module, axis, before, after)
                made[after] = _both(made[after], way) if after in made else way
            elif after not in made:
                found = _probe(module, args[0], axis, after)
                if found is None:
                    self.lost[axis].add(after)
                else:
                    made[after] = found

    def centre(self, n: int, position: int, size: int, axis: int) -> float:
        """Centre in pixels of a position of a grid of ``n`` along an axis of an image of ``size``.

        Raises ValueError for a map of layers of which the size was made outside of any layer that was seen, or by one
        that resizes unevenly, and where the model resizes, pads or crops the image before its first layer.
        """
        line = ("rows", "columns")[axis]
        seen = n == self.image[axis] or n in self.made[axis]
        if n > 1 and n in self.lost[axis] and not seen:
            raise ValueError(
                f"where the {n} {line} of this map lie is not known: something between the layers changes its size, "
                "such as torch.nn.functional in a forward method (make it a module of its own), or a layer enlarges or "
                "resizes it by no whole number"
            )
        if not seen:
            return size / n / 2 + size / n * position
        if self.image[axis] != size:
            raise ValueError(
                f"the first layer is given {self.image[axis]} {line} of an image of {size}: the image is resized, "
                "padded or cropped before it, so where its positions lie is not known; do that to the images instead"
            )
        step, first = self._place(n, axis)
        return first + step * position

    def _place(self, n: int, axis: int) -> tuple[float, float]:
        """Step between neighbours of a grid of ``n``, and centre of the first one, in pixels of the image."""
        if n == self.image[axis]:
            return 1.0, 0.5
        way = self.made[axis][n]
        step, first = self._place(way.before, axis)
        return step * way.stride, first + step * (way.low + way.high) / 2


class _Made(NamedTuple):
    """How a grid is made from one of size ``before``: the step between neighbours, and the first one's inputs.

    These reach from ``low`` to ``high``, in positions of the input, also beyond its rim.
    """

    before: int
    stride: float
    low: float
    high: float


def _both(way: _Made, other: _Made) -> _Made:
    """The inputs of two ways to the same grid, if they are ways from the same map; else the first way."""
    if way[:2] != other[:2]:
        return way
    return way._replace(low=min(way.low, other.low), high=max(way.high, other.high))


def _rule(module: nn.Module, axis: int, before: int, after: int) -> _Made:
    """How a known layer makes its output."""
    if isinstance(module, (nn.ConstantPad2d, nn.ZeroPad2d)):
        return _Made(before, 1, -module.padding[2 * (1 - axis)], -module.padding[2 * (1 - axis)])
    kernel, stride, pad = (_pair(getattr(module, name))[axis] for name in ("kernel_size", "stride", "padding"))
    reach = _pair(getattr(module, "dilation", 1))[axis] * (kernel - 1)
    if type(module).__name__.endswith("Same"):  # pads as much as it needs, the odd one at the end
        pad = max((after - 1) * stride + reach + 1 - before, 0) // 2
    return _Made(before, stride, -pad, reach - pad)


def _probe(module: nn.Module, x: Tensor, axis: int, after: int) -> _Made | None:
    """The same of any layer, from what two neighbours in the middle of its output depend on.

    None for a layer that enlarges, or of which the positions do not lie evenly (resizing by no whole number). Raises
    ValueError where a position depends on nothing.
    """
    before, middle = x.shape[2 + axis], max(after // 2 - 1, 0)
    with torch.inference_mode(False), torch.enable_grad():
        source = torch.rand(1, *x.shape[1:], device=x.device, dtype=x.dtype, requires_grad=True)
        rows = module.forward(source).sum((0, 1, 3 - axis))

        def reached(position: int) -> tuple[float, float]:
            gradient = torch.autograd.grad(rows[position], source, retain_graph=True)[0]
            inside = gradient.abs().sum((0, 1, 3 - axis)).nonzero().flatten()
            if not len(inside):
                raise ValueError(f"{type(module).__name__}: its output does not depend on its input, so has no centre")
            return float(inside[0]), float(inside[-1])

        low, high = reached(middle)
        stride = before / after
        if after > 1:
            stride = sum(reached(middle + 1)) / 2 - (low + high) / 2
        if after >= 2 * before:
            return None
        if after >= EVEN:
            quarter = after // 4
            expected = (low + high) / 2 + stride * (quarter - middle)
            if sum(reached(quarter)) / 2 != expected:
                return None
    return _Made(before, stride, low - stride * middle, high - stride * middle)


def _is_leaf(module: nn.Module) -> bool:
    """Whether a module has no others inside, and may change rows and columns (a linear layer changes channels)."""
    return not list(module.children()) and not isinstance(module, nn.Linear)


def _pair(value: int | tuple[int, ...] | list[int]) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)
