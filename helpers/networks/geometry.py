"""Where in the image the positions of a convolutional network lie: kernels, strides and padding of a forward pass."""

import torch
from torch import Tensor, nn

KNOWN = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.ConstantPad2d, nn.ZeroPad2d)


class Centres:
    """Where in the image the positions of each layer have their centre, read off the layers of a forward pass.

    A convolution or pooling of kernel k, dilation d, stride s and padding p puts position o's centre on
    s · o − p + d (k − 1) / 2 of its input. Of any other layer that changes the size of a map (blur pooling, space to
    depth, interpolation), it is the middle of those inputs on which the position depends, by the layer's own gradients.
    A network reaches each size of grid first through its main path, so a grid is known by its size. One that
    no layer has made is taken to divide the image evenly. Used around a forward pass::

        with Centres(model) as centres:
            model(images)
        centres.centre(n=9, position=4, size=64, axis=0)  # the middle one of 9 rows, in an image of 64 pixels
    """

    def __init__(self, model: nn.Module):
        self.maps: tuple[dict, dict] = ({}, {})  # rows, columns: size → (step, first), in pixels
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
            known = self.maps[axis]
            if not known:
                known[before] = (1.0, 0.5)
            if before not in known and isinstance(module, KNOWN):
                self.lost[axis].update((before, after))
            if before not in known or after in known:
                continue
            if isinstance(module, KNOWN):
                stride, offset = _rule(module, axis, before, after)
            else:
                stride, offset = _probe(module, args[0], axis, after)
            step, first = known[before]
            known[after] = (step * stride, first + step * offset)

    def centre(self, n: int, position: int, size: int, axis: int) -> float:
        """Centre in pixels of a position of a grid of ``n`` along an axis of an image of ``size``.

        Raises ValueError for a map of convolutions of which the size was made outside of any layer that was seen.
        """
        if n > 1 and n in self.lost[axis] and n not in self.maps[axis]:
            raise ValueError(
                f"where the {n} {('rows', 'columns')[axis]} of this map lie is not known: something between the layers "
                "changes its size, such as torch.nn.functional in a forward method; make it a module of its own"
            )
        step, first = self.maps[axis].get(n, (size / n, size / n / 2))
        return first + step * position


def _rule(module: nn.Module, axis: int, before: int, after: int) -> tuple[float, float]:
    """Step between neighbours and place of the first one's centre, in positions of the input of a known layer."""
    if isinstance(module, (nn.ConstantPad2d, nn.ZeroPad2d)):
        return 1, -module.padding[2 * (1 - axis)]
    kernel, stride, pad = (_pair(getattr(module, name))[axis] for name in ("kernel_size", "stride", "padding"))
    reach = _pair(getattr(module, "dilation", 1))[axis] * (kernel - 1)
    if type(module).__name__.endswith("Same"):  # pads as much as it needs, the odd one at the end
        pad = max((after - 1) * stride + reach + 1 - before, 0) // 2
    return stride, reach / 2 - pad


def _probe(module: nn.Module, x: Tensor, axis: int, after: int) -> tuple[float, float]:
    """The same of any layer, from what two neighbours in the middle of its output depend on.

    Raises ValueError where a position depends on nothing.
    """
    middle, centres = max(after // 2 - 1, 0), []
    with torch.inference_mode(False), torch.enable_grad():
        source = torch.rand(1, *x.shape[1:], device=x.device, dtype=x.dtype, requires_grad=True)
        rows = module.forward(source).sum((0, 1, 3 - axis))
        for position in range(middle, min(middle + 2, after)):
            gradient = torch.autograd.grad(rows[position], source, retain_graph=True)[0]
            reached = gradient.abs().sum((0, 1, 3 - axis)).nonzero().flatten()
            if not len(reached):
                raise ValueError(f"{type(module).__name__}: its output does not depend on its input, so has no centre")
            centres.append(float(reached[0] + reached[-1]) / 2)
    stride = centres[1] - centres[0] if len(centres) > 1 else x.shape[2 + axis] / after
    return stride, centres[0] - stride * middle


def _is_leaf(module: nn.Module) -> bool:
    """Whether a module has no others inside, and may change rows and columns (a linear layer changes channels)."""
    return not list(module.children()) and not isinstance(module, nn.Linear)


def _pair(value: int | tuple[int, ...] | list[int]) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)
